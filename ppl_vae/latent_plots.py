"""Pictures of a latent space: ways through it, its dimensions one by one, a grid, where the codes lie, clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .build import DataSpec
from .evaluate.latent_space import Plane2D
from .plots import by_class, column_names, figure_of, pictures, pitch_of, show, subscript, tiled, wrapped_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["aggregate", "axis_names", "cluster_panels", "grid_of_means", "ways"]

Array = NDArray[Any]

_MOST_LINES = 9
_MOST_PANELS = 9
_MOST_POINTS = 5000
_MOST_LEGEND = 20
_SHARES = (0.5, 0.9, 0.99)


def ways(
    rows: Sequence[tuple[str, Tensor]],
    spec: DataSpec,
    title: str,
    *,
    ends: Tensor | None = None,
    places: Tensor | None = None,
    places_name: str = "",
    columns: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Figure:
    """E[x | z] along ways through the latent space, a row each. Tables: a panel each, a line a column.

    Args:
        rows: a name and (T, \\*D) each.
        spec: what the data are.
        title: which data and model.
        ends: (R, 2, \\*D) data, shown at both ends of each row of images.
        places: (R, T) of the points along each way, for the lines of tables; None: 0 to 1.
        places_name: what these are.
        columns: names of a table's columns.
        after: (R,) said to the right of each row.
    """
    if len(spec.shape) == 1:
        return _lines(rows, spec, title, places, places_name, columns, after)
    steps = len(rows[0][1])
    beside = 0 if ends is None else 1
    across = steps + 2 * beside
    tiles = [pictures(means, spec) for _, means in rows]
    if ends is not None:
        # scaled with the means, where units have no limits of their own
        tiles = [
            pictures(torch.cat([pair[:1], means, pair[1:]]), spec) for pair, (_, means) in zip(ends, rows, strict=True)
        ]
    # one picture of all of them: axes take long to lay out
    picture = tiled(np.concatenate(tiles), across)
    height, width = spec.shape[1:]
    gap = pitch_of(height) - height
    left, right = 0.25 + 0.095 * max(len(name) for name, _ in rows), 0.1 + 0.085 * max([0, *map(len, after)])
    cell = min(0.85, (13.0 - left - right) / across)
    figure = figure_of(left + right + cell * across, cell * (height + gap) / (width + gap) * len(rows) + 0.95)
    axis = figure.subplots()
    show(axis, picture)
    axis.spines[:].set_visible(False)
    middles = [i * (height + gap) + (height - 1) / 2 for i in range(len(rows))]
    axis.set_yticks(middles, [name for name, _ in rows], fontsize=9)
    axis.tick_params(length=0)
    for middle, text in zip(middles, after, strict=False):
        axis.annotate(text, (1.01, middle), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    if beside:
        from matplotlib.patches import Rectangle

        for middle in middles:
            for column in (0, across - 1):
                corner = (column * (width + gap) - 0.5, middle - height / 2)
                axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="C1", linewidth=2.0))
        places_x = [column * (width + gap) + (width - 1) / 2 for column in (0, 1, across - 2, across - 1)]
        axis.xaxis.tick_top()
        axis.set_xticks(places_x, ["datum", "its code", "its code", "datum"], fontsize=9)
    wrapped_title(figure, title)
    # the first layout measures the words before the pictures have their shape, and cuts them off
    figure.draw_without_rendering()
    return figure


def grid_of_means(
    means: Tensor, spec: DataSpec, places: Tensor, names: Sequence[str], title: str, columns: Sequence[str] = ()
) -> Figure:
    """E[x | z] on a grid of codes. Tables: a panel a column, its value in colour.

    Args:
        means: (G', G, \\*D), rows from high to low along the second axis.
        spec: what the data are.
        places: (2, G) along the axes, or (1, G).
        names: of the axes.
        title: which data and model.
        columns: names of a table's columns.
    """
    down, across = means.shape[:2]
    if len(spec.shape) == 1:
        return _heat(means, spec, places, names, title, columns)
    tiles = tiled(pictures(means.flatten(0, 1), spec), across)
    ratio = tiles.shape[0] / tiles.shape[1]
    width = 8.6
    figure = figure_of(width, max(1.9, (width - 0.9) * ratio + 1.1))
    axis = figure.subplots()
    show(axis, tiles)
    pitch = [tiles.shape[1] / across, tiles.shape[0] / down]
    which = np.unique(np.linspace(0, across - 1, 7).round().astype(int))
    axis.set_xticks([(k + 0.5) * pitch[0] - 0.5 for k in which], [f"{places[0, k]:.2f}" for k in which])
    axis.set_xlabel(names[0])
    if len(places) > 1:
        which = np.unique(np.linspace(0, down - 1, 7).round().astype(int))
        axis.set_yticks([(down - 1 - k + 0.5) * pitch[1] - 0.5 for k in which], [f"{places[1, k]:.2f}" for k in which])
        axis.set_ylabel(names[1])
    axis.spines[:].set_visible(False)
    wrapped_title(figure, title)
    return figure


def aggregate(
    panels: Mapping[str, Tensor],
    y: Tensor | None,
    class_names: Sequence[str],
    plane: Plane2D,
    names: Sequence[str],
    title: str,
    circles: bool = False,
) -> Figure:
    """Codes of all data in one plane, coloured by class: posterior means, and draws, whose cloud is the aggregate
    posterior.

    Args:
        panels: (N, Z) by name.
        y: (N,) class numbers, -1 where missing.
        class_names: a name a class.
        plane: in which they are seen.
        names: of the axes.
        title: which data these are.
        circles: the prior is N(0, I): circles hold 50, 90 and 99% of it.
    """
    figure = figure_of(5.2 * len(panels) + 1.4, 5.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    labels = None if y is None or not len(class_names) else y.cpu().numpy()
    for axis, (name, codes) in zip(axes, panels.items(), strict=True):
        _scatter(axis, plane.seen(codes).numpy(), labels, class_names)
        if circles and plane.directions.shape[1] == 2:
            middle = plane.seen(torch.zeros_like(codes[0])).numpy()
            angle = np.linspace(0, 2 * math.pi, 181)
            for share in _SHARES:
                radius = math.sqrt(-2 * math.log1p(-share))
                axis.plot(
                    middle[0] + radius * np.cos(angle),
                    middle[1] + radius * np.sin(angle),
                    color="0.25",
                    linewidth=0.9,
                    linestyle="--",
                )
        axis.set_title(name)
    _in_one_frame(axes, plane, names)
    _legend(figure, axes[0], labels, class_names)
    wrapped_title(figure, title)
    # axes of equal units change their size as they are laid out: once is not enough, and names would be cut off
    figure.draw_without_rendering()
    return figure


def cluster_panels(
    codes: Tensor,
    y: Tensor,
    class_names: Sequence[str],
    assigned: Mapping[str, Array],
    plane: Plane2D,
    names: Sequence[str],
    title: str,
) -> Figure:
    """The held-out codes by class, and by the clusters that were found without the labels.

    Args:
        codes: (N, Z).
        y: (N,) their classes.
        class_names: a name a class.
        assigned: (N,) numbers of clusters, by what is said above a panel.
        plane: in which they are seen.
        names: of the axes.
        title: which data these are.
    """
    points = plane.seen(codes).numpy()
    figure = figure_of(4.6 * (1 + len(assigned)) + 1.4, 5.2)
    axes = figure.subplots(1, 1 + len(assigned), squeeze=False)[0]
    labels = y.cpu().numpy()
    _scatter(axes[0], points, labels, class_names)
    axes[0].set_title("by class")
    for axis, (name, numbers) in zip(axes[1:], assigned.items(), strict=True):
        _scatter(axis, points, numbers, [str(k) for k in range(int(numbers.max()) + 1)])
        axis.set_title(f"{name}\ncolours of the classes matched")
    _in_one_frame(axes, plane, names)
    _legend(figure, axes[0], labels, class_names)
    wrapped_title(figure, title)
    # axes of equal units change their size as they are laid out: once is not enough, and names would be cut off
    figure.draw_without_rendering()
    return figure


def axis_names(plane: Plane2D, size: int, site: str = "z") -> tuple[str, str]:
    """What is along the axes of a plane through codes of so many dimensions."""
    if plane.share is None:
        return f"{site}{subscript(1)}", f"{site}{subscript(2)}"
    first, second = (
        f"principal component {k + 1} of E[{site} | x] ({100 * share:.0f}% of the variance in {size} dimensions)"
        for k, share in enumerate(plane.share)
    )
    return first, second


def _scatter(axis: Any, points: Array, labels: Array | None, class_names: Sequence[str]) -> None:
    if points.shape[1] == 1:
        heights = np.random.RandomState(0).uniform(-1.0, 1.0, (len(points), 1))
        points = np.concatenate([points, heights], 1)
    # evenly from all of them: data are often in the order of their classes
    rows = np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).round().astype(int)
    for number, colour, part in by_class(points[rows], None if labels is None else labels[rows], class_names):
        label = None if number is None else "no label" if number < 0 else class_names[number]
        axis.scatter(part[:, 0], part[:, 1], s=12, color=colour, label=label, alpha=0.75, linewidths=0)
    axis.grid(alpha=0.3)


def _in_one_frame(axes: Sequence[Any], plane: Plane2D, names: Sequence[str]) -> None:
    """Names along the axes, and the limits of all panels, so that they can be laid over each other."""
    flat, shares = plane.directions.shape[1] == 2, plane.share is not None
    for axis in axes:
        axis.set_xlabel(names[0], fontsize=8 if shares else None)
        axis.yaxis.label.set_size(8 if shares else 10)
        if flat:
            axis.set_aspect("equal", adjustable="box")
        else:
            axis.set_yticks([])
    for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        ends = [getattr(axis, get)() for axis in axes]
        for axis in axes:
            getattr(axis, put)(min(low for low, _ in ends), max(high for _, high in ends))
    axes[0].set_ylabel(names[1] if flat else "scattered at random")


def _legend(figure: Figure, axis: Any, labels: Array | None, class_names: Sequence[str]) -> None:
    if labels is not None and len(class_names) <= _MOST_LEGEND:
        handles, texts = axis.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside right center", title="class", frameon=False, markerscale=1.8)


def _lines(
    rows: Sequence[tuple[str, Tensor]],
    spec: DataSpec,
    title: str,
    places: Tensor | None,
    places_name: str,
    columns: Sequence[str],
    after: Sequence[str],
) -> Figure:
    shown = rows[:_MOST_PANELS]
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    figure = figure_of(3.7 * across + 1.8, 2.9 * down + 1.0)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[len(shown) :]:
        axis.remove()
    for i, (axis, (name, means)) in enumerate(zip(axes, shown, strict=False)):
        t = torch.linspace(0, 1, len(means)) if places is None else places[i]
        for k, column in enumerate(column_names(spec.shape[0], columns)[:_MOST_LINES]):
            axis.plot(t.numpy(), means[:, k].numpy(), color=f"C{k}", label=column, linewidth=1.4)
        axis.set_title(f"{name}\n{after[i]}" if after else name, fontsize=9)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.3)
    figure.supxlabel(places_name or "from the one code (0) to the other (1)")
    figure.supylabel("E[x | z]")
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False)
    left_out = spec.shape[0] - _MOST_LINES
    more = f"\nthe first {_MOST_LINES} of {spec.shape[0]} columns" if left_out > 0 else ""
    wrapped_title(figure, title + more)
    return figure


def _heat(
    means: Tensor, spec: DataSpec, places: Tensor, names: Sequence[str], title: str, columns: Sequence[str]
) -> Figure:
    texts = column_names(spec.shape[0], columns)[:_MOST_PANELS]
    across = min(3, len(texts))
    down = math.ceil(len(texts) / across)
    figure = figure_of(3.9 * across + 0.6, 3.2 * down + 1.0)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[len(texts) :]:
        axis.remove()
    for k, (axis, text) in enumerate(zip(axes, texts, strict=False)):
        values = means[..., k].numpy()
        if len(places) == 1:
            axis.plot(places[0].numpy(), values[0])
        else:
            mesh = axis.pcolormesh(places[0].numpy(), places[1].flip(0).numpy(), values, shading="nearest")
            figure.colorbar(mesh, ax=axis)
        axis.set_title(text, fontsize=10)
    figure.supxlabel(names[0])
    figure.supylabel(names[1] if len(places) > 1 else "E[x | z]")
    more = f"\nthe first {_MOST_PANELS} of {spec.shape[0]} columns" if spec.shape[0] > _MOST_PANELS else ""
    wrapped_title(figure, title + more)
    return figure
