"""Blur and the Fréchet distance: against closed forms, hand-made images, and scipy's matrix root."""

import math
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

from ppl_vae import InputError, load
from ppl_vae.data import DataSet
from ppl_vae.evaluate import frechet, frechet_gaussians, laplacian_variance, sharpness, train_classifier


def test_the_laplacian_of_images_made_by_hand() -> None:
    i, j = torch.meshgrid(torch.arange(7.0), torch.arange(5.0), indexing="ij")
    images = {
        "constant": (torch.full_like(i, 3.0), 0.0),
        "linear": (2.0 * i - j, 0.0),
        "quadratic, whose Laplacian is 2 everywhere": (i.square(), 0.0),
        "checkerboard, ±4 in turn: 8 of 15 inner pixels are of one sign": ((i + j) % 2, 16.0 * (1.0 - (1 / 15) ** 2)),
    }
    x = torch.stack([image for image, _ in images.values()]).unsqueeze(1)
    torch.testing.assert_close(
        laplacian_variance(x), torch.tensor([value for _, value in images.values()], dtype=torch.float64)
    )
    # one bright pixel in the middle of 5 x 5: -4 once, 1 four times, 0 four times
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1.0
    assert laplacian_variance(point).item() == pytest.approx((16 + 4) / 9 - 0.0)
    # channels are averaged, units are squared
    both = torch.cat([3.0 * point, torch.zeros_like(point)], dim=1)
    assert laplacian_variance(both).item() == pytest.approx(9 * (20 / 9) / 2)


def test_blur_is_below_one_and_noise_above() -> None:
    x = torch.rand(200, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    same = sharpness(x[:100], x[100:])
    assert abs(same.ratio - 1.0) < 4 * same.ratio_se  # a false alarm in 1 of 16,000 seeds
    assert sharpness(x, x).ratio == 1.0
    blurred = sharpness(torch.nn.functional.avg_pool2d(x, 3, 1, 1), x)
    assert blurred.ratio + 4 * blurred.ratio_se < 0.5
    noisy = sharpness(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x)
    assert noisy.ratio > 2.0


def test_its_errors_are_those_of_repetition() -> None:
    """The standard error said is the spread over independent sets of samples."""
    generator = torch.Generator().manual_seed(0)
    found = [sharpness(*(torch.rand(30, 1, 6, 6, generator=generator) * s for s in (0.5, 1.0))) for _ in range(400)]
    spread = torch.tensor([each.ratio for each in found]).std().item()
    # the spread of 400 is known to 4%, four of which make a false alarm in 1 of 16,000 seeds
    assert sum(each.ratio_se for each in found) / 400 == pytest.approx(spread, rel=0.16)
    assert sum(each.ratio for each in found) / 400 == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("samples", "data", "says"),
    [
        (torch.rand(4, 1, 8, 8), torch.rand(4, 1, 9, 8), "give images of one shape"),
        (torch.rand(4, 8), torch.rand(4, 8), r"x has shape \(4, 8\); give images"),
        (torch.rand(4, 1, 2, 8), torch.rand(4, 1, 2, 8), "3 x 3 pixels or more"),
        (torch.rand(1, 1, 8, 8), torch.rand(4, 1, 8, 8), "samples are 1: an error needs 2 images"),
        (torch.rand(4, 1, 8, 8), torch.ones(4, 1, 8, 8), "data have no edges"),
        (torch.full((4, 1, 8, 8), math.nan), torch.rand(4, 1, 8, 8), "NaN or infinity"),
    ],
)
def test_what_has_no_sharpness(samples: Tensor, data: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sharpness(samples, data)


def covariance(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return a @ a.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def test_the_distance_of_gaussians() -> None:
    a, b = covariance(6, 0), covariance(6, 1)
    m, n = torch.arange(6.0).double(), torch.ones(6).double()
    root = torch.from_numpy(scipy.linalg.sqrtm((a @ b).numpy()).real)
    expected = (m - n).square().sum() + (a + b - 2 * root).trace()
    torch.testing.assert_close(frechet_gaussians(m, a, n, b), expected)
    torch.testing.assert_close(frechet_gaussians(n, b, m, a), expected)
    assert abs(frechet_gaussians(m, a, m, a).item()) < 1e-10
    # of independent features: Σ (√a - √b)²
    s, t = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    zero = torch.zeros(3).double()
    assert frechet_gaussians(zero, s.diag(), zero, t.diag()).item() == pytest.approx(1 + 0 + 9)


def test_the_distance_of_samples_is_the_gaussians() -> None:
    a, b = covariance(4, 2), covariance(4, 3)
    m, n = torch.zeros(4).double(), torch.tensor([0.5, 0.0, 0.0, -0.5]).double()
    generator = torch.Generator().manual_seed(0)
    x, y = (
        loc + torch.randn(size, 4, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(c).T
        for size, loc, c in ((2000, m, a), (1500, n, b))
    )
    found = frechet(x, y)
    truth = frechet_gaussians(m, a, n, b).item()
    # 4 standard errors beside its bias: a false alarm in 1 of 16,000 seeds
    assert abs(found.distance - found.bias - truth) < 4 * found.se
    assert found.se < 0.1 * truth
    assert (found.n, found.data_n, found.features) == (2000, 1500, 4)


def test_its_bias_is_told() -> None:
    """Samples of one Gaussian have d² = 0: what is found is bias, of which the bootstrap tells the size."""
    generator = torch.Generator().manual_seed(0)
    found = [
        frechet(*(torch.randn(200, 5, generator=generator, dtype=torch.float64) for _ in range(2)), bootstrap=50)
        for _ in range(20)
    ]
    mean = sum(each.distance for each in found) / 20
    assert mean > 0.02
    # the bootstrap's is at most the sum of both sides' finite numbers, of the size of the bias itself
    assert 0.5 * mean < sum(each.bias for each in found) / 20 < 2.0 * mean


def test_a_classifier_of_the_digits_and_distances_in_its_features() -> None:
    train, test = load("digits", units="unit")
    state = torch.get_rng_state()
    classifier = train_classifier(train, features=16, epochs=6)
    assert torch.equal(state, torch.get_rng_state())
    x, y = test.batch().x, test.batch().y
    assert x is not None
    assert y is not None
    assert (classifier(x).argmax(-1) == y).double().mean() > 0.85
    one, again = (train_classifier(test, features=4, epochs=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    seen = train.batch().x
    assert seen is not None
    near = frechet(seen, x, classifier, bootstrap=20)
    far = frechet(torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)), x, classifier, bootstrap=20)
    one_class = frechet(seen[train.batch().y == 3], x, classifier, bootstrap=20)
    assert near.distance + 4 * near.se < one_class.distance - 4 * one_class.se
    assert near.distance + 4 * near.se < far.distance - 4 * far.se


def labelled(y: list[int] | None) -> DataSet:
    labels = None if y is None else torch.tensor(y)
    return DataSet.from_arrays(torch.rand(4, 1, 8, 8), labels, name="few")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: frechet(torch.rand(9, 5), torch.rand(20, 5)), "samples are 9, too few for a covariance of 5 features"),
        (lambda: frechet(torch.rand(20, 5), torch.rand(20, 4)), "samples have 5 features and data 4"),
        (lambda: frechet(torch.rand(20, 1, 5), torch.rand(20, 1, 5)), r"features have shape \(20, 1, 5\)"),
        (lambda: frechet(torch.full((20, 2), math.inf), torch.rand(20, 2)), "a feature that is NaN or infinite"),
        (lambda: frechet(torch.rand(20, 2), torch.rand(20, 2), bootstrap=1), "bootstrap=1"),
        (lambda: train_classifier(labelled(None)), "have no labels"),
        (lambda: train_classifier(labelled([1, 1, 1, 1])), "are of one class"),
        (lambda: train_classifier(labelled([0, 1, 0, 1]), features=0), "features=0"),
    ],
)
def test_what_has_no_distance(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
