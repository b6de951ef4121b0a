"""DataSet, its batches, its binarization, its splits."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.data import DataSet, from_arrays, split
from ppl_vae.errors import InputError

LEVELS = 5


def grey(size: int = 40, **options: object) -> DataSet:
    x = torch.arange(size * 12).remainder(LEVELS).reshape(size, 1, 3, 4)
    return DataSet.from_arrays(x, torch.arange(size) % 3, name="grey", levels=LEVELS, **options)


def test_levels_stay_bytes_and_become_floats_in_a_batch():
    data = grey()
    assert data.x.dtype == torch.uint8
    assert (data.levels, data.shape, len(data), data.classes) == (LEVELS, (1, 3, 4), 40, 3)
    assert data.nbytes == 40 * 12 + 40 * 8
    batch = data.batch()
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x * (LEVELS - 1), data.x.float())
    assert batch.x.max() == 1.0
    torch.testing.assert_close(data.with_options(units="levels").batch().x, data.x.float())


def test_a_batch_has_the_rows_asked_for():
    data = dataclasses.replace(grey(), context=torch.arange(80.0).reshape(40, 2))
    rows = torch.tensor([7, 0, 7])
    batch = data.batch(rows)
    assert batch.size == 3
    assert torch.equal(batch.rows, rows)
    assert torch.equal(batch.y, data.y[rows])
    assert torch.equal(batch.context, data.context[rows])
    assert torch.equal(batch.x, data.batch().x[rows])
    assert torch.equal(data.batch([7, 0, 7]).x, batch.x)
    assert torch.equal(data.batch().rows, torch.arange(40))


@pytest.mark.parametrize("rows", [torch.tensor([3, 1]), [3, 1], slice(3, 0, -2)])
def test_take(rows):
    part = grey().take(rows)
    assert torch.equal(part.x, grey().x[[3, 1]])
    assert torch.equal(part.y, torch.tensor([0, 1]))
    assert part.class_names == ("0", "1", "2")
    assert torch.equal(part.batch().rows, torch.arange(2))


def test_take_by_mask_and_out_of_range():
    data = grey()
    assert torch.equal(data.take(data.y == 1).y, torch.ones(13, dtype=torch.int64))
    with pytest.raises(InputError, match="rows run from 0 to 40; 'grey' has rows 0 to 39"):
        data.take([0, 40])


def test_dynamic_draws_differ_and_follow_torchs_seed():
    data = grey(binarize="dynamic")
    torch.manual_seed(3)
    first, second = data.batch().x, data.batch().x
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(data.batch().x, first)
    assert set(first.unique().tolist()) == {0.0, 1.0}


def _within_four_standard_errors(draws: torch.Tensor, probability: torch.Tensor) -> None:
    """draws (M, *D) of Bernoulli(probability (*D)); the pooled count of each level is tested."""
    for p in probability.unique().tolist():
        ones = draws[:, probability == p].double()
        error = 4 * (p * (1 - p) / ones.numel()) ** 0.5
        assert abs(ones.mean().item() - p) <= error


@pytest.mark.parametrize("continuous", [False, True])
def test_binarization_has_the_right_frequencies(continuous):
    data = grey()
    probability = data.batch().x
    if continuous:
        data = DataSet.from_arrays(probability, name="grey")
        assert data.levels is None
    torch.manual_seed(0)
    dynamic = data.with_options(binarize="dynamic")
    _within_four_standard_errors(torch.stack([dynamic.batch().x for _ in range(200)]), probability)
    _within_four_standard_errors(torch.stack([dynamic.fixed(seed).batch().x for seed in range(200)]), probability)


def test_fixed_is_reproducible_and_leaves_the_generators_alone():
    dynamic = grey(binarize="dynamic")
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    fixed = dynamic.fixed()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(fixed.x, dynamic.fixed(777).x)
    assert not torch.equal(fixed.x, dynamic.fixed(778).x)
    assert torch.equal(fixed.batch().x, fixed.batch().x)
    assert (fixed.levels, fixed.binarize, fixed.binarize_seed) == (2, "fixed", 777)
    # held to numbers written down: the same data for everyone, on any machine
    assert fixed.x[:2].flatten().tolist() == FIXED_777
    assert fixed.fixed(1) is fixed


FIXED_777 = [0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 1]


def test_threshold_is_one_above_one_half():
    data = grey().with_options(binarize="threshold")
    assert torch.equal(data.batch().x, (data.x > 2).float())
    even = DataSet.from_arrays(torch.arange(8).reshape(2, 1, 2, 2) % 4, levels=4, binarize="threshold")
    assert torch.equal(even.batch().x, (even.x >= 2).float())
    unit = DataSet.from_arrays(torch.tensor([0.5, 0.51, 0.0, 1.0]).reshape(2, 1, 2, 1), binarize="threshold")
    assert unit.batch().x.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_options_can_be_changed_until_the_levels_are_gone():
    data = grey()
    assert data.fixed() is data
    fixed = data.with_options(binarize="fixed")
    assert torch.equal(fixed.x, data.with_options(binarize="dynamic").fixed().x)
    assert fixed.with_options(binarize="fixed").x is fixed.x
    with pytest.raises(InputError, match="binarize='none' needs the values before binarization"):
        fixed.with_options(binarize="none")


@pytest.mark.parametrize(
    ("options", "text", "discrete"),
    [
        ({}, "grey all, 5 levels in [0, 1]", False),
        ({"units": "levels"}, "grey all, 5 levels 0 to 4", True),
        ({"binarize": "dynamic"}, "grey all, dynamic binarization", True),
        ({"binarize": "fixed"}, "grey all, fixed binarization (seed 777)", True),
        ({"binarize": "threshold"}, "grey all, binarized at one half", True),
    ],
)
def test_every_description_names_data_part_and_values(options, text, discrete):
    data = grey().with_options(**options)
    assert data.description == text
    assert data.discrete is discrete
    assert text in repr(data)


def test_descriptions_of_other_data():
    assert from_arrays(torch.zeros(2, 3), name="t").description == "t all, continuous"
    assert from_arrays(torch.zeros(2, 3), name="t", units="unit").description == "t all, continuous in [0, 1]"
    binary = from_arrays(torch.zeros(2, 3, dtype=torch.bool), name="t")
    assert binary.description == "t all, binary"
    assert binary.discrete
    assert binary.binary


def test_what_arrays_become():
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (4, 6, 5)).astype(np.uint8)
    assert from_arrays(pixels).levels == 256
    assert from_arrays(pixels).shape == (1, 6, 5)
    assert from_arrays(pixels.astype(np.int32), levels=256).x.dtype == torch.uint8
    assert from_arrays(pixels.astype(">f8") / 255).levels is None
    assert from_arrays(pixels.astype(np.uint16).reshape(4, -1)).units == "raw"
    assert from_arrays(pixels.reshape(4, -1), levels=256).units == "unit"
    assert from_arrays(pixels > 100).levels == 2
    assert from_arrays(pixels.reshape(4, -1)).batch().x.max() == pixels.max()
    assert from_arrays([[1, 2], [3, 4]]).x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert from_arrays(pixels.astype(np.float64), levels=256).levels == 256


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((2, 3, 8, 9), (3, 8, 9)),
        ((2, 8, 9, 3), (3, 8, 9)),
        ((2, 1, 8, 9), (1, 8, 9)),
        ((2, 4, 4, 1), (1, 4, 4)),
        ((2, 3, 5, 3), (3, 5, 3)),
        ((2, 5, 16, 16), (5, 16, 16)),
    ],
)
def test_channels_of_an_array_are_the_smaller_axis(shape, kept):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    data = from_arrays(array)
    assert data.shape == kept
    expected = array if shape[1:] == kept else array.transpose(0, 3, 1, 2)
    assert np.array_equal(data.x.numpy(), expected)
    # a tensor is in torch's order, whatever its sizes
    assert from_arrays(torch.from_numpy(array)).shape == shape[1:]


def test_a_data_set_does_not_share_the_callers_array():
    array = np.zeros((2, 3), dtype=np.float32)
    data = from_arrays(array)
    array[0, 0] = np.nan
    assert data.x.isfinite().all()


def _with(index: tuple[int, ...], value: float, shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.zeros(shape)
    x[index] = value
    return x


LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": _with((3, 1), torch.nan, (4, 2))}, r"x of 'data': row 3, column 1 is nan \(the first of 1 such"),
        ({"x": _with((2, 0), -torch.inf, (4, 2)), "columns": ["a", "b"]}, r"row 2, column 0 \('a'\) is -inf"),
        ({"x": _with((1, 0, 2, 3), torch.nan, (4, 1, 5, 5))}, r"row 1, channel 0, pixel \(2, 3\) is nan"),
        ({"x": np.full((4, 2), 1e300)}, r"row 0, column 0 is inf .* below 3.4e38"),
        ({"x": torch.zeros(4)}, r"shape \(4,\); give a table \(N, D\).*reshape it to \(N, 1\)"),
        ({"x": torch.zeros(4, 0)}, "no values in a datum"),
        ({"x": torch.zeros(2, 1, 1, 1, 1)}, r"shape \(2, 1, 1, 1, 1\)"),
        ({"x": torch.zeros(1, 3)}, "holds one datum; at least two are needed"),
        ({"x": torch.zeros(0, 3)}, "holds no data; at least two are needed"),
        ({"x": np.array([[1, "a"], [2, "b"]])}, "dtype <U21; give numbers"),
        ({"x": np.array([[1, None], [2, 3]])}, "holds Python objects"),
        ({"x": [[1, 2], [3]]}, "cannot be made an array"),
        ({"x": torch.zeros(4, 2, dtype=torch.complex64)}, "complex64; give real"),
        ({"x": torch.zeros(4, 2, 2, dtype=torch.int64)}, "int64, which does not say how many levels"),
        ({"x": torch.full((4, 2, 2), 5), "levels": 5}, r"row 0, channel 0, pixel \(0, 0\) is 5, which is no level"),
        ({"x": torch.full((4, 2), 0.5), "levels": 5}, "row 0, column 0 is 0.5, which is no level"),
        ({"x": torch.full((4, 2), -1), "levels": 5}, "is -1, which is no level; with levels=5 .* from 0 to 4"),
        ({"x": torch.zeros(4, 2), "levels": 1}, "levels for x of 'data' is 1; give a whole number from 2 to 256"),
        ({"x": torch.zeros(4, 2), "levels": 2.5}, "is 2.5; give a whole number"),
        ({"x": _with((1, 0, 1, 0), 255.0, (4, 1, 2, 2))}, r"from 0 to 255, first out of \[0, 1\] at row 1, channel 0"),
        ({"x": torch.zeros(4, 2), "y": LABELS.float()}, "y of 'data' has dtype float32; labels are whole numbers"),
        ({"x": torch.zeros(4, 2), "y": LABELS - 2}, "row 0 is -2; labels run from 0 to 999, and -1"),
        ({"x": torch.zeros(4, 2), "y": LABELS * 9999}, "row 1 is 9999; labels run from 0 to 999"),
        ({"x": torch.zeros(4, 2), "y": LABELS, "class_names": ["a", "b"]}, "row 2 is 2; labels run from 0 to 1"),
        ({"x": torch.zeros(4, 2), "y": torch.eye(4)}, r"y of 'data' has shape \(4, 4\).*argmax"),
        ({"x": torch.zeros(4, 2), "y": LABELS[:3]}, "y of 'data' has 3 rows where x has 4"),
        ({"x": torch.zeros(4, 2), "context": torch.zeros(4)}, r"context of 'data' has shape \(4,\); give one row"),
        ({"x": torch.zeros(4, 2), "context": torch.zeros(3, 1)}, "context of 'data' has 3 rows where x has 4"),
        ({"x": torch.zeros(4, 2), "context": _with((1, 1), torch.nan, (4, 2))}, "context of 'data': row 1, column 1"),
        ({"x": torch.zeros(4, 2), "columns": ["a"]}, "columns has 1 names"),
        ({"x": torch.zeros(4, 2), "binarize": "dynamic"}, "binarize='dynamic' does not fit .* a table of continuous"),
        ({"x": torch.zeros(4, 2, 2), "binarize": "dinamic"}, "did you mean 'dynamic'.*dynamic, fixed, none, threshold"),
        ({"x": torch.zeros(4, 2, 2), "units": "unti"}, "did you mean 'unit'.*levels, raw, unit"),
        ({"x": torch.zeros(4, 2, 2), "units": "levels"}, "units='levels' does not fit .* continuous"),
        ({"x": torch.zeros(4, 2), "levels": 3, "units": "raw"}, "units='raw' does not fit .* which has 3 levels"),
        (
            {"x": torch.zeros(4, 2), "levels": 3, "units": "levels", "binarize": "dynamic"},
            "units='levels' and binarize='dynamic' exclude each other",
        ),
        ({"x": _with((0, 0, 0, 0), 3.0, (4, 1, 2, 2)), "units": "raw", "binarize": "threshold"}, "units of its own"),
    ],
)
def test_bad_data_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        DataSet.from_arrays(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(4, 2, dtype=torch.float64)}, "torch.float64; give a uint8 or float32 tensor"),
        ({"x": torch.zeros(4, 2, dtype=torch.uint8)}, "uint8 without levels"),
        ({"x": torch.zeros(4, 2), "levels": 3}, "levels are kept as uint8"),
        ({"x": torch.full((4, 2), 3, dtype=torch.uint8), "levels": 3}, "row 0, column 0 is 3; with levels=3"),
        ({"x": torch.zeros(4, 2), "y": torch.zeros(4)}, r"torch.float32 \(4,\); give torch.int64 with 1 axes"),
        ({"x": torch.full((4, 2), 2, dtype=torch.uint8), "levels": 3, "binarize": "fixed"}, "make it with .fixed"),
    ],
)
def test_the_constructor_checks_too(arguments, message):
    with pytest.raises(InputError, match=message):
        DataSet("data", **arguments)


def test_missing_labels_are_welcome():
    data = from_arrays(torch.zeros(4, 2), [-1, 0, 1, -1])
    assert data.y.tolist() == [-1, 0, 1, -1]
    assert data.classes == 2
    assert from_arrays(torch.zeros(2, 2), [-1, -1]).classes == 0


@pytest.mark.parametrize(("size", "fraction"), [(40, 0.2), (41, 0.5), (2, 0.9), (100, 0.001)])
def test_a_split_is_disjoint_and_covers(size, fraction):
    numbers = torch.arange(float(size)).reshape(-1, 1)
    data = from_arrays(numbers, torch.arange(size) % 3, name="n")
    train, test = split(data, fraction, seed=4)
    assert len(test) == min(max(round(size * fraction), 1), size - 1)
    both = torch.cat([train.x, test.x]).flatten()
    assert torch.equal(both.sort().values, numbers.flatten())
    assert torch.equal(train.x.flatten(), train.x.flatten().sort().values)
    assert torch.equal(test.x, split(data, fraction, seed=4)[1].x)


def test_a_split_is_stratified_and_named():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 7 + [-1] * 23)
    data = from_arrays(
        torch.arange(100.0).reshape(-1, 1), y[torch.randperm(100, generator=torch.Generator().manual_seed(0))], name="n"
    )
    train, test = split(data, 0.2, seed=1)
    for label, count in ((0, 50), (1, 20), (2, 7), (-1, 23)):
        assert abs(int((test.y == label).sum()) - 0.2 * count) <= 1
    assert not torch.equal(test.x, split(data, 0.2, seed=2)[1].x)
    assert (train.split, test.split) == ("train (80%, seed 1)", "test (20%, seed 1)")
    assert split(dataclasses.replace(data, split="train"), 0.1)[1].split == "train held out (10%, seed 0)"
    assert split(data, 0.1, names=("train", "validation"))[1].split == "validation (10%, seed 0)"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_split_needs_a_fraction(fraction):
    with pytest.raises(InputError, match="give a number between 0 and 1"):
        split(grey(), fraction)


def test_a_split_needs_two_data():
    with pytest.raises(InputError, match="holds one datum; at least two"):
        split(grey().take([0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree():
    data = grey(binarize="dynamic")
    there = data.to("cuda")
    assert there.batch([1, 2]).x.is_cuda
    assert torch.equal(there.fixed().x.cpu(), data.fixed().x)
    assert torch.equal(there.with_options(binarize="none").batch().x.cpu(), grey().batch().x)
    assert torch.equal(there.take([3, 1]).y.cpu(), data.take([3, 1]).y)


@pytest.mark.parametrize("binarize", ["dynamic", "fixed", "threshold", "none"])
def test_a_batch_can_be_traced_into_a_graph(binarize):
    data = grey().with_options(binarize=binarize)
    rows = torch.tensor([3, 1, 3])
    graph = make_fx(lambda rows: data.batch(rows).x)(rows)
    rows = torch.tensor([0, 5, 7])
    torch.manual_seed(0)
    expected = data.batch(rows).x
    torch.manual_seed(0)
    assert torch.equal(graph(rows), expected)


# --- masks -----------------------------------------------------------------------------------------------------------


def incomplete(**options: object) -> DataSet:
    x = torch.arange(40 * 12).remainder(LEVELS).reshape(40, 3, 4)
    return DataSet.from_arrays(x, name="grey", levels=LEVELS, observed=x != 2, **options)


def test_what_is_missing_is_zero_and_said():
    data = incomplete()
    assert data.description == "grey all, 5 levels in [0, 1], 20% missing"
    assert bool((data.x[~data.observed] == 0).all())
    assert not bool((data.x == 2).any())
    assert data.nbytes == 2 * 40 * 12
    batch = data.batch([3, 5])
    assert torch.equal(batch.observed, data.observed[[3, 5]])
    assert torch.equal(batch.visible, batch.observed)
    assert torch.equal(data.take([3, 5]).observed, batch.observed)
    assert grey().batch().observed is None
    drawn = incomplete(binarize="dynamic").batch()
    assert bool((drawn.x[~drawn.observed] == 0).all())
    # NaN is as good as any other value there
    x = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    assert DataSet.from_arrays(x, observed=~x.isnan()).x.tolist() == [[1.0, 0.0], [2.0, 3.0]]


def test_masks_are_drawn_for_every_batch_and_once_by_fixed():
    data = incomplete().with_options(masks="pixels:share=0.5")
    rows = torch.arange(40)
    one, two = data.batch(rows), data.batch(rows)
    assert not torch.equal(one.visible, two.visible)
    assert torch.equal(one.observed, two.observed)
    assert not bool((one.visible & ~one.observed).any())
    assert bool(one.visible.flatten(1).any(1).all())
    assert data.description.endswith("20% missing, behind masks (pixels:share=0.5)")
    before = torch.get_rng_state()
    fixed = data.fixed()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(fixed.batch().visible, data.fixed().batch(rows).visible)
    assert not torch.equal(fixed.visible, data.fixed(seed=1).visible)
    assert torch.equal(fixed.take([4]).batch().visible, fixed.visible[[4]])
    assert fixed.fixed() is fixed
    assert torch.equal(fixed.unmasked().batch().visible, data.observed)
    assert grey().unmasked().batch().visible is None
    assert fixed.with_options(masks="halves").visible is None


def test_masks_and_binarization_are_drawn_inside_of_a_graph():
    data = incomplete(binarize="dynamic").with_options(masks="rectangles")

    def draw(x, observed, rows):
        batch = data.holding(x=x, observed=observed).batch(rows)
        return batch.x, batch.visible

    rows = torch.tensor([3, 0, 7])
    graph = make_fx(draw)(data.x, data.observed, rows)
    torch.manual_seed(0)
    wanted = [data.batch(rows) for _ in range(3)]
    torch.manual_seed(0)
    for each in wanted:
        x, visible = graph(data.x, data.observed, rows)
        assert torch.equal(x, each.x)
        assert torch.equal(visible, each.visible)
    assert not torch.equal(wanted[0].visible, wanted[1].visible)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"observed": torch.ones(4, 2)},
            r"observed of 'data' is torch.float32 \(4, 2\) where x has shape \(4, 2\); give",
        ),
        ({"observed": torch.ones(4, 3) > 0}, r"observed of 'data' is torch.bool \(4, 3\) where x has shape \(4, 2\)"),
        ({"observed": torch.arange(8).reshape(4, 2) < 6}, "observed of 'data' is False throughout in row 3"),
    ],
)
def test_bad_masks(options, message):
    with pytest.raises(InputError, match=message):
        DataSet.from_arrays(torch.ones(4, 2), **options)


def test_bad_masks_of_a_data_set():
    data = grey()
    with pytest.raises(InputError, match=r"row 0, channel 0, pixel .* is 1 where observed is False; put 0 there"):
        dataclasses.replace(data, observed=data.x != 1)
    with pytest.raises(InputError, match="masks='rectangle' is not known; did you mean 'rectangles'"):
        data.with_options(masks="rectangle")
    with pytest.raises(InputError, match="hide parts of images"):
        DataSet.from_arrays(torch.ones(4, 2)).with_options(masks="halves")


def test_keeps_as_many_labels_of_each_class() -> None:
    y = torch.tensor([0] * 10 + [1] * 30 + [2] * 3 + [-1] * 7)
    data = DataSet.from_arrays(torch.rand(50, 4, 4), y, name="noise", class_names=["a", "b", "c"])
    for count, wanted in ((3, [1, 1, 1]), (9, [3, 3, 3]), (15, [6, 6, 3]), (43, [10, 30, 3]), (1, None), (5, None)):
        kept = data.keep_labels(count, seed=4)
        counts = [int((kept.y == k).sum()) for k in range(3)]
        assert sum(counts) == count
        assert wanted is None or counts == wanted
        assert max(counts[:2]) - min(counts[:2]) <= 1 or counts[0] == 10
        known = kept.y >= 0
        assert torch.equal(kept.y[known], y[known])
        assert kept.class_names == ("a", "b", "c")
        assert torch.equal(kept.x, data.x)
    assert kept.description == "noise all, 5 labels (seed 4), continuous in [0, 1]"
    assert torch.equal(kept.y, data.keep_labels(5, seed=4).y)
    assert not torch.equal(kept.y, data.keep_labels(5, seed=5).y)
    assert bool((data.hide_labels().y == -1).all())
    assert data.hide_labels().class_names == data.class_names


@pytest.mark.parametrize("count", [0, 44, 2.0, True])
def test_refuses_to_keep_more_labels_than_there_are(count: object) -> None:
    y = torch.tensor([0] * 10 + [1] * 33 + [-1] * 7)
    data = DataSet.from_arrays(torch.rand(50, 4, 4), y, name="noise")
    with pytest.raises(InputError, match=r"labels=.* must be a whole number from 1 to 43"):
        data.keep_labels(count)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which has none"):
        DataSet.from_arrays(torch.rand(50, 4, 4), name="noise").keep_labels(3)
    with pytest.raises(InputError, match="which has none"):
        data.hide_labels().keep_labels(3)


def test_values_with_a_spread_are_drawn_anew_in_every_batch_and_once_by_fixed():
    """Standardized, 40,000 draws have mean 0 and variance 1 within 5 standard errors, 1 in a million."""
    loc, spread = 3.0 * torch.randn(200, 4), 0.1 + torch.rand(200, 4)
    data = dataclasses.replace(from_arrays(loc, torch.arange(200) % 2), spread=spread)
    torch.manual_seed(0)
    draws = torch.stack([(data.batch().x - loc) / spread for _ in range(50)])
    assert abs(draws.mean()) < 5 / 200
    assert abs(draws.var() - 1) < 5 * 2**0.5 / 200
    assert not torch.equal(draws[0], draws[1])
    rows = torch.tensor([7, 3])
    some = dataclasses.replace(data, spread=torch.zeros_like(spread)).batch(rows)
    assert torch.equal(some.x, loc[rows])
    assert torch.equal(data.take(rows).spread, spread[rows])
    assert torch.equal(data.keep_labels(4).spread, spread)
    once = data.fixed(3)
    assert once.spread is None
    assert torch.equal(once.batch().x, data.fixed(3).batch().x)
    assert not torch.equal(once.x, data.fixed(4).x)
    noise = np.random.RandomState(3).standard_normal((200, 4)).astype(np.float32)
    torch.testing.assert_close(once.x, loc + spread * torch.from_numpy(noise))
    assert "drawn anew within their spread" in data.description
    assert "spread" not in once.description


@pytest.mark.parametrize(
    ("spread", "match"),
    [
        (torch.ones(5, 3), r"spread of .* is torch.float32 \(5, 3\).* of the shape of x, \(5, 2\)"),
        (torch.ones(5, 2).double(), "torch.float64"),
        (-torch.ones(5, 2), "row 0.* is -1; standard deviations are 0 or more"),
        (torch.full((5, 2), torch.nan), "spread of .*"),
    ],
)
def test_a_spread_that_is_none_is_refused(spread, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(from_arrays(torch.randn(5, 2)), spread=spread)


def test_only_numbers_in_units_of_their_own_have_a_spread():
    with pytest.raises(InputError, match="units='raw', all of them observed; x has levels"):
        dataclasses.replace(grey(), spread=torch.ones(40, 1, 3, 4))
    with pytest.raises(InputError, match="x has units='unit'"):
        dataclasses.replace(from_arrays(torch.rand(5, 3, 3)), spread=torch.ones(5, 1, 3, 3))
