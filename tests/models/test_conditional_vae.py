"""The conditional VAE: with a constant condition it is the VAE, and a style is one under every class."""

import pytest
import torch
from torch import nn

from ppl_vae import ELBO, IWAE, Batch, InputError, guides, likelihoods, models, networks
from ppl_vae.build import PairConfig, build
from ppl_vae.data import load
from ppl_vae.evaluate import sample_styles
from ppl_vae.networks import Condition
from ppl_vae.testing import check_model

SHAPE, LATENT, N = (1, 4, 4), 3, 5


def folded(layer: nn.Linear, first: int, value: torch.Tensor) -> nn.Linear:
    """The layer of `first` inputs that a layer is where its others are constant."""
    new = nn.Linear(first, layer.out_features, dtype=torch.float64)
    with torch.no_grad():
        new.weight.copy_(layer.weight[:, :first])
        new.bias.copy_(layer.bias + layer.weight[:, first:] @ value)
    return new


@pytest.mark.parametrize("given", ["label", "context"])
def test_with_a_constant_condition_it_is_the_vae(given: str) -> None:
    """The weights of the condition are a bias then: ELBO and IWAE on equal draws are those of a VAE with that bias."""
    torch.manual_seed(0)
    condition = Condition(classes=4) if given == "label" else Condition(context=2)
    value = torch.eye(4)[2] if given == "label" else torch.tensor([0.7, -1.3])
    decoder = networks.decoder("mlp", LATENT + condition.width, SHAPE, 1, (8,))
    conditional = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT, condition).double()
    encoder = networks.encoder("mlp", SHAPE, (8,), condition=condition)
    guide = guides.MeanField(conditional, encoder).double()

    plain = models.VAE(networks.decoder("mlp", LATENT, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), LATENT).double()
    other = guides.MeanField(plain, networks.encoder("mlp", SHAPE, (8,))).double()
    plain.decoder.body.net[0][0] = folded(decoder.body.net[0][0], LATENT, value.double())
    plain.decoder.body.net[1] = decoder.body.net[1]
    other.encoder.encoder_body.net = nn.Sequential(
        folded(encoder.encoder_body.net[0], 16, value.double()), *encoder.encoder_body.net[1:]
    )
    other.heads = guide.heads

    x = torch.randint(0, 2, (N, *SHAPE)).double()
    y, context = torch.full((N,), 2), value.double().expand(N, -1)
    batch = Batch(x=x, y=y) if given == "label" else Batch(x=x, context=context)
    for objective in (ELBO(particles=2), IWAE(3)):
        torch.manual_seed(1)
        ours = objective.terms(conditional, guide, batch).loss
        torch.manual_seed(1)
        theirs = objective.terms(plain, other, Batch(x=x)).loss
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_learned_prior() -> None:
    condition = Condition(classes=3)
    decoder = networks.decoder("mlp", LATENT + 3, SHAPE, 1, (8,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT, condition, prior="learned")
    check_model(model, Batch(x=torch.randint(0, 2, (N, *SHAPE)).float(), y=torch.tensor([0, 2, 1, 1, 0])))
    p = model.prior(torch.eye(3))
    assert p.batch_shape == (3,)
    assert not torch.equal(p.mean[0], p.mean[1])
    for word in ("standard", None):
        assert isinstance(
            models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT, condition, word).prior,
            type(models.VAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT).prior),
        )
    with pytest.raises(InputError, match="prior='learnt' is not known; did you mean 'learned'"):
        models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT, condition, "learnt")  # type: ignore[arg-type]


def test_a_learned_prior_by_name() -> None:
    train = load("digits", binarize="threshold").train
    config = PairConfig(model="cvae", latent=2, hidden=(8,), model_options={"prior": "learned"})
    assert config.model_label == "cvae:prior=learned"
    model, _ = build(config, train)
    assert model.prior(torch.eye(10)).batch_shape == (10,)
    with pytest.raises(InputError, match="prior='mixture' and model='cvae:prior=learned' each name a p"):
        build(
            PairConfig(model="cvae", latent=2, hidden=(8,), prior="mixture", model_options={"prior": "learned"}), train
        )


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_a_style_is_one_under_every_class(prior: str) -> None:
    """Of p(z | y) the same draw, moved and scaled; of N(0, I) the same z."""
    torch.manual_seed(0)

    class Shown(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs[..., :LATENT].unsqueeze(-2)

    model = models.ConditionalVAE(Shown(), likelihoods.Gaussian((LATENT,)), LATENT, Condition(classes=4), prior)  # type: ignore[arg-type]
    y = torch.arange(22) % 4
    z = sample_styles(model, Batch(y=y), 4, seed=3).mean
    with torch.no_grad():
        p = model.prior(torch.eye(4)[y])
        noise = (z - p.mean) / p.stddev
    for label in range(1, 4):
        here = noise[label::4]
        torch.testing.assert_close(here, noise[::4][: len(here)], rtol=1e-4, atol=1e-4)
    assert len(noise[::4].unique()) == 6 * LATENT


def test_refuses_a_context_of_another_width() -> None:
    condition = Condition(context=3)
    decoder = networks.decoder("mlp", LATENT + 3, SHAPE, 1, (8,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT, condition)
    with pytest.raises(InputError, match=r"conditioned on a context \(N, 3\); context=\(5, 2\)"):
        model(Batch(context=torch.zeros(5, 2)))
    with pytest.raises(InputError, match=r"conditioned on a context \(N, 3\); context=None"):
        model(Batch(n=5))
