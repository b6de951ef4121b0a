import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

from ppl_vae import renewal
from ppl_vae.checkpoint import Checkpoints
from ppl_vae.cli import DEBUG, app
from ppl_vae.data import data_sets, load
from ppl_vae.diagnose import from_netcdf
from ppl_vae.errors import InputError
from ppl_vae.evaluate import encode, sample
from ppl_vae.guides import guides
from ppl_vae.likelihoods import likelihoods
from ppl_vae.models import models
from ppl_vae.networks import kinds
from ppl_vae.objectives import objectives
from ppl_vae.priors import priors
from ppl_vae.recipe import Recipe
from ppl_vae.runs import open_run

COMMANDS = [
    "compare",
    "train",
    "evaluate",
    "sample",
    "reconstruct",
    "inpaint",
    "encode",
    "explore",
    "diagnose",
    "export",
    "list",
]
TINY = ["--hidden", "8", "--latent", "3", "--epochs", "1", "--batch-size", "256", "--eval-particles", "5"]
SMALL = ["--hidden", "8", "--latent", "2", "--epochs", "1", "--eval-particles", "3"]


class Done:
    """A finished command: what it returned and wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def message(self) -> str:
        """The one line of an error, by which it must end."""
        assert "Traceback" not in self.err + self.out
        lines = self.err.strip().splitlines()
        assert lines, "an error says what is wrong"
        assert lines[-1].startswith("ppl-vae: ")
        assert "\x1b" not in self.err
        return lines[-1].removeprefix("ppl-vae: ")


def call(*arguments: str | Path) -> Done:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def good(*arguments: str | Path) -> Done:
    done = call(*arguments)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err  # no control characters where there is no terminal
    return done


def process(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "ppl_vae", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder of its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model of the digits."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    good("train", "--model", "cvae", "--out", run, *TINY)
    return run


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a table with names of columns and of classes."""
    root = tmp_path_factory.mktemp("table")
    run = root / "run"
    good("train", "--data", write_table(root / "cells.csv"), "--out", run, *SMALL)
    return run


def write_table(path: Path, size: int = 40, bad: str | None = None) -> Path:
    random = np.random.default_rng(0)
    rows = random.normal(size=(size, 3)).round(3).astype(str).tolist()
    if bad is not None:
        rows[4][1] = bad
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "mass", "age", "label"])
        writer.writerows([*row, "wild" if i % 2 else "mutant"] for i, row in enumerate(rows))
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# --- what there is ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    done = good("--help")
    for name in COMMANDS:
        assert name in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in good(command, "--help").out


def test_a_sweep_is_of_data_with_factors_unless_told() -> None:
    assert "[default: sprites]" in good("sweep", "--help").out
    assert "[default: digits]" in good("train", "--help").out


def test_options_default_to_the_recipe() -> None:
    commands: Any = typer.main.get_command(app)
    for name in ("train", "compare"):
        for option in commands.commands[name].params:
            if option.name in Recipe.names():
                default = option.default
                if option.name == "hidden":
                    default = tuple(int(width) for width in default.split(","))
                elif option.name == "data_dir":
                    default = str(default)
                assert default == getattr(Recipe(), option.name), option.name
    offered = {option.name for option in commands.commands["train"].params}
    assert set(Recipe.names()) <= offered  # nothing of a recipe is out of reach
    compared = {option.name for option in commands.commands["compare"].params}
    assert offered - compared == {"guide", "model_from", "freeze_model"}
    assert compared - offered == {"guides", "seeds", "fixed_decoder", "checks", "budget"}
    names = {name: [option.name for option in commands.commands[name].params] for name in ("train", "compare")}
    shared = [name for name in names["train"] if name in names["compare"]]
    assert [name for name in names["compare"] if name in shared] == shared  # in one order in both helps


def test_list_has_a_line_for_every_part() -> None:
    lines = [line.split() for line in good("list").out.splitlines()]
    # a guide and a prior may have one name
    listed = {(words[0], " ".join(words[1:])) for words in lines if words}
    for registry in (models, guides, priors, objectives, likelihoods, data_sets):
        for name in registry:
            assert (name, " ".join(registry.summary(name).split())) in listed
            assert registry.summary(name)
    assert set(kinds) <= {name for name, _ in listed}


def test_list_has_the_options_where_they_are_asked_for() -> None:
    assert "options:" not in good("list").out
    lines = [line.strip() for line in good("list", "--options").out.splitlines()]
    for name, options in (("low-rank", "rank"), ("hierarchical-vae", "layers, hidden"), ("renyi", "alpha, particles")):
        (line,) = (k for k, line in enumerate(lines) if line.split()[:1] == [name])
        assert lines[line + 1] == f"options: {options}"


# --- training --------------------------------------------------------------------------------------------------------


def test_another_prior_behind_an_autoencoder(folder: Path) -> None:
    good("train", *TINY, "--guide", "delta", "--beta", "0", "--out", "points")
    done = good("prior", "points", "--prior", "mixture:components=2", "--epochs", "2", "--out", "mixed")
    assert "The run is in mixed" in done.out
    assert "log p(x | m(x))" in done.out
    assert open_run(folder / "mixed").pair.guide == "delta"


def test_a_few_labels_are_trained_with_and_the_error_is_told(folder: Path) -> None:
    done = good("train", *TINY, "--model", "m2", "--labels", "50", "--out", "m2")
    text = " ".join(done.out.split())
    # the table's first column is folded where it is narrow
    assert re.search(r"classification [\d.]+ [\d.]+ % error of 359 labelled|classification error of 359 labelled", text)
    assert "SemiSupervised(bound=ELBO(" in text
    run = open_run(folder / "m2")
    assert "50 labels (seed 0)" in run.spec.description
    assert Recipe.from_json(run.config["recipe"]).labels == 50
    again = good("evaluate", "m2", "--particles", "5", "--out", "numbers.json")
    error = json.loads((folder / "numbers.json").read_text())["error"]
    assert f"{100 * error['mean']:.2f}" in again.out
    good("sample", "m2", "--label", "3", "-n", "4", "--out", "threes.png")
    good("sample", "m2", "-n", "20", "--out", "classes.npz")
    assert np.load(folder / "classes.npz")["y"].tolist() == [*range(10), *range(10)]
    good("encode", "m2")
    refused = call("train", *TINY, "--model", "m2")
    assert refused.code == 2
    assert "all 1438 of" in refused.err
    assert "--labels 100" in refused.err


def test_train_leaves_a_run_that_opens(folder: Path) -> None:
    done = good("train", *TINY)
    path = folder / "runs" / "digits-vae-mean-field"
    assert f"The run is in {path.relative_to(folder)}" in done.out
    assert "digits test, fixed binarization (seed 777): 359 data, 5 particles each" in " ".join(done.out.split())
    assert "epoch 1/1, ELBO" in done.err
    assert "nats/datum" in done.err
    run = open_run(path)
    assert (run.pair.latent, run.pair.hidden, run.pair.likelihood) == (3, (8,), "bernoulli")
    assert Recipe.from_json(run.config["recipe"]).epochs == 1
    assert run.data().train.description == "digits train, dynamic binarization"


def test_an_earlier_run_is_kept_unless_overwrite_is_given(folder: Path) -> None:
    good("train", "--out", "run", *TINY)
    before = contents(folder / "run")
    again = call("train", "--out", "run", "--seed", "1", *TINY)
    assert again.code == 2
    assert again.message.startswith("out='run' holds an earlier run")
    assert "--overwrite" in again.message
    # what cannot be trained replaces nothing either
    assert call("train", "--out", "run", "--overwrite", *TINY, "--batch-size", "5000").code == 2
    assert contents(folder / "run") == before
    good("train", "--out", "run", "--overwrite", "--seed", "1", *TINY)
    assert open_run("run").config["training"]["seed"] == 1


def test_resume_goes_on_and_needs_no_settings(folder: Path) -> None:
    settings = [*SMALL, "--lr-schedule", "constant", "--batch-size", "256"]
    good("train", "--out", "whole", *settings, "--epochs", "2")
    good("train", "--out", "parts", *settings)
    good("train", "--out", "parts", "--resume", "--epochs", "2")
    whole, parts = open_run("whole"), open_run("parts")
    assert [row["epoch"] for row in parts.history] == [1.0, 2.0]
    # the next resumption goes on to the epochs of this one
    assert Recipe.from_json(parts.config["recipe"]).epochs == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name])
    before = contents(folder / "parts")
    for option, value in (("--latent", "4"), ("--guide", "full-rank"), ("--lr", "0.1"), ("--data", "fake")):
        done = call("train", "--out", "parts", "--resume", option, value)
        assert done.code == 2
        assert "the run was started with" in done.message
    assert contents(folder / "parts") == before
    done = call("train", "--out", "nowhere", "--resume")
    assert done.code == 2
    assert "'nowhere' is not a run folder" in done.message
    done = call("train", "--out", "parts", "--resume", "--overwrite")
    assert done.code == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--objective", "iwae", "--particles", "3", "--clip", "1"],
        ["--objective", "renyi", "--alpha", "0.5", "--particles", "2", "--guide", "full-rank"],
        ["--beta", "0.5", "--warmup", "1", "--schedule", "alternating", "--guide-steps", "2"],
        ["--binarize", "none", "--patience", "1", "--lr-schedule", "constant"],
        ["--binarize", "fixed", "--network", "residual", "--precision", "bf16"],
        ["--binarize", "threshold", "--network", "conv"],
        ["--device", "cpu", "--seed", "3"],
    ],
)
def test_options_reach_the_training(options: list[str], folder: Path) -> None:
    good("train", "--out", "run", *TINY, *options)
    recipe = Recipe.from_json(open_run("run").config["recipe"])
    for name, value in zip(options[::2], options[1::2], strict=True):
        assert str(getattr(recipe, name.removeprefix("--").replace("-", "_"))) in (value, f"{value}.0")


def test_own_data_of_every_kind(folder: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(folder / "cells.npz", x=random.random((30, 6, 5)), y=np.arange(30) % 3)
    for i in range(12):
        path = folder / "pictures" / "ab"[i % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (5, 5, 3)).astype(np.uint8)).save(path / f"{i}.png")
    write_table(folder / "table.csv")
    for data, likelihood, shape in (
        ("cells.npz", "continuous-bernoulli", (1, 6, 5)),
        ("pictures", "discretized-logistic", (3, 5, 5)),
        ("table.csv", "gaussian-learned", (3,)),
    ):
        good("train", "--data", data, *SMALL)
        run = open_run(f"runs/{Path(data).stem}-vae-mean-field")
        assert (run.pair.likelihood, run.spec.shape) == (likelihood, shape)
        good("sample", run.path)
        good("reconstruct", run.path)


# --- what is done with a run -----------------------------------------------------------------------------------------


def test_evaluate_prints_and_writes_numbers(digits_run: Path, folder: Path) -> None:
    done = good("evaluate", digits_run, "--particles", "7", "--out", "numbers.json")
    assert "359 data, 7 particles each" in " ".join(done.out.split())
    assert "log p(x | y)" in done.out
    assert "bits/dim" in done.out
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["particles"] == 7
    assert f"{numbers['log_px']['mean']:.4f}" in done.out
    assert good("evaluate", digits_run, "--particles", "7").out == done.out  # the same seed
    assert "digits train" in " ".join(good("evaluate", digits_run, "--split", "train", "--particles", "2").out.split())
    done = call("evaluate", digits_run, "--out", "numbers.json")
    assert done.code == 2
    assert "is there already" in done.message


def test_sample_draws_pictures_and_numbers(digits_run: Path, folder: Path) -> None:
    assert good("sample", digits_run, "--label", "3", "--out", "threes.png").out.strip() == "threes.png"
    with Image.open("threes.png") as image:
        assert min(image.size) >= 300
        assert len(image.convert("L").getcolors(1 << 20)) > 20
    good("sample", digits_run, "--label", "3", "-n", "5", "--out", "threes.npz")
    with np.load("threes.npz", allow_pickle=False) as file:
        assert file["x"].shape == (5, 1, 8, 8)
        assert file["y"].tolist() == [3] * 5
        assert ((file["x"] > 0) & (file["x"] < 1)).all()  # means
    good("sample", digits_run, "-n", "5", "--draw", "--out", "draws.npz")
    with np.load("draws.npz", allow_pickle=False) as file:
        assert set(np.unique(file["x"])) == {0.0, 1.0}
        assert file["y"].tolist() == [0, 1, 2, 3, 4]
    good("sample", digits_run, "-n", "5", "--draw", "--out", "again.npz")
    assert load_npz("again.npz", "x") == load_npz("draws.npz", "x")
    good("sample", digits_run, "-n", "5", "--draw", "--seed", "1", "--out", "other.npz")
    assert load_npz("other.npz", "x") != load_npz("draws.npz", "x")
    before = Path("threes.png").read_bytes()
    done = call("sample", digits_run, "--out", "threes.png")
    assert done.code == 2
    assert "--overwrite" in done.message
    assert Path("threes.png").read_bytes() == before
    good("sample", digits_run, "--out", "threes.png", "--overwrite")
    assert Path("threes.png").read_bytes() != before
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


def load_npz(path: str, name: str) -> list[Any]:
    with np.load(path, allow_pickle=False) as file:
        values: list[Any] = file[name].tolist()
        return values


@pytest.mark.parametrize("label", ["10", "-1", "x"])
def test_a_label_out_of_range_is_refused(digits_run: Path, label: str, folder: Path) -> None:
    done = call("sample", digits_run, "--label", label, "--out", "a.png")
    assert done.code == 2
    assert done.message.startswith(f"label={label!r}")
    assert "9" in done.message
    assert list(folder.iterdir()) == []


def test_a_label_needs_classes(table_run: Path, folder: Path) -> None:
    done = call("sample", table_run, "--label", "0", "--out", "a.png")
    assert done.code == 2
    assert "--model cvae" in done.message
    assert list(folder.iterdir()) == []


def test_reconstruct_shows_data_and_their_means(digits_run: Path) -> None:
    good("reconstruct", digits_run, "--out", "r.png")
    with Image.open("r.png") as image:
        assert image.size[0] > 1000
    good("reconstruct", digits_run, "-n", "20", "--out", "r.npz")
    with np.load("r.npz", allow_pickle=False) as file:
        assert file["x"].shape == (20, 1, 8, 8)
        assert np.bincount(file["y"]).tolist() == [2] * 10


def test_explore_writes_pictures_and_a_table(digits_run: Path) -> None:
    """From less than all the data would give, on a pair that is hardly trained."""
    done = good("explore", digits_run, "--seeds", 1, "--out", "space")
    assert "adjusted Rand index" in done.out
    assert "linear probe on codes" in done.out
    names = {path.name for path in Path("space").iterdir()}
    pictures = ("interpolations", "traversals", "manifold", "aggregate", "clusters")
    assert names == {*(f"{name}.png" for name in pictures), "explore.json", "explore.csv"}
    again = call("explore", digits_run, "--out", "space")
    assert again.code == 2
    assert "there already" in again.message


def test_encode_writes_means_scales_labels_and_rows(digits_run: Path) -> None:
    good("encode", digits_run, "--out", "codes.npz")
    run = open_run(digits_run)
    test = run.data().test
    codes = encode(run.model, run.guide, test, seed=0)
    with np.load("codes.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["means"], codes.means["z"])
        np.testing.assert_array_equal(file["scales"], codes.scales["z"])
        np.testing.assert_array_equal(file["labels"], test.y)
        np.testing.assert_array_equal(file["rows"], np.arange(359))
        assert file["class_names"].tolist() == [str(i) for i in range(10)]
        assert str(file["data"]) == test.description
        assert (file["scales"] > 0).all()
    done = call("encode", digits_run, "--out", "codes.txt")
    assert done.code == 2
    assert ".npz" in done.message


def test_export_writes_what_arviz_opens(digits_run: Path, folder: Path) -> None:
    good("export", digits_run, "posterior.nc", "--data-points", "6", "--draws", "11")
    data = from_netcdf("posterior.nc")
    assert dict(data["posterior"]["z"].sizes) == {"chain": 1, "draw": 11, "datum": 6, "z_dim": 3}
    assert data["observed_data"]["x"].shape == (6, 1, 8, 8)
    for option in ("--data-points", "--draws"):
        done = call("export", digits_run, "other.nc", option, "0")
        assert done.code == 2
        assert option.removeprefix("--").replace("-", "_") in done.message
    assert call("export", digits_run, "draws.csv").message == "file='draws.csv': draws are written as netCDF, .nc"
    assert [path.name for path in folder.iterdir()] == ["posterior.nc"]


def test_tables_come_back_as_tables(table_run: Path) -> None:
    good("sample", table_run, "-n", "9", "--out", "new.csv")
    good("reconstruct", table_run, "--out", "means.csv")
    with open("new.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["area", "mass", "age"]
    assert np.array(rows[1:], dtype=float).shape == (9, 3)
    with open("means.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["area", "mass", "age", "label"]
    assert len(rows) == 1 + 8  # the test part
    for command in ("sample", "reconstruct"):
        good(command, table_run, "--out", f"{command}.png")
        with Image.open(f"{command}.png") as image:
            assert min(image.size) >= 300


def test_results_are_written_into_the_run_by_default(table_run: Path) -> None:
    for command, name in (("sample", "samples.png"), ("reconstruct", "reconstructions.png"), ("encode", "codes.npz")):
        good(command, table_run)
        assert (table_run / name).stat().st_size > 100
        assert call(command, table_run).code == 2
        good(command, table_run, "--overwrite")


# --- comparing -------------------------------------------------------------------------------------------------------


def test_compare_prints_a_table_and_writes_the_results(folder: Path) -> None:
    done = good("compare", *TINY)
    assert "− mean-field" in done.out
    assert re.search(r"Seconds: import \d+\.\d, load", done.out)
    assert (
        "Written to runs/compare: comparison.html, comparison.nc, latent.png, reconstructions.png, results.json, "
        "samples.png, training" in done.out
    )
    assert [line.partition(":")[0] for line in done.err.splitlines()] == [
        "mean-field",
        "evaluate mean-field",
        "full-rank",
        "evaluate full-rank",
    ]
    good("evaluate", folder / "runs" / "compare" / "full-rank", "--particles", "2")
    done = call("compare", *TINY)
    assert done.code == 2
    assert "--overwrite" in done.message
    good("compare", *TINY, "--overwrite", "--guides", " full-rank , mean-field ")


def test_compare_of_a_table_draws_its_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "UPDATES", 3)
    table = write_table(folder / "cells.csv")
    done = good("compare", "--data", table, *SMALL, "--latent", "1", "--guides", "mean-field,full-rank,local")
    assert "could not be made" not in done.out
    assert len(list((folder / "runs" / "compare").glob("*.png"))) == 4
    draws = from_netcdf(folder / "runs" / "compare" / "comparison.nc")
    assert draws["observed_data"]["x"].coords["feature"].values.tolist() == ["area", "mass", "age"]


def test_compare_with_options_seeds_and_resumption(folder: Path) -> None:
    tiny = [*SMALL, "--batch-size", "256"]
    done = good("compare", *tiny, "--guides", "mean-field,low-rank:rank=1")
    assert "low-rank:rank=1" in done.out
    results = folder / "runs" / "compare"
    assert open_run(results / "low-rank-rank=1").pair.guide_options == {"rank": 1}
    first = {row["guide"]: row["test"]["elbo"] for row in json.loads((results / "results.json").read_text())["rows"]}
    weights = (results / "mean-field" / "run.json").read_bytes()
    done = call("compare", *tiny, "--resume", "--lr", "0.1", "--guides", "mean-field")
    assert done.code == 2
    assert "lr=0.1: the run" in done.message
    assert "was started with 0.005" in done.message
    done = good("compare", *tiny, "--resume", "--seeds", "2", "--guides", "mean-field,low-rank:rank=1")
    assert "Seeds: 0, 1." in done.out
    assert "mean over the seeds" in " ".join(done.out.split())
    # what was there is not trained again
    assert (results / "mean-field-seed-0" / "run.json").read_bytes() == weights
    assert [line for line in done.err.splitlines() if "epoch" in line and "seed 0" in line] == []
    rows = json.loads((results / "results.json").read_text())["rows"]
    assert {row["guide"]: row["test"]["elbo"] for row in rows if row["seed"] == 0} == first
    assert sorted(p.name for p in results.iterdir() if p.is_dir()) == sorted(
        f"{guide}-seed-{seed}" for guide in ("mean-field", "low-rank-rank=1") for seed in (0, 1)
    )


def test_compare_over_the_model_of_a_run(folder: Path) -> None:
    good("train", *SMALL, "--out", "run", "--likelihood", "bernoulli")
    done = good("compare", "--fixed-decoder", "run", "--epochs", "1", "--eval-particles", "50", "--out", "held")
    assert "KL(q‖p(z|x" in done.out  # a narrow table breaks the line after it
    assert "not trained with them: that of the run 'run'" in " ".join(done.out.split())
    mine, theirs = open_run("held/full-rank"), open_run("run")
    assert (mine.pair.latent, mine.pair.hidden) == (2, (8,))
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, mine.model.state_dict()[name])
    assert (folder / "held" / "posterior.png").exists()  # z has two dimensions
    done = call("compare", "--fixed-decoder", "run", "--latent", "5", "--out", "other")
    assert (done.code, done.message) == (2, "latent=5: the model of 'run' has 2; leave it out")


def test_a_guide_with_parameters_for_each_datum_is_fitted_to_the_test_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "UPDATES", 3)
    good("train", "--guide", "local:family=full-rank", *SMALL, "--out", "run")
    done = good("evaluate", "run", "--particles", "20")
    assert "359 data" in done.out
    good("evaluate", "run", "--particles", "2", "--split", "train")
    good("encode", "run")
    good("reconstruct", "run", "-n", "3", "--out", "r.npz")
    good("export", "run", "draws.nc", "--data-points", "4", "--draws", "3")
    good("sample", "run", "-n", "2", "--out", "s.npz")


@pytest.mark.slow
def test_the_command_reaches_the_figures_that_the_readme_states(folder: Path) -> None:
    """`ppl-vae compare` as it is: mean-field and full-rank reach an ELBO of -22.567 and -22.491, a log p(x) of -22.205
    and -22.195 nats a datum. Over five seeds these range over 0.05."""
    done = good("compare")
    results = json.loads((folder / "runs" / "compare" / "results.json").read_text())
    assert results["settings"]["epochs"] == 200
    for row in results["rows"]:
        assert row["error"] is None
        test = row["test"]
        assert test["data"] == "digits test, fixed binarization (seed 777)"
        assert test["particles"] == 1000
        # independent pixels reach -27.5
        assert test["log_px"]["mean"] > -22.3
        assert test["elbo"]["mean"] > -22.65
        assert test["log_px"]["se"] < 0.01
        assert test["active_units"]["count"] >= 4
        assert test["khat"]["above"] < 0.15
    assert [row["guide"] for row in results["rows"]] == ["mean-field", "full-rank"]
    stated = {"mean-field": (-22.567, -22.205), "full-rank": (-22.491, -22.195)}
    for row in results["rows"]:
        elbo, log_px = stated[row["guide"]]
        assert row["test"]["elbo"]["mean"] == pytest.approx(elbo, abs=0.06)
        assert row["test"]["log_px"]["mean"] == pytest.approx(log_px, abs=0.06)
    assert all(difference["elbo"]["mean"] > -0.1 for difference in results["differences"])
    assert len(results["differences"]) == 1
    assert f"{results['rows'][0]['test']['elbo']['mean']:.3f}" in done.out


# --- what cannot be done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --model vea", "model='vea' is not known; did you mean 'vae'"),
        ("train --guide meanfield", "guide='meanfield' is not known; did you mean 'mean-field'"),
        ("train --objective elob", "objective='elob' is not known; did you mean 'elbo'"),
        ("train --likelihood bernouli", "likelihood='bernouli' is not known; did you mean 'bernoulli'"),
        ("train --network cnv", "network='cnv' is not known; did you mean 'conv'"),
        ("train --data digts", "data='digts' is not known; did you mean 'digits'"),
        ("train --data nothing.csv", "data='nothing.csv': there is no such file or folder"),
        ("train --data mnist --no-download --data-dir empty", "data='mnist': data_dir=.*no readable copy.*allow"),
        ("train --binarize static", "binarize='static' is not known.*dynamic"),
        ("train --binarize none --likelihood bernoulli", "likelihood='bernoulli' is of 0 and 1.*'dynamic'"),
        ("train --schedule turns", "schedule='turns' is not known.*alternating"),
        ("train --lr-schedule steps", "lr_schedule='steps' is not known.*cosine"),
        ("train --precision 16", "precision='16' is not known.*bf16"),
        ("train --device cuda:99", "device='cuda:99' is not there.*'cpu'"),
        ("train --device gpu", "device='gpu' is not known"),
        ("train --beta -1", "beta=-1.0 must be a number, 0 or more"),
        ("train --beta nan", "beta=nan"),
        ("train --particles 0", "particles=0 must be a whole number, 1 or more"),
        ("train --objective renyi --alpha 1", "alpha=1 is the ELBO.*'elbo'"),
        ("train --alpha 0.5", "alpha=0.5 does not fit objective='elbo'"),
        ("train --objective iwae --beta 2", "beta=2.0 does not fit objective='iwae'"),
        ("train --objective iwae --warmup 2", "warmup=2 raises the weight of a KL, and IWAE has none"),
        ("train --batch-size 1439", "batch_size=1439 is larger than the data, 1438.*give 1438 or less"),
        ("train --batch-size 0", "batch_size=0"),
        ("train --epochs 0", "epochs=0"),
        ("train --lr 0", "lr=0.0 must be a positive number"),
        ("train --latent 0", "latent=0"),
        ("train --hidden 8,x", "hidden='8,x' must be whole numbers with commas"),
        ("train --hidden 0", r"hidden=\(0,\)"),
        ("train --clip -1", "clip=-1.0"),
        ("train --patience 0", "patience=0"),
        ("train --seed -1", "seed=-1"),
        ("train --devices 0", "devices=0"),
        ("train --eval-particles 0", "eval_particles=0"),
        ("train --resume", "'runs/digits-vae-mean-field' is not a run folder"),
        ("compare --guides mean-field,fullrank", "guide='fullrank' is not known; did you mean 'full-rank'"),
        ("compare --guides ,", "guides=',' must be names with commas"),
        ("compare --guides low-rank:rnak=3", "rnak=3 does not fit guide='low-rank', which takes rank"),
        ("compare --guides low-rank:rank=x", "rank=x does not fit guide='low-rank', whose rank is a whole number"),
        ("compare --guides low-rank:rank=0", "rank=0 must be a whole number, 1 or more"),
        ("compare --guides low-rank:3", "guide='low-rank:3' must be a name, or a name with options"),
        ("compare --seeds 0", "seeds=0 must be how many"),
        ("compare --fixed-decoder nothing", "'nothing' is not a run folder"),
        ("compare --resume", "out='runs/compare' holds no run of a comparison to go on with"),
        ("compare --resume --overwrite", "resume=True goes on with a comparison and overwrite=True"),
        ("compare --objective iwae:beta=2", "beta=2 does not fit objective='iwae', which takes particles"),
        ("compare --objective iwae:particles=2 --particles 3", "says particles, and so does particles="),
        ("train --guide mean-field:rank=3", "rank=3 does not fit guide='mean-field', which takes no options"),
        ("train --model vae:layers=3", "layers=3 does not fit model='vae'"),
        ("compare --guides mean-field,mean-field", "names one twice"),
        ("compare --eval-particles 0", "eval_particles=0"),
        ("compare --batch-size 1439", "batch_size=1439 is larger"),
        ("evaluate nothing", "'nothing' is not a run folder"),
        ("sample nothing", "'nothing' is not a run folder"),
        ("reconstruct nothing", "'nothing' is not a run folder"),
        ("encode nothing", "'nothing' is not a run folder"),
        ("export nothing a.nc", "'nothing' is not a run folder"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(arguments: str, message: str, folder: Path) -> None:
    done = call(*arguments.split())
    assert done.code == 2
    assert re.search(message, done.message), done.message
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate RUN --particles 0", "particles=0"),
        ("evaluate RUN --split validation", "split='validation' is not known.*test"),
        ("evaluate RUN --device cuda:99", "device='cuda:99' is not there"),
        ("sample RUN -n 0", "n=0"),
        ("sample RUN --out a.docx", "a.docx.*pictures are written as"),
        ("reconstruct RUN -n 0", "n=0"),
        ("reconstruct RUN --split all", "split='all'"),
        ("encode RUN --split all", "split='all'"),
    ],
)
def test_bad_input_beside_a_run(digits_run: Path, command: str, message: str, folder: Path) -> None:
    done = call(*(str(digits_run) if word == "RUN" else word for word in command.split()))
    assert done.code == 2
    assert re.search(message, done.message), done.message
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("cell", "shown"), [("inf", "'inf'"), ("many", "'many'")])
def test_a_bad_cell_is_named(cell: str, shown: str, folder: Path) -> None:
    path = write_table(folder / "cells.csv", bad=cell)
    done = call("train", "--data", path, *SMALL)
    assert done.code == 2
    assert f"line 6, column 'mass': {shown} is no finite number" in done.message
    assert [p.name for p in folder.iterdir()] == ["cells.csv"]


def test_bad_files_are_named(folder: Path) -> None:
    write_table(folder / "one.csv", size=1)
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.savez(folder / "labels.npz", x=np.zeros((4, 3)), y=np.array([0.0, 1.0, 0.0, 1.0]))
    np.savez(folder / "range.npz", x=np.zeros((4, 3)), y=np.array([0, 1, -2, 1]))
    np.savez(folder / "shape.npz", x=np.zeros((4, 3)), y=np.array([0, 1]))
    (folder / "empty").mkdir()
    for data, message in (
        ("one.csv", "holds one datum; at least two"),
        ("broken.npz", "broken.npz"),
        ("labels.npz", "labels are whole numbers"),
        ("range.npz", "row 2 is -2"),
        ("shape.npz", "2 rows where x has 4|y of 'shape.npz'"),
        ("empty", "holds no image files"),
    ):
        done = call("train", "--data", data, *SMALL)
        assert done.code == 2
        assert re.search(message, done.message), done.message
    assert not (folder / "runs").exists()


def test_usage_errors_are_as_usual(folder: Path) -> None:
    for arguments in (["train", "--frobnicate"], ["train", "--epochs", "many"], ["nothing"], ["evaluate"]):
        done = call(*arguments)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert "Usage" in done.err
    assert list(folder.iterdir()) == []


def test_broken_runs_are_refused(digits_run: Path, folder: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(digits_run, folder / name))

    other = broken("other")
    config = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**config, "format": 99}))
    cut = broken("cut")
    (weights,) = cut.rglob("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    text = broken("text")
    (text / "run.json").write_text("{")
    strange = broken("strange")
    (strange / "run.json").write_text(json.dumps({**config, "pair": {**config["pair"], "guide": "nothing"}}))
    empty = broken("empty")
    shutil.rmtree(empty / "checkpoints")
    for run, message in (
        (other, "format 99"),
        (cut, "not a whole safetensors file"),
        (text, "cannot be read as JSON"),
        (strange, "guide='nothing' is not known"),
        (empty, "no complete checkpoint"),
    ):
        for command in (["evaluate", run], ["sample", run, "--out", "a.png"], ["encode", run, "--out", "a.npz"]):
            done = call(*command)
            assert done.code == 2
            assert message in done.message
    assert not (folder / "a.png").exists()
    assert not (folder / "a.npz").exists()


def test_data_that_are_gone_are_named(folder: Path) -> None:
    path = write_table(folder / "cells.csv")
    good("train", "--data", path, "--out", "run", *SMALL)
    path.unlink()
    done = call("evaluate", "run")
    assert done.code == 2
    assert "cells.csv" in done.message
    good("sample", "run", "--out", "new.csv")  # needs none
    assert Path("new.csv").read_text().startswith("x0,x1,x2")


def test_a_full_disk_is_said_and_nothing_half_written_is_left(
    digits_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        done = call("encode", digits_run, "--out", "codes.npz")
        assert (done.code, done.message) == (1, "[Errno 28] No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        done = call("compare", *TINY)
        assert done.code == 1
        assert "No space left on device" in done.message
    assert list(folder.iterdir()) == []


def test_a_loss_that_becomes_infinite_names_step_and_rows() -> None:
    done = call("train", "--out", "run", *TINY, "--lr", "1e30", "--batch-size", "32", "--lr-schedule", "constant")
    assert done.code == 1
    assert re.search(r"step \d+", done.message), done.message
    assert "rows" in done.message


def test_what_nobody_has_foreseen_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise TypeError("a surprise")

    monkeypatch.setattr("ppl_vae.display.make_console", surprise)
    done = call("list")
    assert (done.code, done.message) == (1, f"TypeError: a surprise ({DEBUG}=1 shows where)")
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(TypeError, match="a surprise"):
        call("list")


# --- in processes of their own ---------------------------------------------------------------------------------------


def test_python_m_ppl_vae(folder: Path) -> None:
    done = process("train", "--model", "vea", cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'vae'" in done.message
    assert list(folder.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m ppl_vae list | head -n 1", shell=True, cwd=folder, capture_output=True, text=True
    )
    assert done.stdout == "Models\n"
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(folder: Path) -> None:
    command = [sys.executable, "-m", "ppl_vae", "train", "--out", "run", "--hidden", "8", "--latent", "2"]
    command += ["--epochs", "100000", "--lr-schedule", "constant", "--eval-particles", "2", "--no-compile"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not (folder / "run" / "metrics.csv").exists() or len(read_epochs(folder / "run")) < 2:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    stopped = Done(running.returncode, out, err)
    assert stopped.code == 130
    assert re.search(r"stopped in epoch \d+ of 100000 with a checkpoint", stopped.message)
    assert stopped.message.endswith("go on with: ppl-vae train --resume --out run")
    epochs = len(read_epochs(folder / "run"))
    good("train", "--resume", "--out", "run", "--epochs", str(epochs + 1))
    assert len(open_run("run").history) == epochs + 1


def read_epochs(run: Path) -> list[str]:
    return (run / "metrics.csv").read_text().splitlines()[1:]


def test_the_test_part_is_the_protocols() -> None:
    """What all figures are of."""
    test = load("digits", binarize="dynamic").test
    assert (test.binarize, test.binarize_seed, len(test)) == ("fixed", 777, 359)


def test_the_version() -> None:
    from importlib.metadata import version

    assert good("--version").out.strip() == f"ppl-vae {version('ppl_vae')}"


def test_prior_fits_another_prior_to_a_run(table_run: Path, folder: Path) -> None:
    options = ("--epochs", "2", "--eval-particles", "20")
    good("prior", table_run, "--prior", "mixture:components=2", "--out", "mixed", *options)
    run, before = open_run("mixed"), open_run(table_run)
    assert run.pair.prior_label == "mixture:components=2"
    assert run.model.prior.components == 2  # type: ignore[union-attr]
    ours, theirs = run.guide.state_dict(), before.guide.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    good("sample", "mixed", "--out", "drawn.csv")
    good("evaluate", "mixed", "--particles", "20")
    done = call("prior", table_run, "--prior", "mixture:components=2", "--out", "mixed", *options)
    assert done.code == 2
    assert "holds an earlier run" in done.message
    done = call("train", "--resume", "--out", "mixed")
    assert done.code == 2
    assert "was not written by `ppl-vae train`" in done.message
    done = call("prior", table_run, "--prior", "vamp", "--out", "vamped")
    assert done.code == 2
    assert "is made of the guide" in done.message


def test_a_model_with_the_guides_own_prior_is_trained_and_cannot_be_held(folder: Path) -> None:
    table = write_table(folder / "cells.csv")
    good("train", "--data", table, "--prior", "vamp:components=3", "--out", "run", *SMALL)
    assert open_run("run").pair.prior_options == {"components": 3}
    good("sample", "run", "--out", "drawn.csv")
    done = call("compare", "--fixed-decoder", "run", "--guides", "mean-field", "--out", "compared")
    assert done.code != 0
    assert "is made of its own guide" in done.message
    assert "by `ppl-vae prior RUN --prior mixture`" in done.message
    assert "by `ppl-vae prior run" in call(
        "train", "--from", "run", "--guide", "full-rank", "--out", "no"
    ).message.replace(str(folder) + "/", "")
    refused = call("train", "--data", table, "--prior", "vamp", "--guide", "semi-amortized", "--out", "no", *SMALL)
    assert "SemiAmortized runs the model to find its q" in refused.message


def test_samples_have_what_all_data_share_from_the_guide(folder: Path) -> None:
    table = write_table(folder / "cells.csv")
    good("train", "--data", table, "--model", "bayesian-decoder", "--out", "run", *SMALL)
    good("sample", "run", "-n", "5", "--seed", "3", "--out", "drawn.npz")
    run = open_run("run")
    wanted = sample(run.model, 5, guide=run.guide, seed=3).draw
    np.testing.assert_array_equal(np.load("drawn.npz")["x"], wanted)


def test_diagnose_writes_a_page_numbers_and_draws(digits_run: Path) -> None:
    checks = ["--checks", "sbc,latent_checks", "--budget", "quick"]
    files = ["--out", "page.html", "--json", "numbers.json", "--netcdf", "all.nc"]
    done = good("diagnose", digits_run, *checks, *files)
    assert "dimensions" in done.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "ppl-vae diagnose" in page
    assert "--checks sbc,latent_checks --budget quick --seed 0" in page
    numbers = json.loads(Path("numbers.json").read_text(encoding="utf-8"))
    assert numbers["seed"] == 0
    assert set(numbers["findings"]) | set(numbers["left_out"]) == {"sbc", "latent_checks"}
    assert json.loads(from_netcdf("all.nc").attrs["diagnosis"])["verdicts"] == numbers["verdicts"]
    again = good("diagnose", digits_run, *checks, "--out", "again.html", "--json", "again.json", "--quiet")
    assert again.out == "again.html\n"
    assert json.loads(Path("again.json").read_text(encoding="utf-8"))["verdicts"] == numbers["verdicts"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--checks", "kaht"], "checks='kaht' is not known; did you mean 'khat'?"),
        (
            ["--budget", "huge"],
            "budget='huge' is not known; did you mean 'thorough'? choose one of: quick, standard, thorough",
        ),
        (["--data-points", "0"], "data_points=0 must be a whole number, 1 or more"),
        (["--out", "page.pdf"], "out='page.pdf' must end in .html"),
        (["--split", "all"], "split='all' is not known; choose one of: test, train"),
    ],
)
def test_diagnose_refuses_what_it_cannot_do(digits_run: Path, wrong: list[str], message: str) -> None:
    done = call("diagnose", digits_run, *wrong)
    assert done.code == 2
    assert message in done.message


def test_diagnose_says_what_to_do_with_a_run_of_another_version(digits_run: Path, folder: Path) -> None:
    shutil.copytree(digits_run, folder / "old")
    config = json.loads((folder / "old" / "run.json").read_text(encoding="utf-8"))
    (folder / "old" / "run.json").write_text(json.dumps({**config, "format": 0}), encoding="utf-8")
    done = call("diagnose", "old")
    assert done.code == 2
    assert "has format 0" in done.message
    assert f"open it with the version that wrote it, {config['versions']['ppl_vae']}" in done.message


@pytest.mark.parametrize(("flag", "expected"), [("--compile", True), ("--no-compile", False), (None, "auto")])
def test_compile_reaches_the_training(
    flag: str | None, expected: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*args: object, **options: object) -> None:
        seen.append(options["compile"])
        raise InputError("enough")

    monkeypatch.setattr("ppl_vae.recipe.fit", look)
    assert call("train", "--out", "run", *TINY, *([flag] if flag else [])).message.endswith("enough")
    assert seen == [expected]
