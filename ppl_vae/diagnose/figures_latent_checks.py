"""Pictures of the latent space: codes over the prior, and what each dimension carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..plots import figure_of
from .findings import Picture

if TYPE_CHECKING:
    from .latent_checks import LatentChecks

__all__ = ["pictures"]

_CODE, _PRIOR = "#1f77b4", "0.6"
_MOST = 64


def pictures(found: LatentChecks) -> list[Picture]:
    """Two."""
    return [_codes(found), _dimensions(found)]


def _codes(found: LatentChecks) -> Picture:
    variances = torch.cat([found.active.variances[name].reshape(-1) for name in found.discrepancies])
    first, *others = variances.argsort(descending=True).tolist()
    figure = figure_of(8.0 if others else 4.4, 3.8)
    axes: list[Any] = list(figure.subplots(1, 2 if others else 1, squeeze=False).flat)
    if others:
        second = others[0]
        for values, colour, label in ((found.prior, _PRIOR, "prior"), (found.codes, _CODE, "codes")):
            axes[0].scatter(
                values[:, first].numpy(), values[:, second].numpy(), s=5, color=colour, alpha=0.5, label=label
            )
        axes[0].set_xlabel(found.names[first])
        axes[0].set_ylabel(found.names[second])
        axes[0].legend(frameon=False, fontsize=8, markerscale=2)
    both = torch.cat([found.prior[:, first], found.codes[:, first]])
    bins = torch.linspace(both.min().item(), both.max().item() + 1e-9, 41).tolist()
    for values, colour, label in ((found.prior, _PRIOR, "prior"), (found.codes, _CODE, "codes")):
        axes[-1].hist(values[:, first].numpy(), bins, color=colour, alpha=0.6, label=label)
    axes[-1].set_xlabel(found.names[first])
    axes[-1].set_ylabel("data")
    axes[-1].legend(frameon=False, fontsize=8)
    shown = " and ".join(found.names[d] for d in [first, *others[:1]])
    return Picture(
        "latent-codes",
        figure,
        "A code of each datum over draws of the prior, in the dimensions that move most with x. Where there is grey "
        "without blue, samples are decoded from where no data are.",
        f"Codes and prior in {shown}: {found.holes.outside:.0%} of the prior's mass lies outside of the region of 95% "
        "of the codes.",
    )


def _dimensions(found: LatentChecks) -> Picture:
    variances, errors = (
        torch.cat([by_site[name].reshape(-1).double() for name in found.discrepancies])
        for by_site in (found.active.variances, found.active.se)
    )
    kl = None if found.parts is None else found.parts.dimensions
    order = variances.argsort(descending=True)[:_MOST]
    figure = figure_of(min(11.0, 4.0 + 0.16 * len(order)), 3.4 if kl is None else 5.2)
    axes: list[Any] = list(figure.subplots(1 if kl is None else 2, 1, squeeze=False, sharex=True).flat)
    place = list(range(len(order)))
    collapsed = set(found.collapsed)
    colours = ["#d62728" if found.names[d] in collapsed else _CODE for d in order.tolist()]
    axes[0].bar(
        place, variances[order].clamp_min(1e-5).numpy(), yerr=errors[order].numpy(), color=colours, ecolor="0.3"
    )
    axes[0].axhline(found.active.threshold, color="0.4", linewidth=1, linestyle="--")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("Var of E[z | x]")
    if kl is not None:
        values, bars = [kl[d].mean for d in order.tolist()], [kl[d].se for d in order.tolist()]
        axes[1].bar(place, values, yerr=bars, color=colours, ecolor="0.3")
        axes[1].set_ylabel("KL(q(z_d) ‖ p(z_d)), nats")
    axes[-1].set_xticks(place, [found.names[d] for d in order.tolist()], rotation=90, fontsize=7)
    told = f"{found.active.count} of {len(found.names)} dimensions are active"
    return Picture(
        "latent-dimensions",
        figure,
        "How far each dimension's posterior mean moves with x (dashed: 0.01, below which it is inactive)"
        + (", and how far its aggregate is from the prior." if kl is not None else "."),
        f"{told}; collapsed: {', '.join(found.collapsed) or 'none'}.",
    )
