"""Checkpoints: what is written is read back bit for bit, a crash between any two file operations leaves one, and
nothing but safetensors and JSON is opened."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_vae import RunError
from ppl_vae.checkpoint import (
    Checkpoint,
    Checkpoints,
    load_optimizer,
    load_random_state,
    optimizer_state,
    random_state,
    read_json,
    read_tensors,
    seed_generators,
    write_json,
    write_tensors,
)

CPU = torch.device("cpu")


def checkpoint(value: float) -> Checkpoint:
    return Checkpoint({"model.w": torch.full((3,), value)}, {"moment": torch.full((3,), -value)}, {"value": value})


def holds(checkpoints: Checkpoints, path: Path, value: float) -> bool:
    found = checkpoints.load(path)
    same = torch.equal(found.weights["model.w"], torch.full((3,), value))
    return same and torch.equal(found.training["moment"], torch.full((3,), -value)) and found.state["value"] == value


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(2).bfloat16(),
        "number": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "strided": torch.randn(4, 4).T[::2],
    }
    tensors["tied"] = tensors["float"]
    numbers = {"seconds": 0.1 + 0.2, "tiny": 5e-324, "none": None, "list": [1, 2.5]}
    checkpoints = Checkpoints(tmp_path / "c")
    path = checkpoints.save(Checkpoint(tensors, {}, numbers), 1)
    found = checkpoints.load(path)
    assert found.weights.keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = found.weights[name]
        assert again.dtype == tensor.dtype
        assert again.shape == tensor.shape
        assert again.contiguous().flatten().view(torch.uint8).tolist() == (
            tensor.contiguous().flatten().view(torch.uint8).tolist()
        )
    assert {name: found.state[name] for name in numbers} == numbers
    found.weights["float"].add_(1.0)  # not a window on the file
    assert torch.equal(checkpoints.load(path).weights["float"], tensors["float"])


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(RunError, match="no complete checkpoint"):
        checkpoints.latest()
    assert checkpoints.best() is None
    for step in range(1, 8):
        checkpoints.save(checkpoint(float(step)), step, best=step in (1, 3))
    assert holds(checkpoints, checkpoints.latest(), 7.0)
    best = checkpoints.best()
    assert best is not None
    assert holds(checkpoints, best, 3.0)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "latest.json",
        "step-000000003",
        "step-000000006",
        "step-000000007",
    ]


def test_a_step_can_be_saved_twice(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    for value in (1.0, 2.0, 3.0):
        checkpoints.save(checkpoint(value), 5)
        assert holds(checkpoints, checkpoints.latest(), value)
    assert len(list(checkpoints.folder.glob("step-*"))) == 2


class Crash(BaseException):
    """The process ends here."""


def operations(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[str]:
    """Call `act` with its number before every operation that changes the disk; returns the list of those done."""
    done: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            act(len(done))
            done.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, name in (
        (Path, "mkdir"),
        (Path, "open"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (os, "fsync"),
        (shutil, "rmtree"),
        (json, "dump"),
    ):
        watch(owner, name)
    return done


@pytest.mark.parametrize("first", [False, True])
def test_a_crash_before_any_file_operation_leaves_the_last_checkpoint(tmp_path: Path, first: bool) -> None:
    def start(name: str) -> Checkpoints:
        checkpoints = Checkpoints(tmp_path / name)
        if not first:
            checkpoints.save(checkpoint(1.0), 1, best=True)
            checkpoints.save(checkpoint(2.0), 2)
        return checkpoints

    with pytest.MonkeyPatch.context() as patch:
        counted = start("counted")
        done = operations(patch, lambda number: None)
        counted.save(checkpoint(3.0), 3, best=True)
    assert len(done) > 15

    outcomes = []
    for at in range(len(done)):
        checkpoints = start(str(at))
        with pytest.MonkeyPatch.context() as patch:

            def act(number: int, at: int = at) -> None:
                # a process that is killed does nothing more, its `finally` neither
                if number >= at:
                    raise Crash

            operations(patch, act)
            with pytest.raises(Crash):
                checkpoints.save(checkpoint(3.0), 3, best=True)
        after = Checkpoints(checkpoints.folder)
        try:
            latest = after.latest()
        except RunError:
            outcomes.append("none")
            continue
        new = holds(after, latest, 3.0)
        outcomes.append("new" if new else "old")
        assert new or holds(after, latest, 2.0)
        best = after.best()
        assert best is not None
        assert holds(after, best, 3.0 if new else 1.0)  # that of the last one's history, whichever it is
        after.save(checkpoint(4.0), 4)
        assert holds(after, after.latest(), 4.0)
        assert not list(after.folder.glob(".*"))
    assert outcomes == sorted(outcomes, key=["none", "old", "new"].index)
    assert set(outcomes) == ({"none", "new"} if first else {"old", "new"})


def test_a_full_disk_changes_nothing_and_names_the_path(tmp_path: Path) -> None:
    failures = 0
    error: OSError | None = OSError()
    while error is not None:
        checkpoints = Checkpoints(tmp_path / str(failures))
        checkpoints.save(checkpoint(1.0), 1)
        before = sorted(checkpoints.folder.rglob("*"))
        with pytest.MonkeyPatch.context() as patch:

            def act(number: int, at: int = failures) -> None:
                if number == at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            operations(patch, act)
            error = None
            try:
                checkpoints.save(checkpoint(2.0), 2)
            except OSError as raised:
                error = raised
        assert set(before) <= set(checkpoints.folder.rglob("*"))
        latest = checkpoints.latest()
        assert holds(checkpoints, latest, 2.0) or (error is not None and holds(checkpoints, latest, 1.0))
        if error is not None:
            failures += 1
            assert error.errno == errno.ENOSPC
            assert str(error).count("cannot be written: No space left on device") == 1
            assert str(checkpoints.folder / "step-000000002") in str(error)
    assert failures > 10


def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    """What the system says, not what we think it says."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from ppl_vae.checkpoint import Checkpoint, Checkpoints\n"
        "c = Checkpoints(Path(sys.argv[1]))\n"
        "c.save(Checkpoint({'w': torch.zeros(10)}), 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    c.save(Checkpoint({'w': torch.zeros(10_000)}), 2)\n"
        "except OSError as error:\n"
        "    print(error)\n"
        "print(c.latest().name, len(c.load(c.latest()).weights['w']), sorted(p.name for p in c.folder.iterdir()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True, check=True, timeout=120
    )
    said, rest = done.stdout.splitlines()
    assert f"{tmp_path / 'c' / 'step-000000002'} cannot be written: File too large" in said
    assert rest == "step-000000001 10 ['latest.json', 'step-000000001']"


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.proof}",)

    def __init__(self, proof: Path) -> None:
        self.proof = proof


@pytest.mark.parametrize("file", ["weights.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["pickle", "torch", "truncated", "empty", "missing", "noise", "folder"])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path: Path, file: str, how: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    path = checkpoints.save(checkpoint(1.0), 1)
    proof = tmp_path / "proof"
    content = (path / file).read_bytes()
    if how == "pickle":
        (path / file).write_bytes(pickle.dumps(Malicious(proof)))
    elif how == "torch":
        torch.save({"w": Malicious(proof)}, path / file)
    elif how == "truncated":
        (path / file).write_bytes(content[: len(content) // 2])
    elif how == "empty":
        (path / file).write_bytes(b"")
    elif how == "noise":
        (path / file).write_bytes(bytes(range(256)) * 8)
    else:
        (path / file).unlink()
        if how == "folder":
            (path / file).mkdir()
    with pytest.raises(RunError, match=file.replace(".", r"\.")):
        checkpoints.load(path)
    assert not proof.exists()


def test_the_malicious_file_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


def test_another_version_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    path = checkpoints.save(checkpoint(1.0), 1)
    write_json(path / "state.json", {**read_json(path / "state.json"), "format": 99})
    with pytest.raises(RunError, match=r"has format 99 and this version of ppl_vae reads format 1"):
        checkpoints.load(path)


@pytest.mark.parametrize("content", ['{"checkpoint": "../step-elsewhere"}', "[1]", "{", '{"checkpoint": null}', "{}"])
def test_a_pointer_that_leads_nowhere_is_not_followed(tmp_path: Path, content: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    elsewhere = tmp_path / "step-elsewhere"
    path = checkpoints.save(checkpoint(1.0), 1)
    shutil.copytree(path, elsewhere)
    (checkpoints.folder / "latest.json").write_text(content)
    assert checkpoints.latest() == path


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", "\x00", "[" * 100_000])
def test_json_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": 2, "b": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match=r"none/a\.json cannot be written"):
        write_json(tmp_path / "none" / "a.json", {})


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9)),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), capturable=False, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path: Path, name: str) -> None:
    def steps(module: nn.Linear, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.randn(8, 3, generator=generator)).pow(2).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    parts = nn.Linear(3, 2)
    parts.load_state_dict(whole.state_dict())
    optimizer = OPTIMIZERS[name]([{"params": [whole.weight]}, {"params": [whole.bias]}])
    steps(whole, optimizer, 5, 0)
    steps(whole, optimizer, 5, 1)

    first = OPTIMIZERS[name]([{"params": [parts.weight]}, {"params": [parts.bias]}])
    steps(parts, first, 5, 0)
    tensors, numbers = optimizer_state(first)
    write_tensors(tmp_path / "t", tensors)
    write_json(tmp_path / "n", numbers)
    second = OPTIMIZERS[name]([{"params": [parts.weight]}, {"params": [parts.bias]}])
    load_optimizer(second, read_tensors(tmp_path / "t"), read_json(tmp_path / "n"))
    steps(parts, second, 5, 1)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    state: Tensor
    for key, state in optimizer_state(optimizer)[0].items():
        assert torch.equal(state, optimizer_state(second)[0][key]), key


def test_the_state_of_another_optimizer_is_refused() -> None:
    module = nn.Linear(3, 2)
    tensors, numbers = optimizer_state(torch.optim.Adam(module.parameters()))
    with pytest.raises(RunError, match="another one than SGD"):
        load_optimizer(torch.optim.SGD([{"params": [module.weight]}, {"params": [module.bias]}]), tensors, numbers)


def test_random_states_are_put_back() -> None:
    seed_generators(3, CPU)
    first = torch.rand(4)
    state = random_state(CPU)
    expected = torch.rand(4)
    assert not torch.equal(first, expected)
    load_random_state(state, CPU)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), first)  # on the CPU it is torch's own seed
