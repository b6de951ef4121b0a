"""Models with a latent class: the sum over classes is the sum over classes, and a known label is known."""

import math

import pytest
import torch
from programs import assert_equal, gradients_of
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from ppl_vae import ELBO, IWAE, Batch, LatentModel, Renyi, guides, likelihoods, log_weights, models, networks
from ppl_vae.errors import InputError
from ppl_vae.evaluate import log_marginal
from ppl_vae.guides import Classified, classified, continuous_part
from ppl_vae.objectives.iwae import sum_enumerated

SHAPE, LATENT, CLASSES = (1, 3, 2), 2, 3
Y = (2, -1, -1, 0, -1)
KINDS = [models.M2, models.SemiSupervisedVAE]


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(0)


def make(kind: type[models.M2] = models.M2, family: str = "mean-field") -> tuple[models.M2, Classified, Batch]:
    """A pair in float64, with data of which two are labelled."""
    decoder = networks.decoder("mlp", LATENT + CLASSES, SHAPE, 1, (7,))
    model = kind(decoder, likelihoods.Bernoulli(SHAPE), LATENT, CLASSES)
    guide = classified(model, networks.encoder("mlp", SHAPE, (6,)), guides.guides.get(family))  # type: ignore[arg-type]
    for part in (model, guide):
        part.double()
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randint(0, 2, (len(Y), *SHAPE)).double()
    return model, guide, Batch(x=x, y=torch.tensor(Y), rows=torch.arange(len(Y)))


# ---------------------------------------------------------------- against a loop over data and classes


def by_hand(model: models.M2, guide: Classified, batch: Batch, z: Tensor) -> Tensor:
    """-ELBO of each datum, term by term as in the papers.

    Args:
        z: draws, (C, N, Z), or (1, N, Z) for all classes.
    """
    losses = []
    for n, label in enumerate(batch.y.tolist()):
        x = batch.x[n : n + 1]
        logits = guide.logits(guide.classifier(Batch(x=x)))[0].log_softmax(-1)
        total = x.new_zeros(())
        for c in range(CLASSES) if label < 0 else [label]:
            one_hot = torch.eye(CLASSES, dtype=x.dtype)[c : c + 1]
            encoder, head = guide.guide.encoder, guide.guide.heads["z"]
            features = encoder.encoder(Batch(x=x), y=one_hot) if guide.given else encoder(Batch(x=x))
            kl = kl_divergence(head(features), Independent(Normal(torch.zeros(1, LATENT), torch.ones(1, LATENT)), 1))
            draw = z[c if len(z) > 1 else 0, n : n + 1]
            parameters = model.decoder(torch.cat([draw, one_hot], -1))[:, 0]
            likelihood = Bernoulli(logits=parameters).log_prob(x).sum()
            # L(x, y) = E log p(x | y, z) + log p(y) - KL(q(z | x, y) ‖ p(z))
            bound = likelihood - math.log(CLASSES) - kl.sum()
            total = total - (bound if label >= 0 else logits[c].exp() * (bound - logits[c]))
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_sum_by_hand(kind: type[models.M2]) -> None:
    model, guide, batch = make(kind)
    objective = ELBO()
    torch.manual_seed(1)
    loss = objective.terms(model, guide, batch).loss
    loss.sum().backward()
    ours = gradients_of(model, guide)
    torch.manual_seed(1)
    z = log_weights(model, guide, batch).draws["z"].detach()
    # draws are functions of the guide's parameters: the same noise again
    torch.manual_seed(1)
    z = log_weights(model, guide, batch).draws["z"].squeeze(1)  # (C, N, Z) or (N, Z)
    z = z if z.dim() == 3 else z.unsqueeze(0)
    wanted = by_hand(model, guide, batch, z)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    wanted.sum().backward()
    assert_equal(ours, gradients_of(model, guide), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mean-field", "full-rank", "planar", "mixture"])
def test_the_bound_is_pyros(kind: type[models.M2], family: str) -> None:
    model, guide, batch = make(kind, family)
    theirs = TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    ours = ELBO(particles=3, kl="monte-carlo")
    results = []
    for objective, program in ((ours, guide), (theirs, config_enumerate(guide, default="parallel"))):
        torch.manual_seed(2)
        value = objective.differentiable_loss(model, program, batch)
        value.backward()
        results.append([value.detach(), *gradients_of(model, guide)])
    assert_equal(results[0], results[1], 1e-6)


# ---------------------------------------------------------------- log p(x) and log p(x, y)


def exact_log_px(model: models.M2, batch: Batch, size: int = 60) -> Tensor:
    """log p(x, c) of every class, (C, N), by a Gauss-Hermite quadrature over z."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(size)
    log_weight = torch.tensor(weights / math.sqrt(2 * math.pi)).log()
    z = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    log_weight = (log_weight[:, None] + log_weight[None]).flatten()
    per_class = []
    for c in range(CLASSES):
        one_hot = torch.eye(CLASSES, dtype=z.dtype)[c].expand(len(z), CLASSES)
        logits = model.decoder(torch.cat([z, one_hot], -1))[:, 0]  # (Q, *D)
        log_px = Bernoulli(logits=logits.unsqueeze(1)).log_prob(batch.x).flatten(2).sum(-1)  # (Q, N)
        per_class.append((log_px + log_weight[:, None]).logsumexp(0) - math.log(CLASSES))
    return torch.stack(per_class)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_weights_are_of_x_and_of_labels_where_known(kind: type[models.M2]) -> None:
    """Within 4 standard errors of each of 5 data, which fails by chance with probability below 0.001."""
    model, guide, batch = make(kind)
    with torch.no_grad():
        joint = exact_log_px(model, batch)
    wanted = torch.stack([joint[y, n] if y >= 0 else joint[:, n].logsumexp(0) for n, y in enumerate(Y)])
    found = log_marginal(model, guide, batch, particles=20_000, seed=0)
    assert bool((found.se < 0.04).all())
    assert bool(((found.log_px - wanted).abs() < 4 * found.se).all())


def test_weights_summed_over_classes_are_those_of_each_class_in_turn() -> None:
    """In value, and so is the gradient: a class by its label is that class's term of the sum."""
    model, guide, batch = make()
    batch = batch._replace(y=torch.full((len(Y),), -1))
    torch.manual_seed(3)
    w = log_weights(model, guide, batch, particles=4)
    each = w.log_w + w.log_q_enumerated  # (C, K, N)
    for c in range(CLASSES):
        torch.manual_seed(3)
        labelled = log_weights(model, guide, batch._replace(y=torch.full((len(Y),), c)), particles=4)
        torch.testing.assert_close(sum_enumerated(labelled, labelled.log_w), each[c], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum_enumerated(w, w.log_w), each.logsumexp(0))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_obeyed_in_single_precision(kind: type[models.M2]) -> None:
    """However far likelihoods lie apart: the bound of a labelled datum is the one that a batch of its class has."""
    model, guide, batch = make(kind)
    model, guide = model.float(), guide.float()
    with torch.no_grad():
        model.decoder.body.net[-1].bias.mul_(1e4)  # log p(x | y, z) of -1e4 and more
    x = batch.x.float()
    weights = IWAE(2)
    weights.classes_trained = True
    for objective in (ELBO(particles=2), Renyi(0.5, 2), weights):
        torch.manual_seed(0)
        mixed = objective.terms(model, guide, Batch(x=x, y=torch.tensor(Y))).loss
        mixed.sum().backward()
        assert all(bool(g.isfinite().all()) for g in gradients_of(model, guide))
        torch.manual_seed(0)
        all_known = objective.terms(model, guide, Batch(x=x, y=torch.tensor([2, 1, 0, 0, 1]))).loss
        assert bool(mixed.isfinite().all())
        torch.testing.assert_close(mixed[[0, 3]], all_known[[0, 3]], rtol=1e-5, atol=1e-3)


def test_a_label_gives_the_classifier_no_gradient_from_the_bound() -> None:
    model, guide, batch = make()
    labelled = batch._replace(y=torch.tensor([2, 1, 0, 0, 1]))
    ELBO().differentiable_loss(model, guide, labelled).backward()
    for name, parameter in guide.named_parameters():
        gradient = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        assert (gradient == 0.0) == name.startswith(("classifier", "logits")), name


def test_the_classifier_never_sees_a_label() -> None:
    """An encoder that takes classes as conditions is left without them."""
    model, guide, batch = make()
    encoder = networks.encoder("mlp", SHAPE, (6,), condition=networks.Condition(classes=CLASSES))
    told = Classified(model, encoder, guide.guide).double()
    batch = batch._replace(y=torch.arange(len(Y)) % CLASSES)
    assert encoder(batch).shape == (len(Y), 6)
    with pytest.raises(InputError, match="the batch needs y"):
        told.class_logits(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_take_one_call_of_each_network(kind: type[models.M2]) -> None:
    model, guide, batch = make(kind)
    calls: list[torch.Size] = []
    model.decoder.register_forward_hook(lambda module, inputs, out: calls.append(inputs[0].shape[:-1]))
    objective = ELBO(particles=4)
    objective.terms(model, guide, batch)
    calls.clear()
    objective.terms(model, guide, batch)
    assert calls == [(CLASSES, 4, len(Y))]


@pytest.mark.parametrize("kind", KINDS)
def test_ten_classes_cost_less_than_ten_steps_of_a_vae(kind: type[models.M2]) -> None:
    """In floating-point operations of value and gradient: all but the decoder and what is behind x's first product is
    done once."""
    shape, batch = (1, 8, 8), Batch(x=torch.rand(16, 1, 8, 8).round(), y=torch.full((16,), -1))
    likelihood = likelihoods.Bernoulli(shape)
    vae = models.VAE(networks.decoder("mlp", 8, shape, 1, (64,)), likelihood, 8)
    model = kind(networks.decoder("mlp", 8 + 10, shape, 1, (64,)), likelihood, 8, 10)
    pairs = [
        (vae, guides.MeanField(vae, networks.encoder("mlp", shape, (64,)))),
        (model, classified(model, networks.encoder("mlp", shape, (64,)), guides.MeanField)),
    ]
    counts = []
    for pair in pairs:
        objective = ELBO()
        objective.loss(*pair, batch)  # the first call looks at the pair
        with FlopCounterMode(display=False) as counter:
            objective.loss_and_grads(*pair, batch)
        counts.append(counter.get_total_flops())
    assert 5 < counts[1] / counts[0] < 8.5


def test_missing_labels_are_no_labels() -> None:
    model, guide, batch = make()
    results = []
    for y in (None, torch.full((len(Y),), -1)):
        torch.manual_seed(0)
        results.append(ELBO().terms(model, guide, batch._replace(y=y)).loss)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_generates_the_class_that_is_asked_for() -> None:
    model, _, _ = make()
    with torch.no_grad():
        model.decoder.body.net[-1].weight.zero_()
        first = model.decoder.body.net[0][0]
        model.decoder.body.net = torch.nn.Linear(LATENT + CLASSES, 6).double()
        model.decoder.body.net.weight.zero_()
        model.decoder.body.net.bias.fill_(-50.0)
        model.decoder.body.net.weight[0, LATENT + 1] = 100.0  # the first pixel is class 1
        x = model(Batch(y=torch.tensor([1, 0, 1, 2]))).flatten(1)
    assert first is not None
    assert x[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    many = model(Batch(y=torch.full((3000,), -1))).flatten(1)[:, 0].mean()
    assert abs(float(many) - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)  # false alarm: 6e-5


# ---------------------------------------------------------------- what is refused


def test_refuses() -> None:
    decoder = networks.decoder("mlp", LATENT + CLASSES, SHAPE, 1, (7,))
    with pytest.raises(InputError, match="classes=1 leaves nothing"):
        models.M2(decoder, likelihoods.Bernoulli(SHAPE), LATENT, 1)
    model, guide, _ = make()
    vae = models.VAE(networks.decoder("mlp", LATENT, SHAPE, 1, (7,)), likelihoods.Bernoulli(SHAPE), LATENT)
    encoder = networks.encoder("mlp", SHAPE, (6,))
    with pytest.raises(InputError, match="VAE declares no latent class"):
        classified(vae, encoder, guides.MeanField)
    other = guides.MeanField(continuous_part(model), networks.encoder("mlp", SHAPE, (6,)))
    other.sites = ("x",)
    with pytest.raises(InputError, match=r"draws \['x'\]; beside the class"):
        Classified(model, encoder, other)
    with pytest.raises(InputError, match="Local takes no values of other latents"):
        Classified(model, encoder, guides.Local(continuous_part(model), 5))
    part = guides.SemiAmortized(continuous_part(model), networks.encoder("mlp", SHAPE, (6,)))
    with pytest.raises(InputError, match="runs the model"):
        Classified(model, encoder, part, given=False)
    with pytest.raises(InputError, match="says nothing of its sizes"):
        classified(model, guide.guide.encoder, guides.MeanField)
    with pytest.raises(InputError, match="made of parts"):
        classified(model, networks.BodyEncoder(networks.MLP(6, (), 6), SHAPE, 6), guides.MeanField)


def test_other_guides_refuse_a_class() -> None:
    model: LatentModel = make()[0]
    with pytest.raises(InputError, match="'y' of M2 is discrete"):
        guides.MeanField(model, networks.encoder("mlp", SHAPE, (6,)))


def test_posteriors_by_name() -> None:
    _, guide, batch = make(models.SemiSupervisedVAE)
    q = guide.distribution(batch)
    assert isinstance(q["y"], Categorical)
    assert torch.equal(q["y"].probs[0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(q["y"].probs[1], guide.class_logits(batch)[1].softmax(-1))
    with pytest.raises(NotImplementedError):
        make(models.M2)[1].distribution(batch)
