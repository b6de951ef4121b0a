import io
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from rich.console import Console

from ppl_vae import plots
from ppl_vae.batch import Batch
from ppl_vae.compare import Comparison, _groups, compare, of_each_class, pictures_for
from ppl_vae.data import DataSet, load
from ppl_vae.diagnose import from_netcdf, summary
from ppl_vae.errors import InputError
from ppl_vae.guides import MeanField, guides
from ppl_vae.runs import open_run

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
    groups = _groups(data)
    assert {"posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data"} <= groups.keys()
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})  # what ArviZ 1.x has
    again = _groups(tree)
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


def test_a_refusal_of_the_first_guide_leaves_nothing(faulty: type[Faulty], tmp_path: Path) -> None:
    out = tmp_path / "new" / "compare"
    faulty.fault = "refused"
    with pytest.raises(InputError, match="batch_size=5000"):
        compare(out=out, **{**TINY, "batch_size": 5000})
    with pytest.raises(InputError, match="a mood of its own"):
        compare(guides=["faulty", "mean-field"], out=out, **TINY)
    assert list(tmp_path.iterdir()) == []
    comparison = compare(guides=["mean-field", "faulty"], **TINY)
    assert comparison["faulty"].error == "InputError: this guide has a mood of its own"


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
