"""A compiled step as one CUDA graph: a GPU's work is recorded once and started by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Replay"]

_WARM_UP = 3


class Replay:
    """A function of tensors on one GPU, recorded as a CUDA graph.

    Every call runs on the same memory: what is held is read and updated where it lies, what is given is copied in,
    what comes back is copied out. The default generator's noise advances from call to call as it does without a graph.
    Nothing here waits for the GPU but the recording.

    Args:
        function: takes the tensors held, then those given; free of anything that needs the host.
        held: its tensors, some updated in place. They are as they were after the recording, and so is the generator.
        given: inputs like those of later calls.

    Raises:
        RuntimeError: the function does something that no CUDA graph can hold.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], held: Sequence[Tensor], given: Sequence[Tensor]
    ) -> None:
        self.inputs = [t.clone() for t in given]
        self.graph = torch.cuda.CUDAGraph()
        devices = {t.device for t in (*held, *given)}
        if len(devices) != 1:
            raise RuntimeError(f"its tensors lie on several devices: {', '.join(sorted(map(str, devices)))}")
        (device,) = devices
        self.device = device
        with torch.cuda.device(device):  # a capture is of the current device's work
            self._record(function, held, device)

    def _record(
        self, function: Callable[..., tuple[Tensor, ...]], held: Sequence[Tensor], device: torch.device
    ) -> None:
        before = [t.clone() for t in held]
        noise = torch.cuda.get_rng_state(device)
        main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        try:
            # what is loaded, tuned or allocated at first calls must not be recorded
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    function(*held, *self.inputs)
            main.wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.outputs = function(*held, *self.inputs)
        finally:
            for tensor, old in zip(held, before, strict=True):
                tensor.copy_(old)
            torch.cuda.set_rng_state(noise, device)

    def __call__(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The function's outputs, of the caller's own."""
        for own, tensor in zip(self.inputs, given, strict=True):
            own.copy_(tensor, non_blocking=True)
        with torch.cuda.device(self.device):
            self.graph.replay()
        return tuple(out.clone() for out in self.outputs)
