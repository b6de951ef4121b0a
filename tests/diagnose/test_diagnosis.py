"""The whole diagnosis: what runs, what is left out, what is said first, and what becomes of it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
from made_findings import BAD_NAME, made_checks, small_checks  # noqa: F401

import ppl_vae
from ppl_vae import Batch, InputError
from ppl_vae.diagnose import Diagnosis, LeftOut, Verdict, ais, from_netcdf
from ppl_vae.diagnose._arviz import groups_of
from ppl_vae.diagnose.checks import CHECKS
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


@pytest.fixture
def pair() -> tuple[LinearGaussian, LinearGaussianPosterior]:
    model = LinearGaussian()
    return model, LinearGaussianPosterior(model)


@pytest.fixture
def found(pair: Any, made_checks: None) -> Diagnosis:  # noqa: F811
    return ppl_vae.diagnose(*pair, pair[0].simulate(31), name=BAD_NAME)


def test_the_module_is_the_function_and_still_a_module() -> None:
    import ppl_vae.diagnose as module

    assert module is ppl_vae.diagnose
    assert ppl_vae.diagnose.ais is ais
    assert callable(ppl_vae.diagnose)


def test_what_fails_is_said_in_its_place_and_stops_no_other(found: Diagnosis) -> None:
    assert list(found.findings) == ["first", "second"]
    assert {name: each.kind for name, each in found.left_out.items()} == {"broken": "failed", "refused": "does not fit"}
    assert found.left_out["broken"].reason == "RuntimeError: out of memory"
    assert set(found.seconds) == {"broken", "first", "second", "refused"}
    with pytest.raises(InputError, match=r"check='broken' has no finding: RuntimeError: out of memory"):
        found["broken"]


def test_the_gravest_comes_first(found: Diagnosis) -> None:
    assert [verdict.fault for verdict in found.verdicts()] == [True, None, False, False]
    assert found.headline() == "The posterior is too narrow in dimensions 2 and 5."
    assert found.false_alarms == pytest.approx(0.01 + 2 * 0.05)
    summary = found.summary()
    places = [summary.index(text) for text in ("Faults:", "Cannot be told:", "No fault:", "Without an answer:")]
    assert places == sorted(places)
    assert f"Try: a richer guide than {BAD_NAME}" in summary.replace("Try: A", "Try: a")


@pytest.mark.parametrize(
    ("faults", "headline"),
    [
        ([], "Nothing can be said: no check gave an answer."),
        ([False, False], "No fault was found."),
        ([None, False], "No fault was found. 1 of 2 verdicts cannot be told from these numbers."),
        ([True, True], "Q is off; q is off."),
        ([True] * 5, "Q is off; q is off; q is off; and 2 more faults."),
    ],
)
def test_headline(faults: list[bool | None], headline: str) -> None:
    class Finding:
        def verdicts(self) -> list[Verdict]:
            return [Verdict("c", fault, "q is off." if fault else "fine", "s", 1.0, 2.0) for fault in faults]

    found = Diagnosis("pair", "data", 3, {"c": Finding()})  # type: ignore[dict-item]
    assert found.headline().lower() == headline.lower()


def test_the_headline_without_a_fault_counts_the_checks_without_an_answer() -> None:
    class Finding:
        def verdicts(self) -> list[Verdict]:
            return [Verdict("c", False, "fine", "s", 1.0, 2.0)]

    left_out = {"d": LeftOut("too few data", "does not fit")}
    found = Diagnosis("pair", "data", 3, {"c": Finding()}, left_out=left_out)  # type: ignore[dict-item]
    assert found.headline() == "No fault was found. 1 of 2 checks gave no answer."


def test_a_grave_fault_is_said_first_and_no_number_says_nothing() -> None:
    class Finding:
        def verdicts(self) -> list[Verdict]:
            return [
                Verdict("small", True, "it is shifted", "s", 1.0, 2.0),
                Verdict("fine", False, "fine", "s", 1.0, 2.0, grave=True),
                Verdict("grave", True, "it has collapsed", "s", 1.0, 2.0, grave=True),
                Verdict("nothing", False, "it is fine by nan", "s", float("nan"), 2.0),
            ]

    found = Diagnosis("pair", "data", 3, {"c": Finding()})  # type: ignore[dict-item]
    assert [each.check for each in found.verdicts()] == ["grave", "small", "nothing", "fine"]
    assert found.headline() == "It has collapsed; it is shifted."
    assert found.verdicts()[2].fault is None


def test_the_headline_leaves_brackets_to_the_whole_sentence() -> None:
    says = 'The posterior of p(z | x) is wrong in z[0] (0.17) and z[1] (most by log p(x, z) (a "joint")): q(z) is off.'

    class Finding:
        def verdicts(self) -> list[Verdict]:
            return [Verdict("c", True, says, "s", 1.0, 2.0)]

    found = Diagnosis("pair", "data", 3, {"c": Finding()})  # type: ignore[dict-item]
    assert found.headline() == "The posterior of p(z | x) is wrong in z[0] and z[1]: q(z) is off."
    assert says in found.summary()


def test_budgets_options_and_rows(pair: Any, made_checks: None) -> None:  # noqa: F811
    data = pair[0].simulate(31)
    quick = ppl_vae.diagnose(*pair, data, checks="first", budget="quick")
    assert quick.settings == {"first": {"data": 5, "particles": 10}}
    assert quick.rows["first"].tolist() == [0, 8, 15, 22, 30]
    thorough = ppl_vae.diagnose(*pair, data, checks=["first"], budget="thorough", options={"first": {"particles": 7}})
    assert thorough.settings == {"first": {"data": 31, "particles": 7}}
    assert thorough.rows["first"] is None
    trained_on = ppl_vae.diagnose(*pair, data, checks="second", train=pair[0].simulate(13))
    assert trained_on["second"].to_dataset().sizes["datum"] == 13


def test_rows_of_a_batch_are_kept(pair: Any, made_checks: None) -> None:  # noqa: F811
    batch = Batch(x=pair[0].simulate(20), rows=1000 + torch.arange(20))
    found = ppl_vae.diagnose(*pair, batch, checks="first", budget="quick")
    assert groups_of(found.to_arviz(draws=3))["first"]["datum"].values.tolist() == [1000, 1005, 1010, 1014, 1019]


def test_a_diagnosis_leaves_the_generator_as_it_is(pair: Any, made_checks: None) -> None:  # noqa: F811
    data = pair[0].simulate(5)
    before = torch.get_rng_state()
    ppl_vae.diagnose(*pair, data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"checks": "frist"}, r"checks='frist' is not known; did you mean 'first'\?"),
        ({"checks": []}, "asks for nothing"),
        ({"budget": "fast"}, "budget='fast' is not known; choose one of: quick, standard, thorough"),
        ({"options": {"frist": {}}}, "options has 'frist', which is not among the checks"),
        (
            {"options": {"first": {"particle": 1}}},
            r"options\['first'\]='particle' is not known; did you mean 'particles'",
        ),
        ({"options": {"first": {"data": -1}}}, r"options\['first'\]\['data'\]=-1 must be a whole number, 0 or more"),
        ({"data": torch.full((3, 2), float("nan"))}, r"x\[0, 0\] is nan"),
        ({"data": Batch(n=3)}, "holds no data"),
        ({"seed": "one"}, "seed='one' must be a whole number"),
    ],
)
def test_bad_input_is_refused_before_any_work(pair: Any, made_checks: None, wrong: Any, message: str) -> None:  # noqa: F811
    arguments = {"data": pair[0].simulate(5), **wrong}
    with pytest.raises(InputError, match=message):
        ppl_vae.diagnose(*pair, **arguments)


def test_one_object_holds_everything_and_comes_back_from_a_file(found: Diagnosis, tmp_path: Path) -> None:
    path = tmp_path / "all.nc"
    found.save(path)
    for data in (found.to_arviz(), from_netcdf(path)):
        groups = groups_of(data)
        assert set(groups) >= {"posterior", "prior", "log_likelihood", "sample_stats", "first", "second"}
        rows = [0, 3, 7, 10, 13, 17, 20, 23, 27, 30]
        assert groups["first"]["datum"].values.tolist() == rows
        assert groups["first"]["value"].values.tolist() == torch.linspace(0, 1, 10, dtype=torch.float64).tolist()
        assert [v["fault"] for v in json.loads(groups["first"].attrs["verdicts"])] == [False, None, True]
        assert json.loads(data.attrs["diagnosis"])["headline"] == found.headline()
    with pytest.raises(InputError, match="is there already"):
        found.save(path)
    with pytest.raises(InputError, match=r"a diagnosis is saved as netCDF, \.nc"):
        found.save(tmp_path / "all.html")


def test_json_is_plain(found: Diagnosis) -> None:
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["findings"]["first"] == {"mean": 0.5, "worst": None}
    assert values["left_out"]["refused"]["kind"] == "does not fit"
    assert values["settings"]["first"] == {"data": 10, "particles": 100}
    assert values["command"] == "ppl_vae.diagnose(model, guide, data, seed=0)"


class Reader(HTMLParser):
    """Tags, their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_takes_no_name_for_markup(found: Diagnosis, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    found.report(path)
    text = path.read_text(encoding="utf-8")
    read = Reader(text)
    tags = [tag for tag, _ in read.tags]
    assert "script" not in tags
    assert tags.count("b") == sum(v.fault is not False and bool(v.advice) for v in found.verdicts())  # "Try:" alone
    assert {"header", "main", "footer", "nav", "h1", "figure", "figcaption", "table", "caption"} <= set(tags)
    for tag, attributes in read.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "http" not in text.replace("http://www.w3.org/", "")
    drawings = [attributes for tag, attributes in read.tags if tag == "svg"]
    assert [d["aria-label"] for d in drawings] == [
        f"Values from 0 to 1 & of {BAD_NAME}.",
        "Four thousand points; a diagonal of eight squares.",
    ]
    said = " ".join(read.texts)
    for words in (BAD_NAME, "The posterior is too narrow in dimensions 2 and 5.", "RuntimeError: nothing to draw on"):
        assert words in said
    assert "ppl_vae.diagnose(model, guide, data, seed=0)" in said
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    with pytest.raises(InputError, match=r"a report is a page, \.html"):
        found.report(tmp_path / "report.pdf")


def test_a_page_is_whole_or_not_there(found: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.diagnose.diagnosis.page", lambda found: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        found.report(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_guide_of_each_datum_gets_its_rows(made_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    data = trained.data("fixed")
    model, _ = trained.pair()
    guide = ppl_vae.guides.Local(model, size=len(data))
    found = ppl_vae.diagnose(model, guide, data, checks="first", budget="quick")
    assert not found.left_out
    assert groups_of(found.to_arviz(draws=3))["first"]["datum"].values.tolist() == [0, 17, 34, 52, 69]
    train = trained.data("fixed", n=40, seed=1)
    with pytest.raises(InputError, match=r"Local has parameters for each datum of data: give train_guide"):
        ppl_vae.diagnose(model, guide, data, train=train, checks="second")
    with pytest.raises(InputError, match="there are none: give train as well"):
        ppl_vae.diagnose(model, guide, data, train_guide=guide, checks="second")
    theirs = ppl_vae.guides.Local(model, size=len(train))
    both = ppl_vae.diagnose(model, guide, data, train=train, train_guide=theirs, checks="second")
    assert both["second"].to_dataset().sizes["datum"] == 40


def test_every_check_can_be_loaded_and_takes_its_options() -> None:
    for check in CHECKS.values():
        for budget in ("quick", "standard", "thorough"):
            settings = check.settings(budget, {})  # type: ignore[arg-type]
            assert settings["data"] >= 0
            check.settings(budget, settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_verdict_is_documented_with_its_threshold_and_false_alarm_rate(tmp_path: Path) -> None:
    """All checks give an answer of a plain pair; the table of docs/diagnose.md has a row for each verdict."""
    few, many = trained.data("fixed", n=120), trained.data("fixed", n=120, seed=1)
    found = ppl_vae.diagnose(*trained.pair(), few, train=many, options=small_checks(100))
    assert not found.left_out
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    rows = dict(line.strip("| \n").split(" | ", 1) for line in page.splitlines() if line.startswith("| "))
    for verdict in found.verdicts():
        statistic, threshold, alarms = rows[verdict.check].split(" | ")
        assert statistic == verdict.statistic
        known = "not known" if verdict.false_alarm is None else f"{100 * verdict.false_alarm:.3g}%"
        assert alarms == known
        if not threshold.startswith("what chance makes"):
            assert float(threshold) == pytest.approx(verdict.threshold, abs=6e-4)
    assert set(found.findings) == set(CHECKS)
    path = tmp_path / "all.nc"
    found.save(path)
    for data in (found.to_arviz(), from_netcdf(path)):
        groups = groups_of(data)
        assert set(CHECKS) <= set(groups)
        assert not [name for name in data.attrs if name.startswith("without_")]
        gap = groups["inference_gap"]
        assert gap["datum"].values.tolist() == found.rows["inference_gap"].tolist()
        assert gap["approximation"].values.tolist() == found["inference_gap"].approximation.tolist()
        assert groups["reference"]["posterior"].dims == ("chain", "draw", "datum", "dim")
        assert groups["bdmc"]["gap"].values.tolist() == found["bdmc"].gap.tolist()
