"""The semi-supervised objective: J as the papers write it, and what trains the classifier."""

from typing import Any

import pytest
import torch
from programs import assert_equal, gradients_of, pair
from torch.nn.functional import cross_entropy

from ppl_vae import (
    ELBO,
    IWAE,
    STL,
    Batch,
    DataSet,
    DReG,
    Objective,
    Renyi,
    ScoreFunction,
    SemiSupervised,
    guides,
    likelihoods,
    models,
    networks,
)
from ppl_vae.build import build_objective
from ppl_vae.errors import InputError
from ppl_vae.guides import Classified, classified
from ppl_vae.testing import check_objective

SHAPE, CLASSES, LATENT = (1, 3, 2), 3, 2


def make(size: int = 12) -> tuple[models.M2, Classified, Batch]:
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", LATENT + CLASSES, SHAPE, 1, (7,))
    model = models.M2(decoder, likelihoods.Bernoulli(SHAPE), LATENT, CLASSES)
    guide = classified(model, networks.encoder("mlp", SHAPE, (6,)), guides.MeanField)
    model.double(), guide.double()
    y = torch.full((size,), -1)
    y[:4] = torch.tensor([2, 0, 1, 1])
    return model, guide, Batch(x=torch.randint(0, 2, (size, *SHAPE)).double(), y=y)


@pytest.mark.parametrize("bound", ["elbo", "iwae", "renyi", "stl", "dreg", "score-function", "tvo", "wake"])
def test_contract(bound: str) -> None:
    model, guide, batch = make(4)
    batch = batch._replace(y=torch.tensor([0, -1, 2, -1]))
    check_objective(SemiSupervised(bound, particles=2), model, guide, batch)


def test_is_the_papers_sum() -> None:
    """Value and gradients of J, its terms computed apart."""
    model, guide, batch = make()
    labelled = batch.y >= 0
    results = []
    for by_hand in (False, True):
        torch.manual_seed(1)
        if by_hand:
            each = ELBO().terms(model, guide, batch).loss
            entropy = cross_entropy(guide.class_logits(batch)[labelled], batch.y[labelled], reduction="sum")
            loss = each[labelled].sum() + 0.7 * each[~labelled].sum() + 0.3 * 12 * entropy / 4
        else:
            loss = SemiSupervised(alpha=0.3, unlabelled=0.7).differentiable_loss(model, guide, batch)
        loss.backward()
        results.append([loss.detach(), *gradients_of(model, guide)])
    assert_equal(results[0], results[1], 1e-10)


def test_the_labelled_data_are_in_every_step() -> None:
    """Over the batches of an epoch the loss is that of all data at once: J, with each label counted once."""
    model, guide, batch = make()
    objective = SemiSupervised(alpha=0.3, labelled=batch)
    bound = ELBO()
    whole = 0.3 * 12 * cross_entropy(guide.class_logits(batch)[:4], batch.y[:4])
    parts = []
    for rows in torch.arange(12).split(3):  # the last two hold no label
        torch.manual_seed(2)
        part = objective.differentiable_loss(model, guide, batch.take(rows))
        torch.manual_seed(2)
        parts.append(part - bound.differentiable_loss(model, guide, batch.take(rows)))
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-10, atol=1e-10)
    assert not objective.state_dict().keys() & {"labelled_x", "labelled_y"}
    # in evaluation, of the batch's own
    objective.eval()
    torch.manual_seed(2)
    loss = objective.differentiable_loss(model, guide, batch.take(torch.arange(6, 9)))
    torch.manual_seed(2)
    torch.testing.assert_close(loss, bound.differentiable_loss(model, guide, batch.take(torch.arange(6, 9))))


def test_many_labelled_data_are_drawn_anew() -> None:
    """Their cross-entropy has the mean of all: within 4 standard errors, a false alarm in 16,000."""
    _, guide, batch = make(60)
    batch = batch._replace(y=torch.arange(60) % 3)
    objective = SemiSupervised(alpha=1.0, labelled=batch, at_once=5)
    none = torch.zeros(60, dtype=torch.bool)
    torch.manual_seed(3)
    with torch.no_grad():
        drawn = torch.stack([objective._cross_entropy(guide, batch, none) for _ in range(400)])
        wanted = cross_entropy(guide.class_logits(batch), batch.y)
    assert len(drawn.unique()) > 300
    assert abs(float(drawn.mean() - wanted)) < 4 * float(drawn.std()) / 20


def test_labelled_data_are_binarized_as_the_others_are() -> None:
    data = DataSet.from_arrays(torch.full((20, 4, 4), 0.5), torch.arange(20) % 2, name="grey", binarize="dynamic")
    objective = SemiSupervised(labelled=data.keep_labels(6))
    seen: list[torch.Tensor] = []

    class Seeing(torch.nn.Module):
        classifies = True

        def class_logits(self, batch: Batch) -> torch.Tensor:
            seen.append(batch.x)
            return torch.zeros(batch.size, 2)

    for _ in range(2):
        objective._cross_entropy(Seeing(), data.batch([0]), torch.tensor([True]))
    assert seen[0].shape == (6, 1, 4, 4)
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(*seen)


LEAVE: list[Objective] = [IWAE(2), DReG(2), STL(2), Renyi(0.0, 2), ScoreFunction(2, bound="iwae")]


@pytest.mark.parametrize("objective", LEAVE, ids=lambda o: type(o).__name__)
def test_bounds_that_leave_the_classifier_are_refused_alone(objective: Objective) -> None:
    model, guide, batch = make()
    with pytest.raises(InputError, match=r"drops out of its bound.*semi-supervised:bound=iwae"):
        objective.loss(model, guide, batch)
    with pytest.raises(InputError, match="drops out of its bound"):
        SemiSupervised(objective, alpha=0.0).loss(model, guide, batch)
    # and under the cross-entropy they give it none but that one's gradient
    wrapped = SemiSupervised(objective, alpha=1.0, labelled=batch)
    wrapped.loss_and_grads(model, guide, batch)
    ours = [p.grad.clone() for p in [*guide.classifier.parameters(), *guide.logits.parameters()]]
    gradients_of(model, guide)
    (12 * cross_entropy(guide.class_logits(batch)[:4], batch.y[:4])).backward()
    assert_equal(ours, [p.grad for p in [*guide.classifier.parameters(), *guide.logits.parameters()]], 1e-10)


@pytest.mark.parametrize("objective", [ELBO(), Renyi(0.5, 2), STL(1), STL(2, bound="elbo")], ids=repr)
def test_bounds_that_train_the_classifier(objective: Objective) -> None:
    model, guide, batch = make()
    objective.loss_and_grads(model, guide, batch)
    assert all(bool(p.grad.any()) for p in guide.classifier.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -1}, "alpha=-1 must be a number, 0 or more"),
        ({"unlabelled": float("nan")}, "unlabelled=nan"),
        ({"at_once": 0}, "at_once=0"),
        ({"bound": "score-climbing"}, "cannot be made by its name alone"),
        ({"bound": "semi-supervised"}, "cannot be made by its name alone"),
        ({"bound": "ebo"}, "did you mean 'elbo'"),
        ({"bound": ELBO(), "particles": 3}, "ELBO has its own"),
        ({"labelled": Batch(x=torch.zeros(2, 3))}, "Batch without x or y"),
        ({"labelled": torch.zeros(2)}, "labelled is a Tensor"),
        ({"labelled": Batch(x=torch.zeros(2, 3), y=torch.full((2,), -1))}, "holds no label"),
    ],
)
def test_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SemiSupervised(**arguments)


def test_refuses_pairs_and_batches() -> None:
    model, guide, batch = make()
    with pytest.raises(InputError, match=r"by batch\.y"):
        SemiSupervised().loss(model, guide, batch._replace(y=None))
    with pytest.raises(InputError, match="needs a guide with a classifier"):
        SemiSupervised().loss(*pair("mean-field"))


def test_by_name() -> None:
    data = DataSet.from_arrays(torch.rand(20, 4, 4), torch.arange(20) % 2, name="grey").keep_labels(6)
    made = build_objective("semi-supervised", data=data, bound="iwae", alpha=0.5, particles=7)
    assert isinstance(made, SemiSupervised)
    assert isinstance(made.bound, IWAE)
    assert made.bound.particles == made.particles == 7
    assert len(made.labelled_y) == 6
    assert build_objective("semi-supervised", data=data.hide_labels()).labelled_y is None
    assert hasattr(SemiSupervised(), "kl_weight")
    assert not hasattr(SemiSupervised("iwae"), "kl_weight")
