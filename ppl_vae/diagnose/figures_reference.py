"""Pictures of q over draws of the posterior itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .findings import Picture

if TYPE_CHECKING:
    from .reference import Reference

__all__ = ["by_dimension", "distances", "overlay"]

_MOST_DATA = 6
_MOST_POINTS = 1000
_LEAST = 0.01


def overlay(found: Reference) -> Picture:
    """Draws of q over the chains', in the two dimensions where their widths differ most; of one dimension densities."""
    from ..plots import figure_of, wrapped_title

    p, q = _draws(found)
    order = found.log_ratio.mean(0).abs().argsort(descending=True)
    shown = torch.linspace(0, len(found.rows) - 1, min(_MOST_DATA, len(found.rows))).round().long().tolist()
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = figure_of(2.9 * across + 0.4, 2.7 * down + 1.0)
    grid = figure.subplots(down, across, squeeze=False).flat
    flat = len(order) == 1
    first, second = int(order[0]), int(order[0 if flat else 1])
    for axis, n in zip(grid, shown, strict=False):
        if flat:
            for values, colour, label in ((p, "0.5", "posterior, by chains"), (q, "tab:red", "q")):
                axis.hist(values[:, n, 0].numpy(), 60, density=True, histtype="step", color=colour, label=label)
        else:
            for values, colour, label in ((p, "0.5", "posterior, by chains"), (q, "tab:red", "q")):
                points = values[:: max(1, len(values) // _MOST_POINTS), n].numpy()
                axis.scatter(
                    points[:, first], points[:, second], s=4, color=colour, alpha=0.35, linewidths=0, label=label
                )
            axis.set_ylabel(found.dims[second], fontsize=8)
        axis.set_xlabel(found.dims[first], fontsize=8)
        axis.set_title(f"row {int(found.rows[n])}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in figure.axes[len(shown) :]:
        axis.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend: Any = figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, markerscale=3)
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
    wrapped_title(figure, f"q over the posterior\n{found.data}")
    names = found.dims[first] if flat else f"{found.dims[first]} and {found.dims[second]}"
    return Picture(
        name="reference-draws",
        figure=figure,
        caption=(
            f"Draws of q (red) over draws of the posterior by Markov chains (grey), in {names}, where widths differ "
            "most."
        ),
        alt=(
            f"{len(shown)} panels, one a datum, of draws in {names}; q's standard deviation over the posterior's is "
            f"{found.log_ratio[:, first].mean().exp().item():.2f} in {found.dims[first]} on average."
        ),
    )


def by_dimension(found: Reference) -> Picture:
    """sd_q / sd_p and the mean's error of each datum, by dimension."""
    from matplotlib.ticker import NullFormatter

    from ..plots import figure_of, wrapped_title

    size = len(found.dims)
    figure = figure_of(min(12.0, 3.5 + 0.35 * size), 5.2)
    axes = figure.subplots(2, 1, sharex=True)
    # a point has no width, and a logarithm no place for that
    points = found.log_ratio < math.log(_LEAST)
    edge = f" Widths below {_LEAST:g} stand at the lower edge." if bool(points.any()) else ""
    rows = (
        (found.log_ratio.exp().clamp_min(_LEAST), 1.0, "sd of q / sd of posterior"),
        (found.mean_error, 0.0, "mean error, posterior sd"),
    )
    for axis, (values, line, label) in zip(axes, rows, strict=True):
        axis.axhline(line, color="0.5", linewidth=0.8)
        places = torch.arange(size).expand_as(values) + 0.25 * (torch.linspace(-1, 1, len(values))[:, None])
        axis.scatter(
            places.flatten().numpy(), values.flatten().numpy(), s=8, color="tab:purple", alpha=0.8, linewidths=0
        )
        axis.plot(range(size), values.mean(0).numpy(), "_", color="black", markersize=14)
        axis.set_ylabel(label, fontsize=9)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(_plain_numbers())
    # over several powers of ten the labels between them would lie on each other
    if float(found.log_ratio.clamp_min(math.log(_LEAST)).abs().max()) < math.log(5.0):
        axes[0].yaxis.set_minor_formatter(_plain_numbers())
    else:
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].tick_params(axis="y", which="both", labelsize=7)
    axes[1].set_xticks(range(size), list(found.dims), rotation=90 if size > 6 else 0, fontsize=7 if size > 12 else 9)
    wrapped_title(figure, f"Widths and means of q\n{found.data}")
    ratios = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(found.dims, found.log_ratio.mean(0).exp().tolist(), strict=True)
    )
    return Picture(
        name="reference-moments",
        figure=figure,
        caption=(
            "Above, q's standard deviation over the posterior's; below, its mean's error. A dot a datum, a line their "
            f"mean.{edge}"
        ),
        alt=f"Dots by latent dimension. Mean ratio of standard deviations: {ratios}.",
    )


def distances(found: Reference) -> Picture:
    """Sliced Wasserstein distances of each datum, and their null level."""
    from ..plots import figure_of, wrapped_title

    figure = figure_of(6.0, 3.6)
    axis = figure.subplots()
    order = found.distance.argsort()
    place = range(len(order))
    axis.plot(place, found.distance[order].numpy(), "o", markersize=4, color="tab:red", label="q from the chains")
    axis.plot(
        place, found.null[order].numpy(), "o", markersize=4, color="0.5", label="half of the chains from the other"
    )
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("data, by distance")
    axis.locator_params(axis="x", integer=True)
    axis.set_ylabel("posterior standard deviations")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    wrapped_title(figure, f"Sliced Wasserstein distance\n{found.data}")
    return Picture(
        name="reference-distance",
        figure=figure,
        caption="How far q's draws lie from the chains', and these from each other.",
        alt=(
            f"Distances of {len(order)} data: of q {found.distance.min():.2f} to {found.distance.max():.2f}, of halves "
            f"of the chains {found.null.min():.2f} to {found.null.max():.2f} posterior standard deviations."
        ),
    )


def _draws(found: Reference) -> tuple[Tensor, Tensor]:
    from .reference import _flat

    return _flat(found.samples.draws, 3).flatten(0, 1), _flat(found.guide_draws, 2)


def _plain_numbers() -> Any:
    from matplotlib.ticker import FormatStrFormatter

    return FormatStrFormatter("%.2g")
