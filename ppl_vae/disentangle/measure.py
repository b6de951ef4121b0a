"""All metrics of an encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import DataSet
from ..errors import InputError
from ..evaluate import encode
from ..weights import Program
from .score import Array, Score, metrics

__all__ = ["factor_codes", "measure"]

POINTS = 20_000


def measure(
    model: Program | None,
    guide: Program | Callable[[Tensor], Tensor],
    data: DataSet,
    names: Sequence[str] | Literal["all"] = "all",
    *,
    points: int = POINTS,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Score]:
    """Metrics of disentanglement of a guide's posterior means, or of any function of x.

    Args:
        model: of the pair; None where `guide` is a function (B, *D) -> (B, D) of x alone.
        guide: whose codes E_q[z | x] are judged.
        data: with `factors`.
        names: of the metrics, or "all": beta-vae, factor-vae, mig, dci, sap.
        points: of the data, drawn without replacement: they are encoded once, and every metric draws from them.
        seed: of that draw, and of the metrics.
        options: arguments of single metrics by name, as ``{"sap": {"continuous": True}}``.
        progress: called with each metric's name before it is computed.

    Returns:
        `Score` by name.

    Raises:
        InputError: data without factors; an unknown metric or option (nearest names first).
    """
    wanted = list(metrics) if isinstance(names, str) and names == "all" else list(names)
    given = dict(options or {})
    for name in (*wanted, *given):
        metrics.get(name)
    codes, factors = factor_codes(model, guide, data, points, seed=seed)
    found = {}
    for name in wanted:
        if progress is not None:
            progress(name)
        part = metrics.get(name)
        takes = inspect.signature(part).parameters
        chosen = dict(given.get(name, {}))
        if unknown := sorted(set(chosen) - set(takes)):
            raise InputError(f"options of {name!r}: {unknown}; it takes {', '.join(p for p in takes if p != 'names')}")
        found[name] = part(codes, factors, **{"seed": seed, "names": data.factor_names, **chosen})
    return found


def factor_codes(
    model: Program | None,
    guide: Program | Callable[[Tensor], Tensor],
    data: DataSet,
    points: int = POINTS,
    *,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Codes (P, D) and factors (P, F) of random data, all sites of the guide side by side."""
    if not isinstance(data, DataSet) or data.factors is None:
        what = data.description if isinstance(data, DataSet) else type(data).__name__
        raise InputError(
            f"data={what!r} has no factors; use data.sprites(), dSprites' file, or DataSet.with_factors(levels)"
        )
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(data))[:points]).sort().values
    some = data.take(rows).fixed()
    assert some.factors is not None
    if model is None:
        with torch.no_grad():
            pieces = [guide(some.batch(r).x).flatten(1).cpu() for r in torch.arange(len(some)).split(512)]  # type: ignore[arg-type]
        codes = torch.cat(pieces)
    else:
        codes = torch.cat([mean.flatten(1) for mean in encode(model, guide, some, seed=seed).means.values()], 1)
    return codes.double().numpy(), some.factors.cpu().numpy()
