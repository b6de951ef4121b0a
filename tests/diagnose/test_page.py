"""The page as a browser shows it."""

import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, look, needs_chromium
from made_findings import made_checks  # noqa: F401

import ppl_vae
from ppl_vae.diagnose.page_parts import words
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


@needs_chromium
@pytest.mark.usefixtures("made_checks")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(dark: bool, tmp_path: Path) -> None:
    model = LinearGaussian()
    found = ppl_vae.diagnose(model, LinearGaussianPosterior(model), model.simulate(31))
    found.report(tmp_path / "report.html")
    frames, console = look(tmp_path / "report.html", {"phone": 360, "desktop": 1200}, dark)
    assert not console
    for name, width in (("phone", 360), ("desktop", 1200)):
        page = frames[name]
        assert page["width"] in range(width - 20, width + 1)
        assert page["scroll"] <= width
        assert page["wide"] == []
        assert page["title"] == f"Diagnosis: {found.name}"
        assert len(page["drawn"]) == 2
        for drawn in page["drawn"]:
            assert drawn["width"] > 200
            assert drawn["height"] > 60
            assert drawn["marks"] > 10
        assert len(page["images"]) == 2
        assert min(page["images"]) > 20
        assert page["ground"] == ("rgb(21, 23, 26)" if dark else "rgb(253, 252, 249)")
        assert page["ink"] == page["lines"] == ("rgb(232, 230, 224)" if dark else "rgb(28, 28, 26)")
        assert page["outside"] == []
        assert set(page["anchors"]) <= set(page["ids"])
        assert page["headings"][0] == 1
        assert page["headings"].count(1) == 1
        assert all(b - a <= 1 for a, b in zip(page["headings"], page["headings"][1:], strict=False))


@pytest.mark.slow
def test_a_comparison_has_a_page_of_its_own(tmp_path: Path) -> None:
    found = ppl_vae.compare(
        guides=["mean-field", "full-rank"],
        checks="sbc,latent_checks",
        out=tmp_path / "out",
        latent=2,
        hidden=(8,),
        epochs=1,
        eval_particles=5,
        compile=False,
    )
    assert list(found.diagnoses) == ["mean-field", "full-rank"]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(results["diagnoses"]) == set(found.diagnoses)
    page = tmp_path / "out" / "comparison.html"
    assert "comparison.html" in results["files"]
    text = page.read_text(encoding="utf-8")
    for diagnosis in found.diagnoses.values():
        assert words(diagnosis.headline()) in text
    shared = len([name for name in results["files"] if name.endswith(".png")])
    own = sum(len(list(finding.pictures())) for d in found.diagnoses.values() for finding in d.findings.values())
    alts = re.findall(r'role="img" aria-label="([^"]+)"', text)
    assert "<img" not in text
    assert (shared, own, len(alts)) == (5, 10, 15)
    assert all(re.search(r"\d", alt) for alt in alts)
    elbo = found["full-rank"].evaluation.elbo.mean
    assert f"full-rank ELBO {elbo:.2f}" in alts[0]
    assert len(found.diagnoses["mean-field"].verdicts()) == 4
    if CHROMIUM is None:
        return
    # what is folded away is laid out too where it is opened
    opened = page.with_name("opened.html")
    opened.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    for dark in (False, True):
        frames, console = look(opened, {"phone": 360, "desktop": 1200}, dark)
        assert not console
        for name, width in (("phone", 360), ("desktop", 1200)):
            assert frames[name]["scroll"] <= width
            assert frames[name]["wide"] == []
            assert frames[name]["outside"] == []
            assert len(frames[name]["drawn"]) == 15
            # samples are an image a guide in a frame, everything else is of many marks
            assert sorted(drawn["marks"] > 10 for drawn in frames[name]["drawn"]) == [False] + [True] * 14
            assert min(drawn["marks"] for drawn in frames[name]["drawn"]) >= 4
            assert len(frames[name]["images"]) >= 2 + 3 * 10
            assert min(frames[name]["images"]) > 10
            assert frames[name]["ink"] == frames[name]["lines"]
            assert frames[name]["ground"] == ("rgb(21, 23, 26)" if dark else "rgb(253, 252, 249)")
            assert set(frames[name]["anchors"]) <= set(frames[name]["ids"])
