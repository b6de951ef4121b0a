"""What is hidden, given what is visible: imputations, and log p(x_missing | x_visible)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError, check_count
from ..labels import hide_labels
from ..masks import check_masks, known
from ..objectives.base import check_particles
from ..weights import Program, particle_plate, weights_and_trace
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Estimate
from .importance import LogMarginal, log_marginal
from .latents import latent_sites

__all__ = ["Imputations", "LogMissing", "impute", "log_missing"]

_NUMBERS = 1 << 20
"""Random numbers drawn at once to choose among particles."""


@dataclass(frozen=True, eq=False)
class Imputations:
    """What a model puts in the place of what is hidden, M times for each of N data.

    Args:
        draws: (M, N, \\*D) x ~ p(x_missing | x_visible); where x is visible it is the data's.
        means: (M, N, \\*D) E[x | z] of the same z, which of pictures look smoother.
        mean: (N, \\*D) E[x_missing | x_visible], the imputation of least squared error.
        visible: (N, \\*D) bool.
        ess: (N,) effective number of the particles that all of it was made of.
        particles: K.
        data: which data these are.
    """

    draws: Tensor
    means: Tensor
    mean: Tensor
    visible: Tensor
    ess: Tensor
    particles: int
    data: str


@dataclass(frozen=True, eq=False)
class LogMissing:
    """log p(x_missing | x_visible) of N data, the difference of two estimates with draws of their own.

    Args:
        log_p: (N,) nats.
        se: (N,) its Monte Carlo standard error.
        whole: log p(x), with k-hat.
        visible: log p(x_visible), with k-hat.
    """

    log_p: Tensor
    se: Tensor
    whole: LogMarginal
    visible: LogMarginal

    @property
    def unreliable(self) -> Tensor:
        """(N,) where k-hat of either estimate is above 0.7 or unknown."""
        return self.whole.unreliable | self.visible.unreliable

    @property
    def estimate(self) -> Estimate:
        """The mean over the data, nats per datum, with both of its standard errors."""
        return Estimate.of(self.log_p, self.se)


def impute(
    model: Program,
    guide: Program,
    data: Data,
    draws: int = 10,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    weighted: bool = True,
    seed: int | None = None,
) -> Imputations:
    r"""Several imputations of each datum, and their mean.

    .. math::
        E[h(x_\text{mis}) \mid x_\text{vis}] \approx \sum_k \tilde w_k \, E[h(x_\text{mis}) \mid z_k], \quad
        w_k = \frac{p(x_\text{vis}, z_k)}{q(z_k \mid x_\text{vis})}, \quad \tilde w_k = \frac{w_k}{\sum_j w_j}

    K particles are drawn from the guide, which sees what is visible; an imputation takes one of them with probability
    w̃_k, and then x from p(x | z_k), each a draw of its own: sampling importance resampling, whose draws tend to
    p(x_mis | x_vis) as K grows, however good the guide is. Particles are looked at as they come: memory does not grow
    with K.
    Of a model with a latent class, as `models.M2`, labels are hidden from the pair, as by `evaluate`.

    Args:
        model, guide, chunk, seed: as in `log_marginal`; the model has x at a site named "x".
        data: with masks; of x, what is not visible is not looked at. A data set's masks are drawn once.
        draws: M.
        particles: K, 10 M or more, for M draws are no more than K particles to choose from.
        weighted: False takes all particles as equal: E under q(z | x_vis) in place of p(z | x_vis).

    Returns:
        `Imputations`, on the CPU.

    Raises:
        InputError: as `log_marginal`; data without masks; p(x | z) without a mean.

    Reference: Mattei and Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, ICML 2019
    (https://arxiv.org/abs/1812.02633), sections 3.2 and 3.3.
    """
    check_count("draws", draws)
    check_particles(particles)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(hide_labels(model, data), model, guide)
        _refuse_unmasked(source.batch(0, 1))
        if weighted:
            source.check(model, guide, density=True)

        def decoded(batch: Batch, z: Mapping[str, Tensor], count: int) -> Any:
            """p(x | z), of z (K, N, \\*event)."""
            with particle_plate(count):
                return _x_of(poutine.trace(poutine.condition(model, data=dict(z))).get_trace(batch))

        def propose(batch: Batch, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            """log w (K, N), E[x | z] (K, N, \\*D) and z, (K, N, \\*event) by site."""
            batch = known(batch)
            if weighted:
                w, trace = weights_and_trace(model, guide, batch, particles=count, enumerate=False)
                log_w, z, mean = w.log_w, dict(w.draws), _x_of(trace).mean
            else:
                with particle_plate(count):
                    z = {name: site["value"] for name, site in latent_sites(guide, batch).items()}
                log_w, mean = torch.zeros(count, batch.size, device=source.device), decoded(batch, z, count).mean
            left = (count, batch.size)
            return log_w.expand(left), _spread(mean, left), {name: _spread(value, left) for name, value in z.items()}

        size = chunk_for(propose, source, particles, chunk)
        parts = []
        for start, stop in spans(source.size, size.rows):
            batch = known(source.batch(start, stop))
            kept = _Kept(draws)
            for a, b in spans(particles, size.particles):
                kept.update(*propose(batch, b - a))
            # each imputation a draw of its own, of the same z too
            xs = []
            for a, b in spans(draws, size.particles):
                p = decoded(batch, {name: value[a:b] for name, value in kept.z.items()}, b - a)
                xs.append([_spread(t, (b - a, batch.size)) for t in (p.sample(), p.mean)])
            drawn, means = (torch.cat(each) for each in zip(*xs, strict=True))
            parts.append([t.cpu() for t in kept.finish(batch, drawn, means)])
    (drawn, means), (mean, visible, ess) = (
        [torch.cat(each, axis) for each in zip(*(part[which] for part in parts), strict=True)]
        for axis, which in ((1, slice(0, 2)), (0, slice(2, 5)))
    )
    return Imputations(drawn, means, mean, visible, ess, particles, source.description)


def log_missing(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    seed: int | None = None,
) -> LogMissing:
    r"""log p of what is hidden given what is visible, of data of which both are known.

    .. math:: \log p(x_\text{mis} \mid x_\text{vis}) = \log p(x) - \log p(x_\text{vis})

    Each term is `log_marginal`'s, with a proposal of its own: q(z | x) for the whole, q(z | x_vis) for what is visible.
    Their errors are independent. Of values that are not observed at all nothing is asked.
    Of a model with a latent class, as `models.M2`, labels are hidden from the pair, as by `evaluate`.

    Args:
        model, guide, particles, chunk: as in `log_marginal`.
        data: with masks that hide what is asked for; a data set's are drawn once.
        seed: of the whole; what is visible takes seed + 1.

    Returns:
        `LogMissing`, on the CPU in float64.

    Raises:
        InputError: as `log_marginal`; data without masks.
    """
    if isinstance(data, Tensor):
        data = Batch(x=data)
    data = hide_labels(model, data)
    batch = data.fixed().batch() if isinstance(data, DataSet) else data
    _refuse_unmasked(batch)
    check_masks(batch, "data")
    whole = log_marginal(model, guide, batch._replace(visible=batch.observed), particles, chunk, seed=seed)
    other = None if seed is None else seed + 1
    part = log_marginal(model, guide, known(batch), particles, chunk, seed=other)
    return LogMissing(whole.log_px - part.log_px, (whole.se.square() + part.se.square()).sqrt(), whole, part)


def _refuse_unmasked(batch: Batch) -> None:
    if batch.visible is None and batch.observed is None:
        raise InputError(
            "data have no masks, and nothing is hidden: give a Batch with `visible`, or a data set with masks, "
            "load(..., masks='rectangles') or data.with_options(masks=...)"
        )


class _Kept:
    """Draws among weighted particles that come in pieces, and their mean. The largest of log w + a Gumbel number is a
    draw in proportion to w, and the z of the largest so far is all that must be kept."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.count = 0
        self.best = torch.empty(0)
        self.z: dict[str, Tensor] = {}
        self.shift = self.total = self.squares = self.sum = torch.empty(0)

    def update(self, log_w: Tensor, mean: Tensor, z: Mapping[str, Tensor]) -> None:
        """log w (k, N), E[x | z] (k, N, \\*D) and z, (k, N, \\*event) by site."""
        log_w = log_w.double()
        first = self.count == 0
        self.count += log_w.shape[0]
        at_once = max(1, _NUMBERS // log_w.numel())
        found = [self._largest(log_w, min(at_once, self.draws - m)) for m in range(0, self.draws, at_once)]
        value, place = (torch.cat(each) for each in zip(*found, strict=True))  # (M, N)
        rows = torch.arange(log_w.shape[1], device=log_w.device)
        if first:
            self.best, self.z = value, {name: each[place, rows] for name, each in z.items()}
        else:
            better = value > self.best
            self.best = torch.where(better, value, self.best)
            for name, each in z.items():
                wide = better.view(*better.shape, *(1,) * (each.dim() - 2))
                self.z[name] = torch.where(wide, each[place, rows], self.z[name])
        # sums, relative to the largest weight so far
        shift = log_w.amax(0) if first else torch.maximum(self.shift, log_w.amax(0))
        weight = (log_w - shift).exp()
        total, squares = weight.sum(0), weight.square().sum(0)
        moment = torch.einsum("kn,kn...->n...", weight, mean.double())
        if not first:
            scale = (self.shift - shift).exp()
            total, squares = total + scale * self.total, squares + scale.square() * self.squares
            moment = moment + scale.view(-1, *(1,) * (moment.dim() - 1)) * self.sum
        self.shift, self.total, self.squares, self.sum = shift, total, squares, moment

    def _largest(self, log_w: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Values and places, (m, N), of some draws."""
        uniform = torch.rand(draws, *log_w.shape, dtype=log_w.dtype, device=log_w.device)  # (m, k, N)
        value, place = (log_w - (-uniform.log()).log()).max(1)
        return value, place

    def finish(self, batch: Batch, drawn: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draws, means, mean, what is visible, effective number of particles, of x and E[x | z] (M, N, \\*D)."""
        assert batch.x is not None
        assert batch.visible is not None
        mean = (self.sum / self.total.view(-1, *(1,) * (self.sum.dim() - 1))).to(batch.x.dtype)
        drawn, means, mean = (torch.where(batch.visible, batch.x, t.to(mean.dtype)) for t in (drawn, means, mean))
        return drawn, means, mean, batch.visible, self.total.square() / self.squares


def _spread(value: Tensor, left: tuple[int, int]) -> Tensor:
    return value.expand(*left, *value.shape[2:])


def _x_of(trace: Any) -> Any:
    """p(x | z) in a run of the model."""
    if "x" not in trace.nodes:
        raise InputError(f"the model has no site named 'x'; it has {list(trace.nodes)}")
    site = trace.nodes["x"]
    try:
        site["fn"].mean  # noqa: B018
    except NotImplementedError:
        raise InputError(f"p(x | z) is {site['fn']}, which has no mean: draws of it cannot be averaged") from None
    return site["fn"]
