"""The guide without an encoder: variational parameters of each datum's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, cast

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import embedding

from ..batch import Batch
from ..core import Guide, LatentModel
from ..errors import InputError, choose
from ..networks import Head, families
from .base import about_site, continuous_sites, guides

__all__ = ["Local"]


UNKNOWN = -1
"""The fingerprint of data that no guide has been fitted to yet."""


@guides.register("local")
class Local(Guide):
    r"""Classical variational inference: parameters for each datum, found by optimization, and no encoder.

    .. math:: q(z_n) = q(z_n;\, φ_n), \qquad n = 1, \dots, N, \quad \text{by } \texttt{batch.rows}

    With the model held fixed its optimum is the best that the family can do for every datum: the ELBO that it reaches,
    less that of an amortized guide of the same family, is the amortization gap. It starts at N(0, I).

    It knows the data it was made for and no others, by their row alone. `fit` notes which data set that is, and another
    one is then refused; a batch is taken at its rows' word. For other data fit ``renew(size)`` with the model frozen.

    Args:
        model: what the guide is for; only its `latents` are read.
        size: N, the number of data; `batch.rows` are from 0 to N - 1.
        family: "mean-field", diagonal, or "full-rank".

    Raises:
        InputError: a size that is none, an unknown family; a latent site shared by all data, of a discrete support,
            or for "full-rank" whose events are no vectors. When run: a batch without rows, or with rows that it has
            not. (On a GPU rows are looked at only while Pyro validates, as at a pair's first run.)

    Reference: Cremer, Li and Duvenaud, Inference suboptimality in variational autoencoders, ICML 2018
    (https://arxiv.org/abs/1801.03558).
    """

    fingerprint: Tensor

    def __init__(
        self, model: LatentModel, size: int, family: Literal["mean-field", "full-rank"] = "mean-field"
    ) -> None:
        super().__init__()
        self.sites = continuous_sites(self, model)
        if family not in families:
            raise choose("family", family, families)
        self.family = family
        self.size = _check_size(size)
        self.register_buffer("fingerprint", torch.tensor(UNKNOWN))
        self.heads = nn.ModuleDict()
        for name, spec in model.latents.items():
            with about_site(name, model):
                self.heads[name] = families[family](None, spec)
        outputs = {name: head.outputs for name, head in cast("Mapping[str, Head]", self.heads).items()}
        self.numbers = nn.ParameterDict({name: nn.Parameter(torch.zeros(size, n)) for name, n in outputs.items()})

    def renew(self, size: int) -> Local:
        """A guide of the same family for `size` other data, from the start: to be fitted under a frozen model."""
        _check_size(size)
        new = copy.deepcopy(self)
        new.size = size
        new.fingerprint.fill_(UNKNOWN)
        new.numbers = nn.ParameterDict(
            {name: nn.Parameter(numbers.new_zeros(size, numbers.shape[-1])) for name, numbers in self.numbers.items()}
        )
        return new

    def knows(self, fingerprint: int, description: str) -> None:
        """Raise `InputError` unless this `DataSet.fingerprint` is of the set that was fitted, if any was."""
        if int(self.fingerprint) not in (UNKNOWN, fingerprint):
            raise InputError(
                f"Local has parameters for each datum of the set that it was fitted to, and {description!r} is another "
                "one: fit fresh ones by ppl_vae.renewal.renewed(model, guide, data), or use an amortized guide"
            )

    def belongs(self, fingerprint: int, description: str) -> None:
        """Note which data set the parameters are fitted to; raises `InputError` where it is another than before."""
        self.knows(fingerprint, description)
        self.fingerprint.fill_(fingerprint)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch).items()}

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        rows = self._rows(batch)
        try:
            return {name: head(embedding(rows, self.numbers[name])) for name, head in self.heads.items()}
        except IndexError as error:  # on a CPU
            raise self._stranger(rows) from error

    def _rows(self, batch: Batch) -> Tensor:
        if batch.rows is None:
            raise InputError(
                f"Local has parameters for each of the {self.size} data it was made for, by batch.rows, and this batch "
                "has no rows; for other data fit renew(size) with the model frozen, or use an amortized guide"
            )
        # rows are read where other values are, and never in a step that is traced
        if Distribution._validate_args and bool(((batch.rows < 0) | (batch.rows >= self.size)).any()):
            raise self._stranger(batch.rows)
        return batch.rows

    def _stranger(self, rows: Tensor) -> InputError:
        return InputError(
            f"batch.rows run from {int(rows.min())} to {int(rows.max())}, and this Local has parameters for the rows 0 "
            f"to {self.size - 1}; for other data fit renew(size) with the model frozen, or use an amortized guide"
        )

    def extra_repr(self) -> str:
        return f"size={self.size}, family={self.family!r}"


def _check_size(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"size={size!r} must be the number of data, 1 or more")
    return size
