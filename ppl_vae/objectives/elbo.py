"""The evidence lower bound, with β on its KL."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..weights import Program
from .base import Terms, objectives
from .divergence import KL, WithDivergence, expected, parts

__all__ = ["ELBO"]


@objectives.register("elbo")
class ELBO(WithDivergence):
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
        super().__init__(particles, kl, data_size)
        if not (isinstance(beta, int | float) and math.isfinite(beta) and beta >= 0):
            raise InputError(f"beta={beta!r} must be a number, 0 or more")
        self.beta = float(beta)
        # a loss without the KL lets it grow: the bound falls while what is asked for gets better
        self.watched = "elbo" if beta else "log_likelihood"
        self.register_buffer("kl_weight", torch.ones(()))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        kl = self.divergence(w)
        # a weight of 1 multiplies exactly; β comes last, in the KL's precision and not in the buffer's
        loss = expected(w, self.beta * (self.kl_weight * kl) - w.log_likelihood)
        return Terms(loss, parts(w, kl))

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, particles={self.particles}, kl={self.kl!r}"
