"""What the latents carry: codes, active units, KL by dimension."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError
from ..isolation import untouched
from ..kl import gaussian_of
from ..labels import hide_labels
from ..objectives.base import check_particles
from ..weights import Program, is_per_datum, log_weights, particle_plate
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Moments

__all__ = [
    "ActiveUnits",
    "Encoding",
    "KLByDimension",
    "active_units",
    "codes",
    "count_active",
    "encode",
    "encoding_of",
    "gaussian_marginals",
    "kl_by_dimension",
    "kl_by_dimension_of",
    "latent_sites",
    "moments",
]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Where a guide puts each datum.

    Args:
        means, scales: E_q[z | x] and its standard deviations by site, (N, \\*event).
        draws: number of draws they were estimated with; None: they are exact.
        data: which data these are.
    """

    means: dict[str, Tensor]
    scales: dict[str, Tensor]
    draws: int | None
    data: str


@dataclass(frozen=True, eq=False)
class KLByDimension:
    """KL(q(z_d | x) ‖ p(z_d)) of each datum and dimension, nats.

    Args:
        values: (N, \\*event) by site.
        data: which data these are.
    """

    values: dict[str, Tensor]
    data: str

    @property
    def mean(self) -> dict[str, Tensor]:
        """(\\*event) by site, the mean over the data."""
        return {name: v.mean(0) for name, v in self.values.items()}

    @property
    def data_se(self) -> dict[str, Tensor]:
        """(\\*event) by site, the mean's standard error from the sampling of data. (There is no Monte Carlo error.)"""
        return {name: v.std(0) / math.sqrt(v.shape[0]) for name, v in self.values.items()}


@dataclass(frozen=True, eq=False)
class ActiveUnits:
    """How far each latent dimension's posterior mean moves with x.

    Args:
        variances: Var_x(E_q[z_d | x]) by site, (\\*event).
        se: its standard error from the sampling of data.
        threshold: a dimension is active above it.
        n: number of data.
        data: which data these are.
    """

    variances: dict[str, Tensor]
    se: dict[str, Tensor]
    threshold: float
    n: int
    data: str

    @property
    def active(self) -> dict[str, Tensor]:
        """Which dimensions are active, bool by site."""
        return {name: v > self.threshold for name, v in self.variances.items()}

    @property
    def count(self) -> int:
        """The number of active dimensions of all sites."""
        return sum(int(active.sum()) for active in self.active.values())

    @property
    def undecided(self) -> int:
        """The number of dimensions within two standard errors of the threshold."""
        return sum(int(((v - self.threshold).abs() < 2 * self.se[name]).sum()) for name, v in self.variances.items())


def encode(
    model: Program, guide: Program, data: Data, draws: int = 100, chunk: int | None = None, *, seed: int | None = None
) -> Encoding:
    """Posterior means and standard deviations of every latent site of each datum, of continuous values.

    Of a model with a latent class, as `models.M2`, labels are hidden from the pair, as by `evaluate`.

    Args:
        model, guide, data, chunk, seed: as in `log_marginal`.
        draws: of z, to estimate them with where the guide does not give them in closed form (`Guide.distribution`).
    """
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        return encoding_of(model, guide, Source(hide_labels(model, data), model, guide), draws, chunk)


def codes(
    model: Program,
    guide: Program,
    data: DataSet,
    *,
    draw: bool = False,
    keep: Tensor | None = None,
    seed: int = 0,
) -> DataSet:
    """The data as what a guide makes of them, E_q[z | x] of all sites side by side, (N, Z), with their labels: a table
    for another model, as M1+M2 stacks them. What x is drawn by chance, as dynamic binarization, is drawn once.

    Args:
        model, guide: a trained pair.
        data: whose codes.
        draw: keep q's standard deviations too (`DataSet.spread`): every batch then has a fresh z ~ N(E_q[z | x],
            diag Var_q[z | x]), which is q(z | x) itself of a mean-field guide, and `fixed` draws once.
        keep: (Z,) bool, the dimensions that are kept, as ``active_units(model, guide, data).active["z"]``; None: all.
        seed: of what is drawn here.

    Raises:
        InputError: `keep` of another length, or without a dimension.
    """
    code = encode(model, guide, data, seed=seed)
    mean, scale = (torch.cat([t.flatten(1) for t in parts.values()], 1).float() for parts in (code.means, code.scales))
    if keep is not None:
        if keep.dtype != torch.bool or tuple(keep.shape) != (mean.shape[1],) or not bool(keep.any()):
            raise InputError(
                f"keep is {keep.dtype} {tuple(keep.shape)}, {int(keep.sum())} of it True; give torch.bool "
                f"({mean.shape[1]},), a dimension each, one of them True or more"
            )
        mean, scale = mean[:, keep.cpu()], scale[:, keep.cpu()]
    made = DataSet.from_arrays(
        mean,
        data.y,
        context=data.context,
        name=f"codes of {data.name}",
        class_names=data.class_names,
        split=data.split,
    )
    return dataclasses.replace(made, spread=scale) if draw else made


def active_units(
    model: Program,
    guide: Program,
    data: Data,
    threshold: float = 0.01,
    draws: int = 100,
    chunk: int | None = None,
    *,
    seed: int | None = None,
) -> ActiveUnits:
    r"""Latent dimensions that the guide uses: Var_x(E_q[z_d | x]) > threshold.

    The variance over the data is the unbiased one, and its standard error is that of a sample variance s² of n data
    with fourth central moment m₄, :math:`\sqrt{(m_4 - s^4 (n-3)/(n-1)) / n}`.

    Args:
        model, guide, data, chunk, seed: as in `log_marginal`.
        threshold: 0.01 by convention, for a prior of unit variance.
        draws: of z, to estimate the posterior means where the guide has none in closed form; their noise's share of
            the variance is subtracted.

    Raises:
        InputError: fewer than two data.

    Reference: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016
    (https://arxiv.org/abs/1509.00519).
    """
    return count_active(encode(model, guide, data, draws, chunk, seed=seed), threshold)


def kl_by_dimension(model: Program, guide: Program, data: Data, chunk: int | None = None) -> KLByDimension:
    r"""KL(q(z_d | x) ‖ p(z_d)) of each dimension's marginal, in closed form.

    Under a mean-field guide its sum over dimensions is KL(q ‖ p); under a full-rank one it falls short of it by the
    total correlation of q(z | x), which is no property of single dimensions.

    Args:
        model, guide, data, chunk: as in `log_marginal`.

    Raises:
        InputError: a site whose q is not Gaussian, whose prior is not a diagonal Gaussian, or whose prior depends on
            other latents; a guide without `distribution`.
    """
    with evaluation(model, guide, seed=0, device=device_of(model, guide)):
        return kl_by_dimension_of(model, guide, Source(hide_labels(model, data), model, guide), chunk)


def moments(guide: Program, batch: Batch) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Mean and standard deviation (N, \\*event) of each site of continuous values; None where the guide has no closed
    form for all of them."""
    distribution = getattr(guide, "distribution", None)
    if distribution is None:
        return None
    try:
        sites = {name: q for name, q in distribution(batch).items() if not _is_discrete(q)}
        return {name: (q.mean, q.stddev) for name, q in sites.items()}
    except NotImplementedError:
        return None


def _moments_by_draws(guide: Program, batch: Batch, draws: int, at_once: int) -> dict[str, tuple[Tensor, Tensor]]:
    sums: dict[str, Moments] = {}
    for a, b in spans(draws, at_once):
        for name, value in _draws(guide, batch, b - a).items():
            sums.setdefault(name, Moments()).update(value)
    return {name: (each.mean, each.variance().sqrt()) for name, each in sums.items()}


def _draws(guide: Program, batch: Batch, particles: int) -> dict[str, Tensor]:
    """Draws (K, N, \\*event) of each latent site of continuous values."""
    with particle_plate(particles):
        sites = latent_sites(guide, batch)
    return {
        name: site["value"].expand(particles, batch.size, *site["fn"].event_shape)
        for name, site in sites.items()
        if is_per_datum(site) and not _is_discrete(site["fn"])
    }


def latent_sites(guide: Program, batch: Batch) -> dict[str, Any]:
    """One run of the guide: its sites but auxiliary ones."""
    trace: Any = poutine.trace(guide).get_trace(batch)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("is_auxiliary")
        and type(site["fn"]).__name__ != "_Subsample"
    }


def _is_discrete(q: TorchDistributionMixin) -> bool:
    try:
        return bool(q.support.is_discrete)
    except NotImplementedError:
        return False


def encoding_of(model: Program, guide: Program, source: Source, draws: int, chunk: int | None) -> Encoding:
    """`encode`, for callers that hold an `evaluation`."""
    check_particles(draws)
    source.check(model, guide)
    first = source.batch(0, 1)
    exact = moments(guide, first) is not None
    count = 1 if exact else draws
    with untouched(guide, first):
        own = [name for name, site in latent_sites(guide, first).items() if is_per_datum(site)]

    def code(batch: Batch, particles: int) -> object:
        return moments(guide, batch) if exact else _draws(guide, batch, particles)

    size = chunk_for(code, source, count, chunk)
    means: dict[str, list[Tensor]] = {}
    scales: dict[str, list[Tensor]] = {}
    for start, stop in spans(source.size, size.rows):
        batch = source.batch(start, stop)
        sites = moments(guide, batch) if exact else _moments_by_draws(guide, batch, draws, size.particles)
        assert sites is not None
        for name, (mean, scale) in sites.items():
            if name not in own:
                continue
            means.setdefault(name, []).append(mean.cpu())
            scales.setdefault(name, []).append(scale.cpu())
    return Encoding(
        {name: torch.cat(parts) for name, parts in means.items()},
        {name: torch.cat(parts) for name, parts in scales.items()},
        None if exact else draws,
        source.description,
    )


def count_active(code: Encoding, threshold: float) -> ActiveUnits:
    """Active units of codes at hand, see `active_units`."""
    variances: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    n = 0
    for name, mean in code.means.items():
        n = mean.shape[0]
        if n < 2:
            raise InputError("active units are a variance over data: give two data or more")
        mean = mean.double()
        variance = mean.var(0)
        fourth = (mean - mean.mean(0)).pow(4).mean(0)
        errors[name] = ((fourth - variance.square() * ((n - 3) / (n - 1))).clamp_min(0.0) / n).sqrt()
        if code.draws is not None and code.draws > 1:
            variance = variance - code.scales[name].double().square().mean(0) / code.draws
        variances[name] = variance
    return ActiveUnits(variances, errors, threshold, n, code.data)


def kl_by_dimension_of(model: Program, guide: Program, source: Source, chunk: int | None) -> KLByDimension:
    """`kl_by_dimension`, for callers that hold an `evaluation`."""
    source.check(model, guide)
    for name, spec in getattr(model, "latents", {}).items():
        if spec.parents:
            raise InputError(f"site {name!r} depends on {', '.join(spec.parents)}: no closed form of KL by dimension")

    def kl(batch: Batch, particles: int) -> dict[str, Tensor]:
        sites = _distributions(guide, batch)
        w = log_weights(model, guide, batch, particles=particles)
        own = {name: pair for name, pair in w.pairs.items() if name not in w.shared}
        return {name: _kl(name, sites[name], pair.model, batch.size) for name, pair in own.items()}

    values: dict[str, list[Tensor]] = {}
    for start, stop in spans(source.size, chunk_for(kl, source, 1, chunk).rows):
        for name, value in kl(source.batch(start, stop), 1).items():
            values.setdefault(name, []).append(value.cpu())
    return KLByDimension({name: torch.cat(parts) for name, parts in values.items()}, source.description)


def _distributions(guide: Program, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
    distribution = getattr(guide, "distribution", None)
    try:
        if distribution is not None:
            sites: Mapping[str, TorchDistributionMixin] = distribution(batch)
            return sites
    except NotImplementedError:
        pass
    raise InputError(
        f"{type(guide).__name__} gives no `distribution` of each site given x: no closed form of KL by dimension"
    )


def _kl(name: str, q: TorchDistributionMixin, p: TorchDistributionMixin, size: int) -> Tensor:
    """(N, \\*event), of the marginals of one site; p is expanded over particles, of which the first is taken."""
    if not isinstance(p, Independent | Normal):
        raise InputError(f"the prior of site {name!r} is {p}: KL by dimension needs a diagonal Gaussian")
    q_loc, q_scale = _gaussian(q, f"q of site {name!r}")
    p_loc, p_scale = (t[0] if t.dim() > q_loc.dim() else t for t in _gaussian(p, f"the prior of site {name!r}"))
    kl: Tensor = kl_divergence(Normal(q_loc, q_scale), Normal(p_loc, p_scale))
    return kl.expand(size, *q.event_shape)


def gaussian_marginals(
    sites: Mapping[str, TorchDistributionMixin] | None, names: list[str], size: int
) -> tuple[Tensor, Tensor] | None:
    """Means and standard deviations of each number of these sites side by side, (N, D); None where one is not
    Gaussian. Of distributions with particles to the left the first is taken."""
    if sites is None:
        return None
    found = []
    for name in names:
        try:
            pair = _gaussian(sites[name], name)
        except InputError:
            return None
        event = sites[name].event_shape
        found.append([(t[0] if t.dim() > 1 + len(event) else t).expand(size, *event).reshape(size, -1) for t in pair])
    loc, scale = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return loc, scale


def _gaussian(q: TorchDistributionMixin, what: str) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of a Gaussian's marginals."""
    gaussian = gaussian_of(q)
    if gaussian is not None:
        return gaussian.loc, gaussian.scale if isinstance(gaussian, Normal) else gaussian.variance.sqrt()
    raise InputError(f"{what} is {q}: KL by dimension has a closed form for Gaussians")
