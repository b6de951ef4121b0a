"""Where training runs: in this process, or in several at once, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
import pickle  # for its error alone, which multiprocessing raises
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.spawn import ProcessException

from .checkpoint import read_json, read_tensors, seed_generators, write_json, write_tensors
from .compiled import CompileReport
from .errors import InputError, NonFiniteLossError, RunError
from .isolation import cuda_in
from .loader import mix
from .trainer import Job, Outcome, Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["launch"]

_ERRORS: dict[str, type[Exception]] = {
    "RunError": RunError,
    "InputError": InputError,
    "NonFiniteLossError": NonFiniteLossError,
    "OSError": OSError,
}


def launch(job: Job, device: torch.device) -> Outcome:
    """Do a job on `device`, or on `job.settings.devices` devices of its kind by as many processes; afterwards the
    weights of the modules are the trained ones, and the random states of this process what they were."""
    with torch.random.fork_rng(devices=cuda_in(device)):
        if job.settings.devices > 1:
            return _launch_several(job, device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            seed_generators(_noise_seed(job, 0), device)
            flag = _Flag()
            with _sigint(flag):
                return Trainer(None, device, job, flag).run()


def _launch_several(job: Job, device: torch.device) -> Outcome:
    # imported here: one process, which has nothing to exchange, is done sooner than this
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its banner would stand in the middle of ours
    count = job.settings.devices
    strategy = DDPStrategy(start_method="spawn", static_graph=True)
    fabric = Fabric(accelerator=device.type, devices=count, strategy=strategy)
    stop = torch.multiprocessing.get_context("spawn").Event()
    with tempfile.TemporaryDirectory(prefix="ppl_vae-") as answers:
        # what is pickled is sent to processes of this one's own making
        work = partial(_remote, job=replace(job, progress=bool(job.progress)), stop=stop, answers=Path(answers))
        try:
            with _sigint(stop):
                fabric.launch(work)
        except ProcessException as error:
            raise _told(Path(answers), count, error) from error
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"devices={count} starts other processes, and what they are to do cannot be sent to them ({error}); "
                "classes and functions, callbacks too, must be defined at the top of a module"
            ) from error
        weights = read_tensors(Path(answers) / "weights")
        said = read_json(Path(answers) / "outcome")
        outcome = Outcome(**{**said, "compiled": CompileReport(**said["compiled"])})
    for prefix, module in (("model.", job.model), ("guide.", job.guide), ("objective.", job.objective)):
        part = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        module.load_state_dict(part)
    return outcome


def _remote(fabric: Fabric, job: Job, stop: Any, answers: Path) -> None:
    """A process's work. What it has to say it writes into a folder: a queue would block on long answers."""
    _leave_sigint_to(os.getppid())
    # tensors arrive in memory shared by all processes: each trains a copy
    for module in (job.model, job.guide, job.objective):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    seed_generators(_noise_seed(job, fabric.global_rank), fabric.device)
    try:
        trainer = Trainer(fabric, fabric.device, job, stop)
        outcome = trainer.run()
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
        said = {"kind": kind, "message": str(error), "errno": getattr(error, "errno", None)}
        write_json(answers / f"error-{fabric.global_rank}", said | {"text": getattr(error, "strerror", None)})
        raise
    if fabric.global_rank == 0:
        write_tensors(answers / "weights", trainer.weights())
        write_json(answers / "outcome", asdict(outcome))


def _told(answers: Path, count: int, error: Exception) -> Exception:
    """The error that a process wrote down before it ended, as it would have been raised here."""
    for path in sorted(answers.glob("error-*")):
        said = read_json(path)
        if said["kind"] == "OSError" and said["errno"] is not None:
            return OSError(said["errno"], said["text"])
        return _ERRORS[said["kind"]](said["message"])
    return RuntimeError(
        f"devices={count}: a process ended without an answer; a script that trains on several devices begins its work "
        f'under `if __name__ == "__main__":`. {error}'
    )


def _noise_seed(job: Job, rank: int) -> int:
    # noise of each process is its own, and none of it is the noise of another seed's run
    return mix(job.settings.seed, 2 * rank + 1)


class _Flag:
    def __init__(self) -> None:
        self.value = False

    def set(self) -> None:
        self.value = True

    def is_set(self) -> bool:
        return self.value


@contextmanager
def _sigint(flag: Any) -> Iterator[None]:
    """Ctrl-C ends the run after the step under way, with a checkpoint; a second one ends it at once."""
    before = signal.getsignal(signal.SIGINT)
    # signals are the main thread's; None is a handler that Python did not install and cannot put back
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    asked = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_sigint_to(parent: int) -> None:
    """Ctrl-C reaches all processes of a terminal; it is the parent's to tell them. It is also what a parent's death
    sends."""

    def handle(signum: int, frame: Any) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
