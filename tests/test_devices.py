"""CPU and GPU compute the same: loss and gradients on the same noise, with TF32 off."""

import math
from collections.abc import Iterator

import pytest
import torch
from made_findings import small_checks
from torch import Tensor, nn
from trained import QUIET, data, pair

import ppl_vae
from ppl_vae import ELBO, IWAE, CompiledSVI, Objective, Renyi, fit
from ppl_vae.compiled import CompiledStep
from ppl_vae.diagnose import ais, khat
from ppl_vae.diagnose._arviz import groups_of
from ppl_vae.minibatches import shuffled_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here to compare the CPU with")


@pytest.fixture
def without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("objective", [ELBO(), ELBO(kl="monte-carlo"), IWAE(1), Renyi(0.5, 1)], ids=repr)
def test_cpu_and_cuda_give_the_same_loss_on_the_same_noise(objective: Objective) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, guide = (module.to(device) for module in pair("injected"))
        loss = objective.to(device).differentiable_loss(model, guide, data("fixed").batch().to(device))
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for m in (model, guide) for p in m.parameters())])
    (loss, *gradients), (other, *others) = found
    torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)
    for gradient, another in zip(gradients, others, strict=True):
        torch.testing.assert_close(another, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


class _Regression(nn.Module):
    """A loss without noise, so that steps can be compared number by number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss = (self.layer(x) - x[:, :2]).square().sum()
        return loss, loss


@pytest.mark.usefixtures("without_tf32")
def test_a_captured_step_is_the_eager_step() -> None:
    """Two batch shapes, each replayed on fresh data and with the learning rate of the moment; parameters and
    optimizer state are what the recording found."""
    found = []
    for backend in ("inductor", "none"):
        torch.manual_seed(0)
        loss = _Regression().cuda()
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2, fused=True)
        step = CompiledStep(loss, optimizer, 1.0, backend, guard=True)  # type: ignore[arg-type]
        x = torch.randn(12, 8, 6, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
        losses = []
        for k, batch in enumerate(x):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + k)
            losses.append(step(batch if k % 3 else batch[:5]))
        if backend == "inductor":
            assert step.report.fallbacks == []
            assert [g.captured for g in step.report.graphs] == [True, True]
        found.append(torch.cat([torch.stack(losses), *(p.detach().flatten() for p in loss.parameters())]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_captured_step_waits_for_nothing_and_draws_anew() -> None:
    """Minibatches, dynamic binarization and noise are made on the device; a seed reproduces the run, another one does
    not, and no step draws what the one before did."""
    held = data("dynamic").to("cuda")
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(4)
        model, guide = (module.cuda() for module in pair())
        svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(kl="monte-carlo"), {"lr": 0.0}, multi_step=8)
        same = torch.arange(16, device="cuda").expand(8, 16).contiguous()
        svi.step(held, rows=same)
        assert svi.report().fallbacks == []
        torch.manual_seed(seed)
        torch.cuda.set_sync_debug_mode("error")
        try:
            rows = shuffled_rows(len(held), 16, 8, "cuda")
            losses = [svi.step(held, rows=same), svi.step(held, rows=rows)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        runs.append(torch.cat(losses).cpu())
        assert len(runs[-1][:8].unique()) == 8  # one minibatch, parameters unchanged: noise alone differs
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_training_on_a_gpu_is_compiled_and_captured() -> None:
    """`fit` compiles there by itself; it is the run of its seed, and what it trained is the eager run's to the noise's
    difference."""
    ends = {}
    for name, seed, compile in (("one", 0, True), ("same", 0, "auto"), ("other", 1, True), ("eager", 0, False)):
        model, guide = pair()
        found = fit(
            model,
            guide,
            data("dynamic"),
            epochs=30,
            batch_size=16,
            lr=1e-2,
            device="cuda",
            compile=compile,
            seed=seed,
            **QUIET,  # type: ignore[arg-type]
        )
        assert found.compiled.fallbacks == []
        assert all(graph.captured for graph in found.compiled.graphs)
        assert bool(found.compiled.graphs) == (compile is not False)
        ends[name] = found.history
    assert ends["one"][-1]["elbo"] == ends["same"][-1]["elbo"]
    assert ends["one"][-1]["elbo"] != ends["other"][-1]["elbo"]
    gain = ends["eager"][-1]["elbo"] - ends["eager"][0]["elbo"]
    assert ends["one"][-1]["elbo"] > ends["eager"][0]["elbo"] + 0.5 * gain > ends["eager"][0]["elbo"]


def test_a_captured_step_waits_for_nothing_while_its_schedule_moves() -> None:
    """Batches, learning rate and momentum change from step to step; no step waits for the GPU."""
    torch.manual_seed(0)
    model, guide = (module.cuda() for module in pair())
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3}, clip_norm=10.0)
    batches = [data("fixed").to("cuda").batch(torch.arange(k, k + 16, device="cuda")) for k in range(8)]
    svi.step(batches[0])
    assert svi.optimizer is not None
    schedule = torch.optim.lr_scheduler.OneCycleLR(svi.optimizer, max_lr=1e-2, total_steps=20)
    losses = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            losses.append(svi.step(batch))
            schedule.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert svi.report().fallbacks == []
    assert [g.captured for g in svi.report().graphs] == [True]
    assert torch.isfinite(torch.stack(losses)).all()


def test_a_step_that_cannot_be_captured_runs_without_and_leaves_the_generator_free() -> None:
    """A copy to the host inside of a recording makes CUDA call it invalid."""
    from ppl_vae.replay import Replay

    def reading(weight: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        weight.add_(torch.rand((), device="cuda"))
        return (weight * float(x.sum()),)

    weight, x = torch.ones(3, device="cuda"), torch.ones(4, device="cuda")
    before = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError):
        Replay(reading, [weight], [x], written=(0,))
    assert torch.equal(weight, torch.ones(3, device="cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.isfinite(torch.rand(3, device="cuda")).all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_every_diagnostic_answers_of_a_pair_on_the_gpu() -> None:
    """log p(x) of each way agrees with the CPU's: beyond 5 of their standard errors of a mean 6e-7 of the time, and the
    biases of the logarithms, se²/2."""
    check_diagnostics("cuda")


def check_diagnostics(device: str) -> None:
    few, many = data("fixed", n=100), data("fixed", n=100, seed=1)
    model, guide = (module.to(device) for module in pair())
    found = ppl_vae.diagnose(model, guide, few, train=many, options=small_checks(400))
    assert not found.left_out
    assert all(group.sizes for group in groups_of(found.to_arviz(draws=3)).values())
    there = found["khat"].estimates["log_px"]  # type: ignore[attr-defined]
    here = khat(*pair(), few, particles=400, seed=1).estimates["log_px"]
    annealed = ais(model, few, temperatures=30, chains=8, steps=3, seed=0)
    bias = 0.5 * annealed.se.square().mean().item()
    assert abs(there.mean - here.mean) < 5 * math.hypot(there.se, here.se)
    assert abs(there.mean - annealed.estimate.mean) < 5 * math.hypot(there.se, annealed.estimate.se) + bias
