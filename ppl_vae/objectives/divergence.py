"""KL(q(z | x) ‖ p(z)) as objectives need it: in closed form where that is right, of the draw elsewhere."""

from __future__ import annotations

from typing import Literal

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..errors import InputError, choose
from ..kl import closed_form_kl
from ..weights import LogWeights
from .base import Objective

__all__ = ["KL", "WithDivergence", "expected", "parts"]

KL = Literal["auto", "analytic", "monte-carlo"]


class WithDivergence(Objective):
    """An objective in which log p(x | z) and the KL stand apart.

    Args:
        particles: K draws averaged.
        kl: "analytic" takes each latent site's KL in closed form (`closed_form_kl`), "monte-carlo" as log q - log p
            of the draw, "auto" in closed form where it exists and is right, see `ELBO`.
        data_size: number of data N of which batches are parts, for latent sites outside of the data plate; None: the
            batch is all the data.

    Raises:
        InputError: an unknown `kl`, a `data_size` that is none; from `divergence`, for "analytic", a site without
            closed form or visited in another order.
    """

    def __init__(self, particles: int = 1, kl: KL = "auto", data_size: int | None = None) -> None:
        super().__init__(particles)
        if kl not in ("auto", "analytic", "monte-carlo"):
            raise choose("kl", kl, ("auto", "analytic", "monte-carlo"))
        if data_size is not None and (not isinstance(data_size, int) or isinstance(data_size, bool) or data_size < 1):
            raise InputError(f"data_size={data_size!r} must be a whole number, 1 or more, or None")
        self.kl = kl
        self.data_size = data_size

    def divergence(self, w: LogWeights) -> Tensor:
        """Σ over latent sites of log q - log p or its closed form, (\\*C, K, N)."""
        total: Tensor | None = None
        for name in [*w.log_prior, *(name for name in w.log_guide if name not in w.log_prior)]:
            site = self._site_kl(w, name)
            if name in w.shared:
                # N terms share it, so that the sum over the batch counts it once, or B/N of it
                site = site / (self.data_size or w.size)
            total = site if total is None else total + site
        return w.log_likelihood.new_zeros(w.particles, w.size) if total is None else total

    def _site_kl(self, w: LogWeights, name: str) -> Tensor:
        analytic = self.kl != "monte-carlo" and name in w.pairs and name not in w.enumerated
        if analytic and not w.same_order:
            if self.kl == "analytic":
                raise InputError(
                    "kl='analytic' would be biased: guide and model visit the latent sites in different orders; "
                    "use kl='auto' or 'monte-carlo'"
                )
            analytic = False
        if analytic:
            q, p, mask = w.pairs[name]
            kl = closed_form_kl(q, p)
            if kl is not None:
                return scale_and_mask(kl, 1.0, mask)  # type: ignore[no-any-return]
            if self.kl == "analytic":
                raise InputError(
                    f"kl='analytic': no closed form is known for site {name!r}, KL({q} ‖ {p}); "
                    "use kl='auto' or 'monte-carlo'"
                )
        log_q = w.log_guide[name]
        return log_q - w.log_prior[name] if name in w.log_prior else log_q


def expected(w: LogWeights, value: Tensor) -> Tensor:
    """Expectation over enumerated classes, mean over particles: (\\*C, K, N) -> (N,)."""
    if w.enumerated:
        value = w.log_q_enumerated.exp() * value
        value = value.sum(tuple(range(value.dim() - 2)))
    value = value.expand(w.particles, w.size)
    return value.mean(0) if w.particles > 1 else value.squeeze(0)


@torch.no_grad()
def parts(w: LogWeights, kl: Tensor) -> dict[str, Tensor]:
    """What is logged of a bound's two parts, (N,) each: "elbo", "kl" and "log_likelihood".

    Args:
        kl: from `WithDivergence.divergence`.
    """
    # detached too: with one particle the mean is a view, which keeps its graph even here
    log_likelihood = expected(w, w.log_likelihood.detach())
    mean = expected(w, kl.detach())
    return {"elbo": log_likelihood - mean, "kl": mean, "log_likelihood": log_likelihood}
