"""Every model with every guide under every objective: the three axes are plugs."""

import itertools

import pytest
import torch

from ppl_vae import Batch, Guide, LatentModel, Objective, guides, likelihoods, models, networks, objectives
from ppl_vae.networks import Condition
from ppl_vae.testing import check_compiled, check_guide, check_model, check_objective

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


PRODUCT = list(itertools.product(models.models, guides.guides, objectives.objectives))


def covering() -> list[tuple[str, str, str]]:
    """As few combinations as let every part occur: the longest axis once, the others in turn."""
    axes = [list(models.models), list(guides.guides), list(objectives.objectives)]
    longest = max(map(len, axes))
    return [(axes[0][k % len(axes[0])], axes[1][k % len(axes[1])], axes[2][k % len(axes[2])]) for k in range(longest)]


def test_the_covering_set_covers_and_is_small() -> None:
    chosen = covering()
    assert {part for combination in chosen for part in combination} == {
        *models.models,
        *guides.guides,
        *objectives.objectives,
    }
    assert len(chosen) <= 25


@pytest.mark.parametrize(("model_name", "guide_name", "objective_name"), PRODUCT)
def test_every_traced_step_is_the_eager_step(model_name: str, guide_name: str, objective_name: str) -> None:
    model = make_model(model_name)
    check_compiled(model, make_guide(guide_name, model_name, model), make_objective(objective_name), batch())


@pytest.mark.parametrize(
    ("model_name", "guide_name", "objective_name"),
    [*covering(), *(pytest.param(*c, marks=pytest.mark.slow) for c in PRODUCT if c not in covering())],
)
def test_every_part_compiles(model_name: str, guide_name: str, objective_name: str) -> None:
    model = make_model(model_name)
    guide, objective = make_guide(guide_name, model_name, model), make_objective(objective_name)
    check_compiled(model, guide, objective, batch(), backend="inductor", dtype=torch.float32)


@pytest.mark.parametrize("name", list(likelihoods.likelihoods))
def test_every_likelihood_traces(name: str) -> None:
    options = {"levels": 5} if name in ("categorical", "discretized-logistic") else {}
    likelihood = likelihoods.likelihoods.get(name)(SHAPE, **options)
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", LATENT, SHAPE, likelihood.parameters_per_element, (8,))
    model = models.VAE(decoder, likelihood, LATENT)
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (8,)))
    check_compiled(model, guide, objectives.ELBO(), batch(), steps=5)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_every_network_traces(kind: networks.Kind) -> None:
    torch.manual_seed(0)
    likelihood = likelihoods.Bernoulli((1, 9, 7))
    model = models.VAE(networks.decoder(kind, LATENT, (1, 9, 7), 1, (8,)), likelihood, LATENT)
    guide = guides.MeanField(model, networks.encoder(kind, (1, 9, 7), (8,)))
    x = (torch.rand(4, 1, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    check_compiled(model, guide, objectives.IWAE(3), Batch(x=x), steps=5)
