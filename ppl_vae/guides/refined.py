"""Any amortized guide, its answer refined for each datum by gradient steps on the ELBO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..batch import Batch
from ..core import Guide, LatentModel
from ..errors import InputError, check_count
from ..handlers import apart
from ..networks import Head
from ..weights import sample_sites, score_site
from .base import Amortized
from .biases import Biases
from .points import mirrored

__all__ = ["OfSteps", "Refined", "check_steps"]

MOST = 2.0
"""A step is drawn out to twice of what was tried, and no further: beyond, a parabola knows little."""


class OfSteps(Guide):
    """A guide whose q is made by steps on the ELBO of a model, which it runs and does not own.

    Attributes:
        steps: K.
        differentiate: whether the gradient goes through them.
    """

    needs_shared = True
    steps: int
    differentiate: bool

    def hold(self, model: LatentModel) -> None:
        """Keep the model that is run."""
        self._model = (model,)  # in a tuple: neither moved nor saved with the guide

    @property
    def follows_model(self) -> bool:
        return self.differentiate and self.steps > 0

    @property
    def runs(self) -> LatentModel:
        return self._model[0].whole


class Refined(OfSteps):
    r"""An amortized guide of any family with biases of each datum's own, found by a few steps on its ELBO.

    The guide's affine layers, which turn the encoder's features h(x) into q's numbers, return

    .. math::
        λ(x) = W h(x) + b + δ(x), \qquad δ \leftarrow δ + η\, t\, Δ, \quad Δ = F^{-1} \nabla_δ L(x;\, δ)
        \qquad \text{(a few times, from 0)}

    so that q is any member of the family that δ reaches (`Biases` says which). L is the ELBO under the model itself, at
    P points that are the same for all data: mirrored pairs of standard normal noise, fixed once for each step, carried
    to q as its own draws are. F is the diagonal of q's Fisher information by its Gaussian's numbers, and 1 for a flow's
    parameters and a mixture's logits. No such F knows how far a flow's layers together move q, so t is found for each
    datum: the best of the parabola through L(δ), its slope, and L(δ + Δ), between 0 and 2, where Δ is no longer than
    `largest` and, of later steps, than twice of what was right before. L is taken there at P other points than those
    of the gradient, or a step would follow the noise of its own points: many numbers are fitted to few.

    q is a function of x like any other guide's: `distribution` draws nothing, log q of a given z is known where the
    guide's is. Without steps it is the guide itself, draw by draw.

    With ``differentiate=False`` the steps are constants: the guide's parameters get their gradient at a fixed δ, as if
    q moved with its start, and the model at a fixed q. With ``differentiate=True`` the gradient goes through the steps,
    by second derivatives; q is then a function of the model's parameters too, which objectives that train the two on
    different things refuse.

    Args:
        model: what the guide is for, and is trained with. It is run, and not owned: copy and move the two together,
            ``copy.deepcopy((model, guide))``.
        guide: amortized: `MeanField`, `FullRank`, `LowRank`, `Mixture`, any `Flow`, or an `Amortized` of your own
            heads; trained or not.
        steps: K; 0 leaves the guide.
        lr: η, above 0 and up to 1: how much of the way to the best along each step is gone.
        particles: P, an even number; for a mixture, of each component. A step costs 3 runs of the model with P
            particles and 2 gradients.
        differentiate: see above.
        largest: of a step that is tried, in the standard deviations that F stands for.

    Raises:
        InputError: numbers out of range; a guide that is not amortized, draws from something else than its heads'
            distributions, has no density, or makes its draws in a way that is not known; one of other sites than the
            model's.

    References:
        Kim et al., Semi-amortized variational autoencoders, ICML 2018 (https://arxiv.org/abs/1802.02550).
        Krishnan, Liang and Hoffman, On the challenges of learning with inference networks, AISTATS 2018
        (https://arxiv.org/abs/1710.06085): without derivatives of the steps.

    Example:
        >>> from ppl_vae import Batch, guides, networks
        >>> from ppl_vae.testing import LinearGaussian
        >>> model = LinearGaussian(data=4, latent=2)
        >>> guide = guides.Spline(model, networks.encoder("mlp", (4,), (8,)))
        >>> Refined(model, guide, steps=3).double()(Batch(x=model.simulate(5)))["z"].shape
        torch.Size([5, 2])
    """

    noise: Tensor

    def __init__(
        self,
        model: LatentModel,
        guide: Amortized,
        steps: int = 5,
        lr: float = 0.7,
        particles: int = 8,
        differentiate: bool = False,
        largest: float = 1.0,
    ) -> None:
        super().__init__()
        check_steps(steps, lr, particles, largest)
        self.noise_sizes = _check_guide(model, guide)
        self.sites = guide.sites
        self.guide = guide
        self.scores_given = guide.scores_given
        self.steps, self.lr, self.largest = steps, float(lr), float(largest)
        self.differentiate = differentiate
        self.hold(model)
        noise = mirrored(2 * steps, particles, sum(self.noise_sizes.values()))
        self.register_buffer("noise", noise.reshape(steps, 2, *noise.shape[1:]))

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        features = self.guide.encoder(batch, **latents)
        with self._refined(features, batch, latents), pyro.plate("data", batch.size, dim=-1):
            return self.guide.draw(features)

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        features = self.guide.encoder(batch, **latents)
        with self._refined(features, batch, latents):
            return self.guide.of_features(features)

    def _refined(self, features: Tensor, batch: Batch, latents: Mapping[str, Tensor]) -> Biases:
        biases = Biases(self.guide)
        values = [features.new_zeros(*features.shape[:-1], layer.out_features) for layer in biases.layers]
        through = self.differentiate and self._learns(features)
        features = features if through else features.detach()
        tried = features.new_ones(features.shape[:-1])  # how much of a whole step is tried first
        for way, length in self.noise:
            with torch.enable_grad():
                now = [t if through and t.requires_grad else t.detach().requires_grad_() for t in values]
                elbo, slopes = self._elbo(biases, now, features, batch, latents, length, through)
                _, gradients = self._elbo(biases, now, features, batch, latents, way, through)
            with torch.set_grad_enabled(through):
                moves = self._moves(biases, gradients, tried)
                slope = sum(((g * move).sum(-1) for g, move in zip(slopes, moves, strict=True)), torch.zeros_like(elbo))
                there = [value + move for value, move in zip(now, moves, strict=True)]
                share = _share(elbo, slope, self._elbo(biases, there, features, batch, latents, length)[0])
                values = [value + self.lr * share.unsqueeze(-1) * move for value, move in zip(now, moves, strict=True)]
                tried = (tried * (2.0 * share).clamp(min=0.05)).clamp(max=1.0)
        biases.values = values if through else [value.detach() for value in values]
        return biases

    def _learns(self, features: Tensor) -> bool:
        """Whether the guide has a gradient by its parameters here: not while it is held constant, as STL holds it."""
        return torch.is_grad_enabled() and any(head.linear(features).requires_grad for head in self._heads())

    def _elbo(
        self,
        biases: Biases,
        values: Sequence[Tensor],
        features: Tensor,
        batch: Batch,
        latents: Mapping[str, Tensor],
        noise: Tensor,
        through: bool | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(\\*S, N), under biases of these values, at noise (P, numbers); and the gradient by each of them, unless
        `through` is None, which says whether that can be differentiated itself."""
        parts = noise.split(list(self.noise_sizes.values()), dim=-1)
        biases.values = values
        with biases:
            points = self.guide.points(features, dict(zip(self.noise_sizes, parts, strict=True)))
        total = -points.log_q
        with apart():
            conditioned = poutine.condition(self._model[0], data={**latents, **points.values})
            for _, site in sample_sites(poutine.trace(conditioned).get_trace(batch)):
                total = total + score_site(site)
        elbo = points.mean(total)
        if through is None:
            return elbo, ()
        gradients = torch.autograd.grad(elbo.sum(), list(values), create_graph=through, materialize_grads=True)
        return (elbo if through else elbo.detach()), gradients

    def _moves(self, biases: Biases, gradients: Sequence[Tensor], tried: Tensor) -> list[Tensor]:
        """The step that is tried, F⁻¹ ∇L or less, of each layer."""
        heads = {head.linear.linear: head for head in self._heads()}
        moves, square = [], torch.zeros_like(tried)
        for layer, numbers, gradient in zip(biases.layers, biases.outputs, gradients, strict=True):
            assert numbers is not None
            moves.append(heads[layer].inverse_fisher(numbers) * gradient if layer in heads else gradient)
            square = square + (moves[-1] * gradient).sum(-1)  # Δᵀ F Δ of Δ = F⁻¹ ∇L
        whole = torch.minimum(tried, tried * self.largest / square.clamp_min(1e-12).sqrt())
        return [whole.unsqueeze(-1) * move for move in moves]

    def _heads(self) -> list[Head]:
        return [head for head in self.guide.heads.values() if isinstance(head, Head)]

    def extra_repr(self) -> str:
        return f"steps={self.steps}, lr={self.lr:g}, differentiate={self.differentiate}"


def _share(now: Tensor, slope: Tensor, there: Tensor) -> Tensor:
    """How much of a step is best, between 0 and 2, by the parabola through the ELBO now, with its slope along the step,
    and there; 0 where there is none."""
    bend = now + slope - there
    none = torch.zeros_like(bend)
    best = torch.where(bend > 0, (0.5 * slope / bend.clamp_min(1e-12)).clamp(0.0, MOST), none)
    best = torch.where((bend <= 0) & (there > now), MOST, best)
    return torch.where(torch.isfinite(there), best, none)


def check_steps(steps: int, lr: float, particles: int, largest: float) -> None:
    """Raises `InputError` for what cannot be a number of steps, their size, the points in each, the longest step."""
    check_count("steps", steps, least=0)
    check_count("particles", particles)
    if particles % 2:
        raise InputError(
            f"particles={particles} must be an even number: points come in pairs of ε and -ε, without which the "
            "gradient by the mean is biased"
        )
    for argument, size, most in (("lr", lr, 1.0), ("largest", largest, math.inf)):
        number = isinstance(size, int | float) and not isinstance(size, bool)
        if not (number and math.isfinite(size) and 0 < size <= most):
            wanted = "above 0" if most == math.inf else "above 0 and up to 1, a whole natural-gradient step"
            raise InputError(f"{argument}={size!r} must be a number {wanted}")


def _check_guide(model: LatentModel, guide: Guide) -> dict[str, int]:
    """How many numbers of noise a draw of each site takes; raises `InputError` for a guide that cannot be refined."""
    name = type(guide).__name__
    if not isinstance(guide, Amortized):
        raise InputError(
            f"guide={name} is no amortized guide, which are refined: give MeanField, FullRank, LowRank, Mixture, a "
            "Flow, or an Amortized of your own"
        )
    kind = type(guide)
    drawing = next(each for each in kind.__mro__ if "forward" in vars(each))
    if kind.distribution is not Amortized.distribution or not {"draw", "points"} <= vars(drawing).keys():
        raise InputError(
            f"guide={name} draws from something else than its heads' distributions, of which a step would know "
            "nothing: give a guide that leaves `forward` and `distribution` to Amortized"
        )
    if not guide.density:
        raise InputError(f"guide={name} is a point mass, whose ELBO is no bound: refine MeanField")
    wanted = tuple(getattr(model, "latents", ()))
    if guide.sites != wanted:
        raise InputError(
            f"guide={name} draws {[*guide.sites]}, and the latents of {type(model).__name__} are {[*wanted]}: refine "
            "it under the model that it was built for"
        )
    try:
        sizes = guide.noise_sizes()
    except InputError as error:
        raise InputError(f"guide={name} cannot be refined: {error}") from error
    Biases(guide)
    return sizes
