"""Headless Chromium, for what only a browser can tell of a page."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

_LOOK = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  const drawn = [...page.querySelectorAll("figure svg, figure img")].map((each) => {
    const box = each.getBoundingClientRect();
    const marks = each.tagName === "IMG" ? each.naturalWidth
      : [...each.querySelectorAll("path, use, image")].filter((mark) => { const b = mark.getBoundingClientRect();
          return b.width > 0 || b.height > 0; }).length;
    return {width: box.width, height: box.height, marks: marks};
  });
  const images = [...page.querySelectorAll("svg image")].map((each) => each.getBoundingClientRect().width);
  const wide = [...page.querySelectorAll("main > * *")].filter((each) => !each.closest(".plot")
      && each.getBoundingClientRect().right > root.clientWidth + 1).map((each) => each.outerHTML.slice(0, 120));
  found[frame.id] = {
    width: root.clientWidth, scroll: root.scrollWidth, drawn: drawn, images: images, wide: wide, title: page.title,
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.body).color,
    lines: [...page.querySelectorAll("figure svg text")].map((t) => frame.contentWindow.getComputedStyle(t).fill)[0],
    ids: [...page.querySelectorAll("[id]")].map((each) => each.id),
    headings: [...page.querySelectorAll("h1, h2, h3, h4")].map((each) => Number(each.tagName[1])),
    anchors: [...page.querySelectorAll("a[href^='#']")].map((each) => each.getAttribute("href").slice(1)),
    outside: frame.contentWindow.performance.getEntriesByType("resource").map((each) => each.name)
      .filter((name) => !name.startsWith("data:")),
  };
}
document.getElementById("found").textContent = JSON.stringify(found);
"""


def look(page: Path, widths: dict[str, int], dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What a page is in frames of some widths, and what the browser's console says.

    A window cannot be narrower than its buttons, and a frame can. The frames hold the page itself, no address.
    """
    assert CHROMIUM is not None
    text = escape(page.read_text(encoding="utf-8"))
    frames = "".join(
        f'<iframe id="{name}" style="width:{width}px;height:800px;border:0" srcdoc="{text}"></iframe>'
        for name, width in widths.items()
    )
    wrapper = page.with_name(f"{page.stem}-looked-at.html")
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="found"></pre>{frames}'
        f'<script>addEventListener("load", () => {{{_LOOK}}})</script>',
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            *[CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"],
            *(["--force-dark-mode"] if dark else []),
            *[f"--user-data-dir={page.parent / 'chromium'}", "--enable-logging=stderr", "--v=0", "--dump-dom"],
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console
