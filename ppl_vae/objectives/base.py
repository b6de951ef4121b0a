"""What every objective shares: it is one of Pyro's losses, and a module with parameters and buffers of its own."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from ..batch import Batch
from ..core import LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..registry import Registry
from ..validation import validation
from ..weights import LogWeights, Program, check_pair, log_weights, no_density

__all__ = ["Objective", "Terms", "check_particles", "datum_latents", "objectives"]

objectives: Registry[type[Objective]] = Registry("objective")


class Terms(NamedTuple):
    """An objective's value, datum by datum.

    Args:
        loss: (N,) what is minimized, in nats: its sum is the loss that Pyro's convention asks for.
        logs: (N,) tensors without gradient, in nats: "elbo" (or "bound"), "kl", "log_likelihood".
    """

    loss: Tensor
    logs: Mapping[str, Tensor]


class Objective(PyroELBO, nn.Module):
    """A loss over (model, guide), built on `log_weights`.

    Subclasses write `terms`; the rest follows. As a `pyro.infer.ELBO` it can be given to `pyro.infer.SVI` (with
    `pyro_pair`), and ``objective(model, guide)`` is a module that returns the loss of a batch. As an `nn.Module` its
    own parameters train with the pair's, and its buffers are saved with them (updates must be made in place).

    The loss is the **sum** over the batch, as in Pyro. What a person reads is nats per datum: `terms(...)`.

    The first call with a pair runs it once under validation (`check_pair`); the others run with validation off.
    """

    scores_given: bool = False
    """Whether the objective scores draws that the guide did not make in the same call."""

    stop_guide: bool = False
    """Whether log q is scored under stopped parameters of the guide (`log_weights`)."""

    apart: bool = False
    """Whether model and guide are trained on different things in one loss, so that a q that follows the model's
    parameters, `Guide.follows_model`, would hand the model what is meant for the guide."""

    density: bool = True
    """Whether q must have a density, which a point mass has not."""

    clips: bool = True
    """Whether gradients may be clipped: a natural step, which stands in place of one, may not."""

    watched: str = "elbo"
    """The log of the validation data by which `fit` stops early."""

    leaves_classes: bool = False
    """Whether the bound sums over enumerated classes in such a way that q(y | x) drops out of it."""

    teaches: bool = False
    """Whether it trains q(y | x) by the labels of a batch, which it then needs."""

    classes_trained: bool = False
    """Whether another term trains q(y | x) where the bound does not, see `SemiSupervised`."""

    def __init__(self, particles: int = 1) -> None:
        nn.Module.__init__(self)
        PyroELBO.__init__(self, num_particles=check_particles(particles), max_plate_nesting=1, vectorize_particles=True)
        self.particles = particles
        self._checked: list[tuple[weakref.ref[Any], weakref.ref[Any], bool]] = []

    @abstractmethod
    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """The loss of each datum and what is to be logged."""

    def weights(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> LogWeights:
        """`log_weights` with this objective's particles, after the pair has been checked once."""
        self.check(model, guide, *args, **kwargs)
        with validation(False):
            return log_weights(model, guide, *args, particles=self.particles, stop_guide=self.stop_guide, **kwargs)

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> bool:
        """Run a pair that was not seen before once under validation, and refuse what this objective would get wrong;
        returns whether it was a new one."""
        # dropout, which a second run of the guide cannot have, comes and goes with the training flag
        mode = self.stop_guide and getattr(guide, "training", False)
        if any(m() is model and g() is guide and flag == mode for m, g, flag in self._checked):
            return False
        self._check_guide(guide)
        check_pair(model, guide, *args, unscaled=True, stop_guide=self.stop_guide, density=self.density, **kwargs)
        self._checked = [entry for entry in self._checked if entry[0]() is not None and entry[1]() is not None]
        self._checked.append((weakref.ref(model), weakref.ref(guide), mode))
        return True

    def optimizers(self, model: Program | None = None, guide: Program | None = None) -> Sequence[Optimizer]:
        """Optimizers, each of some of this objective's own parameters or of the pair's, which are then trained by it
        and not by the pair's optimizer, in the same step: torch's, made anew at every call. Called once by
        `CompiledSVI` and `fit`, with the pair."""
        return ()

    def first_bad(self, model: Program, batch: Batch) -> str | None:
        """Where a loss that is no number came from, in words, where an objective knows better than one who looks at
        guide and model in turn; None where it does not."""
        return None

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Σ over the batch of the loss, in nats; a tensor to call `backward` on."""
        return self.terms(model, guide, *args, **kwargs).loss.sum()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Σ over the batch of the loss, as a number."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, with its gradients added to the parameters'. Unlike Pyro's losses it does not ask the store
        whether there is anything to differentiate."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("objectives of this package are built on log_weights, not on Pyro's traces")

    def _check_guide(self, guide: Program) -> None:
        wanted = getattr(guide, "trained_by", None)
        if wanted is not None and type(self) is not objectives.get(wanted):
            raise InputError(
                f"{type(self).__name__} does not train {type(guide).__name__}, whose draws pass no gradient and whose "
                f"probabilities take none; use {objectives.get(wanted).__name__}, objective={wanted!r}"
            )
        if self.density and not getattr(guide, "density", True):
            raise no_density(type(guide).__name__)
        if self.scores_given and not getattr(guide, "scores_given", True):
            raise InputError(
                f"{type(self).__name__} scores draws that {type(guide).__name__} did not make, which it cannot do"
            )
        if self.apart and any(getattr(part, "follows_model", False) for part in _parts(guide)):
            raise InputError(
                f"differentiate=True: {type(guide).__name__} differentiates its steps, and its q is a function of the "
                f"model's parameters; {type(self).__name__} trains model and guide on different things, and would hand "
                "the model the guide's: use differentiate=False, or ELBO, IWAE or another bound on log p(x)"
            )
        if self.leaves_classes and not self.classes_trained and getattr(guide, "classifies", False):
            raise InputError(
                f"{type(self).__name__} sums over the classes exactly, and what the classifier q(y | x) says drops out "
                "of its bound: it would stay as it started; use SemiSupervised(bound=...), on the command line "
                "--objective semi-supervised:bound=iwae, whose cross-entropy trains it, or ELBO"
            )

    def refuse_rigid(self, weights: LogWeights) -> None:
        """Raise `InputError` if a site of the guide passes no gradient through its draws: the value of a sum of
        log-weights would be right and its gradient wrong."""
        if weights.rigid:
            raise InputError(
                f"guide site {', '.join(map(repr, weights.rigid))} is not reparameterized: {type(self).__name__} would "
                "have a wrong gradient; use an objective for draws that pass none, ScoreFunction, Wake, ScoreClimbing "
                'or TVO; or enumerate the site with infer={"enumerate": "parallel"} if it is discrete; or use a '
                "reparameterized distribution"
            )

    def __getstate__(self) -> dict[str, Any]:
        # weak references can be neither copied nor sent to another process, where the pair is another one anyway
        return {**self.__dict__, "_checked": []}

    def extra_repr(self) -> str:
        return f"particles={self.particles}"


def _parts(guide: Program) -> Iterable[Any]:
    return guide.modules() if isinstance(guide, nn.Module) else (guide,)


def check_particles(particles: object) -> int:
    """`particles` as a number of draws; raises `InputError` where it is none."""
    return check_count("particles", particles)


def datum_latents(
    model: LatentModel | Mapping[str, LatentSpec], of_them: str, of_each: str | None = None
) -> Mapping[str, LatentSpec]:
    """What a model declares of its latents, for an objective that keeps something for each datum's.

    Args:
        model: a model, or its `latents` alone.
        of_them, of_each: what the objective does with them, for the message where there are none, and where some are
            shared by all data; the same where one is given.

    Raises:
        InputError: something without declared latents; a latent site shared by all data.
    """
    latents = model if isinstance(model, Mapping) else getattr(model, "latents", None)
    if not isinstance(latents, Mapping) or not latents:
        raise InputError(
            f"model={type(model).__name__} declares no latents, and {of_them}: give a LatentModel, or a mapping from "
            "site names to LatentSpec"
        )
    if shared := [name for name, spec in latents.items() if spec.scope != "datum"]:
        raise InputError(f"{of_each or of_them}, and {', '.join(map(repr, shared))} is shared by all data; use ELBO")
    return latents
