"""Annealed importance sampling and its way back: unbiased, exact where it must be, and bounds that close in.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import dataclasses
import functools
import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GlobalWeight, SemiSupervised, TwoLayer, binary_batch, guide_for, vae
from torch import Tensor

from ppl_vae import Batch, LatentModel, LatentSpec, guides, likelihoods, models, networks
from ppl_vae.compiled import CompiledFunction
from ppl_vae.diagnose import Annealed, ais, bdmc
from ppl_vae.diagnose.annealing import _Path, _Run, schedule
from ppl_vae.errors import InputError
from ppl_vae.evaluate import log_marginal
from ppl_vae.mcmc import Coordinates
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


def oracle(n: int = 20, latent: int = 2) -> tuple[LinearGaussian, Tensor, Tensor]:
    """Model, x and log p(x)."""
    model = LinearGaussian(2 * latent, latent, seed=3)
    x = model.simulate(n, seed=4)
    return model, x, model.log_marginal(x)


class Counts(LatentModel):
    """z ~ Gamma(a, b), x ~ Poisson(z): x is negative binomial, and p(z | x) a Gamma."""

    shape, rate = 3.0, 1.5

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size(), dist.constraints.positive)}
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Gamma(self.shape * self.one, self.rate * self.one))
            x: Tensor = pyro.sample("x", dist.Poisson(z), obs=batch.x)
        return x

    def log_marginal(self, x: Tensor) -> Tensor:
        log_prob: Tensor = dist.NegativeBinomial(self.shape, probs=self.one / (1.0 + self.rate)).log_prob(x)
        return log_prob


def mean_weight(found: Annealed, exact: Tensor) -> float:
    """How many standard errors the mean of w / p(x) lies from 1, over chains and data, which are independent."""
    ratio = (found.log_w - exact).exp().flatten()
    return ((ratio.mean() - 1.0) / (ratio.std() / math.sqrt(len(ratio)))).item()


# ---------------------------------------------------------------- the schedule


def test_schedules() -> None:
    assert schedule(4, "linear").tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    beta = schedule(10)
    assert beta[0] == 0.0
    assert beta[-1] == 1.0
    assert (beta.diff() > 0).all()
    assert torch.allclose(beta + beta.flip(0), torch.ones_like(beta), atol=1e-15)  # as slow at one end as at the other
    s = [1 / (1 + math.exp(-4 * (2 * t / 10 - 1))) for t in range(11)]
    assert beta.tolist() == pytest.approx([(each - s[0]) / (s[-1] - s[0]) for each in s], abs=1e-12)


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("temperatures", [1, 2, 12])
def test_from_the_posterior_every_weight_is_the_marginal(temperatures: int) -> None:
    model, x, exact = oracle(5)
    guide = LinearGaussianPosterior(model)
    found = ais(model, x, guide=guide, temperatures=temperatures, chains=3, steps=3, seed=0)
    assert torch.allclose(found.log_w, exact.expand(3, 5), atol=1e-9)
    assert torch.allclose(found.log_px, exact, atol=1e-9)
    assert found.se.max() < 1e-9


def test_both_ways_from_the_posterior() -> None:
    model, *_ = oracle()
    both = bdmc(model, 4, guide=LinearGaussianPosterior(model), temperatures=12, chains=2, steps=3, seed=0)
    assert both.batch.x is not None
    exact = model.log_marginal(both.batch.x)
    assert torch.allclose(both.forward.log_px, exact, atol=1e-9)
    assert torch.allclose(both.reverse.log_px, exact, atol=1e-9)
    assert both.gap.abs().max() < 1e-9


def test_one_temperature_is_importance_sampling_from_the_start() -> None:
    model, x, _ = oracle(6)
    prior = guides_prior(model)
    found = ais(model, x, temperatures=1, chains=4000, seed=0)
    plain = log_marginal(model, prior, x, particles=4000, seed=1)
    # two independent estimates of 6 data: beyond 5 standard errors 3e-6 of the time
    assert ((found.log_px - plain.log_px).abs() < 5 * (found.se.square() + plain.se.square()).sqrt()).all()
    assert found.acceptance.tolist() == [0.0] * 6  # nothing moved
    ratio = (2 * found.log_w.logsumexp(0) - (2 * found.log_w).logsumexp(0)).exp()
    assert torch.allclose(found.ess, ratio)


def guides_prior(model: LinearGaussian) -> LinearGaussianPosterior:
    """q(z | x) = p(z)."""
    guide = LinearGaussianPosterior(model)
    guide.gain.zero_()
    guide.covariance.copy_(torch.eye(guide.covariance.shape[0]))
    return guide


# ---------------------------------------------------------------- in expectation


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_oracle(start: str) -> None:
    model, x, exact = oracle(40)
    guide = LinearGaussianPosterior(model, "diagonal") if start == "guide" else None
    found = ais(model, x, guide=guide, temperatures=30, chains=32, steps=5, seed=0)
    assert found.start == start
    assert not found.reversed
    assert (found.acceptance - 0.8).abs().max() < 0.15
    assert found.divergences.sum() < 0.02 * 40 * 32 * 29  # of the transitions
    # beyond 4 standard errors 6e-5 of the time
    assert abs(mean_weight(found, exact)) < 4.0
    estimate = found.estimate
    # log of the mean weight is too low by about se²/2, which is added to the error's bar
    assert abs(estimate.mean - exact.mean().item()) < 4.0 * estimate.se + found.se.square().mean().item()


@functools.cache
def few_or_many(temperatures: int) -> Annealed:
    model, x, _ = oracle(20, latent=4)
    return ais(model, x, temperatures=temperatures, chains=8, steps=5, seed=0)


def test_more_temperatures_come_nearer() -> None:
    _, _, exact = oracle(20, latent=4)
    few, many = (few_or_many(t) for t in (3, 60))
    assert (exact - few.log_px).mean() > 10 * (exact - many.log_px).mean().abs()
    assert few.ess.mean() < many.ess.mean()


def test_two_ways_enclose_the_marginal() -> None:
    model, *_ = oracle()
    both = bdmc(model, 60, temperatures=20, chains=8, steps=5, seed=1)
    assert both.batch.x is not None
    exact = model.log_marginal(both.batch.x)
    below, above = (exact - both.forward.log_px), (both.reverse.log_px - exact)
    for gap in (below, above):  # both are 0 or above in expectation: 2.3e-4 of the time each
        assert gap.mean() > -3.5 * gap.std() / math.sqrt(60)
    assert both.estimate.mean == pytest.approx((below + above).mean().item())
    # the way back is unbiased for 1 / p(x) only from draws of the posterior: beyond 4 standard errors 6e-5 of the time;
    # chains of one datum share their start, and are averaged first
    ratio = (both.reverse.log_w + exact).exp().mean(0)
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / math.sqrt(60)
    assert ratio.std() / math.sqrt(60) < 0.15
    # the same start would not do for both: the way back begins at the z that made x
    assert both.reverse.reversed
    assert both.latents["z"].shape == (60, 2)


@pytest.mark.slow
def test_bounds_hold_in_95_of_100_seeds() -> None:
    model = LinearGaussian(20, 10, seed=3)
    held, gaps = 0, []
    for seed in range(100):
        both = bdmc(model, 400, temperatures=50, chains=4, steps=5, seed=seed)
        assert both.batch.x is not None
        exact = model.log_marginal(both.batch.x).mean().item()
        forward, reverse = ((e.log_px - model.log_marginal(both.batch.x)) for e in (both.forward, both.reverse))
        se = [each.std().item() / math.sqrt(400) for each in (forward, reverse)]
        held += both.forward.estimate.mean - 2 * se[0] <= exact <= both.reverse.estimate.mean + 2 * se[1]
        gaps.append(both.estimate.mean)
    assert held >= 95
    assert min(gaps) > 0


@pytest.mark.slow
@pytest.mark.parametrize("latent", [2, 10, 50])
def test_the_oracle_in_many_dimensions(latent: int) -> None:
    model, x, exact = oracle(40, latent)
    found = ais(model, x, temperatures=2000 if latent > 10 else 500, chains=32, seed=0, compile=True)
    assert abs(mean_weight(found, exact)) < 4.0
    estimate = found.estimate
    assert abs(estimate.mean - exact.mean().item()) < 4.0 * estimate.se + found.se.square().mean().item()


@pytest.mark.slow
def test_bdmc_closes_in_ten_dimensions() -> None:
    both = bdmc(LinearGaussian(20, 10, seed=3), 100, temperatures=4000, seed=0, compile=True)
    assert both.estimate.mean < 0.05


def test_a_positive_latent() -> None:
    model = Counts()
    x = torch.arange(12.0, dtype=torch.float64)
    found = ais(model, x, temperatures=20, chains=100, steps=4, seed=2)
    assert abs(mean_weight(found, model.log_marginal(x))) < 4.0  # 6e-5 of the time
    # 12 data, 100 chains: Student's t, beyond 5 standard errors 3e-5 of the time
    assert ((found.log_px - model.log_marginal(x)).abs() < 5 * found.se).all()
    assert found.se.max() < 0.15


def test_layers_from_prior_and_from_a_guide_of_dependent_sites() -> None:
    torch.manual_seed(0)
    model, batch = TwoLayer(), binary_batch()
    encoder = networks.encoder("mlp", (1, 2, 3), (7,))
    guide = guides.TopDown(model, encoder).double()
    a = ais(model, batch, temperatures=15, chains=32, steps=3, seed=0)
    b = ais(model, batch, guide=guide, temperatures=15, chains=32, steps=3, seed=1)
    # 5 data: beyond 5 standard errors 3e-6 of the time
    assert ((a.log_px - b.log_px).abs() < 5 * (a.se.square() + b.se.square()).sqrt()).all()
    c = log_marginal(model, guide, batch, particles=4000, seed=0)
    assert ((a.log_px - c.log_px).abs() < 5 * (a.se.square() + c.se.square()).sqrt()).all()


def test_a_conditional_model_is_simulated_under_its_labels() -> None:
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", 2 + 3, (1, 2, 3), 1, (7,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli((1, 2, 3)), 2, networks.Condition(3))
    both = bdmc(model, Batch(y=torch.tensor([0, 2, 1])), temperatures=5, chains=2, seed=0)
    assert both.batch.y is not None
    assert both.batch.y.tolist() == [0, 2, 1]
    assert both.forward.log_px.shape == (3,)


# ---------------------------------------------------------------- what is said


def test_too_few_temperatures_are_told() -> None:
    model, x, _ = oracle(20, latent=4)
    few, many = (few_or_many(t) for t in (3, 60))
    said = [{each.check: each for each in found.verdicts()} for found in (few, many)]
    assert [each["annealing"].fault for each in said] == [True, False]
    assert "chains a datum count: log p(x) is about 0." in said[0]["annealing"].says
    assert said[0]["annealing"].advice
    assert said[1]["annealing moves"].fault is False
    alone = ais(model, x, temperatures=1, chains=1, seed=0)
    assert [each.fault for each in alone.verdicts()] == [None, None]
    assert alone.verdicts()[0].says.endswith("give chains=2 or more")


def test_chains_that_do_not_move_are_told() -> None:
    model, x, _ = oracle(4)
    found = ais(model, x, temperatures=5, chains=2, steps=2, seed=0)
    stuck = dataclasses.replace(found, acceptance=torch.full_like(found.acceptance, 0.1))
    assert {each.check: each.fault for each in stuck.verdicts()}["annealing moves"] is True


def test_bounds_that_are_far_apart_are_told() -> None:
    model, *_ = oracle()
    far = bdmc(model, 30, temperatures=3, chains=4, steps=5, seed=1)
    near = bdmc(model, 30, guide=LinearGaussianPosterior(model, "diagonal"), temperatures=20, chains=4, steps=5, seed=1)
    said = [{each.check: each for each in found.verdicts()} for found in (far, near)]
    assert [each["BDMC gap"].fault for each in said] == [True, False]
    assert [each["BDMC order"].fault for each in said] == [False, False]
    assert all(each["BDMC gap"].speaks_of == "data that the model makes" for each in said)
    above = far.reverse.log_px + 0.5 + 0.1 * torch.randn(30, dtype=torch.float64)
    first = dataclasses.replace(far, forward=dataclasses.replace(far.forward, log_px=above)).verdicts()[0]
    assert (first.check, first.fault) == ("BDMC order", True)
    assert "the lower bound lies above the upper one" in first.says


def test_bounds_that_cannot_be_told_say_of_how_many_data_they_could() -> None:
    model, *_ = oracle()
    far = bdmc(model, 30, temperatures=3, chains=4, steps=5, seed=1)
    # a mean gap of 0.15 with standard deviation 0.5: 2.326² 0.5² / 0.05² = 541.2 data
    gap = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)
    gap = 0.15 + 0.5 * gap / gap.std()
    moved = dataclasses.replace(far, reverse=dataclasses.replace(far.reverse, log_px=far.forward.log_px + gap))
    said = {each.check: each for each in moved.verdicts()}["BDMC gap"]
    assert said.fault is None
    assert said.says.endswith("whether that is more than 0.1 would be told of about 542 data")
    alone = bdmc(model, 1, temperatures=3, chains=2, seed=0)
    assert [each.fault for each in alone.verdicts()] == [None, None]
    assert all(each.says.endswith("give data=2 or more") for each in alone.verdicts())


def test_pictures_and_numbers() -> None:
    model, x, _ = oracle(6)
    found = ais(model, Batch(x=x, rows=torch.arange(6) + 3), temperatures=5, chains=4, steps=2, seed=0)
    numbers = found.to_dataset()
    assert dict(numbers.sizes) == {"chain": 4, "datum": 6}
    assert numbers["log_px"].sel(datum=4).item() == found.log_px[1].item()
    (picture,) = found.pictures()
    assert len(picture.figure.axes[1].patches) == 6
    both = bdmc(model, 5, temperatures=5, chains=4, steps=2, seed=0)
    assert dict(both.to_dataset().sizes) == {"datum": 5}
    (bounds,) = both.pictures()
    assert [len(line.get_xdata()) for line in bounds.figure.axes[0].lines[1:]] == [5, 5]
    for each in (found, both):
        json.dumps(each.to_json(), allow_nan=False)
        json.dumps([verdict.to_json() for verdict in each.verdicts()], allow_nan=False)
        assert all(part.alt and part.caption for part in each.pictures())


# ---------------------------------------------------------------- how it runs


def test_parts_of_the_density_are_kept_and_not_computed_again() -> None:
    """One pass through model and guide for each leapfrog step, and one at the start."""
    _, x, _ = oracle(3)
    runs = 0

    class Counted(LinearGaussian):
        def forward(self, batch: Batch) -> Tensor:
            nonlocal runs
            runs += 1
            return super().forward(batch)

    counted = Counted(4, 2, seed=3)
    path = _Path(Coordinates(counted, Batch(x=x)), None, 5)
    runs = 0
    torch.manual_seed(0)
    packed = path.state(Batch(x=x), torch.randn(4, 3, 2, dtype=torch.float64)).packed()
    beta, step, mass = torch.tensor(0.3), torch.full((3,), 0.3), torch.ones(3, 2)
    for _ in range(3):
        packed = path(Batch(x=x), packed, *(t.double() for t in (beta, step, mass)))[1][..., :-2]
    assert runs == 1 + 3 * 5
    again = path.state(Batch(x=x), packed[..., :2]).packed()
    torch.testing.assert_close(packed, again, rtol=0, atol=1e-12)


def test_pieces_seeds_and_progress() -> None:
    model, x, exact = oracle(7)
    settings = {"temperatures": 6, "chains": 4, "steps": 2, "seed": 0}
    seen: list[tuple[int, int]] = []
    whole = ais(model, x, **settings, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = ais(model, x, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole.log_w, again.log_w)
    assert not torch.equal(whole.log_w, ais(model, x, **{**settings, "seed": 1}).log_w)
    parts = ais(model, x, **settings, chunk=12)  # 3 data at once, and one at the end
    assert parts.log_w.shape == whole.log_w.shape
    assert abs(mean_weight(ais(model, x, **{**settings, "chains": 60}, chunk=240), exact)) < 4.0


def test_chains_of_the_pilot_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step sizes depend on them, and weights of the same chains would not be unbiased."""
    seen: dict[str, Tensor] = {}
    pilot, walk = _Run._pilot, _Run._walk

    def watched_pilot(self: _Run, move: Any, batch: Batch, position: Tensor, *rest: Any) -> Tensor:
        seen["pilot"] = position.clone()
        return pilot(self, move, batch, position, *rest)

    def watched_walk(self: _Run, move: Any, batch: Batch, position: Tensor, *rest: Any) -> Any:
        seen["walk"] = position.clone()
        return walk(self, move, batch, position, *rest)

    monkeypatch.setattr(_Run, "_pilot", watched_pilot)
    monkeypatch.setattr(_Run, "_walk", watched_walk)
    model, x, _ = oracle(3)
    ais(model, x, temperatures=3, chains=4, steps=1, seed=0)
    assert seen["pilot"].shape == seen["walk"].shape == (4, 3, 2)
    assert not torch.isin(seen["walk"], seen["pilot"]).any()


def test_a_traced_transition_is_the_eager_one() -> None:
    model, x, _ = oracle(3)
    for guide in (None, LinearGaussianPosterior(model, "diagonal")):
        path = _Path(Coordinates(model, Batch(x=x)), guide, 3)
        torch.manual_seed(0)
        packed = path.state(Batch(x=x), path.coordinates.start(4)).packed()
        args = (torch.tensor(0.3), torch.full((3,), 0.1), torch.ones(3, 2))
        found = []
        for backend in ("none", "graph"):
            torch.manual_seed(1)
            found.append(CompiledFunction(path, backend)(Batch(x=x), packed, *(a.double() for a in args)))
        assert torch.allclose(*found, atol=1e-12)


def test_parameters_get_no_gradients() -> None:
    model, batch = vae(), binary_batch()
    ais(model, batch, guide=guide_for(model), temperatures=3, chains=2)
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- bad input


def test_sites_that_have_no_path() -> None:
    with pytest.raises(InputError, match="'y' is discrete"):
        ais(SemiSupervised(), binary_batch())
    with pytest.raises(InputError, match="shared by all data"):
        ais(GlobalWeight(), binary_batch())


def test_guides_that_do_not_score() -> None:
    model, batch = vae(), binary_batch()

    class Blind(type(guide_for(model))):  # type: ignore[misc]
        scores_given = False

    blind = Blind(model, networks.encoder("mlp", (1, 2, 3), (7,))).double()
    with pytest.raises(InputError, match="scores_given"):
        ais(model, batch, guide=blind)

    def more(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 1.0).to_event(1))

    with pytest.raises(InputError, match="do not draw the same sites: 'a'"):
        ais(model, batch, guide=more)


@pytest.mark.parametrize(
    ("name", "value"), [("temperatures", 0), ("chains", 0), ("steps", 1.5), ("chunk", 0), ("target", 1.0)]
)
def test_numbers_out_of_range(name: str, value: object) -> None:
    model, x, _ = oracle(2)
    with pytest.raises(InputError, match=name):
        ais(model, x, **{name: value})  # type: ignore[arg-type]


class Unsampled(LinearGaussian):
    def forward(self, batch: Batch) -> Tensor:
        if batch.x is None:
            raise NotImplementedError("no sampler")
        return super().forward(batch)


def test_other_bad_input() -> None:
    model, x, _ = oracle(2)
    with pytest.raises(InputError, match="did you mean 'linear'"):
        ais(model, x, kind="linaer")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="data are simulated here"):
        bdmc(model, Batch(x=x))
    with pytest.raises(InputError, match=r"Unsampled does not generate x from its prior.*: no sampler"):
        bdmc(Unsampled(4, 2))
    with pytest.raises(InputError, match="data=0"):
        bdmc(model, 0)
    with pytest.raises(InputError, match="must be finite"):
        ais(model, torch.full_like(x, math.nan))
    model.bias.fill_(math.nan)
    with pytest.raises(InputError, match="the model does not run on these data"):
        ais(model, x, temperatures=3, chains=2)


def test_a_weight_that_is_no_number() -> None:
    class Breaks(LinearGaussian):
        def forward(self, batch: Batch) -> Tensor:
            x = super().forward(batch)
            self.bias.fill_(math.nan)  # after the first run, whose validation would tell
            return x

    with pytest.raises(InputError, match="the log-weight of chain 0 for datum 0 of a batch of 2 is nan"):
        ais(Breaks(), torch.zeros(2, 5).double(), temperatures=3, chains=2)
