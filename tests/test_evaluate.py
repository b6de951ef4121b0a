"""Evaluation against the linear-Gaussian oracle, whose log p(x) and posterior are exact, and against sums by hand."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import IWAE, Batch, InputError, guides, likelihoods, log_weights, models, networks
from ppl_vae.core import Guide, LatentModel, LatentSpec
from ppl_vae.data import DataSet
from ppl_vae.evaluate import (
    active_units,
    bits_per_dimension,
    chunked,
    effective_sample_size,
    elbo,
    encode,
    evaluate,
    importance,
    kl_by_dimension,
    log_marginal,
    reconstruct,
    sample,
)
from ppl_vae.networks import set_precision
from ppl_vae.psis import pareto_khat
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

ROOT = Path(__file__).resolve().parents[1]


def vae_pair(
    guide: str = "mean-field", shape: tuple[int, ...] = (1, 4, 4), latent: int = 3
) -> tuple[models.VAE, Guide]:
    model = models.VAE(networks.decoder("mlp", latent, shape, 1, (8,)), likelihoods.Bernoulli(shape), latent)
    q = guides.guides.get(guide)(model, networks.encoder("mlp", shape, (8,)))  # type: ignore[call-arg]
    return model, q


def binary(n: int, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    return (torch.rand(n, *shape) < 0.4).float()


def parallel_gaussian() -> LinearGaussian:
    """An oracle whose two latents do nearly the same: their posterior correlation is beyond -0.9."""
    model = LinearGaussian(data=5, latent=2, sigma=0.3)
    model.weight[:, 1] = model.weight[:, 0] + 0.3 * model.weight[:, 1]
    return model


# -- log p(x) on the oracle ----------------------------------------------------------------------------------------


def test_exact_posterior_gives_log_px_without_error() -> None:
    model = LinearGaussian()
    x = model.simulate(50)
    got = log_marginal(model, LinearGaussianPosterior(model), x, particles=1000)
    torch.testing.assert_close(got.log_px, model.log_marginal(x), rtol=0, atol=1e-10)
    assert got.se.max() < 1e-12
    assert (got.khat == -math.inf).all()
    assert not got.unreliable.any()
    torch.testing.assert_close(got.ess, torch.full_like(got.ess, 1000.0), rtol=1e-10, atol=0)


def test_widened_posterior_is_within_its_error_everywhere() -> None:
    """The largest of 200 standard normal errors exceeds 4 once in 80 seeds."""
    model = LinearGaussian()
    x = model.simulate(200)
    got = log_marginal(model, LinearGaussianPosterior(model, widen=1.2), x, particles=10_000, seed=1)
    error = got.log_px - model.log_marginal(x)
    assert (error.abs() < 4 * got.se).all()
    assert not got.unreliable.any()
    assert abs(got.mean - model.log_marginal(x).mean().item()) < 4 * got.mean_se
    # what other data would give is another matter
    assert got.estimate.data_se > 100 * got.mean_se


def test_intervals_cover_as_often_as_they_say() -> None:
    """Of 2,000 intervals of 95% the share that covers has the standard deviation 0.5%."""
    model = LinearGaussian()
    x = model.simulate(2000, seed=3)
    got = log_marginal(model, LinearGaussianPosterior(model, widen=1.2), x, particles=2000, seed=2)
    covered = ((got.log_px - model.log_marginal(x)).abs() < 1.96 * got.se).double().mean().item()
    assert 0.93 < covered < 0.97


def test_infinite_weight_variance_is_marked() -> None:
    """The mean-field q of a posterior with correlation ρ has weights of tail index |ρ|, and an infinite variance
    beyond ½: their standard error says nothing, and k-hat says so."""
    model = parallel_gaussian()
    guide = LinearGaussianPosterior(model, "diagonal")
    variance_is_finite = torch.linalg.eigvalsh(2 * model.precision - torch.linalg.inv(guide.covariance)) > 0
    assert not variance_is_finite.all()
    x = model.simulate(100)
    got = log_marginal(model, guide, x, particles=5000, seed=0)
    assert got.khat.mean() > 0.7
    assert got.unreliable.double().mean() > 0.5
    assert torch.equal(got.unreliable, got.khat > 0.7)
    assert got.ess.median() < 0.2 * 5000
    # the error is larger than stated for many more than the 5% that the intervals promise
    wrong = (got.log_px - model.log_marginal(x)).abs() > 1.96 * got.se
    assert wrong.double().mean() > 0.2
    wide = log_marginal(model, LinearGaussianPosterior(model, widen=1.5), x, particles=5000, seed=0)
    assert not wide.unreliable.any()


def test_agrees_with_all_weights_at_once() -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model, "diagonal", widen=1.3)
    x = model.simulate(20)
    got = log_marginal(model, guide, x, particles=800, seed=5, chunk=10**9)
    torch.manual_seed(5)
    log_w = log_weights(model, guide, Batch(x=x), particles=800).log_w
    torch.testing.assert_close(got.log_px, log_w.logsumexp(0) - math.log(800), rtol=1e-12, atol=1e-12)
    w = log_w.exp()
    torch.testing.assert_close(got.se, w.std(0) / w.mean(0) / math.sqrt(800), rtol=1e-10, atol=0)
    torch.testing.assert_close(got.khat, pareto_khat(log_w), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.ess, effective_sample_size(log_w), rtol=1e-10, atol=0)
    torch.testing.assert_close(effective_sample_size(log_w), w.sum(0).square() / w.square().sum(0))


# -- in pieces -----------------------------------------------------------------------------------------------------


def table_of_weights(monkeypatch: pytest.MonkeyPatch, table: Tensor) -> None:
    """Let the k-th particle of datum n have the weight table[k, n], however they are asked for."""
    drawn: dict[int, int] = {}

    def look_up(model: object, guide: object, batch: Batch, particles: int) -> object:
        rows = batch.rows
        assert rows is not None
        first = int(rows[0])
        k = drawn.get(first, 0)
        drawn[first] = k + particles
        real = log_weights(model, guide, batch, particles=particles)  # type: ignore[arg-type]
        zero = {"z": torch.zeros(particles, len(rows), dtype=torch.float64)}
        part = table[k : k + particles, rows]
        return real._replace(log_likelihood=part, log_prior=zero, log_guide=zero)

    monkeypatch.setattr(importance, "log_weights", look_up)


@pytest.mark.parametrize("chunk", [1, 7, 60, 61, 150, 359, 360])
def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Equal weights in pieces of any size: pieces of particles, of data, or of single weights."""
    table = 3 * torch.randn(60, 6, dtype=torch.float64) + torch.linspace(-2000, 2000, 6, dtype=torch.float64)
    table[7, 3] = -math.inf
    table[:20, 4] -= 900.0  # the first pieces weigh nothing beside the later ones
    table[20:, 5] = -math.inf
    model = LinearGaussian()
    batch = Batch(x=model.simulate(6), rows=torch.arange(6))
    table_of_weights(monkeypatch, table)
    got = log_marginal(model, LinearGaussianPosterior(model), batch, particles=60, chunk=chunk)
    torch.testing.assert_close(got.log_px, table.logsumexp(0) - math.log(60), rtol=1e-13, atol=1e-12)
    w = (table - table.amax(0)).exp()
    torch.testing.assert_close(got.se, w.std(0) / w.mean(0) / math.sqrt(60), rtol=1e-11, atol=0)
    torch.testing.assert_close(got.ess, effective_sample_size(table), rtol=1e-11, atol=0)
    assert torch.equal(got.khat, pareto_khat(table))
    assert torch.equal(got.unreliable, ~(got.khat <= 0.7))


@pytest.mark.parametrize("chunk", [1, 13, 10**6])
def test_the_bound_in_pieces(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    table = torch.randn(40, 6, dtype=torch.float64) - 1000
    model = LinearGaussian()
    batch = Batch(x=model.simulate(6), rows=torch.arange(6))
    table_of_weights(monkeypatch, table)
    got = elbo(model, LinearGaussianPosterior(model), batch, particles=40, chunk=chunk)
    torch.testing.assert_close(got.elbo, table.mean(0), rtol=1e-14, atol=1e-11)
    torch.testing.assert_close(got.elbo_se, table.std(0) / math.sqrt(40), rtol=1e-9, atol=0)


def test_parts_of_the_data_equal_the_whole() -> None:
    """Nothing is lost with the last batch, and nothing is averaged over batches: with a guide of no variance each
    datum's numbers are the same in any company, and with one particle draws are per datum."""
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    x = model.simulate(23)
    whole = log_marginal(model, guide, x, particles=30, chunk=150)
    parts = [log_marginal(model, guide, x[a : a + 10], particles=30, chunk=70) for a in (0, 10, 20)]
    assert len(whole.log_px) == 23
    torch.testing.assert_close(torch.cat([p.log_px for p in parts]), whole.log_px, rtol=0, atol=1e-12)
    means = [p.mean * len(p.log_px) for p in parts]
    assert sum(means) / 23 == pytest.approx(whole.mean, abs=1e-12)
    units = [encode(model, guide, x[a : a + 10], chunk=4).means["z"] for a in (0, 10, 20)]
    torch.testing.assert_close(torch.cat(units), encode(model, guide, x).means["z"], rtol=0, atol=1e-12)


def test_asking_for_fewer_particles_than_a_piece_gives_fewer() -> None:
    calls: list[tuple[int, int]] = []
    model = LinearGaussian()
    got = log_marginal(
        model,
        LinearGaussianPosterior(model, widen=1.2),
        model.simulate(5),
        particles=7,
        chunk=16,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert got.particles == 7
    assert (got.ess <= 7).all()
    assert (got.khat == math.inf).all()  # too few to say
    assert got.unreliable.all()
    assert calls == [(14, 35), (28, 35), (35, 35)]


def test_the_size_of_pieces_follows_what_a_pair_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(shape: tuple[int, ...], particles: int) -> chunked.Chunk:
        model, guide = vae_pair(shape=shape)
        source = chunked.Source(binary(50, shape), model, guide)

        def work(batch: Batch, k: int) -> object:
            return log_weights(model, guide, batch, particles=k)

        with chunked.evaluation(model, guide):
            return chunked.chunk_for(work, source, particles, None)

    monkeypatch.setitem(chunked.BUDGET, "cpu", 4 << 20)
    small, large = size((1, 4, 4), 10**9), size((1, 32, 32), 10**9)
    assert small.rows == large.rows == 1
    assert 20 < small.particles / large.particles < 100
    # a pixel takes a logit and a few temporaries of 4 bytes each
    assert 4 < (4 << 20) / (large.particles * 32 * 32 * 4) < 20
    few = size((1, 32, 32), 10)
    assert few.particles == 10
    assert 1 < few.rows < 50
    assert size((1, 4, 4), 1) == (50, 1)


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_number_of_particles() -> None:
    """5,000 particles of 784 pixels: 500 MB beyond what 50 take, at most, in any number; a datum adds its results, 40
    bytes. (10,000 images of 784 pixels are 31 MB themselves.)"""
    code = """
import resource, torch
from ppl_vae import guides, likelihoods, models, networks
from ppl_vae.evaluate import log_marginal
shape = (1, 28, 28)
model = models.VAE(networks.decoder("mlp", 20, shape, 1, (64,)), likelihoods.Bernoulli(shape), 20)
guide = guides.FullRank(model, networks.encoder("mlp", shape, (64,)))
x = (torch.rand(10_000, *shape) < 0.3).float()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
log_marginal(model, guide, x[:4], 50)
print(peak())
log_marginal(model, guide, x[:40], 5000)
print(peak())
log_marginal(model, guide, x, 20)
log_marginal(model, guide, x[:1], 200_000)
print(peak())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    start, usual, most = map(float, done.stdout.split())
    assert most < 2000
    assert usual - start < 500
    assert most - start < 500


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_data() -> None:
    """The C heap stays whole over hundreds of pieces, with two threads: between the 40th and the 200th datum of 784
    pixels and 5,000 particles the process grows by less than 20 MB. (With pieces of 128 MiB, and small results left
    lying between them, it was seen to grow from 651 to 733 MB over 190 data.)"""
    code = """
import resource, torch
from ppl_vae import guides, likelihoods, models, networks
from ppl_vae.evaluate import log_marginal
torch.set_num_threads(2)
shape = (1, 28, 28)
model = models.VAE(networks.decoder("mlp", 50, shape, 1, (200, 200)), likelihoods.Bernoulli(shape), 50)
guide = guides.MeanField(model, networks.encoder("mlp", shape, (200, 200)))
x = (torch.rand(200, *shape) < 0.3).float()
peaks = {}
def progress(done, total):
    peaks[5 * done // total] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
log_marginal(model, guide, x, 5000, progress=progress)
print(peaks[0], peaks[5])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    early, late = map(float, done.stdout.split())
    assert late - early < 20
    assert late < 2000


# -- what it leaves as it was --------------------------------------------------------------------------------------


def test_seeds_and_the_callers_state() -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model, widen=1.2)
    x = model.simulate(5)
    model.train()
    guide.eval()
    state = torch.get_rng_state()
    first = log_marginal(model, guide, x, 20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(log_marginal(model, guide, x, 20, seed=3).log_px, first.log_px)
    assert not torch.equal(log_marginal(model, guide, x, 20, seed=4).log_px, first.log_px)
    assert torch.equal(torch.get_rng_state(), state)
    log_marginal(model, guide, x, 20)
    assert not torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not guide.training
    assert torch.is_grad_enabled()
    assert not first.log_px.requires_grad


def test_dropout_is_off() -> None:
    model, _ = vae_pair()
    body = networks.encoder("mlp", (1, 4, 4), (8,))
    body.encoder_body = torch.nn.Sequential(body.encoder_body, torch.nn.Dropout(0.5))
    guide = guides.MeanField(model, body)
    x = binary(6)
    assert torch.equal(encode(model, guide, x).means["z"], encode(model, guide, x).means["z"])
    assert guide.training


# -- enumerated classes --------------------------------------------------------------------------------------------


class ClassModel(LatentModel):
    """A class c ~ Categorical, then z | c ~ N(m_c, 1) and x | z ~ N(z, 1): log p(x) is a mixture's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("probs", torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
        self.register_buffer("centers", torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64))
        self.latents = {"c": LatentSpec(torch.Size([])), "z": LatentSpec(torch.Size([]), parents=("c",))}

    probs: Tensor
    centers: Tensor

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            c = pyro.sample("c", dist.Categorical(self.probs))
            z = pyro.sample("z", dist.Normal(self.centers[c], 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x)  # type: ignore[no-any-return]

    def log_px(self, x: Tensor) -> Tensor:
        log_p = dist.Normal(self.centers, math.sqrt(2.0)).log_prob(x.unsqueeze(-1)) + self.probs.log()
        return log_p.logsumexp(-1)


class ClassGuide(Guide):
    """z given c exactly, c by fixed probabilities that are wrong, which an enumeration does not mind."""

    def __init__(self, model: ClassModel) -> None:
        super().__init__()
        self.register_buffer("centers", model.centers.clone())

    centers: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.x is not None
        probs = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
        with pyro.plate("data", batch.size, dim=-1):
            c = pyro.sample("c", dist.Categorical(probs), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal((batch.x + self.centers[c]) / 2, math.sqrt(0.5)))
        return {"c": c, "z": z}


@pytest.mark.parametrize("chunk", [None, 7])
def test_enumerated_classes_are_summed(chunk: int | None) -> None:
    model = ClassModel()
    guide = ClassGuide(model)
    x = torch.linspace(-6, 6, 9, dtype=torch.float64)
    got = log_marginal(model, guide, x, particles=50, chunk=chunk)
    torch.testing.assert_close(got.log_px, model.log_px(x), rtol=0, atol=1e-12)
    assert (got.khat == -math.inf).all()
    bound = elbo(model, guide, x, particles=50, chunk=chunk)
    joint = dist.Normal(model.centers, math.sqrt(2.0)).log_prob(x.unsqueeze(-1)) + model.probs.log()
    q = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(bound.elbo, (q * (joint - q.log())).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(bound.log_likelihood - bound.kl, bound.elbo, rtol=0, atol=1e-12)


def test_a_likelihood_that_no_class_enters_is_no_sum_over_data() -> None:
    """c → z → x with z drawn whatever c is: log p(x | z) has no dimension of classes, as its weights q(c | x) have."""

    class Independent(ClassGuide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            assert batch.x is not None
            probs = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
            with pyro.plate("data", batch.size, dim=-1):
                c = pyro.sample("c", dist.Categorical(probs), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(batch.x / 2, math.sqrt(0.5)))
            return {"c": c, "z": z}

    model = ClassModel()
    x = torch.linspace(-6, 6, 9, dtype=torch.float64)
    bound = elbo(model, Independent(model), x, particles=4000, seed=0)
    # E[log N(x; z, 1)] with z ~ N(x/2, 1/2)
    wanted = -0.5 * (x.square() / 4 + 0.5) - 0.5 * math.log(2 * math.pi)
    assert ((bound.log_likelihood - wanted).abs() < 4.5 * bound.log_likelihood_se).all()  # 6e-5 of the time
    assert bound.log_likelihood_se.max() < 0.1
    assert (bound.kl > 0).all()
    torch.testing.assert_close(bound.log_likelihood - bound.kl, bound.elbo, rtol=0, atol=1e-12)


def test_codes_by_draws_leave_classes_out() -> None:
    model = ClassModel()
    x = torch.linspace(-6, 6, 9, dtype=torch.float64)
    code = encode(model, ClassGuide(model), x, draws=4000, chunk=5000, seed=0)
    assert list(code.means) == ["z"]
    assert code.draws == 4000
    q = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    center = (q * model.centers).sum()
    wanted = (x + center) / 2
    scale = (0.5 + (q * (model.centers - center).square()).sum() / 4).sqrt().expand(9)
    assert ((code.means["z"] - wanted).abs() < 4 * scale / math.sqrt(4000)).all()
    torch.testing.assert_close(code.scales["z"], scale, rtol=0.05, atol=0)
    averaged = reconstruct(model, ClassGuide(model), x, draws=4000, seed=0)
    assert ((averaged - wanted).abs() < 4 * scale / math.sqrt(4000)).all()


@pytest.mark.parametrize("name", [name for name in programs.PAIRS if name != "global"])
def test_every_pair_has_the_objectives_convention(name: str) -> None:
    """On equal draws log p(x) is the importance-weighted bound, and the bound the one that it logs."""
    model, guide, batch = programs.pair(name)
    got = evaluate(model, guide, batch, particles=30, chunk=10**6, seed=2)
    torch.manual_seed(2)
    with torch.no_grad():
        logs = IWAE(30).terms(model, guide, batch).logs
    torch.testing.assert_close(got.log_marginal.log_px, logs["bound"], rtol=1e-12, atol=1e-12)
    assert got.elbo.mean == pytest.approx(logs["elbo"].mean().item(), rel=1e-12)
    assert got.kl.mean == pytest.approx(logs["kl"].mean().item(), rel=1e-10)
    assert (got.kl_by_dimension is None) == (name in ("top-down", "bottom-up", "class", "mixture"))
    assert sum(v.numel() for v in got.active_units.variances.values()) >= 2
    json.dumps(got.to_json(), allow_nan=False)


def test_of_latents_shared_by_all_data_each_datum_is_predicted() -> None:
    """log E_q(w)[p(x | w)] by the same draws, and its bound, in which w's divergence is no part."""
    model, guide, batch = programs.pair("global")
    got = evaluate(model, guide, batch, particles=30, chunk=10**6, seed=2)
    torch.manual_seed(2)
    with torch.no_grad():
        w = log_weights(model, guide, batch, particles=30)
        log_w = w.log_likelihood + w.log_prior["z"] - w.log_guide["z"]
    assert got.log_marginal.shared == ("w",)
    torch.testing.assert_close(got.log_marginal.log_px, log_w.logsumexp(0) - math.log(30), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.bound.elbo, log_w.mean(0), rtol=1e-12, atol=1e-12)
    # draws of w are the same for all data: their errors do not average out
    assert got.elbo.se == pytest.approx(float(got.bound.elbo_se.mean()))
    assert set(got.active_units.variances) == {"z"}
    assert got.to_json()["given"] == ["w"]


# -- the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["full", "diagonal"])
def test_the_bound_falls_short_by_the_known_kl(family: str) -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model, family, widen=1.1)  # type: ignore[arg-type]
    x = model.simulate(40)
    got = elbo(model, guide, x, particles=1000, seed=0)
    wanted = model.log_marginal(x) - guide.kl_to_posterior()
    assert ((got.elbo - wanted).abs() < 4 * got.elbo_se).all()
    prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(guide.distribution(Batch(x=x))["z"], prior)
    assert ((got.kl - kl).abs() < 4 * got.kl_se).all()
    assert abs(got.estimates["elbo"].mean - wanted.mean().item()) < 4 * got.estimates["elbo"].se
    assert elbo(model, guide, x).elbo_se.isnan().all()  # one draw has no spread


# -- latents -------------------------------------------------------------------------------------------------------


def test_kl_by_dimension_sums_to_the_kl_of_a_mean_field_guide() -> None:
    model, guide = vae_pair()
    x = binary(30)
    got = kl_by_dimension(model, guide, x, chunk=7)
    with torch.no_grad():
        q = guide.distribution(Batch(x=x))["z"]
        prior = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        wanted = torch.distributions.kl_divergence(q, prior)
    assert got.values["z"].shape == (30, 3)
    torch.testing.assert_close(got.values["z"].sum(-1), wanted)
    torch.testing.assert_close(got.mean["z"], got.values["z"].mean(0))
    torch.testing.assert_close(got.data_se["z"], got.values["z"].std(0) / math.sqrt(30))


def test_kl_by_dimension_of_a_full_rank_guide_is_of_its_marginals() -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    x = model.simulate(10)
    got = kl_by_dimension(model, guide, x)
    mean, variance = model.posterior_mean(x), guide.covariance.diagonal()
    torch.testing.assert_close(got.values["z"], 0.5 * (variance + mean.square() - 1 - variance.log()))
    prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    total = torch.distributions.kl_divergence(guide.distribution(Batch(x=x))["z"], prior)
    correlation = 0.5 * (variance.log().sum() - torch.logdet(guide.covariance))
    torch.testing.assert_close(got.values["z"].sum(-1), total - correlation)


def test_kl_by_dimension_says_where_it_has_no_closed_form() -> None:
    model = ClassModel()
    with pytest.raises(InputError, match="depends on c"):
        kl_by_dimension(model, ClassGuide(model), torch.zeros(3, dtype=torch.float64))
    oracle = LinearGaussian()

    class Drawn(LinearGaussianPosterior):
        distribution = Guide.distribution  # type: ignore[assignment]

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            with pyro.plate("data", batch.size, dim=-1):
                return {"z": pyro.sample("z", LinearGaussianPosterior.distribution(self, batch)["z"])}

    drawn = Drawn(oracle)
    x = oracle.simulate(40)
    with pytest.raises(InputError, match="Drawn"):
        kl_by_dimension(oracle, drawn, x)
    # by draws the active units are the same up to their noise
    exact = active_units(oracle, LinearGaussianPosterior(oracle), x)
    noisy = active_units(oracle, drawn, x, draws=500, seed=0)
    torch.testing.assert_close(noisy.variances["z"], exact.variances["z"], rtol=0.1, atol=0)


def test_active_units_of_a_model_with_known_ones() -> None:
    """Two latents of five reach x; the posterior means of the others are 0 whatever x is."""
    model = LinearGaussian(data=6, latent=5, sigma=0.5)
    model.weight[:, 2:] = 0.0
    x = model.simulate(4000)
    got = active_units(model, LinearGaussianPosterior(model), x)
    assert got.active["z"].tolist() == [True, True, False, False, False]
    assert got.count == 2
    assert got.undecided == 0
    assert got.n == 4000
    # Var_x E[z | x] = I - S over the model's own data
    wanted = 1 - torch.linalg.inv(model.precision).diagonal()
    assert ((got.variances["z"] - wanted).abs()[:2] < 4 * got.se["z"][:2]).all()
    assert active_units(model, LinearGaussianPosterior(model), x, threshold=2.0).count == 0


def test_the_error_of_active_units_is_that_of_repetitions() -> None:
    model = LinearGaussian(data=3, latent=1)
    guide = LinearGaussianPosterior(model)
    got = [active_units(model, guide, model.simulate(100, seed=s)) for s in range(200)]
    spread = torch.stack([g.variances["z"] for g in got]).std()
    stated = torch.stack([g.se["z"] for g in got]).mean()
    assert abs(stated / spread - 1) < 0.25  # a standard deviation of 200 is known to 5%, and the stated one is biased


def test_codes() -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    x = model.simulate(11)
    code = encode(model, guide, x, chunk=4)
    torch.testing.assert_close(code.means["z"], model.posterior_mean(x))
    torch.testing.assert_close(code.scales["z"], guide.covariance.diagonal().sqrt().expand(11, 2))
    assert code.draws is None


# -- x -------------------------------------------------------------------------------------------------------------


def test_reconstructions() -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    x = model.simulate(9)
    at_mean = model.posterior_mean(x) @ model.weight.T + model.bias
    torch.testing.assert_close(reconstruct(model, guide, x, chunk=4), at_mean)
    averaged = reconstruct(model, guide, x, draws=2000, seed=0, chunk=500)
    error = (model.weight @ guide.covariance @ model.weight.T).diagonal().sqrt() / math.sqrt(2000)
    assert ((averaged - at_mean).abs() < 4.5 * error).all()


def test_samples() -> None:
    model = LinearGaussian()
    got = sample(model, 5000, seed=0)
    assert got.mean.shape == got.draw.shape == (5000, 5)
    covariance = model.weight @ model.weight.T + model.sigma**2 * torch.eye(5)
    assert ((got.draw.mean(0) - model.bias).abs() < 4 * (covariance.diagonal() / 5000).sqrt()).all()
    torch.testing.assert_close((got.draw - got.mean).std(), model.sigma, rtol=0.03, atol=0)
    assert torch.equal(sample(model, 5, seed=1).draw, sample(model, 5, seed=1).draw)


def test_samples_of_classes() -> None:
    condition = networks.Condition(classes=3)
    shape = (1, 4, 4)
    model = models.ConditionalVAE(
        networks.decoder("mlp", 2 + 3, shape, 1, (8,)), likelihoods.Bernoulli(shape), 2, condition
    )
    guide = guides.MeanField(model, networks.encoder("mlp", shape, (8,), condition=condition))
    batch = Batch(x=binary(6), y=torch.tensor([0, 1, 2, 0, 1, 2]))
    got = sample(model, batch)
    assert got.draw.shape == (6, *shape)
    assert set(got.draw.unique().tolist()) <= {0.0, 1.0}
    assert reconstruct(model, guide, batch).shape == (6, *shape)
    assert log_marginal(model, guide, batch, 10).log_px.shape == (6,)
    with pytest.raises(InputError, match="needs y"):
        sample(model, 6)
    # no class of the model: it would be taken for a missing label
    for wrong in (torch.tensor([0, 1, 3, 0, 1, 2]), torch.tensor([0, 1, -2, 0, 1, 2])):
        for call in (lambda y: sample(model, Batch(y=y)), lambda y: log_marginal(model, guide, batch._replace(y=y), 2)):
            with pytest.raises(InputError, match=rf"y\[2\] is {wrong[2]}; this model has the classes 0 to 2"):
                call(wrong)
    with pytest.raises(InputError, match="needs y"):
        log_marginal(model, guide, binary(6), 10)


# -- bits, and all of it -------------------------------------------------------------------------------------------


def test_bits_per_dimension_by_hand() -> None:
    """Fair coins cost a bit each, and of 17 levels log2(17) are needed."""
    coins = DataSet.from_arrays(binary(4, (1, 2, 3)), levels=2, name="coins")
    log_px = torch.full((4,), 6 * math.log(0.5), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dimension(log_px, coins), torch.ones(4, dtype=torch.float64))
    digits = DataSet.from_arrays(torch.randint(17, (4, 1, 8, 8)), levels=17, units="levels", name="digits")
    log_px = torch.full((4,), -64 * math.log(17), dtype=torch.float64)
    wanted = torch.full((4,), math.log2(17), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dimension(log_px, digits), wanted)
    likelihood = likelihoods.Categorical((1, 8, 8), 17)
    torch.testing.assert_close(bits_per_dimension(log_px, digits.batch(), likelihood), wanted)
    half = digits.batch()._replace(observed=torch.arange(64).reshape(1, 8, 8).expand(4, 1, 8, 8) < 32)
    torch.testing.assert_close(bits_per_dimension(log_px, half, likelihood), 2 * wanted)


def test_bits_per_dimension_are_refused_for_densities() -> None:
    log_px = torch.zeros(4)
    grey = DataSet.from_arrays(torch.rand(4, 1, 2, 2), name="grey")
    with pytest.raises(InputError, match="grey all, continuous"):
        bits_per_dimension(log_px, grey)
    coins = DataSet.from_arrays(binary(4, (1, 2, 2)), levels=2)
    with pytest.raises(InputError, match="ContinuousBernoulli"):
        bits_per_dimension(log_px, coins, likelihoods.ContinuousBernoulli((1, 2, 2)))
    with pytest.raises(InputError, match="likelihood"):
        bits_per_dimension(log_px, torch.zeros(4, 4))


@pytest.mark.parametrize("guide_name", ["mean-field", "full-rank", "low-rank"])
def test_evaluation_of_a_data_set(guide_name: str) -> None:
    grey = torch.randint(17, (25, 1, 4, 4))
    data = DataSet.from_arrays(grey, levels=17, name="patches", split="test", binarize="dynamic")
    model, guide = vae_pair(guide_name)
    got = evaluate(model, guide, data, particles=200, seed=0)
    assert got.data == "patches test, fixed binarization (seed 777)"
    assert got.n == 25
    assert got.particles == 200
    assert got.elbo.mean <= got.log_px.mean
    assert got.elbo.mean == pytest.approx(got.log_likelihood.mean - got.kl.mean)
    assert got.bits_per_dimension is not None
    assert got.bits_per_dimension.mean == pytest.approx(-got.log_px.mean / 16 / math.log(2))
    assert got.bits_per_dimension.se == pytest.approx(got.log_px.se / 16 / math.log(2))
    assert got.parameters["total"] == got.parameters["model"] + got.parameters["guide"]
    assert got.parameters["model"] == sum(p.numel() for p in model.parameters())
    assert got.kl_by_dimension is not None
    if guide_name == "mean-field":
        total = got.kl_by_dimension.values["z"].sum(-1).mean().item()
        assert abs(total - got.kl.mean) < 4 * got.kl.se
    assert torch.equal(got.log_marginal.log_px, evaluate(model, guide, data, particles=200, seed=0).log_marginal.log_px)
    text = json.dumps(got.to_json(), allow_nan=False)
    assert json.loads(text)["active_units"]["count"] == got.active_units.count
    assert json.loads(text)["log_px"]["mean"] == got.log_px.mean


def test_evaluation_without_closed_forms_and_bits() -> None:
    model = ClassModel()
    got = evaluate(model, ClassGuide(model), torch.linspace(-6, 6, 9, dtype=torch.float64), particles=30)
    assert got.kl_by_dimension is None
    assert got.bits_per_dimension is None
    assert got.khat_max == -math.inf
    assert got.data == "a batch of 9"
    assert got.active_units.count == 1
    assert got.to_json()["khat"] == {"above": 0.0, "threshold": 0.7, "max": None}


def bad_calls() -> dict[str, tuple[Callable[[], object], str]]:
    oracle = LinearGaussian()
    q = LinearGaussianPosterior(oracle)
    x = oracle.simulate(4)
    model, guide = vae_pair()
    broken = x.clone()
    broken[2, 1] = math.nan
    return {
        "no particles": (lambda: log_marginal(oracle, q, x, 0), "particles=0"),
        "no chunk": (lambda: log_marginal(oracle, q, x, 5, chunk=0), "chunk=0"),
        "seed": (lambda: log_marginal(oracle, q, x, 5, seed=0.5), "seed=0.5"),  # type: ignore[arg-type]
        "a large seed": (lambda: log_marginal(oracle, q, x, 5, seed=2**64), "seed=18446744073709551616 must be"),
        "no x": (lambda: log_marginal(oracle, q, Batch(n=3), 5), "holds no data"),
        "a list": (lambda: log_marginal(oracle, q, [1.0], 5), "list"),  # type: ignore[arg-type]
        "NaN": (lambda: log_marginal(oracle, q, broken, 5), r"x\[2, 1\] is nan"),
        "grey pixels": (lambda: log_marginal(model, guide, 0.5 * binary(4)), "support of Bernoulli"),
        "shape": (lambda: log_marginal(model, guide, binary(4, (1, 5, 5))), r"\(4, 1, 5, 5\)"),
        "one datum": (lambda: active_units(oracle, q, x[:1]), "two data"),
        "no samples": (lambda: sample(oracle, 0), "batch=0"),
        "draws": (lambda: reconstruct(oracle, q, x, draws=-1), "-1"),
        "log_w": (lambda: effective_sample_size(torch.zeros(3)), "log_w"),
        "another model": (lambda: log_marginal(oracle, guide, binary(4), 5), "does not run|log-prob|event"),
    }


@pytest.mark.parametrize("name", list(bad_calls()))
def test_bad_input_is_named(name: str) -> None:
    call, message = bad_calls()[name]
    with pytest.raises(InputError, match=message):
        call()


def test_weights_that_are_not_finite_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.zeros(4, 3, dtype=torch.float64)
    table[1, 2] = math.nan
    model = LinearGaussian()
    table_of_weights(monkeypatch, table)
    with pytest.raises(InputError, match="datum 2"):
        log_marginal(model, LinearGaussianPosterior(model), Batch(x=model.simulate(3), rows=torch.arange(3)), 4, 3)


def test_a_datum_that_the_model_cannot_make_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.zeros(4, 2, dtype=torch.float64)
    table[:, 1] = -math.inf
    model = LinearGaussian()
    table_of_weights(monkeypatch, table)
    batch = Batch(x=model.simulate(2), rows=torch.arange(2))
    got = log_marginal(model, LinearGaussianPosterior(model), batch, 4, chunk=3)
    assert got.log_px.tolist() == [0.0, -math.inf]
    assert got.ess.tolist() == [4.0, 0.0]
    assert got.unreliable.tolist() == [False, True]


def test_compiled_evaluation_is_the_eager_one() -> None:
    """On torch's own random numbers, for whole pieces; the pieces left over at the ends run eagerly in both."""
    from torch._inductor import config

    model, guide, batch = programs.pair("mean-field")
    with config.patch(fallback_random=True):
        compiled = log_marginal(model, guide, batch, particles=70, chunk=60, seed=0, compile=True)
    eager = log_marginal(model, guide, batch, particles=70, chunk=60, seed=0)
    torch.testing.assert_close(compiled.log_px, eager.log_px, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled.se, eager.se, rtol=1e-9, atol=1e-9)


def test_products_in_bfloat16_are_those_of_set_precision_and_only_for_the_call() -> None:
    model, batch = programs.vae(dtype=torch.float32), programs.binary_batch(dtype=torch.float32)
    guide = programs.guide_for(model, dtype=torch.float32)
    plain = log_marginal(model, guide, batch, particles=200, seed=0)
    quick = log_marginal(model, guide, batch, particles=200, seed=0, precision="bf16")
    assert not torch.equal(plain.log_px, quick.log_px)
    assert (plain.log_px - quick.log_px).abs().max() < 0.05  # of six pixels, whose logits have three digits
    assert torch.equal(plain.log_px, log_marginal(model, guide, batch, particles=200, seed=0).log_px)
    for part in (model, guide):
        set_precision(part, "bf16")
    assert torch.equal(quick.log_px, log_marginal(model, guide, batch, particles=200, seed=0).log_px)


def test_bfloat16_where_there_is_nothing_to_put_in_it() -> None:
    model = LinearGaussian(2, 1)
    guide, x = LinearGaussianPosterior(model), model.simulate(2)
    with pytest.warns(UserWarning, match="changes nothing here"):
        log_marginal(model, guide, x, particles=2, precision="bf16")
    with pytest.raises(InputError, match="precision"):
        log_marginal(model, guide, x, particles=2, precision="16")  # type: ignore[arg-type]
