"""A model and a guide from names and sizes: what the command line asks for, and what a saved run says of itself."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from .batch import Batch
from .core import Encoder, Guide, LatentModel, LatentSpec
from .data import DataSet
from .errors import InputError, check_count, choose
from .guides import Combined, classified, datum_part, guides
from .guides.classified import gives_class
from .guides.combined import OfBatchAlone
from .labels import class_site
from .likelihoods import Likelihood, likelihoods
from .models import models
from .networks import Condition, decoder, encoder, kinds
from .objectives import Objective, objectives
from .options import check_options, construct, label, options_of
from .priors import Prior, bind, prior_site, priors, replace_prior

__all__ = [
    "PLAIN_PRIOR",
    "DataSpec",
    "PairConfig",
    "build",
    "build_encoder",
    "build_guide",
    "build_model",
    "build_objective",
    "build_prior",
    "check_has_decoder",
    "check_objective_options",
    "options_by_name",
    "start",
    "units_for",
]

T = TypeVar("T")

# Arguments that are given to a part, and are none of its options.
_TO_GUIDE = ("model", "encoder", "size")
_TO_MODEL = ("decoder", "likelihood", "latent", "condition", "classes")
_TO_PRIOR = ("size", "shape", "start", "loc", "scale")
_TO_OBJECTIVE = ("model", "size", "labelled")

_AVERAGED = 10_000
_STARTED = 2_000

PLAIN_PRIOR = "standard-normal"


@dataclass(frozen=True)
class PairConfig:
    """What a pair of model and guide is made of. All of it is JSON.

    Args:
        model, guide, likelihood: names, see `ppl-vae list`.
        network: "mlp", "conv", "residual" or "partial", of encoder and decoder.
        latent: dimensions of z.
        hidden: widths of the hidden layers from x to the features; the decoder has them backwards. Of
            convolutions see `networks.encoder`.
        guide_options, model_options: further arguments of the guide's and the model's constructors.
        prior: the name of p(z), for models that take one.
        prior_options: further arguments of its constructor.

    Raises:
        InputError: an unknown name, a size that is none, an option that a part does not take, or of another type.
    """

    model: str = "vae"
    guide: str = "mean-field"
    likelihood: str = "bernoulli"
    network: Literal["mlp", "conv", "residual", "partial"] = "mlp"
    latent: int = 8
    hidden: tuple[int, ...] = (256,)
    guide_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    model_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prior: str = PLAIN_PRIOR
    prior_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        known = (("model", models), ("guide", guides), ("likelihood", likelihoods), ("prior", priors))
        for kind, registry in known:
            if getattr(self, kind) not in registry:
                raise choose(kind, getattr(self, kind), registry)
        if self.network not in kinds:
            raise choose("network", self.network, kinds)
        check_count("latent", self.latent)
        widths = self.hidden if isinstance(self.hidden, tuple | list) else ()
        if not widths or any(not isinstance(w, int) or isinstance(w, bool) or w < 1 for w in widths):
            raise InputError(f"hidden={self.hidden!r} must be one width or more, each 1 or more: (256,)")
        object.__setattr__(self, "hidden", tuple(widths))
        for kind, part, given in (
            ("guide", guides.get(self.guide), _TO_GUIDE),
            ("model", models.get(self.model), _TO_MODEL),
            ("prior", priors.get(self.prior), _TO_PRIOR),
        ):
            options = getattr(self, f"{kind}_options")
            if not isinstance(options, Mapping):
                raise InputError(f"{kind}_options={options!r} must be a mapping from names to values")
            checked = check_options(kind, getattr(self, kind), part, options, given)
            object.__setattr__(self, f"{kind}_options", checked)
        if self.prior_label != PLAIN_PRIOR and self.model_options.get("prior", "standard") != "standard":
            raise InputError(
                f"prior={self.prior_label!r} and model={self.model_label!r} each name a prior; give one of them"
            )

    @property
    def guide_label(self) -> str:
        """The guide with its options: "low-rank:rank=3"."""
        return label(self.guide, self.guide_options)

    @property
    def model_label(self) -> str:
        """The model with its options."""
        return label(self.model, self.model_options)

    @property
    def prior_label(self) -> str:
        """The prior with its options."""
        return label(self.prior, self.prior_options)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PairConfig:
        """Raises `InputError` for a name that is no setting."""
        return _from_json(cls, values)

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)


@dataclass(frozen=True)
class DataSpec:
    """What must be known of data to build a pair for them. All of it is JSON, so that a saved run is rebuilt without
    its data.

    Args:
        name: of the data set.
        description: the data, the part and the binarization, as it stands beside numbers.
        shape: D.
        levels: of the values that a batch holds; None: continuous.
        units: of the values that a batch holds, "binary", "unit", "levels" or "real".
        class_names: of `batch.y`; empty where there is none.
        context: width of `batch.context`, 0 where there is none.
        size: number of data, for parts that keep something for each; 0 where it was not written down.
        masked: whether a batch says what is visible of it; the encoder then takes the mask, too.
    """

    name: str
    description: str
    shape: tuple[int, ...]
    levels: int | None = None
    units: str = "real"
    class_names: tuple[str, ...] = field(default=())
    context: int = 0
    size: int = 0
    masked: bool = False

    @classmethod
    def of(cls, data: DataSet) -> DataSpec:
        units = "binary" if data.binary else "real" if data.units == "raw" else data.units
        return cls(
            name=data.name,
            description=data.description,
            shape=data.shape,
            levels=2 if data.binary else data.levels,
            units=units,
            class_names=data.class_names,
            context=0 if data.context is None else data.context.shape[1],
            size=len(data),
            masked=not (data.masks is None and data.visible is None and data.observed is None),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataSpec:
        """Raises `InputError` for a name that is no setting."""
        return _from_json(cls, values)

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)


def units_for(likelihood: str, data: DataSet) -> Literal["unit", "levels", "raw"]:
    """The units in which a likelihood wants these data: those of its support, and for a Gaussian of unit variance
    the levels, where 1 is small."""
    if data.levels is None:
        return data.units
    return "levels" if likelihoods.get(likelihood).units == "levels" or likelihood == "gaussian" else "unit"


def build(config: PairConfig, data: DataSet | DataSpec) -> tuple[LatentModel, Guide]:
    """The pair, sized for the data and in their units.

    The guide's constructor is given the model, and of an `encoder` and the `size` of the data what it asks for.

    Args:
        config: its parts.
        data: training data, whose averages (of at most 10,000) then standardize what goes into the encoder and comes
            out of the decoder, and from which a structured autoencoder starts; or only their specification, for a pair
            whose saved weights will be loaded.

    Raises:
        InputError: parts that do not fit the data or each other.
    """
    model, features = build_model(config, data)
    size = data.size if isinstance(data, DataSpec) else len(data)
    guide = build_guide(guides.get(config.guide), model, features, size, config.guide_options, config.guide)
    bind(model, guide)
    if isinstance(data, DataSet):
        start(model, guide, data)
    return model, guide


def start(model: nn.Module, guide: nn.Module, data: DataSet) -> None:
    """Let a guide that has a start for its pair (`guides.Structured.start_at`) take it, from at most 2,000 of the
    data; others are left alone."""
    begin = getattr(guide, "start_at", None)
    if begin is not None:
        begin(model, _some(data, _STARTED))


def build_model(config: PairConfig, data: DataSet | DataSpec) -> tuple[LatentModel, Encoder]:
    """The model alone, and the encoder that a guide for it is given: the first half of `build`."""
    spec = data if isinstance(data, DataSpec) else DataSpec.of(data)
    likelihood = _likelihood(config.likelihood, spec)
    some = None if isinstance(data, DataSpec) else _some(data)
    if some is not None:
        assert some.x is not None
        likelihood.check(some.x, f"x of {spec.description!r}")
        likelihood.standardize(_filled(some))
    model_class = models.get(config.model)
    check_has_decoder(config)
    given: dict[str, Any] = {}
    takes = inspect.signature(model_class).parameters
    if "classes" in takes:
        if len(spec.class_names) < 2:
            raise InputError(
                f"model={config.model!r} tells classes apart, and {spec.description!r} has "
                f"{len(spec.class_names) or 'no'} labels; use model='vae', or data with a label column"
            )
        given["classes"] = len(spec.class_names)
    if "condition" in takes:
        if not spec.class_names and not spec.context:
            raise InputError(
                f"model={config.model!r} is conditioned on labels or a context, and {spec.description!r} has neither; "
                "use model='vae', or data with a label column"
            )
        given["condition"] = Condition(len(spec.class_names), spec.context)
    width = given["condition"].width if "condition" in given else given.get("classes", 0)
    features, decode = None, None
    if not _makes_networks(model_class):
        features = _encoder(config, spec, some, given.get("condition"))
        decode = decoder(
            config.network,
            config.latent + width,
            spec.shape,
            likelihood.parameters_per_element,
            config.hidden[::-1],
        )
    model = construct(
        "model",
        config.model,
        model_class,
        decode,
        likelihood,
        config.latent,
        offered=given,
        options=config.model_options,
    )
    if config.prior_label != PLAIN_PRIOR:
        if config.model_options.get("prior", "standard") not in ("standard", None):
            raise InputError(
                f"prior={config.prior_label!r} and model={config.model_label!r} each name a p(z); leave one of them out"
            )
        replace_prior(model, _prior(config, model, spec, some))
    return model, _own_encoder(model, spec, some) if features is None else features


def check_has_decoder(config: PairConfig) -> None:
    """Raise `InputError` for a model of which no pair by name is made."""
    part = models.get(config.model)
    if "decoder" not in inspect.signature(part).parameters:
        instead = getattr(part, "by_name", f"make {part.__name__} in a program")
        raise InputError(f"model={config.model!r} has no decoder, of which a pair by name is made: {instead}")


def build_prior(name: str, model: nn.Module, options: Mapping[str, Any] | None = None, **offered: Any) -> Prior:
    """A prior by name for the site that a model's prior is of.

    Args:
        name: its name.
        model: what it is for.
        options: further arguments of its constructor.
        offered: of `shape`, `start`, `loc` and `scale` it is given what it asks for.

    Raises:
        InputError: an unknown name, a model that takes no prior, an option that this prior does not take.
    """
    part = priors.get(name)
    checked = check_options("prior", name, part, options or {}, _TO_PRIOR)
    latents: Mapping[str, LatentSpec] = getattr(model, "latents", {})
    size = latents[prior_site(model)].event_shape.numel()
    return construct("prior", name, part, size, offered=offered, options=checked)


def build_encoder(
    config: PairConfig, data: DataSet, condition: Condition | None = None, model: nn.Module | None = None
) -> Encoder:
    """The encoder that `build` would make, for a model of a person's own.

    Args:
        condition: what the model is conditioned on, and its encoder sees.
        model: the model; one that `makes_networks` makes its encoder too.
    """
    spec, some = DataSpec.of(data), _some(data)
    return _encoder(config, spec, some, condition) if not _makes_networks(model) else _own_encoder(model, spec, some)


def _makes_networks(model: object) -> bool:
    """Whether a model, or a class of models, makes networks of its own, as those on grids do."""
    return bool(getattr(model, "makes_networks", False))


def _own_encoder(model: Any, spec: DataSpec, some: Batch | None) -> Encoder:
    # a guide for such a model knows what it is given: no features of a vector
    return cast("Encoder", model.make_encoder(*_standardization(some, spec.shape), spec.masked))


def build_guide(
    part: Callable[..., nn.Module],
    model: nn.Module,
    encoder: Encoder,
    size: int,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Any:
    """A guide from its class, or from a function of the model.

    A registered guide over each datum's latents becomes `Combined` where the model has latents that all data share,
    with independent Gaussians over these.

    Where the model has a latent class beside its continuous latents, a class of the registry makes the guide of these,
    and `Classified` adds the classifier.

    Args:
        part: called with the model, and with `encoder` and `size` where it has arguments of these names.
        model: what it is for.
        encoder: features of a batch.
        size: number of training data, for guides with parameters for each.
        options: further arguments.
        name: for messages.

    Raises:
        InputError: it asks for something else, or makes no module; a guide's own refusal of the model.
    """
    name = name or str(getattr(part, "__name__", type(part).__name__))
    known = next((each for each in map(guides.get, guides) if each is part), None)
    shared = () if known is None or known.takes_shared else _shared(model)
    over_datum = known is not None and not known.takes_shared
    if over_datum and isinstance(model, LatentModel) and class_site(model):
        if shared:
            raise InputError(
                f"guide={name!r} does not fit {type(model).__name__}, which has latents that all data share and a "
                "class among each datum's; use guide='structured', or a guide of your own in Combined"
            )

        def family(model: LatentModel, encoder: Encoder) -> Guide:
            made: Guide = build_guide(part, model, encoder, size, options, name)
            return made

        return classified(model, encoder, family, gives_class(model, cast("type[Guide]", known)))
    given = shared if known is not None and known.needs_shared else ()
    whole = cast("LatentModel", model)
    offered = {"encoder": OfBatchAlone(encoder, whole) if given else encoder, "size": size}
    guide = construct("guide", name, part, datum_part(whole) if shared else model, offered=offered, options=options)
    if shared:
        guide = Combined(whole, cast("Guide", guide), given=given)
    if not isinstance(guide, nn.Module):
        raise InputError(f"guide={name!r} made a {type(guide).__name__}; it must make a module, as a ppl_vae.Guide")
    return guide


def _shared(model: nn.Module) -> tuple[str, ...]:
    """The model's latents that all data share."""
    return tuple(name for name, spec in getattr(model, "latents", {}).items() if spec.scope != "datum")


def build_objective(
    name: str, model: nn.Module | None = None, size: int | None = None, data: DataSet | None = None, **options: Any
) -> Objective:
    """An objective by name, with the options that were given (those that are None were not).

    Args:
        name: its name.
        model: for objectives that keep something of its latents.
        size: number of training data, for objectives that keep something for each, and for models with latents that
            all data share.
        data: training data, of which an objective may keep those with a label.
        options: arguments of its constructor.

    Raises:
        InputError: an unknown name; an option that this objective does not take; a value that it refuses.
    """
    part, checked = objectives.get(name), check_objective_options(name, **options)
    labelled = data is not None and data.y is not None and bool((data.y >= 0).any())
    offered: dict[str, Any] = {"model": model, "size": size, "labelled": data if labelled else None}
    offered = {key: value for key, value in offered.items() if value is not None}
    if model is not None and _shared(model):
        offered["data_size"] = size
    return construct("objective", name, part, offered=offered, options=checked)


def check_objective_options(name: str, **options: Any) -> dict[str, Any]:
    """The options that were given; what does not need model and data for it is tried out.

    Raises:
        InputError: as `build_objective`.
    """
    part = objectives.get(name)
    given = {key: value for key, value in options.items() if value is not None}
    checked = check_options("objective", name, part, given, _TO_OBJECTIVE)
    needed = [p for name, p in inspect.signature(part).parameters.items() if name in _TO_OBJECTIVE]
    if all(p.default is not p.empty for p in needed):
        part(**checked)
    return checked


def options_by_name(kind: str, name: str) -> list[str]:
    """The options of a model, a guide, a prior or an objective; of other kinds there are none."""
    known: dict[str, tuple[Any, tuple[str, ...]]] = {
        "model": (models, _TO_MODEL),
        "guide": (guides, _TO_GUIDE),
        "prior": (priors, _TO_PRIOR),
        "objective": (objectives, _TO_OBJECTIVE),
    }
    if kind not in known:
        return []
    registry, given = known[kind]
    return options_of(registry.get(name), given)


def _some(data: DataSet, count: int = _AVERAGED) -> Batch:
    """x of some of the data, evenly spaced, and what is observed of it: averages need no more, and a large set of
    images would not fit as float32."""
    rows = torch.linspace(0, len(data) - 1, min(len(data), count), dtype=torch.float64).long()
    return data.take(rows).unmasked().fixed().batch()


def _filled(some: Batch) -> Tensor:
    """x with the mean of what is observed in place of what is not: of a column of a table, of a pixel."""
    assert some.x is not None
    if some.observed is None:
        return some.x
    mean = some.x.sum(0) / some.observed.sum(0).clamp_min(1)
    return torch.where(some.observed, some.x, mean)


def _encoder(config: PairConfig, spec: DataSpec, some: Batch | None, condition: Condition | None) -> Encoder:
    loc, scale = _standardization(some, spec.shape)
    return encoder(
        config.network, spec.shape, config.hidden, condition=condition, loc=loc, scale=scale, mask=spec.masked
    )


def _prior(config: PairConfig, model: LatentModel, spec: DataSpec, some: Batch | None) -> Prior:
    loc, scale = _standardization(some, spec.shape)
    offered = {"shape": spec.shape, "start": None if some is None else _filled(some), "loc": loc, "scale": scale}
    return build_prior(config.prior, model, config.prior_options, **offered)


def _likelihood(name: str, spec: DataSpec) -> Likelihood:
    part = likelihoods.get(name)
    offered: dict[str, Any] = {"shape": spec.shape}
    takes = inspect.signature(part).parameters
    if "levels" in takes:
        if spec.levels is None:
            raise InputError(
                f"likelihood={name!r} is over a data set's levels, and {spec.description!r} is continuous; use "
                "'gaussian-learned' or 'student-t'"
            )
        offered["levels"] = spec.levels
    if "floor" in takes:
        # one level in the units of the data; a hundredth of a unit for what has no levels
        offered["floor"] = 0.01 if spec.levels is None else 1.0 / (spec.levels - 1 if spec.units == "unit" else 1)
    return part(**offered)


def _standardization(some: Batch | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what is observed: of each column of a table, of all pixels of images."""
    size = shape if len(shape) == 1 else ()
    if some is None:
        return torch.zeros(size), torch.ones(size)
    assert some.x is not None
    x, over = some.x, (0,) if len(shape) == 1 else tuple(range(some.x.dim()))
    if some.observed is None:
        loc, scale = x.mean(over), x.std(over)
    else:  # x is 0 where it is not observed
        count = some.observed.sum(over)
        loc = x.sum(over) / count.clamp_min(1)
        squares = torch.where(some.observed, x - loc, 0.0).square().sum(over)
        scale = (squares / (count - 1).clamp_min(1)).sqrt()
    return loc, torch.where(scale > 0, scale, torch.ones_like(scale))


def _to_json(config: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise choose("setting", name, names)
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
