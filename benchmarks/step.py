"""Milliseconds a training step: this package, pyro.infer.SVI, and a loop written by hand in PyTorch.

    python -m benchmarks.step [--sizes A,B,C,D,E] [--json FILE]

A VAE with Bernoulli pixels: A is 64-64-8, batch 64; B is A with 16 particles; C is 784-200-200-50 (tanh), batch 100;
D is C with batch 20 and 50 particles; E is convolutional, 28 x 28, batch 128. The KL is by Monte Carlo for all, since
that is what `Trace_ELBO` computes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from benchmarks.machine import describe, median, pin, rounds
from ppl_vae import ELBO, Batch, CompiledSVI, guides, likelihoods, models, networks, pyro_pair
from ppl_vae.validation import validation

LEARNING_RATE = 1e-3


class Size(NamedTuple):
    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent: int
    batch: int
    particles: int
    network: networks.Kind
    activation: type[nn.Module]

    def __str__(self) -> str:
        sizes = "-".join(map(str, (math.prod(self.shape), *self.hidden, self.latent)))
        return f"{self.network} {sizes}, batch {self.batch}, {self.particles} particles"


SIZES = {
    "A": Size((64,), (64,), 8, 64, 1, "mlp", nn.SiLU),
    "B": Size((64,), (64,), 8, 64, 16, "mlp", nn.SiLU),
    "C": Size((784,), (200, 200), 50, 100, 1, "mlp", nn.Tanh),
    "D": Size((784,), (200, 200), 50, 20, 50, "mlp", nn.Tanh),
    "E": Size((1, 28, 28), (128,), 32, 128, 1, "conv", nn.SiLU),
}


def pair(size: Size) -> tuple[models.VAE, guides.MeanField]:
    hidden = size.hidden if size.network == "conv" else size.hidden[::-1]
    body = networks.decoder(size.network, size.latent, size.shape, 1, hidden, size.activation)
    model = models.VAE(body, likelihoods.Bernoulli(size.shape), size.latent)
    encoder = networks.encoder(size.network, size.shape, size.hidden, activation=size.activation)
    return model, guides.MeanField(model, encoder)


def compiled(size: Size, x: Tensor) -> Callable[[], object]:
    svi = CompiledSVI(
        *pair(size), torch.optim.Adam, ELBO(particles=size.particles, kl="monte-carlo"), {"lr": LEARNING_RATE}
    )
    batch = Batch(x=x)
    svi.step(batch)
    assert not svi.report().fallbacks, svi.report()
    return lambda: svi.step(batch)


def ours(size: Size, x: Tensor) -> Callable[[], object]:
    model, guide = pair(size)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=LEARNING_RATE, fused=True)
    objective = ELBO(particles=size.particles, kl="monte-carlo")
    batch = Batch(x=x)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective.differentiable_loss(model, guide, batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def pyro_svi(size: Size, x: Tensor, validate: bool) -> Callable[[], object]:
    loss = Trace_ELBO(num_particles=size.particles, vectorize_particles=size.particles > 1, max_plate_nesting=1)
    svi = SVI(*pyro_pair(*pair(size)), pyro.optim.Adam({"lr": LEARNING_RATE}), loss)
    batch = Batch(x=x)

    def step() -> object:
        return svi.step(batch)

    def step_without_validation() -> object:
        with validation(False):
            return svi.step(batch)

    return step if validate else step_without_validation


def hand_networks(size: Size) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder as one would write them, of the same layers as ours."""

    def mlp(widths: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), size.activation()]
        return nn.Sequential(*layers[:-1])

    if size.network == "mlp":
        encoder = mlp([*size.shape, *size.hidden, 2 * size.latent])
        return encoder, mlp([size.latent, *size.hidden[::-1], *size.shape])
    act, width = size.activation, size.hidden[0]
    down = [nn.Conv2d(1, 16, 3, 2, 1), act(), nn.Conv2d(16, 32, 3, 2, 1), act(), nn.Conv2d(32, 64, 3, 2, 1), act()]
    flat = [nn.Flatten(), nn.Linear(64 * 16, width), act(), nn.Linear(width, 2 * size.latent)]
    up = [
        *(nn.Linear(size.latent, 64 * 16), act(), nn.Unflatten(1, (64, 4, 4))),
        *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 0), act(), nn.ConvTranspose2d(32, 16, 3, 2, 1, 1), act()),
        nn.ConvTranspose2d(16, 1, 3, 2, 1, 1),
    ]
    return nn.Sequential(*down, *flat), nn.Sequential(*up)


def by_hand(size: Size, x: Tensor, compile: bool) -> Callable[[], object]:
    encoder, decoder = hand_networks(size)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        scale = log_scale.exp()
        noise = torch.randn(size.particles, *scale.shape)
        z = loc + scale * noise
        log_q_p = (0.5 * (z**2 - noise**2) - log_scale).sum() / size.particles
        logits = decoder(z.flatten(0, 1)) if size.network == "conv" else decoder(z)
        target = x.expand(size.particles, *x.shape).reshape(logits.shape)
        reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / size.particles
        return reconstruction + log_q_p

    compute = torch.compile(loss_of) if compile else loss_of

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = compute(x)
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(name: str) -> dict[str, dict[str, float]]:
    size = SIZES[name]
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((size.batch, *size.shape), 0.3))
    steps = {
        "ppl_vae, compiled": compiled(size, x),
        "ppl_vae, eager": ours(size, x),
        "pyro.infer.SVI": pyro_svi(size, x, validate=True),
        "pyro.infer.SVI, validation off": pyro_svi(size, x, validate=False),
        "PyTorch by hand, compiled loss": by_hand(size, x, compile=True),
        "PyTorch by hand": by_hand(size, x, compile=False),
    }
    times = rounds(steps)

    def ratio(step: str, other: str) -> float:
        return median([a / b for a, b in zip(times[step], times[other], strict=True)])

    return {
        step: {
            "ms": median(times[step]),
            "of_svi": ratio(step, "pyro.infer.SVI"),
            "of_hand": ratio(step, "PyTorch by hand"),
            "of_hand_compiled": ratio(step, "PyTorch by hand, compiled loss"),
        }
        for step in times
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    core = pin()
    machine = describe()
    print(f"one core (number {core}) of {machine['cpu']}, torch {machine['torch']}, pyro {machine['pyro-ppl']}")
    results = {}
    for name in arguments.sizes.split(","):
        results[name] = measure(name)
        print(f"\n{name}: {SIZES[name]}", flush=True)
        print(f"  {'':32s} ms a step   of SVI  of hand  of hand compiled")
        for step, figures in results[name].items():
            ratios = f"{figures['of_svi']:8.3f} {figures['of_hand']:8.3f} {figures['of_hand_compiled']:8.3f}"
            print(f"  {step:32s} {figures['ms']:9.3f} {ratios}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
