"""The posterior of two latent dimensions, exactly, and a guide's q beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ..batch import Batch
from ..core import plain_support
from ..errors import InputError
from ..mcmc import log_joint, sample_posterior
from ..weights import Program, particle_plate, sample_sites, score_site
from .chunked import Source, device_of, evaluation
from .generation import generation

__all__ = ["Plane", "is_plane", "planes", "posterior_draws"]

_COARSE = 61
_CHUNK = 1024
_FAR = 12.0
"""Nats below the highest density that end the picture."""

_CHAINS, _WARMUP, _LEAPFROG = 10, 60, 4


@dataclass(frozen=True, eq=False)
class Plane:
    """p(z | x) and q(z | x) of one datum, over a rectangle that holds nearly all of both.

    Args:
        z1, z2: (G,) coordinates of the grid's cells.
        p: (G, G) density of the posterior at (z1, z2), by the model's joint density over its sum on the grid.
        q: (G, G) density of the guide; None where it cannot score a given z.
        draws: (K, 2) of the guide.
    """

    z1: Tensor
    z2: Tensor
    p: Tensor
    q: Tensor | None
    draws: Tensor

    @property
    def cell(self) -> float:
        """The area of a cell."""
        return float((self.z1[1] - self.z1[0]) * (self.z2[1] - self.z2[0]))


def is_plane(model: Any) -> bool:
    """Whether a model declares one latent site, of two real dimensions."""
    specs = list(getattr(model, "latents", {}).values())
    if len(specs) != 1 or specs[0].scope != "datum" or tuple(specs[0].event_shape) != (2,):
        return False
    return plain_support(specs[0].support) is constraints.real


def planes(
    model: Program, guide: Program, data: Batch, *, size: int = 121, draws: int = 400, seed: int = 0
) -> list[Plane]:
    """Exact posterior and guide of each datum, for a model with one latent site of two dimensions.

    Of such a model the posterior is known up to the width of a grid's cell: no Markov chain is needed.

    Args:
        model, guide: a pair of programs over a `Batch`.
        data: some data.
        size: G, cells along each side of the grid.
        draws: K, of the guide.
        seed: of random numbers of its own.

    Raises:
        InputError: a model with other latents, a pair that breaks a rule.
    """
    name = _site(model)
    found = []
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        source.check(model, guide)
        for row in range(source.size):
            batch = source.batch(row, row + 1)
            found.append(_plane(model, guide, name, batch, size, draws))
    return found


def posterior_draws(model: Program, data: Batch, draws: int = 400, *, seed: int = 0) -> Tensor:
    """(M, N, 2) draws of each datum's posterior by Hamiltonian Monte Carlo, in ten chains, to be looked at beside
    the grid.

    Raises:
        InputError: as `planes`, and as `sample_posterior`.
    """
    name, each = _site(model), max(4, -(-draws // _CHAINS))
    samples = sample_posterior(model, data, chains=_CHAINS, draws=each, warmup=_WARMUP, steps=_LEAPFROG, seed=seed)
    return samples.draws[name].flatten(0, 1)


def _site(model: Any) -> str:
    if not is_plane(model):
        raise InputError(f"{type(model).__name__} has other latents than one site of two real dimensions")
    (name,) = model.latents
    return str(name)


def _plane(model: Program, guide: Program, name: str, batch: Batch, size: int, draws: int) -> Plane:
    with particle_plate(draws):
        ours: Any = poutine.trace(guide).get_trace(batch).nodes[name]["value"]
        prior: Any = poutine.trace(model).get_trace(generation(batch)).nodes[name]["value"]
    dtype = ours.dtype
    drawn = ours.expand(draws, 1, 2)[:, 0].double()
    everywhere = torch.cat([drawn, prior.expand(draws, 1, 2)[:, 0].double()])
    low, high = _wider(everywhere.amin(0), everywhere.amax(0), 0.25)
    ends = torch.tensor([0.005, 0.995], dtype=torch.float64, device=drawn.device)
    inner = drawn.quantile(ends, dim=0)
    for _ in range(3):
        grid = _grid(low, high, _COARSE)
        log_p = _on_grid(lambda z: log_joint(model, {name: z}, batch), grid, dtype)
        near = (log_p > log_p.max() - _FAR).nonzero()
        step = (high - low) / _COARSE
        corner = low + near.amin(0) * step, low + (near.amax(0) + 1) * step
        low, high = _wider(torch.minimum(corner[0], inner[0]), torch.maximum(corner[1], inner[1]), 0.02)
    grid = _grid(low, high, size)
    log_p = _on_grid(lambda z: log_joint(model, {name: z}, batch), grid, dtype)
    log_q = _score(guide, name, batch, grid, dtype)
    cell = float(((high - low) / size).prod())
    p = (log_p - log_p.flatten().logsumexp(0)).exp() / cell
    q = None if log_q is None else log_q.exp().cpu()
    return Plane(grid[:, 0, 0].cpu(), grid[0, :, 1].cpu(), p.cpu(), q, drawn.cpu())


def _wider(low: Tensor, high: Tensor, share: float) -> tuple[Tensor, Tensor]:
    room = share * (high - low) + 1e-6
    return low - room, high + room


def _grid(low: Tensor, high: Tensor, size: int) -> Tensor:
    """The middles of the cells, (G, G, 2)."""
    place = (torch.arange(size, dtype=torch.float64, device=low.device) + 0.5) / size
    z1, z2 = (low[d] + place * (high[d] - low[d]) for d in range(2))
    return torch.stack(torch.meshgrid(z1, z2, indexing="ij"), -1)


def _on_grid(score: Any, grid: Tensor, dtype: torch.dtype) -> Tensor:
    """(G, G) of a function from values (C, 1, 2) to log densities (C, 1)."""
    points = grid.reshape(-1, 1, 2).to(dtype)
    parts = [score(piece).double().reshape(-1) for piece in points.split(_CHUNK)]
    return torch.cat(parts).reshape(grid.shape[:2])


def _score(guide: Program, name: str, batch: Batch, grid: Tensor, dtype: torch.dtype) -> Tensor | None:
    """log q on the grid, of guides whose only site it is and that can score it."""

    def score(z: Tensor) -> Tensor:
        with particle_plate(z.shape[0]):
            trace = poutine.trace(poutine.condition(guide, data={name: z})).get_trace(batch)
        sites = dict(sample_sites(trace))
        if set(sites) != {name}:
            raise NotImplementedError("an auxiliary site would have to be summed")
        return score_site(sites[name]).expand(z.shape[0], 1)

    try:
        distribution = getattr(guide, "distribution", None)
        try:
            q = distribution(batch)[name] if distribution is not None else None
        except NotImplementedError:
            q = None
        if q is not None:
            return _on_grid(q.log_prob, grid, dtype)
        return _on_grid(score, grid, dtype) if getattr(guide, "scores_given", True) else None
    except (NotImplementedError, KeyError):
        return None
