"""Leave-one-out: how well each datum is predicted by a posterior that has not seen it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..errors import InputError, check_count
from ..evaluate.chunked import Data, Source, device_of, evaluation, spans
from ..evaluate.estimates import Estimate
from ..evaluate.importance import Progress, shared_sites
from ..evaluate.latents import latent_sites
from ..labels import hide_labels
from ..objectives.iwae import sum_enumerated
from ..psis import RELIABLE, smooth_largest, tail_length
from ..weights import Program, log_weights, particle_plate, score_site
from .findings import Picture, Verdict, plain
from .khat import fewest_data, khat, most_by_chance

if TYPE_CHECKING:
    import xarray

__all__ = ["LeaveOneOut", "loo", "psis_loo"]

_FEWEST = 100
_PAIRS = 8192
_LOCAL = 1000
_INSIDE = 20


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """elpd_n of N data, nats. On the CPU, float64.

    Args:
        elpd: (N,) log predictive density of each datum, left out.
        se: (N,) its Monte Carlo standard error.
        khat: (N,) of the weights that it rests on.
        lpd: (N,) log predictive density with the datum in; the same as `elpd` where no latent is shared.
        shared: latents that all data share; () where there are none and elpd is log p(x).
        draws: of what is shared; particles where nothing is.
        khat_posterior: of the weights that carry draws of q to those of the posterior of what is shared; None where
            nothing is shared, or draws are taken as they are.
        rows: (N,) the data's row numbers.
        data: which data.
    """

    elpd: Tensor
    se: Tensor
    khat: Tensor
    lpd: Tensor
    shared: tuple[str, ...]
    draws: int
    khat_posterior: float | None
    rows: Tensor
    data: str

    @property
    def estimate(self) -> Estimate:
        """Mean elpd, nats per datum; `data_se` is its error over the data."""
        return Estimate.of(self.elpd, self.se, independent=not self.shared)

    @property
    def p_loo(self) -> float:
        """Effective number of parameters, Σ (lpd - elpd): what the sum loses by leaving each datum out."""
        return (self.lpd - self.elpd).sum().item()

    @property
    def threshold(self) -> float:
        """k-hat above which an elpd_n cannot be relied on: 0.7, or 1 - 1 / log10 S of fewer draws."""
        return min(1.0 - 1.0 / math.log10(self.draws), RELIABLE) if self.shared else RELIABLE

    def verdicts(self) -> list[Verdict]:
        """One: whether the numbers can be relied on."""
        n = len(self.elpd)
        bad = int((~(self.khat <= self.threshold)).sum())
        far = self.khat_posterior is not None and not self.khat_posterior <= self.threshold
        allowed = 0 if self.shared else most_by_chance(n, self.draws)
        fault = None if allowed >= n else bad > allowed or far
        what = f"elpd is {self.estimate.mean:.2f} ± {self.estimate.data_se:.2g} nats a datum"
        what += f" (p_loo {self.p_loo:.1f})" if self.shared else ", log p(x)"
        says = f"Leave-one-out: {what}; k-hat is above {self.threshold:.2g} for {bad} of {n} data"
        if far:
            says += f", and is {self.khat_posterior:.2f} for the posterior of {', '.join(self.shared)} itself"
        return [
            Verdict(
                check="leave-one-out",
                fault=fault,
                says=f"{says}: it cannot be relied on."
                if fault
                else f"{says}: a fault can be told from {fewest_data(self.draws)} data on."
                if fault is None
                else f"{says}.",
                statistic=f"share of the data with k-hat above {self.threshold:.2g}",
                value=1.0 if far else bad / n,
                threshold=allowed / n,
                false_alarm=None if self.shared else 0.01,
                advice=""
                if not fault
                else "q of what is shared is too far from its posterior: take draws of HMC or NUTS, or a richer family"
                if far
                else "fit again without these data, or take more draws"
                if self.shared
                else "take log p(x) from annealed importance sampling, or a richer guide",
            )
        ]

    def pictures(self) -> list[Picture]:
        """elpd_n against k-hat."""
        from ..plots import figure_of

        figure = figure_of(5.6, 3.6)
        axis: Any = figure.subplots()
        finite = self.khat.isfinite()
        k = torch.where(finite, self.khat, self.khat[finite].min() if bool(finite.any()) else torch.zeros(()).double())
        bad = ~(self.khat <= self.threshold)
        for where, colour, name in ((~bad, "#1f77b4", "can be relied on"), (bad, "#d62728", "cannot")):
            if bool(where.any()):
                axis.scatter(k[where].numpy(), self.elpd[where].numpy(), s=10, color=colour, label=name)
        axis.axvline(self.threshold, color="0.4", linewidth=1, linestyle="--")
        axis.set_xlabel("k-hat")
        axis.set_ylabel("elpd of a datum, nats")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        worst = int(self.elpd.argmin())
        return [
            Picture(
                "leave-one-out",
                figure,
                "Each datum's log predictive density when it is left out, against the k-hat of the weights it rests on "
                f"(dashed: {self.threshold:.2g}, from where {self.draws:,} draws are too few). Low ones are data that "
                "the model does not expect.",
                f"{len(k)} data, {int(bad.sum())} with k-hat above {self.threshold:.2g}; the least expected is row "
                f"{int(self.rows[worst])}, {self.elpd[worst].item():.1f} nats.",
            )
        ]

    def to_dataset(self) -> xarray.Dataset:
        """Values by "datum"."""
        import xarray as xr

        values = {name: ("datum", getattr(self, name).numpy()) for name in ("elpd", "se", "khat", "lpd")}
        return xr.Dataset(values, {"datum": self.rows.numpy()}, {"data": self.data, "draws": self.draws})

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole."""
        return dict(
            plain(
                {
                    "data": self.data,
                    "n": len(self.elpd),
                    "elpd": self.estimate,
                    "sum": self.elpd.sum().item(),
                    "p_loo": self.p_loo,
                    "shared": list(self.shared),
                    "draws": self.draws,
                    "unreliable": int((~(self.khat <= self.threshold)).sum()),
                    "threshold": self.threshold,
                    "khat_posterior": self.khat_posterior,
                }
            )
        )


def loo(
    model: Program,
    guide: Program | None = None,
    data: Data | None = None,
    *,
    particles: int | None = None,
    draws: int = 1000,
    correct: bool = True,
    chunk: int = _PAIRS,
    seed: int | None = None,
    progress: Progress | None = None,
) -> LeaveOneOut:
    r"""log predictive density of each datum, given all data but itself.

    **Latents of a datum alone.** Given the parameters data are independent, so that what the others say of x_n is
    nothing: elpd_n is log p(x_n), by importance sampling with smoothed weights and its k-hat. It is **not** what
    `arviz.loo` makes of log p(x_n | z_n): reweighting draws of p(z_n | x_n) by 1 / p(x_n | z_n) is the harmonic-mean
    estimate of p(x_n), whose variance is infinite as a rule; draws for ArviZ are refused here for that reason. (Model
    parameters that were trained on x_n have seen it: give held-out data.)

    **Latents u that all data share**, as the weights of `BayesianDecoder` or the parameters of a `GaussianMixture`:

    .. math:: p(x_n \mid x_{-n}) = \frac{\sum_s r_s\, p(x_n \mid u_s)}{\sum_s r_s}, \qquad
        r_s = \frac{p(u_s \mid x)}{q(u_s)} \, \frac{1}{p(x_n \mid u_s)}, \quad u_s \sim q(u)

    with z_n integrated out of p(x_n | u_s), by enumeration or by importance sampling, and r Pareto-smoothed.

    Args:
        model, guide: a pair of programs over a `Batch`.
        data: a data set, a batch with x, or x; of shared latents **the data that q(u) was fitted to, all of them**.
        particles: of z_n: K for log p(x_n); None: 1000, or 20 within each draw of u.
        draws: S of u.
        correct: carry q(u) to p(u | x) by importance weights; False: take q(u) for the posterior, as where its draws
            are HMC's.
        chunk: pairs of a particle and a datum at once, with shared latents.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called as the weights are computed.

    Returns:
        `LeaveOneOut`.

    Raises:
        InputError: draws for ArviZ instead of a model; too few draws, saying how many are needed; a q(u) that is a
            point; weights that are NaN; else as `evaluate.log_marginal`.

    References:
        Vehtari, Gelman and Gabry, Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
        2017 (https://arxiv.org/abs/1507.04544). Magnusson, Andersen, Jonasson and Vehtari, Bayesian leave-one-out
        cross-validation for large data, ICML 2019 (https://arxiv.org/abs/1904.10679): approximate posteriors. Neal,
        2008, on the harmonic mean: "the worst Monte Carlo method ever".
    """
    _refuse_draws(model, data)
    if guide is None or data is None:
        raise InputError("loo takes model, guide and data")
    if particles is not None:
        check_count("particles", particles)
    check_count("chunk", chunk)
    data = hide_labels(model, data)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        source.check(model, guide, density=True)
        shared = shared_sites(model, guide, source)
        if not shared:
            found = khat(model, guide, data, particles or _LOCAL, progress=progress)
            return LeaveOneOut(
                found.smoothed,
                found.smoothed_se,
                found.khat,
                found.smoothed,
                (),
                found.particles,
                None,
                found.rows,
                found.data,
            )
        if check_count("draws", draws) < _FEWEST:
            raise InputError(f"draws={draws} are too few to leave data out by: give draws={_FEWEST} or more")
        log_likelihood, log_ratio = _given_shared(model, guide, source, shared, draws, particles, chunk, progress)
    log_posterior, of_posterior = None, None
    if correct:
        log_posterior = log_ratio + log_likelihood.sum(1)
        of_posterior = _smoothed(log_posterior.unsqueeze(1))[1].item()
    elpd, se, k, lpd = psis_loo(log_likelihood, log_posterior)
    rows = getattr(source.data, "rows", None)
    return LeaveOneOut(
        elpd,
        se,
        k,
        lpd,
        shared,
        draws,
        of_posterior,
        torch.arange(source.size) if rows is None else rows.cpu(),
        source.description,
    )


def psis_loo(log_likelihood: Tensor, log_w: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leave-one-out by Pareto-smoothed importance sampling.

    Args:
        log_likelihood: (S, N) log p(x_n | u_s).
        log_w: (S,) log of p(u_s, x) / q(u_s), up to a constant; None: draws are those of the posterior.

    Returns:
        elpd, its standard error, k-hat, and the log predictive density with the datum in; each (N,).
    """
    log_likelihood = log_likelihood.double()
    draws = log_likelihood.shape[0]
    base = torch.zeros(draws, dtype=torch.float64) if log_w is None else log_w.double()
    log_r, k = _smoothed(base.unsqueeze(1) - log_likelihood)
    log_r = log_r - log_r.logsumexp(0)
    elpd = (log_r + log_likelihood).logsumexp(0)
    # of a ratio of two means over the same draws, by the delta method
    se = (log_r.exp() * ((log_likelihood - elpd).exp() - 1.0)).square().sum(0).sqrt()
    weights = _smoothed(base.unsqueeze(1))[0] if log_w is not None else base.unsqueeze(1)
    lpd = (weights - weights.logsumexp(0) + log_likelihood).logsumexp(0)
    return elpd, se, k, lpd


def _smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights (S, N) with their tails smoothed, and k-hat (N,)."""
    draws = log_w.shape[0]
    largest, places = log_w.topk(min(tail_length(draws) + 1, draws), dim=0)
    found = smooth_largest(largest, draws)
    return log_w.scatter(0, places, found.log_w.flip(0).to(log_w)), found.khat


def _given_shared(
    model: Program,
    guide: Program,
    source: Source,
    shared: tuple[str, ...],
    draws: int,
    particles: int | None,
    chunk: int,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """log p(x_n | u_s), (S, N), and log p(u_s) - log q(u_s), (S,)."""
    with particle_plate(draws):
        sites = {n: s for n, s in latent_sites(guide, source.batch(0, 1)).items() if n in shared}
    values = {n: s["value"].expand(draws, 1, *s["fn"].event_shape) for n, s in sites.items()}
    if all(bool((v == v[:1]).all()) for v in values.values()):
        raise InputError(
            f"q of {', '.join(shared)} is a point: there is no posterior to leave data out of; take a family with a "
            "density, Shared(model, family='mean-field')"
        )
    log_q = sum(score_site(s).double().expand(draws, 1) for s in sites.values())
    one = log_weights(model, guide, source.batch(0, 1))
    inside = 1 if set(one.enumerated) >= one.draws.keys() - set(shared) else (particles or _INSIDE)
    rows = max(1, min(source.size, chunk // inside))
    block = max(1, min(draws, chunk // (inside * rows)))
    out = torch.empty(draws, source.size, dtype=torch.float64)
    log_p = torch.zeros(draws, 1, dtype=torch.float64)
    for start, stop in spans(source.size, rows):
        batch = source.batch(start, stop)
        for a, b in spans(draws, block):
            held = {n: v[a:b].repeat_interleave(inside, 0) for n, v in values.items()}
            w = log_weights(model, _Held(held)(guide), batch, particles=(b - a) * inside)
            each = sum_enumerated(w, w.log_w_given).expand(w.particles, w.size).double()
            log_mean = each.reshape(b - a, inside, -1).logsumexp(1) - math.log(inside)
            out[a:b, start:stop] = log_mean.cpu()
            if start == 0:
                prior: Any = sum(w.log_prior[n].double().expand(w.particles, 1) for n in shared)
                log_p[a:b] = prior[::inside].cpu()
            if progress is not None:
                progress(start * draws + b * (stop - start), source.size * draws)
    if bool((bad := out.isnan() | (out == math.inf)).any()):
        datum = int(bad.any(0).nonzero()[0])
        raise InputError(
            f"log p(x | {', '.join(shared)}) is NaN or infinite for datum {datum} of {source.description}: the pair's "
            "parameters are not finite, or its distributions are degenerate there"
        )
    return out, (log_p - torch.as_tensor(log_q).cpu()).squeeze(1)


class _Held(Messenger):
    """Gives a guide's sites values, as if it had drawn them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


def _refuse_draws(*things: Any) -> None:
    for thing in things:
        if type(thing).__name__ in ("InferenceData", "DataTree", "Dataset"):
            raise InputError(
                "these are draws for ArviZ, whose log_likelihood is log p(x_n | z_n) at z_n ~ q(z | x_n), of a latent "
                "that no other datum has: leaving x_n out of that is the harmonic-mean estimate of p(x_n), whose "
                "variance is infinite as a rule. elpd_n is log p(x_n): call loo(model, guide, data)"
            )
