"""A training step as one compiled graph: loss, gradients, clipping and update, with no Python left in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from .batch import Batch
from .errors import InputError
from .isolation import swapped, untouched
from .lifted import Place, places_of
from .replay import Replay
from .tracing import Backend, Graph, compile_flat, explain
from .updates import Rule, bind_state, rule_for
from .validation import validation

__all__ = ["CompileReport", "CompileWarning", "CompiledFunction", "CompiledStep"]

MAX_GRAPHS = 8
"""Shapes for which graphs are made; further ones run eagerly, and the report says so."""


class CompileWarning(UserWarning):
    """Something runs eagerly that was to be compiled."""


@dataclass
class CompileReport:
    """What was compiled and what was not.

    Args:
        graphs: one for each set of input shapes.
        fallbacks: why something ran eagerly, each reason once.
        eager_calls: calls that ran eagerly.
        notes: what else is worth knowing: an option without effect, a number that makes a graph for each of its values.
    """

    graphs: list[Graph] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    eager_calls: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def compile_seconds(self) -> float:
        return sum(g.trace_seconds + g.compile_seconds for g in self.graphs)

    def __str__(self) -> str:
        lines = [
            f"{g.inputs}: {g.nodes} nodes, traced in {g.trace_seconds:.1f} s, compiled in {g.compile_seconds:.1f} s, "
            f"{g.calls} calls{', replayed as a CUDA graph' if g.captured else ''}"
            for g in self.graphs
        ]
        lines += [f"eager: {reason}" for reason in self.fallbacks]
        lines += [f"note: {note}" for note in self.notes]
        if self.eager_calls:
            lines.append(f"{self.eager_calls} calls ran eagerly")
        return "\n".join(lines) or "nothing has run yet"


class _Compiler:
    """Traces functions of flat tensor lists and compiles them; keeps one graph for each kind of input."""

    def __init__(self, what: str, backend: Backend, root: nn.Module) -> None:
        self.what = what
        self.backend = backend
        self.root = root
        self.report = CompileReport()
        self.calls: dict[Any, tuple[Callable[..., Any], Graph] | None] = {}
        self.places: list[Place] = []
        self.version = 0

    def current(self) -> int:
        """A part of each key: a number that is another one once a tensor that a program held was replaced."""
        if self.places and any(look() is not item for look, item in self.places):
            self.version += 1
            self.places = []
        return self.version

    def get(
        self, key: Any, leaves: Sequence[Any], make: Callable[[], tuple[Callable[..., Any], list[Tensor]]]
    ) -> tuple[Callable[..., Any], Graph] | None:
        """The compiled function for `key`, made by tracing on first sight; None where it must run eagerly."""
        if key in self.calls:
            return self.calls[key]
        if len([c for c in self.calls.values() if c is not None]) >= MAX_GRAPHS:
            self.fallback(
                f"more than {MAX_GRAPHS} shapes of input: those after the first {MAX_GRAPHS} are not compiled (a "
                "Python number that changes is another input each time; give it as a tensor, and change in place what "
                "a program holds)"
            )
            return None  # not kept: there may be one for every step
        self.notice_numbers(key)
        function, flat = make()
        made = None
        try:
            made = compile_flat(function, flat, describe(leaves), self.backend, self.report.notes)
            self.report.graphs.append(made[1])
            self.places += places_of(self.root, made[1].held)
        except Exception as error:  # whatever tracing or compiling may raise, the step can still run
            self.fallback(f"{explain(error)}")
        self.calls[key] = made
        return made

    def notice_numbers(self, key: Any) -> None:
        """Note once that graphs are made for the values of one number, before as many are made as there may be."""
        leaves, *rest = key
        for others, *other_rest in self.calls:
            if rest != other_rest or len(leaves) != len(others):
                continue
            changed = [(a, b) for a, b in zip(others, leaves, strict=True) if a != b]
            if all(a[0] is b[0] and a[0] in (int, float) for a, b in changed) and not self.report.notes:
                values = " and ".join(f"{a[1]!r}, then {b[1]!r}" for a, b in changed)
                self.report.notes.append(
                    f"{self.what}: a Python number among the arguments changes ({values}), and each of its values "
                    "makes a graph; give it as a tensor"
                )
                return

    def fallback(self, reason: str, how: str = "runs eagerly") -> None:
        """Note and warn, once, of what does not run as it was to."""
        if reason not in self.report.fallbacks:
            self.report.fallbacks.append(reason)
            warnings.warn(f"{self.what} {how}: {reason}", CompileWarning, stacklevel=4)


def flatten(args: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """The leaves of arguments, in pytree's order, and a hashable description of what they hang on.

    Of tuples, batches and dicts, which is nearly always, in a fraction of pytree's time, which is a tenth of a small
    step's.
    """
    leaves: list[Any] = []
    structure: list[Any] = []
    try:
        _gather(args, leaves, structure)
    except LookupError:
        return pytree.tree_flatten(args)
    return leaves, tuple(structure)


def _gather(tree: Any, leaves: list[Any], structure: list[Any]) -> None:
    for item in tree:
        kind = type(item)
        if kind in _LEAVES:
            leaves.append(item)
        elif kind is tuple or kind is Batch:
            structure.append((kind, len(item)))
            _gather(item, leaves, structure)
        elif kind is dict:
            structure.append(tuple(item))
            _gather(item.values(), leaves, structure)
        else:
            raise LookupError(kind)


_LAUNCHED = "is compiled and launched kernel by kernel"

_LEAVES = {Tensor, nn.Parameter, int, float, bool, str, type(None)}


def signature(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """What a graph is specific to in its inputs."""
    return tuple([(t.shape, t.stride(), t.dtype, t.device) if isinstance(t, Tensor) else (type(t), t) for t in leaves])


def describe(leaves: Sequence[Any]) -> str:
    shapes = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in leaves if isinstance(t, Tensor)]
    return ", ".join(shapes) or "no tensors"


class CompiledStep:
    """loss, gradients, clipping and update of one minibatch, compiled together.

    Args:
        loss: a module returning (loss, aux): a 0-dimensional tensor to minimize, and a tensor to hand back.
        optimizer: of the loss's parameters. Its state is updated in place, its groups' lr is read at every call.
        clip: largest norm of all gradients together, or None.
        backend: "inductor", "graph" or "none", see `Backend`.
        what: named in warnings.
        guard: leave parameters and state as they are where the loss is not finite, so that one who looks later finds
            the step that went wrong, and what it began with.

    A graph is made for every new signature of the inputs: shapes, strides, dtypes, devices, which are None, and the
    modules' training flags. Parameters, buffers and optimizer state are inputs updated in place.
    """

    def __init__(
        self,
        loss: nn.Module,
        optimizer: Optimizer,
        clip: float | None = None,
        backend: Backend = "inductor",
        what: str = "the training step",
        guard: bool = False,
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.clip = clip
        self.guard = guard
        self.compiler = _Compiler(what, backend, loss)
        self.rules = self._find_rules()
        self.modules = list(loss.modules())
        self.version = 0
        self._bound: _Bound | None = None
        self._tokens: dict[Any, int] = {}
        self._replays: dict[Any, Replay | None] = {}

    @property
    def report(self) -> CompileReport:
        return self.compiler.report

    def __call__(self, *args: Any, part: slice | None = None) -> Tensor:
        """One step; returns aux.

        Args:
            part: a contiguous part of the first group's parameters, to update those alone.
        """
        bound = self._bind() if self.compiler.backend != "none" else None
        if bound is not None:
            leaves, structure = flatten(args)
            chosen = None if part is None else (part.start, part.stop)
            flags = tuple([m.training for m in self.modules]), tuple([p.requires_grad for p in bound.parameters])
            key = (signature(leaves), structure, flags, bound.token, chosen, self.version, self.compiler.current())
            found = self.compiler.get(key, leaves, lambda: self._make(bound, args, part))
            if found is not None:
                compiled, graph = found
                graph.calls += 1
                bound.fill_numbers(self.optimizer)
                given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                replay = self._replay(key, compiled, graph, bound, given)
                (aux,) = compiled(*bound.flat, *given) if replay is None else replay(given)
                # torch's learning-rate schedulers ask whether a step was taken before theirs
                self.optimizer._opt_called = True  # type: ignore[attr-defined]
                return aux
        self.report.eager_calls += 1
        return self.eager(*args, part=part)

    def eager(self, *args: Any, part: slice | None = None) -> Tensor:
        """The same step, operation by operation."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        params = params if part is None else params[part]
        self.optimizer.zero_grad()
        with validation(False):
            loss, aux = self.loss(*args)
        if self.guard and not torch.isfinite(loss):
            return aux.detach()  # type: ignore[no-any-return]
        loss.backward(inputs=[p for p in params if p.requires_grad])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(params, self.clip)
        self.optimizer.step()
        result: Tensor = aux.detach()
        return result

    def _find_rules(self) -> list[Rule]:
        """The update rule of each parameter group; where one has none, all steps run eagerly from now on."""
        rules: list[Rule] = []
        for group in self.optimizer.param_groups if self.compiler.backend != "none" else ():
            rule = rule_for(self.optimizer, group)
            if isinstance(rule, str):
                self.compiler.fallback(rule)
                self.compiler.backend = "none"
                return []
            rules.append(rule)
        return rules

    def _bind(self) -> _Bound | None:
        if self._bound is None or not self._bound.current(self.optimizer):
            if self._bound is not None and not self._bound.whole():
                self.modules = list(self.loss.modules())
                self.version += 1  # other modules compute something else: graphs made before are not theirs
            if self._bound is not None:
                self.rules = self._find_rules()  # options may be others, or have come with a loaded state
                if self.compiler.backend == "none":
                    return None
            self._bound = _Bound(self.loss, self.optimizer, self.rules)
            # a number for the long signature, which would be hashed at every step
            self._bound.token = self._tokens.setdefault(self._bound.signature, len(self._tokens))
            self._replays.clear()  # a CUDA graph reads and writes the memory it was captured with
        return self._bound

    def _replay(
        self, key: Any, compiled: Callable[..., tuple[Tensor, ...]], graph: Graph, bound: _Bound, given: list[Tensor]
    ) -> Replay | None:
        """The step as one CUDA graph; None on other devices, or where it cannot be captured, which is reported."""
        if not bound.any_on_gpu or self.compiler.backend != "inductor":
            return None
        if key not in self._replays:
            self._replays[key] = None
            if (elsewhere := bound.elsewhere(given)) is not None:
                self.compiler.fallback(f"not captured as a CUDA graph: {elsewhere}", _LAUNCHED)
                return None
            try:
                # of what is given nothing is written: it is the batch
                held = [k for k in graph.written if k < len(bound.flat)]
                self._replays[key] = Replay(compiled, bound.flat, given, held)
                graph.captured = True
            except Exception as error:
                self.compiler.fallback(f"not captured as a CUDA graph: {explain(error)}", _LAUNCHED)
        return self._replays[key]

    def _make(
        self, bound: _Bound, whole: tuple[Any, ...], part: slice | None
    ) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
        leaves, tree = pytree.tree_flatten(whole)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        named = dict(self.loss.named_parameters())
        self._warm_up(whole)

        def step(*flat: Tensor) -> tuple[Tensor, ...]:
            parameters, buffers, groups, given = bound.unpack(flat)
            # as they are now: a frozen one is not trained, and a graph is made anew when that changes
            parameters = {name: p.requires_grad_(named[name].requires_grad) for name, p in parameters.items()}
            args = pytree.tree_unflatten(_refill(leaves, given), tree)
            own = {**named, **bound.buffers}
            with swapped(self.loss, {id(own[name]): t for name, t in {**parameters, **buffers}.items()}):
                buffered = [(p._buffers, name, t) for p in self.modules for name, t in p._buffers.items()]
                loss, aux = self.loss(*args)
                for store, name, given_buffer in buffered:
                    # `self.n = self.n + 1` would be lost with the stand-in that was put in the buffer's place
                    now = store.get(name)
                    if given_buffer is not None and now is not None and now is not given_buffer:
                        given_buffer.copy_(now.detach())
            if part is not None:
                groups = [groups[0].part(part)]
            wanted = [parameters[name] for group in groups for name in group.names]
            trained = [p for p in wanted if p.requires_grad]
            found = iter(torch.autograd.grad(loss, trained, allow_unused=True))
            grads: list[Tensor | None] = [next(found) if p.requires_grad else None for p in wanted]
            with torch.no_grad():
                if self.clip is not None:
                    grads = clip_norm(grads, self.clip)
                good = torch.isfinite(loss) if self.guard else None
                rest = iter(grads)
                for rule, group in zip(self.rules, groups, strict=False):
                    _update(rule, group, parameters, [next(rest) for _ in group.names], good)
            return (aux.detach(),)

        return step, [*bound.flat, *tensors]

    def _warm_up(self, args: Any) -> None:
        """One call without gradients: pairs are checked then, with validation on, and nothing lazy is left to trace."""
        with torch.no_grad(), untouched(self.loss):
            self.loss(*args)


class CompiledFunction:
    """A module's (value, aux) -> aux without gradients, compiled: losses and weights for evaluation.

    Args:
        function: a module returning (anything, aux).
        backend: "inductor", "graph" or "none", see `Backend`.
        what: named in warnings.
    """

    def __init__(self, function: nn.Module, backend: Backend = "inductor", what: str = "the evaluation") -> None:
        self.function = function
        self.compiler = _Compiler(what, backend, function)
        self.modules = list(function.modules())
        self.children = _children(function)
        self.version = 0

    @property
    def report(self) -> CompileReport:
        return self.compiler.report

    def __call__(self, *args: Any) -> Tensor:
        """The module's aux."""
        if self.compiler.backend != "none":
            if not _whole(self.children):
                self.modules, self.children = list(self.function.modules()), _children(self.function)
                self.version += 1  # other modules compute something else: graphs made before are not theirs
            leaves, structure = flatten(args)
            named = {**dict(self.function.named_parameters()), **dict(self.function.named_buffers())}
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            flat = [t.detach() for t in named.values()]
            own = [(p.requires_grad, *signature([p])) for p in named.values()]
            flags = tuple([m.training for m in self.modules])
            key = (signature(leaves), structure, flags, tuple(own), self.version, self.compiler.current())

            def make() -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
                leaves, tree = pytree.tree_flatten(args)

                def call(*inputs: Tensor) -> tuple[Tensor, ...]:
                    # Pyro warns of registered parameters that need no gradient: these need it, and get none
                    state = {
                        id(own): t.requires_grad_(own.requires_grad)
                        for own, t in zip(named.values(), inputs, strict=False)
                    }
                    given = pytree.tree_unflatten(_refill(leaves, inputs[len(named) :]), tree)
                    with torch.no_grad(), swapped(self.function, state):
                        _, aux = self.function(*given)
                    return (aux,)

                with torch.no_grad(), untouched(self.function):
                    self.function(*args)
                return call, [*flat, *tensors]

            found = self.compiler.get(key, leaves, make)
            if found is not None:
                compiled, graph = found
                graph.calls += 1
                (aux,) = compiled(*flat, *tensors)
                return aux  # type: ignore[no-any-return]
        self.report.eager_calls += 1
        with torch.no_grad(), validation(False):
            result: Tensor = self.function(*args)[1]
        return result


def clip_norm(grads: Sequence[Tensor | None], largest: float) -> list[Tensor | None]:
    """Gradients scaled so that the norm of all of them together is at most `largest`, as `clip_grad_norm_` does."""
    squares = [g.square().sum() for g in grads if g is not None]
    norm = torch.stack(squares).sum().sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [None if g is None else g * factor for g in grads]


def _update(
    rule: Rule, group: _Group, parameters: dict[str, Tensor], grads: Sequence[Tensor | None], good: Tensor | None
) -> None:
    """The optimizer's step for one group. A parameter without gradient is passed over, as torch does: its state and its
    step count stay as they are, so that each has a count of its own."""
    there = [g is not None for g in grads]
    if not any(there):
        return
    if rule.counts:
        with _guarded([group.steps], good):
            for run in _runs(there):
                group.steps[run].add_(1.0)
    factors = rule.factors(dict(zip(rule.numbers, group.numbers.unbind(), strict=True)), group.steps.double())
    held = {dtype: _held(factors, dtype) for dtype in {parameters[name].dtype for name in group.names}}
    for k, (name, slots, grad) in enumerate(zip(group.names, group.slots, grads, strict=True)):
        if grad is not None:
            p = parameters[name].detach()
            own = {key: value[k] if value.dim() else value for key, value in held[p.dtype].items()}
            with _guarded([p, *slots.values()], good):
                rule.update(p, grad, slots, own)


def _runs(there: Sequence[bool]) -> list[slice]:
    """The longest slices in which all are there."""
    edges = [k for k, (a, b) in enumerate(pairwise([False, *there, False])) if a != b]
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _held(factors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Numbers that the compiler computes once. Left to itself it would put their powers, in float64, into the loop over
    a parameter's elements, and that loop takes four times as long; a cumulative sum it calls as a whole."""
    flat = torch.cat([f.reshape(-1) for f in factors.values()]).to(dtype).unsqueeze(-1).cumsum(-1).squeeze(-1)
    pieces = flat.split([f.numel() for f in factors.values()])
    return {name: piece.view(f.shape) for (name, f), piece in zip(factors.items(), pieces, strict=True)}


@contextmanager
def _guarded(tensors: Sequence[Tensor], good: Tensor | None) -> Iterator[None]:
    """Take back what is done to the tensors inside, on the device, unless `good`."""
    before = [t.clone() for t in tensors] if good is not None else []
    yield
    for t, old in zip(tensors, before, strict=False):
        t.copy_(torch.where(good, t, old))  # type: ignore[arg-type]


def _refill(leaves: list[Any], tensors: Sequence[Tensor]) -> list[Any]:
    rest = iter(tensors)
    return [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


_Children = list[tuple[dict[str, Any], str, Any]]


def _children(module: nn.Module) -> _Children:
    """Every module inside of this one, and where it lies."""
    return [(part._modules, name, item) for part in module.modules() for name, item in part._modules.items()]


def _whole(children: _Children) -> bool:
    return all(store.get(name) is item for store, name, item in children)


@dataclass
class _Group:
    names: list[str]
    numbers: Tensor
    steps: Tensor
    slots: list[dict[str, Tensor]]

    def part(self, part: slice) -> _Group:
        return _Group(self.names[part], self.numbers, self.steps[part], self.slots[part])


class _Bound:
    """Parameters, buffers and optimizer state as one flat list of inputs, and back."""

    def __init__(self, loss: nn.Module, optimizer: Optimizer, rules: Sequence[Rule]) -> None:
        named = dict(loss.named_parameters())
        self.parameters = list(named.values())
        self.buffers = dict(loss.named_buffers())
        self.pointers = [p.data_ptr() for p in self.parameters]
        names = {id(p): name for name, p in named.items()}
        self.state = optimizer.state
        self.states: list[tuple[dict[str, Any], list[tuple[str, Tensor]]]] = []
        self.groups: list[_Group] = []
        self.rules = rules
        self.values: list[list[Any]] = []
        states = bind_state(optimizer, rules)
        for rule, (steps, slots), group in zip(rules, states, optimizer.param_groups, strict=True):
            params = group["params"]
            if any(id(p) not in names for p in params):
                raise InputError(
                    "the optimizer holds a parameter that model, guide and objective no longer have: it was replaced "
                    "after the first step; change parameters in place (p.data.copy_, load_state_dict)"
                )
            # float64, as the numbers in the optimizer are: 0.01 in float32 is off by 2e-8
            numbers = torch.full((len(rule.numbers),), float("nan"), dtype=torch.float64, device=steps.device)
            self.groups.append(_Group([names[id(p)] for p in params], numbers, steps, slots))
            self.values.append([None] * len(rule.numbers))
            for p, slot in zip(params, slots, strict=True):
                state = optimizer.state[p]
                self.states.append((state, [(name, state[name]) for name in (*slot, "step") if name in state]))
        # aliases without gradient: the compiled function writes into the parameters' memory
        self.flat: list[Tensor] = [p.detach() for p in self.parameters]
        self.flat += list(self.buffers.values())
        for bound in self.groups:
            self.flat += [bound.numbers, bound.steps, *[t for slot in bound.slots for t in slot.values()]]
        self.names = list(named)
        self.readers = [rule.reader(group) for rule, group in zip(rules, optimizer.param_groups, strict=True)]
        self.options: list[tuple[Any, ...]] = [() for _ in rules]
        self.changed = set(range(len(rules)))
        self.token = -1
        self.any_on_gpu = any(t.device.type == "cuda" for t in self.flat)
        self.signature = (signature(self.flat), tuple([(type(rule), rule.structure) for rule in rules]))
        # where all that is bound lies in its modules, and the modules themselves
        self.places: list[tuple[dict[str, Any], str, Any]] = [
            (store, name, item)
            for part in loss.modules()
            for store in (part._parameters, part._buffers)
            for name, item in store.items()
        ]
        self.children = _children(loss)

    def current(self, optimizer: Optimizer) -> bool:
        """Whether the tensors bound are still the modules' and the optimizer's."""
        if optimizer.state is not self.state or [p.data_ptr() for p in self.parameters] != self.pointers:
            return False
        # asked at every step: no look-up by parameter, whose hash is a call into Python
        for state, slots in self.states:
            for name, tensor in slots:
                if state.get(name) is not tensor:
                    return False
        if not self._shaped(optimizer):
            return False
        for store, name, item in self.places:
            if store.get(name) is not item:
                return False
        return self.whole()

    def whole(self) -> bool:
        """Whether the modules are those that were bound."""
        return _whole(self.children)

    def elsewhere(self, given: Sequence[Tensor]) -> str | None:
        """Which tensor does not lie on a GPU, and so cannot be of a CUDA graph, if there is one."""
        named = [*zip(self.names, self.flat, strict=False), *self.buffers.items()]
        named += [("an argument", t) for t in given] + [("optimizer state", t) for t in self.flat]
        return next((f"{name} lies on the {t.device}" for name, t in named if t.device.type != "cuda"), None)

    def _shaped(self, optimizer: Optimizer) -> bool:
        """Whether groups and options still ask for what the rules do: numbers in them may change."""
        groups = optimizer.param_groups
        if len(groups) != len(self.groups):
            return False
        for k, group in enumerate(groups):
            if len(group["params"]) != len(self.groups[k].names):
                return False
            options = self.readers[k](group)
            # of a learning rate that is a tensor nobody can see here whether it was changed in place
            if options != self.options[k] or isinstance(options[0], Tensor):
                rule = self.rules[k]
                if rule.structure_of(group) != rule.structure:
                    return False
                self.options[k] = options
                self.changed.add(k)
        return True

    def fill_numbers(self, optimizer: Optimizer) -> None:
        """Bring the options that are numbers and have changed, as `current` has seen, into the graph's inputs."""
        while self.changed:
            k = self.changed.pop()
            old, inputs = self.values[k], self.groups[k].numbers
            for place, value in enumerate(self.rules[k].numbers_of(optimizer.param_groups[k])):
                if value != old[place]:
                    inputs[place].fill_(value)
                    old[place] = value

    def unpack(
        self, flat: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[_Group], Sequence[Tensor]]:
        rest = iter(flat)
        parameters = {name: next(rest) for name in self.names}
        buffers = {name: next(rest) for name in self.buffers}
        groups = []
        for group in self.groups:
            numbers, steps = next(rest), next(rest)
            groups.append(_Group(group.names, numbers, steps, [{name: next(rest) for name in s} for s in group.slots]))
        return parameters, buffers, groups, list(rest)
