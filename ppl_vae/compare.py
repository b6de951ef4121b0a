"""Guides side by side: the same data, model, seeds and budget, in one table, with pictures and draws."""

from __future__ import annotations

import copy
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from .build import DataSpec
from .conditions import conditions
from .contenders import ALL, DECODER, Entry, GuideLike, entries, folder_name, seeds_of
from .data import DataSet, DataSplits, split
from .display import Display, display, make_console
from .errors import InputError, check_count, choose
from .evaluate import Estimate, Evaluation, encode, evaluate, reconstruct, sample, sample_styles
from .evaluate.generation import sharing
from .fit import FitResult
from .fixed import FIRST, Fixed, fixed_by
from .folder import read_run
from .guides.hierarchical import Hierarchical
from .recipe import Given, Ingredients, Recipe, load_plain, prepare
from .renewal import UPDATES, is_local
from .report import (
    About,
    Difference,
    Paired,
    Row,
    Spread,
    comparison_table,
    finite,
    is_doubted,
    khat_told,
    one_line,
    write_results,
)
from .results import KIND, RESULTS, Earlier, check_target, earlier_runs, staged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .diagnose import Diagnosis

__all__ = ["Comparison", "Contender", "Trial", "compare", "of_each_class", "pictures_for"]

FORMAT = 2
DRAWS = "comparison.nc"
PAGE = "comparison.html"
_LOCAL = "‡"
_PICTURES = 12
_PANELS = 4
_TABLE_SAMPLES = 1000
_TEST_SHARE = 0.2
_UNRELIABLE = 0.2  # nats
_ARVIZ_DRAWS = 100
_ARVIZ_NUMBERS = 2_000_000

# What a run may differ in and still be gone on with.
_FREE = ("device", "data_dir", "download", "compile")


@dataclass(eq=False)
class Trial:
    """One guide, trained with one seed.

    Args:
        guide: its name.
        seed: of weights, order and noise.
        ingredients: what it was trained from; None where not even these could be made.
        fitted: the trained pair, None where training failed.
        posterior: the guide on the test data: the trained one, or for a guide with parameters for each datum one that
            was fitted to the test data with the model held.
        evaluation: on the test data, None where something failed.
        divergence: KL(q ‖ p(z | x)), where all guides have the same model.
        error: what failed.
    """

    guide: str
    seed: int
    ingredients: Ingredients | None = None
    fitted: FitResult | None = None
    posterior: nn.Module | None = None
    evaluation: Evaluation | None = None
    divergence: Estimate | None = None
    error: str | None = None


@dataclass(eq=False)
class Contender:
    """One guide of a comparison, and its trials, one a seed."""

    guide: str
    trials: list[Trial] = field(default_factory=list)

    @property
    def done(self) -> list[Trial]:
        """The trials that were trained and evaluated."""
        return [trial for trial in self.trials if trial.evaluation is not None]

    @property
    def first(self) -> Trial | None:
        """The first trial that is done, of which pictures and draws are."""
        return next(iter(self.done), None)

    @property
    def fitted(self) -> FitResult | None:
        """The first trial's pair."""
        return self.trials[0].fitted if self.trials else None

    @property
    def evaluation(self) -> Evaluation | None:
        """The first trial's numbers."""
        return self.trials[0].evaluation if self.trials else None

    @property
    def errors(self) -> list[str]:
        """What failed: with several seeds each says which."""
        several = len(self.trials) > 1
        return [f"seed {t.seed}: {t.error}" if several else t.error for t in self.trials if t.error is not None]

    @property
    def error(self) -> str | None:
        return "; ".join(self.errors) or None

    @property
    def row(self) -> Row:
        done = self.done
        return Row(
            self.guide,
            evaluations=[t.evaluation for t in done if t.evaluation is not None],
            seconds=[t.fitted.seconds for t in done if t.fitted is not None],
            errors=self.errors,
            divergences=[t.divergence for t in done if t.divergence is not None],
            note=_LOCAL if any(t.posterior is not None and is_local(t.posterior) for t in done) else "",
        )


@dataclass(frozen=True)
class Reference:
    """Whose importance weights give the log p(x) that all guides are held against.

    Args:
        guide, seed: the trial's.
        evaluation: its numbers.
    """

    guide: str
    seed: int
    evaluation: Evaluation


@dataclass(eq=False, repr=False)
class Comparison:
    """What a comparison found. As text, as in `print(comparison)`, it is its table.

    Args:
        recipe: what the guides share; its `guide` and `seed` are the first ones.
        test: the data that all numbers are of.
        seeds: of the trials.
        contenders: a guide each, in the order in which they were asked for.
        differences: of each guide to the first, paired by seed and datum.
        left_out: of all guides, those that do not fit the model or the objective, and why.
        fixed: the model that all guides share, where it was held.
        reference: whose log p(x) gives the KL to its posterior.
        notes: what else could not be done.
        seconds: wall time of import, load, compile, train, evaluate, draw, and in total.
        eval_particles: draws a datum behind the numbers.
        interrupted: whether Ctrl-C ended it.
        out: where it was written, None for nowhere.
        diagnoses: of each guide's first trial, where they were asked for.
    """

    recipe: Recipe
    test: DataSet
    seeds: tuple[int, ...]
    contenders: list[Contender]
    eval_particles: int
    differences: list[Difference] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    fixed: Fixed | None = None
    reference: Reference | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    out: Path | None = None
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)

    @property
    def done(self) -> list[Contender]:
        """The contenders that were trained and evaluated with one seed at least."""
        return [c for c in self.contenders if c.done]

    @property
    def failed(self) -> list[Contender]:
        """The contenders of which something failed."""
        return [c for c in self.contenders if c.errors]

    def __getitem__(self, guide: str) -> Contender:
        for contender in self.contenders:
            if contender.guide == guide:
                return contender
        raise choose("guide", guide, [c.guide for c in self.contenders])

    @property
    def ingredients(self) -> Ingredients:
        """Of the first trial that could be made."""
        trials = [trial for contender in self.contenders for trial in contender.trials]
        return next(trial.ingredients for trial in trials if trial.ingredients is not None)

    @property
    def data(self) -> str:
        """What was trained on."""
        return f"{self.recipe.model} on {self.ingredients.data.train.description}"

    def __repr__(self) -> str:
        console = make_console()
        with console.capture() as text:
            console.print(self.table())
        return text.get()

    def table(self) -> Table:
        """A row a guide, for a rich console."""
        first = self.ingredients
        about = About.of(first.model, first.objective)
        return comparison_table([c.row for c in self.contenders], self.differences, about, self.said())

    def said(self) -> list[str]:
        """What a caption says besides the numbers' units."""
        said = []
        if len(self.seeds) > 1:
            said.append(f"Seeds: {', '.join(map(str, self.seeds))}.")
        if self.fixed is not None and self.reference is not None:
            e = self.reference.evaluation
            seed = f", seed {self.reference.seed}" if len(self.seeds) > 1 else ""
            nearest = min(self.done, key=lambda c: Spread.of([t.divergence.mean for t in c.done if t.divergence]).mean)
            said.append(
                f"One model for all guides, not trained with them: {self.fixed.source}. KL(q ‖ p(z | x)) = log p(x) − "
                f"ELBO, with log p(x) from the best importance sampler here, {self.reference.guide}{seed}: "
                f"{e.log_px.mean:.3f} ± {e.log_px.se:.3f}, ESS {e.ess.mean:.0f}, "
                f"{khat_told(e)}. Nearest to the posterior: {nearest.guide}."
                + (" Errors over seeds do not hold that of log p(x), which all share." if seed else "")
            )
            if is_doubted(e):
                said.append("So log p(x) is more likely too low, and every KL with it, by the same for all guides.")
        if any(c.row.note for c in self.contenders):
            said.append(
                f"{_LOCAL} has parameters for each datum: for the test data fresh ones were fitted with the model "
                f"held, by {UPDATES:,} updates each."
            )
        said += [f"{guide} left out: {reason}" for guide, reason in self.left_out.items()]
        return said + self.notes

    def figures(self) -> dict[str, Figure]:
        """The pictures by name: training, reconstructions, samples, latent; posterior where z has two dimensions, seeds
        where there are several. Pictures of trained pairs are of each guide's first seed."""
        return {name: figure for name, draw in self._drawings().items() if (figure := draw()) is not None}

    def _drawings(self) -> dict[str, Callable[[], Figure | None]]:
        if not self.done:
            return {}
        drawings: dict[str, Callable[[], Figure | None]] = {
            "training": self._draw_training,
            "reconstructions": self._draw_reconstructions,
            "samples": self._draw_samples,
            "latent": self._draw_latent,
            "posterior": self._draw_posterior,
        }
        return drawings | ({"seeds": self._draw_seeds} if len(self.seeds) > 1 else {})

    def _pairs(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """Model, and guide on the test data, of each guide's first trial."""
        firsts = [(c.guide, c.first) for c in self.done]
        return {
            name: (trial.fitted.model, trial.posterior)
            for name, trial in firsts
            if trial is not None and trial.fitted is not None and trial.posterior is not None
        }

    def _title(self, what: str, data: str) -> str:
        return f"{what}: {data}" + (f", seed {self.seeds[0]}" if len(self.seeds) > 1 else "")

    def _draw_training(self) -> Figure | None:
        from . import plots

        trials = {c.guide: c.first for c in self.done}
        histories = {name: t.fitted.history for name, t in trials.items() if t is not None and t.fitted is not None}
        histories = {name: history for name, history in histories.items() if history}
        if not histories:
            return None
        held_out = {
            name: {key: getattr(t.evaluation, key).mean for key in ("elbo", "log_likelihood", "kl")}
            for name, t in trials.items()
            if t is not None
        }
        return plots.training_curves(histories, self._title("Training", self.data), held_out, "test")

    def _draw_reconstructions(self) -> Figure:
        from . import plots

        test = self.test
        table = len(test.shape) == 1
        # rows keep their numbers, which guides with parameters for each datum go by
        few = test.batch() if table else test.batch(of_each_class(test, pictures_for(test)))
        x = few.x
        assert x is not None
        seed = self.recipe.seed
        means = {name: reconstruct(model, guide, few, seed=seed) for name, (model, guide) in self._pairs().items()}
        labels = [] if few.y is None or table else [test.class_names[k] if k >= 0 else "–" for k in few.y.tolist()]
        title = self._title(
            "Reconstructions E[x | z] at the posterior mean", f"{self.recipe.model} on {test.description}"
        )
        return plots.reconstructions(x, means, _spec(self.ingredients), title, test.columns, labels)

    def _draw_samples(self) -> Figure:
        from . import plots

        test, spec = self.test, _spec(self.ingredients)
        table = len(test.shape) == 1
        pairs = self._pairs()
        first = next(iter(pairs.values()))[0]
        # a model's own latents that all data share are drawn by the guide, which has learnt them
        learnt = any(sharing(guide) is not None for _, guide in pairs.values())
        if self.fixed is not None and not learnt:
            pairs = {self.recipe.model: next(iter(pairs.values()))}
        asked = conditions(first, _TABLE_SAMPLES if table else None, spec.class_names, context=test.context)
        seed, across = self.recipe.seed, asked.per_row
        made = {
            name: sample(model, asked.batch, guide=sharing(guide), seed=seed)
            if across is None
            else sample_styles(model, asked.batch, across, seed=seed)
            for name, (model, guide) in pairs.items()
        }
        return plots.samples(
            {name: s.draw if table else s.mean for name, s in made.items()},
            spec,
            self._title(
                f"Samples {'x' if table else 'E[x | z]'}, z ~ prior{', what all share ~ guide' if learnt else ''}",
                self.data,
            ),
            self.ingredients.data.train.fixed().batch().x if table else None,
            test.columns,
            asked.per_row,
            asked.column_names,
        )

    def _draw_latent(self) -> Figure | None:
        from . import plots

        test, seed = self.test, self.recipe.seed
        found = {name: encode(model, guide, test, seed=seed).means for name, (model, guide) in self._pairs().items()}
        sites = list(dict.fromkeys(site for means in found.values() for site in means))
        if not sites:  # all latents are discrete, or shared
            return None
        codes = {name: torch.cat([m.flatten(1) for m in means.values()], 1) for name, means in found.items()}
        what = "Latent space" if len(sites) == 1 else f"Latent space of {', '.join(sites)} together"
        title = self._title(what, f"{self.recipe.model} on {test.description}")
        return plots.latent_space(codes, test.y, test.class_names, title)

    def _draw_posterior(self) -> Figure | None:
        from . import plots
        from .evaluate.plane import is_plane, planes, posterior_draws

        pairs = self._pairs()
        if not all(is_plane(model) for model, _ in pairs.values()):
            return None
        test, seed = self.test, self.recipe.seed
        rows = of_each_class(test, max(_PANELS, pictures_for(test)))
        rows = rows[torch.linspace(0, len(rows) - 1, min(_PANELS, len(rows))).round().long()]
        few = test.batch(rows)
        drawn = {name: planes(model, guide, few, seed=seed) for name, (model, guide) in pairs.items()}
        one = None if self.fixed is None else posterior_draws(next(iter(pairs.values()))[0], few, seed=seed)
        chains = {name: posterior_draws(m, few, seed=seed) if one is None else one for name, (m, _) in pairs.items()}
        names = [] if few.y is None else [test.class_names[k] if k >= 0 else "–" for k in few.y.tolist()]
        title = self._title("q(z | x) on the posterior p(z | x)", f"{self.recipe.model} on {test.description}")
        return plots.posteriors(drawn, chains, few.x, _spec(self.ingredients), title, names, self.fixed is not None)

    def _draw_seeds(self) -> Figure:
        from . import plots

        numbers: dict[str, dict[str, dict[int, float]]] = {"ELBO": {}, "log p(x)": {}}
        if self.reference is not None:
            numbers = {"KL(q ‖ p(z | x))": {}, **numbers}
        for c in self.done:
            for trial in c.done:
                assert trial.evaluation is not None
                found = {"ELBO": trial.evaluation.elbo, "log p(x)": trial.evaluation.log_px}
                if trial.divergence is not None:
                    found["KL(q ‖ p(z | x))"] = trial.divergence
                for name, estimate in found.items():
                    numbers[name].setdefault(c.guide, {})[trial.seed] = estimate.mean
        return plots.by_seed(numbers, f"Seed by seed: {self.recipe.model} on {self.test.description}")

    def _diagnose(self, checks: str | Sequence[str], budget: str, shows: Display) -> None:
        """Let each guide's first trial be judged, on the test data."""
        from .diagnose import diagnose

        for name, (model, guide) in self._pairs().items():
            self.diagnoses[name] = diagnose(
                model,
                guide,
                self.test,
                checks=checks,
                budget=budget,
                name=f"{self.recipe.model}, {name}",
                seed=self.recipe.seed,
                progress=shows.bars or False,
            )

    def to_arviz(self) -> Any:
        """The draws of all guides along a dimension "guide", for the first of the test data: see `to_arviz`."""
        from .diagnose import to_arviz

        points = max(10, min(100, _ARVIZ_NUMBERS // (_ARVIZ_DRAWS * self.test.x[0].numel())))
        rows = range(min(points, len(self.test)))
        few = self.test.take(rows)
        exports = {}
        for name, (model, guide) in self._pairs().items():
            # rows of a part are counted anew, which guides with parameters for each datum must not see
            data = self.test.batch(torch.tensor(rows)) if is_local(guide) else few
            exports[name] = to_arviz(model, guide, data, _ARVIZ_DRAWS, seed=self.recipe.seed)
        return _along_guides(exports, self.test.columns)

    def to_json(self) -> dict[str, Any]:
        """Every number, and what it takes to get it again."""
        first = self.ingredients
        about = About.of(first.model, first.objective)
        shared = {name: value for name, value in self.recipe.to_json().items() if name not in ("guide", "seed")}
        reference = self.reference
        return {
            "kind": KIND,
            "format": FORMAT,
            "data": {
                "train": {"description": first.data.train.description, "size": len(first.data.train)},
                "test": {"description": self.test.description, "size": len(self.test)},
                "spec": _spec(first).to_json(),
                "likelihood": about.likelihood,
            },
            "guides": [c.guide for c in self.contenders],
            "left_out": self.left_out,
            "settings": {**shared, "seed": self.seeds[0], "eval_particles": self.eval_particles},
            "objective": about.objective,
            "seeds": {
                "weights, order and noise of training": list(self.seeds),
                "evaluation": "the training's",
                "binarization of the test data": self.test.binarize_seed,
            },
            "fixed_decoder": None
            if self.fixed is None
            else {
                "source": self.fixed.source,
                "log_px_from": None if reference is None else {"guide": reference.guide, "seed": reference.seed},
            },
            "rows": [_row_json(trial) for c in self.contenders for trial in c.trials],
            "summary": [_summary_json(c) for c in self.contenders],
            "differences": [d.to_json() for d in self.differences],
            "notes": self.notes,
            **({"diagnoses": {guide: d.to_json() for guide, d in self.diagnoses.items()}} if self.diagnoses else {}),
            "interrupted": self.interrupted,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "machine": {
                "platform": platform.platform(),
                "processor": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": about.device,
            },
            "versions": next((v for c in self.contenders for t in c.trials if (v := _versions(t))), {}),
        }


def compare(
    model: str | Callable[..., nn.Module] | None = None,
    guides: str | Sequence[GuideLike] | Mapping[str, GuideLike] = ("mean-field", "full-rank"),
    data: Any = None,
    recipe: Recipe | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    fix_decoder: str | os.PathLike[str] | nn.Module | None = None,
    eval_particles: int = 1000,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | Progress = False,
    import_seconds: float = 0.0,
    checks: str | Sequence[str] = (),
    budget: str = "quick",
    **settings: Any,
) -> Comparison:
    r"""Train one model with several guides, from the same seeds on the same data, and judge them on the same test data.

    Encoder and decoder have the same sizes and begin with the same weights; only the guides' heads differ. A guide
    that fails leaves the others as they are: its row says what happened. With several seeds every number is a mean over
    them with its standard error, and guides are compared by differences within a seed and a datum.

    With `fix_decoder` the other question is asked: of one model that is held, which guide comes nearest to its
    posterior? With log p(x) from the best importance sampler among the guides,

    .. math:: \mathrm{KL}(q \,\|\, p(z \mid x)) = \log p(x) - \mathrm{ELBO}

    Args:
        model: a name, with options as in "hierarchical-vae:layers=3"; or a function that makes a model, called with the
            training data if it has an argument without a default. None: the recipe's.
        guides: "all"; or a list of names ("low-rank:rank=3"), of classes called with (model, encoder), and of functions
            called with the model (and with `encoder` and `size`, if they have arguments of these names); or these by
            the name they are to have in the table. Of "all", those that refuse the model or the objective are left out
            with a note.
        data: a name or a path; a pair (train, test) of data sets or tensors; or one of them, of which a fifth is then
            held out. None: the recipe's.
        recipe: everything else that they share; `Recipe()` if None.
        seeds: how many, from the recipe's on; or which. None: the recipe's alone.
        fix_decoder: the folder of a run whose model is held, and whose data and sizes then hold; a module; or "first":
            the model is trained once with the first guide. Only guides are trained then, from fresh weights.
        eval_particles: draws a datum, of every number in the table.
        out: a folder for results.json, comparison.nc, pictures, and a run folder for each guide and seed, which
            `open_run` opens. It appears when all is done. None: nothing is written.
        overwrite: replace an earlier comparison in `out`.
        resume: go on with one that was interrupted or killed, or with more seeds or guides: what was trained with the
            same settings is not trained again. The numbers are those of a comparison that never stopped.
        progress: bars (lines, where there is no terminal), or a rich display for them.
        import_seconds: what imports took before this call, for the record.
        checks: which diagnostics judge each guide's first trial, see `ppl_vae.diagnose`; in `out` their verdicts are
            then written side by side, with the pictures, as comparison.html. (): none.
        budget: of the diagnostics.
        settings: changes of the recipe: ``compare(data="digits", epochs=20)``.

    Returns:
        `Comparison`.

    Raises:
        InputError: names or values that cannot be used, a folder that holds something else or an earlier comparison.
        KeyboardInterrupt: Ctrl-C before any guide was trained. Later, the guides that are done are compared.
        OSError: the results could not be written.

    Example:
        >>> comparison = compare(guides=["mean-field"], latent=2, hidden=(8,), epochs=1, eval_particles=2)
        >>> comparison["mean-field"].evaluation.data
        'digits test, fixed binarization (seed 777)'
    """
    began = time.perf_counter()
    if isinstance(model, list | tuple | set | Mapping):
        raise InputError(f"model={model!r} is no model; the guides are the second argument: guides={model!r}")
    wanted = entries(guides)
    check_count("eval_particles", eval_particles)
    if checks:
        from .diagnose import checks as diagnostics

        diagnostics.chosen(checks)
        diagnostics.chosen_budget(budget)
    if "guide" in settings:
        raise InputError(f"guide={settings['guide']!r} does not fit a comparison; name the guides in guides=[...]")
    own_model = model if callable(model) else None
    if isinstance(model, str):
        settings["model"] = model
    elif own_model is not None:
        settings["model"] = getattr(own_model, "__name__", type(own_model).__name__)
    elif model is not None:
        raise InputError(f"model is a {type(model).__name__}; give a name, or a function that makes a model")
    own_data = None
    if isinstance(data, str | os.PathLike):
        settings["data"] = os.fspath(data)
    elif data is not None:
        own_data = _splits(data)
        settings["data"] = own_data.train.name
    shared = (recipe or Recipe()).replace(**settings)
    chosen = seeds_of(seeds, shared.seed)
    shared = shared.replace(seed=chosen[0])
    fixed = None
    if fix_decoder is not None and fix_decoder != FIRST:
        fixed, shared = fixed_by(fix_decoder, shared, own_data is not None, own_model is not None)
        if isinstance(fix_decoder, nn.Module):
            held = fix_decoder
            own_model = lambda: copy.deepcopy(held)  # noqa: E731
    target = None if out is None else Path(out)
    if resume and target is None:
        raise InputError("resume=True needs out, the folder of the comparison to go on with")
    if target is not None:
        check_target(target, overwrite, resume)
    earlier = earlier_runs(target) if resume and target is not None else {}

    seconds = {"import": import_seconds, "load": 0.0, "compile": 0.0, "train": 0.0, "evaluate": 0.0, "draw": 0.0}
    with _timed(seconds, "import"):
        _import_all(write=target is not None)
    job = _Job(shared, Given(own_model, None, own_data), wanted, guides == ALL, chosen, earlier, fixed, seconds)
    with _timed(seconds, "load"):
        job.load()
    comparison = Comparison(
        job.first.recipe, job.first.data.test, chosen, job.contenders, eval_particles, seconds=seconds, fixed=fixed
    )
    with staged(target) as folder, display(progress) as shows, job.first.threads():
        if fix_decoder == FIRST:
            comparison.fixed = job.train_decoder(folder, shows)
        job.run(comparison, folder, shows)
        compiling = sum(
            t.fitted.compiled.compile_seconds for c in job.contenders for t in c.trials if t.fitted is not None
        )
        seconds["compile"] += compiling
        seconds["train"] -= compiling
        _conclude(comparison)
        if checks and not comparison.interrupted:
            with _timed(seconds, "diagnose"):
                comparison._diagnose(checks, budget, shows)
        if folder is not None and target is not None:
            with _timed(seconds, "draw"):
                _draw_all(comparison, folder)
            comparison.out = target
            seconds["total"] = import_seconds + time.perf_counter() - began
            files = sorted({RESULTS, *(path.name for path in folder.iterdir())})
            write_results(folder / RESULTS, {**comparison.to_json(), "files": files})
        else:
            seconds["total"] = import_seconds + time.perf_counter() - began
    if target is not None:
        for contender in comparison.contenders:
            for trial in contender.trials:
                if trial.fitted is not None and trial.fitted.run_dir is not None:
                    trial.fitted.run_dir = target / trial.fitted.run_dir.name
    return comparison


class _Job:
    """The trials of a comparison, one after the other: all guides with the first seed, then with the next."""

    def __init__(
        self,
        shared: Recipe,
        given: Given,
        wanted: list[Entry],
        every: bool,
        seeds: tuple[int, ...],
        earlier: Earlier,
        fixed: Fixed | None,
        seconds: dict[str, float],
    ) -> None:
        self.shared = shared
        self.given = given
        self.entries = {entry.label: entry for entry in wanted}
        self.every = every
        self.seeds = seeds
        self.earlier = earlier
        self.fixed = fixed
        self.seconds = seconds
        self.plain: DataSplits | None = None
        self.test: DataSet | None = None
        self.contenders = [Contender(entry.label) for entry in wanted]
        self.prepared: dict[str, Ingredients | Exception] = {}
        self.refusals: list[InputError] = []

    @property
    def first(self) -> Ingredients:
        return next(ready for ready in self.prepared.values() if isinstance(ready, Ingredients))

    def load(self) -> None:
        """Read the data and make each guide's first pair, so that what cannot be made is told before training."""
        refusals: list[Exception] = []
        for label, entry in self.entries.items():
            try:
                self.prepared[label] = ready = self._prepare(entry, self.seeds[0])
                if self.every:
                    _refuse_one_layer(ready.guide)
            except Exception as error:
                self.prepared[label] = error
                refusals.append(error)
        if len(refusals) == len(self.entries):
            raise refusals[0]
        self._refuse_other_settings()

    def _refuse_other_settings(self) -> None:
        """Raise `InputError` unless earlier runs that are to be gone on with were started from the same recipe."""
        for label, ready in self.prepared.items():
            for seed in self.seeds:
                if not isinstance(ready, Ingredients) or (label, seed) not in self.earlier:
                    continue
                path, record = self.earlier[label, seed]
                now = ready.recipe.replace(seed=seed).to_json()
                then = record.get("recipe", {})
                for name in now.keys() - set(_FREE):
                    if then.get(name) != now[name]:
                        raise InputError(
                            f"{name}={now[name]!r}: the run {str(path)!r} was started with {then.get(name)!r}; give "
                            "the same to go on with it, or leave resume out"
                        )

    def _prepare(self, entry: Entry, seed: int) -> Ingredients:
        recipe = self.shared.replace(guide=entry.guide, seed=seed)
        if self.plain is None and self.given.data is None:
            self.plain = load_plain(recipe)
        weights = None if self.fixed is None else self.fixed.weights
        ready = prepare(recipe, self.plain, Given(self.given.model, entry.own, self.given.data, weights))
        ready.config = {"trial": {"guide": entry.label, "seed": seed}}
        # one copy of what is the same for all
        self.test = ready.data.test if self.test is None else self.test
        ready.data = DataSplits(ready.data.train, self.test)
        return ready

    def train_decoder(self, folder: Path | None, shows: Display) -> Fixed:
        """The model that all guides will share, trained with the first of them."""
        label = next(label for label, ready in self.prepared.items() if isinstance(ready, Ingredients))
        seed = self.seeds[0]
        trial = Trial(DECODER, seed, self._prepare(self.entries[label], seed))
        assert trial.ingredients is not None
        trial.ingredients.config = {"trial": {"guide": DECODER, "seed": seed}}
        with _timed(self.seconds, "train"):
            fitted = self._train(trial, None if folder is None else folder / DECODER, shows, f"{DECODER}, by {label}")
        if fitted.stopped == "interrupted":
            raise KeyboardInterrupt
        weights = {name: t.detach().cpu().clone() for name, t in fitted.model.state_dict().items()}
        self.fixed = Fixed(f"trained here with {label}, seed {seed}", weights)
        self.prepared = {}
        with _timed(self.seconds, "load"):
            self.load()
        return self.fixed

    def run(self, comparison: Comparison, folder: Path | None, shows: Display) -> None:
        """All trials, each trained and evaluated; what fails is written down where it failed."""
        several = len(self.seeds) > 1
        overall = {c.guide: shows.overall(c.guide, len(self.seeds)) for c in self.contenders} if several else {}
        for seed in self.seeds:
            for contender in list(self.contenders):
                trial = Trial(contender.guide, seed)
                contender.trials.append(trial)
                if comparison.interrupted:
                    trial.error = "not trained: interrupted before"
                    continue
                refusal = self._run_one(comparison, trial, folder, shows)
                if refusal is not None:
                    trial.error = f"{type(refusal).__name__}: {one_line(refusal)}"
                    if isinstance(refusal, InputError):
                        self._refused(comparison, contender, refusal)
                if several:
                    shows.tidy()
                    overall[contender.guide].update(len(contender.trials))

    def _refused(self, comparison: Comparison, contender: Contender, refusal: InputError) -> None:
        """What all guides are refused for is nobody's failure but the caller's; of all guides of the registry those
        that do not fit are left out."""
        if len(contender.trials) > 1:
            return
        if self.every:
            comparison.left_out[contender.guide] = one_line(refusal)
            self.contenders.remove(contender)
        self.refusals.append(refusal)
        if len(self.refusals) == len(self.entries):
            raise self.refusals[0]

    def _run_one(self, comparison: Comparison, trial: Trial, folder: Path | None, shows: Display) -> Exception | None:
        several = len(self.seeds) > 1
        name = f"{trial.guide}, seed {trial.seed}" if several else trial.guide
        try:
            ready = self.prepared.pop(trial.guide, None)
            with _timed(self.seconds, "load"):
                ready = self._prepare(self.entries[trial.guide], trial.seed) if ready is None else ready
            if isinstance(ready, Exception):
                return ready
            trial.ingredients = ready
            run_dir = None if folder is None else folder / folder_name(trial.guide, trial.seed, several)
            with _timed(self.seconds, "train"):
                trial.fitted = self._train(trial, run_dir, shows, name)
        except OSError:
            raise
        except Exception as error:
            return error
        if trial.fitted.stopped == "interrupted":
            if not comparison.done:
                raise KeyboardInterrupt
            comparison.interrupted = True
            trial.error = f"interrupted in epoch {trial.fitted.epochs + 1}"
            return None
        with _timed(self.seconds, "evaluate"):
            self._evaluate(comparison, trial, shows, name)
        return None

    def _train(self, trial: Trial, run_dir: Path | None, shows: Display, name: str) -> FitResult:
        ready = trial.ingredients
        assert ready is not None
        assert ready.recipe.epochs is not None
        going_on = False
        if run_dir is not None and (trial.guide, trial.seed) in self.earlier:
            shutil.copytree(self.earlier[trial.guide, trial.seed][0], run_dir)
            going_on = True
        told = shows.for_fit(name, ready.recipe.epochs, ready.recipe.devices)
        return ready.train(run_dir, resume=going_on, **told)

    def _evaluate(self, comparison: Comparison, trial: Trial, shows: Display, name: str) -> None:
        test, ready, fitted = comparison.test, trial.ingredients, trial.fitted
        assert ready is not None
        assert fitted is not None
        try:
            trial.posterior = ready.held_out(test, lambda epochs: shows.for_fit(f"fit {name} to test data", epochs))
            tell = shows.count(f"evaluate {name}", len(test))
            pair = (fitted.model, trial.posterior, test, comparison.eval_particles)
            # the same seed for every guide
            trial.evaluation = evaluate(*pair, seed=trial.seed, progress=tell)
        except KeyboardInterrupt:
            comparison.interrupted = True
            trial.error = "interrupted in its evaluation"
        except OSError:
            raise
        except Exception as error:
            trial.error = f"evaluation: {one_line(error)}"


def _refuse_one_layer(guide: nn.Module) -> None:
    if isinstance(guide, Hierarchical) and len(guide.sites) == 1:
        raise InputError("of a model with one layer it is the mean-field guide")


def _conclude(comparison: Comparison) -> None:
    """What is known when all trials are done: differences, and the distance to the posterior of one model."""
    done = comparison.done
    trials = [trial for contender in done for trial in contender.done]
    if comparison.fixed is not None and trials:
        best = min(trials, key=_expected_error)
        assert best.evaluation is not None
        comparison.reference = Reference(best.guide, best.seed, best.evaluation)
        marginal = best.evaluation.log_marginal
        # of a model with latents that all data share, the two differ by more than a datum's divergence
        for trial in trials if not marginal.shared else ():
            assert trial.evaluation is not None
            bound = trial.evaluation.bound
            # as if their draws were independent: of the best sampler's own they are the same, and the error is less
            se = (marginal.se.square() + bound.elbo_se.square()).sqrt()
            trial.divergence = Estimate.of(marginal.log_px - bound.elbo, se)
    for contender in done[1:]:
        mine, theirs = ({t.seed: t.evaluation for t in c.done} for c in (contender, done[0]))
        common = tuple(seed for seed in comparison.seeds if seed in mine and seed in theirs)
        if common:
            pairs = [(mine[seed], theirs[seed]) for seed in common]
            comparison.differences.append(
                Difference(
                    contender.guide,
                    done[0].guide,
                    common,
                    elbo=_paired([(a.bound.elbo, b.bound.elbo) for a, b in pairs]),  # type: ignore[union-attr]
                    kl=_paired([(a.bound.kl, b.bound.kl) for a, b in pairs]),  # type: ignore[union-attr]
                    log_px=_paired([(a.log_marginal.log_px, b.log_marginal.log_px) for a, b in pairs]),  # type: ignore[union-attr]
                )
            )


def _expected_error(trial: Trial) -> float:
    """Mean squared error of a trial's log p(x), datum by datum; where k-hat says that the error is not to be relied on,
    it counts as `_UNRELIABLE` at least."""
    assert trial.evaluation is not None
    marginal = trial.evaluation.log_marginal
    se = marginal.se.nan_to_num(math.inf)
    return torch.where(marginal.unreliable, se.clamp_min(_UNRELIABLE), se).square().mean().item()


def _paired(values: Sequence[tuple[Tensor, Tensor]]) -> Paired:
    return Paired.of(torch.stack([a - b for a, b in values]))


def _draw_all(comparison: Comparison, folder: Path) -> None:
    """Draws and pictures. One that cannot be made is noted, and costs nobody the training."""
    from . import plots
    from .diagnose import to_netcdf

    folder.mkdir(parents=True, exist_ok=True)
    if not comparison.done:
        return
    with _noted(comparison, DRAWS):
        to_netcdf(comparison.to_arviz(), folder / DRAWS)
    figures: dict[str, Figure] = {}
    for name, draw in comparison._drawings().items():
        with _noted(comparison, f"{name}.png"):
            figure = draw()
            if figure is not None:
                plots.save(figure, folder / f"{name}.png")
                figures[name] = figure
    if comparison.diagnoses:
        from .compare_page import page_of

        with _noted(comparison, PAGE):
            (folder / PAGE).write_text(page_of(comparison, figures), encoding="utf-8")


@contextmanager
def _noted(comparison: Comparison, name: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        comparison.notes.append(f"{name} could not be made: {type(error).__name__}: {one_line(error)}")


def _row_json(trial: Trial) -> dict[str, Any]:
    fitted, evaluation, divergence = trial.fitted, trial.evaluation, trial.divergence
    return {
        "guide": trial.guide,
        "seed": trial.seed,
        "error": trial.error,
        "run": None if fitted is None or fitted.run_dir is None else fitted.run_dir.name,
        "training": None
        if fitted is None
        else {
            "epochs": fitted.epochs,
            "steps": fitted.steps,
            "seconds": fitted.seconds,
            "stopped": fitted.stopped,
            "best_epoch": fitted.best_epoch,
            "compiled": {
                "graphs": len(fitted.compiled.graphs),
                "seconds": fitted.compiled.compile_seconds,
                "eager": fitted.compiled.fallbacks,
            },
            "last_epoch": {k: finite(v) for k, v in fitted.history[-1].items()} if fitted.history else None,
        },
        "test": None if evaluation is None else evaluation.to_json(),
        "fitted_to_test": trial.posterior is not None and is_local(trial.posterior),
        "kl_to_posterior": None
        if divergence is None
        else {name: finite(getattr(divergence, name)) for name in ("mean", "se", "data_se")} | {"n": divergence.n},
    }


def _summary_json(contender: Contender) -> dict[str, Any]:
    """Means over the seeds."""
    done = contender.done
    numbers = {
        name: Spread.over([getattr(t.evaluation, name) for t in done]).to_json() if done else None
        for name in ("elbo", "kl", "log_likelihood", "log_px", "ess")
    }
    divergences = [t.divergence for t in done if t.divergence is not None]
    errors = [t.evaluation.error for t in done if t.evaluation is not None and t.evaluation.error is not None]
    numbers["error"] = Spread.of([e.mean for e in errors]).to_json() if errors else None
    numbers["kl_to_posterior"] = Spread.over(divergences).to_json() if divergences else None
    return {"guide": contender.guide, "seeds": [t.seed for t in done], **numbers}


def _along_guides(exports: Mapping[str, Any], columns: Sequence[str] = ()) -> Any:
    """One export a guide -> one with a dimension "guide". What is observed is the same for all, and kept once.

    Args:
        columns: names of a table's columns, which a batch does not have.
    """
    import xarray as xr

    from .diagnose._arviz import container, groups_of

    names = list(exports)
    groups: dict[str, xr.Dataset] = {}
    for group in groups_of(exports[names[0]]):
        parts = [groups_of(export)[group] for export in exports.values()]
        if columns:
            parts = [p.assign_coords(feature=list(columns)) if "feature" in p.dims else p for p in parts]
        if "draw" not in parts[0].dims:
            groups[group] = parts[0]
            continue
        whole = xr.concat(parts, dim=xr.Variable("guide", names), join="exact", combine_attrs="drop_conflicts")
        groups[group] = whole.transpose("chain", "draw", "guide", ...)
    attrs = dict(groups["posterior"].attrs)
    return container(groups, {key: str(value) for key, value in attrs.items()})


def pictures_for(data: DataSet) -> int:
    """How many images make a row: as many of each class, where there are few."""
    return data.classes * (_PICTURES // data.classes) if 0 < data.classes <= _PICTURES else _PICTURES


def of_each_class(data: DataSet, count: int) -> Tensor:
    """Rows of `count` data, of each class in turn, in the order of the classes; without labels the first ones."""
    if data.y is None or not data.classes:
        return torch.arange(min(count, len(data)))
    y = data.y.cpu()
    order = torch.argsort(y, stable=True)
    place = torch.arange(len(y)) - torch.searchsorted(y[order].contiguous(), y[order].contiguous())
    turn = order[torch.argsort(place, stable=True)][:count]
    return turn[torch.argsort(y[turn], stable=True)]


def _splits(data: Any) -> DataSplits:
    """A person's own data as a training and a test part."""
    if isinstance(data, tuple | list) and len(data) == 2:
        return DataSplits(_data_set(data[0], "train"), _data_set(data[1], "test"))
    return DataSplits(*split(_data_set(data, "all"), _TEST_SHARE))


def _data_set(data: Any, part: str) -> DataSet:
    if isinstance(data, DataSet):
        return data
    if isinstance(data, tuple | list | dict) or not hasattr(data, "__array__"):
        raise InputError(
            f"data holds a {type(data).__name__}; give a name, a path, a DataSet or a tensor, or two of these: (train, "
            "test)"
        )
    return DataSet.from_arrays(data, split=part)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def _import_all(write: bool) -> None:
    """What is imported where it is first used, so that its time is told apart from the work's."""
    if write:
        import arviz  # noqa: F401
        import matplotlib.figure  # noqa: F401


def _versions(trial: Trial) -> dict[str, Any]:
    run_dir = None if trial.fitted is None else trial.fitted.run_dir
    return {} if run_dir is None else dict(read_run(run_dir).get("versions", {}))


def _spec(ingredients: Ingredients) -> DataSpec:
    return DataSpec.of(ingredients.data.train)
