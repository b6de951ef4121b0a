"""What lies where in the latent space: paths and grids through it, clusters of the codes, and a probe on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal, constraints

from ..batch import Batch
from ..core import plain_support
from ..errors import InputError, check_count, choose
from ..weights import Program
from .chunked import device_of, evaluation, spans
from .generation import generation

__all__ = [
    "Clusters",
    "Plane2D",
    "Probe",
    "adjusted_rand",
    "clusters",
    "decode",
    "interpolate",
    "linear_probe",
    "manifold",
    "plane_of",
    "traversals",
    "vector_sites",
]

Array = NDArray[Any]

_AT_ONCE = 512
_BOOTSTRAPS = 200
_PARALLEL = 1e-6
_REGULARIZATION = 1e-6


def vector_sites(model: Program) -> tuple[dict[str, int], dict[str, str]]:
    """The latent sites of each datum that are vectors of real numbers, with their sizes; and of all others why they
    have no place in a picture of a vector space.

    Raises:
        InputError: there is none.
    """
    sites, skipped = {}, {}
    for name, spec in getattr(model, "latents", {}).items():
        if spec.scope != "datum":
            skipped[name] = "shared by all data"
        elif spec.support.is_discrete:
            skipped[name] = "discrete"
        elif plain_support(spec.support) is not constraints.real:
            skipped[name] = f"its support is {plain_support(spec.support)}, no vector space"
        elif len(spec.event_shape) != 1:
            skipped[name] = f"its events are of shape {tuple(spec.event_shape)}, no vectors"
        else:
            sites[name] = spec.event_shape[0]
    if not sites:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in skipped.items()) or "it declares none"
        raise InputError(
            f"{type(model).__name__} has no latent site of each datum that is a vector of real numbers ({why}): there "
            "is no latent space to look at"
        )
    return sites, skipped


def interpolate(
    start: Tensor, end: Tensor, steps: int = 9, how: Literal["straight", "spherical"] = "straight"
) -> Tensor:
    r"""Points on the way from one code to another, both ends among them, exactly as given.

    .. math::
        z_t = (1 - t)\,a + t\,b, \qquad\text{or}\qquad
        z_t = \big((1 - t) \|a\| + t \|b\|\big)
        \Big[\frac{\sin((1 - t)Ω)}{\sin Ω} \frac{a}{\|a\|} + \frac{\sin(tΩ)}{\sin Ω} \frac{b}{\|b\|}\Big]

    Draws of N(0, I) in many dimensions lie near a sphere, which the straight way leaves: its middle has a norm that
    hardly any draw has. On the spherical way the norm goes evenly from the one to the other, and the direction turns
    evenly by Ω, the angle between them.

    Args:
        start, end: (\*S, Z) a and b.
        steps: T >= 2 points, t = 0, 1 / (T - 1), ..., 1.
        how: "straight" or "spherical".

    Returns:
        (T, \*S, Z).

    Raises:
        InputError: codes of different shapes, fewer than two points; for the spherical way a code at the origin, which
            has no direction, or two in opposite ones, between which there are many shortest ways.

    Example:
        >>> interpolate(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 3, "spherical")
        tensor([[2.0000, 0.0000], [2.1213, 2.1213], [0.0000, 4.0000]])

    Reference: White, Sampling generative networks, 2016 (https://arxiv.org/abs/1609.04468).
    """
    if how not in ("straight", "spherical"):
        raise choose("how", how, ("straight", "spherical"))
    if start.shape != end.shape or start.dim() < 1:
        raise InputError(f"start and end are codes of shapes {tuple(start.shape)} and {tuple(end.shape)}; give (*S, Z)")
    if check_count("steps", steps) < 2:
        raise InputError(f"steps={steps} must be 2 or more: both ends are among them")
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).reshape(-1, *[1] * start.dim())
    if how == "straight":
        path = (1 - t) * start + t * end
    else:
        norms = [code.norm(dim=-1, keepdim=True) for code in (start, end)]
        if bool((torch.minimum(*norms) == 0).any()):
            raise InputError("how='spherical' turns from one direction to another, and a code lies at the origin")
        a, b = start / norms[0], end / norms[1]
        # by the chords: exact for near directions, where the arc cosine of a product is not
        angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
        if bool((angle > math.pi - _PARALLEL).any()):
            raise InputError("how='spherical': two codes lie in opposite directions, with no single way between them")
        near = angle < _PARALLEL
        sine = torch.where(near, torch.ones_like(angle), angle.sin())
        turned = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / sine
        direction = torch.where(near, (1 - t) * a + t * b, turned)
        path = ((1 - t) * norms[0] + t * norms[1]) * direction
    path[0], path[-1] = start, end
    return path


class Plane2D:
    """A plane through the codes: where they are seen in two dimensions.

    Args:
        codes: (N, Z) posterior means.

    Attributes:
        center: (Z,) a point of the plane; 0 where Z <= 2.
        directions: (Z, 2) orthonormal, or (1, 1).
        share: of the codes' variance along each direction; None where Z <= 2 and nothing is left out.
    """

    def __init__(self, codes: Tensor) -> None:
        codes = codes.detach().cpu().double()
        size = codes.shape[1]
        self.share: tuple[float, float] | None = None
        if size <= 2:
            self.center, self.directions = torch.zeros(size).double(), torch.eye(size).double()
            return
        self.center = codes.mean(0)
        _, singular, found = torch.linalg.svd(codes - self.center, full_matrices=False)
        directions = found[:2]
        # the sign makes a direction's largest loading positive
        largest = directions.abs().argmax(1, keepdim=True)
        self.directions = (directions * directions.gather(1, largest).sign()).T.contiguous()
        share = singular.square() / singular.square().sum().clamp_min(1e-300)
        self.share = (float(share[0]), float(share[1]))

    def seen(self, codes: Tensor) -> Tensor:
        """(\\*S, Z) -> (\\*S, 2), or (\\*S, 1) of one dimension."""
        return (codes.detach().cpu().double() - self.center) @ self.directions

    def lifted(self, points: Tensor) -> Tensor:
        """(\\*S, 2) -> (\\*S, Z), in the plane."""
        return self.center + points @ self.directions.T


def plane_of(codes: Tensor) -> Plane2D:
    """The plane in which codes (N, Z) are shown: their own with two dimensions, that of their first two principal
    components with more."""
    if codes.dim() != 2 or len(codes) < 2:
        raise InputError(f"codes of shape {tuple(codes.shape)} span no plane; give (N, Z) of two data or more")
    return Plane2D(codes)


def traversals(
    codes: Tensor, anchor: Tensor, steps: int = 11, most: int | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """One dimension after another moved through the range of the codes, the others held at one code.

    Args:
        codes: (N, Z) posterior means, whose variances say which dimensions are active, and whose quantiles from 1% to
            99% are the range.
        anchor: (Z,) the code at which the others are held.
        steps: T points a dimension.
        most: at most so many dimensions; None: all.

    Returns:
        points (D, T, Z), values (D, T) of the dimension that moves, and which dimension it is: those of the largest
        variance first.
    """
    if codes.dim() != 2 or len(codes) < 2 or tuple(anchor.shape) != (codes.shape[1],):
        raise InputError(f"codes {tuple(codes.shape)} and anchor {tuple(anchor.shape)}: give (N, Z), N >= 2, and (Z,)")
    order = codes.var(0).argsort(descending=True, stable=True)[:most].tolist()
    ends = codes.double().quantile(torch.tensor([0.01, 0.99], dtype=torch.float64, device=codes.device), dim=0)
    t = torch.linspace(0, 1, check_count("steps", steps), dtype=torch.float64, device=codes.device)
    values = torch.stack([(1 - t) * ends[0, d] + t * ends[1, d] for d in order]).to(codes.dtype)
    points = anchor.expand(len(order), steps, -1).clone()
    for row, d in enumerate(order):
        points[row, :, d] = values[row]
    return points, values, order


def manifold(codes: Tensor, size: int = 16, standard: bool = False) -> tuple[Tensor, Tensor]:
    r"""A grid of codes that holds equal shares of a Gaussian in every cell, :math:`Φ^{-1}((i + ½) / G)` along an axis.

    Args:
        codes: (N, Z) posterior means, whose plane it lies in (`plane_of`) and whose mean and standard deviation along
            each axis the Gaussian has.
        size: G points an axis.
        standard: N(0, I), the prior's own grid, for Z <= 2.

    Returns:
        points (G, G, Z), the second axis of the plane falling from row to row as it does in a picture, and the places
        (2, G) along the axes, from low to high. Of one dimension (1, G, 1) and (1, G).

    Reference: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114), fig. 4.
    """
    plane = plane_of(codes)
    if standard and plane.share is not None:
        raise InputError(f"standard=True is a grid of two dimensions at most; these codes have {codes.shape[1]}")
    seen = plane.seen(codes)
    u = (torch.arange(check_count("size", size), dtype=torch.float64) + 0.5) / size
    quantiles = Normal(torch.zeros_like(u), torch.ones_like(u)).icdf(u)
    loc, scale = (torch.zeros(seen.shape[1]), torch.ones(seen.shape[1])) if standard else (seen.mean(0), seen.std(0))
    places = loc.double().unsqueeze(1) + scale.double().unsqueeze(1) * quantiles  # (2, G)
    if seen.shape[1] == 1:
        return plane.lifted(places.T.unsqueeze(0)).to(codes.dtype), places
    up, across = torch.meshgrid(places[1].flip(0), places[0], indexing="ij")
    return plane.lifted(torch.stack([across, up], -1)).to(codes.dtype), places


class _AtMeans(Messenger):
    """Latent sites take their mean, one after another; those without a mean a draw."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and msg["value"] is None:
            try:
                msg["value"] = msg["fn"].mean
            except NotImplementedError:
                msg["value"] = msg["fn"].sample()


def decode(model: Program, given: Mapping[str, Tensor], batch: Batch, *, seed: int = 0) -> Tensor:
    """E[x | z], where some latent sites are given and the others follow: each at the mean of its distribution given
    those before it, so that a model of layers decodes a code of any layer.

    Args:
        model: a program over a `Batch`, with x at a site named "x".
        given: (M, \\*event) by site; of sites shared by all data one value.
        batch: what the model is conditioned on, of size M; its x is not looked at.
        seed: of sites that have no mean.

    Returns:
        (M, \\*D), on the CPU, in the units of x.
    """
    device, latents = device_of(model), getattr(model, "latents", {})
    if strangers := [name for name in given if name not in latents]:
        raise InputError(f"given has {', '.join(map(repr, strangers))}; the model's latent sites are {[*latents]}")
    followers = [name for name, spec in latents.items() if name not in given and not spec.support.is_discrete]
    parts = []
    with evaluation(model, seed=seed, device=device), _AtMeans(followers):
        for start, stop in spans(batch.size, _AT_ONCE):
            rows = slice(start, stop)
            piece = generation(batch).take(rows)._replace(n=stop - start)
            values = {name: value[rows] if latents[name].scope == "datum" else value for name, value in given.items()}
            if device is not None:
                piece, values = piece.to(device), {name: _like(model, value) for name, value in values.items()}
            trace: Any = poutine.trace(poutine.condition(model, data=values)).get_trace(piece)
            try:
                parts.append(trace.nodes["x"]["fn"].mean.cpu())
            except (KeyError, NotImplementedError) as error:
                raise InputError("there is no site 'x' whose distribution has a mean: nothing can be shown") from error
    return torch.cat(parts)


def _like(model: Any, value: Tensor) -> Tensor:
    """On the model's device, in its precision: codes estimated from draws come in float64."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return value.to(tensor) if value.is_floating_point() else value.to(tensor.device)
    return value


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters found in codes without their labels, beside the labels.

    Args:
        method: "k-means" or "Gaussian mixture".
        count: of clusters.
        scores: (S,) adjusted Rand index on the held-out codes, of each start.
        data_se: standard error of their mean from the sampling of held-out data, by the bootstrap.
        assigned: (M,) the held-out codes' clusters, of the first start.
    """

    method: str
    count: int
    scores: tuple[float, ...]
    data_se: float
    assigned: Array

    @property
    def mean(self) -> float:
        """Mean over the starts."""
        return float(np.mean(self.scores))

    @property
    def seed_se(self) -> float:
        """Its standard error over the starts; NaN of one."""
        return float(np.std(self.scores, ddof=1) / math.sqrt(len(self.scores))) if len(self.scores) > 1 else math.nan

    @property
    def se(self) -> float:
        """Both errors together."""
        return math.hypot(self.data_se, 0.0 if math.isnan(self.seed_se) else self.seed_se)


def clusters(
    train: Tensor,
    test: Tensor,
    y: Tensor,
    count: int | None = None,
    *,
    seeds: int = 5,
    seed: int = 0,
    threshold: float = 0.01,
) -> list[Clusters]:
    r"""Do the codes fall into clusters, and are these the classes? k-means and a Gaussian mixture, by scikit-learn.

    Fitted to the training codes from several starts, each of which then assigns the held-out codes. Agreement with the
    labels is the adjusted Rand index: 1 for the same partition, 0 on average for one that knows nothing of the labels.
    Only active dimensions (variance above `threshold`) enter: the mixture, which knows no scale, would take the others'
    noise for as much.

    Args:
        train: (N, Z) codes to which clusters are fitted.
        test: (M, Z) codes that are assigned.
        y: (M,) the latter's labels; -1, a missing one, is left out.
        count: of clusters; None: as many as there are classes in `y`.
        seeds: starts, over which scores are averaged.
        seed: of the first start and of the bootstrap.
        threshold: of a variance.

    Raises:
        InputError: fewer than two classes, more clusters than training codes, shapes that do not fit.

    Reference: Hubert and Arabie, Comparing partitions, Journal of Classification 1985.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    x, held, labels = _labelled(train, test, y)
    check_count("seeds", seeds)
    classes = len(np.unique(labels))
    if classes < 2:
        raise InputError(f"y has {classes} class: agreement of clusters with labels needs two or more")
    count = classes if count is None else check_count("count", count)
    if count > len(x):
        raise InputError(f"count={count} clusters of {len(x)} codes; give {len(x)} or fewer")
    active = x.var(0) > threshold
    if active.any():
        x, held = x[:, active], held[:, active]
    found = []
    for method in ("k-means", "Gaussian mixture"):
        assigned = []
        for start in range(seed, seed + seeds):
            part = (
                KMeans(count, n_init=1, random_state=start)
                if method == "k-means"
                else GaussianMixture(count, reg_covar=_REGULARIZATION, max_iter=500, random_state=start)
            )
            with _quiet():
                assigned.append(part.fit(x).predict(held))
        generator = np.random.default_rng(seed)
        resampled = []
        for _ in range(_BOOTSTRAPS):
            rows = generator.integers(0, len(labels), len(labels))
            resampled.append(np.mean([adjusted_rand(labels[rows], each[rows]) for each in assigned]))
        scores = tuple(adjusted_rand(labels, each) for each in assigned)
        found.append(Clusters(method, count, scores, float(np.std(resampled, ddof=1)), assigned[0]))
    return found


def adjusted_rand(one: Array, other: Array) -> float:
    r"""The adjusted Rand index of two partitions (N,), in numbers from 0: 1 for the same, 0 on average by chance.

    .. math::
        \frac{\sum_{ij} \binom{n_{ij}}{2} - e}{\frac12 (a + b) - e}, \qquad a = \sum_i \binom{n_{i\cdot}}{2}, \quad
        b = \sum_j \binom{n_{\cdot j}}{2}, \quad e = a b / \tbinom{N}{2}
    """
    width = int(other.max()) + 1
    table = np.bincount(one * width + other, minlength=(int(one.max()) + 1) * width).reshape(-1, width)

    def pairs(counts: Array) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, a, b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = a * b / pairs(np.array([len(one)])) if len(one) > 1 else 0.0
    most = (a + b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on features, on held-out data.

    Args:
        features: what it sees, as "codes".
        size: their number.
        right: (M,) whether each held-out datum's class was found.
    """

    features: str
    size: int
    right: Array

    @property
    def accuracy(self) -> float:
        """Share of the held-out data."""
        return float(self.right.mean())

    @property
    def se(self) -> float:
        """Its standard error from the sampling of held-out data."""
        return _se(self.right.astype(float))

    def less(self, other: Probe) -> tuple[float, float]:
        """The difference from another one's accuracy on the same data, with its standard error, paired by datum."""
        difference = self.right.astype(float) - other.right.astype(float)
        return float(difference.mean()), _se(difference)


def linear_probe(
    train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, features: str = "codes", components: int | None = None
) -> Probe:
    """Logistic regression on standardized features: what of the classes can be read off linearly.

    Args:
        train, test: (N, \\*F) and (M, \\*F) features, flattened.
        train_y, test_y: labels; -1, a missing one, is left out.
        features: what they are called.
        components: take so many principal components of them first, of the training features.

    Raises:
        InputError: fewer than two classes among the training data, none labelled, shapes that do not fit.

    Reference: Alain and Bengio, Understanding intermediate layers using linear classifier probes, ICLR 2017 workshop
    (https://arxiv.org/abs/1610.01644).
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, _, labels = _labelled(train, train, train_y)
    x = x[_known(train_y)]
    _, held, wanted = _labelled(train, test, test_y)
    if len(np.unique(labels)) < 2:
        raise InputError(f"train_y has {len(np.unique(labels))} class: a probe tells two or more apart")
    size = x.shape[1]
    steps: list[Any] = []
    if components is not None:
        size = min(check_count("components", components), *x.shape)
        steps.append(PCA(size, svd_solver="full"))
    probe = make_pipeline(*steps, StandardScaler(), LogisticRegression(max_iter=2000))
    with _quiet():
        right = probe.fit(x, labels).predict(held) == wanted
    return Probe(features, size, right)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without scikit-learn's notes that an iteration stopped before it converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _known(y: Tensor) -> Array:
    known: Array = y.detach().cpu().numpy() >= 0
    return known


def _labelled(train: Tensor, test: Tensor, y: Tensor) -> tuple[Array, Array, Array]:
    """Codes to fit, held-out ones that have a label, and the labels."""
    if train.dim() < 2 or train.shape[1:] != test.shape[1:] or tuple(y.shape) != (len(test),):
        raise InputError(
            f"codes {tuple(train.shape)}, {tuple(test.shape)} and labels {tuple(y.shape)} do not fit: give (N, *F), "
            "(M, *F) and (M,)"
        )
    if y.is_floating_point():
        raise InputError(f"y has the dtype {y.dtype}; class numbers are whole numbers")
    known = _known(y)
    if not known.any():
        raise InputError("y holds no label: all are -1, which stands for a missing one")
    x, held = (each.detach().cpu().double().flatten(1).numpy() for each in (train, test))
    return x, held[known], y.detach().cpu().numpy()[known]


def _se(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
