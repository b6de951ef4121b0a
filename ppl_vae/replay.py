"""A compiled step as one CUDA graph: a GPU's work is recorded once and started by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, cuda

__all__ = ["Replay"]

_WARM_UP = 3


class Replay:
    """A function of tensors on one GPU, recorded as a CUDA graph.

    Every call runs on the same memory: what is held is read and updated where it lies, what is given is copied in,
    what comes back is copied out. The default generator's noise advances from call to call as it does without a graph.
    Nothing here waits for the GPU but the recording.

    Args:
        function: takes the tensors held, then those given; free of anything that needs the host.
        held: its tensors, some updated in place. They are as they were after the recording, whether or not that
            succeeded, and so is the generator.
        given: inputs like those of later calls.
        written: which of `held` are updated in place: these alone are copied for the time of the recording, and not the
            data that a step reads.

    Raises:
        RuntimeError: the function does something that no CUDA graph can hold.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        held: Sequence[Tensor],
        given: Sequence[Tensor],
        written: Sequence[int],
    ) -> None:
        self.inputs = [t.clone() for t in given]
        self.graph = cuda.CUDAGraph()
        devices = {t.device for t in (*held, *given)}
        if len(devices) != 1:
            raise RuntimeError(f"its tensors lie on several devices: {', '.join(sorted(map(str, devices)))}")
        (device,) = devices
        self.device = device
        with cuda.device(device):  # a capture is of the current device's work
            self._record(function, held, [held[k] for k in written], device)

    def _record(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        held: Sequence[Tensor],
        written: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        before = [t.clone() for t in written]
        noise = cuda.get_rng_state(device)
        main, side = cuda.current_stream(device), cuda.Stream(device)
        try:
            # what is loaded, tuned or allocated at first calls must not be recorded
            side.wait_stream(main)
            with cuda.stream(side):
                for _ in range(_WARM_UP):
                    function(*held, *self.inputs)
            with cuda.graph(self.graph):
                self.outputs = function(*held, *self.inputs)
        finally:
            # a recording that fails may leave its own stream the current one
            cuda.set_stream(main)
            main.wait_stream(side)
            for tensor, old in zip(written, before, strict=True):
                tensor.copy_(old)
            _restore_noise(noise, device)

    def __call__(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The function's outputs, of the caller's own."""
        for own, tensor in zip(self.inputs, given, strict=True):
            own.copy_(tensor, non_blocking=True)
        with cuda.device(self.device):
            self.graph.replay()
        return tuple(out.clone() for out in self.outputs)


def _restore_noise(noise: Tensor, device: torch.device) -> None:
    """Set the generator's state, also after a recording that failed.

    A recording that CUDA calls invalid ends before the generator is told, which then refuses to be set or to draw
    outside of a recording. The end of another one, of nothing, tells it.
    """
    try:
        cuda.set_rng_state(noise, device)
    except RuntimeError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks that the graph is empty
            with cuda.graph(cuda.CUDAGraph()):
                pass
        cuda.set_rng_state(noise, device)
