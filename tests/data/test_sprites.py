"""Sprites: pixel by pixel as their factors say, and a data set like any other."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae import load
from ppl_vae.data import DataSet, sprites
from ppl_vae.errors import InputError


def drawn(shape: int, scale: int, orientation: int, x: int, y: int) -> np.ndarray:
    """A picture of the whole grid, a pixel at a time."""
    picture = np.zeros((64, 64), dtype=int)
    radius = 14.0 * (0.5 + 0.1 * scale)
    turn = 2.0 * math.pi * orientation / 39
    for row in range(64):
        for column in range(64):
            right, down = column - (16 + x), row - (16 + y)
            u = (math.cos(turn) * right + math.sin(turn) * down) / radius
            v = (math.cos(turn) * down - math.sin(turn) * right) / radius
            if shape == 0:
                inside = max(abs(u), abs(v)) <= math.sqrt(0.5) + 1e-6
            elif shape == 1:
                inside = u * u + 4 * v * v <= 1 + 1e-6
            else:
                a, b = 1.35 * u, -1.35 * v
                inside = (a * a + b * b - 1) ** 3 <= a * a * b**3
            picture[row, column] = inside
    return picture


def test_the_grid_is_that_of_dsprites() -> None:
    data = sprites()
    assert len(data) == 3 * 6 * 40 * 32 * 32 == 737_280
    assert data.shape == (1, 64, 64)
    assert data.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert data.factors is not None
    assert data.factors.amax(0).tolist() == [2, 5, 39, 31, 31]
    assert data.factors[1].tolist() == [0, 0, 0, 0, 1]  # the last changes first
    assert data.nbytes < 20e6  # nothing is rendered before it is asked for
    assert data.class_names == ("square", "ellipse", "heart")


@pytest.mark.parametrize("levels", [(0, 5, 7, 0, 31), (1, 2, 13, 31, 0), (2, 5, 30, 15, 3), (2, 0, 39, 8, 20)])
def test_pixels_are_those_of_the_factors(levels: tuple[int, ...]) -> None:
    data = sprites()
    row = int(np.ravel_multi_index(levels, (3, 6, 40, 32, 32)))
    batch = data.batch([row])
    assert data.factors is not None
    assert tuple(data.factors[row].tolist()) == levels
    assert batch.x is not None
    assert np.array_equal(batch.x[0, 0].int().numpy(), drawn(*levels))
    assert batch.y is not None
    assert batch.y.tolist() == [levels[0]]


def test_areas_are_those_of_the_shapes() -> None:
    """At full size within 8% of 2 r², π r²/2 and the heart's."""
    data = sprites(scales=1, orientations=1, positions=1)
    assert len(data) == 3
    area = data.batch().x.flatten(1).sum(1)  # type: ignore[union-attr]
    fine = torch.linspace(-1, 1, 2001, dtype=torch.float64) * 1.35
    a, b = torch.meshgrid(fine, fine, indexing="ij")
    heart = ((a**2 + b**2 - 1) ** 3 <= a**2 * b**3).double().mean().item() * (2 * 14) ** 2
    for found, wanted in zip(area.tolist(), (2 * 14**2, math.pi * 14**2 / 2, heart), strict=True):
        assert abs(found / wanted - 1) < 0.08


def test_no_sprite_is_cut_off() -> None:
    data = sprites(positions=2)
    x = data.batch(torch.arange(0, len(data))).x
    assert x is not None
    assert x[:, :, [0, -1]].sum() == 0
    assert x[:, :, :, [0, -1]].sum() == 0
    assert bool((x.flatten(1).sum(1) > 40).all())


def test_a_step_is_a_pixel() -> None:
    data = sprites(scales=2, orientations=3)
    x = data.batch(torch.tensor([0, 1, 32])).x
    assert x is not None
    assert torch.equal(x[1], x[0].roll(1, 1))  # y goes down
    assert torch.equal(x[2], x[0].roll(1, 2))


def test_it_is_a_data_set() -> None:
    data = sprites(scales=2, orientations=4, positions=4)
    some = data.take([5, 9, 100])
    assert some.factors is not None
    assert data.factors is not None
    assert torch.equal(some.factors, data.factors[[5, 9, 100]])
    assert torch.equal(some.batch().x, data.batch([5, 9, 100]).x)  # type: ignore[arg-type]
    assert data.binary
    assert data.discrete
    assert data.fixed() is data
    assert torch.equal(data.with_options(binarize="dynamic").batch([3]).x, data.batch([3]).x)  # type: ignore[arg-type]
    hidden = data.with_options(masks="halves").batch([3])
    assert hidden.visible is not None
    assert hidden.visible.shape == (1, 1, 64, 64)
    torch.manual_seed(0)
    assert data.fingerprint != sprites(scales=2, orientations=4, positions=3).fingerprint


def test_by_name_it_has_a_test_part() -> None:
    train, test = load("sprites")
    assert (len(train), len(test)) == (727_280, 10_000)
    assert train.factors is not None
    assert test.factors is not None
    assert train.factor_names == test.factor_names
    code = torch.tensor([6 * 40 * 1024, 40 * 1024, 1024, 32, 1])
    both = torch.cat([train.factors.long() @ code, test.factors.long() @ code])
    assert len(both.unique()) == 737_280


def test_the_original_file_is_read(tmp_path: Path) -> None:
    """With its pickled metadata left alone, and without the colour, which has one level."""
    small = sprites(scales=2, orientations=2, positions=2)
    images = small.batch().x[:, 0].to(torch.uint8).numpy()  # type: ignore[index]
    assert small.factors is not None
    classes = np.concatenate([np.zeros((len(small), 1), dtype=np.int64), small.factors.long().numpy()], 1)
    path = tmp_path / "dsprites.npz"
    np.savez(
        path,
        imgs=images,
        latents_classes=classes,
        latents_values=classes * 0.5,
        metadata=np.array({"a": 1}, dtype=object),
    )
    train, test = load(path)
    assert len(train) + len(test) == len(small)
    assert train.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert train.shape == (1, 64, 64)
    assert train.binary
    row = train.batch([0])
    assert train.factors is not None
    match = (small.factors == train.factors[0]).all(1).nonzero()[0]
    assert torch.equal(row.x, small.batch(match).x)  # type: ignore[arg-type]
    np.savez(path, imgs=images, latents_classes=classes[:, :3])
    with pytest.raises(InputError, match=r"dSprites has \(N, 64, 64\) and \(N, 6\)"):
        load(path)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="scales=7 is more than the grid's 6 levels"):
        sprites(scales=7)
    with pytest.raises(InputError, match="positions=0 must be a whole number, 1 or more"):
        sprites(positions=0)
    data = DataSet.from_arrays(torch.rand(5, 3))
    with pytest.raises(InputError, match=r"factors .* give \(5, F\), a row a datum"):
        data.with_factors(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="give whole numbers, counted from 0"):
        data.with_factors(torch.zeros(5, 2))
    with pytest.raises(InputError, match="has a level -1"):
        data.with_factors(torch.full((5, 2), -1))
    with pytest.raises(InputError, match="factor_names has 1 names"):
        data.with_factors(torch.zeros(5, 2, dtype=torch.int64), ["a"])
