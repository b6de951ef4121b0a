"""The inference gap: how much of it the family of q leaves, and how much the encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError, check_count
from ..evaluate import Estimate, Progress
from ..evaluate.chunked import Data, Source, device_of, evaluation
from ..evaluate.importance import marginal_and_bound, shared_sites
from ..labels import hide_labels
from ..objectives.base import check_particles
from .annealing import ais
from .findings import Picture, Verdict, plain
from .local_fit import OWN, fitted_locally

if TYPE_CHECKING:
    import xarray

__all__ = ["InferenceGap", "inference_gap"]

TOLERANCE = 0.1
"""Nats of a gap that are no fault."""

EFFECT = 0.2
"""Standard deviations of log p(x) over the data by which training data may be likelier: a small effect."""

_Z = 2.326
FALSE_ALARM = 0.01

FEWEST_PARTICLES = 20
"""Draws of which a standard error is made."""

_ALONE = "there is one datum on a side, which has no error: give 2 or more of each, better 50"


@dataclass(frozen=True, eq=False)
class InferenceGap:
    r"""log p(x) - ELBO of N data, and its two parts. All (N,), nats, on the CPU in float64.

    .. math::
        \underbrace{\log p(x) - L(q)}_{\text{total}} =
        \underbrace{\log p(x) - L(q^*)}_{\text{approximation}} + \underbrace{L(q^*) - L(q)}_{\text{amortization}}

    Args:
        log_px, log_px_se: the largest of the estimates, each less two standard errors; see `source`.
        elbo, elbo_se: L(q), the guide's.
        local, local_se: L(q*), of the q of the guide's family that was optimized for each datum.
        source: where `log_px` is from: "importance sampling", "importance sampling from local q", or "annealed
            importance sampling".
        estimates_px: the mean log p(x) by each of these.
        freed: what of the guide was each datum's own in q*.
        rows: the data's row numbers.
        particles: draws for each datum.
        data: which data these are.
        notes: what could not be done, and why.
        train: the same of training data.
    """

    log_px: Tensor
    log_px_se: Tensor
    elbo: Tensor
    elbo_se: Tensor
    local: Tensor
    local_se: Tensor
    source: str
    estimates_px: dict[str, Estimate]
    freed: str
    rows: Tensor
    particles: int
    data: str
    notes: tuple[str, ...] = ()
    train: InferenceGap | None = None

    @property
    def approximation(self) -> Tensor:
        """(N,) KL(q* ‖ p(z | x)), the family's part."""
        return self.log_px - self.local

    @property
    def amortization(self) -> Tensor:
        """(N,) L(q*) - L(q), the encoder's part."""
        return self.local - self.elbo

    @property
    def total(self) -> Tensor:
        """(N,) KL(q ‖ p(z | x))."""
        return self.log_px - self.elbo

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Means over the data with Monte Carlo (`se`) and sampling errors (`data_se`): "log_px", "elbo", "local",
        "approximation", "amortization", "total"."""
        px, elbo, local = self.log_px_se, self.elbo_se, self.local_se
        errors = {
            "log_px": px,
            "elbo": elbo,
            "local": local,
            "approximation": torch.hypot(px, local),
            "amortization": torch.hypot(local, elbo),
            "total": torch.hypot(px, elbo),
        }
        return {name: Estimate.of(getattr(self, name), se) for name, se in errors.items()}

    @property
    def generalization(self) -> dict[str, tuple[float, float]]:
        """Training data less these: (difference, its standard error over the data) of the means of `estimates`; empty
        without training data."""
        if self.train is None:
            return {}
        ours, theirs = self.estimates, self.train.estimates
        return {
            name: (theirs[name].mean - each.mean, (each.data_se**2 + theirs[name].data_se ** 2) ** 0.5)
            for name, each in ours.items()
        }

    def verdicts(self) -> Sequence[Verdict]:
        """Of the family and of the encoder, the larger gap first; with training data, of what was learned by heart."""
        parts = self.estimates
        whole = max(parts["total"].mean, 1e-12)
        texts = {
            "approximation": (
                "the family of q",
                "take a richer family (full-rank, mixture, a flow), or train the model with it, which then fits it",
            ),
            "amortization": (
                ("each datum's optimization", "take more updates for each datum, or a smaller learning rate at the end")
                if self.freed == OWN
                else (
                    "the encoder",
                    "take a larger encoder, train longer, with the model held, or refine its answers (semi-amortized)",
                )
            ),
        }
        found = []
        for name, (whose, advice) in texts.items():
            each = parts[name]
            fault = bool(each.mean - _Z * each.se > TOLERANCE)
            # below 0 or above the whole it is noise, and no share of anything
            share = each.mean / whole
            part = f"{100 * share:.0f}% of the" if 0 <= share <= 1 else f"of {parts['total'].mean:.3g} nats of"
            share_text = f"{part} gap between log p(x) and the ELBO"
            least, why = (" or more", "; log p(x) is a lower bound") if name == "approximation" else ("", "")
            says = f"{whose} leaves a gap of {each.mean:.3g} ± {each.se:.2g} nats a datum{least} ({share_text}{why})"
            found.append(
                Verdict(
                    check=f"{name} gap",
                    fault=fault,
                    says=says,
                    statistic=f"mean {name} gap, nats a datum",
                    value=each.mean,
                    threshold=TOLERANCE,
                    false_alarm=FALSE_ALARM,
                    advice=advice if fault else "",
                )
            )
        found.sort(key=lambda verdict: (not verdict.fault, -verdict.value))
        return [*found, *self._learned_by_heart()]

    def _learned_by_heart(self) -> list[Verdict]:
        if self.train is None:
            return []
        gap, gap_se = self.generalization["amortization"]
        alone = not (math.isfinite(gap_se) and len(self.log_px) > 1 and len(self.train.log_px) > 1)
        fault = None if alone else bool(gap + _Z * gap_se < -TOLERANCE)
        size = "smaller" if gap > 0 else "larger"
        whose = "gap of each datum's optimization" if self.freed == OWN else "encoder's gap"
        encoder = Verdict(
            check="encoder's generalization",
            fault=fault,
            says=_ALONE
            if alone
            else f"the {whose} is {abs(gap):.3g} ± {gap_se:.2g} nats {size} on these data than on the training data",
            statistic="mean amortization gap, less that of the training data, nats a datum",
            value=-gap,
            threshold=TOLERANCE,
            false_alarm=FALSE_ALARM,
            advice="refine the encoder's answers on new data, or train it on more or noisier data" if fault else "",
        )
        spread = (
            torch.cat([self.log_px - self.log_px.mean(), self.train.log_px - self.train.log_px.mean()]).std().item()
        )
        difference, se = self.generalization["log_px"]
        effect, effect_se = difference / max(spread, 1e-12), se / max(spread, 1e-12)
        fault = None if alone else bool(effect - _Z * effect_se > EFFECT)
        likely = "less likely" if effect < 0 else "likelier"
        model = Verdict(
            check="generalization",
            fault=fault,
            says=_ALONE
            if alone
            else (
                f"training data are {abs(difference):.3g} ± {se:.2g} nats {likely} than these, {abs(effect):.2g} of "
                "log p(x)'s standard deviation over the data"
            ),
            statistic="difference of mean log p(x) over its standard deviation over the data",
            value=effect,
            threshold=EFFECT,
            false_alarm=FALSE_ALARM,
            advice="stop earlier, take a smaller decoder, or more data" if fault else "",
        )
        return sorted([encoder, model], key=lambda verdict: not verdict.fault)

    def pictures(self) -> Sequence[Picture]:
        """The means one upon the other, and both parts of every datum."""
        from .figures_gap import bars, parts_by_datum

        return [bars(self), parts_by_datum(self)]

    def to_dataset(self) -> xarray.Dataset:
        """Values by "datum"."""
        import xarray as xr

        names = ("log_px", "log_px_se", "elbo", "elbo_se", "local", "local_se", "approximation", "amortization")
        values = {name: ("datum", getattr(self, name).numpy()) for name in names}
        attrs = {"particles": self.particles, "data": self.data, "log_px_from": self.source, "freed": self.freed}
        return xr.Dataset(values, {"datum": self.rows.numpy()}, attrs)

    def to_json(self) -> dict[str, Any]:
        """Means with their errors, and where log p(x) is from."""
        return dict(
            plain(
                {
                    "data": self.data,
                    "n": len(self.elbo),
                    "particles": self.particles,
                    "log_px_from": self.source,
                    "log_px_by": self.estimates_px,
                    "freed": self.freed,
                    "notes": list(self.notes),
                    **self.estimates,
                    "train": None if self.train is None else self.train.to_json(),
                    "generalization": self.generalization,
                }
            )
        )


def inference_gap(
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    train: Data | None = None,
    particles: int = 1000,
    *,
    train_guide: nn.Module | None = None,
    temperatures: int | None = 500,
    chains: int = 16,
    steps: int = 10,
    updates: int = 300,
    fit_particles: int = 8,
    lr: float = 0.05,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> InferenceGap:
    r"""How far the ELBO lies below log p(x), and whose fault that is.

    For each datum a q* of the guide's own family is found by maximizing the ELBO with the model held: all data at once,
    from the encoder's answer on, each with numbers of its own in the place where the encoder's answer goes
    (`local_fit.fitted_locally`). What is left between log p(x) and its ELBO is the family's, what it gained is the
    encoder's. The optimization stops somewhere, in the optimum nearest to the encoder's answer: the approximation part
    is too large, and the amortization part too small, by what that leaves.

    log p(x) is the largest, in the mean over the data and less two standard errors, of importance sampling from q, from
    q*, and of annealed importance sampling from the prior: each is a lower bound in expectation.

    Args:
        model, guide: a pair of programs over a `Batch`; the guide is a module.
        data: what is looked at; a few hundred data are enough.
        train: as many data that the pair was trained on, to compare with.
        train_guide: the guide of these; None: the same. One with parameters for each datum has others for them.
        particles: K of the ELBO and of importance sampling.
        temperatures, chains, steps: of annealed importance sampling; temperatures=None: without.
        updates, fit_particles, lr: Adam's steps for q*, draws in each, first learning rate, which falls to 0.
        chunk: pairs of a particle and a datum at once.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called as the parts are done, (done, all).
        compile: compile the evaluation and the annealing.

    Returns:
        `InferenceGap`.

    Raises:
        InputError: latents that all data share, which have no gap of each datum; a guide without an affine layer or
            numbers of each datum; a guide that is a point mass; training data without their guide, where it has
            parameters for each datum; else as `evaluate.log_marginal`.

    Reference: Cremer, Li and Duvenaud, Inference suboptimality in variational autoencoders, ICML 2018
    (https://arxiv.org/abs/1801.03558).
    """
    check_particles(particles)
    if particles < FEWEST_PARTICLES:
        raise InputError(
            f"particles={particles} are too few for standard errors: give {FEWEST_PARTICLES} or more, better 1000"
        )
    for name, count in (("updates", updates), ("fit_particles", fit_particles)):
        check_count(name, count)
    options: dict[str, Any] = {
        "particles": particles,
        "annealing": {"temperatures": temperatures, "chains": chains, "steps": steps},
        "fitting": {"updates": updates, "particles": fit_particles, "lr": lr},
        "chunk": chunk,
        "compile": compile,
    }
    sets = [(data, guide)]
    if train is not None:
        if train_guide is None and callable(getattr(guide, "renew", None)):
            raise InputError(
                f"train is given, and {type(guide).__name__} has parameters for each datum of data: give train_guide, "
                "the one that was fitted to the training data"
            )
        sets.append((train, train_guide or guide))
    found = []
    with evaluation(model, guide, train_guide, seed=seed, device=device_of(model, guide)):
        for k, (each, q) in enumerate(sets):

            def told(done: int, of: int, k: int = k) -> None:
                if progress is not None:
                    progress(k * of + done, of * len(sets))

            found.append(_gap(model, q, hide_labels(model, each), progress=told, **options))
    if train is None:
        return found[0]
    return InferenceGap(**{**vars(found[0]), "train": found[1]})


def _gap(
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    particles: int,
    annealing: dict[str, Any],
    fitting: dict[str, Any],
    chunk: int | None,
    compile: bool,
    progress: Progress,
) -> InferenceGap:
    source = Source(data, model, guide)
    if shared := shared_sites(model, guide, source):
        raise InputError(
            f"{', '.join(map(repr, shared))} is shared by all data, and the gap is of each datum: hold it fixed, "
            "poutine.condition(model, data={...}), and look at a guide of the rest"
        )
    pieces = 4
    marginal, bound = marginal_and_bound(model, guide, source, particles, chunk, None, compile)
    candidates: dict[str, tuple[Tensor, Tensor]] = {"importance sampling": (marginal.log_px, marginal.se)}
    progress(1, pieces)
    with fitted_locally(model, guide, source, **fitting, chunk=chunk) as local:
        progress(2, pieces)
        rows = Source(local.data, local.model, None)
        from_local, local_bound = marginal_and_bound(local.model, local.guide, rows, particles, chunk, None, compile)
        candidates["importance sampling from local q"] = (from_local.log_px, from_local.se)
        progress(3, pieces)
    notes = []
    if annealing["temperatures"] is not None:
        try:
            annealed = ais(model, source.data, **annealing, seed=None, compile=compile)
            candidates["annealed importance sampling"] = (annealed.log_px, annealed.se)
        except InputError as error:
            notes.append(f"no annealed importance sampling: {error}")
    progress(4, pieces)
    found = {name: Estimate.of(value, se) for name, (value, se) in candidates.items()}
    # less its error, else the noisiest of those that agree would be taken for the largest
    best = max(found, key=lambda name: found[name].mean - 2.0 * found[name].se)
    log_px, log_px_se = candidates[best]
    return InferenceGap(
        log_px=log_px.double(),
        log_px_se=log_px_se.double(),
        elbo=bound.elbo,
        elbo_se=bound.elbo_se,
        local=local_bound.elbo,
        local_se=local_bound.elbo_se,
        source=best,
        estimates_px=found,
        freed=local.freed,
        rows=source.rows,
        particles=particles,
        data=source.description,
        notes=tuple(notes),
    )
