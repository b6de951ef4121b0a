"""The page of a comparison: the verdicts on several guides side by side, their numbers, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from .page import question, settings_table, sizes
from .page_parts import (
    CLASS,
    STATE,
    document,
    drawn,
    facts,
    number,
    paragraph,
    pictures,
    sentence,
    table,
    verdict_list,
    words,
)
from .vector import Palette

if TYPE_CHECKING:
    from .diagnosis import Diagnosis
    from .findings import Picture, Verdict

__all__ = ["comparison_page"]


def comparison_page(
    title: str,
    data: str,
    diagnoses: Mapping[str, Diagnosis],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    shared: Sequence[Picture],
    about: Mapping[str, str],
) -> str:
    """One HTML page, like that of a diagnosis, over several guides: light and dark, for a phone, with nothing asked of
    a network.

    Args:
        title: what is compared.
        data: which data the numbers are of.
        diagnoses: by guide.
        heads, rows: a table of numbers, a row a guide.
        notes: what must be said below it.
        shared: pictures of all guides; each guide's own are those of its diagnosis.
        about: seeds, settings, versions, machine.
    """
    palette = Palette()
    anchors = {guide: f"guide-{k}" for k, guide in enumerate(diagnoses)}
    sections = [
        _section("verdict", "Verdict", [_lead(diagnoses), _headlines(diagnoses, anchors), _side_by_side(diagnoses)]),
        _section(
            "numbers",
            "Numbers",
            [
                table(heads, [[escape(cell) for cell in row] for row in rows], data, range(1, len(heads))),
                *(paragraph(note, "small") for note in notes),
            ],
        ),
        _section("pictures", "Pictures", [drawn(shared, "shared", palette)]) if shared else "",
        *(_guide(guide, each, anchors[guide], palette) for guide, each in diagnoses.items()),
        _section("again", "To make this again", [facts({"data": data, **about})]),
    ]
    version = about.get("ppl_vae", "")
    return document(
        title=f"Comparison: {title}",
        header="\n".join(
            [
                paragraph("Which guide, and can it be trusted?", "kicker"),
                f"<h1>{escape(title)}</h1>",
                paragraph(data, "meta"),
            ]
        ),
        main="\n".join(section for section in sections if section),
        footer=paragraph(f"Written by ppl_vae {version}. Nats throughout; ± is one standard error."),
        palette=palette,
        generator=f"ppl_vae {version}",
    )


def _section(anchor: str, heading: str, parts: Sequence[str]) -> str:
    inner = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(heading)}</h2>\n{inner}\n</section>'


def _lead(diagnoses: Mapping[str, Diagnosis]) -> str:
    """Which guides have the fewest faults, in words."""
    counts = {guide: len(each.faults) for guide, each in diagnoses.items() if each.findings}
    if not counts:
        return paragraph("Nothing can be said: no check gave an answer.", "lead")
    least = min(counts.values())
    best = [guide for guide, count in counts.items() if count == least]
    found = {0: "No fault was", 1: "One fault was"}.get(least, f"{least} faults were")
    of = (
        "any guide"
        if least == 0 and len(best) == len(counts) > 1
        else "each guide"
        if len(best) == len(counts) > 1
        else " and ".join(best)
    )
    rest = "" if len(best) == len(counts) else "; in the others more were"
    return paragraph(f"{found} found in {of}{rest}.", "lead")


def _headlines(diagnoses: Mapping[str, Diagnosis], anchors: Mapping[str, str]) -> str:
    items = []
    for guide, each in diagnoses.items():
        tone = "fault" if each.faults else "fine" if each.findings else "doubt"
        count = len(each.faults)
        state = f"{count} fault{'s' if count != 1 else ''}" if each.findings else "No answer"
        items.append(
            f'<li class="{tone}"><p class="state"><a href="#{anchors[guide]}">{escape(guide)}</a> · {state}</p>'
            f"<p>{words(each.headline())}</p></li>"
        )
    return '<ul class="verdicts">\n' + "\n".join(items) + "\n</ul>"


def _side_by_side(diagnoses: Mapping[str, Diagnosis]) -> str:
    by_guide = {guide: {v.check: v for v in reversed(each.verdicts())} for guide, each in diagnoses.items()}
    checks = list(dict.fromkeys(v.check for each in diagnoses.values() for v in each.verdicts()))
    rows = []
    for check in checks:
        found = [by_guide[guide].get(check) for guide in diagnoses]
        statistic = next(verdict.statistic for verdict in found if verdict is not None)
        named = f'{escape(check)}<br><span class="small">{words(statistic)}</span>'
        rows.append([named, *map(_cell, found)])
    caption = (
        "Each verdict, with its statistic, of which the numbers are. The thresholds are the same for all guides, but "
        "for those that depend on the number of latent dimensions and draws."
    )
    return table(("verdict", *diagnoses), rows, caption)


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    state = f'<span class="state {CLASS[verdict.fault]}">{STATE[verdict.fault]}</span>'
    return f"{state} {escape(number(verdict.value))}"


def _guide(guide: str, diagnosis: Diagnosis, anchor: str, palette: Palette) -> str:
    left_out = [
        paragraph(f"{name} {each.kind}: {sentence(each.reason)}", "small") for name, each in diagnosis.left_out.items()
    ]
    figures = [
        f"<h3>{escape(question(name))}</h3>\n{paragraph(f'{name}: {sizes(diagnosis, name)}', 'meta')}\n"
        f"{pictures(finding, f'{anchor}-{k}', palette)}"
        for k, (name, finding) in enumerate(diagnosis.findings.items())
    ]
    folded = f"<details><summary>Figures of {escape(guide)}</summary>\n" + "\n".join(figures) + "\n</details>"
    return _section(
        anchor,
        guide,
        [verdict_list(diagnosis.verdicts()), *left_out, folded if figures else "", settings_table(diagnosis)],
    )
