"""Maximum likelihood of an energy, with the model's side from persistent Langevin chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import InputError, check_count, check_number
from ..langevin import check_step, langevin, stable_step
from ..objectives.base import Objective, Terms
from ..weights import Program
from .given import given
from .model import EnergyModel

__all__ = ["LangevinLikelihood"]


class LangevinLikelihood(Objective):
    r"""The likelihood's gradient of an `EnergyModel`, with the expectation under the model taken from chains.

    .. math::
        \frac1N \sum_n E(x_n) - \frac1M \sum_m E(\tilde x_m), \qquad
        ∇ = \frac1N \sum_n ∇E(x_n) - \frac1M \sum_m ∇E(\tilde x_m)

    whose value is no bound on anything: only its gradient means something. The M chains go on from step to step, k
    steps of Langevin each time; a share of them is begun anew at the Gaussian, so that they find modes that the others
    left.

    Args:
        chains: M.
        shape: of one x.
        steps: k.
        step_size, adjust, noise: of `langevin`.
        renew: the share of chains begun anew in each step.
        penalty: of the mean squared f of data and chains, which keeps energies small (Du and Mordatch, 2019).

    Attributes:
        state: (M, \\*shape) where the chains are; `begun`, whether they were: buffers, saved with the objective.

    Logs, nats per datum: "energy_gap", mean E of the chains minus E of the datum; "acceptance".

    Raises:
        InputError: numbers out of range; at the first call, a model that is no `EnergyModel`, or one of another shape.

    References: Tieleman, ICML 2008. Du and Mordatch, Implicit generation and modeling with energy-based models, NeurIPS
    2019 (https://arxiv.org/abs/1903.08689).
    """

    watched = "energy_gap"
    state: Tensor
    begun: Tensor

    def __init__(
        self,
        chains: int,
        shape: tuple[int, ...],
        steps: int = 20,
        step_size: float = 0.1,
        adjust: bool = True,
        noise: float = 1.0,
        renew: float = 0.05,
        penalty: float = 0.0,
    ) -> None:
        super().__init__()
        self.chains = check_count("chains", chains)
        self.steps = check_count("steps", steps)
        check_step(step_size, adjust, noise)
        self.step_size, self.adjust, self.noise = float(step_size), adjust, float(noise)
        self.renew = check_number("renew", renew, least=0.0)
        if renew > 1:
            raise InputError(f"renew={renew!r} is a share of the chains, from 0 to 1")
        self.penalty = check_number("penalty", penalty, least=0.0)
        self.register_buffer("state", torch.zeros(chains, *shape))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        model, x = given(self, EnergyModel, model, args)
        if x.shape[1:] != model.shape or self.state.shape[1:] != model.shape:
            raise InputError(
                f"batch.x is {tuple(x.shape[1:])} a datum and shape={tuple(self.state.shape[1:])}; the model's "
                f"is {tuple(model.shape)}"
            )
        reached, acceptance = self.state.to(x.dtype), x.new_ones(())
        if self.training:
            fresh = model.base(self.chains)
            keep = (torch.rand(self.chains, device=x.device) >= self.renew) & self.begun
            start = torch.where(keep.reshape(-1, *[1] * len(model.shape)), reached, fresh)
            reached, acceptance = langevin(
                model.energy,
                start,
                len(model.shape),
                self.steps,
                self.step_size,
                adjust=self.adjust,
                noise=self.noise,
                check=False,
            )
            with torch.no_grad():
                self.state.copy_(reached)
                self.begun.fill_(True)
        ours, theirs = model.energy(x), model.energy(reached)
        loss = ours - theirs.mean()
        if self.penalty:
            loss = loss + self.penalty * (model.tilt(x).square() + model.tilt(reached).square().mean())
        logs = {"energy_gap": (theirs.mean() - ours).detach(), "acceptance": acceptance.expand(len(x))}
        return Terms(loss, logs)

    def first_bad(self, model: Program, batch: Batch) -> str:
        """What a loss that is no number came of: chains that ran away, as a rule."""
        assert isinstance(model, EnergyModel)
        if not bool(self.state.isfinite().all()):
            stable = stable_step(model.energy, model.base(16))
            advice = f"; at the Gaussian, steps of {stable:.2g} or less are stable" if stable > 0 else ""
            return f"the Langevin chains, which ran away with step_size={self.step_size:g}{advice}"
        return "the energy of the data or of the chains"

    def extra_repr(self) -> str:
        return f"chains={self.chains}, steps={self.steps}, step_size={self.step_size:g}, adjust={self.adjust}"
