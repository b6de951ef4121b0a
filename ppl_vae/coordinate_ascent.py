"""Mean-field inference of a Gaussian mixture's parameters by coordinate ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .conjugate import Dirichlet
from .errors import InputError, check_count
from .mixture_parameters import Data, DirichletNormal, check_data
from .mixture_starts import centres, given_responsibilities, nearest
from .models.gaussian_mixture import GaussianMixture
from .validation import validation

__all__ = ["CoordinateAscentResult", "coordinate_ascent", "sweep"]


@dataclass(frozen=True)
class CoordinateAscentResult:
    """What `coordinate_ascent` found, of the best start.

    Args:
        posterior: q(θ), in float64.
        history: the ELBO before each sweep and after the last, nats a datum.
        converged: whether the last sweep gained less than the tolerance.
        starts: the ELBO that each start reached.
        best: which start this is.
    """

    posterior: DirichletNormal
    history: tuple[float, ...]
    converged: bool
    starts: tuple[float, ...]
    best: int

    @property
    def iterations(self) -> int:
        """Sweeps of the best start."""
        return len(self.history) - 1

    def responsibilities(self, x: Data) -> Tensor:
        """q(z = k) of x (N, D), (N, K): what coordinate ascent would give a datum under this q(θ)."""
        return self.posterior.expected_log_joint(self._like(x)).softmax(-1)

    def predict(self, x: Data) -> Tensor:
        """The most probable component of each datum, (N,)."""
        return self.posterior.expected_log_joint(self._like(x)).argmax(-1)

    def log_prob(self, x: Data) -> Tensor:
        """log of the posterior predictive density ∫ p(x | θ) q(θ) dθ of x (N, D), (N,), nats."""
        return self.posterior.log_predictive(self._like(x))

    def sample(self, n: int) -> Tensor:
        """x (n, D) from the posterior predictive distribution: each of a mixture of its own, drawn from q(θ)."""
        check_count("n", n)
        mixtures = self.posterior.sample((n,))
        z = torch.distributions.Categorical(logits=mixtures.log_weights).sample()
        rows = torch.arange(n)
        noise = torch.randn(n, self.posterior.size, dtype=mixtures.loc.dtype)
        scale = mixtures.scale[rows, z]
        spread = scale * noise if mixtures.diagonal else (scale @ noise[:, :, None]).squeeze(-1)
        return mixtures.loc[rows, z] + spread

    def _like(self, x: Data) -> Tensor:
        return check_data(x, self.posterior.size).to(self.posterior.normals.mean)


def sweep(prior: DirichletNormal, posterior: DirichletNormal, x: Tensor) -> tuple[DirichletNormal, Tensor]:
    r"""Once over both coordinates: q(z) given q(θ), then q(θ) given q(z).

    .. math::
        \log q(z_n = k) = E_{q(θ)}[\log π_k + \log N(x_n; μ_k, Σ_k)] + \text{const}, \qquad
        η_{q(θ)} = η_{\text{prior}} + \sum_n E_{q(z)}[t(x_n, z_n)]

    Args:
        prior: p(θ).
        posterior: q(θ).
        x: (N, D).

    Returns:
        q(θ) after the sweep, and the ELBO of the q(θ) that came, at the best q(z) for it, (), nats for all data:
        Σ_n log Σ_k exp E_q[log π_k + log N(x_n; μ_k, Σ_k)] - KL(q(θ) ‖ p(θ)).
    """
    joint = posterior.expected_log_joint(x)
    elbo = joint.logsumexp(-1).sum() - posterior.kl(prior)
    return prior.posterior(x, joint.softmax(-1)), elbo


def coordinate_ascent(
    model: GaussianMixture,
    x: Data,
    *,
    restarts: int = 10,
    iterations: int = 1000,
    tolerance: float = 1e-7,
    start: Tensor | None = None,
    seed: int = 0,
) -> CoordinateAscentResult:
    r"""Mean-field posterior q(θ) q(z) of a mixture with a prior: each factor in turn at its optimum given the other.

    .. math::
        \log p(x) \ge \mathrm{ELBO} = E_q[\log p(x, z, θ) - \log q(z) - \log q(θ)], \qquad
        \log q_i^* = E_{j \ne i}[\log p(x, z, θ)] + \text{const}

    q(θ) is of the prior's family, by conjugacy and not by choice. Each sweep raises the ELBO, to a local optimum;
    starts are hard assignments to the nearest of k-means++'s centres, and the best of the restarts is kept. A
    component without data falls back to its prior: none can become singular. All is computed in float64.

    Args:
        model: a mixture with a prior.
        x: (N, D) data, as a tensor, a batch or a data set.
        restarts: number of starts.
        iterations: sweeps at most, of each.
        tolerance: a start is done when a sweep gains less, nats a datum; 0: all sweeps.
        start: responsibilities (N, K) or labels (N,) to begin with, for one start.
        seed: of the starts.

    Raises:
        InputError: a mixture without prior; more components than different data, NaN, another shape.

    Reference: Bishop, Pattern recognition and machine learning, 2006, chapter 10.2; Blei, Kucukelbir and McAuliffe,
    Variational inference: a review for statisticians, JASA 2017 (https://arxiv.org/abs/1601.00670).
    """
    if not model.has_prior:
        raise InputError("coordinate_ascent infers parameters, and this mixture has no prior over them: use em")
    check_count("restarts", restarts)
    check_count("iterations", iterations, least=0)
    if not (isinstance(tolerance, int | float) and math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance={tolerance!r} must be a number, 0 or more")
    x = check_data(x, model.size).detach().double()
    prior = _double(model.prior)
    first = [centres(x, model.components, seed + i) for i in range(restarts if start is None else 1)]
    if start is None:
        firsts = [nearest(x, each) for each in first]
    else:
        firsts = [given_responsibilities(start, x, model.components)]
    with torch.no_grad(), validation(False):
        runs = [_run(prior, x, each, iterations, tolerance) for each in firsts]
    best = max(range(len(runs)), key=lambda i: runs[i][1][-1])
    posterior, history, converged = runs[best]
    starts = tuple(history[-1] for _, history, _ in runs)
    return CoordinateAscentResult(posterior, tuple(history), converged, starts, best)


def _run(
    prior: DirichletNormal, x: Tensor, r: Tensor, iterations: int, tolerance: float
) -> tuple[DirichletNormal, list[float], bool]:
    posterior = prior.posterior(x, r)
    history: list[float] = []
    for iteration in range(iterations + 1):
        after, elbo = sweep(prior, posterior, x)
        history.append(float(elbo) / len(x))
        # a tolerance of 0 is none: gains of rounding may be negative
        if tolerance and iteration and history[-1] - history[-2] < tolerance:
            return posterior, history, True
        if iteration < iterations:
            posterior = after
    return posterior, history, False


def _double(p: DirichletNormal) -> DirichletNormal:
    normals = type(p.normals)(**{name: value.double() for name, value in vars(p.normals).items()})
    return DirichletNormal(Dirichlet(p.weights.concentration.double()), normals)
