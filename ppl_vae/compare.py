"""Guides side by side: the same data, model, seed and budget, in one table, with pictures and draws."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from rich.table import Table

from .build import DataSpec
from .checkpoint import read_json
from .conditions import conditions
from .data import DataSet
from .display import Display, display
from .errors import InputError, RunError, choose
from .evaluate import Estimate, Evaluation, encode, evaluate, reconstruct, sample
from .fit import FitResult
from .folder import CHECKPOINTS, METRICS, RUN, TENSORBOARD, read_run
from .guides import guides as registry
from .recipe import Ingredients, Recipe, load_plain, prepare
from .report import About, Difference, Row, comparison_table, finite, one_line, write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Contender", "compare", "of_each_class", "pictures_for"]

FORMAT = 1
KIND = "comparison"
RESULTS = "results.json"
DRAWS = "comparison.nc"

_PICTURES = 12
_TABLE_SAMPLES = 1000
_ARVIZ_DRAWS = 100
_ARVIZ_NUMBERS = 2_000_000


@dataclass(eq=False)
class Contender:
    """One guide of a comparison.

    Args:
        guide: its name.
        ingredients: what it was trained from.
        fitted: the trained pair, None where training failed.
        evaluation: on the test data, None where something failed.
        error: what failed.
    """

    guide: str
    ingredients: Ingredients
    fitted: FitResult | None = None
    evaluation: Evaluation | None = None
    error: str | None = None

    @property
    def row(self) -> Row:
        return Row(self.guide, self.evaluation, None if self.fitted is None else self.fitted.seconds, self.error)


@dataclass(eq=False)
class Comparison:
    """What a comparison found.

    Args:
        recipe: what the guides share; its `guide` is the first one's.
        test: the data that all numbers are of.
        contenders: a guide each, in the order in which they were asked for.
        differences: of each guide to the first, paired over the test data.
        seconds: wall time of import, load, compile, train, evaluate, draw, and in total.
        eval_particles: draws a datum behind the numbers.
        interrupted: whether Ctrl-C ended it.
        out: where it was written, None for nowhere.
    """

    recipe: Recipe
    test: DataSet
    contenders: list[Contender]
    eval_particles: int
    differences: list[Difference] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    out: Path | None = None

    @property
    def done(self) -> list[Contender]:
        """The contenders that were trained and evaluated."""
        return [c for c in self.contenders if c.evaluation is not None]

    @property
    def failed(self) -> list[Contender]:
        return [c for c in self.contenders if c.error is not None]

    def __getitem__(self, guide: str) -> Contender:
        for contender in self.contenders:
            if contender.guide == guide:
                return contender
        raise choose("guide", guide, [c.guide for c in self.contenders])

    def table(self) -> Table:
        """A row a guide, for a rich console."""
        about = About.of(self.contenders[0].ingredients.model)
        return comparison_table([c.row for c in self.contenders], self.differences, about)

    def figures(self) -> dict[str, Figure]:
        """The pictures by name: training, reconstructions, samples, latent."""
        from . import plots

        done = self.done
        if not done:
            return {}
        spec = _spec(done[0])
        test, shown = self.test, of_each_class(self.test, pictures_for(self.test))
        table = len(test.shape) == 1
        seed = self.recipe.seed
        title = f"{self.recipe.model} on {test.description}"
        held_out = {
            c.guide: {name: getattr(c.evaluation, name).mean for name in ("elbo", "log_likelihood", "kl")} for c in done
        }
        histories = {c.guide: c.fitted.history for c in done if c.fitted is not None}
        few = test if table else test.take(shown)
        x = few.batch().x
        assert x is not None
        pairs = {c.guide: c.fitted for c in done if c.fitted is not None}
        means = {name: reconstruct(f.model, f.guide, few, seed=seed) for name, f in pairs.items()}
        first = next(iter(pairs.values())).model
        asked = conditions(first, _TABLE_SAMPLES if table else None, spec.class_names, context=test.context)
        generated = {name: sample(f.model, asked.batch, seed=seed) for name, f in pairs.items()}
        labels = [] if few.y is None or table else [few.class_names[k] if k >= 0 else "–" for k in few.y.tolist()]
        codes = {
            name: torch.cat([m.flatten(1) for m in encode(f.model, f.guide, test, seed=seed).means.values()], 1)
            for name, f in pairs.items()
        }
        return {
            "training": plots.training_curves(histories, f"Training: {self.data}", held_out, "test"),
            "reconstructions": plots.reconstructions(
                x, means, spec, f"Reconstructions E[x | z] at the posterior mean: {title}", test.columns, labels
            ),
            "samples": plots.samples(
                {name: s.draw if table else s.mean for name, s in generated.items()},
                spec,
                f"{'Samples x' if table else 'Samples E[x | z]'}, z ~ prior: {self.data}",
                done[0].ingredients.data.train.fixed().batch().x if table else None,
                test.columns,
                asked.per_row,
                asked.column_names,
            ),
            "latent": plots.latent_space(codes, test.y, test.class_names, f"Latent space: {title}"),
        }

    @property
    def data(self) -> str:
        """What was trained on."""
        first = self.contenders[0].ingredients
        return f"{self.recipe.model} on {first.data.train.description}"

    def to_arviz(self) -> Any:
        """The draws of all guides along a dimension "guide", for the first of the test data: see `to_arviz`."""
        from .diagnose import to_arviz

        points = max(10, min(100, _ARVIZ_NUMBERS // (_ARVIZ_DRAWS * self.test.x[0].numel())))
        few = self.test.take(range(min(points, len(self.test))))
        exports = {
            c.guide: to_arviz(c.fitted.model, c.fitted.guide, few, _ARVIZ_DRAWS, seed=self.recipe.seed)
            for c in self.done
            if c.fitted is not None
        }
        return _along_guides(exports)

    def to_json(self) -> dict[str, Any]:
        """Every number, and what it takes to get it again."""
        first = self.contenders[0].ingredients
        about = About.of(first.model)
        shared = {name: value for name, value in self.recipe.to_json().items() if name != "guide"}
        return {
            "kind": KIND,
            "format": FORMAT,
            "data": {
                "train": {"description": first.data.train.description, "size": len(first.data.train)},
                "test": {"description": self.test.description, "size": len(self.test)},
                "spec": _spec(self.contenders[0]).to_json(),
                "likelihood": about.likelihood,
            },
            "guides": [c.guide for c in self.contenders],
            "settings": {**shared, "eval_particles": self.eval_particles},
            "seeds": {
                "weights, order and noise of training": self.recipe.seed,
                "evaluation": self.recipe.seed,
                "binarization of the test data": self.test.binarize_seed,
            },
            "rows": [_row_json(c) for c in self.contenders],
            "differences": [d.to_json() for d in self.differences],
            "interrupted": self.interrupted,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "machine": {
                "platform": platform.platform(),
                "processor": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": about.device,
            },
            "versions": next((v for c in self.contenders if (v := _versions(c))), {}),
        }


def compare(
    guides: Sequence[str] = ("mean-field", "full-rank"),
    recipe: Recipe | None = None,
    *,
    eval_particles: int = 1000,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool | Progress = False,
    import_seconds: float = 0.0,
    **settings: Any,
) -> Comparison:
    """Train one model with several guides, from the same seed on the same data, and judge them on the same test data.

    Encoder and decoder have the same sizes and begin with the same weights; only the guides' heads differ. A guide
    that fails in training leaves the others as they are: its row says what happened.

    Args:
        guides: names, two or more as a rule.
        recipe: what they share; `Recipe()` if None.
        eval_particles: draws a datum, of every number in the table.
        out: a folder for results.json, comparison.nc, pictures, and a run folder for each guide, which `open_run`
            opens. It appears when all is done. None: nothing is written.
        overwrite: replace an earlier comparison in `out`.
        progress: bars (lines, where there is no terminal), or a rich display for them.
        import_seconds: what imports took before this call, for the record.
        settings: changes of the recipe: ``compare(data="digits", epochs=20)``.

    Returns:
        `Comparison`.

    Raises:
        InputError: names or values that cannot be used, a folder that holds something else or an earlier comparison.
        KeyboardInterrupt: Ctrl-C before any guide was trained. Later, the guides that are done are compared.
        OSError: the results could not be written.

    Example:
        >>> comparison = compare(["mean-field"], latent=2, hidden=(8,), epochs=1, eval_particles=2)
        >>> comparison["mean-field"].evaluation.data
        'digits test, fixed binarization (seed 777)'
    """
    began = time.perf_counter()
    if isinstance(guides, str) or not guides:
        raise InputError(f"guides={guides!r} must be a list of names; choose from: {', '.join(registry)}")
    if len(set(guides)) != len(guides):
        raise InputError(f"guides={list(guides)} names one twice; give each once")
    for name in guides:
        registry.get(name)
    if not isinstance(eval_particles, int) or isinstance(eval_particles, bool) or eval_particles < 1:
        raise InputError(f"eval_particles={eval_particles!r} must be a whole number, 1 or more")
    if "guide" in settings:
        raise InputError(f"guide={settings['guide']!r} does not fit a comparison; name the guides in guides=[...]")
    shared = (recipe or Recipe()).replace(**settings)
    target = None if out is None else Path(out)
    if target is not None:
        _refuse(target, overwrite)

    seconds = {"import": import_seconds, "load": 0.0, "compile": 0.0, "train": 0.0, "evaluate": 0.0, "draw": 0.0}
    with _timed(seconds, "import"):
        _import_all(write=target is not None)
    with _timed(seconds, "load"):
        loaded = load_plain(shared)
        contenders = [Contender(name, prepare(shared.replace(guide=name), loaded)) for name in guides]
    first = contenders[0].ingredients
    comparison = Comparison(first.recipe, first.data.test, contenders, eval_particles, seconds=seconds)

    with _staged(target) as folder, display(progress) as shows, first.threads():
        with _timed(seconds, "train"):
            _train_all(comparison, folder, shows)
        compiling = sum(c.fitted.compiled.compile_seconds for c in contenders if c.fitted is not None)
        seconds["compile"] += compiling
        seconds["train"] -= compiling
        with _timed(seconds, "evaluate"):
            _evaluate_all(comparison, shows)
        if folder is not None and target is not None:
            with _timed(seconds, "draw"):
                _draw_all(comparison, folder)
            comparison.out = target
            seconds["total"] = import_seconds + time.perf_counter() - began
            files = sorted({RESULTS, *(path.name for path in folder.iterdir())})
            write_results(folder / RESULTS, {**comparison.to_json(), "files": files})
        else:
            seconds["total"] = import_seconds + time.perf_counter() - began
    if target is not None:
        for contender in contenders:
            if contender.fitted is not None:
                contender.fitted.run_dir = target / contender.guide
    return comparison


def _train_all(comparison: Comparison, folder: Path | None, shows: Display) -> None:
    for number, contender in enumerate(comparison.contenders):
        ready, name = contender.ingredients, contender.guide
        if comparison.interrupted:
            contender.error = "not trained: interrupted before"
            continue
        assert ready.recipe.epochs is not None
        try:
            contender.fitted = ready.train(
                None if folder is None else folder / name,
                **shows.for_fit(name, ready.recipe.epochs, ready.recipe.devices),
            )
        except OSError:
            raise
        except Exception as error:
            # what the first guide's settings are refused for is nobody's failure but the caller's
            if number == 0 and isinstance(error, InputError):
                raise
            contender.error = f"{type(error).__name__}: {one_line(error)}"
            continue
        if contender.fitted.stopped == "interrupted":
            if not any(c.fitted is not None and c.error is None for c in comparison.contenders[:number]):
                raise KeyboardInterrupt
            comparison.interrupted = True
            contender.error = f"interrupted in epoch {contender.fitted.epochs + 1}"


def _evaluate_all(comparison: Comparison, shows: Display) -> None:
    test, particles, seed = comparison.test, comparison.eval_particles, comparison.recipe.seed
    bounds: dict[str, torch.Tensor] = {}
    divergences: dict[str, torch.Tensor] = {}
    for contender in comparison.contenders:
        fitted = contender.fitted
        if fitted is None or contender.error is not None:
            continue
        tell = shows.count(f"evaluate {contender.guide}", len(test))
        pair = (fitted.model, fitted.guide, test, particles)
        try:
            # the same seed for every guide
            contender.evaluation = evaluate(*pair, seed=seed, progress=tell)
        except KeyboardInterrupt:
            comparison.interrupted = True
            contender.error = "interrupted in its evaluation"
            contender.evaluation = None
            continue
        except (InputError, RuntimeError) as error:
            contender.error = f"evaluation: {one_line(error)}"
            continue
        bound = contender.evaluation.bound
        bounds[contender.guide], divergences[contender.guide] = bound.elbo, bound.kl
    done = comparison.done
    for contender in done[1:]:
        comparison.differences.append(
            Difference(
                guide=contender.guide,
                less=done[0].guide,
                elbo=_paired(bounds[contender.guide] - bounds[done[0].guide]),
                kl=_paired(divergences[contender.guide] - divergences[done[0].guide]),
                log_px=_paired(_log_px(contender) - _log_px(done[0])),
            )
        )


def _draw_all(comparison: Comparison, folder: Path) -> None:
    from . import plots
    from .diagnose import to_netcdf

    folder.mkdir(parents=True, exist_ok=True)
    if not comparison.done:
        return
    to_netcdf(comparison.to_arviz(), folder / DRAWS)
    for name, figure in comparison.figures().items():
        plots.save(figure, folder / f"{name}.png")


def _paired(difference: torch.Tensor) -> Estimate:
    return Estimate.of(difference, torch.zeros_like(difference))


def _log_px(contender: Contender) -> torch.Tensor:
    assert contender.evaluation is not None
    return contender.evaluation.log_marginal.log_px


def _row_json(contender: Contender) -> dict[str, Any]:
    fitted, evaluation = contender.fitted, contender.evaluation
    return {
        "guide": contender.guide,
        "error": contender.error,
        "run": None if fitted is None or fitted.run_dir is None else contender.guide,
        "training": None
        if fitted is None
        else {
            "epochs": fitted.epochs,
            "steps": fitted.steps,
            "seconds": fitted.seconds,
            "stopped": fitted.stopped,
            "best_epoch": fitted.best_epoch,
            "compiled": {
                "graphs": len(fitted.compiled.graphs),
                "seconds": fitted.compiled.compile_seconds,
                "eager": fitted.compiled.fallbacks,
            },
            "last_epoch": {k: finite(v) for k, v in fitted.history[-1].items()} if fitted.history else None,
        },
        "test": None if evaluation is None else evaluation.to_json(),
    }


def _along_guides(exports: Mapping[str, Any]) -> Any:
    """One export a guide -> one with a dimension "guide". What is observed is the same for all, and kept once."""
    import xarray as xr

    from .diagnose._arviz import container

    names = list(exports)
    groups: dict[str, xr.Dataset] = {}
    for group in _groups(exports[names[0]]):
        parts = [_groups(export)[group] for export in exports.values()]
        if "draw" not in parts[0].dims:
            groups[group] = parts[0]
            continue
        whole = xr.concat(parts, dim=xr.Variable("guide", names), join="exact", combine_attrs="drop_conflicts")
        groups[group] = whole.transpose("chain", "draw", "guide", ...)
    attrs = dict(groups["posterior"].attrs)
    return container(groups, {key: str(value) for key, value in attrs.items()})


def _groups(export: Any) -> dict[str, Any]:
    # ArviZ 0.23's InferenceData has groups(), 1.x's DataTree has children
    if callable(export.groups):
        return {name: export[name] for name in export.groups()}
    return {name: node.to_dataset() for name, node in export.children.items()}


def pictures_for(data: DataSet) -> int:
    """How many images make a row: as many of each class, where there are few."""
    return data.classes * (_PICTURES // data.classes) if 0 < data.classes <= _PICTURES else _PICTURES


def of_each_class(data: DataSet, count: int) -> torch.Tensor:
    """Rows of `count` data, of each class in turn, in the order of the classes; without labels the first ones."""
    if data.y is None or not data.classes:
        return torch.arange(min(count, len(data)))
    y = data.y.cpu()
    order = torch.argsort(y, stable=True)
    place = torch.arange(len(y)) - torch.searchsorted(y[order].contiguous(), y[order].contiguous())
    turn = order[torch.argsort(place, stable=True)][:count]
    return turn[torch.argsort(y[turn], stable=True)]


@contextmanager
def _staged(target: Path | None) -> Iterator[Path | None]:
    """A folder beside the target in which everything is made; its contents take the place of an earlier
    comparison's when the block has ended well, and vanish otherwise."""
    if target is None:
        yield None
        return
    folder = target.with_name(f".{target.name}.{os.getpid()}")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        yield folder
        _remove_earlier(target)
        _move_into(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _refuse(target: Path, overwrite: bool) -> None:
    """Raise `InputError` unless a comparison may be written to `target`."""
    if target.exists() and not target.is_dir():
        raise InputError(f"out={str(target)!r} is a file; give a folder")
    if not target.exists() or not any(target.iterdir()):
        return
    if _earlier_files(target) is None:
        raise InputError(f"out={str(target)!r} holds files that are no comparison's; give another folder")
    if not overwrite:
        raise InputError(
            f"out={str(target)!r} holds an earlier comparison; replace it by overwrite=True (--overwrite), or give "
            "another folder"
        )


def _earlier_files(target: Path) -> list[Path] | None:
    """What an earlier comparison has written to a folder; None where there was none."""
    try:
        values = read_json(target / RESULTS)
    except RunError:
        return None
    if values.get("kind") != KIND:
        return None
    names = [name for name in values.get("files", []) if isinstance(name, str) and name == Path(name).name]
    return [target / name for name in names]


def _remove_earlier(target: Path) -> None:
    """Remove what an earlier comparison has written, and nothing that was put beside it."""
    for path in _earlier_files(target) or []:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif (path / RUN).is_file():
            for name in (CHECKPOINTS, TENSORBOARD):
                shutil.rmtree(path / name, ignore_errors=True)
            for name in (METRICS, RUN):
                (path / name).unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()


def _move_into(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    # results.json last: with it, what is there is a whole comparison
    for path in sorted(source.iterdir(), key=lambda p: p.name == RESULTS):
        if path.is_dir() and (target / path.name).is_dir():
            _move_into(path, target / path.name)
        else:
            path.replace(target / path.name)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def _import_all(write: bool) -> None:
    """What is imported where it is first used, so that its time is told apart from the work's."""
    import lightning_fabric  # noqa: F401

    if write:
        import arviz  # noqa: F401
        import matplotlib.figure  # noqa: F401


def _versions(contender: Contender) -> dict[str, Any]:
    run_dir = None if contender.fitted is None else contender.fitted.run_dir
    return {} if run_dir is None else dict(read_run(run_dir).get("versions", {}))


def _spec(contender: Contender) -> DataSpec:
    return DataSpec.of(contender.ingredients.data.train)
