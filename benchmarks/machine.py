"""What a figure was measured on, and how: one pinned core, medians of interleaved rounds."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["describe", "pin", "rounds"]


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


def rounds(
    steps: Mapping[str, Callable[[], object]], seconds: float = 0.3, count: int = 15, warmup: int = 30
) -> dict[str, list[float]]:
    """Milliseconds a call, of each contender in each of `count` rounds.

    The contenders take turns within a round, so that what disturbs the machine disturbs all of them; a figure is the
    median over rounds, a ratio the median of the rounds' ratios.
    """
    calls: dict[str, int] = {}
    for name, step in steps.items():
        for _ in range(warmup):
            step()
        started = time.perf_counter()
        for _ in range(warmup):
            step()
        calls[name] = max(3, int(seconds * warmup / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                step()
            times[name].append(1e3 * (time.perf_counter() - started) / calls[name])
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)
