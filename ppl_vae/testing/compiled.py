"""The compiled step's contract: it is the eager step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..core import Guide, LatentModel
from ..isolation import cuda_in
from ..objectives import Objective
from ..svi import CompiledSVI
from .contracts import ContractError

__all__ = ["check_compiled"]


def check_compiled(
    model: LatentModel,
    guide: Guide,
    objective: Objective,
    batch: Batch,
    *,
    steps: int = 10,
    backend: Literal["graph", "inductor"] = "graph",
    dtype: torch.dtype = torch.float64,
    optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float = 1e-3,
) -> None:
    """Hold a pair and an objective to the contract of `CompiledSVI`: steps of the traced graph are eager steps.

    On equal random numbers losses agree to 1e-6 (float32) or 1e-12 (float64) of their value at every step, and after
    the last one parameters and buffers to 1e-5 or 1e-9 of their norm. The check works on copies and leaves random
    states as they are.

    Args:
        steps: taken by each.
        backend: "graph" runs what was traced, in a second; "inductor" compiles it, in several.
        dtype: float64 tells a wrong step from rounding.
        optim, lr: of both.

    Raises:
        ContractError: a step that runs eagerly or differs.
    """
    from torch._inductor import config

    double = dtype == torch.float64
    fields: dict[str, Any] = {
        name: field.to(dtype)
        for name, field in batch._asdict().items()
        if isinstance(field, Tensor) and field.is_floating_point()
    }
    batch = batch._replace(**fields)
    results: list[tuple[Tensor, Tensor, Any]] = []
    with torch.random.fork_rng(devices=cuda_in(model)), config.patch(fallback_random=True):
        for compile in ("graph" if backend == "graph" else True, False):
            parts = copy.deepcopy(nn.ModuleList([model, guide, objective])).to(dtype)
            svi = CompiledSVI(parts[0], parts[1], optim, parts[2], {"lr": lr}, compile=compile)  # type: ignore[arg-type]
            torch.manual_seed(0)
            losses = torch.stack([svi.step(batch) for _ in range(steps)])
            state = torch.cat([t.detach().flatten().to(dtype) for t in parts.state_dict().values()])
            results.append((losses, state, svi.report()))
    (ours, after, report), (eager, eager_after, _) = results
    names = f"{type(model).__name__}, {type(guide).__name__}, {type(objective).__name__}"
    if report.fallbacks or report.eager_calls:
        raise ContractError(f"{names}: the step is not compiled: {'; '.join(report.fallbacks)}")
    if not torch.allclose(ours, eager, rtol=1e-12 if double else 1e-6, atol=0):
        raise ContractError(
            f"{names}: losses differ by up to {((ours - eager) / eager).abs().max():.1e} of their value"
        )
    off = ((after - eager_after).norm() / eager_after.norm()).item()
    if not off <= (1e-9 if double else 1e-5):
        raise ContractError(f"{names}: parameters differ by {off:.1e} of their norm after {steps} steps")
