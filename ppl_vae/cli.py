"""The command line, `ppl-vae`: compare, train, sweep, evaluate, prior, sample, reconstruct, inpaint, encode, explore,
diagnose, export, list."""

from __future__ import annotations

import errno
import inspect
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import nn
from typer.core import TyperGroup

from .batch import Batch
from .data import data_sets
from .errors import InputError, NonFiniteLossError
from .objectives import objectives
from .recipe import Recipe
from .report import one_line

if TYPE_CHECKING:
    from .data import DataSet
    from .display import Display
    from .loader import BatchData
    from .runs import Run

__all__ = ["app", "main"]

BAD_INPUT = 2
FAILURE = 1
INTERRUPTED = 130

DEBUG = "PPL_VAE_DEBUG"
"""An environment variable: errors that nobody has foreseen then come with a traceback."""

RUNS = Path("runs")
TABLE_ROWS = 1000


class _Group(TyperGroup):
    """Says in one line what is wrong, and exits: 2 for what was asked, 1 for what happened."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise _exit(error, BAD_INPUT) from None
        except NonFiniteLossError as error:
            raise _exit(error, FAILURE) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone, as `head` does
                raise
            raise _exit(error, FAILURE) from None
        except KeyboardInterrupt:
            raise _exit("interrupted", INTERRUPTED) from None
        except Exception as error:
            # typer's own, which it shows itself
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or os.environ.get(DEBUG):
                raise
            raise _exit(f"{type(error).__name__}: {one_line(error)} ({DEBUG}=1 shows where)", FAILURE) from error


def _exit(message: str | BaseException, code: int) -> typer.Exit:
    text = one_line(message) if isinstance(message, BaseException) else message
    typer.echo(f"ppl-vae: {text}", err=True)
    return typer.Exit(code)


app = typer.Typer(
    cls=_Group,
    name="ppl-vae",
    help="Deep latent-variable models as Pyro programs: any model, guide and objective, compared and checked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppl-vae {version('ppl_vae')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Deep latent-variable models as Pyro programs: any model, guide and objective, compared and checked."""


def main() -> None:
    """The entry point."""
    app(prog_name="ppl-vae", obj=_process_age())


_DATA, _PARTS, _TRAINING, _MACHINE, _OUTPUT = "Data", "Model, guide, objective", "Training", "Machine", "Output"

Data = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(data_sets)}; or a .npz, a .csv, a folder of images.",
        rich_help_panel=_DATA,
    ),
]
Binarize = Annotated[
    str | None,
    typer.Option(
        help="dynamic, fixed, threshold, none. (default: dynamic for grey levels)",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Labels = Annotated[
    int | None,
    typer.Option(
        help="Keep so many labels of the training data, as many of each class, as for m2. (default: all)",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
DataDir = Annotated[Path, typer.Option(help="Where torchvision's data sets are kept.", rich_help_panel=_DATA)]
Download = Annotated[bool, typer.Option(help="Whether what is missing may be downloaded.", rich_help_panel=_DATA)]
Model = Annotated[str, typer.Option(help="See `ppl-vae list`.", rich_help_panel=_PARTS)]
Guide = Annotated[
    str | None,
    typer.Option(
        help="See `ppl-vae list`; with options as in low-rank:rank=3. (default: mean-field, or what the model is made "
        "for)",
        rich_help_panel=_PARTS,
        show_default=False,
    ),
]
Guides = Annotated[
    str,
    typer.Option(
        help="Names with commas between them, with options as in spline:transforms=4:bins=8; or all.",
        rich_help_panel=_PARTS,
    ),
]
Prior = Annotated[
    str,
    typer.Option(help="p(z), see `ppl-vae list`; with options as in mixture:components=50.", rich_help_panel=_PARTS),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(sorted(objectives))}. (default: elbo, or what the model is made for)",
        rich_help_panel=_PARTS,
        show_default=False,
    ),
]
LikelihoodName = Annotated[
    str | None,
    typer.Option(help="See `ppl-vae list`. (default: what fits the data)", rich_help_panel=_PARTS, show_default=False),
]
Network = Annotated[str, typer.Option(help="mlp, conv, residual, partial.", rich_help_panel=_PARTS)]
Latent = Annotated[int, typer.Option(help="Dimensions of z.", rich_help_panel=_PARTS)]
Hidden = Annotated[
    str,
    typer.Option(
        help="Widths of the hidden layers; of convolutions their channels and the dense layer's.",
        rich_help_panel=_PARTS,
    ),
]
Beta = Annotated[float | None, typer.Option(help="The KL's weight (elbo). (default: 1)", rich_help_panel=_PARTS)]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="The bound's order (renyi), not 1; the classifier's weight (semi-supervised).", rich_help_panel=_PARTS
    ),
]
Particles = Annotated[int | None, typer.Option(help="Draws a datum, in training.", rich_help_panel=_PARTS)]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the data. (default: 200, fewer for large data)", rich_help_panel=_TRAINING),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Data in a step, over all devices. (default: 128)", rich_help_panel=_TRAINING)
]
LearningRate = Annotated[float, typer.Option(help="Adam's learning rate.", rich_help_panel=_TRAINING)]
LrSchedule = Annotated[str, typer.Option(help="cosine (to 0 at the end), constant.", rich_help_panel=_TRAINING)]
Schedule = Annotated[
    str,
    typer.Option(help="joint; alternating: fix the model, improve the guide, and so on.", rich_help_panel=_TRAINING),
]
GuideSteps = Annotated[
    int, typer.Option(help="Steps of the guide for one of the model (alternating).", rich_help_panel=_TRAINING)
]
Warmup = Annotated[int, typer.Option(help="Epochs in which the KL's weight rises from 0.", rich_help_panel=_TRAINING)]
Clip = Annotated[float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=_TRAINING)]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Hold out a tenth of the training data, and stop after so many epochs in which it gets no better.",
        rich_help_panel=_TRAINING,
    ),
]
Masks = Annotated[
    str | None,
    typer.Option(
        help="Hide a part of each datum from the encoder: pixels, rectangles, halves, strokes; with options as in "
        "rectangles:share=0.5. The likelihood is of all of it.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Of weights, order and noise.", rich_help_panel=_TRAINING)]
EvalParticles = Annotated[int, typer.Option(help="Draws a datum, in the evaluation.", rich_help_panel=_TRAINING)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel=_MACHINE)]
Devices = Annotated[int, typer.Option(help="Number of processes, each on a device.", rich_help_panel=_MACHINE)]
Precision = Annotated[str, typer.Option(help="32, bf16.", rich_help_panel=_MACHINE)]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="One compiled graph of the whole step. (default: where it pays)",
        rich_help_panel=_MACHINE,
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=_OUTPUT)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
RunDataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where torchvision's data sets are now.", show_default=False)
]
Split = Annotated[str, typer.Option(help="test or train.")]
DrawSeed = Annotated[int, typer.Option("--seed", help="Of the draws.")]

# The options of a recipe in the order of the help, and what one command has and another has not.
_RECIPE: dict[str, Any] = {
    "data": Data,
    "binarize": Binarize,
    "labels": Labels,
    "data_dir": DataDir,
    "download": Download,
    "model": Model,
    "guide": Guide,
    "prior": Prior,
    "objective": Objective,
    "likelihood": LikelihoodName,
    "network": Network,
    "latent": Latent,
    "hidden": Hidden,
    "beta": Beta,
    "alpha": Alpha,
    "particles": Particles,
    "epochs": Epochs,
    "batch_size": BatchSize,
    "lr": LearningRate,
    "lr_schedule": LrSchedule,
    "schedule": Schedule,
    "guide_steps": GuideSteps,
    "warmup": Warmup,
    "clip": Clip,
    "patience": Patience,
    "masks": Masks,
    "seed": Seed,
    "device": Device,
    "devices": Devices,
    "precision": Precision,
    "compile": Compile,
}


def _with_recipe(data: str = Recipe().data, **instead: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the options of a recipe, with its defaults, for the command's ``**settings``.

    Args:
        data: the data unless told.
        instead: options of the command's own by the name of the recipe's whose place they take, or behind which they
            stand (with a leading "after_").
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        recipe = Recipe(data=data)
        own = dict(inspect.signature(command, eval_str=True).parameters)
        del own["settings"]
        kind = inspect.Parameter.KEYWORD_ONLY
        placed = [own.pop("ctx")]
        for name, annotation in _RECIPE.items():
            if name in instead:
                placed.append(own.pop(instead[name]))
            else:
                default = getattr(recipe, name)
                if name == "hidden":
                    default = ",".join(map(str, default))
                elif name == "data_dir":
                    default = Path(default)
                placed.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
            if (after := f"after_{name}") in instead:
                placed += [own.pop(each) for each in instead[after].split()]
        parameters = [p.replace(kind=kind) if p.name != "ctx" else p for p in (*placed, *own.values())]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return add


def _settings(ctx: typer.Context) -> dict[str, Any]:
    """The command's options that a recipe has, by name."""
    values = {name: ctx.params[name] for name in Recipe.names() if name in ctx.params}
    values["hidden"] = _widths(values["hidden"])
    values["data_dir"] = str(values["data_dir"])
    if values.get("model_from") is not None:
        values["model_from"] = str(values["model_from"])
    return values


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _names(argument: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{argument}={text!r} must be names with commas between them, as mean-field,full-rank")
    return names


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"hidden={text!r} must be whole numbers with commas between them, as 256,256") from None


def _particles(argument: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{argument}={value} must be a whole number, 1 or more")


def _process_age() -> float:
    """Seconds since this process was started: what its imports took. 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def _saved_recipe(folder: Path) -> Recipe:
    from .errors import RunError
    from .folder import read_run

    saved = read_run(folder).get("recipe")
    if not isinstance(saved, dict):
        raise RunError(f"out={str(folder)!r} was not written by `ppl-vae train`: go on with it by fit(resume=True)")
    try:
        return Recipe.from_json(saved)
    except (InputError, TypeError) as error:
        raise RunError(f"{folder / 'run.json'} holds a recipe of another version: {error}") from error


def _refuse_other(saved: Recipe, now: Recipe) -> None:
    """Raise `InputError` unless a resumed run stays what it was."""
    for name in saved.names():
        if name not in ("epochs", "patience", "device", "data_dir", "download"):
            then, given = getattr(saved, name), getattr(now, name)
            if then != given:
                raise InputError(
                    f"{name}={given!r}: the run was started with {then!r}; leave it out, or start a new run"
                )


def _judged(
    model: nn.Module, guide: nn.Module, part: DataSet, particles: int, seed: int, tell: Callable[[int, int], None]
) -> Any:
    """What can be said of a pair: of a guide that is a point there is no bound on log p(x)."""
    from .evaluate import at_points, evaluate

    if not getattr(guide, "density", True):
        return at_points(model, guide, part)
    return evaluate(model, guide, part, particles, seed=seed, progress=tell)


def _table(numbers: Any, heading: str, about: Any) -> Any:
    from .evaluate import Evaluation
    from .report import evaluation_table, points_table

    return (evaluation_table if isinstance(numbers, Evaluation) else points_table)(numbers, heading, about)


def _open(run: Path, device: str) -> Run:
    from .fit import resolve_device
    from .runs import open_run

    where = resolve_device(device)
    opened = open_run(run)
    opened.model.to(where)
    opened.guide.to(where)
    return opened


def _part(run: Run, split: str, data_dir: Path | None) -> DataSet:
    from .errors import choose

    if split not in ("test", "train"):
        raise choose("split", split, ("test", "train"))
    parts = run.data(data_dir)
    return parts.test if split == "test" else parts.train


def _guide_for(run: Run, part: DataSet | BatchData, split: str, shows: Display | None = None) -> nn.Module:
    """The run's guide for these data: one with parameters for each of the training data has fresh ones for others,
    fitted with the model held."""
    from .build import build_objective
    from .renewal import is_local, renewed

    if not is_local(run.guide) or (split == "train" and getattr(run.guide, "size", None) == len(part)):
        return run.guide
    options = run.config.get("objective_options", {})
    return renewed(
        run.model,
        run.guide,
        part,
        lambda: build_objective(run.config["objective_name"], run.model, len(part), **options),
        seed=run.config["training"]["seed"],
        shown=None if shows is None else lambda epochs: shows.for_fit(f"fit to {split} data", epochs),
    )


def _columns(run: Run) -> tuple[str, ...]:
    """The names of a table's columns, where the data are still there."""
    try:
        return run.data().train.columns if len(run.spec.shape) == 1 else ()
    except InputError:
        return ()


def _write_numbers(path: Path, x: Any, run: Run, y: Any, overwrite: bool) -> None:
    """x and its labels as .csv (a column an element, in the table's names) or .npz."""
    import csv

    import numpy as np

    from .report import replacing

    values = x.cpu().numpy()
    labels = None if y is None else y.cpu().numpy()
    with replacing(path, overwrite) as temporary:
        if path.suffix.lower() == ".npz":
            np.savez(temporary, x=values, **({} if labels is None else {"y": labels}))
            return
        flat = values.reshape(len(values), -1)
        names = list(_columns(run)) or [f"x{i}" for i in range(flat.shape[1])]
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*names, *([] if labels is None else ["label"])])
            for i, row in enumerate(flat.tolist()):
                writer.writerow([*row, *([] if labels is None else [int(labels[i])])])


@app.command()
@_with_recipe(guide="guides", after_seed="seeds eval_particles")
def compare(
    ctx: typer.Context,
    guides: Guides = "mean-field,full-rank",
    seeds: Annotated[
        int, typer.Option(help="How many seeds, from --seed on; errors are then over them.", rich_help_panel=_TRAINING)
    ] = 1,
    eval_particles: EvalParticles = 1000,
    fixed_decoder: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Take a run's model as it is, and train guides alone: which comes nearest to the posterior? Or first: "
            "train it once, with the first guide.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    checks: Annotated[
        str,
        typer.Option(
            help="Diagnostics that judge each guide, as in `ppl-vae diagnose`, for comparison.html. Or all, or none.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "khat,sbc,latent_checks",
    budget: Annotated[
        str, typer.Option(help="Of the diagnostics: quick, standard, thorough.", rich_help_panel=_OUTPUT)
    ] = "quick",
    out: Annotated[Path, typer.Option(help="A folder for the results.", rich_help_panel=_OUTPUT)] = RUNS / "compare",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the comparison in the folder, or with more guides or seeds: what is trained already, with "
            "the same settings, is taken from there.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train one model with several guides on the same data from the same seeds, and compare them on the test data.

    Prints a table and writes results.json, comparison.nc (ArviZ), comparison.html (verdicts side by side), pictures,
    and a run folder for each guide and seed.
    """
    from .compare import compare as run_comparison
    from .contenders import ALL
    from .display import make_console

    comparison = run_comparison(
        guides=ALL if guides.strip() == ALL else _names("guides", guides),
        recipe=Recipe().replace(**_settings(ctx)),
        seeds=seeds,
        fix_decoder=fixed_decoder,
        eval_particles=eval_particles,
        out=out,
        overwrite=overwrite,
        resume=resume,
        progress=True,
        import_seconds=ctx.obj or 0.0,
        checks=() if checks == "none" else checks,
        budget=budget,
    )
    console = make_console()
    console.print(comparison.table())
    spent = ", ".join(f"{name} {value:.1f}" for name, value in comparison.seconds.items())
    console.print(f"Seconds: {spent}.")
    files = ", ".join(sorted(path.name for path in out.iterdir() if path.suffix and path.is_file()))
    console.print(f"Written to {out}: {files}", soft_wrap=True)
    if comparison.interrupted:
        console.print("Interrupted: the same command with --resume goes on.")
        raise typer.Exit(INTERRUPTED)
    if comparison.failed:
        raise _exit(f"{len(comparison.failed)} of {len(comparison.contenders)} guides failed", FAILURE)


@app.command()
@_with_recipe(data="sprites", objective="objective", after_objective="values", seed="seeds")
def sweep(
    ctx: typer.Context,
    objective: Annotated[
        str,
        typer.Option(
            help="Objectives with commas between them, of beta, capacity, constrained, factor, btc, dip; with further "
            "options as in capacity:gamma=100:steps=2000.",
            rich_help_panel=_PARTS,
        ),
    ] = "beta",
    values: Annotated[
        str | None,
        typer.Option(
            help="Values of each: beta=1:4:16,capacity=5:25. (default: each objective's own)",
            rich_help_panel=_PARTS,
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.", rich_help_panel=_TRAINING)] = 10,
    size: Annotated[
        int | None,
        typer.Option(help="Train on so many random data. (default: all)", rich_help_panel=_DATA, show_default=False),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="beta-vae, factor-vae, mig, sap, dci, with commas between them.", rich_help_panel=_PARTS)
    ] = "beta-vae,factor-vae,mig,sap",
    points: Annotated[int, typer.Option(help="The metrics draw from so many data.", rich_help_panel=_PARTS)] = 10_000,
    workers: Annotated[int, typer.Option(help="Processes at a time, of a thread each.", rich_help_panel=_MACHINE)] = 1,
    pictures: Annotated[
        bool,
        typer.Option(help="Traversals, KL during training and reconstructions of each run.", rich_help_panel=_OUTPUT),
    ] = True,
    out: Annotated[Path, typer.Option(help="A folder for the results.", rich_help_panel=_OUTPUT)] = RUNS / "sweep",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the sweep in the folder, or with more objectives, values or seeds.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train objectives of disentanglement at several values with several seeds, and score their codes.

    The data must have factors: sprites, or dSprites' file. Writes results.json, a violin plot for each metric, and a
    run folder for each objective, value and seed. A sweep that was killed goes on with --resume.
    """
    from .display import display, make_console
    from .sweep import sweep as run_sweep

    asked = _settings(ctx)
    recipe = Recipe().replace(**{**asked, "objective": None, "seed": 0})
    with display(True) as shows:
        found = run_sweep(
            recipe,
            _names("objective", objective),
            _swept(values),
            seeds,
            out=out,
            measured=_names("metrics", metrics),
            size=size,
            points=points,
            workers=workers,
            pictures=pictures,
            resume=resume,
            overwrite=overwrite,
            progress=shows.count("runs, %", 100),
        )
    console = make_console()
    console.print(found.table())
    for cell, why in found.failed.items():
        console.print(f"{cell.name}, seed {cell.seed}, failed: {why}", soft_wrap=True)
    console.print(f"Written to {out}", soft_wrap=True)
    if found.failed:
        raise _exit(f"{len(found.failed)} of {len(found.failed) + len(found.scores)} runs failed", FAILURE)


def _swept(text: str | None) -> dict[str, list[float]]:
    """ "beta=1:4,capacity=5" as numbers by name."""
    found: dict[str, list[float]] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, numbers = part.partition("=")
        try:
            found[name.strip()] = [float(number) for number in numbers.split(":")]
        except ValueError:
            raise InputError(
                f"values={text!r} must be names with numbers between colons, as beta=1:4:16,capacity=5:25"
            ) from None
    return found


@app.command()
@_with_recipe(after_seed="eval_particles", after_masks="model_from freeze_model")
def train(
    ctx: typer.Context,
    eval_particles: EvalParticles = 1000,
    model_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Take over a run's model, with its data and sizes; the guide is new.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    freeze_model: Annotated[
        bool,
        typer.Option(
            "--freeze-model",
            help="Leave the model that was taken over as it is, and train the guide alone.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder. (default: runs/DATA-MODEL-GUIDE)", rich_help_panel=_OUTPUT, show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in the folder; its settings hold, and need not be repeated.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train one model with one guide, and print what it is worth on the test data.

    Ctrl-C stops with a checkpoint, from which --resume goes on.
    """
    from .display import display, make_console
    from .folder import check_folder
    from .recipe import as_in_run, prepare
    from .report import About

    _particles("eval_particles", eval_particles)
    asked = _settings(ctx)
    recipe = Recipe().replace(**asked)
    if recipe.model_from is not None:
        recipe = as_in_run(Path(recipe.model_from), recipe, own_data=False)  # its data are in the folder's name
    folder = out or RUNS / recipe.title
    check_folder(folder, resume, overwrite, "out")
    saved = None
    if resume:
        saved = _saved_recipe(folder)
        given = {name for name in asked if _is_given(ctx, name)}
        recipe = saved.replace(**{name: asked[name] for name in given})
    ready = prepare(recipe)
    if saved is not None:
        _refuse_other(saved, ready.recipe)
    assert ready.recipe.epochs is not None
    test = ready.data.test
    with display(True) as shows, ready.threads():
        title = ready.recipe.title
        told = shows.for_fit(title, ready.recipe.epochs, ready.recipe.devices)
        fitted = ready.train(folder, resume=resume, overwrite=overwrite, **told)
        if fitted.stopped == "interrupted":
            raise _exit(
                f"stopped in epoch {fitted.epochs + 1} of {ready.recipe.epochs} with a checkpoint; go on with: ppl-vae "
                f"train --resume --out {folder}",
                INTERRUPTED,
            )
        posterior = ready.held_out(test, lambda epochs: shows.for_fit("fit to test data", epochs))
        tell = shows.count("evaluate", len(test))
        numbers = _judged(fitted.model, posterior, test, eval_particles, ready.recipe.seed, tell)
    best = "" if fitted.best_epoch is None else f", the weights of epoch {fitted.best_epoch}"
    console = make_console()
    heading = f"{title}, {fitted.epochs} epochs in {fitted.seconds:.1f} s{best}"
    about = About.of(fitted.model, fitted.objective)
    console.print(_table(numbers, heading, about))
    console.print(f"The run is in {folder}", soft_wrap=True)


@app.command()
def evaluate(
    run: RunFolder,
    particles: Annotated[int, typer.Option(help="Draws a datum.")] = 1000,
    split: Split = "test",
    seed: DrawSeed = 0,
    out: Annotated[Path | None, typer.Option(help="A .json file for the numbers, too.", show_default=False)] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """log p(x), ELBO, KL, effective sample size and active units of a trained run."""
    from .display import display, make_console
    from .report import About, refuse_existing, write_results

    _particles("particles", particles)
    if out is not None:
        refuse_existing(out, overwrite)
    opened = _open(run, device)
    part = _part(opened, split, data_dir)
    with display(True) as shows:
        guide = _guide_for(opened, part, split, shows)
        tell = shows.count("evaluate", len(part))
        numbers = _judged(opened.model, guide, part, particles, seed, tell)
    make_console().print(_table(numbers, str(run), About.of(opened.model, opened.objective)))
    if out is not None:
        write_results(out, {"run": str(run.resolve()), "seed": seed, **numbers.to_json()}, overwrite)


@app.command()
def prior(
    run: RunFolder,
    prior: Annotated[
        str, typer.Option(help="mixture, flow, autoregressive; options as in flow:transforms=6.")
    ] = "flow",
    out: Annotated[
        Path | None, typer.Option(help="The new run's folder. (default: RUN-PRIOR)", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the codes of the training data.")] = 100,
    lr: LearningRate = 5e-3,
    eval_particles: EvalParticles = 1000,
    seed: DrawSeed = 0,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Fit another prior to the codes of a trained run, and write a run with it: decoder and guide stay as they are."""
    from .display import display, make_console
    from .folder import check_folder
    from .prior_fit import fit_prior
    from .report import About
    from .runs import save_with_prior

    _particles("eval_particles", eval_particles)
    folder = out or run.with_name(f"{run.resolve().name}-{prior}".replace(":", "-"))
    check_folder(folder, False, overwrite, "out")
    opened = _open(run, device)
    train, test = _part(opened, "train", data_dir), _part(opened, "test", data_dir)
    with display(True) as shows:
        told = shows.for_fit(f"prior {prior} of codes", epochs)
        model = fit_prior(opened.model, opened.guide, train, prior, epochs=epochs, lr=lr, seed=seed, **told)
        save_with_prior(opened, model, prior, folder, overwrite)
        posterior = _guide_for(opened, test, "test", shows)
        tell = shows.count("evaluate", len(test))
        numbers = _judged(model, posterior, test, eval_particles, seed, tell)
    console = make_console()
    console.print(_table(numbers, f"{run} with prior {prior}", About.of(model, opened.objective)))
    console.print(f"The run is in {folder}", soft_wrap=True)


@app.command()
def sample(
    run: RunFolder,
    label: Annotated[
        str | None, typer.Option(help="A class, by name or number (cvae, m2).", show_default=False)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-n", help="How many. (default: 64 images, or 8 of each class; 1000 rows)", show_default=False
        ),
    ] = None,
    draw: Annotated[
        bool | None,
        typer.Option(
            "--draw/--mean", help="Draws of p(x | z), or its means. (default: draw for tables)", show_default=False
        ),
    ] = None,
    seed: DrawSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A picture, or a .csv or .npz file of numbers. (default: RUN/samples.png)", show_default=False
        ),
    ] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Generate data from a trained model: z from its prior, then x."""
    from . import plots
    from .conditions import conditions
    from .evaluate import sample as generate
    from .evaluate import sample_styles
    from .evaluate.generation import sharing
    from .report import refuse_existing

    target = out or run / "samples.png"
    opened = _open(run, device)
    refuse_existing(target, overwrite)
    context = None
    if opened.spec.context:
        context = _part(opened, "train", data_dir).context
    table = len(opened.spec.shape) == 1
    if table and count is None:
        count = TABLE_ROWS
    asked = conditions(opened.model, count, opened.spec.class_names, label, context)
    if asked.per_row is None:
        # what all data share was learnt by the guide
        made = generate(opened.model, asked.batch, guide=sharing(opened.guide), seed=seed)
    else:  # a column a class, a row a style
        made = sample_styles(opened.model, asked.batch, asked.per_row, seed=seed)
    drawn = table if draw is None else draw
    x = made.draw if drawn else made.mean
    if target.suffix.lower() in (".csv", ".npz"):
        _write_numbers(target, x, opened, asked.batch.y, overwrite)
    else:
        of = "" if label is None else f" of class {label}"
        kind = "x ~ p(x | z)" if drawn else "E[x | z]"
        prior = "z ~ prior" if sharing(opened.guide) is None else "z ~ prior, what all share ~ guide"
        title = f"Samples{of}, {kind}, {prior}: {opened.pair.model} on {opened.spec.description}"
        figure = plots.samples(
            {opened.pair.guide_label: x},
            opened.spec,
            title,
            None,
            _columns(opened),
            asked.per_row,
            asked.column_names,
        )
        plots.save(figure, target, overwrite)
    typer.echo(str(target))


@app.command()
def reconstruct(
    run: RunFolder,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", help="How many. (default: a row of images, all of a table)", show_default=False),
    ] = None,
    split: Split = "test",
    seed: DrawSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A picture, or a .csv or .npz file of numbers. (default: RUN/reconstructions.png)",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Rebuild data from their codes: the mean of p(x | z) at the posterior mean of z, beside the data."""
    from . import plots
    from .compare import of_each_class, pictures_for
    from .evaluate import reconstruct as rebuild
    from .report import refuse_existing

    if count is not None and count < 1:
        raise InputError(f"n={count} shows nothing; give 1 or more")
    target = out or run / "reconstructions.png"
    opened = _open(run, device)
    refuse_existing(target, overwrite)
    part = _part(opened, split, data_dir)
    table = len(part.shape) == 1
    if count is not None or not table:
        part = part.take(of_each_class(part, count or pictures_for(part)))
    part = part.fixed()
    means = rebuild(opened.model, _guide_for(opened, part, split), part, seed=seed)
    if target.suffix.lower() in (".csv", ".npz"):
        _write_numbers(target, means, opened, part.y, overwrite)
    else:
        x = part.batch().x
        assert x is not None
        labels = [] if part.y is None or table else [part.class_names[k] if k >= 0 else "–" for k in part.y.tolist()]
        title = f"Reconstructions E[x | z] at the posterior mean: {opened.pair.model} on {part.description}"
        figure = plots.reconstructions(x, {opened.pair.guide_label: means}, opened.spec, title, part.columns, labels)
        plots.save(figure, target, overwrite)
    typer.echo(str(target))


@app.command()
def inpaint(
    run: RunFolder,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="[IMAGE]", help="A picture, or an .npz file with x. (default: test data)", show_default=False
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="A picture, white where it is visible and black where it is hidden; an .npz file with `visible`; or "
            "pixels, rectangles, halves, strokes. (default: as in training)",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Imputations of each.")] = 6,
    particles: Annotated[int, typer.Option(help="Draws of z a datum, among which they are chosen.")] = 1000,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="How many of the data. (default: 8)", show_default=False)
    ] = None,
    split: Split = "test",
    seed: DrawSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A picture, or a .npz file of numbers. (default: RUN/inpainting.png)", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Fill in what a mask hides: several draws of p(hidden | visible), and its mean, beside the data."""
    import numpy as np

    from . import plots
    from .compare import of_each_class
    from .evaluate import impute
    from .inpaint import open_mask, read_mask, read_picture
    from .loader import BatchData
    from .masks import known
    from .report import refuse_existing, replacing

    for name, value in (("draws", draws), ("particles", particles), ("n", 1 if count is None else count)):
        _particles(name, value)
    target = out or run / "inpainting.png"
    opened = _open(run, device)
    spec = opened.spec
    if not spec.masked:
        raise InputError(
            f"{run} was trained without masks: its encoder has never seen a hole; train one for its model with: "
            f"ppl-vae train --from {run} --freeze-model --masks rectangles"
        )
    numbers = target.suffix.lower() == ".npz"
    if len(spec.shape) != 3 and not numbers:
        raise InputError(f"out={str(target)!r}: data of shape {spec.shape} are no images; give --out FILE.npz")
    hide = mask or opened.config["data_options"].get("masks")
    if hide is None:
        raise InputError(f"{run} was trained on data with missing values, not with masks: say which, --mask halves")
    refuse_existing(target, overwrite)
    open_mask(hide, spec)  # a bad one is told before the data are read
    if image is None:
        part = _part(opened, split, data_dir).unmasked()
        part = part.take(of_each_class(part, count or 8)).fixed()
        batch, of = part.batch(), part.description
        assert batch.x is not None
    else:
        batch, of = Batch(x=read_picture(image, spec)), image.name
    visible = read_mask(hide, batch.size, spec, seed)
    batch = batch._replace(visible=visible, rows=torch.arange(batch.size))
    guide = _guide_for(opened, BatchData(known(batch), of), "masked")
    made = impute(opened.model, guide, batch, draws, particles, seed=seed)
    if numbers:
        arrays = {name: getattr(made, name).numpy() for name in ("draws", "means", "mean", "ess")}
        assert batch.x is not None
        with replacing(target, overwrite) as temporary:
            np.savez(temporary, x=batch.x.numpy(), visible=made.visible.numpy(), **arrays)
    else:
        filled = {"mean": made.mean} | {f"draw {k + 1}": made.means[k] for k in range(draws)}
        title = f"E[x | z] of draws of z given what is visible ({hide}): {opened.pair.model} on {of}"
        assert batch.x is not None
        plots.save(plots.imputations(batch.x, made.visible, filled, spec, title), target, overwrite)
    typer.echo(f"{target}: of {particles} particles {float(made.ess.median()):.0f} count, in the median")


@app.command()
def encode(
    run: RunFolder,
    split: Split = "test",
    seed: DrawSeed = 0,
    out: Annotated[Path | None, typer.Option(help="A .npz file. (default: RUN/codes.npz)", show_default=False)] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Posterior means and standard deviations: means, scales, labels, rows, as arrays in a .npz file."""
    import numpy as np

    from .evaluate import encode as locate
    from .report import refuse_existing, replacing

    target = out or run / "codes.npz"
    if target.suffix.lower() != ".npz":
        raise InputError(f"out={str(target)!r}: codes are written as .npz")
    opened = _open(run, device)
    refuse_existing(target, overwrite)
    part = _part(opened, split, data_dir)
    codes = locate(opened.model, _guide_for(opened, part, split), part, seed=seed)
    arrays: dict[str, Any] = {}
    for name in codes.means:
        # one site has the plain names; of several each has its own
        end = "" if len(codes.means) == 1 else f"_{name}"
        arrays |= {f"means{end}": codes.means[name].cpu().numpy(), f"scales{end}": codes.scales[name].cpu().numpy()}
    labels = np.full(len(part), -1) if part.y is None else part.y.cpu().numpy()
    arrays |= {"labels": labels, "rows": np.arange(len(part)), "class_names": np.array(part.class_names, dtype=np.str_)}
    with replacing(target, overwrite) as temporary:
        np.savez(temporary, data=np.array(codes.data), **arrays)
    typer.echo(f"{target}: {len(part)} data of {codes.data}")


@app.command()
def explore(
    run: RunFolder,
    split: Split = "test",
    seeds: Annotated[int, typer.Option(help="Starts of the clustering.")] = 5,
    seed: DrawSeed = 0,
    out: Annotated[Path | None, typer.Option(help="A folder. (default: RUN/explore)", show_default=False)] = None,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """The latent space in pictures and numbers: interpolations, traversals, manifold, codes by class, clusters, probe.

    Writes interpolations.png, traversals.png, manifold.png, aggregate.png, clusters.png, explore.json, explore.csv.
    """
    from .display import display, make_console
    from .explore import explore as look
    from .report import refuse_existing

    _particles("seeds", seeds)
    target = out or run / "explore"
    opened = _open(run, device)
    refuse_existing(target / "explore.json", overwrite)
    part, train = _part(opened, split, data_dir), _part(opened, "train", data_dir)
    with display(True) as shows:
        held = _guide_for(opened, part, split, shows)
    title = f"{opened.pair.model_label}, {opened.pair.guide_label}"
    found = look(opened.model, opened.guide, train, part, test_guide=held, name=title, seeds=seeds, seed=seed)
    written = found.write(target, overwrite)
    console = make_console()
    console.print(found.table())
    console.print(f"Written to {target}: {', '.join(path.name for path in written)}", soft_wrap=True)


@app.command()
def diagnose(
    run: RunFolder,
    checks: Annotated[
        str,
        typer.Option(
            help="all, or names with commas between them: khat, inference_gap, reference, sbc, c2st, latent_checks, "
            "predictive_check, loo, bdmc."
        ),
    ] = "all",
    budget: Annotated[str, typer.Option(help="quick, standard (minutes), thorough.")] = "standard",
    data_points: Annotated[
        int | None,
        typer.Option(help="So many of the data for every check. (default: the budget's)", show_default=False),
    ] = None,
    split: Split = "test",
    seed: DrawSeed = 0,
    out: Annotated[
        Path | None, typer.Option(help="The page, .html. (default: RUN/report.html)", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A .json file for the numbers, too.", show_default=False)
    ] = None,
    netcdf: Annotated[
        Path | None, typer.Option(help="A .nc file of everything for ArviZ, too.", show_default=False)
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile what can be, for large models.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Can the posterior be trusted? Verdicts in plain words, and a page with figures that needs nothing else.

    Checks that do not fit the run, or fail, are named with their reason and stop no other.
    """
    import shlex

    from .diagnose import diagnose as judge
    from .diagnose.checks import chosen, chosen_budget
    from .display import display
    from .renewal import is_local
    from .report import refuse_existing, write_results

    target = out or run / "report.html"
    for name, path, suffix in (("out", target, ".html"), ("json", json_file, ".json"), ("netcdf", netcdf, ".nc")):
        if path is not None and path.suffix.lower() != suffix:
            raise InputError(f"{name}={str(path)!r} must end in {suffix}")
    wanted = chosen(checks)
    chosen_budget(budget)
    if data_points is not None:
        _particles("data_points", data_points)
    opened = _open(run, device)
    for path in (target, json_file, netcdf):
        if path is not None:
            refuse_existing(path, overwrite)
    part = _part(opened, split, data_dir)
    with display(not quiet) as shows:
        guide = _guide_for(opened, part, split, shows)
    train = None if split == "train" else _part(opened, "train", data_dir)
    own = is_local(opened.guide)
    # one of each datum's own knows these alone
    if own and train is not None and getattr(opened.guide, "size", None) != len(train):
        train = None
    given = {"checks": checks, "budget": budget, "data-points": data_points, "split": split, "seed": seed}
    usual = {"checks": "all", "budget": "standard", "data-points": None, "split": "test", "seed": None}
    words = [word for name, value in given.items() if value != usual[name] for word in (f"--{name}", str(value))]
    found = judge(
        opened.model,
        guide,
        part,
        train=train,
        train_guide=opened.guide if own and train is not None else None,
        checks=checks,
        budget=budget,
        options=None if data_points is None else {check.name: {"data": data_points} for check in wanted},
        name=f"{opened.pair.model_label}, {opened.pair.guide_label}",
        seed=seed,
        progress=not quiet,
        compile=compile,
        command=shlex.join(["ppl-vae", "diagnose", str(run), *words]),
    )
    found.report(target, overwrite)
    if json_file is not None:
        write_results(json_file, {"run": str(run.resolve()), **found.to_json()}, overwrite)
    if netcdf is not None:
        found.save(netcdf, overwrite)
    if not quiet:
        typer.echo(found.summary())
    typer.echo(str(target))
    if not found.findings:
        raise _exit("no check gave an answer", FAILURE)


@app.command()
def export(
    run: RunFolder,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A netCDF file, .nc.", show_default=False)],
    data_points: Annotated[int, typer.Option(help="So many of the data, the first ones.")] = 100,
    draws: Annotated[int, typer.Option(help="Of the posterior and of the prior, a datum.")] = 200,
    split: Split = "test",
    seed: DrawSeed = 0,
    overwrite: Overwrite = False,
    data_dir: RunDataDir = None,
    device: Device = "auto",
) -> None:
    """Draws for ArviZ: posterior, prior, predictive draws and log-likelihood, as netCDF."""
    from .diagnose import to_arviz, to_netcdf
    from .report import refuse_existing, replacing

    for name, value in (("data_points", data_points), ("draws", draws)):
        _particles(name, value)
    if path.suffix.lower() != ".nc":
        raise InputError(f"file={str(path)!r}: draws are written as netCDF, .nc")
    opened = _open(run, device)
    refuse_existing(path, overwrite)
    part = _part(opened, split, data_dir)
    part = part.take(range(min(data_points, len(part))))
    exported = to_arviz(opened.model, _guide_for(opened, part, split), part, draws, seed=seed)
    with replacing(path, overwrite) as temporary:
        to_netcdf(exported, temporary)
    typer.echo(f"{path}: {draws} draws for {len(part)} data of {part.description}")


@app.command(name="list")
def list_parts(
    options: Annotated[
        bool, typer.Option("--options", help="What models, guides and objectives can be told, as low-rank:rank=3.")
    ] = False,
) -> None:
    """Models, guides, objectives, likelihoods, networks and data sets, a line each."""
    from .build import options_by_name
    from .display import make_console
    from .guides import guides
    from .likelihoods import likelihoods
    from .models import models
    from .networks import kinds
    from .objectives import objectives
    from .priors import priors

    console = make_console()
    registries: tuple[tuple[str, Any], ...] = (
        ("Models", models),
        ("Guides", guides),
        ("Priors", priors),
        ("Objectives", objectives),
        ("Likelihoods", likelihoods),
        ("Data sets", data_sets),
    )
    sections = {title: {name: each.summary(name) for name in each} for title, each in registries}
    sections["Networks"] = kinds
    width = max(len(name) for parts in sections.values() for name in parts) + 2
    for title, parts in sections.items():
        console.print(f"[bold]{title}[/bold]")
        for name, summary in parts.items():
            console.print(f"  {name:<{width}}{summary}", markup=False, soft_wrap=True)
            takes = options_by_name(title.removesuffix("s").lower(), name) if options else []
            if takes:
                console.print(f"  {'':<{width}}options: {', '.join(takes)}", markup=False, soft_wrap=True)
