"""Pyro's and torch's validation flags: on for the first run of a pair, off while steps are run or traced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions.util
import pyro.infer.util
import pyro.poutine.util
from torch.distributions import Distribution

__all__ = ["validation"]

_lock = threading.RLock()
_PYRO_FLAGS: tuple[Any, ...] = (pyro.distributions.util, pyro.infer.util, pyro.poutine.util)


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Switch every validation flag, and put back exactly what was there.

    There are four: torch's default for distributions, and Pyro's for distributions, inference and handlers.
    `pyro.validation_enabled` restores torch's flag from Pyro's, so that who had only torch's off finds it on
    afterwards; here each is kept by itself. The flags belong to the process, hence the lock: another thread's
    switch waits. (Threads that never switch see the flags as they are.)
    """
    with _lock:
        torch_flag = Distribution._validate_args
        pyro_flags = [module._VALIDATION_ENABLED for module in _PYRO_FLAGS]
        try:
            Distribution.set_default_validate_args(enabled)
            for module in _PYRO_FLAGS:
                module._VALIDATION_ENABLED = enabled
            yield
        finally:
            Distribution.set_default_validate_args(torch_flag)
            for module, flag in zip(_PYRO_FLAGS, pyro_flags, strict=True):
                module._VALIDATION_ENABLED = flag
