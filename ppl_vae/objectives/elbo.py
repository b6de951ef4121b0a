"""The evidence lower bound, with β on its KL."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..errors import InputError, choose
from ..kl import closed_form_kl
from ..weights import LogWeights, Program
from .base import Objective, Terms, objectives

__all__ = ["ELBO"]

KL = Literal["auto", "analytic", "monte-carlo"]


@objectives.register("elbo")
class ELBO(Objective):
    r"""Evidence lower bound, with β on its KL: E_q[log p(x | z)] - β KL(q(z | x) ‖ p(z)).

    .. math:: \log p(x) = \mathrm{ELBO} + \mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x)) \qquad (\beta = 1)

    β = 1 is the bound itself, β = 0 an autoencoder's loss, β > 1 asks for disentangled dimensions; with β ≠ 1 the
    value logged as "elbo" stays the bound, in nats per datum.

    Args:
        beta: β >= 0.
        particles: K draws averaged, to lower the gradient's variance.
        kl: "analytic" takes each latent site's KL in closed form (`closed_form_kl`), "monte-carlo" as log q - log p
            of the draw, "auto" in closed form where it exists and is right. It is right only where guide and model
            visit the latents in the same order: the KL of a site whose parents in the model come later in the guide
            would hold one draw of them fixed, and be biased.
        data_size: number of data N of which batches are parts: a latent site outside of the data plate then counts
            B/N of its KL in a batch of B. None: the batch is all the data.

    With ``kl="monte-carlo"`` value and gradient equal Pyro's `Trace_ELBO` on equal draws, with "analytic" its
    `TraceMeanField_ELBO`. Enumerated sites (classes c) are summed exactly, Σ_c q(c | x) (f_c - log q(c | x)).

    Of a guide that is a point mass (`Delta`), log q is 0 by Pyro's convention: β = 0 leaves -log p(x | m(x)), an
    autoencoder's loss, β = 1 -log p(x, m(x)), whose minimum is the posterior's mode. What is logged as "elbo" and "kl"
    is then log p(x, m(x)) and -log p(m(x)), no bound and no divergence.

    Attributes:
        kl_weight: a buffer, 1; a warm-up lowers it for the first epochs, the loss takes β · kl_weight.

    Raises:
        InputError: β negative or not finite, an unknown `kl`, a `data_size` that is none; at the first call, a pair
            that breaks a rule, or for "analytic" a site without closed form or visited in another order.

    References:
        Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114).
        Higgins et al., β-VAE, ICLR 2017.
    """

    density = False

    kl_weight: Tensor

    def __init__(self, beta: float = 1.0, particles: int = 1, kl: KL = "auto", data_size: int | None = None) -> None:
        super().__init__(particles)
        if not (isinstance(beta, int | float) and math.isfinite(beta) and beta >= 0):
            raise InputError(f"beta={beta!r} must be a number, 0 or more")
        if kl not in ("auto", "analytic", "monte-carlo"):
            raise choose("kl", kl, ("auto", "analytic", "monte-carlo"))
        if data_size is not None and (not isinstance(data_size, int) or isinstance(data_size, bool) or data_size < 1):
            raise InputError(f"data_size={data_size!r} must be a whole number, 1 or more, or None")
        self.beta = float(beta)
        # a loss without the KL lets it grow: the bound falls while what is asked for gets better
        self.watched = "elbo" if beta else "log_likelihood"
        self.kl = kl
        self.data_size = data_size
        self.register_buffer("kl_weight", torch.ones(()))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        kl = self._kl(w)
        # a weight of 1 multiplies exactly; β comes last, in the KL's precision and not in the buffer's
        loss = expected(w, self.beta * (self.kl_weight * kl) - w.log_likelihood)
        with torch.no_grad():
            # detached too: with one particle the mean is a view, which keeps its graph even here
            log_likelihood = expected(w, w.log_likelihood.detach())
            kl_mean = expected(w, kl.detach())
        return Terms(loss, {"elbo": log_likelihood - kl_mean, "kl": kl_mean, "log_likelihood": log_likelihood})

    def _kl(self, w: LogWeights) -> Tensor:
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

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, particles={self.particles}, kl={self.kl!r}"


def expected(w: LogWeights, value: Tensor) -> Tensor:
    """Expectation over enumerated classes, mean over particles: (\\*C, K, N) -> (N,)."""
    if w.enumerated:
        value = w.log_q_enumerated.exp() * value
        value = value.sum(tuple(range(value.dim() - 2)))
    value = value.expand(w.particles, w.size)
    return value.mean(0) if w.particles > 1 else value.squeeze(0)
