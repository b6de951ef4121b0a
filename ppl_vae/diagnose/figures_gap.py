"""Pictures of the inference gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .findings import Picture

if TYPE_CHECKING:
    from .gap import InferenceGap

__all__ = ["bars", "parts_by_datum"]

_COLOURS = {"approximation": "tab:orange", "amortization": "tab:blue"}


def bars(found: InferenceGap) -> Picture:
    """The mean gap in its two parts, with the training data's beside it."""
    from ..plots import figure_of, wrapped_title

    sets = {"these data": found} | ({} if found.train is None else {"training data": found.train})
    figure = figure_of(7.0, 1.6 + 0.7 * len(sets))
    axis = figure.subplots()
    told = []
    for place, (name, each) in enumerate(sets.items()):
        estimates, left = each.estimates, 0.0
        for part, colour in _COLOURS.items():
            value = estimates[part]
            axis.barh(
                place,
                value.mean,
                left=left,
                xerr=2 * value.data_se,
                color=colour,
                label=part if place == 0 else None,
                height=0.6,
                error_kw={"elinewidth": 1.0, "capsize": 3},
            )
            left += value.mean
        told.append(
            f"{name}: approximation {estimates['approximation'].mean:.3g}, amortization "
            f"{estimates['amortization'].mean:.3g} nats"
        )
    axis.set_yticks(range(len(sets)), list(sets))
    axis.set_xlabel("nats a datum below log p(x)")
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    wrapped_title(figure, f"The inference gap\n{found.data}")
    return Picture(
        name="gap",
        figure=figure,
        caption=(
            "The gap between log p(x) and the ELBO: what the family of q leaves (approximation) and what the encoder "
            f"leaves (amortization); bars of two standard errors over the data. log p(x) is by {found.source}."
        ),
        alt=f"Bars: {'; '.join(told)}.",
    )


def parts_by_datum(found: InferenceGap) -> Picture:
    """Both parts of each datum."""
    from ..plots import figure_of, wrapped_title

    figure = figure_of(5.4, 4.6)
    axis = figure.subplots()
    x, y = found.approximation.numpy(), found.amortization.numpy()
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.axvline(0.0, color="0.7", linewidth=0.8)
    axis.scatter(x, y, s=12, linewidths=0, alpha=0.7, color="tab:purple")
    axis.set_xlabel("approximation: log p(x) - ELBO of local q, nats")
    axis.set_ylabel("amortization: ELBO of local q - ELBO, nats")
    wrapped_title(figure, f"Both parts of each datum\n{found.data}")
    return Picture(
        name="gap-by-datum",
        figure=figure,
        caption="Each datum's approximation gap (across) and amortization gap (up). Below 0 is Monte Carlo noise.",
        alt=(
            f"Dots, one for each of {len(x)} data: approximation from {x.min():.3g} to {x.max():.3g} nats, "
            f"amortization from {y.min():.3g} to {y.max():.3g}."
        ),
    )
