"""Vector quantization: a codebook with running averages, and the distribution that is sure of its value."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .errors import check_count

__all__ = ["Certain", "Codebook", "perplexity", "straight_through"]

_EPS = 1e-5


class Certain(TorchDistribution):
    r"""A discrete distribution with probability one on a value: log q is 0 there, and -inf elsewhere.

    Unlike a point mass among real numbers (`pyro.distributions.Delta`) it has a probability, so that log p - log q is a
    weight, and its mean a bound. No gradient passes.

    Args:
        value: (\*S, N, \*event) whole numbers.
        event_dim: how many dimensions an event has.
        dtype: of log-probabilities; None: torch's default.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, value: Tensor, event_dim: int = 0, dtype: torch.dtype | None = None) -> None:
        self.value = value
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self._event_dim = event_dim
        split = value.dim() - event_dim
        super().__init__(value.shape[:split], value.shape[split:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative_integer, self._event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Certain:
        shape = torch.Size(batch_shape)
        return Certain(self.value.expand(*shape, *self.event_shape), self._event_dim, self.dtype)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.value.expand(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        same = (value == self.value).flatten(-self._event_dim).all(-1) if self._event_dim else value == self.value
        return torch.zeros(same.shape, dtype=self.dtype, device=same.device).masked_fill(~same, -torch.inf)

    def entropy(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=self.dtype, device=self.value.device)


class Codebook(nn.Module):
    r"""K vectors of D numbers, each the average of what falls to it.

    A vector z is given the number of the entry that is nearest, :math:`\arg\min_k \|z - e_k\|`, the first of equals.
    Each `update` with the M vectors of a batch moves running averages of how many fall to an entry and of their sum,

    .. math:: N_k \leftarrow γ N_k + (1 - γ)\, n_k, \qquad m_k \leftarrow γ m_k + (1 - γ) \sum_{z \to k} z, \qquad
        e_k = m_k / N_k

    with a little added to N, so that no entry is divided by 0: (N_k + ε) / (ΣN + K ε) · ΣN. The first update puts all
    entries at vectors of its batch.

    Args:
        entries: K, 2 or more.
        size: D.
        average: True: the entries are these averages, buffers. False: they are a parameter, which a loss is to pull to
            what falls to it; the counts are kept all the same.

    Attributes:
        vectors: e, (K, D).
        count: N, (K,) average number of vectors of a batch that fall to an entry.
        total: m, (K, D); not of a parameter.
        started: whether there was an update.

    Raises:
        InputError: fewer than 2 entries, a size that is none.

    References:
        van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, NIPS 2017
        (https://arxiv.org/abs/1711.00937), the averages in appendix A.1.
        Williams et al., Hierarchical quantized autoencoders, NeurIPS 2020 (https://arxiv.org/abs/2002.08111), for
        entries that are put where they are of use.
    """

    vectors: Tensor
    count: Tensor
    total: Tensor
    started: Tensor

    def __init__(self, entries: int = 512, size: int = 64, average: bool = True) -> None:
        super().__init__()
        self.entries = check_count("codebook", entries, least=2)
        self.size = check_count("size", size)
        self.average = average
        vectors = torch.randn(entries, size) / size**0.5
        if average:
            self.register_buffer("vectors", vectors)
            self.register_buffer("total", vectors.clone())
        else:
            self.vectors = nn.Parameter(vectors)
        self.register_buffer("count", torch.ones(entries))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors (\\*S, D) of codes (\\*S)."""
        return F.embedding(codes, self.vectors)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The codes (\\*S) of vectors (\\*S, D)."""
        flat = z.reshape(-1, self.size)
        # ‖z‖² is the same for all entries
        away = torch.addmm(self.vectors.square().sum(1), flat, self.vectors.T, alpha=-2.0)
        return away.argmin(1).reshape(z.shape[:-1])

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor, decay: float = 0.99, restart: float = 0.1) -> None:
        """Move the averages by vectors (\\*S, D) and their codes (\\*S), in place.

        Entries that too few fall to are dead: their average count is below `restart` of an even share, M/K. They are
        put at vectors of this batch, drawn at random, and given an even share, which they have until they are judged
        again. All shapes are the same whatever the values, so that this is a part of a compiled step.

        Args:
            decay: γ.
            restart: 0 lets entries lie where nothing falls to them.
        """
        flat = z.reshape(-1, self.size).to(self.count.dtype)
        one = F.one_hot(codes.reshape(-1), self.entries).to(flat.dtype)  # (M, K)
        self.count.mul_(decay).add_(one.sum(0), alpha=1.0 - decay)
        if self.average:
            self.total.mul_(decay).add_(one.T @ flat, alpha=1.0 - decay)
            whole = self.count.sum()
            smoothed = (self.count + _EPS) / (whole + self.entries * _EPS) * whole
            self.vectors.copy_(self.total / smoothed.unsqueeze(1))
        share = len(flat) / self.entries
        dead = (self.count < restart * share) | ~self.started
        # one another's twins only where there are fewer vectors than entries
        order = torch.rand(len(flat), device=flat.device).argsort()
        fresh = flat[order.repeat(-(-self.entries // len(flat)))[: self.entries]]
        self.vectors.copy_(torch.where(dead.unsqueeze(1), fresh, self.vectors))
        self.count.masked_fill_(dead, share)
        if self.average:
            self.total.copy_(torch.where(dead.unsqueeze(1), share * fresh, self.total))
        self.started.fill_(True)

    def extra_repr(self) -> str:
        return f"entries={self.entries}, size={self.size}, average={self.average}"


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The quantized vectors, whose gradient is that of z: in value they are exactly themselves, not z + (e - z)."""
    return quantized.detach() + (z - z.detach())


def perplexity(count: Tensor) -> Tensor:
    """exp of the entropy of entries used so many times, (\\*S, K) -> (\\*S): K where all are used alike, 1 where one
    is."""
    share = count / count.sum(-1, keepdim=True)
    used: Tensor = torch.special.entr(share).sum(-1).exp()
    return used
