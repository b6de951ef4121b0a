"""Inpainting: a guide trained under masks for a model that is held, and pictures filled in by the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import TINY, Done, call

from ppl_vae import InputError, fit, guides, likelihoods, models, networks
from ppl_vae.build import DataSpec
from ppl_vae.data import DataSet, DataSplits, load
from ppl_vae.evaluate import kl_to_complete
from ppl_vae.inpaint import read_mask, read_picture
from ppl_vae.recipe import Given, Recipe, prepare
from ppl_vae.renewal import frozen
from ppl_vae.runs import open_run
from ppl_vae.svi import CompiledSVI


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, and one for its model under masks."""
    folder = tmp_path_factory.mktemp("runs")
    base, holes = folder / "base", folder / "holes"
    assert call("train", *TINY, "--out", base).code == 0
    masks = ["--from", base, "--freeze-model", "--masks", "rectangles:share=0.3", "--guide", "full-rank"]
    assert call("train", *masks, "--epochs", "1", "--eval-particles", "5", "--out", holes).code == 0
    return {"base": base, "holes": holes}


def test_the_model_is_taken_over_and_held(runs: dict[str, Path]) -> None:
    base, holes = open_run(runs["base"]), open_run(runs["holes"])
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, holes.model.state_dict()[name]), name
    test = holes.data().test
    assert test.description == "digits test, fixed binarization (seed 777), behind masks (rectangles:share=0.3)"
    assert (holes.spec.masked, base.spec.masked) == (True, False)
    assert (holes.guide.encoder.mask, base.guide.encoder.mask) == (True, False)
    recipe = holes.config["recipe"]
    assert (recipe["model_from"], recipe["freeze_model"]) == (str(runs["base"].resolve()), True)
    assert (recipe["latent"], tuple(recipe["hidden"]), recipe["binarize"]) == (3, (8,), "dynamic")


def test_under_masks_a_guide_learns_what_the_whole_would_have_said() -> None:
    """KL(q(z | x̄) ‖ q₀(z | x)), q₀ the guide that the model was trained with, falls from q₀'s own by more than 4
    standard errors of the paired differences."""
    train, test = load("digits", binarize="dynamic", masks="rectangles:share=0.3")
    settings: dict[str, Any] = {"epochs": 20, "batch_size": 128, "lr": 1e-2, "progress": False}
    torch.manual_seed(0)
    model = models.VAE(networks.decoder("mlp", 3, train.shape, 1, (32,)), likelihoods.Bernoulli(train.shape), 3)
    first = guides.MeanField(model, networks.encoder("mlp", train.shape, (32,)))
    fit(model, first, train.unmasked(), **settings)
    guide = guides.MeanField(model, networks.encoder("mlp", train.shape, (32,), mask=True))
    with frozen(model):
        fit(model, guide, train, **settings)
    before, after = kl_to_complete(first, test), kl_to_complete(guide, test, first)
    gain = before.values - after.values
    assert after.draws is None
    assert float(gain.mean()) > 4 * float(gain.std()) / len(gain) ** 0.5
    assert after.estimate.mean < 0.7 * before.estimate.mean


def test_a_run_under_masks_is_resumed(runs: dict[str, Path], tmp_path: Path) -> None:
    masks = ["--from", runs["base"], "--freeze-model", "--masks", "halves", "--lr-schedule", "constant"]
    out = ["--eval-particles", "5", "--out"]
    assert call("train", *masks, "--epochs", "1", *out, tmp_path / "a").code == 0
    assert call("train", "--resume", "--epochs", "2", *out, tmp_path / "a").code == 0
    assert call("train", *masks, "--epochs", "2", *out, tmp_path / "b").code == 0
    a, b = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    for name, tensor in a.guide.state_dict().items():
        assert torch.equal(tensor, b.guide.state_dict()[name]), name


def test_a_model_taken_over_may_go_on_learning(runs: dict[str, Path]) -> None:
    base = open_run(runs["base"])
    ready = prepare(Recipe(model_from=str(runs["base"]), epochs=1))
    assert all(p.requires_grad for p in ready.model.parameters())
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, ready.model.state_dict()[name]), name


def test_masks_are_drawn_inside_of_the_graph_of_many_steps() -> None:
    """Three steps on the same rows, traced and eager: the same losses, so the graph draws the masks, and as they are
    drawn outside of it."""
    losses = {}
    for compiled in ("graph", False):
        ready = prepare(Recipe(masks="pixels", latent=2, hidden=(8,)))
        svi = CompiledSVI(
            ready.model, ready.guide, torch.optim.Adam, ready.objective, {"lr": 1e-2}, multi_step=3, compile=compiled
        )
        torch.manual_seed(0)
        losses[compiled] = svi.step(ready.data.train, rows=torch.arange(40).expand(3, 40))
    torch.testing.assert_close(losses["graph"], losses[False], rtol=1e-5, atol=1e-4)
    assert len(losses["graph"].unique()) == 3


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"freeze_model": True}, "freeze_model=True holds a model that was trained before: give model_from"),
        ({"masks": "holes"}, "masks='holes' is not known"),
        ({"masks": "halves:side=front"}, "whose side is one of"),
    ],
)
def test_bad_recipes(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(Recipe(**recipe))


def test_what_goes_into_a_network_is_standardized_by_what_is_observed() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([100.0, 0.0, -3.0])
    observed = torch.rand(500, 3) < 0.6
    observed[:, 0] |= ~observed.any(1)
    data = DataSet.from_arrays(x, observed=observed)
    ready = prepare(Recipe(hidden=(8,), latent=2), given=Given(data=DataSplits(data, data)))
    encoder = ready.guide.encoder  # type: ignore[attr-defined]
    for d in range(3):
        there = x[observed[:, d], d]
        assert float(encoder.loc[d]) == pytest.approx(float(there.mean()), rel=1e-4)
        assert float(encoder.scale[d]) == pytest.approx(float(there.std()), rel=1e-4)
    assert encoder.mask


# ---------------------------------------------------------------- the command


def picture(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return load("digits").test.x[3, 0].numpy() * 15


@pytest.fixture
def top(tmp_path: Path) -> Path:
    mask = np.full((8, 8), 255)
    mask[:4] = 0
    return picture(tmp_path / "mask.png", mask)


def numbers(*arguments: str | Path, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    done = call("inpaint", *arguments, "--particles", "50", "--draws", "3", "--out", out, "--overwrite")
    assert done.code == 0, done.err
    assert "of 50 particles" in done.out
    with np.load(out) as file:
        return dict(file)


def test_a_picture_is_filled_in(runs: dict[str, Path], pixels: Any, top: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "digit.png", pixels)
    made = numbers(runs["holes"], image, "--mask", top, out=tmp_path / "made.npz")
    assert made["x"].shape == (1, 1, 8, 8)
    assert np.array_equal(made["x"][0, 0], (pixels / 255 > 0.5).astype(np.float32))
    assert made["visible"].sum() == 32
    assert not made["visible"][0, 0, :4].any()
    assert made["draws"].shape == made["means"].shape == (3, 1, 1, 8, 8)
    assert np.array_equal(made["draws"][:, made["visible"]], np.broadcast_to(made["x"][made["visible"]], (3, 32)))
    assert 1.0 <= made["ess"][0] <= 50.0
    # the same from a colour file, from numbers, and by the mask's name
    colour = picture(tmp_path / "colour.png", np.repeat(pixels[..., None], 3, axis=-1))
    np.savez(tmp_path / "digit.npz", x=pixels.astype(np.uint8))
    np.savez(tmp_path / "seen.npz", visible=made["visible"][0])
    for given, mask in ((colour, top), (tmp_path / "digit.npz", tmp_path / "seen.npz"), (image, "halves:side=top")):
        again = numbers(runs["holes"], given, "--mask", str(mask), out=tmp_path / "again.npz")
        assert all(np.array_equal(made[name], again[name]) for name in made)
    done = call("inpaint", runs["holes"], image, "--mask", top, "--particles", "20", "--out", tmp_path / "made.png")
    assert done.code == 0, done.err
    assert (tmp_path / "made.png").stat().st_size > 5_000


def test_test_data_are_filled_in_behind_the_masks_of_the_training(runs: dict[str, Path], tmp_path: Path) -> None:
    made = numbers(runs["holes"], "-n", "20", out=tmp_path / "made.npz")
    assert made["x"].shape == (20, 1, 8, 8)
    for mask in ~made["visible"][:, 0]:
        assert np.array_equal(mask, mask.any(1)[:, None] & mask.any(0))
    assert call("inpaint", runs["holes"], "-n", "4", "--particles", "20").code == 0
    assert (runs["holes"] / "inpainting.png").stat().st_size > 5_000
    assert call("inpaint", runs["holes"]).code == 2  # it is there already


def bad(done: Done) -> str:
    assert done.code == 2, done.out
    return done.message


def test_what_cannot_be_filled_in(runs: dict[str, Path], pixels: Any, top: Path, tmp_path: Path) -> None:
    image, run = picture(tmp_path / "digit.png", pixels), runs["holes"]
    ours = ["--out", tmp_path / "made.png"]
    assert "was trained without masks: its encoder has never seen a hole" in bad(call("inpaint", runs["base"], image))
    large = picture(tmp_path / "large.png", np.zeros((9, 8)))
    assert "large.png' is 8 x 9 with 1 channel, and the run's data are 8 x 8 with 1 channel" in bad(
        call("inpaint", run, large, "--mask", top, *ours)
    )
    assert "large.png' is 8 x 9 with 1 channel" in bad(call("inpaint", run, image, "--mask", large, *ours))
    grey = picture(tmp_path / "grey.png", np.full((8, 8), 128))
    assert "has the value 128 at pixel (0, 0); a mask is 0 (black, hidden) and 255" in bad(
        call("inpaint", run, image, "--mask", grey, *ours)
    )
    black = picture(tmp_path / "black.png", np.zeros((8, 8)))
    assert "is False throughout in row 0" in bad(call("inpaint", run, image, "--mask", black, *ours))
    white = picture(tmp_path / "white.png", np.full((8, 8), 255))
    assert "hides nothing" in bad(call("inpaint", run, image, "--mask", white, *ours))
    assert "mask='halfs' is not known; did you mean 'halves'" in bad(
        call("inpaint", run, image, "--mask", "halfs", *ours)
    )
    assert "cannot be read as an image" in bad(call("inpaint", run, image, "--mask", tmp_path / "none.png", *ours))
    # told before the data are read
    gone = ["--data-dir", tmp_path / "gone", *ours]
    assert "large.png' is 8 x 9 with 1 channel" in bad(call("inpaint", run, "--mask", large, *gone))
    np.savez(tmp_path / "several.npz", visible=np.zeros((3, 9, 8), dtype=bool))
    assert "(3, 9, 8)" in bad(call("inpaint", run, "--mask", tmp_path / "several.npz", *gone))
    np.savez(tmp_path / "grey.npz", visible=np.ones((8, 8)))
    assert "needs a bool array 'visible'; it holds visible (float64)" in bad(
        call("inpaint", run, image, "--mask", tmp_path / "grey.npz", *ours)
    )
    (tmp_path / "notes.txt").write_text("x")
    assert "is neither a picture" in bad(call("inpaint", run, tmp_path / "notes.txt", *ours))


@pytest.mark.parametrize(
    ("units", "levels", "wanted"),
    [
        ("binary", 2, [0.0, 0.0, 1.0, 1.0]),
        ("unit", None, [0.0, 127 / 255, 128 / 255, 1.0]),
        ("unit", 17, [0.0, 8 / 16, 8 / 16, 1.0]),
        ("levels", 256, [0.0, 127.0, 128.0, 255.0]),
    ],
)
def test_pictures_come_in_the_units_of_the_run(units: str, levels: Any, wanted: list[float], tmp_path: Path) -> None:
    spec = DataSpec("made", "made", (1, 2, 2), levels=levels, units=units)
    x = read_picture(picture(tmp_path / "a.png", np.array([[0, 127], [128, 255]])), spec)
    torch.testing.assert_close(x.flatten(), torch.tensor(wanted))


def test_data_in_units_of_their_own_are_given_as_numbers(tmp_path: Path) -> None:
    spec = DataSpec("table", "table", (3,), units="real")
    np.savez(tmp_path / "row.npz", x=np.array([[5.0, -2.0, 1e3]]))
    assert read_picture(tmp_path / "row.npz", spec).tolist() == [[5.0, -2.0, 1e3]]
    assert read_mask("pixels", 6, spec).shape == (6, 3)
    images = DataSpec("made", "made", (1, 2, 2), units="real")
    with pytest.raises(InputError, match=r"are in units of their own: give an \.npz file"):
        read_picture(picture(tmp_path / "a.png", np.zeros((2, 2))), images)
