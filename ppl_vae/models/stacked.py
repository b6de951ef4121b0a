"""M1+M2: the codes of a VAE, explained by a class and a style."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Independent, Normal

from ..batch import Batch
from ..core import LatentModel
from ..errors import InputError
from ..labels import sure
from ..networks import join
from .m2 import M2
from .vae import VAE

__all__ = ["Stacked"]


class Stacked(LatentModel):
    r"""M1+M2: a class y and a style z make the codes z₁ of a VAE, M1, and these make x.

    .. math:: p(x, z_1, y, z) = \mathrm{Cat}(y; 1/C) \, N(z; 0, I) \, p(z_1 \mid y, z) \, p(x \mid z_1)

    p(z₁ | y, z) is that of an `M2` whose data are codes, p(x | z₁) that of a `VAE`. Dimensions of z₁ that M2 was not
    given keep N(0, 1). The two are trained one after the other, M1 on x alone and M2 on M1's codes drawn anew in every
    step (``evaluate.codes(..., draw=True)``), and put together here; its guide is `guides.Stacked`.

    Args:
        m1: the VAE, with a standard normal prior.
        m2: over the codes, with a Gaussian likelihood of vectors.
        keep: (Z,) bool, which dimensions of z₁ are M2's, as many as it has; None: all.

    Sites: "y", (\*S, N); "z", (\*S, N) events of M2's; "z1", (\*S, N) events (Z,); where a batch has y, the observed
    "label"; "x", (\*S, N) events D.

    Raises:
        InputError: M2 is over other events than the kept dimensions, or its likelihood is no diagonal Gaussian; M1 is
            conditioned on something.

    Reference: Kingma, Rezende, Mohamed and Welling, Semi-supervised learning with deep generative models, NIPS 2014
    (https://arxiv.org/abs/1406.5298).
    """

    takes_labels = True
    posterior = "joint"
    kept: Tensor

    def __init__(self, m1: VAE, m2: M2, keep: Tensor | None = None) -> None:
        super().__init__()
        spec = m1.latents["z"]
        (size,) = spec.event_shape
        keep = torch.ones(size, dtype=torch.bool) if keep is None else keep.cpu()
        if keep.dtype != torch.bool or tuple(keep.shape) != (size,):
            raise InputError(f"keep is {keep.dtype} {tuple(keep.shape)}; give torch.bool ({size},), as M1 has codes")
        if tuple(m2.likelihood.event_shape) != (int(keep.sum()),):
            raise InputError(
                f"m2 is over events {tuple(m2.likelihood.event_shape)}, and {int(keep.sum())} dimensions of M1's codes "
                "are kept: train it on evaluate.codes(m1, guide, data, keep=keep)"
            )
        if m1.condition.width:
            raise InputError("m1 is conditioned on labels or a context; M1 is to know x alone: use a VAE")
        self.m1, self.m2, self.size, self.classes = m1, m2, size, m2.classes
        self.latents = {**m2.latents, "z1": spec._replace(parents=("y", "z"))}
        self.register_buffer("kept", keep.nonzero().squeeze(-1))
        with torch.no_grad():
            self._codes(torch.zeros(1, int(m2.latents["z"].event_shape[0]) + m2.classes).to(m2.eye))

    @property
    def likelihood(self) -> object:
        """p(x | z₁)."""
        return self.m1.likelihood

    def _codes(self, inputs: Tensor) -> TorchDistributionMixin:
        """p(z₁ | y, z) over all dimensions."""
        q = self.m2.likelihood(self.m2.decoder(inputs), None)
        normal = q.base_dist if isinstance(q, Independent) else q
        if not isinstance(normal, Normal):
            raise InputError(
                f"m2 has the likelihood {type(self.m2.likelihood).__name__}, no diagonal Gaussian of codes; "
                "use likelihood='gaussian-learned'"
            )
        shape = (*normal.loc.shape[:-1], self.size)
        loc = normal.loc.new_zeros(shape).index_copy(-1, self.kept, normal.loc)
        scale = normal.scale.new_ones(shape).index_copy(-1, self.kept, normal.scale.expand(normal.loc.shape))
        codes: TorchDistributionMixin = dist.Normal(loc, scale).to_event(1)
        return codes

    def forward(self, batch: Batch) -> Tensor:
        eye = self.m2.eye
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.m2.class_logits))
            z = pyro.sample("z", self.m2.prior(eye.new_empty(batch.size, 0)))
            if batch.y is not None:
                if batch.x is None:
                    y = torch.where(batch.y >= 0, batch.y, y)
                else:
                    with poutine.mask(mask=batch.y >= 0):  # type: ignore[call-overload]
                        label = dist.Categorical(logits=sure(eye[y]))
                        pyro.sample("label", label, obs=batch.y.clamp_min(0))
            z1 = pyro.sample("z1", self._codes(join(z, eye[y])))
            x: Tensor = pyro.sample("x", self.m1.likelihood(self.m1.decoder(z1), batch.observed), obs=batch.x)
        return x
