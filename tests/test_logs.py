"""metrics.csv and TensorBoard's event files say what the history says, after a resumption too."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ppl_vae.logs import Logs, read_history


def row(epoch: int, **more: float) -> dict[str, float]:
    return {"epoch": float(epoch), "step": 10.0 * epoch, "loss": 1.0 / epoch, "elbo": -0.1 * epoch, **more}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags: Any = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_both_say_the_same(tmp_path: Path) -> None:
    rows = [row(k) for k in range(1, 4)]
    logs = Logs(tmp_path, [])
    assert read_history(tmp_path) == []
    for k, one in enumerate(rows):
        logs.add(one)
        assert read_history(tmp_path) == rows[: k + 1]  # as it goes
    logs.close()
    found = scalars(tmp_path)
    assert found.keys() == {"loss", "elbo"}
    for name, values in found.items():
        assert [step for step, _ in values] == [10, 20, 30]
        assert [value for _, value in values] == pytest.approx([r[name] for r in rows], rel=1e-6)


def test_no_row_is_there_twice_after_a_resumption(tmp_path: Path) -> None:
    """The first process had written two rows beyond its last checkpoint."""
    rows = [row(k) for k in range(1, 6)]
    first = Logs(tmp_path, [])
    for one in rows[:4]:
        first.add(one)
    first.close()
    second = Logs(tmp_path, rows[:2])
    for one in rows[2:]:
        second.add(one)
    second.close()
    assert read_history(tmp_path) == rows
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [10, 20, 30, 40, 50]


def test_a_resumption_before_the_first_row(tmp_path: Path) -> None:
    first = Logs(tmp_path, [])
    first.add(row(1))
    first.close()
    second = Logs(tmp_path, [])
    second.add(row(1))
    second.close()
    assert read_history(tmp_path) == [row(1)]
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [10]


def test_columns_may_be_added(tmp_path: Path) -> None:
    logs = Logs(tmp_path, [row(1)], tensorboard=False)
    logs.add(row(2, val_elbo=3.5))
    logs.add(row(3))
    logs.close()
    assert read_history(tmp_path) == [row(1), row(2, val_elbo=3.5), row(3)]
    assert not (tmp_path / "tensorboard").exists()


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Logs(tmp_path, [row(1)], tensorboard=False)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"metrics\.csv cannot be written: No space left on device"):
        logs.add(row(2))
    with pytest.raises(OSError, match=r"metrics\.csv cannot be written: No space left on device"):
        Logs(tmp_path, [row(1)], tensorboard=False)
    monkeypatch.undo()
    assert read_history(tmp_path) == [row(1)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
