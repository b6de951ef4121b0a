"""What pages are made of: their style, and pieces of HTML in which nothing is taken for markup that is none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template

from ..report import one_line
from .findings import Finding, Picture, Verdict
from .vector import PAPER, Palette, inline_svg

__all__ = [
    "CLASS",
    "STATE",
    "document",
    "drawn",
    "facts",
    "figure",
    "number",
    "paragraph",
    "percent",
    "pictures",
    "sentence",
    "table",
    "verdict_list",
    "verdict_table",
    "words",
]

STATE = {True: "Fault", None: "Cannot be told", False: "No fault"}
"""In words, by `Verdict.fault`."""

CLASS = {True: "fault", None: "doubt", False: "fine"}
"""In the style, likewise."""

_DOCUMENT = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="$generator">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style
</style>
</head>
<body>
<header>
$header
</header>
<main>
$main
</main>
<footer>
$footer
</footer>
</body>
</html>
""")

_STYLE = Template("""\
:root{color-scheme:light dark;--paper:$light;--ink:#1c1c1a;--soft:#5d5b55;--line:#dcd8ce;--card:#f5f2ea;
--fault:#a3231c;--doubt:#7a5200;--fine:#1f6b3a;--link:#1f4f99;
--ui:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Helvetica,Arial,"DejaVu Sans",sans-serif;
--text:Charter,"Bitstream Charter","Iowan Old Style","Palatino Linotype",Palatino,P052,Georgia,"DejaVu Serif",serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
$light_colours}
@media (prefers-color-scheme:dark){:root{--paper:$dark;--ink:#e8e6e0;--soft:#a9a69e;--line:#34373c;--card:#1d2024;
--fault:#ff9d92;--doubt:#f0c15c;--fine:#86d39d;--link:#8fb8ff;
$dark_colours}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1.0625rem/1.6 var(--text);overflow-wrap:break-word}
header,main,footer{max-width:46rem;margin:0 auto;padding:0 1.1rem}
header{padding-top:2.6rem}
footer{padding-top:1.5rem;padding-bottom:3rem;color:var(--soft);font:.875rem/1.5 var(--ui)}
a{color:var(--link);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--link);outline-offset:3px}
h1{font-size:1.95rem;line-height:1.18;font-weight:600;letter-spacing:-.012em;margin:.2rem 0 .5rem;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;font-weight:600;margin:3.2rem 0 .5rem;text-wrap:balance}
h3{font-size:1.06rem;line-height:1.35;font-weight:600;margin:1.8rem 0 .4rem}
p{margin:.65rem 0}
.kicker,.meta,.small,nav,th,caption,figcaption,summary,.state,dt{font-family:var(--ui)}
.kicker{margin:0;color:var(--soft);font-size:.8125rem;letter-spacing:.04em}
.meta,.small{color:var(--soft);font-size:.875rem;line-height:1.5}
.lead{font-size:1.28rem;line-height:1.5;margin:.6rem 0 1.2rem}
nav{font-size:.9rem;line-height:1.5;border-top:1px solid var(--line);margin-top:2rem;padding-top:.8rem}
nav ol{margin:.3rem 0;padding-left:1.4rem}
nav li{padding:.16rem 0}
.verdicts{list-style:none;padding:0;margin:1rem 0}
.verdicts li{border-left:3px solid var(--tone);padding:.05rem 0 .05rem .9rem;margin:.95rem 0}
.verdicts p{margin:.15rem 0}
.fault{--tone:var(--fault)}.doubt{--tone:var(--doubt)}.fine{--tone:var(--fine)}
.state{color:var(--tone);font-size:.8125rem;font-weight:650}
.state a{color:inherit;font-weight:400}
.try{color:var(--soft)}
.try b{color:var(--ink);font-weight:600}
details{margin:1rem 0}
summary{cursor:pointer;font-size:.95rem;color:var(--link);padding:.3rem 0}
figure{margin:1.6rem 0 2.2rem}
figcaption{font-size:.875rem;line-height:1.5;color:var(--soft);margin-top:.5rem;max-width:40rem}
.plot{overflow-x:auto;overflow-y:hidden}
.plot svg{display:block;margin:0 auto;width:100%;height:auto;max-width:calc(var(--w)*1.3px)}
.plot svg{min-width:calc(var(--w)*.72px);fill:currentColor;stroke-linejoin:round;stroke-linecap:butt;color:var(--ink)}
.plot text{font-family:var(--ui)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font:.875rem/1.45 var(--ui);font-variant-numeric:tabular-nums;margin:1rem 0}
caption{text-align:left;color:var(--soft);font-size:.875rem;padding-bottom:.5rem}
th,td{text-align:left;vertical-align:top;padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line)}
thead th{font-weight:600;color:var(--soft);border-bottom-color:var(--soft)}
tbody th{font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;font-size:.9375rem;margin:1rem 0}
dt{color:var(--soft);font-size:.875rem}
dd{margin:0;min-width:0}
code,pre{font-family:var(--mono);font-size:.875em}
pre{background:var(--card);border:1px solid var(--line);border-radius:4px;padding:.75rem .9rem;white-space:pre-wrap;
overflow-wrap:anywhere;line-height:1.5}
@media (max-width:46rem){
body{font-size:1.03rem}
h1{font-size:1.6rem}
.lead{font-size:1.15rem}
dl{grid-template-columns:1fr;gap:.05rem}
dd{margin-bottom:.55rem}
.stack caption{display:block;width:100%}
.stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.stack,.stack tbody,.stack tr,.stack th,.stack td{display:block;width:100%;border:0;padding:.12rem 0;text-align:left}
.stack tr{border-bottom:1px solid var(--line);padding:.7rem 0}
.stack td.n{white-space:normal;text-align:left}
.stack td[data-label]::before{content:attr(data-label) ": ";color:var(--soft)}
}
@media print{details{display:block}nav{display:none}.plot{overflow:visible}.plot svg{min-width:0}}""")


def document(title: str, header: str, main: str, footer: str, palette: Palette, generator: str) -> str:
    """A whole page. `header`, `main` and `footer` are HTML, `title` and `generator` text."""
    style = _STYLE.substitute(
        light=PAPER["light"],
        dark=PAPER["dark"],
        light_colours=palette.css("light"),
        dark_colours=palette.css("dark"),
    )
    return _DOCUMENT.substitute(
        title=escape(title), style=style, header=header, main=main, footer=footer, generator=escape(generator)
    )


def sentence(text: str) -> str:
    """Text as a sentence, with a capital letter and a full stop; a symbol that it begins with stays as it is."""
    text = text.strip()
    first = re.match(r"[a-z]{2,}(?=[\s,])", text)
    stop = "" if text.endswith((".", "!", "?")) else "."
    return (text[:1].upper() + text[1:] if first else text) + stop


def words(text: str) -> str:
    """Text as HTML, in which no line ends within "p(z | x)" or before an error."""
    return escape(text).replace(" | ", "&nbsp;|&nbsp;").replace(" ± ", "&nbsp;±&nbsp;")


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph of a class."""
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{words(text)}</p>"


def number(value: float) -> str:
    """A number with three digits that count: "0.0312", "12.3", "1,234"."""
    if value != value:
        return "–"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.3g}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A rate; an en dash where there is none."""
    return "not known" if value is None else f"{100 * value:.3g}%"


def facts(values: Mapping[str, str]) -> str:
    """Names and what they are."""
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f"<dl>\n{rows}\n</dl>"


def verdict_list(verdicts: Iterable[Verdict], names: Mapping[str, str] | None = None, advised: bool = True) -> str:
    """Verdicts with what to try next; `names`: where each check is on the page."""
    items = []
    for verdict in verdicts:
        link = (names or {}).get(verdict.check)
        of = f' · <a href="#{escape(link)}">{escape(verdict.check)}</a>' if link else f" · {escape(verdict.check)}"
        said = verdict.speaks_of == "these data" or verdict.speaks_of in verdict.says
        about = "" if said else f" It speaks of {escape(verdict.speaks_of)}."
        advice = (
            f'<p class="try"><b>Try:</b> {words(sentence(verdict.advice))}</p>' if advised and verdict.advice else ""
        )
        items.append(
            f'<li class="{CLASS[verdict.fault]}"><p class="state">{STATE[verdict.fault]}{of}</p>'
            f"<p>{words(sentence(verdict.says))}{about}</p>{advice}</li>"
        )
    return '<ul class="verdicts">\n' + "\n".join(items) + "\n</ul>" if items else ""


def verdict_table(verdicts: Iterable[Verdict], caption: str) -> str:
    """A row a verdict: statistic, value, threshold, false-alarm rate."""
    rows = []
    for each in verdicts:
        value, threshold = number(each.value), number(each.threshold)
        rows.append(
            [
                f'<span class="state {CLASS[each.fault]}">{STATE[each.fault]}</span>',
                escape(each.statistic),
                escape(value),
                escape(threshold),
                escape(percent(each.false_alarm)),
                escape(each.speaks_of),
            ]
        )
        rows[-1].insert(0, escape(each.check))
    heads = ("check", "verdict", "statistic", "value", "threshold", "false alarms", "speaks of")
    return table(heads, rows, caption, numbers=(3, 4, 5))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, numbers: Sequence[int] = ()) -> str:
    """Rows of HTML cells, the first a heading; on a narrow screen each row becomes a block."""
    mark = {k: ' class="n"' for k in numbers}
    head = "".join(
        f'<th scope="col" role="columnheader"{mark.get(k, "")}>{escape(h)}</th>' for k, h in enumerate(heads)
    )
    body = []
    for row in rows:
        first = f'<th scope="row" role="rowheader">{row[0]}</th>'
        rest = "".join(
            f'<td role="cell" data-label="{escape(heads[k])}"{mark.get(k, "")}>{cell}</td>'
            for k, cell in enumerate(row[1:], 1)
        )
        body.append(f'<tr role="row">{first}{rest}</tr>')
    # roles said again: a table whose display is changed is no table to some screen readers
    return (
        f'<table class="stack" role="table"><caption>{escape(caption)}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n<tbody role="rowgroup">\n'
        + "\n".join(body)
        + "\n</tbody></table>"
    )


def figure(picture: Picture, prefix: str, palette: Palette) -> str:
    """A picture with its caption."""
    # a box that may scroll must be reached by the keyboard, and have a name
    return (
        f'<figure><div class="plot" tabindex="0" role="group" aria-label="{escape(picture.caption[:80])}">'
        f"{inline_svg(picture, prefix, palette)}</div>\n<figcaption>{words(picture.caption)}</figcaption></figure>"
    )


def pictures(finding: Finding, prefix: str, palette: Palette) -> str:
    """A finding's pictures; of one that cannot be drawn, why."""
    try:
        made = list(finding.pictures())
    except Exception as error:
        return paragraph(f"Its figures could not be drawn: {type(error).__name__}: {one_line(error)}", "small")
    return drawn(made, prefix, palette)


def drawn(made: Iterable[Picture], prefix: str, palette: Palette) -> str:
    """Pictures one after another; in the place of one that cannot be drawn, why."""
    parts = []
    for k, picture in enumerate(made):
        try:
            name = re.sub(r"[^A-Za-z0-9-]", "-", picture.name)
            parts.append(figure(picture, f"{prefix}-{name}-{k}", palette))
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            parts.append(paragraph(f"The figure “{picture.name}” could not be drawn: {reason}", "small"))
    return "\n".join(parts)
