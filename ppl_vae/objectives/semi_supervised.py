"""A bound of labelled and unlabelled data, and the cross-entropy of the classifier on the labelled ones."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..batch import Batch
from ..data import DataSet
from ..data.dataset import HELD
from ..errors import InputError, check_count
from ..weights import Program
from .base import Objective, Terms, objectives

__all__ = ["SemiSupervised"]


@objectives.register("semi-supervised")
class SemiSupervised(Objective):
    r"""A bound on labelled and unlabelled data, and the cross-entropy of q(y | x) on the labelled ones.

    .. math::
        J = \sum_{\text{labelled}} L(x, y) + β \sum_{\text{unlabelled}} U(x)
        + α N \; \frac{1}{N_l} \sum_{\text{labelled}} -\log q(y \mid x)

    -L is the bound on log p(x, y), -U the one on log p(x); a batch may hold both. In a bound alone the classifier
    learns from unlabelled data only, for a label takes its place; the last term has it learn from the labels too.

    - Kingma et al.: β = 1, α = 0.1.
    - The lecture's J = L_l + β L_u, whose L_l holds each labelled datum's cross-entropy once: α = N_l / N.

    Where a bound leaves q(y | x) without a gradient, as `IWAE`, `DReG` and ``Renyi(alpha=0)`` do, which sum over
    classes with weights that hold it no more, the cross-entropy alone trains it.

    Args:
        bound: L and U, an objective or the name of one that needs no model.
        alpha: α, 0 or more.
        unlabelled: β, 0 or more.
        particles: of a bound by name; None: its own default.
        labelled: the labelled data: the cross-entropy is then of all of them in every step (of `at_once`, drawn anew,
            where there are more), and not of those that a batch happens to hold. With a hundred labels of 50,000 data a
            batch holds one at times, and its cross-entropy would count five hundred times. None: those of each batch,
            their mean. In evaluation mode they are those of each batch, too.
        at_once: labelled data in a step.

    Raises:
        InputError: numbers out of range, an unknown bound; at the first call, a guide without a classifier, a batch
            without y, and what the bound refuses.

    References:
        Kingma, Rezende, Mohamed and Welling, Semi-supervised learning with deep generative models, NIPS 2014
        (https://arxiv.org/abs/1406.5298), equation 9.
    """

    labelled_y: Tensor | None

    def __init__(
        self,
        bound: str | Objective = "elbo",
        alpha: float = 0.1,
        unlabelled: float = 1.0,
        particles: int | None = None,
        labelled: DataSet | Batch | None = None,
        at_once: int = 128,
    ) -> None:
        part = bound if isinstance(bound, Objective) else _made(bound, particles)
        if isinstance(bound, Objective) and particles is not None:
            raise InputError(f"particles={particles} is of a bound by name; {type(bound).__name__} has its own")
        super().__init__(part.particles)
        for name, value in (("alpha", alpha), ("unlabelled", unlabelled)):
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value!r} must be a number, 0 or more")
        self.bound = part
        self.density, self.watched = part.density, part.watched
        self.alpha, self.unlabelled = float(alpha), float(unlabelled)
        self.teaches = alpha > 0
        self.at_once = check_count("at_once", at_once)
        # a bound that says nothing of q(y | x) may be used, where the cross-entropy does
        part.classes_trained = alpha > 0
        held = None if labelled is None else _labelled_of(labelled)
        self.data = held if isinstance(held, DataSet) else None  # how x is binarized
        for name in HELD:
            # not saved: they are the training data's
            self.register_buffer(f"labelled_{name}", getattr(held, name, None), persistent=False)

    @property
    def kl_weight(self) -> Tensor:
        """The bound's, for a warm-up."""
        weight: Tensor = self.bound.kl_weight  # type: ignore[assignment]
        return weight

    def optimizers(self, model: Any = None, guide: Any = None) -> Any:
        return self.bound.optimizers(model, guide)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        batch = next((arg for arg in args if isinstance(arg, Batch)), None)
        if not getattr(guide, "classifies", False):
            raise InputError(
                f"SemiSupervised needs a guide with a classifier, class_logits(batch), as guides.Classified; "
                f"{type(guide).__name__} has none"
            )
        if batch is None or batch.y is None:
            raise InputError("SemiSupervised tells labelled data by batch.y, -1 where a label is missing; it is None")
        terms = self.bound.terms(model, guide, *args, **kwargs)
        loss, logs = terms.loss, dict(terms.logs)
        has_label = batch.y >= 0
        if self.unlabelled != 1.0:
            loss = torch.where(has_label, loss, self.unlabelled * loss)
        if self.alpha:
            entropy = self._cross_entropy(guide, batch, has_label)
            loss = loss + self.alpha * entropy
            if self.training:
                logs["cross_entropy"] = entropy.detach().expand(loss.shape)
        return Terms(loss, logs)

    def _cross_entropy(self, guide: Any, batch: Batch, has_label: Tensor) -> Tensor:
        """Mean of -log q(y | x) over labelled data, 0 of none."""
        if self.labelled_y is not None and self.training:
            some = self._some(self.labelled_y)
            assert some.y is not None
            return cross_entropy(guide.class_logits(some), some.y)
        assert batch.y is not None
        each = cross_entropy(guide.class_logits(batch), batch.y.clamp_min(0), reduction="none")
        return torch.where(has_label, each, 0.0).sum() / has_label.sum().clamp_min(1)

    def _some(self, y: Tensor) -> Batch:
        """The labelled data, or so many of them at random."""
        size = len(y)
        rows = torch.arange(size, device=y.device)
        if size > self.at_once:
            rows = torch.randint(size, (self.at_once,), device=y.device)
        held: dict[str, Any] = {name: getattr(self, f"labelled_{name}") for name in HELD}
        held = {name: tensor for name, tensor in held.items() if tensor is not None}
        return Batch(**held).take(rows) if self.data is None else self.data.holding(**held).batch(rows)

    def extra_repr(self) -> str:
        bound = f"{type(self.bound).__name__}({self.bound.extra_repr()})"
        return f"bound={bound}, alpha={self.alpha:g}, unlabelled={self.unlabelled:g}"


def _made(name: str, particles: int | None) -> Objective:
    part: Any = objectives.get(name)
    takes = inspect.signature(part).parameters
    if part is SemiSupervised or {"model", "size"} & takes.keys():
        raise InputError(f"bound={name!r} cannot be made by its name alone; give the objective, or use 'elbo'")
    made: Objective = part() if particles is None else part(particles=particles)
    return made


def _labelled_of(data: DataSet | Batch) -> DataSet | Batch:
    """Those of the data that have labels."""
    if not isinstance(data, DataSet | Batch) or data.y is None or data.x is None:
        what = f"{type(data).__name__} without x or y" if isinstance(data, DataSet | Batch) else type(data).__name__
        raise InputError(f"labelled is a {what}; give a DataSet or a Batch with both")
    rows = (data.y >= 0).nonzero().squeeze(-1)
    if not len(rows):
        raise InputError("labelled holds no label, every y is -1; give some, or use a model without classes")
    return data.take(rows)
