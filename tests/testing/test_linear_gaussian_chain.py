"""The linear-Gaussian chain, against one layer's oracle and its own joint density."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae import Batch
from ppl_vae.testing import LinearGaussian, LinearGaussianChain, check_model


@pytest.mark.parametrize("latent", [(2,), (3, 2), (2, 1, 3)])
def test_the_contract(latent: tuple[int, ...]) -> None:
    chain = LinearGaussianChain(latent=latent)
    check_model(chain, Batch(x=chain.simulate(4)))
    assert [name for name in chain.latents] == [f"z{i}" for i in range(len(latent), 0, -1)]
    assert [spec.event_shape[0] for spec in chain.latents.values()] == list(reversed(latent))


def test_one_layer_is_the_linear_gaussian_model() -> None:
    chain, one = LinearGaussianChain(data=5, latent=(2,)), LinearGaussian(data=5, latent=2)
    assert torch.equal(chain.weight0, one.weight)
    assert torch.equal(chain.bias0, one.bias)
    x = one.simulate(6)
    torch.testing.assert_close(chain.log_marginal(x), one.log_marginal(x))
    torch.testing.assert_close(chain.precision, one.precision)
    assert chain.gap() == pytest.approx(one.mean_field_gap())
    assert chain.gap("sites") == pytest.approx(0.0, abs=1e-12)
    gain, offset, covariance = chain.conditional("z1", ["x"])
    torch.testing.assert_close(x @ gain.T + offset, one.posterior_mean(x))
    torch.testing.assert_close(covariance, torch.linalg.inv(one.precision))


def test_the_joint_gaussian_is_the_programs() -> None:
    """log p(z2, z1, x), factor by factor and as one Gaussian; and what is drawn has its moments."""
    chain = LinearGaussianChain(latent=(3, 2))
    x = chain.simulate(5)
    z = {"z2": torch.randn(5, 2).double(), "z1": torch.randn(5, 3).double()}
    trace = poutine.trace(poutine.condition(chain, z)).get_trace(Batch(x=x))
    whole = dist.MultivariateNormal(chain.mean, chain.covariance).log_prob(torch.cat([z["z2"], z["z1"], x], -1))
    torch.testing.assert_close(trace.log_prob_sum(), whole.sum())
    many = chain.simulate(40_000)
    error = many.std(0) / 200.0
    assert bool(((many.mean(0) - chain.mean[chain.parts["x"]]).abs() < 4.5 * error).all())


def test_blocks_that_are_independent_cost_their_mutual_information() -> None:
    chain = LinearGaussianChain(latent=(3, 2))
    precision = chain.precision
    best = torch.linalg.inv(torch.block_diag(precision[:2, :2], precision[2:, 2:]))
    posterior = dist.MultivariateNormal(torch.zeros(5).double(), precision_matrix=precision)
    q = dist.MultivariateNormal(torch.zeros(5).double(), best)
    assert chain.gap("sites") == pytest.approx(float(torch.distributions.kl_divergence(q, posterior)))
    assert 0 < chain.gap("sites") < chain.gap("numbers")
