"""Pictures of ranks: histograms, distribution functions within bands, coverage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..plots import figure_of
from .findings import Picture
from .uniformity import ecdf_band, histogram

if TYPE_CHECKING:
    from .calibration import Calibration

__all__ = ["pictures"]

_MOST = 12
_GREY = "0.55"
_BAND = "0.88"
_FINE = (0.12, 0.47, 0.71)
_FAULTY = ("#d62728", "#e67e00", "#8c2d9b", "#7a5230", "#b5006b", "#5a6b00")


def pictures(found: Calibration) -> list[Picture]:
    """Three pictures, of the quantities in which most is wrong."""
    order = found.adjusted.amin(0).argsort(stable=True).tolist()
    # where nothing is wrong in the order they have
    faulty = [q for q in order if found.adjusted[:, q].min() <= found.alpha]
    shown = sorted((faulty + [q for q in range(len(found.names)) if q not in faulty])[:_MOST])
    colours = {q: _FAULTY[i % len(_FAULTY)] for i, q in enumerate(faulty)}
    return [_histograms(found, shown, colours), _ecdfs(found, colours), _coverage(found, colours)]


def _histograms(found: Calibration, shown: list[int], colours: dict[int, str]) -> Picture:
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = figure_of(2.6 * columns + 0.6, 2.0 * rows + 0.4)
    axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    counts, expected = histogram(found.ranks, found.draws, found.bins)
    # so wide that all bins of all quantities lie inside, but for one case in twenty
    z = -torch.special.ndtri(torch.tensor(0.025 / counts.numel(), dtype=torch.float64)).item()
    se = (expected * (1.0 - expected / found.simulations)).sqrt()
    place = ((torch.arange(found.bins) + 0.5) / found.bins).numpy()
    low, high = ((expected + sign * z * se).clamp_min(0).numpy() for sign in (-1, 1))
    for axis, q in zip(axes, shown, strict=False):
        axis.fill_between(place, low, high, color=_BAND, step="mid", linewidth=0)
        axis.plot(place, expected.numpy(), color=_GREY, linewidth=1, drawstyle="steps-mid")
        axis.bar(place, counts[:, q].numpy(), width=0.9 / found.bins, color=colours.get(q, _FINE), alpha=0.85)
        axis.set_title(found.names[q], fontsize=9)
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[: len(shown)][-columns:]:
        axis.set_xlabel("rank of z* / L")
        axis.tick_params(labelbottom=True)
    axes[0].set_ylabel("simulations")
    wrong = [found.names[q] for q in shown if q in colours]
    return Picture(
        "calibration-ranks",
        figure,
        f"Ranks of the z that made x among {found.draws} draws of q, {found.simulations:,} simulations in "
        f"{found.bins} bins. Of a right posterior they are flat, within the grey band in 95 of 100 cases; a U says too "
        "narrow, an arch too wide, a slope shifted.",
        f"Histograms of ranks for {', '.join(found.names[q] for q in shown)}; "
        + (f"not uniform: {', '.join(wrong)}." if wrong else "none departs from uniform."),
    )


def _ecdfs(found: Calibration, colours: dict[int, str]) -> Picture:
    band = ecdf_band(found.simulations, found.draws, 0.05 / len(found.names))
    figure = figure_of(6.4, 3.8)
    axis: Any = figure.subplots()
    points = band.points.numpy()
    low, high = (band.lower - band.points).numpy(), (band.upper - band.points).numpy()
    axis.fill_between(points, low, high, color=_BAND, linewidth=0, label="95% band")
    axis.axhline(0.0, color=_GREY, linewidth=1)
    places = (band.points * (found.draws + 1)).round().long() - 1
    largest: list[tuple[float, str]] = []
    for q, name in enumerate(found.names):
        counts = torch.bincount(found.ranks[:, q], minlength=found.draws + 1).cumsum(0)[places]
        deviation = counts.double() / found.simulations - band.points
        largest.append((deviation.abs().max().item(), name))
        label = name if q in colours and list(colours).index(q) < len(_FAULTY) else None
        axis.plot(
            band.points, deviation, color=colours.get(q, _FINE), linewidth=1.6 if q in colours else 0.9, label=label
        )
    axis.set_xlabel("u")
    axis.set_ylabel("share of ranks ≤ u, minus u")
    axis.legend(frameon=False, fontsize=8)
    worst = max(largest)
    return Picture(
        "calibration-ecdf",
        figure,
        "How far the ranks' distribution function lies from a uniform one. Those of a right posterior all stay within "
        "the band, at all points and for all quantities at once, in 95 of 100 cases.",
        f"Differences of {len(found.names)} empirical distribution functions from uniform; the largest is "
        f"{worst[0]:.3f}, of {worst[1]}.",
    )


def _coverage(found: Calibration, colours: dict[int, str]) -> Picture:
    asked = [i / 20 for i in range(1, 20)]
    levels, shares, errors = found.coverage(asked)
    numbers = len(found.names) - found.functions
    figure = figure_of(5.0, 4.2)
    axis: Any = figure.subplots()
    z = -torch.special.ndtri(torch.tensor(0.025 / (len(asked) * numbers), dtype=torch.float64)).item()
    low, high = (levels - z * errors).numpy(), (levels + z * errors).numpy()
    axis.fill_between(levels.numpy(), low, high, color=_BAND, linewidth=0, label="95% band")
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for q in range(numbers):
        label = found.names[q] if q in colours and list(colours).index(q) < len(_FAULTY) else None
        axis.plot(
            levels.numpy(),
            shares[:, q].numpy(),
            color=colours.get(q, _FINE),
            linewidth=1.6 if q in colours else 0.9,
            label=label,
        )
    axis.set_xlabel("level of the central interval of q")
    axis.set_ylabel("share of simulations in which it holds z*")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    exact, at_ninety, error = found.coverage((0.9,))
    least = int(at_ninety[0, :numbers].argmin())
    return Picture(
        "calibration-coverage",
        figure,
        "How often intervals of q hold the z that made x. Below the diagonal q is too sure of itself, above it not "
        "sure enough.",
        f"Coverage against level for {numbers} latent dimensions; the {exact.item():.0%} interval of "
        f"{found.names[least]} holds the fewest, {at_ninety[0, least].item():.1%} ± {error.item():.1%}.",
    )
