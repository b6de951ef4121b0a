"""Every example runs: its --smoke here, its full run, which ends with a number it must reach, among the slow tests."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@contextmanager
def gradients() -> Iterator[dict[torch.Tensor, bool]]:
    """Looks at every gradient that a torch optimizer is given: all are finite. For each parameter, whether one of them
    was not 0 throughout."""
    found: dict[torch.Tensor, bool] = {}

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            gradient = parameter.grad
            assert gradient is None or bool(gradient.isfinite().all())
            found[parameter] = found.get(parameter, False) or (gradient is not None and bool(gradient.any()))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def test_all_examples_are_there() -> None:
    """The tests below take every file of the folder: here a lost one is missed."""
    assert {path.stem for path in EXAMPLES} >= {
        "alternating",
        "arviz_posterior",
        "autoencoder",
        "bayesian_decoder",
        "beta_vae",
        "compiled_svi",
        "conditional_vae",
        "decoders",
        "disentangle_sprites",
        "gaussian_mixture",
        "inpainting",
        "mode_seeking",
        "own_data",
        "semi_supervised",
        "structured_vae",
        "svi_lightning",
        "svi_vae",
        "swap_guides",
    }


@every_example
def test_says_how_to_run_it(path: Path) -> None:
    assert f"python examples/{path.name}" in docstring(path)


@every_example
def test_smoke(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has imported torch already."""
    if path.stem == "svi_lightning":
        pytest.importorskip("lightning")
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with gradients() as found:
        module.main(["--smoke", "--out", str(tmp_path)])
    assert found
    assert all(found.values())
    assert re.search(r"\d", capsys.readouterr().out)
    for picture in re.findall(r"\w+\.png", docstring(path)):
        assert (tmp_path / picture).stat().st_size > 5_000


@pytest.mark.slow
@every_example
def test_full_run_reaches_its_number(path: Path, tmp_path: Path) -> None:
    if path.stem == "svi_lightning":
        pytest.importorskip("lightning")
    done = subprocess.run(
        [sys.executable, str(path), "--out", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
