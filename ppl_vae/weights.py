"""log p(x, z) - log q(z | x) for every datum and every particle: the one quantity behind all objectives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from .batch import Batch
from .errors import InputError
from .inputs import check_batch
from .isolation import cuda_in, swapped, tensors_in, untouched
from .stopping import Stopped, leaves
from .validation import validation

__all__ = ["LogWeights", "Program", "check_pair", "log_weights", "particle_plate", "weights_and_trace"]

Program: TypeAlias = Callable[..., Any]
"""A Pyro program: a module or a function that obeys the plate rule, one unscaled data plate at dimension -1."""

_PARTICLES = "particles"


class Pair(NamedTuple):
    """One latent site as guide and model see it, for objectives that want its distributions."""

    guide: TorchDistributionMixin
    model: TorchDistributionMixin
    mask: Any


class Copy(NamedTuple):
    """A draw as it entered the terms of log w: a copy of the value that later draws depend on.

    Args:
        value: (\\*C, K, N, \\*event).
        event_dim: how many dimensions an event has.
    """

    value: Tensor
    event_dim: int


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
        copies: under `stop_guide`, what every reparameterized site of the guide drew, auxiliary ones too, as it entered
            log p and log q; empty otherwise. The gradient of log w reaches a draw through its copy, and the gradient
            that a draw hands on to those it was made from does not pass the copy.
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
    copies: Mapping[str, Copy] = MappingProxyType({})

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
    def log_w_given(self) -> Tensor:
        """log p(x, z | u) - log q(z | x, u) of each particle and datum, at the draw u ~ q(u) of the latents that all
        data share; `log_w` where there are none."""
        total = self.log_likelihood
        for name, term in self.log_prior.items():
            total = total if name in self.shared else total + term
        for name, term in self.log_guide.items():
            total = total if name in self.shared else total - term
        return total

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


def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    stop_guide: bool = False,
    enumerate: bool = True,
    **kwargs: Any,
) -> LogWeights:
    r"""Draw z_k ~ q(z | x) K times for every datum, and score guide and model.

    .. math:: \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)

    The guide runs in a plate of particles at dimension -2, the model is replayed on its draws. Sites are scored
    here, with masks and without scales: a program scaled by β or by N/B has the same weights as without (a scale
    would raise the weights to a power before they are summed).

    Args:
        model, guide: Pyro programs with one data plate at dimension -1.
        args, kwargs: handed to both, a `Batch` for programs of this package.
        particles: K.
        stop_guide: stop the guide's parameters inside of log q: the gradient of log w with respect to them is then that
            of z_k alone, ∂ log w / ∂z · ∂z/∂φ, without -∂ log q(z; φ)/∂φ at fixed z, whose mean is 0 (under weights of
            equal size). The guide runs a second time, replayed on copies of its draws, with every parameter detached
            (`Stopped`), and log q is computed inside of that run, since conditional transforms call their networks no
            sooner. Of enumerated sites log q keeps its gradient, and so do factors of the guide: they are no densities
            of draws. Values are as without, to the rounding of a flow's inverse; where gradients are switched off
            there is no second run.
        enumerate: False draws every site, those that the guide marks for enumeration too.

    Returns:
        `LogWeights`, with tensors of shape (K, N), or (C, K, N) where a site of the guide is marked
        ``infer={"enumerate": "parallel"}``: Pyro puts its C values left of the particles.

    Draws are equal to Pyro's after equal seeds: `Trace_ELBO(num_particles=K, vectorize_particles=True,
    max_plate_nesting=1)` takes the same stream of random numbers.
    """
    if stop_guide and torch.is_grad_enabled():
        return _score_stopped(model, guide, args, kwargs, particles, enumerate)
    model_trace, guide_trace = _trace_pair(model, guide, args, kwargs, particles, enumerate)
    return _score(model_trace, guide_trace, particles)


def weights_and_trace(
    model: Program, guide: Program, *args: Any, particles: int = 1, enumerate: bool = True, **kwargs: Any
) -> tuple[LogWeights, Trace]:
    """`log_weights`, and the model's run that they were scored from, whose sites hold the distribution of x too."""
    model_trace, guide_trace = _trace_pair(model, guide, args, kwargs, particles, enumerate)
    return _score(model_trace, guide_trace, particles), model_trace


def check_pair(
    model: Program,
    guide: Program,
    *args: Any,
    unscaled: bool = False,
    stop_guide: bool = False,
    density: bool = False,
    **kwargs: Any,
) -> None:
    """Run the pair once with every validation on, and raise `InputError` naming the site at which it breaks a rule.

    A guide that runs a model, `Guide.runs`, is refused with another, and so is a batch with labels, contexts or masks
    that are none of the pair's (`check_batch`).

    With validation off these pass in silence: a guide that misses a site (the prior then stands in for it), a site
    too many, event dimensions that differ, a forgotten `to_event` where sizes happen to agree. Random states and
    the programs' buffers are left as they were.

    Args:
        unscaled: also refuse sites under a scale, for objectives that ignore it.
        stop_guide: also refuse a guide that `log_weights(..., stop_guide=True)` could not run a second time: one that
            takes random numbers besides its draws, as dropout does, cannot score what it drew, or has a parameter that
            is not stopped.
        density: also refuse a guide with a point mass (`point_masses`), whose log q is no log-density: a weight made of
            it estimates nothing.
    """
    _check_runs(model, guide)
    for batch in (arg for arg in args if isinstance(arg, Batch)):
        if batch.size == 0:
            raise InputError("the batch has no data: x and what else it holds are of length 0; give one datum or more")
        check_batch(batch, model, guide)
    with untouched(model, guide, args), torch.no_grad(), validation(True):
        # an unusual number of particles: it must not agree by chance with the size of the data or of an event
        sizes = {size for t in tensors_in(model, guide, args) for size in t.shape}
        particles = next(k for k in range(3, 1 << 30) if k not in sizes)
        try:
            model_trace, guide_trace = _trace_pair(model, guide, args, kwargs, particles)
            _check_sites(model_trace, guide_trace)
            if unscaled:
                _refuse_scales(model_trace, guide_trace)
            if density and (points := point_masses(guide_trace)):
                raise no_density(f"guide site {', '.join(map(repr, points))}")
            weights = _score(model_trace, guide_trace, particles)
            if stop_guide:
                _check_second_run(guide, args, kwargs, particles)
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            _check_declared(model, guide, args, kwargs, particles)
            raise InputError(f"the pair of model and guide does not run on this batch: {error}") from error
        for name, tensor in {"x": weights.log_likelihood, **weights.log_prior, **weights.log_guide}.items():
            wanted = (particles, 1) if name in weights.shared else (particles, weights.size)
            if tensor.dim() < 2 or not all(a in (b, 1) for a, b in zip(tensor.shape[-2:], wanted, strict=True)):
                raise InputError(
                    f"site {name!r} has log-probabilities of shape {tuple(tensor.shape)} where {wanted} (particles, "
                    "data) belongs: is a .to_event() missing, or a value reshaped across the particles?"
                )


def _check_runs(model: Program, guide: Program) -> None:
    """A guide that runs a model runs this one. Of functions and effect handlers around a model nothing is known."""
    if not (isinstance(model, torch.nn.Module) and isinstance(guide, torch.nn.Module)):
        return
    for part in guide.modules():
        own = getattr(part, "runs", None)
        if (
            own is not None
            and not any(m is own for m in model.modules())
            and not any(m is model for m in own.modules())
        ):
            raise InputError(
                f"{type(part).__name__} runs the model that it was built with, a {type(own).__name__}, and this is "
                "another one: build the guide with the model that it is for, and copy the two together, "
                "copy.deepcopy((model, guide))"
            )


def _check_declared(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int
) -> None:
    """What a model declares of its latents, where a run of it broke, perhaps of a draw of another size."""
    declared = getattr(model, "latents", None)
    if not isinstance(declared, Mapping):
        return
    try:
        with _plates(guide, args, kwargs, particles):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    except (ValueError, RuntimeError, IndexError):
        return  # the guide itself does not run
    for name, site in sample_sites(drawn):
        if name in declared and tuple(site["fn"].event_shape) != tuple(declared[name].event_shape):
            raise InputError(
                f"site {name!r} has events of shape {tuple(declared[name].event_shape)} in the model, "
                f"{tuple(site['fn'].event_shape)} in the guide"
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
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    particles: int,
    enumerate: bool = True,
) -> tuple[Trace, Trace]:
    with _plates(guide, args, kwargs, particles, enumerate):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = _run_on(model, guide_trace, args, kwargs)
    return model_trace, guide_trace


@contextmanager
def _plates(
    guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int, enumerate: bool = True
) -> Iterator[None]:
    if particles < 1:
        raise InputError(f"particles={particles} draws nothing; give 1 or more")
    with particle_plate(particles), _enumeration(guide, args, kwargs, particles) if enumerate else nullcontext():
        yield


def _run_on(program: Program, draws: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    return poutine.trace(poutine.replay(program, trace=draws)).get_trace(*args, **kwargs)


def _score_stopped(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int, enumerate: bool
) -> LogWeights:
    again = _again(guide)
    with _plates(guide, args, kwargs, particles, enumerate):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        copied = _replaced(guide_trace, _copied)
        model_trace = _run_on(model, copied, args, kwargs)
        with again(), Stopped():
            stopped = {name: score_site(site) for name, site in sample_sites(_run_on(guide, copied, args, kwargs))}
        factors = {name: stopped[name] for name, site in sample_sites(guide_trace) if site["is_observed"]}
        if factors:
            # a factor's parameters are not stopped: their part of the gradient, at fixed draws, is added
            fixed = _replaced(guide_trace, lambda value: value.detach())
            with again():
                free = dict(sample_sites(_run_on(guide, fixed, args, kwargs)))
            for name, term in factors.items():
                direct = score_site(free[name])
                stopped[name] = term + (direct - direct.detach())
    sites = dict(sample_sites(copied))
    copies = {name: Copy(site["value"], site["fn"].event_dim) for name, site in sites.items() if _is_drawn(site)}
    for name in [name for name in stopped if name not in copies and name not in factors]:
        del stopped[name]  # enumerated
    return _score(model_trace, guide_trace, particles, stopped)._replace(copies=copies)


def _is_drawn(site: Any) -> bool:
    return not site["is_observed"] and site["infer"].get("_enumerate_dim") is None


def _copied(value: Tensor) -> Tensor:
    # what is scored is a copy: weights that an estimator puts on a draw's gradient would else be passed twice where
    # another site is drawn from it, and the cache of an unconditional transform would know the draw, live graph and all
    return value.view_as(value)


def _replaced(trace: Trace, by: Callable[[Tensor], Tensor]) -> Trace:
    """The trace with other values of what was drawn."""
    other = trace.copy()
    for name, site in sample_sites(trace):
        if _is_drawn(site):
            replaced: Any = {**site, "value": by(site["value"])}
            other.nodes[name] = replaced
    return other


def _again(guide: Program) -> Callable[[], AbstractContextManager[None]]:
    """Lets a guide run again as it would run now: what a run changes in its buffers, running averages or a power
    iteration, is neither seen by another run inside nor changed once more."""
    if not isinstance(guide, torch.nn.Module):
        return nullcontext
    before = {id(b): b.clone() for b in guide.buffers()}
    return lambda: swapped(guide, {own: b.clone() for own, b in before.items()})


def _check_second_run(guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], particles: int) -> None:
    with _plates(guide, args, kwargs, particles):
        draws = _replaced(poutine.trace(guide).get_trace(*args, **kwargs), _copied)
        before = _random_states(guide, args)
        with torch.enable_grad(), Stopped() as stop:
            try:
                again = _run_on(guide, draws, args, kwargs)
                scores = {name: score_site(site) for name, site in sample_sites(again) if _is_drawn(site)}
            except (NotImplementedError, KeyError) as error:
                raise InputError(
                    "the guide cannot score its own draws a second time, a flow without an inverse for one: "
                    f"{type(error).__name__}: {error}"
                ) from error
    if not all(torch.equal(a, b) for a, b in zip(before, _random_states(guide, args), strict=True)):
        raise InputError(
            "the guide takes random numbers besides those of its sample sites, as dropout does: its second run, on "
            "the same draws, would be of another q; switch the dropout off (guide.eval()), or make its noise a sample "
            'site with infer={"is_auxiliary": True}'
        )
    names = {id(p): f" {name!r}" for name, p in guide.named_parameters()} if isinstance(guide, torch.nn.Module) else {}
    for name, score in scores.items():
        for leaf in leaves(score):
            if not any(leaf is own for own in stop.made):
                raise InputError(
                    f"log q of site {name!r} keeps the gradient of the parameter{names.get(id(leaf), '')} of shape "
                    f"{tuple(leaf.shape)}, which was to be stopped: compute what depends on it inside of the guide's "
                    "call, by operations of torch"
                )


def _random_states(*things: Any) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda_in(*things))]


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
        with untouched(guide, args), torch.no_grad():
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
            known = any(site["infer"].get("enumerate") == "parallel" for _, site in sites)
        with suppress(TypeError):
            _enumerates[guide] = known
    return poutine.enum(first_available_dim=-3) if known else nullcontext()


def _score(
    model_trace: Trace, guide_trace: Trace, particles: int, scored: Mapping[str, Tensor] = MappingProxyType({})
) -> LogWeights:
    """
    Args:
        scored: log q of guide sites for which it is known already.
    """
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
        log_guide[name] = scored[name] if name in scored else score_site(site)
        if site["infer"].get("_enumerate_dim") is not None:
            enumerated.append(name)
        elif not getattr(site["fn"], "has_rsample", False):
            rigid.append(name)
        if not is_per_datum(site):
            shared.append(name)

    for name, site in sample_sites(model_trace):
        size = data_size(site) if size is None else size
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


def point_masses(guide_trace: Trace) -> tuple[str, ...]:
    """The latent sites of each datum that a guide puts at a point: draws of a `Delta` whose log-density is 0, unless
    the guide draws auxiliary sites beside them that have the density, as Pyro's `AutoContinuous` does. It looks at
    tensors' values."""
    sites = {name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]}
    points = {name for name, site in sites.items() if _is_point(site["fn"])}
    others = [site for name, site in sites.items() if site["infer"].get("is_auxiliary") and name not in points]
    with_density = {is_per_datum(site) for site in others}
    return tuple(
        name
        for name, site in sites.items()
        if name in points
        and not site["infer"].get("is_auxiliary")
        and is_per_datum(site)  # of what all data share no weight is made
        and True not in with_density
    )


def no_density(what: str) -> InputError:
    """The error for a point mass where a density is needed."""
    return InputError(
        f"{what} is a point mass, which has no density: KL(q ‖ p(z | x)) is infinite, and log p(x, z) - log q(z | x) "
        "neither a bound nor a weight; train it by ELBO(beta=0), an autoencoder's loss, or by ELBO(), for the "
        "posterior's mode; evaluate it by at_points, or take a guide with a density, as MeanField"
    )


def _is_point(q: Any) -> bool:
    while not isinstance(q, Delta) and hasattr(q, "base_dist"):
        q = q.base_dist
    return isinstance(q, Delta) and not bool(q.log_density.any())


def score_site(site: Any) -> Tensor:
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
    return log_prob


def is_per_datum(site: Any) -> bool:
    # never by shape: with one datum a shared site looks the same
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def data_size(site: Any) -> int | None:
    return next((int(frame.size) for frame in site["cond_indep_stack"] if frame.dim == -1), None)
