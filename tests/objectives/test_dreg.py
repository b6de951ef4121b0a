"""The doubly reparameterized gradient: unbiased for every number of particles, by quadrature and by many draws."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import CLASSES, REPARAMETERIZED, assert_equal, gradients_of, pair
from quadrature import Chain, ChainGuide, Nodes, Scalar, ScalarGuide, expected_gradient, nodes_for
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, STL, Batch, DReG, Guide, LatentModel, LatentSpec, Objective
from ppl_vae.testing import LinearGaussian, check_objective
from ppl_vae.weights import LogWeights


@pytest.mark.parametrize("name", [*REPARAMETERIZED, "mixture"])
def test_contract(name: str) -> None:
    check_objective(DReG(3), *pair(name))


def test_contract_with_classes() -> None:
    check_objective(DReG(3), *pair("class"), without_gradient=["guide.classifier"])


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", [*REPARAMETERIZED, "class", "mixture"])
def test_values_and_the_models_gradient_are_iwaes(name: str, particles: int) -> None:
    model, guide, batch = pair(name)
    results = []
    for objective in (DReG(particles), IWAE(particles)):
        torch.manual_seed(0)
        loss = objective.loss_and_grads(model, guide, batch)
        results.append([torch.tensor(loss), *gradients_of(model)])
        gradients_of(guide)
    assert_equal(results[0], results[1], 1e-12)


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_one_particle_is_sticking_the_landing(name: str) -> None:
    model, guide, batch = pair(name)
    results = []
    for objective in (DReG(1), STL(1)):
        torch.manual_seed(0)
        objective.loss_and_grads(model, guide, batch)
        results.append(gradients_of(model, guide))
    assert_equal(results[0], results[1])


# ---------------------------------------------------------------- unbiased, by quadrature


def relative(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of a parameter's gradient, as a share of the largest gradient of the pair."""
    scale = max(float(g.abs().max()) for g in wanted.values())
    return max(float((got[name] - wanted[name]).abs().max()) for name in wanted) / scale


@pytest.mark.parametrize(("particles", "nodes", "within"), [(1, 40, 1e-12), (2, 60, 5e-6), (3, 24, 3e-4)])
def test_it_is_unbiased(particles: int, nodes: int, within: float) -> None:
    """The expected gradient is that of the expected bound, to the quadrature's error."""
    model, guide = Scalar(), ScalarGuide()
    batch, weights = nodes_for(guide, {"z": (particles,)}, nodes, x=0.7)
    wanted = expected_gradient(IWAE(particles), model, guide, batch, weights)
    assert relative(expected_gradient(DReG(particles), model, guide, batch, weights), wanted) < within


class OnSamples(DReG):
    """The weights put on the draws themselves, through which the gradient of another site passes once more."""

    def weights(self, *args: Any, **kwargs: Any) -> LogWeights:
        w = super().weights(*args, **kwargs)
        return w._replace(copies={name: c._replace(value=c.value._base) for name, c in w.copies.items()})


def test_with_two_layers_the_weights_go_onto_copies() -> None:
    model, guide = Chain(), ChainGuide()
    batch, weights = nodes_for(guide, {"b": (2,), "a": (2,)}, 14, x=0.7)
    wanted = expected_gradient(IWAE(2), model, guide, batch, weights)
    assert relative(expected_gradient(DReG(2), model, guide, batch, weights), wanted) < 2e-4
    wrong = expected_gradient(OnSamples(2), model, guide, batch, weights)
    assert relative(wrong, wanted) > 0.01, "this test would see the weights in the wrong place"


class Classes(LatentModel):
    """c -> z -> x with two classes: z ~ N(±1, 0.7), x ~ N(z, 0.5)."""

    def __init__(self, order: str = "cz") -> None:
        super().__init__()
        c = LatentSpec(torch.Size([]), dist.constraints.integer_interval(0, 1))
        z = LatentSpec(torch.Size([]), parents=("c",))
        self.latents = {"c": c, "z": z}
        self.logit = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            c = pyro.sample("c", dist.Bernoulli(logits=self.logit))
            z = pyro.sample("z", dist.Normal(2.0 * c - 1.0, 0.7))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=batch.x)


ENUMERATE = {"enumerate": "parallel"}


class ClassFirst(Nodes):
    """q(c | x) q(z | c, x), c enumerated."""

    def __init__(self) -> None:
        super().__init__({"logit": 0.3, "gain": 0.5, "shift": 0.3, "log_scale": -0.4})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            c = pyro.sample("c", dist.Bernoulli(logits=p["logit"]), infer=ENUMERATE)
            z = self.normal("z", p["gain"] * batch.x + p["shift"] * (2.0 * c - 1.0), p["log_scale"].exp())
        return {"c": c, "z": z}


class ClassLast(Nodes):
    """q(z | x) q(c | z), c enumerated behind the draw."""

    def __init__(self) -> None:
        super().__init__({"logit": 0.3, "gain": 0.5, "shift": 0.3, "log_scale": -0.4})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            z = self.normal("z", p["gain"] * batch.x + p["shift"], p["log_scale"].exp())
            c = pyro.sample("c", dist.Bernoulli(logits=p["logit"] * z), infer=ENUMERATE)
        return {"c": c, "z": z}


class TwoSides(ClassLast):
    """A draw before the class and one after it."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            u = self.normal("u", p["gain"] * batch.x, p["log_scale"].exp(), infer={"is_auxiliary": True})
            c = pyro.sample("c", dist.Bernoulli(logits=p["logit"]), infer=ENUMERATE)
            z = self.normal("z", u + p["shift"] * c, p["log_scale"].exp())
        return {"c": c, "z": z}


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("guide", [ClassFirst(), ClassLast()], ids=lambda g: type(g).__name__)
def test_over_classes_it_is_unbiased(guide: Nodes, particles: int) -> None:
    model = Classes()
    shape = (2, particles) if isinstance(guide, ClassFirst) else (particles,)
    nodes = {1: 60, 2: 40, 4: 16}[math.prod(shape)]
    batch, weights = nodes_for(guide, {"z": shape}, nodes, x=0.7)
    wanted = expected_gradient(IWAE(particles), model, guide, batch, weights)
    assert relative(expected_gradient(DReG(particles), model, guide, batch, weights), wanted) < 1e-3
    wanted = expected_gradient(ELBO(particles=particles, kl="monte-carlo"), model, guide, batch, weights)
    assert relative(expected_gradient(STL(particles, "elbo"), model, guide, batch, weights), wanted) < 1e-3


def test_draws_on_both_sides_of_a_class_are_refused() -> None:
    guide = TwoSides()
    with pytest.raises(ValueError, match=r"cannot weigh the draws of 'u', 'z'.*the enumerated site 'c'"):
        DReG(2).loss(Classes(), guide, Batch(x=torch.zeros(3, dtype=torch.float64)))


class TwoComponents(Nodes):
    """A mixture of two Gaussians, stratified: its weights act through a factor alone."""

    def __init__(self) -> None:
        super().__init__({"logit": 0.4, "left": -0.5, "right": 0.9, "log_scale": -0.3})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        log_weights = torch.stack([nn.functional.logsigmoid(-p["logit"]), nn.functional.logsigmoid(p["logit"])])
        loc, scale = torch.stack([p["left"], p["right"]]), p["log_scale"].exp()
        with pyro.plate("data", batch.size, dim=-1):
            auxiliary = {"is_auxiliary": True, **ENUMERATE}
            c = pyro.sample("component", dist.Bernoulli(logits=p["logit"]), infer=auxiliary).long()
            z = self.normal("z", loc[c], scale)
            joint = log_weights + dist.Normal(loc, scale).log_prob(z.unsqueeze(-1))
            pyro.factor(
                "mixture",
                joint.logsumexp(-1) - joint.gather(-1, c.expand(z.shape)[..., None])[..., 0],
                has_rsample=True,
            )
        return {"z": z}


@pytest.mark.parametrize("particles", [1, 2])
def test_over_a_stratified_mixture_it_is_unbiased(particles: int) -> None:
    """The weights of the components enter the bound, and no draw: stopped with the rest they would have no gradient."""
    model, guide = Scalar(), TwoComponents()
    batch, weights = nodes_for(guide, {"z": (2, particles)}, 60 if particles == 1 else 16, x=0.7)
    wanted = expected_gradient(IWAE(particles), model, guide, batch, weights)
    within = 2e-5 if particles == 1 else 3e-3
    assert relative(expected_gradient(DReG(particles), model, guide, batch, weights), wanted) < within
    assert float(wanted["guide.free.logit"].abs()) > 0.01


class Auxiliary(Nodes):
    """q(u) q(z | u, x), u of the guide alone, and a model of it backwards, r(u | z), as a factor."""

    def __init__(self) -> None:
        super().__init__({"gain": 0.5, "from_u": 0.4, "log_scale": -0.3, "back": 0.6, "back_scale": -0.2})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            u = self.normal("u", torch.zeros_like(batch.x), p["log_scale"].exp(), infer={"is_auxiliary": True})
            z = self.normal("z", p["gain"] * batch.x + p["from_u"] * u, p["log_scale"].exp())
            backwards = dist.Normal(p["back"] * z, p["back_scale"].exp())
            pyro.factor("reverse", -backwards.log_prob(u), has_rsample=True)
        return {"z": z}


@pytest.mark.parametrize("particles", [1, 2])
def test_a_factors_parameters_keep_their_gradient(particles: int) -> None:
    model, guide = Scalar(), Auxiliary()
    batch, weights = nodes_for(guide, {"u": (particles,), "z": (particles,)}, 24 if particles == 1 else 14, x=0.7)
    wanted = expected_gradient(IWAE(particles), model, guide, batch, weights)
    assert relative(expected_gradient(DReG(particles), model, guide, batch, weights), wanted) < 1e-3
    assert min(float(g.abs()) for g in wanted.values()) > 0.01


# ---------------------------------------------------------------- unbiased, by many draws


class PerDatum(Guide):
    """q(z_n) = N(loc_n, diag exp(log_scale_n)²): one backward pass gives N independent gradients."""

    def __init__(self, n: int, latent: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((n, latent), 0.2, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((n, latent), -0.4, dtype=torch.float64))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))}


def many(objective: Objective, model: LinearGaussian, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean of n independent gradients with respect to loc and log-scale, and its standard error."""
    guide = PerDatum(n, 2)
    x = model.simulate(1, seed=4).expand(n, -1)
    torch.manual_seed(seed)
    objective.differentiable_loss(model, guide, Batch(x=x)).backward()
    gradients = torch.cat([guide.loc.grad, guide.log_scale.grad], -1)
    return gradients.mean(0), gradients.std(0) / math.sqrt(n)


@pytest.mark.parametrize("particles", [1, 2, *(pytest.param(k, marks=pytest.mark.slow) for k in (5, 20))])
def test_many_draws_have_the_mean_of_the_ordinary_gradient(particles: int) -> None:
    """10⁵ draws of each: 4 parameters within 4.5 standard errors, a false alarm in 4 · 7e-6 seeds, and this is one.
    At K = 1 the gradient is known exactly, that of the KL between two Gaussians."""
    model, n = LinearGaussian(3, 2, sigma=1.5), 100_000
    ours, error = many(DReG(particles), model, n, seed=0)
    if particles == 1:
        guide = PerDatum(1, 2)
        q = torch.distributions.MultivariateNormal(guide.loc, scale_tril=guide.log_scale.exp().diag_embed())
        kl = torch.distributions.kl_divergence(q, model.posterior(model.simulate(1, seed=4)))
        exact = torch.cat([g[0] for g in torch.autograd.grad(kl.sum(), [guide.loc, guide.log_scale])])
        noise = error
    else:
        exact, other = many(IWAE(particles), model, n, seed=1)
        noise = (error.square() + other.square()).sqrt()
        biased, _ = many(STL(particles), model, n, seed=2)
        assert bool(((biased - exact).abs() > 20 * noise).any()), "this many draws tell STL's bias"
    assert bool(((ours - exact).abs() < 4.5 * noise).all())
    assert bool((noise < 0.02 * exact.abs().max()).all()), "the estimate says something"


def test_it_has_less_variance_than_the_ordinary_gradient() -> None:
    model = LinearGaussian(3, 2, sigma=1.5)
    for particles in (1, 5, 20):
        _, ours = many(DReG(particles), model, 2000, seed=0)
        _, plain = many(IWAE(particles), model, 2000, seed=0)
        assert ours.square().sum() < 0.8 * plain.square().sum()


# ---------------------------------------------------------------- by hand, without Pyro


@pytest.mark.parametrize("particles", [1, 2, 5])
def test_it_is_the_surrogate_of_the_literature(particles: int) -> None:
    """Σ w̃² log w for the guide, with log q under a detached location and scale, and Σ w̃ log w for the model."""
    model, guide, batch = pair("mean-field")
    torch.manual_seed(3)
    loss = DReG(particles).loss_and_grads(model, guide, batch)
    ours = [gradients_of(model), gradients_of(guide)]

    q = guide.distribution(batch)["z"].base_dist
    torch.manual_seed(3)
    z = q.loc + q.scale * torch.randn(particles, *q.loc.shape, dtype=torch.float64)
    log_q = torch.distributions.Normal(q.loc.detach(), q.scale.detach()).log_prob(z).sum(-1)
    logits = model.decoder(z).squeeze(-4) + model.likelihood.offset
    log_p = torch.distributions.Bernoulli(logits=logits).log_prob(batch.x).flatten(2).sum(-1)
    log_w = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q
    share = log_w.detach().softmax(0)
    (-(share * log_w).sum()).backward(retain_graph=True)
    of_model = gradients_of(model)
    gradients_of(guide)
    (-(share.square() * log_w).sum()).backward()
    assert_equal(ours[0], of_model)
    gradients_of(model)
    assert_equal(ours[1], gradients_of(guide))
    assert loss == pytest.approx(-(log_w.logsumexp(0) - math.log(particles)).sum().item(), rel=1e-12)


def test_weights_over_classes_sum_to_one() -> None:
    """Hooks see w̃ of classes and particles together."""
    model, guide, batch = pair("class")
    objective = DReG(3)
    seen = []

    class Spy(DReG):
        def _weigh_again(self, w: LogWeights) -> None:
            log_w = w.log_w + w.log_q_enumerated
            seen.append(log_w.flatten(0, 1).softmax(0).sum(0))
            assert log_w.shape == (CLASSES, 3, batch.size)
            super()._weigh_again(w)

    torch.manual_seed(0)
    loss = Spy(3).loss(model, guide, batch)
    torch.manual_seed(0)
    assert loss == objective.loss(model, guide, batch)
    torch.testing.assert_close(seen[0], torch.ones(batch.size, dtype=torch.float64))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'w' lies outside of the data plate"):
        DReG(2).loss(*pair("global"))
    assert repr(DReG(7)) == "DReG(particles=7)"
