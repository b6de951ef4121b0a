"""The loss of vector quantization: gradients by hand, when the codebook moves, going on, digits."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_vae import ELBO, VQ, Batch, fit, guides, likelihoods, load
from ppl_vae.errors import InputError
from ppl_vae.evaluate import elbo
from ppl_vae.grids import GridEncoder
from ppl_vae.models import VQVAE, VQVAE2
from ppl_vae.recipe import Recipe, prepare

SMALL: dict[str, Any] = {"codebook": 5, "size": 2, "downsample": 2, "channels": 4, "blocks": 1}
SHAPE = (1, 4, 4)


class Sums(nn.Module):
    """A logit for all pixels, the sum of the numbers of all vectors."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.sum((-3, -2, -1))[..., None, None, None, None].expand(*vectors.shape[:-3], 1, 1, 2, 4)


class Free(GridEncoder):
    """Vectors that are a parameter."""

    def __init__(self, z: Tensor) -> None:
        super().__init__((1, 2, 4), 2, size=1, channels=2, blocks=0)
        self.z = nn.Parameter(z)

    def forward(self, batch: Batch) -> list[Tensor]:
        return [self.z]

    def vectors(self, level: int, features: Tensor, above: Tensor | None = None) -> Tensor:
        return features


def by_hand(average: bool) -> tuple[VQVAE, guides.Nearest, Batch]:
    """One datum with 3 of 8 pixels on, the vectors 0.5 and -1.25, entries -2 and 1."""
    model = VQVAE(Sums(), likelihoods.Bernoulli((1, 2, 4)), codebook=2, size=1, downsample=2, average=average)
    with torch.no_grad():
        model.codebook.vectors.copy_(torch.tensor([[-2.0], [1.0]]))
    x = torch.zeros(1, 1, 2, 4)
    x[..., 0, :3] = 1.0
    return model, guides.Nearest(model, Free(torch.tensor([[[[0.5], [-1.25]]]]))), Batch(x=x)


@pytest.mark.parametrize("average", [True, False])
def test_gradients_by_hand(average: bool) -> None:
    model, guide, batch = by_hand(average)
    VQ(beta=0.25).eval().differentiable_loss(model, guide, batch).backward()
    # entries 1 and -2: the logit is -1, and d(-log p)/dlogit = 8 sigmoid(-1) - 3 for each vector, as if it were at z
    slope = 8 / (1 + math.e) - 3
    # 2 β (z - e), with z - e = (-0.5, 0.75)
    wanted = [slope + 0.5 * -0.5, slope + 0.5 * 0.75]
    assert guide.encoder.z.grad.flatten().tolist() == pytest.approx(wanted, abs=1e-6)  # type: ignore[union-attr]
    # entries have none of the likelihood's gradient; as a parameter they have 2 (e - z), of the entry's own vector
    if not average:
        assert model.codebook.vectors.grad.flatten().tolist() == pytest.approx([-1.5, 1.0], abs=1e-6)  # type: ignore[union-attr]


def test_the_value_is_the_code_length_with_its_parts() -> None:
    for average in (True, False):
        model, guide, batch = by_hand(average)
        terms = VQ(beta=2.0).eval().terms(model, guide, batch)
        away = 0.5**2 + 0.75**2
        loss = -terms.logs["elbo"].item() + (2.0 if average else 3.0) * away
        assert terms.logs["commitment"].item() == pytest.approx(away)
        assert terms.loss.item() == pytest.approx(loss, abs=1e-5)
        assert terms.logs["kl"].item() == pytest.approx(2 * math.log(2))


def small(average: bool = True, two: bool = False) -> tuple[VQVAE | VQVAE2, guides.Nearest]:
    torch.manual_seed(0)
    model = (VQVAE2 if two else VQVAE)(likelihood=likelihoods.Bernoulli(SHAPE), average=average, **SMALL)
    return model, guides.Nearest(model)


def data(n: int = 16) -> Tensor:
    return (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.mark.parametrize("average", [True, False])
def test_the_codebook_moves_in_training_alone(average: bool) -> None:
    model, guide = small(average)
    batch, vq = Batch(x=data()), VQ()
    before = copy.deepcopy(model.codebook.state_dict())

    def moved() -> bool:
        now = model.codebook.state_dict()
        return any(not torch.equal(now[name], before[name]) for name in before)

    vq.eval().loss(model, guide, batch)
    assert not moved()
    vq.train()
    model.eval()
    vq.loss(model, guide, batch)
    assert not moved()
    model.train().requires_grad_(False)  # held, as with a new guide for a trained model
    vq.loss(model, guide, batch)
    assert not moved()
    model.requires_grad_(True)
    with torch.no_grad():
        vq.loss(model, guide, batch)
    assert not moved()
    vq.loss(model, guide, batch)
    assert moved()


def test_usage_is_logged_by_site() -> None:
    for two in (False, True):
        model, guide = small(two=two)
        for k, name in enumerate(model.sites):
            model.codebook_of(name).count.copy_(torch.tensor([[8.0, 8, 0, 0, 0], [4.0, 4, 4, 4, 0.1]][k]))
        logs = VQ().eval().terms(model, guide, Batch(x=data(3))).logs
        found = {name: log.tolist() for name, log in logs.items() if name.startswith(("perplexity", "used"))}
        if not two:
            assert found == {"perplexity": pytest.approx([2.0] * 3), "used": [2.0] * 3}
        else:
            assert found["perplexity_top"] == pytest.approx([2.0] * 3)
            assert 4.0 < found["perplexity_bottom"][0] < 5.0
            assert (found["used_top"], found["used_bottom"]) == ([2.0] * 3, [4.0] * 3)


@pytest.mark.parametrize(("average", "two"), [(True, True), (False, False)])
def test_a_run_goes_on_bit_for_bit_with_its_codebook(average: bool, two: bool, tmp_path: Path) -> None:
    def train(folder: str, epochs: int, resume: bool = False) -> dict[str, Tensor]:
        model, guide = small(average, two)
        options: dict[str, Any] = {"batch_size": 5, "tensorboard": False, "progress": False, "resume": resume}
        fit(model, guide, data(), VQ(), epochs=epochs, run_dir=tmp_path / folder, **options)
        return {**model.state_dict(), **{f"guide.{name}": t for name, t in guide.state_dict().items()}}

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 4, resume=True)
    assert {name for name, t in whole.items() if not torch.equal(t, parts[name])} == set()
    assert any(name.endswith("count") for name in whole)
    assert not torch.equal(whole[f"codebooks.{'top' if two else 'codes'}.count"], torch.ones(5))


def test_refusals() -> None:
    for options, words in (
        ({"beta": -1.0}, "beta=-1.0"),
        ({"decay": 1.0}, "decay=1.0 must be below 1"),
        ({"restart": 1.0}, "restart=1.0 must be below 1"),
        ({"restart": -0.1}, "restart=-0.1"),
    ):
        with pytest.raises(InputError, match=words):
            VQ(**options)
    model, guide = small()
    with pytest.raises(InputError, match=r"ELBO does not train Nearest.* use VQ, objective='vq'"):
        ELBO().loss(model, guide, Batch(x=data(3)))


@pytest.mark.slow
def test_digits_take_fewer_nats_than_by_independent_pixels() -> None:
    """Half a minute. The best model of one code is independent pixels, each on with the training data's frequency."""
    ready = prepare(Recipe(data="digits", model="vqvae:codebook=16:channels=32", objective="vq:decay=0.9", epochs=60))
    untrained = elbo(ready.model, ready.guide, ready.data.test, particles=1).elbo
    fitted = ready.train(progress=False)
    assert 12.0 < fitted.history[-1]["perplexity"] <= 16.0
    length = -elbo(fitted.model, fitted.guide, ready.data.test, particles=1).elbo
    x = load("digits", binarize="dynamic").train.fixed().batch().x
    test = ready.data.test.fixed().batch().x
    assert x is not None
    assert test is not None
    on = x.mean(0).clamp(1e-3, 1 - 1e-3)
    pixels = -(test * on.log() + (1 - test) * (1 - on).log()).flatten(1).sum(1)
    saved = pixels.double() - length
    assert saved.mean().item() > 4 * saved.std().item() / len(saved) ** 0.5
    assert (-untrained - length).mean().item() > 10.0
