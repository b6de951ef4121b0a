"""The training loop of one process: steps, epochs, validation, checkpoints."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pyro import poutine
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
)
from .errors import NonFiniteLossError, RunError
from .loader import Data, Loader
from .logs import Logs
from .objectives import Objective
from .progress import progress_bar
from .weights import particle_plate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Callback", "EpochEnd", "Job", "Outcome", "Settings", "train"]

Schedule = Literal["joint", "alternating"]
Stopped = Literal["finished", "early", "interrupted", "callback"]

_VALIDATION_SEED = 20_131_220
_NON_FINITE_CHECK_EVERY = 50
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


class EpochEnd(NamedTuple):
    """What a callback is told after each epoch: its row of the history, nats a datum, and the pair as it stands."""

    epoch: int
    row: dict[str, float]
    model: nn.Module
    guide: nn.Module
    objective: Objective


Callback = Callable[[EpochEnd], object]
"""Called after each epoch; returning True stops the run."""


@dataclass
class Job:
    """Everything a process is told. It is pickled for processes on other devices."""

    model: nn.Module
    guide: nn.Module
    objective: Objective
    data: Data
    validation: Data | None
    settings: Settings
    lr_factor: Callable[[float], float]
    optimizer: Callable[..., Optimizer]
    run_dir: Path | None
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
    weights: dict[str, Tensor] = field(default_factory=dict)


class _Loss(nn.Module):
    """The objective's mean over a batch as a module, which is what data-parallel wrappers take."""

    def __init__(self, model: nn.Module, guide: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.guide, self.objective = model, guide, objective
        self.names: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        terms = self.objective.terms(self.model, self.guide, batch)
        self.names = tuple(terms.logs)
        loss = terms.loss.mean()
        return loss, torch.stack([loss.detach(), *(value.detach().mean() for value in terms.logs.values())])


def train(fabric: Fabric, job: Job) -> Outcome:
    """Run a job in this process; returns when all epochs are done or something stops it."""
    return _Trainer(fabric, job).run()


def train_remote(fabric: Fabric, job: Job) -> Outcome:
    """Run a job in a process of its own, whose weights come back with the outcome."""
    trainer = _Trainer(fabric, job)
    outcome = trainer.run()
    outcome.weights = {name: t.detach().cpu() for name, t in trainer.weights().items()}
    return outcome


class _Trainer:
    def __init__(self, fabric: Fabric, job: Job) -> None:
        self.fabric = fabric
        self.job = job
        self.settings = job.settings
        self.device: torch.device = fabric.device
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.loss = _Loss(job.model, job.guide, job.objective).to(self.device)
        # one process needs none of the wrapper's conversions, which cost as much as a small step
        self.module: nn.Module = fabric.setup_module(self.loss) if self.world > 1 else self.loss
        self.groups = self._parameter_groups()
        self.optimizer = job.optimizer([{"params": group} for group in self.groups.values()], lr=self.settings.lr)
        self.loader = Loader(
            job.data, self.settings.batch_size, self.settings.seed, self.device, self.rank, self.world, job.stream
        )
        self.validation = None if job.validation is None else job.validation.fixed().to(self.device)
        self.checkpoints = None if job.run_dir is None else Checkpoints(job.run_dir / "checkpoints")
        self.logs: Logs | None = None

        self.epoch = 0
        self.step_in_epoch = 0
        self.step = 0
        self.sums: Tensor | None = None
        self.epoch_seconds = 0.0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: float = -math.inf
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.interrupted = False

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        settings = self.settings
        if self.job.resume:
            self._restore()
        if self.rank == 0 and self.job.run_dir is not None:
            self.logs = Logs(self.job.run_dir, self.history, self.job.tensorboard)
        started = time.perf_counter()
        stopped: Stopped = "finished"
        show = self.job.progress if self.rank == 0 else False
        try:
            with _sigint(self), progress_bar(show, self.job.description, settings.epochs) as bar:
                self.module.train()
                while self.epoch < settings.epochs:
                    if self._out_of_patience():
                        stopped = "early"
                        break
                    self._run_epoch(bar.update)
                    if self.interrupted:
                        stopped = "interrupted"
                        break
                    row = self._end_epoch()
                    bar.update(self.epoch, f"ELBO {row['elbo']:.2f}  KL {row['kl']:.2f} nats/datum")
                    told = EpochEnd(self.epoch, row, self.loss.model, self.loss.guide, self.loss.objective)
                    stop = [callback(told) for callback in self.job.callbacks]
                    last = self.epoch == settings.epochs or self._out_of_patience() or True in stop
                    if last or self.epoch % self.job.checkpoint_every == 0 or self.best_epoch == self.epoch:
                        self._save(best=self.best_epoch == self.epoch)
                    if True in stop:
                        stopped = "callback"
                        break
            if stopped == "interrupted":
                self._save()
        finally:
            self.seconds += time.perf_counter() - started
            if self.logs is not None:
                self.logs.close()
        if settings.patience is not None and stopped != "interrupted" and self.best_weights is not None:
            self._load_weights(self.best_weights)
        return Outcome(self.history, self.epoch, self.step, self.seconds, stopped, self.best_epoch)

    def _run_epoch(self, update: Callable[[float], None]) -> None:
        started = shown = time.perf_counter()
        for batch in self.loader.epoch(self.epoch, self.step_in_epoch):
            logs = self._step(batch)
            self.sums = logs.double() if self.sums is None else self.sums + logs
            self.step += 1
            self.step_in_epoch += 1
            if self.interrupted:
                break
            now = time.perf_counter()
            if now - shown > _BAR_SECONDS:
                update(self.epoch + self.step_in_epoch / self.loader.steps)
                shown = now
        self.epoch_seconds += time.perf_counter() - started

    def _end_epoch(self) -> dict[str, float]:
        assert self.sums is not None
        sums = self.sums / self.loader.steps
        if self.world > 1:
            sums = self.fabric.all_reduce(sums, reduce_op="mean")  # type: ignore[assignment]
        values = sums.tolist()
        self._refuse_non_finite(values[0])
        row: dict[str, float] = {"epoch": float(self.epoch + 1), "step": float(self.step)}
        row |= dict(zip(("loss", *self.loss.names), values, strict=True))
        row["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self.validation is not None:
            row |= self._validate(self.validation)
            if row["val_elbo"] > self.best:
                self.best, self.best_epoch = row["val_elbo"], self.epoch + 1
                if self.settings.patience is not None:
                    self.best_weights = {k: v.detach().clone() for k, v in self.weights().items()}
        row["seconds"] = self.epoch_seconds
        self.epoch += 1
        self.step_in_epoch, self.sums, self.epoch_seconds = 0, None, 0.0
        self.history.append(row)
        if self.logs is not None:
            self.logs.add(row)
        return row

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best_epoch is not None and self.epoch - self.best_epoch >= patience

    # --- one step -----------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> Tensor:
        total = self.settings.epochs * self.loader.steps
        factor = self.job.lr_factor(self.step / total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        if self.settings.warmup:
            warm = min(1.0, (self.step + 1) / (self.settings.warmup * self.loader.steps))
            self.loss.objective.kl_weight.fill_(warm)  # type: ignore[operator,union-attr]
        if self.settings.schedule == "joint":
            return self._update(batch, None)
        for _ in range(self.settings.guide_steps):
            self._update(batch, "guide")
        return self._update(batch, "model")

    def _update(self, batch: Batch, only: Literal["model", "guide"] | None) -> Tensor:
        """One gradient step, of all parameters or of one side's; returns the logs' batch means."""
        self.optimizer.zero_grad()
        loss, logs = self.module(batch)
        # on a GPU reading the loss would wait for it, so there it is looked at now and then, and at an epoch's end
        if self.device.type == "cpu" or self.step % _NON_FINITE_CHECK_EVERY == 0:
            self._refuse_non_finite(loss.item(), batch)
        if self.world > 1:
            self.fabric.backward(loss)
        else:
            loss.backward()
        if only is not None:
            for name, parameters in self.groups.items():
                if name != only:
                    for p in parameters:
                        p.grad = None
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_([p for g in self.groups.values() for p in g], self.settings.clip)
        self.optimizer.step()
        out: Tensor = logs
        return out

    def _parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The guide's parameters, and the model's with the objective's; what both hold is the model's."""
        of_model = [*self.loss.model.parameters(), *self.loss.objective.parameters()]
        known = {id(p) for p in of_model}
        groups = {"model": of_model, "guide": [p for p in self.loss.guide.parameters() if id(p) not in known]}
        return {name: trained for name, group in groups.items() if (trained := [p for p in group if p.requires_grad])}

    def _validate(self, data: Data) -> dict[str, float]:
        """Means over the validation data, with the same noise after every epoch."""
        self.module.eval()
        totals: dict[str, float] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(_VALIDATION_SEED)
            size = max(256, self.settings.batch_size)
            for rows in torch.arange(len(data), device=self.device).split(size):
                terms = self.loss.objective.terms(self.loss.model, self.loss.guide, data.batch(rows))
                for name, value in terms.logs.items():
                    totals[name] = totals.get(name, 0.0) + value.double().sum().item()
        self.module.train()
        return {f"val_{name}": total / len(data) for name, total in totals.items()}

    # --- what can go wrong --------------------------------------------------------------------------------------

    def _refuse_non_finite(self, loss: float, batch: Batch | None = None) -> None:
        if math.isfinite(loss):
            return
        rows = self.loader.rows(self.epoch, min(self.step_in_epoch, self.loader.steps - 1)).tolist()
        if batch is None:
            batch = self.loader.data.batch(torch.tensor(rows, device=self.loader.data.batch().rows.device))  # type: ignore[union-attr]
        shown = ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
        kept = ""
        if self.checkpoints is not None and any(self.checkpoints.folder.glob("step-*")):
            kept = f"; the last good checkpoint is kept, {self.checkpoints.latest()}"
        raise NonFiniteLossError(
            f"the loss became {loss} at step {self.step + 1} (epoch {self.epoch + 1}), on the batch of rows [{shown}]; "
            f"first bad tensor: {_first_bad(self.loss, batch)}{kept}. A lower lr, clip=1.0 or a warm-up may help"
        )

    # --- checkpoints --------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        return dict(self.loss.state_dict())

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        try:
            self.loss.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"the checkpoint holds another pair or objective: {error}") from error

    def _save(self, best: bool = False) -> None:
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
                "seconds": self.seconds,
                "epoch_seconds": self.epoch_seconds,
                "optimizer": numbers,
                "best": None if self.best_epoch is None else self.best,
                "best_epoch": self.best_epoch,
                "names": list(self.loss.names),
                "settings": asdict(self.settings),
                "data": self.job.data.description,
                "size": len(self.job.data),
                "history": self.history,
            },
        )
        self.checkpoints.save(checkpoint, self.step, best)

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
        _refuse_other(saved.state, self.settings, self.job.data)
        self._load_weights(saved.weights)
        load_optimizer(self.optimizer, saved.training, saved.state["optimizer"])
        load_random_state(
            {
                name.removesuffix(f".{self.rank}"): t
                for name, t in saved.training.items()
                if name.endswith(f".{self.rank}")
            },
            self.device,
        )
        state = saved.state
        self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
        self.seconds, self.epoch_seconds = state["seconds"], state["epoch_seconds"]
        self.history = [dict(row) for row in state["history"]]
        self.loss.names = tuple(state["names"])
        self.sums = saved.training["sums"].to(self.device) if "sums" in saved.training else None
        self.best_epoch = state["best_epoch"]
        self.best = -math.inf if state["best"] is None else state["best"]
        best = self.checkpoints.best()
        if self.settings.patience is not None and best is not None:
            self.best_weights = self.checkpoints.load(best).weights


def _refuse_other(state: dict[str, Any], settings: Settings, data: Data) -> None:
    """Raise `RunError` unless a checkpoint is of this very run."""
    now = asdict(settings)
    for name, then in state["settings"].items():
        if name in ("epochs", "patience"):
            continue
        if now.get(name) != then:
            raise RunError(
                f"resume: the run was started with {name}={then!r} and is asked to go on with {name}={now.get(name)!r}; "
                "give the same, or start a new run"
            )
    if settings.lr_schedule != "constant" and state["settings"]["epochs"] != settings.epochs:
        raise RunError(
            f"resume: lr_schedule={settings.lr_schedule!r} was planned for {state['settings']['epochs']} epochs, not "
            f"{settings.epochs}; give the same, or start a new run"
        )
    if (state["data"], state["size"]) != (data.description, len(data)):
        raise RunError(
            f"resume: the run was trained on {state['data']!r} ({state['size']} data), not on {data.description!r} "
            f"({len(data)})"
        )


def _first_bad(loss: _Loss, batch: Batch) -> str:
    """The first tensor that is not finite, in the order in which the pair makes them."""
    for name, tensor in batch._asdict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"batch.{name}"
    for name, parameter in loss.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name}"
    with torch.no_grad(), particle_plate(1):
        try:
            guide_trace = poutine.trace(loss.guide).get_trace(batch)
            model_trace = poutine.trace(poutine.replay(loss.model, trace=guide_trace)).get_trace(batch)
        except ValueError as error:
            return f"a parameter of a distribution ({error})"
        for side, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                    continue
                if not bool(torch.isfinite(site["value"]).all()):
                    return f"the value of {side} site {name!r}"
                if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                    return f"log-probability of {side} site {name!r}"
    return "none when the batch is run again with other noise: this step's draw was the cause"


@contextmanager
def _sigint(trainer: _Trainer) -> Iterator[None]:
    """Ctrl-C ends the run after the step under way, with a checkpoint; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(signum: int, frame: Any) -> None:
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
