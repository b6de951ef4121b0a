"""The latent space as the data fill it: the aggregate posterior against the prior, and what z carries of x."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import DataSet
from ..errors import InputError, check_count
from ..evaluate.chunked import Data, Source, device_of, evaluation
from ..evaluate.importance import Progress
from ..evaluate.latents import ActiveUnits, count_active, encoding_of
from ..labels import hide_labels
from ..weights import Program
from .aggregate import Codes, Part, Parts, codes_of, parts_of
from .calibration import check_level
from .findings import Picture, Verdict, plain
from .uniformity import holm

if TYPE_CHECKING:
    import xarray

__all__ = ["Discrepancy", "Holes", "LatentChecks", "latent_checks", "mmd"]

_INSIDE = 0.95
_NEAR = 0.1  # nats from the prior
_MOST_OUTSIDE = 0.10
_BLOCKS = 20
_NEIGHBOUR = 5
_FEWEST = 100
_CHUNK = 512


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy of codes and prior.

    Args:
        mmd2: the unbiased estimate; 0 in expectation where they are alike, and as often below as above.
        se: its standard error.
        p_value: of `permutations` random swaps of a code and its draw of the prior, and itself.
    """

    mmd2: float
    se: float
    p_value: float


@dataclass(frozen=True)
class Holes:
    """Share of the prior's mass outside of the region of highest density that holds 95% of the codes.

    Args:
        outside: the share; 0.05 where aggregate posterior and prior are alike.
        se: its standard error, by a jackknife over blocks of data.
        by: "density", of the aggregate posterior of the other data, or "neighbours", the distance to their fifth
            nearest code, for guides without a density.
    """

    outside: float
    se: float
    by: str


@dataclass(frozen=True, eq=False)
class LatentChecks:
    """What is in the latent space of N data.

    Args:
        discrepancies: MMD by site.
        holes: of all sites together.
        parts: the mean KL in information, total correlation and dimensions; None where the guide gives no densities.
        why_not: why; empty where it does.
        active: active units, of all the sites' dimensions.
        names: of the dimensions.
        codes, prior: (N, D) the draws that all this rests on.
        alpha: false-alarm probability of each verdict.
        data: which data.
    """

    discrepancies: dict[str, Discrepancy]
    holes: Holes
    parts: Parts | None
    why_not: str
    active: ActiveUnits
    names: tuple[str, ...]
    codes: Tensor
    prior: Tensor
    alpha: float
    data: str

    @property
    def collapsed(self) -> list[str]:
        """Dimensions whose Var_x(E[z_d | x]) lies below the threshold by more than chance, α over all of them."""
        z = -torch.special.ndtri(torch.tensor(self.alpha / len(self.names), dtype=torch.float64)).item()
        variances, errors = (
            _in_order(by_site, self.discrepancies) for by_site in (self.active.variances, self.active.se)
        )
        low = variances + z * errors < self.active.threshold
        return [name for name, is_low in zip(self.names, low.tolist(), strict=True) if is_low]

    def verdicts(self) -> list[Verdict]:
        """Three: collapse, holes, and the aggregate posterior against the prior."""
        return [self._collapse(), self._holes(), self._discrepancy()]

    def pictures(self) -> list[Picture]:
        """Codes over the prior; what each dimension carries."""
        from .figures_latent_checks import pictures

        return pictures(self)

    def to_dataset(self) -> xarray.Dataset:
        """Draws by "datum" and "dim", figures by "dim" or "site"."""
        import xarray as xr

        values: dict[str, Any] = {
            "code": (("datum", "dim"), self.codes.numpy()),
            "prior": (("datum", "dim"), self.prior.numpy()),
            "variance_of_mean": (("dim",), _in_order(self.active.variances, self.discrepancies).numpy()),
            "variance_of_mean_se": (("dim",), _in_order(self.active.se, self.discrepancies).numpy()),
        }
        for name in ("mmd2", "se", "p_value"):
            key = "mmd2_se" if name == "se" else name
            values[key] = (("site",), [getattr(each, name) for each in self.discrepancies.values()])
        if self.parts is not None and self.parts.dimensions is not None:
            values["kl"] = (("dim",), [each.mean for each in self.parts.dimensions])
            values["kl_se"] = (("dim",), [each.se for each in self.parts.dimensions])
        coords = {"dim": list(self.names), "site": list(self.discrepancies)}
        return xr.Dataset(values, coords, {"data": self.data, "outside": self.holes.outside})

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole."""

        def part(value: Part | None) -> Any:
            return None if value is None else value._asdict()

        parts = self.parts
        return dict(
            plain(
                {
                    "data": self.data,
                    "n": len(self.codes),
                    "alpha": self.alpha,
                    "mmd": {name: vars(each) for name, each in self.discrepancies.items()},
                    "holes": vars(self.holes),
                    "kl": None
                    if parts is None
                    else {
                        "kl": part(parts.kl),
                        "information": part(parts.information),
                        "information_upper": part(parts.upper),
                        "saturated": parts.saturated,
                        "log_n": math.log(len(self.codes)),
                        "marginal": part(parts.marginal),
                        "total_correlation": part(parts.total_correlation),
                        "dimensions": None
                        if parts.dimensions is None
                        else dict(zip(self.names, map(part, parts.dimensions), strict=True)),
                    },
                    "why_not": self.why_not,
                    "active_units": self.active.count,
                    "collapsed": self.collapsed,
                }
            )
        )

    def _collapse(self) -> Verdict:
        collapsed, size = self.collapsed, len(self.names)
        carries = ""
        if self.parts is not None:
            least = "at least " * self.parts.saturated
            carries = f"; z carries {least}{self.parts.information} nats about x"
        if len(collapsed) == size:
            says = f"The posterior has collapsed: no latent dimension moves with x{carries}."
        elif collapsed:
            named = ", ".join(collapsed[:6]) + (f" and {len(collapsed) - 6} more" if len(collapsed) > 6 else "")
            says = f"{len(collapsed)} of {size} latent dimensions have collapsed onto the prior: {named}{carries}."
        else:
            says = f"No latent dimension has collapsed: {self.active.count} of {size} are active{carries}."
        return Verdict(
            check="posterior collapse",
            fault=bool(collapsed),
            says=says,
            statistic="share of dimensions whose variance of posterior means over the data is below 0.01 by more than "
            "chance",
            value=len(collapsed) / size,
            threshold=0.0,
            false_alarm=self.alpha,
            grave=len(collapsed) == size,
            advice="take fewer latent dimensions, or warm up the KL (beta from 0) and look again" if collapsed else "",
        )

    def _holes(self) -> Verdict:
        z = -torch.special.ndtri(torch.tensor(self.alpha, dtype=torch.float64)).item()
        fault = self.holes.outside - z * self.holes.se > _MOST_OUTSIDE
        share = f"{self.holes.outside:.0%} ± {self.holes.se:.1%} of the prior's mass lies"
        return Verdict(
            check="holes",
            fault=fault,
            says=f"{share} where hardly any code does, outside of the region of 95% of them: samples from the prior "
            "are decoded from where nothing was trained."
            if fault
            else f"{share} outside of the region of 95% of the codes (5% where they are alike).",
            statistic=f"share of the prior's mass outside of the region of 95% of the codes, less {z:.3g} standard "
            "errors",
            value=self.holes.outside - z * self.holes.se,
            threshold=_MOST_OUTSIDE,
            false_alarm=self.alpha,
            advice="fit a prior to the codes (fit_prior, `ppl-vae prior`), or learn one: mixture, VampPrior, flow"
            if fault
            else "",
        )

    def _discrepancy(self) -> Verdict:
        adjusted = holm(torch.tensor([each.p_value for each in self.discrepancies.values()], dtype=torch.float64))
        found = None if self.parts is None else self.parts.marginal
        # thousands of data tell a difference of which samples show nothing
        near = found is not None and found.mean + 2.0 * found.se < _NEAR
        adjusted = torch.ones_like(adjusted) if near else adjusted
        wrong = [name for name, p in zip(self.discrepancies, adjusted.tolist(), strict=True) if p <= self.alpha]
        marginal = ""
        if self.parts is not None and self.parts.marginal is not None:
            most = "at most " * self.parts.saturated
            marginal = f" (KL of the two: {most}{self.parts.marginal} nats)"
        return Verdict(
            check="aggregate posterior",
            fault=bool(wrong),
            says=f"The codes of these data, {', '.join(wrong)}, are not spread as the prior is{marginal}."
            if wrong
            else f"The codes of these data are spread as the prior is, to less than {_NEAR:g} nat{marginal}."
            if near
            else f"The codes of these data are spread as the prior is, as far as {len(self.codes)} can tell{marginal}.",
            statistic="smallest permutation p-value of the maximum mean discrepancy, adjusted by Holm for the sites, "
            f"and 1 where the KL of the two is below {_NEAR:g} nat by two errors; a fault where it is below",
            value=adjusted.min().item(),
            threshold=self.alpha,
            false_alarm=self.alpha,
            advice="samples of the prior will look unlike the data: fit or learn a prior" if wrong else "",
        )


def latent_checks(
    model: Program,
    guide: Program,
    data: Data,
    *,
    size: int = 1000,
    permutations: int = 999,
    alpha: float = 0.05,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> LatentChecks:
    r"""Aggregate posterior against prior, and what z carries of x.

    With a code z_n ~ q(z | x_n) of each of N data, and as many draws of the prior under the same conditions:

    - **maximum mean discrepancy** of the two, by site: unbiased, a Gaussian kernel of the median distance, its p-value
      by swapping a code and its draw of the prior at random. Of data of the model under the exact posterior codes are
      draws of the prior, and the p-value is exact.
    - **holes**: the share of the prior's mass outside of the region that holds 95% of the codes, where the density of
      the other data's aggregate posterior is above a threshold.
    - **the mean KL in parts**: mutual information of z and the datum, total correlation, and the KL of each dimension's
      aggregate from the prior; see `aggregate.Parts`. q(z) is the mixture of all N posteriors.
    - **active units**, and which dimensions have collapsed.

    Args:
        model, guide: a pair of programs over a `Batch`; latents of layers are one z, with the MMD layer by layer.
        data: a data set, a batch with x, or x. Of a model with a latent class labels are hidden.
        size: data to look at, drawn at random where there are more; work grows with its square.
        permutations: random swaps for the p-value.
        alpha: false-alarm probability of each verdict.
        chunk: data at once; None: 512.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called with the number of parts done, and how many there are.

    Returns:
        `LatentChecks`, on the CPU in float64.

    Raises:
        InputError: fewer than 100 data; too few permutations for alpha, saying how many are needed; latents that are
            all discrete, or that all data share.

    References:
        Hoffman and Johnson, ELBO surgery, 2016. Chen, Li, Grosse and Duvenaud, Isolating sources of disentanglement in
        VAEs, NeurIPS 2018 (https://arxiv.org/abs/1802.04942). Poole et al., On variational bounds of mutual
        information, ICML 2019 (https://arxiv.org/abs/1905.06922). Gretton et al., A kernel two-sample test, JMLR 2012.
        Burda et al., 2016: active units.
    """
    check_level(alpha)
    check_count("size", size, _FEWEST)
    rows = _CHUNK if chunk is None else check_count("chunk", chunk)
    check_count("permutations", permutations)
    if permutations < (needed := math.ceil(1 / alpha) - 1):
        raise InputError(
            f"permutations={permutations} are too few for alpha={alpha}: give {needed} or more, better 10 times that"
        )
    done = iter(range(1, 5))

    def tick() -> None:
        if progress is not None:
            progress(next(done), 4)

    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(_some(Source(hide_labels(model, data), model, guide), size), model, guide)
        if source.size < _FEWEST:
            raise InputError(f"data are {source.size}: an aggregate posterior needs {_FEWEST} or more")
        found = codes_of(model, guide, source, rows)
        tick()
        parts = parts_of(found)
        tick()
        discrepancies = {
            name: mmd(found.flat({name: found.codes[name]}), found.flat({name: found.prior[name]}), permutations)
            for name in found.codes
        }
        holes = _holes_of(found)
        tick()
        units = count_active(encoding_of(model, guide, source, 100, rows * 100), threshold=0.01)
        units = ActiveUnits(
            {name: units.variances[name] for name in found.codes},
            {name: units.se[name] for name in found.codes},
            units.threshold,
            units.n,
            units.data,
        )
        tick()
    return LatentChecks(
        discrepancies,
        holes,
        parts,
        found.why_not,
        units,
        tuple(found.names),
        found.flat(found.codes),
        found.flat(found.prior),
        alpha,
        source.description,
    )


def mmd(a: Tensor, b: Tensor, permutations: int) -> Discrepancy:
    r"""Squared maximum mean discrepancy of N pairs (N, D) of samples, with a p-value by swaps within pairs.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} h_{ij}, \qquad
        h_{ij} = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i), \quad k(a, b) = e^{-|a-b|^2 / 2 m^2}

    m is the median distance of all. A swap of pair i changes the sign of its h: where a and b are alike all signs are
    equally probable, and the p-value is exact.

    Args:
        a, b: (N, D) float64; each dimension is taken in units of its standard deviation in both.
        permutations: random signs, drawn from the default generator.
    """
    n = len(a)
    both = torch.cat([a, b])
    both = both / both.std(0).clamp_min(1e-12)
    squares = torch.cdist(both, both).square()
    median = squares[torch.triu(torch.ones_like(squares, dtype=torch.bool), 1)].median().clamp_min(1e-12)
    k = (-squares / (2 * median)).exp()
    h = k[:n, :n] + k[n:, n:] - k[:n, n:] - k[n:, :n]
    h.fill_diagonal_(0.0)
    value = h.sum() / (n * (n - 1))
    signs = 2.0 * torch.randint(2, (permutations, n), dtype=torch.float64) - 1.0
    swapped = ((signs @ h) * signs).sum(1) / (n * (n - 1))
    p_value = (1 + int((swapped >= value).sum())) / (permutations + 1)
    error = 2.0 * (h.sum(1) / (n - 1)).std() / math.sqrt(n)
    # where the two are alike the first-order term vanishes, and what is left is the spread under swaps
    return Discrepancy(value.item(), max(error.item(), swapped.std().item()), p_value)


def _holes_of(found: Codes) -> Holes:
    """With log densities, higher where codes are."""
    codes, prior = found.flat(found.codes), found.flat(found.prior)
    if found.cross is not None:
        inside, outside = found.cross(found.codes), found.cross(found.prior)
        inside = inside.masked_fill(torch.eye(len(inside), dtype=torch.bool), -math.inf).logsumexp(1)
        outside, by = outside.logsumexp(1), "density"
    else:
        scale = prior.std(0).clamp_min(1e-12)
        nearest = min(_NEIGHBOUR, len(codes) - 1)
        inside = -torch.cdist(codes / scale, codes / scale).kthvalue(nearest + 1, 1).values
        outside, by = -torch.cdist(prior / scale, codes / scale).kthvalue(nearest, 1).values, "neighbours"

    def share(some: Tensor, others: Tensor) -> Tensor:
        return (others < some.quantile(1 - _INSIDE)).double().mean()

    value = share(inside, outside)
    block = torch.arange(len(inside)) % _BLOCKS
    without = torch.stack([share(inside[block != k], outside[block != k]) for k in range(_BLOCKS)])
    error = ((_BLOCKS - 1) / _BLOCKS * (without - without.mean()).square().sum()).sqrt()
    return Holes(value.item(), max(error.item(), 1 / len(inside)), by)


def _some(source: Source, size: int) -> Any:
    """The data, or as many of them drawn at random."""
    if source.size <= size:
        return source.data
    rows = torch.randperm(source.size)[:size].sort().values
    data = source.data
    if isinstance(data, DataSet) and callable(getattr(data, "batch", None)):
        return data.batch(rows.to(data.x.device))
    return data.take(rows)


def _in_order(by_site: dict[str, Tensor], sites: dict[str, Any]) -> Tensor:
    return torch.cat([by_site[name].reshape(-1).double() for name in sites])
