"""Checkpoints without pickle: tensors in safetensors, the rest in JSON, written so that a crash leaves the last one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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
    "write_json",
]

FORMAT = 1
"""The version of run folders and checkpoints; another version is refused."""

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"


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
    says which is the last one is replaced after that. A process killed at any moment leaves the one before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint, step: int, best: bool = False) -> Path:
        """Write a checkpoint; raises `OSError` where it cannot be written, with nothing changed on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{step:09d}"
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            temporary.mkdir()
            # pickle's place is taken by two formats that cannot run code
            _save_tensors(checkpoint.weights, temporary / WEIGHTS)
            _save_tensors(checkpoint.training, temporary / TRAINING)
            write_json(temporary / STATE, {"format": FORMAT, **checkpoint.state})
            target = self.folder / name
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            _sync(self.folder)
            write_json(self.folder / "latest.json", {"checkpoint": name})
            if best:
                write_json(self.folder / "best.json", {"checkpoint": name})
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return target

    def latest(self) -> Path:
        """The last complete checkpoint; raises `RunError` where there is none."""
        return self._named("latest.json") or self._newest()

    def best(self) -> Path | None:
        """The checkpoint with the best validation, if one was marked."""
        return self._named("best.json")

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

    def _named(self, file: str) -> Path | None:
        if not (self.folder / file).exists():
            return None
        path = self.folder / str(read_json(self.folder / file).get("checkpoint"))
        return path if path.parent == self.folder and (path / STATE).exists() else None

    def _newest(self) -> Path:
        complete = sorted(p for p in self.folder.glob("step-*") if (p / STATE).exists())
        if not complete:
            raise RunError(f"{self.folder} holds no complete checkpoint: the run stopped before its first one")
        return complete[-1]

    def _prune(self) -> None:
        kept = {self.best(), *sorted(self.folder.glob("step-*"))[-2:]}
        for path in self.folder.glob("step-*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors; raises `RunError` where it is none."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the checkpoint is not complete") from error
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} is not a whole safetensors file ({error}); other formats, pickles above all, are not opened"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; raises `RunError` where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing") from error
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds {type(value).__name__} where an object belongs")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object so that a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # copies: safetensors refuses tensors that share memory, as tied weights do
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_state(optimizer: Optimizer, prefix: str = "optimizer") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A torch optimizer's state as tensors and as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    groups = []
    for k, group in enumerate(state["param_groups"]):
        plain = {}
        for name, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.group.{k}.{name}"] = value
            else:
                plain[name] = value
        groups.append(plain)
    return tensors, {"state": numbers, "groups": groups}


def load_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], prefix: str = "optimizer"
) -> None:
    """Put back what `optimizer_state` took; raises `RunError` for another optimizer's state."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in numbers["state"].items()}
    groups = [dict(group) for group in numbers["groups"]]
    for name, tensor in tensors.items():
        head, *rest = name.split(".")
        if head != prefix:
            continue
        if rest[0] == "group":
            groups[int(rest[1])][rest[2]] = tensor
        else:
            state.setdefault(int(rest[0]), {})[rest[1]] = tensor
    for group in groups:
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise RunError(f"the checkpoint's optimizer is another one than {type(optimizer).__name__}: {error}") from error


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
