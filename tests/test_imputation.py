"""Missing values on the linear-Gaussian oracle, where log p and the posterior of any part of x are exact."""

import math

import pytest
import torch
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, Batch, InputError, fit, guides, likelihoods, log_marginal, models, networks
from ppl_vae.data import DataSet
from ppl_vae.evaluate import impute, kl_to_complete, log_missing
from ppl_vae.evaluate.imputation import _Kept
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

N, D = 40, 5
MODEL = LinearGaussian(data=D, latent=2)


def some(share: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, and what of it is known."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(N, D, generator=generator) > share
    mask[:, 0] |= ~mask.any(1)
    return MODEL.simulate(N, seed=seed), mask


def part(x: Tensor, mask: Tensor) -> Batch:
    return Batch(x=x * mask, visible=mask, observed=mask)


# ---------------------------------------------------------------- the oracle itself


def test_the_oracle_of_a_part_is_the_smaller_oracle() -> None:
    x, mask = some()
    for row in range(0, N, 4):
        keep = mask[row].nonzero().squeeze(-1)
        small = LinearGaussian(data=len(keep), latent=2)
        small.weight, small.bias = MODEL.weight[keep], MODEL.bias[keep]
        one = x[row : row + 1]
        wanted = small.log_marginal(one[:, keep])
        torch.testing.assert_close(MODEL.log_marginal(one, mask[row : row + 1]), wanted)
        ours, theirs = MODEL.posterior(one, mask[row : row + 1]), small.posterior(one[:, keep])
        torch.testing.assert_close(ours.loc, theirs.loc)
        torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix)


# ---------------------------------------------------------------- the bound of incomplete data


@pytest.mark.parametrize("objective", [ELBO(particles=3, kl="monte-carlo"), IWAE(3)], ids=["elbo", "iwae"])
def test_under_the_exact_posterior_the_bound_is_log_p_of_what_is_observed(objective: ELBO | IWAE) -> None:
    x, mask = some()
    bound = objective.terms(MODEL, LinearGaussianPosterior(MODEL), part(x, mask)).logs
    torch.testing.assert_close(bound["elbo"], MODEL.log_marginal(x, mask), rtol=1e-10, atol=1e-10)


def test_the_mean_field_gap_of_a_part_is_its_kl() -> None:
    """½ (Σ log Λ_dd - log det Λ) of each datum's own Λ; 4 standard errors of the mean over 40 data."""
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL, "diagonal")
    torch.manual_seed(0)
    elbo = ELBO(particles=4000, kl="monte-carlo").terms(MODEL, guide, part(x, mask)).logs["elbo"]
    precision = MODEL.posterior(x, mask).precision_matrix
    gap = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision))
    error = MODEL.log_marginal(x, mask) - elbo - gap
    assert float(gap.mean()) > 0.1
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(N)


def test_the_bound_rises_to_log_p_of_what_is_observed() -> None:
    """L_1 < L_10 < L_1000 ≈ log p(x_observed), under a proposal 1.3 times too wide."""
    x, mask = some()
    guide, exact = LinearGaussianPosterior(MODEL, widen=1.3), MODEL.log_marginal(x, mask)
    gaps = []
    for particles in (1, 10, 1000):
        torch.manual_seed(0)
        loss = torch.stack([IWAE(particles).terms(MODEL, guide, part(x, mask)).loss for _ in range(20)])
        gaps.append(float((exact + loss.mean(0)).mean()))
    assert gaps[0] > 5 * gaps[1] > 0
    assert abs(gaps[2]) < 0.01
    result = log_marginal(MODEL, guide, part(x, mask), particles=1000, seed=0)
    z = (result.log_px - exact) / result.se
    assert float(z.abs().max()) < 4.5  # of 40: a right estimate fails once in 3,700


def test_what_is_not_observed_has_no_gradient_and_spoils_none() -> None:
    """x is 0 there; whatever the decoder says of it does not reach the loss."""
    torch.manual_seed(0)
    shape = (1, 4, 4)
    decoder = networks.decoder("mlp", 2, shape, 1, (8,))
    model = models.VAE(decoder, likelihoods.GaussianLearned(shape), latent=2)
    guide = guides.MeanField(model, networks.encoder("mlp", shape, (8,), mask=True))
    mask = torch.rand(6, *shape) < 0.5
    mask[:, :, 0, 0] = False
    mask[:, :, 1, 1] = True
    batch = part(torch.randn(6, *shape), mask)
    IWAE(4).terms(model, guide, batch).loss.sum().backward()
    for parameter in (*model.parameters(), *guide.parameters()):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
    last = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)][-1]
    assert last.bias.grad is not None
    assert float(last.bias.grad[0]) == 0.0  # pixel (0, 0), never observed
    assert float(last.bias.grad[5]) != 0.0


@pytest.mark.slow
def test_a_data_set_with_missing_values_trains() -> None:
    """The bound on incomplete data comes to that of factor analysis' answer: within 0.1 nats of log p under the truth
    (the trained model has 40 x 25 values to learn from, and may fit them better)."""
    generator = torch.Generator().manual_seed(1)
    x = MODEL.simulate(1000, seed=1).float()
    observed = torch.rand(1000, D, generator=generator) < 0.7
    observed[:, 0] |= ~observed.any(1)
    data = DataSet.from_arrays(x, observed=observed, name="table")
    torch.manual_seed(0)
    model = models.VAE(networks.decoder("mlp", 2, (D,), 1, (16,)), likelihoods.GaussianLearned((D,)), latent=2)
    guide = guides.FullRank(model, networks.encoder("mlp", (D,), (32,), mask=True))
    truth = float(MODEL.log_marginal(x.double(), observed).mean())
    before = log_marginal(model, guide, data, particles=100, seed=0).mean
    fit(model, guide, data, IWAE(8), epochs=40, batch_size=100, lr=1e-2, lr_schedule="cosine", progress=False)
    after = log_marginal(model, guide, data, particles=200, seed=0).mean
    assert before < truth - 1.0
    assert after > truth - 0.15


# ---------------------------------------------------------------- imputation


def conditional(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each missing element given what is known, (N, D)."""
    q = MODEL.posterior(x, mask)
    mean = q.loc @ MODEL.weight.T + MODEL.bias
    variance = torch.einsum("dz,nzy,dy->nd", MODEL.weight, q.covariance_matrix, MODEL.weight) + MODEL.sigma**2
    return mean, variance


@pytest.mark.parametrize("chunk", [None, 10_000])
def test_imputations_have_the_exact_conditional_mean_and_variance(chunk: int | None) -> None:
    """Under a proposal 1.3 times too wide, corrected by the weights. Means of M = 100 draws of each of ~100 missing
    elements: the mean square of their z-scores is 1, within 4.5 √(2/100)."""
    x, mask = some()
    hidden = ~mask
    guide = LinearGaussianPosterior(MODEL, widen=1.3)
    made = impute(MODEL, guide, Batch(x=x, visible=mask), draws=100, particles=2000, chunk=chunk, seed=0)
    assert made.draws.shape == made.means.shape == (100, N, D)
    mean, variance = conditional(x, mask)
    count = int(hidden.sum())
    z = ((made.draws.mean(0) - mean) / (variance / 100).sqrt())[hidden]
    assert abs(float(z.square().mean()) - 1.0) < 4.5 * math.sqrt(2 / count) + 0.1  # + for particles drawn twice
    spread = (made.draws.var(0) / variance)[hidden]
    assert abs(float(spread.mean()) - 1.0) < 4.5 * math.sqrt(2 / 100 / count)
    # the mean over all particles is nearer by far
    error = ((made.mean - mean) / (variance / made.ess.unsqueeze(1)).sqrt())[hidden]
    assert float(error.square().mean()) < 1.5
    for each in (*made.draws[:3], made.mean, *made.means[:2]):
        assert torch.equal(each[mask], x[mask])
    assert bool((made.ess > 0.5 * 2000).all())
    assert torch.equal(made.visible, mask)


def test_without_weights_they_are_the_guides() -> None:
    """A proposal with the covariance of the wrong family: its own predictive variance, not the posterior's."""
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL, widen=2.0)
    made = impute(MODEL, guide, Batch(x=x, visible=mask), draws=100, particles=2000, weighted=False, seed=0)
    q = guide.distribution(part(x, mask))["z"].covariance_matrix
    wide = torch.einsum("dz,nzy,dy->nd", MODEL.weight, q, MODEL.weight) + MODEL.sigma**2
    spread = (made.draws.var(0) / wide)[~mask]
    assert abs(float(spread.mean()) - 1.0) < 4.5 * math.sqrt(2 / 100 / len(spread))
    torch.testing.assert_close(made.ess, torch.full((N,), 2000.0, dtype=torch.float64))


def test_imputations_of_one_particle_have_noise_of_their_own() -> None:
    """x = W z + b + σ ε of one z: 300 draws of each hidden element have variance σ², within 4.5 √(2/n)."""
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL, widen=1.3)
    made = impute(MODEL, guide, Batch(x=x, visible=mask), draws=300, particles=1, seed=0)
    assert bool((made.means == made.means[:1]).all())
    noise = ((made.draws - made.means) / MODEL.sigma)[:, ~mask]
    assert abs(float(noise.square().mean()) - 1.0) < 4.5 * math.sqrt(2 / noise.numel())
    torch.testing.assert_close(made.mean, made.means[0])


@pytest.mark.parametrize("weighted", [True, False])
def test_each_particle_is_decoded_once(weighted: bool) -> None:
    """50 particles of 3 data, in pieces of 20, and then the 4 that were taken."""
    torch.manual_seed(0)
    model = models.VAE(networks.decoder("mlp", 2, (D,), 1, (4,)), likelihoods.GaussianLearned((D,)), 2)
    guide = guides.MeanField(model, networks.encoder("mlp", (D,), (4,)))
    seen: list[int] = []
    model.decoder.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[:-1].numel()))
    visible = torch.tensor([True, True, False, False, False]).expand(3, D)
    made = impute(model, guide, Batch(x=torch.ones(3, D), visible=visible), 4, 50, chunk=60, weighted=weighted, seed=0)
    assert made.particles == 50
    # 50 particles a datum fill a piece: one datum at a time
    assert seen[-6:] == [50, 4] * 3
    assert len(seen) - 6 == (1 if weighted else 0)  # the check of the pair


def test_pieces_are_merged_as_the_whole() -> None:
    """Weights that grow and fall by hundreds of nats from piece to piece, against the sums of all at once."""
    torch.manual_seed(0)
    log_w = 100.0 * torch.tensor([0.0, 3.0, 1.0, 3.01]).repeat_interleave(5).unsqueeze(1) + torch.randn(20, 3).double()
    mean = torch.randn(20, 3, D).double()
    kept = _Kept(2)
    for piece in torch.arange(20).split(5):
        kept.update(log_w[piece], mean[piece], {"z": mean[piece]})
    weight = log_w.softmax(0)
    batch = Batch(x=torch.zeros(3, D).double(), visible=torch.zeros(3, D, dtype=torch.bool))
    _, _, merged, _, ess = kept.finish(batch, mean[:2], mean[:2])
    torch.testing.assert_close(merged, (weight.unsqueeze(-1) * mean).sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ess, 1 / weight.square().sum(0), rtol=1e-12, atol=0)


def test_what_is_hidden_is_not_looked_at() -> None:
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL)
    one = impute(MODEL, guide, Batch(x=x, visible=mask), 3, 50, seed=0)
    two = impute(MODEL, guide, Batch(x=torch.where(mask, x, 7.0), visible=mask), 3, 50, seed=0)
    assert torch.equal(one.draws, two.draws)
    assert torch.equal(one.mean, two.mean)
    assert not torch.equal(one.draws, impute(MODEL, guide, Batch(x=x, visible=mask), 3, 50, seed=1).draws)


def test_the_two_terms_of_log_missing_have_seeds_of_their_own() -> None:
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL, widen=1.3)
    result = log_missing(MODEL, guide, Batch(x=x, visible=mask), particles=20, seed=5)
    assert torch.equal(result.whole.log_px, log_marginal(MODEL, guide, Batch(x=x), 20, seed=5).log_px)
    assert torch.equal(result.visible.log_px, log_marginal(MODEL, guide, part(x, mask), 20, seed=6).log_px)
    assert torch.equal(result.log_p, result.whole.log_px - result.visible.log_px)


def test_log_missing_is_exact_within_its_error() -> None:
    """40 z-scores below 4.5 (a right estimate fails once in 3,700), with a mean square near 1 (4.5 √(2/40))."""
    x, mask = some()
    guide = LinearGaussianPosterior(MODEL, widen=1.3)
    result = log_missing(MODEL, guide, Batch(x=x, visible=mask), particles=2000, seed=0)
    wanted = MODEL.log_marginal(x) - MODEL.log_marginal(x, mask)
    z = (result.log_p - wanted) / result.se
    assert float(z.abs().max()) < 4.5
    assert abs(float(z.square().mean()) - 1.0) < 4.5 * math.sqrt(2 / N)
    assert not bool(result.unreliable.any())
    assert abs(result.estimate.mean - float(wanted.mean())) < 4 * result.estimate.se
    # what is not observed at all is in neither term
    observed = mask | (torch.arange(D) < 3)
    given = Batch(x=x * observed, visible=mask, observed=observed)
    result = log_missing(MODEL, guide, given, particles=2000, seed=0)
    wanted = MODEL.log_marginal(x, observed) - MODEL.log_marginal(x, mask)
    assert float(((result.log_p - wanted) / result.se.clamp_min(1e-9)).abs().max()) < 4.5


# ---------------------------------------------------------------- KL(q(z | x̄) ‖ q(z | x))


def test_the_kl_of_hiding_is_that_of_the_two_gaussians() -> None:
    x, mask = some()
    batch = Batch(x=x, visible=mask)
    exact = kl_to_complete(LinearGaussianPosterior(MODEL), batch)
    wanted = torch.distributions.kl_divergence(MODEL.posterior(x, mask), MODEL.posterior(x))
    torch.testing.assert_close(exact.values, wanted)
    assert exact.draws is None
    assert float(exact.se.max()) == 0.0
    assert exact.estimate.data_se == pytest.approx(float(wanted.std()) / math.sqrt(N))
    whole = kl_to_complete(LinearGaussianPosterior(MODEL), batch._replace(visible=torch.ones_like(mask)))
    assert float(whole.values.abs().max()) < 1e-12
    # another reference
    other = LinearGaussianPosterior(MODEL, widen=1.5)
    wider = torch.distributions.kl_divergence(
        MODEL.posterior(x, mask), torch.distributions.MultivariateNormal(MODEL.posterior_mean(x), other.covariance)
    )
    torch.testing.assert_close(kl_to_complete(LinearGaussianPosterior(MODEL), batch, other).values, wider)


class Unspoken(LinearGaussianPosterior):
    """The same guide, which gives no `distribution`."""

    def distribution(self, batch: Batch) -> dict[str, object]:  # type: ignore[override]
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        import pyro

        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", LinearGaussianPosterior.distribution(self, batch)["z"])}


@pytest.mark.parametrize("chunk", [None, 4000])
def test_the_kl_by_monte_carlo_is_right_within_its_error(chunk: int | None) -> None:
    x, mask = some()
    batch = Batch(x=x, visible=mask)
    result = kl_to_complete(Unspoken(MODEL), batch, draws=2000, chunk=chunk, seed=0)
    wanted = kl_to_complete(LinearGaussianPosterior(MODEL), batch).values
    assert result.draws == 2000
    unequal = wanted > 1e-9
    z = ((result.values - wanted) / result.se)[unequal]
    assert float(z.abs().max()) < 4.5
    assert abs(float(z.square().mean()) - 1.0) < 4.5 * math.sqrt(2 / int(unequal.sum()))


# ---------------------------------------------------------------- bad input


def test_data_without_masks_are_refused() -> None:
    x, _ = some()
    guide = LinearGaussianPosterior(MODEL)
    with pytest.raises(InputError, match="data have no masks, and nothing is hidden"):
        impute(MODEL, guide, x)
    with pytest.raises(InputError, match="data have no masks"):
        log_missing(MODEL, guide, x)
    with pytest.raises(InputError, match="data have no `visible`"):
        kl_to_complete(guide, x)
    with pytest.raises(InputError, match="draws=0 must be a whole number"):
        impute(MODEL, guide, Batch(x=x, visible=x > 0), draws=0)
