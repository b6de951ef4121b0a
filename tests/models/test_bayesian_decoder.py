"""A decoder with uncertain weights: minibatches, conjugate answers of a linear decoder, and predictions."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from affine import Identity, numbers, set_gaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    CompiledSVI,
    DataSet,
    InputError,
    guides,
    likelihoods,
    log_marginal,
    log_weights,
    models,
    networks,
    scale_data,
)
from ppl_vae.build import PairConfig, build, build_objective
from ppl_vae.evaluate import encode, evaluate, reconstruct, sample
from ppl_vae.fit import fit
from ppl_vae.guides import Combined, Shared, datum_part
from ppl_vae.renewal import renewed
from ppl_vae.testing import check_compiled, check_model

LATENT, WIDTH = 2, 3


def linear_decoder(latent: int = LATENT, width: int = WIDTH) -> networks.Decoder:
    return networks.Decoder(networks.MLP(latent, (), width), (width,), 1)


def linear(scale: float = 1.5) -> models.BayesianDecoder:
    """x = A z + b + noise of unit variance."""
    torch.manual_seed(1)
    return models.BayesianDecoder(linear_decoder(), likelihoods.Gaussian((WIDTH,)), LATENT, scale).double()


def small(seed: int = 0) -> models.BayesianDecoder:
    torch.manual_seed(seed)
    decoder = networks.decoder("mlp", LATENT, (WIDTH,), 1, (4,))
    return models.BayesianDecoder(decoder, likelihoods.Bernoulli((WIDTH,)), LATENT).double()


def data(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (N, 3) and z (N, 2)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, LATENT, generator=generator, dtype=torch.float64)


def guide_for(model: models.BayesianDecoder, shared: Any = "mean-field") -> Combined:
    torch.manual_seed(2)
    local = guides.MeanField(datum_part(model), networks.encoder("mlp", (WIDTH,), (5,)))
    return Combined(model, local, shared).double()


class Noise(Messenger):
    """Gaussian draws of a guide from fixed noise: of each datum by its row, of what is shared the same for all."""

    def __init__(self, rows: Tensor, of_data: Tensor, shared: Tensor) -> None:
        super().__init__()
        self.noise = {"z": of_data[rows], "weights": shared}
        self.drawn: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.noise:
            if name not in self.drawn:  # the guide runs first; the model is given the same
                q = msg["fn"].base_dist
                self.drawn[name] = q.loc + q.scale * self.noise[name]
            msg["value"] = self.drawn[name]


@pytest.mark.parametrize("kl", ["auto", "monte-carlo"])
def test_the_mean_over_an_epochs_minibatches_is_the_whole(kl: Any) -> None:
    """In value and in every gradient, with the noise of each datum and of the weights held."""
    n, size = 12, 3
    model = small()
    guide, (x, _) = guide_for(model), data(n)
    x = (x > 0).double()
    generator = torch.Generator().manual_seed(3)
    of_data = torch.randn(n, LATENT, generator=generator, dtype=torch.float64)
    shared = torch.randn(len(model.loc), generator=generator, dtype=torch.float64)

    def loss(rows: Tensor, objective: ELBO) -> tuple[Tensor, list[Tensor]]:
        objective.check(model, guide, Batch(x=x))
        with Noise(rows, of_data, shared):
            value = n / len(rows) * objective.differentiable_loss(model, guide, Batch(x=x[rows]))
        return value.detach(), list(torch.autograd.grad(value, list(guide.parameters())))

    whole, gradients = loss(torch.arange(n), ELBO(kl=kl))
    order = torch.randperm(n, generator=generator)
    parts = [loss(rows, ELBO(kl=kl, data_size=n)) for rows in order.split(size)]
    torch.testing.assert_close(torch.stack([value for value, _ in parts]).mean(), whole, rtol=0, atol=1e-10)
    for k, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.stack([g[k] for _, g in parts]).mean(0), gradient, rtol=0, atol=1e-10)
    assert float(torch.stack([value for value, _ in parts]).std()) > 0.1
    # counted whole in every batch the weights would weigh four times as much
    wrong = torch.stack([loss(rows, ELBO(kl=kl))[0] for rows in order.split(size)]).mean()
    assert abs(float(wrong - whole)) > 1.0


def test_a_minibatch_is_that_of_pyros_loss() -> None:
    model = small()
    guide, part = guide_for(model), Batch(x=(data(3)[0] > 0).double())
    torch.manual_seed(0)
    ours = 4 * ELBO(kl="monte-carlo", data_size=12, particles=2).differentiable_loss(model, guide, part)
    theirs = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    wanted = theirs.differentiable_loss(scale_data(4.0)(model), scale_data(4.0)(guide), part)
    torch.testing.assert_close(ours, wanted)


def design(model: models.BayesianDecoder, z: Tensor) -> Tensor:
    """(N · 3, W): the means of x are this matrix times the weights."""
    columns = [model.decode(unit, z).flatten() for unit in torch.eye(len(model.loc), dtype=torch.float64)]
    return torch.stack(columns, 1)


def regression(model: models.BayesianDecoder, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of w given x and z, and log p(x | z), of Bayesian linear regression."""
    phi, prior = design(model, z), model.scale.square().diag()
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + phi.T @ phi)
    evidence = dist.MultivariateNormal(
        torch.zeros(x.numel(), dtype=torch.float64),
        phi @ prior @ phi.T + torch.eye(x.numel(), dtype=torch.float64),
    ).log_prob(x.flatten())
    return covariance @ phi.T @ x.flatten(), covariance, evidence


def set_shared(guide: Shared, mean: Tensor, covariance: Tensor) -> None:
    with torch.no_grad():
        guide.loc["weights"].copy_(mean)
        guide.spread["weights"].copy_(numbers(covariance, guide.family == "mean-field"))


def test_the_prior_has_its_scales() -> None:
    model = linear(scale=1.5)
    by_name = model.named(model.scale)
    assert {name: tuple(scale.shape) for name, scale in by_name.items()} == {
        "body.net.0.weight": (WIDTH, LATENT),
        "body.net.0.bias": (WIDTH,),
    }
    assert torch.allclose(by_name["body.net.0.weight"], torch.full((3, 2), 1.5 / math.sqrt(2)).double())
    assert torch.equal(by_name["body.net.0.bias"], torch.full((3,), 1.5).double())
    conv = models.BayesianDecoder(networks.decoder("conv", 2, (1, 5, 4), 1, (8,)), likelihoods.Bernoulli((1, 5, 4)), 2)
    scales = conv.named(conv.scale)
    kernels = {name: scale for name, scale in scales.items() if scale.dim() == 4}
    for name, scale in kernels.items():  # transposed convolutions: (inputs, outputs, 3, 3)
        assert torch.allclose(scale, torch.full_like(scale, 1 / math.sqrt(9 * scale.shape[0]))), name
    assert kernels


def test_with_known_codes_the_optimum_is_the_regressions_posterior() -> None:
    """z given, the posterior of a linear decoder's weights is a Gaussian, and at it every draw has the log evidence;
    the best diagonal one falls short by a known divergence."""
    model = linear()
    x, z = data()
    known = poutine.condition(model, data={"z": z})
    mean, covariance, evidence = regression(model, x, z)
    evidence = evidence + dist.Normal(0.0, 1.0).log_prob(z).sum()
    full = Shared(model, "full-rank").double()
    set_shared(full, mean, covariance)
    for particles in (1, 5):
        bound = -ELBO(kl="monte-carlo", particles=particles).differentiable_loss(known, full, Batch(x=x))
        torch.testing.assert_close(bound, evidence, rtol=0, atol=1e-9)
    precision = torch.linalg.inv(covariance)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert float(gap) > 0.05
    diagonal = Shared(model).double()
    set_shared(diagonal, mean, precision.diagonal().reciprocal().diag())
    torch.manual_seed(0)
    with torch.no_grad():
        w = log_weights(known, diagonal, Batch(x=x), particles=4000)
        once = w.log_likelihood.sum(1) + (w.log_prior["weights"] - w.log_guide["weights"]).squeeze(-1)
    error = float(once.std()) / math.sqrt(4000)
    assert abs(float(once.mean() - (evidence - gap))) < 4 * error
    assert error < 0.02


def test_trained_with_known_codes_it_reaches_the_posterior() -> None:
    model = linear()
    x, z = data(20)
    mean, covariance, _ = regression(model, x, z)
    guide = Shared(model, start={"weights": torch.zeros(len(model.loc))}).double()
    optimizer = torch.optim.Adam(guide.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    objective = ELBO(particles=100, data_size=20)
    torch.manual_seed(0)
    for step in range(150):
        rows = torch.arange(step % 2, 20, 2)
        with poutine.condition(data={"z": z[rows]}):
            loss = objective.differentiable_loss(model, guide, Batch(x=x[rows])) / 20
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        q = guide.distribution(Batch(n=2))["weights"]
    sd = covariance.diagonal().sqrt()
    best = torch.linalg.inv(covariance).diagonal().rsqrt()  # the best diagonal Gaussian has the precisions' diagonal
    assert float(((q.mean - mean).abs() / sd).max()) < 0.1
    assert float((q.stddev / best - 1).abs().max()) < 0.1


def exact_posterior(model: models.VAE, weights: Tensor, of: models.BayesianDecoder) -> guides.FullRank:
    """p(z | x) under known weights of a linear decoder."""
    named = of.named(weights)
    a, b = named["body.net.0.weight"], named["body.net.0.bias"]
    covariance = torch.linalg.inv(torch.eye(LATENT, dtype=torch.float64) + a.T @ a)
    guide = guides.FullRank(model, Identity(WIDTH)).double()
    set_gaussian(guide.heads["z"], covariance @ a.T, -covariance @ a.T @ b, covariance)  # type: ignore[arg-type]
    return guide


def log_px(model: models.BayesianDecoder, weights: Tensor, x: Tensor) -> Tensor:
    """log p(x | w) (\\*S, N) of a linear decoder with weights (\\*S, W), z integrated."""
    named = model.named(weights)
    a, b = named["body.net.0.weight"], named["body.net.0.bias"]
    covariance = a @ a.mT + torch.eye(WIDTH, dtype=torch.float64)
    return dist.MultivariateNormal(b.unsqueeze(-2), covariance.unsqueeze(-3)).log_prob(x)


def test_log_px_at_known_weights() -> None:
    """`at` is a VAE with these weights: by its exact posterior every draw has log p(x | w)."""
    model = linear()
    x, _ = data()
    torch.manual_seed(0)
    weights = model.scale * torch.randn_like(model.scale)
    vae = model.at(weights).double()
    got = log_marginal(vae, exact_posterior(vae, weights, model), x, particles=3)
    torch.testing.assert_close(got.log_px, log_px(model, weights, x).detach(), rtol=0, atol=1e-9)
    codes = torch.randn(4, LATENT, dtype=torch.float64)
    torch.testing.assert_close(vae.decoder(codes), model.decode(weights, codes))
    assert {name for name, _ in vae.named_parameters()} == {"decoder.body.net.0.weight", "decoder.body.net.0.bias"}
    with pytest.raises(InputError, match=r"weights have shape \(2,\); this decoder has \(9,\)"):
        model.at(torch.zeros(2))


def test_predictive_density_integrates_the_weights() -> None:
    """log E_q(w)[p(x | w)] of each datum, against the mean over many w of the closed form."""
    model = linear(scale=0.7)
    guide, (x, _) = guide_for(model), data(5)
    set_shared(guide.shared, model.start()["weights"], 0.09 * torch.eye(len(model.loc), dtype=torch.float64))  # type: ignore[arg-type]
    q = guide.shared.distribution(Batch(n=1))["weights"]
    torch.manual_seed(0)
    closed = log_px(model, q.sample(torch.Size([20_000])), x).exp()
    got = log_marginal(model, guide, x, particles=20_000, seed=1)
    assert got.shared == ("weights",)
    error = (got.se.square() + (closed.std(0) / closed.mean(0) / math.sqrt(20_000)).square()).sqrt()
    assert bool(((got.log_px - closed.mean(0).log()).abs() < 4 * error).all())  # false alarms: 5 in 16,000
    assert float(error.max()) < 0.05
    # not the density at the mean weights
    at_mean = log_px(model, q.mean, x).detach()
    assert bool(((got.log_px - at_mean).abs() > 4 * error).any())
    # of errors that all data share, the mean's is not smaller
    assert got.mean_se == pytest.approx(float(got.se.mean()))


def test_a_point_of_weights_gives_log_px_at_them() -> None:
    model = linear()
    x, _ = data()
    weights = model.start()["weights"]
    guide = Combined(model, exact_posterior(datum_part(model), weights, model), "point").double()  # type: ignore[arg-type]
    got = log_marginal(model, guide, x, particles=4)
    torch.testing.assert_close(got.log_px, log_px(model, weights, x).detach(), rtol=0, atol=1e-9)


def test_samples_of_the_posterior_predictive() -> None:
    """Each x has weights of its own: mean and covariance of a linear decoder's x, z and w integrated."""
    model = linear()
    guide = guide_for(model)
    count = 20_000
    got = sample(model, count, guide=guide, seed=0)
    q = guide.shared.distribution(Batch(n=1))["weights"]
    mean, variance = model.named(q.mean), model.named(q.variance)
    a, va = mean["body.net.0.weight"], variance["body.net.0.weight"]
    wanted = (a @ a.T + (va.sum(1) + variance["body.net.0.bias"] + 1.0).diag()).detach()
    off = got.draw - mean["body.net.0.bias"].detach()
    error = got.draw.std(0) / math.sqrt(count)
    assert bool((off.mean(0).abs() < 4 * error).all())
    products = off.unsqueeze(-1) * off.unsqueeze(-2)
    assert bool(((products.mean(0) - wanted).abs() < 4 * products.std(0) / math.sqrt(count)).all())
    # of the prior all are of one draw of the weights
    assert got.mean.shape == (count, WIDTH)
    assert sample(model, Batch(context=torch.zeros(3, 1)), guide=guide).mean.shape == (3, WIDTH)
    with pytest.raises(InputError, match="guide=MeanField has no latents that all data share"):
        sample(model, 2, guide=guide.local)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.products.append(tuple(out.shape))
        return out


def test_particles_are_one_batch_of_products() -> None:
    """As many as there are layers, however many particles."""
    model = small()
    guide, batch = guide_for(model), Batch(x=(data(7)[0] > 0).double())
    for particles in (2, 6):
        with _Count() as counter, torch.no_grad():
            log_weights(model, guide, batch, particles=particles)
        assert [shape[:2] for shape in counter.products] == [(particles, 7)] * 2


def test_it_starts_at_the_decoder_that_was_given() -> None:
    decoder = linear_decoder()
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    model = models.BayesianDecoder(decoder, likelihoods.Gaussian((WIDTH,)), LATENT)
    assert not list(model.parameters())
    guide = Shared(model)
    for name, value in model.named(guide.distribution(Batch(n=1))["weights"].mean).items():
        assert torch.equal(value, before[name])
    assert {name for name, p in decoder.named_parameters() if p.requires_grad} == set(before)  # it was copied
    assert torch.equal(model.decode(model.start()["weights"], torch.ones(3, 2)), decoder(torch.ones(3, 2)))


@pytest.mark.slow
def test_the_contract_with_other_decoders() -> None:
    shape = (1, 5, 4)
    batch = Batch(x=torch.randint(0, 2, (3, *shape), generator=torch.Generator().manual_seed(0)).float())
    for kind in ("conv", "residual"):
        torch.manual_seed(0)
        decoder = networks.decoder(kind, 2, shape, 1, (8,))  # type: ignore[arg-type]
        model = models.BayesianDecoder(decoder, likelihoods.Bernoulli(shape), 2)
        check_model(model, batch)
        guide = Combined(model, guides.MeanField(datum_part(model), networks.encoder("mlp", shape, (4,))))
        check_compiled(model, guide, ELBO(particles=2, data_size=9), batch, steps=3)


def test_bfloat16() -> None:
    shape = (1, 4, 4)
    torch.manual_seed(0)
    model = models.BayesianDecoder(networks.decoder("mlp", 2, shape, 1, (8,)), likelihoods.Bernoulli(shape), 2)
    guide = Combined(model, guides.MeanField(datum_part(model), networks.encoder("mlp", shape, (8,))))
    batch = Batch(x=torch.rand(4, *shape).round())
    losses = {}
    for precision in ("32", "bf16"):
        svi = CompiledSVI(
            model,
            guide,
            torch.optim.SGD,
            ELBO(particles=3),
            {"lr": 0.0},
            precision=precision,
            compile="graph",  # type: ignore[arg-type]
        )
        torch.manual_seed(1)
        losses[precision] = float(svi.step(batch))
        assert not svi.report().fallbacks
    assert losses["bf16"] != losses["32"]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=1e-2)


def digits_like(n: int = 60) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (n,), generator=generator)
    x = (torch.rand(n, 1, 4, 4, generator=generator) < 0.2 + 0.6 * y[:, None, None, None]).float()
    return DataSet.from_arrays(x, y, name="two patterns", levels=2)


@pytest.mark.parametrize("name", ["full-rank", "semi-amortized", "local", "mixture"])
def test_any_guide_by_its_name(name: str) -> None:
    """Built, trained, evaluated; q(w) is learned from the training data alone."""
    whole = digits_like()
    train, test = whole.take(torch.arange(40)), whole.take(torch.arange(40, 60))
    torch.manual_seed(0)
    model, guide = build(PairConfig(model="bayesian-decoder", guide=name, latent=2, hidden=(8,)), train)
    assert isinstance(guide, Combined)
    assert guide.given == (("weights",) if name == "semi-amortized" else ())
    objective = build_objective("elbo", model, len(train))
    assert isinstance(objective, ELBO)
    assert objective.data_size == 40
    fit(model, guide, train, objective, epochs=1, batch_size=20, progress=False, compile=False)
    held = guide
    if name == "local":
        with pytest.raises(InputError, match="parameters for each of the 40 data"):
            evaluate(model, guide, test, 20)
        held = renewed(model, guide, test, updates=2)  # type: ignore[assignment]
        assert held is not guide
        assert torch.equal(held.shared.loc["weights"], guide.shared.loc["weights"])  # type: ignore[union-attr, index]
    else:
        assert not hasattr(guide, "renew")
    got = evaluate(model, held, test, 20, seed=0)
    assert got.to_json()["given"] == ["weights"]
    assert set(got.active_units.variances) == {"z"}
    assert got.elbo.mean <= got.log_px.mean
    code = encode(model, held, test)
    assert {n: tuple(m.shape) for n, m in code.means.items()} == {"z": (20, 2)}
    assert reconstruct(model, held, test).shape == (20, 1, 4, 4)
    with pytest.raises(InputError, match="shared by all data"):
        IWAE().terms(model, held, test.take(torch.arange(20)).batch())


def test_bad_input_is_named() -> None:
    likelihood = likelihoods.Gaussian((WIDTH,))
    for scale in (0, -1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(InputError, match=f"scale={scale!r} must be a standard deviation"):
            models.BayesianDecoder(linear_decoder(), likelihood, LATENT, scale)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="decoder=Identity has no parameters"):
        models.BayesianDecoder(nn.Identity(), likelihood, LATENT)
    normed = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(InputError, match=r"decoder=Sequential has the buffers 1\.running_mean, .*use layers without"):
        models.BayesianDecoder(normed, likelihood, LATENT)
