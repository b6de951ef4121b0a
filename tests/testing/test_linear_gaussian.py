"""The oracle's closed forms, each against a computation that does not use it."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import Batch, InputError
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior, check_guide, check_model


def joint(model: LinearGaussian, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) by the definition, (G, N)."""
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    loc = z @ model.weight.T + model.bias
    return log_prior.unsqueeze(-1) + dist.Normal(loc.unsqueeze(1), model.sigma).log_prob(x).sum(-1)


def grid(z: int = 1, steps: int = 4001, bound: float = 12.0) -> tuple[Tensor, float]:
    axis = torch.linspace(-bound, bound, steps, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * z).reshape(-1, z)
    return points, z * math.log(float(axis[1] - axis[0]))


@pytest.mark.parametrize("seed", [0, 1])
def test_log_marginal_by_quadrature(seed: int) -> None:
    for latent, steps in ((1, 4001), (2, 401)):
        model = LinearGaussian(3, latent, seed=seed)
        x = model.simulate(4, seed)
        z, log_step = grid(latent, steps)
        by_grid = joint(model, x, z).logsumexp(0) + log_step
        torch.testing.assert_close(by_grid, model.log_marginal(x), rtol=0, atol=1e-9)


def test_posterior_is_joint_over_marginal() -> None:
    model = LinearGaussian(4, 3)
    x = model.simulate(5)
    z = torch.randn(7, 3, dtype=torch.float64)
    by_bayes = joint(model, x, z) - model.log_marginal(x)
    torch.testing.assert_close(model.posterior(x).log_prob(z.unsqueeze(1)), by_bayes, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["full", "diagonal"])
@pytest.mark.parametrize("widen", [1.0, 1.3])
def test_gap_is_torchs_kl(family: str, widen: float) -> None:
    model = LinearGaussian(4, 3)
    x = model.simulate(5)
    guide = LinearGaussianPosterior(model, family, widen)
    kl = kl_divergence(guide.distribution(Batch(x=x))["z"], model.posterior(x))
    torch.testing.assert_close(kl, torch.full_like(kl, guide.kl_to_posterior()), rtol=0, atol=1e-10)
    if family == "diagonal" and widen == 1.0:
        assert guide.kl_to_posterior() == pytest.approx(model.mean_field_gap(), abs=1e-10)
        assert model.mean_field_gap() > 0.1
    if family == "full" and widen == 1.0:
        assert guide.kl_to_posterior() == pytest.approx(0.0, abs=1e-10)


def test_the_mean_field_gap_is_the_smallest_of_all_diagonal_gaussians() -> None:
    model = LinearGaussian(4, 3)
    x = model.simulate(1)
    posterior = model.posterior(x)
    log_scale = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        q = dist.MultivariateNormal(posterior.loc, scale_tril=log_scale.exp().diag_embed())
        kl = kl_divergence(q, posterior).sum()
        kl.backward()
        return kl

    optimizer.step(closure)
    assert closure().item() == pytest.approx(model.mean_field_gap(), abs=1e-9)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3, 0.9, 1.5, 3.0])
@pytest.mark.parametrize("widen", [0.8, 1.0, 1.2])
def test_renyi_bound_by_quadrature(alpha: float, widen: float) -> None:
    """1/(1-α) log ∫ p(x, z)^(1-α) q(z)^α dz, on a grid, where the integral is finite."""
    model = LinearGaussian(3, 1, seed=3)
    x = model.simulate(4)
    guide = LinearGaussianPosterior(model, "full", widen)
    bound = model.renyi_bound(x, guide, alpha)
    # (1-α) Λ + α Λ / widen² > 0
    if (1.0 - alpha) + alpha / widen**2 <= 0:
        assert bool((bound == math.inf).all())
        return
    z, log_step = grid(bound=60.0, steps=40_001)
    log_q = guide.distribution(Batch(x=x))["z"].log_prob(z.unsqueeze(1))
    integral = ((1.0 - alpha) * joint(model, x, z) + alpha * log_q).logsumexp(0) + log_step
    torch.testing.assert_close(bound, integral / (1.0 - alpha), rtol=0, atol=1e-8)


def test_renyi_bound_of_a_diagonal_guide_by_quadrature_in_two_dimensions() -> None:
    model = LinearGaussian(3, 2, seed=5)
    x = model.simulate(3)
    guide = LinearGaussianPosterior(model, "diagonal")
    z, log_step = grid(2, 801, 10.0)
    log_q = guide.distribution(Batch(x=x))["z"].log_prob(z.unsqueeze(1))
    for alpha in (0.0, 0.5, 2.0):
        integral = ((1.0 - alpha) * joint(model, x, z) + alpha * log_q).logsumexp(0) + log_step
        torch.testing.assert_close(model.renyi_bound(x, guide, alpha), integral / (1.0 - alpha), rtol=0, atol=1e-6)


def test_renyi_bounds_are_ordered_around_their_limits() -> None:
    model = LinearGaussian(4, 3)
    x = model.simulate(3)
    guide = LinearGaussianPosterior(model, "diagonal")
    bounds = [model.renyi_bound(x, guide, alpha) for alpha in (-0.2, 0.0, 0.5, 0.999999, 2.0)]
    for above, below in itertools.pairwise(bounds):
        assert bool((above > below).all())
    torch.testing.assert_close(bounds[1], model.log_marginal(x), rtol=0, atol=1e-9)
    elbo = model.log_marginal(x) - guide.kl_to_posterior()
    torch.testing.assert_close(bounds[3], elbo, rtol=0, atol=1e-4)


def test_data_are_drawn_from_the_model_by_a_generator_of_their_own() -> None:
    model = LinearGaussian(3, 2)
    state = torch.get_rng_state()
    x = model.simulate(50_000, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x[:5], model.simulate(50_000, seed=1)[:5])
    covariance = model.weight @ model.weight.T + model.sigma**2 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), model.bias, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.05, atol=0.05)
    assert torch.equal(LinearGaussian(3, 2).weight, model.weight)
    assert not torch.equal(LinearGaussian(3, 2, seed=1).weight, model.weight)
    assert LinearGaussian(3, 2, dtype=torch.float32).simulate(2).dtype == torch.float32


@pytest.mark.parametrize("family", ["full", "diagonal"])
def test_the_oracle_keeps_the_contracts(family: str) -> None:
    model = LinearGaussian()
    batch = Batch(x=model.simulate(5))
    check_model(model, batch)
    check_guide(LinearGaussianPosterior(model, family, widen=1.1), model, batch)


def test_bad_input() -> None:
    model = LinearGaussian()
    with pytest.raises(InputError, match=r"family='ful' is not known; did you mean 'full'\?"):
        LinearGaussianPosterior(model, "ful")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"needs batch\.x"):
        LinearGaussianPosterior(model)(Batch(n=3))
