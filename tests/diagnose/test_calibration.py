"""Simulation-based calibration: right posteriors pass as often as they should, and each fault is called by its name.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from posteriors import Faulty, correlated
from programs import PAIRS, GlobalGuide, GlobalWeight, conditional_vae, guide_for, pair, vae
from scipy import stats
from torch import Tensor

from ppl_vae import Batch, Guide, LatentModel, guides, likelihoods, models, networks
from ppl_vae.diagnose import Calibration, sbc
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian, LinearGaussianChain, LinearGaussianPosterior

REPEATS = 100


def repeated(guide: Guide, model: LatentModel, simulations: int, draws: int, bins: int, seed: int) -> list[Calibration]:
    """A hundred repeats of one calibration, simulated in one go."""
    whole = sbc(model, guide, simulations=REPEATS * simulations, draws=draws, bins=bins, seed=seed, chunk=1 << 16)
    return [
        Calibration.of(ranks, whole.names, whole.functions, draws, bins, 0.05)
        for ranks in whole.ranks.split(simulations)
    ]


def oracle(latent: int = 2) -> LinearGaussian:
    return LinearGaussian(2 * latent, latent, seed=3)


def check_exact(simulations: int, draws: int, bins: int) -> None:
    """P-values are uniform over the repeats (Kolmogorov-Smirnov, 1 in 1,000 for each of 12), and verdicts find a fault
    in 5% of them at most (11 of 100 or more: 1 in 100)."""
    model = oracle()
    found = repeated(LinearGaussianPosterior(model), model, simulations, draws, bins, seed=1)
    for q in range(4):
        for name in ("p_chi_square", "p_location", "p_spread"):
            p_values = [getattr(each.tests, name)[q].item() for each in found]
            assert stats.kstest(p_values, "uniform").pvalue > 0.001, (found[0].names[q], name)
    assert sum(bool(each.faults) for each in found) <= 10


def check_fault(simulations: int, draws: int, bins: int, kind: str, **fault: float) -> None:
    """Found in both dimensions by its name in 95 of 100 repeats, and another beside it in 10 at most: Holm's procedure
    lets 5 through (11 or more: 1 in 100)."""
    model = oracle()
    found = repeated(Faulty(model, **fault), model, simulations, draws, bins, seed=2)
    numbers = [{k: qs for k, qs in each.faults.items() if k != "wrong as a whole"} for each in found]
    assert sum(each.get(kind) == [0, 1] for each in numbers) >= 95
    assert sum(len(each) > 1 for each in numbers) <= 10


FAULTS = [
    ("too narrow", {"scale": 0.7}),
    ("too wide", {"scale": 1.3}),
    ("shifted high", {"shift": 0.3}),
    ("shifted low", {"shift": -0.3}),
]


def test_exact_posteriors_are_uniform() -> None:
    check_exact(100, 19, 10)


@pytest.mark.parametrize(("kind", "fault"), [FAULTS[0], FAULTS[2]])
def test_faults_are_found_and_named(kind: str, fault: dict[str, float]) -> None:
    check_fault(400, 19, 10, kind, **fault)


@pytest.mark.slow  # a minute: as the defaults are
def test_exact_posteriors_are_uniform_at_the_defaults() -> None:
    check_exact(1000, 99, 20)


@pytest.mark.slow  # a minute each: as the defaults are
@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_faults_are_found_and_named_at_the_defaults(kind: str, fault: dict[str, float]) -> None:
    check_fault(1000, 99, 20, kind, **fault)


def test_a_split_posterior_is_of_another_shape() -> None:
    """Location and spread of the ranks' scores are right (found otherwise in 1 of 20 at most); chi-square sees it."""
    model = LinearGaussian(4, 1, seed=3)
    found = sbc(model, Faulty(model, split=True), simulations=1000, draws=39, bins=20, seed=0)
    assert found.faults["of another shape"] == [0]
    assert set(found.faults) <= {"of another shape", "wrong as a whole"}
    verdict = found.verdicts()[0]
    assert verdict.fault
    assert "the posterior has another shape than p(z | x) in z[0] (chi-square" in verdict.says


def test_a_skewed_posterior_is_found() -> None:
    """Mean and variance are right, and location and spread of the ranks' scores nearly are; chi-square sees it."""
    model = LinearGaussian(4, 1, seed=3)
    found = sbc(model, Faulty(model, skewed=True), simulations=1000, draws=39, bins=20, seed=0)
    assert found.tests.p_chi_square[0] < 1e-6
    assert found.faults


def test_right_marginals_with_wrong_correlations_are_wrong_as_a_whole() -> None:
    """Coordinates alone would pass: log p(x, z) does not."""
    model = correlated()
    found = sbc(model, Faulty(model, matched=True), simulations=1000, draws=39, bins=20, seed=0)
    assert list(found.faults) == ["wrong as a whole"]
    (verdict,) = found.verdicts()
    assert verdict.fault
    assert "log p(x, z)" in verdict.says
    assert "less probable" in verdict.says


def test_verdicts_say_what_they_rest_on() -> None:
    model = oracle()
    found = sbc(model, Faulty(model, scale=0.7), simulations=1000, draws=99, seed=0)
    narrow = found.verdicts()[0]
    assert narrow.fault
    assert "too narrow in z[" in narrow.says
    assert narrow.says.startswith("On data that the model makes")
    assert narrow.speaks_of == "data that the model makes"
    assert narrow.value <= narrow.threshold == narrow.false_alarm == 0.05
    # 1 / 0.7 = 1.43, of which ranks at the ends of 99 draws hide some
    assert found.tests.spread[:2].tolist() == pytest.approx([1.36, 1.36], abs=0.08)
    exact = dist.Normal(0.0, 1.0).cdf(torch.tensor(0.7 * 1.6449)).item() * 2 - 1  # what a 90% interval holds
    _, shares, _ = found.coverage([0.9])
    assert shares[0, :2].tolist() == pytest.approx([exact] * 2, abs=0.055)  # 4 binomial errors
    clean = sbc(model, LinearGaussianPosterior(model), simulations=1000, seed=0).verdicts()
    assert [each.fault for each in clean] == [False]
    assert clean[0].advice == ""


def test_it_is_a_finding() -> None:
    model = oracle()
    found = sbc(model, Faulty(model, scale=0.7), simulations=200, draws=39, bins=10, seed=0)
    json.dumps(found.to_json(), allow_nan=False)
    data = found.to_dataset()
    assert data["rank"].dims == ("simulation", "quantity")
    assert data["quantity"].values.tolist() == ["z[0]", "z[1]", "log p(x, z)", "distance to a random z"]
    assert float(data["count"].sel(quantity="z[0]").sum()) == 200
    pictures = found.pictures()
    assert len({each.name for each in pictures}) == 3
    for each in pictures:
        assert each.alt
        assert all(axis.has_data() for axis in each.figure.axes)


def test_seeds_pieces_and_progress() -> None:
    model = oracle()
    guide = LinearGaussianPosterior(model)
    seen: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    one = sbc(model, guide, simulations=60, draws=9, bins=5, seed=3, chunk=100, progress=lambda *at: seen.append(at))
    two = sbc(model, guide, simulations=60, draws=9, bins=5, seed=3, chunk=100)
    assert torch.equal(one.ranks, two.ranks)
    assert torch.equal(state, torch.get_rng_state())
    assert seen == [(10 * i, 60) for i in range(1, 7)]
    assert one.ranks.min() >= 0
    assert one.ranks.max() <= 9


def test_functions_of_ones_own() -> None:
    model = oracle()
    own = {"sum": lambda batch, z: z["z"].sum(-1)}
    found = sbc(model, Faulty(model, shift=0.5), simulations=300, draws=19, bins=10, functions=own, seed=0)
    assert found.names[-1] == "sum"
    assert found.tests.location[-1] < -0.3
    for bad, match in (
        ({"sum": lambda batch, z: z["z"]}, r"functions\['sum'\] gave \(20"),
        ({"z[0]": own["sum"]}, "z\\[0\\]"),
        ({"sum": 3}, "no function"),
        ({"nan": lambda batch, z: z["z"].sum(-1) * torch.nan}, "nan is NaN"),
    ):
        with pytest.raises(InputError, match=match):
            sbc(model, LinearGaussianPosterior(model), simulations=50, draws=19, bins=10, functions=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "global"])
def test_pairs_of_every_kind_run(name: str) -> None:
    model, guide, batch = pair(name)
    found = sbc(model, guide, batch, simulations=30, draws=9, bins=2, seed=0)
    assert found.ranks.shape == (30, len(found.names))


def test_layers_under_exact_guides_are_uniform() -> None:
    """q(z1 | x) q(z2 | z1) of the chain in closed form; a fault would be 1 in 20, and this seed finds none."""
    model = LinearGaussianChain(seed=1)

    class Exact(Guide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            with pyro.plate("data", batch.size, dim=-1):
                gain, offset, cov = model.conditional("z1", ["x"])
                z1 = pyro.sample("z1", dist.MultivariateNormal(batch.x @ gain.T + offset, cov))
                gain, offset, cov = model.conditional("z2", ["z1"])
                z2 = pyro.sample("z2", dist.MultivariateNormal(z1 @ gain.T + offset, cov))
            return {"z1": z1, "z2": z2}

    found = sbc(model, Exact(), simulations=500, draws=19, bins=10, seed=0)
    assert set(found.names[:5]) == {"z1[0]", "z1[1]", "z1[2]", "z2[0]", "z2[1]"}
    assert not found.faults


def test_hidden_parts_of_x_are_not_scored() -> None:
    """The exact posterior of what is visible is uniform in log p(x_visible, z) too; 1 in 20."""
    model = oracle()
    x = model.simulate(40, seed=0)
    visible = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    visible[:, 0] = True
    given = Batch(x=x, visible=visible)
    found = sbc(model, LinearGaussianPosterior(model), given, simulations=500, draws=19, bins=10, seed=0)
    assert not found.faults


def test_discrete_latents_and_their_exact_posterior() -> None:
    """Ties are broken at random: the exact posterior of a mixture's component is uniform (1 in 20)."""
    torch.manual_seed(0)
    mixture = models.GaussianMixture(3, 2)
    found = sbc(mixture, guides.Exact(mixture), simulations=500, draws=19, bins=10, seed=0)
    assert found.names[0] == "z"
    assert not found.faults


def test_point_masses_are_too_narrow() -> None:
    torch.manual_seed(0)
    model = vae(2)
    found = sbc(model, guide_for(model, "delta"), simulations=300, draws=19, bins=10, seed=0)
    assert found.faults["too narrow"] == [0, 1]


def test_likelihoods_whose_draws_leave_what_encoders_are_made_for() -> None:
    shape = (1, 2, 3)
    for likelihood in (likelihoods.Gaussian(shape), likelihoods.Poisson(shape), likelihoods.StudentT(shape)):
        torch.manual_seed(0)
        decoder = networks.decoder("mlp", 2, shape, likelihood.parameters_per_element, (7,))
        model = models.VAE(decoder, likelihood, 2)
        guide = guides.MeanField(model, networks.encoder("mlp", shape, (7,)))
        assert sbc(model, guide, simulations=40, draws=9, bins=2, seed=0).ranks.shape[0] == 40


class Unsampled(LinearGaussian):
    def forward(self, batch: Batch) -> Tensor:
        if batch.x is None:
            raise NotImplementedError("no sampler")
        return super().forward(batch)


def test_refused() -> None:
    model = oracle()
    guide = LinearGaussianPosterior(model)
    with pytest.raises(InputError, match="simulations=50 are too few"):
        sbc(model, guide, simulations=50)
    with pytest.raises(InputError, match="draws=5"):
        sbc(model, guide, draws=5)
    with pytest.raises(InputError, match="alpha"):
        sbc(model, guide, alpha=2.0)
    with pytest.raises(InputError, match=r"Unsampled does not generate x from its prior.*no sampler"):
        sbc(Unsampled(4, 2), guide)
    shared = GlobalWeight()
    with pytest.raises(InputError, match="'w' is shared by all data"):
        sbc(shared, GlobalGuide(shared))
    own = vae(2)
    with pytest.raises(InputError, match="Local has parameters for each datum"):
        sbc(own, guides.Local(own, size=5).double())
    conditional = conditional_vae()
    with pytest.raises(InputError, match="class"):
        sbc(conditional, guide_for(conditional))
    broken = vae(2)
    for parameter in broken.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        sbc(broken, guide_for(vae(2)))
