"""Sweeps: which cells there are, what a killed one goes on with, and what bad input is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ppl_vae.cli import app
from ppl_vae.data import DataSplits, data_sets, sprites
from ppl_vae.errors import InputError
from ppl_vae.recipe import Recipe
from ppl_vae.sweep import Cell, sweep

SMALL = Recipe(data="sprites", latent=3, hidden=(8,), epochs=1, batch_size=64, compile=False)


@pytest.fixture(autouse=True)
def few_sprites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small grid in place of the whole."""

    def small(data_dir: Path, download: bool) -> DataSplits:
        whole = sprites(scales=2, orientations=4, positions=4)
        return DataSplits(whole.take(range(0, len(whole), 2)), whole.take(range(1, len(whole), 2)))

    monkeypatch.setitem(data_sets._parts, "sprites", small)


def test_every_objective_value_and_seed_is_scored(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = sweep(
        SMALL,
        ["beta", "btc", "capacity:gamma=10:steps=2"],
        {"beta": [1, 4], "capacity": [3]},
        2,
        out=tmp_path / "s",
        measured=["mig", "factor-vae"],
        points=150,
        pictures=False,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.names == ["beta=1", "beta=4", "btc=6", "capacity:gamma=10:steps=2=3"]
    assert not found.failed
    assert told[0] == (0, 8)
    assert told[-1] == (8, 8)
    assert found.columns == ["reconstruction", "kl", "mig", "factor-vae", "udr"]
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    assert [row["objective"] for row in results["rows"]] == found.names
    row = results["rows"][1]
    values = list(row["mig"]["by_seed"].values())
    assert row["mig"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["mig"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    for name in ("mig.png", "factor-vae.png", "udr.png", "trade-off-mig.png"):
        assert (tmp_path / "s" / name).stat().st_size > 5000
    run = json.loads((tmp_path / "s" / "cells" / "beta=4" / "seed-1" / "run" / "run.json").read_text())
    assert run["recipe"]["objective"] == "elbo:beta=4.0"
    assert run["recipe"]["seed"] == 1


def test_what_is_scored_is_left_alone_and_the_rest_is_done(tmp_path: Path) -> None:
    out = tmp_path / "s"
    first = sweep(SMALL, ["beta"], {"beta": [2]}, 1, out=out, measured=["mig"], points=150, pictures=False)
    score = Cell("beta", 2.0, 0).folder(out) / "score.json"
    before = score.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"holds a sweep; go on with it by resume=True"):
        sweep(SMALL, ["beta"], {"beta": [2]}, 2, out=out, measured=["mig"], points=150, pictures=False)
    more = sweep(SMALL, ["beta"], {"beta": [2]}, 2, out=out, measured=["mig"], points=150, pictures=False, resume=True)
    assert score.stat().st_mtime_ns == before
    assert more.values("beta=2", "mig")[0] == first.values("beta=2", "mig")[0]
    assert len(more.values("beta=2", "mig")) == 2
    with pytest.raises(InputError, match=r"holds a sweep with points=150, and 160 is asked for"):
        sweep(SMALL, ["beta"], {"beta": [2]}, 2, out=out, measured=["mig"], points=160, resume=True)


def test_a_cell_that_fails_stops_no_other(tmp_path: Path) -> None:
    recipe = SMALL.replace(guide="planar")
    found = sweep(recipe, ["btc", "beta"], None, 1, out=tmp_path / "s", measured=["mig"], points=150, pictures=False)
    assert "needs a guide that is a Gaussian" in found.failed[Cell("btc", 6.0, 0)]
    assert list(found.scores) == [Cell("beta", 1.0, 0)]
    assert "failed" in "".join(map(str, found.table().columns[3]._cells))


def test_each_cell_has_its_pictures(tmp_path: Path) -> None:
    """Those that a KL in closed form can be had for, and what they were drawn from."""
    recipe = SMALL.replace(epochs=2)
    found = sweep(recipe, ["capacity:steps=4"], {"capacity": [6]}, 1, out=tmp_path / "s", measured=["mig"], points=150)
    (cell,) = found.scores
    folder = cell.folder(tmp_path / "s")
    for name in ("kl.png", "traversals.png", "reconstructions.png"):
        assert (folder / name).stat().st_size > 5000
    with np.load(folder / "watch.npz") as held:
        assert held["kl"].shape == (2, 3)
        assert held["capacity"].shape == (2,)
    sweep(recipe.replace(guide="planar"), ["beta"], None, 1, out=tmp_path / "flow", measured=["mig"], points=150)
    assert not list((tmp_path / "flow").glob("cells/*/*/*.png"))


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_scored(tmp_path: Path) -> None:
    """Killed while a cell trains, with its worker processes: the scored cells stay, the one begun goes on from its
    checkpoint, and the figures are those of a sweep that was not killed."""
    out = tmp_path / "s"
    command = [
        *(sys.executable, "-m", "ppl_vae", "sweep", "--data", "sprites", "--size", "2000", "--objective", "beta,dip"),
        *("--seeds", "2", "--epochs", "4", "--hidden", "16", "--latent", "3", "--metrics", "mig", "--points", "500"),
        *("--workers", "2", "--no-compile"),
    ]
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob("cells/*/*/score.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    scored = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*/score.json")}
    assert 1 <= len(scored) < 4
    time.sleep(3.0)  # the workers have noticed
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*/score.json")} == scored
    subprocess.run([*command, "--out", str(out), "--resume"], check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == when for path, when in scored.items())
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    resumed, whole = (json.loads((f / "results.json").read_text())["rows"] for f in (out, tmp_path / "whole"))
    assert resumed == whole


def test_the_command(tmp_path: Path) -> None:
    arguments = [
        *("sweep", "--data", "sprites", "--objective", "beta,dip", "--values", "beta=1:4", "--seeds", "1", "--epochs"),
        *(
            "1",
            "--hidden",
            "8",
            "--latent",
            "3",
            "--metrics",
            "mig",
            "--points",
            "150",
            "--no-compile",
            "--no-pictures",
        ),
        *("--out", str(tmp_path / "s")),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("beta=1", "beta=4", "dip=10", "mig"):
        assert text in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--values", "beta:1"])
    assert wrong.exit_code == 2
    assert "must be names with numbers between colons" in wrong.stderr


def test_bad_input(tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(InputError, match="objective='betta' is not known; did you mean 'beta'"):
        sweep(SMALL, ["betta"], out=out)
    with pytest.raises(InputError, match="metric='mgi' is not known; did you mean 'mig'"):
        sweep(SMALL, ["beta"], out=out, measured=["mgi"])
    with pytest.raises(InputError, match="values are given for 'dip', which is not swept"):
        sweep(SMALL, ["beta"], {"dip": [1]}, out=out)
    with pytest.raises(InputError, match=r"values of beta=-1 must be a number, 0 or more"):
        sweep(SMALL, ["beta"], {"beta": [-1]}, out=out)
    with pytest.raises(InputError, match="data='digits' has no factors"):
        sweep(SMALL.replace(data="digits"), ["beta"], out=out)
    with pytest.raises(InputError, match="holds no sweep to go on with"):
        sweep(SMALL, ["beta"], out=out, resume=True)
    with pytest.raises(InputError, match="sets gamma, which is swept"):
        sweep(SMALL, ["factor:gamma=3"], out=out)
    assert not out.exists()
