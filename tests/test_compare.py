import io
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ppl_vae import likelihoods, networks, plots, renewal
from ppl_vae.batch import Batch
from ppl_vae.compare import Comparison, compare, of_each_class, pictures_for
from ppl_vae.contenders import seeds_of
from ppl_vae.data import DataSet, load
from ppl_vae.diagnose import from_netcdf, summary
from ppl_vae.diagnose._arviz import groups_of
from ppl_vae.errors import InputError
from ppl_vae.guides import Exact, LowRank, MeanField, guides
from ppl_vae.models import VAE, GaussianMixture
from ppl_vae.recipe import prepare
from ppl_vae.results import check_target
from ppl_vae.runs import load_weights, open_run
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

TINY: dict[str, Any] = {"hidden": (8,), "latent": 3, "epochs": 1, "batch_size": 256, "eval_particles": 5}
PICTURES = ["latent.png", "reconstructions.png", "samples.png", "training.png"]


class Faulty(MeanField):
    """Mean field until its fourth call in training."""

    calls: ClassVar[int] = 0
    fault: ClassVar[str] = "nan"

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self.training and torch.is_grad_enabled():
            type(self).calls += 1
            if self.calls == 4 and self.fault == "interrupt":
                signal.raise_signal(signal.SIGINT)
            elif self.calls == 4 and self.fault == "nan":
                with torch.no_grad():
                    next(self.parameters()).fill_(math.nan)
            elif self.fault == "refused":
                raise InputError("this guide has a mood of its own")
        return super().forward(batch)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    monkeypatch.setitem(guides._parts, "faulty", Faulty)
    monkeypatch.setattr(Faulty, "calls", 0)
    yield Faulty
    Faulty.fault = "nan"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compare") / "compare"
    return compare(guides=["mean-field", "full-rank"], out=out, **TINY), out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_there(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["comparison.nc", "full-rank", "mean-field", "results.json", *PICTURES]
    )
    assert [path.name for path in out.parent.iterdir()] == ["compare"]  # nothing is left beside it
    assert comparison.out == out
    assert comparison["full-rank"].fitted is not None
    assert comparison["full-rank"].fitted.run_dir == out / "full-rank"
    for name in PICTURES:
        with Image.open(out / name) as image:
            assert min(image.size) >= 300
            assert len(image.convert("L").getcolors(1 << 22)) > 20


def test_results_hold_every_number_and_what_it_takes_to_get_it_again(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results == json.loads(json.dumps({**comparison.to_json(), "files": results["files"]}))
    assert results["kind"] == "comparison"
    assert results["guides"] == ["mean-field", "full-rank"]
    assert results["data"]["test"] == {"description": "digits test, fixed binarization (seed 777)", "size": 359}
    assert results["data"]["train"]["size"] == 1438
    assert results["settings"]["epochs"] == 1
    assert results["settings"]["likelihood"] == "bernoulli"
    assert "guide" not in results["settings"]
    assert results["settings"]["seed"] == 0
    assert "ELBO(beta=1" in results["objective"]
    assert results["seeds"]["weights, order and noise of training"] == [0]
    assert results["seeds"]["binarization of the test data"] == 777
    assert {"import", "load", "compile", "train", "evaluate", "draw", "total"} == results["seconds"].keys()
    assert results["versions"].keys() >= {"python", "torch", "pyro-ppl", "arviz"}
    assert set(results["files"]) == {path.name for path in out.iterdir()}
    for row, contender in zip(results["rows"], comparison.contenders, strict=True):
        assert contender.evaluation is not None
        test = row["test"]
        for name in ("elbo", "kl", "log_likelihood", "log_px", "ess"):
            estimate = getattr(contender.evaluation, name)
            assert test[name]["mean"] == estimate.mean
            assert test[name]["data_se"] == estimate.data_se
            assert name == "ess" or test[name]["se"] == estimate.se
        assert test["parameters"]["total"] == contender.evaluation.parameters["total"]
        assert test["active_units"]["count"] == contender.evaluation.active_units.count
        assert row["training"]["epochs"] == 1
        assert row["training"]["last_epoch"]["elbo"] < 0
        assert row["run"] == contender.guide


def test_differences_are_paired(written: tuple[Comparison, Path]) -> None:
    comparison, _ = written
    one, other = (comparison[name].evaluation for name in ("mean-field", "full-rank"))
    assert one is not None
    assert other is not None
    (difference,) = comparison.differences
    assert (difference.guide, difference.less, difference.log_px.n) == ("full-rank", "mean-field", 359)
    each = other.log_marginal.log_px - one.log_marginal.log_px
    assert difference.log_px.mean == pytest.approx(each.mean().item())
    assert difference.log_px.data_se == pytest.approx(each.std().item() / math.sqrt(359))
    assert difference.log_px.se == difference.log_px.data_se
    assert math.isnan(difference.log_px.seed_se)
    # the bound's differences are of the very draws behind the table
    assert difference.elbo.mean == pytest.approx(other.elbo.mean - one.elbo.mean, abs=1e-9)
    assert difference.kl.mean == pytest.approx(other.kl.mean - one.kl.mean, abs=1e-9)
    assert difference.elbo.data_se < one.elbo.data_se  # what pairing is for


def test_draws_of_all_guides_are_one_arviz_file(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    data = from_netcdf(out / "comparison.nc")
    z = data["posterior"]["z"]
    assert dict(z.sizes) == {"chain": 1, "draw": 100, "guide": 2, "datum": 100, "z_dim": 3}
    assert z.coords["guide"].values.tolist() == ["mean-field", "full-rank"]
    assert data["posterior_predictive"]["x"].dims[:4] == ("chain", "draw", "guide", "datum")
    assert data["log_likelihood"]["x"].sizes["guide"] == 2
    assert data["sample_stats"]["log_w"].sizes["guide"] == 2
    assert "guide" not in data["observed_data"]["x"].dims
    test = comparison.test.take(range(100))
    np.testing.assert_array_equal(data["observed_data"]["x"].values, test.batch().x)
    np.testing.assert_array_equal(data["constant_data"]["y"].values, test.y)
    assert not np.array_equal(z.sel(guide="mean-field"), z.sel(guide="full-rank"))
    table = summary(data.isel(datum=[0], z_dim=[0]) if hasattr(data, "isel") else data, var_names=["z"])
    assert len(table) == 2


def test_groups_of_both_generations_of_arviz(written: tuple[Comparison, Path]) -> None:
    data = from_netcdf(written[1] / "comparison.nc")
    groups = groups_of(data)
    assert {"posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data"} <= groups.keys()
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})  # what ArviZ 1.x has
    again = groups_of(tree)
    assert again.keys() == groups.keys()
    assert all(isinstance(group, xr.Dataset) for group in again.values())
    xr.testing.assert_identical(again["posterior"], groups["posterior"])


def test_each_run_opens_and_gives_the_same_numbers(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    run = open_run(out / "full-rank")
    fitted = comparison["full-rank"].fitted
    assert fitted is not None
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    assert run.data().test.description == comparison.test.description


def test_the_table_names_data_and_units(written: tuple[Comparison, Path]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=120).print(written[0].table())
    shown = stream.getvalue()
    assert "digits test, fixed binarization (seed 777)" in shown
    assert "− mean-field" in shown
    assert "Nats per datum" in shown


def test_figures_without_files() -> None:
    comparison = compare(guides=["mean-field"], model="cvae", **TINY)
    assert comparison.differences == []
    figures = comparison.figures()
    assert sorted(f"{name}.png" for name in figures) == PICTURES
    assert len(figures["reconstructions"].axes) == 20  # ten classes, data and one guide
    for axis in figures["reconstructions"].axes:
        picture = np.asarray(axis.images[0].get_array())
        assert picture.shape == (8, 8)
        assert picture.std() > 0.01
    (axis,) = figures["samples"].axes
    assert [text.get_text() for text in axis.get_xticklabels()] == [str(i) for i in range(10)]
    assert "mean-field" in axis.get_title()
    assert len(figures["latent"].axes[0].collections) == 10
    with pytest.raises(InputError, match="'full-rank' is not known"):
        comparison["full-rank"]


def test_the_same_seed_gives_the_same_numbers_and_another_others(written: tuple[Comparison, Path]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = compare(guides=["full-rank"], **TINY)
    assert torch.equal(before, torch.get_rng_state())
    first = written[0]["full-rank"].evaluation
    assert first is not None
    assert again["full-rank"].evaluation is not None
    # whichever guides stand beside it
    assert torch.equal(again["full-rank"].evaluation.log_marginal.log_px, first.log_marginal.log_px)
    other = compare(guides=["full-rank"], **{**TINY, "seed": 1})["full-rank"].evaluation
    assert other is not None
    assert other.elbo.mean != first.elbo.mean


def test_a_guide_that_fails_has_a_row_that_says_so(faulty: type[Faulty], tmp_path: Path) -> None:
    out = tmp_path / "compare"
    comparison = compare(
        guides=["mean-field", "faulty", "full-rank"], out=out, **{**TINY, "epochs": 2, "batch_size": 300}
    )
    assert [c.guide for c in comparison.failed] == ["faulty"]
    assert [c.guide for c in comparison.done] == ["mean-field", "full-rank"]
    assert "NonFiniteLossError" in str(comparison["faulty"].error)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [row["test"] is None for row in results["rows"]] == [False, True, False]
    assert "NonFiniteLossError" in results["rows"][1]["error"]
    assert from_netcdf(out / "comparison.nc")["posterior"].sizes["guide"] == 2
    assert [d.guide for d in comparison.differences] == ["full-rank"]


def test_a_failure_of_all_is_written_too(faulty: type[Faulty], tmp_path: Path) -> None:
    comparison = compare(guides=["faulty"], out=tmp_path / "compare", **{**TINY, "epochs": 2, "batch_size": 300})
    assert comparison.done == []
    assert comparison.figures() == {}
    assert json.loads((tmp_path / "compare" / "results.json").read_text())["rows"][0]["error"]


def test_a_refusal_of_all_guides_leaves_nothing_and_of_one_is_its_row(faulty: type[Faulty], tmp_path: Path) -> None:
    out = tmp_path / "new" / "compare"
    faulty.fault = "refused"
    with pytest.raises(InputError, match="batch_size=5000"):
        compare(out=out, **{**TINY, "batch_size": 5000})
    with pytest.raises(InputError, match="a mood of its own"):
        compare(guides=["faulty"], out=out, **TINY)
    assert list(tmp_path.iterdir()) == []
    for order in (["mean-field", "faulty"], ["faulty", "mean-field"]):
        comparison = compare(guides=order, **TINY)
        assert comparison["faulty"].error == "InputError: this guide has a mood of its own"
        assert [c.guide for c in comparison.done] == ["mean-field"]


def test_an_interruption_compares_what_is_done(faulty: type[Faulty], tmp_path: Path) -> None:
    faulty.fault = "interrupt"
    settings = {**TINY, "epochs": 3}
    comparison = compare(guides=["mean-field", "faulty", "full-rank"], out=tmp_path / "compare", **settings)
    assert comparison.interrupted
    assert [c.guide for c in comparison.done] == ["mean-field"]
    assert comparison["faulty"].error == "interrupted in epoch 1"
    assert comparison["full-rank"].error == "not trained: interrupted before"
    assert json.loads((tmp_path / "compare" / "results.json").read_text())["interrupted"] is True


def test_an_interruption_before_any_guide_is_done_leaves_nothing(faulty: type[Faulty], tmp_path: Path) -> None:
    faulty.fault = "interrupt"
    with pytest.raises(KeyboardInterrupt):
        compare(guides=["faulty", "mean-field"], out=tmp_path / "compare", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_comparison_is_replaced_when_asked_and_nothing_else(
    faulty: type[Faulty], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "compare"
    compare(guides=["mean-field", "full-rank"], out=out, **TINY)
    (out / "notes.txt").write_text("mine")
    (out / "mean-field" / "samples.png").write_text("mine")
    (out / "full-rank" / "samples.png").write_text("mine")
    before = contents(out)
    with pytest.raises(InputError, match=r"out=.*holds an earlier comparison.*--overwrite"):
        compare(guides=["mean-field"], out=out, **TINY)
    # what is refused, interrupted or fails leaves the earlier one as it is
    faulty.fault = "interrupt"
    with pytest.raises(InputError, match="batch_size"):
        compare(guides=["mean-field"], out=out, overwrite=True, **{**TINY, "batch_size": 5000})
    with pytest.raises(KeyboardInterrupt):
        compare(guides=["faulty"], out=out, overwrite=True, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(plots, "save", _no_space)
        with pytest.raises(OSError, match="No space left"):
            compare(guides=["mean-field"], out=out, overwrite=True, **TINY)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["compare"]

    compare(guides=["mean-field"], out=out, overwrite=True, **{**TINY, "seed": 1})
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["comparison.nc", "full-rank", "mean-field", "notes.txt", "results.json", *PICTURES]
    )
    assert [path.name for path in (out / "full-rank").iterdir()] == ["samples.png"]
    assert (out / "mean-field" / "samples.png").read_text() == "mine"
    assert json.loads((out / "results.json").read_text())["settings"]["seed"] == 1
    open_run(out / "mean-field")


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    for name, text in (("thesis.tex", "x"), ("results.json", '{"kind": "thesis"}')):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(InputError, match="holds files that are no comparison's"):
            compare(out=folder, overwrite=True, **TINY)
        assert (folder / name).read_text() == text
    with pytest.raises(InputError, match="is a file; give a folder"):
        compare(out=tmp_path / "thesis" / "thesis.tex", **TINY)


def test_names_outside_of_the_folder_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    out = tmp_path / "compare"
    out.mkdir()
    (out / "results.json").write_text(json.dumps({"kind": "comparison", "files": ["../precious.txt", "..", "a/b", 3]}))
    compare(guides=["mean-field"], out=out, overwrite=True, **TINY)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guides": []}, r"guides=\[\] must be a list of names; choose from: .*full-rank.*'all'"),
        ({"guides": "mean-field"}, "guides='mean-field' must be a list"),
        ({"guides": ["mean-field", "mean-field"]}, "names one twice"),
        ({"guides": ["ful-rank"]}, "guide='ful-rank' is not known; did you mean 'full-rank'"),
        ({"eval_particles": 0}, "eval_particles=0 must be a whole number"),
        ({"guide": "full-rank"}, "guide='full-rank' does not fit a comparison"),
        ({"epoch": 3}, "setting='epoch' is not known; did you mean 'epochs'"),
        ({"data": "digit"}, "data='digit' is not known; did you mean 'digits'"),
        ({"model": "va"}, "model='va' is not known; did you mean 'vae'"),
        ({"objective": "elb"}, "objective='elb' is not known; did you mean 'elbo'"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        compare(**{**TINY, "out": tmp_path / "compare", **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_rank_is_no_worse_than_mean_field_over_five_seeds() -> None:
    differences = torch.tensor([compare(seed=seed).differences[0].elbo.mean for seed in range(5)])
    assert differences.mean() > -2 * differences.std() / math.sqrt(5)


def test_a_picture_row_has_as_many_of_each_class() -> None:
    digits = load("digits").test
    assert pictures_for(digits) == 10
    y = digits.y
    assert y is not None
    assert y[of_each_class(digits, 10)].tolist() == list(range(10))
    assert sorted(y[of_each_class(digits, 23)].tolist()) == y[of_each_class(digits, 23)].tolist()
    assert torch.bincount(y[of_each_class(digits, 23)]).tolist() == [3, 3, 3, *[2] * 7]
    plain = DataSet.from_arrays(torch.rand(5, 4, 4))
    assert pictures_for(plain) == 12
    assert of_each_class(plain, 12).tolist() == [0, 1, 2, 3, 4]
    three = DataSet.from_arrays(torch.rand(9, 4, 4), torch.tensor([2, 2, 1, 0, 0, 0, 1, -1, -1]))
    assert of_each_class(three, 9).tolist()[:2] == [7, 8]
    assert len(set(of_each_class(three, 9).tolist())) == 9


# --- several seeds ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("seeds") / "compare"
    return compare(guides=["mean-field", "full-rank"], seeds=[3, 5, 8], out=out, **TINY), out


def test_differences_of_several_seeds_can_be_had_by_hand(seeded: tuple[Comparison, Path]) -> None:
    comparison, out = seeded
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rows = {(row["guide"], row["seed"]): row["test"] for row in results["rows"]}
    assert list(rows) == [(guide, seed) for guide in ("mean-field", "full-rank") for seed in (3, 5, 8)]
    (difference,) = results["differences"]
    assert difference["seeds"] == [3, 5, 8]
    for name in ("elbo", "kl", "log_px"):
        by_seed = [rows["full-rank", seed][name]["mean"] - rows["mean-field", seed][name]["mean"] for seed in (3, 5, 8)]
        mean = sum(by_seed) / 3
        se = math.sqrt(sum((d - mean) ** 2 for d in by_seed) / 2 / 3)
        assert difference[name]["by_seed"] == pytest.approx(by_seed, abs=1e-9)
        assert difference[name]["mean"] == pytest.approx(mean, abs=1e-9)
        assert difference[name]["seed_se"] == pytest.approx(se, abs=1e-9)
        for row in results["summary"]:
            each = [rows[row["guide"], seed][name]["mean"] for seed in (3, 5, 8)]
            spread = math.sqrt(sum((v - sum(each) / 3) ** 2 for v in each) / 2 / 3)
            assert row[name] == pytest.approx({"mean": sum(each) / 3, "seed_se": spread, "seeds": 3})
    # over the data: of each datum's mean over the seeds
    trials = {c.guide: [t.evaluation for t in c.trials] for c in comparison.contenders}
    each = torch.stack(
        [a.bound.elbo - b.bound.elbo for a, b in zip(trials["full-rank"], trials["mean-field"], strict=True)]  # type: ignore[union-attr]
    ).mean(0)
    assert difference["elbo"]["data_se"] == pytest.approx(each.std().item() / math.sqrt(359))


def test_seeds_are_the_same_for_all_guides(seeded: tuple[Comparison, Path]) -> None:
    comparison, out = seeded
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        f"{guide}-seed-{seed}" for guide in ("mean-field", "full-rank") for seed in (3, 5, 8)
    }
    assert (out / "seeds.png").exists()
    for contender in comparison.contenders:
        assert [t.seed for t in contender.done] == [3, 5, 8]
        for trial in contender.trials:
            run = open_run(out / f"{contender.guide}-seed-{trial.seed}")
            assert run.config["recipe"]["seed"] == run.config["training"]["seed"] == trial.seed
            assert trial.fitted is not None
            assert trial.fitted.run_dir == run.path
    one = compare(guides=["full-rank"], **{**TINY, "seed": 5})["full-rank"].evaluation
    same = comparison["full-rank"].trials[1].evaluation
    assert one is not None
    assert same is not None
    assert torch.equal(one.log_marginal.log_px, same.log_marginal.log_px)  # as a comparison of this seed alone
    shown = text(comparison)
    assert "Seeds: 3, 5, 8." in shown
    assert "paired by seed and datum" in shown


def text(comparison: Comparison) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(comparison.table())
    return " ".join(stream.getvalue().split())


def test_a_number_of_seeds_counts_from_the_recipes() -> None:
    assert seeds_of(None, 4) == (4,)
    assert seeds_of(3, 4) == (4, 5, 6)
    assert seeds_of([7, 1], 4) == (7, 1)
    assert seeds_of(range(2), 4) == (0, 1)


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], True, 1.5, "3", [0.5], [True]])
def test_seeds_that_are_none(seeds: Any) -> None:
    with pytest.raises(InputError, match=r"seeds=.* must be how many, 1 or more, or a list of seeds"):
        compare(seeds=seeds, **TINY)


def test_a_seed_that_fails_leaves_the_others(faulty: type[Faulty], tmp_path: Path) -> None:
    settings = {**TINY, "epochs": 2, "batch_size": 300}
    comparison = compare(guides=["mean-field", "faulty"], seeds=2, out=tmp_path / "compare", **settings)
    # its counter stands at 4 in the first seed alone
    assert [t.error is None for t in comparison["faulty"].trials] == [False, True]
    assert "seed 0: NonFiniteLossError" in str(comparison["faulty"].error)
    assert comparison.differences[0].seeds == (1,)
    assert [t.seed for t in comparison["faulty"].done] == [1]
    assert "faulty failed: seed 0: NonFiniteLossError" in text(comparison)
    results = json.loads((tmp_path / "compare" / "results.json").read_text())
    assert results["summary"][1]["seeds"] == [1]
    assert len(comparison["mean-field"].done) == 2


def test_a_bar_a_guide_counts_its_seeds() -> None:
    with Progress(console=Console(file=io.StringIO(), force_terminal=True), disable=False) as bars:
        compare(guides=["mean-field", "full-rank"], seeds=2, progress=bars, **TINY)
        shown = {task.description: (task.completed, task.total) for task in bars.tasks if task.visible}
        assert shown == {"mean-field": (2, 2), "full-rank": (2, 2)}


# --- all guides, and one's own ----------------------------------------------------------------------------------------


class Refusing(MeanField):
    """A guide that fits no model."""

    def __init__(self, model: Any, encoder: Any) -> None:
        raise InputError("it takes two to tango")


def test_all_guides_but_those_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"refusing": Refusing, "full-rank": guides.get("full-rank"), "faulty": Faulty, "mean-field": MeanField}
    monkeypatch.setattr(guides, "_parts", parts)
    monkeypatch.setattr(Faulty, "calls", 0)
    settings = {**TINY, "epochs": 2, "batch_size": 300}
    comparison = compare(guides="all", out=tmp_path / "compare", **settings)
    # the plainest first: the others are compared with it
    assert [c.guide for c in comparison.contenders] == ["mean-field", "faulty", "full-rank"]
    assert comparison.left_out == {"refusing": "it takes two to tango"}
    assert [c.guide for c in comparison.failed] == ["faulty"]
    assert "NonFiniteLossError" in str(comparison["faulty"].error)
    shown = text(comparison)
    assert "refusing left out: it takes two to tango" in shown
    results = json.loads((tmp_path / "compare" / "results.json").read_text())
    assert results["left_out"] == comparison.left_out
    assert [d.guide for d in comparison.differences] == ["full-rank"]
    # asked for by name it has a row that says so, wherever it stands
    for order in (["mean-field", "refusing"], ["refusing", "mean-field"]):
        named = compare(guides=order, **settings)
        assert named["refusing"].error == "InputError: it takes two to tango"
        assert [c.guide for c in named.done] == ["mean-field"]
    # what all are refused for is nobody's misfit
    with pytest.raises(InputError, match="batch_size=5000"):
        compare(guides="all", **{**TINY, "batch_size": 5000})
    monkeypatch.setattr(guides, "_parts", {"refusing": Refusing})
    with pytest.raises(InputError, match="two to tango"):
        compare(guides="all", **settings)


def test_guides_by_class_by_function_and_by_name() -> None:
    def wide(model: Any, encoder: Any) -> MeanField:
        return MeanField(model, encoder)

    comparison = compare(
        guides=[MeanField, "low-rank:rank=1", wide, lambda model, encoder, size: LowRank(model, encoder, rank=2)],
        **TINY,
    )
    assert [c.guide for c in comparison.contenders] == ["mean-field", "low-rank:rank=1", "wide", "guide 4"]
    one, other = (comparison[name].evaluation for name in ("mean-field", "wide"))
    assert one is not None
    assert other is not None
    assert torch.equal(one.log_marginal.log_px, other.log_marginal.log_px)
    assert comparison["guide 4"].fitted is not None
    assert comparison["guide 4"].fitted.guide.heads["z"].rank == 2  # type: ignore[union-attr]
    named = compare(guides={"narrow": "low-rank:rank=1"}, **TINY)
    assert named["narrow"].evaluation is not None
    again = comparison["low-rank:rank=1"].evaluation
    assert again is not None
    assert torch.equal(named["narrow"].evaluation.log_marginal.log_px, again.log_marginal.log_px)


def own_model(data: DataSet) -> VAE:
    decoder = networks.decoder("mlp", 3, data.shape, 1, (8,))
    return VAE(decoder, likelihoods.Bernoulli(data.shape), 3)


def test_a_model_and_data_of_ones_own(tmp_path: Path) -> None:
    digits = load("digits", binarize="dynamic")
    out = tmp_path / "compare"
    settings = {"epochs": 1, "batch_size": 256, "eval_particles": 5, "hidden": (8,)}
    comparison = compare(own_model, ["mean-field", "full-rank"], digits, seeds=2, out=out, **settings)  # type: ignore[arg-type]
    assert comparison.failed == []
    assert comparison.test.description == "digits test, fixed binarization (seed 777)"
    assert comparison.recipe.model == "own_model"
    assert comparison.recipe.likelihood == "bernoulli"
    assert sorted(path.name for path in out.glob("*.png")) == sorted([*PICTURES, "seeds.png"])
    assert all(
        t.ingredients is not None and t.ingredients.pair is None for c in comparison.contenders for t in c.trials
    )
    with pytest.raises(InputError, match="was trained from modules made in a program"):
        open_run(out / "mean-field-seed-0")
    fitted = comparison["mean-field"].fitted
    assert fitted is not None
    model = own_model(digits.train)
    load_weights(out / "mean-field-seed-0", model, MeanField(model, networks.encoder("mlp", digits.train.shape, (8,))))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fitted.model.parameters(), strict=True))
    # a fifth of a single set is held out; tensors will do, and a model that asks for nothing
    x = torch.randn(50, 3)
    plain = compare(lambda: LinearGaussian(3, dtype=torch.float32), ["mean-field"], x, epochs=1, eval_particles=5)
    assert (len(plain.test), plain.failed) == (10, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ["mean-field"]}, "the guides are the second argument"),
        ({"model": 3}, "model is a int; give a name, or a function"),
        ({"model": lambda: 3}, "model makes a int; it must make a module"),
        ({"guides": [3]}, r"guides\[0\] is a int; give a name, a class, or a function"),
        ({"guides": [lambda model: 3]}, "guide='guide 1' made a int"),
        ({"guides": [lambda model, other: 3]}, "needs other, which no name stands for"),
        ({"guides": {"a": MeanField(own_model(load("digits").train), networks.encoder("mlp", (1, 8, 8)))}}, r"'a'"),
        ({"data": ({}, {})}, "data holds a dict; give a name"),
        ({"data": (torch.zeros(4, 2), torch.full((4, 2), math.nan))}, "not finite|nan"),
        ({"model": lambda: torch.nn.Linear(1, 1)}, "is built from what a model declares in `latents`"),
        ({"fix_decoder": "nowhere"}, "'nowhere' is not a run folder"),
        ({"resume": True, "out": None}, "resume=True needs out"),
    ],
)
def test_what_is_no_model_guide_or_data(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        compare(**{**TINY, "out": tmp_path / "compare", **arguments})
    assert list(tmp_path.iterdir()) == []


# --- one model for all guides -----------------------------------------------------------------------------------------


def oracle() -> LinearGaussian:
    return LinearGaussian(data=4, latent=2, sigma=0.6, seed=7)


def test_the_distance_to_a_known_posterior() -> None:
    """Guides whose KL to the posterior is known. False alarm of a 4 s.e. bound: 1 in 16,000 for each of two."""
    model = oracle()
    x = model.simulate(300).float()
    posteriors = {
        "wide": lambda model: LinearGaussianPosterior(model, widen=1.3),
        "exact": lambda model: LinearGaussianPosterior(model),
        "diagonal": lambda model: LinearGaussianPosterior(model, "diagonal"),
    }
    comparison = compare(guides=posteriors, data=(x[:50], x[50:]), fix_decoder=model, eval_particles=400)
    assert comparison.failed == []
    assert comparison.reference is not None
    assert comparison.reference.guide == "exact"  # the best sampler is found
    for name, make in posteriors.items():
        found = comparison[name].trials[0].divergence
        assert found is not None
        known = make(model).kl_to_posterior()
        assert found.n == 250
        assert found.mean == pytest.approx(known, abs=max(4 * found.se, 1e-6))
        assert name == "exact" or 0 < found.se < 0.02 * known
    assert comparison["diagonal"].trials[0].divergence.mean == pytest.approx(  # type: ignore[union-attr]
        model.mean_field_gap(),
        abs=4 * comparison["diagonal"].trials[0].divergence.se,  # type: ignore[union-attr]
    )
    shown = text(comparison)
    assert "KL(q‖p(z|x))" in shown
    assert "One model for all guides, not trained with them: the LinearGaussian that was given." in shown
    assert "from the best importance sampler here, exact" in shown
    assert "Nearest to the posterior: exact." in shown
    row = comparison.to_json()["rows"][2]["kl_to_posterior"]
    assert row["mean"] == pytest.approx(model.mean_field_gap(), abs=0.02)
    assert comparison.to_json()["fixed_decoder"]["log_px_from"] == {"guide": "exact", "seed": 0}


def test_the_best_sampler_is_precise_and_reliable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide proposals are reliable and imprecise; narrow ones look precise, and are not to be relied on."""
    model = oracle()
    x = model.simulate(120).float()
    widths = {"narrow": 0.5, "wide": 6.0, "near": 1.2}
    posteriors = {
        name: lambda model, widen=widen: LinearGaussianPosterior(model, widen=widen) for name, widen in widths.items()
    }
    comparison = compare(guides=posteriors, data=(x[:20], x[20:]), fix_decoder=model, eval_particles=200)
    assert comparison.reference is not None
    assert comparison.reference.guide == "near"
    se = {c.guide: c.evaluation.log_px.se for c in comparison.contenders if c.evaluation is not None}
    assert se["near"] < se["wide"]
    found = comparison["narrow"].trials[0].divergence
    assert found is not None
    known = LinearGaussianPosterior(model, widen=0.5).kl_to_posterior()
    assert found.mean == pytest.approx(known, abs=4 * found.se)


def test_guides_are_trained_towards_the_posterior_of_a_model_that_is_held() -> None:
    """Trained they come near their family's best: the gap of a diagonal Gaussian, 0 of a full one."""
    model = oracle().float()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x = model.simulate(300)
    comparison = compare(
        guides=["mean-field", "full-rank"], data=(x[:200], x[200:]), fix_decoder=model, eval_particles=200, seeds=2,
        epochs=40, batch_size=40, lr=1e-2, hidden=(32,),
    )  # fmt: skip
    gap = model.mean_field_gap()
    assert gap > 0.3
    best = {"mean-field": gap, "full-rank": 0.0}
    for name, known in best.items():
        for trial in comparison[name].trials:
            assert trial.divergence is not None
            assert known - 4 * trial.divergence.se < trial.divergence.mean < known + 0.1
            for key, value in trial.fitted.model.state_dict().items():  # type: ignore[union-attr]
                assert torch.equal(value, before[key])
    assert comparison.differences[0].elbo.mean == pytest.approx(gap, abs=0.1)
    # the KLs' difference is the bounds', whatever log p(x) is
    kl = [[t.divergence.mean for t in comparison[name].trials] for name in best]  # type: ignore[union-attr]
    assert comparison.differences[0].elbo.by_seed == pytest.approx([a - b for a, b in zip(*kl, strict=True)])


def test_a_model_trained_once_with_the_first_guide(tmp_path: Path) -> None:
    out = tmp_path / "compare"
    comparison = compare(
        guides=["full-rank", "mean-field"], fix_decoder="first", out=out, **{**TINY, "eval_particles": 30}
    )
    assert comparison.fixed is not None
    assert comparison.fixed.source == "trained here with full-rank, seed 0"
    trained = open_run(out / "decoder").model.state_dict()
    fresh = prepare(comparison.recipe).model.state_dict()
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
    encoders = []
    for contender in comparison.contenders:
        for trial in contender.trials:
            run = open_run(out / trial.guide)
            assert all(torch.equal(run.model.state_dict()[name], t) for name, t in trained.items())
            encoders.append(next(iter(run.guide.encoder.parameters())))
            assert trial.divergence is not None
            assert trial.divergence.mean > -4 * trial.divergence.se
    assert not torch.equal(*encoders)
    # held again, from its run
    again = compare(guides=["mean-field"], fix_decoder=out / "decoder", epochs=1, batch_size=256, eval_particles=30)
    assert again.recipe.latent == 3
    one, other = (c["mean-field"].trials[0].evaluation for c in (again, comparison))
    assert one is not None
    assert other is not None
    assert torch.equal(one.bound.elbo, other.bound.elbo)
    with pytest.raises(InputError, match=r"hidden=\(9,\): the model of .* has \(8,\); leave it out"):
        compare(fix_decoder=out / "decoder", hidden=(9,))
    with pytest.raises(InputError, match="the model that is held are another model's"):
        compare(lambda: LinearGaussian(64), ["mean-field"], fix_decoder=out / "decoder", **TINY)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_is_gone_on_with(faulty: type[Faulty], tmp_path: Path) -> None:
    faulty.fault = "interrupt"
    settings = {**TINY, "epochs": 2, "hidden": [8]}
    guides_ = ["mean-field", "faulty"]
    stopped = compare(guides=guides_, out=tmp_path / "compare", **settings)
    assert stopped.interrupted
    before = (tmp_path / "compare" / "mean-field" / "metrics.csv").read_bytes()
    # its counter goes on: it is not interrupted again
    resumed = compare(guides=guides_, out=tmp_path / "compare", resume=True, **settings)
    assert not resumed.interrupted
    assert resumed.failed == []
    assert (tmp_path / "compare" / "mean-field" / "metrics.csv").read_bytes() == before
    monkey = compare(guides=guides_, **settings)
    for name in guides_:
        one, other = resumed[name].evaluation, monkey[name].evaluation
        assert one is not None
        assert other is not None
        assert torch.equal(one.log_marginal.log_px, other.log_marginal.log_px), name


def test_a_comparison_whose_process_was_killed_is_gone_on_with(
    written: tuple[Comparison, Path], tmp_path: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".compare.{dead.pid}"
    shutil.copytree(written[1] / "full-rank", left / "full-rank")
    metrics = (left / "full-rank" / "metrics.csv").read_bytes()
    shutil.copytree(left, tmp_path / f".compare.{os.getppid()}")  # of a process that lives: left alone
    out = tmp_path / "compare"
    compare(guides=["mean-field", "full-rank"], out=out, resume=True, **TINY)
    assert (out / "full-rank" / "metrics.csv").read_bytes() == metrics
    assert (out / "mean-field" / "metrics.csv").read_bytes() != metrics
    assert not left.exists()
    assert (tmp_path / f".compare.{os.getppid()}").exists()
    results = json.loads((out / "results.json").read_text())
    then = json.loads((written[1] / "results.json").read_text())
    for mine, theirs in zip(results["rows"], then["rows"], strict=True):
        assert mine["test"]["log_px"] == theirs["test"]["log_px"]


def test_a_killed_comparison_says_how_it_is_gone_on_with(written: tuple[Comparison, Path], tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".compare.{dead.pid}"
    shutil.copytree(written[1] / "full-rank", left / "full-rank")
    out = tmp_path / "compare"
    with pytest.raises(InputError, match=r"was killed, and has left 1 run in .*resume=True.*--resume, --overwrite"):
        compare(guides=["mean-field"], out=out, **TINY)
    check_target(out, overwrite=True, resume=False)
    check_target(out, overwrite=False, resume=True)


def test_a_comparison_prints_its_table(written: tuple[Comparison, Path]) -> None:
    text = str(written[0])
    assert text == repr(written[0])
    assert all(word in text for word in ("mean-field", "full-rank", "log p(x)", "Differences are paired"))
    assert "Tensor" not in text


def test_the_picture_of_several_latents_names_them() -> None:
    comparison = compare("hierarchical-vae", guides=["mean-field"], **TINY)
    title = comparison.figures()["latent"].get_suptitle()
    assert " of z2, z1 together" in title


def test_a_gaussian_mixture_without_prior_is_compared() -> None:
    """log p(x) and both bounds of one mixture, whose posterior one guide has: the other falls short by its KL."""
    torch.manual_seed(0)
    mixture = GaussianMixture(3, 2)
    one = compare(
        None,
        {"exact": lambda model: Exact(model), "enumerated": "enumerated"},
        "pinwheel",
        fix_decoder=mixture,
        hidden=(4,),
        epochs=1,
        eval_particles=2,
    )
    exact, enumerated = one["exact"].evaluation, one["enumerated"].evaluation
    assert exact is not None
    assert enumerated is not None
    test = one.test.batch().x
    assert test is not None
    for found in (exact, enumerated):
        torch.testing.assert_close(
            found.log_marginal.log_px.float(), mixture.log_prob(test).detach(), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(exact.bound.elbo, exact.log_marginal.log_px, rtol=1e-4, atol=1e-4)
    assert bool((enumerated.bound.elbo < exact.bound.elbo + 1e-4).all())
    assert "latent" not in one.figures()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "guide"), [("structured-vae:components=3", "structured"), ("bayesian-decoder", "mean-field")]
)
def test_latents_that_all_data_share_are_compared(model: str, guide: str, tmp_path: Path) -> None:
    """With draws, in which they stand once."""
    few = {"data": "pinwheel", "latent": 2, "hidden": (4,), "epochs": 1, "eval_particles": 5}
    comparison = compare(model, guides=[guide], out=tmp_path / "out", **few)
    assert comparison.notes == []
    assert not comparison.failed
    drawn = groups_of(from_netcdf(tmp_path / "out" / "comparison.nc"))["posterior"]
    assert drawn["weights"].dims[:3] == ("chain", "draw", "guide")
    assert "datum" not in drawn["weights"].dims
    assert drawn["z"].dims[:4] == ("chain", "draw", "guide", "datum")


def test_guides_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(InputError, match="'a-b' would be kept in the folder 'a-b', as is 'a b'; give it another name"):
        compare(guides={"a b": "mean-field", "a-b": "full-rank"}, **TINY)
    with pytest.raises(InputError, match="'decoder' would be kept in the folder 'decoder', as is the model that is"):
        compare(guides={"decoder": "mean-field"}, **TINY)


def test_guides_of_layers_are_left_out_where_there_is_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("mean-field", "bottom-up", "top-down")
    monkeypatch.setattr(guides, "_parts", {name: guides.get(name) for name in kept})
    comparison = compare(guides="all", **{**TINY, "epochs": 1})
    assert [c.guide for c in comparison.contenders] == ["mean-field"]
    assert comparison.left_out == dict.fromkeys(kept[1:], "of a model with one layer it is the mean-field guide")
    layers = compare("hierarchical-vae", guides="all", **{**TINY, "epochs": 1})
    assert {c.guide for c in layers.contenders} == set(kept)


def test_what_cannot_be_gone_on_with(written: tuple[Comparison, Path], tmp_path: Path) -> None:
    out = tmp_path / "compare"
    shutil.copytree(written[1], out)
    before = contents(out)
    for changes, message in (
        ({"latent": 4}, "latent=4: the run .* was started with 3"),
        ({"overwrite": True}, "give one of them"),
    ):
        with pytest.raises(InputError, match=message):
            compare(out=out, resume=True, **{**TINY, **changes})
        assert contents(out) == before
    with pytest.raises(InputError, match="holds no run of a comparison to go on with"):
        compare(out=tmp_path / "new", resume=True, **TINY)


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("out of ink")

    monkeypatch.setattr(plots, "latent_space", fail)
    comparison = compare(guides=["mean-field"], out=tmp_path / "compare", **TINY)
    assert comparison.notes == ["latent.png could not be made: ValueError: out of ink"]
    assert "out of ink" in text(comparison)
    assert not (tmp_path / "compare" / "latent.png").exists()
    assert (tmp_path / "compare" / "samples.png").exists()
    open_run(tmp_path / "compare" / "mean-field")


def test_a_guide_with_parameters_for_each_datum_is_fitted_to_the_test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "UPDATES", 3)
    comparison = compare(guides=["mean-field", "local"], out=tmp_path / "compare", **TINY)
    assert comparison.failed == []
    assert comparison.notes == []
    trial = comparison["local"].trials[0]
    assert trial.fitted is not None
    assert trial.posterior is not None
    assert (trial.fitted.guide.size, trial.posterior.size) == (1438, 359)
    assert "local‡" in text(comparison)
    assert "‡ has parameters for each datum: for the test data fresh ones were fitted" in text(comparison)
    rows = json.loads((tmp_path / "compare" / "results.json").read_text())["rows"]
    assert [row["fitted_to_test"] for row in rows] == [False, True]
    assert all(p.requires_grad for p in trial.fitted.model.parameters())
