"""A small pair on small data, for tests of training in this process and in others.

As a script it trains in a process of its own: ``python tests/trained.py MODE RUN_DIR OPTIONS``, OPTIONS in JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

if __name__ in ("__main__", "__mp_main__"):
    # Fabric looks whether it is there, and to import it takes longer than all the rest
    sys.modules["torchmetrics"] = None  # type: ignore[assignment]

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae import Batch, NonFiniteLossError, guides, likelihoods, models, networks
from ppl_vae.checkpoint import Checkpoint, Checkpoints
from ppl_vae.compiled import CompileReport
from ppl_vae.core import Guide
from ppl_vae.data import DataSet
from ppl_vae.fit import EpochEnd, FitResult, fit
from ppl_vae.loader import BatchData

SHAPE = (1, 4, 4)
LATENT = 3
N = 70
QUIET: dict[str, Any] = {"progress": False, "tensorboard": False}


def data(binarize: str = "dynamic", n: int = N, seed: int = 0) -> DataSet:
    """Bars of 17 levels, on a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 5, (n, *SHAPE), generator=generator)
    bars = torch.randint(0, 4, (n,), generator=generator)
    x[torch.arange(n), 0, bars] += 11
    options: dict[str, Any] = {"binarize": binarize}
    return DataSet.from_arrays(x.to(torch.uint8), bars, levels=17, name="bars", **options)


def pair(guide: str = "mean-field", dtype: torch.dtype = torch.float32, hidden: int = 12) -> tuple[models.VAE, Guide]:
    """The same parameters at every call, whatever the generators' states, which are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = models.VAE(networks.decoder("mlp", LATENT, SHAPE, 1, (hidden,)), likelihoods.Bernoulli(SHAPE), LATENT)
        encoder = networks.encoder("mlp", SHAPE, (hidden,))
        posterior = InjectedNoise(model, encoder) if guide == "injected" else guides.guides.get(guide)(model, encoder)
        return model.to(dtype), posterior.to(dtype)


class InjectedNoise(guides.MeanField):
    """Mean field, its draws a function of the datum's row: the same in one process and in several."""

    noise: Tensor

    def __init__(self, model: models.VAE, encoder: networks.BodyEncoder) -> None:
        super().__init__(model, encoder)
        self.register_buffer("noise", torch.randn(N, LATENT, generator=torch.Generator().manual_seed(5)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.rows is not None
        with _Inject(self.noise[batch.rows]):
            return super().forward(batch)


class _Inject(Messenger):
    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z":
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self.noise


class Watched(BatchData):
    """Data that do something at chosen steps, counted from 1 over the whole run."""

    def __init__(self, whole: Batch, at: dict[int, str], description: str = "watched", pause: float = 0.0) -> None:
        super().__init__(whole, description)
        self.at = at
        self.pause = pause
        self.calls = 0

    def to(self, device: torch.device | str) -> "Watched":
        return self

    def take(self, rows: Tensor) -> BatchData:
        return BatchData(super().batch(rows), self.description)

    def batch(self, rows: Tensor | None = None) -> Batch:
        batch = super().batch(rows)
        if rows is None:
            return batch
        self.calls += 1
        time.sleep(self.pause)
        what = self.at.get(self.calls)
        if what == "interrupt":
            signal.raise_signal(signal.SIGINT)
        elif what == "nan":
            assert batch.x is not None
            x = batch.x.clone()
            x[0] = float("nan")
            return batch._replace(x=x)
        return batch


def numbers(folder: Path) -> tuple[Checkpoint, list[dict[str, float]]]:
    """All that a run's last checkpoint holds but times, and its history likewise."""
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.load(checkpoints.latest())
    for key in ("seconds", "epoch_seconds"):
        del found.state[key]
    for row in found.state["history"]:
        del row["seconds"]
    return found, found.state["history"]


def same(one: Path, other: Path) -> None:
    """Assert that two runs end with the same weights, optimizer, random states and logged numbers, bit for bit."""
    a, b = numbers(one)[0], numbers(other)[0]
    for mine, theirs in ((a.weights, b.weights), (a.training, b.training)):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name
    assert a.state == b.state


def rewind(run: Path, copy: Path) -> None:
    """A copy of a run as it was at its last checkpoint but one."""
    shutil.copytree(run, copy)
    checkpoints = copy / "checkpoints"
    *_, before, last = sorted(checkpoints.glob("step-*"))
    shutil.rmtree(last)
    (checkpoints / "latest.json").write_text(json.dumps({"checkpoint": before.name}))


def optimizer(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def train(run_dir: Path | None, **options: Any) -> FitResult:
    """`fit` on the small pair; `guide`, `momentum`, `validate` and `float64` choose what JSON cannot say."""
    dtype = torch.float64 if options.pop("float64", False) else torch.float32
    model, guide = pair(options.pop("guide", "mean-field"), dtype)
    if options.pop("momentum", False):
        options |= {"optimizer": optimizer, "lr": 0.01}
    if options.pop("validate", False):
        options["validation"] = data(n=30, seed=1)
    what = options.pop("data", None)
    binarize = options.pop("binarize", "dynamic")
    what = data(binarize) if what is None else what
    return fit(model, guide, what, run_dir=run_dir, **{"batch_size": 16, "epochs": 4, **QUIET, **options})


def say(told: EpochEnd) -> None:
    print("epoch", told.epoch, os.getpid(), flush=True)


def fail(told: EpochEnd) -> None:
    raise KeyError("a callback's own error")


def _kill_again_and_again(run_dir: Path, kills: int, **options: Any) -> None:
    """Train in forks of this process, each killed at a random moment, and each going on where the last one was."""
    import lightning_fabric  # noqa: F401  once, not in every fork

    chance = random.Random(0)
    latest = run_dir / "checkpoints" / "latest.json"
    before = ""
    for k in range(kills):
        child = os.fork()
        if child == 0:
            train(run_dir, resume=k > 0, **options)
            os._exit(0)
        # some are killed while they start, most after a checkpoint of their own
        while not latest.exists() or (k % 4 != 3 and latest.read_text() == before):
            time.sleep(0.001)
        time.sleep(0.1 * chance.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it was done before it was killed: more epochs are needed"
        checkpoints = Checkpoints(run_dir / "checkpoints")
        state = checkpoints.load(checkpoints.latest()).state
        print("killed after step", state["step"], flush=True)
        before = latest.read_text()
    train(run_dir, resume=True, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    pyro.clear_param_store()
    if mode == "kill":
        _kill_again_and_again(folder, **given)
    elif mode == "slow":
        slow = Watched(data("fixed").batch(), {}, pause=0.02)
        result = train(folder, data=slow, callbacks=[say], **given)
        print("stopped:", result.stopped)
    elif mode == "several":
        result = train(folder, devices=2, epochs=2, callbacks=[say], **given)
        weights = numbers(folder)[0].weights
        mine = {f"model.{name}": t for name, t in result.model.state_dict().items()}
        mine |= {f"guide.{name}": t for name, t in result.guide.state_dict().items()}
        before = [t for module in pair() for t in module.state_dict().values()]
        assert all(torch.equal(t, weights[name]) for name, t in mine.items())
        assert not all(torch.equal(a, b) for a, b in zip(mine.values(), before, strict=True))
        print("weights are those of the checkpoint")
    elif mode == "nan":
        watched = Watched(data("fixed").batch(), {3: "nan"})
        try:
            train(folder, data=watched, **given)
        except NonFiniteLossError as error:
            print("refused:", error)
    elif mode == "train":
        for name, options in given.items():
            if "rewind" in options:
                rewind(folder / options.pop("rewind"), folder / name)
            assert isinstance(train(folder / name, **options).compiled, CompileReport)
    else:
        raise SystemExit(f"no mode {mode!r}")
