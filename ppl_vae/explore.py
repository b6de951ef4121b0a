"""A trained pair's latent space, written down: pictures, and a table of what its codes are good for."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import latent_plots as draw
from .batch import Batch
from .build import DataSpec
from .core import LatentModel
from .data import DataSet
from .errors import InputError, check_count
from .evaluate.chunked import Source, device_of, evaluation, spans
from .evaluate.latent_space import (
    clusters,
    decode,
    interpolate,
    linear_probe,
    manifold,
    plane_of,
    traversals,
    vector_sites,
)
from .evaluate.latents import count_active, encode, latent_sites
from .labels import hide_labels
from .networks import Condition
from .plots import save, subscript
from .priors import StandardNormal, prior_of
from .report import finite, plus_minus, replacing, write_results
from .weights import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["Exploration", "Measured", "explore"]

_PAIRS = 4
_MOST_TRAVERSED = 12
_STEPS = 9
_DRAWN_AT_ONCE = 1024
MOST_CODES = 10_000
"""Of training data, and of held-out ones: clusters and probes know no more from more."""


@dataclass(frozen=True)
class Measured:
    """One number about the codes.

    Args:
        site: the latent site.
        what: what was measured.
        value, se: with its standard error, NaN where there is none.
        error: of what the standard error is.
        n: number of held-out data.
    """

    site: str
    what: str
    value: float
    se: float
    error: str
    n: int

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "value": finite(self.value), "se": finite(self.se)}


@dataclass
class Exploration:
    """What `explore` finds.

    Args:
        data: which held-out data.
        numbers: what was measured.
        figures: pictures by name.
        notes: what was left out, and why; what was held, and at what.
    """

    data: str
    numbers: list[Measured] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """The numbers, a line each."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("site", "", "value", "± over"):
            table.add_column(name, justify="right" if name == "value" else "left", no_wrap=name in ("site", "value"))
        for each in self.numbers:
            whole = math.isnan(each.se) and each.value == int(each.value)
            text = f"{each.value:.0f}" if whole else plus_minus(each.value, each.se, sign=" less " in each.what)
            table.add_row(each.site, Text(each.what), text, each.error)
        table.caption = Text("\n".join([f"{self.data}.", *self.notes]))
        return table

    def write(self, folder: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write pictures (.png), `explore.json` and `explore.csv`; returns what was written.

        Raises:
            InputError: one of them is there already, without `overwrite`.
        """
        out = Path(folder)
        paths = [out / f"{name}.png" for name in self.figures] + [out / "explore.json", out / "explore.csv"]
        if (there := [str(path) for path in paths if path.exists()]) and not overwrite:
            raise InputError(f"out={os.fspath(folder)!r} holds {there[0]} already; give another, or overwrite=True")
        for path, figure in zip(paths, self.figures.values(), strict=False):
            save(figure, path, overwrite)
        rows = [each.to_json() for each in self.numbers]
        write_results(out / "explore.json", {"data": self.data, "numbers": rows, "notes": self.notes}, overwrite)
        with (
            replacing(out / "explore.csv", overwrite) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, ["site", "what", "value", "se", "error", "n"])
            writer.writeheader()
            writer.writerows(rows)
        return paths


def explore(
    model: LatentModel,
    guide: Program,
    train: DataSet,
    test: DataSet,
    *,
    test_guide: Program | None = None,
    name: str = "",
    seeds: int = 5,
    seed: int = 0,
) -> Exploration:
    """Look at a trained pair's latent space.

    For each latent site of a datum that is a vector of real numbers: ways from code to code, straight and spherical;
    each dimension moved by itself, the most active first; a grid in the codes' plane; where all codes lie, by class;
    clusters of the codes beside the classes, and a linear probe on them beside one on x. In a model of layers, those
    below a given one are at their means given those above. Discrete sites, and those that all data share, are held at
    one draw of the guide. A conditional model decodes under the condition of the datum that a way starts from.

    Args:
        model, guide: the pair, with a `likelihood` that has a mean.
        train, test: data; codes of the latter are shown and scored, those of the former are what clusters and probes
            are fitted to (10,000 of each at most).
        test_guide: for `test`, where the guide has parameters for each of the training data; None: the same.
        name: of the pair, for titles.
        seeds: starts of the clustering.
        seed: of all random numbers, the caller's generators are left alone.

    Raises:
        InputError: a model without a latent vector of each datum, fewer than two test data.
    """
    sites, skipped = vector_sites(model)
    check_count("seeds", seeds)
    if len(test) < 2:
        raise InputError(f"{test.description!r} has {len(test)} datum; give two or more to see where codes lie")
    own = callable(getattr(guide, "renew", None))
    train, test = _some(train, own).fixed(), _some(test, own).fixed()
    judge = guide if test_guide is None else test_guide
    train_codes = encode(model, guide, train, seed=seed).means
    found = encode(model, judge, test, seed=seed)
    units = count_active(found, threshold=0.01)
    here = _Here(model, judge, test, name, seed)
    result = Exploration(test.description)
    result.notes += [f"Site {site!r} is left out: {why}." for site, why in skipped.items()]
    result.notes += here.notes()
    draws = _draws(judge, here.source, list(sites), seed)
    labelled = test.y is not None and train.y is not None and test.classes > 1
    for site, size in sites.items():
        end, codes = "" if len(sites) == 1 else f"_{site}", found.means[site]
        what = f"active units of {size}, Var E[z | x] > 0.01"
        result.numbers.append(Measured(site, what, float(units.active[site].sum()), math.nan, "", len(test)))
        here.pictures(result, site, codes, draws[site], end)
        if labelled:
            _by_labels(result, here, site, train_codes[site], codes, train, end, seeds)
    if not labelled:
        result.notes.append("Without labels there are no clusters to compare with classes, and no probe.")
    return result


class _Here:
    """The pair, its held-out data, and at what the sites that are not looked at are held."""

    def __init__(self, model: LatentModel, guide: Program, test: DataSet, name: str, seed: int) -> None:
        self.model, self.test, self.name, self.seed = model, test, name, seed
        self.spec = DataSpec.of(test)
        self.source = Source(hide_labels(model, test), model, guide)
        given = getattr(model, "condition", None)
        self.condition = given if isinstance(given, Condition) and given.width else None
        self.anchor = 0
        self.starts, self.ends = _pairs(test, of_one_class=self.condition is not None and bool(self.condition.classes))
        held = [name for name, spec in model.latents.items() if spec.scope != "datum" or spec.support.is_discrete]
        self.held: dict[str, Tensor] = {}
        if held:
            with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
                drawn = latent_sites(guide, self.source.batch(self.anchor, self.anchor + 1))
                self.held = {name: drawn[name]["value"].cpu() for name in held if name in drawn}

    def notes(self) -> list[str]:
        said = []
        if self.held:
            names = ", ".join(map(repr, self.held))
            are = "is" if len(self.held) == 1 else "are"
            said.append(f"Where x is decoded, {names} {are} held at one draw of the guide, given the first datum.")
        if self.condition is not None:
            what = "class" if self.condition.classes else "context"
            said.append(
                f"x is decoded under the {what} of the datum that a way starts from, and of the first otherwise."
            )
        return said

    def decoded(self, site: str, codes: Tensor, row: int) -> Tensor:
        """E[x | z] (\\*S, \\*D) at codes (\\*S, Z), under the conditions of a row of the data."""
        flat = codes.reshape(-1, codes.shape[-1])
        size = len(flat)
        of = self.source.batch(row, row + 1)

        def each(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.expand(size, *value.shape[1:])

        batch = Batch(y=each(of.y), context=each(of.context), n=size)
        given = {
            name: each(value) if self.model.latents[name].scope == "datum" else value
            for name, value in self.held.items()
        }
        means = decode(self.model, {**given, site: flat}, batch, seed=self.seed)  # type: ignore[dict-item]
        return means.reshape(*codes.shape[:-1], *means.shape[1:])

    def title(self, text: str, row: int | None = None) -> str:
        under = ""
        if row is not None and self.condition is not None and self.test.y is not None and self.condition.classes:
            under = f", class {self._label(row)}"
        return f"{text}{under}: {self.name}{' on ' if self.name else ''}{self.test.description}"

    def pictures(self, result: Exploration, site: str, codes: Tensor, drawn: Tensor, end: str) -> None:
        size = codes.shape[1]
        plane = plane_of(codes)
        names = draw.axis_names(plane, size, site)
        self._ways(result, site, codes, end)
        self._dimensions(result, site, codes, end)
        normal = isinstance(prior_of(self.model), StandardNormal)
        normal = normal and not self.model.latents[site].parents
        standard = normal and size <= 2
        points, places = manifold(codes, 16 if len(self.spec.shape) == 3 else 33, standard=standard)
        where = (
            "equal shares of the prior N(0, I)"
            if standard
            else "equal shares of a Gaussian with the codes' mean and variances"
            + ("" if size <= 2 else ", in the plane of their first two principal components")
        )
        result.figures[f"manifold{end}"] = draw.grid_of_means(
            self.decoded(site, points, self.anchor),
            self.spec,
            places,
            names,
            self.title(f"E[x | {site}] on a grid of {where}", self.anchor),
            self.test.columns,
        )
        point = bool((drawn == codes).all())
        panels = {"points m(x)": codes} if point else {"posterior means": codes, "one draw of q(z | x) each": drawn}
        circles = "; dashed: 50, 90, 99% of the prior N(0, I)" if normal and size > 1 else ""
        result.figures[f"aggregate{end}"] = draw.aggregate(
            panels,
            self.test.y,
            self.test.class_names,
            plane,
            names,
            self.title(f"Where the codes lie{circles}"),
            circles=bool(circles),
        )

    def _ways(self, result: Exploration, site: str, codes: Tensor, end: str) -> None:
        ways: list[tuple[str, Tensor]] = []
        shown = []
        x = self.test.batch().x
        assert x is not None
        for a, b in zip(self.starts, self.ends, strict=True):
            for how in ("straight", "spherical") if codes.shape[1] > 1 else ("straight",):
                try:
                    path = interpolate(codes[a], codes[b], _STEPS, how)
                except InputError:  # opposite ones, or one at the origin
                    continue
                ways.append((f"{self._name(a)} to {self._name(b)}, {how}", self.decoded(site, path, a)))
                shown.append(torch.stack([x[a], x[b]]))
        result.figures[f"interpolations{end}"] = draw.ways(
            ways,
            self.spec,
            self.title(f"From code to code in {site}, E[x | {site}]"),
            ends=torch.stack(shown),
            columns=self.test.columns,
        )

    def _dimensions(self, result: Exploration, site: str, codes: Tensor, end: str) -> None:
        points, values, order = traversals(codes, codes[self.anchor], most=_MOST_TRAVERSED)
        variances = codes.double().var(0)
        left_out = codes.shape[1] - len(order)
        more = f"; the {len(order)} most active of {codes.shape[1]}" if left_out else ""
        text = f"Each dimension of {site} from 1% to 99% of the codes, the others at one datum's code{more}"
        means = self.decoded(site, points, self.anchor)
        result.figures[f"traversals{end}"] = draw.ways(
            [(f"{site}{subscript(d + 1)}", means[k]) for k, d in enumerate(order)],
            self.spec,
            self.title(text, self.anchor),
            places=values,
            places_name="value of the dimension",
            columns=self.test.columns,
            after=[
                f"{float(values[k, 0]):.1f} to {float(values[k, -1]):.1f}, variance {float(variances[d]):.2g}"
                for k, d in enumerate(order)
            ],
        )

    def _label(self, row: int) -> str:
        assert self.test.y is not None
        number = int(self.test.y[row])
        return self.test.class_names[number] if 0 <= number < len(self.test.class_names) else "–"

    def _name(self, row: int) -> str:
        return f"datum {row}" if self.test.y is None or not self.test.class_names else self._label(row)


def _by_labels(
    result: Exploration,
    here: _Here,
    site: str,
    train_codes: Tensor,
    codes: Tensor,
    train: DataSet,
    end: str,
    seeds: int,
) -> None:
    """Clusters and probes, and the picture of the former."""
    assert train.y is not None
    assert here.test.y is not None
    y, known = here.test.y.cpu(), train.y.cpu()
    n = int((y >= 0).sum())
    if n == 0 or not bool((known >= 0).any()) or len(y[y >= 0].unique()) < 2 or len(known[known >= 0].unique()) < 2:
        result.notes.append("Fewer than two classes have labels: no clusters are compared with them, and no probe.")
        return
    found = clusters(train_codes, codes[y >= 0], y[y >= 0], seeds=seeds, seed=here.seed)
    for each in found:
        what = f"{each.method}, {each.count} clusters: adjusted Rand index"
        result.numbers.append(Measured(site, what, each.mean, each.se, f"{seeds} starts and the data", n))
    plane = plane_of(codes)
    result.figures[f"clusters{end}"] = draw.cluster_panels(
        codes[y >= 0],
        y[y >= 0],
        here.test.class_names,
        {
            f"{each.method}, adjusted Rand index {each.scores[0]:.2f}": _as_classes(each.assigned, y[y >= 0].numpy())
            for each in found
        },
        plane,
        draw.axis_names(plane, codes.shape[1], site),
        here.title("Clusters found without labels"),
    )
    x, held = train.batch().x, here.test.batch().x
    assert x is not None
    assert held is not None
    size = codes.shape[1]
    on_codes = linear_probe(train_codes, known, codes, y)
    on_parts = linear_probe(x, known, held, y, f"{size} principal components of x", components=size)
    on_x = linear_probe(x, known, held, y, "x")
    for probe in (on_codes, on_parts, on_x):
        what = f"linear probe on {probe.features}, {probe.size} numbers: accuracy"
        result.numbers.append(Measured(site, what, probe.accuracy, probe.se, "the data", n))
    for other in (on_parts, on_x):
        value, se = on_codes.less(other)
        what = f"accuracy on codes less on {other.features}"
        result.numbers.append(Measured(site, what, value, se, "the data, paired", n))


def _as_classes(assigned: Any, y: Any) -> Any:
    """Clusters numbered as the classes they share most data with, one each, so that colours can be compared."""
    from scipy.optimize import linear_sum_assignment

    size = int(max(assigned.max(), y.max())) + 1
    shared = np.zeros((size, size))
    np.add.at(shared, (assigned, y), 1)
    return linear_sum_assignment(-shared)[1][assigned]


def _some(data: DataSet, own: bool) -> DataSet:
    """At most `MOST_CODES` of the data, evenly spaced; all of them for a guide with parameters for each."""
    if own or len(data) <= MOST_CODES:
        return data
    return data.take(torch.linspace(0, len(data) - 1, MOST_CODES, dtype=torch.float64).long())


def _pairs(data: DataSet, of_one_class: bool) -> tuple[list[int], list[int]]:
    """Rows from which, and to which: of different classes, or of one."""
    if data.y is None or not data.classes:
        rows = list(range(min(2 * _PAIRS, len(data) // 2 * 2)))
        return rows[::2], rows[1::2]
    by_class = [torch.nonzero(data.y.cpu() == k).flatten().tolist() for k in range(data.classes)]
    if of_one_class:
        pairs = [rows[:2] for rows in by_class if len(rows) > 1][:_PAIRS]
    else:
        first = [rows[k] for k in range(2 * _PAIRS) for rows in by_class if len(rows) > k][: 2 * _PAIRS]
        pairs = [first[k : k + 2] for k in range(0, len(first) - 1, 2)]
    if not pairs:
        pairs = [[0, 1]]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _draws(guide: Program, source: Source, sites: Sequence[str], seed: int) -> Mapping[str, Tensor]:
    """One draw of q(z | x) for each datum, (N, Z) by site."""
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    with evaluation(guide, seed=seed, device=source.device):
        for start, stop in spans(source.size, _DRAWN_AT_ONCE):
            drawn = latent_sites(guide, source.batch(start, stop))
            for site in sites:
                parts[site].append(drawn[site]["value"].cpu())
    return {site: torch.cat(each) for site, each in parts.items()}
