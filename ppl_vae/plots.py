"""Pictures of trained pairs, as Matplotlib figures that belong to nobody but the caller."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .build import DataSpec
from .errors import InputError
from .report import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluate.plane import Plane

__all__ = [
    "by_class",
    "by_seed",
    "column_names",
    "figure_of",
    "imputations",
    "latent_space",
    "pictures",
    "pitch_of",
    "posteriors",
    "principal_components",
    "reconstructions",
    "samples",
    "save",
    "show",
    "subscript",
    "tiled",
    "training_curves",
    "wrapped_title",
]

Array = NDArray[Any]

_DPI = 150
_GREY = "0.35"
_HIDDEN = (0.36, 0.55, 0.72)
_MOST_COLUMNS = 9
_MOST_BESIDE = 4
_MOST_LEGEND = 20
_MOST_POINTS = 5000


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    title: str,
    held_out: Mapping[str, Mapping[str, float]] | None = None,
    held_out_name: str = "held out",
) -> Figure:
    """ELBO, reconstruction and KL by epoch, nats per datum.

    Args:
        histories: `FitResult.history` by name.
        title: which data these are.
        held_out: after training, "elbo", "log_likelihood" and "kl" by name, marked at the right edge.
        held_out_name: which data those are.
    """
    entries = sum(1 + (name in (held_out or {})) + ("val_elbo" in [*h, {}][0]) for name, h in histories.items())
    figure = figure_of(11.0, 3.6 + 0.2 * math.ceil(entries / 4))
    axes = figure.subplots(1, 3)
    for axis, (key, label) in zip(
        axes, (("elbo", "ELBO"), ("log_likelihood", "E log p(x | z)"), ("kl", "KL(q ‖ prior)")), strict=True
    ):
        shown: list[float] = []
        for number, (name, history) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in history]
            values = [row[key] for row in history]
            colour = _colour(number, len(histories))
            axis.plot(epochs, values, color=colour, label=f"{name}, training", linewidth=1.5)
            shown += values[len(values) // 20 :]
            if history and f"val_{key}" in history[0]:
                watched = [row[f"val_{key}"] for row in history]
                axis.plot(epochs, watched, color=colour, linestyle=":", label=f"{name}, validation", linewidth=1.5)
                shown += watched[len(watched) // 20 :]
            if held_out and name in held_out and epochs:
                value = held_out[name][key]
                axis.plot(
                    [epochs[-1]],
                    [value],
                    marker="D",
                    markersize=6,
                    color=colour,
                    markeredgecolor="black",
                    linestyle="none",
                    label=f"{name}, {held_out_name}",
                    zorder=3,
                    clip_on=False,
                )
                shown.append(value)
        # the first epochs fall off the scale on which the others can be told apart
        if shown:
            low, high = min(shown), max(shown)
            room = 0.06 * (high - low) or 1.0
            axis.set_ylim(low - room, high + room)
        axis.set_title(label)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("nats per datum")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), frameon=False)
    wrapped_title(figure, title)
    return figure


def reconstructions(
    x: Tensor,
    means: Mapping[str, Tensor],
    spec: DataSpec,
    title: str,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Figure:
    """Data, and E[x | z] at each posterior's mean below them. Tables: one against the other, column by column.

    Args:
        x: (N, \\*D) data; of images as many are shown as come, a dozen or two fill the width.
        means: (N, \\*D) by name.
        spec: what the data are.
        title: which data these are.
        columns: names of a table's columns.
        labels: (N,) class names, over images.
    """
    if len(spec.shape) == 1:
        return _table_reconstructions(x, means, title, columns)
    rows = {"data": x, **means}
    size = len(x)
    width = min(14.0, 1.6 + 0.78 * size)
    cell = (width - 1.6) / size * spec.shape[1] / spec.shape[2]
    figure = figure_of(width, cell * len(rows) + 0.75)
    grid = figure.subplots(len(rows), size, squeeze=False)
    for i, (name, values) in enumerate(rows.items()):
        for j, picture in enumerate(pictures(values, spec)):
            axis = grid[i, j]
            show(axis, picture)
            if i == 0 and len(labels):
                axis.set_title(labels[j], fontsize=9)
            if j == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center")
    wrapped_title(figure, title)
    return figure


def imputations(x: Tensor, visible: Tensor, filled: Mapping[str, Tensor], spec: DataSpec, title: str) -> Figure:
    """Images, what is visible of them, and what is put in the place of the rest: a row a datum.

    Args:
        x: (N, \\*D) data.
        visible: (N, \\*D) bool; of several channels a pixel is shown where any is visible.
        filled: (N, \\*D) by name, a column each.
        spec: what the data are.
        title: which data these are.
    """
    whole = pictures(x, spec)
    colours = whole if whole.ndim == 4 else np.repeat(whole[..., None], 3, axis=-1)
    seen = visible.any(1).cpu().numpy()[..., None]
    columns = {"data": whole, "visible": np.where(seen, colours, np.array(_HIDDEN))}
    columns |= {name: pictures(values, spec) for name, values in filled.items()}
    side = 1.0 if len(x) > 1 else 1.6
    figure = figure_of(max(4.0, side * len(columns) + 0.4), side * len(x) * spec.shape[1] / spec.shape[2] + 0.9)
    grid = figure.subplots(len(x), len(columns), squeeze=False)
    for j, (name, images) in enumerate(columns.items()):
        for i, picture in enumerate(images):
            show(grid[i, j], picture)
        grid[0, j].set_title(name, fontsize=9)
    wrapped_title(figure, title)
    return figure


def samples(
    x: Mapping[str, Tensor],
    spec: DataSpec,
    title: str,
    data: Tensor | None = None,
    columns: Sequence[str] = (),
    per_row: int | None = None,
    column_names: Sequence[str] = (),
) -> Figure:
    """Generated images, a panel of them for each name. Tables: their distribution, column by column; of two columns as
    points in the plane.

    Args:
        x: (N, \\*D) by name: E[x | z] of images looks smoother than draws; of tables give draws.
        spec: what the data are.
        title: what is shown.
        data: (M, D) of a table, to compare with.
        columns: names of a table's columns.
        per_row: images in a row; None: about √N.
        column_names: over the images of a row, as classes.
    """
    if spec.shape == (2,):
        return _plane_samples(x, title, data, columns)
    if len(spec.shape) == 1:
        return _table_samples(x, title, data, columns)
    size = max(len(values) for values in x.values())
    across = per_row or math.ceil(math.sqrt(size))
    down = math.ceil(size / across)
    side = 4.4 if size > 1 else 2.2
    ratio = (down * spec.shape[1]) / (across * spec.shape[2])
    rows, beside = _wrapped(len(x))
    figure = figure_of(
        max(3.6, side * beside + 0.3), rows * (max(1.2, side * ratio) + (0.35 if rows > 1 else 0.0)) + 0.75
    )
    axes = _panels_for(figure, len(x), {"wspace": 0.05})
    for axis, (name, values) in zip(axes, x.items(), strict=True):
        picture = tiled(pictures(values, spec), across)
        show(axis, picture)
        axis.spines[:].set_visible(False)
        axis.set_title(name)
        if len(column_names):
            breadth = spec.shape[2]
            middles = [i * (breadth + _gap(spec.shape[1])) + (breadth - 1) / 2 for i in range(across)]
            axis.xaxis.tick_top()
            axis.set_xticks(middles, list(column_names)[:across])
            axis.tick_params(length=0)
    wrapped_title(figure, title)
    return figure


def latent_space(means: Mapping[str, Tensor], y: Tensor | None, class_names: Sequence[str], title: str) -> Figure:
    """Posterior means E_q[z | x] in the plane, coloured by class: as they are with two dimensions of z, otherwise by
    each guide's own two principal components.

    Args:
        means: (N, Z) by name.
        y: (N,) class numbers, -1 where missing; None: one colour.
        class_names: a name a class.
        title: which data these are.
    """
    rows, beside = _wrapped(len(means))
    figure = figure_of(5.0 * beside + 1.3, 4.8 * rows + 0.3)
    axes = _panels_for(figure, len(means))
    labels = None if y is None or not len(class_names) else y.cpu().numpy()
    for axis, (name, values) in zip(axes, means.items(), strict=True):
        points, (across, up) = _plane(values)
        shown = slice(None, _MOST_POINTS)
        for number, colour, part in by_class(points[shown], None if labels is None else labels[shown], class_names):
            label = None if number is None else "no label" if number < 0 else class_names[number]
            axis.scatter(part[:, 0], part[:, 1], s=18, color=colour, label=label, alpha=0.8, linewidths=0)
        axis.set_title(name)
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        if values.shape[1] > 1:
            axis.set_aspect("equal", adjustable="datalim")
        else:
            axis.set_yticks([])
        axis.grid(alpha=0.3)
    if labels is not None and len(class_names) <= _MOST_LEGEND:
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside right center", title="class", frameon=False, markerscale=1.6)
    wrapped_title(figure, title)
    return figure


def posteriors(
    planes: Mapping[str, Sequence[Plane]],
    chains: Mapping[str, Tensor],
    x: Tensor | None,
    spec: DataSpec,
    title: str,
    labels: Sequence[str] = (),
    one_model: bool = False,
) -> Figure:
    """q(z | x) over the posterior p(z | x) of a few data, in two latent dimensions: a row a guide, a column a datum.

    Grey areas hold 50, 90 and 99 percent of the exact posterior, black dots are draws of it by Markov chains. Lines
    hold the same shares of q, where q has a density; coloured dots are draws of q.

    Args:
        planes: of the same data, by name.
        chains: (M, N, 2) draws of each posterior, by name.
        x: (N, \\*D) the data, shown above where they are images.
        spec: what the data are.
        title: which data these are.
        labels: (N,) class names.
        one_model: whether all guides are for one model, whose posteriors then have one frame in all rows.
    """
    size = len(next(iter(planes.values())))
    images = pictures(x, spec) if x is not None and len(spec.shape) == 3 else None
    first = 0 if images is None else 1
    heights = [0.4] * first + [1.0] * len(planes)
    figure = figure_of(2.6 * size + 0.8, 2.4 * sum(heights) + 1.0)
    grid = figure.subplots(len(heights), size, squeeze=False, gridspec_kw={"height_ratios": heights})
    for column in range(size):
        if images is not None:
            show(grid[0, column], images[column])
        if len(labels):
            grid[0, column].set_title(labels[column])
        shown = [each[column] for each in planes.values()]
        for row, (name, each) in enumerate(planes.items()):
            axis = grid[first + row, column]
            _posterior(axis, each[column], chains[name][:, column].numpy(), "tab:red")
            if column == 0:
                axis.set_ylabel(f"{name}\nz₂")
            if row == len(planes) - 1:
                axis.set_xlabel("z₁")
            if one_model:
                axis.set_xlim(min(float(p.z1[0]) for p in shown), max(float(p.z1[-1]) for p in shown))
                axis.set_ylim(min(float(p.z2[0]) for p in shown), max(float(p.z2[-1]) for p in shown))
    key = "grey: 50, 90, 99% of the posterior, exactly; grey dots: Markov chains on it; colour: the same of q, draws"
    wrapped_title(figure, f"{title}\n{key}")
    return figure


def by_seed(numbers: Mapping[str, Mapping[str, Mapping[int, float]]], title: str) -> Figure:
    """Numbers of each guide and seed; a line joins a seed's, so that differences within it are seen.

    Args:
        numbers: nats per datum by seed, by guide, by name.
        title: which data these are.
    """
    guides = list(dict.fromkeys(guide for each in numbers.values() for guide in each))
    figure = figure_of(max(3.2, 0.8 * len(guides) + 2.0) * len(numbers), 4.6)
    axes = figure.subplots(1, len(numbers), squeeze=False)[0]
    for axis, (name, values) in zip(axes, numbers.items(), strict=True):
        for seed in sorted({seed for each in values.values() for seed in each}):
            points = [(k, values[guide][seed]) for k, guide in enumerate(guides) if seed in values.get(guide, {})]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=0.9, label=f"seed {seed}")
        axis.set_xticks(range(len(guides)), guides, rotation=30, ha="right")
        axis.set_xlim(-0.4, len(guides) - 0.6)
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("nats per datum")
    handles, texts = axes[0].get_legend_handles_labels()
    if len(texts) <= _MOST_LEGEND:
        figure.legend(handles, texts, loc="outside right center", frameon=False)
    wrapped_title(figure, title)
    return figure


def pictures(x: Tensor, spec: DataSpec) -> Array:
    """Images as numbers from 0 to 1: (N, C, H, W) -> (N, H, W) or, of three channels, (N, H, W, 3)."""
    if len(spec.shape) != 3:
        raise InputError(f"{spec.description!r} has data of shape {spec.shape}, which are no images (C, H, W)")
    values = x.detach().cpu().double().numpy()
    if spec.units == "levels" and spec.levels is not None:
        values = values / (spec.levels - 1)
    elif spec.units == "real":
        low, high = values.min(), values.max()
        values = (values - low) / ((high - low) or 1.0)
    values = values.clip(0.0, 1.0)
    if spec.shape[0] == 3:
        colour: Array = values.transpose(0, 2, 3, 1)
        return colour
    grey: Array = values.mean(1)
    return grey


def principal_components(means: Tensor, count: int = 2) -> tuple[Array, Array]:
    """Coordinates (N, count) of centred points along their directions of largest variance, and each one's share of
    the variance. The sign of a direction makes its largest loading positive."""
    centred = means.detach().cpu().double()
    centred = centred - centred.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    share = singular.square() / singular.square().sum().clamp_min(1e-300)
    return (centred @ directions.T).numpy(), share[:count].numpy()


def save(figure: Figure, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a figure; the suffix says the format.

    Raises:
        InputError: a suffix that Matplotlib cannot write; a file that is there, without `overwrite`.
    """
    suffix = os.path.splitext(os.fspath(path))[1].removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(f"out={os.fspath(path)!r}: pictures are written as {', '.join(sorted(known))}")
    # laid out in the size that is written: where axes keep their shape the first layout cuts words off
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    with replacing(path, overwrite) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def _colour(number: int, count: int) -> Any:
    """One of as many colours as there are names."""
    if count <= 10:
        return f"C{number}"
    from matplotlib import colormaps

    return colormaps["tab20"](number % 20)


def _posterior(axis: Any, plane: Plane, chain: Array, colour: Any) -> None:
    """One datum's panel."""
    z1, z2 = plane.z1.numpy(), plane.z2.numpy()
    p = plane.p.numpy().T
    levels = _levels(p, plane.cell)
    axis.contourf(z1, z2, p, levels=[*levels, p.max() * 1.001], colors=["0.88", "0.74", "0.58"])
    axis.scatter(*chain.T, s=2, color="black", alpha=0.45, linewidths=0)
    axis.scatter(*plane.draws.numpy().T, s=3, color=[colour], alpha=0.25, linewidths=0)
    if plane.q is not None:
        q = plane.q.numpy().T
        axis.contour(z1, z2, q, levels=_levels(q, plane.cell), colors=[colour], linewidths=1.1)
    axis.set_xlim(z1[0], z1[-1])
    axis.set_ylim(z2[0], z2[-1])
    axis.tick_params(labelsize=7)


def _levels(density: Array, cell: float) -> list[float]:
    """The densities above which lie 99, 90 and 50 percent, from low to high."""
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered) * cell
    levels = [float(ordered[min(len(held) - 1, int(np.searchsorted(held, share)))]) for share in (0.99, 0.9, 0.5)]
    # levels must rise, as where one cell holds nearly everything
    return [level * (1.0 + 1e-6 * k) for k, level in enumerate(levels)]


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of so many inches, that belongs to the caller."""
    # not pyplot's: its figures stay in a global list, and its backend may want a display
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _wrapped(count: int) -> tuple[int, int]:
    """Rows and columns of as many panels."""
    columns = count if count <= _MOST_BESIDE else min(_MOST_BESIDE, math.ceil(math.sqrt(count)))
    return math.ceil(count / columns), columns


def _panels_for(figure: Figure, count: int, gridspec: Mapping[str, float] | None = None) -> list[Any]:
    """So many axes, side by side and in rows."""
    rows, columns = _wrapped(count)
    axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=dict(gridspec or {})).flat)
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def wrapped_title(figure: Figure, text: str) -> None:
    """A title in as many lines as the figure's width makes of it."""
    # Matplotlib cuts off what is wider than the figure
    across = max(20, int(figure.get_figwidth() * 9.5))
    figure.suptitle("\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, across)))


def subscript(number: int) -> str:
    """A number as a subscript: "₁₂"."""
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def show(axis: Any, picture: Array) -> None:
    """An image with values from 0 to 1, without ticks."""
    axis.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _gap(height: int) -> int:
    """Pixels between images."""
    return max(1, height // 14)


def pitch_of(size: int) -> int:
    """Pixels from an image's edge to the next one's in `tiled`."""
    return size + _gap(size)


def tiled(images: Array, across: int) -> Array:
    """Images side by side with lines between them: (N, H, W[, 3]) -> (rows · (H + 1) - 1, ...)."""
    size, height, width = images.shape[:3]
    line = _gap(height)
    down = math.ceil(size / across)
    shape = (down * (height + line) - line, across * (width + line) - line, *images.shape[3:])
    out = np.ones(shape)
    for i, image in enumerate(images):
        top, left = (i // across) * (height + line), (i % across) * (width + line)
        out[top : top + height, left : left + width] = image
    return out


def _plane(means: Tensor) -> tuple[Array, tuple[str, str]]:
    size = means.shape[1]
    if size == 1:
        values = means.detach().cpu().numpy()
        heights = np.random.RandomState(0).uniform(-1.0, 1.0, (len(values), 1))
        return np.concatenate([values, heights], 1), ("E[z | x]", "scattered at random")
    if size == 2:
        return means.detach().cpu().numpy(), ("E[z₁ | x]", "E[z₂ | x]")
    points, share = principal_components(means)
    first, second = (
        f"principal component {i + 1} of E[z | x]\n({100 * s:.0f}% of the variance in {size} dimensions)"
        for i, s in enumerate(share)
    )
    return points, (first, second)


def by_class(points: Array, labels: Array | None, class_names: Sequence[str]) -> list[tuple[int | None, Any, Array]]:
    """(class number, colour, points) of each class that is there."""
    if labels is None:
        return [(None, "C0", points)]
    from matplotlib import colormaps

    count = len(class_names)
    known = colormaps["tab10" if count <= 10 else "tab20" if count <= 20 else "turbo"]
    colours = [known(i) if count <= 20 else known(i / (count - 1)) for i in range(count)]
    parts: list[tuple[int | None, Any, Array]] = []
    for number in range(-1, count):
        part = points[labels == number]
        if len(part):
            parts.append((number, _GREY if number < 0 else colours[number], part))
    return parts


def column_names(size: int, columns: Sequence[str]) -> list[str]:
    """The names of a table's columns, or their numbers."""
    return list(columns) if len(columns) == size else [f"column {i}" for i in range(size)]


def _panels(size: int) -> tuple[Figure, list[Any], int]:
    """Axes for the columns of a table: as many as fit."""
    shown = min(size, _MOST_COLUMNS)
    across = min(3, shown)
    down = math.ceil(shown / across)
    figure = figure_of(3.6 * across + 1.6, 2.9 * down + 0.9)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[shown:]:
        axis.set_axis_off()
    return figure, axes[:shown], shown


def _with_count(title: str, shown: int, size: int) -> str:
    return title if shown == size else f"{title}\nthe first {shown} of {size} columns"


def _table_reconstructions(x: Tensor, means: Mapping[str, Tensor], title: str, columns: Sequence[str]) -> Figure:
    size = x.shape[1]
    figure, axes, shown = _panels(size)
    given = x.detach().cpu().numpy()[:_MOST_POINTS]
    for i, (axis, name) in enumerate(zip(axes, column_names(size, columns), strict=False)):
        for number, (guide, values) in enumerate(means.items()):
            axis.scatter(
                given[:, i],
                values.detach().cpu().numpy()[:_MOST_POINTS, i],
                s=12,
                color=_colour(number, len(means)),
                alpha=0.6,
                linewidths=0,
                label=guide,
            )
        ends = (float(given[:, i].min()), float(given[:, i].max()))
        axis.plot(ends, ends, color=_GREY, linewidth=1.0, zorder=0)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.supxlabel("data")
    figure.supylabel("reconstruction, E[x | z]")
    _legend(figure, axes[0])
    wrapped_title(figure, _with_count(title, shown, size))
    return figure


def _plane_samples(x: Mapping[str, Tensor], title: str, data: Tensor | None, columns: Sequence[str]) -> Figure:
    groups = {**({} if data is None else {"data": data}), **x}
    rows, beside = _wrapped(len(groups))
    figure = figure_of(3.9 * beside + 0.3, 3.7 * rows + 0.5)
    axes = _panels_for(figure, len(groups))
    points = {name: values.detach().cpu().numpy()[:_MOST_POINTS] for name, values in groups.items()}
    across, up = column_names(2, columns)
    # one frame for all, without a heavy tail's farthest draws
    low, high = np.quantile(np.concatenate(list(points.values())), (0.002, 0.998), axis=0)
    room = 0.06 * np.where(high > low, high - low, 1.0)
    for number, (axis, (name, values)) in enumerate(zip(axes, points.items(), strict=True)):
        colour = _GREY if name == "data" and data is not None else _colour(number - (data is not None), len(x))
        axis.scatter(values[:, 0], values[:, 1], s=8, color=colour, alpha=0.5, linewidths=0)
        axis.set(title=name, xlabel=across, ylabel=up)
        axis.set_xlim(low[0] - room[0], high[0] + room[0])
        axis.set_ylim(low[1] - room[1], high[1] + room[1])
        axis.grid(alpha=0.3)
    wrapped_title(figure, title)
    return figure


def _table_samples(x: Mapping[str, Tensor], title: str, data: Tensor | None, columns: Sequence[str]) -> Figure:
    size = next(iter(x.values())).shape[1]
    figure, axes, shown = _panels(size)
    groups = {name: values.detach().cpu().numpy() for name, values in x.items()}
    given = None if data is None else data.detach().cpu().numpy()
    for i, (axis, name) in enumerate(zip(axes, column_names(size, columns), strict=False)):
        # a heavy tail's farthest draws would leave one bar for all the rest
        everything = np.concatenate([v[:, i] for v in (*groups.values(), *([] if given is None else [given]))])
        bins = _bins(everything)
        if given is not None:
            axis.hist(given[:, i], bins=bins, density=True, color="0.8", label="data")
        for number, (guide, values) in enumerate(groups.items()):
            axis.hist(
                values[:, i],
                bins=bins,
                density=True,
                histtype="step",
                color=_colour(number, len(groups)),
                linewidth=1.6,
                label=guide,
            )
        axis.set_title(name, fontsize=10)
        axis.set_yticks([])
    figure.supxlabel("value")
    figure.supylabel("density")
    _legend(figure, axes[0])
    wrapped_title(figure, _with_count(title, shown, size))
    return figure


def _bins(values: Array) -> Array:
    """Edges of a histogram's bars; around the whole numbers for counts."""
    low, high = np.quantile(values, (0.005, 0.995))
    if high - low <= 60 and bool((values == np.round(values)).all()):
        whole: Array = np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
        return whole
    edges: Array = np.linspace(low, high if high > low else low + 1.0, 31)
    return edges


def _legend(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, markerscale=1.6)
