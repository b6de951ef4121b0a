"""A training run in one value: data, pair, objective and schedule, with defaults that follow from the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.progress import Progress

from .build import PairConfig, build, build_objective, units_for
from .core import Guide, LatentModel
from .data import Binarize, DataSet, DataSplits, Units, data_sets, load, split
from .data.load import TRAIN_SEED
from .errors import InputError, choose
from .fit import Callback, FitResult, fit, resolve_device
from .likelihoods import likelihoods
from .objectives import Objective
from .runs import run_config
from .threads import few_threads

__all__ = ["Ingredients", "Recipe", "load_plain", "prepare"]

BATCH_SIZE = 128
EPOCHS = 200
DATA_SEEN = 3_000_000
"""Epochs are fewer where there are many data: so many are seen in all, in 10 epochs at least."""

VALIDATION_SHARE = 0.1
CHECKPOINTS = 20


@dataclass(frozen=True)
class Recipe:
    """What decides a run's numbers, and where it is computed. All of it is JSON, kept in run.json. None stands for:
    decided from the data.

    Args:
        data: a name or a path, see `ppl_vae.data.load`.
        model, guide, objective: names, see `ppl-vae list`.
        likelihood: None: bernoulli for binarized data, discretized-logistic for levels, continuous-bernoulli for images
            in [0, 1], gaussian-learned for tables.
        binarize: None: "dynamic" for grey images with levels under a Bernoulli; otherwise "none".
        network, latent, hidden: see `PairConfig`.
        epochs: None: 200, fewer for more than 15,000 data.
        batch_size: None: 128, or all the data where these are fewer.
        lr, lr_schedule, schedule, guide_steps, warmup, clip, precision, seed, device, devices: see `fit`.
        patience: with it a tenth of the training data is held out, and training stops when they get no better.
        compile: see `fit`; None: where it pays.
        beta, alpha, particles: of the objective; None: its own default.
        data_dir, download: see `ppl_vae.data.load`.
    """

    data: str = "digits"
    model: str = "vae"
    guide: str = "mean-field"
    objective: str = "elbo"
    likelihood: str | None = None
    binarize: Binarize | None = None
    network: Literal["mlp", "conv", "residual"] = "mlp"
    latent: int = 8
    hidden: tuple[int, ...] = (256, 256)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 5e-3
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    beta: float | None = None
    alpha: float | None = None
    particles: int | None = None
    schedule: Literal["joint", "alternating"] = "joint"
    guide_steps: int = 1
    warmup: int = 0
    clip: float | None = None
    patience: int | None = None
    precision: Literal["32", "bf16"] = "32"
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    compile: bool | None = None
    data_dir: str = "data"
    download: bool = True

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises `InputError` for a name that is no setting."""
        return cls().replace(**values)

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe but for `changes`; raises `InputError` for a name that is no setting."""
        for name in changes:
            if name not in self.names():
                raise choose("setting", name, self.names())
        if "hidden" in changes:
            changes["hidden"] = tuple(changes["hidden"])
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @property
    def title(self) -> str:
        """Data, model and guide, as in the name of a run's folder."""
        return "-".join((self.data if self.data in data_sets else Path(self.data).stem, self.model, self.guide))


@dataclass
class Ingredients:
    """A recipe with everything decided, its data, and its pair before training.

    Args:
        recipe: without None where the data decide.
        pair: what model and guide are made of.
        data: training and test part; the training part is without what `validation` holds.
        validation: what early stopping watches, None without `patience`.
        model, guide, objective: modules.
        data_options: the arguments of `load` that give the same data again.
    """

    recipe: Recipe
    pair: PairConfig
    data: DataSplits
    validation: DataSet | None
    model: LatentModel
    guide: Guide
    objective: Objective
    data_options: dict[str, Any]

    @contextmanager
    def threads(self) -> Iterator[None]:
        """A block with one CPU thread if the pair is small, see `few_threads`."""
        with few_threads(self.model, self.guide):
            yield

    def train(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        callbacks: Sequence[Callback] = (),
        progress: bool | Progress = True,
        description: str | None = None,
    ) -> FitResult:
        """`fit` with the recipe's settings, and some twenty checkpoints on the way; errors are its."""
        r = self.recipe
        assert r.epochs is not None
        assert r.batch_size is not None
        config = run_config(self.pair, self.data.train, self.data_options, r.objective, _objective_options(r))
        return fit(
            self.model,
            self.guide,
            self.data.train,
            self.objective,
            epochs=r.epochs,
            batch_size=r.batch_size,
            lr=r.lr,
            device=r.device,
            precision=r.precision,
            seed=r.seed,
            run_dir=run_dir,
            resume=resume,
            overwrite=overwrite,
            schedule=r.schedule,
            guide_steps=r.guide_steps,
            validation=self.validation,
            patience=r.patience,
            warmup=r.warmup,
            clip=r.clip,
            lr_schedule=r.lr_schedule,
            devices=r.devices,
            compile="auto" if r.compile is None else r.compile,
            checkpoint_every=max(1, r.epochs // CHECKPOINTS),
            callbacks=callbacks,
            progress=progress,
            description=description or r.guide,
            config={**config, "recipe": r.to_json()},
        )


def prepare(recipe: Recipe, loaded: DataSplits | None = None) -> Ingredients:
    """Load the data, decide what the recipe leaves open, and build the pair from the recipe's seed.

    Pairs of one seed that differ in their guide start from the same encoder and the same decoder. The global random
    state is left as it was.

    Args:
        recipe: the recipe.
        loaded: what `load_plain` gave for a recipe of the same data, so that several pairs share one reading.

    Raises:
        InputError: names that are not known, values that cannot be used, parts that do not fit the data.
    """
    if not isinstance(recipe.seed, int) or isinstance(recipe.seed, bool) or not 0 <= recipe.seed < 2**32:
        raise InputError(f"seed={recipe.seed!r} must be a whole number, 0 to 2**32 - 1")
    # names and numbers are looked at before data are read, which may take a download
    pair = PairConfig(
        model=recipe.model,
        guide=recipe.guide,
        likelihood=recipe.likelihood or "bernoulli",
        network=recipe.network,
        latent=recipe.latent,
        hidden=recipe.hidden,
    )
    objective = build_objective(recipe.objective, **_objective_options(recipe))
    resolve_device(recipe.device)
    recipe = _absolute(recipe)
    plain = load_plain(recipe) if loaded is None else loaded
    likelihood, binarize = _decide(recipe, plain.train)
    pair = dataclasses.replace(pair, likelihood=likelihood)
    units = _units(likelihood, plain.train) if binarize == "none" else None
    data = DataSplits(
        plain.train.with_options(binarize=binarize, units=units, seed=TRAIN_SEED),
        plain.test.with_options(binarize="fixed" if binarize == "dynamic" else binarize, units=units),
    )
    validation = None
    if recipe.patience is not None:
        train, validation = split(data.train, VALIDATION_SHARE, recipe.seed)
        data = DataSplits(train, data.test)
    size = len(data.train)
    recipe = recipe.replace(
        likelihood=likelihood,
        binarize=binarize,
        epochs=min(EPOCHS, max(10, DATA_SEEN // size)) if recipe.epochs is None else recipe.epochs,
        batch_size=min(BATCH_SIZE, size) if recipe.batch_size is None else recipe.batch_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model, guide = build(pair, data.train)
    options = {
        "data": recipe.data,
        "binarize": binarize,
        "units": units,
        "data_dir": recipe.data_dir,
        "download": recipe.download,
    }
    return Ingredients(recipe, pair, data, validation, model, guide, objective, options)


def load_plain(recipe: Recipe) -> DataSplits:
    """The recipe's data as they are, neither binarized nor in a likelihood's units."""
    return load(recipe.data, data_dir=recipe.data_dir, download=recipe.download)


def _objective_options(recipe: Recipe) -> dict[str, Any]:
    return {"beta": recipe.beta, "alpha": recipe.alpha, "particles": recipe.particles}


def _absolute(recipe: Recipe) -> Recipe:
    """Paths that mean the same from another folder, for the run that is opened there."""
    data = recipe.data
    if data not in data_sets and Path(data).expanduser().exists():
        data = str(Path(data).expanduser().resolve())
    return recipe.replace(data=data, data_dir=str(Path(recipe.data_dir).expanduser().resolve()))


def _decide(recipe: Recipe, plain: DataSet) -> tuple[str, Binarize]:
    """The likelihood, and what is done with the data for it."""
    if recipe.binarize is not None and recipe.binarize not in get_args(Binarize):
        raise choose("binarize", recipe.binarize, get_args(Binarize))
    wanted = recipe.likelihood
    kind = None if wanted is None else likelihoods.get(wanted).units
    binarize = recipe.binarize
    grey = plain.levels is not None and (len(plain.shape) == 1 or plain.shape[0] == 1)
    if binarize is None:
        # what is binary is left so, and nobody binarizes colours without being asked
        can = plain.levels != 2 and (grey if wanted is None else plain.levels is not None or plain.units == "unit")
        binarize = "dynamic" if can and kind in (None, "binary") else "none"
    if binarize != "none" and kind in ("unit", "counts"):
        raise InputError(
            f"likelihood={wanted!r} does not fit binarize={binarize!r}, which makes the data 0 and 1; use "
            "likelihood='bernoulli', or binarize='none'"
        )
    if binarize != "none" and kind == "real":
        raise InputError(
            f"likelihood={wanted!r} is a density, and binarize={binarize!r} makes the data 0 and 1, where it has no "
            "bound; use likelihood='bernoulli', or binarize='none'"
        )
    if binarize == "none" and kind == "binary" and plain.levels != 2:
        raise InputError(
            f"likelihood={wanted!r} is of 0 and 1, and {plain.name!r} holds {_values(plain)}; "
            + (
                f"use likelihood={_default(plain, binarize)!r}"
                if plain.levels is None and plain.units != "unit"
                else f"use binarize='dynamic', 'fixed' or 'threshold', or likelihood={_default(plain, binarize)!r}"
            )
        )
    return wanted or _default(plain, binarize), binarize


def _default(plain: DataSet, binarize: Binarize) -> str:
    if binarize != "none" or plain.levels == 2:
        return "bernoulli"
    if plain.levels is not None:
        return "discretized-logistic"
    return "continuous-bernoulli" if plain.units == "unit" else "gaussian-learned"


def _values(plain: DataSet) -> str:
    if plain.levels is not None:
        return f"{plain.levels} levels"
    return "numbers in [0, 1]" if plain.units == "unit" else "continuous numbers"


def _units(likelihood: str, plain: DataSet) -> Units:
    if likelihoods.get(likelihood).units == "counts" and plain.levels is not None:
        return "levels"
    return units_for(likelihood, plain)
