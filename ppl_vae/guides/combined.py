"""The guide of models with latents of each datum and latents that all data share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError
from .shared import Shared, shared_latents

__all__ = ["Combined", "DatumPart", "OfBatchAlone", "datum_part"]


class DatumPart(LatentModel):
    """What a model declares of each datum's latents, for guides to be built from.

    Its program is the model's, for guides that look at it, with the shared latents known: who runs it gives their
    values, as by `poutine.condition`. It does not own the model's parameters.

    Attributes:
        given: the latents shared by all data, of which a datum's may be children.
    """

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.latents = {name: spec for name, spec in model.latents.items() if spec.scope == "datum"}
        self.given = tuple(name for name in model.latents if name not in self.latents)
        self._model = (model,)  # in a tuple: run, but neither moved nor saved with this

    @property
    def whole(self) -> LatentModel:
        return self._model[0].whole

    def forward(self, batch: Batch) -> Tensor:
        with _Known(self.given):
            x: Tensor = self._model[0](batch)
        return x


class _Known(Messenger):
    """Refuses to draw some sites."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    # after the message, when handlers around this one have had their say
    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            raise InputError(
                f"a guide runs the model, and {msg['name']!r}, which all data share, is not known to it; give it by "
                f"Combined(..., given={tuple(self.names)!r})"
            )


def datum_part(model: LatentModel) -> DatumPart:
    """What a model declares of each datum's latents, from which to build the guide that `Combined` takes."""
    return DatumPart(model)


class Combined(Guide):
    r"""Two guides for one model: w, shared by all data, and z of each datum, which may be drawn given w.

    .. math:: q(w, z \mid x) = q(w) \prod_n q(z_n \mid x_n) \quad\text{or}\quad q(w) \prod_n q(z_n \mid x_n, w)

    Train it with ``ELBO(data_size=N)``, in which a batch of B data counts B/N of KL(q(w) ‖ p(w)): summed over the
    batches of an epoch, w counts once. Objectives that need a weight for each datum refuse w by name.

    Args:
        model: what the guide is for; only its `latents` are read.
        local: a guide of each datum's latents, built from ``datum_part(model)``.
        shared: a guide of the others: a family of `Shared`, "mean-field", "full-rank" or "point", or a guide.
        given: names of shared latents whose values `local` gets; its encoder has to take them (`encoder(...,
            latents=width)`). Without, z is independent of w given x.

    Raises:
        InputError: a model without shared latents, or with no others; a part that misses a site of the model's, or has
            one too many; a name in `given` that is none of a shared latent, or a `local` that takes no values.

    Example:
        >>> guide = Combined(model, guides.MeanField(datum_part(model), encoder), shared="full-rank")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: LatentModel,
        local: Guide,
        shared: Literal["mean-field", "full-rank", "point"] | Guide = "mean-field",
        given: Sequence[str] = (),
    ) -> None:
        super().__init__()
        names = shared_latents(model)
        for argument, part in (("shared", shared), ("local", local)):
            if not isinstance(part, Guide) and not (argument == "shared" and isinstance(part, str)):
                raise _no_guide(argument, part)
        self.shared = shared if isinstance(shared, Guide) else Shared(model, shared)
        self.local = local
        _check_sites("shared", self.shared, [*names], model)
        own = [name for name in model.latents if name not in names]
        if not own:
            raise InputError(
                f"{type(model).__name__} declares no latents of each datum: use the guide of the shared ones alone"
            )
        _check_sites("local", local, own, model)
        if isinstance(given, str):
            given = (given,)
        if strangers := [name for name in given if name not in names]:
            raise InputError(
                f"given={tuple(given)!r} has {', '.join(map(repr, strangers))}; the latents of {type(model).__name__} "
                f"that all data share are {[*names]}"
            )
        parameters = inspect.signature(local.forward).parameters.values()
        if given and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise InputError(f"given={tuple(given)!r}: {type(local).__name__} takes no values of other latents")
        self.given = tuple(given)
        self.sites = tuple(model.latents)
        self.scores_given = self.shared.scores_given and local.scores_given
        self.density = self.shared.density and local.density

    @property
    def size(self) -> int | None:
        """N, where `local` has parameters for each datum."""
        return getattr(self.local, "size", None)

    @property
    def renew(self) -> Callable[[int], Combined]:
        """Makes a guide for other data, where `local` does: with a fresh `local`, and this q(w), which does not train,
        for w was learned from the data that this guide is of."""
        own = getattr(self.local, "renew", None)
        if not callable(own):
            raise AttributeError("renew")  # as if there were none

        def renew(size: int) -> Combined:
            fresh = own(size)
            new = copy.deepcopy(self)
            new.local = fresh
            new.shared.requires_grad_(False)
            return new

        return renew

    def knows(self, fingerprint: int, description: str) -> None:
        """Raise `InputError` where `local` has parameters for each datum of another data set."""
        self._of_local("knows", fingerprint, description)

    def belongs(self, fingerprint: int, description: str) -> None:
        """Let `local`, where it has parameters for each datum, note or refuse the data set; see `Local.belongs`."""
        self._of_local("belongs", fingerprint, description)

    def _of_local(self, name: str, fingerprint: int, description: str) -> None:
        if callable(method := getattr(self.local, name, None)):
            method(fingerprint, description)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = self.shared(batch)
        # the local guide opens the data plate, and is the only one to do so
        draws |= self.local(batch, **{name: draws[name] for name in self.given})
        return {name: draws[name] for name in self.sites}

    def draw_shared(self, batch: Batch) -> dict[str, Tensor]:
        """The latents that all data share, drawn alone."""
        draws: dict[str, Tensor] = self.shared(batch)
        return draws

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        if self.given:
            return super().distribution(batch)
        sites = {**self.shared.distribution(batch), **self.local.distribution(batch)}
        return {name: sites[name] for name in self.sites}


class OfBatchAlone(Encoder):
    r"""An encoder that passes over the values of other latents, for a guide that uses them but does not encode them.

    Features (\*S, N, F) are the same for all values.

    Args:
        encoder: of a batch.
        model: which declares those latents.
    """

    def __init__(self, encoder: Encoder, model: LatentModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.features = encoder.features
        self.event_dims = {name: len(spec.event_shape) for name, spec in model.latents.items()}

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        features: Tensor = self.encoder(batch)
        left = [value.shape[: value.dim() - self.event_dims[name]] for name, value in latents.items()]
        return features.expand(*torch.broadcast_shapes(features.shape[:-1], *left), self.features)


def _no_guide(argument: str, part: object) -> InputError:
    told = f"{argument}={part.__name__}" if isinstance(part, type) else f"{argument} is a {type(part).__name__}"
    why = ""
    if "pyro.infer.autoguide" in (part if isinstance(part, type) else type(part)).__module__:
        why = (
            ": Pyro's autoguides make their parameters when they first run, where optimizers, checkpoints and "
            "compiled steps of modules look too early"
        )
    instead = " or a family of Shared, 'mean-field', 'full-rank' or 'point'" if argument == "shared" else ""
    return InputError(f"{told}, which is no Guide{why}; give a Guide{instead}")


def _check_sites(argument: str, guide: Guide, wanted: Sequence[str], model: LatentModel) -> None:
    """A guide that does not say which sites it draws is looked at in its first run."""
    if not guide.sites:
        return
    name, of = type(guide).__name__, type(model).__name__
    if missing := [site for site in wanted if site not in guide.sites]:
        raise InputError(f"{argument}={name} misses {', '.join(map(repr, missing))} of {of}; it draws {[*guide.sites]}")
    if extra := [site for site in guide.sites if site not in wanted]:
        raise InputError(
            f"{argument}={name} draws {', '.join(map(repr, extra))}, which is not its to draw; of {of} it is to draw "
            f"{[*wanted]}"
        )
