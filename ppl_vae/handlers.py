"""Effect handlers: scale the latent sites by β, or the data's terms by N/B; run a program apart from others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import Tensor

from .errors import InputError

__all__ = ["apart", "drawn", "scale_data", "scale_latents"]


class _Scale(Messenger):
    """Multiplies the scale of chosen sample sites. (`poutine.scale` takes every site, and refuses a scale of 0,
    with which a β-VAE is an autoencoder and a warm-up begins.)"""

    def __init__(self, argument: str, scale: float | Tensor) -> None:
        super().__init__()
        if not isinstance(scale, Tensor) and not scale >= 0:
            raise InputError(f"{argument}={scale!r} must be 0 or more")
        self.scale = scale

    def chosen(self, msg: Any) -> bool:
        raise NotImplementedError

    # in the sample message, not after it: a trace inside of this handler has recorded the site by then
    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" and self.chosen(msg):
            msg["scale"] = self.scale * msg["scale"]


class scale_latents(_Scale):
    r"""Scale log p and log q of every latent site by β, so that plain Pyro losses train a β-VAE.

    .. math:: E_q[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    Put it around the model **and** the guide: `Trace_ELBO` adds their log-probabilities, and `TraceMeanField_ELBO`
    takes its scale from the guide alone. Factors of a guide (`pyro.factor`, which asks a guide, and not a model, for
    `has_rsample`) are part of its log q, and scaled with it. Not for `RenyiELBO`, where a scale raises weights to a
    power before they are summed; this package's own objectives say no to scaled programs, and take β as an argument.

    Args:
        beta: β >= 0, a number or a 0-dimensional tensor; 0 is possible, which `poutine.scale` refuses.

    Raises:
        InputError: a number below 0, or NaN. (A tensor's value is not read.)

    Example:
        >>> model, guide = pyro_pair(model, guide)  # doctest: +SKIP
        >>> svi = SVI(scale_latents(4.0)(model), scale_latents(4.0)(guide), optim, Trace_ELBO())  # doctest: +SKIP

    Reference: Higgins et al., β-VAE: Learning basic visual concepts with a constrained variational framework,
    ICLR 2017.
    """

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__("beta", beta)

    def chosen(self, msg: Any) -> bool:
        return not msg["is_observed"] or _is_guides_factor(msg["fn"])


class scale_data(_Scale):
    r"""Scale every term inside the data plate by N/B, so that a minibatch of B data stands for all N.

    Sites outside of the plate, the global latents, keep their weight: the loss of a minibatch is then an unbiased
    estimate of the loss of all the data, as with ``pyro.plate(..., subsample_size=B)``. Put it around model and guide.

    .. math:: \sum_{\text{global}} (\log p - \log q) \;+\; \frac{N}{B} \sum_{n=1}^{B} (\log p_n - \log q_n)

    As with `scale_latents`, this is for Pyro's losses: this package's objectives refuse scaled programs, and take the
    size of the data, ``ELBO(data_size=N)``.

    Args:
        factor: N/B, a number or a 0-dimensional tensor.

    Raises:
        InputError: a number below 0, or NaN. (A tensor's value is not read.)
    """

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__("factor", factor)

    def chosen(self, msg: Any) -> bool:
        return any(frame.dim == -1 for frame in msg["cond_indep_stack"])


def _is_guides_factor(fn: Any) -> bool:
    return isinstance(fn, Unit) and "has_rsample" in vars(fn)


@contextmanager
def apart() -> Iterator[None]:
    """Run programs in the midst of another, for numbers that it needs, as if by themselves: outside of its plates, and
    unseen by its handlers."""
    plates = _DIM_ALLOCATOR._stack
    _DIM_ALLOCATOR._stack = []
    try:
        with poutine.block():
            yield
    finally:
        _DIM_ALLOCATOR._stack = plates


def drawn(guide: Any) -> Any:
    """The guide with every site drawn, those marked for enumeration too."""
    return poutine.infer_config(guide, config_fn=lambda site: {"enumerate": None})  # type: ignore[typeddict-item]
