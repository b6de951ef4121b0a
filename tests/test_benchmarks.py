"""The benchmark's peers: the protocol with their processes, and where `make peers` has been run that they train what
ours trains. Nothing is timed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import step
from benchmarks.machine import Contender, rounds
from benchmarks.peers.client import PEERS, Peer, PeerError, interpreter
from benchmarks.sizes import SIZES, minibatch

READY = 'print(\'{"loss": 1.0, "parameters": 2, "versions": {"it": "3"}}\', flush=True)'


def child(*lines: str) -> list[str | Path]:
    return [sys.executable, "-c", "\n".join(("import sys", *lines))]


ECHO = child(READY, "for line in sys.stdin: print(int(line) / 1000, flush=True)")
"""Says of each step that it took a millisecond."""


def test_a_peer_takes_steps_until_it_is_left() -> None:
    with Peer(ECHO) as peer:
        assert (peer.loss, peer.parameters, peer.versions) == (1.0, 2, {"it": "3"})
        assert peer.run(7) == 0.007
        assert peer.run(30) == 0.03
    assert peer.process.returncode == 0


def test_a_peer_ends_where_the_run_fails() -> None:
    with pytest.raises(ZeroDivisionError), Peer(ECHO) as peer:
        _ = 1 / 0
    assert peer.process.returncode == 0


@pytest.mark.parametrize("before", [(), (READY,), (READY, "sys.stdin.readline()")], ids=["start", "ready", "asked"])
def test_a_peer_that_dies_says_why(before: tuple[str, ...]) -> None:
    more_than_a_pipe_holds = "print('x' * 100_000, file=sys.stderr)"
    command = child(*before, more_than_a_pipe_holds, "sys.exit('no such layer')")
    with pytest.raises(PeerError, match=r"(?s)ended with status 1.*no such layer"), Peer(command) as peer:
        peer.run(1)


def test_functions_and_peers_take_turns() -> None:
    calls = 0

    def here() -> None:
        nonlocal calls
        calls += 1

    with Peer(ECHO) as peer:
        steps: dict[str, Callable[[], object] | Contender] = {"here": here, "there": peer}
        times = rounds(steps, seconds=0.004, count=3, warmup=2)
    assert times["there"] == pytest.approx([1.0] * 3)
    assert len(times["here"]) == 3
    assert all(time > 0 for time in times["here"])
    assert calls >= 2 * 2 + 3 * 3


def test_a_minibatch_is_the_same_in_every_process() -> None:
    for size in SIZES.values():
        x = minibatch(size)
        assert x.shape == (size.batch, *size.shape)
        assert set(x.ravel()) == {0.0, 1.0}
        assert (x == minibatch(size)).all()


@pytest.mark.slow
@pytest.mark.skipif(interpreter() is None, reason="`make peers` has not been run")
@pytest.mark.parametrize("name", ["A", "D", "E"])
@pytest.mark.parametrize("label", PEERS)
def test_a_peer_trains_the_same_layers_from_the_same_loss(label: str, name: str) -> None:
    kind, size, python = PEERS[label], SIZES[name], interpreter()
    if not kind.takes(size):
        pytest.skip("one particle only")
    assert python is not None
    with Peer([python, "-m", "benchmarks.peers.server", kind.key, name]) as peer:
        step.check(size, {label: peer}, torch.from_numpy(minibatch(size)))
        assert peer.run(2) > 0
