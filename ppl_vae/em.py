"""Maximum likelihood of a Gaussian mixture by expectation maximization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import InputError, check_count, choose
from .mixture_parameters import Covariance, Data, MixtureParameters, check_data
from .mixture_starts import centres, given_responsibilities
from .models.gaussian_mixture import GaussianMixture
from .validation import validation

__all__ = ["EMResult", "Repair", "em"]

_SINGULAR = 1e-10
"""Of a component's variance in any direction, to that of all data there: less is no spread but rounding."""
_EMPTY = 1e-8
"""Of the data that a component has: less does not say where it lies."""


class Repair(NamedTuple):
    """A component that was made anew: it had no spread in some direction, or no data.

    Args:
        start: number of the start.
        iteration: after which it happened; the objective may fall there, and only there.
        component: which.
        data: how many data it had, Σ_n r_nk.
    """

    start: int
    iteration: int
    component: int
    data: float


@dataclass(frozen=True)
class EMResult:
    """What `em` found, of the best start.

    Args:
        parameters: in float64.
        history: the objective before each iteration and after the last, nats a datum: the mean of log p(x), and the
            penalty where there is one.
        log_likelihood: the mean of log p(x), nats a datum.
        converged: whether the last iteration gained less than the tolerance.
        repairs: of all starts.
        starts: the objective that each start reached; NaN where it came to a singular component for good.
        best: which start this is.
        empty: components that have no data, below 1e-8 of one: the mixture has so many fewer than were asked for, and
            where these lie means nothing.
    """

    parameters: MixtureParameters
    history: tuple[float, ...]
    log_likelihood: float
    converged: bool
    repairs: tuple[Repair, ...]
    starts: tuple[float, ...]
    best: int
    empty: tuple[int, ...]

    @property
    def iterations(self) -> int:
        """Of the best start."""
        return len(self.history) - 1


def em(
    model: GaussianMixture,
    x: Data,
    *,
    restarts: int = 10,
    iterations: int = 500,
    tolerance: float = 1e-7,
    regularization: float = 1e-3,
    singular: Literal["repair", "error"] = "repair",
    start: Tensor | None = None,
    seed: int = 0,
) -> EMResult:
    r"""Fit a mixture's parameters by expectation maximization, and set the model's to them.

    E: q(z_n) ← p(z_n | x_n), at which the ELBO is log p(x). M: maximize E_q[log p(x, z)] over the parameters. Each
    raises the objective, or leaves it:

    .. math::
        \frac1N \Big(\sum_n \log \sum_k π_k N(x_n; μ_k, Σ_k) - \frac λ2 \sum_k \mathrm{tr}(V Σ_k^{-1})\Big), \qquad
        Σ_k ← \frac{\sum_n r_{nk} (x_n - μ_k)(x_n - μ_k)^\top + λ V}{\sum_n r_{nk}}

    with V the variances of all data on the diagonal. It is scaled with the data, and costs a wide component
    nothing; with λ = 0 it is the likelihood, which is without bound where a component shrinks to a point.

    Starts are means from k-means++, the covariance of all data and equal weights; the best of the restarts is kept.
    All is computed in float64.

    Args:
        model: a mixture without prior.
        x: (N, D) data, as a tensor, a batch or a data set.
        restarts: number of starts.
        iterations: at most, of each.
        tolerance: a start is done when an iteration gains less, nats a datum; 0: all iterations.
        regularization: λ, 0 or more, in data: the penalty counts as λ data of variance V in each component.
        singular: what to do with a component whose variance in some direction is below 1e-10 of the data's, or that has
            no data where λ is 0: "repair" sets it to the datum that the others find least probable, with all data's
            covariance, and says so in the result; "error" raises. Where λ is above 0 a component may lose its data for
            good, as the penalty is less the wider it is: it stays, and the result's `empty` names it; "error" raises.
        start: responsibilities (N, K) or labels (N,) to begin with, for one start with an M-step of them.
        seed: of the starts.

    Raises:
        InputError: a mixture with a prior; more components than different data, NaN, another shape, data without
            spread in some direction (and full or tied covariances); with ``singular="error"``, or where repairs do not
            help, a singular component.

    References:
        Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm, JRSS B 1977.
        Neal and Hinton, A view of the EM algorithm that justifies incremental, sparse, and other variants, 1998: the
        ELBO's.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 6.0])
        >>> mixture = GaussianMixture(components=2, size=2)
        >>> result = em(mixture, x)
        >>> result.converged, mixture.predict(x[:50]).unique().numel()
        (True, 1)
    """
    if model.has_prior:
        raise InputError("em maximizes the likelihood; this mixture has a prior: use coordinate_ascent")
    check_count("restarts", restarts)
    check_count("iterations", iterations, least=0)
    for name, number in (("tolerance", tolerance), ("regularization", regularization)):
        if not (isinstance(number, int | float) and math.isfinite(number) and number >= 0):
            raise InputError(f"{name}={number!r} must be a number, 0 or more")
    if singular not in ("repair", "error"):
        raise choose("singular", singular, ("repair", "error"))
    x = check_data(x, model.size).detach().double()
    with torch.no_grad(), validation(False):
        # where there is a start they only refuse too few data
        means = [centres(x, model.components, seed + i) for i in range(restarts if start is None else 1)]
        fit = _Fit(x, model.components, model.covariance, float(regularization), singular == "repair")
        if start is None:
            firsts = [fit.around(each) for each in means]
        else:
            firsts = [fit.maximized(given_responsibilities(start, x, model.components))]
        runs = [fit.run(i, first, iterations, tolerance) for i, first in enumerate(firsts)]
        reached = tuple(run.history[-1] if run.error is None else math.nan for run in runs)
        good = [i for i, run in enumerate(runs) if run.error is None]
        if not good:
            raise InputError(str(runs[0].error))
        best = max(good, key=lambda i: reached[i])
        run = runs[best]
        empty = tuple(int(k) for k in (run.parameters.log_weights.exp() * len(x) < _EMPTY).nonzero())
        if empty and singular == "error":
            raise InputError(
                f"component {empty[0]} of {model.components} is empty after {len(run.history) - 1} iterations; use "
                f"fewer components, or regularization below {regularization:g}"
            )
        model.set_parameters(run.parameters)
        return EMResult(
            parameters=run.parameters,
            history=tuple(run.history),
            log_likelihood=float(run.parameters.log_prob(x).mean()),
            converged=run.converged,
            repairs=tuple(repair for each in runs for repair in each.repairs),
            starts=reached,
            best=best,
            empty=empty,
        )


class _Run(NamedTuple):
    parameters: MixtureParameters
    history: list[float]
    converged: bool
    repairs: list[Repair]
    error: InputError | None


class _Fit:
    """Data, and the steps on them."""

    def __init__(self, x: Tensor, components: int, covariance: Covariance, regularization: float, repair: bool) -> None:
        self.x, self.components, self.covariance = x, components, covariance
        self.regularization, self.repair = regularization, repair
        self.variance = x.var(0, correction=0)
        if bool((self.variance <= 0).any()):
            column = int((self.variance <= 0).nonzero()[0])
            raise InputError(f"column {column} of x is constant: leave it out, for no Gaussian has a density there")
        # of all data, by which is judged what is no spread
        self.overall = self.variance.sqrt() if covariance == "diagonal" else _root(x.T.cov(correction=0), self.variance)

    def around(self, means: Tensor) -> MixtureParameters:
        """Equal components about means (K, D)."""
        weights = means.new_full((len(means),), -math.log(len(means)))
        return MixtureParameters(weights, means, self.overall.expand(len(means), *self.overall.shape))

    def run(self, number: int, parameters: MixtureParameters, iterations: int, tolerance: float) -> _Run:
        repairs: list[Repair] = []
        history: list[float] = []
        try:
            parameters = self._mended(parameters, None, number, 0, repairs)
            joint = parameters.log_joint(self.x)
            history.append(self._objective(parameters, joint))
            for iteration in range(1, iterations + 1):
                r = joint.softmax(-1)
                before = len(repairs)
                parameters = self._mended(self.maximized(r), r, number, iteration, repairs)
                joint = parameters.log_joint(self.x)
                history.append(self._objective(parameters, joint))
                # a tolerance of 0 is none: gains of rounding may be negative
                if tolerance and len(repairs) == before and history[-1] - history[-2] < tolerance:
                    return _Run(parameters, history, True, repairs, None)
        except InputError as error:
            return _Run(parameters, history, False, repairs, error)
        return _Run(parameters, history, False, repairs, None)

    def _objective(self, parameters: MixtureParameters, joint: Tensor) -> float:
        """Nats a datum."""
        total = joint.logsumexp(-1).sum()
        if self.regularization:
            scale = parameters.scale[:1] if self.covariance == "tied" else parameters.scale
            if parameters.diagonal:
                spread = (self.variance / scale.square()).sum()
            else:
                # tr(V Σ⁻¹) is the square norm of L⁻¹ V^½
                deviations = self.variance.sqrt().diag_embed().expand_as(scale)
                spread = torch.linalg.solve_triangular(scale, deviations, upper=False).square().sum()
            total = total - 0.5 * self.regularization * spread
        return float(total) / len(self.x)

    def maximized(self, r: Tensor) -> MixtureParameters:
        """The M-step, of responsibilities (N, K); a covariance that is none has NaN."""
        x, n = self.x, r.sum(0)
        above_zero = n.clamp_min(torch.finfo(n.dtype).tiny)
        means = (r.T @ x) / above_zero[:, None]
        log_weights = (above_zero / len(x)).log()
        # the penalty makes a component wide without bound as its data go
        counts = n.clamp_min(_EMPTY)
        off = x.unsqueeze(-2) - means  # (N, K, D)
        prior = self.regularization * self.variance
        if self.covariance == "diagonal":
            scatter = torch.einsum("nk,nkd->kd", r, off.square())
            return MixtureParameters(log_weights, means, ((scatter + prior) / counts[:, None]).sqrt())
        if self.covariance == "tied":
            covariance = (torch.einsum("nk,nki,nkj->ij", r, off, off) + prior.diag()) / len(x)
            return MixtureParameters(log_weights, means, _factor(covariance).expand(self.components, -1, -1))
        covariance = (torch.einsum("nk,nki,nkj->kij", r, off, off) + prior.diag()) / counts[:, None, None]
        return MixtureParameters(log_weights, means, _factor(covariance))

    def _mended(
        self, parameters: MixtureParameters, r: Tensor | None, number: int, iteration: int, repairs: list[Repair]
    ) -> MixtureParameters:
        """Without singular components; those that there were are added to `repairs`."""
        n = parameters.log_weights.exp() * len(self.x)
        singular = self._least(parameters.scale) < _SINGULAR
        # under a penalty a component without data has a spread, and may be the maximum: it stays, and `em` says so
        bad = singular if self.regularization else singular | (n < _EMPTY)
        tied = self.covariance == "tied"
        if not bool(bad.any()):
            return parameters
        found = [int(k) for k in bad.nonzero()]
        what = f"component {found[0]} of {self.components} is"
        share = float(n[found[0]])
        if share < _EMPTY:
            words = f"{what} empty after {iteration} iterations: it has {share:.3g} data"
        else:
            words = (
                f"{what} singular after {iteration} iterations: its {share:.3g} data have no spread in some direction"
            )
        if (tied and bool(singular.any())) or bool(bad.all()):
            raise InputError(f"{words}; use fewer components, or regularization={max(self.regularization, 1e-3)!r}")
        if not self.repair or len(repairs) >= 10 * self.components:
            raise InputError(
                f"{words}; use fewer components, regularization above {self.regularization:g}, or covariance='tied' or "
                "'diagonal'"
            )
        good = ~bad
        rest = MixtureParameters(parameters.log_weights[good], parameters.loc[good], parameters.scale[good])
        # the least probable data, one for each, but not those on which they have shrunk
        density = rest.log_prob(self.x)
        if r is not None:
            density = torch.where(r[:, bad].sum(1) > 0.5, math.inf, density)
        rows = density.argsort()[: len(found)]
        weights, loc, scale = parameters.log_weights.exp(), parameters.loc.clone(), parameters.scale.clone()
        for row, k in zip(rows, found, strict=True):
            repairs.append(Repair(number, iteration, k, float(n[k])))
            weights[k], loc[k] = 1.0 / self.components, self.x[row]
            if not tied:
                scale[k] = self.overall
        return MixtureParameters((weights / weights.sum()).log(), loc, scale)

    def _least(self, scale: Tensor) -> Tensor:
        """The least variance of each component in any direction, in units of all data's there, (K,); 0 for NaN."""
        if self.covariance == "diagonal":
            return (scale / self.overall).square().amin(-1).nan_to_num(0.0)
        units = torch.linalg.solve_triangular(self.overall, scale.nan_to_num(0.0), upper=False)
        least: Tensor = torch.linalg.svdvals(units).amin(-1)
        return least.square()


def _factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor, NaN where there is none."""
    root, info = torch.linalg.cholesky_ex(covariance)
    failed = (info > 0)[..., None, None] | ~covariance.isfinite().all(-1).all(-1)[..., None, None]
    factor: Tensor = torch.where(failed, math.nan, root)
    return factor


def _root(covariance: Tensor, variance: Tensor) -> Tensor:
    """The Cholesky factor of all data's covariance; raises `InputError` where they lie in a subspace."""
    units: Tensor = variance.sqrt()
    correlation = torch.atleast_2d(covariance) / units / units[:, None]
    least, direction = torch.linalg.eigh(correlation)
    if float(least[0]) < _SINGULAR:
        columns = direction[:, 0].abs().topk(min(2, len(direction))).indices.sort().values.tolist()
        raise InputError(
            f"x has no spread in some direction, in which column {' and '.join(map(str, columns))} take most part: "
            "leave a column out, or use covariance='diagonal'"
        )
    root: Tensor = torch.linalg.cholesky(correlation)
    return units[:, None] * root
