"""The page over several guides, as a diagnosis's: drawings that follow the ground, each with a text for who cannot see
them, and words of the faults of each."""

import re

import torch
from made_findings import BAD_NAME, Made

from ppl_vae.diagnose import Diagnosis, Picture
from ppl_vae.diagnose.comparison_page import comparison_page
from ppl_vae.diagnose.page_parts import words


def page(faults: dict[str, list[bool | None]], drawable: bool = False) -> str:
    diagnoses = {
        guide: Diagnosis("pair", "data", 10, {"first": Made(torch.linspace(0, 1, 10), each, drawable)} if each else {})
        for guide, each in faults.items()
    }
    pictures = Made(torch.ones(9), ()).pictures() if drawable else []
    shared = [Picture("training", picture.figure, picture.caption, picture.alt) for picture in pictures[:1]]
    numbers = [[guide, "-22.0 ± 0.1", "3.0 ± 0.1", "-21.0 ± 0.1", "500"] for guide in faults]
    heads = ["guide", "ELBO", "KL", "log p(x)", "ESS"]
    return comparison_page("vae", "digits", diagnoses, heads, numbers, ["a note"], shared, {"seeds": "0"})


def test_every_guide_has_its_verdicts_and_figures() -> None:
    text = page({"full-rank": [False], BAD_NAME: [True, None]}, drawable=True)
    assert "<img" not in text
    assert "http" not in text.replace("http://www.w3.org/", "")
    assert "prefers-color-scheme:dark" in text
    assert BAD_NAME not in text
    # one picture of all guides, and two of each guide's own finding
    alts = re.findall(r'<svg viewBox="[^"]*" role="img" aria-label="([^"]+)"', text)
    assert len(alts) == 1 + 2 * 2
    assert text.count("<figcaption>") == 5
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {a for a in re.findall(r'<a href="#([^"]+)"', text)} <= set(ids)
    assert '<p class="lead">No fault was found in full-rank; in the others more were.</p>' in text
    assert "<p>The posterior is too narrow in dimensions 2 and 5.</p>" in text
    assert 'class="state fine">No fault</span> 0.12' in text
    statistic = Made(torch.ones(2), [False]).verdicts()[0].statistic
    assert f'<br><span class="small">{words(statistic)}</span></th>' in text


def test_no_line_ends_within_a_formula() -> None:
    assert words("KL(q ‖ p(z | x)) is 0.1 ± 0.2 <b>") == "KL(q ‖ p(z&nbsp;|&nbsp;x)) is 0.1&nbsp;±&nbsp;0.2 &lt;b&gt;"


def test_who_has_the_fewest_faults() -> None:
    assert "No fault was found in any guide." in page({"a": [False], "b": [False]})
    assert "2 faults were found in a and b; in the others more were." in page(
        {"a": [True, True], "b": [True, True], "c": [True] * 3}
    )
    assert "One fault was found in a." in page({"a": [True]})
    assert "Nothing can be said: no check gave an answer." in page({"a": []})
