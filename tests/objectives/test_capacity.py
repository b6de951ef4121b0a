"""Capacity and constraint: values by hand, schedules in buffers, and where training comes to on the oracle."""

import math

import pytest
import torch
from aggregates import Linear
from programs import pair

from ppl_vae import ELBO, Batch, Capacity, CompiledSVI, Constrained, Objective
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian


@pytest.mark.parametrize("objective", [Capacity(1.0, 0.0), Constrained(0.0, start=1.0)])
def test_at_weight_one_and_zero_nats_it_is_the_elbo(objective: Objective) -> None:
    model, guide, batch = pair("mean-field")
    parameters = [*model.parameters(), *guide.parameters()]
    results = []
    for each in (ELBO(), objective):
        torch.manual_seed(0)
        loss = each.differentiable_loss(model, guide, batch)
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_capacity_by_hand() -> None:
    """γ |mean KL - C(t)| on each datum, C rising by a quarter of 8 nats a step, standing still in evaluation mode."""
    model = LinearGaussian(4, 2)
    guide, batch = Linear(model), Batch(x=model.simulate(6))
    objective = Capacity(3.0, 8.0, steps=4)
    for wanted in (0.0, 2.0, 4.0, 6.0, 8.0, 8.0):
        torch.manual_seed(0)
        bound = ELBO().terms(model, guide, batch).logs
        torch.manual_seed(0)
        found = objective.terms(model, guide, batch)
        loss = 3.0 * (bound["kl"].mean() - wanted).abs() - bound["log_likelihood"]
        torch.testing.assert_close(found.loss, loss, rtol=0, atol=1e-6)
        assert found.logs["capacity"].tolist() == [wanted] * 6
    step = objective.step.clone()
    objective.eval().terms(model, guide, batch)
    assert torch.equal(objective.step, step)
    assert Capacity(1.0, 5.0, steps=0).wanted().item() == 5.0


def test_the_multiplier_by_hand() -> None:
    """β <- max(0, β + η (KL - ε)), and the loss of a step has the β before it."""
    model = LinearGaussian(4, 2)
    guide, batch = Linear(model), Batch(x=model.simulate(6))
    kl = ELBO().terms(model, guide, batch).logs["kl"].mean().item()
    objective = Constrained(epsilon=kl + 1.0, rate=0.4, start=1.0)
    for beta in (1.0, 0.6, 0.2, 0.0, 0.0):
        torch.manual_seed(0)
        bound = ELBO().terms(model, guide, batch).logs
        torch.manual_seed(0)
        found = objective.terms(model, guide, batch)
        loss = beta * (bound["kl"] - objective.epsilon) - bound["log_likelihood"]
        torch.testing.assert_close(found.loss, loss, rtol=0, atol=1e-5)
        assert found.logs["multiplier"][0].item() == pytest.approx(beta, abs=1e-6)
    before = objective.multiplier.clone()
    objective.eval().terms(model, guide, batch)
    assert torch.equal(objective.multiplier, before)


def trained(objective: Objective, model: LinearGaussian, steps: int, lr: float = 0.05) -> dict[str, float]:
    guide, batch = Linear(model), Batch(x=model.simulate(40))
    torch.manual_seed(1)
    svi = CompiledSVI(
        model,
        guide,
        torch.optim.Adam,
        objective,
        {"lr": lr},
        lr_schedule=lambda t: 0.5 * (1.0 + math.cos(math.pi * t / steps)),
        compile="graph",
    )
    for _ in range(steps):
        svi.step(batch)
    found = objective.eval().terms(model, guide, batch).logs
    return {name: value.mean().item() for name, value in found.items()}


def kl_at(model: LinearGaussian, beta: float) -> float:
    """Mean KL(q ‖ p) of the best q of a β-ELBO, p(z) p(x | z)^{1/β} normalized, over the data of `trained`."""
    x = model.simulate(40)
    precision = torch.eye(2, dtype=torch.float64) + model.weight.T @ model.weight / (beta * model.sigma**2)
    covariance = torch.linalg.inv(precision)
    mean = (x - model.bias) @ (covariance @ model.weight.T / (beta * model.sigma**2)).T
    trace, log_det = covariance.trace(), torch.logdet(covariance)
    return (0.5 * (trace - 2 - log_det + mean.square().sum(-1))).mean().item()


def test_capacity_holds_the_kl() -> None:
    """Within 0.5 nats of C at the end, below what the bound would take and above it."""
    model = LinearGaussian(4, 2)
    free = kl_at(model, 1.0)
    for capacity in (0.5 * free, 1.5 * free):
        found = trained(Capacity(50.0, capacity, steps=60, particles=4), model, 150)
        assert abs(found["kl"] - capacity) < 0.5


def test_complementary_slackness() -> None:
    """Where the constraint binds, the KL comes to ε and the multiplier to the β whose bound has that KL, within 10 %;
    where it does not, the multiplier is 0."""
    model = LinearGaussian(4, 2)
    beta = 2.0
    epsilon = kl_at(model, beta)
    assert abs(epsilon - kl_at(model, 1.0)) > 0.3
    objective = Constrained(epsilon, rate=0.05, particles=8)
    found = trained(objective, model, 300)
    assert abs(found["kl"] - epsilon) < 0.05
    assert objective.multiplier.item() == pytest.approx(beta, rel=0.1)
    loose = Constrained(50.0, rate=0.05)
    trained(loose, model, 60)
    assert loose.multiplier.item() == 0.0


def test_bad_input() -> None:
    for make, message in (
        (lambda: Capacity(gamma=-1.0), "gamma=-1.0 must be a number, 0 or more"),
        (lambda: Capacity(capacity=-2.0), "capacity=-2.0 must be a number, 0 or more"),
        (lambda: Capacity(steps=-1), "steps=-1 must be a whole number, 0 or more"),
        (lambda: Capacity(gamma=math.inf), "gamma=inf must be a number"),
        (lambda: Constrained(epsilon=-1.0), "epsilon=-1.0 must be a number, 0 or more"),
        (lambda: Constrained(rate=0.0), "rate=0.0 must be a number above 0"),
        (lambda: Constrained(start=True), "start=True must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            make()
