"""A run that was stopped and gone on with, against one that was not."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ppl_vae import Objective, fit
from ppl_vae.energy import NoLatents
from ppl_vae.fit import FitResult


def check_resumption(folder: Path, x: Tensor, made: Callable[[], tuple[nn.Module, Objective]]) -> FitResult:
    """Two epochs and two more are four: parameters and the chains of the loss, its buffer `state`, bit for bit.

    Args:
        made: a model and its loss, from the same seed each time.
    """

    def trained(name: str, epochs: int, resume: bool = False) -> FitResult:
        torch.manual_seed(0)
        model, loss = made()
        return fit(
            model,
            NoLatents(),
            x,
            loss,
            epochs=epochs,
            batch_size=16,
            lr=0.05,
            run_dir=folder / name,
            resume=resume,
            progress=False,
        )

    whole = trained("whole", 4)
    trained("parts", 2)
    again = trained("parts", 4, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert torch.equal(whole.objective.state, again.objective.state)
    return whole
