"""Diagnostics that answer at once and always the same, to test what is made of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from ppl_vae import InputError
from ppl_vae.diagnose import Picture, Verdict, checks
from ppl_vae.plots import figure_of

BAD_NAME = "<script>document.title='taken'</script>"
"""A name that is markup where it is not escaped."""


@dataclass(frozen=True, eq=False)
class Made:
    """Values of data, and whatever verdicts and pictures it was given."""

    values: Tensor
    faults: Sequence[bool | None]
    drawable: bool = True

    def verdicts(self) -> list[Verdict]:
        kinds = {
            True: Verdict(
                "width",
                True,
                "the posterior is too narrow in dimensions 2 and 5",
                "coverage of 90% intervals",
                0.71,
                0.85,
                0.01,
                f"a richer guide than {BAD_NAME}",
                "data that the model makes",
            ),
            None: Verdict("width", None, "k-hat needs 100 draws", "draws", float("nan"), 100.0, advice="more draws"),
            False: Verdict("width", False, "the gap is 0.12 ± 0.03 nats", "gap", 0.12, 0.5, 0.05),
        }
        return [kinds[fault] for fault in self.faults]

    def pictures(self) -> list[Picture]:
        if not self.drawable:
            raise RuntimeError("nothing to draw on")
        lines = figure_of(6.4, 3.2)
        left, right = lines.subplots(1, 2)
        left.plot(self.values.numpy(), color="black")
        left.axhline(0.7, color="0.35", linestyle="--")
        left.set_title(f"k-hat of {BAD_NAME}")
        right.hist(self.values.numpy(), bins=10, color="#000055", edgecolor="white")
        wide = figure_of(11.0, 3.0)
        cloud, picture = wide.subplots(1, 2)
        cloud.scatter(*np.random.RandomState(0).normal(size=(2, 4000)), s=2, color="black")
        picture.imshow(np.eye(8), cmap="gray")
        return [
            Picture("lines", lines, "Values in order.", f"Values from 0 to 1 & of {BAD_NAME}."),
            Picture("wide", wide, "A cloud and a picture.", "Four thousand points; a diagonal of eight squares."),
        ]

    def to_dataset(self) -> xr.Dataset:
        return xr.Dataset({"value": ("datum", self.values.numpy())}, {"datum": np.arange(len(self.values))})

    def to_json(self) -> dict[str, Any]:
        return {"mean": float(self.values.mean()), "worst": float("nan")}


def _size(data: Any) -> int:
    return data.size if hasattr(data, "_fields") else len(data)


def first(model: Any, guide: Any, data: Any, *, particles: int = 100, seed: int | None = None, progress: Any = None):
    """A finding with all three kinds of verdicts."""
    torch.randn(3)
    progress(1, 1)
    return Made(torch.linspace(0, 1, _size(data), dtype=torch.float64), (False, None, True))


def second(model: Any, guide: Any, data: Any, *, train: Any = None, compile: bool = False) -> Made:
    """A finding without a fault, which wants to know what the pair was trained on, and cannot be drawn."""
    return Made(torch.ones(2 if train is None else _size(train), dtype=torch.float64), (False,), drawable=False)


def refused(model: Any, guide: Any, data: Any) -> Made:
    raise InputError(f"the site {BAD_NAME} is discrete; enumerate it")


def broken(model: Any, guide: Any, data: Any) -> Made:
    raise RuntimeError("out of memory")


@pytest.fixture
def made_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """These checks in place of all others."""
    sizes = {"quick": 5, "standard": 10, "thorough": 0}
    options = {"quick": {"particles": 10}, "thorough": {"particles": 1000}}
    made = {
        "broken": checks.Check("broken", "Does it break?", __name__, "broken", sizes),
        "first": checks.Check("first", "Is <b>q</b> near?", __name__, "first", sizes, options),
        "second": checks.Check("second", "Is it second?", __name__, "second", dict.fromkeys(sizes, 0)),
        "refused": checks.Check("refused", "Is it refused?", __name__, "refused", sizes),
    }
    monkeypatch.setattr(checks, "CHECKS", made)
    for module in ("diagnosis", "page"):
        monkeypatch.setattr(f"ppl_vae.diagnose.{module}.CHECKS", made)


def small_checks(particles: int) -> dict[str, dict[str, Any]]:
    """Options by which every check takes seconds; as many draws a datum where log p(x) is by importance sampling."""
    return {
        "khat": {"particles": particles},
        "inference_gap": {"data": 6, "particles": 50, "temperatures": 10, "chains": 2, "steps": 2, "updates": 20},
        "reference": {"rows": 2, "chains": 4, "draws": 200, "warmup": 50, "steps": 2},
        "sbc": {"simulations": 100, "draws": 19},
        "c2st": {"simulations": 100, "draws": 19},
        "latent_checks": {"size": 100, "permutations": 99},
        "predictive_check": {"data": 40},
        "loo": {"data": 40, "particles": particles},
        "bdmc": {"data": 6, "temperatures": 10, "chains": 2, "steps": 2},
    }
