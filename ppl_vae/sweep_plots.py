"""Pictures of a sweep: spread over seeds first, and what a score costs in reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .plots import figure_of, wrapped_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sweep import Sweep

__all__ = ["trade_off", "violins"]


def violins(found: Sweep, column: str) -> Figure:
    """A metric's spread over the seeds, a violin for each objective, with every run as a point and the mean as a line.

    Of fewer than three seeds there are points alone.
    """
    names = [name for name in found.names if found.values(name, column)]
    figure = figure_of(max(4.0, 1.0 * len(names) + 1.5), 4.2)
    axis = figure.subplots()
    for k, name in enumerate(names):
        values = np.array(list(found.values(name, column).values()))
        if len(values) > 2 and np.ptp(values) > 0:
            for body in axis.violinplot(values, [k], widths=0.7, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
                body.set_alpha(0.35)
        spread = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else np.zeros(1)
        axis.plot(k + spread, values, "o", markersize=3.5, color="black", alpha=0.6)
        axis.hlines(values.mean(), k - 0.25, k + 0.25, color="C3", linewidth=1.8)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel(column)
    axis.grid(axis="y", alpha=0.3)
    wrapped_title(figure, f"{column} of {found.settings['data']}, {found.settings['seeds']} seeds; lines are means")
    return figure


def trade_off(found: Sweep, column: str) -> Figure:
    """Reconstruction against a metric: every run a point, every objective's mean a cross."""
    figure = figure_of(5.6, 4.4)
    axis = figure.subplots()
    for k, name in enumerate(found.names):
        scores, costs = found.values(name, column), found.values(name, "reconstruction")
        both = sorted(scores.keys() & costs.keys())
        if not both:
            continue
        x, y = np.array([costs[s] for s in both]), np.array([scores[s] for s in both])
        colour = f"C{k % 10}"
        axis.plot(x, y, "o", markersize=4, alpha=0.5, color=colour)
        axis.plot([x.mean()], [y.mean()], "X", markersize=10, color=colour, label=name)
    axis.set_xlabel("E_q[log p(x | z)], nats per datum")
    axis.set_ylabel(column)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    wrapped_title(figure, f"Reconstruction against {column}; crosses are means over seeds")
    return figure
