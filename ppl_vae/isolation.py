"""Run programs aside: without gradients and validation, and with the caller's state afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .errors import InputError
from .validation import validation

__all__ = ["cuda_of", "device_of", "evaluation"]


def device_of(*programs: Any) -> torch.device | None:
    """Where the programs' parameters and buffers are; None where they have none."""
    for program in programs:
        if isinstance(program, nn.Module):
            for tensor in (*program.parameters(), *program.buffers()):
                return tensor.device
    return None


@contextmanager
def evaluation(*programs: Any, seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Without gradients and validation, with modules in evaluation mode (no dropout), and, where a seed is given, with
    random numbers of its own: the caller's generators, flags and modes are afterwards what they were."""
    modules = [m for program in programs if isinstance(program, nn.Module) for m in program.modules()]
    training = [m.training for m in modules]
    with ExitStack() as stack:
        if seed is not None:
            stack.enter_context(_seeded(seed, device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(validation(False))
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.training = mode


@contextmanager
def _seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed={seed!r} must be a whole number of 64 bits")
    cuda = cuda_of(device)
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would seed the devices that are not forked, too
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


def cuda_of(device: torch.device | None) -> list[torch.device]:
    """The device if it is a GPU, as `torch.random.fork_rng` wants it."""
    return [device] if device is not None and device.type == "cuda" else []
