"""log p(x) and the evidence lower bound, datum by datum, from weights that are added up as they come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..compiled import CompiledFunction
from ..errors import InputError
from ..isolation import untouched
from ..networks import in_precision
from ..objectives.base import check_particles
from ..objectives.iwae import sum_enumerated
from ..psis import RELIABLE, khat_from_largest, tail_length
from ..weights import LogWeights, Program, is_per_datum, log_weights
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Estimate, Moments
from .latents import latent_sites

__all__ = ["Bound", "LogMarginal", "Progress", "effective_sample_size", "elbo", "log_marginal", "marginal_and_bound"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of weights computed, and how many there will be."""


@dataclass(frozen=True, eq=False)
class LogMarginal:
    """log p(x) of N data by importance sampling; of a conditional model, log p(x | y); of a model with latents u that
    all data share, log E_q(u)[p(x | u)].

    Args:
        log_px: (N,) log of the mean weight, nats. Its expectation lies below log p(x), by about se²/2.
        se: (N,) Monte Carlo standard error of `log_px`, by the delta method: sd(w) / (mean(w) √K). NaN with K = 1.
        khat: (N,) Pareto shape of the weights' tail; -inf where they are all equal.
        ess: (N,) effective number of particles, (Σ w)² / Σ w², between 1 and K.
        particles: K.
        data: which data these are.
        shared: the latents u that all data share.
    """

    log_px: Tensor
    se: Tensor
    khat: Tensor
    ess: Tensor
    particles: int
    data: str
    shared: tuple[str, ...] = ()

    @property
    def unreliable(self) -> Tensor:
        """(N,) where k-hat is above 0.7 or unknown: neither `log_px` nor `se` can be relied on there, since the
        largest weights have not been seen yet; log p(x) is then more likely too low."""
        return ~(self.khat <= RELIABLE)

    @property
    def mean(self) -> float:
        """Mean log p(x), nats per datum."""
        return self.estimate.mean

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; what other data would give is `estimate.data_se`."""
        return self.estimate.se

    @property
    def estimate(self) -> Estimate:
        """`mean` with both of its standard errors."""
        return Estimate.of(self.log_px, self.se, independent=not self.shared)


@dataclass(frozen=True, eq=False)
class Bound:
    """The evidence lower bound and its two parts, by Monte Carlo: elbo = log_likelihood - kl. All (N,), nats.

    Of a model with latents u that all data share it is E_q(u)[ELBO of log p(x | u)]; KL(q(u) ‖ p(u)), which is of no
    datum, is no part of it.

    Args:
        elbo: E_q[log p(x, z) - log q(z | x)].
        kl: E_q[log q(z | x) - log p(z)].
        log_likelihood: E_q[log p(x | z)].
        elbo_se, kl_se, log_likelihood_se: Monte Carlo standard errors; NaN with one particle.
        particles: draws a datum.
        data: which data these are.
        shared: the latents u that all data share.
    """

    elbo: Tensor
    kl: Tensor
    log_likelihood: Tensor
    elbo_se: Tensor
    kl_se: Tensor
    log_likelihood_se: Tensor
    particles: int
    data: str
    shared: tuple[str, ...] = ()

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Means over the data: "elbo", "kl", "log_likelihood"."""
        return {
            name: Estimate.of(getattr(self, name), getattr(self, f"{name}_se"), independent=not self.shared)
            for name in ("elbo", "kl", "log_likelihood")
        }


def log_marginal(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
    precision: Literal["32", "bf16"] = "32",
) -> LogMarginal:
    r"""log p(x) of every datum by importance sampling from the guide.

    .. math:: \log \hat p(x_n) = \log \frac1K \sum_k w_{kn}, \quad w_{kn} = p(x_n, z_{kn}) / q(z_{kn} \mid x_n)

    Enumerated classes are summed, w = Σ_c p(x, z, c) / q(z | x, c). Weights are added up in float64 as they come, and
    of them only the largest ~3√K are kept for k-hat: memory does not grow with K. `chunk` changes which random numbers
    are drawn for what, and nothing else.

    Of latents u that all data share, as the weights of a network, each particle has a draw from q(u), and
    w = p(x, z | u) / q(z | x, u): what is estimated is the predictive density log ∫ q(u) p(x_n | u) du of each datum by
    itself. Of data that q(u) was not fitted to it says how well they are predicted; it is not the marginal likelihood
    of a data set.

    Args:
        model, guide: a pair of programs over a `Batch`.
        data: a data set (dynamic binarization is drawn once, as by `DataSet.fixed`), a batch with x, or x.
        particles: K.
        chunk: pairs of a particle and a datum at once; None: as many as a fixed amount of memory holds.
        seed: of random numbers of its own, leaving the default generator as it is; None: from the default generator.
        progress: called as the weights are computed.
        compile: compile what is done with a whole piece, as `CompiledSVI` does a step; worth its seconds for millions
            of weights. What is left over at the ends runs eagerly.
        precision: "32" leaves the parameters' own; "bf16" does matrix products in bfloat16, as `CompiledSVI` does, for
            networks of `ppl_vae.networks`: log p(x | z) of a datum then has three digits, and the estimate is that of a
            slightly different model. Where there is no such network a warning says that nothing is in bfloat16.

    Returns:
        `LogMarginal`, on the CPU in float64.

    Raises:
        InputError: a pair that breaks a rule, data outside of the support, a guide that is a point mass, a weight that
            is NaN or infinite.
    """
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)), in_precision(precision, model, guide):
        source = Source(data, model, guide)
        sums = (lambda: WeightSums(particles),)
        (weights,) = scan(model, guide, source, particles, chunk, progress, sums, compile)
        return _log_marginal(weights, particles, source, shared_sites(model, guide, source))


def elbo(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1,
    chunk: int | None = None,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Bound:
    """The evidence lower bound of every datum and its parts, by Monte Carlo over `particles` draws.

    No part is taken in closed form: under a guide near the posterior log p(x, z) - log q(z | x) hardly varies from
    draw to draw, and `elbo_se` says how far it does. Enumerated classes are summed. Arguments and errors are those
    of `log_marginal`.
    """
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        (terms,) = scan(model, guide, source, particles, chunk, progress, (_BoundSums,))
        return Bound(**terms, particles=particles, data=source.description, shared=shared_sites(model, guide, source))


def marginal_and_bound(
    model: Program,
    guide: Program,
    source: Source,
    particles: int,
    chunk: int | None,
    progress: Progress | None,
    compile: bool = False,
) -> tuple[LogMarginal, Bound]:
    """Both from the same draws, for callers that hold an `evaluation`."""
    make = (lambda: WeightSums(particles), _BoundSums)
    weights, terms = scan(model, guide, source, particles, chunk, progress, make, compile)
    shared = shared_sites(model, guide, source)
    bound = Bound(**terms, particles=particles, data=source.description, shared=shared)
    return _log_marginal(weights, particles, source, shared), bound


def shared_sites(model: Program, guide: Program, source: Source) -> tuple[str, ...]:
    """The latents that all data share."""
    batch = source.batch(0, 1)
    with untouched(model, guide, batch):
        return tuple(name for name, site in latent_sites(guide, batch).items() if not is_per_datum(site))


def _log_marginal(weights: dict[str, Tensor], particles: int, source: Source, shared: tuple[str, ...]) -> LogMarginal:
    refuse_bad_weights(weights["log_px"], source)
    return LogMarginal(**weights, particles=particles, data=source.description, shared=shared)


def refuse_bad_weights(log_px: Tensor, source: Source) -> None:
    """Raise `InputError` if a datum's log p(x) (N,) says that a weight of it is NaN or infinite."""
    bad = ~(log_px < math.inf)
    if bool(bad.any()):
        raise InputError(
            f"log p(x, z) - log q(z | x) is NaN or infinite for datum {int(bad.nonzero()[0])} of {source.description}: "
            "the pair's parameters are not finite, or its distributions are degenerate there"
        )


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σ w)² / Σ w² of log-weights (K, N), (N,): between 1, one particle has all the weight, and K, all have the same.

    Of a whole data set with many particles, `log_marginal(...).ess` is the same without holding the weights.
    """
    if log_w.dim() != 2:
        raise InputError(f"log_w has shape {tuple(log_w.shape)}; give (K, N), K particles for each of N data")
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


class _Scores(nn.Module):
    """The pair as a module that scores draws: (3, K, N), log w, the bound's term and log p(x | z) of each particle."""

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        for name, program in (("model", model), ("guide", guide)):
            if isinstance(program, nn.Module):
                self.add_module(name, program)
        self.programs = (model, guide)

    def forward(self, batch: Batch, count: int) -> tuple[None, Tensor]:
        w = log_weights(*self.programs, batch, particles=count)
        log_w = w.log_w_given
        terms = [sum_enumerated(w, log_w), _expected(w, log_w), _expected(w, w.log_likelihood)]
        return None, torch.stack([term.expand(w.particles, w.size) for term in terms])


class _Sums(Protocol):
    def update(self, scores: Tensor) -> None: ...

    def finish(self) -> dict[str, Tensor]: ...


class WeightSums:
    """What log p(x), its error, k-hat and ESS need of K weights: two moments relative to the largest weight so far,
    and the M + 1 largest."""

    def __init__(self, particles: int) -> None:
        self.particles = particles
        self.keep = min(tail_length(particles) + 1, particles)
        self.moments = Moments()
        self.shift = self.largest = torch.empty(0)
        self.eps = 0.0

    def update(self, scores: Tensor) -> None:
        log_w = scores[0]
        self.eps = max(self.eps, torch.finfo(log_w.dtype).eps)
        log_w = log_w.double()
        first = self.moments.count == 0
        shift = log_w.amax(0) if first else torch.maximum(self.shift, log_w.amax(0))
        finite = torch.where(shift == -math.inf, 0.0, shift)
        if not first:
            self.moments.rescale((self.shift - finite).exp())
        self.moments.update((log_w - finite).exp())
        self.shift = shift
        joined = log_w if first else torch.cat([self.largest, log_w])
        self.largest = joined.topk(min(self.keep, self.moments.count), dim=0).values

    def finish(self) -> dict[str, Tensor]:
        k, mean = self.particles, self.moments.mean
        relative = self.moments.se() / mean
        share = (self.moments.squares / (k * mean.square())).nan_to_num(math.inf)  # no weight at all: ess 0
        return {
            "log_px": mean.log() + self.shift,
            "se": relative,
            "khat": khat_from_largest(self.largest, k, self.eps),
            "ess": k / (1 + share),
        }


class _BoundSums:
    def __init__(self) -> None:
        self.moments = {name: Moments() for name in ("elbo", "kl", "log_likelihood")}

    def update(self, scores: Tensor) -> None:
        _, bound, log_likelihood = scores.double()
        terms = {"elbo": bound, "kl": log_likelihood - bound, "log_likelihood": log_likelihood}
        for name, value in terms.items():
            self.moments[name].update(value)

    def finish(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, moments in self.moments.items():
            out |= {name: moments.mean, f"{name}_se": moments.se()}
        return out


def _expected(w: LogWeights, value: Tensor) -> Tensor:
    """Expectation over enumerated classes, (K, N); a class of probability 0 counts nothing, whatever its value."""
    if not w.enumerated:
        return value
    q = w.log_q_enumerated.exp()
    # only the product has the classes' dimensions for certain: x may depend on no class but through z
    weighted = torch.where(q > 0, q * value, 0.0)
    return weighted.sum(tuple(range(weighted.dim() - 2))) if weighted.dim() > 2 else weighted


def scan(
    model: Program,
    guide: Program,
    source: Source,
    particles: int,
    chunk: int | None,
    progress: Progress | None,
    make: tuple[Callable[[], _Sums], ...],
    compile: bool = False,
) -> list[dict[str, Tensor]]:
    """Draw and score all particles of all data, some at a time; each of `make`'s sums, concatenated over the data."""

    scores = _Scores(model, guide)
    check_particles(particles)
    source.check(model, guide, density=True)
    size = chunk_for(scores, source, particles, chunk)
    compiled = CompiledFunction(scores, "inductor" if compile else "none", "the evaluation")
    # one tensor a result, made once: small ones that stay, between the large ones of the pieces, would split the heap
    results: list[dict[str, Tensor]] = [{} for _ in make]
    done = 0
    for start, stop in spans(source.size, size.rows):
        batch = source.batch(start, stop)
        sums = [new() for new in make]
        for a, b in spans(particles, size.particles):
            whole = compile and (stop - start, b - a) == tuple(size)
            found = compiled(batch, b - a) if whole else scores(batch, b - a)[1]
            for each in sums:
                each.update(found)
            done += (b - a) * (stop - start)
            if progress is not None:
                progress(done, source.size * particles)
        for into, each in zip(results, sums, strict=True):
            for name, value in each.finish().items():
                if name not in into:
                    into[name] = torch.empty(source.size, dtype=value.dtype)
                into[name][start:stop] = value
    return results
