"""The parent's side of a peer: start it, ask it for steps, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from benchmarks.sizes import Size

__all__ = ["PEERS", "Kind", "Peer", "PeerError", "interpreter"]

ROOT = Path(__file__).resolve().parents[2]


class Kind(NamedTuple):
    key: str  # benchmarks.peers.server's name of it
    several_particles: bool

    def takes(self, size: Size) -> bool:
        return self.several_particles or size.particles == 1


PEERS = {
    "NumPyro, jitted update": Kind("numpyro", several_particles=True),
    "NumPyro, loop in XLA": Kind("numpyro-loop", several_particles=True),
    "pythae's trainer": Kind("pythae", several_particles=False),
}


def interpreter() -> Path | None:
    """That of the environment that `make peers` makes beside the one we run in, `.venv-peers` beside `.venv`; None
    where it has not, or has not finished."""
    environment = Path(f"{sys.prefix}-peers")
    return environment / "bin" / "python" if (environment / ".installed").exists() else None


class PeerError(RuntimeError):
    """A peer's process ended before it had answered."""


class Peer:
    """A process that takes training steps on request: a contender of `machine.rounds`.

    It runs on this process's cores (a child inherits them: `machine.pin` first) with one thread, and waits while others
    are timed. A context manager: the process has ended when it is left.

    Args:
        command: speaks `benchmarks.peers.server`'s protocol.

    Attributes:
        loss: of the minibatch before the first step, in nats, summed over it.
        parameters: their number.
        versions: of the libraries it runs on.

    Raises:
        PeerError: with the end of what it wrote to stderr, when it is gone.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.command = [str(part) for part in command]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`; a pipe would fill up and stop the process
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
                "JAX_PLATFORMS": "cpu",
            },
        )
        try:
            ready = json.loads(self.answer())
        except BaseException:
            self.close()
            raise
        self.loss: float = ready["loss"]
        self.parameters: int = ready["parameters"]
        self.versions: dict[str, str] = ready["versions"]

    def run(self, n: int) -> float:
        """Take n steps; returns the seconds they took, measured over there."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone: `answer` says why
            print(n, file=self.process.stdin, flush=True)
        return float(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            tail = self.errors.read().decode(errors="replace").splitlines()[-20:]
            raise PeerError("\n".join([f"{' '.join(self.command)} ended with status {status}:", *tail]))
        return line

    def close(self) -> None:
        """End the process: at the end of its input by itself, else by force."""
        try:
            self.process.communicate(timeout=10)  # closes its input
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
