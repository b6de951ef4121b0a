"""The training loop of one process: steps, epochs, validation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer

from .batch import Batch
from .checkpoint import (
    Checkpoint,
    Checkpoints,
    load_optimizer,
    load_random_state,
    optimizer_state,
    random_state,
    seed_generators,
)
from .compiled import CompiledStep, CompileReport
from .errors import InputError, NonFiniteLossError, RunError
from .folder import CHECKPOINTS, start_run
from .isolation import cuda_in
from .loader import Data, Loader, fingerprint
from .logs import Logs
from .nonfinite import first_bad, first_bad_parameter
from .objectives import Objective
from .progress import progress_bar, said
from .together import joined, owned

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Callback", "EpochEnd", "Flag", "Job", "Outcome", "Schedule", "Settings", "Stopped", "Trainer"]

Schedule = Literal["joint", "alternating"]
Stopped = Literal["finished", "early", "interrupted", "callback"]

_VALIDATION_SEED = 20_131_220
_VALIDATION_BATCH = 256
_LOOK_EVERY = 10
_BAR_SECONDS = 0.1


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a training run besides the pair and the data. All of it is JSON; a resumed run
    must agree in all of it but `epochs` and `patience`."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    schedule: Schedule
    guide_steps: int
    patience: int | None
    warmup: int
    clip: float | None
    lr_schedule: str
    optimizer: str
    precision: str
    devices: int
    compiled: bool = False


class EpochEnd(NamedTuple):
    """What a callback is told after each epoch: its row of the history, nats a datum, and the pair as it stands."""

    epoch: int
    row: dict[str, float]
    model: nn.Module
    guide: nn.Module
    objective: Objective


Callback = Callable[[EpochEnd], object]
"""Called after each epoch; returning True stops the run."""


class Flag(Protocol):
    """Says whether the run was asked to stop, as by Ctrl-C."""

    def is_set(self) -> bool: ...


@dataclass
class Job:
    """Everything a process is told."""

    model: nn.Module
    guide: nn.Module
    objective: Objective
    data: Data
    validation: Data | None
    settings: Settings
    lr_factor: Callable[[float], float] | None
    optimizer: Callable[..., Optimizer]
    run_dir: Path | None
    record: Mapping[str, Any]
    resume: bool
    stream: bool
    checkpoint_every: int
    tensorboard: bool
    callbacks: Sequence[Callback] = ()
    progress: bool | Progress = False
    description: str = "training"


@dataclass
class Outcome:
    """What a process reports."""

    history: list[dict[str, float]]
    epochs: int
    steps: int
    seconds: float
    stopped: Stopped
    best_epoch: int | None
    compiled: CompileReport = field(default_factory=CompileReport)


class _Loss(nn.Module):
    """The objective's mean over a batch as a module, which is what data-parallel wrappers take."""

    def __init__(self, model: nn.Module, guide: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.guide, self.objective = model, guide, objective
        self.names: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        terms = self.objective.terms(self.model, self.guide, batch)
        self.names = tuple(terms.logs)
        return terms.loss.mean(), torch.stack([terms.loss.detach(), *terms.logs.values()]).mean(1)


class _Update(NamedTuple):
    """What is needed to look at an update again: its step, its batch, the noise it began with, its loss."""

    step: int
    step_in_epoch: int
    batch: Batch
    noise: dict[str, Tensor]
    loss: Tensor


class Trainer:
    """A job in one process.

    Args:
        fabric: the other processes; None: there are none.
        device: where it runs.
        job: what is to be done.
        stop: looked at after every step.
    """

    def __init__(self, fabric: Fabric | None, device: torch.device, job: Job, stop: Flag) -> None:
        self._fabric = fabric
        self.job = job
        self.stop = stop
        self.settings = job.settings
        self.device = device
        self.rank, self.world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.loss = _Loss(job.model, job.guide, job.objective).to(self.device)
        # one process needs none of the wrapper's conversions, which cost as much as a small step
        self.module: nn.Module = self.fabric.setup_module(self.loss) if self.world > 1 else self.loss
        own = job.objective.optimizers(job.model, job.guide)
        if own and self.settings.schedule != "joint":
            raise InputError(
                f"schedule={self.settings.schedule!r} does not fit {type(job.objective).__name__}, which trains "
                "parameters by optimizers of its own; use schedule='joint'"
            )
        self.groups = _parameter_groups(job, owned(own))
        pair = [p for group in self.groups.values() for p in group]
        self.trained = [*pair, *owned(own)]
        # one group: a fused optimizer then updates all of them in one call
        self.optimizer = joined(job.optimizer([{"params": pair}], lr=self.settings.lr), own)
        self.loader = Loader(
            job.data, self.settings.batch_size, self.settings.seed, self.device, self.rank, self.world, job.stream
        )
        self.validation = None if job.validation is None else job.validation.fixed()
        if self.validation is not None and not job.stream:
            self.validation = self.validation.to(self.device)
        self.checkpoints = None if job.run_dir is None else Checkpoints(job.run_dir / CHECKPOINTS)
        self.logs: Logs | None = None

        self.epoch = 0
        self.step_in_epoch = 0
        self.step = 0
        self.sums: Tensor | None = None
        self.epoch_seconds = 0.0
        self.earlier_seconds = 0.0
        self.started = time.perf_counter()
        self.history: list[dict[str, float]] = []
        self.best = -math.inf
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] | None = None

        # a process among several exchanges gradients in the middle of its step, which no graph of ours spans
        compiling = self.settings.compiled and self.world == 1
        self.compiled = CompiledStep(
            self.loss, self.optimizer, self.settings.clip, "inductor" if compiling else "none", "fit", guard=True
        )
        self.updates: list[_Update] = []
        self.look_every = 1
        self.skip: Tensor | None = None
        # Reading a loss waits for the GPU. Optimizers that can skip an update by a flag on the device (what loss
        # scaling uses) leave all parameters as they were at the first bad loss, so that it may be looked for later.
        if self.device.type == "cuda" and compiling:
            self.look_every = _LOOK_EVERY  # the graph itself takes back an update whose loss was bad
        elif self.device.type == "cuda" and getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self._look_later(_LOOK_EVERY)

    @property
    def fabric(self) -> Fabric:
        """What several processes exchange by."""
        assert self._fabric is not None
        return self._fabric

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until all epochs are done or something stops it."""
        settings = self.settings
        if hasattr(self.loss.objective, "kl_weight"):
            # an earlier run may have been stopped in its warm-up
            self.loss.objective.kl_weight.fill_(1.0)  # type: ignore[operator]
        if self.job.resume:
            self._restore()
        if self.rank == 0 and self.job.run_dir is not None:
            start_run(self.job.run_dir, self.job.record, self.job.resume)
            self.logs = Logs(self.job.run_dir, self.history, self.job.tensorboard)
        self.started = time.perf_counter()
        stopped: Stopped = "finished"
        show = self.job.progress if self.rank == 0 else False
        try:
            with torch.enable_grad(), progress_bar(show, self.job.description, settings.epochs) as bar:
                self.module.train()
                bar.update(self.epoch)
                while self.epoch < settings.epochs:
                    if self._out_of_patience():
                        stopped = "early"
                        break
                    if self._run_epoch(bar.update):
                        stopped = "interrupted"
                        self._save()
                        break
                    row = self._end_epoch()
                    bar.update(self.epoch, "  ".join(said(row, self.job.guide, self.job.objective)))
                    told = self._tell_callbacks(row)
                    last = self.epoch == settings.epochs or self._out_of_patience() or told
                    is_best = self.best_epoch == self.epoch
                    if last or is_best or self.epoch % self.job.checkpoint_every == 0:
                        self._save(is_best)
                    if told:
                        stopped = "callback"
                        break
        finally:
            if self.logs is not None:
                self.logs.close()
        if settings.patience is not None and stopped != "interrupted" and self.best_weights is not None:
            self._load_weights(self.best_weights)
        report = self.compiled.report
        return Outcome(self.history, self.epoch, self.step, self.seconds(), stopped, self.best_epoch, report)

    def seconds(self) -> float:
        """Spent in training, before a resumption too."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def weights(self) -> dict[str, Tensor]:
        """The tensors of model, guide and objective, under "model.", "guide.", "objective."."""
        return dict(self.loss.state_dict())

    def _run_epoch(self, update: Callable[..., None]) -> bool:
        """The rest of an epoch's steps; returns whether the run was asked to stop."""
        began = shown = time.perf_counter()
        if self.compiled.compiler.backend != "none" and not self.compiled.compiler.calls:
            update(self.epoch, "compiling")
        asked = self._asked_to_stop()
        for batch in () if asked else self.loader.epoch(self.epoch, self.step_in_epoch):
            logs = self._step(batch)
            self.sums = logs.double() if self.sums is None else self.sums.add_(logs)
            self.step += 1
            self.step_in_epoch += 1
            if self.step % self.look_every == 0 and self._asked_to_stop():
                asked = True
                break
            now = time.perf_counter()
            if now - shown > _BAR_SECONDS:
                update(self.epoch + self.step_in_epoch / self.loader.steps)
                shown = now
        self._look()
        self.epoch_seconds += time.perf_counter() - began
        return asked

    def _end_epoch(self) -> dict[str, float]:
        assert self.sums is not None
        sums = self.sums / self.loader.steps
        if self.world > 1:
            sums = self.fabric.all_reduce(sums, reduce_op="mean")  # type: ignore[assignment]
        row: dict[str, float] = {"epoch": float(self.epoch + 1), "step": float(self.step)}
        row |= dict(zip(("loss", *self.loss.names), sums.tolist(), strict=True))
        row["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self.validation is not None:
            row |= self._validate(self.validation)
        row["seconds"] = self.epoch_seconds
        if self.world > 1:
            # what is decided by a row must be decided alike
            row = self.fabric.broadcast(row)
        watched = row.get(f"val_{self.loss.objective.watched}", -math.inf)
        if watched > self.best:
            self.best, self.best_epoch = watched, self.epoch + 1
            if self.settings.patience is not None:
                self.best_weights = {k: v.detach().clone() for k, v in self.weights().items()}
        self.epoch += 1
        self.step_in_epoch, self.sums, self.epoch_seconds = 0, None, 0.0
        self.history.append(row)
        if self.logs is not None:
            self.logs.add(row)
        return row

    def _tell_callbacks(self, row: dict[str, float]) -> bool:
        told = EpochEnd(self.epoch, dict(row), self.loss.model, self.loss.guide, self.loss.objective)
        stop = False
        if self.rank == 0:
            for callback in self.job.callbacks:
                stop = callback(told) is True or stop
        return stop if self.world == 1 else bool(self.fabric.broadcast(stop))

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best_epoch is not None and self.epoch - self.best_epoch >= patience

    def _asked_to_stop(self) -> bool:
        if self.world == 1:
            return self.stop.is_set()
        # all processes stop after the same step, or some would wait for the others for ever
        asked = torch.tensor(float(self.stop.is_set()), device=self.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="max"))

    # --- one step -----------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> Tensor:
        if self.job.lr_factor is not None:
            factor = self.job.lr_factor(self.step / (self.settings.epochs * self.loader.steps))
            self.optimizer.param_groups[0]["lr"] = self.settings.lr * factor
        if self.settings.warmup:
            warm = min(1.0, (self.step + 1) / (self.settings.warmup * self.loader.steps))
            self.loss.objective.kl_weight.fill_(warm)  # type: ignore[operator]
        if self.settings.schedule == "joint":
            return self._update(batch, self.trained)
        for _ in range(self.settings.guide_steps if "guide" in self.groups else 0):
            logs = self._update(batch, self.groups["guide"])
        return self._update(batch, self.groups["model"]) if "model" in self.groups else logs

    def _update(self, batch: Batch, parameters: list[nn.Parameter]) -> Tensor:
        """One gradient step of some parameters; returns the logs' batch means."""
        noise = random_state(self.device)
        if self.compiled.compiler.backend != "none":
            logs = self.compiled(batch, part=self._part(parameters))
            self._watch(_Update(self.step, self.step_in_epoch, batch, noise, logs[0]))
            return logs
        for p in self.trained:
            p.grad = None
        loss, logs = self.module(batch)
        self._watch(_Update(self.step, self.step_in_epoch, batch, noise, loss.detach()))
        if self.world > 1:
            self.fabric.backward(loss)
            if parameters is not self.trained:
                kept = {id(p) for p in parameters}
                for p in self.trained:
                    p.grad = p.grad if id(p) in kept else None
        elif parameters is self.trained:
            loss.backward()
        else:
            loss.backward(inputs=parameters)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        self.optimizer.step()
        out: Tensor = logs
        return out

    def _part(self, parameters: list[nn.Parameter]) -> slice | None:
        """Where some parameters lie among all that are trained."""
        if parameters is self.trained:
            return None
        start = next(k for k, p in enumerate(self.trained) if p is parameters[0])
        return slice(start, start + len(parameters))

    def _validate(self, data: Data) -> dict[str, float]:
        """Means over the validation data, with the same noise after every epoch."""
        self.module.eval()
        totals: dict[str, Tensor] = {}
        with torch.no_grad(), torch.random.fork_rng(devices=cuda_in(self.device)):
            seed_generators(_VALIDATION_SEED, self.device)
            for rows in torch.arange(len(data)).split(max(_VALIDATION_BATCH, self.settings.batch_size)):
                batch = data.batch(rows).to(self.device)
                for name, value in self.loss.objective.terms(self.loss.model, self.loss.guide, batch).logs.items():
                    total = value.double().sum()
                    totals[name] = totals[name] + total if name in totals else total
        self.module.train()
        return {f"val_{name}": total.item() / len(data) for name, total in totals.items()}

    # --- what can go wrong --------------------------------------------------------------------------------------

    def _look_later(self, every: int) -> None:
        """Look at losses after so many steps, and until then let the device skip what follows a bad one."""
        self.look_every = every
        self.skip = torch.zeros((), device=self.device)
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = self.skip  # type: ignore[attr-defined]

    def _watch(self, update: _Update) -> None:
        if self.skip is not None:
            self.skip.copy_(torch.maximum(self.skip, (~torch.isfinite(update.loss)).float()))
            if self.world > 1:
                torch.distributed.all_reduce(self.skip, torch.distributed.ReduceOp.MAX)
        self.updates.append(update)
        if len(self.updates) >= self.look_every:
            self._look()

    def _look(self) -> None:
        """Raise `NonFiniteLossError` for the first update whose loss is not finite."""
        updates, self.updates = self.updates, []
        if not updates:
            return
        losses = [updates[0].loss.item()] if len(updates) == 1 else torch.stack([u.loss for u in updates]).tolist()
        for update, loss in zip(updates, losses, strict=True):
            if not math.isfinite(loss):
                self._fail(update, loss)

    def _fail(self, update: _Update, loss: float) -> None:
        rows = self.loader.rows(self.epoch, update.step_in_epoch).tolist()
        shown = ", ".join(map(str, rows[:20])) + (f", ... {len(rows)} in all" if len(rows) > 20 else "")
        load_random_state(update.noise, self.device)
        bad = first_bad(self.loss, update.batch)
        raise NonFiniteLossError(
            f"the loss became {loss} at step {update.step + 1} (epoch {self.epoch + 1}), on the batch of rows "
            f"[{shown}]; first bad tensor: {bad}; {self._kept()}. A lower lr, clip=1.0 or a warm-up may help",
            tuple(rows),
        )

    def _kept(self) -> str:
        try:
            kept = None if self.checkpoints is None else self.checkpoints.latest()
        except RunError:
            kept = None
        return "there is no checkpoint yet" if kept is None else f"the last good checkpoint is kept, {kept}"

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        try:
            self.loss.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"the checkpoint holds another pair or objective: {error}") from error

    def _save(self, best: bool = False) -> None:
        # a finite loss may have had a gradient that is not: its weights are no checkpoint to go on from
        if (bad := first_bad_parameter(self.loss)) is not None:
            raise NonFiniteLossError(
                f"{bad} became non-finite by step {self.step}: the loss was finite and its gradient was not; "
                f"{self._kept()}. A lower lr, clip=1.0 or a warm-up may help"
            )
        states = self._random_states()
        if self.checkpoints is None or self.rank != 0:
            return
        tensors, numbers = optimizer_state(self.optimizer)
        for k, state in enumerate(states):
            tensors |= {f"{name}.{k}": tensor for name, tensor in state.items()}
        if self.sums is not None:
            tensors["sums"] = self.sums
        checkpoint = Checkpoint(
            self.weights(),
            tensors,
            {
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "step": self.step,
                "seconds": self.seconds(),
                "epoch_seconds": self.epoch_seconds,
                "optimizer": numbers,
                "best": None if self.best_epoch is None else self.best,
                "best_epoch": self.best_epoch,
                "names": list(self.loss.names),
                "settings": asdict(self.settings),
                "trained_with": self._trained_with(),
                "history": self.history,
            },
        )
        self.checkpoints.save(checkpoint, self.step, best)

    def _trained_with(self) -> dict[str, Any]:
        """What a resumed run must have again, besides the settings."""
        job = self.job
        validation = None if job.validation is None else [job.validation.description, fingerprint(job.validation)]
        return {
            "objective": f"{type(job.objective).__name__}({job.objective.extra_repr()})",
            "data": [job.data.description, len(job.data), fingerprint(job.data)],
            "validation": validation,
        }

    def _random_states(self) -> list[dict[str, Tensor]]:
        mine = random_state(self.device)
        if self.world == 1:
            return [mine]
        states: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(states, mine)
        return states

    def _restore(self) -> None:
        assert self.checkpoints is not None
        path = self.checkpoints.latest()
        saved = self.checkpoints.load(path)
        state = saved.state
        try:
            _refuse_other(state, self.settings, self._trained_with())
            self._load_weights(saved.weights)
            load_optimizer(self.optimizer, saved.training, state["optimizer"])
            mine = f".{self.rank}"
            random = {k: t for k, t in saved.training.items() if k.startswith("rng.") and k.endswith(mine)}
            load_random_state({name.removesuffix(mine): t for name, t in random.items()}, self.device)
            self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
            self.earlier_seconds, self.epoch_seconds = state["seconds"], state["epoch_seconds"]
            if self.epoch > self.settings.epochs:
                raise InputError(
                    f"resume: epochs={self.settings.epochs} are fewer than the {self.epoch} that the run has done; "
                    "give as many or more"
                )
            self.history = [dict(row) for row in state["history"]]
            self.loss.names = tuple(state["names"])
            self.best_epoch = state["best_epoch"]
            self.best = -math.inf if state["best"] is None else state["best"]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise RunError(f"{path} is not whole: {error!r}") from error
        self.sums = saved.training["sums"].to(self.device) if "sums" in saved.training else None
        if self.settings.patience is not None and self.best_epoch is not None:
            best = self.checkpoints.best()
            if best is None:
                raise RunError(f"{self.checkpoints.folder} has lost the checkpoint of its best epoch")
            self.best_weights = self.checkpoints.load(best).weights


def _parameter_groups(job: Job, others: Sequence[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The guide's parameters, and the model's with the objective's; what both hold is the model's. A side without
    parameters that train is left out, and so are `others`."""
    of_model = list(dict.fromkeys([*job.model.parameters(), *job.objective.parameters()]))
    taken = {id(p) for p in others}
    of_model = [p for p in of_model if id(p) not in taken]
    known = set(of_model)
    of_guide = [p for p in job.guide.parameters() if p not in known and id(p) not in taken]
    groups = {"model": of_model, "guide": of_guide}
    return {name: trained for name, group in groups.items() if (trained := [p for p in group if p.requires_grad])}


def _refuse_other(state: dict[str, Any], settings: Settings, trained_with: dict[str, Any]) -> None:
    """Raise `RunError` unless a checkpoint is of this very run."""
    now = asdict(settings)
    free = {"epochs", "patience"} if settings.lr_schedule == "constant" else {"patience"}
    for name, then in state["settings"].items():
        if name not in free and now.get(name) != then:
            raise RunError(
                f"resume: the run was started with {name}={then!r} and is asked to go on with {name}={now.get(name)!r}"
                + (f", and lr_schedule={settings.lr_schedule!r} depends on it" if name == "epochs" else "")
                + "; give the same, or start a new run"
            )
    for name, then in state["trained_with"].items():
        if trained_with[name] != then:
            raise RunError(
                f"resume: {name} was {_words(then)} when the run was started, and is {_words(trained_with[name])} now; "
                "give the same, or start a new run"
            )


def _words(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    first, *rest = value
    return f"{first!r} ({', '.join(map(str, rest))})"
