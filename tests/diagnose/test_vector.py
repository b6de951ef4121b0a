"""Figures as drawings inside of a page: what is written stays, colours follow the ground, names are used once."""

import re

import pytest

from ppl_vae.diagnose import Picture
from ppl_vae.diagnose.vector import PAPER, Palette, inline_svg
from ppl_vae.plots import figure_of


def picture(draw: str = "plot") -> Picture:
    figure = figure_of(4.0, 3.0)
    axis = figure.subplots()
    getattr(axis, draw)([0.0, 1.0, 2.0], [0.29631, 0.297125, 0.2984], color="#1f77b4")
    axis.set_yticks([0.29631, 0.297125, 0.2984], ["0.29631", "0.297125", "0.2984"])
    axis.set_title("sd 0.0123 & <0.05>")
    return Picture("one", figure, "caption", "alt")


def test_numbers_on_axes_are_whole_and_places_are_short() -> None:
    """0.2975 cut to two decimals would be a false tick."""
    drawn = inline_svg(picture(), "a", Palette())
    assert re.findall(r">(0\.29\d+)<", drawn) == ["0.29631", "0.297125", "0.2984"]
    assert "sd 0.0123 &amp; &lt;0.05&gt;" in drawn
    places = re.findall(r'\bd="([^"]+)"', drawn)
    assert len(places) > 3
    assert not any(re.search(r"\.\d{3}", place) for place in places)


def luminance(colour: str) -> float:
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return sum(
        w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        for w, v in zip((0.2126, 0.7152, 0.0722), values, strict=True)
    )


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_ink_and_colours_stand_out_from_the_ground(ground: str) -> None:
    palette = Palette()
    names = [palette.name(colour) for colour in ("#000000", "#ffffff", "#1f77b4", "#000055")]
    values = dict(each.split(":") for each in palette.css(ground).split(";"))
    ink, paper, blue, navy = (values[name.removeprefix("var(").removesuffix(")")] for name in names)
    assert paper == PAPER[ground]
    assert contrast(ink, paper) > 12
    assert contrast(blue, paper) >= 3
    assert contrast(navy, paper) >= 3


def test_names_of_two_figures_do_not_clash() -> None:
    palette = Palette()
    both = inline_svg(picture(), "a", palette) + inline_svg(picture("scatter"), "b", palette)
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert len(ids) == len(set(ids)) > 10
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', both)
    assert {a or b for a, b in used} <= set(ids)
    assert "#1f77b4" not in both
    assert "var(--c1f77b4)" in both
