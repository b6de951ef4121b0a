"""What priors share: names, and how a model is given one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Conditional, Guide, LatentModel, plain_support
from ..errors import InputError, check_count
from ..registry import Registry

__all__ = ["Prior", "bind", "prior_of", "prior_site", "priors", "replace_prior"]


class Prior(Conditional):
    r"""p(z) over vectors, whatever the features: features (\*S, N, F), of any F, give the batch shape (\*S, N).

    Args:
        size: number of dimensions of z.

    Attributes:
        of_guide: whether it is made of the model's guide, by `bind`.
        normalized: whether log p(z) is known; otherwise `log_partition` says how well.
    """

    of_guide: ClassVar[bool] = False
    normalized: ClassVar[bool] = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = check_count("size", size)
        self.event_shape = torch.Size([size])

    def start_at(self, z: Tensor) -> None:
        """Set the parameters from draws z (N, size) of what is to be fitted, as a start. By default nothing is set."""


priors: Registry[type[Prior]] = Registry("prior")


def prior_of(model: object) -> nn.Module | None:
    """The module that is a model's `prior`. (Of a mixture `prior` is a distribution of its parameters, and an error
    where there is none.)"""
    prior: nn.Module | None = getattr(model, "_modules", {}).get("prior")
    return prior


def prior_site(model: nn.Module) -> str:
    """The latent site that a model's `prior` is of: the first one without parents that has its events.

    Raises:
        InputError: a model that takes no prior.
    """
    prior = prior_of(model)
    latents = getattr(model, "latents", {})
    if isinstance(prior, Conditional):
        for name, spec in latents.items():
            fits = tuple(spec.event_shape) == tuple(prior.event_shape) and not spec.parents
            if fits and not plain_support(spec.support).is_discrete and spec.scope == "datum":
                return str(name)
    raise InputError(f"{type(model).__name__} has no prior that can be another one: its p(z) is part of the model")


def replace_prior(model: LatentModel, prior: Conditional) -> None:
    """Give a model another prior, in place, on the device of the model.

    Raises:
        InputError: a model that takes no prior, a prior over other events.
    """
    site = prior_site(model)
    wanted = tuple(model.latents[site].event_shape)
    if tuple(prior.event_shape) != wanted:
        raise InputError(
            f"prior={type(prior).__name__} is over events {tuple(prior.event_shape)}; site {site!r} of "
            f"{type(model).__name__} has {wanted}"
        )
    like = next(iter(model.parameters()), None)
    model.prior = prior if like is None else prior.to(device=like.device, dtype=like.dtype)


def bind(model: nn.Module, guide: nn.Module) -> None:
    """Tell a model's prior which guide it is made of, where it is made of one (`Vamp`); others are left alone.

    Raises:
        InputError: a guide that such a prior cannot be made of.
    """
    prior = prior_of(model)
    if isinstance(prior, Prior) and prior.of_guide:
        if not isinstance(guide, Guide):
            raise InputError(f"prior={type(prior).__name__} is made of a Guide; {type(guide).__name__} is none")
        prior.bind(guide, prior_site(model))  # type: ignore[operator]
