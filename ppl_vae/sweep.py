"""Many runs of disentanglement: objectives, weights and seeds, each scored, in a folder that can be gone on with."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .build import DataSpec
from .checkpoint import read_json
from .data import DataSet, DataSplits
from .data.arrays import evenly
from .disentangle import Watch, factor_codes, kl_curves, metrics, reconstructions_in_time, traversals, udr
from .errors import InputError, check_count, check_number, choose
from .evaluate import elbo as bound_of
from .evaluate import kl_by_dimension
from .folder import CHECKPOINTS
from .objectives import objectives
from .options import parse
from .recipe import Recipe, load_plain, prepare
from .report import finite, one_line, write_results

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["METHODS", "Cell", "Sweep", "sweep"]

METHODS = {
    "beta": ("elbo", "beta"),
    "capacity": ("capacity", "capacity"),
    "constrained": ("constrained", "epsilon"),
    "factor": ("factor", "gamma"),
    "btc": ("btc", "beta"),
    "dip": ("dip", "off_diagonal"),
}
"""What can be swept: the objective, and the argument that the values are of."""

SETTINGS = "sweep.json"
RESULTS = "results.json"
SCORE = "score.json"
_CODES = 2000
_JUDGED = 1000
_WATCHED = 256


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a sweep.

    Args:
        method: a name in `METHODS`, with further options of its objective as in "capacity:gamma=100".
        value: of its argument.
        seed: of weights, order and noise.
    """

    method: str
    value: float
    seed: int

    @property
    def name(self) -> str:
        """Method and value: "beta=4"."""
        return f"{self.method}={self.value:g}"

    @property
    def objective(self) -> str:
        """As on the command line: "elbo:beta=4"."""
        name, _, options = self.method.partition(":")
        objective, argument = METHODS[name]
        return ":".join(filter(None, (objective, f"{argument}={self.value!r}", options)))

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.name.replace(":", "-") / f"seed-{self.seed}"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep has found so far.

    Args:
        settings: of the sweep, as in sweep.json.
        scores: the contents of each score.json by cell.
        failed: errors by cell.
        agreement: UDR of each cell, by method and value; where there are two seeds or more.
    """

    settings: dict[str, Any]
    scores: dict[Cell, dict[str, Any]]
    failed: dict[Cell, str]
    agreement: dict[Cell, float]

    @property
    def names(self) -> list[str]:
        """Method and value of each row, in the order of the sweep."""
        return list(dict.fromkeys(cell.name for cell in (*self.scores, *self.failed)))

    @property
    def columns(self) -> list[str]:
        return ["reconstruction", "kl", *self.settings["metrics"], *(["udr"] if self.agreement else [])]

    def values(self, name: str, column: str) -> dict[int, float]:
        """A number of each seed: "reconstruction" and "kl" in nats per datum, or a metric's score."""
        found = {}
        for cell, score in self.scores.items():
            if cell.name != name:
                continue
            value = self.agreement.get(cell) if column == "udr" else score["numbers"].get(column)
            if value is not None:
                found[cell.seed] = float(value)
        return found

    def table(self) -> Table:
        """Mean and standard deviation over the seeds; the best run never stands alone."""
        from rich.table import Table

        seeds = self.settings["seeds"]
        table = Table(
            title=f"{self.settings['data']}: {seeds} seed{'s' if seeds > 1 else ''}",
            caption="Mean ± standard deviation over the seeds, and the least and the largest. Reconstruction "
            "(E_q log p(x | z)) and KL in nats per datum.",
        )
        table.add_column("objective")
        for column in self.columns:
            table.add_column(column, justify="right")
        for name in self.names:
            table.add_row(name, *(_cell(list(self.values(name, column).values())) for column in self.columns))
        return table

    def to_json(self) -> dict[str, Any]:
        rows = []
        for name in self.names:
            row: dict[str, Any] = {"objective": name}
            for column in self.columns:
                found = self.values(name, column)
                values = list(found.values())
                row[column] = {
                    "mean": finite(statistics.fmean(values)) if values else None,
                    "sd": finite(statistics.stdev(values)) if len(values) > 1 else None,
                    "by_seed": {str(seed): finite(value) for seed, value in sorted(found.items())},
                }
            rows.append(row)
        failed = {f"{cell.name} seed {cell.seed}": why for cell, why in self.failed.items()}
        return {"settings": self.settings, "rows": rows, "failed": failed}


def sweep(
    recipe: Recipe,
    methods: Sequence[str] = ("beta",),
    values: Mapping[str, Sequence[float]] | None = None,
    seeds: int = 10,
    *,
    out: str | os.PathLike[str],
    measured: Sequence[str] = ("beta-vae", "factor-vae", "mig", "sap"),
    size: int | None = None,
    points: int = 10_000,
    workers: int = 1,
    pictures: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Train and score every method at every value with every seed.

    Each cell is a run folder with a score.json beside it. A sweep that was killed goes on with `resume`: cells with a
    score are left alone, and one that was being trained goes on from its last checkpoint. Cells that fail are
    reported, and the others go on. Each worker is a process with one CPU thread.

    Args:
        recipe: data with factors, model, guide, network and training; its objective is each cell's, its seed the first.
        methods: names in `METHODS`, with further options as "capacity:gamma=100:steps=2000".
        values: by method; one that is not there has 1 (beta), or its objective's own default.
        seeds: how many.
        out: the folder.
        measured: see `disentangle`; "dci" takes minutes a cell.
        size: train on so many random data; None: all.
        points: the metrics draw from so many random data of the training part.
        workers: processes at a time.
        pictures: beside each score draw traversals.png (one datum, each dimension by its KL), kl.png (the KL of each
            dimension during training) and reconstructions.png (images at times of training), where the guide's KL has
            a closed form.
        resume, overwrite: go on with a sweep in the folder, or replace it.
        progress: called with the number of cells done, and how many there are.

    Returns:
        `Sweep`; results.json, a violin plot a metric and the trade-off of reconstruction against each metric are in
        the folder.

    Raises:
        InputError: unknown methods or metrics, values out of range, data without factors, a folder of other settings.
    """
    cells = _cells(methods, values or {}, check_count("seeds", seeds), recipe.seed)
    named = list(measured)
    for name in named:
        metrics.get(name)
    check_count("workers", workers)
    check_count("points", points, 100)
    settings = {
        "data": recipe.data,
        "recipe": {**recipe.to_json(), "objective": None},
        "methods": {cell.name: cell.objective for cell in cells},
        "seeds": seeds,
        "metrics": named,
        "size": size,
        "points": points,
    }
    folder = Path(out)
    splits = _splits(recipe, size)  # read here too, so that bad input is told before a worker starts
    _open(folder, settings, resume, overwrite)
    left = [cell for cell in cells if not (cell.folder(folder) / SCORE).exists()]
    done = len(cells) - len(left)
    failed: dict[Cell, str] = {}
    if progress is not None:
        progress(done, len(cells))
    for cell, error in _run_all(left, _Job(recipe, folder, settings, splits, pictures), workers):
        done += 1
        if error is not None:
            failed[cell] = error
        if progress is not None:
            progress(done, len(cells))
    found = _gather(settings, cells, folder, failed)
    write_results(folder / RESULTS, found.to_json(), overwrite=True)
    _draw(found, folder)
    return found


def _cells(methods: Sequence[str], values: Mapping[str, Sequence[float]], seeds: int, first: int) -> list[Cell]:
    if not methods:
        raise InputError("methods is empty; give one of: " + ", ".join(METHODS))
    for name in values:
        if name not in METHODS:
            raise choose("values", name, METHODS)
        if name not in [parse("objective", method)[0] for method in methods]:
            raise InputError(f"values are given for {name!r}, which is not swept; the objectives are {list(methods)}")
    cells = []
    for method in methods:
        name, options = parse("objective", method)
        if name not in METHODS:
            raise choose("objective", name, METHODS)
        if METHODS[name][1] in options:
            raise InputError(f"objective={method!r} sets {METHODS[name][1]}, which is swept; say it by values")
        for value in values.get(name, (_default(name),)):
            number = check_number(f"values of {name}", value, least=0.0)
            cells += [Cell(method, number, seed) for seed in range(first, first + seeds)]
    return cells


def _default(name: str) -> float:
    objective, argument = METHODS[name]
    return float(inspect.signature(objectives.get(objective)).parameters[argument].default)


def _splits(recipe: Recipe, size: int | None) -> DataSplits:
    splits = load_plain(recipe)
    if splits.train.factors is None:
        raise InputError(
            f"data={recipe.data!r} has no factors, by which codes are scored; use sprites, or dSprites' .npz"
        )
    if size is None or size >= len(splits.train):
        return splits
    rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[: check_count("size", size, 2)]
    some = splits.train.take(rows.sort().values)
    return DataSplits(dataclasses.replace(some, split=f"{splits.train.split}, {size} of them (seed 0)"), splits.test)


def _open(folder: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("resume=True goes on with a sweep and overwrite=True replaces it; give one of them")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={str(folder)!r} is a file; give a folder")
    there = folder.exists() and any(folder.iterdir())
    if there and not (folder / SETTINGS).is_file():
        raise InputError(f"out={str(folder)!r} holds files that are no sweep's; give another folder")
    if there and resume:
        before = read_json(folder / SETTINGS)
        for name in ("recipe", "metrics", "size", "points"):
            if before.get(name) != settings[name]:
                raise InputError(
                    f"out={str(folder)!r} holds a sweep with {name}={before.get(name)!r}, and {settings[name]!r} is "
                    "asked for; give another folder, or overwrite=True (--overwrite)"
                )
    elif there and not overwrite:
        raise InputError(
            f"out={str(folder)!r} holds a sweep; go on with it by resume=True, replace it by overwrite=True (--resume, "
            "--overwrite), or give another folder"
        )
    elif resume and not there:
        raise InputError(f"out={str(folder)!r} holds no sweep to go on with; leave resume out")
    if there and overwrite:
        shutil.rmtree(folder / "cells", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / SETTINGS, settings, overwrite=True)


class _Job(NamedTuple):
    """What all cells share."""

    recipe: Recipe
    out: Path
    settings: Mapping[str, Any]
    splits: DataSplits
    pictures: bool


_job: _Job | None = None
"""Of a worker process, which reads the data once for all of its cells."""


def _run_all(cells: Sequence[Cell], job: _Job, workers: int) -> Iterator[tuple[Cell, str | None]]:
    """Cells as they are done, each with its error."""
    if workers == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, _run(cell, job)
        return
    context = multiprocessing.get_context("spawn")
    given = (os.getpid(), job.recipe, job.out, job.settings, job.pictures)
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(cells)), context, initializer=_start_worker, initargs=given
    ) as pool:
        try:
            pending = {pool.submit(_run_in_worker, cell): cell for cell in cells}
            for future in concurrent.futures.as_completed(pending):
                error = future.exception()
                yield (
                    pending[future],
                    future.result() if error is None else f"{type(error).__name__}: {one_line(error)}",
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(parent: int, recipe: Recipe, out: Path, settings: Mapping[str, Any], pictures: bool) -> None:
    global _job
    torch.set_num_threads(1)

    def watch() -> None:
        # a parent that was killed takes its workers with it: nobody would read what they do
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _job = _Job(recipe, out, settings, _splits(recipe, settings["size"]), pictures)


def _run_in_worker(cell: Cell) -> str | None:
    assert _job is not None
    return _run(cell, _job)


def _run(cell: Cell, job: _Job) -> str | None:
    """Train and score a cell; the error in one line, if there was one."""
    recipe, out, settings, data, pictures = job
    folder = cell.folder(out)
    try:
        ready = prepare(recipe.replace(objective=cell.objective, seed=cell.seed, beta=None, alpha=None), loaded=data)
        run = folder / "run"
        going = (run / CHECKPOINTS).is_dir() and any((run / CHECKPOINTS).iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        watch = _watch(ready, folder, going) if pictures else None
        callbacks = [] if watch is None else [watch]
        with ready.threads():
            fitted = ready.train(
                run, resume=going, overwrite=run.exists() and not going, callbacks=callbacks, progress=False
            )
            if fitted.stopped == "interrupted":
                raise KeyboardInterrupt
            if watch is not None:
                _draw_cell(cell, fitted, watch, data.test, folder)
            write_results(folder / SCORE, _score(cell, ready, fitted, settings, folder), overwrite=True)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return None


def _watch(ready: Any, folder: Path, going: bool) -> Watch | None:
    """What looks at a run after each epoch; None where the KL of its guide has no closed form."""
    test = ready.data.test
    try:
        kl_by_dimension(ready.model, ready.guide, test.take([0]))
    except InputError:
        return None
    path = folder / "watch.npz"
    if not going:
        path.unlink(missing_ok=True)
    return Watch(test.take(evenly(len(test), _WATCHED)), path=path)


def _draw_cell(cell: Cell, fitted: Any, watch: Watch, test: DataSet, folder: Path) -> None:
    from .plots import save

    what = f"{cell.name}, seed {cell.seed}"
    figures = {
        "kl": kl_curves(watch, f"{what}: KL of each dimension during training"),
        "traversals": traversals(
            fitted.model, fitted.guide, watch.data, title=f"{what}: each dimension from -2 to 2, by its KL"
        ),
    }
    if len(test.shape) == 3:
        title = f"{what}: E[x | z] during training (nats)"
        figures["reconstructions"] = reconstructions_in_time(watch, DataSpec.of(test), title=title)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png", overwrite=True)


def _score(cell: Cell, ready: Any, fitted: Any, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    model, guide = fitted.model.eval(), fitted.guide.eval()
    train, test = ready.data
    codes, factors = factor_codes(model, guide, train, settings["points"], seed=0)
    scores = {}
    for name in settings["metrics"]:
        score = metrics.get(name)(codes, factors, seed=0, names=train.factor_names)
        scores[name] = {"value": score.value, "se": finite(score.se), "note": score.note}
    judged = test.take(range(min(_JUDGED, len(test))))
    means = {name: e.mean for name, e in bound_of(model, guide, judged, particles=8, seed=0).estimates.items()}
    kl = _kl(model, guide, judged, codes.shape[1])
    np.savez(folder / "codes.npz", codes=codes[:_CODES].astype(np.float32), kl=kl)
    numbers = {"reconstruction": means["log_likelihood"], "kl": means["kl"]}
    numbers |= {name: score["value"] for name, score in scores.items()}
    return {
        "objective": cell.objective,
        "seed": cell.seed,
        "data": train.description,
        "judged_on": judged.description,
        "numbers": {name: finite(value) for name, value in numbers.items()},
        "metrics": scores,
        "kl_by_dimension": kl.tolist(),
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
    }


def _kl(model: Any, guide: Any, data: Any, dims: int) -> Any:
    """Mean KL of each dimension, nats; ones where it has no closed form, so that every dimension counts."""
    try:
        found = kl_by_dimension(model, guide, data).mean
    except InputError:
        return np.ones(dims)
    return torch.cat([value.flatten() for value in found.values()]).double().numpy()


def _gather(settings: dict[str, Any], cells: Sequence[Cell], folder: Path, failed: dict[Cell, str]) -> Sweep:
    scores = {cell: read_json(path) for cell in cells if (path := cell.folder(folder) / SCORE).exists()}
    agreement: dict[Cell, float] = {}
    for name in dict.fromkeys(cell.name for cell in scores):
        some = [cell for cell in scores if cell.name == name]
        saved = [dict(np.load(cell.folder(folder) / "codes.npz")) for cell in some]
        if len(some) > 1:
            found = udr([each["codes"] for each in saved], [each["kl"] for each in saved])
            agreement |= {cell: float(value) for cell, value in zip(some, found, strict=True)}
    return Sweep(settings, scores, {cell: why for cell, why in failed.items() if cell not in scores}, agreement)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "failed"
    digits = 3 if max(map(abs, values)) < 10 else 1
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    spread = f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
    return f"{spread} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _draw(found: Sweep, folder: Path) -> None:
    from . import sweep_plots
    from .plots import save

    if not found.scores:
        return
    for column in found.columns[2:]:
        save(sweep_plots.violins(found, column), folder / f"{column}.png", overwrite=True)
        save(sweep_plots.trade_off(found, column), folder / f"trade-off-{column}.png", overwrite=True)
