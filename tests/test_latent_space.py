"""Ways and grids through a latent space, clusters of codes and probes, each against something exact."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from ppl_vae import Batch, likelihoods, models, networks
from ppl_vae.errors import InputError
from ppl_vae.evaluate.latent_space import (
    Plane2D,
    adjusted_rand,
    clusters,
    decode,
    interpolate,
    linear_probe,
    manifold,
    plane_of,
    traversals,
    vector_sites,
)
from ppl_vae.latent_plots import aggregate
from ppl_vae.networks import Condition
from ppl_vae.plots import principal_components
from ppl_vae.testing import LinearGaussian

SHAPE = (1, 3, 3)


def codes(n: int = 50, size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 2.0, 0.5, 1.0, 0.3, 0.7])[:size]
    return torch.randn(n, size, generator=generator, dtype=torch.float64) * spread + 0.5


@pytest.mark.parametrize("how", ["straight", "spherical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_the_codes_themselves(how: Any, dtype: torch.dtype) -> None:
    a, b = codes(5).to(dtype), codes(5, seed=1).to(dtype)
    path = interpolate(a, b, 7, how)
    assert path.shape == (7, 5, 4)
    assert path.dtype == dtype
    assert torch.equal(path[0], a)
    assert torch.equal(path[-1], b)


def test_the_spherical_way_turns_evenly_and_its_norm_goes_evenly() -> None:
    a, b = codes(5), codes(5, seed=1)
    path = interpolate(a, b, 9, "spherical")
    t = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
    norms = path.norm(dim=-1)
    assert torch.allclose(norms, (1 - t) * a.norm(dim=-1) + t * b.norm(dim=-1), rtol=1e-12)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    steps = torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=-1)
    assert torch.allclose(steps.acos(), (cosine.acos() / 8).expand(8, 5), rtol=1e-8)
    # in the plane of the two
    for k in range(5):
        assert torch.linalg.matrix_rank(path[:, k], atol=1e-9) == 2


def test_the_spherical_way_between_near_directions_is_the_straight_one() -> None:
    a = codes(5)
    assert torch.allclose(interpolate(a, 2 * a, 5, "spherical"), interpolate(a, 2 * a, 5), rtol=1e-12)
    near = a + 1e-9
    assert torch.allclose(interpolate(a, near, 5, "spherical"), interpolate(a, near, 5), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interpolate(torch.zeros(3), torch.ones(3), how="spherical"), "lies at the origin"),
        (lambda: interpolate(-torch.ones(3), torch.ones(3), how="spherical"), "opposite directions"),
        (lambda: interpolate(torch.zeros(3), torch.zeros(4)), r"shapes \(3,\) and \(4,\)"),
        (lambda: interpolate(torch.zeros(3), torch.zeros(3), 1), "steps=1 must be 2 or more"),
        (lambda: interpolate(torch.zeros(3), torch.zeros(3), how="round"), "how='round'"),  # type: ignore[arg-type]
        (lambda: plane_of(torch.zeros(1, 3)), "span no plane"),
        (lambda: traversals(codes(), torch.zeros(3)), r"anchor \(3,\)"),
        (lambda: manifold(codes(), standard=True), "two dimensions at most; these codes have 4"),
        (lambda: vector_sites(lambda batch: None), r"no latent site .*\(it declares none\)"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_the_plane_is_that_of_the_principal_components() -> None:
    z = codes()
    plane = plane_of(z)
    points, share = principal_components(z)
    assert np.allclose(plane.seen(z).numpy(), points, atol=1e-12)
    assert plane.share == pytest.approx(tuple(share), rel=1e-12)
    seen = torch.randn(3, 2, 2, dtype=torch.float64)
    assert torch.allclose(plane.seen(plane.lifted(seen)), seen, atol=1e-12)
    flat = plane_of(z[:, :2])
    assert flat.share is None
    assert torch.equal(flat.seen(z[:, :2]), z[:, :2])


def test_dimensions_move_one_at_a_time_the_most_active_first() -> None:
    z = codes()
    points, values, order = traversals(z, z[0], 5, most=3)
    assert order == [1, 3, 2]
    assert order == z.var(0).argsort(descending=True)[:3].tolist()
    for row, d in enumerate(order):
        assert torch.equal(points[row, :, d], values[row])
        others = [k for k in range(4) if k != d]
        assert torch.equal(points[row][:, others], z[0, others].expand(5, -1))
        ends = np.quantile(z[:, d].numpy(), [0.01, 0.99])
        assert np.allclose(values[row].numpy(), np.linspace(*ends, 5), atol=1e-12)


def test_the_manifold_holds_equal_shares_of_the_prior() -> None:
    points, places = manifold(codes(size=2), 8, standard=True)
    u = torch.distributions.Normal(0.0, 1.0).cdf(places)
    assert torch.allclose(u, ((torch.arange(8) + 0.5) / 8).double().expand(2, 8), atol=1e-7)
    # the first axis to the right, the second upwards
    assert torch.equal(points[..., 0], places[0].expand(8, 8))
    assert torch.equal(points[..., 1], places[1].flip(0).unsqueeze(1).expand(8, 8))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_manifold_lies_in_the_codes_plane(size: int) -> None:
    z = codes(size=size)
    plane = plane_of(z)
    points, places = manifold(z, 5)
    assert points.shape == (1 if size == 1 else 5, 5, size)
    seen = plane.seen(z)
    middle = places[:, 2]  # of 5: the median
    assert torch.allclose(middle, seen.mean(0), atol=1e-9)
    standard = (places - seen.mean(0).unsqueeze(1)) / seen.std(0).unsqueeze(1)
    u = torch.distributions.Normal(0.0, 1.0).cdf(standard)
    assert torch.allclose(u, ((torch.arange(5) + 0.5) / 5).double().expand_as(u), atol=1e-7)
    assert torch.allclose(plane.lifted(plane.seen(points)), points.double(), atol=1e-9)


def decoder(inputs: int) -> networks.Decoder:
    return networks.decoder("mlp", inputs, SHAPE, 1, (6,))


def test_a_code_is_decoded_by_the_decoder() -> None:
    model = models.VAE(decoder(3), likelihoods.Bernoulli(SHAPE), 3)
    z = torch.randn(1030, 3)
    before = torch.get_rng_state()
    mean = decode(model, {"z": z.double()}, Batch(n=1030))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(mean, model.decoder(z)[:, 0].sigmoid(), atol=1e-6)


def test_a_code_is_decoded_under_its_class() -> None:
    model = models.ConditionalVAE(decoder(5), likelihoods.Bernoulli(SHAPE), 3, condition=Condition(classes=2))
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    wanted = model.decoder(torch.cat([z, torch.nn.functional.one_hot(y).float()], -1))[:, 0].sigmoid()
    assert torch.allclose(decode(model, {"z": z}, Batch(y=y)), wanted, atol=1e-6)


def test_layers_below_a_code_are_at_their_means() -> None:
    model = models.HierarchicalVAE(decoder(4), likelihoods.Bernoulli(SHAPE), (4, 3, 2))
    z3, z2 = torch.randn(5, 2), torch.randn(5, 3)

    def mean(name: str, z: Tensor) -> Tensor:
        return model.conditionals[name](z).mean  # type: ignore[no-any-return]

    for given, z1 in (
        ({"z3": z3}, mean("z1", mean("z2", z3))),
        ({"z2": z2}, mean("z1", z2)),
        ({"z1": torch.ones(5, 4)}, torch.ones(5, 4)),
    ):
        assert torch.allclose(decode(model, given, Batch(n=5)), model.decoder(z1)[:, 0].sigmoid(), atol=1e-6)
    with pytest.raises(InputError, match="given has 'z'; the model's latent sites are"):
        decode(model, {"z": z3}, Batch(n=5))


def test_decoding_needs_a_site_x_with_a_mean() -> None:
    with pytest.raises(InputError, match="no site 'x'"):
        decode(lambda batch: None, {}, Batch(n=5))


def test_sites_that_are_no_vectors_are_left_out_by_name() -> None:
    from torch.distributions import constraints

    from ppl_vae.core import LatentSpec

    model = LinearGaussian()
    assert vector_sites(model) == ({"z": 2}, {})
    model.latents |= {
        "c": LatentSpec(torch.Size(), constraints.integer_interval(0, 3)),
        "w": LatentSpec(torch.Size([2]), scope="global"),
        "p": LatentSpec(torch.Size([3]), constraints.simplex),
        "m": LatentSpec(torch.Size([2, 2])),
    }
    sites, skipped = vector_sites(model)
    assert sites == {"z": 2}
    assert {name: why.split()[0] for name, why in skipped.items()} == {
        "c": "discrete",
        "w": "shared",
        "p": "its",
        "m": "its",
    }
    del model.latents["z"]
    with pytest.raises(InputError, match=r"no latent site .*'c': discrete"):
        vector_sites(model)


@pytest.mark.parametrize("seed", range(5))
def test_the_adjusted_rand_index_counts_pairs(seed: int) -> None:
    """Against all pairs, one by one, and scikit-learn's."""
    from sklearn.metrics import adjusted_rand_score

    generator = np.random.default_rng(seed)
    one, other = generator.integers(0, 3, 30), generator.integers(0, 4, 30)
    pairs = list(combinations(range(30), 2))
    same = np.array([[part[i] == part[j] for part in (one, other)] for i, j in pairs])
    both, a, b = (same[:, 0] & same[:, 1]).sum(), same[:, 0].sum(), same[:, 1].sum()
    expected = a * b / len(pairs)
    wanted = (both - expected) / ((a + b) / 2 - expected)
    assert adjusted_rand(one, other) == pytest.approx(wanted, abs=1e-12)
    assert adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(one, other), abs=1e-12)
    assert adjusted_rand(one, (one + 1) % 3) == 1.0


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    centers = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    dead = 1e-3 * torch.randn(n, 1, generator=generator)
    return torch.cat([centers[y] + torch.randn(n, 2, generator=generator), dead], -1), y


def test_clusters_that_are_the_classes_score_1() -> None:
    (train, _), (test, y) = blobs(120, 0), blobs(60, 1)
    y[:5] = -1
    for found in clusters(train, test, y, seeds=2):
        assert max(found.scores) == 1.0  # a bad start may leave two in one
        assert found.count == 3
        assert found.assigned.shape == (55,)
        assert found.mean == pytest.approx(sum(found.scores) / 2)


def test_clusters_that_know_nothing_of_the_labels_score_0() -> None:
    """Over 5 seeds of labels at random: within 4 of the standard errors that the bootstrap states."""
    (train, _), (test, _) = blobs(120, 0), blobs(200, 1)
    for seed in range(5):
        y = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(10 + seed))
        for found in clusters(train, test, y, seeds=1, seed=seed):
            assert 0 < found.data_se < 0.05
            assert abs(found.mean) < 4 * found.data_se
            assert math.isnan(found.seed_se)
            assert found.se == found.data_se


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z, y: clusters(z, z, torch.zeros_like(y)), "y has 1 class"),
        (lambda z, y: clusters(z, z, y, count=1000), "count=1000 clusters of 30 codes"),
        (lambda z, y: clusters(z, z, torch.full_like(y, -1)), "y holds no label"),
        (lambda z, y: clusters(z, z[:, :1], y), "do not fit"),
        (lambda z, y: clusters(z, z, y.float()), "class numbers are whole numbers"),
        (lambda z, y: linear_probe(z, torch.zeros_like(y), z, y), "train_y has 1 class"),
        (lambda z, y: linear_probe(z, y[:3], z, y), "do not fit"),
    ],
)
def test_bad_labels_are_named(call: Callable[[Tensor, Tensor], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(*blobs(30, 0))


def two_gaussians(n: int, seed: int, distance: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    x = torch.randn(n, 3, generator=generator)
    x[:, 0] += distance * y
    return x, y


def test_a_probe_reaches_the_best_linear_rule() -> None:
    """Of two Gaussians at a distance d: Φ(d / 2), within 4 standard errors and what 4,000 training data leave."""
    distance = 2.0
    train, test = two_gaussians(4000, 0, distance), two_gaussians(4000, 1, distance)
    probe = linear_probe(*train, *test)
    best = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2)).item()
    assert probe.se == pytest.approx(math.sqrt(probe.accuracy * (1 - probe.accuracy) / 3999))
    assert abs(probe.accuracy - best) < 4 * probe.se
    # the largest principal component is the one that tells them apart
    part = linear_probe(*train, *test, features="a component", components=1)
    assert part.size == 1
    value, se = probe.less(part)
    assert value == pytest.approx(probe.accuracy - part.accuracy)
    assert abs(value) < 4 * se + 0.01


def test_missing_labels_are_left_out_of_a_probe() -> None:
    (x, y), (held, wanted) = two_gaussians(200, 0, 50.0), two_gaussians(100, 1, 50.0)
    y[:50], wanted[:30] = -1, -1
    probe = linear_probe(x, y, held, wanted)
    assert probe.right.shape == (70,)
    assert probe.accuracy == 1.0


def test_names_along_the_axes_are_within_the_picture() -> None:
    corners = torch.tensor([[-3.523, -2.968], [4.023, 3.668]], dtype=torch.float64)
    z = torch.cat([codes(40) * 0, corners @ torch.eye(2, 4, dtype=torch.float64)])
    plane = Plane2D(z[:, :2])
    labels, names = torch.arange(len(z)) % 10, tuple(map(str, range(10)))
    figure = aggregate({"a": z[:, :2], "b": z[:, :2]}, labels, names, plane, ("1", "2"), "codes of the data " * 8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axis in figure.axes:
        assert axis.xaxis.label.get_window_extent(canvas.get_renderer()).y0 >= 0
