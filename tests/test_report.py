import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from ppl_vae.errors import InputError
from ppl_vae.evaluate import Estimate, evaluate
from ppl_vae.recipe import Recipe, prepare
from ppl_vae.report import (
    About,
    Difference,
    Row,
    comparison_table,
    evaluation_table,
    finite,
    plus_minus,
    replacing,
    write_results,
)


def text(table: Any, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.fixture(scope="module")
def judged() -> SimpleNamespace:
    ready = prepare(Recipe(hidden=(8,), latent=2))
    test = ready.data.test.take(range(12))
    return SimpleNamespace(ready=ready, numbers=evaluate(ready.model, ready.guide, test, 20, seed=0))


@pytest.mark.parametrize(
    ("mean", "se", "shown"),
    [
        (-22.48312, 0.0021, "-22.483 ± 0.002"),
        (-22.48312, 0.00021, "-22.4831 ± 0.0002"),
        (-22.48312, 0.0000021, "-22.4831 ± 0.0000"),
        (3.14159, 0.27, "3.14 ± 0.27"),
        (3.14159, 14.2, "3.14 ± 14.20"),
        (3.14159, 0.0, "3.14 ± 0.00"),
        (3.14159, math.nan, "3.14"),
        (math.nan, 1.0, "–"),
        (-1e-9, 0.01, "0.00 ± 0.01"),
    ],
)
def test_as_many_decimals_as_the_error_has_a_use_for(mean: float, se: float, shown: str) -> None:
    assert plus_minus(mean, se) == shown


def test_a_comparison_has_a_row_a_guide_and_a_row_a_difference(judged: SimpleNamespace) -> None:
    e = judged.numbers
    rows = [Row("mean-field", e, 12.3), Row("full-rank", e, 4.5), Row("flow", error="NonFiniteLossError: step 3")]
    difference = Difference("full-rank", "mean-field", *(Estimate(value, 0.0, 0.02, 12) for value in (0.5, -0.25, 0.1)))
    shown = text(comparison_table(rows, [difference], About.of(judged.ready.model)))
    lines = shown.splitlines()
    first = next(line for line in lines if line.startswith("mean-field"))
    for wanted in (plus_minus(e.elbo.mean, e.elbo.se), plus_minus(e.kl.mean, e.kl.se), "12.3", "/2 "):
        assert wanted in first
    assert str(e.parameters["total"]) in first
    below = next(line for line in lines if line.startswith("full-rank ") and "+" in line)
    assert lines[lines.index(below) + 1].startswith("− mean-field")
    assert "+0.50 ± 0.02" in below
    assert "-0.25 ± 0.02" in below
    flow = next(line for line in lines if line.startswith("flow"))
    assert "failed" in flow
    caption = " ".join(shown.split())
    assert "digits test, fixed binarization (seed 777): 12 data, 20 particles each" in caption
    assert "Likelihood: Bernoulli. log p(x) by importance sampling" in caption
    assert "flow failed: NonFiniteLossError: step 3" in caption
    assert "Nats per datum, ± Monte Carlo standard error." in caption
    assert "Var E[z | x] > 0.01" in caption
    assert max(len(line) for line in lines) <= 100
    narrow = text(comparison_table(rows, [difference], About.of(judged.ready.model)), 80)
    assert "…" not in narrow
    assert all(name in narrow for name in ("mean-field", "full-rank", "flow"))


def test_a_comparison_where_all_failed_is_a_table_too() -> None:
    shown = text(comparison_table([Row("a", error="b [c]")], [], About()))
    assert "a failed: b [c]" in shown


def test_an_evaluation_has_a_line_a_number_with_both_errors(judged: SimpleNamespace) -> None:
    e = judged.numbers
    shown = text(evaluation_table(e, "runs/[x]", About.of(judged.ready.model)))
    lines = {line.strip().partition("  ")[0]: line for line in shown.splitlines()}
    assert f"{e.log_px.mean:.4f}" in lines["log p(x), importance sampling"]
    assert f"{e.log_px.data_se:.2g}" in lines["log p(x), importance sampling"]
    assert "bits/dim" in lines["−log p(x)"]
    assert "runs/[x]" in shown


def test_continuous_data_have_no_bits(judged: SimpleNamespace) -> None:
    ready = prepare(Recipe(hidden=(8,), latent=2, likelihood="gaussian-per-pixel"))
    numbers = evaluate(ready.model, ready.guide, ready.data.test.take(range(5)), 3, seed=0)
    shown = text(evaluation_table(numbers, "run", About.of(ready.model)))
    assert "bits" not in shown
    assert "GaussianPerPixel(floor=0.0625)" in shown  # what its density depends on


def test_a_conditional_model_says_what_is_given() -> None:
    model = prepare(Recipe(model="cvae", hidden=(8,), latent=2)).model
    assert About.of(model).log_px == "log p(x | y)"
    assert About.of(torch.nn.Linear(1, 1)) == About("log p(x)", "", "cpu")


def test_results_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    write_results(tmp_path / "a.json", {"x": finite(math.nan), "y": finite(1.5), "ü": [1]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": None, "y": 1.5, "ü": [1]}
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "b.json", {"x": math.nan})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def _write_half(path: Path) -> None:
    assert path.suffix == ".npz"
    path.write_text("half")
    Path("not/there").read_text()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    path.write_text("old")
    with pytest.raises(InputError, match=r"is there already.*--overwrite"), replacing(path):
        pytest.fail("not reached")
    with pytest.raises(FileNotFoundError), replacing(path, overwrite=True) as temporary:
        _write_half(temporary)
    assert path.read_text() == "old"
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="is a folder"), replacing(tmp_path):
        pytest.fail("not reached")
