"""A neural energy over a Gaussian: a density of anything that a network can score, known up to its normalizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import InputError, check_count, check_number
from ..isolation import device_of, evaluation
from ..langevin import langevin
from ..unnormalized import Unnormalized
from .partition import LogPartition

__all__ = ["EnergyModel"]

_CHUNK = 1 << 14


class EnergyModel(nn.Module):
    r"""A density by a network f, tilting a Gaussian.

    .. math::
        p(x) = \frac{e^{-f(x)}\, N(x;\, m,\, s^2 I)}{Z}, \qquad E(x) = f(x) - \log N(x;\, m,\, s^2 I), \qquad
        Z = E_{x \sim N(m, s^2 I)}\big[e^{-f(x)}\big]

    The Gaussian keeps Z finite wherever f is bounded below, gives chains a place to start, and Z an estimate by
    importance sampling. It is trained by `LangevinLikelihood`, and drawn from by Langevin chains.

    Args:
        network: f, from (B, \\*shape) to (B,) or (B, 1).
        shape: of one x.
        loc, scale: m and s > 0, numbers; of the data they are to lie around.

    Attributes:
        log_z: log Z, nats, a buffer: NaN until `normalize` or somebody who knows sets it, and out of date once the
            network is trained on.

    Raises:
        InputError: a scale that is none; `log_prob` without a normalizer.

    References: LeCun et al., A tutorial on energy-based learning, 2006. Pang et al., Learning latent space energy-based
    prior model, NeurIPS 2020 (https://arxiv.org/abs/2006.08205), for the tilted Gaussian.
    """

    log_z: Tensor

    def __init__(self, network: nn.Module, shape: Sequence[int], loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.shape = torch.Size(shape)
        self.loc = check_number("loc", loc)
        self.scale = check_number("scale", scale, above=0.0)
        self.register_buffer("log_z", torch.tensor(math.nan))

    def tilt(self, x: Tensor) -> Tensor:
        """f(x) of (\\*S, \\*shape): (\\*S)."""
        left = x.shape[: x.dim() - len(self.shape)]
        out: Tensor = self.network(x.reshape(-1, *self.shape))
        if out.shape not in ((len(out),), (len(out), 1)):
            raise InputError(f"the network makes {tuple(out.shape[1:])} of each x; an energy is one number")
        return out.reshape(left)

    def energy(self, x: Tensor) -> Tensor:
        """E(x) of (\\*S, \\*shape), nats."""
        return self.tilt(x) - self.base_log_prob(x)

    def base_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; m, s² I)."""
        off = ((x - self.loc) / self.scale).square().flatten(x.dim() - len(self.shape)).sum(-1)
        return -0.5 * off - self.shape.numel() * math.log(self.scale * math.sqrt(2 * math.pi))

    def base(self, count: int) -> Tensor:
        """Draws of the Gaussian, (count, \\*shape)."""
        like = next(self.parameters(), self.log_z)
        return self.loc + self.scale * torch.randn(count, *self.shape, dtype=like.dtype, device=like.device)

    def log_prob(self, x: Tensor, log_z: Tensor | float | None = None) -> Tensor:
        """log p(x), nats.

        Args:
            log_z: log Z; None: the one that `normalize` found.

        Raises:
            InputError: there is none.
        """
        known = self.log_z if log_z is None else log_z
        if log_z is None and not torch.compiler.is_compiling() and math.isnan(float(known)):
            raise InputError(
                "log p(x) asks for the normalizer, and this energy has none yet: call normalize(), or give log_z="
            )
        return -self.energy(x) - known

    def log_partition_quadrature(self, points: int = 400, reach: float = 6.0) -> Tensor:
        """log Z by the midpoint rule over m ± reach · s, of one or two numbers.

        Args:
            points: a side.
            reach: half the side, in units of s.

        Raises:
            InputError: x of more than two numbers.
        """
        if self.shape.numel() > 2:
            raise InputError(
                f"quadrature is over one or two numbers, and x has {self.shape.numel()}: use log_partition"
            )
        grid, log_cell = self.grid(points, reach)
        parts = [-self.energy(x) for x in grid.split(_CHUNK)]
        return torch.cat(parts).logsumexp(0) + log_cell

    def grid(self, points: int = 400, reach: float = 6.0) -> tuple[Tensor, float]:
        """The midpoints (P, \\*shape) of a grid over m ± reach · s, and the log of a cell's size."""
        like = next(self.parameters(), self.log_z)
        side = 2 * reach * self.scale / check_count("points", points, 2)
        places = torch.arange(points, dtype=torch.float64, device=like.device) + 0.5
        line = self.loc - reach * self.scale + side * places
        numbers = self.shape.numel()
        cells = torch.cartesian_prod(*[line] * numbers).reshape(-1, *self.shape)
        return cells.to(like.dtype), numbers * math.log(side)

    @torch.no_grad()
    def log_partition(self, draws: int = 10_000, *, seed: int | None = None) -> LogPartition:
        r"""log Z by importance sampling from the Gaussian, :math:`\hat Z = \frac1K \sum_k e^{-f(x_k)}`.

        Its error bar holds as far as the Gaussian covers the model: see `LogPartition.ess`.

        Args:
            draws: K.
            seed: of random numbers of its own; None: from the default generator.
        """
        check_count("draws", draws, 2)
        with evaluation(self, seed=seed, device=device_of(self)):
            parts = [-self.tilt(self.base(min(_CHUNK, draws - k))) for k in range(0, draws, _CHUNK)]
        return LogPartition(torch.cat(parts).double().cpu(), None, 1)

    @torch.no_grad()
    def normalize(self, draws: int = 10_000, *, seed: int | None = None) -> LogPartition:
        """Set `log_z`: by quadrature where x has two numbers or fewer, otherwise by importance sampling, whose error
        bar is that of every log p(x) then. Returns the latter in either case."""
        found = self.log_partition(draws, seed=seed)
        exact = self.shape.numel() <= 2
        self.log_z.fill_(float(self.log_partition_quadrature()) if exact else found.estimate.mean)
        return found

    def sample(
        self, count: int, steps: int = 500, step_size: float = 0.1, start: Tensor | None = None, adjust: bool = True
    ) -> Tensor:
        """(count, \\*shape) from Langevin chains that begin at `start`, or at the Gaussian; see `langevin`."""
        start = self.base(check_count("count", count)) if start is None else start
        return langevin(self.energy, start, len(self.shape), steps, step_size, adjust=adjust).x

    def forward(self, batch: Batch) -> Tensor:
        """The Pyro program p(x): x is observed, which asks for `log_z`, or where `batch.x` is None drawn."""
        with pyro.plate("data", batch.size, dim=-1):
            x: Tensor = pyro.sample("x", Unnormalized(self.log_prob, self.sample, self.shape), obs=batch.x)
        return x

    def extra_repr(self) -> str:
        return f"shape={tuple(self.shape)}, loc={self.loc:g}, scale={self.scale:g}"
