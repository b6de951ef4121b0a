"""How far a guide's posterior moves when a part of x is hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from ..batch import Batch
from ..errors import InputError
from ..kl import closed_form_kl
from ..objectives.base import check_particles
from ..weights import Program, particle_plate, sample_sites, score_site
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Estimate, Moments

__all__ = ["KLToComplete", "kl_to_complete"]


@dataclass(frozen=True, eq=False)
class KLToComplete:
    """KL(q(z | x̄) ‖ q(z | x)) of N data, x̄ what is visible of x.

    Args:
        values: (N,) nats.
        se: (N,) Monte Carlo standard error; 0 where the KL has a closed form.
        draws: number of draws; None: closed form.
        data: which data these are.
    """

    values: Tensor
    se: Tensor
    draws: int | None
    data: str

    @property
    def estimate(self) -> Estimate:
        """The mean over the data, nats per datum; `data_se` is its error over the data and their masks."""
        return Estimate.of(self.values, self.se)


def kl_to_complete(
    guide: Program,
    data: Data,
    reference: Program | None = None,
    draws: int = 100,
    chunk: int | None = None,
    *,
    seed: int | None = None,
) -> KLToComplete:
    r"""The divergence of what a guide says of a masked datum from what is said of the whole one.

    .. math:: KL(q(z \mid \bar x) \,\|\, q_0(z \mid x)), \qquad \bar x \text{ what is visible of } x

    0 where the guide says of a part of x all that the reference says of the whole. Where q(z | x̄) is wider since less
    is known, it is right to differ: even of exact posteriors it is KL(p(z | x̄) ‖ p(z | x)) > 0. In closed form where
    both guides give a `distribution` of each site and the pair has one (Gaussians), otherwise by Monte Carlo over draws
    of q(z | x̄).

    Args:
        guide: q, sees x̄.
        data: with masks; a data set's are drawn once.
        reference: q_0, sees all that is observed of x; None: the guide itself.
        draws: number of draws of z, for Monte Carlo.
        chunk, seed: as in `log_marginal`.

    Returns:
        `KLToComplete`, on the CPU in float64.

    Raises:
        InputError: data without `visible`; for Monte Carlo a guide with auxiliary sites, or a reference that cannot
            score a z that it has not drawn.
    """
    other = guide if reference is None else reference
    with evaluation(guide, other, seed=seed, device=device_of(guide, other)):
        source = Source(data, guide, guide)
        first = source.batch(0, 1)
        if first.visible is None:
            raise InputError(
                "data have no `visible`, and nothing is hidden: give a Batch with it, or a data set with masks, "
                "load(..., masks='rectangles') or data.with_options(masks=...)"
            )
        exact = _closed_form(guide, other, first) is not None
        check_particles(draws)
        if not exact and not getattr(other, "scores_given", True):
            raise InputError(f"{type(other).__name__} cannot score a z that it has not drawn: no KL by Monte Carlo")

        def terms(batch: Batch, count: int) -> Tensor:
            return _log_ratio(guide, other, batch, count)

        parts = []
        size = chunk_for(terms, source, 1 if exact else draws, chunk)
        for start, stop in spans(source.size, size.rows):
            batch = source.batch(start, stop)
            if exact:
                kl = _closed_form(guide, other, batch)
                assert kl is not None
                parts.append(torch.stack([kl.double(), torch.zeros_like(kl, dtype=torch.float64)]).cpu())
                continue
            moments = Moments()
            for a, b in spans(draws, size.particles):
                moments.update(terms(batch, b - a))
            parts.append(torch.stack([moments.mean, moments.se()]).cpu())
    values, se = torch.cat(parts, 1)
    return KLToComplete(values, se, None if exact else draws, source.description)


def _whole(batch: Batch) -> Batch:
    return batch._replace(visible=batch.observed)


def _closed_form(guide: Program, other: Program, batch: Batch) -> Tensor | None:
    """(N,), where there is one."""
    total: Tensor | None = None
    try:
        ours, theirs = guide.distribution(batch), other.distribution(_whole(batch))  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):
        return None
    if ours.keys() != theirs.keys():
        raise InputError(f"the guide has the sites {sorted(ours)}, and the reference {sorted(theirs)}")
    for name, q in ours.items():
        kl = closed_form_kl(q, theirs[name])
        if kl is None:
            return None
        total = kl.expand(batch.size) if total is None else total + kl
    return total


def _log_ratio(guide: Program, other: Program, batch: Batch, count: int) -> Tensor:
    """log q(z | x̄) - log q_0(z | x) at draws of the first, (K, N)."""
    with particle_plate(count):
        ours = poutine.trace(guide).get_trace(batch)
        theirs = poutine.trace(poutine.replay(other, trace=ours)).get_trace(_whole(batch))
    sites, scored = dict(sample_sites(ours)), dict(sample_sites(theirs))
    if sites.keys() != scored.keys() or any(s["infer"].get("is_auxiliary") for s in sites.values()):
        raise InputError(
            f"the guide draws {sorted(sites)} and the reference {sorted(scored)}: without a closed form the KL needs "
            "guides of the same sites, none of them auxiliary"
        )
    ratio = sum(score_site(site) for site in sites.values()) - sum(score_site(site) for site in scored.values())
    assert isinstance(ratio, Tensor)
    return ratio.expand(count, batch.size)
