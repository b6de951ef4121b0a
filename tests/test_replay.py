"""Recording a CUDA graph, on a stand-in for torch.cuda that keeps its rules: what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import replay
from ppl_vae.replay import Replay


class FakeStream:
    def __init__(self, device: Any = None) -> None:
        self.waited: list[FakeStream] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.waited.append(other)


class FakeGraph:
    def __init__(self) -> None:
        self.work: Any = None

    def replay(self) -> None:
        self.work()


class FakeCuda:
    """A stream that is current, and a generator that a recording takes hold of: it is let go where the recording ends,
    but not where CUDA calls that recording invalid, after which the recording's stream also stays the current one."""

    CUDAGraph = FakeGraph
    Stream = FakeStream

    def __init__(self, invalid: bool = False) -> None:
        self.main = self.current = FakeStream()
        self.captures = 0
        self.capturing = False
        self.invalid = invalid

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    def current_stream(self, device: Any) -> FakeStream:
        return self.current

    def set_stream(self, stream: FakeStream) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph) -> Iterator[None]:
        before, self.current = self.current, FakeStream()
        self.capturing = True
        self.captures += 1
        try:
            yield
        finally:
            if self.invalid and self.captures == 1:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.capturing = False
            self.current = before

    def get_rng_state(self, device: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any) -> None:
        if self.capturing:
            raise RuntimeError("Cannot set the generator's state during CUDA graph capture")
        torch.set_rng_state(state)


def held() -> list[Tensor]:
    return [torch.arange(3.0), torch.ones(2), torch.full((4,), 7.0)]


def function(weight: Tensor, data: Tensor, count: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    weight.add_(x.sum() + torch.rand(()))
    count.mul_(2)
    return ((weight.sum() * data.sum()).clone(),)


def test_a_recording_leaves_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is as before, and so is the generator; what is only read is not copied."""
    cuda = FakeCuda()
    monkeypatch.setattr(replay, "cuda", cuda)
    tensors, noise = held(), torch.get_rng_state()
    cloned: list[int] = []
    monkeypatch.setattr(
        Tensor, "clone", lambda self, original=Tensor.clone: cloned.append(self.numel()) or original(self)
    )
    Replay(function, tensors, [torch.ones(5)], written=(0, 2))
    assert 2 not in cloned
    assert {3, 4, 5} <= set(cloned)
    assert all(torch.equal(a, b) for a, b in zip(tensors, held(), strict=True))
    assert torch.equal(torch.get_rng_state(), noise)
    assert cuda.current is cuda.main
    assert cuda.captures == 1


@pytest.mark.parametrize("where", ["warm-up", "capture", "end of the capture"])
def test_a_recording_that_fails_leaves_what_it_found(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason comes out, whatever failed, and a step can be run without a graph: streams joined, generator free."""
    cuda = FakeCuda(invalid=where != "warm-up")
    monkeypatch.setattr(replay, "cuda", cuda)
    calls = 0

    def failing(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        out = function(*tensors)
        if calls == {"warm-up": 2, "capture": 4}.get(where):
            raise RuntimeError("this needs the host")
        return out

    tensors, noise = held(), torch.get_rng_state()
    reason = "previous error" if where == "end of the capture" else None
    with pytest.raises(RuntimeError, match=reason) as raised:
        Replay(failing, tensors, [torch.ones(5)], written=(0, 2))
    if where == "capture":  # torch raises at the end what came of the beginning
        assert "this needs the host" in str(raised.value.__context__)
    assert all(torch.equal(a, b) for a, b in zip(tensors, held(), strict=True))
    assert torch.equal(torch.get_rng_state(), noise)
    assert not cuda.capturing
    assert cuda.current is cuda.main
    assert cuda.main.waited
    assert cuda.captures == (0 if where == "warm-up" else 2)


def test_tensors_on_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "cuda", FakeCuda())
    with pytest.raises(RuntimeError, match="several devices: cpu, meta"):
        Replay(function, held(), [torch.ones(5, device="meta")], written=())
