"""The wake phase: Pyro's on one datum, exact where classes can be summed, and the forward KL's optimum."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from forward import Classes, classes, exact_gradients, gradients, optimum, oracle
from programs import PlainMixtureGuide, assert_equal, binary_batch, guide_for, pair, vae
from pyro import poutine
from pyro.distributions.transforms import conditional_planar
from pyro.infer import ReweightedWakeSleep
from pyro.poutine import Trace
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, Batch, Guide, LatentModel, LatentSpec, guides, networks
from ppl_vae.objectives import ScoreClimbing, Wake
from ppl_vae.objectives.wake import forward_loss
from ppl_vae.testing import check_objective
from ppl_vae.weights import log_weights, particle_plate, sample_sites, score_site

PAIRS = ("mean-field", "full-rank", "conditional", "bottom-up", "top-down", "class", "mixture")


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name: str) -> None:
    model, guide, batch = pair(name)
    check_objective(Wake(3), model, guide, batch)


@pytest.mark.parametrize("name", ["mean-field", "full-rank", "conditional"])
def test_on_one_datum_it_is_pyros(name: str) -> None:
    """In a batch Pyro makes one weight of all its data; on one datum gradients are equal, on equal draws. (In a guide
    of several layers Pyro lets the score of one pass into the draws of another; here it does not, see below.)"""
    model, guide, batch = pair(name)
    batch = batch.take(slice(2, 3))
    theirs = ReweightedWakeSleep(num_particles=4, max_plate_nesting=1)
    torch.manual_seed(0)
    of_model, of_guide = theirs._loss(model, guide, (batch,), {})
    wanted = [
        *torch.autograd.grad(of_model, list(model.parameters())),
        *torch.autograd.grad(of_guide, list(guide.parameters())),
    ]
    torch.manual_seed(0)
    assert_equal(gradients(Wake(4), model, guide, batch), wanted)


@pytest.mark.parametrize("name", PAIRS)
def test_the_models_gradient_is_that_of_iwae(name: str) -> None:
    model, guide, batch = pair(name)
    found = []
    for objective in (Wake(4), IWAE(4)):
        torch.manual_seed(0)
        terms = objective.terms(model, guide, batch)
        found.append([*torch.autograd.grad(terms.loss.sum(), list(model.parameters())), *terms.logs.values()])
        assert list(terms.logs) == ["bound", "elbo", "kl", "log_likelihood"]
    assert_equal(found[0], found[1])


@pytest.mark.parametrize("name", PAIRS)
def test_the_guides_gradient_is_of_weighted_scores_at_fixed_draws(name: str) -> None:
    """By weights and draws from `log_weights`, and log q by the guide run again, replayed on them."""
    model, guide, batch = pair(name)
    torch.manual_seed(0)
    ours = gradients(Wake(3), model, guide, batch)[len(list(model.parameters())) :]
    torch.manual_seed(0)
    with torch.no_grad():
        w = log_weights(model, guide, batch, particles=3)
        log_w = (w.log_w + w.log_q_enumerated).flatten(0, -2)  # (C K, N)
        share = log_w.softmax(0).reshape(w.log_w.shape)

    held = Trace()
    torch.manual_seed(0)
    with torch.no_grad(), particle_plate(3), poutine.enum(first_available_dim=-3):
        drawn = poutine.trace(guide).get_trace(batch)
    for site_name, site in sample_sites(drawn):
        if not site["is_observed"]:
            held.add_node(site_name, **{**site, "value": site["value"].detach()})
    with particle_plate(3), poutine.enum(first_available_dim=-3):
        again = poutine.trace(poutine.replay(guide, trace=held)).get_trace(batch)
    log_q = sum(score_site(site) for _, site in sample_sites(again))
    wanted = torch.autograd.grad(-(share * log_q).sum(), list(guide.parameters()))
    assert_equal(ours, list(wanted))


@pytest.mark.parametrize("particles", [2, 5])
def test_enumerated_classes_give_the_exact_gradients(particles: int) -> None:
    """Each class has its exact weight: ∇ log p(x), and ∇ KL(p(y | x) ‖ q), without noise and at any K."""
    model, guide, batch = classes(enumerated=True)
    assert_equal(gradients(Wake(particles), model, guide, batch), exact_gradients(model, guide, batch))


def test_drawn_classes_give_them_with_many_particles() -> None:
    """Neither reparameterized nor enumerated: 4.5 standard errors of 20 repetitions of 4000 draws, whose bias, of order
    1/4000, is far smaller. False alarms: 3e-3 for 12 numbers (t of 19)."""
    model, guide, batch = classes(enumerated=False)
    torch.manual_seed(0)
    draws = [torch.cat(gradients(Wake(4000), model, guide, batch)) for _ in range(20)]
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(20)
    exact = torch.cat(exact_gradients(model, guide, batch))
    assert bool(((mean - exact).abs() < 4.5 * error + 1e-9).all())
    assert float(error.max()) < 0.02


def test_no_gradient_passes_through_a_draw() -> None:
    """A mixture as one distribution, whose draws pass none, has the gradient of the same guide with passable ones: all
    of it comes of log q at the draws."""
    model, batch = vae(), binary_batch()
    guide = PlainMixtureGuide(model)
    check_objective(Wake(3), model, guide, batch)


def test_the_optimum_has_the_posteriors_marginals() -> None:
    """Forward KL: means and standard deviations of p(z | x), here twice those of the reverse KL's optimum, 1/√Λ_dd,
    which the ELBO finds. Tolerances: 3 % of a standard deviation, 1 % of which is the bias of 300 particles."""
    model, batch = oracle()
    forward = torch.linalg.inv(model.precision).diagonal().sqrt()
    reverse = model.precision.diagonal().rsqrt()
    assert bool((forward / reverse > 1.9).all())
    exact = model.posterior_mean(batch.x[:1])[0]
    mean, deviation = optimum(Wake(300), model, batch, 250)
    torch.testing.assert_close(deviation, forward, rtol=0.03, atol=0)
    assert bool(((mean - exact).abs() < 0.03 * forward).all())
    mean, deviation = optimum(ELBO(particles=4), model, batch, 250)
    torch.testing.assert_close(deviation, reverse, rtol=0.03, atol=0)
    assert bool(((mean - exact).abs() < 0.03 * forward).all())


def test_draws_without_weight_count_nothing() -> None:
    share = torch.tensor([[1.0, 0.5], [0.0, 0.5]])
    log_joint = torch.tensor([[-2.0, -1.0], [-math.inf, -3.0]], requires_grad=True)
    log_q = torch.tensor([[-1.0, -1.0], [math.nan, -1.0]])
    loss = forward_loss(share, log_joint, log_q)
    torch.testing.assert_close(loss, torch.tensor([3.0, 3.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_joint)
    torch.testing.assert_close(gradient, -share)
    assert bool(forward_loss(torch.tensor([[math.nan]]), log_q[:1, :1], log_q[:1, :1]).isnan().all())


def test_nothing_but_nan_is_seen() -> None:
    """A pair without numbers has a loss without one, for training to stop at."""
    model, guide, batch = pair("mean-field")
    objective = Wake(3)
    objective.check(model, guide, batch)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    assert bool(objective.terms(model, guide, batch).loss.isnan().all())


# ---------------------------------------------------------------- refusals


def test_one_particle_is_refused() -> None:
    with pytest.raises(ValueError, match="particles=1: a single weight is always 1"):
        Wake(1)
    with pytest.raises(ValueError, match="particles=0 must be a whole number, 1 or more"):
        Wake(0)


def test_shared_latents_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"log_w needs a weight for each datum, but 'w'"):
        Wake().loss(*pair("global"))


def test_a_guide_that_cannot_score_is_refused() -> None:
    model = vae()
    layers = lambda features, size: [conditional_planar(size, features, [4])]  # noqa: E731
    guide = guides.Flow(model, networks.encoder("mlp", (1, 2, 3), (7,)), layers).double()
    assert not guide.scores_given
    with pytest.raises(ValueError, match="Wake scores draws that Flow did not make, which it cannot do"):
        Wake().loss(model, guide, binary_batch())
    assert math.isfinite(Wake().loss(model, guide_for(model), binary_batch()))


def test_a_batch_need_not_have_rows() -> None:
    model, guide, batch = classes(enumerated=False)
    assert isinstance(model, Classes)
    x: Tensor | None = batch.x
    assert math.isfinite(Wake(2).loss(model, guide, Batch(x=x)))


class Box(LatentModel):
    """z ~ N(mean, 1), x uniform within 0.1 of z: most draws of z have p(x, z) = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([1]))}
        self.mean = nn.Parameter(torch.zeros(1).double())

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0).to_event(1))
            near = dist.Uniform(z - 0.1, z + 0.1, validate_args=False).to_event(1)
            return pyro.sample("x", near, obs=batch.x)


class BoxGuide(Guide):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.scale = (nn.Parameter(torch.full((1,), v).double()) for v in (0.1, 0.02))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", dist.Normal(self.mean, self.scale).expand([batch.size, 1]).to_event(1))}


@pytest.mark.parametrize("name", ["wake", "score-climbing", "validation"])
def test_a_datum_without_a_draw_of_any_weight_is_passed_over(name: str) -> None:
    """Loss and gradients are those of the batch without it: draws of each datum are the same with it and without."""
    model, guide = Box(), BoxGuide()
    batch = Batch(x=torch.tensor([[0.1], [3.0]]).double(), rows=torch.arange(2))
    found = []
    for x in (batch.x, batch.x[:1].expand(2, 1)):
        objective = Wake(3) if name == "wake" else ScoreClimbing(model, 2, 3).double().train(name == "score-climbing")
        objective.check(model, guide, batch)
        torch.manual_seed(0)
        terms = objective.terms(model, guide, batch._replace(x=x))
        loss = terms.loss[0]
        whole = terms.loss.sum() if x is batch.x else loss
        found.append((loss, *torch.autograd.grad(whole, [*model.parameters(), *guide.parameters()])))
        if x is batch.x:
            assert float(terms.loss[1].detach()) == 0.0
            assert float(terms.logs["bound"][1]) == -math.inf
    assert_equal(list(found[0]), list(found[1]))
    assert bool(torch.stack([t.squeeze() for t in found[0]]).isfinite().all())


def test_weights_that_are_no_numbers_are_no_absence_of_weight() -> None:
    """A model with a NaN in it has a loss of NaN, which training names."""
    model, guide = Box(), BoxGuide()
    batch = Batch(x=torch.tensor([[0.1], [3.0]]).double())
    objective = Wake(3)
    objective.loss(model, guide, batch)
    with torch.no_grad():
        model.mean.fill_(math.nan)
    assert bool(objective.terms(model, guide, batch).loss[0].isnan())
