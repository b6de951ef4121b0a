"""log p(x, z) - log q(z | x) for every datum and every particle: the one quantity behind all objectives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from .errors import InputError
from .validation import validation

__all__ = ["LogWeights", "Program", "check_pair", "log_weights", "particle_plate"]

Program: TypeAlias = Callable[..., Any]
"""A Pyro program: a module or a function that obeys the plate rule, one unscaled data plate at dimension -1."""

_PARTICLES = "particles"


class Pair(NamedTuple):
    """One latent site as guide and model see it, for objectives that want its distributions."""

    guide: TorchDistributionMixin
    model: TorchDistributionMixin
    mask: Any


class LogWeights(NamedTuple):
    """What `log_weights` returns. Every tensor is in nats and broadcasts to (\\*C, K, N): K particles, N data, and to
    the left a dimension C for each enumerated site.

    Args:
        log_likelihood: Σ over observed sites of log p(x | z).
        log_prior: log p of each latent site.
        log_guide: log q of each latent site, and of auxiliary ones.
        enumerated: the guide's sites that were enumerated instead of drawn.
        shared: latent sites outside of the data plate, counted once and not per datum; shape (K, 1).
        draws: the value of each latent site, (\\*C, K, N, \\*event).
        pairs: the distributions of each latent site of the model, in the model's order.
        same_order: whether guide and model visit these sites in the same order.
        rigid: guide sites that were drawn without reparameterization: no gradient passes through their value.
        particles: K.
        size: N.
    """

    log_likelihood: Tensor
    log_prior: Mapping[str, Tensor]
    log_guide: Mapping[str, Tensor]
    enumerated: tuple[str, ...]
    shared: tuple[str, ...]
    draws: Mapping[str, Tensor]
    pairs: Mapping[str, Pair]
    same_order: bool
    rigid: tuple[str, ...]
    particles: int
    size: int

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (\\*C, K, N)."""
        total = self.log_likelihood
        for term in self.log_prior.values():
            total = total + term
        return total

    @property
    def log_q(self) -> Tensor:
        """log q(z | x), (\\*C, K, N)."""
        total = self.log_likelihood.new_zeros(())
        for term in self.log_guide.values():
            total = total + term
        return total

    @property
    def log_w(self) -> Tensor:
        """log p(x, z) - log q(z | x), of each particle and datum.

        (K, N) where nothing is enumerated. Enumerated classes c lie to the left, (C, K, N); their log q(c | x) is
        among the terms subtracted, see `log_q_enumerated`.
        """
        self.refuse_shared("log_w")
        return self.log_joint - self.log_q

    @property
    def log_q_enumerated(self) -> Tensor:
        """log q of the enumerated sites alone; 0 where there are none."""
        total = self.log_likelihood.new_zeros(())
        for name in self.enumerated:
            total = total + self.log_guide[name]
        return total

    def refuse_shared(self, wanted: str) -> None:
        """Raise `InputError` if a site is shared by all data: a weight per datum does not exist then."""
        if self.shared:
            raise InputError(
                f"{wanted} needs a weight for each datum, but {', '.join(map(repr, self.shared))} "
                "lies outside of the data plate and is shared by all data; use ELBO, or move it into the plate"
            )


def particle_plate(particles: int) -> AbstractContextManager[Any]:
    """The plate of K independent draws of all latent variables, left of the data plate."""
    plate: AbstractContextManager[Any] = pyro.plate(_PARTICLES, particles, dim=-2)
    return plate


def log_weights(model: Program, guide: Program, *args: Any, particles: int = 1, **kwargs: Any) -> LogWeights:
    r"""Draw z_k ~ q(z | x) K times for every datum, and score guide and model.

    .. math:: \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)

    The guide runs in a plate of particles at dimension -2, the model is replayed on its draws. Sites are scored
    here, with masks and without scales: a program scaled by β or by N/B has the same weights as without (a scale
    would raise the weights to a power before they are summed).

    Args:
        model, guide: Pyro programs with one data plate at dimension -1.
        args, kwargs: handed to both, a `Batch` for programs of this package.
        particles: K.

    Returns:
        `LogWeights`, with tensors of shape (K, N), or (C, K, N) where a site of the guide is marked
        ``infer={"enumerate": "parallel"}``: Pyro puts its C values left of the particles.

    Draws are equal to Pyro's after equal seeds: `Trace_ELBO(num_particles=K, vectorize_particles=True,
    max_plate_nesting=1)` takes the same stream of random numbers.
    """
    model_trace, guide_trace = _trace_pair(model, guide, args, kwargs, particles)
    return _score(model_trace, guide_trace, particles)


def check_pair(model: Program, guide: Program, *args: Any, unscaled: bool = False, **kwargs: Any) -> None:
    """Run the pair once with every validation on, and raise `InputError` naming the site at which it breaks a rule.

    With validation off these pass in silence: a guide that misses a site (the prior then stands in for it), a site
    too many, event dimensions that differ, a forgotten `to_event` where sizes happen to agree. Random states and
    the programs' buffers are left as they were.

    Args:
        unscaled: also refuse sites under a scale, for objectives that ignore it.
    """
    with _untouched(model, guide, args), torch.no_grad(), validation(True):
        # an unusual number of particles: it must not agree by chance with the size of the data or of an event
        sizes = {size for t in _tensors(model, guide, args) for size in t.shape}
        particles = next(k for k in range(3, 1 << 30) if k not in sizes)
        try:
            model_trace, guide_trace = _trace_pair(model, guide, args, kwargs, particles)
            _check_sites(model_trace, guide_trace)
            if unscaled:
                _refuse_scales(model_trace, guide_trace)
            weights = _score(model_trace, guide_trace, particles)
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the pair of model and guide does not run on this batch: {error}") from error
        for name, tensor in {"x": weights.log_likelihood, **weights.log_prior, **weights.log_guide}.items():
            wanted = (particles, 1) if name in weights.shared else (particles, weights.size)
            if tensor.dim() < 2 or not all(a in (b, 1) for a, b in zip(tensor.shape[-2:], wanted, strict=True)):
                raise InputError(
                    f"site {name!r} has log-probabilities of shape {tuple(tensor.shape)} where {wanted} (particles, "
                    "data) belongs: is a .to_event() missing, or a value reshaped across the particles?"
                )


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    latent = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    proposed = dict(sample_sites(guide_trace))
    auxiliary = {n for n, s in proposed.items() if s["infer"].get("is_auxiliary")}
    if missing := sorted(latent.keys() - proposed.keys()):
        raise InputError(
            f"the guide misses the model's latent site {', '.join(map(repr, missing))}; it has {sorted(proposed)}"
        )
    if extra := sorted(proposed.keys() - latent.keys() - auxiliary):
        raise InputError(
            f"the guide has the site {', '.join(map(repr, extra))}, which the model has not; the model's latent sites "
            f'are {sorted(latent)} (mark a site of the guide alone with infer={{"is_auxiliary": True}})'
        )
    for name, site in latent.items():
        ours, theirs = site["fn"].event_shape, proposed[name]["fn"].event_shape
        if tuple(ours) != tuple(theirs):
            raise InputError(
                f"site {name!r} has events of shape {tuple(ours)} in the model, {tuple(theirs)} in the guide"
            )
        if is_per_datum(site) != is_per_datum(proposed[name]):
            raise InputError(
                f"site {name!r} lies inside the data plate in one of model and guide, outside in the other"
            )


def _refuse_scales(*traces: Trace) -> None:
    for trace in traces:
        for name, site in sample_sites(trace):
            if isinstance(site["scale"], Tensor) or site["scale"] != 1.0:
                raise InputError(
                    f"site {name!r} is scaled by {site['scale']}, which objectives of this package would ignore: use "
                    "ELBO(beta=...) instead of scale_latents, ELBO(data_size=...) instead of scale_data, or a Pyro loss"
                )


def _trace_pair(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int
) -> tuple[Trace, Trace]:
    if particles < 1:
        raise InputError(f"particles={particles} draws nothing; give 1 or more")
    with particle_plate(particles), _enumeration(guide, args, kwargs, particles):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


_enumerates: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _enumeration(
    guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int
) -> AbstractContextManager[Any]:
    """Pyro's enumeration left of the particles, for guides that ask for it; nothing, which is faster, for others."""
    try:
        known = _enumerates.get(guide)
    except TypeError:  # bound methods, partials: no weak reference, look each time
        known = None
    if known is None:
        with _untouched(guide, args), torch.no_grad():
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
            known = any(site["infer"].get("enumerate") == "parallel" for _, site in sites)
        with suppress(TypeError):
            _enumerates[guide] = known
    return poutine.enum(first_available_dim=-3) if known else nullcontext()


@contextmanager
def _untouched(*things: Any) -> Iterator[None]:
    """Leave the random states of the CPU and of the things' devices as they are, and the buffers of modules, such as
    running averages: a run that is resumed checks its pair once more, and must go on as if it had not."""
    devices = list({t.device for t in _tensors(*things) if t.device.type == "cuda"})
    buffers = [(b, b.clone()) for thing in things if isinstance(thing, torch.nn.Module) for b in thing.buffers()]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _score(model_trace: Trace, guide_trace: Trace, particles: int) -> LogWeights:
    likelihood: Tensor | None = None
    log_prior: dict[str, Tensor] = {}
    log_guide: dict[str, Tensor] = {}
    draws: dict[str, Tensor] = {}
    pairs: dict[str, Pair] = {}
    enumerated: list[str] = []
    shared: list[str] = []
    rigid: list[str] = []
    size: int | None = None

    guide_sites = dict(sample_sites(guide_trace))
    for name, site in guide_sites.items():
        log_guide[name] = score_site(site)
        if site["infer"].get("_enumerate_dim") is not None:
            enumerated.append(name)
        elif not getattr(site["fn"], "has_rsample", False):
            rigid.append(name)
        if not is_per_datum(site):
            shared.append(name)

    for name, site in sample_sites(model_trace):
        size = _data_size(site) if size is None else size
        if site["is_observed"]:
            if not is_per_datum(site):
                raise InputError(
                    f"the model's observed site {name!r} lies outside of the data plate: spread over N data it would "
                    'count N times; put it inside pyro.plate("data", batch.size, dim=-1)'
                )
            term = score_site(site)
            likelihood = term if likelihood is None else likelihood + term
            continue
        log_prior[name] = score_site(site)
        draws[name] = site["value"]
        if name in guide_sites:
            pairs[name] = Pair(guide_sites[name]["fn"], site["fn"], guide_sites[name]["mask"])
    if size is None:
        raise InputError(
            "the model has no site in a plate at dim=-1; put each datum's sites inside "
            'pyro.plate("data", batch.size, dim=-1)'
        )
    if likelihood is None:
        some = next(iter(log_prior.values()))
        likelihood = some.new_zeros(particles, size)
    order = [name for name in guide_sites if name in log_prior]
    return LogWeights(
        log_likelihood=likelihood,
        log_prior=log_prior,
        log_guide=log_guide,
        enumerated=tuple(enumerated),
        shared=tuple(shared),
        draws=draws,
        pairs=pairs,
        same_order=order == [name for name in log_prior if name in guide_sites],
        rigid=tuple(rigid),
        particles=particles,
        size=size,
    )


def sample_sites(trace: Trace) -> list[tuple[str, Any]]:
    """The sites that carry probability: no plates' own sites, no `pyro.deterministic`."""
    nodes: Mapping[str, Any] = trace.nodes
    return [
        (name, site)
        for name, site in nodes.items()
        if site["type"] == "sample"
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic")
    ]


def score_site(site: Any) -> Tensor:
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
    return log_prob


def is_per_datum(site: Any) -> bool:
    # never by shape: with one datum a shared site looks the same
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def _data_size(site: Any) -> int | None:
    return next((int(frame.size) for frame in site["cond_indep_stack"] if frame.dim == -1), None)


def _tensors(*things: Any) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, torch.nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        elif isinstance(thing, (tuple, list)):
            yield from _tensors(*thing)
