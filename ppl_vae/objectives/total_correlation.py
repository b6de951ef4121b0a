"""β-TCVAE: the parts of the bound's KL, each with a weight of its own."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, check_count, check_number, choose
from ..weights import LogWeights, Program
from .base import Terms, objectives
from .decomposition import Decomposition, Estimator, GaussianCodes, decompose, gaussian_codes
from .divergence import KL, WithDivergence, expected, parts

__all__ = ["BetaTCVAE", "codes_of"]


@objectives.register("btc")
class BetaTCVAE(WithDivergence):
    r"""The bound with weights on the parts of its KL, most of all on the total correlation of the aggregate posterior.

    .. math::
        E_q[\log p(x \mid z)] - α\, I_q(x; z) - β\, \mathrm{KL}\big(q(z) \,\|\, \textstyle\prod_d q(z_d)\big)
        - γ\, \mathrm{KL}\big(\textstyle\prod_d q(z_d) \,\|\, p(z)\big)

    with q(z) = E_p(x)[q(z | x)] estimated within the batch (`decompose`). What has weight 1 is taken together in the
    bound's own KL, exactly: with α = β = γ = 1 it is the `ELBO`, in value and gradient.

    Args:
        beta: β >= 0, of the total correlation.
        alpha: α >= 0, of the mutual information.
        gamma: γ >= 0, of the dimension-wise KL.
        size: N, number of training data of which batches are parts; None: the batch is all the data. `fit` and the
            command line give it.
        estimator: "stratified" (unbiased for q(z)) or "weighted" (the paper's minibatch-weighted one: its values are
            off by a constant, its gradients are those of equal weights).
        particles, kl, data_size: as for `ELBO`.

    Logs besides the bound's parts: "mutual_information", "total_correlation", "dimension_kl", nats, whose mean over the
    batch is what counts.

    Raises:
        InputError: numbers out of range; a batch larger than `size`, or of one datum; a guide that is no Gaussian of
            one latent site given x (mean-field, full-rank, low-rank), since the densities of single dimensions of q(z)
            are needed.

    Reference: Chen et al., Isolating sources of disentanglement in VAEs, NeurIPS 2018
    (https://arxiv.org/abs/1802.04942).
    """

    def __init__(
        self,
        beta: float = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        size: int | None = None,
        estimator: Estimator = "stratified",
        particles: int = 1,
        kl: KL = "auto",
        data_size: int | None = None,
    ) -> None:
        super().__init__(particles, kl, data_size)
        self.beta = check_number("beta", beta, least=0.0)
        self.alpha = check_number("alpha", alpha, least=0.0)
        self.gamma = check_number("gamma", gamma, least=0.0)
        if estimator not in ("stratified", "weighted"):
            raise choose("estimator", estimator, ("stratified", "weighted"))
        self.size = None if size is None else check_count("size", size, 2)
        self.estimator: Estimator = estimator

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        part = decompose(codes_of(w, type(self).__name__, guide), self.size, self.estimator)
        kl = self.divergence(w)
        loss = expected(w, kl - w.log_likelihood)
        for weight, value in zip((self.alpha, self.beta, self.gamma), part, strict=True):
            if weight != 1.0:
                loss = loss + (weight - 1.0) * value
        return Terms(loss, {**parts(w, kl), **detached(part)})

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, alpha={self.alpha:g}, gamma={self.gamma:g}, size={self.size}"


def codes_of(w: LogWeights, what: str, guide: Program) -> GaussianCodes:
    """The pair's codes as Gaussians; raises `InputError` where they are none."""
    codes = gaussian_codes(w)
    if codes is None:
        raise InputError(
            f"{what} needs a guide that is a Gaussian of one latent site given x, of which it takes single dimensions, "
            f"and guide={type(guide).__name__} is none; use mean-field, full-rank or low-rank"
        )
    if w.size < 2:
        raise InputError(f"{what} compares the data of a batch, and this one has {w.size}; give 2 or more")
    return codes


def detached(part: Decomposition) -> dict[str, Any]:
    """The parts for the log."""
    return {name: value.detach() for name, value in part._asdict().items()}
