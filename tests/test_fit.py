"""Training: exact resumption, what is stopped and why, what is left alone, and what is refused."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import trained
from torch import Tensor, nn
from trained import QUIET, SHAPE, N, Watched, data, numbers, pair, same, train

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    CompileWarning,
    InputError,
    NonFiniteLossError,
    RunError,
    guides,
    likelihoods,
    models,
    networks,
)
from ppl_vae.build import PairConfig, build
from ppl_vae.checkpoint import Checkpoints, read_json, write_json
from ppl_vae.data import load
from ppl_vae.evaluate import elbo
from ppl_vae.fit import COMPILE_PAYS, EpochEnd, _pays, fit, resolve_device
from ppl_vae.loader import BatchData
from ppl_vae.logs import read_history
from ppl_vae.networks import Condition
from ppl_vae.objectives import Terms
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior
from ppl_vae.trainer import Settings, Trainer

SCRIPT = Path(trained.__file__)
EVERYTHING: dict[str, Any] = {"momentum": True, "warmup": 3, "clip": 5.0, "validate": True}


def run_script(mode: str, folder: Path, options: dict[str, Any], timeout: float = 240) -> str:
    command = [sys.executable, str(SCRIPT), mode, str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=SCRIPT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights_of(*modules: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for module in modules for t in module.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- resumption -----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_a_new_process_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    guides_of = ("mean-field", "full-rank")
    for guide in guides_of:
        train(tmp_path / "whole" / guide, epochs=5, guide=guide, **EVERYTHING)
        train(tmp_path / "parts" / guide, epochs=2, guide=guide, **EVERYTHING)
    again = {"epochs": 5, "resume": True, **EVERYTHING}
    run_script("train", tmp_path / "parts", {guide: {"guide": guide, **again} for guide in guides_of})
    for guide in guides_of:
        same(tmp_path / "whole" / guide, tmp_path / "parts" / guide)
        assert [r["epoch"] for r in numbers(tmp_path / "parts" / guide)[1]] == [1, 2, 3, 4, 5]
        assert [r["epoch"] for r in read_history(tmp_path / "parts" / guide)] == [1, 2, 3, 4, 5]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": EVERYTHING,
    "fused Adam, patience": {"validate": True, "patience": 1, "lr": 0.02},
    "alternating": {"schedule": "alternating", "guide_steps": 2},
    "cosine, IWAE": {"lr_schedule": "cosine", "objective": IWAE(3)},
    "streamed": {"stream": True},
    "bf16": {"precision": "bf16"},
    "float64": {"float64": True},
}


def interrupt_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C in the middle of a step."""
    step = Trainer._step

    def interrupting(self: Trainer, batch: Batch) -> Tensor:
        if self.step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    patch.setattr(Trainer, "_step", interrupting)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 6, 8])
def test_a_run_interrupted_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path, case: str, steps: int) -> None:
    """4 steps an epoch: step 6 lies in the middle of the second one, step 8 is its last."""
    before = signal.getsignal(signal.SIGINT)
    options = CASES[case]
    train(tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, steps)
        first = train(tmp_path / "parts", **options)
    assert (first.stopped, first.steps) == ("interrupted", steps)
    assert signal.getsignal(signal.SIGINT) is before
    state = numbers(tmp_path / "parts")[0].state
    assert (state["step"], state["epoch"], state["step_in_epoch"]) == (steps, (steps - 1) // 4, (steps - 1) % 4 + 1)
    torch.rand(10)  # the process's own generator is of no account
    second = train(tmp_path / "parts", resume=True, **options)
    assert second.stopped in ("finished", "early")
    same(tmp_path / "whole", tmp_path / "parts")


def test_ctrl_c_before_the_first_step_leaves_a_checkpoint_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_asked_to_stop", lambda self: True)
        first = train(tmp_path / "run", **EVERYTHING)
    assert (first.stopped, first.steps, first.history) == ("interrupted", 0, [])
    assert math.isnan(first.elbo)
    train(tmp_path / "run", resume=True, **EVERYTHING)
    train(tmp_path / "whole", **EVERYTHING)
    same(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    options = {"epochs": 500}
    command = [sys.executable, str(SCRIPT), "slow", str(tmp_path / "run"), json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2 "):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped: interrupted" in out
    assert "Traceback" not in err
    # the script's data are the same at every call
    steps = numbers(tmp_path / "run")[0].state["step"]
    assert 8 <= steps < 2000
    epochs = math.ceil((steps + 1) / 4)
    whole = data("fixed").batch()
    train(tmp_path / "run", data=Watched(whole, {}), epochs=epochs, resume=True)
    train(tmp_path / "whole", data=Watched(whole, {}), epochs=epochs)
    a, b = numbers(tmp_path / "run"), numbers(tmp_path / "whole")
    assert a[1] == b[1]
    assert all(torch.equal(tensor, b[0].weights[name]) for name, tensor in a[0].weights.items())


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    watched = Watched(data("fixed").batch(), {5: "interrupt"})

    def impatient(told: EpochEnd) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", data=watched, callbacks=[impatient])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_ones_own_is_put_back(tmp_path: Path) -> None:
    def mine(signum: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGINT, mine)
    try:
        train(None, epochs=1)
        assert signal.getsignal(signal.SIGINT) is mine
        with pytest.raises(KeyError):
            train(None, epochs=1, callbacks=[trained.fail])
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, kills: int) -> None:
    options = {"epochs": 12 * kills, "validate": True, "patience": 10_000}
    said = run_script("kill", tmp_path / "killed", {"kills": kills, **options}, timeout=900)
    steps = [int(line.split()[-1]) for line in said.splitlines()]
    assert len(steps) == kills
    assert steps == sorted(steps)
    assert len(set(steps)) > kills // 2
    train(tmp_path / "whole", checkpoint_every=1000, **options)
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_can_be_given_more_epochs(tmp_path: Path) -> None:
    train(tmp_path / "whole", epochs=4)
    train(tmp_path / "parts", epochs=2)
    again = train(tmp_path / "parts", epochs=2, resume=True)  # nothing left to do
    assert (again.epochs, again.stopped) == (2, "finished")
    train(tmp_path / "parts", epochs=4, resume=True)
    same(tmp_path / "whole", tmp_path / "parts")
    assert read_json(tmp_path / "parts" / "run.json")["training"]["epochs"] == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 8}, "started with batch_size=16 and is asked to go on with batch_size=8"),
        ({"lr": 0.5}, "lr=0.001 .* lr=0.5"),
        ({"seed": 1}, "seed=0"),
        ({"clip": 1.0}, "clip=None"),
        ({"schedule": "alternating"}, "schedule='joint'"),
        ({"precision": "bf16"}, "precision='32'"),
        ({"momentum": True}, "optimizer|lr"),
        ({"objective": ELBO(beta=2.0)}, r"objective was ELBO\(beta=1.*is ELBO\(beta=2"),
        ({"objective": IWAE(1)}, "objective was ELBO"),
        ({"data": data(seed=3)}, "data was 'bars all.*start a new run"),
        ({"data": data(n=60)}, "data was .*70.* now"),
        ({"validate": True}, "validation was None"),
        ({"guide": "full-rank"}, "holds another pair"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    train(tmp_path / "run", epochs=1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=says):
        train(tmp_path / "run", epochs=2, resume=True, **change)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_schedule_over_all_epochs_keeps_their_number(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=2, lr_schedule="cosine")
    with pytest.raises(RunError, match=r"epochs=2 .* epochs=3, and lr_schedule='cosine' depends on it"):
        train(tmp_path / "run", epochs=3, lr_schedule="cosine", resume=True)


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs run_dir"):
        train(None, resume=True)
    with pytest.raises(RunError, match="not a run folder"):
        train(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    train(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="give one of them"):
        train(tmp_path / "run", resume=True, overwrite=True)
    state = next((tmp_path / "run").rglob("state.json"))
    whole = read_json(state)
    for key in whole.keys() - {"best_checkpoint"}:
        write_json(state, {k: v for k, v in whole.items() if k != key})
        with pytest.raises(RunError, match=r"not whole|format None"):
            train(tmp_path / "run", resume=True)
    write_json(state, whole)
    config = read_json(tmp_path / "run" / "run.json")
    write_json(tmp_path / "run" / "run.json", {**config, "format": 2})
    with pytest.raises(RunError, match="has format 2 and this version of ppl_vae reads format 1"):
        train(tmp_path / "run", resume=True)
    write_json(tmp_path / "run" / "run.json", config)
    (tmp_path / "run" / "checkpoints" / "latest.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        path.unlink()
    with pytest.raises(RunError, match="no complete checkpoint"):
        train(tmp_path / "run", resume=True)


# --- the run folder -------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, epochs=2)
    (folder / "notes.txt").write_text("mine")
    before = snapshot(folder)
    with pytest.raises(InputError, match=r"holds an earlier run; go on with it by resume=True, .*overwrite=True"):
        train(folder, epochs=1)
    assert snapshot(folder) == before
    train(folder, epochs=1, seed=3, overwrite=True)
    train(tmp_path / "new", epochs=1, seed=3)
    same(folder, tmp_path / "new")
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(read_history(folder)) == 1
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"latest.json", "step-000000004"}


class Untrainable(models.VAE):
    def forward(self, batch: Batch) -> Tensor:
        raise ValueError("this model does not run")


def bad_optimizer(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def zero_model() -> models.VAE:
    return Untrainable(networks.decoder("mlp", 2, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": N + 1},
        {"device": "cuda:7"},
        {"data": data("none")},
        {"data": torch.full((N, *SHAPE), float("nan"))},
        {"data": data(n=2).take([0])},
        {"epochs": 0},
        {"patience": 2},
        {"optimizer": bad_optimizer},
        {"lr_schedule": lambda done: float("nan")},
        {"config": {"path": Path()}},
    ],
)
def test_a_failing_call_leaves_the_earlier_run(tmp_path: Path, bad: dict[str, Any]) -> None:
    train(tmp_path / "run", epochs=1)
    before = snapshot(tmp_path)
    with pytest.raises(InputError):
        train(tmp_path / "run", overwrite=True, **bad)
    with pytest.raises(InputError):
        train(tmp_path / "new", **bad)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_pair_that_does_not_run_leaves_the_earlier_run(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    before = snapshot(tmp_path)
    model = zero_model()
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (4,)))
    with pytest.raises(InputError, match="does not run on this batch: this model does not run"):
        fit(model, guide, data(), run_dir=tmp_path / "run", overwrite=True, **QUIET)
    assert snapshot(tmp_path) == before


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds files that are no run's; give another folder"):
            train(tmp_path / "photos", overwrite=overwrite)
        with pytest.raises(InputError, match="is a file; give a folder"):
            train(tmp_path / "photos" / "one.png", overwrite=overwrite)
    assert (tmp_path / "photos" / "one.png").read_text() == "dear"
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a link to nothing"):
        train(tmp_path / "link")
    (tmp_path / "empty").mkdir()
    train(tmp_path / "empty", epochs=1)
    (tmp_path / "way").symlink_to(tmp_path / "empty")
    train(tmp_path / "way", epochs=2, overwrite=True)
    assert len(read_history(tmp_path / "empty")) == 2


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_vae import checkpoint

    write, done = checkpoint.write_tensors, []

    def fills(path: Path, tensors: Any) -> None:
        done.append(path)
        if len(done) > 5:
            path.write_bytes(b"half of i")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", fills)
    with pytest.raises(OSError, match="step-000000012 cannot be written: No space left on device"):
        train(tmp_path / "run")
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.load(checkpoints.latest()).state["epoch"] == 2
    assert not list(checkpoints.folder.glob(".*"))
    train(tmp_path / "run", resume=True)
    train(tmp_path / "whole")
    same(tmp_path / "run", tmp_path / "whole")


def test_history_csv_and_tensorboard_agree(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"validate": True, "tensorboard": True, "objective": IWAE(2), "checkpoint_every": 2}
    train(tmp_path / "run", epochs=2, **options)
    # TensorBoard reads files in the order of their names: the second they were made in, then a counter, "10" before "9"
    time.sleep(1.1)
    result = train(tmp_path / "run", epochs=5, resume=True, **options)
    assert [r["epoch"] for r in result.history] == [1, 2, 3, 4, 5]
    assert read_history(tmp_path / "run") == result.history
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    names = set(result.history[0]) - {"epoch", "step"}
    assert names == {"loss", "bound", "elbo", "kl", "log_likelihood", "lr", "seconds"} | {
        f"val_{name}" for name in ("bound", "elbo", "kl", "log_likelihood")
    }
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [r["step"] for r in result.history]
        assert [s.value for s in scalars] == pytest.approx([r[name] for r in result.history], rel=1e-6)


def test_run_json_says_what_was_run(tmp_path: Path) -> None:
    result = train(tmp_path / "run", epochs=1, config={"mine": [1, 2]}, objective=ELBO(beta=2.0))
    config = read_json(tmp_path / "run" / "run.json")
    assert config["mine"] == [1, 2]
    assert config["format"] == 1
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (config["model"], config["guide"]) == ("VAE", "MeanField")
    assert "beta=2" in config["objective"]["repr"]
    assert config["data"] == {"description": "bars all, dynamic binarization", "size": N}
    assert config["training"]["epochs"] == 1
    assert result.data == config["data"]["description"]
    assert result.run_dir == tmp_path / "run"
    with pytest.raises(InputError, match="config has 'training'"):
        train(tmp_path / "other", config={"training": 1})


# --- what goes wrong while training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("at", [1, 4, 6, 11])
def test_a_non_finite_loss_stops_and_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, later: bool
) -> None:
    """`later` is how a GPU is looked after: losses are read now and then, what follows a bad one is skipped."""
    if later:
        init = Trainer.__init__

        def patched(self: Trainer, *args: Any) -> None:
            init(self, *args)
            self._look_later(10)

        monkeypatch.setattr(Trainer, "__init__", patched)
    whole = data("fixed").batch()
    options: dict[str, Any] = {"batch_size": 16, "epochs": 4, **QUIET}
    torch.manual_seed(0)
    model, guide = pair()
    watched = Watched(whole, {at: "nan"})
    rows = []
    before = Watched.batch

    def noting(self: Watched, given: Tensor | None = None) -> Batch:
        if given is not None:
            rows.append(given.tolist())
        return before(self, given)

    monkeypatch.setattr(Watched, "batch", noting)
    with pytest.raises(NonFiniteLossError) as raised:
        fit(model, guide, watched, run_dir=tmp_path / "run", **options)
    text = str(raised.value)
    assert f"the loss became nan at step {at} (epoch {(at - 1) // 4 + 1})" in text
    assert f"on the batch of rows [{', '.join(map(str, rows[at - 1]))}]" in text
    assert "first bad tensor: batch.x;" in text
    if at <= 4:
        assert "there is no checkpoint yet" in text
        return
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert f"the last good checkpoint is kept, {checkpoints.latest()}" in text
    assert checkpoints.load(checkpoints.latest()).state["epoch"] == (at - 1) // 4
    monkeypatch.undo()
    train(tmp_path / "run", data=Watched(whole, {}), resume=True)
    train(tmp_path / "whole", data=Watched(whole, {}))
    same(tmp_path / "run", tmp_path / "whole")


def test_looking_later_changes_nothing_in_a_good_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "now")
    init = Trainer.__init__

    def patched(self: Trainer, *args: Any) -> None:
        init(self, *args)
        self._look_later(10)

    monkeypatch.setattr(Trainer, "__init__", patched)
    train(tmp_path / "later")
    same(tmp_path / "now", tmp_path / "later")


class Rare(nn.Module):
    """Overflows where the noise is extreme: only the very same draws show it again."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, z: Tensor) -> Tensor:
        return z * float("inf") if float(z.detach().abs().amax()) > self.limit else z


@pytest.mark.parametrize("compile", [False, True])
def test_the_first_bad_tensor_is_found_with_the_very_noise_that_made_it(compile: bool) -> None:
    """And with the parameters that the step began with, where it was to be compiled and could not be, too."""
    model, guide = pair()
    model.decoder = nn.Sequential(Rare(3.2), model.decoder)
    said = pytest.warns(CompileWarning, match=r"float\(z\.detach") if compile else nullcontext()
    with (
        said,
        pytest.raises(
            NonFiniteLossError, match=r"first bad tensor: the output of model\.decoder\.0, Rare; there is no"
        ),
    ):
        fit(model, guide, data(), epochs=50, batch_size=16, compile=compile, **QUIET)
    assert all(bool(t.isfinite().all()) for t in weights_of(model, guide))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("encoder", r"the output of guide\.encoder\.encoder_body\.net\.0, Linear"),
        ("head", r"the output of guide\.heads\.z\.linear\.linear, Linear"),
        ("offset", r"logits of the distribution of the model's site 'x'"),
        ("prior", r"loc of the distribution of the model's site 'z'|log-probability of the model's site 'z'"),
    ],
)
def test_the_first_bad_tensor_is_the_first(place: str, says: str) -> None:
    """A value that is finite as a parameter, and overflows where it is used."""
    model, guide = pair()
    with torch.no_grad():
        if place == "encoder":
            guide.encoder.encoder_body.net[0].bias.fill_(3e38)  # type: ignore[operator,index,union-attr]
            guide.encoder.encoder_body.net[0].weight.fill_(3e38)  # type: ignore[operator,index,union-attr]
        elif place == "head":
            guide.heads["z"].linear.linear.weight.fill_(3e38)  # type: ignore[operator,index,union-attr]
        elif place == "offset":
            model.likelihood.offset.fill_(float("nan"))  # type: ignore[union-attr,operator]
        else:
            model.prior.loc.fill_(float("nan"))  # type: ignore[union-attr,operator]

    class Unchecked(ELBO):
        """Goes straight to the step."""

        def weights(self, *args: Any, **kwargs: Any) -> Any:
            from ppl_vae.validation import validation
            from ppl_vae.weights import log_weights

            with validation(False):
                return log_weights(*args, particles=1, **kwargs)

    with pytest.raises(NonFiniteLossError, match=rf"at step 1 \(epoch 1\).*first bad tensor: ({says});"):
        fit(model, guide, data(), Unchecked(), epochs=1, batch_size=16, **QUIET)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


class BadBackward(nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
        out: Tensor = BadGradient.apply(x) if torch.is_grad_enabled() and self.calls == self.at else x
        return out


@pytest.mark.parametrize("at", [6, 8])
def test_a_bad_gradient_of_a_good_loss_does_not_reach_a_checkpoint(tmp_path: Path, at: int) -> None:
    """The 8th step is an epoch's last: its weights would be the next checkpoint's."""
    model, guide = pair()
    model.decoder = nn.Sequential(model.decoder, BadBackward(at))
    says = "parameter model.decoder.0.body.net.0.0.weight" if at == 8 else "at step 7 .*first bad tensor: parameter"
    with pytest.raises(NonFiniteLossError, match=f"{says}.*the last good checkpoint is kept"):
        fit(model, guide, data(), epochs=4, batch_size=16, run_dir=tmp_path / "run", **QUIET)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    found = checkpoints.load(checkpoints.latest())
    assert found.state["epoch"] == 1
    assert all(bool(t.isfinite().all()) for t in found.weights.values())


def test_a_callbacks_error_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a callback's own error"):
        train(tmp_path / "run", callbacks=[trained.fail])


# --- what is left alone ---------------------------------------------------------------------------------------------


def test_generators_and_flags_are_left_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(True)
    flags = pyro.settings.get()
    try:
        train(tmp_path / "run", epochs=1, validate=True, tensorboard=True, precision="bf16")
        with pytest.raises(KeyError):
            train(tmp_path / "other", epochs=1, callbacks=[trained.fail])
        with pytest.raises(InputError):
            train(None, batch_size=10_000)
        assert torch.equal(torch.rand(3), expected)
        assert pyro.settings.get() == flags
        assert torch.distributions.Distribution._validate_args is True
        assert not list(pyro.get_param_store().keys())
    finally:
        pyro.enable_validation(True)


def test_seeds_decide_and_nothing_else_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(tmp_path / "a")
    torch.manual_seed(2)
    torch.rand(7)
    train(tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "c", seed=1)
    a, c = numbers(tmp_path / "a")[1], numbers(tmp_path / "c")[1]
    assert all(one["elbo"] != other["elbo"] for one, other in zip(a, c, strict=True))


def test_two_runs_in_turn_do_not_disturb_each_other(tmp_path: Path) -> None:
    """One inside of the other's callback, which is as close as two runs of one process come."""
    train(tmp_path / "alone")

    def another(told: EpochEnd) -> None:
        train(None, epochs=1, seed=told.epoch)

    train(tmp_path / "disturbed", callbacks=[another])
    same(tmp_path / "alone", tmp_path / "disturbed")


def test_training_where_gradients_are_off(tmp_path: Path) -> None:
    with torch.no_grad():
        train(tmp_path / "off")
        assert not torch.is_grad_enabled()
    train(tmp_path / "on")
    same(tmp_path / "on", tmp_path / "off")


def test_training_in_a_thread(tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path / "thread")))
    thread.start()
    thread.join()
    assert results[0].stopped == "finished"
    train(tmp_path / "main")
    same(tmp_path / "thread", tmp_path / "main")


class Counting(models.VAE):
    """A model with a buffer that every call changes, as running averages do."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__(networks.decoder("mlp", 2, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Tensor:
        self.count += 1
        return super().forward(batch)


def test_the_trial_before_a_run_leaves_no_trace() -> None:
    model = Counting()
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (4,)))
    fit(model, guide, data(), epochs=3, batch_size=16, **QUIET)
    assert int(model.count) == 12
    assert not model.training


class Stateful(ELBO):
    """An objective with a parameter and a buffer of its own."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        if torch.is_grad_enabled():
            self.seen += 1
        return Terms(terms.loss + (self.offset - 1) ** 2, terms.logs)


def test_an_objectives_own_parameters_train_and_its_buffers_are_saved(tmp_path: Path) -> None:
    whole, parts, rest = Stateful(), Stateful(), Stateful()
    train(tmp_path / "whole", objective=whole)
    assert whole.offset.item() > 0.01
    assert float(whole.seen) == 16
    train(tmp_path / "parts", objective=parts, epochs=2)
    train(tmp_path / "parts", objective=rest, resume=True)
    same(tmp_path / "whole", tmp_path / "parts")
    assert float(rest.seen) == 16


def test_a_warm_up_that_was_cut_short_is_not_left_in_the_objective() -> None:
    objective = ELBO()
    train(None, epochs=1, warmup=4, objective=objective)
    assert float(objective.kl_weight) == 0.25
    model, guide = pair()
    fit(model, guide, data(), objective, epochs=1, batch_size=16, **QUIET)
    assert float(objective.kl_weight) == 1.0


# --- the schedules --------------------------------------------------------------------------------------------------


def test_alternating_holds_one_side_while_the_other_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair()
    update, moves = Trainer._update, []

    def watching(self: Trainer, *args: Any) -> Tensor:
        before = weights_of(model), weights_of(guide)
        out = update(self, *args)
        moves.append((not equal(before[0], weights_of(model)), not equal(before[1], weights_of(guide))))
        return out

    monkeypatch.setattr(Trainer, "_update", watching)
    result = fit(model, guide, data(), epochs=3, batch_size=16, schedule="alternating", guide_steps=3, lr=1e-2, **QUIET)
    assert moves == [*[(False, True)] * 3, (True, False)] * 12
    assert result.steps == 12
    assert result.history[-1]["elbo"] > result.history[0]["elbo"]


def test_alternating_improves_the_elbo() -> None:
    result = train(None, epochs=40, schedule="alternating", guide_steps=2, lr=1e-2)
    assert result.history[-1]["elbo"] > result.history[0]["elbo"] + 1.0


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_a_side_without_parameters_is_no_hindrance(schedule: Any) -> None:
    oracle = LinearGaussian()
    guide = guides.MeanField(oracle, networks.encoder("mlp", (5,), (8,))).double()
    x = oracle.simulate(64)
    result = fit(oracle, guide, x, epochs=60, batch_size=32, lr=0.02, schedule=schedule, **QUIET)
    best = float(oracle.log_marginal(x).mean()) - oracle.mean_field_gap()
    assert result.elbo == pytest.approx(best, abs=0.5)
    assert guide.heads["z"].linear.linear.weight.dtype == torch.float64  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no parameter of model, guide or objective requires a gradient"):
        fit(oracle, LinearGaussianPosterior(oracle), x, batch_size=32, **QUIET)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    model, guide = pair()
    first = next(model.decoder.parameters())
    first.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(3))  # type: ignore[assignment]
    before = first.clone()
    for schedule in ("joint", "alternating"):
        fit(model, guide, data(), epochs=1, batch_size=16, schedule=schedule, clip=1.0, **QUIET)  # type: ignore[arg-type]
    assert torch.equal(first, before)
    assert torch.equal(model.unused, torch.ones(3))


def steps_of(monkeypatch: pytest.MonkeyPatch, see: Callable[[Trainer], float], **options: Any) -> list[float]:
    step, seen = Trainer._step, []

    def watching(self: Trainer, batch: Batch) -> Tensor:
        out = step(self, batch)
        seen.append(see(self))
        return out

    monkeypatch.setattr(Trainer, "_step", watching)
    train(None, **options)
    return seen


def test_the_warm_up_rises_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = steps_of(monkeypatch, lambda t: float(t.loss.objective.kl_weight), epochs=4, warmup=3)  # type: ignore[arg-type]
    assert seen == pytest.approx([min(1.0, (k + 1) / 12) for k in range(16)], rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "own", "constant"])
def test_the_learning_rate_follows_its_schedule(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    factors: dict[str, Callable[[float], float]] = {
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
        "own": lambda done: 1.0 - 0.5 * done,
        "constant": lambda done: 1.0,
    }
    schedule: Any = factors[name] if name == "own" else name
    seen = steps_of(monkeypatch, lambda t: float(t.optimizer.param_groups[-1]["lr"]), lr=0.1, lr_schedule=schedule)
    assert seen == pytest.approx([0.1 * factors[name](k / 16) for k in range(16)])


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(trainer: Trainer) -> float:
        return float(torch.stack([p.grad.norm() for p in trainer.trained if p.grad is not None]).norm())

    free = steps_of(monkeypatch, norm, epochs=1)
    monkeypatch.undo()
    clipped = steps_of(monkeypatch, norm, epochs=1, clip=0.5)
    assert min(free) > 0.6
    assert max(clipped) <= 0.5 + 1e-4
    assert clipped[0] == pytest.approx(0.5, rel=1e-4)


class GetsWorse(ELBO):
    """Its validation ELBO rises until an epoch and falls after it."""

    def __init__(self, peak: int) -> None:
        super().__init__()
        self.peak, self.epoch = peak, 0

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        if torch.is_grad_enabled() or args[-1].size == 2:
            return terms
        self.epoch += 1
        value = -abs(float(self.epoch - self.peak))
        return Terms(terms.loss, {**terms.logs, "elbo": torch.full_like(terms.loss, value)})


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_puts_back_the_best_epochs_weights(tmp_path: Path, patience: int) -> None:
    model, guide = pair()
    kept: dict[int, list[Tensor]] = {}

    def keep(told: EpochEnd) -> None:
        kept[told.epoch] = weights_of(told.model, told.guide)

    result = fit(
        model,
        guide,
        data(),
        GetsWorse(peak=4),
        epochs=20,
        batch_size=16,
        validation=data(n=30, seed=1),
        patience=patience,
        run_dir=tmp_path / "run",
        checkpoint_every=100,
        callbacks=[keep],
        **QUIET,
    )
    assert (result.stopped, result.epochs, result.best_epoch) == ("early", 4 + patience, 4)
    assert equal(weights_of(model, guide), kept[4])
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    best = checkpoints.best()
    assert best is not None
    assert checkpoints.load(best).state["epoch"] == 4
    assert checkpoints.load(checkpoints.latest()).state["epoch"] == 4 + patience
    again = fit(
        *pair(),
        data(),
        GetsWorse(peak=4),
        epochs=20,
        batch_size=16,
        validation=data(n=30, seed=1),
        patience=patience,
        run_dir=tmp_path / "run",
        resume=True,
        **QUIET,
    )
    assert (again.stopped, again.epochs, again.best_epoch) == ("early", 4 + patience, 4)
    assert equal(weights_of(again.model, again.guide), kept[4])


def test_without_patience_the_last_epochs_weights_stay() -> None:
    last: list[list[Tensor]] = []
    result = train(None, validate=True, callbacks=[lambda told: last.append(weights_of(told.model, told.guide))])
    assert equal(weights_of(result.model, result.guide), last[-1])
    assert result.best_epoch is not None


def test_a_callback_stops_by_true_alone(tmp_path: Path) -> None:
    told: list[EpochEnd] = []

    def watch(end: EpochEnd) -> object:
        told.append(end)
        end.row["elbo"] = 1e9  # its own copy
        return 1 if end.epoch < 3 else True

    result = train(tmp_path / "run", callbacks=[watch, told.append])
    assert (result.stopped, result.epochs) == ("callback", 3)
    assert [t.epoch for t in told] == [1, 1, 2, 2, 3, 3]
    assert result.elbo < 0
    assert numbers(tmp_path / "run")[0].state["epoch"] == 3


# --- data, devices, precision ---------------------------------------------------------------------------------------


def test_streamed_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "kept", validate=True)
    train(tmp_path / "streamed", validate=True, stream=True)
    same(tmp_path / "kept", tmp_path / "streamed")


def test_training_reports_nats_a_datum() -> None:
    """The history's last row is the mean over the epoch's batches of what the objective says of each."""
    model, guide = pair()
    seen: list[Terms] = []

    class Noting(ELBO):
        def terms(self, *args: Any, **kwargs: Any) -> Terms:
            terms = super().terms(*args, **kwargs)
            if torch.is_grad_enabled():
                seen.append(terms)
            return terms

    result = fit(model, guide, data(), Noting(beta=2.0), epochs=2, batch_size=16, **QUIET)
    assert len(seen) == 8
    row = result.history[-1]
    for name in ("elbo", "kl", "log_likelihood"):
        assert row[name] == pytest.approx(torch.cat([t.logs[name] for t in seen[4:]]).double().mean().item(), rel=1e-6)
    assert row["loss"] == pytest.approx(2 * row["kl"] - row["log_likelihood"], rel=1e-5)
    assert row["elbo"] == pytest.approx(row["log_likelihood"] - row["kl"], rel=1e-5)
    assert result.elbo == row["elbo"]
    assert result.seconds > 0


def test_validation_is_over_all_its_data_with_one_noise() -> None:
    model, guide = pair()
    held = data("fixed", n=300, seed=1)
    rows = fit(model, guide, data(), epochs=2, batch_size=16, lr=1e-12, validation=held, **QUIET).history
    # nothing moved: with the same noise the number is the same
    assert rows[0]["val_elbo"] == pytest.approx(rows[1]["val_elbo"], rel=1e-6)
    with torch.no_grad():
        kl = ELBO().terms(model, guide, held.batch()).logs["kl"]  # in closed form: no noise in it
    assert rows[0]["val_kl"] == pytest.approx(kl.double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["int", "uint8", "bool", "float64"])
def test_numbers_of_another_type_are_converted(kind: str, tmp_path: Path) -> None:
    x = data("fixed").batch().x
    assert x is not None
    dtypes = {"int": torch.int64, "uint8": torch.uint8, "bool": torch.bool, "float64": torch.float64}
    train(tmp_path / "same", data=BatchData(Batch(x=x), "x"))
    model, guide = pair()
    result = fit(model, guide, x.to(dtypes[kind]), batch_size=16, epochs=4, **QUIET)
    assert [r["elbo"] for r in result.history] == [r["elbo"] for r in numbers(tmp_path / "same")[1]]


def test_float64_trains(tmp_path: Path) -> None:
    result = train(tmp_path / "run", float64=True, epochs=20, lr=0.01)
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}
    assert result.history[-1]["elbo"] > result.history[0]["elbo"]


def test_bf16_is_for_matrix_products_alone() -> None:
    model, guide = pair("mean-field")
    inside: set[torch.dtype] = set()
    sites: set[torch.dtype] = set()
    for part in (model, guide):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: inside.add(output.dtype))

    class Looking(ELBO):
        def terms(self, *args: Any, **kwargs: Any) -> Terms:
            w = self.weights(*args, **kwargs)
            q, _, _ = w.pairs["z"]
            sites.update(t.dtype for t in (w.log_likelihood, *w.log_prior.values(), *w.log_guide.values()))
            sites.update(t.dtype for t in (*w.draws.values(), q.base_dist.loc, q.base_dist.scale))
            terms = super().terms(*args, **kwargs)
            sites.update(t.dtype for t in (terms.loss, *terms.logs.values()))
            return terms

    before = {name: p.dtype for name, p in model.named_parameters()}
    fit(model, guide, data(), Looking(), epochs=1, batch_size=16, **QUIET)
    assert inside == {torch.float32}
    inside.clear()
    fit(model, guide, data(), Looking(), epochs=1, batch_size=16, precision="bf16", **QUIET)
    assert torch.bfloat16 in inside
    assert sites == {torch.float32}
    assert {name: p.dtype for name, p in model.named_parameters()} == before
    inside.clear()
    guide(data().batch())
    assert inside == {torch.float32}  # afterwards the pair is as it was


@pytest.mark.parametrize("guide", ["mean-field", "full-rank"])
def test_bf16_ends_near_float32(guide: str) -> None:
    ends = [train(None, guide=guide, epochs=60, lr=0.01, precision=p).history[-1]["elbo"] for p in ("32", "bf16")]
    start = train(None, guide=guide, epochs=1, lr=1e-9).history[-1]["elbo"]
    assert abs(ends[0] - ends[1]) < 0.1 * (ends[0] - start)
    assert ends[0] != ends[1]


@pytest.mark.slow
def test_bf16_trains_as_well_as_float32_on_digits() -> None:
    """ELBO on the digits' test set, the same seed both ways, 5 seeds: |mean difference| + 2 standard errors below 0.1
    nat. (0.0003 was measured after 100 epochs.)"""
    digits = load("digits", binarize="dynamic")
    differences = []
    for seed in range(5):
        ends = []
        for precision in ("32", "bf16"):
            torch.manual_seed(seed)
            model, guide = build(PairConfig(latent=8, hidden=(64,)), digits.train)
            fit(model, guide, digits.train, epochs=40, precision=precision, seed=seed, device="cpu", **QUIET)
            ends.append(elbo(model, guide, digits.test, particles=50, seed=0).estimates["elbo"].mean)
        differences.append(ends[1] - ends[0])
    found = torch.tensor(differences)
    assert found.ne(0).any()
    assert found.mean().abs() + 2 * found.std() / 5**0.5 < 0.1


def test_progress_is_shown_on_a_display_that_is_given() -> None:
    from io import StringIO

    from rich.console import Console

    from ppl_vae.progress import make_progress

    out = StringIO()
    with make_progress(Console(file=out, force_terminal=True, width=150)) as display:
        train(None, epochs=2, progress=display, description="one")
        train(None, epochs=2, progress=display, description="two")
    text = out.getvalue()
    assert "one" in text
    assert "two" in text
    assert "nats/datum" in text
    assert "2/2" in text


def test_progress_says_that_it_is_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_vae.progress import make_progress

    notes = []

    def look(*args: Any) -> None:
        notes.append([task.fields["note"] for task in display.tasks])
        raise RuntimeError("enough")

    monkeypatch.setattr("ppl_vae.compiled.compile_flat", look)
    with make_progress() as display, pytest.warns(CompileWarning, match="enough"):
        train(None, epochs=1, progress=display, compile=True)
    assert notes == [["compiling"]]
    assert "compiling" not in display.tasks[0].fields["note"]


def test_progress_of_its_own_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    train(None, epochs=1, progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "VAE / MeanField / ELBO" in said.err


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": N + 1}, "batch_size=71 is larger than the data, 70 in 'bars all"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number, 1 or more"),
        ({"batch_size": 2.0}, "batch_size=2.0 must be a whole number"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": True}, "epochs=True"),
        ({"epochs": "3"}, "epochs='3'"),
        ({"lr": 0.0}, "lr=0.0 must be a positive number"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": -1}, "lr=-1"),
        ({"clip": 0}, "clip=0"),
        ({"seed": -1}, "seed=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"warmup": 1, "objective": IWAE(2)}, "warmup=1 raises the weight of a KL, and IWAE has none"),
        ({"patience": 0}, "patience=0"),
        ({"patience": 3}, "patience=3 watches validation data: give validation="),
        ({"guide_steps": 0}, "guide_steps=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"devices": 0}, "devices=0"),
        ({"devices": 3}, "batch_size=16 does not split evenly over devices=3"),
        ({"schedule": "alternate"}, "schedule='alternate' is not known; did you mean 'alternating'"),
        ({"precision": "16"}, "precision='16' is not known; .*32, bf16"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr_schedule": lambda done: -done}, r"lr_schedule\(1.0\) is -1.0"),
        ({"lr_schedule": lambda done: "fast"}, r"lr_schedule\(0.0\) is 'fast'"),
        ({"stream": "yes"}, "stream='yes' is not known"),
        ({"stream": 1}, "stream=1 is not known"),
        ({"device": "tpu"}, "device='tpu' is not known; .*cpu"),
        ({"device": "mps"}, "device='mps'"),
        ({"device": None}, "device='None'"),
        ({"optimizer": bad_optimizer}, r"optimizer: .*lr"),
        ({"optimizer": lambda groups, lr: 3}, "optimizer made a int"),
        ({"objective": "elbo"}, "objective is of type str; give one of type Objective"),
        ({"config": {"a": {1, 2}}}, "config is kept as JSON"),
        ({"data": data(n=2).take([0])}, "has 1 datum to train on; at least two are needed"),
        ({"data": torch.zeros(0, *SHAPE)}, "has 0 datum to train on"),
        ({"data": torch.zeros(N, 4, 4)}, r"data has shape \(70, 4, 4\); Bernoulli here takes \(N, 1, 4, 4\)"),
        ({"data": data("none")}, r"data\[.*\] = .* is outside of the support of Bernoulli, 0 or 1: binarize"),
        ({"data": torch.full((N, *SHAPE), 0.5)}, "= 0.5 is outside of the support"),
        ({"data": torch.full((N, *SHAPE), float("inf"))}, r"data\.x\[0, 0, 0, 0\] is inf"),
        ({"data": [1, 2]}, "data is a list"),
        ({"validation": torch.full((5, *SHAPE), 2.0)}, "validation.* = 2 is outside of the support"),
        ({"validation": 3}, "validation is a int"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_refused() -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(InputError, match=rf"device='cuda:{there + 6}' is not there: torch sees {there} CUDA GPUs"):
        train(None, device=f"cuda:{there + 6}")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if there else "cpu")


def test_what_is_no_module_is_refused() -> None:
    model, guide = pair()
    for arguments, name in (((3, guide), "model"), ((model, lambda batch: None), "guide")):
        with pytest.raises(InputError, match=f"{name} is of type .*; give one of type Module"):
            fit(*arguments, data())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("label", "says"), [(3, r"y\[7\] is 3; this model has the classes 0 to 2"), (-2, r"y\[7\] is -2")]
)
def test_labels_out_of_range_are_refused(label: int, says: str) -> None:
    condition = Condition(3)
    model = models.ConditionalVAE(
        networks.decoder("mlp", 2 + 3, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2, condition
    )
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (4,), condition=condition))
    x = data("fixed").batch().x
    y = torch.arange(N) % 3
    y[7] = label
    with pytest.raises(InputError, match=says):
        fit(model, guide, Batch(x=x, y=y), batch_size=16, **QUIET)
    with pytest.raises(InputError, match="the batch needs y"):
        fit(model, guide, Batch(x=x), batch_size=16, **QUIET)
    y[7] = -1  # missing
    fit(model, guide, Batch(x=x, y=y), batch_size=16, epochs=1, **QUIET)


def test_data_with_classes_that_the_model_has_not() -> None:
    condition = Condition(3)
    model = models.ConditionalVAE(
        networks.decoder("mlp", 2 + 3, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2, condition
    )
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (4,), condition=condition))
    with pytest.raises(InputError, match=r"data\.y\[\d+\] is 3; this model has the classes 0 to 2"):
        fit(model, guide, data(), batch_size=16, **QUIET)


class WrongShape(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        return Terms(terms.loss.sum(), terms.logs)


def test_an_objective_without_a_value_a_datum_is_refused() -> None:
    with pytest.raises(InputError, match=r"WrongShape\.terms returned a loss of shape \(\); one value a datum"):
        train(None, objective=WrongShape())


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    import numpy as np

    assert train(None, epochs=np.int64(1), lr=np.float32(0.01)).epochs == 1


# --- long studies ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    import gc

    def held() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    held_after: list[int] = []

    def look(told: EpochEnd) -> None:
        if told.epoch % 200 == 0:
            held_after.append(held())

    train(None, epochs=2500, callbacks=[look])  # 10,000 steps
    assert held_after[-1] - held_after[1] < 10 << 20


def test_guide_steps_are_of_the_alternating_schedule() -> None:
    model, guide = pair()
    with pytest.raises(InputError, match="guide_steps=3 is of schedule='alternating'"):
        fit(model, guide, data(), guide_steps=3, progress=False)


def test_fewer_epochs_than_done_are_refused(tmp_path: Path) -> None:
    model, guide = pair()
    fit(model, guide, data(), epochs=2, run_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match="epochs=1 are fewer than the 2"):
        fit(model, guide, data(), epochs=1, run_dir=tmp_path, resume=True, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_a_compiled_run_is_the_eager_run(schedule: str) -> None:
    """Clipping, warm-up, cosine schedule, validation: every logged number to 1e-5, weights to 1e-5 of their norm."""
    runs = []
    for compile in (True, False):
        model, guide = pair()
        result = fit(
            model,
            guide,
            data(),
            epochs=3,
            warmup=2,
            clip=5.0,
            lr_schedule="cosine",
            schedule=schedule,  # type: ignore[arg-type]
            guide_steps=2 if schedule == "alternating" else 1,
            validation=data(),
            compile=compile,
            progress=False,
        )
        weights = torch.cat([p.detach().flatten() for p in [*model.parameters(), *guide.parameters()]])
        runs.append((result, weights))
    (compiled, ours), (eager, theirs) = runs
    assert compiled.compiled.fallbacks == []
    assert compiled.compiled.graphs
    assert not eager.compiled.graphs
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    for a, b in zip(compiled.history, eager.history, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "seconds"}, rel=1e-5
        )


def test_a_compiled_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole_model, whole_guide = pair()
    fit(whole_model, whole_guide, data(), epochs=3, compile=True, progress=False)
    model, guide = pair()
    fit(model, guide, data(), epochs=1, compile=True, run_dir=tmp_path, progress=False)
    result = fit(model, guide, data(), epochs=3, run_dir=tmp_path, resume=True, progress=False)
    assert result.compiled.graphs
    for a, b in zip(whole_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole_guide.parameters(), guide.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("device", "schedule", "devices", "steps", "compiles"),
    [
        ("cpu", "joint", 1, COMPILE_PAYS - 1, False),
        ("cpu", "joint", 1, COMPILE_PAYS, True),
        ("cpu", "alternating", 1, COMPILE_PAYS // 3, False),  # two steps of the guide and one of the model each
        ("cpu", "alternating", 1, COMPILE_PAYS // 3 + 1, True),
        ("cuda", "joint", 1, 1, True),
        ("cuda", "joint", 2, COMPILE_PAYS, False),
    ],
)
def test_auto_compiles_where_it_pays(device: str, schedule: Any, devices: int, steps: int, compiles: bool) -> None:
    settings = Settings(
        epochs=steps,
        batch_size=N - 1,  # one batch, and a partial one that is left out
        lr=0.1,
        seed=0,
        schedule=schedule,
        guide_steps=2 if schedule == "alternating" else 1,
        patience=None,
        warmup=0,
        clip=None,
        lr_schedule="constant",
        optimizer="Adam",
        precision="32",
        devices=devices,
    )
    assert _pays(settings, data(), torch.device(device)) is compiles


@pytest.mark.parametrize("compile", ["yes", None])
def test_compile_is_auto_true_or_false(compile: object) -> None:
    model, guide = pair()
    with pytest.raises(InputError, match="compile="):
        fit(model, guide, data(), compile=compile, progress=False)  # type: ignore[arg-type]
