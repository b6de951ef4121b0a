"""Several processes: the gradients of one process with the joined batch, one run folder, one end for all."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import numbers, train

from ppl_vae import InputError
from ppl_vae.checkpoint import Checkpoints, read_json
from ppl_vae.logs import read_history

SCRIPT = Path(__file__).with_name("trained.py")


def start(mode: str, folder: Path, options: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), mode, str(folder), json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=SCRIPT.parent)


def run(mode: str, folder: Path, options: dict[str, Any], code: int = 0) -> tuple[str, str]:
    with start(mode, folder, options) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == code, err
    return out, err


EVERYTHING: dict[str, Any] = {"momentum": True, "warmup": 2, "clip": 5.0, "validate": True}


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(tmp_path: Path, stopped: bool) -> None:
    """The draws are a function of the row, so that the mean of two halves' gradients is that of the whole batch."""
    options: dict[str, Any] = {"guide": "injected", "float64": True, "binarize": "fixed", "epochs": 3, **EVERYTHING}
    train(tmp_path / "one", **options)
    runs = {"two": {"devices": 2, "tensorboard": True, **options}}
    if stopped:
        runs["parts"] = {"devices": 2, **options, "rewind": "two", "resume": True}
    run("train", tmp_path, runs)
    (one, history), (two, again) = (numbers(tmp_path / name) for name in ("one", "two"))

    assert one.weights.keys() == two.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[name], tensor, rtol=1e-9, atol=1e-11)
    for name in one.training:
        if name.startswith("optimizer"):
            torch.testing.assert_close(two.training[name], one.training[name], rtol=1e-7, atol=1e-9)
    assert len(history) == len(again) == 3
    for row, other in zip(history, again, strict=True):
        assert other == pytest.approx(row, rel=1e-9)

    # each has noise of its own
    assert not torch.equal(two.training["rng.cpu.0"], two.training["rng.cpu.1"])

    # one folder, written once
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    found = [row | {"seconds": 0.0} for row in read_history(tmp_path / "two")]
    assert found == [row | {"seconds": 0.0} for row in again]
    assert read_json(tmp_path / "two" / "run.json")["training"]["devices"] == 2

    if stopped:  # and resumed: as if it had not, bit for bit
        parts, resumed = numbers(tmp_path / "parts")
        for mine, theirs in ((two.weights, parts.weights), (two.training, parts.training)):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        assert again == resumed


def test_what_cannot_be_sent_to_a_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(
        InputError, match=r"devices=2 starts other processes, .* must be defined at the top of a module"
    ):
        train(tmp_path / "run", devices=2, overwrite=True, callbacks=[lambda told: None])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_trained_weights_come_back_and_a_callback_is_told_once(tmp_path: Path) -> None:
    out, _ = run("several", tmp_path / "run", {})
    assert out.splitlines()[-1] == "weights are those of the checkpoint"
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch")] == ["1", "2"]


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_the_same_step(tmp_path: Path) -> None:
    with start("slow", tmp_path / "run", {"epochs": 500, "devices": 2}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2 "):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "stopped: interrupted" in out
    assert "Traceback" not in err
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.load(checkpoints.latest()).state["step"] >= 8


@pytest.mark.slow
def test_a_non_finite_loss_in_one_process_ends_all_with_its_own_error(tmp_path: Path) -> None:
    out, _ = run("nan", tmp_path / "run", {"devices": 2})
    assert "refused: the loss became nan at step " in out
    assert "first bad tensor: batch.x; there is no checkpoint yet" in out


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nsys.modules['torchmetrics'] = None\n"
        "import trained\ntrained.train(None, devices=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr
