"""What the reference posterior says of q, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .findings import Verdict

if TYPE_CHECKING:
    from .nuts_check import NutsCheck
    from .reference import Reference

__all__ = ["of_chains", "of_means", "of_nuts", "of_shape", "of_widths"]

_NOT_MET = "the chains have met for none of these data, and nothing can be said: give more warmup, draws or steps"
_MOST_NAMED = 6


def of_widths(found: Reference) -> Verdict:
    r"""Too narrow or too wide, by dimension: the mean over the data of log(sd_q / sd_p) beyond ±log 0.9 by z standard
    errors, z the normal quantile of 1 - 0.01 / 2D."""
    from scipy.stats import norm

    from .reference import FALSE_ALARM, NARROW

    log_ratio, se = found.log_ratio[found.met], found.log_ratio_se[found.met]
    statistic = "mean of log(sd of q / sd of the posterior) over the data, of the dimension where it is farthest from 0"
    room = -math.log(NARROW)
    if not len(log_ratio):
        return _nothing("posterior width", statistic, room)
    mean = log_ratio.mean(0)
    error = se.square().sum(0).sqrt() / len(se)
    z = float(norm.isf(FALSE_ALARM / (2 * len(mean))))
    narrow, wide = (mean + z * error < -room), (mean - z * error > room)
    parts = []
    for where, word in ((narrow, "too narrow"), (wide, "too wide")):
        if bool(where.any()):
            parts.append(f"{word} in {_dimensions(found, where, mean.exp())}")
    worst = mean[mean.abs().argmax()].item()
    if parts:
        says = f"the posterior is {' and '.join(parts)} (its standard deviation over the chains')"
        advice = (
            "take a family with correlations (full-rank, low-rank, a flow), or one that covers (wake, IWAE)"
            if bool(narrow.any())
            else "train longer; look at the encoder's amortization gap"
        )
    else:
        low, high = mean.exp().min().item(), mean.exp().max().item()
        says = f"q's standard deviations are {low:.2f} to {high:.2f} of the posterior's, by dimension"
        advice = ""
    return Verdict("posterior width", bool(parts), says, statistic, worst, room, FALSE_ALARM, advice)


def of_means(found: Reference) -> Verdict:
    r"""Shifted, by dimension: :math:`\sum_n Δ_{nd}^2 / se_{nd}^2` above the 1 - 0.01/D quantile of a noncentral
    chi-square of N degrees, whose noncentrality is that of shifts of 0.1 standard deviations in every datum."""
    from scipy.stats import ncx2

    from .reference import FALSE_ALARM, SHIFT

    error, se = found.mean_error[found.met], found.mean_error_se[found.met]
    statistic = "root mean square over the data of q's shift, in posterior standard deviations, where it is largest"
    if not len(error):
        return _nothing("posterior mean", statistic, SHIFT)
    total = (error / se).square().sum(0)
    least = ncx2.isf(FALSE_ALARM / error.shape[1], len(error), (SHIFT / se).square().sum(0).numpy())
    where = total > torch.as_tensor(least)
    rms = (error.square().mean(0) - se.square().mean(0)).clamp_min(0.0).sqrt()
    if bool(where.any()):
        says = f"the posterior is shifted in {_dimensions(found, where, rms)} (standard deviations, root mean square)"
    else:
        says = f"q's means are within {rms.max().item():.2f} posterior standard deviations, root mean square"
    advice = "train the encoder longer or make it larger; look at its amortization gap" if bool(where.any()) else ""
    value = rms.max().item()
    return Verdict("posterior mean", bool(where.any()), says, statistic, value, SHIFT, FALSE_ALARM, advice)


def of_shape(found: Reference) -> Verdict:
    """Another distribution altogether: the sliced Wasserstein distance above its null level, by a t-test over the
    data."""
    from scipy.stats import t

    from .reference import DISTANCE, FALSE_ALARM

    excess = (found.distance - found.null)[found.met]
    statistic = (
        "mean over the data of the sliced Wasserstein distance less its null level, posterior standard deviations"
    )
    if len(excess) < 3:
        return _nothing(
            "posterior shape",
            statistic,
            DISTANCE,
            "fewer than three data have chains that met: give rows=3 or more, and more warmup",
        )
    mean, se = excess.mean().item(), excess.std().item() / math.sqrt(len(excess))
    fault = mean - float(t.isf(FALSE_ALARM, len(excess) - 1)) * se > DISTANCE
    distance, null = found.distance[found.met].mean().item(), found.null[found.met].mean().item()
    says = (
        f"q lies {distance:.2f} posterior standard deviations from the chains (sliced Wasserstein), which lie "
        f"{null:.2f} from each other"
    )
    advice = "look at the draws: a flow or a mixture can bend or split where a Gaussian cannot" if fault else ""
    return Verdict("posterior shape", fault, says, statistic, mean, DISTANCE, FALSE_ALARM, advice)


def of_chains(found: Reference) -> Verdict:
    """Whether the reference itself is to be relied on. Of so many draws as the budgets take R-hat is below 1.05 for
    chains that have met: measured of Gaussian posteriors, one in 1,000 data or fewer."""
    from .reference import ENOUGH, FALSE_ALARM, MET

    n, met = len(found.met), int(found.met.sum())
    worst = found.samples.worst_rhat.max().item()
    fault = met < n
    says = (
        f"the chains of {n - met} of {n} data have not met (R-hat up to {worst:.3g}), and are left out"
        if fault
        else f"the chains of all {n} data have met: R-hat up to {worst:.3f}, {int(found.samples.fewest_ess.min())} "
        "effective draws or more"
    )
    advice = "take more warmup, draws or steps; modes far apart are not crossed by chains" if fault else ""
    statistic = f"share of the data with R-hat above {MET}"
    chains, draws = found.samples.log_joint.shape[:2]
    known = FALSE_ALARM if chains * draws >= ENOUGH else None
    return Verdict("reference chains", fault, says, statistic, (n - met) / n, 0.0, known, advice)


def of_nuts(check: NutsCheck) -> Verdict:
    """Whether Pyro's NUTS agrees with the chains: the largest difference of means and mean squares in standard
    errors."""
    from scipy.stats import norm

    from .reference import FALSE_ALARM

    worst = check.z.abs().max().item()
    least = float(norm.isf(FALSE_ALARM / (2 * check.z.numel())))
    fault = not worst <= least
    says = (
        f"Pyro's NUTS and these chains differ by up to {worst:.1f} standard errors, in {check.z.numel()} means and "
        f"mean squares of {len(check.z)} data"
    )
    advice = "take more draws of both; one of them has not reached the posterior" if fault else ""
    return Verdict(
        "NUTS",
        fault,
        says,
        "largest difference of means and mean squares, standard errors",
        worst,
        least,
        FALSE_ALARM,
        advice,
    )


def _dimensions(found: Reference, where: torch.Tensor, values: torch.Tensor) -> str:
    """ "z[1] (0.71) and z[4] (0.80)"."""
    names = [f"{found.dims[d]} ({values[d].item():.2f})" for d in where.nonzero().flatten().tolist()]
    if len(names) > _MOST_NAMED:
        names = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED} more dimensions"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _nothing(check: str, statistic: str, threshold: float, why: str = _NOT_MET) -> Verdict:
    from .reference import FALSE_ALARM

    return Verdict(check, None, why, statistic, math.nan, threshold, FALSE_ALARM)
