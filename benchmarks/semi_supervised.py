"""Few labels: M2 and M1+M2 beside what the labels alone give a classifier and a support-vector machine.

    python -m benchmarks.semi_supervised [--data digits] [--binarize threshold] [--json FILE]
    python -m benchmarks.semi_supervised --data mnist --data-dir DIR --labels 100 --seeds 3 --m1 RUN --json FILE

Every method's configuration is the one of the smallest mean error on the validation part, over label draws of seeds
that are not reported (`--tuning-seeds`, from 100 on). The validation part is a tenth of the digits' training data, and
the last 10,000 of MNIST's. Of the rest so many labels are kept, as many of each class, by the seed; M2 learns from x of
the rest and these labels, the others from the labelled data alone. All see the same x, and all are tested on a test
set binarized once (seed 777), whose labels choose nothing. Every run goes to the end of its epochs and the last weights
are tested: nothing is stopped by labels. A seed is of labels, weights and noise; differences are paired by seed.

M1+M2 is M2 on codes drawn anew in every step from the posterior of a VAE, M1, that knows no label and is trained once
(`--m1`, a folder that is written where it is not there yet).

The file of `--json` is written after every run; with it a run that was stopped goes on at the next one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.few_labels import CLASSIFIERS, SVMS, classifier, grid, svm, wrong
from benchmarks.machine import describe
from ppl_vae.build import PairConfig, build
from ppl_vae.data import DataSet, load, split
from ppl_vae.data.dataset import DataSplits
from ppl_vae.evaluate import active_units, classify, codes
from ppl_vae.fit import fit
from ppl_vae.objectives import ELBO
from ppl_vae.recipe import Given, Recipe, prepare
from ppl_vae.runs import load_weights

FIRST_SEED = {"digits": 10, "mnist": 0}
FIRST_TUNING_SEED = 100
LAST = 10_000
BINARIZE = {"digits": "threshold", "mnist": "dynamic"}
PAIRS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "digits": {
        "m2": [
            {"objective": f"semi-supervised:alpha={alpha}", "latent": latent, "epochs": epochs}
            for alpha in (0.3, 1, 5)
            for latent in (3, 6)
            for epochs in (80, 200)
        ],
    },
    "mnist": {
        "m2": [{"objective": f"semi-supervised:alpha={alpha}", "latent": 50} for alpha in (0.1, 1)],
        "m1+m2": [
            {"objective": f"semi-supervised:alpha={alpha}", "latent": latent}
            for alpha, latent in ((0.1, 50), (1, 50), (1, 10))
        ],
    },
}
SHARED: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {"m2": {"hidden": (128,), "lr": 5e-3, "compile": False}},
    "mnist": {
        "m2": {"hidden": (200,), "epochs": 12, "lr": 1e-3, "batch_size": 200, "compile": True},
        "m1+m2": {
            "hidden": (200,),
            "epochs": 40,
            "lr": 2e-3,
            "batch_size": 200,
            "compile": True,
            "likelihood": "gaussian-learned",
        },
    },
}
SHARED["digits"]["semi-supervised-vae"] = SHARED["digits"]["m2"]
PAIRS["digits"]["semi-supervised-vae"] = PAIRS["digits"]["m2"]
M1 = {"latent": 50, "hidden": (500, 500)}
M1_FIT: dict[str, Any] = {"epochs": 40, "batch_size": 200, "lr": 1e-3, "lr_schedule": "cosine"}


def parts(data: str, data_dir: str, limit: int | None, binarize: Any) -> tuple[DataSplits, DataSet]:
    """Training and test part, and the validation part."""
    plain = load(data, data_dir=data_dir, download=False)
    if data == "digits":
        train, validation = split(plain.train, 0.1)
    else:
        first = len(plain.train) - LAST
        train, validation = plain.train.take(range(first)), plain.train.take(range(first, len(plain.train)))
    if limit is not None:
        train = train.take(range(limit))
    once = "fixed" if binarize == "dynamic" else binarize
    return (
        DataSplits(train.with_options(binarize=binarize), plain.test.with_options(binarize=once)),
        validation.with_options(binarize=once),
    )


def coded(
    data: DataSplits, validation: DataSet, folder: str, epochs: int | None
) -> tuple[DataSplits, DataSet, dict[str, Any]]:
    """The codes of an M1 that was trained before, or is now: of the training data drawn anew in every batch."""
    torch.manual_seed(0)
    m1, encoder = build(PairConfig(**M1), data.train)  # type: ignore[arg-type]
    settings = {**M1_FIT, **({} if epochs is None else {"epochs": epochs})}
    if not (Path(folder) / "run.json").exists():
        fit(m1, encoder, data.train, ELBO(), run_dir=folder, progress=False, tensorboard=False, **settings)
    state = load_weights(folder, m1, encoder)
    keep = active_units(m1, encoder, data.train, seed=0).active["z"]
    about = {
        **M1,
        **settings,
        "seconds": state["seconds"],
        "elbo": state["history"][-1]["elbo"],
        "kept": int(keep.sum()),
    }
    return (
        DataSplits(codes(m1, encoder, data.train, draw=True, keep=keep), codes(m1, encoder, data.test, keep=keep)),
        codes(m1, encoder, validation, keep=keep),
        about,
    )


def pair(data: DataSplits, model: str, labels: int, seed: int, config: dict[str, Any], run_dir: Path | None) -> Any:
    """A trained pair, and the seconds that its training took."""
    recipe = Recipe(model=model, labels=labels, seed=seed, **config)
    ready = prepare(recipe, given=Given(data=data))
    with ready.threads():
        return ready.train(run_dir, overwrite=True, progress=False)


def mean_se(values: list[float]) -> dict[str, float]:
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "se": se}


def say(text: str) -> None:
    print(text, flush=True)


class Book:
    """The results so far, kept in a file, with which a run goes on."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        before = json.loads(path.read_text()) if path is not None and path.exists() else {}
        if before and before["settings"] != settings:
            raise SystemExit(f"{path} holds figures of other settings: {before['settings']}, not {settings}")
        self.settings, self.results = settings, before.get("results", {})

    def write(self) -> None:
        if self.path is not None:
            whole = {"machine": describe(), "settings": self.settings, "results": self.results}
            self.path.write_text(json.dumps(whole, indent=2) + "\n")


def method(
    book: Book,
    name: str,
    configs: list[dict[str, Any]],
    run: Callable[[int, dict[str, Any], bool], tuple[float, float, float]],
) -> None:
    """Choose a configuration by the validation error over the tuning seeds, then test it on the others.

    Args:
        run: of a seed, a configuration and whether it is for tuning: validation error, test error and seconds.
    """
    row = book.results.setdefault(name, {"tried": [], "by_seed": {}})
    for config in configs[len(row["tried"]) :]:
        errors, seconds = [], 0.0
        for seed in book.settings["tuning_seeds"] if len(configs) > 1 else ():
            validation, _, took = run(seed, config, True)
            errors.append(validation)
            seconds += took
        row["tried"].append({"config": config, "validation": errors, "seconds": seconds})
        book.write()
        if seconds > 5:
            say(f"{name}: {config}: validation errors {errors} ({seconds:.0f} s)")
    best = min(row["tried"], key=lambda each: statistics.fmean(each["validation"] or [0.0]))
    row["chosen"] = best
    say(f"{name}: of {len(configs)} {best['config']}, validation errors {best['validation']}")
    for seed in map(str, book.settings["seeds"]):
        if seed not in row["by_seed"]:
            validation, test, took = run(int(seed), dict(best["config"]), False)
            row["by_seed"][seed] = {"validation": validation, "test": test, "seconds": took}
            book.write()
            say(f"{name}: seed {seed}: test error {test:.4f} ({took:.0f} s)")
    row |= mean_se([each["test"] for each in row["by_seed"].values()])
    book.write()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    task = arguments.data
    binarize = arguments.binarize or BINARIZE[task]
    data, validation = parts(task, arguments.data_dir, arguments.limit, binarize)
    first = FIRST_SEED[task] if arguments.first_seed is None else arguments.first_seed
    settings = {
        "data": [data.train.description, validation.description, data.test.description],
        "sizes": [len(data.train), len(validation), len(data.test)],
        "labels": arguments.labels,
        "seeds": list(range(first, first + arguments.seeds)),
        "tuning_seeds": list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + arguments.tuning_seeds)),
    }
    book = Book(arguments.json, settings)
    say("\n".join(map(str, settings.items())))
    sources = {"": (data, validation)}
    names = arguments.methods.split(",")
    if any("m1" in name for name in names):
        codings = coded(data, validation, arguments.m1, arguments.m1_epochs)
        sources["m1"] = codings[:2]
        book.results["m1"] = codings[2]
        say(f"m1: {codings[2]}")

    def alone(make: Any, source: str) -> Any:
        here, held = sources[source]

        def run(seed: int, config: dict[str, Any], tuning: bool) -> tuple[float, float, float]:
            began = time.perf_counter()
            made = make(here.train, arguments.labels, seed, config)
            took = time.perf_counter() - began
            return wrong(made, held), math.nan if tuning else wrong(made, here.test), took

        return run

    def trained(name: str) -> Any:
        here, held = sources["m1" if "m1" in name else ""]

        def run(seed: int, config: dict[str, Any], tuning: bool) -> tuple[float, float, float]:
            whole = {**SHARED[task][name], **config}
            if tuning and arguments.tuning_epochs:
                whole |= {"epochs": arguments.tuning_epochs, "compile": False}
            elif arguments.epochs:
                whole["epochs"] = arguments.epochs
            folder = None if arguments.runs is None or tuning else Path(arguments.runs) / f"{name}-{seed}"
            fitted = pair(here, name.removeprefix("m1+"), arguments.labels, seed, whole, folder)
            held_out = classify(fitted.model, fitted.guide, held).error.mean
            test = math.nan if tuning else classify(fitted.model, fitted.guide, here.test).error.mean
            return held_out, test, fitted.seconds

        return run

    for name in names:
        if name == "classifier":
            method(book, name, grid(CLASSIFIERS), alone(classifier, ""))
        elif name in ("svm", "m1+svm"):
            random = binarize == "dynamic" or name == "m1+svm"
            choices = {**SVMS, **({} if random else {"draws": (1,)})}
            method(book, name, grid(choices), alone(svm, name.partition("+")[0] if "+" in name else ""))
        else:
            row = book.results.setdefault(name, {"tried": [], "by_seed": {}})
            row["shared"] = SHARED[task][name] | ({"epochs": arguments.epochs} if arguments.epochs else {})
            row["tuning_epochs"] = arguments.tuning_epochs
            method(book, name, PAIRS[task][name], trained(name))
    rows = {name: row for name, row in book.results.items() if "by_seed" in row}
    pairs = [(a, b) for a in rows for b in rows if "m2" in a + "" and "m2" not in b]
    book.results["differences"] = {
        f"{a} - {b}": mean_se(
            [rows[a]["by_seed"][str(s)]["test"] - rows[b]["by_seed"][str(s)]["test"] for s in settings["seeds"]]
        )
        for a, b in pairs
    }
    book.write()
    return book.results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(PAIRS), default="digits")
    parser.add_argument("--data-dir", default="data", help="where MNIST is")
    parser.add_argument("--binarize", choices=["dynamic", "fixed", "threshold"])
    parser.add_argument("--methods", default="classifier,svm,m2", help="also semi-supervised-vae, m1+svm, m1+m2")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int)
    parser.add_argument("--tuning-seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of the pairs' training")
    parser.add_argument("--tuning-epochs", type=int, help="of the pairs' training while a configuration is chosen")
    parser.add_argument("--m1", default="runs/m1", help="the folder of M1")
    parser.add_argument("--m1-epochs", type=int)
    parser.add_argument("--limit", type=int, help="so many of the training data, the first ones")
    parser.add_argument("--runs", help="write the runs that are tested into this folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments)
    for name, row in results.items():
        if "mean" in row:
            say(f"{name}: test error {100 * row['mean']:.2f}% ± {100 * row['se']:.2f}%")
    for name, row in results["differences"].items():
        say(f"{name}: {100 * row['mean']:.2f}% ± {100 * row['se']:.2f}%")


if __name__ == "__main__":
    main()
