"""Run programs aside: with the caller's random states, buffers, modes and flags afterwards what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .validation import validation

__all__ = ["cuda_in", "device_of", "evaluation", "restored", "swapped", "tensors_in", "untouched"]


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
    cuda = cuda_in(device)
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would seed the devices that are not forked, too
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def untouched(*things: Any) -> Iterator[None]:
    """Leave the random states of the CPU and of the things' devices as they are, and the buffers of modules, such as
    running averages: a run that is resumed checks its pair once more, and must go on as if it had not."""
    with restored(*things), torch.random.fork_rng(devices=cuda_in(*things)):
        yield


@contextmanager
def restored(*things: Any) -> Iterator[None]:
    """Afterwards the buffers of those things that are modules are the tensors that they were, with their values."""
    held = [
        (part._buffers, name, t, t.clone())
        for thing in things
        if isinstance(thing, nn.Module)
        for part in thing.modules()
        for name, t in part._buffers.items()
        if t is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for store, name, tensor, before in held:
                store[name] = tensor.copy_(before)


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """The module with other tensors in place of its own, by the id of each.

    `torch.func.functional_call` does this by name, and where one submodule is registered under two names, as a
    condition of model and encoder is, it leaves the other tensors behind.
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, own in store.items():
                    if id(own) in tensors:
                        before.append((store, name, own))
                        store[name] = tensors[id(own)]  # type: ignore[assignment]
        yield
    finally:
        for store, name, own in before:
            store[name] = own


def tensors_in(*things: Any) -> Iterator[Tensor]:
    """The tensors among things: themselves, parameters and buffers of modules, and what tuples, lists and mappings
    hold."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        elif isinstance(thing, Mapping):
            yield from tensors_in(*thing.values())
        elif isinstance(thing, tuple | list):
            yield from tensors_in(*thing)


def cuda_in(*things: Any) -> list[torch.device]:
    """The GPUs on which things lie, or which they are, each once, as `torch.random.fork_rng` wants them."""
    devices = [thing for thing in things if isinstance(thing, torch.device)]
    found = dict.fromkeys([*devices, *(t.device for t in tensors_in(*things))])
    return [device for device in found if device.type == "cuda"]
