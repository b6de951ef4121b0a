"""M1+M2 put together: its bound is the sum of its parts', and its log p(x) that of a mixture of Gaussians."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_vae import ELBO, Batch, SemiSupervised, fit, guides, likelihoods, load_weights, models, networks
from ppl_vae.build import PairConfig, build
from ppl_vae.data import load
from ppl_vae.errors import InputError
from ppl_vae.evaluate import classify, codes, encode, log_marginal
from ppl_vae.guides import Classified, classified
from ppl_vae.testing import check_guide, check_model

DATA, CODES, STYLE, CLASSES = 3, 3, 2, 2
KEEP = torch.tensor([True, False, True])
Y = torch.tensor([1, -1, -1, 0, -1, -1])


def linear(inputs: int, outputs: int) -> networks.Decoder:
    return networks.Decoder(networks.MLP(inputs, (), outputs), (outputs,), 1)


def parts(keep: Tensor = KEEP) -> tuple[models.VAE, guides.MeanField, models.M2, Classified]:
    torch.manual_seed(0)
    kept = int(keep.sum())
    m1 = models.VAE(linear(CODES, DATA), likelihoods.GaussianLearned((DATA,)), CODES)
    m2 = models.M2(linear(STYLE + CLASSES, kept), likelihoods.GaussianLearned((kept,)), STYLE, CLASSES)
    q1 = guides.MeanField(m1, networks.encoder("mlp", (DATA,), (6,)))
    q2 = classified(m2, networks.encoder("mlp", (kept,), (5,)), guides.MeanField)
    for part in (m1, q1, m2, q2):
        part.double()
    return m1, q1, m2, q2


def pair() -> tuple[models.Stacked, guides.Stacked, Batch]:
    m1, q1, m2, q2 = parts()
    model = models.Stacked(m1, m2, KEEP)
    x = torch.randn(len(Y), DATA).double()
    return model, guides.Stacked(model, q1, q2), Batch(x=x, y=Y)


@pytest.mark.parametrize("particles", [1, 4])
def test_its_bound_is_that_of_its_parts(particles: int) -> None:
    """E_q[log p(x | z1)] + the bound of M2 on the kept dimensions of z1 + the log density of the others + the entropy
    of q(z1 | x), each by its own draws of it: the same ones."""
    model, guide, batch = pair()
    torch.manual_seed(1)
    whole = -ELBO(particles=particles, kl="monte-carlo").loss(model, guide, batch)

    torch.manual_seed(1)
    q = guide.m1.distribution(batch)["z"]
    z1 = q.expand((particles, len(Y))).rsample()
    total = model.m1.likelihood(model.m1.decoder(z1)).log_prob(batch.x) - q.log_prob(z1)
    total = total + torch.distributions.Normal(0.0, 1.0).log_prob(z1[..., ~KEEP]).sum(-1)
    # M2's bound of each of the K N codes, its draws of the style in the order in which they are made above
    noise = torch.randn(CLASSES, particles, len(Y), STYLE, dtype=torch.float64)
    eye = torch.eye(CLASSES).double()
    for k in range(particles):
        codes = Batch(x=z1[k][:, KEEP], y=Y)
        logits = guide.m2.class_logits(codes).log_softmax(-1)
        each = []
        for c in range(CLASSES):
            style = guide.m2.guide.distribution(codes, y=torch.full((len(Y),), c))["z"]
            z = style.base_dist.loc + style.base_dist.scale * noise[c, k]
            p = model.m2.likelihood(model.m2.decoder(torch.cat([z, eye[c].expand(len(Y), -1)], -1)))
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            each.append(p.log_prob(codes.x) + prior - style.log_prob(z) - math.log(CLASSES))
        bounds = torch.stack(each, -1)
        free = (logits.exp() * (bounds - logits)).sum(-1)
        sure = bounds.gather(-1, Y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        total[k] = total[k] + torch.where(Y >= 0, sure, free)
    torch.testing.assert_close(torch.tensor(whole).double(), total.mean(0).sum(), rtol=1e-6, atol=1e-6)


def test_log_p_of_a_linear_pair_is_that_of_a_mixture_of_gaussians() -> None:
    """By importance sampling, within 4 standard errors of the mean: 1 in 16,000."""
    model, guide, batch = pair()
    with torch.no_grad():
        one = {"dtype": torch.float64}
        w2 = model.m2.decoder.body.net[0].weight
        spread = model.m2.likelihood(model.m2.decoder(torch.zeros(1, STYLE + CLASSES, **one))).base_dist
        w1, b1 = model.m1.decoder.body.net[0].weight, model.m1.decoder.body.net[0].bias
        noise = model.m1.likelihood(model.m1.decoder(torch.zeros(1, CODES, **one))).base_dist.scale[0]
        logs = []
        for c in range(CLASSES):
            mean, covariance = torch.zeros(CODES, **one), torch.eye(CODES, **one)
            mean[KEEP] = spread.loc[0] + w2[:, STYLE + c]
            inside = w2[:, :STYLE] @ w2[:, :STYLE].mT + spread.scale[0].square().diag()
            rows = KEEP.nonzero().squeeze(-1)
            covariance[rows[:, None], rows] = inside
            p = MultivariateNormal(w1 @ mean + b1, w1 @ covariance @ w1.mT + noise.square().diag())
            logs.append(p.log_prob(batch.x) - math.log(CLASSES))
        exact = torch.stack(logs).logsumexp(0)
    found = log_marginal(model, guide, batch._replace(y=None), particles=20_000, seed=0)
    assert abs(found.estimate.mean - float(exact.mean())) < 4 * found.estimate.se
    assert found.estimate.se < 0.02


def test_it_tells_the_class_of_x_by_the_mean_of_its_codes() -> None:
    model, guide, batch = pair()
    found = classify(model, guide, batch).probabilities
    with torch.no_grad():
        codes = guide.m1.distribution(batch)["z"].mean[:, KEEP]
        wanted = guide.m2.class_logits(Batch(x=codes)).softmax(-1)
    torch.testing.assert_close(found, wanted)


def test_it_keeps_the_contracts_and_generates_a_class() -> None:
    model, guide, batch = pair()
    check_model(model, batch)
    check_guide(guide, model, batch)
    made = model(Batch(y=torch.tensor([0, 1, -1])))
    assert made.shape == (3, DATA)


def test_it_trains_and_is_saved_and_loaded(tmp_path: Path) -> None:
    model, guide, batch = pair()
    for part in (model.m1, guide.m1):
        part.requires_grad_(False)
    held = copy.deepcopy(model.m1.state_dict())
    fit(model, guide, batch, SemiSupervised(), epochs=2, batch_size=6, run_dir=tmp_path, progress=False)
    assert all(torch.equal(value, held[name]) for name, value in model.m1.state_dict().items())
    fresh = models.Stacked(*parts()[::2], keep=KEEP)
    other = guides.Stacked(fresh, *parts()[1::2])
    assert not torch.equal(other.class_logits(batch), guide.class_logits(batch))
    load_weights(tmp_path, fresh, other)
    torch.testing.assert_close(other.class_logits(batch), guide.class_logits(batch), rtol=0, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    m1, q1, m2, q2 = parts()
    for keep, match in ((None, r"m2 is over events \(2,\), and 3"), (KEEP[:2], r"give torch.bool \(3,\)")):
        with pytest.raises(InputError, match=match):
            models.Stacked(m1, m2, keep)
    other = models.M2(linear(STYLE + CLASSES, 2), likelihoods.StudentT((2,)), STYLE, CLASSES)
    with pytest.raises(InputError, match="StudentT, no diagonal Gaussian"):
        models.Stacked(m1, other.double(), KEEP)
    model = models.Stacked(m1, m2, KEEP)
    with pytest.raises(InputError, match="m2 is a MeanField; M2's guide is a Classified"):
        guides.Stacked(model, q1, q1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="m1=Classified draws"):
        guides.Stacked(model, q2, q2)


def test_codes_with_their_spread() -> None:
    train = load("digits", binarize="dynamic").train.take(range(30))
    model, guide = build(PairConfig(latent=3, hidden=(8,)), train)
    plain, drawn = codes(model, guide, train), codes(model, guide, train, draw=True, keep=KEEP)
    found = encode(model, guide, train, seed=0)
    torch.testing.assert_close(drawn.x, plain.x[:, KEEP], rtol=0, atol=0)
    torch.testing.assert_close(drawn.spread, found.scales["z"][:, KEEP], rtol=0, atol=0)
    assert plain.spread is None
    assert torch.equal(drawn.y, train.y)
    for bad in (KEEP[:2], torch.zeros(3, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(InputError, match=r"give torch.bool \(3,\), a dimension each, one of them True or more"):
            codes(model, guide, train, keep=bad)
