"""Stochastic variational inference with the whole step compiled."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest import mock

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from .batch import Batch
from .compiled import CompiledFunction, CompiledStep, CompileReport
from .errors import InputError
from .inputs import check_batch
from .isolation import untouched
from .minibatches import Minibatches
from .networks import set_precision, warning_in_bf16
from .objectives import ELBO, IWAE, Objective, Renyi
from .together import joined, owned
from .tracing import Backend
from .weights import Program

__all__ = ["CompiledSVI"]


class CompiledSVI:
    """`pyro.infer.SVI` with the step compiled: trace, loss, gradients, clipping and update are one graph.

    A Pyro program is Python run under handlers; run once under a tracer, what is left is the flat list of its tensor
    operations, with no Pyro in it. That list, with the gradients and the optimizer's update, is compiled once for
    each shape of batch. Parameters are updated in place, so `state_dict`, checkpoints, evaluation and Pyro's store
    see them.

    Args:
        model, guide: programs obeying the plate rule: modules, or functions with `pyro.module` and `pyro.param`, whose
            parameters are found by one run at the first step.
        optim: a torch optimizer class (with `optim_args`), a callable that takes parameters and returns a torch
            optimizer, or one of `pyro.optim`'s. Adam, AdamW, Adamax, SGD and RMSprop are compiled; others run eagerly.
        loss: an objective of this package, or Pyro's `Trace_ELBO`, `TraceMeanField_ELBO`; `RenyiELBO`,
            `TraceEnum_ELBO` and the losses under TorchScript are replaced by their equals here. Others of Pyro's are
            refused.
        optim_args: options of the optimizer class.
        clip_norm: largest norm of all gradients together; not with a loss that takes natural steps.
        lr_schedule: a function from the number of steps done to a factor on every learning rate.
        precision: "32", or "bf16" for matrix products in bfloat16, everything else in float32 (for programs made of
            this package's networks; a warning, and the report, name the layers that are in none of them).
        multi_step: M, to run M minibatches a call: `step` then takes the whole data, which lie on the device, and the
            rows of each minibatch, which are taken inside of the graph. Meant for GPUs, where launching the work of
            taking a batch costs as much as a small step.
        compile: False runs eagerly, "graph" runs the traced graph without compiling it, both for comparison.

    Raises:
        InputError: a loss that cannot be compiled, with the one to take instead; `clip_norm` with natural steps; at the
            first step an optimizer of another kind, a batch that is none for the pair (`check_batch`), or a pair that
            breaks a rule.

    Example:
        >>> svi = CompiledSVI(model, guide, torch.optim.Adam, ELBO(), {"lr": 1e-3})  # doctest: +SKIP
        >>> losses = [svi.step(batch) for batch in batches]                          # doctest: +SKIP
        >>> print(svi.report())                                                      # doctest: +SKIP
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: Callable[..., Optimizer] | PyroOptim,
        loss: PyroELBO,
        optim_args: Mapping[str, Any] | None = None,
        *,
        clip_norm: float | None = None,
        lr_schedule: Callable[[int], float] | None = None,
        precision: Literal["32", "bf16"] = "32",
        multi_step: int | None = None,
        compile: bool | Literal["graph"] = True,
    ) -> None:
        whole = isinstance(multi_step, int) and not isinstance(multi_step, bool)
        if multi_step is not None and not (whole and multi_step >= 1):
            raise InputError(f"multi_step={multi_step!r} must be the number of minibatches a call, 1 or more, or None")
        if clip_norm is not None and not all(getattr(part, "clips", True) for part in _modules(loss)):
            raise InputError(
                f"clip_norm={clip_norm:g} would shorten the natural steps of {type(loss).__name__}, which are no "
                "gradients; use clip_norm=None"
            )
        self.model, self.guide = model, guide
        self.multi_step = multi_step
        self.loss = _traceable(loss)
        self.optim, self.optim_args = optim, dict(optim_args or {})
        self.clip_norm = clip_norm
        self.lr_schedule = lr_schedule
        self.precision = precision
        self.compile = compile
        self.steps = 0
        self.optimizer: Optimizer | None = None
        self._pair: _Pair | None = None
        self._step: CompiledStep | None = None
        self._evaluate: CompiledFunction | None = None
        self._data: Minibatches | None = None
        self._base_lrs: list[float] = []
        self._frozen: list[tuple[str, nn.Parameter]] = []
        self._loaded: dict[str, Any] | None = None
        self.notes: list[str] = []

    def step(self, *args: Any, rows: Tensor | None = None, **kwargs: Any) -> Tensor:
        """One step on a batch; returns the loss, Σ over the batch in nats, as a 0-dimensional tensor.

        On a GPU nothing waits for it: read it (`float(loss)`) only when it is wanted.

        Args:
            args, kwargs: what the programs take; under `multi_step` the whole data instead, the same at every call: a
                `DataSet`, which becomes a `Batch`, a `Batch`, or tensors with the data along the first axis.
            rows: (M, B) int64, under `multi_step`: the rows of M minibatches (`minibatches.shuffled_rows`). M steps
                are then done, and (M,) losses returned.
        """
        if self.multi_step is not None:
            return self._steps(args, rows, kwargs)
        if rows is not None:
            kwargs["rows"] = rows  # an argument of the programs
        step = self._prepare(args, kwargs)
        self._check()
        self._schedule()
        return step(args, kwargs)

    def _steps(self, args: tuple[Any, ...], rows: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.dtype != torch.int64 or len(rows) != self.multi_step:
            given = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise InputError(
                f"rows is {given}; with multi_step={self.multi_step} give int64 ({self.multi_step}, B), the rows of "
                "each minibatch"
            )
        if self._data is None:
            with untouched(rows):
                first = Minibatches(nn.Identity(), args, kwargs).take(rows[0])
            pair = self._prepare_pair(*first)
            self._data = Minibatches(pair, args, kwargs)
            self._step = CompiledStep(self._data, self._made(), self.clip_norm, self._backend, "CompiledSVI.step")
        elif not self._data.holds(args, kwargs):
            raise InputError(
                "with multi_step the data are held inside of the graph, and these are other ones than at the first "
                "call; make another CompiledSVI for them"
            )
        assert self._step is not None
        self._check()
        losses = []
        for one in rows:
            self._schedule()
            losses.append(self._step(one))
        return torch.stack(losses)

    def _check(self) -> None:
        """Raise `InputError` where what is trained is no longer what the pair has."""
        assert self._pair is not None
        self._pair.check_store()
        for name, p in self._frozen if any(p.requires_grad for _, p in self._frozen) else ():
            if p.requires_grad and not any(p is own for group in self._made().param_groups for own in group["params"]):
                raise InputError(
                    f"{name} was frozen when the optimizer was made, at the first step, and requires a gradient now: "
                    'add it by svi.optimizer.add_param_group({"params": [...]}), or make another CompiledSVI'
                )

    def _schedule(self) -> None:
        """Count a step, and set its learning rates."""
        if self.lr_schedule is not None:
            factor = self.lr_schedule(self.steps)
            groups = self._made().param_groups
            self._base_lrs += [float(group["lr"]) for group in groups[len(self._base_lrs) :]]  # added since
            for group, lr in zip(groups, self._base_lrs, strict=True):
                group["lr"] = lr * factor
        self.steps += 1

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on a batch, compiled likewise, with nothing updated."""
        self._prepare_pair(args, kwargs).check_store()
        assert self._evaluate is not None
        return self._evaluate(args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, as its own `state_dict` has it, and the number of steps done: what a run that goes on
        needs besides the parameters (`state_dict` of model, guide and loss, or Pyro's store)."""
        if self.optimizer is None:
            return self._loaded or {"optimizer": None, "steps": self.steps}
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, in a new `CompiledSVI` too: it is then loaded at the first step.

        Raises:
            InputError: another kind of state.
        """
        if set(state) != {"optimizer", "steps"}:
            raise InputError(f"state has {sorted(state)}; give what state_dict of a CompiledSVI returned")
        self.steps = int(state["steps"])
        if self.optimizer is None:
            self._loaded = copy.deepcopy(dict(state))
        elif state["optimizer"] is not None:
            # torch's optimizers would go on in the very tensors
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def report(self) -> CompileReport:
        """What was compiled, graph nodes, seconds, and what ran eagerly and why."""
        reports = [part.report for part in (self._step, self._evaluate) if part is not None]
        return CompileReport(
            [graph for r in reports for graph in r.graphs],
            list(dict.fromkeys(reason for r in reports for reason in r.fallbacks)),
            sum(r.eager_calls for r in reports),
            list(dict.fromkeys([*self.notes, *[note for r in reports for note in r.notes]])),
        )

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CompiledStep:
        if self._step is None:
            pair = self._prepare_pair(args, kwargs)
            self._step = CompiledStep(pair, self._made(), self.clip_norm, self._backend, "CompiledSVI.step")
        return self._step

    def _prepare_pair(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Pair:
        """The pair as a module, and its optimizer, made at the first sight of a batch."""
        if self._pair is None:
            for batch in (arg for arg in args if isinstance(arg, Batch)):
                check_batch(batch, self.model, self.guide)  # whatever the loss, Pyro's too
            pair = _Pair(self.model, self.guide, self.loss, args, kwargs)
            set_precision(pair, self.precision)
            if self.precision == "bf16" and (words := warning_in_bf16(pair.programs_modules())):
                self.notes.append(words)
                warnings.warn(words, stacklevel=4)
            own = self.loss.optimizers(self.model, self.guide) if isinstance(self.loss, Objective) else []
            taken = {id(p) for p in owned(own)}
            parameters = [p for p in pair.parameters() if p.requires_grad and id(p) not in taken]
            self._frozen = [(name, p) for name, p in pair.names() if not p.requires_grad]
            if parameters and isinstance(self.loss, nn.Module):
                self.loss.to(parameters[0].device)  # a buffer on another device could not be in one graph with them
            if not parameters:
                raise InputError("neither the model nor the guide has a parameter to train")
            self.optimizer = joined(_make_optimizer(self.optim, self.optim_args, parameters), own)
            self._base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
            if self._loaded is not None and self._loaded["optimizer"] is not None:
                self.optimizer.load_state_dict(self._loaded["optimizer"])
            self._evaluate = CompiledFunction(pair, self._backend, "CompiledSVI.evaluate_loss")
            self._pair = pair
        return self._pair

    def _made(self) -> Optimizer:
        assert self.optimizer is not None
        return self.optimizer

    @property
    def _backend(self) -> Backend:
        return "inductor" if self.compile is True else "none" if self.compile is False else "graph"


def _modules(loss: PyroELBO) -> list[nn.Module]:
    return list(loss.modules()) if isinstance(loss, nn.Module) else []


class _Pair(nn.Module):
    """A pair and its loss as one module, whatever form model and guide have."""

    def __init__(
        self, model: Program, guide: Program, loss: PyroELBO, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.programs = (model, guide)
        self.objective = loss  # registered here, if it is a module, and under no other name
        for name, part in (("model", model), ("guide", guide)):
            if isinstance(part, nn.Module):
                self.add_module(name, part)
        modules, names = _in_store(model, guide, args, kwargs)
        self.registered = nn.ModuleList(modules)
        known = {id(p) for p in self.parameters()}  # now: an autoguide makes its own at its first call
        store = pyro.get_param_store()
        self.stored: dict[str, str] = {}
        for k, name in enumerate(names):
            tensor = store._params[name]
            if id(tensor) not in known:
                # another object with the same memory: an update is seen by the store
                self.register_parameter(f"stored_{k}", nn.Parameter(tensor.detach(), tensor.requires_grad))
                self.stored[name] = f"stored_{k}"
        self.by_name = {n: p for n in names if (p := store._params[n]) is not None}
        self.owner = {id(p): n for n, p in self.named_parameters()}

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        params = pyro.get_param_store()._params
        known = len(params)
        with self._store_swapped(), _quiet_pyro():
            loss: Tensor = self.objective.differentiable_loss(*self.programs, *args, **kwargs)  # type: ignore[attr-defined]
        if len(params) > known:
            # what was frozen, and of this pair, is put there where it thaws
            self.by_name |= {name: params[name] for name in list(params)[known:] if id(params[name]) in self.owner}
            new = [name for name in list(params)[known:] if name not in self.by_name]
            for name in new:  # what a tracer put there is no tensor for anybody else
                del pyro.get_param_store()[name]
            if new:
                raise InputError(
                    f"the pair has put {', '.join(map(repr, new))} into Pyro's store after the first step, when the "
                    "optimizer was made, and would not train it; use all parameters in the first step, or make another "
                    "CompiledSVI"
                )
        return loss, loss

    def names(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters, by names that a person knows: those of modules, or of Pyro's store."""
        in_store = {key: name for name, key in self.stored.items()}
        for name, p in self.named_parameters():
            yield in_store.get(name, name), p

    def programs_modules(self) -> dict[str, nn.Module]:
        """What of model and guide is a module, or was registered by `pyro.module`."""
        parts = dict(zip(("model", "guide"), self.programs, strict=True))
        found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        return {**found, **{f"{type(part).__name__}[{k}]": part for k, part in enumerate(self.registered)}}

    def check_store(self) -> None:
        """Raise `InputError` where Pyro's store has other parameters than at the first step."""
        params = pyro.get_param_store()._params
        for name, tensor in self.by_name.items():
            if params.get(name) is not tensor:
                raise InputError(
                    f"Pyro's parameter store no longer holds the {name!r} that is being trained: it was cleared or "
                    "loaded after the first step; make another CompiledSVI, or change parameters in place"
                )

    @contextmanager
    def _store_swapped(self) -> Iterator[None]:
        """Pyro's store with this module's parameters, which the tracer has put in place of the real ones."""
        if not self.by_name:
            yield
            return
        store = pyro.get_param_store()
        current = dict(self.named_parameters())
        before = {}
        try:
            for name, tensor in self.by_name.items():
                key = self.stored.get(name) or self.owner.get(id(tensor))
                if key is not None and key in current:
                    before[name] = store._params[name]
                    store._params[name] = current[key]
            yield
        finally:
            store._params.update(before)


def _in_store(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[nn.Module], list[str]]:
    """The modules that a pair registers by `pyro.module`, and the names of all its parameters in Pyro's store."""
    modules: list[nn.Module] = []
    original = pyro.module

    def record(name: str, nn_module: nn.Module, *rest: Any, **options: Any) -> nn.Module:
        modules.append(nn_module)
        result: nn.Module = original(name, nn_module, *rest, **options)
        return result

    with untouched(model, guide, args, kwargs), mock.patch("pyro.module", record):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    names = [
        name for trace in (model_trace, guide_trace) for name, site in trace.nodes.items() if site["type"] == "param"
    ]
    unique = list({id(m): m for m in modules}.values())
    return unique, list(dict.fromkeys(names))


@contextmanager
def _quiet_pyro() -> Iterator[None]:
    """Pyro's losses without their looks at a tensor's value: NaN checks and `torch_item`, which no graph can hold."""
    from pyro.infer import trace_elbo, trace_mean_field_elbo

    with ExitStack() as stack:
        for module in (trace_elbo, trace_mean_field_elbo):
            stack.enter_context(mock.patch.object(module, "warn_if_nan", lambda value, *rest: value))
            stack.enter_context(mock.patch.object(module, "torch_item", lambda value: value))
        yield


_INSTEAD = {
    TraceGraph_ELBO: "objectives.ScoreFunction, whose baselines take the place of its own; Trace_ELBO where all "
    "latents are reparameterized",
    ReweightedWakeSleep: "objectives.Wake",
    TraceTailAdaptive_ELBO: "an objective of this package",
    TraceTMC_ELBO: "IWAE(particles=...) for a bound from several particles",
    Trace_MMD: "an objective of this package",
}


def _traceable(loss: Any) -> PyroELBO:
    """The loss, or its equal here where Pyro's own cannot be traced; `InputError` where there is none."""
    if isinstance(loss, Objective):
        return loss
    name = type(loss).__name__
    if not isinstance(loss, PyroELBO):
        raise InputError(f"loss is a {name}; give an objective, or a loss of pyro.infer")
    if isinstance(loss, RenyiELBO):
        return IWAE(loss.num_particles) if loss.alpha == 0 else Renyi(loss.alpha, loss.num_particles)
    if isinstance(loss, TraceEnum_ELBO):
        return ELBO(particles=loss.num_particles, kl="monte-carlo")
    for refused, instead in _INSTEAD.items():
        if isinstance(loss, refused):
            raise InputError(f"loss is a {name}, which cannot be compiled; give {instead}, or use pyro.infer.SVI")
    if isinstance(loss, JitTrace_ELBO | JitTraceMeanField_ELBO):  # TorchScript computes the same
        kind: Any = TraceMeanField_ELBO if isinstance(loss, JitTraceMeanField_ELBO) else Trace_ELBO
        options = ("num_particles", "max_plate_nesting", "vectorize_particles", "strict_enumeration_warning")
        plain: PyroELBO = kind(**{name: getattr(loss, name) for name in options})
        return plain
    differentiable, gradients = (_defined_at(type(loss), m) for m in ("differentiable_loss", "loss_and_grads"))
    if differentiable is None or (gradients is not None and gradients < differentiable):
        raise InputError(
            f"loss is a {name}, whose gradients are not those of a `differentiable_loss`; give an objective, "
            "Trace_ELBO or TraceMeanField_ELBO, or use pyro.infer.SVI"
        )
    return loss


def _defined_at(kind: type, method: str) -> int | None:
    """How far up among the classes that `kind` is made of a method is defined."""
    return next((k for k, base in enumerate(kind.__mro__) if method in vars(base)), None)


def _make_optimizer(
    optim: Callable[..., Optimizer] | PyroOptim, options: Mapping[str, Any], parameters: list[nn.Parameter]
) -> Optimizer:
    if isinstance(optim, PyroOptim):
        if callable(optim.pt_optim_args):
            raise InputError("optim: pyro.optim with options per parameter is not compiled; give a dict of options")
        if isinstance(optim, PyroLRScheduler) or optim.pt_clip_args:
            raise InputError(
                "optim: schedulers and clipping of pyro.optim are not compiled; give a torch optimizer class, with "
                "lr_schedule= and clip_norm= of CompiledSVI"
            )
        constructor: Any = optim.pt_optim_constructor
        optimizer = constructor(parameters, **{**optim.pt_optim_args, **options})
    else:
        optimizer = optim(parameters, **options)
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"optim returned a {type(optimizer).__name__}; give a torch optimizer class with optim_args, or a callable "
            "that takes parameters and returns a torch optimizer"
        )
    return optimizer
