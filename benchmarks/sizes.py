"""The problems that are timed. Needs NumPy only, so that a peer in an environment of its own reads the same page."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEARNING_RATE", "SIZES", "Size", "minibatch"]

LEARNING_RATE = 1e-3


class Size(NamedTuple):
    """A VAE with Bernoulli pixels, and its minibatch.

    `hidden` are the encoder's widths, and backwards the decoder's; of a convolutional one the encoder's features.
    """

    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent: int
    batch: int
    particles: int
    network: Literal["mlp", "conv"]
    activation: Literal["silu", "tanh"]

    def __str__(self) -> str:
        sizes = "-".join(map(str, (math.prod(self.shape), *self.hidden, self.latent)))
        return f"{self.network} {sizes}, batch {self.batch}, {self.particles} particles"


SIZES = {
    "A": Size((64,), (64,), 8, 64, 1, "mlp", "silu"),
    "B": Size((64,), (64,), 8, 64, 16, "mlp", "silu"),
    "C": Size((784,), (200, 200), 50, 100, 1, "mlp", "tanh"),
    "D": Size((784,), (200, 200), 50, 20, 50, "mlp", "tanh"),
    "E": Size((1, 28, 28), (128,), 32, 128, 1, "conv", "silu"),
}


def minibatch(size: Size) -> NDArray[np.float32]:
    """Binary pixels, three in ten of them 1: (batch, *shape), the same in every process."""
    return (np.random.default_rng(0).random((size.batch, *size.shape)) < 0.3).astype(np.float32)
