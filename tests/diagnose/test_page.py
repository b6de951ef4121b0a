"""The page as a browser shows it."""

from pathlib import Path

import pytest
from browser import look, needs_chromium
from made_findings import made_checks  # noqa: F401

import ppl_vae
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
