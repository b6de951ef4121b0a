"""Networks between images and grids."""

import pytest
import torch

from ppl_vae import Batch
from ppl_vae.errors import InputError
from ppl_vae.grids import GridDecoder, GridEncoder, grids


def test_grids_of_one_level_and_of_several_the_coarsest_first() -> None:
    assert grids((1, 8, 8), 2) == ((4, 4),)
    assert grids((3, 32, 24), 4) == ((8, 6),)
    assert grids((1, 28, 28), 2, levels=2) == ((7, 7), (14, 14))


def test_sizes_that_do_not_divide_are_refused_with_those_that_would() -> None:
    with pytest.raises(InputError, match=r"images of 28 x 28 .* give downsample=2 or 4, .* 24, 32 or another"):
        grids((1, 28, 28), 8)
    with pytest.raises(
        InputError, match=r"downsample=4: .* and a grid above it, of 8 x 8 pixels,; give downsample=2, "
    ):
        grids((1, 28, 28), 4, levels=2)
    with pytest.raises(InputError, match=r"images of 7 x 5 .* no power of 2 does, or images with sides of 4, 6, 8 or"):
        grids((1, 7, 5), 2)
    with pytest.raises(InputError, match=r"downsample=3: .* give downsample=2 or 4 or 8"):
        grids((1, 8, 8), 3)
    with pytest.raises(InputError, match="are of images"):
        grids((12,), 2)


@pytest.mark.parametrize(("downsample", "levels"), [(2, 1), (4, 1), (8, 1), (2, 2), (2, 3)])
def test_shapes_there_and_back(downsample: int, levels: int) -> None:
    encoder = GridEncoder((3, 8, 16), downsample, size=5, channels=4, blocks=1, levels=levels)
    decoder = GridDecoder((3, 8, 16), 2, downsample, size=5, channels=4, blocks=1, levels=levels)
    batch, above, made = Batch(x=torch.rand(6, 3, 8, 16)), None, []
    for level, features in enumerate(encoder(batch)):
        above = encoder.vectors(level, features, above)
        assert above.shape == (6, *encoder.grids[level], 5)
        made.append(above)
    assert decoder(*made).shape == (6, 2, 3, 8, 16)
    # of an enumerated coarsest grid (C, 1, 1, ...) beside the others of several particles
    coarse, finer = torch.rand(7, 1, 1, *made[0].shape[1:]), [v.expand(2, *v.shape) for v in made[1:]]
    assert decoder(coarse, *finer).shape == ((7, 2, 6) if finer else (7, 1, 1)) + (2, 3, 8, 16)


def test_what_is_hidden_does_not_enter_and_the_mask_does() -> None:
    encoder = GridEncoder((1, 4, 4), 2, size=3, channels=4, loc=0.5, scale=2.0, mask=True)
    x, visible = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 4, 4) < 0.5
    (seen,) = encoder(Batch(x=x, visible=visible))
    (same,) = encoder(Batch(x=torch.where(visible, x, 9.0), visible=visible))
    assert torch.equal(seen, same)
    (whole,) = encoder(Batch(x=torch.where(visible, x, 0.5)))
    assert not torch.allclose(seen, whole)
    with pytest.raises(InputError, match=r"needs batch\.x"):
        encoder(Batch(n=3))


def test_numbers_that_are_none() -> None:
    for numbers, words in (({"channels": 0}, "channels=0"), ({"blocks": -1}, "blocks=-1")):
        with pytest.raises(InputError, match=words):
            GridEncoder((1, 4, 4), 2, size=3, **numbers)
        with pytest.raises(InputError, match=words):
            GridDecoder((1, 4, 4), 1, 2, size=3, **numbers)
