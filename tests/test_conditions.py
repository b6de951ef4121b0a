import pytest
import torch

from ppl_vae import models, networks
from ppl_vae.conditions import class_number, conditions
from ppl_vae.errors import InputError
from ppl_vae.likelihoods import Gaussian

NAMES = ("cat", "dog", "2")


def conditional(classes: int = 3, context: int = 0) -> models.ConditionalVAE:
    condition = networks.Condition(classes, context)
    return models.ConditionalVAE(networks.decoder("mlp", 2 + condition.width, (4,), 1), Gaussian((4,)), 2, condition)


def plain() -> models.VAE:
    return models.VAE(networks.decoder("mlp", 2, (4,), 1), Gaussian((4,)), 2)


def test_classes_in_turn_or_one() -> None:
    asked = conditions(conditional(), 7, NAMES)
    assert asked.batch.y is not None
    assert asked.batch.y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (asked.per_row, asked.column_names) == (3, NAMES)
    one = conditions(conditional(), 4, NAMES, label="dog")
    assert one.batch.y is not None
    assert one.batch.y.tolist() == [1] * 4
    assert (one.per_row, one.column_names) == (None, ())
    assert conditional()(asked.batch).shape == (7, 4)


def test_a_model_without_conditions_takes_a_number() -> None:
    asked = conditions(plain(), 5, NAMES)
    assert asked.batch.y is None
    assert asked.batch.size == 5
    with pytest.raises(InputError, match=r"label='1' needs a model.*VAE is not.*--model cvae"):
        conditions(plain(), 5, NAMES, label="1")


def test_without_a_number_there_are_whole_rows() -> None:
    assert conditions(plain(), None, NAMES).batch.size == 64
    assert conditions(conditional(), None, NAMES).batch.size == 24
    assert conditions(conditional(), None, NAMES, label="cat").batch.size == 64


def test_contexts_are_taken_in_turn() -> None:
    given = torch.arange(6.0).view(3, 2)
    asked = conditions(conditional(0, 2), 5, (), context=given)
    assert asked.batch.context is not None
    assert torch.equal(asked.batch.context, given[[0, 1, 2, 0, 1]])
    with pytest.raises(InputError, match="context of 2 numbers"):
        conditions(conditional(0, 2), 5, ())


def test_labels_by_name_come_before_numbers() -> None:
    assert [class_number(text, NAMES) for text in ("cat", "0", "2", "1")] == [0, 0, 2, 1]
    assert class_number("2", ("5", "2", "7")) == 1


@pytest.mark.parametrize(("label", "message"), [("3", "out of range: the classes are 0 to 2"), ("-1", "out of range")])
def test_labels_out_of_range_are_refused(label: str, message: str) -> None:
    with pytest.raises(InputError, match=f"label='{label}' is {message}"):
        conditions(conditional(), 2, NAMES, label=label)


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="label='dgo' is not known; did you mean 'dog'"):
        class_number("dgo", NAMES)
    with pytest.raises(InputError, match="n=0 generates nothing"):
        conditions(plain(), 0, NAMES)
