"""Milliseconds a training step: this package, pyro.infer.SVI, a loop written by hand in PyTorch, NumPyro and pythae.

    python -m benchmarks.step [--sizes A,B,C,D,E] [--json FILE]

A VAE with Bernoulli pixels: A is 64-64-8, batch 64; B is A with 16 particles; C is 784-200-200-50 (tanh), batch 100;
D is C with batch 20 and 50 particles; E is convolutional, 28 x 28, batch 128. The KL is by Monte Carlo for all, since
that is what `Trace_ELBO` computes; but pythae has it in closed form. NumPyro and pythae are there once `make peers` has
made their environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from benchmarks.hand import ACTIVATIONS, hand_networks
from benchmarks.machine import Contender, describe, median, pin, rounds
from benchmarks.peers.client import PEERS, Peer, interpreter
from benchmarks.sizes import LEARNING_RATE, SIZES, Size, minibatch
from ppl_vae import ELBO, Batch, CompiledSVI, guides, likelihoods, models, networks, pyro_pair
from ppl_vae.validation import validation

RATIOS = {
    "of_svi": "pyro.infer.SVI",
    "of_hand": "PyTorch by hand",
    "of_hand_compiled": "PyTorch by hand, compiled loss",
    "of_numpyro": "NumPyro, jitted update",
}


def pair(size: Size) -> tuple[models.VAE, guides.MeanField]:
    body = networks.decoder(size.network, size.latent, size.shape, 1, size.hidden[::-1], ACTIVATIONS[size.activation])
    model = models.VAE(body, likelihoods.Bernoulli(size.shape), size.latent)
    encoder = networks.encoder(size.network, size.shape, size.hidden, activation=ACTIVATIONS[size.activation])
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


def check(size: Size, peers: Mapping[str, Peer], x: Tensor) -> None:
    """The peers train what we train: as many parameters, and before the first step about our loss."""
    model, guide = pair(size)
    parameters = sum(p.numel() for module in (model, guide) for p in module.parameters())
    objective = ELBO(particles=size.particles, kl="monte-carlo")
    with torch.no_grad():
        loss = float(objective.differentiable_loss(model, guide, Batch(x=x)))
    for name, peer in peers.items():
        if peer.parameters != parameters:
            raise RuntimeError(f"{name} has {peer.parameters} parameters, ours {parameters}: not the same layers")
        # The libraries' initial weights differ: near 0 all losses are log 2 a pixel, and the KL's share adds to it.
        if not 0.8 < peer.loss / loss < 1.25:
            raise RuntimeError(f"{name} begins at {peer.loss:.0f} nats, ours at {loss:.0f}: not the same loss")


def measure(name: str, python: Path | None) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """The figures of each contender, and the versions that each peer runs on.

    Args:
        python: the peers' interpreter; None: without them.
    """
    size = SIZES[name]
    torch.manual_seed(0)
    x = torch.from_numpy(minibatch(size))
    with ExitStack() as stack:
        peers = {
            label: stack.enter_context(Peer([python, "-m", "benchmarks.peers.server", kind.key, name]))
            for label, kind in PEERS.items()
            if python is not None and kind.takes(size)
        }
        check(size, peers, x)
        steps: dict[str, Callable[[], object] | Contender] = {
            "ppl_vae, compiled": compiled(size, x),
            "ppl_vae, eager": ours(size, x),
            "pyro.infer.SVI": pyro_svi(size, x, validate=True),
            "pyro.infer.SVI, validation off": pyro_svi(size, x, validate=False),
            "PyTorch by hand, compiled loss": by_hand(size, x, compile=True),
            "PyTorch by hand": by_hand(size, x, compile=False),
            **peers,
        }
        times = rounds(steps)

    def ratio(step: str, other: str) -> float:
        return median([a / b for a, b in zip(times[step], times[other], strict=True)])

    figures = {
        step: {
            "ms": median(times[step]),
            **{key: ratio(step, other) for key, other in RATIOS.items() if other in times},
        }
        for step in times
    }
    return figures, {label: peer.versions for label, peer in peers.items()}


def show(name: str, figures: Mapping[str, Mapping[str, float]], peers: bool) -> None:
    """Print a size's table, with the peers that do not apply as "-"."""
    columns = [key for key in RATIOS if peers or key != "of_numpyro"]
    titles = [key.replace("_", " ").replace("numpyro", "NumPyro").replace("svi", "SVI") for key in columns]
    print(f"\n{name}: {SIZES[name]}")
    print(f"  {'':32s} ms a step" + "".join(f"  {title:>8s}" for title in titles))
    for step in [*figures, *(label for label in PEERS if peers and label not in figures)]:
        row = figures.get(step, {})
        cells = [f"{row[key]:.3f}" if key in row else "-" for key in ("ms", *columns)]
        widths = [9, *(max(8, len(title)) for title in titles)]
        print(f"  {step:32s} " + "  ".join(f"{cell:>{width}s}" for cell, width in zip(cells, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    core = pin()
    machine = describe()
    print(f"one core (number {core}) of {machine['cpu']}, torch {machine['torch']}, pyro {machine['pyro-ppl']}")
    python = interpreter()
    if python is None:
        print("without NumPyro and pythae: `make peers` adds them")
    results = {}
    machine["peers"] = {}
    for name in arguments.sizes.split(","):
        results[name], versions = measure(name, python)
        machine["peers"] |= versions
        show(name, results[name], peers=python is not None)
        sys.stdout.flush()
    for label, versions in machine["peers"].items():
        print(f"{label}: " + ", ".join(f"{library} {number}" for library, number in versions.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
