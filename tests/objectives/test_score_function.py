"""The score function with a baseline: unbiased by enumeration of every combination of draws, and never without one."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    ClassGuide,
    MixtureGuide,
    PlainMixtureGuide,
    SemiSupervised,
    assert_equal,
    binary_batch,
    gradients_of,
    pair,
    vae,
)
from quadrature import Nodes, expected_gradient, hermite
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, Batch, CompiledSVI, Guide, LatentModel, LatentSpec, ScoreFunction, log_weights
from ppl_vae.testing import LinearGaussian, check_compiled, check_objective

CLASSES = 3
EVERY = [
    ScoreFunction(3),
    ScoreFunction(3, "moving-average"),
    ScoreFunction(3, "none"),
    ScoreFunction(1),
    ScoreFunction(3, bound="iwae"),
    ScoreFunction(3, "moving-average", "iwae"),
    ScoreFunction(3, "none", "iwae"),
]
every = pytest.mark.parametrize("objective", EVERY, ids=repr)


class Given(dist.Categorical):
    """A class that is prescribed wherever it has the shape of the draws; drawn elsewhere (`check_pair`)."""

    def __init__(self, logits: Tensor, given: Tensor | None, validate_args: bool | None = None) -> None:
        self.given = given
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Given":
        return Given(self.logits.expand(*batch_shape, -1), self.given)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn = super().sample(sample_shape)
        return drawn if self.given is None or self.given.shape != drawn.shape else self.given


class Discrete(LatentModel):
    """y -> x: three classes, x ~ N(loc[y], 0.6)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"y": LatentSpec(torch.Size([]), dist.constraints.integer_interval(0, CLASSES - 1))}
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.3, 1.2], dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.1, -0.4, 0.5], dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            return pyro.sample("x", dist.Normal(self.loc[y], 0.6), obs=batch.x)


class DiscreteGuide(Guide):
    """q(y | x), drawn."""

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([-0.6, 0.2, 0.9], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.3, 0.0, -0.5], dtype=torch.float64))
        self.given = [given]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            logits = batch.x.unsqueeze(-1) * self.slope + self.bias
            return {"y": pyro.sample("y", Given(logits, self.given[0]))}


def enumerated(particles: int, x: float) -> tuple[Discrete, DiscreteGuide, Batch, Tensor, dict[str, Tensor]]:
    """Every combination of K classes as a datum, its probability, and the exact gradient of -ELBO by parameter."""
    combinations = torch.tensor(list(itertools.product(range(CLASSES), repeat=particles))).T  # (K, 3 ** K)
    model, guide = Discrete(), DiscreteGuide(combinations)
    batch = Batch(x=torch.full((combinations.shape[1],), x, dtype=torch.float64))
    log_q = (x * guide.slope + guide.bias).log_softmax(-1)
    log_p = model.logits.log_softmax(-1) + dist.Normal(model.loc, 0.6).log_prob(batch.x[0])
    weights = log_q.detach()[combinations].sum(0).exp()
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    return model, guide, batch, weights, exact(loss, model, guide)


def exact(loss: Tensor, model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    named = {f"{part}.{n}": p for part, m in (("model", model), ("guide", guide)) for n, p in m.named_parameters()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def compare(got: dict[str, Tensor], wanted: dict[str, Tensor], within: float = 1e-11) -> None:
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=within, atol=within, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------- unbiased, by enumeration


@pytest.mark.parametrize("baseline", ["auto", "moving-average", "none"])
@pytest.mark.parametrize("particles", [1, 2, 3])
def test_the_elbos_gradient_is_unbiased(particles: int, baseline: str) -> None:
    """Its expectation, a sum over all 3^K combinations of draws, is the exact gradient: no noise, no false alarms."""
    model, guide, batch, weights, wanted = enumerated(particles, x=0.8)
    objective = ScoreFunction(particles, baseline)  # type: ignore[arg-type]
    objective.total.fill_(-3.0)
    objective.weight.fill_(1.5)
    compare(expected_gradient(objective, model, guide, batch, weights), wanted)


@pytest.mark.parametrize("baseline", ["auto", "moving-average", "none"])
@pytest.mark.parametrize("particles", [1, 2, 4])
def test_the_importance_weighted_bounds_gradient_is_unbiased(particles: int, baseline: str) -> None:
    model, guide, batch, weights, _ = enumerated(particles, x=0.8)
    x, combinations = batch.x[0], guide.given[0]
    log_q = (x * guide.slope + guide.bias).log_softmax(-1)
    log_p = model.logits.log_softmax(-1) + dist.Normal(model.loc, 0.6).log_prob(x)
    bound = (log_p - log_q)[combinations].logsumexp(0) - math.log(particles)
    wanted = exact(-(log_q[combinations].sum(0).exp() * bound).sum(), model, guide)
    objective = ScoreFunction(particles, baseline, "iwae")  # type: ignore[arg-type]
    objective.total.fill_(-3.0)
    objective.weight.fill_(1.5)
    compare(expected_gradient(objective, model, guide, batch, weights), wanted)


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("particles", [1, 2])
def test_the_moving_average_is_of_the_past_alone(particles: int, bound: str) -> None:
    """Of batches of one datum, each from the same history: if a batch's own draws were in its baseline, the expected
    gradient would be another. (Where all combinations are one batch, its mean is the same for all.)"""
    _, guide, batch, weights, wanted = enumerated(particles, x=0.8)
    model, together = Discrete(), guide.given[0]
    assert together is not None
    total: dict[str, Tensor] = {}
    for k, weight in enumerate(weights):
        guide.given = [together[:, k : k + 1]]
        objective = ScoreFunction(particles, "moving-average", bound)  # type: ignore[arg-type]
        objective.total.fill_(-3.0)
        objective.weight.fill_(1.5)
        gradients = expected_gradient(objective, model, guide, batch.take(slice(k, k + 1)), weight.reshape(1))
        assert float(objective.weight) != 1.5, "the history goes on"
        total = {name: total.get(name, 0.0) + g for name, g in gradients.items()}
    if bound == "iwae":
        guide.given = [together]
        wanted = expected_gradient(ScoreFunction(particles, "none", "iwae"), model, guide, batch, weights)
    compare(total, wanted)


class Both(LatentModel):
    """y -> z -> x: a class, and a number whose mean is the class's."""

    def __init__(self) -> None:
        super().__init__()
        y = LatentSpec(torch.Size([]), dist.constraints.integer_interval(0, CLASSES - 1))
        self.latents = {"y": y, "z": LatentSpec(torch.Size([]), parents=("y",))}
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.3, 1.2], dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros_like(self.loc)))
            z = pyro.sample("z", dist.Normal(self.loc[y], 0.8))
            return pyro.sample("x", dist.Normal(z.sin(), 0.5), obs=batch.x)


class BothGuide(Nodes):
    """q(z | x) q(y | z) or q(y | x) q(z | y, x): a draw that passes gradients, before or after one that does not."""

    def __init__(self, class_first: bool) -> None:
        super().__init__({"gain": 0.5, "shift": 0.3, "log_scale": -0.4, "logit": 0.7})
        self.class_first = class_first
        self.given: list[Tensor | None] = [None]

    def classes(self, of: Tensor) -> Tensor:
        logits = torch.stack([self.free["logit"] * of, 0.2 * of, -of], -1)
        y: Tensor = pyro.sample("y", Given(logits, self.given[0]))
        return y

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            y = self.classes(batch.x) if self.class_first else torch.zeros_like(batch.x)
            z = self.normal("z", p["gain"] * batch.x + p["shift"] * y, p["log_scale"].exp())
            if not self.class_first:
                y = self.classes(z)
        return {"y": y, "z": z}


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("class_first", [True, False])
@pytest.mark.parametrize("particles", [1, 2])
def test_reparameterized_draws_keep_their_gradient(particles: int, class_first: bool, bound: str) -> None:
    """Combinations of classes and of quadrature nodes together. The exact gradient is that of the sum over them of
    probability times value, both as functions of the parameters."""
    model, guide = Both(), BothGuide(class_first)
    grid, node_weights = hermite(24, particles)
    classes = torch.tensor(list(itertools.product(range(CLASSES), repeat=particles))).T
    count = classes.shape[1]
    guide.nodes["z"] = grid.repeat_interleave(count, -1)
    guide.given[0] = classes.repeat(1, grid.shape[1])
    batch = Batch(x=torch.full((guide.nodes["z"].shape[1],), 0.6, dtype=torch.float64))
    node_weights = node_weights.repeat_interleave(count)

    w = log_weights(model, guide, batch, particles=particles)
    value = w.log_w.mean(0) if bound == "elbo" else w.log_w.logsumexp(0) - math.log(particles)
    log_q = w.log_guide["y"].sum(0)
    wanted = exact(-(log_q.exp() * node_weights * value).sum(), model, guide)
    weights = node_weights * log_q.detach().exp()
    compare(expected_gradient(ScoreFunction(particles, bound=bound), model, guide, batch, weights), wanted)  # type: ignore[arg-type]


def test_leave_one_out_needs_others_and_has_less_variance() -> None:
    spread = {}
    for baseline in ("auto", "none"):
        model, guide, batch, weights, wanted = enumerated(4, x=0.8)
        # squares of each combination's gradient, by parameters per datum
        slope = guide.slope.detach()
        biases = nn.Parameter(guide.bias.detach().expand(batch.size, -1).clone())
        guide.slope, guide.bias = nn.Parameter(slope), biases
        loss = ScoreFunction(4, baseline).terms(model, guide, batch).loss.sum()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, [biases])
        torch.testing.assert_close((weights.unsqueeze(-1) * gradient).sum(0), wanted["guide.bias"])
        spread[baseline] = (weights * (gradient - wanted["guide.bias"]).square().sum(-1)).sum()
    assert spread["auto"] < 0.7 * spread["none"]


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_at_the_posterior_every_draw_has_no_gradient(bound: str) -> None:
    model = Discrete()
    guide = DiscreteGuide()
    with torch.no_grad():
        # log p(y) p(x | y) is linear in x but for what all classes share
        guide.slope.copy_(model.loc / 0.36)
        guide.bias.copy_(model.logits - 0.5 * model.loc.square() / 0.36)
    batch = Batch(x=torch.linspace(-2, 2, 9, dtype=torch.float64))
    for _ in range(3):
        ScoreFunction(4, bound=bound).loss_and_grads(model, guide, batch)  # type: ignore[arg-type]
        if bound == "elbo":
            assert all(float(g.abs().max()) < 1e-10 for g in gradients_of(guide))


class Rigid(dist.Normal):
    """A Gaussian that passes no gradient through its draws."""

    has_rsample = False


class Rough(Guide):
    """The oracle's posterior mean and another scale, drawn without reparameterization."""

    def __init__(self, n: int, model: LinearGaussian, x: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(model.posterior_mean(x) + 0.3)
        self.log_scale = nn.Parameter(torch.full_like(self.loc, -0.3))
        assert self.loc.shape[0] == n

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        q = Rigid(self.loc, self.log_scale.exp()).to_event(1)
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", q)}


@pytest.mark.parametrize("objective", [ScoreFunction(2), ScoreFunction(1)], ids=repr)
def test_many_draws_have_the_exact_gradient_of_a_gaussian(objective: ScoreFunction) -> None:
    """20,000 draws by the sampler itself: 4 parameters within 4.5 standard errors, a false alarm in 4 · 7e-6 runs."""
    n, model = 20_000, LinearGaussian(3, 2, sigma=1.5)
    x = model.simulate(1, seed=4)
    guide = Rough(n, model, x.expand(n, -1))
    objective.total.fill_(-5.0)
    objective.weight.fill_(1.0)
    torch.manual_seed(0)
    objective.differentiable_loss(model, guide, Batch(x=x.expand(n, -1))).backward()
    gradients = torch.cat([guide.loc.grad, guide.log_scale.grad], -1)
    mean, error = gradients.mean(0), gradients.std(0) / math.sqrt(n)
    one = Rough(1, model, x)
    q = torch.distributions.MultivariateNormal(one.loc, scale_tril=one.log_scale.exp().diag_embed())
    kl = torch.distributions.kl_divergence(q, model.posterior(x)).sum()
    wanted = torch.cat([g[0] for g in torch.autograd.grad(kl, [one.loc, one.log_scale])])
    assert bool(((mean - wanted).abs() < 4.5 * error).all())
    assert bool((error < 0.1 * wanted.abs().max()).all())


# ---------------------------------------------------------------- per datum


def test_a_datum_s_score_is_multiplied_by_its_own_signal() -> None:
    """The gradient of a batch is the sum of those of its data, each alone with the same draws."""
    model, guide = Discrete(), DiscreteGuide(torch.tensor([[0, 2, 1], [1, 1, 1]]))
    x = torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)
    objective = ScoreFunction(2)
    objective.loss_and_grads(model, guide, Batch(x=x))
    whole = gradients_of(model, guide)
    parts = []
    given = guide.given[0]
    for i in range(3):
        guide.given[0] = given[:, i : i + 1]
        objective.loss_and_grads(model, guide, Batch(x=x[i : i + 1]))
        parts.append(gradients_of(model, guide))
    assert_equal(whole, [sum(g) for g in zip(*parts, strict=True)])


# ---------------------------------------------------------------- without such draws


@pytest.mark.parametrize("name", ["mean-field", "bottom-up", "class", "mixture"])
def test_without_such_draws_it_is_the_ordinary_bound(name: str) -> None:
    model, guide, batch = pair(name)
    for ours, plain in (
        (ScoreFunction(3), ELBO(particles=3, kl="monte-carlo")),
        (ScoreFunction(1), ELBO(kl="monte-carlo")),
        (ScoreFunction(3, bound="iwae"), IWAE(3)),
    ):
        results = []
        for objective in (ours, plain):
            torch.manual_seed(0)
            loss = objective.loss_and_grads(model, guide, batch)
            results.append([torch.tensor(loss), *gradients_of(model, guide)])
        assert_equal(results[0], results[1])
        assert not ours.total.any(), "nothing to average"


# ---------------------------------------------------------------- contract, state, compiled


@every
def test_contract(objective: ScoreFunction) -> None:
    model = vae()
    check_objective(objective, model, PlainMixtureGuide(model), binary_batch())


@every
def test_contract_without_such_draws(objective: ScoreFunction) -> None:
    check_objective(objective, *pair("mean-field"))


@every
def test_the_compiled_step_is_the_eager_one(objective: ScoreFunction) -> None:
    """Its moving average included."""
    check_compiled(Discrete(), DiscreteGuide(), objective, Batch(x=torch.linspace(-2, 2, 5).double()), steps=5)


def test_the_moving_average_follows_the_signal_in_training_alone() -> None:
    model, guide = Discrete(), DiscreteGuide()
    batch = Batch(x=torch.linspace(-2, 2, 50, dtype=torch.float64))
    objective = ScoreFunction(1)
    with torch.no_grad():
        objective.loss(model, guide, batch)
    objective.eval()
    objective.loss(model, guide, batch)
    assert not objective.weight.any()
    objective.train()
    buffer = objective.total
    values = [-objective.loss(model, guide, batch) / 50 for _ in range(200)]
    assert objective.total is buffer
    average = (objective.total / objective.weight).item()
    assert average == pytest.approx(sum(values[-60:]) / 60, abs=0.2)
    assert objective.weight.item() == pytest.approx(1 - 0.95**200, rel=1e-5)


def test_a_first_step_is_corrected_for_its_start_at_zero() -> None:
    objective, (model, guide) = ScoreFunction(1), (Discrete(), DiscreteGuide())
    value = -objective.loss(model, guide, Batch(x=torch.zeros(40, dtype=torch.float64))) / 40
    assert (objective.total / objective.weight).item() == pytest.approx(value, rel=1e-5)


def test_training_a_discrete_guide_reaches_the_posterior() -> None:
    model, guide = Discrete(), DiscreteGuide()
    for p in model.parameters():
        p.requires_grad_(False)
    batch = Batch(x=torch.linspace(-2, 2, 64, dtype=torch.float64))
    svi = CompiledSVI(model, guide, torch.optim.Adam, ScoreFunction(4), {"lr": 0.05}, compile="graph")
    for _ in range(400):
        svi.step(batch)
    with torch.no_grad():
        log_p = model.logits.log_softmax(-1) + dist.Normal(model.loc, 0.6).log_prob(batch.x.unsqueeze(-1))
        log_q = (batch.x.unsqueeze(-1) * guide.slope + guide.bias).log_softmax(-1)
        gap = (log_q.exp() * (log_q - log_p.log_softmax(-1))).sum(-1).mean()
    assert float(gap) < 5e-3
    assert not svi.report().fallbacks


# ---------------------------------------------------------------- refusals


def test_enumerated_and_drawn_sites_together_are_refused() -> None:
    class Mixed(ClassGuide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            with pyro.plate("data", batch.size, dim=-1):
                u = pyro.sample("u", dist.Bernoulli(logits=self.logits(batch)[..., 0]), infer={"is_auxiliary": True})
                y = pyro.sample("y", dist.Categorical(logits=self.logits(batch)), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(self.eye[y][..., :2], 1.0).to_event(1))
            return {"u": u, "y": y, "z": z}

    model = SemiSupervised()
    with pytest.raises(ValueError, match=r"'y' is enumerated and 'u' drawn without reparameterization"):
        ScoreFunction(2).loss(model, Mixed(model), pair("class")[2])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="baseline='leave-one-out' is of other particles, and particles=1"):
        ScoreFunction(1, "leave-one-out")
    with pytest.raises(ValueError, match=r"baseline='mean' is not known; .*choose one of"):
        ScoreFunction(2, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bound='vimco' is not known; .*choose one of"):
        ScoreFunction(2, bound="vimco")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'w' lies outside of the data plate"):
        ScoreFunction(2).loss(*pair("global"))
    assert repr(ScoreFunction(2)) == "ScoreFunction(particles=2, baseline='auto', bound='elbo')"
    assert isinstance(MixtureGuide(vae()), Guide)
