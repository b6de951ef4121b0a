"""Trace a function of tensors, and compile its graph."""

from __future__ import annotations

import logging
import re
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from .lifted import Unlifted, held_tensors, lifted, strict
from .validation import validation

__all__ = ["Backend", "Graph", "compile_flat", "explain"]

Backend = Literal["inductor", "graph", "none"]
"""How a traced graph is run: compiled; operation by operation, to test what was traced; or not traced at all."""


@dataclass
class Graph:
    """One compiled graph: what it was made for, its size and what it cost; `captured` says whether it is replayed as
    one CUDA graph, `written` which of its inputs it updates in place, `held` the tensors that the programs hold besides
    parameters and buffers."""

    inputs: str
    nodes: int
    trace_seconds: float
    compile_seconds: float
    calls: int = 0
    captured: bool = False
    written: tuple[int, ...] = field(default=(), repr=False)
    held: tuple[Tensor, ...] = field(default=(), repr=False)


def compile_flat(
    function: Callable[..., tuple[Tensor, ...]],
    flat: Sequence[Tensor],
    inputs: str,
    backend: Backend = "inductor",
    notes: list[str] | None = None,
) -> tuple[Callable[..., Any], Graph]:
    """Trace a function of tensors on stand-ins without data, and compile its graph.

    Stand-ins make a branch on a tensor's value an error, where real tensors would freeze the branch taken. Updates
    in place of the inputs are kept. `notes` are added to.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    started = time.perf_counter()
    with validation(False), _samples_unseen(), torch.enable_grad():
        try:
            graph, written = _traced(function, flat, [])
            held: list[Tensor] = []
        except Unlifted:
            held = held_tensors(function, flat)
            graph, written = _traced(function, flat, held)
    flat = [*flat, *[t.detach() for t in held]]
    _refuse_shared(flat, written, len(held))
    _drop_profiler_marks(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    traced = time.perf_counter()
    nodes = sum(1 for node in graph.graph.nodes if node.op == "call_function")
    if backend == "graph":
        made = Graph(inputs, nodes, traced - started, 0.0, written=written, held=tuple(held))
        return _with_held(graph, flat, len(held)), made
    from torch import _inductor  # as a name of its own: `import torch._inductor` would make `torch` a local one
    from torch._inductor import config

    # at its first compilation torch tells that there is no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # the compiler's caches on disk are only used where shapes have an environment, even one without symbols
    shapes = torch._guards.TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))
    with warnings.catch_warnings(), config.patch(_noise(flat)), torch._guards.tracing(shapes):
        warnings.simplefilter("ignore")  # the compiler's own advice is not the user's
        # the compiler itself, without Dynamo: shapes are fixed by our own key, so a call needs no guards
        while True:
            try:
                compiled = _inductor.compile(graph, list(flat))
                break
            except Exception as error:
                broken = _broken_library(error)
                if broken is None:
                    raise
                broken.unlink()  # so that there is one fewer to come upon in the next attempt
                if notes is not None:
                    notes.append(f"{broken} in the compiler's cache could not be loaded, and was compiled again")
    made = Graph(inputs, nodes, traced - started, time.perf_counter() - traced, written=written, held=tuple(held))
    return _with_held(compiled, flat, len(held)), made


def _samples_unseen() -> Any:
    """A distribution that was made and expanded under validation goes on to look at samples when the flags are off."""
    return mock.patch.object(Distribution, "_validate_sample", return_value=None)


def _traced(
    function: Callable[..., tuple[Tensor, ...]], flat: Sequence[Tensor], held: Sequence[Tensor]
) -> tuple[torch.fx.GraphModule, tuple[int, ...]]:
    """The graph of a function of `flat` and then `held`, and which of these it updates in place."""
    from torch.fx.experimental.proxy_tensor import make_fx

    written: list[int] = []

    def watched(*tensors: Tensor) -> tuple[Tensor, ...]:
        before = [t._version for t in tensors]
        stand_ins = {id(own): t for own, t in zip(held, tensors[len(flat) :], strict=True)}
        with lifted(stand_ins, strict):
            out = function(*tensors[: len(flat)])
        written.extend(k for k, (t, version) in enumerate(zip(tensors, before, strict=True)) if t._version != version)
        return out

    graph = make_fx(watched, tracing_mode="fake")(*flat, *[t.detach() for t in held])
    return graph, tuple(written)


def _refuse_shared(flat: Sequence[Tensor], written: Sequence[int], held: int) -> None:
    """Raise where a graph would update memory that it reads under another name, in whatever order."""
    if any(k >= len(flat) - held for k in written):
        raise RuntimeError("a tensor that is no buffer is updated in place; register it as a buffer")
    storages = [t.untyped_storage()._cdata for t in flat]
    if any(storages.count(storages[k]) > 1 for k in written):
        raise RuntimeError("a tensor that is updated shares its memory with another, as of tied weights; tie modules")


def _with_held(compiled: Callable[..., Any], flat: Sequence[Tensor], held: int) -> Callable[..., Any]:
    if not held:
        return compiled
    own = flat[len(flat) - held :]
    return lambda *given: compiled(*given, *own)


def _broken_library(error: BaseException | None) -> Path | None:
    """The library in the compiler's cache that could not be loaded: a process that was killed may leave half of one,
    and whoever comes next takes it for whole."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    while error is not None:
        found = _NOT_LOADED.search(str(error))
        if found is not None:
            path = Path(found[1])
            return path if path.is_file() and Path(cache_dir()).resolve() in path.resolve().parents else None
        error = error.__cause__ or error.__context__
    return None


_NOT_LOADED = re.compile(
    r"(/[^\s:]+\.so): (?:file too short|invalid ELF header|cannot read file data|file data too short)"
)


def _noise(flat: Sequence[Tensor]) -> dict[str, bool]:
    """The compiler's options for random numbers.

    On a CPU torch's own generators are vectorized and the compiler's are not, ten times slower a number; and the
    compiled run then draws what the eager one does. On a GPU noise is made inside of the kernels."""
    return {"fallback_random": True} if all(t.device.type == "cpu" for t in flat) else {}


def _drop_profiler_marks(graph: torch.fx.GraphModule) -> None:
    for node in reversed(graph.graph.nodes):
        if node.op == "call_function" and "profiler" in str(node.target):
            graph.graph.erase_node(node)


def explain(error: BaseException) -> str:
    """An error of tracing or compiling in one line, with the line of a person's program where it happened."""
    name = type(error).__name__
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_users(frame.filename):
            where = f" at {frame.filename}:{frame.lineno}: {frame.line}"
    text = str(error).strip().partition("\n")[0]
    if name in ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"):
        text = "a tensor's value is needed in Python (a branch on it, .item(), float()), which no graph can hold"
    elif "allow_non_fake_inputs" in text:
        text = "a tensor that is made outside of torch is used, which no graph can hold; give it as an argument"
    elif "Cxx" in name or "C++ compiler" in str(error) or "InvalidCxxCompiler" in str(error):
        text = "there is no C++ compiler that torch can use; install g++"
    return f"{text} ({name}){where}"


_OWN = Path(__file__).parent
_PARTS = ("models", "guides", "networks", "likelihoods", "priors")
_PLUMBING = tuple(str(Path(str(package.__file__)).parent) for package in (torch, pyro, traceback))


def _is_users(path: str) -> bool:
    """Whether to show a line of a program: a person's own, or one of this package's parts; not what runs them."""
    if path.startswith("<"):  # but cells of IPython and lines of a prompt are a person's
        return path.startswith(("<ipython", "<stdin"))
    if str(_OWN) in path:
        return Path(path).relative_to(_OWN).parts[0].removesuffix(".py") in _PARTS
    return not path.startswith(_PLUMBING) and "site-packages" not in path
