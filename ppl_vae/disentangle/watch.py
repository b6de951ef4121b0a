"""What a latent space comes to hold while training goes on: the KL of each dimension, and reconstructions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import DataSet
from ..data.arrays import evenly
from ..errors import InputError, check_count
from ..evaluate import kl_by_dimension, reconstruct

if TYPE_CHECKING:
    from ..trainer import EpochEnd

__all__ = ["Watch"]

Array = NDArray[Any]


class Watch:
    """A callback of `fit` that looks at a pair after each epoch.

    Args:
        data: what it looks at, the same at every epoch: binarized once.
        shown: reconstruct so many of them, evenly spaced.
        most: keep reconstructions of so many epochs, evenly spaced; all of the KL is kept.
        path: a file .npz for what was seen, written after each epoch: a run that is resumed goes on with it.

    Attributes:
        steps: (T,) training steps done.
        kl: (T, D) mean KL of each dimension, nats, all sites side by side.
        capacity: (T,) C(t) of the `Capacity` objective then, nats; NaN of others.
        x: (R, \\*D) the data reconstructed.
        pictured: (P,) steps done, and `means`: (P, R, \\*D) the reconstructions then.

    Raises:
        InputError: at the first epoch, a pair whose KL has no closed form; a file of other data.

    Example:
        >>> watch = Watch(test.take(range(500)))                       # doctest: +SKIP
        >>> fit(model, guide, train, Capacity(), callbacks=[watch])    # doctest: +SKIP
    """

    def __init__(
        self, data: DataSet, shown: int = 8, most: int = 40, path: str | os.PathLike[str] | None = None
    ) -> None:
        self.data = data.fixed()
        self._shown = self.data.take(evenly(len(data), check_count("shown", shown)))
        self.x = _array(self._shown.batch().x)
        self.most = check_count("most", most, 2)
        self.path = None if path is None else Path(path)
        self._rows: list[tuple[int, int, Array, float]] = []
        self._means: dict[int, Array] = {}
        if self.path is not None and self.path.exists():
            self._load(self.path)

    @property
    def steps(self) -> Array:
        return np.array([step for _, step, _, _ in self._rows])

    @property
    def kl(self) -> Array:
        return np.stack([kl for _, _, kl, _ in self._rows])

    @property
    def capacity(self) -> Array:
        return np.array([capacity for *_, capacity in self._rows])

    @property
    def pictured(self) -> Array:
        return np.array([step for epoch, step, _, _ in self._rows if epoch in self._means])

    @property
    def means(self) -> Array:
        return np.stack([self._means[epoch] for epoch, *_ in self._rows if epoch in self._means])

    def __call__(self, told: EpochEnd) -> None:
        # of epochs that a killed run did after its last checkpoint, and does again
        self._rows = [row for row in self._rows if row[0] < told.epoch]
        self._means = {epoch: means for epoch, means in self._means.items() if epoch < told.epoch}
        found = kl_by_dimension(told.model, told.guide, self.data).mean
        kl = torch.cat([value.flatten() for value in found.values()]).double().cpu().numpy()
        wanted = getattr(told.objective, "wanted", None)
        capacity = np.nan if wanted is None else float(wanted())
        self._rows.append((told.epoch, int(told.row["step"]), kl, capacity))
        self._means[told.epoch] = _array(reconstruct(told.model, told.guide, self._shown))
        if len(self._means) >= 2 * self.most:
            self._means = {epoch: means for k, (epoch, means) in enumerate(self._means.items()) if k % 2}
        if self.path is not None:
            self._save(self.path)

    def _save(self, path: Path) -> None:
        half = path.with_name(path.name + ".part")
        with half.open("wb") as file:
            np.savez(
                file,
                epochs=np.array([epoch for epoch, *_ in self._rows]),
                steps=self.steps,
                kl=self.kl,
                capacity=self.capacity,
                x=self.x,
                pictured=np.array(list(self._means)),
                means=np.stack(list(self._means.values())),
            )
        half.replace(path)

    def _load(self, path: Path) -> None:
        with np.load(path) as held:
            if held["x"].shape != self.x.shape or not np.array_equal(held["x"], self.x):
                raise InputError(f"path={str(path)!r} is of other data; remove it, or give another path")
            rows = zip(held["epochs"].tolist(), held["steps"].tolist(), held["kl"], held["capacity"], strict=True)
            self._rows = [(epoch, step, kl, float(capacity)) for epoch, step, kl, capacity in rows]
            self._means = dict(zip(held["pictured"].tolist(), held["means"], strict=True))


def _array(x: torch.Tensor | None) -> Array:
    assert x is not None
    return x.detach().cpu().float().numpy()
