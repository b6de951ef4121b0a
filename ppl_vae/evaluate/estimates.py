"""Means with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "Moments", "log_mean_exp"]


@dataclass(frozen=True)
class Estimate:
    """A mean over N data.

    Args:
        mean: the mean.
        se: its Monte Carlo standard error, for these data; NaN where a single draw a datum gives none.
        data_se: its standard error as the mean of the data's population; NaN where N is 1.
        n: N.
    """

    mean: float
    se: float
    data_se: float
    n: int

    @classmethod
    def of(cls, values: Tensor, se: Tensor, independent: bool = True) -> Estimate:
        r"""From values (N,) and their Monte Carlo errors (N,): mean, and its error :math:`\sqrt{\sum_n se_n^2} / N`;
        of errors that are not independent, as of draws that all data share, at most :math:`\sum_n se_n / N`.
        """
        n = values.shape[0]
        data_se = (values.std() / math.sqrt(n)).item() if n > 1 else math.nan
        error = se.square().sum().sqrt() if independent else se.sum()
        return cls(values.mean().item(), error.item() / n, data_se, n)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2g}"


def log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean of weights along the first dimension, and its standard error by the delta method; NaN of a
    single weight."""
    count = log_w.shape[0]
    log_mean = log_w.logsumexp(0) - math.log(count)
    if count < 2:
        return log_mean, torch.full_like(log_mean, math.nan)
    return log_mean, (log_w - log_mean).exp().std(0) / math.sqrt(count)


class Moments:
    """Mean and sum of squared deviations of tensors that come in pieces (Chan, Golub and LeVeque, 1983), in float64."""

    def __init__(self) -> None:
        self.count = 0
        # a number until the first piece brings the shape and the device
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Add values (k, \\*)."""
        values = values.double()
        count = values.shape[0]
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def rescale(self, factor: Tensor) -> None:
        """As if every value so far had been multiplied by `factor`."""
        self.mean = self.mean * factor
        self.squares = self.squares * factor.square()

    def variance(self) -> Tensor:
        """Unbiased; NaN of a single value."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.squares, math.nan)

    def se(self) -> Tensor:
        """Standard error of the mean."""
        return (self.variance() / self.count).sqrt()
