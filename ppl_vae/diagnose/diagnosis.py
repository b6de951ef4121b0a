"""All diagnostics of a fitted pair in one call: verdicts in plain words, one object for ArviZ, and a page."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn

from ..batch import Batch
from ..data import DataSet
from ..data.arrays import evenly
from ..display import Display, display
from ..errors import InputError, check_count
from ..evaluate.chunked import Data, Source, device_of, evaluation, spans
from ..isolation import untouched
from ..renewal import is_local
from ..report import one_line, replacing
from ..threads import few_threads
from ..weights import Program
from .checks import CHECKS, Budget, Check, chosen, chosen_budget
from .findings import Finding, Verdict, plain
from .page import page
from .page_parts import sentence

__all__ = ["Diagnosis", "LeftOut", "diagnose"]

KIND = "diagnosis"
FORMAT = 1

_SAID = 3
_CHECKED = 4096
_ARVIZ_DATA = 50
_ARVIZ_DRAWS = 200
_ARVIZ_NUMBERS = 2_000_000
_PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy", "arviz", "matplotlib")


@dataclass(frozen=True)
class LeftOut:
    """A check without an answer.

    Args:
        reason: why, in a sentence.
        kind: "does not fit" where the check refused the pair or the data, "failed" where it broke.
    """

    reason: str
    kind: Literal["does not fit", "failed"]


@dataclass(eq=False, repr=False)
class Diagnosis:
    """What the diagnostics found of a pair. As text, as in `print(diagnosis)`, it is its summary.

    Args:
        name: of the pair, a heading.
        data: which data these are.
        size: how many of them there are.
        findings: the answers, by check.
        left_out: the checks without one, and why.
        settings: the arguments of each check; "data" is how many data it took.
        rows: which rows of the data each check took; None: all.
        seed: with which each check was started.
        budget: "quick", "standard" or "thorough".
        seconds: what each check took.
        about: versions, machine, parts of the pair.
        command: what makes the same again.
        pair: model, guide and data.
    """

    name: str
    data: str
    size: int
    findings: dict[str, Finding] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, Tensor | None] = field(default_factory=dict)
    seed: int = 0
    budget: Budget = "standard"
    seconds: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    command: str = ""
    pair: tuple[Program, Program, Data] | None = field(default=None, repr=False)

    def __getitem__(self, check: str) -> Finding:
        if check in self.findings:
            return self.findings[check]
        reason = self.left_out[check].reason if check in self.left_out else f"there are {', '.join(self.findings)}"
        raise InputError(f"check={check!r} has no finding: {reason}")

    def verdicts(self) -> list[Verdict]:
        """All verdicts, the gravest first: faults, of these the grave ones, then what cannot be told, then what holds;
        within each in the order of the checks and, of a check, in its own."""
        every = [verdict for finding in self.findings.values() for verdict in finding.verdicts()]
        return sorted(every, key=lambda v: ({True: 0, None: 1, False: 2}[v.fault], not (v.fault and v.grave)))

    @property
    def faults(self) -> list[Verdict]:
        """The verdicts that found one."""
        return [verdict for verdict in self.verdicts() if verdict.fault]

    @property
    def false_alarms(self) -> float:
        """How many faults would be found, on average, of a pair that has none: the sum of the false-alarm rates of all
        verdicts for which one is known."""
        return math.fsum(verdict.false_alarm or 0.0 for verdict in self.verdicts())

    def headline(self) -> str:
        """The gravest faults in one sentence; or that there are none."""
        verdicts = self.verdicts()
        if faults := [verdict.says for verdict in verdicts if verdict.fault]:
            more = len(faults) - _SAID
            others = [f"and {more} more fault{'s' if more > 1 else ''}"] if more > 0 else []
            return sentence("; ".join([*map(_clause, faults[:_SAID]), *others]))
        if not verdicts:
            return "Nothing can be said: no check gave an answer."
        doubts = sum(verdict.fault is None for verdict in verdicts)
        rest = f" {doubts} of {len(verdicts)} verdicts cannot be told from these numbers." if doubts else ""
        silent = len(self.left_out)
        if silent:
            rest += f" {silent} of {silent + len(self.findings)} checks gave no answer."
        return f"No fault was found.{rest}"

    def __repr__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """The verdicts in plain words, with what to try next."""
        verdicts = self.verdicts()
        lines = [f"{self.name}, {self.data} ({self.size:,} data)", self.headline()]
        parts = (
            (True, "Faults", True),
            (None, "Cannot be told", True),
            (False, "No fault", False),
        )
        for fault, heading, advised in parts:
            if some := [verdict for verdict in verdicts if verdict.fault is fault]:
                lines += ["", f"{heading}:"]
                for each in some:
                    advice = f" Try: {sentence(each.advice)}" if advised and each.advice else ""
                    lines.append(f"- {each.check}: {sentence(each.says)}{advice}")
        if self.left_out:
            lines += ["", "Without an answer:"]
            lines += [f"- {name} {each.kind}: {each.reason}" for name, each in self.left_out.items()]
        return "\n".join(lines)

    def to_arviz(self, draws: int = _ARVIZ_DRAWS) -> Any:
        """Everything in one object of ArviZ's: the groups of `to_arviz`, and one for each finding, by its name.

        The first groups hold draws for at most 50 of the data, spread evenly over them; where the pair allows of no
        such draws, findings alone are there, and the attribute `without_draws` says why. Each finding has its own data;
        the coordinate `datum` is their row everywhere.

        Args:
            draws: of prior and posterior, a datum.

        Returns:
            `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with 1.x.
        """
        from ._arviz import container, groups_of
        from .arviz_export import to_arviz

        check_count("draws", draws)
        attrs = {"kind": KIND, "name": self.name, "data": self.data, "seed": str(self.seed), "budget": self.budget}
        groups: dict[str, Any] = {}
        if self.pair is not None:
            model, guide, data = self.pair
            elements = math.prod(_shape(data)) or 1
            count = max(10, min(_ARVIZ_DATA, _ARVIZ_NUMBERS // (draws * elements)))
            part, rows = some_of(data, guide, count)
            try:
                drawn = to_arviz(model, guide, part, draws, seed=self.seed)
                groups = {name: _at_rows(group, rows) for name, group in groups_of(drawn).items()}
                attrs = {**{k: str(v) for k, v in drawn.attrs.items()}, **attrs}
            except Exception as error:
                attrs["without_draws"] = one_line(error)
        for name, finding in self.findings.items():
            try:
                groups[name] = _at_rows(finding.to_dataset(), self.rows.get(name)).assign_attrs(
                    verdicts=json.dumps([v.to_json() for v in finding.verdicts()]),
                    question=CHECKS[name].question if name in CHECKS else name,
                )
            except Exception as error:
                attrs[f"without_{name}"] = one_line(error)
        attrs["diagnosis"] = json.dumps(self.to_json(), allow_nan=False)
        return container(groups, attrs)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write `to_arviz` as netCDF, which `from_netcdf` reads.

        Raises:
            InputError: the name does not end in .nc; a file that is there, without `overwrite`.
        """
        from ._arviz import to_netcdf

        _suffix(path, ".nc", "a diagnosis is saved as netCDF")
        with replacing(path, overwrite) as temporary:
            to_netcdf(self.to_arviz(), temporary)

    def report(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a page: one HTML file that needs nothing else, whole or not at all.

        Raises:
            InputError: the name does not end in .html; a file that is there, without `overwrite`.
        """
        _suffix(path, ".html", "a report is a page")
        with replacing(path, overwrite) as temporary:
            temporary.write_text(page(self), encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """Verdicts and figures of the whole, without values of single data, for `json.dumps`."""
        values: dict[str, Any] = plain(
            {
                "kind": KIND,
                "format": FORMAT,
                "name": self.name,
                "data": {"description": self.data, "size": self.size},
                "headline": self.headline(),
                "verdicts": [verdict.to_json() for verdict in self.verdicts()],
                "false_alarms_expected": self.false_alarms,
                "findings": {name: finding.to_json() for name, finding in self.findings.items()},
                "left_out": {name: {"kind": each.kind, "reason": each.reason} for name, each in self.left_out.items()},
                "seed": self.seed,
                "budget": self.budget,
                "settings": self.settings,
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                "about": self.about,
                "command": self.command,
            }
        )
        return values


def diagnose(
    model: Program,
    guide: Program,
    data: Data,
    *,
    train: Data | None = None,
    train_guide: Program | None = None,
    checks: str | Sequence[str] = "all",
    budget: str = "standard",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    seed: int = 0,
    progress: bool | Progress = False,
    compile: bool = False,
    command: str = "",
) -> Diagnosis:
    r"""Can the posterior be trusted? Every diagnostic that fits a fitted pair, and what they say in plain words.

    How far is q(z | x) from p(z | x), is that the family's fault or the encoder's, are its uncertainties calibrated,
    and does the model fit the data: a function each, which can be called alone. Here each gets as many of the
    data as the budget allows, spread evenly over them, and the same seed. One that refuses the pair or the data, or
    fails, is left out with its reason and stops no other.

    Args:
        model, guide: a fitted pair of programs over a `Batch`.
        data: a data set (dynamic binarization is drawn once), a batch with x, or x; data that the pair was not fitted
            to.
        train: what it was fitted to, for checks that compare with it, of as many of them.
        train_guide: the guide of these, where it has parameters for each datum; `guide` is then one of `data`, see
            `renewal.renewed`.
        checks: "all", or names, as a list or with commas between them.
        budget: "quick", "standard" or "thorough": of a VAE of the digits, on two cores, seconds, at most three minutes,
            or half an hour.
        options: arguments of single checks, by name, as ``{"khat": {"particles": 5000, "data": 100}}``; "data" is how
            many data it takes, 0 for all.
        name: of the pair, a heading; None: the names of its classes.
        seed: of every check; the default generator stays as it is.
        progress: a bar for each check (lines, where there is no terminal), or a rich display for them.
        compile: compile what can be compiled, worth its seconds for large models.
        command: what made this, for the report; None of it is run.

    Returns:
        `Diagnosis`.

    Raises:
        InputError: names, a budget or options that there are not; data without x, or with values that the likelihood
            has no probability for; training data without their guide, where it has parameters for each datum.

    Example:
        >>> from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior
        >>> model = LinearGaussian()
        >>> found = diagnose(model, LinearGaussianPosterior(model), model.simulate(20), checks=[])
        Traceback (most recent call last):
        ...
        ppl_vae.errors.InputError: checks=[] asks for nothing; give 'all', or some of: ...
    """
    wanted = chosen(checks)
    spent = chosen_budget(budget)
    changes = dict(options or {})
    if unknown := [each for each in changes if each not in {check.name for check in wanted}]:
        raise InputError(f"options has {unknown[0]!r}, which is not among the checks: {[c.name for c in wanted]}")
    settings = {check.name: check.settings(spent, changes.get(check.name, {})) for check in wanted}
    for each, values in settings.items():
        check_count(f"options[{each!r}]['data']", values["data"], least=0)
    learned = _learned(model, guide, train, train_guide)
    source = Source(data, model, guide)
    fixed: Data = source.data
    with evaluation(model, guide, seed=seed):
        for start, stop in spans(source.size, _CHECKED):  # every datum, before any work
            source.batch(start, stop)
    found = Diagnosis(
        name=name or f"{_title(model)} with {_title(guide)}",
        data=source.description,
        size=source.size,
        settings=settings,
        seed=seed,
        budget=spent,
        about=_about(model, guide),
        command=command or _call(checks, spent, changes, seed),
        pair=(model, guide, fixed),
    )
    modules = [program for program in (model, guide) if isinstance(program, nn.Module)]
    with display(progress) as shows, few_threads(*modules):
        overall = shows.overall("diagnose", len(wanted))
        for number, check in enumerate(wanted):
            _run(found, check, fixed, learned, shows, compile)
            shows.tidy()
            overall.update(number + 1)
    return found


def _learned(
    model: Program, guide: Program, train: Data | None, train_guide: Program | None
) -> tuple[Data, Program] | None:
    """Training data, drawn once, and the guide of these."""
    if train is None:
        if train_guide is not None:
            raise InputError("train_guide is of training data, and there are none: give train as well")
        return None
    if train_guide is None and is_local(guide):  # type: ignore[arg-type]
        raise InputError(
            f"train is given, and {_title(guide)} has parameters for each datum of data: give train_guide, the one "
            "that was fitted to the training data"
        )
    theirs = guide if train_guide is None else train_guide
    return Source(train, model, theirs).data, theirs


def _run(
    found: Diagnosis,
    check: Check,
    data: Data,
    train: tuple[Data, Program] | None,
    shows: Display,
    compile: bool,
) -> None:
    assert found.pair is not None
    model, guide, _ = found.pair
    settings = found.settings[check.name]
    part, rows = some_of(data, guide, settings["data"])
    settings["data"] = found.size if rows is None else len(rows)
    tell = shows.count(check.name, settings["data"])
    given: dict[str, Any] = {"seed": found.seed, "progress": tell, "compile": compile}
    if train is not None:
        given |= {"train": some_of(*train, settings["data"])[0], "train_guide": train[1]}
    began = time.perf_counter()
    try:
        with untouched(model, guide):
            finding = check.run(model, guide, part, settings, **given)
            finding.verdicts()  # here rather than in a report, where it would take all the others with it
        found.findings[check.name] = finding
        found.rows[check.name] = rows
    except InputError as error:
        found.left_out[check.name] = LeftOut(one_line(error), "does not fit")
    except Exception as error:
        found.left_out[check.name] = LeftOut(f"{type(error).__name__}: {one_line(error)}", "failed")
    found.seconds[check.name] = time.perf_counter() - began


def some_of(data: Data, guide: Program, count: int) -> tuple[Data, Tensor | None]:
    """So many of the data, spread evenly over them, and their rows; 0 or as many as there are: all of them, and None.

    A part of a data set is counted anew, which a guide with parameters for each datum must not see: it gets a batch.
    """
    size = data.shape[0] if isinstance(data, Tensor) else data.size if isinstance(data, Batch) else len(data)
    if not 0 < count < size:
        return data, None
    rows = evenly(size, count)
    if isinstance(data, DataSet):
        return (data.batch(rows) if is_local(guide) else data.take(rows)), rows  # type: ignore[arg-type]
    if isinstance(data, Batch):
        return data.take(rows), rows if data.rows is None else data.rows[rows].cpu()
    return data[rows], rows


def _at_rows(group: Any, rows: Tensor | None) -> Any:
    """A dataset whose data have their rows as coordinates, where they were counted anew."""
    if rows is None or "datum" not in group.dims or group.sizes["datum"] != len(rows):
        return group
    if "datum" in group.coords and group["datum"].values.tolist() != list(range(len(rows))):
        return group
    return group.assign_coords(datum=rows.numpy())


def _shape(data: Data) -> tuple[int, ...]:
    x = data if isinstance(data, Tensor) else data.x
    assert x is not None
    return tuple(x.shape[1:])


def _title(program: Program) -> str:
    return str(getattr(program, "__name__", None) or type(program).__name__)


def _about(model: Program, guide: Program) -> dict[str, str]:
    device = device_of(model, guide)
    where = "cpu" if device is None else str(device)
    if device is not None and device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return {
        "model": _title(model),
        "guide": _title(guide),
        "device": where,
        "threads": str(torch.get_num_threads()),
        "platform": platform.platform(),
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def _call(checks: str | Sequence[str], budget: str, options: Mapping[str, Any], seed: int) -> str:
    given = ["model", "guide", "data"]
    if checks not in ("all", ["all"]):
        given.append(f"checks={checks if isinstance(checks, str) else list(checks)!r}")
    if budget != "standard":
        given.append(f"budget={budget!r}")
    if options:
        given.append(f"options={ {k: dict(v) for k, v in options.items()}!r}")
    return f"ppl_vae.diagnose({', '.join([*given, f'seed={seed}'])})"


def _clause(says: str) -> str:
    """A sentence as a part of one: "On data that ..." begins small, and "KL" and "R-hat" as they are. What stands in
    brackets, as numbers of each dimension, is left to the whole sentence."""
    says = _without_brackets(says).strip().rstrip(".")
    return says[:1].lower() + says[1:] if says[1:2].islower() or says[1:2] == " " else says


def _without_brackets(text: str) -> str:
    """Text without what is in brackets of its own; "p(z | x)" has none."""
    kept, depth = "", 0
    for k, letter in enumerate(text):
        if letter == "(" and (depth or text[k - 1 : k] == " "):
            depth += 1
            kept = kept if depth > 1 else kept.rstrip()
        elif letter == ")" and depth:
            depth -= 1
        elif not depth:
            kept += letter
    return kept


def _suffix(path: str | os.PathLike[str], suffix: str, what: str) -> None:
    if os.path.splitext(os.fspath(path))[1].lower() != suffix:
        raise InputError(f"path={os.fspath(path)!r}: {what}, {suffix}")
