"""Likelihoods: densities against closed forms, totals of 1, draws in the support, means, extremes, masks, checks."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from ppl_vae import ELBO, Batch, guides, models, networks
from ppl_vae.errors import InputError
from ppl_vae.likelihoods import Likelihood, likelihoods

SHAPE = (1, 2, 3)
LEVELS = 17
OPTIONS: dict[str, dict[str, Any]] = {
    "discretized-logistic": {"levels": LEVELS},
    "categorical": {"levels": LEVELS},
    "gaussian": {"scale": 0.7},
}
NAMES = list(likelihoods)
every_likelihood = pytest.mark.parametrize("name", NAMES)


def make(name: str, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Likelihood:
    """With buffers and parameters away from where they start."""
    likelihood = likelihoods.get(name)(shape, **OPTIONS.get(name, {})).to(dtype)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return likelihood


def features(likelihood: Likelihood, *left: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(*left, likelihood.parameters_per_element, *likelihood.event_shape, dtype=dtype)


def data(likelihood: Likelihood, n: int) -> Tensor:
    """Anything in the support, whether probable or not."""
    shape = (n, *likelihood.event_shape)
    return {
        "binary": lambda: torch.randint(0, 2, shape),
        "unit": lambda: torch.rand(shape),
        "levels": lambda: torch.randint(0, LEVELS, shape),
        "counts": lambda: torch.randint(0, 40, shape),
        "real": lambda: 3.0 * torch.randn(shape),
    }[likelihood.units]().double()


def scipy_log_prob(name: str, likelihood: Any, f: Tensor, x: Tensor) -> np.ndarray:
    """log p of each element, by scipy or by the formula in plain NumPy."""
    f, x = f.numpy(), x.numpy()
    if name == "bernoulli":
        p = 1 / (1 + np.exp(-(f[:, 0] + likelihood.offset.numpy())))
        return scipy.stats.bernoulli.logpmf(x, p)
    if name == "continuous-bernoulli":
        p = 1 / (1 + np.exp(-f[:, 0]))
        normalizer = 2 * np.arctanh(1 - 2 * p) / (1 - 2 * p)
        return np.log(normalizer) + x * np.log(p) + (1 - x) * np.log(1 - p)
    if name == "gaussian":
        return scipy.stats.norm.logpdf(x, f[:, 0], likelihood.sd)
    if name == "gaussian-learned":
        scale = np.exp(7 * np.tanh(likelihood.raw.detach().numpy() / 7))
        return scipy.stats.norm.logpdf(x, f[:, 0], scale)
    if name == "gaussian-per-pixel":
        return scipy.stats.norm.logpdf(x, f[:, 0], 1 / 255 + np.log1p(np.exp(f[:, 1])))
    if name == "discretized-logistic":
        scale = 0.25 * 8 * np.exp(5 * np.tanh(f[:, 1] / 5))
        logistic = scipy.stats.logistic(8 + 8 * f[:, 0], scale)
        above = x > logistic.mean()  # on the side where the difference has its digits
        upper, lower = (np.where(above, logistic.sf(x + h), logistic.cdf(x + h)) for h in (0.5, -0.5))
        upper = np.where(x == LEVELS - 1, np.where(above, 0.0, 1.0), upper)
        lower = np.where(x == 0, np.where(above, 1.0, 0.0), lower)
        return np.log(np.abs(upper - lower))
    if name == "categorical":
        log_p = f - scipy.special.logsumexp(f, axis=1, keepdims=True)
        return np.take_along_axis(log_p, x[:, None].astype(int), 1)[:, 0]
    if name == "student-t":
        scale, df = (np.exp(7 * np.tanh(r.detach().numpy() / 7)) for r in (likelihood.raw_scale, likelihood.raw_df))
        return scipy.stats.t.logpdf(x, 2 + 4 * df, f[:, 0], scale)
    rate = np.exp(10 * np.tanh(f[:, 0] / 10))
    if name == "poisson":
        return scipy.stats.poisson.logpmf(x, rate)
    r = np.exp(7 * np.tanh(likelihood.raw_r.detach().numpy() / 7))
    return scipy.stats.nbinom.logpmf(x, r, r / (r + rate))


@every_likelihood
def test_log_prob_is_the_sum_of_scipys(name: str) -> None:
    likelihood = make(name)
    f, x = features(likelihood, 6), data(likelihood, 6)
    ours = likelihood(f).log_prob(x)
    theirs = scipy_log_prob(name, likelihood, f, x).reshape(6, -1).sum(-1)
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-9)


@every_likelihood
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_probabilities_sum_to_one(name: str, scale: float) -> None:
    likelihood = make(name, (4,))
    f = features(likelihood, 3, scale=scale)
    each = likelihood.elementwise(f)
    if likelihood.discrete:
        top = {"binary": 2, "levels": LEVELS, "counts": 200_000}[likelihood.units]
        support = torch.arange(top, dtype=torch.float64).reshape(-1, 1, 1)
        total = each.log_prob(support).logsumexp(0)
        if likelihood.units == "counts":  # heavy tails end somewhere: leave out what is beyond
            total = total[each.mean < 1000]
            assert total.numel() > 5
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-6)
        return
    if likelihood.units == "unit":
        x = torch.linspace(0, 1, 40_001, dtype=torch.float64)
        step = x
    else:  # sinh spaces the grid from 1e-3 to 1e6, for Student's tails
        step = torch.linspace(-16, 16, 60_001, dtype=torch.float64)
        x = 1e-1 * torch.sinh(step)
    density = each.log_prob(x.reshape(-1, 1, 1)).exp()
    jacobian = 1.0 if likelihood.units == "unit" else (1e-1 * torch.cosh(step)).reshape(-1, 1, 1)
    total = torch.trapezoid(density * jacobian, step, dim=0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)


@every_likelihood
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_draws_lie_in_the_support_and_have_a_density(name: str, dtype: torch.dtype, scale: float) -> None:
    likelihood = make(name, dtype=dtype)
    q = likelihood(features(likelihood, 3, 200, scale=scale, dtype=dtype))
    x = q.sample()
    assert x.shape == (3, 200, *SHAPE)
    assert x.dtype == dtype
    likelihood.check(x.flatten(0, 1))
    assert bool(q.log_prob(x).isfinite().all())
    assert q.sample((5,)).shape == (5, 3, 200, *SHAPE)


@every_likelihood
def test_means_are_those_of_draws(name: str) -> None:
    likelihood = make(name, (4,))
    f = features(likelihood, 3, scale=0.7)
    with torch.no_grad():
        each = likelihood.elementwise(f)
        draws = each.sample((40_000,))
    error = draws.std(0) / 200.0
    assert bool(((draws.mean(0) - each.mean).abs() < 4.5 * error + 1e-12).all())
    assert bool(likelihood(f).mean.shape == (3, 4))


@every_likelihood
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_gradients_are_finite_at_extremes(name: str, dtype: torch.dtype, size: float) -> None:
    """Outputs of ±100 and ±10,000, data at either end of the support and far from what is predicted."""
    likelihood = make(name, dtype=dtype)
    signs = torch.tensor([[a, b] for a in (-size, 0.0, size) for b in (-size, 0.0, size)], dtype=dtype)  # (9, 2)
    planes = likelihood.parameters_per_element
    f = signs[:, torch.arange(planes) % 2].reshape(9, planes, 1, 1, 1).expand(-1, -1, *SHAPE).clone().requires_grad_()
    for end in {"binary": (0, 1), "unit": (0, 1, 0.5), "levels": (0, LEVELS - 1, 5), "counts": (0, 1000)}.get(
        likelihood.units, (-1e3, 0, 1e3)
    ):
        q = likelihood(f)
        log_prob = q.log_prob(torch.full((9, *SHAPE), float(end), dtype=dtype))
        assert bool(log_prob.isfinite().all()), f"log p at {end}"
        gradients = torch.autograd.grad(log_prob.sum(), [f, *likelihood.parameters()], allow_unused=True)
        assert all(bool(g.isfinite().all()) for g in gradients if g is not None), f"gradient at {end}"
        assert bool(q.mean.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [1e-8, 1e-3, 0.3, 0.499, 0.501, 1.0, 5.0, 17.0, 30.0, 100.0, 1e4])
def test_continuous_bernoulli_at_any_logit(logit: float, dtype: torch.dtype) -> None:
    """The total is 1 where torch's, whose normalizer is clamped, is 0.5 in single precision; and it is symmetric."""
    likelihood = make("continuous-bernoulli", (1,), dtype)
    log_prob = lambda x, sign: likelihood.elementwise(  # noqa: E731
        torch.full((len(x), 1, 1), sign * logit, dtype=dtype)
    ).log_prob(x.to(dtype).unsqueeze(-1))[:, 0]
    # dense at the edge, where the mass is
    t = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    x = 1.0 - t**3
    assert torch.trapezoid(log_prob(x, 1.0).double().exp() * 3 * t**2, t).item() == pytest.approx(1.0, abs=3e-4)
    few = torch.linspace(0, 1, 9, dtype=dtype)
    torch.testing.assert_close(log_prob(few, 1.0), log_prob(1.0 - few, -1.0), rtol=1e-5, atol=1e-5)
    exact = (few.double() * logit) - math.log(math.expm1(logit) / logit) if logit < 100 else None
    if exact is not None:
        torch.testing.assert_close(log_prob(few, 1.0).double(), exact, rtol=2e-6, atol=2e-6)
    q = likelihood.elementwise(torch.full((1, 1), logit, dtype=dtype))
    mean = 1 / -math.expm1(-logit) - 1 / logit if logit > 1e-2 else 0.5 + logit / 12
    assert q.mean.item() == pytest.approx(mean, rel=2e-6)
    draws = q.sample((200_000,))
    assert draws.double().mean().item() == pytest.approx(mean, abs=4 * draws.std().item() / 447 + 1e-7)


def test_continuous_bernoulli_gradient_is_x_minus_the_mean() -> None:
    """Of an exponential family; across the place where the series takes over."""
    likelihood = make("continuous-bernoulli", (9,))
    logits = torch.tensor([-40.0, -2.0, -0.51, -0.49, 0.0, 1e-9, 0.499, 0.501, 3.0]).double()
    f = logits.reshape(1, 1, 9).requires_grad_()
    x = torch.rand(1, 9).double()
    q = likelihood.elementwise(f)
    (gradient,) = torch.autograd.grad(q.log_prob(x).sum(), f)
    torch.testing.assert_close(gradient[:, 0], x - q.mean.detach(), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda f: likelihood.elementwise(f).log_prob(x), f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretized_logistic_in_its_far_tails(dtype: torch.dtype) -> None:
    """log(σ(u) - σ(l)) would be log 0; the slope of the tail is 1/s."""
    likelihood = likelihoods.get("discretized-logistic")((1,), levels=256).to(dtype)
    f = torch.tensor([[[-1.0], [-20.0]]], dtype=dtype, requires_grad=True)  # the smallest scale
    each = likelihood.elementwise(f)
    scale = float(each.scale.detach())
    log_prob = each.log_prob(torch.tensor([[100.0], [200.0]], dtype=dtype))
    assert bool(log_prob.isfinite().all())
    assert float(log_prob[0].detach() - log_prob[1].detach()) == pytest.approx(100.0 / scale, rel=1e-5)
    (gradient,) = torch.autograd.grad(log_prob[0].sum(), f)
    assert float(gradient[0, 0, 0]) == pytest.approx(127.5 / scale, rel=1e-5)
    # and where x is a large number of scales away in single precision
    far = likelihood.elementwise(torch.tensor([[[-1e6], [0.0]]], dtype=dtype)).log_prob(
        torch.full((1, 1), 5.0).to(dtype)
    )
    assert bool(far.isfinite().all())


def test_discretized_logistic_counts_its_tails_in_the_end_levels() -> None:
    likelihood = make("discretized-logistic", (1,))
    low = likelihood.elementwise(torch.tensor([[[-50.0], [0.0]]], dtype=torch.float64))
    assert low.log_prob(torch.zeros(1, 1).double()).item() == pytest.approx(0.0, abs=1e-9)
    assert set(low.sample((100,)).flatten().tolist()) == {0.0}
    high = likelihood.elementwise(torch.tensor([[[50.0], [0.0]]], dtype=torch.float64))
    assert high.log_prob(torch.full((1, 1), LEVELS - 1.0).double()).item() == pytest.approx(0.0, abs=1e-9)
    assert high.mean.item() == pytest.approx(LEVELS - 1.0)


@pytest.mark.parametrize("name", ["discretized-logistic", "continuous-bernoulli", "categorical", "negative-binomial"])
def test_frequencies_of_draws_are_the_probabilities(name: str) -> None:
    likelihood = make(name, (1,))
    each = likelihood.elementwise(features(likelihood, 1, scale=0.5))
    draws = each.sample((100_000,)).flatten()
    if name == "continuous-bernoulli":
        edges = torch.linspace(0, 1, 11, dtype=torch.float64)
        counts = torch.histogram(draws, edges).hist
        inside = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        density = each.log_prob(inside.reshape(-1, 1)).exp().flatten()
        p = torch.stack([torch.trapezoid(density[i * 1000 : i * 1000 + 1001], dx=1e-4) for i in range(10)])
    else:
        top = int(draws.max()) + 1
        counts = torch.bincount(draws.long(), minlength=top).double()
        p = each.log_prob(torch.arange(top).double().reshape(-1, 1)).exp().flatten().detach()
    keep = p * 1e5 > 10
    deviation = (counts - 1e5 * p)[keep] / (1e5 * p * (1 - p))[keep].sqrt()
    assert bool((deviation.abs() < 4.5).all())
    assert keep.sum() >= 3


@every_likelihood
def test_left_dimensions_and_expansion(name: str) -> None:
    likelihood = make(name)
    f, x = features(likelihood, 2, 3, 4), data(likelihood, 4)
    q = likelihood(f)
    assert (tuple(q.batch_shape), tuple(q.event_shape)) == ((2, 3, 4), SHAPE)
    together = q.log_prob(x)
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(together[index], likelihood(f[index]).log_prob(x), rtol=1e-12, atol=1e-12)
    expanded = likelihood(f[0, 0]).expand((5, 4))
    torch.testing.assert_close(expanded.log_prob(x), likelihood(f[0, 0]).log_prob(x).expand(5, 4))
    assert expanded.sample().shape == (5, 4, *SHAPE)


@every_likelihood
def test_masked_elements_are_not_scored(name: str) -> None:
    likelihood = make(name)
    f, x = features(likelihood, 2, 5), data(likelihood, 5)
    observed = torch.rand(5, *SHAPE) < 0.6
    x = torch.where(observed, x, 0.0)
    f = f.requires_grad_()
    masked = likelihood(f, observed)
    by_element = likelihood.elementwise(f).log_prob(x)
    torch.testing.assert_close(masked.log_prob(x), (by_element * observed).flatten(2).sum(-1))
    (gradient,) = torch.autograd.grad(masked.log_prob(x).sum(), f)
    assert bool(gradient.isfinite().all())
    assert bool((gradient * (~observed).unsqueeze(1) == 0).all())
    assert masked.sample().shape == (2, 5, *SHAPE)
    nothing = likelihood(f, torch.zeros(5, *SHAPE, dtype=torch.bool)).log_prob(x)
    assert bool((nothing == 0).all())


# ---------------------------------------------------------------- check


@every_likelihood
def test_what_it_draws_it_accepts(name: str) -> None:
    likelihood = make(name)
    likelihood.check(data(likelihood, 5))
    likelihood.check(data(likelihood, 5).float())
    likelihood.check(torch.zeros(2, *SHAPE))


OUTSIDE = {
    "bernoulli": (0.3, "is outside of the support of Bernoulli, 0 or 1: binarize the data"),
    "continuous-bernoulli": (1.01, "ContinuousBernoulli.*divide the pixels by their largest level"),
    "gaussian": (math.inf, "Gaussian, the real numbers: remove or mask NaN and Inf"),
    "gaussian-learned": (-math.inf, "the real numbers"),
    "gaussian-per-pixel": (math.nan, "the real numbers"),
    "discretized-logistic": (17.0, "DiscretizedLogistic, the whole numbers 0 to 16: load the data with units='levels'"),
    "categorical": (3.5, "Categorical, the whole numbers 0 to 16"),
    "student-t": (math.nan, "the real numbers"),
    "poisson": (-1.0, "Poisson, whole numbers from 0"),
    "negative-binomial": (0.5, "NegativeBinomial, whole numbers from 0: give raw counts"),
}


@every_likelihood
def test_values_outside_of_the_support_are_named_with_their_place(name: str) -> None:
    likelihood = make(name)
    value, message = OUTSIDE[name]
    for bad in (value, math.nan, math.inf):
        x = data(likelihood, 5)
        x[3, 0, 1, 2] = bad
        with pytest.raises(InputError, match=rf"images\[3, 0, 1, 2\] = {bad:g} is outside of the support") as caught:
            likelihood.check(x, "images")
    x[3, 0, 1, 2] = value
    with pytest.raises(InputError, match=message):
        likelihood.check(x)
    assert "what would work" not in str(caught.value)


@every_likelihood
def test_another_shape_is_refused(name: str) -> None:
    likelihood = make(name)
    with pytest.raises(InputError, match=r"x has shape \(5, 2, 3\); \w+ here takes \(N, 1, 2, 3\)"):
        likelihood.check(torch.zeros(5, 2, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian", {"scale": 0.0}, r"scale=0\.0 must be a positive number"),
        ("gaussian", {"scale": math.nan}, "scale=nan must be a positive number"),
        ("gaussian-per-pixel", {"floor": -1.0}, r"floor=-1\.0 must be a positive number"),
        ("discretized-logistic", {"levels": 1}, "levels=1 must be a whole number, 2 or more"),
        ("categorical", {"levels": 2.5}, r"levels=2\.5 must be a whole number"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        likelihoods.get(name)(SHAPE, **options)


# ---------------------------------------------------------------- units of the data


@every_likelihood
def test_standardized_outputs_near_zero_fit_the_data(name: str) -> None:
    """The likelihood of data under outputs of 0 is better than before, and keeps its state."""
    likelihood = make(name, (4,))
    x = {
        "binary": lambda: (torch.rand(500, 4) < torch.tensor([0.1, 0.2, 0.5, 0.05])).double(),
        "unit": lambda: torch.rand(500, 4).double(),
        "levels": lambda: torch.randint(0, LEVELS, (500, 4)).double(),
        "counts": lambda: torch.poisson(torch.tensor([3.0, 50.0, 200.0, 0.5])).expand(500, 4).double(),
        "real": lambda: (100.0 + torch.tensor([1.0, 5.0, 20.0, 0.1]) * torch.randn(500, 4)).double(),
    }[likelihood.units]()
    zero = torch.zeros(500, likelihood.parameters_per_element, 4, dtype=torch.float64)
    before = likelihood(zero).log_prob(x).mean()
    state = {k: v.shape for k, v in likelihood.state_dict().items()}
    likelihood.standardize(x)
    assert {k: v.shape for k, v in likelihood.state_dict().items()} == state, "loads into one that is not standardized"
    assert all(v.dtype == torch.float64 for v in likelihood.state_dict().values())
    after = likelihood(zero).log_prob(x).mean()
    assert bool(after >= before - 1e-9)
    if likelihood.units in ("binary", "counts", "real"):
        assert bool(after > before)


def test_a_constant_column_does_not_divide_by_zero() -> None:
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    for name in ("gaussian", "gaussian-learned", "gaussian-per-pixel", "student-t"):
        likelihood = likelihoods.get(name)((2,))
        likelihood.standardize(x)
        assert bool(likelihood(torch.zeros(3, likelihood.parameters_per_element, 2)).log_prob(x).isfinite().all())
    counts = likelihoods.get("poisson")((2,))
    counts.standardize(torch.zeros(3, 2))
    assert bool(counts(torch.zeros(3, 1, 2)).log_prob(torch.zeros(3, 2)).isfinite().all())


def test_unit_variance_is_the_lectures_formula() -> None:
    likelihood = likelihoods.get("gaussian")((3,)).double()
    x, m = torch.randn(4, 3).double(), torch.randn(4, 1, 3).double()
    wanted = -0.5 * (x - m[:, 0]).square().sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(likelihood(m).log_prob(x), wanted)


def test_the_floor_is_the_smallest_scale() -> None:
    likelihood = likelihoods.get("gaussian-per-pixel")(SHAPE, floor=0.25)
    scale = likelihood.elementwise(torch.full((2, 2, *SHAPE), -1e4)).scale
    torch.testing.assert_close(scale, torch.full_like(scale, 0.25))
    assert "floor=0.25" in repr(likelihood)


def test_negative_binomial_has_the_variance_it_says() -> None:
    likelihood = make("negative-binomial", (3,))
    each = likelihood.elementwise(features(likelihood, 1))
    r = torch.exp(networks.soft_bound(likelihood.raw_r))
    torch.testing.assert_close(each.variance, each.mean + each.mean.square() / r)


def test_categorical_pixels_are_numbers() -> None:
    q = make("categorical")(features(make("categorical"), 4))
    assert q.sample().dtype == torch.float64


@every_likelihood
def test_units_and_discreteness(name: str) -> None:
    likelihood = make(name)
    assert likelihood.discrete == (likelihood.units in ("binary", "levels", "counts"))
    assert features(likelihood, 2).shape[1] == likelihood.parameters_per_element


# ---------------------------------------------------------------- each learns data that it fits


def structured(name: str, n: int = 400, features: int = 12, rank: int = 3) -> Tensor:
    """Data whose signal lives in three directions, through the likelihood's own kind of noise."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, rank, generator=generator)
    basis = torch.linalg.qr(torch.randn(features, features, generator=generator))[0][:, :rank]
    signal = (z @ basis.T) * 2.2  # of variance about 1.2 an element
    noise = torch.randn(n, features, generator=generator)
    uniform = torch.rand(n, features, generator=generator)
    units = likelihoods.get(name).units
    if units == "binary":
        return (uniform < torch.sigmoid(4.0 * signal)).float()
    if units == "unit":
        return torch.sigmoid(2.0 * signal + 0.3 * noise)
    if units == "levels":
        return (8.0 + 4.0 * signal + 0.7 * noise).round().clamp(0, LEVELS - 1)
    if units == "counts":
        return torch.poisson(torch.exp(2.0 + 0.7 * signal), generator=generator)
    return 10.0 + 4.0 * (signal + 0.2 * noise)


@every_likelihood
def test_it_trains_on_data_it_fits_and_generates_in_its_support(name: str) -> None:
    """At least 3 active units on data of rank 3, a bound better than that of no latent variable by 1 nat."""
    torch.manual_seed(0)
    x = structured(name)
    likelihood = likelihoods.get(name)((12,), **({} if name == "gaussian" else OPTIONS.get(name, {})))
    likelihood.check(x)
    likelihood.standardize(x)
    model = models.VAE(networks.decoder("mlp", 5, (12,), likelihood.parameters_per_element, (32,)), likelihood, 5)
    encoder = networks.encoder("mlp", (12,), (32,), loc=x.mean(0), scale=x.std(0).clamp_min(0.1))
    guide = guides.MeanField(model, encoder)
    objective = ELBO()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-2)
    for step in range(350):
        objective.kl_weight.fill_(min(1.0, step / 100))
        optimizer.zero_grad()
        rows = torch.randint(0, len(x), (100,))
        objective.differentiable_loss(model, guide, Batch(x=x[rows])).backward()
        optimizer.step()
    with torch.no_grad():
        logs = ELBO(particles=10).terms(model, guide, Batch(x=x)).logs
        means = guide.distribution(Batch(x=x))["z"].mean
        generated = model(Batch(n=300))
    assert int((means.var(0) > 0.01).sum()) >= 3
    likelihood.check(generated)
    independent = marginal_fit(name, x)
    assert float(logs["elbo"].mean()) > independent + 1.0
    # generated data have the data's averages and spread, roughly
    spread = x.std(0).clamp_min(0.05)
    assert bool((((generated.mean(0) - x.mean(0)) / spread).abs() < 0.5).all())
    assert 0.5 < float((generated.std(0) / spread).mean()) < 1.7


def marginal_fit(name: str, x: Tensor) -> float:
    """log p of the data by the likelihood with its best constant parameters, no latent variable, nats a datum."""
    likelihood = likelihoods.get(name)((12,), **({} if name == "gaussian" else OPTIONS.get(name, {})))
    likelihood.standardize(x)
    f = torch.zeros(1, likelihood.parameters_per_element, 12, requires_grad=True)
    optimizer = torch.optim.Adam([f, *likelihood.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -likelihood(f).log_prob(x).mean()
        loss.backward()
        optimizer.step()
    return -loss.item()
