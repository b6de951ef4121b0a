"""Sticking the landing: unbiased for one particle, no variance at the posterior, biased for more than one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import REPARAMETERIZED, assert_equal, gradients_of, pair
from quadrature import Chain, ChainGuide, Scalar, ScalarGuide, expected_gradient, nodes_for
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, STL, Batch, DReG, Guide, Objective
from ppl_vae.testing import LinearGaussian, check_objective

BOUNDS = ("iwae", "elbo")


@pytest.mark.parametrize("objective", [STL(), STL(3), STL(3, "elbo")], ids=repr)
@pytest.mark.parametrize("name", ["mean-field", "class", "mixture"])
def test_contract(name: str, objective: Objective) -> None:
    model, guide, batch = pair(name)
    # classes are summed out of a bound over weights: q(c | x) cancels
    without = ["guide.classifier"] if name == "class" and objective.extra_repr() == STL(3).extra_repr() else []
    check_objective(objective, model, guide, batch, without)


@pytest.mark.parametrize("name", [*REPARAMETERIZED, "class", "mixture"])
def test_values_and_the_models_gradient_are_the_ordinary_ones(name: str) -> None:
    model, guide, batch = pair(name)
    for ours, plain in (
        (STL(1), ELBO(kl="monte-carlo")),
        (STL(4, "elbo"), ELBO(particles=4, kl="monte-carlo")),
        (STL(4), IWAE(4)),
    ):
        results = []
        for objective in (ours, plain):
            torch.manual_seed(0)
            loss = objective.loss_and_grads(model, guide, batch)
            of_model = gradients_of(model)
            results.append([torch.tensor(loss), *of_model])
            gradients_of(guide)
        assert_equal(results[0], results[1])


# ---------------------------------------------------------------- bias, by quadrature


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs()) for name in a)


@pytest.mark.parametrize("latents", [1, 2])
def test_one_particle_is_unbiased(latents: int) -> None:
    """The expected gradient, an integral, is that of the expected ELBO to rounding: no noise, no false alarms."""
    model, guide = (Scalar(), ScalarGuide()) if latents == 1 else (Chain(), ChainGuide())
    sites = {"z": (1,)} if latents == 1 else {"b": (1,), "a": (1,)}
    batch, weights = nodes_for(guide, sites, 24, x=0.7)
    wanted = expected_gradient(ELBO(kl="monte-carlo"), model, guide, batch, weights)
    got = expected_gradient(STL(), model, guide, batch, weights)
    assert difference(got, wanted) < 1e-12
    assert min(float(g.abs()) for g in wanted.values()) > 1e-2


def test_the_elbo_of_more_particles_is_unbiased() -> None:
    model, guide = Scalar(), ScalarGuide()
    batch, weights = nodes_for(guide, {"z": (3,)}, 12, x=0.7)
    wanted = expected_gradient(ELBO(particles=3, kl="monte-carlo"), model, guide, batch, weights)
    assert difference(expected_gradient(STL(3, "elbo"), model, guide, batch, weights), wanted) < 1e-12


@pytest.mark.parametrize("particles", [2, 3])
def test_more_particles_are_biased(particles: int) -> None:
    """Of IWAE's bound: the guide's gradient comes out near twice what it is, while DReG's is right."""
    model, guide = Scalar(), ScalarGuide()
    batch, weights = nodes_for(guide, {"z": (particles,)}, 40 if particles == 2 else 20, x=0.7)
    wanted = expected_gradient(IWAE(particles), model, guide, batch, weights)
    biased = expected_gradient(STL(particles), model, guide, batch, weights)
    unbiased = expected_gradient(DReG(particles), model, guide, batch, weights)
    for name, gradient in wanted.items():
        if name.startswith("model"):
            torch.testing.assert_close(biased[name], gradient, rtol=1e-10, atol=1e-10)
        else:
            assert 1.5 < float(biased[name] / gradient) < 4.0
            assert abs(float(unbiased[name] / gradient) - 1.0) < 0.003


# ---------------------------------------------------------------- no variance at the posterior


class Exact(Guide):
    """The oracle's posterior with parameters: q(z | x) = N(A x + c, L Lᵀ), which the right A, c, L make exact."""

    def __init__(self, model: LinearGaussian, off: float = 0.0) -> None:
        super().__init__()
        gain = torch.linalg.solve(model.precision, model.weight.T / model.sigma**2)
        self.gain = nn.Parameter(gain + off)
        self.shift = nn.Parameter(-gain @ model.bias)
        self.tril = nn.Parameter(torch.linalg.cholesky(torch.linalg.inv(model.precision)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loc = batch.x @ self.gain.T + self.shift
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.tril.tril()))}


@pytest.mark.parametrize("objective", [STL(), STL(5), STL(5, "elbo"), DReG(1), DReG(5)], ids=repr)
def test_at_the_posterior_every_draw_has_no_gradient(objective: Objective) -> None:
    model = LinearGaussian(4, 2)
    guide, batch = Exact(model), Batch(x=model.simulate(7))
    for seed in range(5):
        torch.manual_seed(seed)
        objective.loss_and_grads(model, guide, batch)
        for gradient in gradients_of(guide):
            assert float(gradient.abs().max()) < 1e-10
        torch.manual_seed(seed)
        IWAE(objective.particles).loss_and_grads(model, guide, batch)
        assert all(float(gradient.abs().max()) > 0.1 for gradient in gradients_of(guide)), "the ordinary gradient has"


def test_near_the_posterior_it_has_less_variance() -> None:
    model = LinearGaussian(4, 2)
    guide, batch = Exact(model, off=0.01), Batch(x=model.simulate(1))
    spread = []
    for objective in (STL(), ELBO(kl="monte-carlo")):
        draws = []
        for seed in range(50):
            torch.manual_seed(seed)
            objective.loss_and_grads(model, guide, batch)
            draws.append(torch.cat([g.flatten() for g in gradients_of(guide)]))
        spread.append(torch.stack(draws).var(0).sum())
    # of 50 draws a variance is known to some 20 %; this is a factor of 100 and more
    assert spread[0] < 0.01 * spread[1]


# ---------------------------------------------------------------- by hand, without Pyro


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("particles", [1, 3])
def test_it_is_the_surrogate_of_the_literature(particles: int, bound: str) -> None:
    """log q under a detached location and scale: the line that papers give for a Gaussian."""
    model, guide, batch = pair("mean-field")
    torch.manual_seed(3)
    loss = STL(particles, bound).loss_and_grads(model, guide, batch)  # type: ignore[arg-type]
    ours = gradients_of(model, guide)

    q = guide.distribution(batch)["z"].base_dist
    torch.manual_seed(3)
    z = q.loc + q.scale * torch.randn(particles, *q.loc.shape, dtype=torch.float64)
    log_q = torch.distributions.Normal(q.loc.detach(), q.scale.detach()).log_prob(z).sum(-1)
    logits = model.decoder(z).squeeze(-4) + model.likelihood.offset
    log_p = torch.distributions.Bernoulli(logits=logits).log_prob(batch.x).flatten(2).sum(-1)
    log_w = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q
    by_hand = -(log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(particles)).sum()
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), rel=1e-12)
    assert_equal(ours, gradients_of(model, guide))


# ---------------------------------------------------------------- arguments


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="bound='iwea' is not known; did you mean 'iwae'"):
        STL(bound="iwea")  # type: ignore[arg-type]


def test_it_says_what_it_is() -> None:
    assert repr(STL(2, "elbo")) == "STL(particles=2, bound='elbo')"


def test_a_site_shared_by_all_data_is_refused() -> None:
    with pytest.raises(ValueError, match="'w' lies outside of the data plate"):
        STL().loss(*pair("global"))
