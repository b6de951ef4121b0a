"""docs/combinations.md says of every model, guide and objective what goes together, as the product's tests have it.

To write the page anew after adding a part: ``python tests/test_combinations.py``.
"""

import re
from pathlib import Path

from test_contract_product import pair_refusal, refusal

from ppl_vae.guides import guides
from ppl_vae.models import models
from ppl_vae.objectives import objectives

PAGE = Path(__file__).parents[1] / "docs" / "combinations.md"
BEGIN, END = "<!-- tables: python tests/test_combinations.py -->", "<!-- end of tables -->"


def some_of(part: list[str], whole: list[str]) -> str:
    """Names among others, as they are said in the fewest words."""
    if not part:
        return "–"
    if part == whole:
        return "all"
    left_out = [name for name in whole if name not in part]
    few = left_out if len(left_out) < len(part) else part
    names = ", ".join(f"`{name}`" for name in few)
    return f"all but {names}" if few is left_out else names


def fitting(model: str) -> list[str]:
    return [guide for guide in sorted(guides) if not pair_refusal(model, guide)]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell for cell in line)} |" for line in lines)


def words(pattern: str) -> str:
    """An expected error's words, as they are read."""
    return re.sub(r"\s*\.\*\s*", " … ", pattern).replace("|", " *or* ").replace("\\", "")


def tables() -> str:
    of_guides = [[f"`{model}`", some_of(fitting(model), sorted(guides))] for model in sorted(models)]
    of_objectives = []
    said: dict[str, set[tuple[str, ...]]] = {}
    for objective in sorted(objectives):
        row = [f"`{objective}`"]
        for model in sorted(models):
            fit = fitting(model)
            row.append(some_of([guide for guide in fit if not refusal(model, guide, objective)], fit))
            for guide in fit:
                if text := refusal(model, guide, objective):
                    said.setdefault(text, set()).add((objective, model, guide))
        of_objectives.append(row)
    for model in sorted(models):
        for guide in sorted(guides):
            if text := pair_refusal(model, guide):
                said.setdefault(text, set()).add(("", model, guide))
    reasons = []
    for text, found in said.items():
        parts = [sorted({each[k] for each in found} - {""}) for k in range(3)]
        names = [
            some_of(part, sorted(kind)) if part else "whatever the objective"
            for part, kind in zip(parts, (objectives, models, guides), strict=True)
        ]
        reasons.append([words(text), *names])
    return "\n\n".join(
        [
            "### Which guides fit a model",
            table(["model", "guides"], of_guides),
            "### Which guides an objective takes, by model",
            "Of the guides that fit the model.",
            table(["objective", *(f"`{model}`" for model in sorted(models))], of_objectives),
            "### What the others say",
            "Each of these errors is among the combinations of these objectives, models and guides.",
            table(["the error's words", "objectives", "models", "guides"], reasons),
        ]
    )


def test_the_page_has_the_tables_of_the_product() -> None:
    text = PAGE.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert written == tables(), "docs/combinations.md is out of date: python tests/test_combinations.py writes it anew"


def test_names_are_said_in_the_fewest_words() -> None:
    assert some_of([], ["a", "b", "c"]) == "–"
    assert some_of(["a", "b", "c"], ["a", "b", "c"]) == "all"
    assert some_of(["a", "c"], ["a", "b", "c"]) == "all but `b`"
    assert some_of(["a"], ["a", "b", "c"]) == "`a`"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", encoding="utf-8")
