"""The posterior itself, where it is a sum over few values."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..batch import Batch
from ..core import Guide, LatentModel
from ..errors import InputError
from ..handlers import apart
from ..weights import is_per_datum, sample_sites, score_site
from .base import guides
from .enumerated import discrete_sites

__all__ = ["Exact"]


@guides.register("exact")
class Exact(Guide):
    r"""The posterior of a model's one discrete latent, by running the model on each of its values.

    .. math:: q(z = c \mid x) = p(z = c \mid x) = \frac{p(x, z = c)}{\sum_{c'} p(x, z = c')}

    Under it the ELBO is log p(x), its gradient that of log p(x), and a step of gradient ascent on the model a small
    M-step after a full E-step. It has no parameters.

    With `Combined` and the latents that all data share in `given`, it is the posterior at each draw of those,
    p(z | x, w): z is then integrated out, and q(w) is all that is inferred.

    Args:
        model: what the guide is for. Its program is run by the guide, which does not own its parameters: copy and move
            the two together.

    Raises:
        InputError: as `Enumerated`; more latent sites than one.

    Example:
        >>> from ppl_vae import ELBO, Batch, models
        >>> mixture = models.GaussianMixture(components=3, size=2)
        >>> x = torch.randn(4, 2)
        >>> elbo = ELBO().terms(mixture, Exact(mixture), Batch(x=x)).logs["elbo"]
        >>> torch.allclose(elbo, mixture.log_prob(x), atol=1e-5)
        True
    """

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        sizes = discrete_sites(self, model)
        self.sites = tuple(sizes)
        if len(sizes) > 1:
            raise InputError(
                f"Exact is the posterior of one discrete latent; {type(model).__name__} has {', '.join(sizes)}: use "
                "Enumerated"
            )
        ((self.site, self.values),) = sizes.items()
        self._model = (model,)  # in a tuple: run, but neither moved nor saved with the guide

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            ((name, q),) = self.distribution(batch, **latents).items()
            return {name: pyro.sample(name, q, infer={"enumerate": "parallel"})}

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        if batch.x is None:
            raise InputError("the posterior given x needs batch.x")
        # to the left of all dimensions that there may be: (C, 1, ..., 1)
        left = max((value.dim() for value in latents.values()), default=1)
        values = torch.arange(self.values, device=batch.x.device).reshape(-1, *[1] * max(left, 1))
        with apart():
            conditioned = poutine.condition(self._model[0], data={**latents, self.site: values})
            sites = sample_sites(poutine.trace(conditioned).get_trace(batch))
        total: Tensor | float = 0.0
        for _, site in sites:
            if is_per_datum(site):
                total = total + score_site(site)
        assert isinstance(total, Tensor)
        while total.dim() > 2 and total.shape[1] == 1:
            total = total.squeeze(1)
        return {self.site: dist.Categorical(logits=total.movedim(0, -1))}
