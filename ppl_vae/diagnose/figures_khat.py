"""Pictures of k-hat: every datum's, and the data that it is worst for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..build import DataSpec
from ..psis import RELIABLE
from .findings import Picture

if TYPE_CHECKING:
    from .khat import KHat

__all__ = ["all_khats", "worst_data"]

_COLOURS = {"exact": "tab:blue", "good": "tab:green", "usable": "tab:orange", "unreliable": "tab:red"}
_MOST_CELLS = 10


def all_khats(found: KHat) -> Picture:
    """k-hat of every datum, by band."""
    from ..plots import figure_of, wrapped_title

    khat = found.khat.numpy()
    finite = khat[np.isfinite(khat)]
    figure = figure_of(7.0, 4.2)
    axis = figure.subplots()
    place = np.arange(len(khat))
    top = max(1.0, finite.max(initial=0.0)) + 0.1
    bottom = min(0.0, finite.min(initial=0.0)) - 0.1
    # what is not finite stands at the edges
    shown = np.clip(np.nan_to_num(khat, nan=top, posinf=top, neginf=bottom), bottom, top)
    bands = found.bands
    where = {
        "exact": khat == -math.inf,
        "good": (khat < 0.5) & (khat > -math.inf),
        "usable": (khat >= 0.5) & (khat < RELIABLE),
        "unreliable": ~(khat < RELIABLE),
    }
    says = {"exact": "exact", "good": "below 0.5", "usable": f"0.5 to {RELIABLE}", "unreliable": f"above {RELIABLE}"}
    for band, here in where.items():
        if here.any():
            label = f"{says[band]}: {bands[band]}"
            axis.scatter(place[here], shown[here], s=12, color=_COLOURS[band], label=label, linewidths=0, alpha=0.8)
    for line in (0.5, RELIABLE):
        axis.axhline(line, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_xlabel("datum")
    axis.set_ylabel("k-hat")
    axis.set_ylim(bottom - 0.05, top + 0.05)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, markerscale=1.6)
    wrapped_title(figure, f"k-hat of {found.particles} weights a datum\n{found.data}")
    largest = f"{finite.max():.2f}" if len(finite) else "not finite"
    counts = ", ".join(f"{bands[band]} {says[band]}" for band in where if bands[band])
    return Picture(
        name="khat",
        figure=figure,
        caption=(
            f"Pareto k-hat of each datum's {found.particles} importance weights. Below 0.5 they have a variance, above "
            f"{RELIABLE} log p(x) cannot be relied on."
        ),
        alt=f"Dots, one a datum, of k-hat: {counts}; the largest finite one is {largest}.",
    )


def worst_data(found: KHat) -> Picture:
    """The data of the largest k-hat: images, or rows of a table."""
    from ..plots import figure_of, pictures, show, wrapped_title

    x = found.worst_x.x
    assert x is not None
    khats = [f"{value:.2f}" for value in found.khat[found.worst].tolist()]
    rows = found.rows[found.worst].tolist()
    title = f"The data of the largest k-hat\n{found.data}"
    caption = "The data that the guide serves worst, the worst first."
    told = "; ".join(f"row {row}: k-hat {value}" for row, value in zip(rows, khats, strict=True))
    if x.dim() == 4 and x.shape[1] in (1, 3):
        spec = found.spec or DataSpec("data", found.data, tuple(x.shape[1:]))
        images = pictures(x, spec)
        across = min(6, len(images))
        down = math.ceil(len(images) / across)
        figure = figure_of(max(3.6, 1.25 * across), 1.5 * down * x.shape[2] / x.shape[3] + 0.8)
        grid = figure.subplots(down, across, squeeze=False).flat
        for axis, image, row, value in zip(grid, images, rows, khats, strict=False):
            show(axis, image)
            axis.set_title(f"row {row}\n{value}", fontsize=8)
        _remove_empty(figure, len(images))
        wrapped_title(figure, title)
        return Picture("khat-worst", figure, caption, f"Images of {len(rows)} data: {told}.")
    values = x.flatten(1).double().numpy()
    observed = found.worst_x.observed
    seen = np.ones_like(values, dtype=bool) if observed is None else observed.flatten(1).numpy()
    names = list(found.columns) if len(found.columns) == values.shape[1] else [f"x{i}" for i in range(values.shape[1])]
    kept = min(_MOST_CELLS, values.shape[1])
    cells = [
        [str(row), value, *(f"{v:.3g}" if s else "–" for v, s in zip(line[:kept], mask[:kept], strict=True))]
        for row, value, line, mask in zip(rows, khats, values, seen, strict=True)
    ]
    figure = figure_of(1.0 * (kept + 2), 0.3 * (len(cells) + 1) + 0.9)
    axis = figure.subplots()
    axis.axis("off")
    table: Any = axis.table(cellText=cells, colLabels=["row", "k-hat", *names[:kept]], loc="center", cellLoc="right")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1.0, 1.25)
    more = values.shape[1] - kept
    wrapped_title(figure, title)
    return Picture(
        name="khat-worst",
        figure=figure,
        caption=caption + (f" {more} more columns are not shown." if more else ""),
        alt=f"A table of {len(rows)} data: {told}.",
    )


def _remove_empty(figure: Any, count: int) -> None:
    for axis in figure.axes[count:]:
        axis.remove()
