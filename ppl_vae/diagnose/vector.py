"""Matplotlib figures as SVG inside of a page: readable on light and on dark ground, with no name used twice."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from .findings import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GREYS", "PAPER", "Palette", "inline_svg"]

PAPER = {"light": "#fdfcf9", "dark": "#15171a"}
"""The ground of a page."""

_INK = {"light": "#1c1c1a", "dark": "#e8e6e0"}
_CONTRAST = 3.0  # of a line to its ground: Web Content Accessibility Guidelines 2.2, 1.4.11
_STEPS = 20
_MANY = 1500
_DPI = 144

GREYS = "--g{}"
"""The name of a grey, from 0, the ink, to 20, the paper."""

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_STYLE = re.compile(r'style="[^"]*"')
_AWAY = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", re.DOTALL)
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)')
_FONT = re.compile(r"font: ([^;\"]*?)'[^;\"]*|font-family: [^;\"]*")
_TAG = re.compile(r"<[^>]*>")
_LONG = re.compile(r"(\d+\.\d\d)\d+")
_SIZE = re.compile(r'<svg\b[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')


class Palette:
    """The colours of a page's figures, each by a name whose value depends on the ground.

    A grey keeps its distance from the ground: what is black on white is white on black. Another colour stays as it was
    drawn on light ground, and is mixed with white on dark ground until it stands out.
    """

    def __init__(self) -> None:
        self._colours: set[str] = set()

    def name(self, colour: str) -> str:
        """What to write in place of a colour #rrggbb."""
        red, green, blue = _channels(colour)
        if max(red, green, blue) - min(red, green, blue) <= 4:
            return f"var({GREYS.format(round(green / 255 * _STEPS))})"
        self._colours.add(colour)
        return f"var(--c{colour.removeprefix('#')})"

    def css(self, ground: str) -> str:
        """Declarations of all names on a "light" or "dark" ground."""
        greys = [f"{GREYS.format(k)}:{_mixed(_INK[ground], PAPER[ground], k / _STEPS)}" for k in range(_STEPS + 1)]
        others = [f"--c{c.removeprefix('#')}:{_bright(c) if ground == 'dark' else c}" for c in sorted(self._colours)]
        return ";".join([*greys, *others])


def inline_svg(picture: Picture, prefix: str, palette: Palette) -> str:
    """A figure as an `<svg>` element whose names begin with `prefix`, with its alternative text.

    Text stays text, in the page's own font. What has thousands of points becomes an image, on transparent ground.
    """
    from html import escape

    import matplotlib

    _lighten(picture.figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        picture.figure.savefig(buffer, format="svg", transparent=True, dpi=_DPI, metadata={"Date": None})
    text = _AWAY.sub("", buffer.getvalue())
    size = _SIZE.search(text)
    assert size is not None
    text = _STYLE.sub(lambda m: _COLOUR.sub(lambda c: palette.name(c[0]), m[0]), text)
    text = _FONT.sub(lambda m: f"font: {m[1]}var(--ui)" if m[1] is not None else "font-family: var(--ui)", text)
    text = text.replace("xlink:href", "href")
    text = _ID.sub(lambda m: f'id="{prefix}-{m[1]}"', text)
    text = _REFERENCE.sub(lambda m: f"{m[1]}{prefix}-", text)
    opening = (
        f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-label="{escape(picture.alt)}" '
        f'style="--w:{float(size[1]):.0f}">'
    )
    # places of six decimals are a third of the text, and a thousandth of a point is nothing; words stay as they are
    body = _TAG.sub(lambda m: _LONG.sub(r"\1", m[0]), text[text.index(size[0]) + len(size[0]) :])
    return opening + re.sub(r">\s+<", "><", body).strip()


def _lighten(figure: Figure) -> None:
    """Let what has many parts be drawn as an image."""
    from matplotlib.collections import Collection, QuadMesh
    from matplotlib.lines import Line2D

    for artist in figure.findobj():
        if isinstance(artist, QuadMesh):
            artist.set_rasterized(True)
        elif isinstance(artist, Collection):
            offsets: Any = artist.get_offsets()
            count = max(len(offsets), sum(len(path.vertices) for path in artist.get_paths()))  # type: ignore[misc, arg-type]
            if count > _MANY:
                _in_between(artist)
                artist.set_rasterized(True)
        elif isinstance(artist, Line2D) and len(artist.get_xdata(orig=False)) > _MANY:  # type: ignore[arg-type]
            artist.set_rasterized(True)


def _in_between(artist: Any) -> None:
    """Greys of an image become one that is seen on light and on dark ground."""
    import numpy as np

    for get, put in (("get_facecolor", "set_facecolor"), ("get_edgecolor", "set_edgecolor")):
        colours = np.asarray(getattr(artist, get)(), dtype=float)
        if colours.ndim == 2 and len(colours) and artist.get_array() is None:
            grey = np.ptp(colours[:, :3], axis=1) < 0.02
            colours[grey, :3] = 0.5
            getattr(artist, put)(colours)


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue


def _mixed(one: str, other: str, share: float) -> str:
    """A colour on the way from one to the other."""
    pairs = zip(_channels(one), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def _luminance(colour: str) -> float:
    """Relative luminance, by the Web Content Accessibility Guidelines."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _bright(colour: str) -> str:
    """A colour that stands out from the dark ground."""
    mixed = (_mixed(colour, "#ffffff", k / _STEPS) for k in range(_STEPS + 1))
    return next(c for c in mixed if _contrast(c, PAPER["dark"]) >= _CONTRAST)
