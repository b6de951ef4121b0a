"""The ELBO and IWAE's bound by the path derivative alone: sticking the landing."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import choose
from ..weights import Program
from .base import Objective, Terms, objectives
from .divergence import expected
from .iwae import bound_logs, log_mean_weights

__all__ = ["STL"]


@objectives.register("stl")
class STL(Objective):
    r"""Sticking the landing: the guide's gradient through its draws alone, which vanishes where q is the posterior.

    .. math::
        \nabla_φ \mathrm{ELBO} = E_ε\Big[\frac{\partial}{\partial z} \big(\log p(x, z) - \log q(z \mid x; φ)\big)
        \frac{\partial z}{\partial φ}\Big], \qquad z = z(ε; φ)

    The ordinary gradient has -∂ log q(z; φ)/∂φ at fixed z besides, whose mean is 0 and whose variance is not. Without
    it, every single draw gives the gradient 0 where q(z | x) = p(z | x). The gradient with respect to the model is
    the ordinary one, and so are the values, `ELBO(kl="monte-carlo")` or `IWAE` on equal draws.

    The bound of K > 1 particles has unequal weights, under which the mean of what is left out is **not** 0: there the
    gradient is **biased**, and ascends to another optimum. `DReG` is the unbiased estimator; ``bound="elbo"``
    averages the ELBO over K draws without bias.

    Args:
        particles: K, per datum.
        bound: of K > 1 particles, "iwae": log of the mean weight; "elbo": mean of the log-weights.

    Raises:
        InputError: an unknown `bound`; at the first call, a latent site shared by all data, a site of the guide without
            reparameterization, a guide that cannot score given draws or takes random numbers besides them (dropout).

    Reference: Roeder, Wu and Duvenaud, Sticking the landing: simple, lower-variance gradient estimators for variational
    inference, NIPS 2017 (https://arxiv.org/abs/1703.09194).
    """

    scores_given = True
    stop_guide = True

    def __init__(self, particles: int = 1, bound: Literal["iwae", "elbo"] = "iwae") -> None:
        super().__init__(particles)
        if bound not in ("iwae", "elbo"):
            raise choose("bound", bound, ("iwae", "elbo"))
        self.bound = bound
        self.leaves_classes = bound == "iwae" and particles > 1

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        # of one particle and an enumerated class too it is the ELBO, whose estimator has no bias
        elbo = self.bound == "elbo" or self.particles == 1
        bound = expected(w, w.log_w) if elbo else log_mean_weights(w, w.log_w)
        return Terms(-bound, bound_logs(w, bound))

    def extra_repr(self) -> str:
        return f"particles={self.particles}, bound={self.bound!r}"
