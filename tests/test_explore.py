"""What `explore` writes of a latent space: which pictures and numbers, of which sites, under which conditions."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import guides, likelihoods, models, networks
from ppl_vae.core import Guide, LatentModel, LatentSpec
from ppl_vae.data import DataSet
from ppl_vae.errors import InputError
from ppl_vae.evaluate import encode
from ppl_vae.evaluate.latent_space import adjusted_rand, clusters, decode, interpolate, linear_probe
from ppl_vae.explore import _as_classes, explore
from ppl_vae.networks import Condition

SHAPE = (1, 4, 4)
PICTURES = ["interpolations", "traversals", "manifold", "aggregate", "clusters"]


def data(n: int, seed: int, labels: bool = True) -> DataSet:
    """Bars, the row being the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=generator)
    x = (torch.rand(n, *SHAPE, generator=generator) < 0.1).float()
    x[torch.arange(n), 0, y] = 1.0
    return DataSet.from_arrays(x, y if labels else None, name="bars")


def pair(model: str = "vae", guide: str = "mean-field", latent: int = 3) -> tuple[LatentModel, Guide]:
    torch.manual_seed(0)
    condition = Condition(classes=4) if model == "cvae" else None
    given: dict[str, Any] = {} if condition is None else {"condition": condition}
    decoder = networks.decoder("mlp", latent + (4 if condition else 0), SHAPE, 1, (8,))
    made = models.models.get(model)(decoder, likelihoods.Bernoulli(SHAPE), latent, **given)  # type: ignore[call-arg]
    encoder = networks.encoder("mlp", SHAPE, (8,), condition=condition)
    return made, guides.guides.get(guide)(made, encoder)  # type: ignore[call-arg]


def test_pictures_and_numbers_of_a_pair(tmp_path: Path) -> None:
    model, guide = pair()
    before = torch.get_rng_state()
    found = explore(model, guide, data(60, 0), data(30, 1), name="vae", seeds=1)
    assert torch.equal(before, torch.get_rng_state())
    assert list(found.figures) == PICTURES
    assert [(each.site, each.n) for each in found.numbers] == [("z", 30)] * 8
    by_name = {each.what: each for each in found.numbers}
    codes = encode(model, guide, data(30, 1)).means["z"]
    assert by_name["active units of 3, Var E[z | x] > 0.01"].value == int((codes.var(0) > 0.01).sum())
    on_codes, on_x = (by_name[f"linear probe on {name}: accuracy"] for name in ("codes, 3 numbers", "x, 16 numbers"))
    assert by_name["accuracy on codes less on x"].value == pytest.approx(on_codes.value - on_x.value)
    assert on_x.value == 1.0  # a class is a row of the picture
    written = found.write(tmp_path / "out")
    assert {path.name for path in written} == {*(f"{name}.png" for name in PICTURES), "explore.json", "explore.csv"}
    assert all(path.stat().st_size > 0 for path in written)
    values = json.loads((tmp_path / "out" / "explore.json").read_text())
    with (tmp_path / "out" / "explore.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == [each["what"] for each in values["numbers"]] == list(by_name)
    with pytest.raises(InputError, match="already; give another"):
        found.write(tmp_path / "out")


def test_clusters_and_probe_are_fitted_to_the_training_data() -> None:
    model, guide = pair()
    train, test = data(80, 0), data(61, 2)
    by_name = {each.what: each.value for each in explore(model, guide, train, test, seeds=2).numbers}
    codes, held = (encode(model, guide, each).means["z"] for each in (train, test))
    assert train.y is not None
    assert test.y is not None
    probe = "linear probe on codes, 3 numbers: accuracy"
    assert by_name[probe] == linear_probe(codes, train.y, held, test.y).accuracy
    assert by_name[probe] != linear_probe(held, test.y, held, test.y).accuracy
    found = clusters(codes, held, test.y, seeds=2, seed=0)
    wrong = clusters(held, held, test.y, seeds=2, seed=0)
    for right, other in zip(found, wrong, strict=True):
        value = by_name[f"{right.method}, {right.count} clusters: adjusted Rand index"]
        assert value == right.mean
        assert value != other.mean


def test_without_labels_there_is_a_sentence() -> None:
    found = explore(*pair(), data(60, 0, labels=False), data(30, 1, labels=False))
    assert list(found.figures) == PICTURES[:-1]
    assert [each.what for each in found.numbers] == ["active units of 3, Var E[z | x] > 0.01"]
    assert any("Without labels" in note for note in found.notes)
    assert math.isnan(found.numbers[0].se)
    assert found.numbers[0].to_json()["se"] is None


def test_every_layer_has_its_own() -> None:
    model, guide = pair("hierarchical-vae", "top-down", 4)
    found = explore(model, guide, data(60, 0), data(30, 1), seeds=1)
    assert list(found.figures) == [f"{name}_{site}" for site in ("z2", "z1") for name in PICTURES]
    assert {each.site for each in found.numbers} == {"z1", "z2"}


def shown(figure: Any, row: int, columns: int) -> list[Tensor]:
    """The images of a row, as numbers: 4 x 4, and a line between them."""
    picture = torch.as_tensor(figure.axes[0].images[0].get_array())
    return [picture[5 * row : 5 * row + 4, 5 * k : 5 * k + 4] for k in range(columns)]


def test_ways_are_decoded_codes_between_the_data_they_are_of() -> None:
    model, guide = pair("cvae", latent=2)
    test = data(30, 1)
    found = explore(model, guide, data(60, 0), test, seeds=1)
    assert any("under the class of the datum that a way starts from" in note for note in found.notes)
    images = shown(found.figures["interpolations"], 0, 11)
    # under classes both ends are of one class, here the first two of class 0
    a, b = torch.nonzero(test.y == 0).flatten().tolist()[:2]
    x = test.batch().x
    assert x is not None
    assert torch.allclose(images[0], x[a, 0].double())
    assert torch.allclose(images[-1], x[b, 0].double())
    codes = encode(model, guide, test).means["z"]
    under = test.batch(torch.tensor([a])).take(torch.zeros(9, dtype=torch.int64))
    wanted = decode(model, {"z": interpolate(codes[a], codes[b], 9)}, under)
    for image, mean in zip(images[1:-1], wanted, strict=True):
        assert torch.allclose(image, mean[0].double(), atol=1e-6)


def test_a_point_is_shown_once() -> None:
    found = explore(*pair(guide="delta"), data(60, 0), data(30, 1), seeds=1)
    assert [axis.get_title() for axis in found.figures["aggregate"].axes] == ["points m(x)"]


@pytest.mark.parametrize("latent", [1, 2])
def test_tables_have_lines_and_maps(latent: int) -> None:
    torch.manual_seed(0)
    model = models.VAE(networks.decoder("mlp", latent, (3,), 1, (8,)), likelihoods.Gaussian((3,)), latent)
    guide = guides.FullRank(model, networks.encoder("mlp", (3,), (8,)))
    sets = [DataSet.from_arrays(torch.randn(n, 3), name="table") for n in (40, 20)]
    found = explore(model, guide, *sets)
    assert list(found.figures) == PICTURES[:-1]
    lines = found.figures["traversals"].axes[0].lines
    assert len(lines) == 3
    assert len(found.figures["traversals"].axes) == latent


def test_other_sites_are_held_or_refused() -> None:
    model, guide = pair()
    model.latents = {"z": LatentSpec(torch.Size([3]), torch.distributions.constraints.simplex)}
    with pytest.raises(InputError, match="no latent space to look at"):
        explore(model, guide, data(60, 0), data(30, 1))


def test_clusters_take_the_number_of_the_class_they_share_most_with() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2]).numpy()
    assigned = torch.tensor([2, 2, 0, 0, 0, 1, 1, 1, 0]).numpy()
    named = _as_classes(assigned, y)
    assert named.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 1]
    assert adjusted_rand(y, named) == pytest.approx(adjusted_rand(y, assigned))
