"""A training run in one value: data, pair, objective and schedule, with defaults that follow from the data."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.progress import Progress
from torch import Tensor, nn

from .build import (
    PLAIN_PRIOR,
    PairConfig,
    build_encoder,
    build_guide,
    build_model,
    build_objective,
    check_has_decoder,
    check_objective_options,
    start,
    units_for,
)
from .data import Binarize, DataSet, DataSplits, Units, data_sets, load, split
from .data.load import TRAIN_SEED
from .errors import InputError, RunError, choose
from .fit import Callback, FitResult, fit, resolve_device
from .folder import RUN, read_run
from .guides import guides
from .labels import class_count
from .likelihoods import likelihoods
from .masks import random_mask
from .models import models
from .networks import Condition
from .objectives import Objective
from .options import parse
from .priors import bind, prior_of
from .renewal import renewed
from .runs import model_weights, run_config
from .threads import few_threads

__all__ = ["Given", "Ingredients", "Recipe", "absolute", "as_in_run", "load_plain", "prepare"]

BATCH_SIZE = 128
EPOCHS = 200
DATA_SEEN = 3_000_000
"""Epochs are fewer where there are many data: so many are seen in all, in 10 epochs at least."""

USUAL_GUIDE = "mean-field"
VALIDATION_SHARE = 0.1
CHECKPOINTS = 20


@dataclass(frozen=True)
class Recipe:
    """What decides a run's numbers, and where it is computed. All of it is JSON, kept in run.json. None stands for:
    decided from the data.

    Args:
        data: a name or a path, see `ppl_vae.data.load`.
        labels: of the training data so many keep their label, as many of each class, by the seed; None: all do.
        model, guide, prior, objective: names, see `ppl-vae list`, with options after colons: "low-rank:rank=3".
            The guide None: the one that the model is made for (`guided_by`), mean-field for most. The objective None:
            elbo; semi-supervised for a model that learns from labelled and unlabelled data; structured-elbo for the
            structured autoencoder, vq for those with a codebook.
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
        masks: what is hidden from the encoder, by name: "rectangles:share=0.5"; the likelihood is of all of x, see
            `ppl_vae.masks`. None: nothing.
        model_from: a run whose model is taken over, with its data and sizes; the guide is new.
        freeze_model: train the guide alone, and leave the model that was taken over as it is.
        data_dir, download: see `ppl_vae.data.load`.
    """

    data: str = "digits"
    labels: int | None = None
    model: str = "vae"
    guide: str | None = None
    objective: str | None = None
    prior: str = PLAIN_PRIOR
    likelihood: str | None = None
    binarize: Binarize | None = None
    network: Literal["mlp", "conv", "residual", "partial"] = "mlp"
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
    masks: str | None = None
    model_from: str | None = None
    freeze_model: bool = False
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
        """Data, model, guide and what else sets the run apart, as in the name of its folder."""
        guide = _usual_guide(self) if self.guide is None else self.guide
        words = [self.data if self.data in data_sets else Path(self.data).stem, self.model, guide]
        words += [] if self.prior == PLAIN_PRIOR else [self.prior]
        words += [] if self.masks is None else [self.masks]
        return "-".join(words).replace(":", "-")


@dataclass(frozen=True, eq=False)
class Given:
    """What a person hands over in place of a recipe's names.

    Args:
        model: makes the model; called with the training data if it has an argument without a default.
        guide: makes the guide: a class, or a function of the model; see `build_guide`.
        data: training and test data, in the units that the model wants.
        weights: of a model that is given them.
        hold: whether it then stays as it is, and is not trained.
    """

    model: Callable[..., nn.Module] | None = None
    guide: Callable[..., nn.Module] | None = None
    data: DataSplits | None = None
    weights: Mapping[str, Tensor] | None = None
    hold: bool = True


@dataclass
class Ingredients:
    """A recipe with everything decided, its data, and its pair before training.

    Args:
        recipe: without None where the data decide.
        pair: what model and guide are made of; None where one of them is a person's own.
        data: training and test part; the training part is without what `validation` holds.
        validation: what early stopping watches, None without `patience`.
        model, guide, objective: modules.
        data_options: the arguments of `load` that give the same data again; none for a person's own.
        config: kept in run.json beside the recipe.
    """

    recipe: Recipe
    pair: PairConfig | None
    data: DataSplits
    validation: DataSet | None
    model: nn.Module
    guide: nn.Module
    objective: Objective
    data_options: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)

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
        """`fit` with the recipe's settings, and some twenty checkpoints on the way; errors are its. A pair without a
        parameter that trains is returned as it is, and nothing is written."""
        r = self.recipe
        assert r.epochs is not None
        assert r.batch_size is not None
        if not any(p.requires_grad for part in (self.model, self.guide, self.objective) for p in part.parameters()):
            return self._as_it_is()
        name, options = _objective(r)
        config = {} if self.pair is None else run_config(self.pair, self.data.train, self.data_options, name, options)
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
            config={**config, "recipe": r.to_json(), **self.config},
        )

    def held_out(self, data: DataSet, shown: Callable[[int], Mapping[str, Any]] | None = None) -> nn.Module:
        """The trained guide as it is on other data: itself, or for a guide with parameters for each datum one with
        fresh ones, fitted to these data with the model held, see `renewed`.

        Args:
            data: what it is to be evaluated on.
            shown: from a number of epochs to `fit`'s progress, callbacks and description.
        """
        name, options = _objective(self.recipe)
        return renewed(
            self.model,
            self.guide,
            data,
            lambda: build_objective(name, self.model, len(data), **options),
            seed=self.recipe.seed,
            shown=shown,
        )

    def _as_it_is(self) -> FitResult:
        where = resolve_device(self.recipe.device)
        for part in (self.model, self.guide, self.objective):
            part.to(where).eval()
        return FitResult(
            self.model,
            self.guide,
            self.objective,
            history=[],
            epochs=0,
            steps=0,
            seconds=0.0,
            stopped="finished",
            best_epoch=None,
            run_dir=None,
            device=where,
            data=self.data.train.description,
        )


def prepare(recipe: Recipe, loaded: DataSplits | None = None, given: Given | None = None) -> Ingredients:
    """Load the data, decide what the recipe leaves open, and build the pair from the recipe's seed.

    Pairs of one seed that differ in their guide start from the same encoder and the same decoder. The global random
    state is left as it was.

    Args:
        recipe: the recipe.
        loaded: what `load_plain` gave for a recipe of the same data, so that several pairs share one reading.
        given: a person's own model, guide or data.

    Raises:
        InputError: names that are not known, values that cannot be used, parts that do not fit the data.
    """
    given = given or Given()
    if not isinstance(recipe.seed, int) or isinstance(recipe.seed, bool) or not 0 <= recipe.seed < 2**32:
        raise InputError(f"seed={recipe.seed!r} must be a whole number, 0 to 2**32 - 1")
    if recipe.masks is not None:
        random_mask(recipe.masks)
    if recipe.model_from is not None:
        recipe = as_in_run(Path(recipe.model_from).expanduser(), recipe, given.data is not None)
        assert recipe.model_from is not None
        given = dataclasses.replace(given, weights=model_weights(recipe.model_from), hold=recipe.freeze_model)
    elif recipe.freeze_model:
        raise InputError("freeze_model=True holds a model that was trained before: give model_from, its run")
    if recipe.guide is None:
        recipe = recipe.replace(guide=USUAL_GUIDE if given.model is not None else _usual_guide(recipe))
    # names and numbers are looked at before data are read, which may take a download
    pair = _pair(recipe, given)
    if given.model is None:
        check_has_decoder(pair)
    if recipe.objective is None:
        kind = given.model if given.model is not None else models.get(pair.model)
        learns = "semi-supervised" if getattr(kind, "takes_labels", False) else "elbo"
        recipe = recipe.replace(objective=getattr(kind, "trained_by", learns))
    name, options = _objective(recipe)
    check_objective_options(name, **options)
    resolve_device(recipe.device)
    if given.data is None:
        recipe = absolute(recipe)
        plain = load_plain(recipe) if loaded is None else loaded
        likelihood, data = _in_units(plain, *_decide(recipe, plain.train), recipe.masks)
        data_options = {
            "data": recipe.data,
            "binarize": data.train.binarize,
            "units": _units(likelihood, plain.train) if data.train.binarize == "none" else None,
            "data_dir": recipe.data_dir,
            "download": recipe.download,
        }
        if recipe.masks is not None:
            data_options["masks"] = recipe.masks
    else:
        train = given.data.train
        binarize = train.binarize if recipe.binarize is None else recipe.binarize
        likelihood, data_options = recipe.likelihood or _default(train, binarize), {}
        # what a person's own model wants of its data is known to the person alone
        data = _in_units(given.data, None if given.model is not None else likelihood, binarize, recipe.masks)[1]
    pair = dataclasses.replace(pair, likelihood=likelihood)
    validation = None
    if recipe.patience is not None:
        train, validation = split(data.train, VALIDATION_SHARE, recipe.seed)
        data = DataSplits(train, data.test)
    if recipe.labels is not None:
        # a label that is held out would be one more that is known: what is watched is x alone
        data = DataSplits(data.train.keep_labels(recipe.labels, recipe.seed), data.test)
        validation = None if validation is None else validation.hide_labels()
    size = len(data.train)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model, guide = _build(pair, data.train, given, recipe.guide or USUAL_GUIDE, recipe.model_from)
    _check_labels(recipe, model, data.train)
    recipe = recipe.replace(
        likelihood=likelihood if given.model is None else _name_of_likelihood(model),
        binarize=data.train.binarize,
        epochs=min(EPOCHS, max(10, DATA_SEEN // size)) if recipe.epochs is None else recipe.epochs,
        batch_size=min(BATCH_SIZE, size) if recipe.batch_size is None else recipe.batch_size,
    )
    own = given.model is not None or given.guide is not None
    objective = build_objective(name, model, size, data.train, **options)
    return Ingredients(recipe, None if own else pair, data, validation, model, guide, objective, data_options)


def _usual_guide(recipe: Recipe) -> str:
    """The guide that a model is made for; of a model that there is not, and of most, mean-field."""
    name, _ = parse("model", recipe.model)
    return str(getattr(models.get(name), "guided_by", USUAL_GUIDE)) if name in models else USUAL_GUIDE


def _pair(recipe: Recipe, given: Given) -> PairConfig:
    """What the recipe says of a pair; of a person's own part nothing."""
    config: dict[str, Any] = {}
    for kind in ("model", "guide"):
        if getattr(given, kind) is None:
            config[kind], config[f"{kind}_options"] = parse(kind, getattr(recipe, kind))
    if given.model is None:
        config["prior"], config["prior_options"] = parse("prior", recipe.prior)
    elif recipe.prior != PLAIN_PRIOR:
        raise InputError(f"prior={recipe.prior!r} is for a model by name: give your own model its prior yourself")
    return PairConfig(
        likelihood=recipe.likelihood or "bernoulli",
        network=recipe.network,
        latent=recipe.latent,
        hidden=recipe.hidden,
        **config,
    )


def _build(
    pair: PairConfig, train: DataSet, given: Given, name: str, source: str | None = None
) -> tuple[nn.Module, nn.Module]:
    model: nn.Module
    if given.model is None:
        model, encoder = build_model(pair, train)
    else:
        model = _own_model(given.model, train)
        condition = getattr(model, "condition", None)
        encoder = build_encoder(pair, train, condition if isinstance(condition, Condition) else None, model)
    if given.weights is not None:
        if getattr(prior_of(model), "of_guide", False):
            run = source or "RUN"
            raise InputError(
                f"the model that is taken over has prior={pair.prior_label!r}, which is made of its own guide: with "
                "another guide it would be another model; give it a prior of its own first, by `ppl-vae prior "
                f"{run} --prior mixture`, and take over the run that this writes, {run}-mixture"
            )
        try:
            model.load_state_dict(dict(given.weights))
        except RuntimeError as error:
            raise InputError(f"the weights of the model that is held are another model's: {error}") from error
        model.requires_grad_(not given.hold)
    if given.guide is not None:
        guide = build_guide(given.guide, model, encoder, len(train), name=name)
        bind(model, guide)
        return model, guide
    if not hasattr(model, "latents"):
        raise InputError(
            f"guide={pair.guide_label!r} is built from what a model declares in `latents`, and {type(model).__name__} "
            "declares nothing; give a guide of your own, a function of the model"
        )
    part = guides.get(pair.guide)
    guide = build_guide(part, model, encoder, len(train), pair.guide_options, pair.guide)
    bind(model, guide)
    if given.model is None and given.weights is None:
        start(model, guide, train)
    return model, guide


def _name_of_likelihood(model: nn.Module) -> str | None:
    part = getattr(model, "likelihood", None)
    return next((name for name in likelihoods if type(part) is likelihoods.get(name)), None)


def _own_model(factory: Callable[..., nn.Module], train: DataSet) -> nn.Module:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin's
        parameters = {}.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wants = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    model = factory(train) if wants else factory()
    if not isinstance(model, nn.Module):
        raise InputError(f"model makes a {type(model).__name__}; it must make a module, as a ppl_vae.LatentModel")
    return model


def _check_labels(recipe: Recipe, model: nn.Module, train: DataSet) -> None:
    """Raise `InputError` for labels that a model has no use for, or too few or too many of. (`fit` warns of a class
    without.)"""
    if not class_count(model):
        if recipe.labels is not None:
            raise InputError(
                f"labels={recipe.labels} are of models that know classes, and {recipe.model!r} is none; use "
                "model='m2', 'semi-supervised-vae' or 'cvae'"
            )
        return
    known = 0 if train.y is None else int((train.y >= 0).sum())
    if not known:
        raise InputError(
            f"model={recipe.model!r} learns classes from labels, and {train.description!r} has none; label some of the "
            "data, or use model='vae'"
        )
    if recipe.labels is None and known == len(train) and getattr(model, "takes_labels", False):
        raise InputError(
            f"model={recipe.model!r} learns from labelled and unlabelled data, and all {len(train)} of "
            f"{train.description!r} are labelled: keep some, as by labels=100 (--labels 100), or say that all are to "
            f"be used, labels={len(train)}"
        )


def load_plain(recipe: Recipe) -> DataSplits:
    """The recipe's data as they are, neither binarized nor in a likelihood's units."""
    return load(recipe.data, data_dir=recipe.data_dir, download=recipe.download)


def _objective(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Its name and its options."""
    name, options = parse("objective", recipe.objective or "elbo")
    for option in ("beta", "alpha", "particles"):
        if getattr(recipe, option) is not None:
            if option in options:
                raise InputError(f"objective={recipe.objective!r} says {option}, and so does {option}=; say it once")
            options[option] = getattr(recipe, option)
    return name, options


def absolute(recipe: Recipe) -> Recipe:
    """Paths that mean the same from another folder, for the run that is opened there."""
    data = recipe.data
    if data not in data_sets and Path(data).expanduser().exists():
        data = str(Path(data).expanduser().resolve())
    source = recipe.model_from
    return recipe.replace(
        data=data,
        data_dir=str(Path(recipe.data_dir).expanduser().resolve()),
        model_from=None if source is None else str(Path(source).expanduser().resolve()),
    )


def as_in_run(folder: Path, recipe: Recipe, own_data: bool) -> Recipe:
    """The recipe with a run's model and data; raises `InputError` for what it was asked to be otherwise."""
    config = read_run(folder)
    if "pair" not in config:
        raise RunError(
            f"{str(folder)!r} was trained from modules made in a program ({config.get('model')}): give the function "
            "that makes its model, compare(make_model, ..., fix_decoder=...)"
        )
    pair = PairConfig.from_json(config["pair"])
    theirs: dict[str, Any] = {
        "model": pair.model_label,
        "prior": pair.prior_label,
        "likelihood": pair.likelihood,
        "network": pair.network,
        "latent": pair.latent,
        "hidden": pair.hidden,
    }
    if {recipe.network, pair.network} == {"conv", "partial"}:
        del theirs["network"]  # their decoders are the same
    options = dict(config.get("data_options", {}))
    if not own_data:
        if "data" not in options:
            raise RunError(f"{folder / RUN} does not say what its data were: give data=(train, test)")
        theirs |= {name: options[name] for name in ("data", "binarize") if name in options}
    asked, default = absolute(recipe), Recipe()
    for name, value in theirs.items():
        given = getattr(asked, name)
        if given != value and getattr(recipe, name) != getattr(default, name):
            raise InputError(f"{name}={given!r}: the model of {str(folder)!r} has {value!r}; leave it out")
    if not own_data and "data_dir" in options and recipe.data_dir == default.data_dir:
        theirs["data_dir"] = options["data_dir"]
    return recipe.replace(**theirs)


def _in_units(
    plain: DataSplits, likelihood: str | None, binarize: Binarize, masks: str | None = None
) -> tuple[str, DataSplits]:
    """The likelihood, and the data binarized or in its units; in their own for None."""
    units = _units(likelihood, plain.train) if binarize == "none" and likelihood is not None else None
    return likelihood or "", DataSplits(
        plain.train.with_options(binarize=binarize, units=units, masks=masks, seed=TRAIN_SEED),
        plain.test.with_options(
            binarize="fixed" if binarize == "dynamic" else binarize, units=units, masks=masks
        ).fixed(),
    )


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
