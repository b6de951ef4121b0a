"""Run folders opened again: the same outputs in another process, and what is refused."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trained
from torch import Tensor

from ppl_vae import InputError, RunError
from ppl_vae.build import DataSpec, PairConfig, build, build_objective
from ppl_vae.checkpoint import read_json, write_json
from ppl_vae.data import DataSplits, load
from ppl_vae.fit import fit
from ppl_vae.runs import load_weights, open_run, run_config

DIGITS: dict[str, Any] = {"data": "digits", "binarize": "dynamic"}


def splits(options: dict[str, Any] = DIGITS) -> DataSplits:
    given = dict(options)
    return load(given.pop("data"), **given)


def make(folder: Path, options: dict[str, Any] = DIGITS, **more: Any) -> DataSplits:
    data = splits(options)
    config = PairConfig(latent=3, hidden=(16,), **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, guide = build(config, data.train)
    record = run_config(config, data.train, options, "elbo", {"beta": 2.0, "particles": None})
    objective = build_objective("elbo", beta=2.0)
    fit(
        model,
        guide,
        data.train,
        objective,
        epochs=2,
        batch_size=128,
        lr=0.01,
        run_dir=folder,
        config=record,
        **trained.QUIET,
    )
    return data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for each guide and for the conditional model, trained once."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "mean-field")
    make(folder / "full-rank", guide="full-rank", likelihood="bernoulli")
    make(folder / "cvae", model="cvae")
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(runs / "mean-field", tmp_path / "run")
    return tmp_path / "run"


CODE = """
import json, sys, torch
from pathlib import Path
from ppl_vae import Batch
from ppl_vae.runs import open_run
from safetensors.torch import save_file
torch.set_num_threads(1)
out = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    run = open_run(path)
    torch.manual_seed(3)
    batch = run.data().test.batch(torch.arange(20))
    with torch.no_grad():
        terms = run.objective.terms(run.model, run.guide, batch)
        out[f"{path.name}.loss"] = terms.loss
        out[f"{path.name}.x"] = run.model(Batch(y=batch.y))
save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[2])
"""


def outputs(path: Path) -> dict[str, Tensor]:
    from ppl_vae import Batch

    run = open_run(path)
    torch.manual_seed(3)
    batch = splits().test.batch(torch.arange(20))
    with torch.no_grad():
        terms = run.objective.terms(run.model, run.guide, batch)
        return {f"{path.name}.loss": terms.loss, f"{path.name}.x": run.model(Batch(y=batch.y))}


def test_a_run_gives_the_same_in_another_process(runs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    command = [sys.executable, "-c", CODE, str(runs), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = load_file(tmp_path / "out")
    here = {k: v for path in sorted(runs.iterdir()) for k, v in outputs(path).items()}
    assert there.keys() == here.keys()
    for name, tensor in here.items():
        assert torch.equal(there[name], tensor), name


def test_what_is_opened_is_what_was_trained(tmp_path: Path) -> None:
    data = splits()
    config = PairConfig(latent=3, hidden=(16,))
    model, guide = build(config, data.train)
    record = run_config(config, data.train, DIGITS, "iwae", {"particles": 3, "alpha": None})
    objective = build_objective("iwae", particles=3)
    result = fit(
        model,
        guide,
        data.train,
        objective,
        epochs=1,
        batch_size=128,
        run_dir=tmp_path / "r",
        config=record,
        **trained.QUIET,
    )
    run = open_run(tmp_path / "r")
    assert (run.pair, run.spec) == (config, DataSpec.of(data.train))
    assert run.history == result.history
    # the checkpoint is a little older than the result
    assert 0 < run.seconds <= result.seconds
    assert run.objective.particles == 3
    assert not run.model.training
    assert not run.guide.training
    for mine, theirs in ((run.model, model), (run.guide, guide)):
        assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in mine.state_dict().items())
    assert "alpha" not in run.config["objective_options"]
    found = run.data()
    assert torch.equal(found.test.x, data.test.x)
    assert found.train.description == data.train.description


def test_the_best_epochs_weights_are_opened_after_early_stopping(tmp_path: Path) -> None:
    data = splits()
    config = PairConfig(latent=2, hidden=(8,))
    model, guide = build(config, data.train)
    result = fit(
        model,
        guide,
        data.train,
        epochs=30,
        batch_size=256,
        lr=0.2,  # too much, so that it gets worse
        validation=data.test,
        patience=2,
        run_dir=tmp_path / "r",
        config=run_config(config, data.train, DIGITS, "elbo", {}),
        **trained.QUIET,
    )
    assert result.stopped == "early"
    best, last = open_run(tmp_path / "r"), open_run(tmp_path / "r", best=False)
    assert best.state["epoch"] == result.best_epoch
    assert last.state["epoch"] == result.epochs == len(best.history) + 2
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in best.model.state_dict().items())


class Malicious:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('run')",)


def test_a_pickle_in_the_weights_place_is_not_run(run: Path) -> None:
    path = open_run(run).checkpoint / "weights.safetensors"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(RunError, match=r"is not a whole safetensors file .*pickles above all, are not opened"):
        open_run(run)
    torch.save({"a": Malicious()}, path)
    with pytest.raises(RunError, match="is not a whole safetensors file"):
        open_run(run)


@pytest.mark.parametrize("file", ["weights.safetensors", "training.safetensors", "state.json"])
def test_a_truncated_run_is_refused(run: Path, file: str) -> None:
    path = open_run(run).checkpoint / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(RunError, match=file.replace(".", r"\.")):
        open_run(run)
    path.unlink()
    if file == "state.json":
        # what has no state was never whole: the one before it is
        assert open_run(run).state["epoch"] == 1
        return
    with pytest.raises(RunError, match="is missing: the checkpoint is not complete"):
        open_run(run)


def test_a_state_that_lacks_something_is_refused(run: Path) -> None:
    path = open_run(run).checkpoint / "state.json"
    state = read_json(path)
    del state["history"]
    write_json(path, state)
    with pytest.raises(RunError, match="is not whole: its state lacks history"):
        open_run(run)


def test_what_is_no_run_folder_is_refused(tmp_path: Path, run: Path) -> None:
    for path in (tmp_path / "none", tmp_path, run / "run.json"):
        with pytest.raises(RunError, match=r"is not a run folder: it has no run\.json"):
            open_run(path)
        with pytest.raises(RunError, match="is not a run folder"):
            load_weights(path, *trained.pair())
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="holds no complete checkpoint"):
        open_run(run)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_is_refused(run: Path, version: object) -> None:
    config = read_json(run / "run.json")
    write_json(run / "run.json", {**config, "format": version})
    with pytest.raises(RunError, match=f"has format {version!r} and this version of ppl_vae reads format 1"):
        open_run(run)


@pytest.mark.parametrize(
    "change",
    [
        {"pair": {"model": "vea"}},
        {"pair": {"modle": "vae"}},
        {"pair": {"latent": "three"}},
        {"pair": []},
        {"pair": None},
        {"spec": {"name": "x"}},
        {"spec": 3},
        {"objective_name": "elbow"},
        {"objective_options": {"gamma": 1}},
        {"objective_options": []},
        {"training": None},
    ],
)
def test_a_run_json_that_makes_no_sense_is_refused(run: Path, change: dict[str, Any]) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), **change})
    with pytest.raises(RunError, match=r"describes a pair that cannot be built"):
        open_run(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x80"])
def test_a_run_json_that_is_cut_short_is_refused(run: Path, content: str) -> None:
    (run / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=r"run\.json"):
        open_run(run)


def test_weights_of_another_pair_are_refused(runs: Path, run: Path) -> None:
    config = read_json(run / "run.json")
    write_json(run / "run.json", {**config, "pair": {**config["pair"], "latent": 4}})
    with pytest.raises(RunError, match="are of another model: "):
        open_run(run)
    write_json(run / "run.json", {**config, "pair": {**config["pair"], "guide": "full-rank"}})
    with pytest.raises(RunError, match="are of another guide: "):
        open_run(run)


def test_modules_of_ones_own_are_loaded_into(tmp_path: Path) -> None:
    result = trained.train(tmp_path / "r", epochs=1)
    with pytest.raises(RunError, match=r"modules made in a program \(VAE, MeanField\): .*load_weights"):
        open_run(tmp_path / "r")
    model, guide = trained.pair()
    state = load_weights(tmp_path / "r", model, guide)
    assert state["epoch"] == 1
    assert all(torch.equal(t, result.model.state_dict()[name]) for name, t in model.state_dict().items())
    with pytest.raises(RunError, match="of another guide"):
        load_weights(tmp_path / "r", *trained.pair("full-rank"))


def table(path: Path, columns: int = 3, rows: int = 40) -> Path:
    x = np.random.RandomState(0).normal(size=(rows, columns))
    header = ",".join(f"c{k}" for k in range(columns))
    np.savetxt(path, x, delimiter=",", header=header, comments="")
    return path


def test_a_persons_own_data_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained beside the file, opened from elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    table(Path("mine.csv"))
    options = {"data": "mine.csv", "data_dir": "sets"}
    data = splits(options)
    config = PairConfig(latent=2, hidden=(8,), likelihood="gaussian")
    model, guide = build(config, data.train)
    record = run_config(config, data.train, options, "elbo", {})
    fit(model, guide, data.train, epochs=1, batch_size=8, run_dir="run", config=record, **trained.QUIET)
    monkeypatch.chdir(tmp_path / "there")
    run = open_run("../here/run")
    assert torch.equal(run.data().train.x, data.train.x)
    table(tmp_path / "here" / "mine.csv", columns=4)
    with pytest.raises(InputError, match=r"their shape is \(4,\), and was \(3,\)"):
        run.data()
    (tmp_path / "here" / "mine.csv").unlink()
    with pytest.raises(InputError, match=r"mine\.csv"):
        run.data()
    run.config["data_options"] = {"dta": "digits"}
    with pytest.raises(RunError, match="does not say how its data are loaded"):
        run.data()


def test_run_json_is_json(run: Path) -> None:
    config = json.loads((run / "run.json").read_text())
    assert config["pair"] == {
        "model": "vae",
        "guide": "mean-field",
        "likelihood": "bernoulli",
        "network": "mlp",
        "latent": 3,
        "hidden": [16],
        "guide_options": {},
        "model_options": {},
        "prior": "standard-normal",
        "prior_options": {},
    }
    assert config["objective_options"] == {"beta": 2.0}
