"""The thermodynamic objective: exact on the oracle, where every distribution of the path is Gaussian."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PlainMixtureGuide, binary_batch, pair, vae
from torch import Tensor, nn

from ppl_vae import ELBO, TVO, Batch, Guide
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior, check_objective


class Wide(Guide):
    """N(E[z | x] + shift, s² I): a Gaussian with parameters."""

    def __init__(self, model: LinearGaussian, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", model.posterior_mean(x))
        self.shift = nn.Parameter(torch.tensor([0.15, -0.1], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            q = dist.Normal(self.mean + self.shift, self.log_scale.exp()).to_event(1)
            return {"z": pyro.sample("z", q)}

    def exact(self, objective: TVO, model: LinearGaussian, x: Tensor) -> Tensor:
        """The objective of infinitely many particles: every π_β is the Gaussian of the two precisions' mixture."""
        eye = torch.eye(2, dtype=torch.float64)
        p, q = model.precision, eye * (-2 * self.log_scale).exp()
        total = torch.zeros_like(model.log_marginal(x))
        for beta, width in zip(objective.betas[:-1], objective.betas.diff(), strict=True):
            covariance = torch.linalg.inv((1 - beta) * q + beta * p)
            mean = covariance @ ((1 - beta) * q @ self.shift)  # from the posterior's mean
            log_p = 0.5 * torch.logdet(p) - 0.5 * ((p @ covariance).trace() + mean @ p @ mean)
            away = mean - self.shift
            log_q = 0.5 * torch.logdet(q) - 0.5 * ((q @ covariance).trace() + away @ q @ away)
            total = total + width * (model.log_marginal(x) + log_p - log_q)
        return total


def oracle() -> tuple[LinearGaussian, Tensor]:
    model = LinearGaussian(3, 2, sigma=1.2)
    return model, model.simulate(3)


@pytest.mark.parametrize("intervals", [1, 2, 8])
def test_value_and_gradient_are_those_of_the_path(intervals: int) -> None:
    """200,000 particles a datum: the estimate's own noise is below 0.01 nats."""
    model, x = oracle()
    guide, objective = Wide(model, x), TVO(200_000, intervals)
    exact = guide.exact(objective, model, x)
    torch.manual_seed(0)
    loss = objective.terms(model, guide, Batch(x=x)).loss
    torch.testing.assert_close(-loss, exact, rtol=0, atol=0.01)
    parameters = list(guide.parameters())
    wanted = torch.autograd.grad(-exact.sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad(loss.sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.03)


def test_it_lies_between_the_elbo_and_log_p() -> None:
    model, x = oracle()
    guide = Wide(model, x)
    values = [guide.exact(TVO(2, j), model, x) for j in (1, 2, 5, 20)]
    assert all(bool((a < b).all()) for a, b in itertools.pairwise(values))
    assert bool((values[-1] < model.log_marginal(x)).all())
    plain = -ELBO(particles=200_000, kl="monte-carlo").terms(model, guide, Batch(x=x)).loss
    torch.testing.assert_close(values[0], plain, rtol=0, atol=0.01)


def test_under_the_posterior_it_is_log_p_on_every_draw() -> None:
    model, x = oracle()
    loss = TVO(5).terms(model, LinearGaussianPosterior(model), Batch(x=x)).loss
    torch.testing.assert_close(-loss, model.log_marginal(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mean-field", "bottom-up", "class", "mixture"])
def test_contract(name: str) -> None:
    check_objective(TVO(3), *pair(name))


def test_contract_without_reparameterization() -> None:
    model = vae()
    check_objective(TVO(3), model, PlainMixtureGuide(model), binary_batch())


def test_refusals() -> None:
    for arguments, message in (
        ({"particles": 1}, "particles=1: a single weight"),
        ({"intervals": 0}, "intervals=0 must be a whole number"),
        ({"first": 1.0}, r"first=1\.0 must lie between"),
    ):
        with pytest.raises(ValueError, match=message):
            TVO(**arguments)
    with pytest.raises(ValueError, match="'w' lies outside of the data plate"):
        TVO(2).loss(*pair("global"))
    assert repr(TVO(4)) == "TVO(particles=4, intervals=5, first=0.05)"
