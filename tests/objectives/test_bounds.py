"""Every objective on the linear-Gaussian oracle, whose log p(x) and posterior are exact."""

import itertools
import math

import pytest
import torch
from programs import MixtureGuide, PlainMixtureGuide, binary_batch, guide_for, pair, vae
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from ppl_vae import ELBO, IWAE, Batch, Conditional, Guide, Objective, Renyi, guides, log_weights, networks
from ppl_vae.core import Encoder
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

DATA, LATENT = 5, 2


def oracle() -> tuple[LinearGaussian, Tensor]:
    model = LinearGaussian(DATA, LATENT, seed=11)
    return model, model.simulate(8, seed=3)


def estimate(
    objective: Objective, model: LinearGaussian, guide: Guide, x: Tensor, repeats: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the bound of each datum, over independent repetitions in one batch."""
    with torch.no_grad():
        loss = objective.terms(model, guide, Batch(x=x.repeat(repeats, 1))).loss
    bounds = -loss.reshape(repeats, -1)
    return bounds.mean(0), bounds.std(0) / math.sqrt(repeats)


def assert_within(mean: Tensor, error: Tensor, exact: Tensor) -> None:
    """4 standard errors, all data at once."""
    assert bool((error < 0.2).all()), "the estimate says nothing"
    assert bool(((mean - exact).abs() < 4 * error).all()), f"{(mean - exact) / error} standard errors off"


@pytest.mark.parametrize("particles", [1, 3])
def test_under_the_exact_posterior_every_draw_is_log_p(particles: int) -> None:
    model, x = oracle()
    guide = LinearGaussianPosterior(model)
    exact = model.log_marginal(x)
    objectives = [
        ELBO(particles=particles, kl="monte-carlo"),
        IWAE(particles),
        Renyi(0.5, particles),
        Renyi(-1.0, particles),
        Renyi(3.0, particles),
    ]
    for objective in objectives:
        for _ in range(5):
            bound = -objective.terms(model, guide, Batch(x=x)).loss
            torch.testing.assert_close(bound, exact, rtol=0, atol=1e-10)


def test_with_the_closed_form_it_is_log_p_on_average() -> None:
    model, x = oracle()
    mean, error = estimate(ELBO(kl="analytic"), model, LinearGaussianPosterior(model), x, 20_000)
    assert bool((error > 1e-4).all()), "the closed form leaves the likelihood's noise"
    assert_within(mean, error, model.log_marginal(x))


@pytest.mark.parametrize("kl", ["auto", "analytic", "monte-carlo"])
@pytest.mark.parametrize(("family", "widen"), [("diagonal", 1.0), ("full", 1.4), ("diagonal", 0.8)])
def test_the_gap_of_the_elbo_is_the_kl_to_the_posterior(kl: str, family: str, widen: float) -> None:
    model, x = oracle()
    guide = LinearGaussianPosterior(model, family, widen)
    mean, error = estimate(ELBO(kl=kl), model, guide, x, 20_000)
    assert_within(mean, error, model.log_marginal(x) - guide.kl_to_posterior())


def test_iwae_rises_with_particles_to_log_p() -> None:
    model, x = oracle()
    guide = LinearGaussianPosterior(model, "full", 1.5)
    exact = model.log_marginal(x)
    means, errors = [], []
    for particles, repeats in ((1, 40_000), (5, 10_000), (50, 2000)):
        mean, error = estimate(IWAE(particles), model, guide, x, repeats)
        means.append(mean)
        errors.append(error)
    for i in range(2):
        noise = (errors[i] ** 2 + errors[i + 1] ** 2).sqrt()
        assert bool((means[i + 1] - means[i] > 2 * noise).all())
    elbo = exact - guide.kl_to_posterior()
    assert_within(means[0], errors[0], elbo)
    assert bool((means[2] < exact + 4 * errors[2]).all())
    long = -IWAE(200_000).terms(model, guide, Batch(x=x)).loss
    torch.testing.assert_close(long, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 2.0])
def test_renyi_tends_to_its_closed_form(alpha: float) -> None:
    model, x = oracle()
    guide = LinearGaussianPosterior(model, "full", 0.9 if alpha > 1 else 1.2)
    exact = model.renyi_bound(x, guide, alpha)
    assert bool(exact.isfinite().all())
    bound = -Renyi(alpha, 200_000).terms(model, guide, Batch(x=x)).loss
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.02)
    if alpha != 0.0:
        assert bool(((exact - model.log_marginal(x)).abs() > 0.02).all()), "told from log p(x)"


def test_bounds_are_ordered_on_equal_draws() -> None:
    """On the same weights the power mean falls with α, through IWAE at 0 and the ELBO at 1."""
    model, x = oracle()
    guide = LinearGaussianPosterior(model, "full", 1.5)
    bounds = []
    for objective in (Renyi(-2.0, 5), IWAE(5), Renyi(0.5, 5), ELBO(particles=5, kl="monte-carlo"), Renyi(2.0, 5)):
        torch.manual_seed(0)
        bounds.append(-objective.terms(model, guide, Batch(x=x)).loss)
    for above, below in itertools.pairwise(bounds):
        assert bool((above > below).all())


@pytest.mark.parametrize("objective", [IWAE(1), Renyi(0.5, 1), Renyi(-3.0, 1)], ids=lambda o: type(o).__name__)
def test_with_one_particle_every_bound_is_the_elbo(objective: Objective) -> None:
    model, x = oracle()
    guide = LinearGaussianPosterior(model, "diagonal", 1.2)
    losses = []
    for one in (objective, ELBO(kl="monte-carlo")):
        torch.manual_seed(0)
        losses.append(one.terms(model, guide, Batch(x=x)).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)


def test_renyi_at_zero_is_iwae_and_near_one_the_elbo() -> None:
    model, guide, batch = pair("full-rank")
    losses = []
    for objective in (Renyi(0.0, 4), IWAE(4), Renyi(1 - 1e-7, 4), ELBO(particles=4, kl="monte-carlo")):
        torch.manual_seed(0)
        losses.append(objective.terms(model, guide, batch).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(losses[2], losses[3], rtol=0, atol=1e-5)


def test_extreme_weights_neither_overflow_nor_lose_their_gradient() -> None:
    """log-weights of -1e5 in single precision: the bound is finite, as is its gradient."""
    model, guide, batch = pair("mean-field")
    model, guide = model.float(), guide.float()
    with torch.no_grad():
        model.decoder.body.net[-1].bias.add_(3e4)
    batch = Batch(x=batch.x.float())
    for objective in (ELBO(), IWAE(5), Renyi(0.5, 5), Renyi(-1.0, 5), Renyi(3.0, 5)):
        loss = objective.loss_and_grads(model, guide, batch)
        assert math.isfinite(loss)
        assert loss > 1e4
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters())


# ---------------------------------------------------------------- closed forms and their order


def test_full_rank_has_a_closed_form_of_its_own() -> None:
    """Without it, full-rank would have a noisier objective than mean-field, in silence."""
    model, guide, batch = pair("full-rank")
    kl = [ELBO(kl="auto").terms(model, guide, batch).logs["kl"] for _ in range(2)]
    torch.testing.assert_close(kl[0], kl[1], rtol=0, atol=0)
    with torch.no_grad():
        draws = [ELBO(particles=4000, kl="monte-carlo").terms(model, guide, batch).logs["kl"] for _ in range(10)]
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(10)
    assert bool(((mean - kl[0]).abs() < 5 * error).all())
    assert bool((error < 0.05).all())


def test_the_closed_form_is_not_taken_where_it_is_biased() -> None:
    """A bottom-up guide draws z1 before its parent in the model, z2: KL(q(z1) ‖ p(z1 | z2)) would fix a draw of z2."""
    model, guide, batch = pair("bottom-up")
    torch.manual_seed(0)
    auto = ELBO(kl="auto").terms(model, guide, batch).loss
    torch.manual_seed(0)
    monte_carlo = ELBO(kl="monte-carlo").terms(model, guide, batch).loss
    torch.testing.assert_close(auto, monte_carlo, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"would be biased.*different orders"):
        ELBO(kl="analytic").loss(model, guide, batch)


def test_what_the_refused_closed_form_would_have_been() -> None:
    """It is off by far more than its noise: the refusal is not for nothing. Top-down it is right."""
    from ppl_vae.objectives import elbo as module

    class Forced(module.ELBO):
        def weights(self, *args: object, **kwargs: object) -> object:
            return super().weights(*args, **kwargs)._replace(same_order=True)

    off = {}
    for name in ("bottom-up", "top-down"):
        model, guide, batch = pair(name)
        with torch.no_grad():
            # the two sites follow each other, in model and guide
            for layer in (model.to_z1, guide.to_z2) if name == "bottom-up" else (model.to_z1,):
                layer.weight.zero_()
                layer.bias.zero_()
                layer.weight[0, 0] = layer.weight[1, 1] = 1.0
            losses = [
                torch.stack([objective.terms(model, guide, batch).loss.mean() for _ in range(40)])
                for objective in (Forced(particles=500, kl="analytic"), ELBO(particles=500, kl="monte-carlo"))
            ]
        error = (losses[0].var() + losses[1].var()).div(40).sqrt()
        off[name] = ((losses[0].mean() - losses[1].mean()).abs() / error).item()
    assert off["bottom-up"] > 8
    assert off["top-down"] < 4


def test_no_closed_form_is_refused_by_name_where_one_was_asked_for() -> None:
    model = vae()
    model.latents["z"] = model.latents["z"]._replace(support=torch.distributions.constraints.positive)
    guide = guide_for(model)

    class Positive(Conditional):
        def forward(self, features: Tensor) -> object:
            import pyro.distributions as dist

            return dist.Gamma(features.new_full((*features.shape[:-1], 3), 2.0), 1.0).to_event(1)

    model.prior = Positive()
    assert math.isfinite(ELBO(kl="auto").loss(model, guide, binary_batch()))
    with pytest.raises(ValueError, match="kl='analytic': no closed form is known for site 'z'"):
        ELBO(kl="analytic").loss(model, guide, binary_batch())


@pytest.mark.parametrize("kl", ["auto", "monte-carlo"])
def test_elbo_over_classes_and_over_a_mixture_agrees_with_any_kl(kl: str) -> None:
    for name in ("class", "mixture"):
        model, guide, batch = pair(name)
        with torch.no_grad():
            draws = torch.stack([ELBO(particles=500, kl=kl).terms(model, guide, batch).loss for _ in range(16)])
            other = torch.stack(
                [ELBO(particles=500, kl="monte-carlo").terms(model, guide, batch).loss for _ in range(16)]
            )
        error = (draws.var(0) / 16 + other.var(0) / 16).sqrt()
        assert bool(((draws.mean(0) - other.mean(0)).abs() < 4.5 * error).all())


# ---------------------------------------------------------------- β, warm-up, logs


def test_beta_weighs_the_kl_and_leaves_the_logged_bound() -> None:
    model, guide, batch = pair("mean-field")
    terms = {}
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        terms[beta] = ELBO(beta).terms(model, guide, batch)
    for beta, (loss, logs) in terms.items():
        torch.testing.assert_close(loss, beta * logs["kl"] - logs["log_likelihood"])
        torch.testing.assert_close(logs["elbo"], terms[1.0].logs["elbo"])
        torch.testing.assert_close(logs["elbo"], logs["log_likelihood"] - logs["kl"])
    assert bool((terms[1.0].logs["kl"] > 0).all())


def test_the_warm_up_weight_multiplies_beta() -> None:
    model, guide, batch = pair("mean-field")
    warm, plain = ELBO(4.0), ELBO(1.0)
    warm.kl_weight.fill_(0.25)
    losses = []
    for objective in (warm, plain):
        torch.manual_seed(0)
        losses.append(objective.terms(model, guide, batch).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-14, atol=0)
    assert set(warm.state_dict()) == {"kl_weight"}


def test_beta_zero_is_an_autoencoder() -> None:
    """The prior and the guide's spread enter through the likelihood alone."""
    model, guide, batch = pair("mean-field")
    torch.manual_seed(0)
    loss, logs = ELBO(0.0).terms(model, guide, batch)
    torch.testing.assert_close(loss, -logs["log_likelihood"])
    assert bool(loss.isfinite().all())


@pytest.mark.parametrize("objective", [ELBO(), ELBO(particles=3), IWAE(1), IWAE(3), Renyi(0.5, 3)])
@pytest.mark.parametrize("name", ["mean-field", "bottom-up", "conditional"])
def test_logs_are_numbers_for_people(objective: Objective, name: str) -> None:
    model, guide, batch = pair(name)
    loss, logs = objective.terms(model, guide, batch)
    assert loss.requires_grad
    for log in logs.values():
        assert log.shape == (batch.size,)
        assert not log.requires_grad
    torch.testing.assert_close(logs["elbo"], logs["log_likelihood"] - logs["kl"])
    if "bound" in logs:
        torch.testing.assert_close(logs["bound"], -loss.detach())
        # Jensen, on the same draws
        assert objective.particles == 1 or bool((logs["bound"] > logs["elbo"] - 1e-9).all())


def test_losses_are_sums_over_the_batch() -> None:
    model, guide, batch = pair("mean-field")
    twice = Batch(x=batch.x.repeat(2, 1, 1, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        one = torch.stack([ELBO(particles=2000).differentiable_loss(model, guide, batch) for _ in range(4)])
        two = torch.stack([ELBO(particles=2000).differentiable_loss(model, guide, twice) for _ in range(4)])
    assert float(two.mean()) == pytest.approx(2 * float(one.mean()), rel=0.02)


def test_an_objective_says_what_it_is() -> None:
    assert repr(ELBO(2.0, 3, "analytic")) == "ELBO(beta=2, particles=3, kl='analytic')"
    assert repr(IWAE(7)) == "IWAE(particles=7)"
    assert repr(Renyi(0.25, 2)) == "Renyi(alpha=0.25, particles=2)"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("beta", [-0.1, -1, math.nan, math.inf, "1", None])
def test_beta_is_a_number_from_zero(beta: object) -> None:
    with pytest.raises(ValueError, match=f"beta={beta!r} must be a number, 0 or more"):
        ELBO(beta)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "5"])
def test_the_number_of_data_is_a_whole_number_from_one(size: object) -> None:
    with pytest.raises(ValueError, match=f"data_size={size!r} must be a whole number, 1 or more"):
        ELBO(data_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("particles", [0, -3, 1.0, 2.5, True, "5", None])
@pytest.mark.parametrize(
    "make",
    [lambda k: ELBO(particles=k), lambda k: IWAE(particles=k), lambda k: Renyi(0.5, particles=k)],
    ids=["elbo", "iwae", "renyi"],
)
def test_particles_are_a_whole_number_from_one(make: object, particles: object) -> None:
    with pytest.raises(ValueError, match=f"particles={particles!r} must be a whole number, 1 or more"):
        make(particles)  # type: ignore[operator]


def test_alpha_one_is_said_to_be_the_elbo() -> None:
    for alpha in (1, 1.0):
        with pytest.raises(ValueError, match=r"alpha=1 is the ELBO.*use the objective ELBO"):
            Renyi(alpha)
    for alpha in (math.nan, math.inf, "half"):
        with pytest.raises(ValueError, match=f"alpha={alpha!r} must be a finite number"):
            Renyi(alpha)  # type: ignore[arg-type]


def test_an_unknown_kl_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="kl='analytical' is not known; did you mean 'analytic'"):
        ELBO(kl="analytical")  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [IWAE(3), Renyi(0.5, 3)], ids=lambda o: type(o).__name__)
def test_a_site_shared_by_all_data_has_no_weight_of_each(objective: Objective) -> None:
    model, guide, batch = pair("global")
    with pytest.raises(ValueError, match="'w' lies outside of the data plate"):
        objective.loss(model, guide, batch)
    assert math.isfinite(ELBO().loss(model, guide, batch))


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), Renyi(0.5, 3)], ids=lambda o: type(o).__name__)
def test_a_draw_without_reparameterization_is_refused_by_name(objective: Objective) -> None:
    """The value would be right and the gradient wrong."""
    model = vae()
    with pytest.raises(ValueError, match=r"'z' is not reparameterized: .*ScoreFunction, Wake, ScoreClimbing or TVO"):
        objective.loss(model, PlainMixtureGuide(model), binary_batch())


@pytest.mark.parametrize("name", ["class", "mixture"])
@pytest.mark.parametrize("alpha", [-0.5, 0.5, 2.0])
def test_renyi_takes_its_expectation_over_enumerated_sites_exactly(name: str, alpha: float) -> None:
    """log (1/K) Σ_k Σ_c q(c) w_ck^(1-α) / (1-α), from the same draws."""
    model, guide, batch = pair(name)
    torch.manual_seed(0)
    ours = -Renyi(alpha, 3).terms(model, guide, batch).loss
    torch.manual_seed(0)
    w = log_weights(model, guide, batch, particles=3)
    q_c = w.log_guide["y" if name == "class" else "component"].exp()
    wanted = (q_c * (w.log_w * (1.0 - alpha)).exp()).sum(0).mean(0).log() / (1.0 - alpha)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_renyi_over_classes_is_iwae_at_zero() -> None:
    model, guide, batch = pair("class")
    losses = []
    for objective in (Renyi(0.0, 3), IWAE(3)):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, batch))
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)


class ScoresGiven(ELBO):
    scores_given = True


def test_an_objective_that_scores_draws_asks_whether_the_guide_can() -> None:
    model, guide, batch = pair("mean-field")
    ScoresGiven().loss(model, guide, batch)
    guide.scores_given = False
    with pytest.raises(ValueError, match="ScoresGiven scores draws that MeanField did not make"):
        ScoresGiven().loss(model, guide, batch)
    ELBO().loss(model, guide, batch)


def test_pyros_way_of_tracing_is_closed() -> None:
    with pytest.raises(NotImplementedError):
        ELBO()._get_trace(None, None, (), {})


# ---------------------------------------------------------------- gradients, and training to the known optimum


def test_gradients_of_the_stratified_mixture_are_those_of_its_true_elbo() -> None:
    """Finite differences of an ELBO by quadrature over a latent of one dimension."""
    from torch.distributions import Bernoulli, Normal

    torch.manual_seed(1)
    model = vae(latent=1)
    guide = MixtureGuide(model, components=2, latent=1)
    batch = binary_batch(2)
    parameters = list(guide.parameters())

    z = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    step = float(z[1] - z[0])
    with torch.no_grad():
        logits = model.decoder(z.reshape(-1, 1, 1)).squeeze(-4) + model.likelihood.offset
        log_p = Bernoulli(logits=logits).log_prob(batch.x).flatten(2).sum(-1) + Normal(0.0, 1.0).log_prob(z).unsqueeze(
            -1
        )
    log_weights, loc, scale = guide.parts(batch)
    log_q = (log_weights + Normal(loc[..., 0], scale[..., 0]).log_prob(z.reshape(-1, 1, 1))).logsumexp(-1)
    exact = (log_q.exp() * (log_p - log_q)).sum() * step
    wanted = torch.autograd.grad(exact, parameters)

    loss = ELBO(particles=40_000, kl="monte-carlo").differentiable_loss(model, guide, batch)
    torch.testing.assert_close(-loss, exact, rtol=0, atol=0.05)
    for ours, theirs in zip(torch.autograd.grad(-loss, parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


class LinearEncoder(Encoder):
    """x itself: the posterior mean of the oracle is linear in it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = DATA

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        return batch.x


def trained_gap(family: type[guides.Amortized], model: LinearGaussian) -> float:
    """KL(q ‖ p(z | x)) after training, averaged over the data: what the trained guide's ELBO falls short by."""
    torch.manual_seed(0)
    guide = family(model, LinearEncoder()).double()
    batch = Batch(x=model.simulate(64, seed=5))
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    steps = 600
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = ELBO(particles=8)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide, batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        q = guide.distribution(batch)["z"]
        full = MultivariateNormal(q.mean, q.variance.diag_embed()) if family is guides.MeanField else q
        return kl_divergence(full, model.posterior(batch.x)).mean().item()


def test_full_rank_beats_mean_field_by_the_known_gap_after_training() -> None:
    model = LinearGaussian(DATA, LATENT, seed=7)
    assert model.mean_field_gap() > 0.2
    assert trained_gap(guides.FullRank, model) == pytest.approx(0.0, abs=0.01)
    assert trained_gap(guides.MeanField, model) == pytest.approx(model.mean_field_gap(), abs=0.01)


def test_the_soft_bound_on_scales_is_wide_enough_for_the_oracle() -> None:
    raw = torch.linspace(-3, 3, 7)
    assert bool(((networks.soft_bound(raw) - raw).abs() < 0.2).all())
