"""Annealed importance sampling: chains x temperatures a second, of this package, by hand in PyTorch, and of TensorFlow
Probability.

    python -m benchmarks.ais [--tfp PYTHON] [--json FILE]

16 chains for each of 100 data, a decoder of 50-200-200-784 (tanh, Bernoulli pixels), float32, Hamiltonian transitions
of 10 leapfrog steps, from the prior. Every temperature is one transition of 1,600 chains, and costs the same: a few are
timed, and 1,000 take as many times as long. PYTHON is an interpreter with benchmarks/peers/requirements-annealing.txt,
never a requirement of the package.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.hand import hand_networks
from benchmarks.machine import Contender, describe, median, pin, rounds
from benchmarks.peers.client import Peer
from benchmarks.sizes import SIZES, minibatch
from ppl_vae import Batch, likelihoods, models, networks
from ppl_vae.compiled import CompiledFunction
from ppl_vae.diagnose.annealing import _Path
from ppl_vae.isolation import evaluation
from ppl_vae.mcmc import Coordinates

SIZE = SIZES["C"]
CHAINS, STEPS, STEP_SIZE, BETA = 16, 10, 0.1, 0.5


def same_decoder() -> tuple[models.VAE, nn.Sequential]:
    """Ours and the one by hand, of equal parameters."""
    torch.manual_seed(0)
    body = networks.decoder("mlp", SIZE.latent, SIZE.shape, 1, SIZE.hidden[::-1], nn.Tanh)
    model = models.VAE(body, likelihoods.Bernoulli(SIZE.shape), SIZE.latent)
    by_hand = hand_networks(SIZE)[1]
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
            theirs.copy_(mine)
    return model, by_hand.requires_grad_(False)


def ours(model: models.VAE, x: Tensor, compile: bool) -> Callable[[], object]:
    """What `ais` does for every temperature."""
    batch = Batch(x=x)
    path = _Path(Coordinates(model, batch), None, STEPS)
    move = CompiledFunction(path, "inductor" if compile else "none", "ais")
    beta, size = torch.tensor(BETA), torch.full((SIZE.batch,), STEP_SIZE)
    mass = torch.ones(SIZE.batch, SIZE.latent)
    held = {"packed": path.state(batch, torch.randn(CHAINS, SIZE.batch, SIZE.latent)).packed()}
    log_w = torch.zeros(CHAINS, SIZE.batch, dtype=torch.float64)

    def step() -> None:
        with evaluation(model):
            log_w.add_(0.001 * held["packed"][..., 3 * SIZE.latent + 1])
            held["packed"] = move(batch, held["packed"], beta, size, mass)[..., :-2]

    step()
    assert not compile or not move.report.fallbacks, move.report
    return step


def by_hand(decoder: nn.Sequential, x: Tensor, compile: bool) -> Callable[[], object]:
    """As one would write it: a gradient where the transition begins, and one a leapfrog step."""
    target = x.expand(CHAINS, *x.shape)

    def densities(z: Tensor) -> tuple[Tensor, Tensor]:
        log_likelihood = -F.binary_cross_entropy_with_logits(decoder(z), target, reduction="none").sum(-1)
        return -0.5 * z.square().sum(-1) - 0.5 * SIZE.latent * math.log(2 * math.pi), log_likelihood

    compute: Any = torch.compile(densities) if compile else densities

    def gradient(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = compute(z)
        value = log_prior + BETA * log_likelihood
        (found,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), log_likelihood.detach(), found

    state = {"z": torch.randn(CHAINS, SIZE.batch, SIZE.latent)}
    log_w = torch.zeros(CHAINS, SIZE.batch, dtype=torch.float64)

    def step() -> None:
        z = state["z"]
        value, log_likelihood, found = gradient(z)
        log_w.add_(0.001 * log_likelihood)
        momentum = torch.randn_like(z)
        energy = 0.5 * momentum.square().sum(-1) - value
        moved = z
        for _ in range(STEPS):
            momentum = momentum + 0.5 * STEP_SIZE * found
            moved = moved + STEP_SIZE * momentum
            value, _, found = gradient(moved)
            momentum = momentum + 0.5 * STEP_SIZE * found
        error = 0.5 * momentum.square().sum(-1) - value - energy
        accepted = torch.rand_like(error) < (-error).exp()
        state["z"] = torch.where(accepted.unsqueeze(-1), moved, z)

    return step


def floor(decoder: nn.Sequential) -> Callable[[], object]:
    """The matrix products of a transition alone: forwards and back through the decoder, once a leapfrog step."""
    layers = [layer.weight for layer in decoder if isinstance(layer, nn.Linear)]
    rows = CHAINS * SIZE.batch
    before = [torch.randn(rows, w.shape[1]) for w in layers]
    after = [torch.randn(rows, w.shape[0]) for w in layers]
    outs = [(torch.empty(rows, w.shape[0]), torch.empty(rows, w.shape[1])) for w in layers]

    def step() -> None:
        for _ in range(STEPS):
            for w, a, b, (forwards, back) in zip(layers, before, after, outs, strict=True):
                torch.mm(a, w.T, out=forwards)
                torch.mm(b, w, out=back)

    return step


def check(model: models.VAE, decoder: nn.Sequential, x: Tensor) -> None:
    """Both score the same density."""
    z = torch.randn(CHAINS, SIZE.batch, SIZE.latent)
    with evaluation(model):
        _, log_likelihood = Coordinates(model, Batch(x=x)).log_prior_and_likelihood(z)
        theirs = -F.binary_cross_entropy_with_logits(decoder(z), x.expand(CHAINS, *x.shape), reduction="none").sum(-1)
    torch.testing.assert_close(log_likelihood, theirs, rtol=1e-4, atol=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tfp", type=Path, help="an interpreter with TensorFlow Probability on JAX")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    core = pin()
    machine = describe()
    model, decoder = same_decoder()
    x = torch.from_numpy(minibatch(SIZE))
    check(model, decoder, x)
    with ExitStack() as stack:
        steps: dict[str, Callable[[], object] | Contender] = {
            "ppl_vae, compiled": ours(model, x, compile=True),
            "ppl_vae, eager": ours(model, x, compile=False),
            "PyTorch by hand, compiled density": by_hand(decoder, x, compile=True),
            "PyTorch by hand": by_hand(decoder, x, compile=False),
            "matrix products alone": floor(decoder),
        }
        if arguments.tfp is not None:
            peer = stack.enter_context(Peer([arguments.tfp, "-m", "benchmarks.peers.server", "tfp-annealing", "C"]))
            machine["peers"] = {"TensorFlow Probability": peer.versions}
            steps["TensorFlow Probability"] = peer
        times = rounds(steps, seconds=0.5, count=arguments.rounds, warmup=2)
    chains = CHAINS * SIZE.batch
    results: dict[str, Any] = {}
    ours_times = times["ppl_vae, compiled"]
    print(f"one core (number {core}) of {machine['cpu']}, torch {machine['torch']}; {chains} chains")
    for name, values in times.items():
        ms = median(values)
        results[name] = {
            "ms_a_transition": ms,
            "chains_x_temperatures_a_second": 1e3 * chains / ms,
            "minutes_for_1000_temperatures": ms / 60.0,
            "times_ours": median([theirs / mine for theirs, mine in zip(values, ours_times, strict=True)]),
        }
        print(
            f"  {name:36s} {ms:8.1f} ms, {1e3 * chains / ms:8.0f} a second, {results[name]['times_ours']:.2f} of ours"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
