"""The aggregate posterior (1/N) Σ q(z | x_n) of some data: a code of each, its density, and the parts of the KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from ..batch import Batch
from ..errors import InputError
from ..evaluate.chunked import Source, spans
from ..evaluate.generation import generation
from ..evaluate.latents import gaussian_marginals
from ..handlers import drawn
from ..isolation import untouched
from ..weights import Program, log_weights, particle_plate, sample_sites, score_site
from .simulated import dimension_names, explained

__all__ = ["Codes", "Part", "Parts", "codes_of", "parts_of"]

_NUMBERS = 1 << 21
_APART = 0.1


class Part(NamedTuple):
    """A mean over the data and its standard error, nats."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> Part:
        """Of one value a datum."""
        return cls(values.mean().item(), (values.std() / math.sqrt(len(values))).item())

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2g}"


@dataclass(frozen=True, eq=False)
class Codes:
    """One draw z_n ~ q(z | x_n) of each of N data, and one of the prior under the same conditions.

    Args:
        codes, prior: (N, \\*event) by continuous site.
        log_q: (N,) log q(z_n | x_n); None where the guide cannot say.
        log_p: (N,) log p(z_n).
        cross: log q(z_k | x_m) of values (K, \\*event) by site, under all data, (K, N); None as for `log_q`.
        marginals: mean and standard deviation (N, D) of q(z_d | x_n), where q is Gaussian.
        prior_marginals: the same of p(z), where it is a diagonal Gaussian.
        conditional: whether p(z) may differ from datum to datum.
        why_not: why there are no densities; empty where there are.
    """

    codes: dict[str, Tensor]
    prior: dict[str, Tensor]
    log_q: Tensor | None
    log_p: Tensor
    cross: Callable[[Mapping[str, Tensor]], Tensor] | None
    marginals: tuple[Tensor, Tensor] | None
    prior_marginals: tuple[Tensor, Tensor] | None
    conditional: bool
    why_not: str

    @property
    def names(self) -> list[str]:
        """Of each number of z."""
        return [each for name, value in self.codes.items() for each in dimension_names(name, value.shape[1:])]

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """(N, D) float64."""
        return torch.cat([value.reshape(len(value), -1) for value in values.values()], 1).double()


@dataclass(frozen=True, eq=False)
class Parts:
    r"""The mean KL to the prior, in parts.

    .. math:: \frac1N \sum_n KL(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z) + KL\Big(q(z) \,\|\, \prod_d q(z_d)\Big)
        + \sum_d KL(q(z_d) \,\|\, p(z_d))

    Args:
        kl: the whole.
        information: I_q(n; z) of the data's index n and z, at most log N: from below also a bound on that of the
            population.
        upper: the same without a datum's own term in q(z), from above a bound on that of the population.
        marginal: KL(q(z) ‖ p(z)), the second and third part; None where the prior differs from datum to datum.
        total_correlation: the second part; None where q(z_d | x) is not known.
        dimensions: the third part by dimension; None where it, or p(z_d), is not known.
    """

    kl: Part
    information: Part
    upper: Part
    marginal: Part | None
    total_correlation: Part | None
    dimensions: tuple[Part, ...] | None

    @property
    def saturated(self) -> bool:
        """Whether N data are too few to know q(z) by: the bounds of the information are more than 0.1 nat apart. The
        information is then a lower bound, and what has log q(z) in it, the marginal KL and the total correlation, an
        upper one."""
        return self.upper.mean - self.information.mean > _APART


def codes_of(model: Program, guide: Program, source: Source, chunk: int) -> Codes:
    """Draw them; raises `InputError` for latents that all data share, or no continuous one."""
    program = drawn(guide)
    source.check(model, program)
    first = source.batch(0, 1)
    with untouched(model, guide, first):
        w = log_weights(model, program, first)
        trace = poutine.trace(program).get_trace(first)
    sites: dict[str, Any] = {name: site for name, site in sample_sites(trace) if name in w.draws}
    if w.shared:
        raise InputError(
            f"{', '.join(map(repr, w.shared))} is shared by all data and has no aggregate posterior: hold it fixed "
            "(BayesianDecoder.at, poutine.condition), and look at the latents of a datum"
        )
    discrete = [name for name, site in sites.items() if _is_discrete(site["fn"])]
    continuous = [name for name in sites if name not in discrete]
    if not continuous:
        raise InputError(
            f"{', '.join(map(repr, discrete))} is discrete: an aggregate posterior is laid beside the prior for "
            "continuous latents; of classes look at evaluate.classify"
        )
    auxiliary = [name for name, _ in sample_sites(trace) if name not in w.draws]
    why_not = _why_not(guide, discrete, auxiliary)
    codes: dict[str, list[Tensor]] = {name: [] for name in continuous}
    prior: dict[str, list[Tensor]] = {name: [] for name in continuous}
    log_q, log_p = [], []
    ours: list[tuple[Tensor, Tensor]] | None = [] if not why_not else None
    theirs: list[tuple[Tensor, Tensor]] | None = []
    for start, stop in spans(source.size, chunk):
        batch = source.batch(start, stop)
        w = log_weights(model, program, batch, enumerate=False)
        with explained(f"{type(model).__name__} does not generate from its prior, beside which codes are laid"):
            generated = dict(sample_sites(poutine.trace(model).get_trace(generation(batch))))
        for name in continuous:
            shape = sites[name]["fn"].event_shape
            codes[name].append(w.draws[name].expand(1, batch.size, *shape)[0].cpu())
            prior[name].append(generated[name]["value"].expand(batch.size, *shape).cpu())
        log_q.append(torch.as_tensor(w.log_q).expand(1, batch.size)[0].double().cpu())
        log_p.append(sum(w.log_prior[name].expand(1, batch.size)[0].double().cpu() for name in w.draws))
        if ours is not None:
            found = gaussian_marginals(_distributions(guide, batch), continuous, batch.size)
            ours = None if found is None else [*ours, found]
        if theirs is not None:
            found = gaussian_marginals({name: w.pairs[name].model for name in continuous}, continuous, batch.size)
            theirs = None if found is None or _parents(model) else [*theirs, found]
    for name in continuous:
        for what, values in (("a draw of q", codes[name]), ("a draw of the prior", prior[name])):
            if not all(bool(v.isfinite().all()) for v in values):
                raise InputError(f"{what} of {name!r} is NaN or infinite: the pair's parameters are not finite")
    own, under_prior = torch.cat(log_q), torch.cat([torch.as_tensor(each) for each in log_p])
    if bool((own - under_prior).isnan().any()):
        raise InputError("log q(z | x) - log p(z) is NaN: the pair's parameters are not finite")
    condition = getattr(model, "condition", None)
    conditional = (first.y is not None or first.context is not None) and getattr(condition, "width", 1) != 0
    return Codes(
        codes={name: torch.cat(parts) for name, parts in codes.items()},
        prior={name: torch.cat(parts) for name, parts in prior.items()},
        log_q=None if why_not else own,
        log_p=under_prior,
        cross=None if why_not else _cross(guide, source, chunk),
        marginals=_joined(ours),
        prior_marginals=_joined(theirs),
        conditional=conditional,
        why_not=why_not,
    )


def parts_of(found: Codes) -> Parts | None:
    """The mean KL in parts; None where the guide gives no densities."""
    if found.cross is None or found.log_q is None:
        return None
    size = len(found.log_q)
    cross = found.cross(found.codes)
    log_aggregate = cross.logsumexp(1) - math.log(size)
    others = cross.masked_fill(torch.eye(size, dtype=torch.bool), -math.inf).logsumexp(1) - math.log(size - 1)
    marginal = None if found.conditional else Part.of(log_aggregate - found.log_p)
    total_correlation, dimensions = None, None
    if found.marginals is not None:
        z = found.flat(found.codes)
        log_marginals = _log_marginals(z, *found.marginals)  # (N, D)
        total_correlation = Part.of(log_aggregate - log_marginals.sum(1))
        if found.prior_marginals is not None and not found.conditional:
            log_prior = Normal(*found.prior_marginals).log_prob(z)
            dimensions = tuple(Part.of(values) for values in (log_marginals - log_prior).T)
    return Parts(
        kl=Part.of(found.log_q - found.log_p),
        information=Part.of(found.log_q - log_aggregate),
        upper=Part.of(found.log_q - others),
        marginal=marginal,
        total_correlation=total_correlation,
        dimensions=dimensions,
    )


def _log_marginals(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log (1/N) Σ_m q(z_d | x_m) of z (N, D)."""
    rows = max(1, _NUMBERS // max(1, loc.numel()))
    parts = [
        Normal(loc, scale).log_prob(z[a:b].unsqueeze(1)).logsumexp(1) - math.log(len(loc))
        for a, b in spans(len(z), rows)
    ]
    return torch.cat(parts)


def _why_not(guide: Program, discrete: list[str], auxiliary: list[str]) -> str:
    name = type(guide).__name__
    if discrete:
        return f"{', '.join(map(repr, discrete))} is discrete"
    if not getattr(guide, "density", True):
        return f"{name} is a point mass, which has no density"
    if not getattr(guide, "scores_given", True):
        return f"{name} cannot score a z that it did not draw"
    if auxiliary:
        return f"{name} draws {', '.join(map(repr, auxiliary))} besides z"
    return ""


def _cross(guide: Program, source: Source, chunk: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def cross(values: Mapping[str, Tensor]) -> Tensor:
        count = len(next(iter(values.values())))
        numbers = sum(v[0].numel() for v in values.values())
        out = torch.empty(count, source.size, dtype=torch.float64)
        for start, stop in spans(source.size, chunk):
            batch = source.batch(start, stop)
            q = _distributions(guide, batch)
            for a, b in spans(count, max(1, _NUMBERS // ((stop - start) * numbers))):
                some = {name: v[a:b].unsqueeze(1).to(batch.x.device) for name, v in values.items()}  # type: ignore[union-attr]
                if q is not None:
                    total: Any = sum(q[name].log_prob(value) for name, value in some.items())
                else:
                    total = _scored(guide, batch, some, b - a)
                out[a:b, start:stop] = total.double().cpu()
        return out

    return cross


def _scored(guide: Program, batch: Batch, values: Mapping[str, Tensor], count: int) -> Tensor:
    """log q(z_k | x_m) by running the guide on values (K, 1, \\*event), (K, N)."""
    whole = {name: v.expand(count, batch.size, *v.shape[2:]) for name, v in values.items()}
    with particle_plate(count):
        trace = poutine.trace(poutine.condition(guide, data=whole)).get_trace(batch)
    total: Any = sum(score_site(site) for _, site in sample_sites(trace))
    scored: Tensor = total.expand(count, batch.size)
    return scored


def _distributions(guide: Program, batch: Batch) -> Mapping[str, Any] | None:
    distribution = getattr(guide, "distribution", None)
    if distribution is None:
        return None
    try:
        sites: Mapping[str, Any] = distribution(batch)
    except NotImplementedError:
        return None
    return sites


def _is_discrete(q: Any) -> bool:
    try:
        return bool(q.support.is_discrete)
    except NotImplementedError:
        return False


def _parents(model: Program) -> bool:
    return any(spec.parents for spec in getattr(model, "latents", {}).values())


def _joined(parts: list[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, Tensor] | None:
    if not parts:
        return None
    loc, scale = (torch.cat(each).double().cpu() for each in zip(*parts, strict=True))
    return loc, scale
