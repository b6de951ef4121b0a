"""ArviZ's plots of a diagnosis, by the names that docs/arviz.md gives for both generations: each draws something."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import trained

import ppl_vae
from ppl_vae.diagnose import plot_posterior, plot_predictive

PAGE = Path(__file__).parents[2] / "docs" / "arviz.md"
HEADING = "| to see | ArviZ 0.23 | ArviZ 1.x |"


def rows() -> list[tuple[str, str]]:
    """The calls of the page's table, for the ArviZ that is here."""
    import arviz

    column = 2 if int(arviz.__version__.partition(".")[0]) >= 1 else 1
    lines = PAGE.read_text(encoding="utf-8").split(HEADING)[1].split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]
    return [(row[0], row[column].strip("`")) for row in cells if row[column] != "–"]


@pytest.fixture(scope="module")
def diagnosis() -> Any:
    options = {
        "khat": {"particles": 50, "data": 40},
        "reference": {"rows": 2, "chains": 2, "draws": 100, "warmup": 50, "steps": 2},
        "sbc": {"simulations": 100, "draws": 19},
    }
    found = ppl_vae.diagnose(*trained.pair(), trained.data("fixed"), checks=list(options), options=options)
    return found.to_arviz(draws=40)


def drawn(axis: Any) -> int:
    """How many marks there are that can be seen, with an extent."""
    marks = [*axis.lines, *axis.patches, *axis.collections, *axis.images]
    seen = 0
    for mark in marks:
        if not mark.get_visible():
            continue
        data = mark.get_xydata() if hasattr(mark, "get_xydata") else None
        if data is not None and len(data) == 0:
            continue
        if hasattr(mark, "get_offsets") and not len(mark.get_offsets()) and not len(mark.get_paths()):
            continue
        seen += 1
    return seen


def check(draw: Callable[[], Any]) -> None:
    plt.close("all")
    draw()
    figures = [plt.figure(number) for number in plt.get_fignums()]
    axes = [axis for figure in figures for axis in figure.axes if axis.get_visible() and axis.axison]
    assert axes, "nothing was drawn"
    shown = [drawn(axis) for axis in axes]
    assert max(shown) > 0
    assert sum(count > 0 for count in shown) >= 0.5 * len(shown), "half of the axes are empty"
    for figure in figures:
        figure.canvas.draw()
    plt.close("all")


@pytest.mark.filterwarnings("ignore:.*look binary:UserWarning")  # pixels are; the advice is for one outcome a datum
def test_every_plot_of_the_table_draws(diagnosis: Any) -> None:
    import arviz as az

    table = rows()
    assert len(table) >= 8
    failed = {}
    for what, call in table:
        try:
            check(lambda call=call: eval(call, {"az": az, "idata": diagnosis}))
        except Exception as error:
            failed[what, call] = f"{type(error).__name__}: {error}"
    assert not failed, "\n".join(f"{call}: {why}" for (_, call), why in failed.items())


def test_plots_of_one_name_draw(diagnosis: Any) -> None:
    check(lambda: plot_posterior(diagnosis, var_names=["z"], coords={"datum": [0], "z_dim": [0]}))
    check(lambda: plot_predictive(diagnosis, draws=5))
