"""The folder of a comparison: what may be replaced, what can be gone on with, and how it appears at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoints, read_json
from .errors import InputError, RunError
from .folder import CHECKPOINTS, METRICS, RUN, TENSORBOARD, read_run

__all__ = ["KIND", "RESULTS", "Earlier", "check_target", "earlier_runs", "staged"]

KIND = "comparison"
RESULTS = "results.json"

Earlier = dict[tuple[str, int], tuple[Path, dict[str, Any]]]
"""Folder and run.json of earlier runs by guide and seed."""


@contextmanager
def staged(target: Path | None) -> Iterator[Path | None]:
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
        for left in _left_over(target):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def check_target(target: Path, overwrite: bool, resume: bool) -> None:
    """Raise `InputError` unless a comparison may be written to `target`."""
    if overwrite and resume:
        raise InputError("resume=True goes on with a comparison and overwrite=True replaces it; give one of them")
    if target.exists() and not target.is_dir():
        raise InputError(f"out={str(target)!r} is a file; give a folder")
    # of the processes of this folder that were killed, not of a comparison that has ended
    if not resume and not overwrite and (left := [run for run, _ in _runs_in(*_left_over(target)).values()]):
        raise InputError(
            f"out={str(target)!r}: a comparison into it was killed, and has left {len(left)} "
            f"run{'s' if len(left) > 1 else ''} in {str(left[0].parent)!r}; go on with it by resume=True, or begin "
            "anew by overwrite=True (--resume, --overwrite)"
        )
    if resume and not earlier_runs(target):
        raise InputError(f"out={str(target)!r} holds no run of a comparison to go on with; leave resume out")
    if not target.exists() or not any(target.iterdir()):
        return
    if _earlier_files(target) is None and not (resume and not (target / RESULTS).exists()):
        raise InputError(f"out={str(target)!r} holds files that are no comparison's; give another folder")
    if not overwrite and not resume:
        raise InputError(
            f"out={str(target)!r} holds an earlier comparison; go on with it by resume=True, replace it by "
            "overwrite=True (--resume, --overwrite), or give another folder"
        )


def earlier_runs(target: Path) -> Earlier:
    """The runs that an earlier comparison has left: one that ended, was interrupted, or whose process was killed."""
    return _runs_in(*_left_over(target), target)


def _runs_in(*folders: Path) -> Earlier:
    found: Earlier = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*/{RUN}")):
            try:
                record = read_run(path.parent)
            except RunError:
                continue
            trial = record.get("trial")
            if isinstance(trial, dict) and Checkpoints(path.parent / CHECKPOINTS).any():
                found[str(trial.get("guide")), int(trial.get("seed", 0))] = (path.parent, record)
    return found


def _left_over(target: Path) -> list[Path]:
    """The folders of processes that were killed while they compared."""
    return [path for path in sorted(target.parent.glob(f".{target.name}.*")) if path.is_dir() and _is_dead(path)]


def _is_dead(folder: Path) -> bool:
    pid = folder.name.rpartition(".")[2]
    if os.name != "posix" or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


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
