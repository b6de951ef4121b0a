"""Data that a model makes, the z that made them, and a guide's draws for the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError, check_count
from ..evaluate.chunked import Data, device_of, spans
from ..evaluate.generation import generation
from ..evaluate.importance import Progress
from ..evaluate.latents import latent_sites
from ..handlers import drawn
from ..inputs import check_batch, check_given
from ..isolation import untouched
from ..labels import hide_labels
from ..mcmc import log_joint
from ..validation import validation
from ..weights import Program, check_pair, is_per_datum, particle_plate, sample_sites

__all__ = ["Simulated", "Simulator", "dimension_names", "explained"]


class Simulated(NamedTuple):
    """Some simulated data.

    Args:
        batch: x as the guide saw it, with what it was conditioned on.
        z: (1 + L, N, \\*event) by site: first the z that made x, then L draws of q(z | x).
        reference: (N, \\*event) by site: a draw of p(z) under the same conditions, independent of the rest.
    """

    batch: Batch
    z: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]

    def numbers(self) -> Tensor:
        """z as one vector, (1 + L, N, D)."""
        return torch.cat([value.reshape(*value.shape[:2], -1) for value in self.z.values()], -1)


class Simulator:
    r"""Pairs z* ~ p(z), x ~ p(x | z*), each with L draws of q(z | x), some at a time.

    Args:
        model: any program over a `Batch` that generates x where the batch has none; all latents are of a datum.
        guide: amortized: it is asked about data that it has never seen.
        data: what x is conditioned on: rows drawn with replacement, of which y, context and masks are kept, and never
            x; None: nothing. Of a model with a latent class labels are left out.
        simulations: S.
        draws: L.
        chunk: pairs of a draw and a simulation at once.

    Raises:
        InputError: latents that all data share; a guide with parameters for each datum; a model that cannot generate;
            a simulated x that is no number.
    """

    def __init__(
        self, model: Program, guide: Program, data: Data | None, simulations: int, draws: int, chunk: int
    ) -> None:
        check_count("chunk", chunk)
        self.model, self.guide, self.draws, self.simulations = model, guide, draws, simulations
        _check_finite(model=model, guide=guide)
        self.rows = max(1, min(simulations, chunk // (draws + 1)))
        if callable(getattr(guide, "renew", None)):
            raise InputError(
                f"{type(guide).__name__} has parameters for each datum that it was fitted to, and nothing to say of "
                "data that the model makes: calibration needs an amortized guide, as MeanField"
            )
        shared = [name for name, spec in getattr(model, "latents", {}).items() if spec.scope == "global"]
        if shared:
            raise _shared(shared)
        self.device = device_of(model, guide)
        self.conditions = _conditions(model, data)
        first = self._conditions(min(3, simulations))
        with untouched(model, guide, first):
            batch, _ = self._generate(first)
            with validation(True):
                check_pair(model, drawn(guide), batch)
            sites = latent_sites(guide, batch)
        if shared := [name for name, site in sites.items() if not is_per_datum(site)]:
            raise _shared(shared)
        self.shapes = {name: site["fn"].event_shape for name, site in sites.items()}

    @property
    def names(self) -> list[str]:
        """Of each number of z: "z[0]", "z[1]", ..."""
        return [each for name, shape in self.shapes.items() for each in dimension_names(name, shape)]

    def __call__(self, progress: Progress | None = None) -> Iterator[Simulated]:
        for start, stop in spans(self.simulations, self.rows):
            given = self._conditions(stop - start)
            batch, z = self._generate(given)
            _, reference = self._generate(given)
            with particle_plate(self.draws), explained(f"{type(self.guide).__name__} does not run on simulated data"):
                sites = latent_sites(drawn(self.guide), batch)
            values = {
                name: torch.cat([z[name].unsqueeze(0), _whole(sites[name]["value"], self.draws, batch.size, shape)])
                for name, shape in self.shapes.items()
            }
            for name, value in values.items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise InputError(
                        f"a draw of {name!r} for simulated data is NaN or infinite: the pair's parameters are not "
                        "finite, or the guide breaks down at x that the model makes"
                    )
            yield Simulated(batch, values, {name: reference[name] for name in self.shapes})
            if progress is not None:
                progress(stop, self.simulations)

    def log_joint(self, simulated: Simulated) -> Tensor:
        """log p(x, z) of each z, (1 + L, N), nats."""
        return log_joint(self.model, simulated.z, simulated.batch)

    def _conditions(self, count: int) -> Batch:
        if self.conditions is None:
            return Batch(n=count)
        given = _without_x(self.conditions, torch.randint(_size(self.conditions), (count,)))
        return given if self.device is None else given.to(self.device)

    def _generate(self, given: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """(batch with x, latents by site)."""
        with explained(
            f"{type(self.model).__name__} does not generate x from its prior (where it needs a class or a context, "
            "give data= or a Batch of them)"
        ):
            trace = poutine.trace(self.model).get_trace(generation(given))
        sites: Mapping[str, Any] = dict(sample_sites(trace))
        if shared := [name for name, site in sites.items() if not is_per_datum(site)]:
            raise _shared(shared)
        values = {name: _whole(site["value"], None, given.size, site["fn"].event_shape) for name, site in sites.items()}
        if "x" not in values:
            raise InputError(f"the model has no site named 'x'; it has {sorted(values)}")
        x = values.pop("x")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise InputError(
                "an x that the model makes is NaN or infinite: its parameters are not finite, or its likelihood "
                "breaks down at z drawn from the prior"
            )
        if given.observed is not None:
            x = torch.where(given.observed, x, torch.zeros_like(x))
        return given._replace(x=x, n=None, rows=None), values


def dimension_names(site: str, shape: torch.Size) -> list[str]:
    """One name for each number of an event: "z[0]", "z[1,2]"; the site's own where it has no dimensions."""
    if not len(shape):
        return [site]
    places = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(-1, len(shape)).tolist()
    return [f"{site}[{','.join(map(str, place))}]" for place in places]


def _conditions(model: Program, data: Data | None) -> DataSet | Batch | None:
    """What x may be conditioned on; None where that is nothing."""
    if data is None or isinstance(data, Tensor):
        return None
    if not isinstance(data, DataSet | Batch):
        raise InputError(f"data is a {type(data).__name__}; give a DataSet, a Batch, or None")
    data = hide_labels(model, data)
    if isinstance(data, DataSet):
        check_given(Batch(y=data.y, context=data.context, n=len(data)), model, argument="data")
        data = data.fixed()
    else:
        check_batch(data, model, argument="data")
    if isinstance(data, Batch) and not any(isinstance(t, Tensor) for t in data):
        return None
    one = _without_x(data, torch.zeros(1, dtype=torch.int64))
    return data if any(isinstance(t, Tensor) for t in one) else None


def _size(data: DataSet | Batch) -> int:
    return data.size if isinstance(data, Batch) else len(data)


def _without_x(data: DataSet | Batch, rows: Tensor) -> Batch:
    if isinstance(data, Batch):
        some = data.take(rows.to(next(t.device for t in data if isinstance(t, Tensor))))
    else:
        some = data.batch(rows)
    # what is hidden from the guide is not scored either: given what it sees, z* and its draws are then alike
    seen = some.observed if some.visible is None else some.visible
    return some._replace(x=None, rows=None, n=None, observed=seen, visible=seen)


def _check_finite(**programs: Program) -> None:
    for what, program in programs.items():
        for name, parameter in program.named_parameters() if isinstance(program, nn.Module) else ():
            if not bool(parameter.isfinite().all()):
                raise InputError(f"the {what}'s parameter {name!r} has values that are NaN or infinite: train it anew")


def _whole(value: Tensor, draws: int | None, size: int, shape: torch.Size) -> Tensor:
    return value.expand(*(() if draws is None else (draws,)), size, *shape)


def _shared(names: list[str]) -> InputError:
    return InputError(
        f"{', '.join(map(repr, sorted(names)))} is shared by all data: calibration of it would need q fitted anew to "
        "each of many simulated data sets; hold it fixed (poutine.condition, BayesianDecoder.at), and look at the "
        "latents of a datum"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise `InputError`, that says what did not work, in the place of what a user's program raises."""
    try:
        yield
    except InputError:
        raise
    except (NotImplementedError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"{what}: {error}") from error
