"""The structured variational autoencoder's bound, and natural gradients for what all data share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from ..batch import Batch
from ..conjugate import Dirichlet, NormalInverseWishart
from ..errors import InputError
from ..guides.structured import LocalPosterior, Structured, free_numbers, from_free
from ..models.structured_vae import StructuredVAE
from ..validation import validation
from ..weights import Program
from .base import Objective, Terms, objectives

__all__ = ["StructuredELBO", "local_kl", "natural_step"]

_LOG_2PI = math.log(2.0 * math.pi)


@objectives.register("structured-elbo")
class StructuredELBO(Objective):
    r"""Structured autoencoder's ELBO: its KLs in closed form, natural gradients for what all data share.

    .. math::
        \sum_n E_{q(z_n)}[\log p(x_n \mid z_n)] - E_{q(π, μ, Σ)}\big[\mathrm{KL}(q(k_n) q(z_n) \,\|\,
        p(k_n \mid π)\, p(z_n \mid k_n, μ, Σ))\big] \;-\; \mathrm{KL}(q(π, μ, Σ) \,\|\, p(π, μ, Σ))

    Only log p(x | z) is of draws. Decoder and encoder have its gradient, by the optimizer of the pair; q(π, μ, Σ), of
    natural parameters η, takes the step

    .. math:: η \leftarrow η + ρ \Big(η_0 + \frac NB \sum_{n \in \text{batch}} E_{q(k_n) q(z_n)}[t(k_n, z_n)] - η\Big)

    which is the natural gradient at fixed q(k) q(z), with length ρ; with ρ = 1 and all the data it is the update of
    coordinate ascent in a mixture. (How q(k) q(z) move with η, and the decoder's likelihood with them, is left out, as
    in the authors' program.) The step is taken by an optimizer of its own, and depends on no learning rate, no weight
    and no scale of the loss; clipping of gradients would shorten it, and `fit` refuses it.

    Args:
        particles: draws of each z.
        step: ρ, above 0 and at most 1.
        data_size: N, the number of training data; None: the batch is all the data.

    Raises:
        InputError: numbers out of range; another model or guide than `StructuredVAE` and `guides.Structured`.

    References:
        Johnson et al., NIPS 2016 (https://arxiv.org/abs/1603.06277).
        Hoffman et al., Stochastic variational inference, JMLR 2013 (https://arxiv.org/abs/1206.7051).
    """

    clips = False

    def __init__(self, particles: int = 1, step: float = 0.1, data_size: int | None = None) -> None:
        super().__init__(particles)
        if isinstance(step, bool) or not (isinstance(step, int | float) and 0 < step <= 1):
            raise InputError(f"step={step!r} must be a number above 0, and at most 1")
        if data_size is not None and (not isinstance(data_size, int) or isinstance(data_size, bool) or data_size < 1):
            raise InputError(f"data_size={data_size!r} must be a whole number, 1 or more, or None")
        self.step = float(step)
        self.data_size = data_size

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> bool:
        for part, kind, name in ((model, StructuredVAE, "model"), (guide, Structured, "guide")):
            if not isinstance(part, kind):
                raise InputError(
                    f"StructuredELBO is of StructuredVAE with the guide Structured, and {name} is a "
                    f"{type(part).__name__}; use ELBO"
                )
        return super().check(model, guide, *args, **kwargs)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        self.check(model, guide, *args, **kwargs)
        assert isinstance(model, StructuredVAE)
        assert isinstance(guide, Structured)
        batch: Batch = args[0]
        size = batch.size if self.data_size is None else self.data_size
        with validation(False):
            # q(π, μ, Σ) is moved by natural gradients alone
            shared = from_free({name: free.detach() for name, free in guide.shared.items()})
            local = guide.infer(batch, shared)
            noise = torch.randn(self.particles, *local.mean.shape, dtype=local.mean.dtype, device=local.mean.device)
            z = local.mean + (local.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
            log_likelihood = model.decoded(z, batch.observed).log_prob(batch.x).mean(0)
            kl = local_kl(local, *shared)
            priors = model.priors
            whole = shared[0].kl(priors[0]) + shared[1].kl(priors[1]).sum()
            kl = kl + whole / size
            with torch.no_grad():
                ahead = natural_step(shared, priors, local, size / batch.size, self.step)
                target = free_numbers(*ahead)
            towards = sum(_Towards.apply(free, target[name]) for name, free in guide.shared.items())
        loss = kl - log_likelihood + towards
        logs = {"elbo": log_likelihood - kl, "kl": kl, "log_likelihood": log_likelihood}
        return Terms(loss, {name: log.detach() for name, log in logs.items()})

    def optimizers(self, model: Program | None = None, guide: Program | None = None) -> Sequence[Optimizer]:
        """Plain gradient descent of rate 1 on the numbers of q(π, μ, Σ), whose gradient is the step's length."""
        return [SGD(guide.shared.parameters(), lr=1.0)] if isinstance(guide, Structured) else []

    def extra_repr(self) -> str:
        return f"particles={self.particles}, step={self.step:g}, data_size={self.data_size}"


class _Towards(torch.autograd.Function):
    """0, whose gradient is how far numbers lie from where they are to go, whatever the loss is multiplied by."""

    @staticmethod
    def forward(ctx: Any, free: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(free, target)
        return free.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor, None]:
        free, target = ctx.saved_tensors
        return free - target, None


def local_kl(local: LocalPosterior, weights: Dirichlet, normals: NormalInverseWishart) -> Tensor:
    """E_q(π, μ, Σ)[KL(q(k_n) q(z_n) ‖ p(k_n | π) p(z_n | k_n, μ, Σ))] of each datum, (N,), nats."""
    d = local.mean.shape[-1]
    precision = normals.expected_precision
    spread = local.covariance.flatten(1) @ precision.flatten(1).T
    expected = weights.expected_statistics() + normals.expected_log_normal(local.mean) - 0.5 * spread
    r = local.responsibilities
    log_det = local.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    entropy = log_det + 0.5 * d * (1.0 + _LOG_2PI)
    return (r * (local.logits - expected)).sum(-1) - entropy


def natural_step(
    shared: tuple[Dirichlet, NormalInverseWishart],
    priors: tuple[Dirichlet, NormalInverseWishart],
    local: LocalPosterior,
    scale: float = 1.0,
    step: float = 1.0,
) -> tuple[Dirichlet, NormalInverseWishart]:
    r"""η + ρ (η_0 + scale · Σ_n E[t] - η), in the parameters where it rounds least.

    A convex combination of two distributions' natural parameters is one of κ, κ m, ν and Ψ + κ m mᵀ. With m' the mean
    of both, Ψ' is that of the Ψ and of the scatter of the m about m':
    Ψ' = (1-ρ) Ψ + ρ Ψ_1 + (1-ρ) ρ κ κ_1 / κ' (m - m_1)(m - m_1)ᵀ.

    Args:
        shared, priors: η and η_0.
        local: q(k_n) q(z_n).
        scale: N/B.
        step: ρ.
    """
    weights, normals = shared
    r = scale * local.responsibilities
    goal_weights = priors[0].posterior(r.sum(0))
    goal = priors[1].posterior(local.mean, r)
    psi = goal.psi + (r.T @ local.covariance.flatten(1)).unflatten(-1, goal.psi.shape[-2:])
    alpha = torch.lerp(weights.concentration, goal_weights.concentration, step)
    kappa, nu = torch.lerp(normals.kappa, goal.kappa, step), torch.lerp(normals.nu, goal.nu, step)
    off = goal.mean - normals.mean
    mean = normals.mean + (step * goal.kappa / kappa).unsqueeze(-1) * off
    apart = ((1.0 - step) * step * normals.kappa * goal.kappa / kappa)[..., None, None]
    psi = torch.lerp(normals.psi, psi, step) + apart * off.unsqueeze(-1) * off.unsqueeze(-2)
    return Dirichlet(alpha), NormalInverseWishart(mean, kappa, 0.5 * (psi + psi.mT), nu)
