"""Run folders: what `fit` wrote, opened again in another process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .build import DataSpec, PairConfig, build, build_objective
from .checkpoint import Checkpoint, Checkpoints
from .core import Guide, LatentModel
from .data import DataSet, DataSplits, data_sets, load
from .errors import InputError, RunError
from .folder import CHECKPOINTS, RUN, check_folder, read_run, start_run
from .objectives import Objective
from .options import parse

__all__ = ["Run", "load_weights", "model_weights", "open_run", "run_config", "save_with_prior"]


@dataclass
class Run:
    """A run folder, its pair rebuilt and its weights loaded.

    Args:
        path: the folder.
        config: run.json.
        pair: what the pair is made of.
        spec: what it was built for.
        model, guide, objective: in evaluation mode, on the CPU.
        history: a row for each epoch, see `FitResult`.
        state: the checkpoint's: epoch, step, seconds, best_epoch, ...
        checkpoint: which of the run's checkpoints was read.
    """

    path: Path
    config: dict[str, Any]
    pair: PairConfig
    spec: DataSpec
    model: LatentModel
    guide: Guide
    objective: Objective
    history: list[dict[str, float]]
    state: dict[str, Any]
    checkpoint: Path

    @property
    def seconds(self) -> float:
        """Training time in seconds."""
        return float(self.state["seconds"])

    def data(self, data_dir: str | os.PathLike[str] | None = None) -> DataSplits:
        """The data of the run, loaded anew with its options.

        Args:
            data_dir: where torchvision's sets are; None: where they were.

        Raises:
            InputError: the data are not there any more, or have another shape.
        """
        options = dict(self.config["data_options"])
        if data_dir is not None:
            options["data_dir"] = os.fspath(data_dir)
        try:
            splits = load(options.pop("data"), **options)
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.path / RUN} does not say how its data are loaded: {error!r}") from error
        found = DataSpec.of(splits.train)
        for name in ("shape", "levels", "units", "class_names", "context"):
            if getattr(found, name) != getattr(self.spec, name):
                raise InputError(
                    f"the data {splits.train.description!r} are not those of {self.path}: their {name} is "
                    f"{getattr(found, name)!r}, and was {getattr(self.spec, name)!r}"
                )
        return splits


def run_config(
    pair: PairConfig,
    data: DataSet,
    data_options: Mapping[str, Any],
    objective: str,
    objective_options: Mapping[str, Any],
) -> dict[str, Any]:
    """What `fit(config=...)` must be given so that `open_run` can rebuild the pair.

    Args:
        pair: what it is made of.
        data: training data.
        data_options: the arguments of `ppl_vae.data.load`, its first one under "data".
        objective, objective_options: see `build_objective`.
    """
    options = dict(data_options)
    # a run is opened from other folders than the one it was trained in
    if "data" in options and options["data"] not in data_sets:
        options["data"] = os.path.abspath(os.path.expanduser(options["data"]))
    if "data_dir" in options:
        options["data_dir"] = os.path.abspath(os.path.expanduser(options["data_dir"]))
    return {
        "pair": pair.to_json(),
        "spec": DataSpec.of(data).to_json(),
        "data_options": options,
        "objective_name": objective,
        "objective_options": {k: v for k, v in objective_options.items() if v is not None},
    }


def open_run(path: str | os.PathLike[str], best: bool = True) -> Run:
    """Open a run folder that the command line, or `fit` with `run_config`, has written.

    Args:
        path: the folder.
        best: read the checkpoint with the best validation if early stopping was asked for; otherwise the last one.

    Raises:
        RunError: not a run folder, truncated, of another version, or trained from modules of a person's own (build
            them as before and call `load_weights`).
    """
    folder = Path(path)
    config = read_run(folder)
    missing = [key for key in ("pair", "spec", "data_options", "objective_name") if key not in config]
    if missing:
        raise RunError(
            f"{folder} was trained from modules made in a program ({config.get('model')}, {config.get('guide')}): "
            "make them there and call ppl_vae.load_weights(folder, model, guide)"
        )
    try:
        pair, spec = PairConfig.from_json(config["pair"]), DataSpec.from_json(config["spec"])
        model, guide = build(pair, spec)
        objective = build_objective(
            config["objective_name"], model, spec.size or None, **config.get("objective_options", {})
        )
        patience = config.get("training", {}).get("patience")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RunError(f"{folder / RUN} describes a pair that cannot be built: {error}") from error
    state, checkpoint = _load(folder, {"model": model, "guide": guide, "objective": objective}, best and bool(patience))
    return Run(
        path=folder,
        config=config,
        pair=pair,
        spec=spec,
        model=model,
        guide=guide,
        objective=objective,
        history=[dict(row) for row in state["history"]],
        state=state,
        checkpoint=checkpoint,
    )


def save_with_prior(
    run: Run, model: LatentModel, prior: str, out: str | os.PathLike[str], overwrite: bool = False
) -> Path:
    """Write a run folder that is another run's but for the prior of its model.

    Args:
        run: the run.
        model: its model with the prior.
        prior: the prior's name with its options.
        out: the folder.
        overwrite: replace an earlier run there.

    Raises:
        InputError: there is something else, or an earlier run.
        OSError: it cannot be written.
    """
    folder = Path(out)
    check_folder(folder, False, overwrite, "out")
    if folder.resolve() == run.path.resolve():
        raise InputError(f"out={str(folder)!r} is the run itself; give another folder")
    name, options = parse("prior", prior)
    pair = replace(run.pair, prior=name, prior_options=options)
    # without its recipe, from which training would go on with another model
    config = {key: value for key, value in run.config.items() if key not in ("format", "recipe")}
    start_run(folder, {**config, "pair": pair.to_json(), "prior_fitted_to": str(run.path.resolve())}, resume=False)
    parts = {"model": model, "guide": run.guide, "objective": run.objective}
    weights = {f"{prefix}.{key}": t for prefix, part in parts.items() for key, t in part.state_dict().items()}
    kept = {key: run.state[key] for key in ("epoch", "step", "seconds", "history")}
    Checkpoints(folder / CHECKPOINTS).save(Checkpoint(weights, {}, kept), int(run.state["step"]))
    return folder


def load_weights(
    path: str | os.PathLike[str], model: nn.Module, guide: nn.Module, best: bool = False
) -> dict[str, Any]:
    """Load a run's weights into modules made as they were when it was trained; returns the checkpoint's state.

    Raises:
        RunError: not a run folder, truncated, of another version, or of modules with other parameters.
    """
    folder = Path(path)
    read_run(folder)
    return _load(folder, {"model": model, "guide": guide}, best)[0]


def model_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a run's model alone: of its best epoch if early stopping was asked for, otherwise of its last.

    Raises:
        RunError: not a run folder, truncated, of another version.
    """
    folder = Path(path)
    patience = read_run(folder).get("training", {}).get("patience")
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    saved = checkpoints.load((checkpoints.best() if patience else None) or checkpoints.latest())
    prefix = "model."
    return {name.removeprefix(prefix): t for name, t in saved.weights.items() if name.startswith(prefix)}


def _load(folder: Path, parts: Mapping[str, nn.Module], best: bool) -> tuple[dict[str, Any], Path]:
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    path = (checkpoints.best() if best else None) or checkpoints.latest()
    saved = checkpoints.load(path)
    if lacking := [name for name in ("epoch", "step", "seconds", "history") if name not in saved.state]:
        raise RunError(f"{path} is not whole: its state lacks {', '.join(lacking)}")
    for prefix, module in parts.items():
        weights = {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in saved.weights.items()
            if name.startswith(f"{prefix}.")
        }
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"the weights in {path} are of another {prefix}: {error}") from error
        module.eval()
    return saved.state, path
