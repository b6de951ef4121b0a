"""FactorVAE: which parameters each term trains, and what the classifier comes to."""

import math

import pytest
import torch
from aggregates import Linear
from programs import pair

from ppl_vae import ELBO, Batch, CompiledSVI, FactorVAE
from ppl_vae.core import LatentSpec
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian


def test_each_term_trains_its_own() -> None:
    """The classifier's gradient is that of its cross-entropy alone, whatever γ is, and the pair's has none of it."""
    model, guide, batch = pair("mean-field")
    gradients = {}
    for gamma in (0.0, 3.0, 6.0):
        torch.manual_seed(1)
        objective = FactorVAE(model, gamma=gamma, hidden=6, layers=2).double()
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, guide, batch)
        own = torch.autograd.grad(loss, list(objective.parameters()), retain_graph=True)
        gradients[gamma] = own, torch.autograd.grad(loss, list(guide.parameters()))
    for ours, other in zip(gradients[0.0][0], gradients[6.0][0], strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)
        assert bool(ours.abs().sum() > 0)
    torch.manual_seed(0)
    plain = torch.autograd.grad(ELBO().differentiable_loss(model, guide, batch), list(guide.parameters()))
    for bound, half, whole in zip(plain, gradients[3.0][1], gradients[6.0][1], strict=True):
        # linear in γ from the ELBO's: no cross-entropy in it
        torch.testing.assert_close(whole - bound, 2 * (half - bound), rtol=1e-4, atol=1e-4)


def test_a_shuffled_batch_keeps_every_dimension() -> None:
    """What the classifier is shown as independent has each dimension's values, in another order."""
    model = LinearGaussian(4, 3)
    guide, batch = Linear(model), Batch(x=model.simulate(50))
    objective = FactorVAE(model, hidden=4, layers=1).double()
    seen: list[torch.Tensor] = []
    objective.discriminator.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach()))
    objective.differentiable_loss(model, guide, batch)
    held, own, other = seen
    assert torch.equal(held, own)
    assert not torch.equal(own, other)
    assert torch.equal(own.sort(0).values, other.sort(0).values)
    orders = [(own[:, d, None] == other[:, d]).float().argmax(0) for d in range(3)]
    assert not any(torch.equal(orders[a], orders[b]) for a, b in ((0, 1), (1, 2)))


def test_the_classifier_finds_the_total_correlation() -> None:
    """Trained beside a guide that stands still, E[D] comes to the exact total correlation within 0.1 nats."""
    model = LinearGaussian(4, 3)
    guide = Linear(model)
    for p in guide.parameters():
        p.requires_grad_(False)
    exact = guide.parts(model)[1]
    assert exact > 0.3
    torch.manual_seed(1)
    x = model.simulate(2000)
    objective = FactorVAE(model, hidden=32, layers=2, lr=5e-3).double()
    (optimizer,) = objective.optimizers()
    for step in range(200):
        rows = torch.randint(0, 2000, (150,))
        optimizer.zero_grad()
        terms = objective.terms(model, guide, Batch(x=x[rows]))
        terms.loss.mean().backward()
        optimizer.step()
        if step == 0:
            assert abs(terms.logs["discriminator"].mean().item() - math.log(2)) < 0.1
    found = objective.eval().terms(model, guide, Batch(x=x[:800])).logs
    assert abs(found["tc_discriminator"].mean().item() - exact) < 0.1
    assert found["discriminator"].mean() < math.log(2)


def test_its_optimizer_trains_the_classifier_alone() -> None:
    model, guide, batch = pair("mean-field")
    objective = FactorVAE(model, hidden=6, layers=2, lr=0.01).double()
    before = [p.detach().clone() for p in objective.parameters()]
    svi = CompiledSVI(model, guide, torch.optim.SGD, objective, {"lr": 0.0}, compile=False)
    decoder = [p.detach().clone() for p in model.parameters()]
    svi.step(batch)
    assert all(not torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(decoder, model.parameters(), strict=True))


def test_bad_input() -> None:
    model, guide, batch = pair("mean-field")
    with pytest.raises(InputError, match="gamma=-1 must be a number, 0 or more"):
        FactorVAE(model, gamma=-1)
    with pytest.raises(InputError, match="hidden=0 must be a whole number"):
        FactorVAE(model, hidden=0)
    with pytest.raises(InputError, match="declares no latents"):
        FactorVAE(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'w' is shared by all data"):
        FactorVAE({"w": LatentSpec(torch.Size([2]), scope="global")})
    with pytest.raises(InputError, match="'k' is discrete"):
        FactorVAE({"k": LatentSpec(torch.Size([]), torch.distributions.constraints.integer_interval(0, 2))})
    assert batch.x is not None
    with pytest.raises(InputError, match="this one has 1 datum; give 2 or more"):
        FactorVAE(model, hidden=4, layers=1).double().loss(model, guide, Batch(x=batch.x[:1]))
