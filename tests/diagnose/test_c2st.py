"""The classifier two-sample test: exactly as many false alarms as it says, and correlations that ranks do not see.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import json

import pytest
import torch
from posteriors import Faulty, correlated
from programs import pair
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier

from ppl_vae.diagnose import ClassifierTest, c2st
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


def test_the_exact_posterior_cannot_be_told() -> None:
    """P-values of 10 repeats are uniform, up to their steps: Kolmogorov-Smirnov, 1 in 1,000."""
    model = correlated()
    guide = LinearGaussianPosterior(model)
    p_values = [c2st(model, guide, simulations=200, draws=19, seed=seed).p_value for seed in range(10)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    (verdict,) = c2st(model, guide, simulations=200, draws=19, seed=0).verdicts()
    assert verdict.fault is False
    assert verdict.speaks_of == "data that the model makes"


@pytest.mark.parametrize("fault", [{"matched": True}, {"scale": 0.7}, {"shift": 0.5}])
def test_faults_are_told(fault: dict[str, float]) -> None:
    model = correlated()
    found = c2st(model, Faulty(model, **fault), simulations=500, draws=39, seed=0)  # type: ignore[arg-type]
    (verdict,) = found.verdicts()
    assert verdict.fault
    assert found.p_value < 1e-4
    assert found.accuracy - 3 * found.se > 0.5


def test_p_value_and_error_are_binomial() -> None:
    right = torch.zeros(80, dtype=torch.bool)
    right[:47] = True
    found = ClassifierTest(torch.zeros(80, 2), right, (), (), 100, 0.05, "")
    assert found.p_value == pytest.approx(stats.binomtest(47, 80, alternative="greater").pvalue, rel=1e-10)
    assert found.se == pytest.approx((47 / 80 * 33 / 80 / 80) ** 0.5)


def test_it_is_a_finding_of_any_classifier() -> None:
    model, guide, batch = pair("class")
    found = c2st(model, guide, batch, simulations=60, draws=19, folds=3, classifier=KNeighborsClassifier(), seed=0)
    assert found.right.shape == (40,)
    assert found.telling == ()
    json.dumps(found.to_json(), allow_nan=False)
    assert found.to_dataset()["score"].dims == ("simulation", "of")
    (picture,) = found.pictures()
    assert picture.figure.axes[0].has_data()
    again = c2st(model, guide, batch, simulations=60, draws=19, folds=3, classifier=KNeighborsClassifier(), seed=0)
    assert torch.equal(found.right, again.right)


def test_too_few() -> None:
    model = LinearGaussian(4, 2)
    guide = LinearGaussianPosterior(model)
    with pytest.raises(InputError, match="simulations=50 are too few for folds=5: give simulations=100"):
        c2st(model, guide, simulations=50)
    with pytest.raises(InputError, match=r"draws=5 are too few .* give draws=19"):
        c2st(model, guide, draws=5)
