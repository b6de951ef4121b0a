"""A guide's draws as constants, for objectives that fit q to draws instead of moving draws along q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["held"]


class held(Messenger):
    """Inside of a plate of particles, take every draw of a guide as a constant, or put another in its place.

    Put it around `log_weights`: no gradient then passes through the draws, and both programs are scored at them. What a
    guide draws later depends on what was put in the place of what it drew before.

    Args:
        instead: called with a site's name and its draws (K, N, \\*event), without gradient; returns what takes their
            place.
    """

    def __init__(self, instead: Callable[[str, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.instead = instead

    # the outermost handler is asked first: a trace inside of it records what it leaves
    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        if not any(frame.dim == -2 for frame in msg["cond_indep_stack"]):
            return
        value = msg["value"].detach()
        msg["value"] = value if self.instead is None else self.instead(msg["name"], value)
