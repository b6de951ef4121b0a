"""The networks as one would write them in PyTorch, of the same layers as ours. Needs PyTorch only."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from benchmarks.sizes import Size

__all__ = ["ACTIVATIONS", "hand_networks"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh}


def hand_networks(size: Size) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder, to 2 · latent outputs, and decoder, to logits."""
    act = ACTIVATIONS[size.activation]

    def mlp(widths: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), act()]
        return nn.Sequential(*layers[:-1])

    if size.network == "mlp":
        encoder = mlp([*size.shape, *size.hidden, 2 * size.latent])
        return encoder, mlp([size.latent, *size.hidden[::-1], *size.shape])
    width = size.hidden[0]
    down = [nn.Conv2d(1, 16, 3, 2, 1), act(), nn.Conv2d(16, 32, 3, 2, 1), act(), nn.Conv2d(32, 64, 3, 2, 1), act()]
    flat = [nn.Flatten(), nn.Linear(64 * 16, width), act(), nn.Linear(width, 2 * size.latent)]
    up = [
        *(nn.Linear(size.latent, 64 * 16), act(), nn.Unflatten(1, (64, 4, 4))),
        *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 0), act(), nn.ConvTranspose2d(32, 16, 3, 2, 1, 1), act()),
        nn.ConvTranspose2d(16, 1, 3, 2, 1, 1),
    ]
    return nn.Sequential(*down, *flat), nn.Sequential(*up)
