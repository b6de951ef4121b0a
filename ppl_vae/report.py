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
from .evaluate import Estimate, Evaluation
from .likelihoods import Likelihood
from .networks import Condition

__all__ = [
    "About",
    "Difference",
    "Row",
    "comparison_table",
    "evaluation_table",
    "finite",
    "one_line",
    "plus_minus",
    "refuse_existing",
    "replacing",
    "write_results",
]


@dataclass(frozen=True)
class About:
    """What must be said beside a model's numbers.

    Args:
        log_px: what log p(x) is of: "log p(x | y)" where the model is conditioned on classes.
        likelihood: with what decides its units, as a floor.
        device: where the numbers were computed.
    """

    log_px: str = "log p(x)"
    likelihood: str = ""
    device: str = "cpu"

    @classmethod
    def of(cls, model: Any) -> About:
        given = getattr(model, "condition", None)
        log_px = "log p(x)"
        if isinstance(given, Condition) and given.width:
            log_px = "log p(x | y)" if given.classes else "log p(x | context)"
        part = getattr(model, "likelihood", None)
        name = ""
        if isinstance(part, Likelihood):
            options = part.extra_repr()
            name = type(part).__name__ + (f"({options})" if options else "")
        device = next(model.parameters()).device
        return cls(log_px, name, torch.cuda.get_device_name(device) if device.type == "cuda" else str(device))


@dataclass(frozen=True, eq=False)
class Row:
    """A guide's line in a comparison.

    Args:
        name: the guide's.
        evaluation: None where there is none.
        seconds: of training; None where it did not end.
        error: why there is no evaluation.
    """

    name: str
    evaluation: Evaluation | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Difference:
    """A guide's numbers less another's, on the same data.

    Args:
        guide, less: their names.
        elbo, kl, log_px: means over the data, nats; `data_se` is the paired differences' standard error.
    """

    guide: str
    less: str
    elbo: Estimate
    kl: Estimate
    log_px: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"guide": self.guide, "less": self.less} | {
            name: {"mean": finite(e.mean), "data_se": finite(e.data_se), "n": e.n}
            for name, e in (("elbo", self.elbo), ("kl", self.kl), ("log_px", self.log_px))
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


def comparison_table(rows: Sequence[Row], differences: Sequence[Difference], about: About) -> Table:
    """A row a guide, and below it a row for each difference; the caption says of what the numbers are."""
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False, show_edge=False, collapse_padding=True)
    # numbers may break before their errors on a narrow screen, names may not
    table.add_column("guide", no_wrap=True)
    for name, unit in (
        ("ELBO", "nats"),
        ("KL", "nats"),
        (about.log_px, "nats"),
        ("ESS", ""),
        ("k̂>0.7", "data"),
        ("active", "units"),
        ("para-", "meters"),
        ("sec.", ""),
    ):
        table.add_column(f"{name}\n{unit}", justify="right", overflow="fold")
    for row in rows:
        table.add_row(row.name, *_cells(row))
    if differences:
        table.add_section()
    for each in differences:
        numbers = (plus_minus(e.mean, e.data_se, sign=True) for e in (each.elbo, each.kl, each.log_px))
        table.add_row(f"{each.guide}\n− {each.less}", *numbers)
    some = next((row.evaluation for row in rows if row.evaluation is not None), None)
    failed = [f"{row.name} failed: {row.error}" for row in rows if row.error is not None]
    lines = [] if some is None else [f"{_caption(some, about)} Seconds are of training and compiling."]
    if differences:
        lines.append("Differences are paired, ± their standard error over the data.")
    table.caption = Text("\n".join(lines + failed))
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
        table.add_row(name, f"{estimate.mean:.4f}", _small(estimate.se), _small(estimate.data_se), unit)
    table.add_row("effective sample size", f"{e.ess.mean:.1f}", "", _small(e.ess.data_se), f"of {e.particles}")
    table.add_row("data with k̂ > 0.7", _share(e), "", "", "%")
    table.add_row("active units", str(e.active_units.count), "", "", f"of {_units(e)}")
    table.add_row("parameters", f"{e.parameters['total']:,}", "", "", "")
    table.caption = Text(_caption(e, about))
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


def _cells(row: Row) -> list[str]:
    e = row.evaluation
    if e is None:
        return ["failed"]
    return [
        *(plus_minus(each.mean, each.se) for each in (e.elbo, e.kl, e.log_px)),
        f"{e.ess.mean:.0f}",
        f"{_share(e)}%",
        f"{e.active_units.count}/{_units(e)}",
        str(e.parameters["total"]),
        "–" if row.seconds is None else f"{row.seconds:.1f}",
    ]


def _share(e: Evaluation) -> str:
    """Percent of the data with k-hat above 0.7; with too few particles for a k-hat nothing is known."""
    return f"{100 * e.khat_above:.1f}" if e.khat_max < math.inf or e.khat_above < 1 else "?"


def _units(evaluation: Evaluation) -> int:
    return sum(v.numel() for v in evaluation.active_units.variances.values())


def _small(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def _caption(e: Evaluation, about: About) -> str:
    likelihood = f" Likelihood: {about.likelihood}." if about.likelihood else ""
    return (
        f"{e.data}: {e.n} data, {e.particles} particles each. Nats per datum, ± Monte Carlo standard error.{likelihood}"
        f" {about.log_px} by importance sampling from the guide, with an effective sample size (ESS) of {e.particles} "
        "at best; not to be relied on where k̂ > 0.7. Active units: "
        f"Var E[z | x] > {e.active_units.threshold:g}. On {about.device}."
    )
