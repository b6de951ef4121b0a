"""A run's folder: what training writes into it, and when an earlier run may be replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import FORMAT, Checkpoints, read_json, write_json
from .errors import InputError, RunError

__all__ = ["CHECKPOINTS", "METRICS", "RUN", "TENSORBOARD", "check_folder", "read_run", "start_run"]

RUN = "run.json"
METRICS = "metrics.csv"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"


def check_folder(folder: Path, resume: bool, overwrite: bool, argument: str = "run_dir") -> None:
    """See whether a run can be written to `folder`, the value of `argument`, or gone on with, changing nothing.

    Raises:
        InputError: it is a file, holds an earlier run (without `overwrite`), or files that are no run's.
        RunError: `resume` of a folder that is not a run, is of another version, or has no checkpoint.
    """
    if resume:
        if overwrite:
            raise InputError("resume=True goes on with a run and overwrite=True replaces it; give one of them")
        read_run(folder)
        Checkpoints(folder / CHECKPOINTS).latest()
        return
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{argument}={str(folder)!r} is a link to nothing; give a folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{argument}={str(folder)!r} is a file; give a folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / RUN).is_file():
            raise InputError(f"{argument}={str(folder)!r} holds files that are no run's; give another folder")
        if not overwrite and not Checkpoints(folder / CHECKPOINTS).any():
            raise InputError(
                f"{argument}={str(folder)!r} holds a run that stopped before its first checkpoint; replace it by "
                "overwrite=True (--overwrite), or give another folder"
            )
        if not overwrite:
            raise InputError(
                f"{argument}={str(folder)!r} holds an earlier run; go on with it by resume=True, replace it by "
                "overwrite=True (--resume, --overwrite), or give another folder"
            )


def start_run(folder: Path, record: Mapping[str, Any], resume: bool) -> None:
    """Make the folder, remove what an earlier run has written there and nothing else, and write run.json.

    A run that goes on keeps everything; the training settings in run.json are replaced, and the recipe that they came
    from, since it may have been given more epochs.
    """
    if resume:
        renewed = {name: record[name] for name in ("training", "recipe") if name in record}
        write_json(folder / RUN, {**read_run(folder), **renewed})
        return
    folder.mkdir(parents=True, exist_ok=True)
    # run.json last: until it is replaced the folder stays a run's, which overwrite=True may take
    for name in (CHECKPOINTS, TENSORBOARD):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    (folder / METRICS).unlink(missing_ok=True)
    write_json(folder / RUN, {"format": FORMAT, **record})


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """run.json of a run folder.

    Raises:
        RunError: not a run folder, cut short, or of another version.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise RunError(f"{str(folder)!r} is not a run folder: it has no {RUN}; give a folder that training has written")
    config = read_json(path)
    if config.get("format") != FORMAT:
        versions = config.get("versions")
        wrote = versions.get("ppl_vae") if isinstance(versions, dict) else None
        raise RunError(
            f"{str(folder)!r} has format {config.get('format')!r} and this version of ppl_vae reads format {FORMAT}: "
            f"train it anew, or open it with the version that wrote it{f', {wrote}' if wrote else ''}"
        )
    return config
