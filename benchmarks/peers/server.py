"""The child's side: `python -m benchmarks.peers.server PEER SIZE`, started by `benchmarks.peers.client`.

It writes a line of JSON when it is ready, then for each line with a number n takes n steps and writes the seconds they
took. Between lines it waits, and takes no time from others. It ends where its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.sizes import SIZES, Size, minibatch

__all__ = ["Training", "start"]


class Training(Protocol):
    """A library's training of one size.

    Attributes:
        loss: of the minibatch before the first step, in nats, summed over it.
        parameters: their number.
        versions: of the libraries it runs on.
    """

    loss: float
    parameters: int
    versions: dict[str, str]

    def steps(self, n: int) -> None:
        """Take n steps, all of them done on return."""


def start(peer: str, size: Size, x: NDArray[np.float32]) -> Training:
    # Imported where needed: neither library should load the other's threads.
    if peer == "pythae":
        from benchmarks.peers.pythae_trainer import Pythae

        return Pythae(size, x)
    if peer == "pythae-nll":
        from benchmarks.peers.pythae_nll import PythaeNll

        return PythaeNll(size, x)
    if peer == "tfp-annealing":
        from benchmarks.peers.tfp_annealing import TfpAnnealing

        return TfpAnnealing(size, x)
    from benchmarks.peers.numpyro_svi import Numpyro

    return Numpyro(size, x, in_xla={"numpyro": False, "numpyro-loop": True}[peer])


def main() -> None:
    # What the libraries print goes to stderr: the parent reads stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer, name = sys.argv[1:]
    training = start(peer, SIZES[name], minibatch(SIZES[name]))
    training.steps(3)  # compiles
    ready = {"loss": training.loss, "parameters": training.parameters, "versions": training.versions}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        started = time.perf_counter()
        training.steps(int(line))
        print(time.perf_counter() - started, file=answers)


if __name__ == "__main__":
    main()
