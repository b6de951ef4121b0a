"""A fitted pair's posterior and its predictions, for ArviZ."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError
from ..evaluate.chunked import Chunk, Data, Source, chunk_for, device_of, evaluation, spans
from ..evaluate.generation import generation
from ..evaluate.importance import shared_sites
from ..handlers import drawn
from ..labels import hide_labels
from ..objectives.base import check_particles
from ..weights import LogWeights, Program, log_weights, particle_plate
from ._arviz import container

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["to_arviz"]

_X_DIMS = {0: (), 1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}


def to_arviz(
    model: Program,
    guide: Program,
    data: Data,
    draws: int = 1000,
    prior_draws: int | None = None,
    chunk: int | None = None,
    *,
    seed: int | None = None,
) -> Any:
    r"""Draws from the guide and the model, with their log-probabilities, as ArviZ's groups.

    ==================== ============================================================================================
    posterior            z ~ q(z | x) by site: (chain, draw, datum, z_dim)
    posterior_predictive x' ~ p(x' | z) of these z: (chain, draw, datum, channel, row, column) for images,
                         (..., feature) for tables
    log_likelihood       log p(x | z), one value a datum: (chain, draw, datum)
    sample_stats         log_p = log p(x, z), log_q = log q(z | x), log_w = log_p - log_q: (chain, draw, datum)
    prior                z ~ p(z), for each datum, whose y and context are kept
    prior_predictive     x' ~ p(x' | z) of these z
    observed_data        x: (datum, ...); NaN where it is not observed
    constant_data        y, context, visible, observed: those that there are
    ==================== ============================================================================================

    Of a model with a latent class, as `models.M2`, labels are hidden from the pair, as by `evaluate`.

    Latents u that all data share have no `datum`: (chain, draw, u_dim). Each draw is then one of all data together, z_n
    ~ q(z_n | x_n, u). log_p, log_q and log_w are of a datum given u, log p(x_n, z_n | u) - log q(z_n | x_n, u), and
    beside them stand log_p_shared = log p(u) and log_q_shared = log q(u | x), (chain, draw): the weight of a whole draw
    is Σ_n log_w + log_p_shared - log_q_shared.

    The draws are those of the guide, with equal weights; exp(log_w) carries them to the posterior itself. They are
    independent and make one chain: R-hat has no meaning here, see `summary`. Everything is held in memory, (draws +
    prior_draws) · N · (size of x + size of z) numbers: for large data take some rows, ``data.take(range(100))``.

    Args:
        model, guide: a pair of programs over a `Batch`, with x at a site named "x".
        data: a data set, a batch with x, or x; the coordinate `datum` has a batch's `rows`.
        draws: of the posterior, a datum.
        prior_draws: of the prior, a datum; None: as many as `draws`.
        chunk: pairs of a draw and a datum at once, see `log_marginal`; where latents are shared, all data at least.
        seed: of random numbers of its own, leaving the default generator as it is.

    Returns:
        `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with 1.x.

    Raises:
        InputError: as `log_marginal`.
    """
    check_particles(draws)
    prior_draws = draws if prior_draws is None else check_particles(prior_draws)
    proposal = drawn(guide)
    posterior, predictive, stats, prior, prior_predictive = (_Arrays() for _ in range(5))
    log_likelihood = _Arrays()
    batches: list[Batch] = []

    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(hide_labels(model, data), model, guide)
        source.check(model, guide)

        def run(batch: Batch, count: int) -> tuple[LogWeights, Tensor]:
            w = log_weights(model, proposal, batch, particles=count)
            return w, _predict(poutine.condition(model, data=dict(w.draws)), batch, count)["x"]

        shared = shared_sites(model, guide, source)
        size = chunk_for(run, source, max(draws, prior_draws), chunk)
        if shared:  # all data have the same draw of them
            size = Chunk(source.size, max(1, size.rows * size.particles // source.size))
        for start, stop in spans(source.size, size.rows):
            batch = source.batch(start, stop)
            batches.append(batch.to("cpu"))
            for a, b in spans(draws, size.particles):
                w, x = run(batch, b - a)
                at = (draws, source.size, a, start, stop)
                for name, value in w.draws.items():
                    if name in shared:
                        posterior.put_shared(name, value, draws, a)
                    else:
                        posterior.put(name, value, value.shape[2:], *at)
                predictive.put("x", x, x.shape[2:], *at)
                log_likelihood.put("x", w.log_likelihood.expand(w.particles, w.size), (), *at)
                for name, value in _of_each_datum(w).items():
                    stats.put(name, value.expand(w.particles, w.size), (), *at)
                for name, value in _of_all(w).items():
                    stats.put_shared(name, value, draws, a)
            for a, b in spans(prior_draws, size.particles):
                values = _predict(model, batch, b - a)
                at = (prior_draws, source.size, a, start, stop)
                prior_predictive.put("x", values.pop("x"), predictive.event("x"), *at)
                for name in posterior.names():
                    if name in shared:
                        prior.put_shared(name, values[name], prior_draws, a)
                    else:
                        prior.put(name, values[name], posterior.event(name), *at)

    # labels that were hidden from the pair are the data's all the same
    y = None if isinstance(data, Tensor) or data.y is None else data.y.cpu()
    whole = _join(batches)._replace(y=y)
    coords: dict[str, Any] = {"datum": np.arange(source.size) if whole.rows is None else whole.rows.numpy()}
    if isinstance(source.data, DataSet) and source.data.columns:
        coords["feature"] = list(source.data.columns)
    x_dims = _x_dims(predictive.event("x"))
    z_dims = {name: _event_dims(name, posterior.event(name)) for name in posterior.names()}
    groups = {
        "posterior": _dataset(posterior, z_dims, coords),
        "posterior_predictive": _dataset(predictive, {"x": x_dims}, coords),
        "log_likelihood": _dataset(log_likelihood, {}, coords),
        "sample_stats": _dataset(stats, {}, coords),
        "prior": _dataset(prior, z_dims, coords),
        "prior_predictive": _dataset(prior_predictive, {"x": x_dims}, coords),
        **_observations(whole, x_dims, coords),
    }
    attrs = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "model": type(model).__name__,
        "guide": type(guide).__name__,
        "data": source.description,
        "draws_are": "independent draws from the guide, of equal weight; log_w is their log importance weight",
    }
    for group in groups.values():
        group.attrs.update(attrs)
    return container(groups, attrs)


def _predict(model: Program, batch: Batch, count: int) -> dict[str, Tensor]:
    """Run the model without x, K times for each datum: its sites' values, (K, N, \\*event)."""
    with particle_plate(count):
        # `Predictive` on a batch with x gives back that x
        trace: Any = poutine.trace(model).get_trace(generation(batch))
    values = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            # what all data share lies outside of the data plate, as one value
            of_datum = any(frame.dim == -1 for frame in site["cond_indep_stack"])
            values[name] = site["value"].expand(count, batch.size if of_datum else 1, *site["fn"].event_shape)
    if "x" not in values:
        raise InputError(f"the model has no site named 'x'; it has {sorted(values)}")
    return values


def _of_each_datum(w: LogWeights) -> dict[str, Tensor]:
    """log p(x, z), log q(z | x) and their difference, given what all data share, (K, N)."""
    log_p, log_q = w.log_likelihood, w.log_likelihood.new_zeros(())
    for name, term in w.log_prior.items():
        log_p = log_p if name in w.shared else log_p + term
    for name, term in w.log_guide.items():
        log_q = log_q if name in w.shared else log_q + term
    return {"log_p": log_p, "log_q": log_q, "log_w": log_p - log_q}


def _of_all(w: LogWeights) -> dict[str, Tensor]:
    """log p(u) and log q(u | x) of the latents that all data share, (K, 1); nothing where there are none."""
    if not w.shared:
        return {}
    parts = {"log_p_shared": w.log_prior, "log_q_shared": w.log_guide}
    return {key: sum((terms[name] for name in w.shared), torch.zeros(())) for key, terms in parts.items()}


def _join(batches: list[Batch]) -> Batch:
    def joined(name: str) -> Tensor | None:
        parts = [getattr(batch, name) for batch in batches]
        return None if parts[0] is None else torch.cat(parts)

    return Batch(
        x=joined("x"),
        y=joined("y"),
        context=joined("context"),
        visible=joined("visible"),
        observed=joined("observed"),
        rows=joined("rows"),
    )


class _Arrays:
    """Arrays (draws, N, \\*event) by name, filled block by block; (draws, \\*event) of what all data share."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self.shared: set[str] = set()

    def put(
        self, name: str, value: Tensor, event: Sequence[int], draws: int, size: int, draw: int, start: int, stop: int
    ) -> None:
        block = value.cpu().numpy()
        if name not in self._arrays:
            self._arrays[name] = np.empty((draws, size, *event), dtype=block.dtype)
        self._arrays[name][draw : draw + len(block), start:stop] = block

    def put_shared(self, name: str, value: Tensor, draws: int, draw: int) -> None:
        """A block (K, 1, \\*event) of what all data share."""
        block = value.squeeze(1).cpu().numpy()
        if name not in self._arrays:
            self._arrays[name] = np.empty((draws, *block.shape[1:]), dtype=block.dtype)
            self.shared.add(name)
        self._arrays[name][draw : draw + len(block)] = block

    def names(self) -> Iterable[str]:
        return self._arrays.keys()

    def event(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape[1 if name in self.shared else 2 :]

    def dims(self, name: str) -> tuple[str, ...]:
        """What is left of the event."""
        return ("chain", "draw") if name in self.shared else ("chain", "draw", "datum")

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]


def _x_dims(event: Sequence[int]) -> tuple[str, ...]:
    return _X_DIMS.get(len(event)) or _event_dims("x", event)


def _event_dims(name: str, event: Sequence[int]) -> tuple[str, ...]:
    return (f"{name}_dim",) if len(event) == 1 else tuple(f"{name}_dim_{i}" for i in range(len(event)))


def _dataset(arrays: _Arrays, dims: dict[str, tuple[str, ...]], coords: dict[str, Any]) -> xr.Dataset:
    variables = {name: ((*arrays.dims(name), *dims.get(name, ())), arrays[name][np.newaxis]) for name in arrays.names()}
    return _labelled(variables, coords)


def _observations(batch: Batch, x_dims: tuple[str, ...], coords: dict[str, Any]) -> dict[str, xr.Dataset]:
    x = batch.x
    assert x is not None
    if batch.observed is not None:
        x = torch.where(batch.observed, x, math.nan)
    groups = {"observed_data": _labelled({"x": (("datum", *x_dims), x.numpy())}, coords)}
    dims = {"y": (), "context": ("context_dim",), "visible": x_dims, "observed": x_dims}
    given = {
        name: (("datum", *names), value.numpy())
        for name, names in dims.items()
        if (value := getattr(batch, name)) is not None
    }
    if given:
        groups["constant_data"] = _labelled(given, coords)
    return groups


def _labelled(variables: dict[str, tuple[tuple[str, ...], NDArray[Any]]], coords: dict[str, Any]) -> xr.Dataset:
    """A dataset in which every dimension has a coordinate."""
    import xarray as xr

    sizes = {dim: n for dims, array in variables.values() for dim, n in zip(dims, array.shape, strict=True)}
    return xr.Dataset(variables, {dim: coords.get(dim, np.arange(n)) for dim, n in sizes.items()})
