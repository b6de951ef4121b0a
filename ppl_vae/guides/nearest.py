"""The guide of vector quantization: each of the encoder's vectors goes to the nearest entry of a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Guide, LatentModel
from ..errors import InputError
from ..grids import GridEncoder
from ..models.quantized import Quantized
from ..quantize import Certain, straight_through
from .base import guides

__all__ = ["Encoded", "Nearest"]


class Encoded(NamedTuple):
    """What becomes of a batch on one grid.

    Args:
        z: (N, h, w, D) the encoder's vectors.
        codes: (N, h, w) the numbers of the entries that are nearest.
        vectors: (N, h, w, D) these entries, whose gradient is that of z.
    """

    z: Tensor
    codes: Tensor
    vectors: Tensor


@guides.register("nearest")
class Nearest(Guide):
    r"""The nearest codes: probability one on the entries of the codebook nearest to the encoder's vectors.

    .. math:: q(c \mid x) = \prod_{ij} 1\big[c_{ij} = \arg\min_k \|z_{ij}(x) - e_k\|\big]

    Codes are discrete, so that this is a distribution with log q = 0 at its codes, unlike a point mass among real
    numbers: the ELBO is log p(x | c) + log p(c), whose negative is the nats that it takes to send c by the prior and
    then x given c. log p(x) lies above it by -log p(c | x).

    No gradient passes the choice of the nearest. `objectives.VQ` trains this guide; other objectives refuse it.

    Args:
        model: what the guide is for, a `VQVAE` or `VQVAE2`. Its codebook is read, which the guide does not own: copy
            and move the two together.
        encoder: to the model's grids; None: `model.make_encoder()`.

    Raises:
        InputError: another model; an encoder that is not to its grids.

    Reference: van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, NIPS 2017
    (https://arxiv.org/abs/1711.00937).
    """

    trained_by: ClassVar[str | None] = "vq"

    def __init__(self, model: LatentModel, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(model, Quantized):
            raise InputError(
                f"guide='nearest' is of models with a codebook, 'vqvae' and 'vqvae2'; {type(model).__name__} has none: "
                "use a guide over its latents, as 'mean-field'"
            )
        encoder = model.make_encoder() if encoder is None else encoder
        if not isinstance(encoder, GridEncoder) or encoder.grids != tuple(model.grids.values()):
            raise InputError(
                f"encoder={type(encoder).__name__} is not to the grids {tuple(model.grids.values())} of the model's "
                "codes: give model.make_encoder()"
            )
        self.encoder = encoder
        self.sites = model.sites
        self._model = (model,)  # in a tuple: read, but neither moved nor saved with the guide

    @property
    def runs(self) -> LatentModel | None:
        return self._model[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch).items()}

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        return {name: Certain(found.codes, 2, found.z.dtype) for name, found in self.encode(batch).items()}

    def encode(self, batch: Batch) -> dict[str, Encoded]:
        """Vectors and codes of each site."""
        found: dict[str, Encoded] = {}
        above: Tensor | None = None
        for level, (name, features) in enumerate(zip(self.sites, self.encoder(batch), strict=True)):
            codebook = self._model[0].codebook_of(name)
            z = self.encoder.vectors(level, features, above)
            codes = codebook.nearest(z)
            above = straight_through(z, codebook(codes))
            found[name] = Encoded(z, codes, above)
        return found
