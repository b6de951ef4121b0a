"""log p(x) by importance sampling with 5,000 particles: data a second, of `log_marginal`, of pythae's `get_nll`, and of
the matrix products alone.

    python -m benchmarks.log_marginal [--json FILE]

A VAE of 784-200-200-50 (tanh) with Bernoulli pixels, one pinned core. pythae is there once `make peers` has made its
environment. The floor is what the decoder's matrix products take in float32 with everything else left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.hand import hand_networks
from benchmarks.machine import Contender, describe, median, pin, rounds
from benchmarks.peers.client import Peer, interpreter
from benchmarks.sizes import SIZES, minibatch
from benchmarks.step import pair
from ppl_vae import Batch
from ppl_vae.evaluate import log_marginal

SIZE = SIZES["C"]
PARTICLES = 5000


class Ours:
    """One call for n data; what is compiled is compiled at every call, and its time, which a run has once, is taken
    off: the time is that from the first piece of a call to its last."""

    def __init__(self, compile: bool, precision: Literal["32", "bf16"] = "32") -> None:
        torch.manual_seed(0)
        self.model, self.guide = pair(SIZE)
        self.x = torch.from_numpy(minibatch(SIZE))
        self.compile, self.precision = compile, precision

    def run(self, n: int) -> float:
        told: list[tuple[float, int]] = []
        rows = torch.arange(n + 8) % len(self.x)
        log_marginal(
            self.model,
            self.guide,
            Batch(x=self.x[rows]),
            PARTICLES,
            seed=0,
            compile=self.compile,
            precision=self.precision,
            progress=lambda done, total: told.append((time.perf_counter(), done)),
        )
        # the first pieces trace and compile
        first = next(k for k, (_, done) in enumerate(told) if done >= 4 * PARTICLES)
        seconds = told[-1][0] - told[first][0]
        return seconds * n * PARTICLES / (told[-1][1] - told[first][1])


def floor() -> Callable[[], object]:
    """The decoder's products for the particles of one datum, in the number of rows at once that is fastest."""
    layers = [layer.weight.detach() for layer in hand_networks(SIZE)[1] if isinstance(layer, nn.Linear)]

    def of(rows: int) -> Callable[[], object]:
        given = [torch.randn(rows, w.shape[1]) for w in layers]
        outs = [torch.empty(rows, w.shape[0]) for w in layers]

        def step() -> None:
            for _ in range(PARTICLES // rows):
                for w, a, out in zip(layers, given, outs, strict=True):
                    torch.mm(a, w.T, out=out)

        return step

    times = rounds({str(rows): of(rows) for rows in (250, 500, 1000, 2500, 5000)}, seconds=0.1, count=3, warmup=3)
    return of(int(min(times, key=lambda rows: median(times[rows]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 too: slow on processors without its instructions")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    core = pin()
    machine = describe()
    steps: dict[str, Callable[[], object] | Contender] = {
        "ppl_vae, compiled": Ours(compile=True),
        "ppl_vae, eager": Ours(compile=False),
        "matrix products alone": floor(),
    }
    if arguments.bf16:
        steps["ppl_vae, compiled, bf16"] = Ours(compile=True, precision="bf16")
    with ExitStack() as stack:
        python = interpreter()
        if python is not None:
            peer = stack.enter_context(Peer([python, "-m", "benchmarks.peers.server", "pythae-nll", "C"]))
            machine["peers"] = {"pythae": peer.versions}
            steps["pythae's get_nll"] = peer
        times = rounds(steps, seconds=1.5, count=arguments.rounds, warmup=4)
    results: dict[str, Any] = {}
    print(f"one core (number {core}) of {machine['cpu']}, torch {machine['torch']}; {PARTICLES} particles")
    for name, values in times.items():
        ms = median(values)
        share = median([a / b for a, b in zip(times["matrix products alone"], values, strict=True)])
        results[name] = {"ms_a_datum": ms, "data_a_second": 1e3 / ms, "share_of_floor": share}
        if "pythae's get_nll" in times:
            results[name]["times_pythae"] = median(
                [a / b for a, b in zip(times["pythae's get_nll"], values, strict=True)]
            )
        print(f"  {name:28s} {ms:8.1f} ms a datum", {k: round(v, 2) for k, v in results[name].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
