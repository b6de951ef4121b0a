"""Posterior and prior predictive checks: whether what the model makes looks like the data, by chosen statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from pyro import poutine
from torch import Tensor

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError, check_count
from ..evaluate.chunked import Data, Source, device_of, evaluation, spans
from ..evaluate.generation import generation
from ..evaluate.importance import Progress
from ..evaluate.latents import latent_sites
from ..handlers import drawn
from ..isolation import untouched
from ..labels import hide_labels
from ..weights import Program, is_per_datum, particle_plate, sample_sites
from .calibration import check_level
from .findings import Picture, Verdict, plain
from .simulated import explained
from .uniformity import holm

if TYPE_CHECKING:
    import xarray

__all__ = ["PredictiveCheck", "Statistic", "default_statistics", "predictive_check"]

Statistic: TypeAlias = Callable[[Tensor], Tensor]
"""Of x (N, \\*D): one number for each datum, (N,), whose mean is looked at, or one for all of them, ()."""

_FEWEST = 200
_NUMBERS = 1 << 22
"""Of replicated data held at once, beside one replicated data set."""
_PAIRS = 4096
_MOST_COLUMNS = 5


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """M statistics of the data beside those of R replicated data sets.

    Args:
        names: of the statistics.
        observed: (M,) of the data.
        posterior: (R, M) of data sets x' ~ p(x' | z), z ~ q(z | x) of each datum.
        prior: (R, M) of data sets x' ~ p(x' | z), z ~ p(z).
        p_posterior, p_prior: (M,) two-sided: how far out among the replicated ones that of the data lies; equals are
            broken at random.
        alpha: of the verdicts.
        data: which data.
    """

    names: tuple[str, ...]
    observed: Tensor
    posterior: Tensor
    prior: Tensor
    p_posterior: Tensor
    p_prior: Tensor
    alpha: float
    data: str

    @property
    def draws(self) -> int:
        """R."""
        return len(self.prior)

    def tail(self, kind: str) -> tuple[Tensor, Tensor]:
        """P(T(x') >= T(x)) of each statistic and its Monte Carlo standard error, (M,); kind: "posterior", "prior"."""
        share = (self._replicated(kind) >= self.observed).double().mean(0)
        return share, (share * (1 - share) / self.draws).sqrt()

    def verdicts(self) -> list[Verdict]:
        """Two: of the prior predictive distribution, and of the posterior one."""
        return [self._verdict("prior", self.p_prior), self._verdict("posterior", self.p_posterior)]

    def pictures(self) -> list[Picture]:
        """Histograms of each statistic, replicated, with that of the data."""
        from ..plots import figure_of

        shown = holm(self.p_prior).minimum(holm(self.p_posterior)).argsort(stable=True)[:12].sort().values.tolist()
        columns = min(4, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure = figure_of(2.7 * columns + 0.4, 2.2 * rows + 0.5)
        axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, m in zip(axes, shown, strict=False):
            for kind, colour in (("prior", "#7f7f7f"), ("posterior", "#1f77b4")):
                values = self._replicated(kind)[:, m].numpy()
                # of equal values there is no histogram
                if values.max() > values.min():
                    axis.hist(values, 30, color=colour, alpha=0.6, density=True, label=f"{kind} predictive")
                else:
                    axis.axvline(values[0], color=colour, alpha=0.6, linewidth=4, label=f"{kind} predictive")
            axis.axvline(self.observed[m].item(), color="#d62728", linewidth=1.8, label="data")
            axis.set_title(self.names[m], fontsize=9)
            axis.set_yticks([])
            axis.locator_params(axis="x", nbins=4)
        for axis in axes[len(shown) :]:
            axis.remove()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        told = "; ".join(
            f"{self.names[m]}: data {_short(self.observed[m])}, posterior p {self.p_posterior[m].item():.2g}, "
            f"prior p {self.p_prior[m].item():.2g}"
            for m in shown
        )
        return [
            Picture(
                "predictive-checks",
                figure,
                f"Statistics of {self.draws} replicated data sets of the same size, and of the data (red line). Where "
                "the line lies outside of a histogram the model does not make such data.",
                f"Histograms of {len(shown)} statistics. {told}.",
            )
        ]

    def to_dataset(self) -> xarray.Dataset:
        """Dimensions "draw" and "statistic" (by name)."""
        import xarray as xr

        both = ("draw", "statistic")
        return xr.Dataset(
            {
                "observed": (("statistic",), self.observed.numpy()),
                "posterior": (both, self.posterior.numpy()),
                "prior": (both, self.prior.numpy()),
                "p_posterior": (("statistic",), self.p_posterior.numpy()),
                "p_prior": (("statistic",), self.p_prior.numpy()),
            },
            {"statistic": list(self.names)},
            {"data": self.data, "alpha": self.alpha},
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole."""
        out: dict[str, Any] = {"data": self.data, "draws": self.draws, "alpha": self.alpha}
        for m, name in enumerate(self.names):
            row: dict[str, Any] = {"observed": self.observed[m].item()}
            for kind in ("posterior", "prior"):
                tail, error = self.tail(kind)
                values = self._replicated(kind)[:, m]
                row[kind] = {
                    "mean": values.mean().item(),
                    "sd": values.std().item(),
                    "p": (self.p_prior if kind == "prior" else self.p_posterior)[m].item(),
                    "tail": tail[m].item(),
                    "tail_se": error[m].item(),
                }
            out.setdefault("statistics", {})[name] = row
        return dict(plain(out))

    def _replicated(self, kind: str) -> Tensor:
        return self.prior if kind == "prior" else self.posterior

    def _verdict(self, kind: str, p_values: Tensor) -> Verdict:
        adjusted = holm(p_values)
        wrong = [m for m in adjusted.argsort(stable=True).tolist() if adjusted[m] <= self.alpha]
        source = "from its prior" if kind == "prior" else "from q(z | x)"
        if wrong:
            parts = []
            for m in wrong[:4]:
                values = self._replicated(kind)[:, m]
                parts.append(
                    f"{self.names[m]} ({_short(self.observed[m])} in the data, {_short(values.mean())} ± "
                    f"{_short(values.std())} replicated)"
                )
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            says = f"Data that the model makes {source} differ from these in {', '.join(parts)}{more}."
        else:
            named = ", ".join(self.names[:6]) + ", ..." * (len(self.names) > 6)
            count = f"{len(self.names)} statistic{'s' * (len(self.names) != 1)}"
            says = f"Data that the model makes {source} are like these in {count}: {named}."
        advice = ""
        if wrong:
            advice = (
                "learn the prior (mixture, flow, fit_prior), or train longer: p(z) and the codes may not meet"
                if kind == "prior"
                else "look at the likelihood first (its support, its noise), then at the decoder's size"
            )
        return Verdict(
            check=f"{kind} predictive check",
            fault=bool(wrong),
            says=says,
            statistic="smallest two-sided p-value, adjusted by Holm; a fault where it is below",
            value=adjusted.min().item(),
            threshold=self.alpha,
            # the data are used twice: of an exact posterior at most twice α, and less as a rule
            false_alarm=self.alpha if kind == "prior" else 2 * self.alpha,
            advice=advice,
        )


def predictive_check(
    model: Program,
    guide: Program,
    data: Data,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    draws: int | None = None,
    alpha: float = 0.05,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> PredictiveCheck:
    r"""Statistics T of the data beside those of replicated data sets of the same size and under the same conditions.

    .. math::
        \text{posterior: } z_n \sim q(z \mid x_n), \quad \text{prior: } z_n \sim p(z), \qquad
        x'_n \sim p(x \mid z_n), \qquad p = 2 \min\{P(T(x') \ge T(x)), P(T(x') \le T(x))\}

    A prior check asks whether the model makes such data: of data that it did make p is uniform. A posterior check
    asks whether p(x | z) can make them at the z that the guide chose: it uses the data twice, p gathers around 1/2,
    and a model must be quite wrong to be found. Where data are not observed, replicated ones are 0 as well.

    Latents that all data share have one draw for each replicated data set.

    Args:
        model, guide: a pair of programs over a `Batch`, with x at a site named "x".
        data: a data set (dynamic binarization is drawn once), a batch with x, or x. Of a model with a latent class
            labels are hidden.
        statistics: functions T of x (N, \*D) by name, each to (N,), whose mean is compared, or to one number; None:
            `default_statistics`.
        draws: R; None: as many as Holm's correction of so many statistics needs, 200 at least.
        alpha: probability that any statistic is called wrong, of a right model (posterior: at most twice that).
        chunk: pairs of a draw and a datum at once; None: 4096.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called with the number of replicated data sets done, and how many there will be.

    Returns:
        `PredictiveCheck`, on the CPU in float64.

    Raises:
        InputError: a statistic that is no number of these data; too few draws for the statistics, saying how many are
            needed; a model that cannot generate.

    References:
        Rubin, Bayesianly justifiable and relevant frequency calculations, Annals of Statistics 1984. Gelman, Meng and
        Stern, Posterior predictive assessment of model fitness, Statistica Sinica 1996. Meng, Posterior predictive
        p-values, Annals of Statistics 1994: at most twice α.
    """
    check_level(alpha)
    if chunk is not None:
        check_count("chunk", chunk)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(hide_labels(model, data), model, guide)
        source.check(model, drawn(guide))
        whole = _whole(source)
        assert whole.x is not None
        if statistics is None:
            statistics = default_statistics(source.data)
        names = tuple(statistics)
        if not names:
            raise InputError("statistics are empty: give functions of x by name, or None for the usual ones")
        needed = math.ceil(2 * len(names) / alpha) - 1
        draws = max(_FEWEST, needed) if draws is None else check_count("draws", draws)
        if draws < needed:
            raise InputError(
                f"draws={draws} are too few for {len(names)} statistics at alpha={alpha}: no p-value could be small "
                f"enough; give draws={needed} or more, or fewer statistics"
            )
        observed = _apply(statistics, whole.x.cpu())
        found: dict[str, Tensor] = {}
        for k, kind in enumerate(("posterior", "prior")):
            parts = []
            for x in _replicates(model, guide if kind == "posterior" else None, source, draws, chunk or _PAIRS):
                parts.append(_apply(statistics, x, like=observed))
                if progress is not None:
                    progress(k * draws + len(parts), 2 * draws)
            found[kind] = torch.stack(parts)
        p_values = {kind: _two_sided(observed, values) for kind, values in found.items()}
    return PredictiveCheck(
        names,
        observed,
        found["posterior"],
        found["prior"],
        p_values["posterior"],
        p_values["prior"],
        alpha,
        source.description,
    )


def default_statistics(data: DataSet | Batch) -> dict[str, Statistic]:
    """What is compared where nothing is said.

    Of images the mean, the standard deviation and the mean difference of neighbouring pixels within an image, and the
    standard deviation between images; of a table the mean, standard deviation, least and largest value of each column
    (of all together above 5 columns), and the mean absolute correlation of columns.
    """
    shape = data.shape if isinstance(data, DataSet) else () if data.x is None else tuple(data.x.shape[1:])
    if len(shape) >= 2:
        return {
            "mean of an image": lambda x: x.flatten(1).mean(1),
            "sd within an image": lambda x: x.flatten(1).std(1),
            "difference of neighbours": _roughness,
            "sd between images": lambda x: x.var(0).mean().sqrt(),
        }
    size = math.prod(shape)
    columns = list(data.columns) if isinstance(data, DataSet) and data.columns else [f"x[{i}]" for i in range(size)]
    whole: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda x: x.mean(0),
        "sd": lambda x: x.std(0),
        "least": lambda x: x.amin(0),
        "largest": lambda x: x.amax(0),
    }
    found: dict[str, Statistic] = {}
    for name, function in whole.items():
        if size > _MOST_COLUMNS:
            found[f"{name}, mean over columns"] = lambda x, f=function: f(x.flatten(1)).mean()  # type: ignore[misc]
            continue
        for i, column in enumerate(columns):
            found[f"{name} of {column}"] = lambda x, f=function, i=i: f(x.flatten(1))[i]  # type: ignore[misc]
    if size > 1:
        found["mean |correlation| of columns"] = _correlation
    return found


def _roughness(x: Tensor) -> Tensor:
    across, down = x.diff(dim=-1).abs().flatten(1), x.diff(dim=-2).abs().flatten(1)
    return (across.sum(1) + down.sum(1)) / max(1, across.shape[1] + down.shape[1])


def _correlation(x: Tensor) -> Tensor:
    standard = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    correlation = standard.T @ standard / (len(x) - 1)
    size = len(correlation)
    return (correlation.abs().sum() - correlation.diagonal().abs().sum()) / (size * (size - 1))


def _whole(source: Source) -> Batch:
    return source.batch(0, source.size)


def _apply(statistics: Mapping[str, Statistic], x: Tensor, like: Tensor | None = None) -> Tensor:
    """(M,)."""
    found = []
    for name, function in statistics.items():
        if not callable(function):
            raise InputError(f"statistics[{name!r}]={function!r} is no function of x (N, *D)")
        value = torch.as_tensor(function(x.double() if x.is_floating_point() else x)).double()
        if tuple(value.shape) not in ((), (len(x),)):
            raise InputError(
                f"statistics[{name!r}] gave the shape {tuple(value.shape)} for x of {tuple(x.shape)}; one number for "
                f"each datum, ({len(x)},), or one for all, (), belongs there"
            )
        number = value.mean()
        if not bool(number.isfinite()):
            which = "the data" if like is None else "replicated data"
            raise InputError(f"statistics[{name!r}] is {number.item()} for {which}: it must be a finite number")
        found.append(number)
    return torch.stack(found)


def _replicates(model: Program, guide: Program | None, source: Source, draws: int, chunk: int) -> Iterator[Tensor]:
    """Replicated data sets x', (N, \\*D), one after another; of some at a time."""
    first = source.batch(0, 1)
    with untouched(model, guide, first):
        program = model if guide is None else drawn(guide)
        if guide is not None:
            sites = latent_sites(program, first)
        else:
            with explained(f"{type(model).__name__} does not generate x"):
                sites = dict(sample_sites(poutine.trace(model).get_trace(generation(first))))
        shared = not all(is_per_datum(site) for site in sites.values())
    assert first.x is not None
    at_once = max(1, min(draws, _NUMBERS // max(1, source.size * first.x.numel()), chunk))
    # one draw of what all data share goes with a whole data set
    rows = source.size if shared else max(1, min(source.size, chunk // at_once))
    for a, b in spans(draws, at_once):
        parts = [_replicate(model, guide, source.batch(start, stop), b - a) for start, stop in spans(source.size, rows)]
        yield from torch.cat(parts, 1)


def _replicate(model: Program, guide: Program | None, batch: Batch, count: int) -> Tensor:
    """(count, N, \\*D)."""
    program = model
    with particle_plate(count):
        if guide is not None:
            z = {name: site["value"] for name, site in latent_sites(drawn(guide), batch).items()}
            program = poutine.condition(model, data=z)
        with explained(f"{type(model).__name__} does not generate x"):
            trace = poutine.trace(program).get_trace(generation(batch))
    site: Any = dict(sample_sites(trace)).get("x")
    if site is None:
        raise InputError("the model has no site named 'x'")
    x: Tensor = site["value"].expand(count, batch.size, *site["fn"].event_shape)
    if batch.observed is not None:
        x = torch.where(batch.observed, x, torch.zeros_like(x))
    return x.cpu()


def _two_sided(observed: Tensor, values: Tensor) -> Tensor:
    """(M,) p-values of the rank of T(x) among R replicated ones, exact where all R + 1 are alike."""
    below, equal = (values < observed).sum(0), (values == observed).sum(0)
    rank = below + (torch.rand_like(observed) * (equal + 1)).long()
    total = len(values) + 1
    return (2.0 * torch.minimum(rank + 1, total - rank) / total).clamp_max(1.0)


def _short(value: Tensor) -> str:
    return f"{value.item():.3g}"
