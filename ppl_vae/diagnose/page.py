"""The page of a diagnosis: the verdict in plain words, figures, what to try next, what it takes to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .checks import CHECKS
from .page_parts import (
    document,
    facts,
    paragraph,
    pictures,
    sentence,
    table,
    verdict_list,
    verdict_table,
    words,
)
from .vector import Palette

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["page", "question", "settings_table", "sizes"]


def page(diagnosis: Diagnosis) -> str:
    """One HTML page, its style and figures inside, which asks nothing of a network and runs no program.

    Names, columns and messages are escaped wherever they came from. Figures are drawings whose colours follow the
    reader's light or dark setting; on a narrow screen tables become blocks, and a wide figure scrolls in its own box.
    """
    palette = Palette()
    anchors = {name: f"check-{k}" for k, name in enumerate(diagnosis.findings)}
    by_check = {
        verdict.check: anchors[name] for name, finding in diagnosis.findings.items() for verdict in finding.verdicts()
    }
    sections = [_verdict(diagnosis, by_check), _contents(diagnosis, anchors)]
    sections += [_check(diagnosis, name, anchors[name], palette) for name in diagnosis.findings]
    sections += [_left_out(diagnosis), _every(diagnosis), _again(diagnosis)]
    version = diagnosis.about.get("ppl-vae", "")
    return document(
        title=f"Diagnosis: {diagnosis.name}",
        header="\n".join(
            [
                paragraph("Can the posterior be trusted?", "kicker"),
                f"<h1>{escape(diagnosis.name)}</h1>",
                paragraph(f"{diagnosis.data} · {diagnosis.size:,} data", "meta"),
            ]
        ),
        main="\n".join(section for section in sections if section),
        footer=paragraph(f"Written by ppl_vae {version}. Nats throughout; ± is one standard error."),
        palette=palette,
        generator=f"ppl_vae {version}",
    )


def question(name: str) -> str:
    """What a check asks, as a heading."""
    return CHECKS[name].question if name in CHECKS else name


def _verdict(diagnosis: Diagnosis, anchors: Mapping[str, str]) -> str:
    verdicts = diagnosis.verdicts()
    graver = [verdict for verdict in verdicts if verdict.fault is not False]
    rest = [verdict for verdict in verdicts if verdict.fault is False]
    parts = ['<h2 id="verdict">Verdict</h2>', f'<p class="lead">{words(diagnosis.headline())}</p>']
    parts.append(verdict_list(graver, anchors))
    if rest:
        one = f"{len(rest)} verdict{'s' if len(rest) > 1 else ''} without a fault"
        opened = "" if graver else " open"
        parts.append(f"<details{opened}><summary>{one}</summary>\n{verdict_list(rest, anchors)}\n</details>")
    if diagnosis.left_out:
        names = ", ".join(diagnosis.left_out)
        parts.append(f'<p class="small">Without an answer: {escape(names)}. <a href="#left-out">Why</a>.</p>')
    return '<section aria-labelledby="verdict">\n' + "\n".join(parts) + "\n</section>"


def _contents(diagnosis: Diagnosis, anchors: Mapping[str, str]) -> str:
    links = {anchors[name]: question(name) for name in diagnosis.findings}
    if diagnosis.left_out:
        links["left-out"] = "Without an answer"
    links |= {"every": "Every verdict, with its threshold", "again": "To make this again"}
    items = "\n".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in links.items())
    return f'<nav aria-label="Contents"><ol>\n{items}\n</ol></nav>'


def _check(diagnosis: Diagnosis, name: str, anchor: str, palette: Palette) -> str:
    finding = diagnosis.findings[name]
    seconds = diagnosis.seconds.get(name)
    took = "" if seconds is None else f" · {seconds:.1f} s"
    parts = [
        f'<h2 id="{anchor}">{escape(question(name))}</h2>',
        paragraph(f"{name}: {sizes(diagnosis, name)}{took}", "meta"),
        verdict_list(finding.verdicts(), advised=False),
        pictures(finding, anchor, palette),
    ]
    return f'<section aria-labelledby="{anchor}">\n' + "\n".join(part for part in parts if part) + "\n</section>"


def sizes(diagnosis: Diagnosis, name: str) -> str:
    """Of how many data a check is, and its other sizes."""
    settings = dict(diagnosis.settings.get(name, {}))
    count = settings.pop("data", diagnosis.size)
    of = f"all {count:,} data" if count == diagnosis.size else f"{count:,} of {diagnosis.size:,} data, evenly spread"
    return ", ".join([of, *(f"{key.replace('_', ' ')} {_value(value)}" for key, value in settings.items())])


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _left_out(diagnosis: Diagnosis) -> str:
    if not diagnosis.left_out:
        return ""
    items = "\n".join(
        f'<li class="doubt"><p class="state">{escape(name)} {escape(each.kind)}</p>'
        f"<p>{escape(sentence(each.reason))}</p></li>"
        for name, each in diagnosis.left_out.items()
    )
    return (
        '<section aria-labelledby="left-out">\n<h2 id="left-out">Without an answer</h2>\n'
        f'<ul class="verdicts">\n{items}\n</ul>\n</section>'
    )


def _every(diagnosis: Diagnosis) -> str:
    verdicts = diagnosis.verdicts()
    caption = (
        "A fault is a value beyond its threshold. False alarms: how often that happens of a pair that has no fault."
    )
    known = sum(verdict.false_alarm is not None for verdict in verdicts)
    expected = (
        f"Of a pair without any fault these {known} verdicts with a known rate would find "
        f"{diagnosis.false_alarms:.2g} on average."
        if known
        else ""
    )
    return (
        '<section aria-labelledby="every">\n<h2 id="every">Every verdict, with its threshold</h2>\n'
        f"{verdict_table(verdicts, caption)}\n{paragraph(expected, 'small') if expected else ''}\n</section>"
    )


def settings_table(diagnosis: Diagnosis) -> str:
    """A row a check: of how many data, with which sizes, in how many seconds."""
    rows = [
        [escape(name), escape(sizes(diagnosis, name)), f"{diagnosis.seconds.get(name, 0.0):.1f}"]
        for name in diagnosis.settings
    ]
    return table(("check", "sizes", "seconds"), rows, f"Seed {diagnosis.seed} for each check.", numbers=(2,))


def _again(diagnosis: Diagnosis) -> str:
    parts = ['<h2 id="again">To make this again</h2>']
    if diagnosis.command:
        parts.append(f"<pre><code>{escape(diagnosis.command)}</code></pre>")
    parts.append(facts({"data": diagnosis.data, "budget": diagnosis.budget, **diagnosis.about}))
    parts.append(settings_table(diagnosis))
    return '<section aria-labelledby="again">\n' + "\n".join(parts) + "\n</section>"
