"""Checkpoints without pickle: tensors in safetensors, the rest in JSON, written so that a crash leaves the last one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from .errors import RunError

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Checkpoints",
    "load_optimizer",
    "load_random_state",
    "optimizer_state",
    "random_state",
    "read_json",
    "read_tensors",
    "seed_generators",
    "write_json",
    "write_tensors",
    "writing",
]

FORMAT = 1
"""The version of run folders and checkpoints; another version is refused."""

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"
LATEST = "latest.json"


@dataclass
class Checkpoint:
    """Everything a run needs to go on as if it had not stopped.

    Args:
        weights: the tensors of model, guide and objective, under "model.", "guide.", "objective.".
        training: optimizer moments, random states, running sums.
        state: epoch, step and whatever else is JSON.
    """

    weights: dict[str, Tensor]
    training: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run: a folder each, the last two kept, and the best.

    A checkpoint is written beside the others and renamed into its place when all of it is on the disk; the file that
    says which is the last one is replaced after that, in one step, and the last one says which is the best. A process
    killed at any moment leaves the one before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint, step: int, best: bool = False) -> Path:
        """Write a checkpoint, and mark it as the best so far if it is.

        Raises:
            OSError: it cannot be written, as on a full disk; what was there before is untouched.
        """
        earlier = None if best else self.best()
        name = self._free_name(step)
        temporary = self.folder / f".{name}.{os.getpid()}"
        with writing(self.folder / name):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.mkdir()
                # pickle's place is taken by two formats that cannot run code
                write_tensors(temporary / WEIGHTS, checkpoint.weights)
                write_tensors(temporary / TRAINING, checkpoint.training)
                best_name = name if best else None if earlier is None else earlier.name
                _replace_json(temporary / STATE, {"format": FORMAT, **checkpoint.state, "best_checkpoint": best_name})
                _sync(temporary)
                temporary.rename(self.folder / name)
                _sync(self.folder)
                _replace_json(self.folder / LATEST, {"checkpoint": name})
                _sync(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return self.folder / name

    def latest(self) -> Path:
        """The last complete checkpoint; raises `RunError` where there is none."""
        try:
            return self._named(read_json(self.folder / LATEST).get("checkpoint"))
        except RunError as error:
            complete = sorted(p for p in self.folder.glob("step-*") if (p / STATE).is_file())
            if not complete:
                raise RunError(
                    f"{self.folder} holds no complete checkpoint: the run stopped before its first one"
                ) from error
            return complete[-1]

    def any(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        try:
            self.latest()
        except RunError:
            return False
        return True

    def best(self) -> Path | None:
        """The checkpoint with the best validation, if there is one."""
        try:
            return self._named(read_json(self.latest() / STATE).get("best_checkpoint"))
        except RunError:
            return None

    def load(self, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunError: a file is missing, truncated, of another format (pickles are not opened), or of another version.
        """
        state = read_json(path / STATE)
        if state.get("format") != FORMAT:
            raise RunError(
                f"{path} has format {state.get('format')!r} and this version of ppl_vae reads format {FORMAT}"
            )
        return Checkpoint(read_tensors(path / WEIGHTS), read_tensors(path / TRAINING), state)

    def _named(self, name: object) -> Path:
        path = self.folder / str(name)
        # a name that leads elsewhere is none of ours
        if path.parent != self.folder or not path.name.startswith("step-") or not (path / STATE).is_file():
            raise RunError(f"{self.folder} holds no checkpoint {name!r}")
        return path

    def _free_name(self, step: int) -> str:
        # a step is saved twice when a run is stopped right after a checkpoint: the first stays, should this one fail
        names = (f"step-{step:09d}" + (f".{k}" if k else "") for k in range(1000))
        return next(name for name in names if not (self.folder / name).exists())

    def _prune(self) -> None:
        kept = {self.latest(), self.best(), *sorted(self.folder.glob("step-*"))[-2:]}
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".step-*"), *self.folder.glob(".*.json.*")]:
            if path in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in an `OSError` that writing it met: a full disk's says nothing of where it is."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, f"{path} cannot be written: {reason}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors; raises `RunError` where it is none."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the checkpoint is not complete") from error
    # the last two: a header whose names, types or sizes are none
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(
            f"{path} is not a whole safetensors file ({error}); other formats, pickles above all, are not opened"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, and see it on the disk."""
    # copies: safetensors refuses tensors that share memory, as tied weights do
    content = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; raises `RunError` where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds {type(value).__name__} where an object belongs")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object so that a reader sees the old file or the new one, whole; raises `OSError` naming the file."""
    with writing(path):
        _replace_json(path, value)


def _replace_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A torch optimizer's state as tensors and as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    groups = []
    for k, group in enumerate(state["param_groups"]):
        plain = {}
        for name, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.group.{k}.{name}"] = value
            else:
                plain[name] = value
        groups.append(plain)
    return tensors, {"state": numbers, "groups": groups}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` took; raises `RunError` for another optimizer's state."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in numbers["state"].items()}
    # JSON has no tuples: "betas" and the like become lists, "params" was one
    groups = [
        {name: tuple(v) if isinstance(v, list) and name != "params" else v for name, v in group.items()}
        for group in numbers["groups"]
    ]
    for name, tensor in tensors.items():
        head, *rest = name.split(".")
        if head != "optimizer":
            continue
        if rest[0] == "group":
            groups[int(rest[1])][rest[2]] = tensor
        else:
            state.setdefault(int(rest[0]), {})[rest[1]] = tensor
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise RunError(f"the checkpoint's optimizer is another one than {type(optimizer).__name__}: {error}") from error
    for p, slots in optimizer.state.items():
        for name, tensor in slots.items():
            if isinstance(tensor, Tensor) and tensor.shape == p.shape:
                # saved tensors have lost their parameter's layout
                slots[name] = torch.empty_like(p, dtype=tensor.dtype).copy_(tensor)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of `device`, and no other device's, as `torch.manual_seed` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the default generators of the CPU and of `device`."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` took; a checkpoint of another kind of device leaves this device's as it is."""
    torch.set_rng_state(tensors["rng.cpu"].cpu())
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"].cpu(), device)
