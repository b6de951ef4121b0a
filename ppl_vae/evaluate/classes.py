"""What a guide with a classifier says of classes, and how often it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import InputError
from ..labels import hide_labels, unlabelled
from ..weights import Program
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Estimate

__all__ = ["Classification", "classify", "classify_of"]


@dataclass(frozen=True, eq=False)
class Classification:
    """q(y | x) of each datum, from x alone.

    Args:
        probabilities: (N, C).
        y: (N,) labels to compare with, -1 where there is none.
        data: which data these are.
    """

    probabilities: Tensor
    y: Tensor
    data: str

    @property
    def predicted(self) -> Tensor:
        """(N,) the class of the largest probability."""
        return self.probabilities.argmax(-1)

    @property
    def wrong(self) -> Tensor:
        """(M,) 1 where the prediction is another class than the label, else 0: of the M data that have one."""
        has_label = self.y >= 0
        return (self.predicted != self.y)[has_label].double()

    @property
    def error(self) -> Estimate | None:
        """The share of the labelled data that are taken for another class, with its standard error from the sampling of
        data (there is no Monte Carlo error); None where no datum has a label."""
        wrong = self.wrong
        if not len(wrong):
            return None
        mean = wrong.mean().item()
        return Estimate(mean, 0.0, math.sqrt(mean * (1 - mean) / len(wrong)), len(wrong))


def classify(model: Program, guide: Program, data: Data, chunk: int | None = None) -> Classification:
    """q(y | x) by a guide's classifier. Labels of the data are compared with, and never seen by it.

    Args:
        model, guide, data, chunk: as in `log_marginal`.

    Raises:
        InputError: a guide without a classifier, `class_logits(batch)`.
    """
    with evaluation(model, guide, seed=0, device=device_of(model, guide)):
        return classify_of(guide, Source(unlabelled(hide_labels(model, data)), model, guide), data, chunk)


def classify_of(guide: Any, source: Source, data: Data, chunk: int | None) -> Classification:
    """`classify`, for callers that hold an `evaluation` and a source without labels."""
    if not getattr(guide, "classifies", False):
        raise InputError(f"{type(guide).__name__} has no classifier: there is no q(y | x) to look at")

    def probabilities(batch: Batch, particles: int) -> Tensor:
        found: Tensor = guide.class_logits(batch).softmax(-1)
        return found

    parts = [
        probabilities(source.batch(start, stop), 1).cpu()
        for start, stop in spans(source.size, chunk_for(probabilities, source, 1, chunk).rows)
    ]
    y = None if isinstance(data, Tensor) else data.y
    return Classification(
        torch.cat(parts), torch.full((source.size,), -1) if y is None else y.cpu(), source.description
    )
