"""The guide beside draws of the posterior itself, by Markov chains on some of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batch import Batch
from ..convergence import ess
from ..data import DataSet
from ..errors import InputError, check_count
from ..evaluate import Progress
from ..evaluate.chunked import Data, Source, device_of, evaluation
from ..evaluate.latents import latent_sites
from ..labels import hide_labels
from ..mcmc import Samples, sample_posterior
from ..weights import Program, particle_plate
from .findings import Picture, Verdict, plain
from .nuts_check import NutsCheck, checked_by_nuts
from .simulated import dimension_names

if TYPE_CHECKING:
    import xarray

__all__ = ["Reference", "reference", "sliced_wasserstein"]

MET = 1.05
"""R-hat up to which chains count as met: the largest of a datum's dimensions is somewhat above the usual 1.01."""

NARROW = 0.9
"""Standard deviations of q that are this share of the posterior's, or its inverse, are no fault."""

SHIFT = 0.1
"""Posterior standard deviations by which q's mean may be off."""

DISTANCE = 0.05
"""Posterior standard deviations by which the sliced Wasserstein distance may exceed its null level."""

FALSE_ALARM = 0.01

ENOUGH = 800
"""Draws of all chains from which on chains that have met pass for that, but for 1% of a few data."""

_FEWEST_DRAWS = 100
_DIRECTIONS = 64


@dataclass(frozen=True, eq=False)
class Reference:
    r"""q(z | x) against draws of p(z | x), for N data with D latent dimensions. On the CPU, float64.

    Args:
        samples: the chains, see `mcmc.Samples`.
        guide_draws: (S, N, \*event) by site, as many draws of q as there are of the chains.
        dims: names of the D dimensions, "z[0]", ...
        mean_error, mean_error_se: (N, D) (E_q[z] - E_p[z]) / sd_p[z], and its standard error.
        log_ratio, log_ratio_se: (N, D) log(sd_q[z] / sd_p[z]), and its standard error.
        distance: (N,) sliced Wasserstein distance of q's draws from the chains', in posterior standard deviations.
        null: (N,) the same of one half of the chains from the other: what it is where there is no difference.
        rows: the data's row numbers.
        data: which data these are.
        nuts: Pyro's NUTS beside it; None: it was not asked for.
    """

    samples: Samples
    guide_draws: Mapping[str, Tensor]
    dims: tuple[str, ...]
    mean_error: Tensor
    mean_error_se: Tensor
    log_ratio: Tensor
    log_ratio_se: Tensor
    distance: Tensor
    null: Tensor
    rows: Tensor
    data: str
    nuts: NutsCheck | None = None

    @property
    def met(self) -> Tensor:
        """(N,) whether the chains of a datum agree, R-hat up to 1.05 in every dimension; the others are left out of
        what is said of q."""
        return self.samples.worst_rhat <= MET

    def verdicts(self) -> Sequence[Verdict]:
        """Of q's widths, its means and its shape, faults first; of the chains; of NUTS where it was asked for."""
        from .verdicts_reference import of_chains, of_means, of_nuts, of_shape, of_widths

        said = [each(self) for each in (of_widths, of_means, of_shape)]
        said.sort(key=lambda verdict: not verdict.fault)
        return [*said, of_chains(self), *([] if self.nuts is None else [of_nuts(self.nuts)])]

    def pictures(self) -> Sequence[Picture]:
        """Draws of q over the chains' for a few data; widths and means by dimension; distances by datum."""
        from .figures_reference import by_dimension, distances, overlay

        return [overlay(self), by_dimension(self), distances(self)]

    def to_dataset(self) -> xarray.Dataset:
        """Draws and moments by "chain", "draw", "datum" and "dim"."""
        import xarray as xr

        chains = _flat(self.samples.draws, 3)
        guide = _flat(self.guide_draws, 2).reshape(chains.shape)
        by_dim = ("mean_error", "mean_error_se", "log_ratio", "log_ratio_se")
        values: dict[str, Any] = {name: (("datum", "dim"), getattr(self, name).numpy()) for name in by_dim}
        values |= {name: ("datum", getattr(self, name).numpy()) for name in ("distance", "null")}
        values["rhat"] = (("datum", "dim"), _flat(self.samples.rhat, 1).numpy())
        values["ess"] = (("datum", "dim"), _flat(self.samples.ess, 1).numpy())
        values["posterior"] = (("chain", "draw", "datum", "dim"), chains.numpy())
        values["guide"] = (("chain", "draw", "datum", "dim"), guide.numpy())
        return xr.Dataset(values, {"datum": self.rows.numpy(), "dim": list(self.dims)}, {"data": self.data})

    def to_json(self) -> dict[str, Any]:
        """Means over the data by dimension, distances, and how the chains did."""
        return dict(
            plain(
                {
                    "data": self.data,
                    "rows": self.rows,
                    "dims": list(self.dims),
                    "sd_ratio": self.log_ratio[self.met].mean(0).exp(),
                    "mean_error_rms": self.mean_error[self.met].square().mean(0).sqrt(),
                    "distance": self.distance.mean(),
                    "null": self.null.mean(),
                    "worst_rhat": self.samples.worst_rhat.max(),
                    "fewest_ess": self.samples.fewest_ess.min(),
                    "divergences": self.samples.divergences.sum(),
                    "chains": list(self.samples.log_joint.shape[:2]),
                    "nuts": self.nuts,
                }
            )
        )


def reference(
    model: Program,
    guide: Program,
    data: Data,
    rows: int | Sequence[int] = 16,
    *,
    chains: int = 8,
    draws: int = 500,
    warmup: int = 500,
    steps: int = 10,
    nuts: int = 0,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Reference:
    r"""q(z | x) beside draws of p(z | x) by Hamiltonian Monte Carlo, for some of the data.

    Chains start from the prior and not from q, which may miss a mode. Of each datum n and latent dimension d

    .. math::
        Δ_{nd} = \frac{E_q[z_d] - E_p[z_d]}{\mathrm{sd}_p[z_d]}, \qquad
        r_{nd} = \log \frac{\mathrm{sd}_q[z_d]}{\mathrm{sd}_p[z_d]}

    with standard errors from effective sample sizes, and the sliced Wasserstein distance of all dimensions together,
    beside what it is of one half of the chains from the other. Of a model with a latent class labels are hidden, and
    the class is refused: it is discrete.

    Args:
        model, guide: a pair of programs over a `Batch`.
        data: a data set, a batch with x, or x.
        rows: so many data, spread evenly; or the places of those wanted.
        chains, draws, warmup, steps: as for `mcmc.sample_posterior`.
        nuts: of so many of these data a chain of Pyro's NUTS is run as well, of `draws` draws after `warmup`: seconds
            to minutes for each.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called with the number of transitions done, and how many there will be.
        compile: compile the transition.

    Returns:
        `Reference`.

    Raises:
        InputError: fewer than 2 chains or 100 draws; rows out of range; latents that are discrete or shared by all
            data; else as `mcmc.sample_posterior`.

    References: Hoffman and Gelman, The No-U-Turn Sampler, JMLR 2014 (https://arxiv.org/abs/1111.4246). Bonneel, Rabin,
    Peyré and Pfister, Sliced and Radon Wasserstein barycenters of measures, JMIV 2015
    (https://doi.org/10.1007/s10851-014-0506-3).
    """
    check_count("chains", chains, 2)
    check_count("nuts", nuts, 0)
    if not isinstance(draws, int) or draws < _FEWEST_DRAWS:
        raise InputError(f"draws={draws!r}: standard errors of widths take {_FEWEST_DRAWS} draws a chain or more")
    data = hide_labels(model, data)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        chosen = _chosen(rows, source.size)
        batch = source.data.batch(chosen) if isinstance(source.data, DataSet) else source.data.take(chosen)
        whole = source.description
        described = whole if len(chosen) == source.size else f"{len(chosen)} of {whole}"
        source = Source(batch, model, None)
        batch = source.batch(0, source.size)
        source.check(model, guide)
        samples = sample_posterior(
            model,
            batch,
            chains=chains,
            draws=draws,
            warmup=warmup,
            steps=steps,
            progress=progress,
            compile=compile,
        )
        drawn = _guide_draws(guide, batch, chains * draws, samples.draws)
        check = checked_by_nuts(model, batch, samples, nuts, draws, warmup) if nuts else None
        p, q = _flat(samples.draws, 3), _flat(drawn, 2)
        directions = torch.randn(_DIRECTIONS, p.shape[-1], dtype=torch.float64)
    return Reference(
        samples=samples,
        guide_draws=drawn,
        dims=tuple(each for name, z in samples.draws.items() for each in dimension_names(name, z.shape[3:])),
        **_moments(p, q),
        **_distances(p, q, directions),
        rows=chosen if batch.rows is None else batch.rows.cpu(),
        data=described,
        nuts=check,
    )


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    r"""The sliced Wasserstein distance of two samples of equal size.

    .. math:: \Big( \frac1L \sum_l \frac1S \sum_s \big( (θ_l^\top a)_{(s)} - (θ_l^\top b)_{(s)} \big)^2 \Big)^{1/2}

    with the projections on each direction sorted.

    Args:
        a, b: (S, D).
        directions: (L, D); their lengths do not matter.
    """
    unit = directions / directions.norm(dim=1, keepdim=True)
    ours, theirs = ((each @ unit.T).sort(0).values for each in (a, b))  # (S, L)
    distance: Tensor = (ours - theirs).square().mean().sqrt()
    return distance


def _chosen(rows: int | Sequence[int], size: int) -> Tensor:
    if isinstance(rows, int) and not isinstance(rows, bool):
        count = min(check_count("rows", rows), size)
        return torch.linspace(0, size - 1, count).round().long()
    places = torch.as_tensor(list(rows))  # type: ignore[arg-type]
    if not len(places) or places.dtype != torch.int64 or bool(((places < 0) | (places >= size)).any()):
        raise InputError(f"rows={rows!r} must be a number of data, or places from 0 to {size - 1}")
    return places


def _guide_draws(guide: Program, batch: Batch, count: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with particle_plate(count):
        sites = latent_sites(guide, batch)
    if missing := [name for name in like if name not in sites]:
        raise InputError(f"the guide draws {sorted(sites)}, and not the model's {missing}")
    return {
        name: sites[name]["value"].expand(count, batch.size, *sites[name]["fn"].event_shape).cpu().double()
        for name in like
    }


def _flat(values: Mapping[str, Tensor], left: int) -> Tensor:
    """Values by site side by side, (\\*left, D), float64."""
    return torch.cat([value.double().reshape(*value.shape[:left], -1) for value in values.values()], -1)


def _moments(p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Errors of q's moments from chains (C, T, N, D) and draws (S, N, D)."""
    size = q.shape[0]
    flat = p.flatten(0, 1)
    mean, sd = flat.mean(0), flat.std(0)
    centred, others = p - mean, q - q.mean(0)
    spread = q.std(0)
    independent, of_squares = ess(p), ess(centred.square())
    ratio = spread / sd
    return {
        "mean_error": (q.mean(0) - mean) / sd,
        "mean_error_se": (1.0 / independent + ratio.square() / size).sqrt(),
        "log_ratio": ratio.log(),
        # Var(log s) = (kurtosis - 1) / (4 n)
        "log_ratio_se": (
            (_kurtosis(centred.flatten(0, 1)) - 1.0) / (4.0 * of_squares) + (_kurtosis(others) - 1.0) / (4.0 * size)
        ).sqrt(),
    }


def _kurtosis(centred: Tensor) -> Tensor:
    squares = centred.square().mean(0)
    # of a point, whose width has no error
    return torch.where(squares > 0.0, centred.pow(4).mean(0) / squares.square(), 1.0)


def _distances(p: Tensor, q: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Sliced Wasserstein distances of halves, each datum's in its posterior's standard deviations."""
    half = p.shape[0] // 2
    first, second = p[:half].flatten(0, 1), p[half : 2 * half].flatten(0, 1)  # (S/2, N, D)
    flat = p.flatten(0, 1)
    mean, sd = flat.mean(0), flat.std(0)
    first, second, guide = ((each - mean) / sd for each in (first, second, q))
    count = first.shape[0]
    distance, null = [], []
    for n in range(p.shape[2]):
        ours = [
            sliced_wasserstein(guide[k * count : (k + 1) * count, n], each[:, n], directions)
            for k, each in enumerate((first, second))
        ]
        distance.append(torch.stack(ours).square().mean().sqrt())
        null.append(sliced_wasserstein(first[:, n], second[:, n], directions))
    return {"distance": torch.stack(distance), "null": torch.stack(null)}
