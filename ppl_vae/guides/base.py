"""The guides by name, and what amortized guides share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError
from ..networks import Head
from ..registry import Registry

__all__ = ["Amortized", "guides"]

guides: Registry[type[Guide]] = Registry("guide")


class Amortized(Guide):
    r"""One encoder, and one head for each latent site: sites are independent of each other given x.

    .. math:: q(z \mid x) = \prod_{\text{sites } s} q_s(z_s \mid h_s(\mathrm{encoder}(x)))

    A subclass names its `head`, which makes features (N, F) into q of a site, batch (N,).

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.

    Raises:
        InputError: the model declares a latent site shared by all data, for which an encoder of one datum has no
            answer.
    """

    head: ClassVar[type[Head]]

    def __init__(self, model: LatentModel, encoder: Encoder) -> None:
        super().__init__()
        shared = [name for name, spec in model.latents.items() if spec.scope != "datum"]
        if shared:
            raise InputError(
                f"{type(self).__name__} is a guide over each datum's latents; {', '.join(map(repr, shared))} "
                f"of {type(model).__name__} is shared by all data"
            )
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: self.head(encoder.features, spec) for name, spec in model.latents.items()})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch).items()}

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        features = self.encoder(batch)
        return {name: head(features) for name, head in self.heads.items()}
