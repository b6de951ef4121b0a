"""The page of a comparison: the verdicts on several guides side by side, their numbers, and the pictures."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .page import question, settings_table
from .page_parts import STATE, document, facts, image, number, paragraph, sentence, table, verdict_list
from .vector import Palette

if TYPE_CHECKING:
    from .diagnosis import Diagnosis
    from .findings import Verdict

__all__ = ["PICTURES", "comparison_page"]

PICTURES = {
    "training": "ELBO, reconstruction and KL by epoch, under each guide.",
    "reconstructions": "Test data and their reconstructions at the posterior mean, under each guide.",
    "samples": "Samples of each model, from its prior.",
    "latent": "Posterior means of the test data, by class where there are classes, under each guide.",
    "posterior": "q(z | x) over the exact posterior of a few data, under each guide.",
    "seeds": "Each guide's numbers, seed by seed.",
}
"""Captions of a comparison's pictures, by name."""

_CLASS = {True: "fault", None: "doubt", False: "fine"}


def comparison_page(
    title: str,
    data: str,
    diagnoses: Mapping[str, Diagnosis],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    images: Mapping[str, Path],
    about: Mapping[str, str],
) -> str:
    """One HTML page, like that of a diagnosis, over several guides.

    Args:
        title: what is compared.
        data: which data the numbers are of.
        diagnoses: by guide.
        heads, rows: a table of numbers, a row a guide.
        notes: what must be said below it.
        images: PNG files by name, see `PICTURES`.
        about: seeds, versions, machine.
    """
    anchors = {guide: f"guide-{k}" for k, guide in enumerate(diagnoses)}
    sections = [
        _section("verdict", "Verdict", [_headlines(diagnoses, anchors), _side_by_side(diagnoses)]),
        _section(
            "numbers",
            "Numbers",
            [
                table(heads, [[escape(cell) for cell in row] for row in rows], data, range(1, len(heads))),
                *(paragraph(note, "small") for note in notes),
            ],
        ),
        _section("pictures", "Pictures", [_picture(name, path) for name, path in images.items()]),
        *(_guide(guide, each, anchors[guide]) for guide, each in diagnoses.items()),
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
        main="\n".join(sections),
        footer=paragraph(f"Written by ppl_vae {version}. Nats throughout; ± is one standard error."),
        palette=Palette(),
        generator=f"ppl_vae {version}",
    )


def _section(anchor: str, heading: str, parts: Sequence[str]) -> str:
    inner = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(heading)}</h2>\n{inner}\n</section>'


def _headlines(diagnoses: Mapping[str, Diagnosis], anchors: Mapping[str, str]) -> str:
    items = []
    for guide, each in diagnoses.items():
        tone = "fault" if each.faults else "fine" if each.findings else "doubt"
        count = len(each.faults)
        state = f"{count} fault{'s' if count != 1 else ''}" if each.findings else "No answer"
        items.append(
            f'<li class="{tone}"><p class="state"><a href="#{anchors[guide]}">{escape(guide)}</a> · {state}</p>'
            f"<p>{escape(each.headline())}</p></li>"
        )
    return '<ul class="verdicts">\n' + "\n".join(items) + "\n</ul>"


def _side_by_side(diagnoses: Mapping[str, Diagnosis]) -> str:
    by_guide = {guide: {v.check: v for v in reversed(each.verdicts())} for guide, each in diagnoses.items()}
    checks = list(dict.fromkeys(v.check for each in diagnoses.values() for v in each.verdicts()))
    rows = [[escape(check), *(_cell(by_guide[guide].get(check)) for guide in diagnoses)] for check in checks]
    caption = "Each verdict, and its statistic's value. The thresholds are the same for all guides, but for those that "
    return table(("verdict", *diagnoses), rows, f"{caption}depend on the number of latent dimensions and draws.")


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    state = f'<span class="state {_CLASS[verdict.fault]}">{STATE[verdict.fault]}</span>'
    return f"{state} {escape(number(verdict.value))}"


def _picture(name: str, path: Path) -> str:
    drawn = path.read_bytes()
    width, _ = struct.unpack(">II", drawn[16:24])  # the header of a PNG
    caption = PICTURES.get(name, name)
    return image(base64.b64encode(drawn).decode("ascii"), width, caption, caption)


def _guide(guide: str, diagnosis: Diagnosis, anchor: str) -> str:
    asked = "; ".join(question(name) for name in diagnosis.findings)
    left_out = [
        paragraph(f"{name} {each.kind}: {sentence(each.reason)}", "small") for name, each in diagnosis.left_out.items()
    ]
    return _section(
        anchor,
        guide,
        [paragraph(asked, "meta"), verdict_list(diagnosis.verdicts()), *left_out, settings_table(diagnosis)],
    )
