"""The mixture that passes gradients through its draws: against torch's mixture, closed forms, and the equation of
continuity, which its gradients hold to at every draw."""

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from ppl_vae.mixtures import NormalMixture, _implicit

Parts = tuple[Tensor, Tensor, Tensor]


def parts(k: int = 3, event: tuple[int, ...] = (2,), batch: tuple[int, ...] = (), seed: int = 0) -> Parts:
    """logits (*batch, K), loc and scale (*batch, K, *event)."""
    generator = torch.Generator().manual_seed(seed)
    like = {"dtype": torch.float64, "generator": generator}
    logits, loc = torch.randn(*batch, k, **like), 1.5 * torch.randn(*batch, k, *event, **like)
    return logits, loc, 0.4 + torch.rand(*batch, k, *event, **like)


def mixture(logits: Tensor, loc: Tensor, scale: Tensor) -> NormalMixture:
    return NormalMixture(logits, dist.Normal(loc, scale).to_event(loc.dim() - logits.dim()))


@pytest.mark.parametrize("event", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
def test_density_and_moments_are_torchs(event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    logits, loc, scale = parts(event=event, batch=batch)
    ours = mixture(logits, loc, scale)
    theirs = MixtureSameFamily(
        dist.Categorical(logits=logits), torch.distributions.Independent(dist.Normal(loc, scale), len(event))
    )
    assert (ours.batch_shape, ours.event_shape) == (torch.Size(batch), torch.Size(event))
    z = ours.sample(torch.Size([7]))
    assert z.shape == (7, *batch, *event)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_expansion_keeps_the_density_and_draws_more() -> None:
    q = mixture(*parts(batch=(5,)))
    wide = q.expand(torch.Size([4, 5]))
    assert wide.rsample().shape == (4, 5, 2)
    assert wide.rsample(torch.Size([3])).shape == (3, 4, 5, 2)
    z = wide.sample()
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert not torch.equal(z[0], z[1])


def test_draws_have_its_moments() -> None:
    q = mixture(*parts())
    z = q.sample(torch.Size([100_000]))
    assert bool(((z.mean(0) - q.mean).abs() < 4 * q.stddev / z.shape[0] ** 0.5).all())
    assert bool((z.std(0) / q.stddev - 1).abs().max() < 0.02)


@pytest.mark.parametrize("event", [1, 2, 3])
def test_every_draw_moves_as_its_density_does(event: int) -> None:
    """∂q/∂φ + div(q dz/dφ) = 0, the equation that makes a pathwise gradient unbiased, at draws and for every
    parameter, by automatic differentiation alone."""
    logits, loc, scale = parts(event=(event,))
    leaves = (logits, loc, scale)

    def density(z: Tensor, *parameters: Tensor) -> Tensor:
        return mixture(*parameters).log_prob(z).exp()

    def velocity(z: Tensor) -> list[Tensor]:
        """dz/dφ, (D, *φ) of each parameter."""
        jacobian = torch.func.jacrev(
            lambda *p: _implicit(z.detach(), p[0].log_softmax(-1), p[1], p[2]), argnums=(0, 1, 2)
        )
        return list(jacobian(*leaves))

    step = 1e-5
    for z in mixture(*leaves).sample(torch.Size([4])):
        wanted = torch.func.jacrev(density, argnums=(1, 2, 3))(z, *leaves)
        divergence = [torch.zeros_like(p) for p in leaves]
        for d in range(event):
            up, down = z.clone(), z.clone()
            up[d] += step
            down[d] -= step
            for total, a, b in zip(divergence, velocity(up), velocity(down), strict=True):
                total += (density(up, *leaves) * a[d] - density(down, *leaves) * b[d]) / (2 * step)
        for change, flow in zip(wanted, divergence, strict=True):
            torch.testing.assert_close(change, -flow, rtol=1e-6, atol=1e-8)


def test_gradients_of_moments_are_closed_forms() -> None:
    """E[z] = Σ π m and E[z²] = Σ π (m² + s²), within 4 standard errors of 200,000 draws."""
    leaves = [p.requires_grad_() for p in parts(event=(2,))]
    weights = torch.tensor([[0.7, -1.2], [0.5, 0.9]], dtype=torch.float64)
    q = mixture(*leaves)
    exact = torch.autograd.grad(
        (weights[0] * q.mean).sum() + (weights[1] * (q.variance + q.mean.square())).sum(), leaves
    )
    groups = 40
    estimates = []
    for _ in range(groups):
        z = mixture(*leaves).rsample(torch.Size([5000]))
        value = ((weights[0] * z).sum(-1) + (weights[1] * z.square()).sum(-1)).mean()
        estimates.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)]))
    draws = torch.stack(estimates)
    error = draws.std(0) / groups**0.5
    assert bool(((draws.mean(0) - torch.cat([g.flatten() for g in exact])).abs() < 4 * error).all())


def test_a_single_component_is_plainly_reparameterized() -> None:
    leaves = [p.requires_grad_() for p in parts(k=1, event=(3,))]
    z = mixture(*leaves).rsample(torch.Size([6]))
    noise = ((z - leaves[1][0]) / leaves[2][0]).detach()
    by_logits, by_loc, by_scale = torch.autograd.grad(z.sum(), leaves)
    torch.testing.assert_close(by_logits, torch.zeros_like(by_logits))
    torch.testing.assert_close(by_loc, torch.full_like(by_loc, 6.0))
    torch.testing.assert_close(by_scale, noise.sum(0, keepdim=True))


def test_equal_components_are_one_and_nothing_is_nan() -> None:
    """Where Pyro's gradient of the weights divides 0 by 0."""
    logits = torch.zeros(3, requires_grad=True)
    loc, scale = torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    gradients = torch.autograd.grad(mixture(logits, loc, scale).rsample(torch.Size([50])).sum(), [logits, loc, scale])
    assert all(bool(g.isfinite().all()) for g in gradients)
    torch.testing.assert_close(gradients[0], torch.zeros(3), atol=1e-4, rtol=0)
    theirs = dist.MixtureOfDiagNormals(loc, scale, logits).rsample(torch.Size([50])).sum()
    assert bool(torch.autograd.grad(theirs, logits)[0].isnan().any())


def test_many_dimensions_do_not_underflow() -> None:
    logits, loc, scale = (p.float().requires_grad_() for p in parts(k=4, event=(200,)))
    q = mixture(logits, loc, scale)
    z = q.rsample(torch.Size([20]))
    gradients = torch.autograd.grad((z * torch.linspace(-1, 1, 200)).sum(), [logits, loc, scale])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert bool(q.log_prob(z).isfinite().all())


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    leaves = [p.requires_grad_() for p in parts()]
    assert not mixture(*leaves).sample().requires_grad
    with torch.no_grad():
        assert not mixture(*leaves).rsample().requires_grad
