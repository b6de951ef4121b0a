"""The guide of models with a latent class: a classifier, and any family for the continuous latents."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError
from ..labels import class_site, count_of, known
from ..networks import ClassEncoder, Linear

__all__ = ["Classified", "ContinuousPart", "classified", "continuous_part"]


class ContinuousPart(LatentModel):
    """What a model declares of its continuous latents, for guides to be built from.

    Its program is the model's, for guides that look at it; who runs it may give the class, as by `poutine.condition`.
    It does not own the model's parameters.
    """

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        site = class_site(model)
        self.latents = {
            name: spec._replace(parents=tuple(parent for parent in spec.parents if parent != site))
            for name, spec in model.latents.items()
            if name != site
        }
        self._model = (model,)  # in a tuple: run, but neither moved nor saved with this

    @property
    def whole(self) -> LatentModel:
        return self._model[0].whole

    def forward(self, batch: Batch) -> Tensor:
        x: Tensor = self._model[0](batch)
        return x


def continuous_part(model: LatentModel) -> ContinuousPart:
    """What a model with a latent class declares of its other latents, from which to build the guide that `Classified`
    takes; raises `InputError` for a model without one."""
    count_of(model)
    return ContinuousPart(model)


class Classified(Guide):
    r"""A classifier, and a guide of any family for the continuous latents, given the class or not.

    .. math:: q(y, z \mid x) = q(y \mid x) \, q(z \mid x, y) \quad\text{or}\quad q(y \mid x) \, q(z \mid x)

    The classifier is an encoder with C logits behind it. A known label (`batch.y` of 0 or more) takes the place of what
    the classifier says, with all the probability. y is enumerated, to the left of the particles, (C, K, N): an
    objective sums over classes exactly, in one call of encoder and decoder.

    Args:
        model: what the guide is for; only its `latents` are read.
        classifier: the features from which the class is told; it sees x, and never a label.
        guide: a guide of the continuous latents, built from ``continuous_part(model)``.
        given: whether `guide` is given the class, as a number (\*S, N); its encoder then takes it (`ClassEncoder`).

    Sites: the model's.

    Raises:
        InputError: a model without a latent class beside continuous latents; a `guide` that draws other sites, or takes
            no class though `given`.

    Example:
        >>> guide = classified(model, encoder, FullRank)  # doctest: +SKIP

    Reference: Kingma et al., Semi-supervised learning with deep generative models, NIPS 2014
    (https://arxiv.org/abs/1406.5298).
    """

    classifies = True
    eye: Tensor

    def __init__(self, model: LatentModel, classifier: Encoder, guide: Guide, given: bool = True) -> None:
        super().__init__()
        classes = count_of(model)
        self.site = str(class_site(model))
        wanted = [name for name in model.latents if name != self.site]
        if guide.sites and set(guide.sites) != set(wanted):
            raise InputError(
                f"guide={type(guide).__name__} draws {[*guide.sites]}; beside the class it is to draw {wanted} of "
                f"{type(model).__name__}: build it from continuous_part(model)"
            )
        if given and not takes_latents(type(guide)):
            raise InputError(f"given=True: {type(guide).__name__} takes no values of other latents; give given=False")
        if not given and guide.needs_shared:
            raise InputError(f"given=False: {type(guide).__name__} runs the model, for which it has to know the class")
        self.sites = tuple(model.latents)
        self.classes = classes
        self.classifier = classifier
        self.logits = Linear(classifier.features, classes)
        self.guide = guide
        self.given = given
        self.scores_given = guide.scores_given
        self.density = guide.density
        self.register_buffer("eye", torch.eye(classes), persistent=False)
        if callable(getattr(guide, "renew", None)):
            self.size, self.renew = guide.size, self._renew  # a guide of each datum's own, which others look for

    def class_logits(self, batch: Batch) -> Tensor:
        """What the classifier says of x, (N, C), whatever the labels."""
        logits: Tensor = self.logits(self.classifier(batch._replace(y=None)))
        return logits

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            draws = {self.site: pyro.sample(self.site, self._class(batch), infer={"enumerate": "parallel"})}
        # the other guide opens a plate of the same data, whose own site would be the second of its name
        with poutine.block(hide=["data"]):
            draws |= self.guide(batch, **(draws if self.given else {}))
        return {name: draws[name] for name in self.sites}

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        if self.given:
            return super().distribution(batch)
        sites = {self.site: self._class(batch), **self.guide.distribution(batch)}
        return {name: sites[name] for name in self.sites}

    def _renew(self, size: int) -> Classified:
        """The same classifier, held, with a fresh guide of the continuous latents for `size` other data."""
        new = copy.deepcopy(self)
        for held in (new.classifier, new.logits):
            held.requires_grad_(False)
        new.guide = self.guide.renew(size)  # type: ignore[operator]
        new.size = size  # type: ignore[assignment]
        return new

    def _class(self, batch: Batch) -> TorchDistributionMixin:
        q: TorchDistributionMixin = dist.Categorical(logits=known(self.class_logits(batch), batch.y, self.eye))
        return q

    def extra_repr(self) -> str:
        return f"given={self.given}"


def takes_latents(part: Callable[..., Any]) -> bool:
    """Whether guides of a class take values of other latents in a call."""
    forward = getattr(part, "forward", None)
    return forward is not None and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def gives_class(model: LatentModel, part: Callable[..., Any]) -> bool:
    """Whether guides of a class are given the latent class: as the model has it, `posterior`, where the guide can take
    one; and where it cannot do without, as one that runs the model."""
    joint = getattr(model, "posterior", "joint") == "joint" or getattr(part, "needs_shared", False)
    return joint and takes_latents(part)


def classified(
    model: LatentModel,
    encoder: Encoder,
    family: Callable[[LatentModel, Encoder], Guide],
    given: bool | None = None,
) -> Classified:
    """A guide for a model with a latent class, its continuous latents in a family that knows none.

    Args:
        model: what the guide is for.
        encoder: of x; it becomes the classifier's, and others of its sizes are made beside it.
        family: makes the guide of the continuous latents, from a model of these and an encoder.
        given: whether that one is given the class; None: see `gives_class`.

    Raises:
        InputError: as `Classified`; an encoder of which no other can be made (`BodyEncoder.sibling`).
    """
    classes, site = count_of(model), str(class_site(model))
    sibling = getattr(encoder, "sibling", None)
    if sibling is None:
        raise InputError(
            f"{type(encoder).__name__} says nothing of its sizes (sibling), so that no second one can be made for the "
            "continuous latents: give Classified(model, classifier, guide) its parts"
        )
    if given is None:
        given = gives_class(model, family)
    other = ClassEncoder(sibling(latents=classes), site, classes) if given else sibling()
    return Classified(model, encoder, family(continuous_part(model), other), given)
