"""What annealing found: log p(x) with its errors, or between two bounds, as findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..batch import Batch
from ..evaluate import Estimate, effective_sample_size
from .findings import Picture, Verdict, plain

if TYPE_CHECKING:
    import xarray

__all__ = ["Annealed", "Bidirectional"]

TOLERANCE = 0.1
"""Nats a datum by which log p(x) may be too low."""

FEWEST_ACCEPTED = 0.5
"""Mean acceptance below which chains hardly move."""

_FEW_DATA = 0.05
_Z = 2.326  # of the normal quantile of 1%
_IMPOSSIBLE = 4.0


@dataclass(frozen=True, eq=False)
class Annealed:
    """log p(x) of N data by annealed importance sampling; of a conditional model, log p(x | y).

    Args:
        log_px: (N,) nats: log of the mean weight, in expectation below log p(x); of a reversed run minus the log of the
            mean inverse weight, in expectation above it.
        se: (N,) its standard error over the chains, by the delta method; NaN of a single chain.
        log_w: (C, N) log-weight of each chain; of a reversed run the log of its inverse weight.
        acceptance: (N,) mean probability of acceptance.
        divergences: (N,) how many transitions had an energy error above 1000 nats.
        temperatures: T, the number of steps from 0 to 1.
        start: "prior" or "guide".
        reversed: whether the chains went from p(z | x) to the start.
        data: which data these are.
        rows: (N,) their row numbers, where they have some.
    """

    log_px: Tensor
    se: Tensor
    log_w: Tensor
    acceptance: Tensor
    divergences: Tensor
    temperatures: int
    start: str
    reversed: bool
    data: str
    rows: Tensor | None = None

    @property
    def chains(self) -> int:
        """C."""
        return self.log_w.shape[0]

    @property
    def ess(self) -> Tensor:
        """(N,) effective number of chains, (Σ w)² / Σ w², between 1 and C."""
        return effective_sample_size(self.log_w)

    @property
    def estimate(self) -> Estimate:
        """The mean over the data, nats per datum."""
        return Estimate.of(self.log_px, self.se)

    def verdicts(self) -> Sequence[Verdict]:
        """Of the chains: whether their weights are alike enough, and whether they move."""
        speaks: Literal["these data", "data that the model makes"] = (
            "data that the model makes" if self.reversed else "these data"
        )
        bias = self.se.square().mean().item() / 2.0
        fault = None if math.isnan(bias) else bias > TOLERANCE
        ess = self.ess.mean().item()
        weights = Verdict(
            check="annealing",
            fault=fault,
            says=(
                "a single chain a datum says nothing of its error: give chains=2 or more"
                if fault is None
                else f"{ess:.1f} of {self.chains} chains a datum count: log p(x) is about {bias:.2g} nats too "
                f"{'high' if self.reversed else 'low'} with {self.temperatures} temperatures"
            ),
            statistic="half the mean squared standard error of log p(x), nats: its bias to first order",
            value=bias,
            threshold=TOLERANCE,
            advice="take more temperatures (the bias falls with their number), then more chains" if fault else "",
            speaks_of=speaks,
        )
        stuck = (self.acceptance < FEWEST_ACCEPTED).double().mean().item()
        moving = None if self.temperatures == 1 else stuck > _FEW_DATA
        divergences = int(self.divergences.sum())
        moves = Verdict(
            check="annealing moves",
            fault=moving,
            says=(
                "with one temperature nothing moves: this is importance sampling from the start"
                if moving is None
                else f"{100 * stuck:.3g}% of the data have a mean acceptance below {FEWEST_ACCEPTED}; {divergences} "
                "transitions diverged"
            ),
            statistic=f"share of the data with a mean acceptance below {FEWEST_ACCEPTED}",
            value=stuck,
            threshold=_FEW_DATA,
            advice="take more leapfrog steps, or a higher target acceptance" if moving else "",
            speaks_of=speaks,
        )
        return sorted([weights, moves], key=lambda verdict: not verdict.fault)

    def pictures(self) -> Sequence[Picture]:
        """log p(x) of every datum with its error, and how many chains count."""
        from .figures_annealing import chains_that_count

        return [chains_that_count(self)]

    def to_dataset(self) -> xarray.Dataset:
        """Values by "datum", weights by "chain" too."""
        import xarray as xr

        names = ("log_px", "se", "ess", "acceptance", "divergences")
        values: dict[str, Any] = {name: ("datum", getattr(self, name).numpy()) for name in names}
        values["log_w"] = (("chain", "datum"), self.log_w.numpy())
        attrs = {"temperatures": self.temperatures, "start": self.start, "data": self.data}
        rows = torch.arange(len(self.log_px)) if self.rows is None else self.rows
        return xr.Dataset(values, {"datum": rows.numpy()}, attrs)

    def to_json(self) -> dict[str, Any]:
        """The mean with its errors, and how the chains did."""
        return dict(
            plain(
                {
                    "data": self.data,
                    "n": len(self.log_px),
                    "temperatures": self.temperatures,
                    "chains": self.chains,
                    "start": self.start,
                    "reversed": self.reversed,
                    "log_px": self.estimate,
                    "ess": self.ess.mean().item(),
                    "acceptance": self.acceptance.mean().item(),
                    "divergences": int(self.divergences.sum()),
                }
            )
        )


@dataclass(frozen=True, eq=False)
class Bidirectional:
    r"""log p(x) of simulated data between two bounds.

    .. math:: E[\text{forward}] \le \log p(x) \le E[\text{reverse}]

    Args:
        forward: from the start to p(z | x), a lower bound in expectation.
        reverse: back from the z that made x, an upper bound in expectation.
        batch: the simulated data.
        latents: the z that made them, (N, \\*event) by site.
    """

    forward: Annealed
    reverse: Annealed
    batch: Batch
    latents: Mapping[str, Tensor]

    @property
    def gap(self) -> Tensor:
        """(N,) reverse - forward, nats: in expectation 0 or above, and no less than either bound's error."""
        return self.reverse.log_px - self.forward.log_px

    @property
    def estimate(self) -> Estimate:
        """The mean gap, nats per datum."""
        return Estimate.of(self.gap, (self.forward.se.square() + self.reverse.se.square()).sqrt())

    def verdicts(self) -> Sequence[Verdict]:
        """Whether the bounds are close, whether they are in order, and what is to be said of each way."""
        gap = self.estimate
        fault: bool | None = gap.mean - _Z * gap.data_se > TOLERANCE
        alone = len(self.gap) < 2
        if alone or (not fault and not gap.mean <= TOLERANCE):
            fault = None
        doubt = ""
        if alone:
            doubt = ": one datum has no error, give data=2 or more"
        elif fault is None:
            # so many that a mean gap of this size is beyond the threshold by as many errors
            enough = len(self.gap) * (_Z * gap.data_se / (gap.mean - TOLERANCE)) ** 2
            doubt = f": whether that is more than {TOLERANCE:g} would be told of about {math.ceil(enough):,} data"
        close = Verdict(
            check="BDMC gap",
            fault=fault,
            says=(
                f"log p(x) lies between two bounds that are {gap.mean:.3g} ± {gap.data_se:.2g} nats apart, with "
                f"{self.forward.temperatures} temperatures{doubt}"
            ),
            statistic="mean of the upper bound less the lower one, nats a datum",
            value=gap.mean,
            threshold=TOLERANCE,
            false_alarm=0.01,
            advice="take more temperatures: the gap falls with their number" if fault else "",
            speaks_of="data that the model makes",
        )
        z = gap.mean / gap.data_se if gap.data_se > 0 else 0.0
        order = Verdict(
            check="BDMC order",
            fault=None if alone else z < -_IMPOSSIBLE,
            says=(
                f"the lower bound lies above the upper one by {-z:.1f} standard errors: the model's draws are not from "
                "the density that it scores"
                if z < -_IMPOSSIBLE
                else "of one datum the order of the bounds says nothing: give data=2 or more"
                if alone
                else "the bounds are in order"
            ),
            statistic="mean gap over its standard error",
            value=z,
            threshold=-_IMPOSSIBLE,
            false_alarm=3e-5,
            advice="look whether the program generates x as it scores it: masks, supports, scales" if z < -4 else "",
            grave=True,
            speaks_of="data that the model makes",
        )
        return sorted([close, order], key=lambda verdict: not verdict.fault)

    def pictures(self) -> Sequence[Picture]:
        """Both bounds of every datum."""
        from .figures_annealing import two_bounds

        return [two_bounds(self)]

    def to_dataset(self) -> xarray.Dataset:
        """Both bounds by "datum"."""
        import xarray as xr

        values = {
            f"{way}_{name}": ("datum", getattr(found, name).numpy())
            for way, found in (("forward", self.forward), ("reverse", self.reverse))
            for name in ("log_px", "se", "ess")
        }
        values["gap"] = ("datum", self.gap.numpy())
        return xr.Dataset(values, {"datum": torch.arange(len(self.gap)).numpy()}, {"data": self.forward.data})

    def to_json(self) -> dict[str, Any]:
        """Both ways, and the mean gap with its errors."""
        return dict(plain({"gap": self.estimate, "forward": self.forward.to_json(), "reverse": self.reverse.to_json()}))
