"""Milliseconds a training step: this package, pyro.infer.SVI, and a loop written by hand in PyTorch.

    python -m benchmarks.step [--sizes A,C] [--json FILE]

Size A is 64-64-8 with batch 64, size C 784-200-200-50 (tanh) with batch 100: a VAE with Bernoulli pixels, one particle,
Monte Carlo KL for all, since that is what `Trace_ELBO` computes; the row "analytic" has ours with the closed form.
"""

from __future__ import annotations

import argparse
import json
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
from ppl_vae import ELBO, Batch, guides, likelihoods, models, networks, pyro_pair
from ppl_vae.validation import validation

LEARNING_RATE = 1e-3


class Size(NamedTuple):
    data: int
    hidden: tuple[int, ...]
    latent: int
    batch: int
    activation: type[nn.Module]


SIZES = {
    "A": Size(64, (64,), 8, 64, nn.SiLU),
    "C": Size(784, (200, 200), 50, 100, nn.Tanh),
}


def pair(size: Size) -> tuple[models.VAE, guides.MeanField]:
    shape = (size.data,)
    backwards = size.hidden[::-1]
    body = networks.decoder("mlp", size.latent, shape, 1, backwards, size.activation)
    model = models.VAE(body, likelihoods.Bernoulli(shape), size.latent)
    guide = guides.MeanField(model, networks.encoder("mlp", shape, size.hidden, activation=size.activation))
    return model, guide


def ours(size: Size, x: Tensor, kl: str) -> Callable[[], object]:
    model, guide = pair(size)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=LEARNING_RATE, fused=True)
    objective = ELBO(kl=kl)  # type: ignore[arg-type]
    batch = Batch(x=x)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective.differentiable_loss(model, guide, batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def pyro_svi(size: Size, x: Tensor, validate: bool) -> Callable[[], object]:
    svi = SVI(*pyro_pair(*pair(size)), pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    batch = Batch(x=x)

    def step() -> object:
        return svi.step(batch)

    def step_without_validation() -> object:
        with validation(False):
            return svi.step(batch)

    return step if validate else step_without_validation


def by_hand(size: Size, x: Tensor) -> Callable[[], object]:
    def mlp(widths: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), size.activation()]
        return nn.Sequential(*layers[:-1])

    encoder = mlp([size.data, *size.hidden, 2 * size.latent])
    decoder = mlp([size.latent, *size.hidden[::-1], size.data])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(scale)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * (loc**2 + scale**2 - 1).sum() - log_scale.sum()
        loss = reconstruction + kl
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(name: str) -> dict[str, dict[str, float]]:
    size = SIZES[name]
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((size.batch, size.data), 0.3))
    steps = {
        "ppl_vae, eager": ours(size, x, "monte-carlo"),
        "ppl_vae, eager, analytic KL": ours(size, x, "analytic"),
        "pyro.infer.SVI": pyro_svi(size, x, validate=True),
        "pyro.infer.SVI, validation off": pyro_svi(size, x, validate=False),
        "PyTorch by hand": by_hand(size, x),
    }
    times = rounds(steps)
    base = times["pyro.infer.SVI"]
    return {
        step: {"ms": median(values), "of_svi": median([a / b for a, b in zip(values, base, strict=True)])}
        for step, values in times.items()
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
        size = SIZES[name]
        results[name] = measure(name)
        print(f"\n{name}: {'-'.join(map(str, (size.data, *size.hidden, size.latent)))}, batch {size.batch}")
        for step, figures in results[name].items():
            print(f"  {step:32s} {figures['ms']:7.3f} ms a step   {figures['of_svi']:5.2f} of pyro.infer.SVI")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
