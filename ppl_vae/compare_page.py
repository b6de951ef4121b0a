"""A comparison as a page: its numbers, and its pictures with what a reader needs who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .diagnose.comparison_page import comparison_page
from .diagnose.findings import Picture
from .evaluate import Evaluation
from .report import Spread, is_doubted, plus_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .compare import Comparison

__all__ = ["page_of"]

_CAPTIONS = {
    "training": "ELBO, reconstruction and KL by epoch, under each guide.",
    "reconstructions": "Test data and their reconstructions at the posterior mean, under each guide.",
    "samples": "Samples of each model, from its prior.",
    "latent": "Posterior means of the test data, by class where there are classes, under each guide.",
    "posterior": "q(z | x) over the exact posterior of a few data, under each guide.",
    "seeds": "Each guide's numbers, seed by seed.",
}

_UNSHOWN = ("guide", "seed", "device", "data_dir", "download")


def page_of(comparison: Comparison, figures: Mapping[str, Figure]) -> str:
    """The page of a comparison with its diagnoses; `figures` by name, which are drawn over: files come before it."""
    one_model = comparison.reference is not None
    heads = [
        "guide",
        "ELBO",
        "KL(q ‖ p(z|x))" if one_model else "KL",
        "log p(x)",
        f"ESS of {comparison.eval_particles:,}",
    ]
    rows = []
    for c in comparison.done:
        found = [t.evaluation for t in c.done if t.evaluation is not None]
        divergences = [t.divergence for t in c.done if t.divergence is not None]
        spreads = [
            Spread.over([e.elbo for e in found]),
            Spread.over(divergences or [e.kl for e in found]),
            Spread.over([e.log_px for e in found]),
        ]
        mark = "†" if any(map(is_doubted, found)) else ""
        numbers = [plus_minus(spread.mean, spread.se) for spread in spreads]
        rows.append([c.guide + c.row.note, *numbers[:2], numbers[2] + mark, f"{found[0].ess.mean:.0f}"])
    error = "standard error over the seeds" if len(comparison.seeds) > 1 else "Monte Carlo standard error"
    notes = [f"ELBO, KL and log p(x) in nats a datum, ± {error}."]
    notes += [f"{c.guide} failed: {c.error}" for c in comparison.failed] + comparison.said()
    if any("†" in row[3] for row in rows):
        notes.append("† k-hat is above 0.7 for more than 1% of the data: more likely too low than too high.")
    return comparison_page(
        f"{comparison.recipe.model}: {', '.join(c.guide for c in comparison.done)}",
        comparison.test.description,
        comparison.diagnoses,
        heads,
        rows,
        notes,
        [Picture(name, figure, _CAPTIONS.get(name, name), _told(comparison, name)) for name, figure in figures.items()],
        _about(comparison),
    )


def _about(comparison: Comparison) -> dict[str, str]:
    recipe = {name: value for name, value in comparison.recipe.to_json().items() if name not in _UNSHOWN}
    values = comparison.to_json()
    return {
        "settings": ", ".join(
            f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in recipe.items()
            if value is not None
        ),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "draws a datum": f"{comparison.eval_particles:,}",
        "budget of the diagnostics": ", ".join(dict.fromkeys(d.budget for d in comparison.diagnoses.values())),
        **{name: str(value) for name, value in {**values["machine"], **values["versions"]}.items()},
    }


def _told(comparison: Comparison, name: str) -> str:
    """What a picture shows, in words, with its numbers."""
    firsts = {c.guide: t.evaluation for c in comparison.done if (t := c.first) is not None}
    found: dict[str, Evaluation] = {guide: e for guide, e in firsts.items() if e is not None}
    n = len(comparison.test)
    if name == "training":
        told = [
            f"{guide} ELBO {e.elbo.mean:.2f}, log p(x | z) {e.log_likelihood.mean:.2f}, KL {e.kl.mean:.2f}"
            for guide, e in found.items()
        ]
        return f"Lines by epoch in three panels; at the end, on the test data, in nats: {'; '.join(told)}."
    if name == "reconstructions":
        told = [f"{guide} {e.log_likelihood.mean:.2f} nats a datum" for guide, e in found.items()]
        return f"Test data beside their reconstructions. Mean log p(x | z): {'; '.join(told)}."
    if name == "samples":
        told = [f"{guide} {e.log_px.mean:.2f} nats" for guide, e in found.items()]
        return f"Samples in a panel for each model. Mean log p(x) of the test data: {'; '.join(told)}."
    if name == "latent":
        told = [f"{guide} {_active(e)}" for guide, e in found.items()]
        return f"Dots, one for each of {n} data, a panel for each guide. Active latent dimensions: {'; '.join(told)}."
    if name == "posterior":
        told = [f"{guide} {e.log_px.mean - e.elbo.mean:.3g}" for guide, e in found.items()]
        return (
            "Contours of q over the posterior's, a row a guide, a column a datum. Mean gap between log p(x) and the "
            f"ELBO, in nats: {'; '.join(told)}."
        )
    if name == "seeds":
        told = [
            f"{c.guide} {min(values):.2f} to {max(values):.2f}"
            for c in comparison.done
            if (values := [t.evaluation.elbo.mean for t in c.done if t.evaluation is not None])
        ]
        return f"A line a seed over the guides. ELBO in nats: {'; '.join(told)}."
    return _CAPTIONS.get(name, name)


def _active(evaluation: Evaluation) -> str:
    units = evaluation.active_units
    return f"{units.count} of {sum(v.numel() for v in units.variances.values())}"
