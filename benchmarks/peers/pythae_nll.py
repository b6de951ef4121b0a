"""pythae: `VAE.get_nll`, its estimate of -log p(x) by importance sampling, a step a datum.

It is called under `torch.no_grad()`, in its favour: it does not do so itself. Its own default takes 100 draws at once,
for each of which it runs the encoder again."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from pythae.models import VAE, VAEConfig

from benchmarks.hand import hand_networks
from benchmarks.peers.pythae_trainer import Decoder, Encoder
from benchmarks.sizes import Size

__all__ = ["PARTICLES", "PythaeNll"]

PARTICLES = 5000


class PythaeNll:
    def __init__(self, size: Size, x: NDArray[np.float32], at_once: int = 100) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        encoder, decoder = hand_networks(size)
        config = VAEConfig(input_dim=size.shape, latent_dim=size.latent, reconstruction_loss="bce")
        self.model = VAE(config, Encoder(encoder), Decoder(decoder)).eval()
        self.x, self.at_once, self.place = torch.from_numpy(x), at_once, 0
        with torch.no_grad():
            self.loss = -float(self.model.get_nll(self.x[:2], PARTICLES, at_once))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.versions = {name: version(name) for name in ("pythae", "torch")}

    def steps(self, n: int) -> None:
        rows = torch.arange(self.place, self.place + n) % len(self.x)
        self.place = int(rows[-1]) + 1
        with torch.no_grad():
            self.model.get_nll(self.x[rows], PARTICLES, self.at_once)
