"""The guide of M1+M2: the codes of x, and class and style of the codes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ..batch import Batch
from ..core import Guide
from ..errors import InputError
from ..labels import known
from ..models.stacked import Stacked as StackedModel
from .classified import Classified

__all__ = ["Stacked"]


class Stacked(Guide):
    r"""The posterior of `models.Stacked`, of the guides that M1 and M2 were trained with.

    .. math:: q(z_1, y, z \mid x) = q_1(z_1 \mid x) \, q_2(y \mid z_1) \, q_2(z \mid z_1, y)

    z₁ is drawn, y is enumerated. A known label takes the place of what the classifier says.

    Args:
        model: what the guide is for.
        m1: M1's guide, one with a `distribution`, as `MeanField`.
        m2: M2's, a `Classified` whose own guide has one.

    Sites: the model's.

    Raises:
        InputError: M2's guide is no `Classified`; one of the guides draws other sites; a guide without a
            `distribution`, at the first call.
    """

    classifies = True

    def __init__(self, model: StackedModel, m1: Guide, m2: Classified) -> None:
        super().__init__()
        if not isinstance(m2, Classified):
            raise InputError(f"m2 is a {type(m2).__name__}; M2's guide is a Classified, as build makes it")
        for name, guide, sites in (("m1", m1, {"z"}), ("m2", m2, set(model.m2.latents))):
            if set(guide.sites) != sites:
                raise InputError(f"{name}={type(guide).__name__} draws {[*guide.sites]}; it is to draw {sorted(sites)}")
        self.sites = tuple(model.latents)
        self.classes = model.classes
        self.m1, self.m2 = m1, m2
        self._model = (model,)  # in a tuple: neither moved nor saved with the guide

    def class_logits(self, batch: Batch) -> Tensor:
        """What the classifier says of x, (N, C), whatever the labels: of the mean of q(z₁ | x)."""
        return self._logits(self._given(self._of_x(batch).mean))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        with pyro.plate("data", batch.size, dim=-1):
            draws["z1"] = pyro.sample("z1", self._of_x(batch))
            codes = self._given(draws["z1"])
            logits = known(self._logits(codes), batch.y, self.m2.eye)
            draws["y"] = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            handed = {"y": draws["y"]} if self.m2.given else {}
            draws["z"] = pyro.sample("z", self.m2.guide.distribution(codes, **handed)["z"])
        return {name: draws[name] for name in self.sites}

    def _of_x(self, batch: Batch) -> Any:
        return self.m1.distribution(batch._replace(y=None))["z"]

    def _given(self, z1: Tensor) -> Batch:
        """What M2's guide is shown, (\\*S, N, Z)."""
        return Batch(x=z1.index_select(-1, self._model[0].kept))

    def _logits(self, codes: Batch) -> Tensor:
        logits: Tensor = self.m2.logits(self.m2.classifier(codes))
        return logits
