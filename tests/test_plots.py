import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae import plots
from ppl_vae.build import DataSpec
from ppl_vae.errors import InputError
from ppl_vae.evaluate.plane import Plane


def spec(shape: tuple[int, ...] = (1, 4, 6), units: str = "unit", levels: int | None = 17) -> DataSpec:
    return DataSpec("data", "data test", shape, levels, units)


def history(offset: float = 0.0, epochs: int = 50, validation: bool = False) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"elbo": -20.0 - 30.0 / epoch + offset, "kl": 5.0 - 4.0 / epoch, "log_likelihood": -15.0 - 34.0 / epoch}
        watched = {f"val_{name}": value - 0.1 for name, value in row.items()} if validation else {}
        rows.append({"epoch": float(epoch), **row, **watched})
    return rows


def shown(axis: Any) -> np.ndarray[Any, Any]:
    return np.asarray(axis.images[0].get_array())


def titles(figure: Any) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def test_training_curves_have_units_names_and_a_scale_that_shows_the_end() -> None:
    held_out = {"one": {"elbo": -21.0, "kl": 4.9, "log_likelihood": -16.1}}
    figure = plots.training_curves({"one": history(), "two": history(-1.0)}, "digits train", held_out, "test")
    assert titles(figure) == ["ELBO", "E log p(x | z)", "KL(q ‖ prior)"]
    assert figure.axes[0].get_ylabel() == "nats per datum"
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}
    assert figure.get_suptitle() == "digits train"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["one, training", "one, test", "two, training"]
    low, high = figure.axes[0].get_ylim()
    assert low > -50.0  # the first epoch, 30 nats below the last
    assert low < -21.0 < high
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), [row["elbo"] for row in history()])
    assert list(lines[1].get_ydata()) == [-21.0]


def test_training_curves_show_validation() -> None:
    figure = plots.training_curves({"one": history(validation=True)}, "digits")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one, training", "one, validation"]


def test_reconstructions_are_rows_below_the_data() -> None:
    x = torch.rand(5, 1, 4, 6)
    figure = plots.reconstructions(x, {"one": x / 2, "two": x / 4}, spec(), "digits test", labels=list("abcde"))
    assert len(figure.axes) == 15
    assert titles(figure)[:5] == list("abcde")
    assert [figure.axes[i].get_ylabel() for i in (0, 5, 10)] == ["data", "one", "two"]
    for row, factor in enumerate((1.0, 0.5, 0.25)):
        for column in range(5):
            axis = figure.axes[5 * row + column]
            np.testing.assert_allclose(shown(axis), factor * x[column, 0], rtol=1e-6)
            assert axis.images[0].get_clim() == (0.0, 1.0)  # the same grey in every panel


def test_samples_are_one_montage_a_name() -> None:
    x = torch.rand(6, 1, 4, 6)
    figure = plots.samples({"one": x, "two": 1 - x}, spec(), "samples", per_row=3, column_names=["a", "b", "c"])
    assert titles(figure) == ["one", "two"]
    montage = shown(figure.axes[0])
    assert montage.shape == (2 * 5 - 1, 3 * 7 - 1)
    np.testing.assert_allclose(montage[:4, :6], x[0, 0], rtol=1e-6)
    np.testing.assert_allclose(montage[5:, 7:13], x[4, 0], rtol=1e-6)
    assert (montage[4] == 1).all()  # the line between the rows
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]
    for tick, middle in zip(figure.axes[0].get_xticks(), (2.5, 9.5, 16.5), strict=True):
        assert tick == pytest.approx(middle)


def test_a_last_row_need_not_be_full() -> None:
    figure = plots.samples({"one": torch.zeros(5, 1, 4, 4)}, spec((1, 4, 4)), "samples")
    montage = shown(figure.axes[0])
    assert montage.shape == (9, 14)
    assert (montage[5:, 10:] == 1).all()


def test_long_titles_are_wrapped_into_small_figures() -> None:
    figure = plots.samples({"one": torch.zeros(4, 1, 4, 4)}, spec((1, 4, 4)), "words and words " * 10)
    lines = figure.get_suptitle().split("\n")
    assert len(lines) > 2
    assert max(len(line) for line in lines) < 60


@pytest.mark.parametrize(
    ("units", "levels", "x", "grey"),
    [
        ("unit", 17, [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]),
        ("binary", 2, [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]),
        ("levels", 17, [0.0, 8.0, 16.0], [0.0, 0.5, 1.0]),
        ("real", None, [-3.0, 0.0, 3.0], [0.0, 0.5, 1.0]),
        ("unit", 17, [-0.1, 0.5, 1.2], [0.0, 0.5, 1.0]),  # a Gaussian's mean may leave the range
    ],
)
def test_pictures_run_from_0_to_1(units: str, levels: int | None, x: list[float], grey: list[float]) -> None:
    given = torch.tensor(x).view(1, 1, 1, 3)
    np.testing.assert_allclose(plots.pictures(given, spec((1, 1, 3), units, levels))[0, 0], grey, atol=1e-7)


def test_channels_are_colours_last() -> None:
    x = torch.rand(2, 3, 4, 5)
    colour = plots.pictures(x, spec((3, 4, 5)))
    assert colour.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(colour[1, 2, 3], x[1, :, 2, 3], rtol=1e-6)
    assert plots.pictures(torch.rand(2, 2, 4, 5), spec((2, 4, 5))).shape == (2, 4, 5)
    with pytest.raises(InputError, match="no images"):
        plots.pictures(torch.rand(2, 4), spec((4,)))


def test_latent_space_of_two_dimensions_is_shown_as_it_is() -> None:
    z, y = torch.randn(40, 2), torch.arange(40) % 3
    figure = plots.latent_space({"one": z}, y, ["a", "b", "c"], "digits test")
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("E[z₁ | x]", "E[z₂ | x]")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    for number, points in enumerate(axis.collections):
        np.testing.assert_allclose(points.get_offsets(), z[y == number], rtol=1e-6)
    colours = {tuple(points.get_facecolor()[0]) for points in axis.collections}
    assert len(colours) == 3


def test_more_dimensions_are_shown_by_principal_components() -> None:
    z = torch.randn(200, 1) @ torch.tensor([[3.0, 0.0, 4.0]]) + 0.01 * torch.randn(200, 3)
    figure = plots.latent_space({"one": z, "two": z}, None, [], "digits test")
    assert len(figure.axes) == 2
    assert "principal component 1" in figure.axes[0].get_xlabel()
    assert "100% of the variance in 3 dimensions" in figure.axes[0].get_xlabel()
    assert not figure.legends
    along = np.asarray(figure.axes[0].collections[0].get_offsets())[:, 0]
    np.testing.assert_allclose(np.abs(np.corrcoef(along, z[:, 0])[0, 1]), 1.0, atol=1e-3)


def test_one_dimension_and_missing_labels() -> None:
    y = torch.tensor([0, -1, 1, -1])
    figure = plots.latent_space({"one": torch.randn(4, 1)}, y, ["a", "b"], "digits")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "E[z | x]"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no label", "a", "b"]


def test_many_classes_have_colours_of_their_own_and_no_legend() -> None:
    figure = plots.latent_space({"one": torch.randn(60, 2)}, torch.arange(60) % 30, [str(i) for i in range(30)], "many")
    assert not figure.legends
    assert len({tuple(points.get_facecolor()[0]) for points in figure.axes[0].collections}) == 30


def test_principal_components_of_a_known_ellipse() -> None:
    torch.manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    scores = torch.linalg.qr(torch.randn(100, 4, dtype=torch.float64) - 0.0)[0]
    scores = scores - scores.mean(0)
    scores = torch.linalg.qr(scores)[0] * torch.tensor([4.0, 2.0, 1.0, 0.5])
    points, share = plots.principal_components(scores @ q.T + 7.0)
    np.testing.assert_allclose(share, np.array([16.0, 4.0]) / 21.25, rtol=1e-6)
    np.testing.assert_allclose(np.abs(points), scores[:, :2].abs().numpy(), atol=1e-8)
    constant, none = plots.principal_components(torch.ones(5, 3))
    assert (constant == 0).all()
    assert (none == 0).all()


def test_tables_are_shown_column_by_column() -> None:
    x = torch.randn(50, 3)
    table = spec((3,), "real", None)
    figure = plots.reconstructions(x, {"one": x / 2}, table, "cells", columns=["a", "b", "c"])
    assert titles(figure) == ["a", "b", "c"]
    np.testing.assert_allclose(figure.axes[1].collections[0].get_offsets(), torch.stack([x[:, 1], x[:, 1] / 2], 1))
    figure = plots.samples({"one": x}, table, "cells", data=2 * x)
    assert titles(figure) == ["column 0", "column 1", "column 2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", "one"]


def test_two_columns_are_points_in_the_plane() -> None:
    x = torch.randn(50, 2)
    figure = plots.samples({"one": x, "two": 2 * x}, spec((2,), "real", None), "cells", 3 * x, ["a", "b"])
    assert titles(figure) == ["data", "one", "two"]
    for axis, factor in zip(figure.axes, (3, 1, 2), strict=True):
        np.testing.assert_allclose(axis.collections[0].get_offsets(), factor * x, rtol=1e-6)
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("a", "b")
        assert axis.get_xlim() == figure.axes[0].get_xlim()


def test_counts_are_binned_around_whole_numbers_and_wide_tables_cut() -> None:
    x = torch.poisson(torch.full((200, 11), 3.0))
    figure = plots.samples({"one": x}, spec((11,), "real", None), "counts")
    assert len([axis for axis in figure.axes if axis.axison]) == 9
    assert "the first 9 of 11 columns" in figure.get_suptitle()
    edges = figure.axes[0].patches[0].get_xy()[:, 0]
    assert set((edges % 1.0).tolist()) == {0.5}


def test_a_constant_column_is_drawn() -> None:
    figure = plots.samples({"one": torch.full((10, 1), 0.5)}, spec((1,), "real", None), "constant")
    assert len(figure.axes) == 1


def plane(shift: float = 0.0, density: bool = True) -> Plane:
    z = torch.linspace(-4, 4, 81)
    p = torch.exp(-0.5 * (z[:, None] ** 2 + (z[None] - shift) ** 2)) / (2 * torch.pi)
    return Plane(z, z + shift, p, p if density else None, torch.randn(30, 2) + shift)


def test_posteriors_are_rows_of_guides_below_the_data() -> None:
    drawn = {"one": [plane(), plane(1.0)], "blind": [plane(0.0, False), plane(2.0, False)]}
    chains = {name: torch.randn(50, 2, 2) for name in drawn}
    x = torch.rand(2, 1, 4, 6)
    figure = plots.posteriors(drawn, chains, x, spec(), "digits test", ["a", "b"])
    assert len(figure.axes) == 6
    assert titles(figure)[:2] == ["a", "b"]
    np.testing.assert_allclose(shown(figure.axes[1]), x[1, 0], rtol=1e-6)
    assert [figure.axes[i].get_ylabel() for i in (2, 4)] == ["one\nz₂", "blind\nz₂"]
    assert figure.axes[3].get_ylim()[1] == pytest.approx(5.0)  # each its own frame
    for axis, name, datum in ((figure.axes[3], "one", 1), (figure.axes[4], "blind", 0)):
        chain, own = (c.get_offsets() for c in axis.collections if len(c.get_offsets()) in (50, 30))
        np.testing.assert_allclose(chain, chains[name][:, datum], rtol=1e-6)
        np.testing.assert_allclose(own, drawn[name][datum].draws, rtol=1e-6)
    lines = [sum(type(c).__name__ == "QuadContourSet" for c in axis.collections) for axis in figure.axes[2:]]
    assert lines == [2, 2, 1, 1]  # areas of the posterior, and lines of q where it has a density
    one = plots.posteriors(drawn, chains, None, spec((4,), "real", None), "cells", one_model=True)
    assert len(one.axes) == 4
    assert one.axes[1].get_ylim() == one.axes[3].get_ylim() == pytest.approx((-3.0, 6.0))


def test_levels_hold_their_shares() -> None:
    drawn = plane()
    levels = plots._levels(drawn.p.numpy(), drawn.cell)
    # a standard Gaussian's circle of mass m has density (1 - m) / 2π
    np.testing.assert_allclose(levels, [(1 - share) / (2 * np.pi) for share in (0.99, 0.9, 0.5)], rtol=0.03)


def test_seeds_are_lines_over_the_guides() -> None:
    numbers = {"ELBO": {"one": {0: -1.0, 1: -2.0}, "two": {1: -1.5}, "three": {0: -3.0, 1: -4.0}}}
    figure = plots.by_seed(numbers, "digits test")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["one", "two", "three"]
    first, second = axis.get_lines()
    np.testing.assert_array_equal(first.get_xydata(), [[0, -1], [2, -3]])  # of a seed that failed nothing is drawn
    np.testing.assert_array_equal(second.get_ydata(), [-2, -1.5, -4])
    assert axis.get_ylabel() == "nats per datum"


def test_many_guides_are_drawn_in_rows_and_in_colours_of_their_own() -> None:
    names = [f"guide {k}" for k in range(14)]
    latent = plots.latent_space({name: torch.randn(5, 2) for name in names}, None, [], "digits")
    drawn = plots.samples({name: torch.rand(4, 1, 4, 6) for name in names}, spec(), "digits")
    for figure in (latent, drawn):
        assert titles(figure) == names
        assert figure.get_figwidth() < 25
    curves = plots.training_curves({name: history() for name in names}, "digits")
    assert len({line.get_color() for line in curves.axes[0].get_lines()}) == 14


def test_saved_pictures_are_whole_and_not_tiny(tmp_path: Path) -> None:
    figure = plots.samples({"one": torch.rand(4, 1, 8, 8)}, spec((1, 8, 8)), "samples")
    path = tmp_path / "new" / "samples.png"
    plots.save(figure, path)
    with Image.open(path) as image:
        assert min(image.size) >= 300
        assert len(image.convert("L").getcolors(1 << 20)) > 20
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"samples.png' is there already.*--overwrite"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    plots.save(figure, path, overwrite=True)
    plots.save(figure, tmp_path / "samples.pdf")
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["samples.pdf", "samples.png"]
    with pytest.raises(InputError, match=r"pictures are written as .*png"):
        plots.save(figure, tmp_path / "samples.docx")


def test_figures_need_no_display_and_no_global_state(tmp_path: Path) -> None:
    code = """
import sys, torch
from ppl_vae import plots
from ppl_vae.build import DataSpec
figure = plots.samples({"a": torch.rand(4, 1, 4, 4)}, DataSpec("d", "d", (1, 4, 4), 2, "binary"), "t")
plots.save(figure, sys.argv[1])
print("matplotlib.pyplot" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
