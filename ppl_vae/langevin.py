"""Langevin chains: gradient steps on an energy with noise, adjusted to keep its density or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError, check_count, check_number
from .mcmc import State, hmc_step

__all__ = ["Chain", "ChainError", "check_step", "langevin", "stable_step"]

Energy = Callable[[Tensor], Tensor]


class ChainError(InputError):
    """A chain ran away."""


class Chain(NamedTuple):
    """Where chains arrived, (C, \\*shape), and the share of accepted steps, 0-dimensional: 1 where none is asked."""

    x: Tensor
    acceptance: Tensor


def langevin(
    energy: Energy,
    x: Tensor,
    dims: int,
    steps: int,
    step_size: float,
    *,
    adjust: bool = True,
    noise: float = 1.0,
    check: bool = True,
) -> Chain:
    r"""So many steps of every chain.

    .. math:: x' = x - \tfrac{ε^2}{2} ∇E(x) + τ ε ξ, \qquad ξ \sim N(0, I)

    With τ = 1 the chain keeps p ∝ exp(-E) up to an error that vanishes with ε. With `adjust` each proposal is accepted
    or rejected by Metropolis and Hastings' rule (MALA, one leapfrog step of HMC), and p is kept exactly. With τ < 1, as
    is customary for images, it keeps a sharper density, which is not p.

    Args:
        energy: from (C, \\*shape) to (C,).
        x: (C, \\*shape) where the chains are.
        dims: how many dimensions one x has.
        steps: how many.
        step_size: ε > 0.
        adjust: accept or reject.
        noise: τ >= 0, without `adjust`.
        check: look at the result; not while a step is traced.

    Raises:
        ChainError: a chain ran away, with a step size that would not have.
        InputError: numbers out of range.

    References: Roberts and Tweedie, Exponential convergence of Langevin distributions and their discrete
    approximations, Bernoulli 1996. Nijkamp et al., Learning non-convergent non-persistent short-run MCMC, NeurIPS 2019
    (https://arxiv.org/abs/1904.09770).
    """
    check_count("steps", steps, 0)
    check_step(step_size, adjust, noise)
    before = x = x.detach()
    one = torch.ones((), dtype=x.dtype, device=x.device)
    if adjust:
        shape = x.shape

        def log_density(q: Tensor) -> Tensor:
            return -energy(q.reshape(shape)).unsqueeze(1)

        state = State.at(log_density, x.reshape(len(x), 1, -1))
        size, mass = step_size * one.expand(1), one.expand(state.position.shape[1:])
        accepted = 0.0 * one
        for _ in range(steps):
            state, info = hmc_step(log_density, state, size, 1, mass)
            accepted = accepted + info.accepted.to(x.dtype).mean() / steps
        x, acceptance = state.position.reshape(shape), accepted
    else:
        for _ in range(steps):
            x = x - 0.5 * step_size**2 * _gradient(energy, x) + noise * step_size * torch.randn_like(x)
        acceptance = one
    if check and not bool(x.isfinite().all()):
        runaway = (~x.isfinite()).flatten(1).any(1)
        stable = stable_step(energy, before[runaway][:16])
        raise ChainError(
            f"step_size={step_size:g}: {int(runaway.sum())} of {len(x)} chains ran away within {steps} steps; where "
            f"they began, steps of {stable:.2g} or less are stable"
            if stable > 0
            else f"step_size={step_size:g}: {int(runaway.sum())} of {len(x)} chains began where the energy is no number"
        )
    return Chain(x.detach(), acceptance.detach())


def check_step(step_size: float, adjust: bool, noise: float) -> None:
    """Raise `InputError` for what cannot be a step of `langevin`."""
    check_number("step_size", step_size, above=0.0)
    check_number("noise", noise, least=0.0)
    if adjust and noise != 1.0:
        raise InputError(f"noise={noise:g} is of unadjusted chains: give adjust=False, or noise=1")


def stable_step(energy: Energy, x: Tensor, iterations: int = 20) -> float:
    r"""The step size :math:`\sqrt{1/L}`, half of what is stable, where L is the largest curvature of E at these points,
    by power iteration with Hessian-vector products; 0 where it is no number."""
    if not bool(x.isfinite().all()):
        return 0.0
    v = torch.randn_like(x)
    largest = 0.0
    for _ in range(iterations):
        v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, *[1] * (x.dim() - 1))
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(at).sum(), at, create_graph=True)
            (v,) = torch.autograd.grad((slope * v).sum(), at)
        largest = float(v.flatten(1).norm(dim=1).max())
    return math.sqrt(1.0 / largest) if 0.0 < largest < math.inf else 0.0


def _gradient(energy: Energy, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(energy(x).sum(), x)
    return found
