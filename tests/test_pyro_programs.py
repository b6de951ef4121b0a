"""CompiledSVI on pairs as people write them in Pyro: its steps are those of `pyro.infer.SVI`, or it says why not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from ppl_vae import CompiledSVI, CompileWarning, InputError
from ppl_vae.tracing import _is_users

D, Z = 6, 2


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def x_of(n: int = 8) -> Tensor:
    return (torch.rand(n, D, generator=torch.Generator().manual_seed(1)) < 0.4).double()


class Tutorial(nn.Module):
    """Programs that are methods, with a distribution that is held."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(D, 2 * Z), nn.Tanh()).double()
        self.decoder = nn.Sequential(nn.Linear(Z, D), nn.Tanh()).double()
        self.prior = normal(0.0)
        self.factor = torch.ones((), dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Bernoulli(logits=self.factor * self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def normal(loc: float) -> Any:
    # expanded, it remembers to look at samples, whatever the flags say
    return (
        dist.Normal(torch.tensor(loc, dtype=torch.float64), torch.ones((), dtype=torch.float64)).expand([Z]).to_event(1)
    )


def both_ways(make: Callable[[], tuple[Any, Any, tuple[Any, ...]]], steps: int = 4) -> CompiledSVI:
    """Steps of the traced graph are held to SVI's; returns the compiled one."""
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, args = make()
        svi: Any = (
            CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, compile="graph")
            if compiled
            else SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        )
        torch.manual_seed(7)
        found.append([float(svi.step(*args)) for _ in range(steps)])
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert svi.report().fallbacks == []
    assert svi.report().eager_calls == 0
    assert isinstance(svi, CompiledSVI)
    return svi


def test_methods_with_a_distribution_that_is_held() -> None:
    def make() -> tuple[Any, Any, tuple[Any, ...]]:
        vae = Tutorial()
        return vae.model, vae.guide, (x_of(),)

    both_ways(make)


def test_subsampling_of_data_in_a_closure() -> None:
    def make() -> tuple[Any, Any, tuple[Any, ...]]:
        data = torch.linspace(-1.0, 3.0, 20, dtype=torch.float64)

        def model() -> None:
            mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
            with pyro.plate("data", len(data), subsample_size=5) as rows:
                pyro.sample("x", dist.Normal(mu, 1.0), obs=data[rows])

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
            scale = pyro.param("scale", torch.ones((), dtype=torch.float64), constraint=dist.constraints.positive)
            pyro.sample("mu", dist.Normal(loc, scale))

        return model, guide, ()

    both_ways(make)


def test_an_autoguide_of_a_module_of_pyro() -> None:
    class Regression(PyroModule[nn.Module]):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.sigma = PyroParam(torch.ones((), dtype=torch.float64), constraint=dist.constraints.positive)
            zero = torch.zeros((), dtype=torch.float64)
            self.w = PyroSample(dist.Normal(zero, 1.0).expand([D]).to_event(1))

        def forward(self, x: Tensor) -> None:
            mean = x @ self.w
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.sigma), obs=x.sum(-1))

    def make() -> tuple[Any, Any, tuple[Any, ...]]:
        model = Regression()
        guide = AutoNormal(model)
        guide(x_of())  # its parameters start from draws
        return model, guide, (x_of(),)

    svi = both_ways(make)
    assert svi.optimizer is not None
    assert len(svi.optimizer.param_groups[0]["params"]) == 3


def test_what_a_program_holds_may_change() -> None:
    """In place, in the same graph; put in its place, in another one. The value is always that of the eager run."""
    vae = Tutorial()
    svi = CompiledSVI(vae.model, vae.guide, torch.optim.SGD, Trace_ELBO(), {"lr": 0.0}, compile="graph")
    eager = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())

    def look(graphs: int) -> float:
        values = []
        for one in (svi.step, svi.evaluate_loss, eager.evaluate_loss):
            torch.manual_seed(3)
            values.append(float(one(x_of())))
        assert values[:2] == pytest.approx([values[2]] * 2, rel=1e-9)
        assert len(svi.report().graphs) == graphs
        return values[2]

    seen = [look(2)]
    vae.factor.fill_(3.0)
    seen.append(look(2))
    vae.factor = torch.full((), 0.5, dtype=torch.float64)
    seen.append(look(4))
    vae.prior = normal(1.0)
    seen.append(look(6))
    vae.decoder[1] = nn.Sigmoid()
    seen.append(look(8))
    assert len(set(seen)) == len(seen)
    assert svi.report().fallbacks == []


@pytest.mark.slow
def test_what_a_compiled_program_holds_may_change() -> None:
    vae = Tutorial()
    svi = CompiledSVI(vae.model, vae.guide, torch.optim.SGD, Trace_ELBO(), {"lr": 0.0})
    eager = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    for factor in (1.0, 2.0, 3.0):
        vae.factor.fill_(factor)
        values = []
        for one in (svi.step, svi.evaluate_loss, eager.evaluate_loss):
            torch.manual_seed(3)
            values.append(float(one(x_of())))
        assert values[:2] == pytest.approx([values[2]] * 2, rel=1e-9)
    assert len(svi.report().graphs) == 2
    assert svi.report().fallbacks == []


def test_a_held_tensor_that_a_program_updates_is_to_be_a_buffer() -> None:
    vae = Tutorial()
    calls = torch.zeros(())

    def counting(x: Tensor) -> None:
        calls.add_(1)
        vae.model(x)

    svi = CompiledSVI(counting, vae.guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-3}, compile="graph")
    with pytest.warns(CompileWarning, match="register it as a buffer"):
        svi.step(x_of())
    before = calls.item()
    svi.step(x_of())
    assert calls.item() == before + 1


def test_two_parameters_of_one_memory_are_not_compiled() -> None:
    """Each would be updated from what the other one has left; in what order, no graph says."""
    ends = []
    for backend in ("graph", False):
        pyro.clear_param_store()
        vae = Tutorial()
        vae.decoder = nn.Sequential(nn.Linear(Z, D), nn.Linear(D, D)).double()
        vae.encoder = nn.Sequential(nn.Linear(D, D), nn.Linear(D, 2 * Z)).double()
        vae.encoder[0].weight.data = vae.decoder[1].weight.data
        options: dict[str, Any] = {"compile": backend}
        svi = CompiledSVI(vae.model, vae.guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-2}, **options)
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ends.append([float(svi.step(x_of())) for _ in range(3)])
        assert any("shares its memory" in str(w.message) for w in said) == (backend == "graph")
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


@pytest.mark.parametrize("backend", ["graph", False])
def test_a_parameter_that_comes_later_is_refused(backend: Any) -> None:
    vae = Tutorial()

    def model(x: Tensor, late: bool = False) -> None:
        if late:
            pyro.param("late", torch.zeros(()))
        vae.model(x)

    def guide(x: Tensor, late: bool = False) -> None:
        vae.guide(x)

    svi = CompiledSVI(model, guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-3}, compile=backend)
    svi.step(x_of())
    with pytest.raises(InputError, match="'late' into Pyro's store after the first step"):
        svi.step(x_of(), late=True)
    assert "late" not in pyro.get_param_store()
    svi.step(x_of())


@pytest.mark.parametrize("backend", ["graph", False])
def test_a_parameter_that_thaws_is_refused_until_an_optimizer_has_it(backend: Any) -> None:
    vae = Tutorial()
    last = vae.decoder[0]
    assert isinstance(last, nn.Linear)
    bias = last.bias.requires_grad_(False)
    svi = CompiledSVI(
        vae.model,
        vae.guide,
        torch.optim.SGD,
        Trace_ELBO(),
        {"lr": 0.1},
        lr_schedule=lambda k: 0.5**k,
        compile=backend,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*requires_grad")  # Pyro's, of frozen parameters
        svi.step(x_of())
    start = bias.detach().clone()
    bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"0\.bias was frozen .* svi\.optimizer\.add_param_group"):
        svi.step(x_of())
    assert svi.optimizer is not None
    svi.optimizer.add_param_group({"params": [bias], "lr": 0.2})
    svi.step(x_of())
    assert not torch.equal(bias, start)
    # the schedule is of every group, one that came later too
    assert [group["lr"] for group in svi.optimizer.param_groups] == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("backend", ["graph", False])
def test_a_run_goes_on_from_its_state(backend: Any) -> None:
    """Parameters, the optimizer's state and the schedule's place: four steps, or two and two in another CompiledSVI."""

    def make(vae: Tutorial) -> CompiledSVI:
        pyro.clear_param_store()
        return CompiledSVI(
            vae.model,
            vae.guide,
            torch.optim.Adam,
            Trace_ELBO(),
            {"lr": 1e-2},
            lr_schedule=lambda k: 0.5**k,
            compile=backend,
        )

    def steps(svi: CompiledSVI, which: range) -> list[float]:
        losses = []
        for k in which:
            torch.manual_seed(k)
            losses.append(float(svi.step(x_of())))
        return losses

    whole = Tutorial()
    expected = steps(make(whole), range(4))

    first = Tutorial()
    svi = make(first)
    got = steps(svi, range(2))
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(svi.state_dict())

    second = Tutorial()
    second.load_state_dict(weights)
    svi = make(second)
    svi.load_state_dict(state)
    assert svi.state_dict()["steps"] == 2
    got += steps(svi, range(2, 4))
    assert got == expected
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)

    # and back to where it was, in the same one
    second.load_state_dict(weights)
    svi.load_state_dict(state)
    assert steps(svi, range(2, 4)) == expected[2:]
    with pytest.raises(InputError, match="state has"):
        svi.load_state_dict({"steps": 3})


def test_a_store_that_was_cleared_is_noticed_by_evaluation_and_many_steps_too() -> None:
    vae = Tutorial()
    svi = CompiledSVI(vae.model, vae.guide, torch.optim.Adam, Trace_ELBO(), multi_step=2, compile="graph")
    rows, x = torch.tensor([[0, 1], [2, 3]]), x_of()
    svi.step(x, rows=rows)
    pyro.clear_param_store()
    with pytest.raises(InputError, match="no longer holds"):
        svi.step(x, rows=rows)
    with pytest.raises(InputError, match="no longer holds"):
        svi.evaluate_loss(x)


@pytest.mark.parametrize("ask", ["item", "float", "tolist", "if"])
def test_a_value_in_python_is_reported_with_its_line(ask: str) -> None:
    vae = Tutorial()
    values: dict[str, Callable[[Tensor], Any]] = {
        "item": lambda t: t.item(),
        "float": float,
        "tolist": lambda t: t.tolist(),
        "if": lambda t: 1.0 if t > 0.9 else t,
    }

    def looking(x: Tensor) -> None:
        vae.model(x * values[ask](x.mean()) / x.mean())

    svi = CompiledSVI(looking, vae.guide, torch.optim.Adam, Trace_ELBO(), {"lr": 1e-3})
    with pytest.warns(CompileWarning, match=r"value is needed in Python .*test_pyro_programs\.py:\d+: "):
        svi.step(x_of())
    assert len(svi.report().fallbacks) == 1


def test_whose_line_it_is() -> None:
    assert _is_users("/home/me/torch/vae.py")
    assert _is_users("<ipython-input-3-0123456789ab>")
    assert _is_users("/tmp/ipykernel_17/123.py")
    assert _is_users(vars(__import__("ppl_vae.models.vae"))["models"].__path__[0] + "/vae.py")
    assert not _is_users(torch.nn.functional.__file__)
    assert not _is_users(pyro.__file__)
    assert not _is_users(copy.__file__)
    assert not _is_users("<eval_with_key>.3")
    assert not _is_users(CompiledSVI.__init__.__code__.co_filename)
