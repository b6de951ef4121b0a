"""What is seen of a latent space while it is trained, and how it is drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae import disentangle, fit, objectives
from ppl_vae.build import DataSpec, PairConfig, build
from ppl_vae.data import DataSet, sprites
from ppl_vae.errors import InputError
from ppl_vae.evaluate import kl_by_dimension, reconstruct

DATA = sprites(scales=2, orientations=4, positions=4)


def pair(guide: str = "mean-field") -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    return build(PairConfig(guide=guide, latent=3, hidden=(8,)), DATA)


def watched(watch: disentangle.Watch, epochs: int = 3) -> tuple[torch.nn.Module, torch.nn.Module]:
    model, guide = pair()
    objective = objectives.Capacity(gamma=10.0, capacity=6.0, steps=24)
    fit(model, guide, DATA, objective, epochs=epochs, batch_size=64, lr=1e-2, callbacks=[watch], progress=False)
    return model, guide


def test_what_is_seen_is_the_pair_of_that_epoch(tmp_path: Path) -> None:
    some = DATA.take(range(0, 96, 3))
    watch = disentangle.Watch(some, shown=4, path=tmp_path / "watch.npz")
    model, guide = watched(watch)
    assert watch.steps.tolist() == [6, 12, 18]
    assert watch.capacity == pytest.approx(6.0 * np.array([6, 12, 18]) / 24)
    expected = kl_by_dimension(model, guide, some.fixed()).mean["z"].double().numpy()
    np.testing.assert_allclose(watch.kl[-1], expected, rtol=1e-6)
    shown = some.fixed().take([0, 10, 21, 31])
    assert np.array_equal(watch.x, shown.batch().x)
    np.testing.assert_allclose(watch.means[-1], reconstruct(model, guide, shown), rtol=1e-6)

    again = disentangle.Watch(some, shown=4, path=tmp_path / "watch.npz")
    assert np.array_equal(again.kl, watch.kl)
    assert np.array_equal(again.means, watch.means)
    # a run that does its third epoch anew
    again(epoch_end(3, model, guide))
    assert again.steps.tolist() == [6, 12, 99]
    with pytest.raises(InputError, match="is of other data"):
        disentangle.Watch(DATA.take(range(5)), shown=4, path=tmp_path / "watch.npz")


def epoch_end(epoch: int, model: torch.nn.Module, guide: torch.nn.Module):  # type: ignore[no-untyped-def]
    from ppl_vae.fit import EpochEnd

    return EpochEnd(epoch, {"epoch": float(epoch), "step": 99.0}, model, guide, objectives.ELBO())


def test_reconstructions_are_thinned_and_the_kl_is_not() -> None:
    watch = disentangle.Watch(DATA.take(range(4)), shown=2, most=3)
    model, guide = pair()
    for epoch in range(1, 12):
        watch(epoch_end(epoch, model, guide))
    assert watch.kl.shape == (11, 3)
    assert 3 <= len(watch.pictured) < 6
    assert len(watch.means) == len(watch.pictured)


def test_pictures_say_what_was_measured() -> None:
    some = DATA.take(range(0, 96, 3))
    watch = disentangle.Watch(some, shown=4)
    model, guide = watched(watch)
    curves = disentangle.kl_curves(watch)
    drawn = {tuple(np.round(line.get_ydata(), 9)) for line in curves.axes[0].get_lines()}
    assert drawn == {tuple(np.round(watch.kl[:, d], 9)) for d in range(3)}
    total, allowed = curves.axes[1].get_lines()
    np.testing.assert_allclose(total.get_ydata(), watch.kl.sum(1))
    np.testing.assert_allclose(allowed.get_ydata(), watch.capacity)

    rows = disentangle.reconstructions_in_time(watch, DataSpec.of(DATA))
    labels = [text.get_text() for text in rows.axes[0].get_yticklabels()]
    assert labels[0] == "data"
    assert labels[-1] == f"step 18\nC = {watch.capacity[-1]:.1f}, KL {watch.kl[-1].sum():.1f}"
    assert len(labels) == 4

    picture = disentangle.traversals(model, guide, some, row=5)
    kl = kl_by_dimension(model, guide, some.fixed()).mean["z"]
    order = kl.argsort(descending=True).tolist()
    assert [text.get_text() for text in picture.axes[0].get_yticklabels()] == [f"z{'₁₂₃'[d]}" for d in order]
    said = [text.get_text() for text in picture.axes[0].texts]
    assert said == [f"KL {float(kl[d]):.2f} nats" for d in order]


def test_bad_input() -> None:
    model, guide = pair()
    table = DataSet.from_arrays(torch.randn(20, 3), name="table")
    watch = disentangle.Watch(DATA.take(range(4)))
    watch(epoch_end(1, model, guide))
    with pytest.raises(InputError, match="are no images"):
        disentangle.reconstructions_in_time(watch, DataSpec.of(table))
    told = epoch_end(1, *pair("planar"))
    with pytest.raises(InputError, match="closed form"):
        watch(told)
