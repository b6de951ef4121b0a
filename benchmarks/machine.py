"""What a figure was measured on, and how: one pinned core, medians of interleaved rounds."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Contender", "describe", "median", "pin", "rounds"]


@runtime_checkable
class Contender(Protocol):
    """What takes its own time, because its steps are taken elsewhere."""

    def run(self, n: int) -> float:
        """Take n steps; returns the seconds they took."""


def pin() -> int:
    """Bind this process to one core, and torch to one thread; returns the core's number."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    return core


def describe() -> dict[str, Any]:
    """The machine and the versions, for a results file."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pyro-ppl", "ppl_vae")},
    }


class Here:
    """A function called in this process."""

    def __init__(self, step: Callable[[], object]) -> None:
        self.step = step

    def run(self, n: int) -> float:
        step = self.step
        started = time.perf_counter()
        for _ in range(n):
            step()
        return time.perf_counter() - started


def rounds(
    steps: Mapping[str, Callable[[], object] | Contender], seconds: float = 0.3, count: int = 15, warmup: int = 30
) -> dict[str, list[float]]:
    """Milliseconds a step, of each contender in each of `count` rounds.

    The contenders take turns within a round, so that what disturbs the machine disturbs all of them; a figure is the
    median over rounds, a ratio the median of the rounds' ratios.
    """
    contenders = {name: step if isinstance(step, Contender) else Here(step) for name, step in steps.items()}
    calls: dict[str, int] = {}
    for name, contender in contenders.items():
        contender.run(warmup)
        calls[name] = max(3, int(seconds * warmup / contender.run(warmup)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, contender in contenders.items():
            times[name].append(1e3 * contender.run(calls[name]) / calls[name])
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)
