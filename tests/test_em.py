"""Expectation maximization: scikit-learn's parameters after equal iterations, M-steps against gradients, and what
becomes of components that shrink to a point."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.mixture
import torch
from mixtures import COVARIANCES, random_responsibilities, three_groups, with_prior
from torch import Tensor

from ppl_vae import Batch
from ppl_vae.coordinate_ascent import coordinate_ascent
from ppl_vae.data import DataSet
from ppl_vae.em import _Fit, em
from ppl_vae.errors import InputError
from ppl_vae.mixture_parameters import Covariance, Data, DirichletNormal, MixtureParameters
from ppl_vae.models import GaussianMixture

every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def model_of(covariance: Covariance = "full", components: int = 3, size: int = 2) -> GaussianMixture:
    return GaussianMixture(components, size, covariance).double()


def scikit_learns(x: Tensor, r: Tensor, covariance: Covariance, iterations: int) -> sklearn.mixture.GaussianMixture:
    """Its fit from responsibilities r after so many iterations."""

    class From(sklearn.mixture.GaussianMixture):  # type: ignore[misc]
        def _initialize_parameters(self, X: object, *args: object, **kwargs: object) -> None:
            self._initialize(X, r.numpy())

    kind = "diag" if covariance == "diagonal" else covariance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return From(r.shape[1], covariance_type=kind, reg_covar=0.0, tol=0.0, max_iter=iterations).fit(x.numpy())


@every_covariance
@pytest.mark.parametrize("iterations", [1, 25])
@pytest.mark.parametrize("size", [1, 4])
def test_parameters_are_scikit_learns(covariance: Covariance, iterations: int, size: int) -> None:
    x, r = three_groups(90, size), random_responsibilities(90, 3)
    model = model_of(covariance, size=size)
    result = em(model, x, start=r, iterations=iterations, tolerance=0, regularization=0.0)
    theirs = scikit_learns(x, r, covariance, iterations)
    assert result.iterations == iterations == theirs.n_iter_
    wanted = {
        "full": lambda c: c,
        "tied": lambda c: np.broadcast_to(c, (3, size, size)),
        "diagonal": lambda c: np.stack([np.diag(row) for row in c]),
    }[covariance](theirs.covariances_)
    for p in (result.parameters, model.parameters_of()):
        np.testing.assert_allclose(p.log_weights.exp().detach(), theirs.weights_, rtol=1e-9)
        np.testing.assert_allclose(p.loc.detach(), theirs.means_, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(p.covariance.detach(), wanted, rtol=1e-8, atol=1e-10)
    assert result.log_likelihood == pytest.approx(theirs.score(x.numpy()), abs=1e-9)


@every_covariance
@pytest.mark.parametrize("regularization", [0.0, 3.0])
def test_m_step_maximizes(covariance: Covariance, regularization: float) -> None:
    """At its end the gradient of E_q[log p(x, z)] and the penalty is 0, in every parameter."""
    x, r = three_groups(60, 3), random_responsibilities(60, 3)
    fit = _Fit(x, 3, covariance, regularization, repair=False)
    p = fit.maximized(r)
    logits = p.log_weights.clone().requires_grad_()
    loc = p.loc.clone().requires_grad_()
    first = p.scale[0] if covariance == "tied" else p.scale
    free = first.clone().requires_grad_()
    scale = free.expand_as(p.scale) if covariance == "tied" else free
    at = MixtureParameters(logits.log_softmax(-1), loc, scale)
    expected = (r * at.log_joint(x)).sum()
    covariances = (at.covariance[:1] if covariance == "tied" else at.covariance).inverse()
    penalty = 0.5 * regularization * (covariances * x.var(0, correction=0).diag()).sum()
    gradients = torch.autograd.grad(expected - penalty, (logits, loc, free))
    for gradient in gradients:
        part = (
            gradient if covariance == "diagonal" or gradient.dim() < 2 or gradient is gradients[1] else gradient.tril()
        )
        torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-9)
    objective = fit._objective(p, p.log_joint(x))
    assert objective * 60 == pytest.approx((p.log_prob(x).sum() - penalty).item(), abs=1e-9)


@every_covariance
@pytest.mark.parametrize("regularization", [0.0, 1e-3, 5.0])
def test_every_iteration_raises_the_objective(covariance: Covariance, regularization: float) -> None:
    """But for rounding, on data with more groups than components and fewer."""
    gained = []
    for seed in range(2):
        for components in (2, 5):
            result = em(
                model_of(covariance, components),
                three_groups(seed=seed),
                restarts=1,
                iterations=30,
                tolerance=0,
                regularization=regularization,
                seed=seed,
            )
            assert not result.repairs
            gained.append(np.diff(result.history))
    steps = np.concatenate(gained)
    assert steps.min() > -1e-12
    assert steps.max() > 1e-3


def test_the_best_start_is_kept_and_the_model_set() -> None:
    x = three_groups(60, seed=2)
    model = model_of(components=4)
    result = em(model, x, restarts=4, tolerance=1e-5)
    assert result.converged
    assert len(result.starts) == 4
    assert result.best == int(np.argmax(result.starts))
    assert result.history[-1] == max(result.starts) > min(result.starts)
    assert result.log_likelihood == pytest.approx(model.log_prob(x).mean().item(), abs=1e-12)
    again = em(model_of(components=4), x, restarts=4, tolerance=1e-5)
    assert again.history == result.history


def test_units_do_not_matter() -> None:
    x = three_groups()
    units = torch.tensor([1e5, 1e-4]).double()
    plain = em(model_of(), x, restarts=2)
    scaled = em(model_of(), x * units + 7.0 * units, restarts=2)
    torch.testing.assert_close(scaled.parameters.log_weights, plain.parameters.log_weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.parameters.loc / units - 7.0, plain.parameters.loc, rtol=1e-6, atol=1e-6)
    change = float(units.log().sum())
    assert scaled.log_likelihood + change == pytest.approx(plain.log_likelihood, abs=1e-6)


def test_a_model_in_float32() -> None:
    x = three_groups().float()
    model = GaussianMixture(3, 2)
    result = em(model, x, restarts=1)
    assert result.parameters.loc.dtype == torch.float64
    torch.testing.assert_close(model.log_prob(x).mean().item(), result.log_likelihood, rtol=1e-5, atol=1e-5)


def points() -> Tensor:
    """A group, and ten data at one and the same place."""
    return torch.cat([three_groups(60), torch.full((10, 2), 30.0).double()])


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_singular_component_is_an_error(covariance: Covariance) -> None:
    with pytest.raises(
        InputError, match=r"component \d of 4 is singular after \d+ iterations: its 10 data have no spread"
    ):
        em(model_of(covariance, 4), points(), regularization=0.0, singular="error", restarts=3)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_singular_component_is_repaired_and_reported(covariance: Covariance) -> None:
    """What is left is finite throughout, and the objective falls only where a component was made anew."""
    x = torch.cat([three_groups(60), torch.full((3, 2), 9.0).double()])
    model = model_of(covariance, 4)
    result = em(model, x, regularization=0.0, restarts=4, iterations=60)
    assert result.repairs
    assert all(repair.start in range(4) and repair.data > 0 for repair in result.repairs)
    assert any(not math.isnan(reached) for reached in result.starts)
    for tensor in (*result.parameters, *model.parameters()):
        assert bool(tensor.isfinite().all())
    assert bool(model.log_prob(x).isfinite().all())
    mine = {repair.iteration for repair in result.repairs if repair.start == result.best}
    falls = {i for i, gain in enumerate(np.diff(result.history), start=1) if gain < -1e-12}
    assert falls <= mine


@every_covariance
def test_regularization_keeps_every_component_wide(covariance: Covariance) -> None:
    """The penalty bounds the likelihood: no repair, and no variance below that of λ data."""
    x = points()
    result = em(model_of(covariance, 4), x, regularization=1e-2, restarts=2)
    assert not result.repairs
    least = torch.linalg.eigvalsh(result.parameters.covariance / x.var(0).sqrt() / x.var(0).sqrt()[:, None]).min()
    assert least > 1e-2 / len(x) / 1.1
    assert np.diff(result.history).min() > -1e-12


def constant() -> Tensor:
    return torch.cat([three_groups(20), torch.ones(20, 1).double()], 1)


def line() -> Tensor:
    x = three_groups(20)
    return torch.cat([x, x[:, :1] + x[:, 1:]], 1)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            lambda: em(model_of(), three_groups(2)),
            "components=3 are more than the data: x has 2 rows, 2 of them different",
        ),
        (lambda: em(model_of(), three_groups(2).repeat(5, 1)), "x has 10 rows, 2 of them different"),
        (
            lambda: em(model_of(), three_groups(9, 3)),
            r"x has shape \(9, 3\); it must be a floating-point tensor \(N, 2\)",
        ),
        (lambda: em(model_of(), three_groups(9)[0]), r"x has shape \(2,\)"),
        (lambda: em(model_of(), torch.tensor([[0.0, math.nan], [1.0, 2.0]])), "NaN or infinity in 1 of 2 rows, row 0"),
        (lambda: em(model_of(), torch.zeros(9, 2).long()), "not torch.int64"),
        (lambda: em(with_prior(three_groups()), three_groups()), "this mixture has a prior: use coordinate_ascent"),
        (lambda: em(model_of(size=3), constant()), "column 2 of x is constant"),
        (lambda: em(model_of(size=3), line()), "x has no spread in some direction, in which column"),
        (lambda: em(model_of("tied", size=3), line()), "x has no spread in some direction"),
        (lambda: em(model_of(), three_groups(), restarts=0), "restarts=0 must be a whole number, 1 or more"),
        (lambda: em(model_of(), three_groups(), tolerance=math.nan), "tolerance=nan must be a number, 0 or more"),
        (lambda: em(model_of(), three_groups(), regularization=-1.0), "regularization=-1.0 must be a number"),
        (lambda: em(model_of(), three_groups(), singular="mend"), "singular='mend' is not known"),  # type: ignore[arg-type]
        (lambda: em(model_of(), three_groups(9), start=torch.zeros(9)), "labels of torch.float32; labels are int64"),
        (
            lambda: em(model_of(), three_groups(9), start=torch.full((9,), 3)),
            "start has 9 labels; it needs 9, from 0 to 2",
        ),
        (lambda: em(model_of(), three_groups(9), start=torch.ones(9, 3)), "start has rows that are no probabilities"),
        (lambda: em(model_of(), three_groups(9), start=torch.ones(3, 9)), r"start has shape \(3, 9\)"),
        (lambda: em(model_of(), three_groups(9), start=[0] * 9), "start=list must be responsibilities"),  # type: ignore[arg-type]
    ],
)
def test_refused(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_labels_are_a_start() -> None:
    x, labels = three_groups(30), torch.arange(30) % 3
    ours = em(model_of(), x, start=labels, iterations=3, tolerance=0)
    theirs = em(model_of(), x, start=torch.nn.functional.one_hot(labels, 3).double(), iterations=3, tolerance=0)
    assert ours.history == theirs.history


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_empty_component_is_reported_whatever_the_regularization(covariance: Covariance) -> None:
    """Responsibilities that leave the last component without data: under a penalty it stays so, the others are what two
    alone are, and the result names it; without one it is made anew. Or it is an error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(40, 2, generator=generator, dtype=torch.float64) + 5.0 * k for k in range(3)])
    start = torch.zeros(len(x), 3, dtype=torch.float64)
    start[:60, 0] = start[60:, 1] = 1.0

    result = em(GaussianMixture(3, 2, covariance=covariance), x, start=start)
    two = em(GaussianMixture(2, 2, covariance=covariance), x, start=start[:, :2])
    assert result.empty == (2,)
    assert two.empty == ()
    assert not result.repairs
    assert torch.allclose(result.parameters.loc[:2], two.parameters.loc, rtol=0, atol=1e-9)
    assert torch.allclose(result.parameters.scale[:2], two.parameters.scale, rtol=0, atol=1e-9)
    assert result.log_likelihood == pytest.approx(two.log_likelihood, abs=1e-9)

    anew = em(GaussianMixture(3, 2, covariance=covariance), x, start=start, regularization=0.0)
    assert anew.repairs[0][:3] == (0, 0, 2)
    assert anew.repairs[0].data < 1e-100
    assert anew.empty == ()
    for regularization in (1e-3, 0.0):
        with pytest.raises(InputError, match=r"component 2 of 3 is empty after \d+ iterations"):
            em(
                GaussianMixture(3, 2, covariance=covariance),
                x,
                start=start,
                regularization=regularization,
                singular="error",
            )


def test_a_data_set_and_a_batch_are_taken_as_their_x() -> None:
    x = three_groups(60).float()
    many: tuple[Data, ...] = (x, Batch(x=x), DataSet.from_arrays(x, name="groups"))
    fits, posteriors = [], []
    for data in many:
        torch.manual_seed(0)
        model = GaussianMixture(3, 2)
        found = em(model, data, restarts=2, iterations=20)
        fits.append((*found.parameters, *found.history, model.log_prob(data), model.predict(data), model.bic(data)))
        bayesian = GaussianMixture(3, 2, prior=DirichletNormal.weak(data, 3))
        q = coordinate_ascent(bayesian, data, restarts=2, iterations=20)
        posteriors.append((*vars(q.posterior.normals).values(), q.log_prob(data), q.predict(data)))
    for several in (fits, posteriors):
        for other in several[1:]:
            for ours, theirs in zip(several[0], other, strict=True):
                assert bool(torch.as_tensor(ours == theirs).all())
    holes = torch.ones(60, 2, dtype=torch.bool)
    holes[3, 1] = False
    missing = DataSet.from_arrays(torch.where(holes, x, 0.0), observed=holes, name="groups")
    with pytest.raises(InputError, match="x has 1 missing values, and a Gaussian mixture scores all of x"):
        em(GaussianMixture(3, 2), missing)
    with pytest.raises(InputError, match="x is a Batch without x"):
        em(GaussianMixture(3, 2), Batch(n=4))
