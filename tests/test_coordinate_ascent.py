"""Coordinate ascent: scikit-learn's posterior after equal sweeps, the evidence by a sum over all assignments, and
sweeps that are optima of each coordinate."""

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.mixture
import torch
from mixtures import COVARIANCES, mixture, random_responsibilities, three_groups, with_prior
from torch import Tensor

from ppl_vae.coordinate_ascent import coordinate_ascent, sweep
from ppl_vae.errors import InputError
from ppl_vae.mixture_parameters import Covariance, DirichletNormal

every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def scikit_learns(x: Tensor, r: Tensor, kind: str, iterations: int) -> sklearn.mixture.BayesianGaussianMixture:
    class From(sklearn.mixture.BayesianGaussianMixture):  # type: ignore[misc]
        def _initialize_parameters(self, X: object, *args: object, **kwargs: object) -> None:
            self._initialize(X, r.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return From(
            n_components=r.shape[1],
            covariance_type=kind,
            weight_concentration_prior_type="dirichlet_distribution",
            reg_covar=0.0,
            tol=0.0,
            max_iter=iterations,
        ).fit(x.numpy())


# where scikit-learn's rule for the degrees of freedom is the mean-field one: tied with a single component, diagonal
# with a single number
SAME_RULE = [("full", 3, 4), ("full", 3, 1), ("tied", 1, 4), ("diagonal", 3, 1)]


@pytest.mark.parametrize(("covariance", "components", "size"), SAME_RULE)
@pytest.mark.parametrize("iterations", [1, 25])
def test_posterior_is_scikit_learns(covariance: Covariance, components: int, size: int, iterations: int) -> None:
    x, r = three_groups(90, size), random_responsibilities(90, components)
    model = with_prior(x, covariance, components)
    result = coordinate_ascent(model, x, start=r, iterations=iterations, tolerance=0)
    theirs = scikit_learns(x, r, "diag" if covariance == "diagonal" else covariance, iterations)
    assert result.iterations == iterations == theirs.n_iter_
    q = result.posterior
    n = q.normals
    nu = n.nu if covariance != "full" else n.nu[:, None, None]
    for ours, wanted in (
        (q.weights.concentration, theirs.weight_concentration_),
        (n.mean, theirs.means_),
        (n.kappa.squeeze(-1) if covariance == "diagonal" else n.kappa, theirs.mean_precision_),
        (n.nu.squeeze(-1) if covariance == "diagonal" else n.nu, theirs.degrees_of_freedom_),
        (n.psi / nu, theirs.covariances_),
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.responsibilities(x), theirs.predict_proba(x.numpy()), atol=1e-9)


def log_evidence(prior: DirichletNormal, x: Tensor) -> float:
    """log p(x) = log Σ_z p(z) p(x | z), by all K^N assignments."""
    terms = []
    for z in itertools.product(range(prior.components), repeat=len(x)):
        r = torch.nn.functional.one_hot(torch.tensor(z), prior.components).double()
        q = prior.posterior(x, r)
        normals = (q.normals.log_partition() - prior.normals.log_partition()).sum()
        weights = q.weights.log_partition() - prior.weights.log_partition()
        terms.append(weights + normals - 0.5 * x.numel() * math.log(2 * math.pi))
    return float(torch.stack(terms).logsumexp(0))


@every_covariance
@pytest.mark.parametrize("components", [1, 2])
def test_elbo_against_the_evidence(covariance: Covariance, components: int) -> None:
    """With one component q(θ) is the posterior and the ELBO log p(x); with two it is less, by what z and θ have to do
    with each other and by the other labelling, of equal evidence."""
    x = three_groups(6)
    model = with_prior(x, covariance, components)
    elbo = 6 * coordinate_ascent(model, x, restarts=3).history[-1]
    evidence = log_evidence(model.prior, x)
    if components == 1:
        assert elbo == pytest.approx(evidence, abs=1e-9)
    else:
        assert elbo < evidence - math.log(2)
        assert elbo > evidence - 5.0


@every_covariance
def test_every_sweep_raises_the_elbo(covariance: Covariance) -> None:
    gained = []
    for seed in range(2):
        x = three_groups(seed=seed)
        for components in (2, 6):
            model = with_prior(x, covariance, components)
            start = random_responsibilities(len(x), components, seed)
            gained.append(np.diff(coordinate_ascent(model, x, start=start, iterations=60, tolerance=0).history))
    steps = np.concatenate(gained)
    assert steps.min() > -1e-12
    assert steps.max() > 1e-3


@every_covariance
def test_each_factor_is_at_its_optimum(covariance: Covariance) -> None:
    """The gradient of E_q[log p(x, z, θ) - log q(z) - log q(θ)], written out, by the factor just set."""
    x, r = three_groups(20, 3), random_responsibilities(20, 3)
    prior = with_prior(x, covariance).prior

    def elbo(q: DirichletNormal, r: Tensor) -> Tensor:
        return (r * (q.expected_log_joint(x) - r.log())).sum() - q.kl(prior)

    q = prior.posterior(x, r)
    concentration = q.weights.concentration.clone().requires_grad_()
    fields = {name: value.clone().requires_grad_() for name, value in vars(q.normals).items()}
    free = DirichletNormal(type(q.weights)(concentration), type(q.normals)(**fields))
    for gradient in torch.autograd.grad(elbo(free, r), [concentration, *fields.values()]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    after, value = sweep(prior, q, x)
    best = q.expected_log_joint(x).softmax(-1)
    torch.testing.assert_close(elbo(q, best), value)
    logits = best.log().requires_grad_()
    (gradient,) = torch.autograd.grad(elbo(q, logits.softmax(-1)), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    assert elbo(after, best) > value


@every_covariance
def test_a_sweep_adds_up_natural_parameters(covariance: Covariance) -> None:
    x = three_groups(20)
    prior = with_prior(x, covariance).prior
    q = prior.posterior(x, random_responsibilities(20, 3))
    r = q.expected_log_joint(x).softmax(-1)
    after, _ = sweep(prior, q, x)
    torch.testing.assert_close(after.weights.natural(), prior.weights.natural() + r.sum(0))
    torch.testing.assert_close(after.normals.natural().linear, prior.normals.natural().linear + r.T @ x)


@every_covariance
def test_predictive_density_is_a_ratio_of_evidences(covariance: Covariance) -> None:
    x, new = three_groups(12, 3), three_groups(4, 3, seed=5)
    model = with_prior(x, covariance, 1)
    result = coordinate_ascent(model, x, restarts=1)
    before = log_evidence(model.prior, x)
    for row, ours in zip(new, result.log_prob(new), strict=True):
        wanted = log_evidence(model.prior, torch.cat([x, row[None]])) - before
        assert float(ours) == pytest.approx(wanted, abs=1e-9)


@every_covariance
def test_predictive_is_the_mean_over_mixtures(covariance: Covariance) -> None:
    """Within 5 standard errors of 5,000 draws of the parameters; and the means of 5,000 predicted x."""
    torch.manual_seed(0)
    x = three_groups(60, 3)
    result = coordinate_ascent(with_prior(x, covariance), x, restarts=1)
    densities = result.posterior.sample((5000,)).log_prob(x[:4]).exp()
    error = densities.std(0) / math.sqrt(5000)
    assert ((densities.mean(0) - result.log_prob(x[:4]).exp()).abs() < 5 * error).all()
    drawn = result.sample(5000)
    mean = result.posterior.weights.mean @ result.posterior.normals.mean
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / math.sqrt(5000)).all()


def test_components_that_are_not_needed_fall_back_to_the_prior() -> None:
    """With α = 1/K of eight components, three groups keep data."""
    x = three_groups(300)
    result = coordinate_ascent(with_prior(x, components=8), x, restarts=2)
    counts = result.posterior.weights.concentration - 1.0 / 8
    assert int((counts > 1.0).sum()) in (3, 4)
    assert result.predict(x).unique().numel() in (3, 4)
    assert math.isfinite(result.history[-1])
    assert result.converged
    assert result.history[-1] == max(result.starts)


def test_a_tolerance_of_zero_is_all_sweeps() -> None:
    """Where they gain nothing any more but rounding, too."""
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise + torch.tensor([[5.0], [-5.0]], dtype=torch.float64).repeat(100, 1)
    result = coordinate_ascent(with_prior(x, components=2), x, restarts=1, iterations=20, tolerance=0)
    assert result.iterations == 20
    assert not result.converged


def test_equal_points_are_no_trouble() -> None:
    x = torch.cat([three_groups(30), torch.full((10, 2), 9.0).double()])
    result = coordinate_ascent(with_prior(x, components=5), x, restarts=2)
    for tensor in vars(result.posterior.normals).values():
        assert bool(tensor.isfinite().all())
    assert np.diff(result.history).min() > -1e-12


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: coordinate_ascent(mixture(), three_groups()), "has no prior over them: use em"),
        (lambda: ascend(three_groups(2)), "components=3 are more than the data: x has 2 rows"),
        (lambda: ascend(three_groups(9, 3)), r"x has shape \(9, 3\)"),
        (lambda: ascend(torch.full((9, 2), math.nan)), "x has NaN or infinity in 9 of 9 rows"),
        (lambda: ascend(three_groups(9), start=torch.zeros(9)), "labels are int64"),
        (lambda: ascend(three_groups(9), tolerance=-1), "tolerance=-1 must be a number, 0 or more"),
        (lambda: ascend(three_groups(9), restarts=0), "restarts=0 must be a whole number"),
        (
            lambda: mixture_prior(3).kl(mixture_prior(2)),
            "full covariances, 3 components of 2 numbers has no KL from one with full covariances, 2 components",
        ),
    ],
)
def test_refused(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def ascend(x: Tensor, **options: object) -> object:
    return coordinate_ascent(with_prior(three_groups()), x, **options)  # type: ignore[arg-type]


def mixture_prior(components: int) -> DirichletNormal:
    return with_prior(three_groups(), components=components).prior
