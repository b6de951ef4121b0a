"""The lecture's semi-supervised variational autoencoder: class and style are told apart by x alone."""

from __future__ import annotations

from .base import models
from .m2 import M2

__all__ = ["SemiSupervisedVAE"]


@models.register("semi-supervised-vae")
class SemiSupervisedVAE(M2):
    r"""Semi-supervised VAE, the lecture's: the generative model of `M2` with q(z, y | x) = q(z | x) q(y | x).

    .. math:: p(x, y, z) = \mathrm{Cat}(y; 1/C) \, N(z; 0, I) \, p(x \mid f_θ(y, z))

    Under that posterior the bound on an unlabelled datum is

    .. math::
        E_ε \sum_c q(y = c \mid x) \log p(x \mid z, c) - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
        - \mathrm{KL}(q(y \mid x) \,\|\, \mathrm{uniform}), \qquad z = z(ε, x),

    one draw of z for all classes, and on a labelled one E_ε log p(x | z, y) - KL(q(z | x) ‖ p(z)) - log C. With the
    cross-entropy -log q(y | x) of the labelled data, the objective `SemiSupervised` is J = L_l + β L_u.

    Arguments, sites and errors are those of `M2`, from which it differs in the guide that `build` makes for it.

    Attributes:
        posterior: "factorized", q(y | x) q(z | x).
    """

    posterior = "factorized"
