"""An objective's own parameters under optimizers of its own, in the same step as the pair's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from trained import QUIET, data, pair

from ppl_vae import ELBO, CompiledSVI, InputError
from ppl_vae.fit import fit
from ppl_vae.objectives import Terms
from ppl_vae.together import Together


class Following(ELBO):
    """An ELBO plus half the squared distance of a number of its own from 3, in every datum's loss."""

    def __init__(self, optimizer: type[Optimizer] = SGD, lr: float = 0.1) -> None:
        super().__init__(kl="monte-carlo")
        self.number = nn.Parameter(torch.zeros(()))
        self.optimizer, self.lr = optimizer, lr

    def optimizers(self, model: Any = None, guide: Any = None) -> Sequence[Optimizer]:
        return [self.optimizer([self.number], lr=self.lr)]  # type: ignore[call-arg]

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        return terms._replace(loss=terms.loss + 0.5 * (self.number - 3.0) ** 2)


@pytest.mark.parametrize(
    ("backend", "own"),
    [("graph", SGD), ("graph", Adam), *(pytest.param(True, own, marks=pytest.mark.slow) for own in (SGD, Adam))],
)
def test_compiled_steps_are_eager_steps(backend: Any, own: type[Optimizer]) -> None:
    found = []
    for compile in (backend, False):
        model, guide = pair()
        objective = Following(own, lr=0.01)
        svi = CompiledSVI(model, guide, AdamW, objective, {"lr": 1e-2}, compile=compile)
        torch.manual_seed(0)
        losses = [svi.step(data("fixed").batch()) for _ in range(5)]
        assert svi.report().fallbacks == []
        parameters = [*model.parameters(), *guide.parameters(), objective.number]
        found.append(torch.cat([torch.stack(losses), *(p.detach().flatten() for p in parameters)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_each_is_trained_by_its_own() -> None:
    """SGD on half a squared distance stands at 3 (1 - (1 - lr)^t) after t steps, whatever Adam does beside it."""
    objective = Following(lr=0.1)
    model, guide = pair()
    before = [p.detach().clone() for p in model.parameters()]
    result = fit(model, guide, data("fixed"), objective, epochs=3, batch_size=35, lr_schedule="cosine", **QUIET)
    assert result.steps == 6
    assert objective.number.item() == pytest.approx(3 * (1 - 0.9**6), rel=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_run_goes_on_with_the_state_of_both(tmp_path: Path) -> None:
    ends = []
    for parts in ((4,), (2, 4)):
        objective = Following(Adam, lr=0.05)
        model, guide = pair()
        for k, epochs in enumerate(parts):
            folder = tmp_path / str(len(parts))
            fit(model, guide, data(), objective, epochs=epochs, batch_size=35, run_dir=folder, resume=k > 0, **QUIET)
            if k + 1 < len(parts):
                objective = Following(Adam, lr=0.05)
                model, guide = pair()
        ends.append([p.detach().clone() for p in [*model.parameters(), *guide.parameters(), objective.number]])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_state_is_saved_and_loaded_as_one() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))

    def make() -> Together:
        return Together([Adam([a], lr=0.1), SGD([b], lr=0.5, momentum=0.9)])

    def steps(optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            ((a - 1).square().sum() + (b - 2).square().sum()).backward()
            optimizer.step()

    whole = make()
    steps(whole, 4)
    end = [a.detach().clone(), b.detach().clone()]
    a.data.zero_()
    b.data.zero_()
    first = make()
    steps(first, 2)
    second = make()
    second.load_state_dict(first.state_dict())
    assert [g["lr"] for g in second.param_groups] == [0.1, 0.5]
    assert all(o.state is second.state for o in second.optimizers)
    steps(second, 2)
    assert torch.equal(a, end[0])
    assert torch.equal(b, end[1])


def test_what_does_not_go_together() -> None:
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(InputError, match="SGD holds a parameter that another optimizer holds"):
        Together([Adam([p]), SGD([p], lr=0.1)])
    with pytest.raises(InputError, match="schedule='alternating' does not fit Following"):
        fit(*pair(), data(), Following(), epochs=1, schedule="alternating", **QUIET)
