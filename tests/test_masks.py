"""What is not observed is 0; random masks hide what they say, and never everything."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import Batch, InputError, fit, log_marginal
from ppl_vae.masks import check_masks, known, random_mask, refuse_hidden_values
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

MASK = torch.tensor([[True, False], [True, True]])


def test_zeros_pass_and_values_are_named() -> None:
    refuse_hidden_values(Batch(x=torch.ones(2, 2) * MASK, observed=MASK), "data")
    refuse_hidden_values(Batch(x=torch.ones(2, 2)), "data")
    with pytest.raises(InputError, match=r"data\.x\[0, 1\] is 1 where observed is False"):
        refuse_hidden_values(Batch(x=torch.ones(2, 2), observed=MASK), "data")


def test_training_and_evaluation_refuse_them() -> None:
    model = LinearGaussian(data=2, latent=1)
    guide = LinearGaussianPosterior(model)
    hidden = Batch(x=torch.ones(2, 2, dtype=torch.float64), observed=MASK)
    with pytest.raises(InputError, match="observed is False"):
        fit(model, guide, hidden, progress=False)
    with pytest.raises(InputError, match="observed is False"):
        log_marginal(model, guide, hidden, particles=10)


# ---------------------------------------------------------------- random masks

SHAPES = [(1, 8, 8), (3, 28, 28), (1, 5, 7), (2, 3, 9)]
NAMES = ["pixels:share=0.3", "rectangles:share=0.3", "halves", "halves:side=top", "strokes:share=0.3:count=2"]


def drawn(text: str, shape: tuple[int, ...], size: int, seed: int = 0) -> torch.Tensor:
    """What is hidden."""
    return ~random_mask(text).draw(size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", NAMES)
def test_random_masks(text: str, shape: tuple[int, ...]) -> None:
    """Shape, all channels of a pixel alike, something visible in each, another for each, the same from one seed."""
    hidden = drawn(text, shape, 200)
    assert hidden.shape == (200, *shape)
    assert hidden.dtype == torch.bool
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert not bool(hidden.flatten(1).all(1).any())
    kinds = len(hidden.flatten(1).unique(dim=0))
    assert (kinds > 3) if text not in ("halves", "halves:side=top") else (kinds >= 1)
    assert torch.equal(hidden, drawn(text, shape, 200))


def test_the_default_generator_draws_them_and_another_leaves_it_alone() -> None:
    mask = random_mask("rectangles")
    torch.manual_seed(3)
    first = mask.draw(4, (1, 8, 8))
    assert not torch.equal(first, mask.draw(4, (1, 8, 8)))
    torch.manual_seed(3)
    mask.draw(4, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, mask.draw(4, (1, 8, 8)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 5, 7)])
@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("pixels:share=0.3", 0.3),
        ("rectangles:share=0.1", 0.1),
        ("rectangles:share=0.25", 0.25),
        ("rectangles:share=0.6", 0.6),
        ("halves", 0.5),
        ("halves:side=left", 0.5),
        ("strokes:share=0.3", 0.3),
        ("strokes:share=0.3:count=3", 0.3),
    ],
)
def test_the_mean_share_is_exact(text: str, share: float, shape: tuple[int, ...]) -> None:
    """Within 4 standard errors of 20,000 masks: a right mask fails once in 16,000; 16 of them, with fixed seeds."""
    shares = drawn(text, shape, 20_000).flatten(1).double().mean(1)
    error = float(shares.std()) / math.sqrt(len(shares))
    assert abs(float(shares.mean()) - share) <= 4 * error + 1e-12


def test_where_all_would_be_hidden_one_place_is_left() -> None:
    """Of four pixels 0.9 - 0.9⁴ / 4 are hidden, exactly; which one is left is uniform. 4 standard errors."""
    hidden = drawn("pixels:share=0.9", (1, 2, 2), 40_000).flatten(1).double()
    share = hidden.mean(1)
    assert float(share.max()) == 0.75
    assert abs(float(share.mean()) - (0.9 - 0.9**4 / 4)) <= 4 * float(share.std()) / 200
    each = hidden.mean(0)
    assert float((each - (0.9 - 0.9**4 / 4)).abs().max()) <= 4 * 0.5 / 200


def test_pixels_are_independent() -> None:
    """Every pair of nine pixels: correlations of 40,000 masks are 0 within 5 standard errors (36 pairs: a right mask
    fails once in 48,000)."""
    hidden = drawn("pixels:share=0.4", (1, 3, 3), 40_000).flatten(1).double()
    off = torch.corrcoef(hidden.T) - torch.eye(9)
    assert float(off.abs().max()) < 5 / 200


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rectangle_is_one(shape: tuple[int, ...]) -> None:
    for mask in drawn("rectangles:share=0.3", shape, 100)[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows.unsqueeze(1) & columns)
        for line in (rows, columns):
            places = line.nonzero()
            assert len(places) == int(places.max() - places.min()) + 1


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_halves(side: str) -> None:
    hidden = drawn(f"halves:side={side}", (1, 4, 6), 3)[0, 0]
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    place = {"left": (..., slice(0, 3)), "right": (..., slice(3, 6)), "top": slice(0, 2), "bottom": slice(2, 4)}
    wanted[place[side]] = True  # type: ignore[index]
    assert torch.equal(hidden, wanted)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (1, 5, 7), (1, 3, 40)])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.7])
def test_a_stroke_is_connected_and_of_the_size_asked_for(shape: tuple[int, ...], share: float) -> None:
    hidden = drawn(f"strokes:share={share}", shape, 200)[:, 0].numpy()
    wanted = share * shape[1] * shape[2]
    for mask in hidden:
        assert math.floor(wanted) <= mask.sum() <= math.ceil(wanted)
        assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == (1 if mask.any() else 0)


@pytest.mark.parametrize("text", NAMES)
def test_they_are_drawn_anew_inside_of_a_graph(text: str) -> None:
    mask = random_mask(text)
    graph = make_fx(lambda x: mask.draw(len(x), x.shape[1:], device=x.device))(torch.zeros(50, 1, 9, 9))
    torch.manual_seed(0)
    wanted = [mask.draw(50, (1, 9, 9)) for _ in range(2)]
    torch.manual_seed(0)
    for each in wanted:
        assert torch.equal(graph(torch.zeros(50, 1, 9, 9)), each)
    assert not torch.equal(*wanted)


def test_tables_have_their_numbers_hidden() -> None:
    hidden = drawn("pixels:share=0.3", (5,), 1000)
    assert hidden.shape == (1000, 5)
    for name in ("rectangles", "halves", "strokes"):
        with pytest.raises(InputError, match=rf"masks='{name}.* hide parts of images .* shape \(5,\): use 'pixels'"):
            random_mask(name).draw(3, (5,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rectangle", "did you mean 'rectangles'"),
        ("pixels:share=0", "share=0 of a datum hidden; give a number above 0 and below 1"),
        ("pixels:share=1.5", "share=1.5 of a datum hidden"),
        ("halves:share=0.5", "share=0.5 does not fit masks='halves', which takes side"),
        ("halves:side=front", "whose side is one of any, left, right, top, bottom"),
        ("strokes:width=2", "width=2 must be a part of the picture's side"),
        ("strokes:count=0", "count=0 must be a whole number, 1 or more"),
    ],
)
def test_bad_names_and_options(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_mask(text)


@pytest.mark.parametrize("text", NAMES)
def test_a_masks_text_makes_it_again(text: str) -> None:
    assert random_mask(random_mask(text).text) == random_mask(text)


# ---------------------------------------------------------------- masks of a batch


def test_what_is_known_is_all_that_is_left() -> None:
    batch = Batch(x=torch.ones(2, 2) * MASK, observed=MASK, visible=torch.tensor([[True, True], [False, True]]))
    left = known(batch)
    assert left.visible is not None
    assert left.visible.tolist() == [[True, False], [False, True]]
    assert torch.equal(left.visible, left.observed)
    assert torch.equal(left.x, left.visible.float())
    plain = Batch(x=torch.ones(2, 2))
    assert known(plain) is plain


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 2), "data.visible has dtype torch.float32; a mask is torch.bool"),
        (torch.ones(2, 1, dtype=torch.bool), r"data.visible has shape \(2, 1\) where x has \(2, 2\)"),
        (torch.tensor([[True, True], [False, False]]), "data.visible is False throughout in row 1"),
    ],
)
def test_bad_masks_are_refused_in_training_and_evaluation(mask: torch.Tensor, message: str) -> None:
    model = LinearGaussian(data=2, latent=1)
    guide = LinearGaussianPosterior(model)
    bad = Batch(x=torch.zeros(2, 2, dtype=torch.float64), visible=mask)
    with pytest.raises(InputError, match=message):
        check_masks(bad, "data")
    with pytest.raises(InputError, match=message):
        fit(model, guide, bad, progress=False)
    with pytest.raises(InputError, match=message):
        log_marginal(model, guide, bad, particles=10)
    seen = bad._replace(visible=None, observed=mask)
    with pytest.raises(InputError, match=message.replace("visible", "observed")):
        log_marginal(model, guide, seen, particles=10)
