"""The VampPrior: a mixture of the guide's own posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ..batch import Batch
from ..core import Guide
from ..errors import InputError, check_count
from ..mixtures import NormalMixture
from .base import Prior, priors

__all__ = ["Vamp"]


class _Unbound(InputError):
    """The prior was asked for before it had a guide."""


@priors.register("vamp")
class Vamp(Prior):
    r"""VampPrior: the mean of the guide's posteriors at K learned pseudo-inputs.

    .. math:: p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k), \qquad u_k = c + r \odot v_k

    v_k are its only parameters, c and r the average and the spread of what the encoder sees. With the training data in
    place of u_k it would be the aggregate posterior, the prior of which the ELBO is largest.

    It is made of a guide by `bind`, as `build` does for pairs by name. The guide's parameters are the guide's alone:
    they are in its state dict, once in an optimizer, and not in the model's; but log p(z) depends on them, and passes
    them its gradient. Where an objective stops the guide's parameters inside of log q (`STL`, `DReG`), it does not stop
    them here: this is the model. A model with this prior is that of one guide: without it, or with another, it is
    another p(x).

    Args:
        size: number of dimensions of z.
        shape: D, of one datum.
        components: K.
        start: data (N, \*D); some of them, with a little noise, are the first pseudo-inputs. None: draws of
            N(c, r²).
        loc, scale: c and r, numbers or tensors that broadcast to D.

    Raises:
        InputError: a number of components that is none; start of another shape. When bound: a guide that gives no
            q(z | x) of a datum in closed form, that scores no draws but its own, that has parameters for each datum,
            that runs the model, or that needs more than x. When run: no guide was given.

    Reference: Tomczak and Welling, VAE with a VampPrior, AISTATS 2018 (https://arxiv.org/abs/1705.07120).
    """

    of_guide: ClassVar[bool] = True
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        components: int = 50,
        start: Tensor | None = None,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        super().__init__(size)
        check_count("components", components)
        self.components = components
        self.register_buffer("loc", torch.as_tensor(loc, dtype=torch.get_default_dtype()))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))
        first = torch.randn(components, *shape)
        if start is not None:
            if tuple(start.shape[1:]) != tuple(shape) or not len(start):
                raise InputError(f"start has shape {tuple(start.shape)}; pseudo-inputs are data (N, *{tuple(shape)})")
            rows = torch.randperm(len(start))[:components] if len(start) >= components else None
            rows = torch.randint(len(start), (components,)) if rows is None else rows
            # the noise tells apart what is drawn twice, or equal
            first = (start[rows] - self.loc) / self.scale + 0.1 * first
        self.v = nn.Parameter(first)
        self.site: str | None = None
        self._guide: tuple[Guide, ...] = ()  # in a tuple: run, but neither moved nor saved with this

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, (K, \\*D)."""
        return self.loc + self.scale * self.v

    def bind(self, guide: Guide, site: str = "z") -> None:
        """Take q(z | u) of a guide's site; raises `InputError` where there is no such thing."""
        name = type(guide).__name__
        cannot = f"prior='vamp' is a mixture of the guide's q({site} | u) at pseudo-inputs u, and {name}"
        instead = "; use another guide, as mean-field, or prior='mixture'"
        self._guide, self.site = (), site
        if not guide.scores_given:
            raise InputError(f"{cannot} gives no density of a z that it has not drawn{instead}")
        try:
            with torch.no_grad():
                q = guide.distribution(Batch(x=self.pseudo_inputs))[site]
        except _Unbound as error:
            raise InputError(
                f"{cannot} runs the model to find its q, whose prior would be made of that q again{instead}"
            ) from error
        except (NotImplementedError, InputError, KeyError) as error:
            reason = str(error).partition("\n")[0]  # Pyro adds the shapes of a trace
            raise InputError(f"{cannot} does not give it: {reason}{instead}") from error
        if tuple(q.batch_shape) != (self.components,) or tuple(q.event_shape) != tuple(self.event_shape):
            raise InputError(
                f"{cannot} gives a q of batch shape {tuple(q.batch_shape)} and events {tuple(q.event_shape)}, where "
                f"{(self.components,)} and {tuple(self.event_shape)} belong{instead}"
            )
        self._guide = (guide,)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        if not self._guide:
            raise _Unbound(
                "prior='vamp' is made of a guide's q(z | u), and has none: call ppl_vae.priors.bind(model, guide), "
                "with a guide that does not run the model"
            )
        assert self.site is not None
        q = self._guide[0].distribution(Batch(x=self.pseudo_inputs))[self.site]
        equal = self.v.new_zeros(self.components)
        shape = features.shape[:-1]
        if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
            return NormalMixture(equal, q).expand(shape)
        mixture: TorchDistributionMixin = dist.MixtureSameFamily(dist.Categorical(logits=equal), q)
        expanded: TorchDistributionMixin = mixture.expand(shape)
        return expanded

    def extra_repr(self) -> str:
        guide = type(self._guide[0]).__name__ if self._guide else None
        return f"size={self.size}, components={self.components}, guide={guide}"
