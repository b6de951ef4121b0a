"""Labels from the command line's recipe to the numbers of an evaluation."""

import dataclasses
import warnings

import pytest
import torch

from ppl_vae import DataSet, evaluate, fit, log_weights, models, to_arviz
from ppl_vae.data import DataSplits, load
from ppl_vae.errors import InputError
from ppl_vae.evaluate import at_points, classify, codes, encode, impute, log_marginal, log_missing, reconstruct
from ppl_vae.explore import _draws, _Here
from ppl_vae.guides import Classified, FullRank, Local
from ppl_vae.objectives import IWAE, SemiSupervised
from ppl_vae.recipe import Given, Ingredients, Recipe, prepare
from ppl_vae.report import About, evaluation_table

SMALL = Recipe(model="m2", labels=50, latent=2, hidden=(8,), epochs=1)


def made(**changes: object) -> Ingredients:
    return prepare(SMALL.replace(**changes))


def test_labels_are_kept_by_the_seed_and_named() -> None:
    one, again, other = made(), made(), made(seed=1)
    assert "50 labels (seed 0)" in one.data.train.description
    assert one.data.train.y.unique(return_counts=True)[1].tolist() == [1388, *[5] * 10]
    assert torch.equal(one.data.train.y, again.data.train.y)
    assert not torch.equal(one.data.train.y, other.data.train.y)
    assert bool((one.data.test.y >= 0).all())
    assert isinstance(one.objective, SemiSupervised)
    assert len(one.objective.labelled_y) == 50
    assert one.recipe.objective == "semi-supervised"
    assert prepare(Recipe(latent=2, hidden=(8,))).recipe.objective == "elbo"


def test_held_out_data_have_no_labels() -> None:
    ready = made(patience=2)
    assert ready.validation is not None
    assert bool((ready.validation.y == -1).all())
    assert int((ready.data.train.y >= 0).sum()) == 50


def test_any_guide_is_enclosed() -> None:
    guide = made(guide="full-rank").guide
    assert isinstance(guide, Classified)
    assert isinstance(guide.guide, FullRank)
    assert guide.given
    assert not made(model="semi-supervised-vae", guide="full-rank").guide.given
    assert made(model="semi-supervised-vae", guide="semi-amortized").guide.given
    assert isinstance(made(objective="semi-supervised:bound=iwae").objective.bound, IWAE)


def test_labels_are_hidden_from_every_number() -> None:
    """The evaluation of data with labels, with wrong ones and without is the same but for the error."""
    ready = made()
    test = ready.data.test.take(range(40))
    wrong = dataclasses.replace(test, y=(test.y + 1) % 10)
    found = [evaluate(ready.model, ready.guide, data, 5, seed=0) for data in (test, wrong, test.hide_labels())]
    for each in found[1:]:
        assert torch.equal(each.log_marginal.log_px, found[0].log_marginal.log_px)
        assert torch.equal(each.classification.probabilities, found[0].classification.probabilities)
    assert found[2].error is None
    by_hand = (ready.guide.class_logits(test.batch()).argmax(-1) != test.y).double().mean()
    assert found[0].error.mean == by_hand == classify(ready.model, ready.guide, test).error.mean
    assert found[0].error.data_se == pytest.approx(float((by_hand * (1 - by_hand) / 40).sqrt()))
    assert found[0].error.n == 40
    assert found[0].to_json()["error"]["mean"] == float(by_hand)
    # and asked for by themselves, labels are conditions: log p(x, y) lies below log p(x)
    joint = log_marginal(ready.model, ready.guide, test, 5, seed=0)
    assert bool((joint.log_px < found[0].log_marginal.log_px).all())


@pytest.mark.parametrize("model", ["m2", "semi-supervised-vae"])
def test_labels_are_hidden_wherever_x_is_looked_at(model: str) -> None:
    """Codes, reconstructions and imputations are the same of right labels, of wrong ones and of none."""
    ready = made(model=model)
    pair = ready.model, ready.guide
    test = ready.data.test.take(range(6))
    hole = torch.arange(64).view(1, 8, 8).expand(6, -1, -1, -1) < 32

    def found(y: torch.Tensor) -> list[torch.Tensor]:
        data = dataclasses.replace(test, y=y)
        masked = data.batch()._replace(visible=hole)
        made_up = impute(*pair, masked, 2, 8, seed=0)
        return [
            *(encode(*pair, each, 5, seed=0).means["z"] for each in (data, data.batch())),
            codes(*pair, data).x,
            *(reconstruct(*pair, each, 3, seed=0) for each in (data, data.batch())),
            made_up.draws,
            made_up.mean,
            impute(*pair, masked, 2, 8, weighted=False, seed=0).mean,
            log_missing(*pair, masked, 4, seed=0).log_p,
        ]

    right = found(test.y)
    for y in ((test.y + 1) % 10, torch.full_like(test.y, -1)):
        for k, (one, other) in enumerate(zip(found(y), right, strict=True)):
            assert torch.equal(one, other), k
    assert torch.equal(codes(*pair, test).y, test.y)


def test_labels_are_hidden_from_points_and_from_what_arviz_gets() -> None:
    """Right labels, wrong ones and none give the same numbers; what ArviZ is told of the data are its own labels."""
    point, drawn = made(guide="delta", objective="elbo"), made()
    test = point.data.test.take(range(6))
    wrong = dataclasses.replace(test, y=(test.y + 1) % 10)
    first = at_points(point.model, point.guide, test)
    assert not torch.equal(first.log_likelihood, _at_labels(point, test))
    tree = to_arviz(drawn.model, drawn.guide, test, 3, seed=0)
    assert tree["constant_data"]["y"].values.tolist() == test.y.tolist()
    assert len(set(tree["posterior"]["y"].values[0, :, 0].tolist()) | {int(test.y[0])}) > 1
    for data in (wrong, wrong.batch(), test.hide_labels()):
        assert torch.equal(at_points(point.model, point.guide, data).log_likelihood, first.log_likelihood)
        other = to_arviz(drawn.model, drawn.guide, data, 3, seed=0)
        for name in ("y", "z"):
            assert (other["posterior"][name].values == tree["posterior"][name].values).all()
        assert other["constant_data"]["y"].values.tolist() == data.y.tolist()


def _at_labels(ready: Ingredients, data: DataSet) -> torch.Tensor:
    """log p(x | m(x)) where a label is seen."""
    torch.manual_seed(0)
    return log_weights(ready.model, ready.guide, data.batch(), enumerate=False).log_likelihood[0].detach().double()


def test_labels_are_hidden_from_what_is_explored() -> None:
    ready = made()
    test = ready.data.test.take(range(6))
    wrong = dataclasses.replace(test, y=(test.y + 1) % 10)
    right, other = (_Here(ready.model, ready.guide, data, "", 0) for data in (test, wrong))
    drawn = [_draws(ready.guide, here.source, ["z"], 0)["z"] for here in (right, other)]
    assert torch.equal(*drawn)
    assert torch.equal(right.held["y"], other.held["y"])
    assert torch.equal(right.decoded("z", drawn[0][0], 3), other.decoded("z", drawn[0][0], 3))
    assert torch.equal(right.test.y, test.y)


def test_the_error_is_in_the_table() -> None:
    ready = made()
    found = evaluate(ready.model, ready.guide, ready.data.test.take(range(20)), 2, seed=0)
    table = evaluation_table(found, "a run", About.of(ready.model))
    assert "classification error of 20 labelled" in list(table.columns[0].cells)


def test_parameters_of_each_datum_are_renewed_with_the_classifier_held() -> None:
    ready = made(guide="local")
    assert isinstance(ready.guide.guide, Local)
    assert ready.guide.size == 1438
    fresh = ready.guide.renew(7)
    assert fresh.size == fresh.guide.size == 7
    assert fresh.renew(5).size == 5
    trains = {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert trains
    assert all(name.startswith("guide.") for name in trains)
    for name, p in fresh.named_parameters():
        assert name.startswith("guide.") or torch.equal(p, dict(ready.guide.named_parameters())[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, r"all 1438 of .* are labelled: keep some, as by labels=100 \(--labels 100\)"),
        ({"labels": 1439}, "from 1 to 1438"),
        ({"labels": 0}, "labels=0 must be"),
        ({"model": "vae"}, "'vae' is none"),
        ({"guide": "bottom-up", "objective": "elbo:alpha=1"}, "alpha=1 does not fit objective='elbo'"),
    ],
)
def test_refuses(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(**changes)


@pytest.mark.parametrize("model", ["m2", "semi-supervised-vae", "cvae"])
def test_data_without_labels_are_refused(model: str) -> None:
    plain = load("digits")
    hidden = DataSplits(plain.train.hide_labels(), plain.test)
    with pytest.raises(InputError, match=r"learns classes from labels, and .* has none"):
        prepare(SMALL.replace(model=model, labels=None), given=Given(data=hidden))
    x = torch.rand(20, 4, 4)
    bare = DataSplits(*(DataSet.from_arrays(x, name="noise", split=part) for part in ("train", "test")))
    with pytest.raises(InputError, match=r"labels|neither"):
        prepare(SMALL.replace(model=model, labels=None), given=Given(data=bare))


def test_a_class_without_labels_is_warned_of() -> None:
    def train(labels: int) -> None:
        ready = made(labels=labels)
        fit(ready.model, ready.guide, ready.data.train, ready.objective, epochs=1, batch_size=1438, progress=False)

    with pytest.warns(UserWarning, match="no label of the class"):
        train(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(10)
        train(1438)


def test_a_class_is_asked_for_by_its_label() -> None:
    from ppl_vae.conditions import conditions
    from ppl_vae.evaluate import sample

    model = made().model
    assert isinstance(model, models.M2)
    asked = conditions(model, None, [str(k) for k in range(10)])
    assert asked.per_row == 10
    assert asked.batch.y.tolist() == list(range(10)) * 8
    with pytest.raises(InputError, match="classes 0 to 9"):
        sample(model, asked.batch._replace(y=asked.batch.y + 5))


def test_codes_are_a_table_of_posterior_means() -> None:
    ready = made(model="vae", labels=None)
    part = ready.data.test.take(range(30))
    table = codes(ready.model, ready.guide, part)
    assert torch.equal(table.x, ready.guide.distribution(part.batch())["z"].mean)
    assert torch.equal(table.y, part.y)
    assert table.class_names == part.class_names
    assert table.description == "codes of digits test, continuous"
