"""What every metric of disentanglement shares: codes and factors that are checked, a score with its error bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError, check_count
from ..registry import Registry

__all__ = ["Array", "Codes", "Score", "metrics", "over_resamples"]

Array: TypeAlias = npt.NDArray[Any]

metrics: Registry[Callable[..., Score]] = Registry("metric")

_FEWEST = 100
_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value for one encoder.

    Args:
        metric: its name.
        value: between 0 and 1, the higher the more disentangled.
        se: its standard deviation over resamples of what the definition draws or of the points, which is the standard
            error of `value`; NaN where the definition has nothing to resample.
        points: how many data it is from.
        parts: further numbers by name, as informativeness, or a matrix (D, F).
        note: what was left out of it, as a factor with one level; empty where nothing was.
    """

    metric: str
    value: float
    se: float
    points: int
    parts: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.3f} ± {self.se:.3f}"


class Codes:
    """Codes and the factors that made the data, checked.

    Args:
        codes: (N, D) numbers.
        factors: (N, F) whole numbers, levels of each factor.
        least: the fewest data that a metric can do with.

    Attributes:
        z: (N, D) float64.
        v: (N, F) levels counted from 0 without gaps, of the factors that vary.
        names: of those factors.
        note: which factors were left out.

    Raises:
        InputError: other shapes, different lengths, NaN or infinity, fractions as levels, too few data, no factor that
            varies.
    """

    def __init__(
        self, codes: Tensor | Array, factors: Tensor | Array, names: Sequence[str] = (), least: int = _FEWEST
    ) -> None:
        z, v = (t.detach().cpu().numpy() if isinstance(t, Tensor) else np.asarray(t) for t in (codes, factors))
        for argument, array in (("codes", z), ("factors", v)):
            if array.ndim != 2 or not array.shape[1]:
                wide = "D" if argument == "codes" else "F"
                raise InputError(f"{argument} has shape {array.shape}; give (N, {wide}), a row a datum")
        if len(z) != len(v):
            raise InputError(f"codes has {len(z)} rows and factors has {len(v)}; give both of the same data")
        if len(z) < least:
            raise InputError(f"codes holds {len(z)} data, too few for this metric; give {least} or more")
        z = z.astype(np.float64)
        if not np.isfinite(z).all():
            row, column = np.argwhere(~np.isfinite(z))[0]
            raise InputError(f"codes[{row}, {column}] is {z[row, column]}; codes must be finite")
        if v.dtype.kind == "f" and not (v == np.round(v)).all():
            row, column = np.argwhere(v != np.round(v))[0]
            raise InputError(f"factors[{row}, {column}] is {v[row, column]}; give whole numbers, the factors' levels")
        named = [str(name) for name in names] or [f"factor {k}" for k in range(v.shape[1])]
        if len(named) != v.shape[1]:
            raise InputError(f"names has {len(named)} names for {v.shape[1]} factors")
        varies = [k for k in range(v.shape[1]) if (v[:, k] != v[0, k]).any()]
        if not varies:
            raise InputError("factors: none of them varies over these data; there is nothing to disentangle")
        constant = [named[k] for k in range(v.shape[1]) if k not in varies]
        self.z = z
        self.v = np.stack([np.unique(v[:, k], return_inverse=True)[1].reshape(-1) for k in varies], 1)
        self.names = tuple(named[k] for k in varies)
        self.note = f"without {', '.join(constant)}, of one level" if constant else ""

    def __len__(self) -> int:
        return len(self.z)

    def split(self, train: int, test: int, generator: np.random.Generator, metric: str) -> tuple[Array, Array]:
        """Rows to train on and rows to test on, disjoint; where there are too few for both, in the same proportion."""
        check_count("train", train)
        check_count("test", test)
        order = generator.permutation(len(self))
        share = min(1.0, len(self) / (train + test))
        train, test = int(train * share), int(test * share)
        if min(train, test) < 10:
            raise InputError(
                f"codes holds {len(self)} data, too few to train and test {metric}; give {_FEWEST} or more"
            )
        return order[:train], order[train : train + test]

    def points(self, count: int, generator: np.random.Generator) -> tuple[Array, Iterator[tuple[Array, Alike]]]:
        """A factor for each of so many points, uniformly; and the points of each factor, some at a time, with draws of
        data that share its level."""
        labels = generator.integers(0, self.v.shape[1], count)

        def some() -> Iterator[tuple[Array, Alike]]:
            for k in range(self.v.shape[1]):
                alike = Alike(self.v[:, k])
                (of_factor,) = np.nonzero(labels == k)
                for start in range(0, len(of_factor), _AT_ONCE):
                    yield of_factor[start : start + _AT_ONCE], alike

        return labels, some()


class Alike:
    """Random rows whose factor has the level that given rows have."""

    def __init__(self, levels: Array) -> None:
        self.levels = levels
        self.rows = np.argsort(levels, kind="stable")
        self.count = np.bincount(levels)
        self.start = np.concatenate([[0], np.cumsum(self.count)[:-1]])

    def draw(self, rows: Array, generator: np.random.Generator) -> Array:
        """One row for each of `rows`, uniformly among those of the same level."""
        level = self.levels[rows]
        found: Array = self.rows[
            self.start[level] + (generator.random(level.shape) * self.count[level]).astype(np.int64)
        ]
        return found


def over_resamples(values: Sequence[float]) -> tuple[float, float]:
    """Their mean, and their standard deviation: NaN of a single one."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")


def torch_seed(seed: int | None) -> np.random.Generator:
    """A generator of this call's own; None: seeded by torch's default generator."""
    return np.random.default_rng(int(torch.randint(0, 2**31 - 1, ()).item()) if seed is None else seed)
