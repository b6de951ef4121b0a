"""What every diagnostic answers with: sentences that rest on numbers, pictures, and named arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Finding", "Picture", "Verdict", "plain"]


def plain(value: Any) -> Any:
    """What `json.dumps(..., allow_nan=False)` takes: tensors and sequences as lists, dataclasses as mappings, None for
    what is NaN or infinite, and text for what it does not know."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


@dataclass(frozen=True)
class Verdict:
    """A sentence about a fitted pair, and what it rests on.

    Args:
        check: which check it is of, as "k-hat".
        fault: whether there is one; None where these numbers cannot tell.
        says: the sentence, in plain words, with its number and error.
        statistic: what was measured, as "share of the data with k-hat above 0.7".
        value: of the statistic.
        threshold: beyond which there is a fault.
        false_alarm: probability of `fault` where there is none; None where it is not known.
        advice: what to try next; empty without a fault.
        speaks_of: of which data: "these data", or "data that the model makes".
        grave: a fault beside which others weigh little; it is said first.
    """

    check: str
    fault: bool | None
    says: str
    statistic: str
    value: float
    threshold: float
    false_alarm: float | None = None
    advice: str = ""
    speaks_of: Literal["these data", "data that the model makes"] = "these data"
    grave: bool = False

    def __post_init__(self) -> None:
        # what is no number lies beyond no threshold, and within none either
        if self.fault is False and math.isnan(self.value):
            object.__setattr__(self, "fault", None)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(plain(self))


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with what a reader needs who cannot see it.

    Args:
        name: short, of letters, digits and hyphens; names are unique within a finding.
        figure: of matplotlib.
        caption: one or two sentences below it.
        alt: what it shows, in words, with its numbers.
    """

    name: str
    figure: Figure
    caption: str
    alt: str


class Finding(Protocol):
    """The answer of one diagnostic."""

    def verdicts(self) -> Sequence[Verdict]:
        """Sentences, the gravest first."""
        ...

    def pictures(self) -> Sequence[Picture]:
        """Figures, drawn anew at each call."""
        ...

    def to_dataset(self) -> xarray.Dataset:
        """Numbers with named dimensions: "datum", "dim" (latent dimensions, as "z[0]"), "chain", "draw", ..."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole, without values of single data, for `json.dumps(..., allow_nan=False)`."""
        ...
