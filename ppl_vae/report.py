"""What a person reads afterwards: tables, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from .errors import InputError
from .evaluate import AtPoints, Estimate, Evaluation
from .likelihoods import Likelihood
from .networks import Condition
from .objectives import Objective

__all__ = [
    "About",
    "Difference",
    "Paired",
    "Row",
    "Spread",
    "comparison_table",
    "evaluation_table",
    "finite",
    "is_doubted",
    "khat_told",
    "one_line",
    "plus_minus",
    "points_table",
    "refuse_existing",
    "replacing",
    "write_results",
]


DOUBTED = 0.01
"""The share of data with k-hat above 0.7 from which a mean log p(x) is marked."""

_MARK = "†"
_FEW = 2


@dataclass(frozen=True)
class About:
    """What must be said beside a model's numbers.

    Args:
        log_px: what log p(x) is of: "log p(x | y)" where the model is conditioned on classes.
        likelihood: with what decides its units, as a floor.
        device: where the numbers were computed.
        objective: what was maximized, with its β, α and particles.
    """

    log_px: str = "log p(x)"
    likelihood: str = ""
    device: str = "cpu"
    objective: str = ""

    @classmethod
    def of(cls, model: Any, objective: Objective | None = None) -> About:
        given = getattr(model, "condition", None)
        log_px = "log p(x)"
        if isinstance(given, Condition) and given.width:
            log_px = "log p(x | y)" if given.classes else "log p(x | context)"
        part = getattr(model, "likelihood", None)
        name = ""
        if isinstance(part, Likelihood):
            options = part.extra_repr()
            name = type(part).__name__ + (f"({options})" if options else "")
        device = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        maximized = "" if objective is None else f"{type(objective).__name__}({objective.extra_repr()})"
        return cls(log_px, name, where, maximized)


@dataclass(frozen=True)
class Spread:
    """A number that several seeds give.

    Args:
        mean: over the seeds.
        se: its standard error over the seeds; of one seed the Monte Carlo standard error.
        n: number of seeds.
    """

    mean: float
    se: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], se: float = math.nan) -> Spread:
        """Of one value a seed; `se` is that of a single one."""
        mean = math.fsum(values) / len(values)
        if len(values) > 1:
            squares = math.fsum((value - mean) ** 2 for value in values)
            se = math.sqrt(squares / (len(values) - 1) / len(values))
        return cls(mean, se, len(values))

    @classmethod
    def over(cls, estimates: Sequence[Estimate]) -> Spread:
        return cls.of([e.mean for e in estimates], estimates[0].se)

    def to_json(self) -> dict[str, Any]:
        return {"mean": finite(self.mean), "seed_se": finite(self.se) if self.n > 1 else None, "seeds": self.n}


@dataclass(frozen=True, eq=False)
class Row:
    """A guide's line in a comparison.

    Args:
        name: the guide's.
        evaluations: one a seed, of those where nothing failed.
        seconds: of training, likewise.
        errors: what failed, and why.
        divergences: KL(q ‖ p(z | x)), one a seed, where all guides have the same model.
        note: a sign for the caption, as for parameters that were fitted to the test data.
    """

    name: str
    evaluations: Sequence[Evaluation] = ()
    seconds: Sequence[float] = ()
    errors: Sequence[str] = ()
    divergences: Sequence[Estimate] = ()
    note: str = ""


@dataclass(frozen=True)
class Paired:
    """A number's difference between two guides, seed by seed on the same data.

    Args:
        by_seed: mean over the data, one a seed.
        data_se: of the mean over seeds and data, from the sampling of data: seeds are averaged first.
        n: number of data.
    """

    by_seed: tuple[float, ...]
    data_se: float
    n: int

    @classmethod
    def of(cls, values: torch.Tensor) -> Paired:
        """From the differences (S, N) of S seeds and N data."""
        size = values.shape[1]
        data_se = (values.mean(0).std() / math.sqrt(size)).item() if size > 1 else math.nan
        return cls(tuple(values.mean(1).tolist()), data_se, size)

    @property
    def mean(self) -> float:
        return Spread.of(self.by_seed).mean

    @property
    def seed_se(self) -> float:
        """Standard error of the mean over seeds; NaN of one seed."""
        return Spread.of(self.by_seed).se

    @property
    def se(self) -> float:
        """Over the seeds where there are several, and over the data where there is one."""
        return self.seed_se if len(self.by_seed) > 1 else self.data_se

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": finite(self.mean),
            "seed_se": finite(self.seed_se),
            "data_se": finite(self.data_se),
            "by_seed": [finite(value) for value in self.by_seed],
            "n": self.n,
        }


@dataclass(frozen=True)
class Difference:
    """A guide's numbers less another's, on the same data and of the same seeds.

    Args:
        guide, less: their names.
        seeds: those with which both were trained.
        elbo, kl, log_px: nats per datum.
    """

    guide: str
    less: str
    seeds: tuple[int, ...]
    elbo: Paired
    kl: Paired
    log_px: Paired

    def to_json(self) -> dict[str, Any]:
        return {
            "guide": self.guide,
            "less": self.less,
            "seeds": list(self.seeds),
            **{name: getattr(self, name).to_json() for name in ("elbo", "kl", "log_px")},
        }


def plus_minus(mean: float, se: float, sign: bool = False) -> str:
    """A number with as many decimals as its standard error has a use for: "-22.483 ± 0.002".

    Example:
        >>> plus_minus(-22.48312, 0.0021), plus_minus(3.0, 0.27, sign=True), plus_minus(1.5, float("nan"))
        ('-22.483 ± 0.002', '+3.00 ± 0.27', '1.50')
    """
    plus = "+" if sign else ""
    if not math.isfinite(mean):
        return "–"
    decimals = min(4, max(2, -math.floor(math.log10(se)))) if math.isfinite(se) and se > 0 else 2
    # no minus before a zero
    text = f"{round(mean, decimals) + 0.0:{plus}.{decimals}f}"
    return f"{text} ± {se:.{decimals}f}" if math.isfinite(se) else text


def comparison_table(
    rows: Sequence[Row], differences: Sequence[Difference], about: About, notes: Sequence[str] = ()
) -> Table:
    """A row a guide, and below it a row for each difference; the caption says of what the numbers are.

    Where all guides have the same model, the rows' `divergences` take the place of the KL to the prior.
    """
    one_model = any(row.divergences for row in rows)
    classes = any(e.error is not None for row in rows for e in row.evaluations)
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False, show_edge=False, collapse_padding=True)
    # numbers may break before their errors on a narrow screen, names may not
    table.add_column("guide", no_wrap=True)
    for name, unit in (
        ("ELBO", "nats"),
        ("KL(q‖p(z|x))" if one_model else "KL", "nats"),
        (about.log_px, "nats"),
        *([("error", "%")] if classes else []),
        ("ESS", ""),
        ("k̂>0.7", "data"),
        ("active", "units"),
        ("para-", "meters"),
        ("sec.", ""),
    ):
        table.add_column(f"{name}\n{unit}", justify="right", overflow="fold")
    for row in rows:
        table.add_row(row.name + row.note, *_cells(row, classes))
    if differences:
        table.add_section()
    # many have the name of the one that all are compared with above them, few each with their own
    together = len(differences) > _FEW and len({each.less for each in differences}) == 1
    if together:
        table.add_row(f"less {differences[0].less}:")
    for each in differences:
        # log p(x) is the model's: of one model the KL to its posterior differs by what the bound does, and log p(x) by
        # the estimates' errors alone
        middle = plus_minus(-each.elbo.mean, each.elbo.se, sign=True) if one_model else _difference(each.kl)
        table.add_row(
            each.guide if together else f"{each.guide}\n− {each.less}",
            _difference(each.elbo),
            middle,
            *([] if one_model else [_difference(each.log_px)]),
        )
    lines = [" ".join(_about_comparison(rows, differences, about)), *notes]
    lines += [f"{row.name} failed: {error}" for row in rows for error in row.errors]
    table.caption = Text("\n".join(line for line in lines if line))
    return table


def evaluation_table(evaluation: Evaluation, title: str, about: About) -> Table:
    """One pair's numbers, a line each, with both standard errors."""
    e = evaluation
    table = Table(title=Text(title), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("± Monte Carlo", justify="right", no_wrap=True)
    table.add_column("± sampling of data", justify="right", no_wrap=True)
    table.add_column("unit")
    estimates: list[tuple[str, Estimate, str]] = [
        ("ELBO", e.elbo, "nats/datum"),
        ("KL(q ‖ prior)", e.kl, "nats/datum"),
        ("reconstruction, E log p(x | z)", e.log_likelihood, "nats/datum"),
        (f"{about.log_px}, importance sampling", e.log_px, "nats/datum"),
    ]
    if e.bits_per_dimension is not None:
        estimates.append((f"−{about.log_px}", e.bits_per_dimension, "bits/dim"))
    for name, estimate, unit in estimates:
        mark = f" {_MARK}" if is_doubted(e) and about.log_px in name else ""
        table.add_row(name, f"{estimate.mean:.4f}{mark}", _small(estimate.se), _small(estimate.data_se), unit)
    if e.log_z is not None:
        table.add_row("log Z of the prior, of all at once", f"{e.log_z.mean:.4f}", _small(e.log_z.se), "", "nats")
    if e.error is not None:
        wrong = (f"{100 * e.error.mean:.2f}", "", f"{100 * e.error.data_se:.2g}")
        table.add_row(f"classification error of {e.error.n} labelled", *wrong, "%")
    table.add_row("effective sample size", f"{e.ess.mean:.1f}", "", _small(e.ess.data_se), f"of {e.particles}")
    table.add_row("data with k̂ > 0.7", _share([e]), "", "", "%")
    table.add_row("active units", str(e.active_units.count), "", "", f"of {_units(e)}")
    table.add_row("parameters", f"{e.parameters['total']:,}", "", "", "")
    caption = _caption(e, about, "± Monte Carlo standard error, and that of the sampling of data")
    table.caption = Text(f"{caption} {_doubt(e.particles)}" if is_doubted(e) else caption)
    return table


def points_table(points: AtPoints, title: str, about: About) -> Table:
    """The numbers of a pair whose guide is a point mass, a line each."""
    table = Table(title=Text(title), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("± sampling of data", justify="right", no_wrap=True)
    table.add_column("unit")
    names = {"log_likelihood": "reconstruction, log p(x | m(x))", "log_prior": "log p(m(x))"}
    for name, text in names.items():
        estimate = points.estimates[name]
        table.add_row(text, f"{estimate.mean:.4f}", _small(estimate.data_se), "nats/datum")
    units = points.active_units
    table.add_row("active units", str(units.count), "", f"of {sum(v.numel() for v in units.variances.values())}")
    said = [f"{points.data}: {len(points.log_likelihood)} data."]
    if about.likelihood:
        said.append(f"Likelihood: {about.likelihood}.")
    if about.objective:
        said.append(f"Objective: {about.objective}.")
    said.append("The guide is a point m(x), which has no density: it bounds no log p(x), and estimates none.")
    table.caption = Text(" ".join(said))
    return table


def finite(value: float) -> float | None:
    """The number, or None, which JSON can hold, for NaN and infinity."""
    return value if math.isfinite(value) else None


def one_line(error: BaseException) -> str:
    """An error's message in one line, without the tables of traces and shapes that Pyro adds to it."""
    return " ".join(str(error).partition("Trace Shapes:")[0].split())


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; what is there takes its place when all went well, and is removed otherwise.

    Raises:
        InputError: `path` is there and `overwrite` is not given; it is a folder.
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays: writers of pictures and arrays go by it
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `InputError` unless `path` may be written."""
    if path.is_dir():
        raise InputError(f"out={str(path)!r} is a folder; give a file")
    if path.exists() and not overwrite:
        raise InputError(f"out={str(path)!r} is there already; give another file, or overwrite=True (--overwrite)")


def write_results(path: Path, values: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write JSON that any reader takes: no NaN, no infinity."""
    with replacing(path, overwrite) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _about_comparison(rows: Sequence[Row], differences: Sequence[Difference], about: About) -> list[str]:
    """Sentences on what all numbers are of."""
    evaluations = [e for row in rows for e in row.evaluations]
    if not evaluations:
        return []
    several = max(len(row.evaluations) for row in rows) > 1
    error = "mean over the seeds ± its standard error over them" if several else "± Monte Carlo standard error"
    said = [_caption(evaluations[0], about, error), "Seconds are of training and compiling."]
    if any(is_doubted(e) for e in evaluations):
        said.append(_doubt(evaluations[0].particles))
    if differences:
        over = "seed and datum, ± their standard error over the seeds" if several else "datum, ± their standard error"
        said.append(f"Differences are paired by {over}.")
    return said


def _cells(row: Row, classes: bool) -> list[str]:
    if not row.evaluations:
        return ["failed"]
    e = row.evaluations[0]
    several = len(row.evaluations) > 1
    elbo, kl, log_px = (
        plus_minus(spread.mean, spread.se)
        for spread in (
            Spread.over([e.elbo for e in row.evaluations]),
            Spread.over(row.divergences or [e.kl for e in row.evaluations]),
            Spread.over([e.log_px for e in row.evaluations]),
        )
    )
    doubted = any(is_doubted(e) for e in row.evaluations)
    active = Spread.of([float(e.active_units.count) for e in row.evaluations]).mean
    return [
        elbo,
        kl,
        log_px + (f" {_MARK}" if doubted else ""),
        *([_error(row.evaluations)] if classes else []),
        f"{Spread.of([e.ess.mean for e in row.evaluations]).mean:.0f}",
        _percent(row.evaluations),
        f"{active:.1f}/{_units(e)}" if several else f"{active:.0f}/{_units(e)}",
        str(e.parameters["total"]),
        f"{Spread.of(row.seconds).mean:.1f}" if row.seconds else "–",
    ]


def _error(evaluations: Sequence[Evaluation]) -> str:
    """Percent of the data taken for another class, with its error over seeds, or of one seed over the data."""
    errors = [e.error for e in evaluations if e.error is not None]
    if not errors:
        return "–"
    spread = Spread.of([100 * error.mean for error in errors], 100 * errors[0].data_se)
    return plus_minus(spread.mean, spread.se)


def _difference(paired: Paired) -> str:
    return plus_minus(paired.mean, paired.se, sign=True)


def is_doubted(e: Evaluation) -> bool:
    """Whether a mean log p(x) is to be marked: k-hat says of too many data that it cannot be relied on, or nothing."""
    return e.khat_above > DOUBTED


def _doubt(particles: int) -> str:
    return (
        f"{_MARK} not to be relied on, more likely too low: k̂ > 0.7, or unknown with {particles} particles, for more "
        f"than {100 * DOUBTED:g}% of the data."
    )


def _percent(evaluations: Sequence[Evaluation]) -> str:
    share = _share(evaluations)
    return share if share == "?" else f"{share}%"


def khat_told(evaluation: Evaluation) -> str:
    """Of how many data k-hat is above 0.7, or that too few particles leave it unknown, in words."""
    share = _percent([evaluation])
    return "k̂ unknown with so few particles" if share == "?" else f"k̂ > 0.7 for {share} of the data"


def _share(evaluations: Sequence[Evaluation]) -> str:
    """Percent of the data with k-hat above 0.7; with too few particles for a k-hat nothing is known."""
    if any(e.khat_max == math.inf and e.khat_above >= 1 for e in evaluations):
        return "?"
    return f"{100 * Spread.of([e.khat_above for e in evaluations]).mean:.1f}"


def _units(evaluation: Evaluation) -> int:
    return sum(v.numel() for v in evaluation.active_units.variances.values())


def _small(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def _caption(e: Evaluation, about: About, error: str) -> str:
    likelihood = f" Likelihood: {about.likelihood}." if about.likelihood else ""
    objective = f" Objective: {about.objective}." if about.objective else ""
    shared = ", ".join(e.log_marginal.shared)
    given = f" All of each datum given {shared}, drawn from the guide: log E_q[p(x | {shared})]." if shared else ""
    return (
        f"{e.data}: {e.n} data, {e.particles} particles each. Nats per datum, {error}.{likelihood}{objective}"
        f" {about.log_px} by importance sampling from the guide, with an effective sample size (ESS) of {e.particles} "
        f"at best.{given} Active units: Var E[z | x] > {e.active_units.threshold:g}. On {about.device}."
    )
