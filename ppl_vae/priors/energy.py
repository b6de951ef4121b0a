"""The prior that is a neural energy over N(0, I)."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..errors import InputError, check_count, check_number
from ..langevin import ChainError, langevin, stable_step
from ..unnormalized import Unnormalized
from .base import Prior, priors

if TYPE_CHECKING:
    from ..energy import LogPartition

__all__ = ["Energy"]

_SETS = 8  # of base points, each scrambled on its own, of whose spread the error bar is made
_FEW = 100.0  # effective base points below which log Z is not to be relied on
_STUCK = 0.05  # share of accepted steps below which chains do not move
_REMEMBERED = 0.9


@priors.register("energy")
class Energy(Prior):
    r"""Energy-based prior: a network f tilts the standard normal.

    .. math::
        p(z) = \frac{e^{-f(z)}\, N(z; 0, I)}{Z}, \qquad Z = E_{z \sim N(0, I)}\big[e^{-f(z)}\big], \qquad
        ∇_θ \log p(z) = -∇_θ f(z) + E_{\tilde z \sim p}\big[∇_θ f(\tilde z)\big]

    It is learned with the rest, under any objective: in training the expectation under p is of M Langevin chains, which
    begin at N(0, I), go on from step to step and are adjusted (MALA), a share of them begun anew each time. log Z is
    estimated by importance sampling from N(0, I), over fixed scrambled Sobol points: it is a function of the network
    alone, is never out of date, and has an error bar (`log_partition`), which is that of all data at once: no number of
    data averages it away. Where too few points count, a warning says so; `evaluate` then reports a log p(x) that is too
    high, since log Z as estimated lies below log Z in expectation.

    It starts near N(0, I). Its draws are Langevin chains that begin there.

    Args:
        size: number of dimensions of z.
        hidden: width of the network's two layers; None: 8 · size, at least 64.
        chains: M.
        steps: of Langevin in each training step.
        step_size: ε > 0 of them, and of draws.
        renew: the share of chains begun anew in each training step, from 0 to 1, which finds modes that others left;
            while they are on their way their share of the gradient is off.
        points: K of log Z, in 8 sets, of which training takes the first; 0: none, and log p(z) is refused outside of
            training (within, it is known up to log Z, and so is the bound).
        draw_steps: of Langevin for a draw.

    Attributes:
        state: (M, size) where the chains are; `begun`, whether they were; `acceptance`, of the last steps: buffers.

    Raises:
        InputError: numbers out of range; a density where there are no `points`.
        ChainError: when a density is asked for after a training whose chains stood still, with a step size that would
            not have been too long.

    References: Pang, Han, Nijkamp, Zhu and Wu, Learning latent space energy-based prior model, NeurIPS 2020
    (https://arxiv.org/abs/2006.08205). Owen, Scrambling Sobol' and Niederreiter-Xing points, Journal of Complexity
    1998, for the points' error bar.
    """

    normalized: ClassVar[bool] = False
    state: Tensor
    begun: Tensor
    acceptance: Tensor
    base: Tensor

    def __init__(
        self,
        size: int,
        hidden: int | None = None,
        chains: int = 128,
        steps: int = 10,
        step_size: float = 0.5,
        renew: float = 0.05,
        points: int = 8192,
        draw_steps: int = 200,
    ) -> None:
        super().__init__(size)
        self.chains = check_count("chains", chains)
        self.steps = check_count("steps", steps)
        self.step_size = check_number("step_size", step_size, above=0.0)
        self.renew = check_number("renew", renew, least=0.0)
        if renew > 1:
            raise InputError(f"renew={renew!r} is a share of the chains, from 0 to 1")
        self.points = check_count("points", points, 0)
        if 0 < points < _SETS * 2:
            raise InputError(f"points={points} leaves fewer than two in each of {_SETS} sets: give thousands, or 0")
        self.draw_steps = check_count("draw_steps", draw_steps)
        width = max(64, 8 * size) if hidden is None else check_count("hidden", hidden)
        # no bias at the end: a constant is Z's, and would have no gradient
        self.network = nn.Sequential(
            nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False)
        )
        with torch.no_grad():
            self.network[-1].weight.mul_(0.1)  # type: ignore[operator]
        self.register_buffer("state", torch.zeros(chains, size))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("acceptance", torch.ones(()))
        self.register_buffer("base", _normal_points(points // _SETS, size), persistent=False)
        self._known: tuple[Any, float] | None = None

    def tilt(self, z: Tensor) -> Tensor:
        """f(z) of (\\*S, size): (\\*S)."""
        f: Tensor = self.network(z).squeeze(-1)
        return f

    def energy(self, z: Tensor) -> Tensor:
        """E(z) = f(z) - log N(z; 0, I) of (\\*S, size), nats."""
        return self.tilt(z) + 0.5 * z.square().sum(-1) + 0.5 * self.size * math.log(2 * math.pi)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        normalizer: list[Tensor] = []

        def density(z: Tensor) -> Tensor:
            if not normalizer:  # once a run, however often the density is asked for
                normalizer.append(self._log_z())
            return -self.energy(z) - normalizer[0]

        return Unnormalized(density, self._draw, (self.size,), batch_shape=features.shape[:-1])

    @torch.no_grad()
    def log_partition(self) -> LogPartition:
        """log Z by importance sampling from N(0, I), nats, with its error bar and effective number of points.

        Each of the 8 sets of points is scrambled on its own, so that their 8 estimates are independent; points within a
        set are spread more evenly than random ones are, and the error is smaller than that of as many random points.

        Raises:
            InputError: there are no points.
        """
        from ..energy import LogPartition  # which evaluates, and so knows of models, which know of priors

        self._check_points()
        log_w = -self.tilt(self.base).double().cpu()
        return LogPartition(log_w.flatten(), None, 1, sets=_SETS)

    # --- the normalizer ----------------------------------------------------------------------------------------------

    def _log_z(self) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return self._of_chains()
        if self.training and not self.points:
            return self.state.new_zeros(())
        self._check_points()
        parameters = tuple(self.network.parameters())
        if any(type(p) not in (Tensor, nn.Parameter) or p.is_meta for p in parameters):  # stand-ins, as a tracer's
            return self._estimate(self.base)
        self._check_chains()
        with torch.no_grad():
            # in place of versions, which compiled steps need not count
            key = tuple((p.dtype, p.device, float(p.double().sum()), float(p.double().norm())) for p in parameters)
            if self._known is None or self._known[0] != key:
                found = self.log_partition()
                if found.ess < min(_FEW, self.points / 4):
                    warnings.warn(
                        f"log Z of the energy prior rests on {found.ess:.0f} effective points of {self.points}: log "
                        "p(x) is too high by more than its error bar may say; give more points, or fewer dimensions",
                        stacklevel=2,
                    )
                self._known = (key, float(self._estimate(self.base)))
        return _Known.apply(self, parameters[0].new_tensor(self._known[1]), *parameters)  # type: ignore[no-any-return]

    def _estimate(self, points: Tensor) -> Tensor:
        log_w = -self.tilt(points).flatten()
        return log_w.logsumexp(0) - math.log(log_w.numel())

    def _of_chains(self) -> Tensor:
        """The estimate's value, with the chains' gradient."""
        fresh = torch.randn_like(self.state)
        keep = (torch.rand(self.chains, dtype=self.state.dtype, device=self.state.device) >= self.renew) & self.begun
        start = torch.where(keep.unsqueeze(-1), self.state, fresh)
        reached, acceptance = langevin(self.energy, start, 1, self.steps, self.step_size, check=False)
        with torch.no_grad():
            self.state.copy_(reached)
            self.acceptance.copy_(_REMEMBERED * self.acceptance + (1 - _REMEMBERED) * acceptance)
            self.begun.fill_(True)
            value = self._estimate(self.base[:1]) if self.points else self.state.new_zeros(())
        slope = -self.tilt(reached).mean()
        return value + (slope - slope.detach())

    def _check_points(self) -> None:
        if not self.points:
            raise InputError(
                "log p(z) asks for the normalizer, and this energy prior has points=0 to estimate it from: give it "
                "thousands, priors.Energy(size, points=8192)"
            )

    def _check_chains(self) -> None:
        """Chains whose steps are all refused stand still, and what they trained is of no density."""
        if float(self.acceptance) < _STUCK or not bool(self.state.isfinite().all()):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                stable = stable_step(self.energy, self.base.flatten(0, 1)[:16])
            advice = f"; at N(0, I), steps of {stable:.2g} or less are stable" if stable > 0 else ""
            raise ChainError(
                f"step_size={self.step_size:g}: {float(self.acceptance):.0%} of the prior's last Langevin steps were "
                f"accepted, so that its chains stood still{advice}"
            )

    def _draw(self, count: int) -> Tensor:
        with torch.no_grad():
            start = torch.randn(count, self.size, dtype=self.state.dtype, device=self.state.device)
            return langevin(self.energy, start, 1, self.draw_steps, self.step_size, check=False).x

    def extra_repr(self) -> str:
        return f"size={self.size}, chains={self.chains}, steps={self.steps}, step_size={self.step_size:g}"


class _Known(torch.autograd.Function):
    """log Z as it is known; its gradient, that of the estimate, is made only where somebody asks for it."""

    @staticmethod
    def forward(ctx: Any, prior: Energy, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.prior = prior
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        prior: Energy = ctx.prior
        with torch.enable_grad():
            slopes = torch.autograd.grad(prior._estimate(prior.base), tuple(prior.network.parameters()))
        return (None, None, *[grads[0] * slope for slope in slopes])


def _normal_points(count: int, size: int) -> Tensor:
    """(8, count, size) draws of N(0, I), each set scrambled Sobol points of its own, always the same ones."""
    if not count:
        return torch.zeros(_SETS, 0, size)
    sets = []
    for seed in range(_SETS):
        uniform = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw(count, dtype=torch.float64)
        sets.append(torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)))
    return torch.stack(sets).to(torch.get_default_dtype())
