"""DIP-VAE: its penalty by hand, and its moments against the oracle's."""

import math

import pytest
import torch
from aggregates import Linear

from ppl_vae import DIPVAE, ELBO, Batch
from ppl_vae.testing import LinearGaussian


@pytest.mark.parametrize("kind", ["I", "II"])
def test_the_penalty_is_that_of_the_batchs_moments(kind: str) -> None:
    model = LinearGaussian(4, 3)
    guide, x = Linear(model), model.simulate(9)
    mean = (x - model.bias) @ guide.slope.T
    moments = torch.cov(mean.T, correction=0)
    if kind == "II":
        moments = moments + guide.factor @ guide.factor.T
    penalty = 0.0
    for i in range(3):
        for j in range(3):
            penalty = penalty + (7.0 * (moments[i, i] - 1) ** 2 if i == j else 3.0 * moments[i, j] ** 2)
    torch.manual_seed(0)
    plain = ELBO().terms(model, guide, Batch(x=x)).loss
    torch.manual_seed(0)
    found = DIPVAE(3.0, 7.0, kind).terms(model, guide, Batch(x=x))  # type: ignore[arg-type]
    torch.testing.assert_close(found.loss, plain + penalty, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.logs["penalty"][0], torch.as_tensor(penalty).detach(), rtol=0, atol=1e-12)


def test_the_second_kinds_moments_are_the_aggregate_posteriors() -> None:
    """Of 20,000 data, within 4 standard errors of a covariance's element, sqrt((V_ii V_jj + V_ij²) / N)."""
    model = LinearGaussian(4, 3)
    guide, n = Linear(model), 20_000
    x = model.simulate(n)
    v = guide.aggregate(model)
    mean = (x - model.bias) @ guide.slope.T
    found = torch.cov(mean.T) + guide.factor @ guide.factor.T
    error = ((v.diagonal()[:, None] * v.diagonal() + v.square()) / n).sqrt()
    assert bool(((found - v).abs() < 4 * error).all())


def test_the_first_kind_has_ten_times_the_weight_on_the_diagonal() -> None:
    assert DIPVAE(2.0, kind="I").diagonal == 20.0
    assert DIPVAE(2.0, kind="II").diagonal == 2.0
    assert math.isclose(DIPVAE(2.0, 0.5).diagonal, 0.5)
