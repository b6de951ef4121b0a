"""Every model with every guide under every objective: the three axes are plugs."""

import itertools

import pytest
import torch

from ppl_vae import Batch, Guide, LatentModel, Objective, guides, likelihoods, models, networks, objectives
from ppl_vae.networks import Condition
from ppl_vae.testing import check_guide, check_model, check_objective

SHAPE = (1, 4, 4)
LATENT = 3

# How a part is made whose constructor asks for more than the others' do.
CONDITIONS = {"cvae": Condition(classes=3)}


def make_model(name: str) -> LatentModel:
    condition = CONDITIONS.get(name)
    given = {} if condition is None else {"condition": condition}
    inputs = LATENT + (0 if condition is None else condition.width)
    decoder = networks.decoder("mlp", inputs, SHAPE, 1, (8,))
    return models.models.get(name)(decoder, likelihoods.Bernoulli(SHAPE), LATENT, **given)  # type: ignore[call-arg]


def make_guide(name: str, model_name: str, model: LatentModel) -> Guide:
    encoder = networks.encoder("mlp", SHAPE, (8,), condition=CONDITIONS.get(model_name))
    return guides.guides.get(name)(model, encoder)  # type: ignore[call-arg]


def make_objective(name: str) -> Objective:
    return objectives.objectives.get(name)(particles=3)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(x=torch.randint(0, 2, (4, *SHAPE), generator=generator).float(), y=torch.tensor([0, 2, 1, 1]))


@pytest.mark.parametrize("model_name", list(models.models))
def test_every_model(model_name: str) -> None:
    check_model(make_model(model_name), batch())


@pytest.mark.parametrize(("model_name", "guide_name"), list(itertools.product(models.models, guides.guides)))
def test_every_guide_with_every_model(model_name: str, guide_name: str) -> None:
    model = make_model(model_name)
    check_guide(make_guide(guide_name, model_name, model), model, batch())


@pytest.mark.parametrize(
    ("model_name", "guide_name", "objective_name"),
    list(itertools.product(models.models, guides.guides, objectives.objectives)),
)
def test_every_objective_with_every_pair(model_name: str, guide_name: str, objective_name: str) -> None:
    model = make_model(model_name)
    guide = make_guide(guide_name, model_name, model)
    check_objective(make_objective(objective_name), model, guide, batch())
