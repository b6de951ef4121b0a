"""The variational autoencoder's model and the conditional one."""

import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, binary_batch, conditional_vae, guide_for, vae
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import Predictive
from torch import Tensor, nn

from ppl_vae import Batch, Conditional, InputError, likelihoods, log_weights, models, networks, priors
from ppl_vae.networks import Condition
from ppl_vae.testing import check_guide, check_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual"])
def test_the_contract(kind: str, dtype: torch.dtype) -> None:
    shape = (1, 8, 8)
    decoder = networks.decoder(kind, 3, shape, 1, (16,))  # type: ignore[arg-type]
    model = models.VAE(decoder, likelihoods.Bernoulli(shape), 3).to(dtype)
    check_model(model, Batch(x=torch.randint(0, 2, (4, *shape)).to(dtype)))


@pytest.mark.parametrize("name", list(likelihoods.likelihoods))
def test_the_contract_with_every_likelihood(name: str) -> None:
    likelihood = likelihoods.likelihoods.get(name)(SHAPE)
    decoder = networks.decoder("mlp", 3, SHAPE, likelihood.parameters_per_element, (7,))
    check_model(models.VAE(decoder, likelihood, 3), Batch(n=4))


def test_the_joint_density_is_prior_times_likelihood() -> None:
    model, batch = vae(), binary_batch()
    z = torch.randn(5, 3, dtype=torch.float64)
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(batch)
    logits = model.decoder(z).squeeze(1)
    wanted = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Bernoulli(logits=logits).log_prob(batch.x).flatten(1).sum(
        -1
    )
    torch.testing.assert_close(trace.log_prob_sum(), wanted.sum())
    assert set(trace.nodes) - {"_INPUT", "_RETURN", "data"} == {"z", "x"}
    assert {name: spec.event_shape for name, spec in model.latents.items()} == {"z": (3,)}


def test_it_generates_without_data() -> None:
    model = vae()
    x = model(Batch(n=50))
    assert x.shape == (50, *SHAPE)
    model.likelihood.check(x)
    assert not torch.equal(x, model(Batch(n=50)))
    assert torch.equal(model(binary_batch()), binary_batch().x)


def test_pyros_predictive_draws_from_it() -> None:
    model, batch = vae(), binary_batch()
    guide = guide_for(model)
    samples = Predictive(model, num_samples=7, parallel=True)(Batch(n=4))
    assert samples["x"].shape == (7, 4, *SHAPE)
    assert samples["z"].shape == (7, 4, 3)
    # given x, the observed site is the data itself: a posterior predictive asks the model without them
    assert torch.equal(Predictive(model, guide=guide, num_samples=3)(batch)["x"][0], batch.x)
    z = Predictive(guide, num_samples=6)(batch)["z"]
    for program, argument in ((model, Batch(n=batch.size)), (poutine.uncondition(model), batch)):
        drawn = Predictive(program, posterior_samples={"z": z}, parallel=True)(argument)["x"]
        assert drawn.shape == (6, 5, *SHAPE)
        assert not torch.equal(drawn[0], batch.x)


def test_the_prior_is_standard_normal_and_moves_with_the_model() -> None:
    prior = priors.StandardNormal(3)
    p = prior(torch.zeros(2, 5, 0))
    assert (p.batch_shape, p.event_shape) == ((2, 5), (3,))
    torch.testing.assert_close(
        p.log_prob(torch.zeros(3)), dist.Normal(0.0, 1.0).log_prob(torch.zeros(3)).sum().expand(2, 5)
    )
    assert prior.double()(torch.zeros(2, 0)).sample().dtype == torch.float64
    assert not prior.state_dict()
    assert {buffer.device.type for buffer in prior.to("meta").buffers()} == {"meta"}


class ShiftedPrior(Conditional):
    """p(z | y), learned."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([size])
        self.loc = nn.Linear(width, size, dtype=torch.float64) if width else nn.Linear(1, size, dtype=torch.float64)
        self.width = width

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        given = features if self.width else features.new_ones(*features.shape[:-1], 1)
        return dist.Normal(self.loc(given), 1.0).to_event(1)


def test_the_prior_is_a_part() -> None:
    plain = models.VAE(networks.decoder("mlp", 3, SHAPE, 1, (7,)), likelihoods.Bernoulli(SHAPE), 3, ShiftedPrior(0, 3))
    check_model(plain.double(), binary_batch())
    decoder = networks.decoder("mlp", 3 + 4, SHAPE, 1, (7,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), 3, Condition(4), ShiftedPrior(4, 3)).double()
    batch = binary_batch()._replace(y=torch.tensor([0, 1, 2, 3, 3]))
    check_model(model, batch)
    check_guide(guide_for(model), model, batch)


# ---------------------------------------------------------------- conditional


def test_the_conditional_contract() -> None:
    model = conditional_vae()
    batch = binary_batch()._replace(y=torch.tensor([0, 3, -1, 1, 2]))
    check_model(model, batch)
    check_guide(guide_for(model), model, batch)
    check_guide(guide_for(model, "full-rank"), model, batch)


def test_context_conditions_as_classes_do() -> None:
    decoder = networks.decoder("mlp", 3 + 2, SHAPE, 1, (7,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), 3, Condition(context=2)).double()
    batch = binary_batch()._replace(context=torch.randn(5, 2, dtype=torch.float64))
    check_model(model, batch)
    assert model(Batch(context=torch.randn(7, 2, dtype=torch.float64))).shape == (7, *SHAPE)


def test_the_class_changes_model_and_guide() -> None:
    model = conditional_vae()
    guide = guide_for(model)
    batch = binary_batch()._replace(y=torch.tensor([0, 1, 2, 3, 0]))
    other = batch._replace(y=torch.tensor([1, 1, 2, 3, 0]))
    a, b = guide.distribution(batch)["z"].mean, guide.distribution(other)["z"].mean
    assert not torch.equal(a[0], b[0])
    assert torch.equal(a[1:], b[1:])
    torch.manual_seed(0)
    w = log_weights(model, guide, batch).log_w
    torch.manual_seed(0)
    v = log_weights(model, guide, other).log_w
    assert bool(w[0, 0] != v[0, 0])
    assert torch.equal(w[:, 1:], v[:, 1:])


def test_a_class_is_generated() -> None:
    model = conditional_vae()
    with torch.no_grad():  # class 2 turns all pixels on, the others off
        first, last = model.decoder.body.net[0][0], model.decoder.body.net[1]
        first.weight.zero_()
        first.weight[:, 3 + 2] = 10.0
        first.bias.fill_(-5.0)
        last.weight.fill_(10.0)
        last.bias.fill_(-30.0)
    assert bool((model(Batch(y=torch.full((20,), 2))) == 1).all())
    assert bool((model(Batch(y=torch.full((20,), 1))) == 0).all())


def test_without_a_class_it_says_what_is_missing() -> None:
    model = conditional_vae()
    with pytest.raises(InputError, match="conditioned on one of 4 classes: the batch needs y"):
        model(Batch(n=3))
    with pytest.raises(InputError, match="the batch needs y"):
        guide_for(model)(binary_batch())


def test_the_unconditional_model_takes_no_notice_of_labels() -> None:
    model, guide, batch = vae(), guide_for(vae()), binary_batch()
    torch.manual_seed(0)
    w = log_weights(model, guide, batch).log_w
    torch.manual_seed(0)
    assert torch.equal(w, log_weights(model, guide, batch._replace(y=torch.tensor([0, 9, -1, 2, 3]))).log_w)
