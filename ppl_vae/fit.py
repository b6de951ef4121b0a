"""Train a pair of model and guide by stochastic variational inference."""

from __future__ import annotations

import json
import math
import numbers
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from .batch import Batch
from .compiled import CompileReport
from .data import DataSet
from .errors import InputError, choose
from .folder import check_folder, read_run
from .inputs import check_given
from .isolation import cuda_in, restored
from .labels import check_taught
from .likelihoods import Likelihood
from .loader import BatchData, Data, as_data
from .networks import set_precision, warning_in_bf16
from .objectives import ELBO, Objective
from .processes import launch
from .threads import few_threads
from .trainer import Callback, EpochEnd, Job, Schedule, Settings, Stopped

__all__ = ["Callback", "EpochEnd", "FitResult", "fit", "resolve_device"]

_CHUNK = 10_000

COMPILE_PAYS = 10_000
"""Steps on a CPU from which compile="auto" compiles: a graph costs 5 to 30 seconds and saves about a millisecond a step
(benchmarks/README.md)."""


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


_LR_SCHEDULES: dict[str, Callable[[float], float] | None] = {"constant": None, "cosine": _cosine}


@dataclass
class FitResult:
    """A trained pair and how it went.

    Args:
        model, guide, objective: the modules that were given, trained, on `device`.
        history: a row for each epoch: epoch, step, loss, elbo, kl, log_likelihood (and bound), their val_ counterparts,
            lr, seconds. All but epoch, step, lr and seconds are in nats a datum, means over the epoch's batches; val_
            are of the validation data after the epoch.
        epochs, steps: done in all, before a resumption too.
        seconds: spent in training, likewise.
        stopped: "finished", "early" (validation got no better for `patience` epochs), "interrupted" (Ctrl-C) or
            "callback".
        best_epoch: the epoch with the best validation ELBO, from 1; None without validation.
        run_dir: the run folder, if one was asked for.
        data: what it was trained on, in words.
        compiled: what was compiled, and what ran eagerly and why.
    """

    model: nn.Module
    guide: nn.Module
    objective: Objective
    history: list[dict[str, float]]
    epochs: int
    steps: int
    seconds: float
    stopped: Stopped
    best_epoch: int | None
    run_dir: Path | None
    device: torch.device
    data: str
    compiled: CompileReport = field(default_factory=CompileReport)

    @property
    def elbo(self) -> float:
        """The last epoch's mean ELBO on the training batches, nats a datum."""
        return self.history[-1].get("elbo", math.nan) if self.history else math.nan


def fit(
    model: nn.Module,
    guide: nn.Module,
    data: DataSet | Batch | Tensor | Data,
    objective: Objective | None = None,
    *,
    epochs: int = 50,
    batch_size: int = 64,
    lr: float = 1e-3,
    device: str | torch.device = "auto",
    precision: Literal["32", "bf16"] = "32",
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    schedule: Schedule = "joint",
    guide_steps: int = 1,
    validation: DataSet | Batch | Tensor | Data | None = None,
    patience: int | None = None,
    warmup: int = 0,
    clip: float | None = None,
    lr_schedule: Literal["constant", "cosine"] | Callable[[float], float] = "constant",
    optimizer: Callable[..., Optimizer] | None = None,
    devices: int = 1,
    stream: bool | Literal["auto"] = "auto",
    compile: bool | Literal["auto"] = "auto",
    checkpoint_every: int = 1,
    tensorboard: bool = True,
    callbacks: Sequence[Callback] = (),
    progress: bool | Progress = True,
    description: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    r"""Maximize an objective over the parameters θ of a model and φ of its guide.

    .. math:: \max_{θ, φ} \frac1N \sum_n \mathrm{ELBO}(x_n; θ, φ)

    What is minimized is the mean loss of a batch, so that `lr` and `clip` do not depend on its size. The global
    random state is left as it was; the run depends on `seed`, the data and the parameters it starts from.

    Args:
        model, guide: modules obeying the plate rule, see `core`. They are trained in place.
        data: N data. Kept on the device where they fit, otherwise streamed to it.
        objective: what is maximized; `ELBO()` if None.
        epochs: passes over the data, in a new order each; the last partial batch of a pass is left out.
        batch_size: B, over all devices.
        lr: learning rate.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1".
        precision: "32", or "bf16" for matrix products in bfloat16 and everything else in float32.
        seed: of the data's order and of all noise.
        run_dir: folder for logs (metrics.csv, TensorBoard) and checkpoints; None writes nothing.
        resume: go on from the run folder's last checkpoint, with the numbers of a run that never stopped.
        overwrite: replace an earlier run in `run_dir`.
        schedule: "joint" improves θ and φ together. "alternating" is the lecture's first algorithm: for every batch
            hold θ and bring q to the posterior with `guide_steps` steps, then hold q and improve θ by one.
        validation: data on which the objective is watched after each epoch.
        patience: stop when the validation ELBO has not got better for so many epochs, and put back the best epoch's
            weights. Without it the last epoch's stay.
        warmup: epochs over which the KL's weight rises linearly from 0 to 1.
        clip: largest norm of all gradients together, of the batch's mean loss.
        lr_schedule: "constant", "cosine" (to 0 at the end), or a function of the fraction done to a factor on `lr`.
        optimizer: called with parameter groups and ``lr=``; Adam, with fused updates, if None.
        devices: number of processes, each with a device of its own (several CPU processes for trying it out); their
            gradients are averaged. Scripts need ``if __name__ == "__main__":`` then.
        stream: True leaves the data where they are and copies each batch; "auto" does so where they do not fit.
        compile: True makes one compiled graph of the whole step (`CompiledSVI`'s), for one process; "auto" does so on a
            GPU, and on a CPU where so many steps are planned that compiling pays. A compiled run equals the eager
            one up to rounding, on a GPU in distribution; a resumed run goes on as it was started.
        checkpoint_every: epochs between checkpoints; one is always written at the end.
        tensorboard: whether event files are written beside metrics.csv.
        callbacks: called with an `EpochEnd` after each epoch; one that returns True stops the run.
        progress: a progress bar, or a rich `Progress` on which to put one.
        description: the bar's text.
        config: kept in run.json, for those who open the run later.

    Returns:
        `FitResult`.

    Warns of a class of the model's that has no label, and of labels that teach the classifier nothing.

    Raises:
        InputError: an argument that cannot be used, a pair that breaks a rule, data outside of the likelihood's
            support, labels, contexts or masks that are none of the pair's, a run folder that holds another run.
        RunError: `resume` of a folder without a usable checkpoint, or with other settings.
        NonFiniteLossError: the loss became NaN or infinite; step, rows and first bad tensor are named.
        OSError: a checkpoint could not be written; the one before is whole.
    """
    objective = ELBO() if objective is None else objective
    for name, part, kind in (
        ("model", model, nn.Module),
        ("guide", guide, nn.Module),
        ("objective", objective, Objective),
    ):
        if not isinstance(part, kind):
            raise InputError(f"{name} is of type {type(part).__name__}; give one of type {kind.__name__}")
    dtype = next((p.dtype for part in (model, guide) for p in part.parameters() if p.is_floating_point()), None)
    train_data = as_data(data, "data", dtype)
    held_out = None if validation is None else as_data(validation, "validation", dtype)
    factor, schedule_name = _lr_schedule(lr_schedule)
    settings = Settings(
        epochs=_whole("epochs", epochs, 1),
        batch_size=_whole("batch_size", batch_size, 1),
        lr=_positive("lr", lr),
        seed=_whole("seed", seed, 0),
        schedule=schedule,
        guide_steps=_whole("guide_steps", guide_steps, 1),
        patience=None if patience is None else _whole("patience", patience, 1),
        warmup=_whole("warmup", warmup, 0),
        clip=None if clip is None else _positive("clip", clip),
        lr_schedule=schedule_name,
        optimizer="Adam" if optimizer is None else getattr(optimizer, "__qualname__", type(optimizer).__name__),
        precision=precision,
        devices=_whole("devices", devices, 1),
    )
    _whole("checkpoint_every", checkpoint_every, 1)
    _check_settings(settings, objective, train_data, held_out)
    _check_sizes(guide, objective, train_data, settings.devices)
    _check_shared(model, objective, train_data, settings)
    _know(guide, train_data, held_out)
    where = resolve_device(device)
    if not isinstance(compile, bool) and compile != "auto":
        raise choose("compile", compile, ("auto", "True", "False"))
    _check_devices(settings.devices, where, device)
    if not isinstance(stream, bool) and stream != "auto":
        raise choose("stream", stream, ("auto", "True", "False"))
    _check_values(model, guide, train_data, "data")
    if held_out is not None:
        _check_values(model, guide, held_out, "validation")
    if isinstance(train_data, DataSet | BatchData):
        known = train_data if isinstance(train_data, DataSet) else train_data.whole
        names = getattr(train_data, "class_names", ())
        check_taught(model, known.y, len(train_data), train_data.description, names, objective.teaches)
    folder = None if run_dir is None else Path(run_dir)
    if resume and folder is None:
        raise InputError("resume=True needs run_dir, the folder of the run to go on with")
    if folder is not None:
        check_folder(folder, resume, overwrite)
    if compile == "auto":
        compile = _was_compiled(folder) if resume and folder is not None else _pays(settings, train_data, where)
    if compile and settings.devices > 1:
        raise InputError(
            f"compile=True and devices={settings.devices} exclude each other: processes exchange gradients in the "
            "middle of a step; use compile=False"
        )
    settings = replace(settings, compiled=compile)

    job = Job(
        model=model,
        guide=guide,
        objective=objective,
        data=train_data,
        validation=held_out,
        settings=settings,
        lr_factor=factor,
        optimizer=_fused_adam if optimizer is None else optimizer,
        run_dir=folder,
        record=_record(model, guide, objective, train_data, settings, config),
        resume=resume,
        stream=_too_large(train_data, where) if stream == "auto" else stream,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
        callbacks=tuple(callbacks),
        progress=progress,
        description=description or f"{type(model).__name__} / {type(guide).__name__} / {type(objective).__name__}",
    )
    parts: tuple[nn.Module, ...] = (model, guide, objective)
    for part in parts:
        part.to(where)
    _try_once(job, where)
    for part in parts:
        # several processes: each moves its own copy
        part.to(where if settings.devices == 1 else "cpu")
    for part in parts:
        set_precision(part, precision)
    if precision == "bf16" and (words := warning_in_bf16({"model": model, "guide": guide})):
        warnings.warn(words, stacklevel=2)
    try:
        with few_threads(*parts):
            outcome = launch(job, where)
    finally:
        for part in parts:
            part.to(where)
            part.eval()
            set_precision(part, "32")
    return FitResult(
        model=model,
        guide=guide,
        objective=objective,
        history=outcome.history,
        epochs=outcome.epochs,
        steps=outcome.steps,
        seconds=outcome.seconds,
        stopped=outcome.stopped,
        best_epoch=outcome.best_epoch,
        run_dir=folder,
        device=where,
        data=train_data.description,
        compiled=outcome.compiled,
    )


def _pays(settings: Settings, data: Data, device: torch.device) -> bool:
    """Whether compiling is worth its seconds: always on a GPU, on a CPU for many steps."""
    if settings.devices > 1:
        return False
    steps = settings.epochs * (len(data) // settings.batch_size)
    steps *= 1 + settings.guide_steps if settings.schedule == "alternating" else 1
    return device.type == "cuda" or steps >= COMPILE_PAYS


def _was_compiled(folder: Path) -> bool:
    return bool(read_run(folder).get("training", {}).get("compiled", False))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant by "auto", "cpu", "cuda" or "cuda:1"; raises `InputError` for one that is not there."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise choose("device", str(device), ("auto", "cpu", "cuda")) from error
    if wanted.type not in ("cpu", "cuda"):
        raise choose("device", str(device), ("auto", "cpu", "cuda"))
    if wanted.type == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (wanted.index or 0) >= there:
        raise InputError(f"device={str(device)!r} is not there: torch sees {there} CUDA GPUs; use 'cpu' or 'auto'")
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def _fused_adam(groups: Any, lr: float) -> Optimizer:
    return Adam(groups, lr=lr, fused=True)


def _try_once(job: Job, device: torch.device) -> None:
    """Run one small batch through the objective, and make an optimizer, before anything is written: a pair that cannot
    be trained leaves no trace. The pair's first call is checked under validation. Random states, buffers and modes
    are left as they were."""
    if not any(p.requires_grad for part in (job.model, job.guide, job.objective) for p in part.parameters()):
        raise InputError("no parameter of model, guide or objective requires a gradient: there is nothing to train")
    try:
        optimizer = job.optimizer([{"params": [nn.Parameter(torch.zeros(1, device=device))]}], lr=job.settings.lr)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {error}; give one that is called with parameter groups and lr=") from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer made a {type(optimizer).__name__}; give a class of torch.optim")
    parts = (job.model, job.guide, job.objective)
    with restored(*parts), torch.random.fork_rng(devices=cuda_in(device)), torch.no_grad():
        batch = job.data.take(torch.arange(2)).batch().to(device)
        terms = job.objective.terms(job.model, job.guide, batch)
    for name, value in (("a loss", terms.loss), *terms.logs.items()):
        if tuple(value.shape) != (batch.size,):
            raise InputError(
                f"{type(job.objective).__name__}.terms returned {name} of shape {tuple(value.shape)}; one value a "
                f"datum, ({batch.size},), belongs there"
            )


def _too_large(data: Data, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return data.nbytes > free // 2


def _check_sizes(guide: nn.Module, objective: Objective, data: Data, devices: int) -> None:
    """Parts that keep something for each datum, by its row, say for how many data."""
    for name, part in (("guide", guide), ("objective", objective)):
        size = getattr(part, "size", None)
        if isinstance(size, int) and size < len(data):
            raise InputError(
                f"the {name} {type(part).__name__} was made with size={size}, and {data.description!r} has "
                f"{len(data)} data; make it with size={len(data)}"
            )
    if devices > 1 and isinstance(getattr(objective, "size", None), int):
        raise InputError(f"{type(objective).__name__} keeps its chains in one process: train with devices=1")


def _check_shared(model: nn.Module, objective: Objective, data: Data, settings: Settings) -> None:
    """Latents that all data share count B/N in a batch of B: the objective must have been told the N of these data."""
    shared = [name for name, spec in (getattr(model, "latents", None) or {}).items() if spec.scope == "global"]
    if not shared:
        return
    whole = settings.batch_size // settings.devices == len(data)
    for part in objective.modules():
        size = getattr(part, "data_size", len(data))
        if size == len(data) or (size is None and whole):
            continue
        raise InputError(
            f"data_size={size!r} of {type(part).__name__}: all data share the latents {', '.join(map(repr, shared))}, "
            f"and {data.description!r} has {len(data)} data, in batches of {settings.batch_size}; give "
            f"data_size={len(data)}"
        )


def _know(guide: nn.Module, data: Data, validation: Data | None) -> None:
    """A guide with parameters for each datum notes which data they are, and has none for any others."""
    if not callable(getattr(guide, "renew", None)):
        return
    if validation is not None:
        raise InputError(
            f"validation={validation.description!r}: {type(guide).__name__} has parameters for each datum of the "
            "training data, and none for these; leave validation and patience out, or use an amortized guide"
        )
    if isinstance(data, DataSet) and callable(belongs := getattr(guide, "belongs", None)):
        belongs(data.fingerprint, data.description)


def _check_settings(settings: Settings, objective: Objective, data: Data, validation: Data | None) -> None:
    if len(data) < 2:
        raise InputError(f"{data.description!r} has {len(data)} datum to train on; at least two are needed")
    if settings.batch_size > len(data):
        raise InputError(
            f"batch_size={settings.batch_size} is larger than the data, {len(data)} in {data.description!r}; "
            f"give {len(data)} or less"
        )
    if settings.batch_size % settings.devices:
        raise InputError(
            f"batch_size={settings.batch_size} does not split evenly over devices={settings.devices}; give a multiple"
        )
    if settings.schedule not in ("joint", "alternating"):
        raise choose("schedule", settings.schedule, ("joint", "alternating"))
    if settings.schedule == "joint" and settings.guide_steps != 1:
        raise InputError(
            f"guide_steps={settings.guide_steps} is of schedule='alternating'; with 'joint' every step is of both sides"
        )
    if settings.precision not in ("32", "bf16"):
        raise choose("precision", settings.precision, ("32", "bf16"))
    if settings.patience is not None and validation is None:
        raise InputError(f"patience={settings.patience} watches validation data: give validation=")
    if settings.warmup and not hasattr(objective, "kl_weight"):
        raise InputError(
            f"warmup={settings.warmup} raises the weight of a KL, and {type(objective).__name__} has none; use ELBO, "
            "or warmup=0"
        )
    if settings.clip is not None and not all(getattr(part, "clips", True) for part in objective.modules()):
        raise InputError(
            f"clip={settings.clip:g} would shorten the natural steps of {type(objective).__name__}, which are no "
            "gradients; use clip=None"
        )


def _check_devices(count: int, where: torch.device, given: str | torch.device) -> None:
    there = torch.cuda.device_count() if where.type == "cuda" else count
    if count > there:
        raise InputError(f"devices={count} are not there: torch sees {there} CUDA GPUs; give {there} or less")
    if count > 1 and ":" in str(given):
        raise InputError(f"devices={count} are the first {count}, and device={str(given)!r} names one; say 'cuda'")


def _check_values(model: nn.Module, guide: nn.Module, data: Data, argument: str) -> None:
    """Raise `InputError` for x outside of the likelihood's support and for labels and contexts that are none of the
    pair's."""
    if isinstance(data, DataSet):
        check_given(Batch(y=data.y, context=data.context, n=len(data)), model, guide, argument=argument)
    elif isinstance(data, BatchData):
        check_given(data.whole, model, guide, argument=argument)
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(likelihood, Likelihood):
        return
    # a binarized data set is 0 and 1 by construction: its shape alone is looked at
    size = 1 if isinstance(data, DataSet) and data.binary else len(data)
    for rows in torch.arange(size).split(_CHUNK):
        part = data.take(rows)
        x = (part.unmasked() if isinstance(part, DataSet) else part).fixed().batch().x
        if x is not None:
            # what is not observed is 0 by contract, and 0 lies in every support
            likelihood.check(x, argument)


def _record(
    model: nn.Module,
    guide: nn.Module,
    objective: Objective,
    data: Data,
    settings: Settings,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What run.json says of a run."""
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise InputError(f"config is kept as JSON, and cannot be: {error}") from error
    record = {
        "versions": _versions(),
        "model": type(model).__qualname__,
        "guide": type(guide).__qualname__,
        "objective": {"class": type(objective).__qualname__, "repr": objective.extra_repr()},
        "data": {"description": data.description, "size": len(data)},
        "training": asdict(settings),
    }
    if taken := sorted(record.keys() & (config or {}).keys()):
        raise InputError(f"config has {', '.join(map(repr, taken))}, which run.json says of itself; use other names")
    return {**record, **(config or {})}


def _versions() -> dict[str, str]:
    names = ("ppl_vae", "torch", "pyro-ppl", "arviz", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _lr_schedule(given: object) -> tuple[Callable[[float], float] | None, str]:
    if isinstance(given, str) and given in _LR_SCHEDULES:
        return _LR_SCHEDULES[given], given
    if not callable(given):
        raise choose("lr_schedule", given, _LR_SCHEDULES)
    for done in (0.0, 1.0):
        factor = given(done)
        if not isinstance(factor, numbers.Real) or not math.isfinite(factor) or factor < 0:
            raise InputError(f"lr_schedule({done}) is {factor!r}; it must give a factor on lr, a number of 0 or more")
    return given, getattr(given, "__qualname__", type(given).__name__)


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r} must be a whole number, {least} or more")
    return int(value)


def _positive(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{name}={value!r} must be a positive number")
    return float(value)
