"""The contracts that models, guides and the parts of networks keep to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from .batch import Batch

__all__ = ["Conditional", "Encoder", "Guide", "LatentModel", "LatentSpec", "plain_support"]


class LatentSpec(NamedTuple):
    """What a model declares of one latent site: all that a guide needs to know to be built for it.

    Args:
        event_shape: the shape of one value, without batch or particle dimensions.
        support: where values lie.
        scope: "datum" for a latent variable of each datum, inside the data plate; "global" for one shared by all
            data, outside of it.
        parents: the latent sites it is drawn from, in the model.
    """

    event_shape: torch.Size
    support: Constraint = constraints.real
    scope: Literal["datum", "global"] = "datum"
    parents: tuple[str, ...] = ()


def plain_support(support: Constraint) -> Constraint:
    """The support of one number of an event, where it is the same for all: that of a real vector is the real line."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


class Encoder(nn.Module, ABC):
    """Features of a batch, on which a guide conditions its distributions.

    Attributes:
        features: F, the number of features.
    """

    features: int

    @abstractmethod
    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        """Features (\\*S, N, F) of a batch, and of latents (\\*S, N, \\*event) already drawn."""


class Conditional(nn.Module, ABC):
    """p(. | features): a module that returns a distribution, so that a scale is never taken for a variance.

    Attributes:
        event_shape: the shape of one value.
    """

    event_shape: torch.Size

    @abstractmethod
    def forward(self, features: Tensor) -> TorchDistributionMixin:
        """The distribution of batch shape (\\*S, N), given features (\\*S, N, F). What depends on nothing is given
        features of width F = 0, which still say how many data there are."""


class LatentModel(nn.Module, ABC):
    """A generative model p(x, z): a Pyro program over a batch.

    The contract:

    - `forward(batch)` opens one plate, ``pyro.plate("data", batch.size, dim=-1)``, and draws every latent variable
      of a datum inside it; global ones lie outside.
    - It broadcasts over any number of dimensions to the left of the plate: particles, enumerated classes.
    - Parameters are `nn.Parameter`s made in `__init__`, constants are buffers.
    - ``batch.x is None`` generates x; otherwise x is observed, where `batch.observed` says so.

    `ppl_vae.testing.check_model` holds a model to it.

    Attributes:
        latents: what it declares of its latent sites, in the order in which they are drawn.
    """

    latents: Mapping[str, LatentSpec]

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Run the program; returns x (\\*S, N, \\*D)."""

    @property
    def whole(self) -> LatentModel:
        """The model of which this is a part; itself, unless it is made to declare some latents of another."""
        return self

    def start(self) -> Mapping[str, Tensor]:
        """Values (\\*event) of latent sites shared by all data from which a guide had better start than from 0, as
        weights of a network, whose units would all stay the same; by site."""
        return {}


class Guide(nn.Module, ABC):
    """A variational posterior q(z | x): a Pyro program over the latent sites of a model, and over no other sites but
    auxiliary ones marked ``infer={"is_auxiliary": True}``.

    Like a model it opens the data plate once, broadcasts over any dimensions to its left, and makes its parameters in
    `__init__`; `ppl_vae.testing.check_guide` holds it to that.

    Attributes:
        scores_given: whether log q can be computed at a z that the guide has not drawn itself.
        density: whether q has a density; a point mass has none, and no importance weights.
        sites: the latent sites that it draws, where it was built from a model's declaration; () where nothing is said.
        takes_shared: whether it is made for latents that all data share too; a guide over each datum's alone is put
            into a `Combined` by `build`.
        needs_shared: whether such a guide has to be given the values of what is shared, as one that runs the model.
        follows_model: whether q is a function of the model's parameters too, with a gradient by them.
        runs: the model that it runs, where it runs one; it is refused with any other.
        trained_by: the name of the one objective that trains it, where its draws pass no gradient and have no
            probability that could take one; other objectives refuse it.
    """

    scores_given: bool = True
    density: bool = True
    sites: tuple[str, ...] = ()
    takes_shared: ClassVar[bool] = False
    needs_shared: ClassVar[bool] = False
    trained_by: ClassVar[str | None] = None

    @property
    def follows_model(self) -> bool:
        return False

    @property
    def runs(self) -> LatentModel | None:
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Run the program; returns the draws by site, (\\*S, N, \\*event)."""

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        """q of each site as a distribution of batch shape (N,), drawing nothing and opening no plate, where the
        sites are independent given x.

        Raises:
            NotImplementedError: the guide's sites depend on each other; run it and look at its draws instead.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form distribution of each site: run it and use its draws"
        )
