"""Equality with Pyro's own losses on equal draws, in value and in every gradient, through `pyro_pair`.

Draws are equal after equal seeds where Pyro is told `max_plate_nesting=1` (else it runs the pair once more to guess it)
and `vectorize_particles=True` (else K draws are K streams).
"""

from typing import Any

import pyro
import pytest
import torch
from programs import PAIRS, REPARAMETERIZED, assert_equal, gradients_of, pair
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_vae import ELBO, IWAE, Batch, Objective, Renyi, pyro_pair, scale_data, scale_latents

KWARGS: dict[str, Any] = {"max_plate_nesting": 1, "vectorize_particles": True}

ours_and_theirs = {
    "elbo": (lambda k: ELBO(particles=k, kl="monte-carlo"), lambda k: Trace_ELBO(num_particles=k, **KWARGS)),
    "analytic": (lambda k: ELBO(particles=k, kl="analytic"), lambda k: TraceMeanField_ELBO(num_particles=k, **KWARGS)),
    "iwae": (IWAE, lambda k: RenyiELBO(alpha=0, num_particles=k, **KWARGS)),
    "renyi": (lambda k: Renyi(0.4, k), lambda k: RenyiELBO(alpha=0.4, num_particles=k, **KWARGS)),
    "renyi-below": (lambda k: Renyi(2.5, k), lambda k: RenyiELBO(alpha=2.5, num_particles=k, **KWARGS)),
}


# For the full rank Pyro falls back on Monte Carlo, as torch has no closed form; bottom-up, the closed form is biased.
EQUAL = [
    (losses, name)
    for losses in ours_and_theirs
    for name in REPARAMETERIZED
    if losses != "analytic" or name not in ("full-rank", "bottom-up")
]


def value_and_gradients(
    loss: Any, model: Any, guide: Any, batch: Batch, *modules: nn.Module
) -> tuple[float, list[Any]]:
    pyro.set_rng_seed(3)
    value = loss.loss_and_grads(model, guide, batch)
    return value, gradients_of(*modules)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize(("losses", "name"), EQUAL)
def test_objectives_equal_pyros_losses(losses: str, name: str, particles: int) -> None:
    model, guide, batch = pair(name)
    ours, theirs = (make(particles) for make in ours_and_theirs[losses])
    value, gradients = value_and_gradients(ours, model, guide, batch, model, guide)
    pyro_value, pyro_gradients = value_and_gradients(theirs, *pyro_pair(model, guide), batch, model, guide)
    assert value == pytest.approx(pyro_value, rel=1e-12)
    assert_equal(gradients, pyro_gradients, 1e-11)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in gradients)
    other, _ = value_and_gradients(ours, model, guide, batch._replace(x=1.0 - batch.x), model, guide)
    assert other != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", ["class", "mixture"])
def test_elbo_over_enumerated_sites_equals_trace_enum(name: str, particles: int) -> None:
    model, guide, batch = pair(name)
    value, gradients = value_and_gradients(
        ELBO(particles=particles, kl="monte-carlo"), model, guide, batch, model, guide
    )
    theirs = TraceEnum_ELBO(num_particles=particles, **KWARGS)
    pyro_value, pyro_gradients = value_and_gradients(theirs, *pyro_pair(model, guide), batch, model, guide)
    assert value == pytest.approx(pyro_value, rel=1e-12)
    assert_equal(gradients, pyro_gradients, 1e-11)


@pytest.mark.parametrize("particles", [1, 4])
def test_a_site_shared_by_all_data_is_counted_once(particles: int) -> None:
    model, guide, batch = pair("global")
    value, gradients = value_and_gradients(
        ELBO(particles=particles, kl="monte-carlo"), model, guide, batch, model, guide
    )
    theirs = Trace_ELBO(num_particles=particles, **KWARGS)
    pyro_value, pyro_gradients = value_and_gradients(theirs, *pyro_pair(model, guide), batch, model, guide)
    assert value == pytest.approx(pyro_value, rel=1e-12)
    assert_equal(gradients, pyro_gradients, 1e-11)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_shared_site_in_a_minibatch_equals_scaled_data(particles: int) -> None:
    """ELBO(data_size=N) on B data is B/N of the loss of all, as Trace_ELBO's under scale_data(N / B)."""
    model, guide, batch = pair("global")
    size, factor = 40, 40 / batch.size
    ours = ELBO(particles=particles, kl="monte-carlo", data_size=size)
    value, gradients = value_and_gradients(ours, model, guide, batch, model, guide)
    theirs = Trace_ELBO(num_particles=particles, **KWARGS)
    scaled = [scale_data(factor)(part) for part in pyro_pair(model, guide)]
    pyro_value, pyro_gradients = value_and_gradients(theirs, *scaled, batch, model, guide)
    assert factor * value == pytest.approx(pyro_value, rel=1e-12)
    assert_equal([factor * gradient for gradient in gradients], pyro_gradients, 1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize(
    ("kl", "pyro_loss"), [("monte-carlo", Trace_ELBO), ("analytic", TraceMeanField_ELBO)], ids=["trace", "mean-field"]
)
@pytest.mark.parametrize("name", ["mean-field", "top-down"])
def test_beta_equals_scaled_latents_under_pyros_losses(beta: float, kl: Any, pyro_loss: Any, name: str) -> None:
    model, guide, batch = pair(name)
    value, gradients = value_and_gradients(ELBO(beta, 2, kl), model, guide, batch, model, guide)
    scaled = [scale_latents(beta)(part) for part in pyro_pair(model, guide)]
    theirs = pyro_loss(num_particles=2, **KWARGS)
    pyro_value, pyro_gradients = value_and_gradients(theirs, *scaled, batch, model, guide)
    assert value == pytest.approx(pyro_value, rel=1e-12)
    assert_equal(gradients, pyro_gradients, 1e-10)


def test_mean_field_elbo_ignores_beta_on_the_model_alone() -> None:
    """Why the handler goes around both: Pyro takes the closed form's scale from the guide's site."""
    model, guide, batch = pair("mean-field")
    m, g = pyro_pair(model, guide)
    loss = TraceMeanField_ELBO(**KWARGS)
    plain, _ = value_and_gradients(loss, m, g, batch, model, guide)
    on_model, _ = value_and_gradients(loss, scale_latents(5.0)(m), g, batch, model, guide)
    on_both, _ = value_and_gradients(loss, scale_latents(5.0)(m), scale_latents(5.0)(g), batch, model, guide)
    assert on_model == plain
    assert on_both > plain + 1.0


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), Renyi(0.5, 3)], ids=lambda o: type(o).__name__)
def test_our_objectives_are_losses_of_svi(objective: Objective) -> None:
    model, guide, batch = pair("full-rank")
    before = [p.clone() for part in (model, guide) for p in part.parameters()]
    svi = SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    losses = [svi.step(batch) for _ in range(80)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.0
    after = [p for part in (model, guide) for p in part.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert isinstance(svi.evaluate_loss(batch), float)


def test_plain_modules_train_nothing_under_svi() -> None:
    """What `pyro_pair` is for."""
    model, guide, batch = pair("mean-field")
    before = [p.clone() for p in model.parameters()]
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO()).step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_second_pair_trains_as_the_first() -> None:
    """Under names used before, Pyro's store would hand out the first pair's tensors."""
    for _ in range(2):
        model, guide, batch = pair("mean-field")
        before = [p.clone() for part in (model, guide) for p in part.parameters()]
        SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO()).step(batch)
        after = [p for part in (model, guide) for p in part.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_pair_shares_its_parameters_and_is_made_of_modules() -> None:
    model, guide, _ = pair("mean-field")
    m, g = pyro_pair(model, guide)
    assert [p.data_ptr() for p in m.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert {name for name, _ in g.named_parameters()} == {f"program.{name}" for name, _ in guide.named_parameters()}


def test_a_plain_function_is_half_of_a_pair() -> None:
    model, guide, batch = pair("mean-field")
    m, g = pyro_pair(lambda batch: model(batch), guide)
    loss = SVI(m, g, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO(**KWARGS)).step(batch)
    assert loss > 0


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_runs_under_pyros_loss_and_a_torch_optimizer(name: str) -> None:
    model, guide, batch = pair(name)
    loss_class = TraceEnum_ELBO if name in ("class", "mixture") else Trace_ELBO
    module = loss_class(**KWARGS)(model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    module(batch).backward()
    optimizer.step()
    assert any(p.grad is not None for p in guide.parameters())


def test_our_objective_is_a_module_over_the_pair() -> None:
    model, guide, batch = pair("mean-field")
    objective = ELBO(kl="monte-carlo")
    torch.manual_seed(1)
    ours = objective(model, guide)(batch)
    torch.manual_seed(1)
    theirs = Trace_ELBO(**KWARGS)(model, guide)(batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_loss_and_grads_adds_to_gradients_without_a_store() -> None:
    model, guide, batch = pair("mean-field")
    objective = ELBO()
    torch.manual_seed(0)
    objective.loss_and_grads(model, guide, batch)
    once = [p.grad.clone() for p in guide.parameters()]
    torch.manual_seed(0)
    objective.loss_and_grads(model, guide, batch)
    assert_equal([p.grad for p in guide.parameters()], [2.0 * gradient for gradient in once])
