"""Conjugate families: statistics against gradients of the log partition, densities against SciPy, divergences against
torch's closed forms and Monte Carlo, posteriors against natural parameters added up."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from ppl_vae.conjugate import (
    Categorical,
    Dirichlet,
    NormalInverseGamma,
    NormalInverseWishart,
    NormalTerms,
    TiedNormalInverseWishart,
)
from ppl_vae.errors import InputError

D, K = 3, 4


def generator(seed: int) -> dict[str, Any]:
    return {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}


def positive_definite(*left: int, seed: int = 0, d: int = D) -> Tensor:
    root = torch.randn(*left, d, d + 2, **generator(seed))
    return root @ root.mT


def dirichlet(*left: int, seed: int = 0) -> Dirichlet:
    return Dirichlet(0.3 + 3.0 * torch.rand(*left, K, **generator(seed)))


def categorical(*left: int, seed: int = 0) -> Categorical:
    return Categorical(torch.randn(*left, K, **generator(seed)))


def wishart(*left: int, seed: int = 0) -> NormalInverseWishart:
    like = generator(seed)
    return NormalInverseWishart(
        torch.randn(*left, D, **like),
        0.5 + torch.rand(left, **like),
        positive_definite(*left, seed=seed + 1),
        D + 1.0 + 3.0 * torch.rand(left, **like),
    )


def tied(*left: int, seed: int = 0) -> TiedNormalInverseWishart:
    like = generator(seed)
    return TiedNormalInverseWishart(
        torch.randn(*left, K, D, **like),
        0.5 + torch.rand(*left, K, **like),
        positive_definite(*left, seed=seed + 1),
        D + 1.0 + 3.0 * torch.rand(left, **like),
    )


def gamma(*left: int, seed: int = 0) -> NormalInverseGamma:
    like = generator(seed)
    parts = (torch.rand(*left, D, **like) for _ in range(3))
    return NormalInverseGamma(torch.randn(*left, D, **like), *(0.5 + 3.0 * part for part in parts))


FAMILIES: dict[str, Callable[..., Any]] = {
    "dirichlet": dirichlet,
    "categorical": categorical,
    "wishart": wishart,
    "tied": tied,
    "gamma": gamma,
}
every_family = pytest.mark.parametrize("name", FAMILIES)
with_means = pytest.mark.parametrize("name", ["wishart", "tied", "gamma"])


def parts(natural: Any) -> list[Tensor]:
    return [natural] if isinstance(natural, Tensor) else list(natural)


@every_family
@pytest.mark.parametrize("left", [(), (2,), (3, 2)])
def test_expected_statistics_are_the_gradient_of_the_log_partition(name: str, left: tuple[int, ...]) -> None:
    p = FAMILIES[name](*left)
    eta = [part.detach().clone().requires_grad_() for part in parts(p.natural())]
    natural = eta[0] if len(eta) == 1 else NormalTerms(*eta)
    partition = type(p).from_natural(natural).log_partition()
    gradients = torch.autograd.grad(partition.sum(), eta)
    for gradient, statistic in zip(gradients, parts(p.expected_statistics()), strict=True):
        torch.testing.assert_close(gradient, statistic, rtol=1e-10, atol=1e-10)


@every_family
def test_natural_parameters_and_back(name: str) -> None:
    p = FAMILIES[name](2)
    back = type(p).from_natural(p.natural())
    for field in vars(p):
        torch.testing.assert_close(getattr(back, field), getattr(p, field), rtol=1e-12, atol=1e-12)


def summed(name: str, value: Tensor) -> Tensor:
    return value.sum(-1) if name == "gamma" else value


def bregman(q: Any, p: Any) -> Tensor:
    """⟨η_q - η_p, E_q[T]⟩ - A(η_q) + A(η_p), of a batch () or with the dimensions of a diagonal one added up."""
    inner = sum(
        ((a - b) * t).sum()
        for a, b, t in zip(parts(q.natural()), parts(p.natural()), parts(q.expected_statistics()), strict=True)
    )
    return inner - q.log_partition().sum() + p.log_partition().sum()


@every_family
def test_kl_is_the_divergence_of_the_log_partition(name: str) -> None:
    q, p = FAMILIES[name](), FAMILIES[name](seed=5)
    kl = summed(name, q.kl(p))
    torch.testing.assert_close(kl, bregman(q, p), rtol=1e-11, atol=1e-11)
    assert kl > 0.1
    torch.testing.assert_close(q.kl(q), torch.zeros_like(q.kl(q)), rtol=0, atol=1e-13)


@every_family
def test_kl_by_batch_is_each_ones(name: str) -> None:
    q, p = FAMILIES[name](5), FAMILIES[name](5, seed=5)
    kl = q.kl(p)
    assert kl.shape == ((5, D) if name == "gamma" else (5,))
    assert (kl >= 0).all()
    for i in range(5):
        one, other = (type(q)(**{field: t[i] for field, t in vars(f).items()}) for f in (q, p))
        torch.testing.assert_close(one.kl(other), kl[i])
        torch.testing.assert_close(one.log_partition(), q.log_partition()[i])


@every_family
def test_kl_by_monte_carlo(name: str) -> None:
    """Within 4 standard errors of the mean of log q - log p over 20,000 draws, and the error small against the KL: it
    is of the sampler and of the density too. One of 16,000 seeds fails."""
    torch.manual_seed(0)
    q, p = FAMILIES[name](seed=0), FAMILIES[name](seed=3)
    draws = q.sample((20_000,))
    draws = draws if isinstance(draws, tuple) else (draws,)
    difference = summed(name, q.log_prob(*draws) - p.log_prob(*draws))
    error = difference.std() / math.sqrt(len(difference))
    kl = summed(name, q.kl(p))
    assert abs(difference.mean() - kl) < 4 * error
    assert error < 0.05 * kl


@with_means
def test_statistics_by_monte_carlo(name: str) -> None:
    """The sampler's means of Λμ, μᵀΛμ, Λ and log|Λ|, each within 5 standard errors of 40,000 draws."""
    torch.manual_seed(1)
    p = FAMILIES[name]()
    mean, precision = p.sample((40_000,))
    if name == "gamma":
        linear, log_det = mean * precision, precision.log()
        square = mean * linear
    else:
        several = mean if name == "tied" else mean.unsqueeze(-2)
        linear = several @ precision
        square = (several * linear).sum(-1)
        log_det = torch.logdet(precision)
        if name == "wishart":
            linear, square = linear.squeeze(-2), square.squeeze(-1)
    for draws, wanted in zip((linear, square, precision, log_det), p.expected_statistics(), strict=True):
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - wanted).abs() < 5 * error).all()


def test_dirichlet_is_torchs_and_scipys() -> None:
    q, p = dirichlet(6), dirichlet(6, seed=1)
    ours, theirs = (torch.distributions.Dirichlet(d.concentration) for d in (q, p))
    torch.testing.assert_close(q.kl(p), torch.distributions.kl_divergence(ours, theirs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.mean, ours.mean)
    pi = q.sample()
    for i in range(6):
        wanted = scipy.stats.dirichlet(q.concentration[i].numpy()).logpdf((pi[i] / pi[i].sum()).numpy())
        assert q.log_prob(pi)[i].item() == pytest.approx(wanted, abs=1e-10)


def test_categorical_is_torchs() -> None:
    q, p = categorical(6), categorical(6, seed=1)
    ours, theirs = (torch.distributions.Categorical(logits=d.logits) for d in (q, p))
    torch.testing.assert_close(q.kl(p), torch.distributions.kl_divergence(ours, theirs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.entropy(), ours.entropy())
    z = q.sample((5,))
    torch.testing.assert_close(q.log_prob(z), ours.log_prob(z))
    never = Categorical(torch.tensor([0.0, -math.inf]).double())
    assert never.kl(Categorical(torch.zeros(2).double())).item() == pytest.approx(math.log(2.0), abs=1e-15)
    assert never.entropy() == 0.0


def test_wishart_is_scipys_and_torchs() -> None:
    q, p = wishart(seed=0), wishart(seed=7)
    mean, precision = q.sample()
    normal = scipy.stats.multivariate_normal(q.mean.numpy(), np.linalg.inv(q.kappa.numpy() * precision.numpy()))
    wanted = normal.logpdf(mean.numpy()) + scipy.stats.wishart(q.nu.item(), np.linalg.inv(q.psi.numpy())).logpdf(
        precision.numpy()
    )
    assert q.log_prob(mean, precision).item() == pytest.approx(wanted, abs=1e-9)
    inverse = scipy.stats.invwishart(q.nu.item(), q.psi.numpy()).logpdf(np.linalg.inv(precision.numpy()))
    change = (D + 1) * torch.logdet(precision).item()
    assert q.log_prob(mean, precision).item() + change == pytest.approx(normal.logpdf(mean.numpy()) + inverse, abs=1e-9)
    # with means of equal place and weight only the precisions differ: torch's closed form between Wisharts
    same = NormalInverseWishart(q.mean, q.kappa, p.psi, p.nu)
    ours, theirs = (torch.distributions.Wishart(d.nu, torch.linalg.inv(d.psi), validate_args=False) for d in (q, p))
    torch.testing.assert_close(q.kl(same), torch.distributions.kl_divergence(ours, theirs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.expected_precision, ours.mean)


def test_gamma_is_scipys() -> None:
    q = gamma()
    mean, precision = q.sample()
    wanted = scipy.stats.norm(q.mean, 1 / (q.kappa * precision).sqrt()).logpdf(mean)
    wanted = wanted + scipy.stats.gamma(0.5 * q.nu, scale=2.0 / q.psi).logpdf(precision)
    np.testing.assert_allclose(q.log_prob(mean, precision).numpy(), wanted, atol=1e-12)


def test_tied_with_one_mean_and_gamma_are_the_wishart() -> None:
    full, other = wishart(2), wishart(2, seed=4)
    one, two = (TiedNormalInverseWishart(f.mean[:, None], f.kappa[:, None], f.psi, f.nu) for f in (full, other))
    x, weights = torch.randn(7, D, **generator(2)), torch.rand(7, 2, **generator(3))
    torch.testing.assert_close(one.kl(two), full.kl(other))
    torch.testing.assert_close(one.log_partition(), full.log_partition())
    torch.testing.assert_close(one.expected_log_normal(x)[..., 0], full.expected_log_normal(x))
    torch.testing.assert_close(one.posterior(x, weights[..., None]).psi, full.posterior(x, weights).psi)
    draw = full.sample()
    torch.testing.assert_close(one.log_prob(draw[0][:, None], draw[1]), full.log_prob(*draw))
    g, h = gamma(), gamma(seed=4)
    line, lane = (NormalInverseWishart(f.mean[:, None], f.kappa, f.psi[:, None, None], f.nu) for f in (g, h))
    torch.testing.assert_close(line.kl(lane), g.kl(h))
    torch.testing.assert_close(line.log_partition(), g.log_partition())


def terms_of(x: Tensor, weights: Tensor) -> NormalTerms:
    """Σ_n w_n t(x_n), x (N, D) and weights (N, *B)."""
    half = 0.5 * weights.sum(0)
    matrix = -0.5 * torch.einsum("n...,ni,nj->...ij", weights, x, x)
    return NormalTerms(torch.einsum("n...,ni->...i", weights, x), -half, matrix, half)


@pytest.mark.parametrize("left", [(), (4,), (2, 4)])
def test_posterior_adds_up_natural_parameters(left: tuple[int, ...]) -> None:
    x = 2.0 + torch.randn(9, D, **generator(0))
    weights = torch.rand(9, *left, **generator(1))
    full, shared, one = wishart(*left), tied(*left), gamma(*left)
    added = [a + b for a, b in zip(full.natural(), terms_of(x, weights), strict=True)]
    for a, b in zip(full.posterior(x, weights).natural(), added, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.rand(9, *left, K, **generator(2))
    data, prior = terms_of(x, weights), shared.natural()
    wanted = NormalTerms(
        prior.linear + data.linear,
        prior.square + data.square,
        prior.matrix + data.matrix.sum(-3),
        prior.log_det + data.log_det.sum(-1),
    )
    for a, b in zip(shared.posterior(x, weights).natural(), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.rand(9, *left, D, **generator(3))
    column, prior = x.reshape(9, *[1] * len(left), D), one.natural()
    sums = (weights * column, -0.5 * weights, -0.5 * weights * column.square(), 0.5 * weights)
    for a, b, c in zip(one.posterior(column, weights).natural(), prior, sums, strict=True):
        torch.testing.assert_close(a, b + c.sum(0), rtol=1e-12, atol=1e-12)


def test_posterior_of_nothing_is_the_prior() -> None:
    x = torch.randn(5, D, **generator(0))
    full, shared, one = wishart(2), tied(), gamma()
    for prior, posterior in (
        (full, full.posterior(x, x.new_zeros(5, 2))),
        (shared, shared.posterior(x, x.new_zeros(5, K))),
        (one, one.posterior(x, x.new_zeros(5, D))),
    ):
        for field, value in vars(prior).items():
            torch.testing.assert_close(getattr(posterior, field), value, rtol=1e-14, atol=1e-14)


def test_posterior_is_bayes_rule() -> None:
    """p(θ) p(x | θ) / p(θ | x) is p(x), the same for every θ."""
    x = torch.randn(6, D, **generator(0))
    torch.manual_seed(0)
    prior = wishart()
    posterior = prior.posterior(x)
    mean, precision = prior.sample((8,))
    likelihood = torch.distributions.MultivariateNormal(mean, precision_matrix=precision).log_prob(x[:, None]).sum(0)
    evidence = prior.log_prob(mean, precision) + likelihood - posterior.log_prob(mean, precision)
    torch.testing.assert_close(evidence, evidence.mean().expand(8), rtol=0, atol=1e-9)
    # the log partitions' difference
    wanted = posterior.log_partition() - prior.log_partition() - 0.5 * x.numel() * math.log(2 * math.pi)
    torch.testing.assert_close(evidence[0], wanted, rtol=0, atol=1e-9)


@with_means
def test_expected_log_normal_is_an_inner_product(name: str) -> None:
    """⟨t(x), E[T]⟩ - D/2 log 2π, and by Monte Carlo within 4 standard errors of 20,000 draws."""
    torch.manual_seed(0)
    p, x = FAMILIES[name](2), torch.randn(5, D, **generator(6))
    t = p.expected_statistics()
    if name == "gamma":
        got = p.expected_log_normal(x[:, None])
        wide = x[:, None]
        wanted = 0.5 * (2 * wide * t.linear - t.square - wide.square() * t.matrix + t.log_det - math.log(2 * math.pi))
    else:
        got = p.expected_log_normal(x)
        quadratic = torch.einsum("...ij,ni,nj->n...", t.matrix, x, x)
        linear = torch.einsum("...i,ni->n...", t.linear, x)
        if name == "tied":
            quadratic, log_det = quadratic[..., None], t.log_det[..., None]
        else:
            log_det = t.log_det
        wanted = linear + 0.5 * (log_det - t.square - quadratic - D * math.log(2 * math.pi))
    assert got.shape == {"gamma": (5, 2, D), "wishart": (5, 2), "tied": (5, 2, K)}[name]
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_dirichlet_posterior_counts() -> None:
    prior = dirichlet()
    counts = torch.tensor([1.0, 0.0, 2.5, 3.0]).double()
    torch.testing.assert_close(prior.posterior(counts).natural(), prior.natural() + counts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dirichlet(torch.tensor([1.0, 0.0])), r"concentration must be numbers above 0; among them is 0"),
        (lambda: Dirichlet(torch.tensor([1, 2])), "concentration must be a floating-point tensor .* not torch.int64"),
        (lambda: Categorical(torch.tensor([math.nan, 0.0])), "logits must be numbers; among them is nan"),
        (lambda: replaced(mean=torch.zeros(2)), r"psi has shape \(3, 3\); for a mean of 2 numbers"),
        (lambda: replaced(kappa=torch.tensor(-1.0)), "kappa must be numbers above 0"),
        (lambda: replaced(nu=torch.tensor(2.0)), r"nu must be numbers above D - 1 = 2"),
        (lambda: replaced(psi=-torch.eye(3)), "psi must be symmetric and positive definite"),
        (lambda: replaced(psi=torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])), "symmetric and positive definite"),
        (lambda: replaced(mean=torch.full((3,), math.nan)), "mean must be finite numbers"),
        (lambda: replaced(mean=torch.zeros(2, 3), kappa=torch.ones(3)), "batch shapes do not broadcast: mean"),
        (
            lambda: TiedNormalInverseWishart(torch.zeros(2, 3), torch.ones(3), torch.eye(3), torch.tensor(4.0)),
            r"kappa has shape \(3,\); there are 2 means",
        ),
        (lambda: NormalInverseGamma(*torch.tensor([0.0, 1.0, 0.0, 1.0])), "psi must be numbers above 0"),
    ],
)
def test_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def replaced(**fields: Tensor) -> NormalInverseWishart:
    plain = {"mean": torch.zeros(3), "kappa": torch.tensor(1.0), "psi": torch.eye(3), "nu": torch.tensor(4.0)}
    return NormalInverseWishart(**{**plain, **fields})
