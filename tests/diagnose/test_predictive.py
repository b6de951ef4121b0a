"""Predictive checks: p-values that are uniform for data of the model, and replicated data as the closed form has them.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import json
import math

import pytest
import torch
from programs import PAIRS, pair
from scipy import stats

from ppl_vae import Batch, DataSet
from ppl_vae.diagnose import predictive_check
from ppl_vae.diagnose.predictive import default_statistics
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

MEAN = {"mean": lambda x: x.mean(1)}


def oracle() -> tuple[LinearGaussian, LinearGaussianPosterior]:
    model = LinearGaussian(4, 2, seed=3)
    return model, LinearGaussianPosterior(model)


def test_prior_p_values_of_the_models_own_data_are_uniform() -> None:
    """20 data sets; Kolmogorov-Smirnov, 1 in 1,000. Posterior ones gather around ½, far from the ends."""
    model, guide = oracle()
    found = [
        predictive_check(model, guide, model.simulate(30, seed=s), statistics=MEAN, draws=49, seed=s) for s in range(20)
    ]
    assert stats.kstest([each.p_prior.item() for each in found], "uniform").pvalue > 0.001
    assert (
        sum(each.p_posterior.item() <= 0.05 for each in found) <= 3
    )  # 2 α of 20; 4 or more: 1 in 7 if as many as the bound allows, and far fewer are


def test_replicated_data_are_those_of_the_closed_form() -> None:
    """The mean of all x' is Gaussian: x' | x ~ N(W E[z | x] + b, W S Wᵀ + σ² I), and N(b, W Wᵀ + σ² I) from the prior;
    means and standard deviations to 4 standard errors, 1 in 4,000 for the four."""
    model, guide = oracle()
    x = model.simulate(50, seed=0)
    found = predictive_check(model, guide, x, statistics=MEAN, draws=2000, seed=0)
    assert found.observed.item() == pytest.approx(x.mean().item(), rel=1e-12)
    ones = torch.full((4,), 0.25, dtype=torch.float64)
    w, s = model.weight, torch.linalg.inv(model.precision)
    noise = model.sigma**2 * torch.eye(4, dtype=torch.float64)
    expected = {
        "posterior": ((model.posterior_mean(x) @ w.T + model.bias).mean(), w @ s @ w.T + noise),
        "prior": (model.bias.mean(), w @ w.T + noise),
    }
    for kind, (mean, covariance) in expected.items():
        sd = math.sqrt((ones @ covariance @ ones).item() / 50)
        values = getattr(found, kind)[:, 0]
        assert abs(values.mean() - mean) < 4 * sd / math.sqrt(2000)
        assert abs(values.std() / sd - 1) < 4 / math.sqrt(4000)
        tail, error = found.tail(kind)
        exact = 1 - stats.norm.cdf(x.mean().item(), mean.item(), sd)
        assert abs(tail.item() - exact) < 4 * max(error.item(), 1e-3)


def test_a_wrong_model_is_found_and_a_right_one_is_not() -> None:
    model, guide = oracle()
    x = model.simulate(100, seed=1)
    sds = {f"sd of x[{i}]": lambda x, i=i: x[:, i].std() for i in range(4)}
    own = predictive_check(model, guide, x, statistics=sds, seed=0)
    assert [each.fault for each in own.verdicts()] == [False, False]
    noise = 3.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    heavy = predictive_check(model, guide, x + noise, statistics=sds, seed=0)
    prior, posterior = heavy.verdicts()
    assert prior.fault
    assert "sd of x[" in prior.says
    assert prior.false_alarm == 0.05
    assert posterior.fault
    assert posterior.false_alarm == 0.1


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_kind_run(name: str) -> None:
    model, guide, batch = pair(name)
    found = predictive_check(model, guide, batch, statistics={"first": lambda x: x.flatten(1)[:, 0]}, draws=40, seed=0)
    assert found.posterior.shape == found.prior.shape == (40, 1)


def test_one_draw_of_what_is_shared_for_a_whole_data_set() -> None:
    """Under x = w z + noise the replicated rows of one data set have one w: pieces do not change that."""
    model, guide, batch = pair("global")
    with torch.no_grad():
        guide.raw.fill_(3.0)  # type: ignore[union-attr]
    many = batch.take(torch.zeros(400, dtype=torch.int64))
    spread = {"sd of data": lambda x: x[:, 0].std()}
    one, pieces = (
        predictive_check(model, guide, many, statistics=spread, draws=60, chunk=chunk, seed=0).posterior.std()
        for chunk in (100000, 10)
    )
    assert 0.5 < one / pieces < 2.0
    assert pieces > 1.0  # from row to row it would even out


def test_masks_and_pieces() -> None:
    model, guide = oracle()
    x = model.simulate(12, seed=0)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    observed[:, 0] = True
    batch = Batch(x=torch.where(observed, x, 0.0), observed=observed, visible=observed)
    found = predictive_check(
        model, guide, batch, statistics={"zeros": lambda x: (x == 0).double().mean(1)}, draws=39, chunk=7
    )
    assert found.observed.item() == pytest.approx((~observed).double().mean().item())
    assert torch.equal(found.prior, found.observed.expand_as(found.prior))


def test_default_statistics() -> None:
    image = torch.rand(6, 1, 4, 5, dtype=torch.float64)
    found = {name: f(image) for name, f in default_statistics(Batch(x=image)).items()}
    assert torch.allclose(found["mean of an image"], image.mean((1, 2, 3)))
    by_hand = [
        (abs(i[:, 1:] - i[:, :-1]).sum() + abs(i[1:] - i[:-1]).sum()) / (4 * 4 + 3 * 5) for i in image[:, 0].numpy()
    ]
    assert found["difference of neighbours"].tolist() == pytest.approx(by_hand)
    table = torch.randn(50, 3, dtype=torch.float64)
    found = {name: f(table) for name, f in default_statistics(Batch(x=table)).items()}
    assert len(found) == 13
    assert found["largest of x[2]"] == table[:, 2].max()
    c = torch.corrcoef(table.T)
    assert found["mean |correlation| of columns"].item() == pytest.approx(
        c[[0, 0, 1], [1, 2, 2]].abs().mean().item(), rel=1e-10
    )
    named = DataSet.from_arrays(table.float(), name="table")
    assert len(default_statistics(named)) == 13
    assert len(default_statistics(Batch(x=torch.randn(20, 8)))) == 5


def test_it_is_a_finding() -> None:
    model, guide = oracle()
    seen: list[tuple[int, int]] = []
    found = predictive_check(
        model, guide, model.simulate(20), statistics=MEAN, draws=39, seed=1, progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (78, 78)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.to_dataset()["prior"].dims == ("draw", "statistic")
    (picture,) = found.pictures()
    assert all(axis.has_data() for axis in picture.figure.axes)


def test_refused() -> None:
    model, guide = oracle()
    x = model.simulate(10)

    def check(statistics: object, draws: int | None = None) -> None:
        predictive_check(model, guide, x, statistics=statistics, draws=draws)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"draws=20 are too few for 1 statistics .*give draws=39"):
        check(MEAN, 20)
    with pytest.raises(InputError, match=r"'all' gave|\['all'\] gave the shape \(10, 4\)"):
        check({"all": lambda x: x})
    with pytest.raises(InputError, match="is nan for the data"):
        check({"nan": lambda x: x.mean() * math.nan})
    with pytest.raises(InputError, match="statistics are empty"):
        check({})
    with pytest.raises(InputError, match="no function"):
        check({"three": 3})
