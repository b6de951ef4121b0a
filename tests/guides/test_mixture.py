"""The mixture guide: its density, and two gradients that have no bias, against enumeration, quadrature and Pyro."""

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, SemiSupervised, TwoLayer, assert_equal, binary_batch, gradients_of, vae
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    InputError,
    LatentModel,
    LatentSpec,
    Renyi,
    guides,
    log_marginal,
    log_weights,
    networks,
    scale_latents,
)
from ppl_vae.evaluate import elbo as elbo_of
from ppl_vae.mixtures import NormalMixture
from ppl_vae.testing import check_guide, check_model
from ppl_vae.weights import sample_sites, score_site

Estimator = Literal["stratified", "reparameterized"]
ESTIMATORS: tuple[Estimator, ...] = ("stratified", "reparameterized")
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def guide_of(model: LatentModel, estimator: Estimator = "stratified", components: int = 3) -> guides.Mixture:
    """Its components apart from each other, as they are after training."""
    guide = guides.Mixture(model, networks.encoder("mlp", SHAPE, (7,)), components, estimator).double()
    with torch.no_grad():
        for head in guide.heads.values():
            head.linear.linear.bias.add_(torch.randn_like(head.linear.linear.bias))
    return guide


def log_q(guide: guides.Mixture, batch: Batch, values: dict[str, Tensor]) -> Tensor:
    """The guide's log-probability at given values, whichever component it draws itself."""
    trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(batch)
    return sum((score_site(site) for _, site in sample_sites(trace)), torch.zeros(()))


def density(guide: guides.Mixture, batch: Batch, values: dict[str, Tensor]) -> Tensor:
    """log Σ_k π_k Π_sites N_k, by hand."""
    features = guide.encoder(batch)
    log_joint = guide.logits(features).log_softmax(-1)
    for name, value in values.items():
        log_joint = log_joint + guide.heads[name](features).log_prob(value.unsqueeze(-2))
    return log_joint.logsumexp(-1)


@every_estimator
@pytest.mark.parametrize("components", [2, 4])
def test_the_contract(estimator: Estimator, components: int) -> None:
    model = vae()
    check_guide(guide_of(model, estimator, components), model, binary_batch())


@every_estimator
def test_the_contract_with_two_sites(estimator: Estimator) -> None:
    model = TwoLayer()
    check_guide(guide_of(model, estimator), model, binary_batch())


class OnSupports(LatentModel):
    """A vector of positive numbers, a simplex, and a number that is no vector."""

    def __init__(self) -> None:
        super().__init__()
        positive, simplex = torch.distributions.constraints.positive, torch.distributions.constraints.simplex
        self.latents = {
            "rate": LatentSpec(torch.Size([2]), positive),
            "share": LatentSpec(torch.Size([3]), simplex),
            "level": LatentSpec(torch.Size()),
        }
        self.register_buffer("one", torch.ones(3, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0 * self.one[:2], self.one[:2]).to_event(1))
            share = pyro.sample("share", dist.Dirichlet(2.0 * self.one))
            level = pyro.sample("level", dist.Normal(self.one[0] - 1.0, self.one[0]))
            loc = rate.sum(-1, keepdim=True) * share + level.unsqueeze(-1)
            return pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)).to_event(1), obs=batch.x)


@every_estimator
def test_the_contract_on_other_supports(estimator: Estimator) -> None:
    model, batch = OnSupports(), Batch(x=torch.rand(5, 3, dtype=torch.float64))
    check_model(model, batch)
    check_guide(guides.Mixture(model, networks.encoder("mlp", (3,), (9,)), 3, estimator).double(), model, batch)


@every_estimator
@pytest.mark.parametrize("sites", [1, 2])
def test_log_q_of_any_z_is_the_mixtures(estimator: Estimator, sites: int) -> None:
    model = vae() if sites == 1 else TwoLayer()
    guide, batch = guide_of(model, estimator), binary_batch()
    values = {name: torch.randn(4, 5, *spec.event_shape, dtype=torch.float64) for name, spec in model.latents.items()}
    wanted = density(guide, batch, values)
    torch.testing.assert_close(log_q(guide, batch, values), wanted, rtol=1e-12, atol=1e-12)
    w = log_weights(model, guide, batch, particles=6)
    torch.testing.assert_close(w.log_q, density(guide, batch, dict(w.draws)), rtol=1e-12, atol=1e-12)


@every_estimator
def test_its_distribution_is_the_mixture_of_a_single_site(estimator: Estimator) -> None:
    guide, batch = guide_of(vae(), estimator), binary_batch()
    q = guide.distribution(batch)["z"]
    assert isinstance(q, NormalMixture)
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), density(guide, batch, {"z": z}))
    with pytest.raises(NotImplementedError, match="Mixture has no closed-form distribution of each site"):
        guide_of(TwoLayer(), estimator).distribution(batch)


def test_components_cost_components_draws() -> None:
    model, batch = vae(), binary_batch()
    for estimator, wanted in (("stratified", (4, 2, 5, 3)), ("reparameterized", (2, 5, 3))):
        w = log_weights(model, guide_of(model, estimator, 4), batch, particles=2)  # type: ignore[arg-type]
        assert tuple(w.draws["z"].shape) == wanted


@pytest.mark.parametrize("sites", [1, 2])
def test_stratified_equals_pyros_enumeration(sites: int) -> None:
    """Value and gradients of `TraceEnum_ELBO` on equal draws, the factor and the component's log q with it."""
    model = vae() if sites == 1 else TwoLayer()
    guide, batch = guide_of(model), binary_batch()
    results = []
    for objective in (
        ELBO(particles=2, kl="monte-carlo"),
        TraceEnum_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    ):
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, guide, batch)
        loss.backward()
        results.append([loss.detach(), *gradients_of(model, guide)])
    assert_equal(*results, tolerance=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_beta_scales_the_factor_with_the_rest_of_log_q(beta: float) -> None:
    model, guide, batch = vae(), guide_of(vae()), binary_batch()
    objective = TraceEnum_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    ours = ELBO(beta, particles=2, kl="monte-carlo").differentiable_loss(model, guide, batch)
    wanted = torch.autograd.grad(ours, [*model.parameters(), *guide.parameters()], allow_unused=True)
    torch.manual_seed(0)
    scaled = objective.differentiable_loss(scale_latents(beta)(model), scale_latents(beta)(guide), batch)
    torch.testing.assert_close(scaled, ours, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(scaled, [*model.parameters(), *guide.parameters()], allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, None])
def test_the_importance_weighted_bound_is_stratified(alpha: float | None) -> None:
    """log (1/K) Σ_k Σ_c π_c p(x, z_ck) / q(z_ck | x), by hand from the same draws."""
    model, guide, batch = vae(), guide_of(vae()), binary_batch()
    objective = IWAE(4) if alpha is None else Renyi(alpha, 4)
    torch.manual_seed(0)
    ours = -objective.terms(model, guide, batch).loss
    torch.manual_seed(0)
    w = log_weights(model, guide, batch, particles=4)
    z = w.draws["z"]  # (C, K, N, D)
    log_pi = guide.logits(guide.encoder(batch)).log_softmax(-1).T.unsqueeze(1)  # (C, 1, N)
    prior = dist.Normal(torch.zeros(3).double(), torch.ones(3).double()).to_event(1).log_prob(z)
    likelihood = model.likelihood(model.decoder(z)).log_prob(batch.x)
    ratio = log_pi + prior + likelihood - density(guide, batch, {"z": z})
    torch.testing.assert_close(ours, ratio.logsumexp((0, 1)) - math.log(4), rtol=1e-12, atol=1e-12)


def exact_elbo(model: LatentModel, guide: guides.Mixture, batch: Batch) -> Tensor:
    """Σ_n ELBO of a one-dimensional latent variable, by the trapezoidal rule under each component. (Gauss and
    Hermite's does not converge: log q bends where a narrow component ends.)"""
    node = torch.linspace(-9.0, 9.0, 8001, dtype=torch.float64).reshape(-1, 1, 1)
    weight = torch.exp(-0.5 * node.square()) / math.sqrt(2.0 * math.pi) * (18.0 / 8000)
    features = guide.encoder(batch)
    pi = guide.logits(features).softmax(-1).T  # (C, N)
    normals = guide.heads["z"](features).base_dist  # (N, C, 1)
    z = (normals.loc.squeeze(-1).T + node * normals.scale.squeeze(-1).T).unsqueeze(-1)  # (nodes, C, N, 1)
    prior = dist.Normal(torch.zeros(1).double(), torch.ones(1).double()).to_event(1).log_prob(z)
    value = model.likelihood(model.decoder(z)).log_prob(batch.x) + prior - density(guide, batch, {"z": z})
    return (weight * pi * value).sum()


@every_estimator
def test_gradients_have_no_bias(estimator: Estimator) -> None:
    """Within 5 standard errors (of 40 means) of quadrature's, for every parameter: 150 comparisons, one of which a
    right gradient fails for 1 in 500 seeds."""
    model = vae(1)
    guide, batch = guide_of(model, estimator), binary_batch(3)
    parameters = [*guide.parameters(), *model.parameters()]
    exact = torch.autograd.grad(exact_elbo(model, guide, batch), parameters)
    objective = ELBO(particles=1000, kl="monte-carlo")
    torch.manual_seed(1)
    estimates = torch.stack(
        [
            torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)])
            for loss in (objective.differentiable_loss(model, guide, batch) for _ in range(40))
        ]
    )
    wanted = torch.cat([g.flatten() for g in exact])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert bool(((estimates.mean(0) - wanted).abs() <= 5.0 * error + 1e-9).all())
    assert float(error.norm() / wanted.norm()) < 0.05


@every_estimator
def test_closed_form_kl_of_components_keeps_the_value(estimator: Estimator) -> None:
    """kl="auto" takes KL(N_k ‖ p) in closed form, and the factor from the draw: the same expectation. Five differences
    of means over 5000, whose standard deviation is about 0.04."""
    model, guide, batch = vae(), guide_of(vae(), estimator), binary_batch()
    kl = {}
    for option in ("auto", "monte-carlo"):
        torch.manual_seed(0)
        kl[option] = ELBO(particles=5000, kl=option).terms(model, guide, batch).logs["kl"]  # type: ignore[arg-type]
    torch.testing.assert_close(kl["auto"], kl["monte-carlo"], rtol=0, atol=0.2)


def test_what_it_is_not_for_is_refused() -> None:
    encoder = networks.encoder("mlp", SHAPE, (9,))
    for components in (1, 0, -1, 1.5, True):
        with pytest.raises(InputError, match=f"components={components!r} must be a whole number"):
            guides.Mixture(vae(), encoder, components)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="estimator='gumbel' is not known"):
        guides.Mixture(vae(), encoder, 2, "gumbel")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="discrete"):
        guides.Mixture(SemiSupervised(), encoder)

    class Taken(TwoLayer):
        def __init__(self) -> None:
            super().__init__()
            self.latents = {"component": LatentSpec(torch.Size([2]))}

    with pytest.raises(InputError, match=r"auxiliary sites of its own named \['component'\]"):
        guides.Mixture(Taken(), encoder)


class Squares(LatentModel):
    """x = (z_0², z_1) and noise: the sign of z_0 is lost, and p(z | x) has a mode at either."""

    def __init__(self, sigma: float = 0.3) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([2]))}
        self.sigma = sigma
        self.register_buffer("zero", torch.zeros(2))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1))
            loc = torch.stack([z[..., 0].square(), z[..., 1]], dim=-1)
            return pyro.sample("x", dist.Normal(loc, self.sigma).to_event(1), obs=batch.x)

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), (N,), by the trapezoidal rule over z_0."""
        z = torch.linspace(-6.0, 6.0, 6001, dtype=torch.float64).unsqueeze(-1)
        joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.square(), self.sigma).log_prob(x[:, 0].double())
        second = dist.Normal(0.0, math.sqrt(1.0 + self.sigma**2)).log_prob(x[:, 1].double())
        return joint.logsumexp(0) + math.log(12.0 / 6000) + second


def trained(guide: guides.Amortized, model: LatentModel, batch: Batch, steps: int = 1500) -> None:
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = ELBO(particles=4)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide, batch).div(batch.size).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@every_estimator
def test_it_holds_two_modes_where_a_gaussian_holds_one(estimator: Estimator) -> None:
    """KL(q ‖ p(z | x)) = log p(x) - ELBO over 300 data, with log p(x) by importance sampling under the mixture, and by
    quadrature: up to log 2 for the full-rank Gaussian, near 0 for the mixture."""
    model = Squares()
    torch.manual_seed(0)
    batch = Batch(x=model(Batch(n=300)).detach())
    elbo: dict[str, Tensor] = {}
    for name in ("full-rank", "mixture"):
        torch.manual_seed(1)
        encoder = networks.encoder("mlp", (2,), (64, 64))
        guide: guides.Amortized = guides.FullRank(model, encoder)
        if name == "mixture":
            guide = guides.Mixture(model, encoder, 4, estimator)
        trained(guide, model, batch)
        elbo[name] = elbo_of(model, guide, batch, 2000, seed=0).elbo
    estimate = log_marginal(model, guide, batch, 20_000, seed=0)
    exact = model.log_marginal(batch.x)
    off = (estimate.log_px - exact).abs()
    print(f"log p(x) by importance sampling is off by {off.mean():.4f}, {off.max():.3f} at most")
    kl = {name: estimate.log_px - each for name, each in elbo.items()}
    difference = kl["full-rank"] - kl["mixture"]
    error = difference.std() / len(difference) ** 0.5
    numbers = {name: f"{each.mean():.3f} ± {each.std() / 300**0.5:.3f}" for name, each in kl.items()}
    print(numbers, f"difference {difference.mean():.3f} ± {error:.3f}, exact {(exact - elbo['mixture']).mean():.3f}")
    better, left, missed = (0.3, 0.03, 0.001) if estimator == "stratified" else (0.15, 0.25, 0.03)
    assert float(difference.mean() - 4 * error) > better
    assert float((exact - elbo["mixture"]).mean()) < left
    assert float(off.mean()) < missed
