"""Checks of the latent space, against the closed forms of the linear-Gaussian oracle.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import dataclasses
import json
import math

import pyro.distributions as dist
import pytest
import torch
from posteriors import Faulty
from programs import PAIRS, guide_for, pair, vae
from scipy import stats

from ppl_vae import Batch, Guide, guides, models
from ppl_vae.diagnose import latent_checks
from ppl_vae.diagnose.aggregate import Part
from ppl_vae.diagnose.latent_checks import mmd
from ppl_vae.errors import InputError
from ppl_vae.evaluate.latents import ActiveUnits
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


def noisy(latent: int = 3) -> LinearGaussian:
    """Of so little information that an aggregate of a few hundred posteriors is near that of all."""
    return LinearGaussian(2 * latent, latent, sigma=2.0, seed=5)


def repeated(batch: Batch, times: int) -> Batch:
    return batch.take(torch.arange(batch.size).repeat(times))


def near(found: Part | None, exact: float) -> bool:
    assert found is not None
    return abs(found.mean - exact) < 4 * found.se + 0.005  # what 800 posteriors differ from all by


@pytest.mark.parametrize("matched", [False, True])
def test_parts_of_the_kl_are_those_of_the_closed_form(matched: bool) -> None:
    """z ~ q(z) is N(0, A), A = Cov E[z | x] + C: every part is a KL of Gaussians. 4 standard errors over the data, of
    seven numbers each: 1 in 2,000."""
    model = noisy()
    guide = Faulty(model, scale=1.2, matched=matched)
    x = model.simulate(800, seed=1)
    found = latent_checks(model, guide, x, permutations=19, seed=0)
    inside = torch.linalg.inv(model.precision)
    c = 1.44 * (torch.diag_embed(inside.diagonal()) if matched else inside)
    a = torch.eye(3, dtype=torch.float64) - inside + c
    diagonal = a.diagonal()
    exact = {
        "kl": 0.5 * (a.trace() - 3 - c.logdet()),
        "information": 0.5 * (a.logdet() - c.logdet()),
        "marginal": 0.5 * (a.trace() - 3 - a.logdet()),
        "total_correlation": 0.5 * (diagonal.log().sum() - a.logdet()),
    }
    parts = found.parts
    assert parts is not None
    assert parts.dimensions is not None
    assert parts.marginal is not None
    assert parts.total_correlation is not None
    for name, value in exact.items():
        assert near(getattr(parts, name), value.item()), name
    for d, part in enumerate(parts.dimensions):
        assert near(part, 0.5 * (diagonal[d] - 1 - diagonal[d].log()).item())
    # of the population, from below and from above
    assert (
        parts.information.mean - 4 * parts.information.se < exact["information"] < parts.upper.mean + 4 * parts.upper.se
    )
    # and the parts make the whole, to rounding
    dims = sum(part.mean for part in parts.dimensions)
    assert parts.information.mean + parts.marginal.mean == pytest.approx(parts.kl.mean, abs=1e-10)
    assert parts.total_correlation.mean + dims == pytest.approx(parts.marginal.mean, abs=1e-10)


def test_information_is_at_most_log_n() -> None:
    model = LinearGaussian(6, 2, sigma=0.01)
    found = latent_checks(model, LinearGaussianPosterior(model), model.simulate(100), permutations=19, seed=0)
    assert found.parts is not None
    assert found.parts.information.mean == pytest.approx(math.log(100), abs=0.1)
    assert found.parts.upper.mean > math.log(100)
    assert found.parts.saturated
    assert "at least 4.6" in found.verdicts()[0].says


def test_mmd_p_values_are_exact() -> None:
    """60 pairs of samples of one distribution; Kolmogorov-Smirnov, 1 in 1,000. And its mean is 0: 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    found = [mmd(*torch.randn(2, 60, 2, generator=generator, dtype=torch.float64), 199) for _ in range(60)]
    assert stats.kstest([each.p_value for each in found], "uniform").pvalue > 0.001
    values = torch.tensor([each.mmd2 for each in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(60)


def test_mmd_is_its_closed_form() -> None:
    """Of N(0, 1) and N(1, 1) under a Gaussian kernel of width m: 2 (1 + 2/m²)^-½ (1 - exp(-1 / (2 (m² + 2)))); what its
    width is, the sample says. 4 standard errors, 1 in 15,000."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 700, 1, generator=generator, dtype=torch.float64)
    b = b + 1.0
    found = mmd(a, b, 99)
    both = torch.cat([a, b])
    width = torch.pdist(both).median().item()  # in units of x
    exact = 2 / math.sqrt(1 + 2 / width**2) * (1 - math.exp(-1 / (2 * (width**2 + 2))))
    assert abs(found.mmd2 - exact) < 4 * found.se
    assert found.p_value == pytest.approx(0.01)


def test_holes_are_the_share_of_the_closed_form() -> None:
    """Codes of N(0, a) with a < 1: the prior's mass beyond their 95% interval is 2 Φ(-1.96 √a); 4 standard errors."""
    model = LinearGaussian(2, 1, sigma=1.0, seed=0)
    guide = Faulty(model, scale=0.2)
    found = latent_checks(model, guide, model.simulate(1000, seed=2), permutations=19, seed=0)
    inside = torch.linalg.inv(model.precision).item()
    a = 1 - inside + 0.04 * inside
    exact = 2 * stats.norm.cdf(-1.96 * math.sqrt(a))
    assert exact > 0.06
    assert found.holes.by == "density"
    assert abs(found.holes.outside - exact) < 4 * found.holes.se


class Narrow(Faulty):
    """Codes that keep to a corner of the prior."""

    def distribution(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        mean = super().distribution(batch)["z"].mean
        return {"z": dist.Normal(0.3 * mean + 1.0, torch.full_like(mean, 0.2)).to_event(1)}


def test_verdicts_of_a_right_and_of_a_wrong_pair() -> None:
    model = noisy(2)
    x = model.simulate(400, seed=104)
    right = latent_checks(model, LinearGaussianPosterior(model), x, seed=1)
    assert right.parts is not None
    assert not right.parts.saturated
    assert [each.fault for each in right.verdicts()] == [False, False, False]
    wrong = latent_checks(model, Narrow(model), x, seed=0)
    collapse, holes, discrepancy = wrong.verdicts()
    assert not collapse.fault
    assert holes.fault
    assert discrepancy.fault
    assert "z" in discrepancy.says
    assert wrong.holes.outside > 0.5


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_is_said() -> None:
    """100 data sets of the model under its exact posterior, in whose one dimension of three x moves the mean by a
    variance of 0.01 itself, the largest share that is called collapsed: each alarm at most 5% of the time, more than
    11 of 100 about 4e-3 of it."""
    model = noisy(3)
    model.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0.2], [0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    inside = torch.linalg.inv(model.precision).diagonal()
    # of the prior's variance of 1 the posterior leaves so much to its means
    assert (1 - inside[2]).item() == pytest.approx(0.01, abs=2e-4)
    alarms = dict.fromkeys(("posterior collapse", "holes", "aggregate posterior"), 0)
    for seed in range(100):
        x = model.simulate(300, seed=seed)
        found = latent_checks(model, LinearGaussianPosterior(model), x, permutations=99, seed=seed)
        for verdict in found.verdicts():
            alarms[verdict.check] += bool(verdict.fault)
    assert max(alarms.values()) <= 11, alarms
    print(alarms)


@pytest.mark.parametrize(("shift", "fault"), [(0.15, False), (0.7, True)])
def test_a_difference_that_samples_do_not_show_is_no_fault(shift: float, fault: bool) -> None:
    """Both are told apart from the prior; the KLs of the aggregates are 0.02 and 0.4 nats."""
    model = noisy(2)
    found = latent_checks(model, Faulty(model, shift=shift), model.simulate(800, seed=104), permutations=199, seed=1)
    assert found.discrepancies["z"].p_value <= 0.05
    verdict = found.verdicts()[2]
    assert verdict.fault is fault
    assert verdict.value == (found.discrepancies["z"].p_value if fault else 1.0)
    assert ("to less than 0.1 nat" in verdict.says) is not fault


def test_collapsed_dimensions_are_named() -> None:
    """The oracle's last latent has no weight: nothing of x says anything of it."""
    model = LinearGaussian(4, 3, seed=1)
    model.weight[:, 2] = 0.0
    found = latent_checks(model, LinearGaussianPosterior(model), model.simulate(300), permutations=19, seed=0)
    assert found.collapsed == ["z[2]"]
    verdict = found.verdicts()[0]
    assert verdict.fault
    assert "1 of 3 latent dimensions have collapsed onto the prior: z[2]" in verdict.says
    # what may be above 0.01 by chance is not called collapsed: 0.009 is, by 2.39 errors of 0.0001, and not of 0.001
    variances, errors = torch.tensor([[0.009, 0.012, 0.009], [0.001, 0.002, 0.0001]], dtype=torch.float64)
    near = ActiveUnits({"z": variances}, {"z": errors}, 0.01, 300, "data")
    assert dataclasses.replace(found, active=near).collapsed == ["z[2]"]
    model.weight.zero_()
    whole = latent_checks(model, LinearGaussianPosterior(model), model.simulate(300), permutations=19, seed=0)
    assert "no latent dimension moves with x" in whole.verdicts()[0].says
    assert (verdict.grave, whole.verdicts()[0].grave) == (False, True)


def test_layers() -> None:
    """MMD layer by layer, the information of all of them, log q by running the guide."""
    torch.manual_seed(0)
    model, guide, batch = pair("bottom-up")
    found = latent_checks(model, guide, repeated(batch, 20), permutations=19, seed=0)
    assert set(found.discrepancies) == {"z1", "z2"}
    assert found.parts is not None
    assert found.parts.total_correlation is None
    # five data twenty times: no more than log 5 to be known
    assert found.parts.information.mean <= math.log(5) + 1e-9


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "global"])
def test_pairs_of_every_kind_run(name: str) -> None:
    torch.manual_seed(0)
    model, guide, batch = pair(name)
    found = latent_checks(model, guide, repeated(batch, 20), permutations=19, seed=0)
    json.dumps(found.to_json(), allow_nan=False)
    assert len(found.verdicts()) == 3
    if name in ("class", "mixture"):
        assert found.parts is None
        assert found.why_not
        assert found.holes.by == "neighbours"


def test_guides_without_density() -> None:
    torch.manual_seed(0)
    model, _, batch = pair("mean-field")
    one_way = guide_for(model)
    one_way.scores_given = False
    for guide, why in ((guide_for(model, "delta"), "point mass"), (one_way, "cannot score")):
        found = latent_checks(model, guide, repeated(batch, 20), permutations=19, seed=0)
        assert found.parts is None
        assert why in found.why_not


def test_it_is_a_finding() -> None:
    model = noisy(2)
    seen: list[tuple[int, int]] = []
    guide: Guide = LinearGaussianPosterior(model)
    x = model.simulate(150)
    found = latent_checks(
        model, guide, x, size=120, permutations=19, chunk=50, seed=0, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.codes.shape == (120, 2)
    data = found.to_dataset()
    assert data["kl"].dims == ("dim",)
    assert data["dim"].values.tolist() == ["z[0]", "z[1]"]
    for picture in found.pictures():
        assert all(axis.has_data() for axis in picture.figure.axes)
    again = latent_checks(model, guide, x, size=120, permutations=19, chunk=50, seed=0)
    assert torch.equal(found.codes, again.codes)


def test_refused() -> None:
    model = noisy(2)
    guide = LinearGaussianPosterior(model)
    x = model.simulate(120)
    with pytest.raises(InputError, match="data are 50: an aggregate posterior needs 100"):
        latent_checks(model, guide, x[:50])
    with pytest.raises(InputError, match=r"permutations=10 are too few .* give 19"):
        latent_checks(model, guide, x, permutations=10)

    class Unsampled(LinearGaussian):
        def forward(self, batch: Batch) -> torch.Tensor:
            if batch.x is None:
                raise NotImplementedError("no sampler")
            return super().forward(batch)

    with pytest.raises(InputError, match=r"Unsampled does not generate from its prior.*: no sampler"):
        latent_checks(
            Unsampled(4, 2), LinearGaussianPosterior(LinearGaussian(4, 2)), LinearGaussian(4, 2).simulate(100)
        )
    shared, its, batch = pair("global")
    with pytest.raises(InputError, match="'w' is shared"):
        latent_checks(shared, its, repeated(batch, 20))
    mixture = models.GaussianMixture(3, 2)
    with pytest.raises(InputError, match="'z' is discrete"):
        latent_checks(mixture, guides.Exact(mixture), torch.randn(120, 2))
    broken = vae(2)
    its = guide_for(broken)
    for parameter in its.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match="nan"):
        latent_checks(broken, its, repeated(pair("mean-field")[2], 20))
