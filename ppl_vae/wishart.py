"""The inverse Wishart distribution, over the logarithmic Cholesky numbers of covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["LogCholeskyInverseWishart", "cholesky_of", "numbers_of"]


class LogCholeskyInverseWishart(TorchDistribution):
    r"""Σ = S Sᵀ ~ IW(Ψ, ν), which is Λ = Σ⁻¹ ~ W(Ψ⁻¹, ν), as real numbers: log S_ii, and S_ij below the diagonal.

    With Ψ = C Cᵀ, S = C B⁻¹ for a lower triangular B of independent numbers (Bartlett's decomposition):
    B_ii² ~ χ²(ν - D + i), i = 1 ... D, and N(0, 1) below the diagonal. Hence the density of the numbers,

    .. math:: \log p_B(S^{-1} C) - D \sum_i \log S_{ii} + \sum_i (D - i + 1) \log C_{ii}

    Draws pass gradients, nothing looks at tensors' values, and no matrix is decomposed: of an ill-conditioned Σ the
    factor is as good as of any other.

    Args:
        root: C, lower triangular (\*B, D, D) with a positive diagonal.
        nu: ν, (\*B,), above D - 1.

    Events are (D (D + 1) / 2,): the logarithms of the diagonal, then what is below it, row by row (`cholesky_of`).
    """

    arg_constraints = {"root": constraints.lower_cholesky, "nu": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, root: Tensor, nu: Tensor, validate_args: bool | None = None) -> None:
        left = torch.broadcast_shapes(root.shape[:-2], nu.shape)
        self.size = root.shape[-1]
        self.root = root.expand(*left, self.size, self.size)
        self.nu = nu.expand(left)
        super().__init__(left, torch.Size([self.size * (self.size + 1) // 2]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> LogCholeskyInverseWishart:
        left = torch.Size(batch_shape)
        root = self.root.expand(*left, self.size, self.size)
        return LogCholeskyInverseWishart(root, self.nu.expand(left), validate_args=False)

    @property
    def _degrees(self) -> Tensor:
        """Of the squares of B's diagonal, (\\*B, D)."""
        order = torch.arange(1.0, self.size + 1.0, dtype=self.nu.dtype, device=self.nu.device)
        return self.nu.unsqueeze(-1) - self.size + order

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        left = torch.Size(sample_shape) + self.batch_shape
        matrix = (*left, self.size, self.size)
        squares = 2.0 * torch._standard_gamma(0.5 * self._degrees.expand(*left, self.size))
        diagonal = squares.clamp_min(torch.finfo(self.nu.dtype).tiny).sqrt()
        below = torch.randn(matrix, dtype=self.nu.dtype, device=self.nu.device).tril(-1)
        bartlett = below + diagonal.diag_embed()
        return numbers_of(torch.linalg.solve_triangular(bartlett, self.root.expand(matrix), upper=False, left=False))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        d, root = self.size, cholesky_of(value, self.size)
        shape = torch.broadcast_shapes(root.shape, self.root.shape)
        bartlett = torch.linalg.solve_triangular(root.expand(shape), self.root.expand(shape), upper=False)
        diagonal, degrees = bartlett.diagonal(dim1=-2, dim2=-1), self._degrees
        # of the square roots of chi-squared numbers
        half = 0.5 * degrees
        chi = (degrees - 1.0) * diagonal.log() - 0.5 * diagonal.square() - (half - 1.0) * math.log(2.0) - half.lgamma()
        below = -0.5 * bartlett.tril(-1).square().sum((-2, -1)) - 0.25 * d * (d - 1) * math.log(2.0 * math.pi)
        order = torch.arange(float(d), 0.0, -1.0, dtype=self.nu.dtype, device=self.nu.device)
        c = (order * self.root.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
        log_prob: Tensor = chi.sum(-1) + below + c - d * value[..., :d].sum(-1)
        return log_prob


def cholesky_of(numbers: Tensor, size: int) -> Tensor:
    """The lower triangular matrix (\\*B, D, D) of the numbers (\\*B, D (D + 1) / 2)."""
    rows, columns = torch.tril_indices(size, size, -1, device=numbers.device)
    log_diagonal, below = numbers[..., :size], numbers[..., size:]
    flat = numbers.new_zeros(*numbers.shape[:-1], size * size).index_copy(-1, rows * size + columns, below)
    matrix: Tensor = flat.unflatten(-1, (size, size)) + log_diagonal.exp().diag_embed()
    return matrix


def numbers_of(cholesky: Tensor) -> Tensor:
    """The inverse of `cholesky_of`."""
    size = cholesky.shape[-1]
    rows, columns = torch.tril_indices(size, size, -1, device=cholesky.device)
    return torch.cat([cholesky.diagonal(dim1=-2, dim2=-1).log(), cholesky[..., rows, columns]], -1)
