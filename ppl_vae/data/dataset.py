"""A data set held in memory, and the batches drawn from it."""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..errors import InputError, choose
from ..masks import RandomMask, check_mask, random_mask
from .arrays import as_context, as_data, as_labels, as_levels, place, refuse_non_finite, without_hidden

__all__ = ["HELD", "Binarize", "DataSet", "DataSplits", "Units", "from_arrays", "split"]

Binarize = Literal["dynamic", "fixed", "threshold", "none"]
Units = Literal["unit", "levels", "raw"]

FIXED_SEED = 777
"""The seed with which test sets are binarized, by the field's convention."""

HELD = ("x", "y", "context", "observed", "visible", "spread")
"""The tensors that a batch is made of."""

_FEW_CLASSES = 1000
_CHUNK = 4096
_MASKS_CHUNK = 1024


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """N data in memory: x, and what is known of each.

    Images of whole-numbered levels stay uint8, a quarter of float32, and become float32 in `batch`, on the device
    where they lie. What `batch` gives is said by two options:

    - `binarize`: "none"; "threshold", 1 where the value exceeds one half of its range; "dynamic", a fresh
      x ~ Bernoulli(level / (levels - 1)) in every batch; "fixed", x holds 0 and 1 drawn once before, by `fixed`.
    - `units`, of data that are not binarized: "unit", level / (levels - 1), or floats that lie in [0, 1] as they are;
      "levels", 0 to levels - 1; "raw", continuous data as they are.

    Two masks say what is left of x: `observed`, what is known of each datum at all, and `visible`, what an encoder is
    shown of it, where `masks` hides more. A likelihood scores what is observed, behind the mask too.

    Args:
        name: what it is called, in every description.
        x: (N, \\*D), uint8 levels or float32.
        y: (N,) int64 class numbers; -1 where the label is missing.
        context: (N, C) float32, anything else a model may be conditioned on.
        levels: L, where x is 0 to L - 1: 17 for digits, 256 for most pictures; None: continuous.
        class_names: a name for each class number; made from the numbers where it is not given.
        binarize, units: see above.
        split: which part of the data this is.
        binarize_seed: the seed with which x was binarized, where `binarize` is "fixed".
        columns: the names of a table's columns.
        observed: (N, \\*D) bool, False where a value is missing, and x is 0; None: nothing is missing.
        masks: which `visible` a batch has, by name, see `ppl_vae.masks`: drawn anew for every batch, and by `fixed`
            once for all; None: all that is observed is visible.
        visible: (N, \\*D) bool, the masks drawn by `fixed`.
        factors: (N, F) uint8 or int64 levels of what made each datum, counted from 0, where that is known.
        factor_names: their names; made from the numbers where they are not given.
        spread: (N, \\*D) float32, standard deviations of continuous x in units of its own: a batch has fresh draws
            of N(x, spread²), as of codes that are known up to their posterior, and `fixed` draws once for all; None: x
            is what it is.

    Raises:
        InputError: NaN or infinity, with the first row and column; values outside of the units or levels; labels
            out of range; shapes or dtypes that do not fit; options that do not go together; a datum of which nothing
            is observed, or a value where nothing is.

    Example:
        >>> data = DataSet.from_arrays(torch.rand(10, 8, 8), y=torch.arange(10) % 2, name="noise")
        >>> data
        DataSet(noise all, continuous in [0, 1]: 10 x (1, 8, 8), 2 classes)
        >>> data.batch(torch.tensor([0, 3])).x.shape
        torch.Size([2, 1, 8, 8])
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    context: Tensor | None = None
    levels: int | None = None
    class_names: tuple[str, ...] = ()
    binarize: Binarize = "none"
    units: Units = "unit"
    split: str = "all"
    binarize_seed: int | None = None
    columns: tuple[str, ...] = ()
    observed: Tensor | None = None
    masks: str | None = None
    visible: Tensor | None = None
    factors: Tensor | None = None
    factor_names: tuple[str, ...] = ()
    spread: Tensor | None = None
    _mask: RandomMask | None = field(default=None, init=False)
    _drawn_from: int | None = None

    def __post_init__(self) -> None:
        if self.binarize not in get_args(Binarize):
            raise choose("binarize", self.binarize, get_args(Binarize))
        if self.units not in get_args(Units):
            raise choose("units", self.units, get_args(Units))
        self._check_layout()
        self._check_options()
        self._check_values()
        if self.y is not None:
            self._check_labels(self.y)
        self._check_masks()
        self._check_factors()
        self._check_spread()

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        *,
        context: Any = None,
        name: str = "data",
        levels: int | None = None,
        class_names: Sequence[str] = (),
        binarize: Binarize = "none",
        units: Units | None = None,
        split: str = "all",
        columns: Sequence[str] = (),
        observed: Any = None,
    ) -> DataSet:
        """A data set from tensors, arrays or lists, which are converted and checked.

        uint8 images have 256 levels unless `levels` says otherwise; floating-point images and tables (N, D) are
        continuous unless `levels` is given. An array's channels may come first or last: they are the smaller of
        axes 1 and 3, and axis 1 where these are equal; a tensor's come first.

        Args:
            x: (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C).
            y: (N,) whole numbers; -1 where the label is missing.
            context: (N, C) numbers.
            levels: L, where x is 0 to L - 1.
            units: None stands for "unit" (images, and all data with levels) or "raw" (tables).
            observed: bool, of the shape in which x is given: False where a value is missing, whatever x is there.
            name, class_names, binarize, split, columns: as in `DataSet`.

        Raises:
            InputError: as `DataSet`; also fewer than two data.
        """
        part = "" if split == "all" else f" ({split})"
        seen = None
        if observed is not None:
            x, seen = without_hidden(x, observed, where=f"{name!r}{part}")
        tensor, levels = as_data(x, where=f"x of {name!r}{part}", levels=levels)
        if len(tensor) < 2:
            raise InputError(f"x of {name!r}{part} holds {_count(len(tensor))}; at least two are needed")
        if units is None:
            units = "raw" if levels is None and tensor.dim() == 2 else "unit"
        plain = cls(
            name=name,
            x=tensor,
            y=None if y is None else as_labels(y, where=f"y of {name!r}{part}").to(tensor.device),
            context=None
            if context is None
            else as_context(context, where=f"context of {name!r}{part}").to(tensor.device),
            levels=levels,
            class_names=tuple(str(c) for c in class_names),
            units=units,
            split=split,
            columns=tuple(str(c) for c in columns),
            observed=None if seen is None else as_data(seen, where=f"observed of {name!r}{part}")[0].bool(),
        )
        return plain if binarize == "none" else plain.with_options(binarize=binarize)

    @property
    def shape(self) -> tuple[int, ...]:
        """D, the shape of one datum."""
        return tuple(self.x.shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        return len(self.class_names)

    @property
    def binary(self) -> bool:
        """Whether `batch` gives 0 and 1 alone."""
        return self.binarize != "none" or self.levels == 2

    @property
    def discrete(self) -> bool:
        """Whether `batch` gives whole numbers with known levels, so that bits per dimension are defined."""
        return self.binary or (self.levels is not None and self.units == "levels")

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        tensors = (getattr(self, name) for name in HELD)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @property
    def fingerprint(self) -> int:
        """A checksum of x, and of the grey x of which a binarization was drawn: the same on every device, and with
        near certainty another one for other data. (`loader.fingerprint` is of all that a run is trained on, labels
        and draws too.)"""
        if self._drawn_from is not None:
            return self._drawn_from
        return zlib.crc32(self.x.detach().cpu().contiguous().numpy().tobytes())

    @property
    def missing(self) -> float:
        """The share of the values that are missing."""
        return 0.0 if self.observed is None else 1.0 - float(self.observed.double().mean())

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def description(self) -> str:
        """The data, the part and the binarization, to be put beside every number: "digits test, fixed binarization
        (seed 777)"."""
        return f"{self.name} {self.split}, {self._values()}{self._masked()}"

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        return f"DataSet({self.description}: {len(self)} x {self.shape}{classes})"

    def batch(self, rows: Tensor | Sequence[int] | None = None) -> Batch:
        """The data at `rows` (None: all), as float32 in the units that the options say.

        Dynamic binarization, masks and `spread` draw from the default generator of the device on which the data lie.

        Args:
            rows: (B,) row numbers from 0 to N - 1.
        """
        device = self.x.device
        held = {name: tensor for name in HELD if (tensor := getattr(self, name)) is not None}
        if rows is None:
            rows = torch.arange(len(self), device=device)
        else:
            rows = torch.as_tensor(rows, dtype=torch.int64, device=device)
            # ten times faster than x[rows] for a small batch
            held = {name: tensor.index_select(0, rows) for name, tensor in held.items()}
        x, spread = self._convert(held.pop("x")), held.pop("spread", None)
        if spread is not None:
            x = torch.addcmul(x, spread, torch.randn_like(x))
        if "visible" not in held:
            visible = self._hide(len(x), held.get("observed"), device, None)
            held |= {} if visible is None else {"visible": visible}
        return Batch(x=x, rows=rows, **held)

    def fixed(self, seed: int = FIXED_SEED) -> DataSet:
        """The same data with nothing left to chance: dynamic binarization, masks and `spread` are drawn now,
        once for all.

        The draw depends on `seed` and the data alone: it is the same on every device and leaves torch's and NumPy's
        own generators as they were. A data set without any of them is returned as it is.
        """
        drawn = self._drawn(seed) if self.binarize == "dynamic" else self
        drawn = drawn._within_spread(seed) if drawn.spread is not None else drawn
        return drawn._behind_masks(seed) if drawn.masks is not None and drawn.visible is None else drawn

    def unmasked(self) -> DataSet:
        """The same data without random masks: all that is observed is visible."""
        return self if self.masks is None else dataclasses.replace(self, masks=None, visible=None)

    def with_options(
        self,
        *,
        binarize: Binarize | None = None,
        units: Units | None = None,
        masks: str | None = None,
        seed: int = FIXED_SEED,
    ) -> DataSet:
        """The same data under other options; "fixed" draws the binarization with `seed`. `masks` takes the place of
        those that there are.

        Raises:
            InputError: options that do not go together, as `DataSet`; grey levels wanted back after "fixed".
        """
        if binarize is not None and binarize not in get_args(Binarize):
            raise choose("binarize", binarize, get_args(Binarize))
        wanted: Binarize = self.binarize if binarize is None else binarize
        scale: Units = self.units if units is None else units
        if masks is not None:
            hidden = dataclasses.replace(self, masks=masks, visible=None)
            return hidden.with_options(binarize=binarize, units=units, seed=seed)
        if self.binarize == "fixed" and wanted != "fixed":
            raise InputError(
                f"binarize={wanted!r} needs the values before binarization, and {self.description!r} has 0 and 1 "
                "alone; start from the data set as it was loaded"
            )
        if self.binarize != "fixed" and wanted == "fixed":
            return dataclasses.replace(self, binarize="dynamic", units=scale)._drawn(seed)
        return dataclasses.replace(self, binarize=wanted, units=scale)

    def take(self, rows: Tensor | Sequence[int] | slice) -> DataSet:
        """The data at `rows`, counted anew from 0."""
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        if not isinstance(rows, Tensor):
            rows = torch.as_tensor(list(rows), dtype=torch.int64)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(-1)
        if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < len(self)):
            raise InputError(
                f"rows run from {int(rows.min())} to {int(rows.max())}; {self.name!r} has rows 0 to {len(self) - 1}"
            )
        rows = rows.to(self.x.device)
        # what is left of a drawn set is known by its own values
        return dataclasses.replace(self._with_tensors(lambda t: t.index_select(0, rows)), _drawn_from=None)

    def keep_labels(self, count: int, seed: int = 0) -> DataSet:
        """The same data with `count` labels, of every class as many as of any other where it has so many, and -1 for
        the rest: a semi-supervised task, which the description then names.

        Args:
            count: labels to keep, from 1 to as many as there are.
            seed: which of each class.

        Raises:
            InputError: no labels, or fewer than `count`.

        Example:
            >>> data = DataSet.from_arrays(torch.rand(10, 8, 8), y=torch.arange(10) % 2, name="noise")
            >>> data.keep_labels(4).y.unique(return_counts=True)
            (tensor([-1,  0,  1]), tensor([6, 2, 2]))
            >>> data.keep_labels(4).description
            'noise all, 4 labels (seed 0), continuous in [0, 1]'
        """
        there = 0 if self.y is None else int((self.y >= 0).sum())
        if self.y is None or not there:
            raise InputError(f"labels={count!r} are to be kept of {self.description!r}, which has none")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= there:
            raise InputError(
                f"labels={count!r} must be a whole number from 1 to {there}, which is what {self.description!r} has"
            )
        y = self.y.cpu().numpy()
        order = np.random.RandomState(seed).permutation(len(y))
        order = order[y[order] >= 0]
        # the turn of each datum within its class: labels go round the classes
        turn = np.empty(len(y), dtype=np.int64)
        for label in range(self.classes):
            of_class = order[y[order] == label]
            turn[of_class] = np.arange(len(of_class))
        rounds = order[np.argsort(turn[order], kind="stable")][:count]
        kept = np.full(len(y), -1)
        kept[rounds] = y[rounds]
        return dataclasses.replace(
            self,
            y=torch.from_numpy(kept).to(self.y.device),
            split=f"{self.split}, {count} label{'s' if count > 1 else ''} (seed {seed})",
        )

    def hide_labels(self) -> DataSet:
        """The same data with every label missing; their names stay."""
        return self if self.y is None else dataclasses.replace(self, y=torch.full_like(self.y, -1))

    def with_factors(self, factors: Any, names: Sequence[str] = ()) -> DataSet:
        """The same data with the levels of what made them, for the metrics of `ppl_vae.disentangle`.

        Args:
            factors: (N, F) whole numbers, counted from 0.
            names: of the factors; made from the numbers where they are not given.

        Raises:
            InputError: another number of rows or names, fractions, or negative levels.
        """
        levels = torch.as_tensor(factors)
        if levels.is_floating_point() or levels.dtype == torch.bool:
            raise InputError(f"{self._where('factors')} is {levels.dtype}; give whole numbers, counted from 0")
        levels = levels if levels.dtype == torch.uint8 else levels.to(torch.int64)
        return dataclasses.replace(self, factors=levels.to(self.x.device), factor_names=tuple(names))

    def to(self, device: torch.device | str) -> DataSet:
        """The same data on `device`."""
        return self._with_tensors(lambda t: t.to(device))

    def holding(self, **tensors: Tensor) -> DataSet:
        """The same data set with other tensors in place of its own, unchecked: in tracing they have no values."""
        other = copy.copy(self)
        for name, tensor in tensors.items():
            object.__setattr__(other, name, tensor)  # it is frozen
        return other

    def _with_tensors(self, change: Any) -> DataSet:
        names = (*HELD, "factors")
        return dataclasses.replace(self, **{k: change(t) for k in names if (t := getattr(self, k)) is not None})

    def _hide(
        self, size: int, observed: Tensor | None, device: torch.device, generator: torch.Generator | None
    ) -> Tensor | None:
        """What is visible of so many data."""
        if self._mask is None:
            return observed
        seen = self._mask.draw(size, self.shape, device=device, generator=generator)
        if observed is None:
            return seen
        both = seen & observed
        # a mask that leaves nothing of what there is hides nothing
        some = both.flatten(1).any(1).view(-1, *(1,) * len(self.shape))
        return torch.where(some, both, observed)

    def _behind_masks(self, seed: int) -> DataSet:
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for start in range(0, len(self), _MASKS_CHUNK):
            observed = None if self.observed is None else self.observed[start : start + _MASKS_CHUNK].cpu()
            size = min(_MASKS_CHUNK, len(self) - start)
            parts.append(self._hide(size, observed, torch.device("cpu"), generator))
        return dataclasses.replace(self, visible=torch.cat(parts).to(self.x.device))  # type: ignore[arg-type]

    def _top(self) -> int:
        """The value that stands for 1 in unit units."""
        return 1 if self.levels is None else self.levels - 1

    def _convert(self, x: Tensor) -> Tensor:
        top = self._top()
        if self.binarize == "fixed" or (self.binarize == "none" and self.units != "unit"):
            return x.to(torch.float32)
        if self.binarize == "threshold":
            # of whole numbers, level > top / 2 is level > top // 2, which needs no conversion
            return (x > (0.5 if self.levels is None else top // 2)).to(torch.float32)
        # a division, since a product with 1 / top would miss 1 by a rounding
        unit = x.to(torch.float32) / top if top != 1 else x.to(torch.float32)
        if self.binarize == "dynamic":
            # a third of torch.bernoulli's time on a CPU
            return torch.rand_like(unit).lt_(unit)
        return unit

    def _drawn(self, seed: int) -> DataSet:
        # RandomState's stream is frozen by NumPy's policy, and float64 is the same on every machine
        generator = np.random.RandomState(seed)
        x = self.x.cpu().numpy()
        drawn = np.empty(x.shape, dtype=np.uint8)
        for start in range(0, len(x), _CHUNK):
            chunk = x[start : start + _CHUNK]
            drawn[start : start + _CHUNK] = generator.random_sample(chunk.shape) < chunk / np.float64(self._top())
        return dataclasses.replace(
            self,
            x=torch.from_numpy(drawn).to(self.x.device),
            levels=2,
            binarize="fixed",
            units="unit",
            binarize_seed=seed,
            _drawn_from=self.fingerprint,
        )

    def _within_spread(self, seed: int) -> DataSet:
        assert self.spread is not None
        # RandomState's stream is frozen by NumPy's policy
        noise = np.random.RandomState(seed).standard_normal(tuple(self.x.shape)).astype(np.float32)
        x = self.x + self.spread * torch.from_numpy(noise).to(self.x.device)
        return dataclasses.replace(self, x=x, spread=None)

    def _values(self) -> str:
        if self.binarize == "fixed":
            return "fixed binarization" + ("" if self.binarize_seed is None else f" (seed {self.binarize_seed})")
        if self.binarize != "none":
            return {"dynamic": "dynamic binarization", "threshold": "binarized at one half"}[self.binarize]
        if self.levels == 2:
            return "binary"
        if self.levels is not None:
            return f"{self.levels} levels " + ("in [0, 1]" if self.units == "unit" else f"0 to {self.levels - 1}")
        drawn = "" if self.spread is None else ", drawn anew within their spread"
        return "continuous" + (" in [0, 1]" if self.units == "unit" else "") + drawn

    def _masked(self) -> str:
        missing = f", {100 * self.missing:.3g}% missing" if self.missing else ""
        return missing + ("" if self.masks is None else f", behind masks ({self.masks})")

    def _where(self, argument: str) -> str:
        return f"{argument} of {self.name!r}" + ("" if self.split == "all" else f" ({self.split})")

    def _check_layout(self) -> None:
        advice = "DataSet.from_arrays converts what it is given"
        if not isinstance(self.x, Tensor) or self.x.dtype not in (torch.uint8, torch.float32):
            kind = self.x.dtype if isinstance(self.x, Tensor) else type(self.x).__name__
            raise InputError(f"{self._where('x')} is {kind}; give a uint8 or float32 tensor ({advice})")
        if self.x.dim() < 2 or len(self.x) < 1:
            raise InputError(
                f"{self._where('x')} has shape {tuple(self.x.shape)}; give (N, D) or (N, C, H, W) with N of 1 or more"
            )
        for argument, tensor, dtype, dims in (
            ("y", self.y, torch.int64, 1),
            ("context", self.context, torch.float32, 2),
        ):
            if tensor is None:
                continue
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.dim() != dims:
                given = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InputError(f"{self._where(argument)} is {given}; give {dtype} with {dims} axes ({advice})")
            if len(tensor) != len(self.x):
                raise InputError(f"{self._where(argument)} has {len(tensor)} rows where x has {len(self.x)}")
            if tensor.device != self.x.device:
                raise InputError(f"{self._where(argument)} lies on {tensor.device}, x on {self.x.device}")
        if self.columns and (self.x.dim() != 2 or len(self.columns) != self.x.shape[1]):
            raise InputError(
                f"columns has {len(self.columns)} names where {self._where('x')} has shape {tuple(self.x.shape)}; "
                "give a name for each column of a table"
            )

    def _check_options(self) -> None:
        where = self._where("x")
        if self.levels is None:
            if self.x.dtype != torch.float32:
                raise InputError(f"{where} is uint8 without levels; give levels=256, or how many there are")
            if self.binarize != "none" and (self.x.dim() == 2 or self.units == "raw"):
                kind = "a table of continuous numbers" if self.x.dim() == 2 else "continuous in units of its own"
                raise InputError(
                    f"binarize={self.binarize!r} does not fit {where}, which is {kind}; use binarize='none', or give "
                    "levels or images from 0 to 1"
                )
            if self.units == "levels":
                raise InputError(f"units='levels' does not fit {where}, which is continuous; use 'unit' or 'raw'")
        else:
            as_levels(self.levels)
            if self.x.dtype != torch.uint8:
                raise InputError(f"{where} is float32 with levels={self.levels}; levels are kept as uint8")
            if self.units == "raw":
                raise InputError(
                    f"units='raw' does not fit {where}, which has {self.levels} levels; use 'levels' for 0 to "
                    f"{self.levels - 1}, or 'unit' for 0 to 1"
                )
        if self.binarize != "none" and self.units == "levels":
            raise InputError(
                f"units='levels' and binarize={self.binarize!r} exclude each other: binarized data are 0 and 1; leave "
                "one of them out"
            )
        if self.binarize == "fixed" and self.levels != 2:
            raise InputError("binarize='fixed' holds 0 and 1 drawn before; make it with .fixed(seed) or .with_options")

    def _check_values(self) -> None:
        where = self._where("x")
        if self.context is not None:
            refuse_non_finite(self.context, self._where("context"))
        if self.levels is not None:
            if self.levels < 256 and int(self.x.max()) >= self.levels:
                index = [int(i) for i in (self.x >= self.levels).nonzero()[0]]
                raise InputError(
                    f"{where}: {place(index)} is {int(self.x[tuple(index)])}; with levels={self.levels} values run "
                    f"from 0 to {self.levels - 1}"
                )
            return
        refuse_non_finite(self.x, where, self.columns)
        if self.units == "unit":
            low, high = float(self.x.min()), float(self.x.max())
            if low < 0.0 or high > 1.0:
                index = [int(i) for i in ((self.x < 0.0) | (self.x > 1.0)).nonzero()[0]]
                raise InputError(
                    f"{where} runs from {low:g} to {high:g}, first out of [0, 1] at {place(index, self.columns)}; "
                    "scale it to [0, 1], give whole numbers with levels (uint8 images have 256), or use units='raw'"
                )

    def _check_masks(self) -> None:
        mask: RandomMask | None = None if self.masks is None else random_mask(self.masks)
        if mask is not None:
            mask.check(self.shape)
        object.__setattr__(self, "_mask", mask)  # it is frozen
        for name, tensor in (("observed", self.observed), ("visible", self.visible)):
            if tensor is not None:
                check_mask(tensor, self.x.shape, self._where(name))
        if self.observed is None:
            return
        hidden = (self.x != 0) & ~self.observed
        if bool(hidden.any()):
            index = [int(i) for i in hidden.nonzero()[0]]
            raise InputError(
                f"{self._where('x')}: {place(index, self.columns)} is {self.x[tuple(index)].item():g} where observed "
                "is False; put 0 there (DataSet.from_arrays does)"
            )

    def _check_factors(self) -> None:
        if self.factors is None:
            return
        where = self._where("factors")
        if not isinstance(self.factors, Tensor) or self.factors.dtype not in (torch.uint8, torch.int64):
            kind = self.factors.dtype if isinstance(self.factors, Tensor) else type(self.factors).__name__
            raise InputError(f"{where} is {kind}; give uint8 or int64 levels, counted from 0")
        if self.factors.dim() != 2 or len(self.factors) != len(self.x):
            raise InputError(f"{where} has shape {tuple(self.factors.shape)}; give ({len(self.x)}, F), a row a datum")
        if self.factors.numel() and int(self.factors.min()) < 0:
            raise InputError(f"{where} has a level {int(self.factors.min())}; levels count from 0")
        names = self.factor_names or tuple(f"factor {k}" for k in range(self.factors.shape[1]))
        if len(names) != self.factors.shape[1]:
            raise InputError(f"factor_names has {len(names)} names where {where} has {self.factors.shape[1]} columns")
        object.__setattr__(self, "factor_names", tuple(names))  # it is frozen

    def _check_spread(self) -> None:
        if self.spread is None:
            return
        where, spread = self._where("spread"), self.spread
        if self.levels is not None or self.units != "raw" or self.observed is not None:
            raise InputError(
                f"{where} is of continuous numbers in units of their own, units='raw', all of them observed; x has "
                + ("levels" if self.levels is not None else f"units={self.units!r}" if self.units != "raw" else "holes")
            )
        if spread.dtype != torch.float32 or spread.shape != self.x.shape or spread.device != self.x.device:
            raise InputError(
                f"{where} is {spread.dtype} {tuple(spread.shape)} on {spread.device}; give torch.float32 of the shape "
                f"of x, {tuple(self.x.shape)}, on {self.x.device}"
            )
        refuse_non_finite(spread, where, self.columns)
        if bool((spread < 0).any()):
            index = [int(i) for i in (spread < 0).nonzero()[0]]
            raise InputError(
                f"{where}: {place(index, self.columns)} is {spread[tuple(index)].item():g}; standard deviations are 0 "
                "or more"
            )

    def _check_labels(self, y: Tensor) -> None:
        low, high = int(y.min()), int(y.max())
        # without names, a number beyond this is no class but a wrong column
        limit = len(self.class_names) or max(_FEW_CLASSES, len(y))
        if low < -1 or high >= limit:
            row = int(((y < -1) | (y >= limit)).nonzero()[0])
            raise InputError(
                f"{self._where('y')}: row {row} is {int(y[row])}; labels run from 0 to {limit - 1}, and -1 stands for "
                "a missing one"
            )
        if not self.class_names and high >= 0:
            object.__setattr__(self, "class_names", tuple(str(c) for c in range(high + 1)))


from_arrays = DataSet.from_arrays


class DataSplits(NamedTuple):
    """The part to learn from, and the part to be judged on."""

    train: DataSet
    test: DataSet


def split(
    dataset: DataSet, fraction: float = 0.2, seed: int = 0, *, names: tuple[str, str] | None = None
) -> tuple[DataSet, DataSet]:
    """Two disjoint parts that cover a data set: the rest, and `fraction` of it held out.

    Where there are labels, every class (and the missing labels) is held out in the same proportion, up to one datum.
    Rows keep their order. The split depends on N, y, `fraction` and `seed` alone.

    Args:
        fraction: of the data held out, rounded to a whole number of at least one that leaves at least one.
        names: of the two parts; by default "train" and "test" of a whole data set, "train" and "train held out" of
            its training part. Fraction and seed are added, since numbers on other splits do not compare.

    Raises:
        InputError: a fraction outside of (0, 1); fewer than two data.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"fraction={fraction} of the data held out; give a number between 0 and 1, as 0.2")
    size = len(dataset)
    if size < 2:
        raise InputError(f"{dataset.name!r} holds {_count(size)}; at least two are needed for a split")
    held = min(max(round(size * fraction), 1), size - 1)
    order = np.random.RandomState(seed).permutation(size)
    if dataset.y is not None:
        order = order[np.argsort(dataset.y.cpu().numpy()[order], kind="stable")]
    # equally spaced along the data sorted by class, which is a fair share of each
    chosen = np.zeros(size, dtype=bool)
    chosen[order[(np.arange(held) * 2 + 1) * size // (2 * held)]] = True
    if names is None:
        names = ("train", "test") if dataset.split == "all" else (dataset.split, f"{dataset.split} held out")
    parts = []
    for mask, name, share in ((~chosen, names[0], 1.0 - fraction), (chosen, names[1], fraction)):
        part = dataset.take(torch.from_numpy(np.flatnonzero(mask)))
        parts.append(dataclasses.replace(part, split=f"{name} ({100 * share:g}%, seed {seed})"))
    return parts[0], parts[1]


def _count(size: int) -> str:
    return {0: "no data", 1: "one datum"}.get(size, f"{size} data")
