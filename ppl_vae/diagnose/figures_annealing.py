"""Pictures of what annealing found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .findings import Picture

if TYPE_CHECKING:
    from .annealed import Annealed, Bidirectional

__all__ = ["chains_that_count", "two_bounds"]


def chains_that_count(found: Annealed) -> Picture:
    """log p(x) of each datum, sorted, with two standard errors, and below it how many of its chains count."""
    from ..plots import figure_of, wrapped_title

    figure = figure_of(7.0, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    order = found.log_px.argsort()
    place = torch.arange(len(order)).numpy()
    error = (2.0 * found.se[order]).nan_to_num(0.0).numpy()
    above.errorbar(
        place, found.log_px[order].numpy(), error, fmt="o", markersize=3, linewidth=0.8, color="tab:blue", ecolor="0.6"
    )
    above.set_ylabel("log p(x), nats")
    below.bar(place, found.ess[order].numpy(), width=1.0, color="tab:green")
    below.axhline(found.chains, color="0.5", linewidth=0.8, linestyle="--")
    below.set_ylim(0.0, 1.08 * found.chains)
    below.set_ylabel("chains that count")
    below.set_xlabel("data, by log p(x)")
    below.locator_params(axis="x", integer=True)
    way = "reversed annealing" if found.reversed else "annealing"
    wrapped_title(figure, f"log p(x) by {way}, {found.temperatures} temperatures\n{found.data}")
    mean = found.estimate
    return Picture(
        name="annealing",
        figure=figure,
        caption=(
            f"log p(x) by annealed importance sampling with two standard errors, and the effective number of its "
            f"{found.chains} chains."
        ),
        alt=(
            f"Dots of {len(order)} data, log p(x) from {found.log_px.min():.1f} to {found.log_px.max():.1f} nats, mean "
            f"{mean.mean:.2f}; on average {found.ess.mean():.1f} of {found.chains} chains count."
        ),
    )


def two_bounds(found: Bidirectional) -> Picture:
    """The two bounds of each datum, as distances from their middle."""
    from ..plots import figure_of, wrapped_title

    figure = figure_of(7.0, 4.0)
    axis = figure.subplots()
    order = found.gap.argsort()
    place = torch.arange(len(order)).numpy()
    half = found.gap[order].numpy() / 2.0
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.vlines(place, -half, half, color="0.75", linewidth=1.0)
    axis.plot(place, half, "o", markersize=3, color="tab:red", label="upper bound, back from the z that made x")
    axis.plot(place, -half, "o", markersize=3, color="tab:blue", label="lower bound, from the start")
    axis.set_xlabel("simulated data, by their gap")
    axis.locator_params(axis="x", integer=True)
    axis.set_ylabel("nats from the middle of the bounds")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    gap = found.estimate
    wrapped_title(
        figure, f"log p(x) between two bounds, {found.forward.temperatures} temperatures\n{found.forward.data}"
    )
    return Picture(
        name="bdmc",
        figure=figure,
        caption="Bidirectional Monte Carlo: the bounds on log p(x) of each simulated datum.",
        alt=(
            f"Two dots for each of {len(order)} data; the mean gap is {gap.mean:.3g} nats, the largest "
            f"{found.gap.max():.3g}."
        ),
    )
