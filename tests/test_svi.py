"""The compiled step is the eager step."""

from __future__ import annotations

import copy
import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from ppl_vae import ELBO, IWAE, Batch, InputError, Renyi, guides, likelihoods, models, networks
from ppl_vae.compiled import MAX_GRAPHS, CompiledStep, CompileWarning
from ppl_vae.data import DataSet
from ppl_vae.fit import fit
from ppl_vae.minibatches import shuffled_rows
from ppl_vae.svi import CompiledSVI
from ppl_vae.tracing import _broken_library

N, D, Z = 16, 12, 3


@pytest.fixture(autouse=True)
def _noise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU a compiled step draws as torch does, by itself; but where a test is of the compiler's own noise."""
    pyro.clear_param_store()
    if "native_noise" in request.keywords:
        monkeypatch.setattr("ppl_vae.tracing._noise", lambda flat: {})
    assert not inductor_config.fallback_random
    yield
    pyro.clear_param_store()


def pair(guide: type = guides.MeanField, dtype: torch.dtype = torch.float64) -> tuple[models.VAE, Any]:
    torch.manual_seed(0)
    model = models.VAE(networks.decoder("mlp", Z, (D,), 1, (8,)), likelihoods.Bernoulli((D,)), Z)
    return model.to(dtype), guide(model, networks.encoder("mlp", (D,), (8,))).to(dtype)


def data(n: int = N, dtype: torch.dtype = torch.float64) -> Batch:
    return Batch(x=(torch.rand(n, D, generator=torch.Generator().manual_seed(1)) < 0.4).to(dtype))


def run(
    compile: Any,
    *,
    steps: int = 10,
    objective: Callable[[], Any] = ELBO,
    optim: Any = torch.optim.Adam,
    optim_args: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    guide: type = guides.MeanField,
    **options: Any,
) -> tuple[Tensor, Tensor, CompiledSVI]:
    model, q = pair(guide, dtype)
    svi = CompiledSVI(model, q, optim, objective(), optim_args or {"lr": 1e-2}, compile=compile, **options)
    torch.manual_seed(7)
    losses = torch.stack([svi.step(data(dtype=dtype)) for _ in range(steps)])
    return losses, torch.cat([p.detach().flatten() for p in [*model.parameters(), *q.parameters()]]), svi


def assert_equal_runs(a: tuple[Tensor, Tensor, CompiledSVI], b: tuple[Tensor, Tensor, CompiledSVI]) -> None:
    double = a[0].dtype == torch.float64
    assert torch.allclose(a[0], b[0], rtol=1e-12 if double else 1e-6, atol=0)
    assert (a[1] - b[1]).norm() / b[1].norm() < (1e-9 if double else 1e-5)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": 1e-2}),
    "adam-decay": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.99)}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-3}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "rmsprop-centered": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
}


# compiling takes ten seconds: what does not turn on the compiler is seen in the traced graph, and in both at length
either_backend = pytest.mark.parametrize("backend", ["graph", pytest.param(True, marks=pytest.mark.slow)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_of_the_traced_graph_are_ten_eager_steps(name: str) -> None:
    optim, options = OPTIMIZERS[name]
    graph = run("graph", optim=optim, optim_args=options)
    assert graph[2].report().graphs[0].calls == 10
    assert_equal_runs(graph, run(False, optim=optim, optim_args=options))


_RENYI = functools.partial(Renyi, 0.5, 3)
_IWAE = functools.partial(IWAE, 3)


@pytest.mark.parametrize(
    ("objective", "guide", "dtype"),
    [
        # what the covering set of all parts has not: float64, and the compiler's own options
        pytest.param(ELBO, guides.MeanField, torch.float64, marks=pytest.mark.by_default),
        pytest.param(ELBO, guides.FullRank, torch.float32, marks=[pytest.mark.by_default, pytest.mark.slow]),
        pytest.param(ELBO, guides.FullRank, torch.float64, marks=pytest.mark.slow),
        pytest.param(_IWAE, guides.MeanField, torch.float32, marks=pytest.mark.slow),
        pytest.param(_IWAE, guides.MeanField, torch.float64, marks=pytest.mark.slow),
        pytest.param(_RENYI, guides.FullRank, torch.float32, marks=pytest.mark.slow),
        pytest.param(_RENYI, guides.FullRank, torch.float64, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_are_eager_steps(objective: Callable[[], Any], guide: type, dtype: torch.dtype) -> None:
    compiled = run(True, objective=objective, guide=guide, dtype=dtype, clip_norm=5.0)
    assert compiled[2].report().fallbacks == []
    assert compiled[2].report().eager_calls == 0
    assert_equal_runs(compiled, run(False, objective=objective, guide=guide, dtype=dtype, clip_norm=5.0))


@pytest.mark.parametrize("backend", [False, "graph"])
def test_clipping_and_learning_rate_schedule(backend: Any) -> None:
    """Plain SGD: every step's length is lr times the clipped norm, and the schedule halves it."""
    model, guide = pair()
    params = [*model.parameters(), *guide.parameters()]
    svi = CompiledSVI(
        model, guide, torch.optim.SGD, ELBO(), {"lr": 0.1}, clip_norm=0.5, lr_schedule=lambda k: 0.5**k, compile=backend
    )
    lengths = []
    for _ in range(3):
        before = torch.cat([p.detach().flatten().clone() for p in params])
        svi.step(data())
        lengths.append((torch.cat([p.detach().flatten() for p in params]) - before).norm().item())
    assert lengths == pytest.approx([0.05, 0.025, 0.0125], rel=1e-5)


def test_svi_of_pyro_gives_the_same_steps() -> None:
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, compile="graph")
    torch.manual_seed(7)
    ours = [svi.step(data()).item() for _ in range(5)]
    assert svi.report().fallbacks == []
    from ppl_vae import pyro_pair

    model, guide = pair()
    theirs = SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    torch.manual_seed(7)
    assert ours == pytest.approx([theirs.step(data()) for _ in range(5)], rel=1e-10)


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=["trace-4", "mean-field", "renyi-0", "renyi-half"],
)
def test_losses_of_pyro_are_traced_or_replaced_by_their_equals(loss: Any) -> None:
    """Functions with `pyro.module` and `pyro.param`: the store sees the updates, and they are SVI's."""
    model, guide = functions()
    svi = CompiledSVI(model, guide, torch.optim.Adam, loss, {"lr": 1e-2}, compile="graph")
    x = data().x
    torch.manual_seed(7)
    ours = [svi.step(x).item() for _ in range(5)]
    assert svi.report().fallbacks == []
    scale = pyro.param("scale").item()
    assert scale != pytest.approx(1.3, abs=1e-3)

    pyro.clear_param_store()
    model, guide = functions()
    theirs = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    torch.manual_seed(7)
    assert ours == pytest.approx([theirs.step(x) for _ in range(5)], rel=1e-9)
    assert scale == pytest.approx(pyro.param("scale").item(), rel=1e-9)


def functions() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A person's own pair, as functions over Pyro's store."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(Z, 8), nn.Tanh(), nn.Linear(8, D)).double()
    encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2 * Z)).double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(1.3, dtype=torch.float64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z, dtype=torch.float64), scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@pytest.mark.native_noise
def test_a_seed_reproduces_a_compiled_run_and_another_does_not() -> None:
    """With the compiler's own generator, which is not torch's stream but follows its seed."""
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.SGD, ELBO(kl="monte-carlo"), {"lr": 0.0})
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([svi.step(data()).item() for _ in range(4)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    # the parameters stand still: were the noise a constant of the graph, all losses would be one number
    assert len(set(runs[0])) == 4


@pytest.mark.native_noise
@either_backend
def test_particles_and_data_are_independent_draws(backend: Any) -> None:
    """64 equal data and 64 particles: were noise shared by data or by particles, the sum's variance would be 64 times
    as large. False-alarm rate of either bound below 1e-6 (a chi-square of 399 degrees of freedom within 0.6 to 1.6)."""
    model, guide = pair()
    batch = Batch(x=data(1).x.expand(64, D).contiguous())
    loss = ELBO(particles=64, kl="monte-carlo")
    svi = CompiledSVI(model, guide, torch.optim.SGD, loss, {"lr": 0.0}, compile=backend)
    torch.manual_seed(0)
    losses = torch.stack([svi.step(batch) for _ in range(400)])
    single = ELBO(particles=1, kl="monte-carlo")
    one = torch.stack([single.terms(model, guide, batch).loss.detach() for _ in range(100)]).flatten()
    expected = one.var() * 64 / 64
    assert 0.6 < (losses.var() / expected).item() < 1.6


@pytest.mark.slow
@pytest.mark.native_noise
def test_training_with_the_compilers_own_noise_ends_where_torchs_does() -> None:
    """Loss at four times of training, 40 seeds each way: the means agree within 4 standard errors, and so do the
    spreads (false-alarm rate below 1e-3 for all eight together)."""

    def curves(compile: bool) -> Tensor:
        model, guide = pair(dtype=torch.float32)
        start = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
        batch, found = data(dtype=torch.float32), []
        svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(kl="monte-carlo"), {"lr": 1e-2}, compile=compile)
        for seed in range(40):
            torch.manual_seed(seed)
            with torch.no_grad():
                for p, first in zip([*model.parameters(), *guide.parameters()], start, strict=True):
                    p.copy_(first)
            if svi.optimizer is not None:
                for state in svi.optimizer.state.values():
                    for tensor in state.values():
                        tensor.zero_()
            losses = torch.stack([svi.step(batch) for _ in range(160)])
            found.append(losses.view(4, 40).mean(1))
        assert svi.report().fallbacks == []
        return torch.stack(found)

    a, b = curves(True), curves(False)
    assert not torch.equal(a[0], b[0])
    difference = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / 40).sqrt()
    assert (difference.abs() < 4).all(), difference
    # log of a ratio of two sample standard deviations has a standard error of 1 / sqrt(39)
    assert ((a.std(0) / b.std(0)).log().abs() < 4 / 39**0.5).all()
    assert b.mean(0)[0] - b.mean(0)[-1] > 10 * (b.var(0)[-1] / 40).sqrt()


def test_a_new_shape_makes_a_graph_and_too_many_run_eagerly() -> None:
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3}, compile="graph")
    for n in (4, 5, 4, 5, 4):
        svi.step(data(n))
    assert [g.calls for g in svi.report().graphs] == [3, 2]
    for n in range(6, 6 + MAX_GRAPHS - 2):
        svi.step(data(n))
    with pytest.warns(CompileWarning, match="more than 8 shapes"):
        svi.step(data(2))
    svi.step(data(3))
    assert len(svi.report().graphs) == MAX_GRAPHS
    assert svi.report().eager_calls == 2
    assert "eager" in str(svi.report())


def test_a_number_that_changes_is_better_given_as_a_tensor() -> None:
    class Weighted(nn.Module):
        def __init__(self, program: nn.Module) -> None:
            super().__init__()
            self.program = program

        def forward(self, batch: Batch, weight: Any) -> None:
            with poutine.scale(scale=weight):
                self.program(batch)

    weighted, posterior = map(Weighted, pair())
    svi = CompiledSVI(weighted, posterior, torch.optim.SGD, Trace_ELBO(), {"lr": 1e-6}, compile="graph")
    for k in range(20):
        svi.step(data(), torch.tensor(1.0 + k))
    assert len(svi.report().graphs) == 1
    svi = CompiledSVI(weighted, posterior, torch.optim.SGD, Trace_ELBO(), {"lr": 1e-6}, compile="graph")
    for k in range(MAX_GRAPHS):
        svi.step(data(), 1.0 + k)
    assert svi.report().notes == [
        "CompiledSVI.step: a Python number among the arguments changes (1.0, then 2.0), and each of its values makes a "
        "graph; give it as a tensor"
    ]
    assert svi.report().notes[0] in str(svi.report())
    with pytest.warns(CompileWarning, match="give it as a tensor"):
        svi.step(data(), 0.5)
    for k in range(10):
        svi.step(data(), 0.01 * (k + 1))
    assert svi.report().eager_calls == 11
    assert svi._step is not None
    assert len(svi._step.compiler.calls) == MAX_GRAPHS


def test_what_is_replaced_or_frozen_after_a_step_is_seen() -> None:
    """A graph is of the modules, buffers, flags and options it was made with; others are bound anew, or refused."""
    model, guide = pair()
    objective = ELBO()
    svi = CompiledSVI(model, guide, torch.optim.SGD, objective, {"lr": 0.0}, compile="graph")

    def losses() -> tuple[float, float]:
        torch.manual_seed(0)
        step = svi.step(data()).item()
        torch.manual_seed(0)
        return step, objective.loss(model, guide, data())

    assert losses()[0] == pytest.approx(losses()[1], rel=1e-12)
    objective.kl_weight = torch.full((), 0.25)
    a = losses()
    assert a[0] == pytest.approx(a[1], rel=1e-12)
    for part in guide.modules():
        for name, child in list(part.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(part, name, nn.Sigmoid())
    b = losses()
    assert b[0] == pytest.approx(b[1], rel=1e-12)
    assert b[0] != a[0]

    svi.optimizer.param_groups[0]["lr"] = 0.01  # type: ignore[union-attr]
    frozen = next(guide.parameters()).requires_grad_(False)
    before = frozen.detach().clone(), next(model.parameters()).detach().clone()
    svi.step(data())
    assert torch.equal(frozen, before[0])
    assert not torch.equal(next(model.parameters()), before[1])

    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight = nn.Parameter(part.weight.detach().clone())
            break
    with pytest.raises(InputError, match="replaced after the first step"):
        svi.step(data())


@pytest.mark.parametrize("how", ["cleared", "loaded"])
def test_a_store_that_was_cleared_or_loaded_is_noticed(how: str) -> None:
    model, guide = functions()
    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, compile="graph")
    svi.step(data().x)
    saved = pyro.get_param_store().get_state()
    svi.step(data().x)
    if how == "cleared":
        pyro.clear_param_store()
    else:
        pyro.get_param_store().set_state(copy.deepcopy(saved))
    with pytest.raises(InputError, match="no longer holds"):
        svi.step(data().x)


@pytest.mark.parametrize("backend", ["graph", False])
def test_a_buffer_that_is_reassigned_in_a_step_is_kept(backend: Any) -> None:
    class Counting(ELBO):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def terms(self, *args: Any, **kwargs: Any) -> Any:
            terms = super().terms(*args, **kwargs)
            self.calls = self.calls + 1
            return terms

    objective = Counting()
    svi = CompiledSVI(*pair(), torch.optim.Adam, objective, {"lr": 1e-3}, compile=backend)
    svi.step(data())
    first = objective.calls.item()
    for _ in range(4):
        svi.step(data())
    assert objective.calls.item() == first + 4
    assert svi.report().fallbacks == []


@either_backend
def test_an_evaluation_sees_another_dtype(backend: Any) -> None:
    model, guide = pair(dtype=torch.float32)
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3}, compile=backend)
    svi.evaluate_loss(data(dtype=torch.float32))
    model.double()
    guide.double()
    torch.manual_seed(0)
    value = svi.evaluate_loss(data())
    torch.manual_seed(0)
    assert value.item() == pytest.approx(ELBO().loss(model, guide, data()), rel=1e-12)


def test_options_loaded_with_a_state_are_the_steps() -> None:
    found = []
    for backend in ("graph", False):
        model, guide = pair()
        svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-2}, compile=backend)  # type: ignore[arg-type]
        torch.manual_seed(0)
        svi.step(data())
        assert svi.optimizer is not None
        state = svi.optimizer.state_dict()
        state["param_groups"][0]["weight_decay"] = 10.0
        svi.optimizer.load_state_dict(state)
        svi.step(data())
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(found[0], found[1], rtol=1e-10)


@pytest.mark.parametrize(
    "optim",
    [
        pyro.optim.SGD({"lr": 0.1}, {"clip_norm": 1.0}),
        pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.5}),
    ],
    ids=["clipping", "schedule"],
)
def test_what_pyros_optimizers_do_besides_is_refused(optim: Any) -> None:
    svi = CompiledSVI(*pair(), optim, ELBO())
    with pytest.raises(InputError, match="lr_schedule= and clip_norm="):
        svi.step(data())


@either_backend
def test_another_layout_of_the_same_shape_is_another_graph(backend: Any) -> None:
    x = data().x
    assert x is not None
    turned = x.T.contiguous().T
    assert turned.stride() != x.stride()
    losses = []
    for batch in (x, turned):
        model, guide = pair()
        svi = CompiledSVI(model, guide, torch.optim.SGD, ELBO(), {"lr": 1e-2}, compile=backend)
        svi.step(Batch(x=x))
        torch.manual_seed(0)
        losses.append(svi.step(Batch(x=batch)).item())
        assert svi.report().fallbacks == []
    assert len(svi.report().graphs) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_the_key_sees_what_the_graph_cannot() -> None:
    """y given to a graph traced without it, another n, evaluation mode: each is a graph of its own."""
    torch.manual_seed(0)
    condition = networks.Condition(classes=3)
    model = models.ConditionalVAE(
        networks.decoder("mlp", Z + 3, (D,), 1, (8,)), likelihoods.Bernoulli((D,)), Z, condition
    )
    guide = guides.MeanField(model, networks.encoder("mlp", (D,), (8,), condition=condition))
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3}, compile="graph")
    batch = data(6, torch.float32)._replace(y=torch.tensor([0, 1, 2, 0, 1, 2]))
    svi.step(batch)
    svi.step(batch._replace(rows=torch.arange(6)))
    model.eval()
    svi.step(batch)
    assert len(svi.report().graphs) == 3


def test_a_branch_on_a_value_is_reported_with_its_line_and_runs_eagerly() -> None:
    model, guide = functions()

    def branching(x: Tensor) -> None:
        if x.sum() > 0:  # the line that is named
            model(x)

    svi = CompiledSVI(branching, guide, torch.optim.Adam, ELBO(kl="monte-carlo"), {"lr": 1e-2})
    with pytest.warns(CompileWarning, match=r"test_svi\.py:\d+: if x\.sum\(\) > 0"):
        first = svi.step(data().x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            last = svi.step(data().x)
    assert last < first
    assert svi.report().eager_calls == 31
    assert len(svi.report().fallbacks) == 1


def test_no_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("C++ compiler not found")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3})
    with pytest.warns(CompileWarning, match=r"install g\+\+"):
        assert torch.isfinite(svi.step(data()))


def test_an_optimizer_without_a_rule_is_reported() -> None:
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.NAdam, ELBO(), {"lr": 1e-3})
    with pytest.warns(CompileWarning, match="NAdam"):
        svi.step(data())
    assert "NAdam" in str(svi.report())


def test_eager_and_compiled_steps_can_follow_each_other() -> None:
    """The state is the optimizer's own: its state_dict is whole at any time, and loading one is noticed."""
    whole = run("graph", steps=6)
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-2}, compile="graph")
    torch.manual_seed(7)
    losses = [svi.step(data()) for _ in range(3)]
    assert svi.optimizer is not None
    state = svi.optimizer.state_dict()
    assert {float(s["step"]) for s in state["state"].values()} == {3.0}
    svi.optimizer.load_state_dict(state)
    losses.append(svi.step(data()))
    assert svi._step is not None
    losses.append(svi._step.eager((data(),), {}))
    losses.append(svi.step(data()))
    assert torch.allclose(torch.stack(losses), whole[0], rtol=1e-12)


@either_backend
def test_a_compiled_step_in_bf16_has_matrix_products_alone_in_it(backend: Any) -> None:
    """Products of layers in bfloat16; losses, parameters and optimizer state in float32. Compiled and eager round
    differently, by 2⁻⁸ a product at most."""
    from torch.utils._python_dispatch import TorchDispatchMode

    compiled = run(backend, dtype=torch.float32, precision="bf16")
    eager = run(False, dtype=torch.float32, precision="bf16")
    assert compiled[2].report().fallbacks == []
    assert compiled[0].dtype == torch.float32
    assert torch.allclose(compiled[0], eager[0], rtol=2e-2)
    assert not torch.equal(eager[0], run(False, dtype=torch.float32)[0])
    optimizer = compiled[2].optimizer
    assert optimizer is not None
    assert {t.dtype for state in optimizer.state.values() for t in state.values()} == {torch.float32}

    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.bfloat16:
                seen.add(func.overloadpacket.__name__)
            return out

    with Watch():
        eager[2].evaluate_loss(data(dtype=torch.float32))
    assert {"addmm"} <= seen or {"mm"} <= seen or {"linear"} <= seen
    assert not seen & {"log", "exp", "sum", "mean", "logsumexp", "softplus", "binary_cross_entropy_with_logits"}


def test_evaluate_loss_updates_nothing() -> None:
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-2}, compile="graph")
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    torch.manual_seed(3)
    value = svi.evaluate_loss(data())
    torch.manual_seed(3)
    assert value.item() == pytest.approx(ELBO().loss(model, guide, data()), rel=1e-12)
    assert not value.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, [*model.parameters(), *guide.parameters()], strict=True))


def test_schedules_are_inputs_of_the_graph() -> None:
    """A warm-up changes the KL's weight in place: no new graph, and the loss follows."""
    model, guide = pair()
    objective = ELBO()
    svi = CompiledSVI(model, guide, torch.optim.SGD, objective, {"lr": 0.0}, compile="graph")
    losses = []
    for weight in (0.0, 0.5, 1.0):
        objective.kl_weight.fill_(weight)
        torch.manual_seed(0)
        losses.append(svi.step(data()).item())
    assert len(svi.report().graphs) == 1
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-10)
    assert losses[2] > losses[0]


def test_random_state_and_buffers_are_left_alone_by_tracing() -> None:
    model, guide = pair()
    svi = CompiledSVI(model, guide, torch.optim.SGD, ELBO(), {"lr": 0.0}, compile="graph")
    torch.manual_seed(5)
    first = svi.step(data())
    torch.manual_seed(5)
    assert svi.step(data()).item() == first.item()


def rows_of(count: int = 12, batch: int = 4) -> Tensor:
    return torch.randint(N, (count, batch), generator=torch.Generator().manual_seed(2))


def whole(kind: str) -> Any:
    if kind == "batch":
        return data(dtype=torch.float32)
    levels = torch.randint(0, 5, (N, D), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return DataSet("levels", levels, levels=5, binarize="dynamic")


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *((kind, backend) for kind in ("batch", "data set") for backend in (False, "graph")),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("batch", "data set")),
    ],
)
def test_many_steps_a_call_are_single_steps_on_the_same_rows(kind: str, backend: Any) -> None:
    """The minibatches, and their dynamic binarization, are taken inside of the graph."""
    held, rows = whole(kind), rows_of()
    options: dict[str, Any] = {"clip_norm": 5.0, "lr_schedule": lambda k: 0.9**k}
    model, guide = pair(dtype=torch.float32)
    many = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-2}, multi_step=4, compile=backend, **options)
    torch.manual_seed(7)
    losses = torch.cat([many.step(held, rows=part) for part in rows.split(4)])
    assert many.report().fallbacks == []
    assert many.steps == 12
    if backend is not False:
        assert [g.calls for g in many.report().graphs] == [12]

    other, q = pair(dtype=torch.float32)
    single = CompiledSVI(other, q, torch.optim.Adam, ELBO(), {"lr": 1e-2}, compile=False, **options)
    torch.manual_seed(7)
    take = held.take if kind == "batch" else held.batch
    expected = torch.stack([single.step(take(one)) for one in rows])
    assert torch.allclose(losses, expected, rtol=1e-6, atol=0)
    for p, o in zip([*model.parameters(), *guide.parameters()], [*other.parameters(), *q.parameters()], strict=True):
        assert (p - o).norm() <= 1e-5 * o.norm()
    torch.manual_seed(1)
    value = many.evaluate_loss(data(dtype=torch.float32))
    torch.manual_seed(1)
    assert value.item() == pytest.approx(single.evaluate_loss(data(dtype=torch.float32)).item(), rel=1e-4)


def test_many_steps_a_call_of_functions_over_the_store() -> None:
    model, guide = functions()
    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, multi_step=3, compile="graph")
    x, rows = data().x, rows_of(3)
    torch.manual_seed(7)
    ours = svi.step(x, rows=rows).tolist()
    pyro.clear_param_store()
    model, guide = functions()
    theirs = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    torch.manual_seed(7)
    assert x is not None
    assert ours == pytest.approx([theirs.step(x[one]) for one in rows], rel=1e-9)


def test_many_steps_a_call_refuse_other_data_and_rows() -> None:
    svi = CompiledSVI(*pair(), torch.optim.Adam, ELBO(), multi_step=2, compile="graph")
    held = data()
    for rows in (None, rows_of(3), rows_of(2).int(), rows_of(2)[0], [[0, 1], [1, 2]]):
        with pytest.raises(InputError, match=r"give int64 \(2, B\)"):
            svi.step(held, rows=rows)  # type: ignore[arg-type]
    svi.step(held, rows=rows_of(2))
    svi.step(Batch(x=held.x), rows=rows_of(2))
    with pytest.raises(InputError, match="other ones than at the first"):
        svi.step(data(), rows=rows_of(2))
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="multi_step="):
            CompiledSVI(*pair(), torch.optim.Adam, ELBO(), multi_step=wrong)  # type: ignore[arg-type]


def test_rows_are_an_argument_of_the_programs_without_multi_step() -> None:
    seen = []

    def model(x: Tensor, rows: Tensor) -> None:
        seen.append(rows.shape)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, rows: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc[rows], 1.0))

    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 0.1}, compile="graph")
    svi.step(torch.zeros(2), rows=torch.tensor([0, 3]))
    assert set(seen) == {(2,)}


def test_shuffled_rows_are_whole_epochs() -> None:
    torch.manual_seed(0)
    rows = shuffled_rows(10, 3, 7)
    assert rows.shape == (7, 3)
    for epoch in (rows[:3], rows[3:6]):
        assert len(epoch.unique()) == 9
        assert 0 <= int(epoch.min()) <= int(epoch.max()) < 10
    assert not torch.equal(rows[:3], rows[3:6])
    with pytest.raises(InputError, match="at most 4"):
        shuffled_rows(4, 5, 1)
    with pytest.raises(InputError, match="steps=0"):
        shuffled_rows(4, 2, 0)


def test_every_loss_of_pyro_is_traced_replaced_or_refused_at_once() -> None:
    """Each loss that `pyro.infer` exports, by what becomes of it."""
    import inspect

    import pyro.infer as infer
    from pyro.contrib.gp.kernels import RBF

    becomes: dict[str, Any] = {
        "Trace_ELBO": infer.Trace_ELBO,
        "TraceMeanField_ELBO": infer.TraceMeanField_ELBO,
        "JitTrace_ELBO": infer.Trace_ELBO,
        "JitTraceMeanField_ELBO": infer.TraceMeanField_ELBO,
        "TraceEnum_ELBO": ELBO,
        "JitTraceEnum_ELBO": ELBO,
        "RenyiELBO": IWAE,
        "TraceGraph_ELBO": "ScoreFunction",
        "JitTraceGraph_ELBO": "ScoreFunction",
        "ReweightedWakeSleep": "objectives.Wake",
        "TraceTailAdaptive_ELBO": "which cannot be compiled",
        "TraceTMC_ELBO": "IWAE",
        "Trace_MMD": "pyro.infer.SVI",
        "EnergyDistance": "give an objective",
    }
    losses = {
        name
        for name, kind in vars(infer).items()
        if inspect.isclass(kind) and (issubclass(kind, infer.ELBO) or hasattr(kind, "loss")) and kind is not infer.ELBO
    }
    assert losses == set(becomes)
    for name, expected in becomes.items():
        options = {"kernel": RBF(input_dim=1)} if name == "Trace_MMD" else {}
        loss = (
            getattr(infer, name)(num_particles=3, vectorize_particles=True, **options)
            if name != "EnergyDistance"
            else (infer.EnergyDistance())
        )
        if isinstance(expected, str):
            with pytest.raises(InputError, match=f"loss is a {name}.*{expected}"):
                CompiledSVI(*pair(), torch.optim.Adam, loss)
            continue
        svi = CompiledSVI(*pair(), torch.optim.Adam, loss, {"lr": 1e-3}, compile="graph")
        assert type(svi.loss) is expected
        assert getattr(svi.loss, "num_particles", getattr(svi.loss, "particles", None)) == 3
        assert getattr(svi.loss, "vectorize_particles", True)


def test_a_loss_with_gradients_of_its_own_is_refused() -> None:
    """A graph is of `differentiable_loss`: of a loss that overrides another method it would be another loss."""

    class Own(Trace_ELBO):
        def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
            return 0.0

    class Bare(pyro.infer.ELBO):
        def _get_trace(self, *args: Any) -> None: ...

    class Fine(Trace_ELBO):
        pass

    for loss in (Own(), Bare()):
        with pytest.raises(InputError, match="differentiable_loss"):
            CompiledSVI(*pair(), torch.optim.Adam, loss)
    CompiledSVI(*pair(), torch.optim.Adam, Fine())


def test_bf16_without_a_network_to_do_it_in_is_said() -> None:
    model, guide = functions()
    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, precision="bf16", compile="graph")
    with pytest.warns(UserWarning, match="changes nothing here"):
        svi.step(data().x)
    svi.step(data().x)
    assert len(svi.report().notes) == 1
    assert "bf16" in str(svi.report())


def test_bf16_names_the_layers_that_it_leaves_alone() -> None:
    """Beside a network of ours: what the other layers compute stays in float32, and is said to."""

    class Beside(guides.MeanField):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.extra = nn.Sequential(nn.Linear(D, D), nn.Tanh())

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return super().forward(batch._replace(x=self.extra(batch.x)))

    model, guide = pair(Beside, torch.float32)
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), precision="bf16", compile="graph")
    with pytest.warns(UserWarning, match=r'"bf16" leaves guide\.extra\.0 \(Linear\) in the precision'):
        svi.step(data(dtype=torch.float32))
    assert len(svi.report().notes) == 1
    with pytest.warns(UserWarning, match=r"guide\.extra\.0 \(Linear\)"):
        fit(model, guide, data(dtype=torch.float32), epochs=1, batch_size=8, precision="bf16", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CompiledSVI(*pair(dtype=torch.float32), torch.optim.Adam, ELBO(), precision="bf16", compile="graph").step(
            data(dtype=torch.float32)
        )


@pytest.mark.slow
def test_a_library_that_a_killed_compile_left_empty_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.utils import clear_caches

    x, found = torch.ones(3, dtype=torch.float64), []
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for cache in (whole, broken):
        if cache is broken:
            # in another folder: a path that is loaded in this process would not be looked for on the disk again
            shutil.copytree(whole, broken)
            libraries = list(broken.rglob("*.so"))
            assert libraries
            for library in libraries:
                library.write_bytes(b"")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        clear_caches()
        line = Line()
        step = CompiledStep(line, torch.optim.Adam(line.parameters(), lr=0.1))
        step(x)
        found.append(line.weight.detach())
        assert step.report.fallbacks == []
        assert bool(step.report.notes) == (cache is broken)
    assert all("compiled again" in note for note in step.report.notes)
    assert torch.equal(*found)
    clear_caches()


@pytest.mark.slow
def test_a_second_process_finds_the_step_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second process would: what this one remembers is forgotten, what lies on the disk is there."""
    from torch._dynamo.utils import counters
    from torch._inductor.utils import clear_caches

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    hits = []
    for _ in range(2):
        clear_caches()
        counters.clear()
        line = Line()
        step = CompiledStep(line, torch.optim.Adam(line.parameters(), lr=0.1))
        step(torch.ones(3, dtype=torch.float64))
        assert step.report.fallbacks == []
        hits.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert hits == [(1, 0), (0, 1)]
    clear_caches()


def test_only_a_broken_library_of_the_cache_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the loader names, wherever in the chain of errors, if it is a file of the compiler's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    inside, outside = tmp_path / "cache" / "a.so", tmp_path / "b.so"
    for path in (inside, outside):
        path.touch()
    error = RuntimeError("compiling failed")
    error.__cause__ = ImportError(f"{inside}: file too short")
    assert _broken_library(error) == inside
    assert _broken_library(OSError(f"{outside}: file too short")) is None
    assert _broken_library(OSError(f"{inside}: undefined symbol: f")) is None
    inside.unlink()
    assert _broken_library(error) is None


def test_a_graph_knows_what_it_updates() -> None:
    """Parameters, their state and counts, and a buffer that the loss moves; neither options nor data."""

    class Counting(Line):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
            self.register_buffer("held", torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.seen += 1
            return super().forward(x * self.held)

    line = Counting()
    step = CompiledStep(line, torch.optim.Adam(line.parameters(), lr=0.1), backend="graph")
    step(torch.ones(3, dtype=torch.float64))
    # in their order: weight, seen, held, options, count, two moments, x
    assert step.report.graphs[0].written == (0, 1, 4, 5, 6)


@pytest.mark.parametrize("loss", [None, "elbo", lambda *a: 0])
def test_a_loss_of_another_kind(loss: Any) -> None:
    with pytest.raises(InputError, match="give an objective"):
        CompiledSVI(*pair(), torch.optim.Adam, loss)


def test_an_optimizer_of_another_kind() -> None:
    svi = CompiledSVI(*pair(), lambda params: "adam", ELBO())  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="torch optimizer"):
        svi.step(data())


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss = (self.weight * x).sum()
        return loss, loss


@pytest.mark.parametrize("backend", ["none", "graph", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_guarded_step_takes_back_what_a_bad_loss_did(backend: Any) -> None:
    """Good, bad, good: parameters, moments and count are those of two good steps."""
    results = []
    for losses in ((1.0, float("nan"), 2.0), (1.0, 2.0)):
        line = Line()
        optimizer = torch.optim.Adam(line.parameters(), lr=0.1)
        step = CompiledStep(line, optimizer, clip=1.0, backend=backend, guard=True)
        seen = [float(step(torch.full((3,), x, dtype=torch.float64))) for x in losses]
        assert [value == value for value in seen] == [x == x for x in losses]
        results.append([line.weight.detach(), *optimizer.state[line.weight].values()])
        assert step.report.fallbacks == []
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Parts(nn.Module):
    """Batches of one row use the first and the last part, the others all three."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = nn.ParameterList([torch.randn(k, dtype=torch.float64, generator=generator) for k in (3, 2, 4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        used = (0, 2) if len(x) == 1 else (0, 1, 2)
        loss = torch.stack([(self.parts[k] - x[..., :1]).pow(4).sum() for k in used]).sum()
        return loss, loss


def batches_of_parts(steps: int = 12) -> list[Tensor]:
    x = torch.randn(steps, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [rows[:1] if k % 3 else rows for k, rows in enumerate(x)]


def assert_equal_states(a: nn.Module, b: nn.Module, one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Parameters and every number of the optimizers' states, normwise to 1e-12."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert (p - q).norm() <= 1e-12 * q.norm()
        for name, value in other.state[q].items():
            if isinstance(value, Tensor):
                assert (one.state[p][name] - value).norm() <= 1e-12 * value.norm(), name


STEPPED = {
    "adam": (torch.optim.Adam, {"lr": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    "adamax": (torch.optim.Adamax, {"lr": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", STEPPED)
def test_a_parameter_without_gradient_keeps_its_state_and_its_count(name: str) -> None:
    """Batches in which a part gets no gradient alternate with others, after which the counts of steps differ: the steps
    are those of torch's optimizer."""
    optim, options = STEPPED[name]
    ours, theirs = Parts(), Parts()
    optimizer, reference = optim(ours.parameters(), **options), optim(theirs.parameters(), **options)
    step = CompiledStep(ours, optimizer, backend="graph")
    for x in batches_of_parts():
        loss = step(x)
        reference.zero_grad()
        value = theirs(x)[0]
        value.backward()
        reference.step()
        assert loss.item() == pytest.approx(value.item(), rel=1e-12)
    assert [g.calls for g in step.report.graphs] == [4, 8]
    assert step.report.fallbacks == []
    assert_equal_states(ours, theirs, optimizer, reference)
    if name != "sgd":
        assert [float(optimizer.state[p]["step"]) for p in ours.parameters()] == [12.0, 4.0, 12.0]


@pytest.mark.parametrize("backend", ["graph", "none"])
def test_a_frozen_parameter_is_passed_over(backend: Any) -> None:
    ours, theirs = Parts(), Parts()
    optimizer, reference = (torch.optim.Adam(part.parameters(), lr=0.1) for part in (ours, theirs))
    step = CompiledStep(ours, optimizer, backend=backend)
    for k, x in enumerate(batches_of_parts()):
        for part in (ours, theirs):
            part.parts[0].requires_grad_(k not in (4, 5))
        step(x)
        reference.zero_grad()
        theirs(x)[0].backward()
        reference.step()
    assert_equal_states(ours, theirs, optimizer, reference)
    assert [float(optimizer.state[p]["step"]) for p in ours.parameters()] == [10.0, 4.0, 12.0]


@pytest.mark.parametrize(
    ("optim", "options"),
    [
        (torch.optim.Adam, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
        (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9}),
    ],
)
def test_options_that_a_schedule_changes_are_inputs_of_the_graph(optim: Any, options: dict[str, Any]) -> None:
    """OneCycleLR writes learning rate and momentum (Adam's first beta) into the groups at every step: one graph."""
    ours, theirs = Parts(), Parts()
    optimizer, reference = optim(ours.parameters(), **options), optim(theirs.parameters(), **options)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=options["lr"], total_steps=12, cycle_momentum=True)
        for o in (optimizer, reference)
    ]
    step = CompiledStep(ours, optimizer, backend="graph")
    seen = set()
    for x in batches_of_parts()[::3] * 3:
        seen.add(str(optimizer.param_groups[0].get("betas", optimizer.param_groups[0].get("momentum"))))
        step(x)
        reference.zero_grad()
        theirs(x)[0].backward()
        reference.step()
        for schedule in schedules[: len(schedules) if schedules[0].last_epoch < 11 else 0]:
            schedule.step()
    assert len(seen) > 5
    assert [g.calls for g in step.report.graphs] == [12]
    assert_equal_states(ours, theirs, optimizer, reference)


def test_options_changed_in_a_group_are_seen_at_the_next_step() -> None:
    """Numbers are inputs; what shapes the graph (a decay or a momentum from 0, nesterov) makes another one; another
    group of parameters is bound; what has no compiled update runs eagerly, and is reported."""
    ours, theirs = Parts(), Parts()
    both = (ours, theirs)
    optimizer, reference = (torch.optim.SGD(part.parts[:2].parameters(), lr=1e-3) for part in both)
    step = CompiledStep(ours, optimizer, backend="graph")
    changes = [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.1},
        {"momentum": 0.5},
        {"momentum": 0.9},
        {"nesterov": True},
    ]
    graphs = []

    def once(change: dict[str, Any]) -> None:
        for o in (optimizer, reference):
            o.param_groups[0].update(change)
        step(x)
        reference.zero_grad()
        theirs(x)[0].backward()
        reference.step()
        graphs.append(len(step.report.graphs))
        assert_equal_states(ours, theirs, optimizer, reference)

    x = batches_of_parts()[0]
    for change in changes:
        once(change)
    assert graphs == [1, 2, 2, 3, 3, 4]
    for o, part in zip((optimizer, reference), both, strict=True):
        o.add_param_group({"params": [part.parts[2]], "lr": 1e-4})
    once({})
    assert step.report.eager_calls == 0
    with pytest.warns(CompileWarning, match="dampening"):
        once({"nesterov": False, "dampening": 0.5})
    assert step.report.eager_calls == 1


@pytest.mark.slow
def test_memory_and_graphs_stay_as_they_are_over_ten_thousand_steps() -> None:
    """The process holds what it held after the first thousand, to 8 MB; nothing is compiled after the first step."""
    import resource

    model, guide = pair(dtype=torch.float32)
    svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3})
    batch = data(dtype=torch.float32)
    for _ in range(1000):
        svi.step(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        svi.step(batch)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    assert [graph.calls for graph in svi.report().graphs] == [11_000]
