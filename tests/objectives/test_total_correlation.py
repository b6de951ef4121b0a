"""The KL's three parts: exact where q(z) is Gaussian, unbiased over batches, and β-TCVAE's weights on them."""

import itertools
import math

import pytest
import torch
from aggregates import Linear
from programs import guide_for, pair

from ppl_vae import DIPVAE, ELBO, Batch, BetaTCVAE, FactorVAE
from ppl_vae.errors import InputError
from ppl_vae.objectives.decomposition import GaussianCodes, decompose, gaussian_codes
from ppl_vae.testing import LinearGaussian
from ppl_vae.weights import log_weights


def codes(guide: Linear, model: LinearGaussian, n: int, particles: int = 1) -> GaussianCodes:
    found = gaussian_codes(log_weights(model, guide, Batch(x=model.simulate(n)), particles=particles))
    assert found is not None
    return found


@pytest.mark.parametrize("diagonal", [True, False])
def test_parts_are_those_of_a_gaussian(diagonal: bool) -> None:
    """Each within 4 standard errors over 2,000 data; a false alarm in 1 of 5,000. The mixture of 2,000 Gaussians is
    within 0.01 nats of what it stands for."""
    model = LinearGaussian(4, 3, sigma=0.8)
    guide = Linear(model, diagonal)
    torch.manual_seed(1)  # not the seed of the data, whose numbers the draws would have again
    with torch.no_grad():
        found = decompose(codes(guide, model, 2000))
        exact = guide.parts(model)
    assert exact[1] > 0.2
    for part, value in zip(found, exact, strict=True):
        error = part.std() / math.sqrt(len(part))
        assert abs(part.mean() - value) < 4 * error + 0.01
        assert error < 0.05


def test_parts_add_up_to_the_kl_of_the_draws() -> None:
    model = LinearGaussian(4, 3)
    guide = Linear(model)
    w = log_weights(model, guide, Batch(x=model.simulate(7)), particles=3)
    found = gaussian_codes(w)
    assert found is not None
    for estimator in ("stratified", "weighted"):
        total = sum(decompose(found, 50, estimator))  # type: ignore[arg-type]
        torch.testing.assert_close(total, (w.log_guide["z"] - w.log_prior["z"]).mean(0), rtol=0, atol=1e-12)


def test_densities_are_those_of_the_distributions() -> None:
    """Of a full and of a diagonal covariance, against torch's own log-densities pair by pair."""
    model = LinearGaussian(4, 3)
    x = model.simulate(5)
    for diagonal in (True, False):
        guide = Linear(model, diagonal)
        found = codes(guide, model, 5, particles=2)
        joint, each = found.pairwise()
        mean = (x - model.bias) @ guide.slope.T + guide.loc
        for i, j in itertools.product(range(5), repeat=2):
            q = torch.distributions.MultivariateNormal(mean[j], scale_tril=guide.factor)
            torch.testing.assert_close(joint[:, i, j], q.log_prob(found.z[:, i]), rtol=0, atol=1e-12)
            single = torch.distributions.Normal(mean[j], q.variance.sqrt()).log_prob(found.z[:, i])
            torch.testing.assert_close(each[:, i, j], single, rtol=0, atol=1e-12)


def test_the_stratified_sum_is_unbiased_over_batches() -> None:
    """The mean of q̂(z_0) over every batch of 3 out of 6 with datum 0 in it is q(z_0), to rounding."""
    model = LinearGaussian(4, 2)
    everything = codes(Linear(model), model, 6)
    exact = (everything.pairwise()[0][0, 0].logsumexp(-1) - math.log(6)).exp()
    batches = [(0, *others) for others in itertools.combinations(range(1, 6), 2)]
    sums = []
    for rows in batches:
        index = torch.tensor(rows)
        some = GaussianCodes(
            *(
                t[:, index] if name in ("z", "log_q", "log_prior") else t[index]
                for name, t in everything._asdict().items()
            )
        )
        information = decompose(some, 6).mutual_information[0]
        sums.append((some.log_q[0, 0] - information).exp())
    torch.testing.assert_close(torch.stack(sums).mean(), exact, rtol=1e-12, atol=0)


def test_the_weighted_sum_is_the_papers() -> None:
    """1/(NM) of each, by hand; over all the data it is off by log N in each logarithm."""
    model = LinearGaussian(4, 2)
    found = codes(Linear(model), model, 6)
    joint, each = found.pairwise()
    log_qz = joint.logsumexp(-1) - math.log(40 * 6)
    log_qzd = (each.logsumexp(-2) - math.log(40 * 6)).sum(-1)
    weighted = decompose(found, 40, "weighted")
    torch.testing.assert_close(weighted.total_correlation, (log_qz - log_qzd)[0], rtol=0, atol=1e-12)
    whole, exact = decompose(found, 6, "weighted"), decompose(found, 6)
    shift = whole.total_correlation - exact.total_correlation
    torch.testing.assert_close(shift, torch.full_like(shift, math.log(6)), rtol=0, atol=1e-12)


def test_weights_multiply_their_parts() -> None:
    model = LinearGaussian(4, 3)
    guide, batch = Linear(model), Batch(x=model.simulate(8))
    torch.manual_seed(0)
    plain = ELBO().terms(model, guide, batch)
    torch.manual_seed(0)
    found = BetaTCVAE(beta=5.0, alpha=0.5, gamma=2.0, size=100).terms(model, guide, batch)
    logs = found.logs
    wanted = (
        plain.loss - 0.5 * logs["mutual_information"] + 4.0 * logs["total_correlation"] + 1.0 * logs["dimension_kl"]
    )
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(logs["elbo"], plain.logs["elbo"], rtol=0, atol=0)


@pytest.mark.parametrize("kl", ["analytic", "monte-carlo"])
@pytest.mark.parametrize("name", ["btc", "dip", "factor"])
def test_without_its_penalty_it_is_the_elbo(name: str, kl: str) -> None:
    """In value and in every gradient of the pair, to rounding."""
    model, guide, batch = pair("mean-field")
    made = {
        "btc": lambda: BetaTCVAE(beta=1.0, size=50, kl=kl),
        "dip": lambda: DIPVAE(0.0, kl=kl),
        "factor": lambda: FactorVAE(model, gamma=0.0, hidden=5, layers=2, kl=kl).double(),
    }[name]()
    parameters = [*model.parameters(), *guide.parameters()]
    results = []
    for objective in (ELBO(kl=kl), made):  # type: ignore[arg-type]
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, guide, batch)
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


def test_a_guide_without_single_dimensions_is_refused_by_name() -> None:
    model, _, batch = pair("mean-field")
    guide = guide_for(model, "planar")
    for objective in (BetaTCVAE(size=10), DIPVAE()):
        with pytest.raises(InputError, match=r"guide=Planar is none; use mean-field, full-rank or low-rank"):
            objective.loss(model, guide, batch)


def test_bad_input() -> None:
    model = LinearGaussian(4, 2)
    guide, batch = Linear(model), Batch(x=model.simulate(4))
    with pytest.raises(InputError, match="beta=-1 must be a number, 0 or more"):
        BetaTCVAE(beta=-1)
    with pytest.raises(InputError, match="estimator='stratifed' is not known; did you mean 'stratified'"):
        BetaTCVAE(estimator="stratifed")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="size=3 is the number of training data, and a batch has 4"):
        BetaTCVAE(size=3).loss(model, guide, batch)
    with pytest.raises(InputError, match="compares the data of a batch, and this one has 1"):
        BetaTCVAE(size=3).loss(model, guide, Batch(x=batch.x[:1]))  # type: ignore[index]
    with pytest.raises(InputError, match="kind='III' is not known"):
        DIPVAE(kind="III")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="off_diagonal=nan must be a number"):
        DIPVAE(math.nan)
