"""Transport score climbing: forward KL along Hamiltonian chains in coordinates that the guide straightens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
)

from ..core import Guide, LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..mcmc import State, hmc_step, log_joint_and_masks, spread
from ..validation import validation
from ..weights import Program, log_weights
from .base import Objective, Terms, objectives
from .chains import Chains
from .held import held
from .score_climbing import fresh_logs
from .wake import forward_loss

__all__ = ["TransportScoreClimbing"]

_GAIN = 0.1


@objectives.register("transport-score-climbing")
class TransportScoreClimbing(Objective):
    r"""Transport score climbing: KL(p(z | x) ‖ q) along Hamiltonian chains in the guide's coordinates.

    The guide is a map z = T_φ(ε; x) of ε ~ N(0, I): an affine one for Gaussians, an invertible flow. Each chain of a
    datum goes from where it is to ε = T⁻¹(z), there by Hamiltonian Monte Carlo on

    .. math:: \log p(x, T_φ(ε; x)) + \log |\det \partial T_φ / \partial ε|

    which is N(0, I) where q is the posterior and near it where q is near, and back to z = T(ε). Of a latent that is
    masked in the model, q stands in for the prior. With the states z_c of C chains,

    .. math:: -\frac1C \sum_c \big(\log p(x, z_c) + \log q(z_c \mid x)\big)

    The move leaves p(z | x) as it is, whatever φ: once the chains are there, the guide's gradient is an unbiased one of
    KL(p(z | x) ‖ q), and the model's one of log p(x). Unlike conditional importance sampling, the move follows the
    gradient of the posterior: it does not slow down where q has missed it, and in many dimensions.

    A datum's chains start with draws of q at its first visit, and are visited once an epoch. Each datum has a step size
    of its own, which follows the acceptance probability, from visit to visit, towards `target`. In evaluation mode the
    chains stand still, and the loss is the one of draws of q.

    Args:
        model: whose latents the chains are of; only its `latents` are read.
        size: N, the number of training data; batches must have `rows`.
        particles: C, chains for each datum, and fresh draws for what is logged.
        steps: leapfrog steps of a transition.
        transitions: for each visit.
        target: acceptance probability, between 0 and 1.

    Attributes:
        chains: the states, (N, C, \*event) by site; log_step: log of the step sizes, (N,). Buffers, moved in place.

    Raises:
        InputError: numbers out of range; a latent site that is discrete, or shared by all data; a guide whose
            `distribution` is no Gaussian and no invertible flow of one; a batch without rows, or with rows beyond N;
            several processes.

    References: Zhang, Blei and Naesseth, Transport score climbing: variational inference using forward KL and adaptive
    neural transport, TMLR 2023 (https://arxiv.org/abs/2202.01841). Hoffman et al., NeuTra-lizing bad geometry in
    Hamiltonian Monte Carlo using neural transport, 2019 (https://arxiv.org/abs/1903.03704).
    """

    scores_given = True
    apart = True
    log_step: Tensor

    def __init__(
        self,
        model: LatentModel | Mapping[str, LatentSpec],
        size: int,
        particles: int = 1,
        steps: int = 4,
        transitions: int = 1,
        target: float = 0.7,
    ) -> None:
        super().__init__(particles)
        check_count("steps", steps)
        check_count("transitions", transitions)
        if not (isinstance(target, float) and 0.0 < target < 1.0):
            raise InputError(f"target={target!r} must lie between 0 and 1; 0.6 to 0.9 are usual")
        self.chains = Chains(model, size, particles, type(self).__name__)
        self.size = size
        latents = model if isinstance(model, Mapping) else model.latents
        if discrete := [name for name, spec in latents.items() if spec.support.is_discrete]:
            raise InputError(
                f"{type(self).__name__} moves its chains along gradients, and {', '.join(map(repr, discrete))} is "
                "discrete; use ScoreClimbing or Wake"
            )
        self.steps, self.transitions, self.target = steps, transitions, target
        self.register_buffer("log_step", torch.full((size,), math.log(0.5)))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        new = self.check(model, guide, *args, **kwargs)
        count = self.particles
        with validation(False):
            states: dict[str, Tensor] = {}
            if self.training:
                states, probability = self._climb(model, guide, self.chains.rows(args, check=new), args, kwargs)

            def climbed(name: str, drawn: Tensor) -> Tensor:
                return torch.cat([states[name], drawn[count:]]) if name in states else drawn

            with held(climbed):
                w = log_weights(model, guide, *args, particles=2 * count, enumerate=False, **kwargs)
        logs = fresh_logs(w, count)
        if self.training:
            logs["acceptance"] = probability
        share = torch.full((count, 1), 1.0 / count, dtype=w.log_likelihood.dtype, device=w.log_likelihood.device)
        joint, log_q = (t.expand(w.particles, w.size)[:count] for t in (w.log_joint, w.log_q))
        return Terms(forward_loss(share, joint, log_q), logs)

    def _climb(
        self, model: Program, guide: Program, rows: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Move the chains of a batch; their values (C, N, \\*event), and the mean acceptance probability (N,)."""
        with torch.no_grad():
            by_site = _posterior(guide, args, kwargs)
            self.chains.expect({name: q.event_shape for name, q in by_site.items()})
            transport = _Transport({name: _piece(name, by_site[name], guide) for name in self.chains.shapes})

            def log_density(noise: Tensor) -> Tensor:
                values, log_dets = transport(noise)
                total, masks = log_joint_and_masks(model, values, *args, **kwargs)
                for name, part in transport.parts(noise).items():
                    total = total + _unmasked(log_dets[name], part, masks.get(name))
                return total

            states, started = self.chains.read(rows)
            fresh = transport.noise(self.particles)
            both = State.at(log_density, torch.cat([transport.inverse(states), fresh]))
            # a chain that q has left so far behind that its place has no numbers any more starts anew
            found = both.log_density.isfinite() & both.gradient.isfinite().all(-1) & started
            state = State(*(_either(found[: self.particles], t) for t in both))
            unit = torch.ones_like(fresh[0])
            log_step = self.log_step.index_select(0, rows).to(fresh.dtype)
            probability = torch.zeros_like(fresh[..., 0])
            for _ in range(self.transitions):
                size = spread(log_step.exp(), state.log_density)
                state, info = hmc_step(log_density, state, size, self.steps, unit)
                probability = probability + info.probability / self.transitions
            values, _ = transport(state.position)
            self.chains.write(rows, values)
            mean = probability.mean(0)
            log_step = log_step + _GAIN * (mean - self.target)
            self.log_step.index_copy_(0, rows, log_step.to(self.log_step.dtype))
        return values, mean

    def extra_repr(self) -> str:
        return f"particles={self.particles}, steps={self.steps}, transitions={self.transitions}, target={self.target}"


class _Piece(NamedTuple):
    """One site's map: z = (t_K ∘ ... ∘ t_1)(loc + scale ε).

    Args:
        loc: (N, \\*base) mean of the Gaussian.
        scale: (N, \\*base) standard deviations, or (N, D, D) a Cholesky factor.
        full: which of the two.
        transforms: t_1 ... t_K.
    """

    loc: Tensor
    scale: Tensor
    full: bool
    transforms: tuple[Transform, ...]

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z (C, N, \\*event) and log |det|, (C, N), of ε (C, N, D)."""
        value = noise.reshape(*noise.shape[:-1], *self.loc.shape[1:])
        if self.full:
            value = self.loc + (self.scale @ value.unsqueeze(-1)).squeeze(-1)
            log_det = self.scale.diagonal(dim1=-2, dim2=-1).log()
        else:
            value = self.loc + self.scale * value
            log_det = self.scale.log()
        total = _per_datum(log_det.expand(len(noise), *log_det.shape))
        for transform in self.transforms:
            carried = transform(value)
            total = total + _per_datum(transform.log_abs_det_jacobian(value, carried))
            value = carried
        return value, total

    def inverse(self, value: Tensor) -> Tensor:
        """ε (C, N, D) of z (C, N, \\*event)."""
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        value = value - self.loc
        if self.full:
            value = torch.linalg.solve_triangular(self.scale, value.unsqueeze(-1), upper=False).squeeze(-1)
        else:
            value = value / self.scale
        return value.reshape(*value.shape[:2], -1)


class _Transport:
    """T_φ(.; x) of all sites together, between ε (C, N, D) and values (C, N, \\*event) by site."""

    def __init__(self, pieces: Mapping[str, _Piece]) -> None:
        self.pieces = pieces
        self.sizes = [piece.loc[0].numel() for piece in pieces.values()]

    def __call__(self, noise: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values, and log |det|, (C, N), both by site."""
        values: dict[str, Tensor] = {}
        log_dets: dict[str, Tensor] = {}
        for name, part in self.parts(noise).items():
            values[name], log_dets[name] = self.pieces[name].forward(part)
        return values, log_dets

    def parts(self, noise: Tensor) -> dict[str, Tensor]:
        """ε of each site, (C, N, D_s)."""
        return dict(zip(self.pieces, noise.split(self.sizes, -1), strict=True))

    def inverse(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([piece.inverse(values[name]) for name, piece in self.pieces.items()], -1)

    def noise(self, chains: int) -> Tensor:
        loc = next(iter(self.pieces.values())).loc
        return torch.randn(chains, len(loc), sum(self.sizes), dtype=loc.dtype, device=loc.device)


def _posterior(guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, TorchDistributionMixin]:
    try:
        if isinstance(guide, Guide):
            return guide.distribution(*args, **kwargs)
    except NotImplementedError:
        pass
    raise InputError(
        "TransportScoreClimbing needs a guide that gives q(z | x) of each site by `distribution`, and "
        f"{type(guide).__name__} gives none; use ScoreClimbing or Wake"
    )


def _piece(site: str, q: TorchDistributionMixin, guide: Program) -> _Piece:
    transforms: list[Transform] = []
    inner: Any = q
    while isinstance(inner, TransformedDistribution | Independent):
        if isinstance(inner, TransformedDistribution):
            transforms = [*inner.transforms, *transforms]
        inner = inner.base_dist
    if isinstance(inner, Normal):
        loc, scale = torch.broadcast_tensors(inner.loc, inner.scale)
        return _Piece(loc, scale, False, tuple(transforms))
    if isinstance(inner, MultivariateNormal | LowRankMultivariateNormal):
        return _Piece(inner.loc, inner.scale_tril, True, tuple(transforms))
    raise InputError(
        "TransportScoreClimbing needs a guide whose q(z | x) is a Gaussian or an invertible flow of one; that of "
        f"{type(guide).__name__} at the site {site!r} is a {type(inner).__name__}; use ScoreClimbing or Wake"
    )


def _either(first: Tensor, both: Tensor) -> Tensor:
    """The first half of 2C chains where it is `first`, (C, N), otherwise the second."""
    one, other = both.chunk(2)
    return torch.where(first.reshape(*first.shape, *[1] * (one.dim() - 2)), one, other)


def _unmasked(log_det: Tensor, noise: Tensor, mask: Tensor | bool | None) -> Tensor:
    """log |det|, (C, N), of a site under a mask. A latent that is masked in the model has no prior, and no posterior:
    the guide takes the prior's place, which is N(0, I) of ε. Without any its chain would wander off for ever."""
    if mask is None or mask is True:
        return log_det
    standard = -0.5 * noise.square().sum(-1)
    return standard if mask is False else torch.where(mask, log_det, standard)


def _per_datum(log_det: Tensor) -> Tensor:
    """Σ over all dimensions right of (C, N)."""
    return log_det.flatten(2).sum(-1) if log_det.dim() > 2 else log_det
