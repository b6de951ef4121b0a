import dataclasses
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
    Paired,
    Row,
    Spread,
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
    rows = [Row("mean-field", [e], [12.3]), Row("full-rank", [e], [4.5]), Row("flow", errors=["NonFinite: step 3"])]
    difference = Difference(
        "full-rank", "mean-field", (0,), *(Paired((value,), 0.02, 12) for value in (0.5, -0.25, 0.1))
    )
    about = About.of(judged.ready.model, judged.ready.objective)
    shown = text(comparison_table(rows, [difference], about, ["a note"]))
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
    assert "Likelihood: Bernoulli. Objective: ELBO(" in caption
    assert "Differences are paired by datum, ± their standard error." in caption
    assert "a note flow failed: NonFinite: step 3" in caption
    assert "Nats per datum, ± Monte Carlo standard error." in caption
    assert "Var E[z | x] > 0.01" in caption
    assert max(len(line) for line in lines) <= 100
    narrow = text(comparison_table(rows, [difference], about), 80)
    assert "…" not in narrow
    assert all(name in narrow for name in ("mean-field", "full-rank", "flow"))


def test_a_comparison_where_all_failed_is_a_table_too() -> None:
    shown = text(comparison_table([Row("a", errors=["b [c]"])], [], About()))
    assert "a failed: b [c]" in shown


def with_means(e: Any, elbo: float, khat_above: float = 0.0) -> Any:
    return dataclasses.replace(e, elbo=dataclasses.replace(e.elbo, mean=elbo), khat_above=khat_above, khat_max=0.5)


def test_several_seeds_are_a_mean_with_its_error_over_them(judged: SimpleNamespace) -> None:
    seeds = [with_means(judged.numbers, elbo) for elbo in (-20.0, -21.0, -25.0)]
    difference = Difference("b", "a", (0, 1, 2), *(Paired((0.1, 0.2, 0.6), 0.001, 12) for _ in range(3)))
    shown = text(comparison_table([Row("a", seeds, [1.0, 2.0, 6.0])], [difference], About()))
    # the standard deviation of -20, -21, -25 is √7, of 0.1, 0.2, 0.6 it is √0.07
    assert "-22.00 ± 1.53" in shown
    assert "+0.30 ± 0.15" in shown
    assert " 3.0" in shown
    caption = " ".join(shown.split())
    assert "mean over the seeds ± its standard error over them" in caption
    assert "paired by seed and datum, ± their standard error over the seeds" in caption


def test_many_differences_have_one_heading(judged: SimpleNamespace) -> None:
    numbers = [Paired((value,), 0.02, 12) for value in (0.5, -0.25, 0.1)]
    rows = [Row(name, [judged.numbers]) for name in "abcd"]
    lines = text(
        comparison_table(rows, [Difference(name, "a", (0,), *numbers) for name in "bcd"], About())
    ).splitlines()
    heading = next(k for k, line in enumerate(lines) if line.startswith("less a:"))
    assert [line.split()[:2] for line in lines[heading + 1 : heading + 4]] == [[name, "+0.50"] for name in "bcd"]


def test_an_unreliable_number_is_marked(judged: SimpleNamespace) -> None:
    good, bad = with_means(judged.numbers, -20.0, 0.01), with_means(judged.numbers, -20.0, 0.02)
    number = plus_minus(good.log_px.mean, good.log_px.se)
    shown = text(comparison_table([Row("good", [good]), Row("bad", [good, bad])], [], About()))
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "†" not in lines["good"]
    assert number in lines["good"]
    assert "†" in lines["bad"]
    assert "† not to be relied on" in " ".join(shown.split())
    assert "†" not in text(comparison_table([Row("good", [good])], [], About()))
    assert "†" in text(evaluation_table(bad, "run", About()))
    assert "†" not in text(evaluation_table(good, "run", About()))


def test_distances_to_one_posterior_take_the_place_of_the_kl_to_the_prior(judged: SimpleNamespace) -> None:
    e = judged.numbers
    row = Row("a", [e], [1.0], divergences=[Estimate(0.123, 0.01, 0.1, 12)], note="‡")
    difference = Difference("b", "a", (0,), *(Paired((value,), 0.02, 12) for value in (0.5, -0.25, 0.1)))
    shown = text(comparison_table([row], [difference], About()))
    assert "KL(q‖p(z|x))" in shown
    assert "0.12 ± 0.01" in shown
    assert "a‡" in shown
    assert plus_minus(e.kl.mean, e.kl.se) not in shown
    assert "-0.50 ± 0.02" in shown  # the bound's difference with the other sign
    assert "-0.25" not in shown


def test_pairing_is_by_seed_then_over_the_data() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 9.0]])
    paired = Paired.of(values)
    assert paired.by_seed == (2.0, 5.0)
    assert (paired.mean, paired.n) == (3.5, 3)
    assert paired.seed_se == paired.se == pytest.approx(1.5)
    assert paired.data_se == pytest.approx(torch.tensor([1.5, 3.0, 6.0]).std().item() / math.sqrt(3))
    assert paired.to_json()["by_seed"] == [2.0, 5.0]
    one = Paired.of(values[:1])
    assert math.isnan(one.seed_se)
    assert one.se == one.data_se
    assert one.to_json()["seed_se"] is None
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, pytest.approx(math.sqrt(1 / 3)), 3)  # type: ignore[arg-type]
    assert Spread.of([1.5], 0.25) == Spread(1.5, 0.25, 1)
    assert Spread.over([Estimate(1.0, 0.1, 0.2, 5)]).to_json() == {"mean": 1.0, "seed_se": None, "seeds": 1}


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
