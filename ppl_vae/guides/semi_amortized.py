"""The semi-amortized guide: an encoder's answer, refined for each datum by gradient steps on its ELBO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError, choose
from ..handlers import apart
from ..networks import Head, families
from ..options import check_options, construct, parse
from ..weights import sample_sites, score_site
from .base import Amortized, guides
from .refined import OfSteps, Refined, check_steps

__all__ = ["SemiAmortized"]

LR, PARTICLES = 0.3, 2
LR_OF_ANY, PARTICLES_OF_ANY = 0.7, 8


@guides.register("semi-amortized")
class SemiAmortized(OfSteps, Amortized):
    r"""Amortized guide refined by a few gradient steps on each datum's ELBO, under the model itself.

    Of a Gaussian, `family`, they are natural-gradient steps, told here. With `base` a guide of any other amortized
    family is refined, as `Refined` tells: "mixture", "spline", or a guide already made, perhaps trained.

    From the encoder's q = N(m, S Sᵀ), S diagonal or triangular, every step is

    .. math::
        m \leftarrow m + S\, Δ_m, \quad S \leftarrow S\, B, \qquad
        Δ_m = η\, S^\top \nabla_m L, \quad \log B_{dd} = \tfrac{η}{2} (S^\top \nabla_S L)_{dd}, \quad
        B_{ij} = α η\, (S^\top \nabla_S L)_{ij}, \; i > j

    the gradient in the metric of q: Δ and B are in q's own standard deviations, so that one η serves wide and narrow
    posteriors, and a step longer than `largest` of them is shortened.

    L(m, S) is the ELBO, its expectation over q taken at points m + S ε of signs ε = ±1, one standard deviation away in
    every dimension: a quadrature that is exact for cubic polynomials without products of dimensions, and with P = 2D
    points for all. Fewer leave noise in the gradient below the diagonal, where α = P/2D (1 at most) shortens the steps.
    The signs differ from step to step and are fixed once for all. So q is a function of x like any other guide's:
    `distribution` draws nothing, log q of any z is known, and the draws of z that an objective or an evaluation makes
    share nothing with what found q.

    What the encoder learns from, and the model:

    - ``differentiate=False``: the steps are constants. The gradient of the refined q goes to the encoder as it is (to
      first order, as if q moved with its start), and to the model at a fixed q, as in variational EM. A step
      costs one more pass through the model, forwards and backwards, and leaves no gradient there.
    - ``differentiate=True``: through the steps, by second derivatives. This is the exact gradient of what is maximized,
      at about twice the time and a graph through all steps in memory. The refined q is then a function of the model's
      parameters too, and whatever an objective asks of q, it asks of the model: right for ELBO and IWAE, wrong for
      those that train the two on different things (wake, score climbing), which refuse it. Hence it is not the default.
      Where the guide's own parameters are held constant, as when STL and DReG score draws anew, so are the steps.

    Args:
        model: what the guide is for. Its program is run by the guide, which does not own its parameters: copy and move
            the two together, ``copy.deepcopy((model, guide))``. A copy of the guide alone has a model of its own. With
            another model than it runs the guide is refused.
        encoder: features of a batch; None where `base` is a guide that has its own.
        family: of q, "mean-field" or "full-rank".
        steps: K; 0 leaves the amortized guide.
        lr: η, above 0 and up to 1; with 1 and an exact gradient the mean of a Gaussian posterior of covariance S Sᵀ is
            met at once. None: 0.3, and 0.7 of a `base`.
        particles: P, points in each step's ELBO, an even number, of pairs ε and -ε. None: 2, and 8 of a `base`.
        differentiate: see above.
        largest: of a step, in q's standard deviations.
        base: what is refined in place of a Gaussian: an amortized guide, or the name of one, with options after plus
            signs, "low-rank+rank=3".

    Raises:
        InputError: numbers out of range, an odd number of points, an unknown family or base, one that cannot be refined
            (`Refined`); a latent site shared by all data, of a discrete support, or for "full-rank" whose events are no
            vectors.

    References:
        Kim et al., Semi-amortized variational autoencoders, ICML 2018 (https://arxiv.org/abs/1802.02550).
        Krishnan, Liang and Hoffman, On the challenges of learning with inference networks, AISTATS 2018
        (https://arxiv.org/abs/1710.06085): without derivatives of the steps.
        Marino, Yue and Mandt, Iterative amortized inference, ICML 2018 (https://arxiv.org/abs/1807.09356).
    """

    signs: Tensor

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder | None = None,
        family: Literal["mean-field", "full-rank"] = "mean-field",
        steps: int = 5,
        lr: float | None = None,
        particles: int | None = None,
        differentiate: bool = False,
        largest: float = 1.0,
        base: str | Amortized | None = None,
    ) -> None:
        if family not in families:
            raise choose("family", family, families)
        if base is not None and family != "mean-field":
            raise InputError(f"family={family!r} and base={_name(base)!r} each say what is refined; give one of them")
        lr = lr if lr is not None else LR if base is None else LR_OF_ANY
        particles = particles if particles is not None else PARTICLES if base is None else PARTICLES_OF_ANY
        self.refined: Refined | None = None
        if base is not None:
            Guide.__init__(self)
            self.refined = Refined(model, _made(base, model, encoder), steps, lr, particles, differentiate, largest)
            self.sites, self.scores_given = self.refined.sites, self.refined.scores_given
        else:
            check_steps(steps, lr, particles, largest)
            if encoder is None:
                raise InputError(
                    "encoder=None: give the encoder whose answer is refined, or a guide that has one, base"
                )
            super().__init__(model, encoder, families[family])
            numbers = sum(head.numel for head in self._heads().values())
            self.register_buffer("signs", _signs(steps, particles, numbers))
            self.covered = min(1.0, (particles + 1) // 2 / _size(numbers))
        self.family, self.steps, self.lr, self.largest = family, steps, float(lr), float(largest)
        self.differentiate = differentiate
        self.hold(model)

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = (super().forward if self.refined is None else self.refined)(batch, **latents)
        return draws

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        if self.refined is not None:
            return self.refined.distribution(batch, **latents)
        features = self.encoder(batch, **latents)
        heads = self._heads()
        start = {name: _Gaussian.of(q, heads[name]) for name, q in self.gaussians(features).items()}
        return {
            name: heads[name].to_support(q.made(heads[name]))
            for name, q in self._refined(start, batch, latents).items()
        }

    def _heads(self) -> Mapping[str, Head]:
        return cast("Mapping[str, Head]", self.heads)

    def _refined(
        self, start: Mapping[str, _Gaussian], batch: Batch, latents: Mapping[str, Tensor]
    ) -> dict[str, _Gaussian]:
        through = self.differentiate and any(t.requires_grad for q in start.values() for t in q)
        change = {name: _Change.none(q) for name, q in start.items()}
        for signs in self.signs:
            with torch.enable_grad():
                now = {name: _leaf(change[name].of(q), through) for name, q in start.items()}
                elbo = self._elbo(now, batch, latents, signs)
                gradients = iter(
                    torch.autograd.grad(elbo.sum(), [t for q in now.values() for t in q], create_graph=through)
                )
            with torch.set_grad_enabled(through):
                steps = {n: q.step(next(gradients), next(gradients), self.lr, self.covered) for n, q in now.items()}
                squares = torch.stack([step.square_norm() for step in steps.values()])  # (sites, *S, N)
                length = squares.sum(0).clamp_min(1e-12).sqrt()
                shorter = (self.largest / length).clamp(max=1.0).unsqueeze(-1)
                change = {name: c.then(now[name], steps[name].times(shorter)) for name, c in change.items()}
        return {name: change[name].of(q) for name, q in start.items()}

    def _elbo(self, q: Mapping[str, _Gaussian], batch: Batch, latents: Mapping[str, Tensor], signs: Tensor) -> Tensor:
        """(\\*S, N), up to a constant, at points of the signs (P, numbers)."""
        values: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        heads = self._heads()
        parts = signs.split([head.numel for head in heads.values()], dim=-1)
        for (name, head), part in zip(heads.items(), parts, strict=True):
            loc = q[name].loc
            free = q[name].at(part.reshape(-1, *[1] * (loc.dim() - 1), head.numel))  # (P, *S, N, numbers)
            free = free.reshape(*free.shape[:-1], *head.free_shape)
            total = total + q[name].log_det()  # where signs are fixed, -log q is this and a constant
            values[name] = free
            if head.transform is not None:
                values[name] = head.transform(free)
                log_volume = head.transform.log_abs_det_jacobian(free, values[name])
                total = total + sum_rightmost(log_volume, len(head.free_shape) - head.transform.domain.event_dim)
        with apart():
            conditioned = poutine.condition(self._model[0], data={**latents, **values})
            for _, site in sample_sites(poutine.trace(conditioned).get_trace(batch)):
                total = total + score_site(site)
        assert isinstance(total, Tensor)
        return total.mean(0)

    def extra_repr(self) -> str:
        if self.refined is not None:
            return ""
        return f"family={self.family!r}, steps={self.steps}, lr={self.lr:g}, differentiate={self.differentiate}"


def _name(base: str | Amortized) -> str:
    return base if isinstance(base, str) else type(base).__name__


def _made(base: str | Amortized, model: LatentModel, encoder: Encoder | None) -> Amortized:
    """The guide itself, or one by name, as "low-rank+rank=3"."""
    if not isinstance(base, str):
        if encoder is not None:
            raise InputError(f"base is a {_name(base)}, which has an encoder of its own: leave encoder out")
        return base
    name, options = parse("base", base.replace("+", ":"))
    if name not in guides:
        raise choose("base", name, [each for each in guides if _is_amortized(guides.get(each))])
    part = guides.get(name)
    if not _is_amortized(part):
        raise InputError(f"base={name!r} is no amortized guide whose heads' answers could be refined")
    if encoder is None:
        raise InputError(f"encoder=None: base={base!r} is made of one")
    return cast(
        "Amortized",
        construct(
            "base", name, part, model, encoder, options=check_options("base", name, part, options, ("model", "encoder"))
        ),
    )


def _is_amortized(part: type[Guide]) -> bool:
    return issubclass(part, Amortized) and part.density and part is not SemiAmortized


class _Gaussian(NamedTuple):
    """N(loc, S Sᵀ) over free numbers: scale is the diagonal of S, (\\*S, N, D), or S itself, (\\*S, N, D, D)."""

    loc: Tensor
    scale: Tensor

    @classmethod
    def of(cls, q: TorchDistributionMixin, head: Head) -> _Gaussian:
        if isinstance(q, dist.MultivariateNormal):
            return cls(q.loc, q.scale_tril)
        normal = q.base_dist if isinstance(q, Independent) else q
        shape = (*q.batch_shape, head.numel)
        return cls(normal.loc.reshape(shape), normal.scale.reshape(shape))

    def made(self, head: Head) -> TorchDistributionMixin:
        if self.full:
            full: TorchDistributionMixin = dist.MultivariateNormal(self.loc, scale_tril=self.scale)
            return full
        shape = (*self.loc.shape[:-1], *head.free_shape)
        diagonal: TorchDistributionMixin = dist.Normal(self.loc.reshape(shape), self.scale.reshape(shape)).to_event(
            len(head.free_shape)
        )
        return diagonal

    @property
    def full(self) -> bool:
        return self.scale.dim() > self.loc.dim()

    def at(self, signs: Tensor) -> Tensor:
        return self.loc + self.scaled(signs)

    def scaled(self, vector: Tensor) -> Tensor:
        """S v."""
        return (self.scale @ vector.unsqueeze(-1)).squeeze(-1) if self.full else self.scale * vector

    def log_det(self) -> Tensor:
        diagonal = self.scale.diagonal(dim1=-2, dim2=-1) if self.full else self.scale
        return diagonal.log().sum(-1)

    def step(self, by_loc: Tensor, by_scale: Tensor, lr: float, covered: float) -> _Step:
        """The natural gradient in units of q, from the gradients by loc and scale. The Fisher information of a move by
        S Δ is 1 a dimension, of a growth of S to S B it is 2 on the diagonal's logarithm and 1 below it. Below it steps
        are shorter where the points do not cover all pairs of dimensions."""
        if not self.full:
            return _Step(lr * self.scale * by_loc, 0.5 * lr * self.scale * by_scale, None)
        move = (self.scale.mT @ by_loc.unsqueeze(-1)).squeeze(-1)
        growth = self.scale.mT @ by_scale
        return _Step(lr * move, 0.5 * lr * growth.diagonal(dim1=-2, dim2=-1), covered * lr * growth.tril(-1))


class _Step(NamedTuple):
    """A move Δ (\\*S, N, D), the logarithm of B's diagonal (\\*S, N, D), and what lies below it."""

    move: Tensor
    log_diagonal: Tensor
    below: Tensor | None

    def square_norm(self) -> Tensor:
        total = self.move.square().sum(-1) + self.log_diagonal.square().sum(-1)
        return total if self.below is None else total + self.below.square().sum((-2, -1))

    def times(self, factor: Tensor) -> _Step:
        below = None if self.below is None else factor.unsqueeze(-1) * self.below
        return _Step(factor * self.move, factor * self.log_diagonal, below)


class _Change(NamedTuple):
    """What all steps together did to a start: loc + shift, S B."""

    shift: Tensor
    growth: Tensor

    @classmethod
    def none(cls, q: _Gaussian) -> _Change:
        if not q.full:
            return cls(torch.zeros_like(q.loc), torch.ones_like(q.scale))
        return cls(torch.zeros_like(q.loc), torch.eye(q.loc.shape[-1]).to(q.scale).expand(q.scale.shape))

    def of(self, start: _Gaussian) -> _Gaussian:
        scale = start.scale @ self.growth if start.full else start.scale * self.growth
        return _Gaussian(start.loc + self.shift, scale)

    def then(self, now: _Gaussian, step: _Step) -> _Change:
        diagonal = step.log_diagonal.exp()
        growth = self.growth * diagonal if step.below is None else self.growth @ (step.below + diagonal.diag_embed())
        return _Change(self.shift + now.scaled(step.move), growth)


def _leaf(q: _Gaussian, through: bool) -> _Gaussian:
    """What a step differentiates by: of a graph of its own, unless the steps are differentiated too."""
    loc, scale = (t if through and t.requires_grad else t.detach().requires_grad_() for t in q)
    return _Gaussian(loc, scale)


def _size(numbers: int) -> int:
    """Of the smallest Hadamard matrix of Sylvester's with so many columns: the next power of 2."""
    return 1 << (numbers - 1).bit_length()


def _signs(steps: int, particles: int, numbers: int) -> Tensor:
    """(steps, particles, numbers), mirrored pairs, the same in every guide of these sizes.

    Pairs are rows of Hadamard matrices, one after another through all steps, with columns shuffled and flipped from
    matrix to matrix: rows of one are orthogonal, so that together they have a Gaussian's covariance.
    """
    generator = torch.Generator().manual_seed(0)
    hadamard = torch.ones(1, 1)
    while len(hadamard) < _size(numbers):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    size, pairs = len(hadamard), (particles + 1) // 2
    rows = [hadamard.new_empty(0, numbers)]
    for _ in range(-(-steps * pairs // size)):
        order, columns = torch.randperm(size, generator=generator), torch.randperm(size, generator=generator)[:numbers]
        flips = 2.0 * torch.randint(2, (numbers,), generator=generator) - 1.0
        rows.append(hadamard[order][:, columns] * flips)
    half = torch.cat(rows)[: steps * pairs].reshape(steps, pairs, numbers)
    return torch.cat([half, -half], dim=1)[:, :particles]
