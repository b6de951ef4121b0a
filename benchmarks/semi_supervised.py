"""Few labels: M2 beside what the labels alone give, a classifier of the same encoder, both tuned on the same labels.

    python -m benchmarks.semi_supervised [--data digits] [--labels 50] [--seeds 5] [--json FILE]

A tenth of the training data, with all its labels, chooses each method's configuration by the mean error over the first
seeds (`--tuning-seeds`); of the rest so many labels are kept, as many of each class, by the seed. M2 learns from x of
the rest and these labels, the classifier from the labelled data alone. Both see the same x: digits binarized at one
half, MNIST binarized anew in every step and its test set once (seed 777); `--binarize` says otherwise. The last epoch's
weights are tested on the test set, whose labels neither sees. A seed is of labels, weights and noise; differences are
paired by seed. Where M2 has one configuration, nothing of it is chosen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.machine import describe
from ppl_vae.build import PairConfig, build_encoder
from ppl_vae.data import DataSet, load, split
from ppl_vae.data.dataset import DataSplits
from ppl_vae.evaluate import classify
from ppl_vae.recipe import Given, Recipe, prepare

VALIDATION = 0.1
CLASSIFIERS = {
    "lr": (1e-3, 5e-3),
    "weight_decay": (0.0, 1e-2, 1e-1),
    "hidden": ((64,), (256,)),
    "dropout": (0.0, 0.5),
}
STEPS = 300
BINARIZE = {"digits": "threshold", "mnist": "dynamic"}
M2 = {
    "digits": [{"objective": "semi-supervised:alpha=1", "latent": 6}],
    "mnist": [{"objective": "semi-supervised:alpha=0.1", "latent": 50}],
}
SHARED = {
    "digits": {"hidden": (128,), "epochs": 80, "lr": 5e-3, "compile": False},
    "mnist": {"hidden": (256,), "epochs": 20, "lr": 1e-3, "batch_size": 200},
}


def parts(data: str, data_dir: str, limit: int | None, binarize: Any) -> tuple[DataSplits, DataSet]:
    """Training and test part, and the validation part."""
    plain = load(data, data_dir=data_dir, download=False)
    train = plain.train if limit is None else plain.train.take(range(limit))
    train, validation = split(train, VALIDATION)
    once = "fixed" if binarize == "dynamic" else binarize
    return (
        DataSplits(train.with_options(binarize=binarize), plain.test.with_options(binarize=once)),
        validation.with_options(binarize=once),
    )


def m2(data: DataSplits, model: str, labels: int, seed: int, config: dict[str, Any]) -> Any:
    """A trained pair, and the seconds that its training took."""
    recipe = Recipe(model=model, labels=labels, seed=seed, **config)
    ready = prepare(recipe, given=Given(data=data))
    with ready.threads():
        fitted = ready.train(progress=False)
    return fitted.model, fitted.guide, fitted.seconds


class Classifier(nn.Module):
    """The encoder of the pair, a dropout and C logits."""

    def __init__(self, data: DataSet, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.encoder = build_encoder(PairConfig(hidden=hidden), data)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.features, data.classes))

    def forward(self, batch: Any) -> torch.Tensor:
        return self.head(self.encoder(batch))


def classifier(data: DataSplits, labels: int, seed: int, config: dict[str, Any]) -> Classifier:
    """Trained on the labelled data alone, the same ones."""
    kept = data.train.keep_labels(labels, seed)
    some = kept.take(kept.y >= 0)
    torch.manual_seed(seed)
    made = Classifier(kept, tuple(config["hidden"]), config["dropout"])
    optimizer = torch.optim.AdamW(made.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = some.batch()
        optimizer.zero_grad()
        cross_entropy(made(batch), batch.y).backward()
        optimizer.step()
        schedule.step()
    return made.eval()


@torch.no_grad()
def wrong(made: Classifier, data: DataSet) -> float:
    batch = data.batch()
    return (made(batch).argmax(-1) != batch.y).double().mean().item()


def grid(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def mean_se(values: list[float]) -> dict[str, float]:
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "se": se}


def say(text: str) -> None:
    print(text, flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    data, validation = parts(
        arguments.data, arguments.data_dir, arguments.limit, arguments.binarize or BINARIZE[arguments.data]
    )
    seeds, tuning = range(arguments.seeds), range(arguments.tuning_seeds)
    say(f"{data.train!r}\n{validation!r}\n{data.test!r}")

    tried = []
    for config in grid(CLASSIFIERS):
        errors = [wrong(classifier(data, arguments.labels, seed, config), validation) for seed in tuning]
        tried.append({"config": config, "validation": statistics.fmean(errors)})
    chosen = min(tried, key=lambda each: each["validation"])
    say(f"classifier: {chosen['config']}, validation error {chosen['validation']:.4f} of {len(tried)} configurations")
    theirs = [wrong(classifier(data, arguments.labels, seed, chosen["config"]), data.test) for seed in seeds]
    say(f"classifier: test errors {theirs}")

    shared = SHARED[arguments.data] | ({} if arguments.epochs is None else {"epochs": arguments.epochs})
    ours_tried = []
    pairs: dict[tuple[int, int], Any] = {}
    for i, config in enumerate(M2[arguments.data]):
        errors = []
        for seed in tuning if len(M2[arguments.data]) > 1 else []:
            began = time.perf_counter()
            pairs[i, seed] = m2(data, arguments.model, arguments.labels, seed, {**shared, **config})
            errors.append(classify(*pairs[i, seed][:2], validation).error.mean)
            say(f"{arguments.model}: {config}, seed {seed}: {errors[-1]:.4f} ({time.perf_counter() - began:.0f} s)")
        ours_tried.append({"config": config, "validation": statistics.fmean(errors) if errors else None})
    best = min(range(len(ours_tried)), key=lambda i: ours_tried[i]["validation"] or 0.0)
    say(f"{arguments.model}: {ours_tried[best]}")
    ours, seconds = [], []
    for seed in seeds:
        config = {**shared, **M2[arguments.data][best]}
        pair = pairs.get((best, seed)) or m2(data, arguments.model, arguments.labels, seed, config)
        ours.append(classify(*pair[:2], data.test).error.mean)
        seconds.append(pair[2])
        say(f"{arguments.model}: seed {seed}: test error {ours[-1]:.4f}, the classifier's {theirs[seed]:.4f}")
    difference = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        "data": [data.train.description, validation.description, data.test.description],
        "labels": arguments.labels,
        "validation_labels": len(validation),
        "seeds": list(seeds),
        "tuning_seeds": list(tuning),
        "classifier": {"tried": tried, "chosen": chosen, "test": theirs, **mean_se(theirs)},
        arguments.model: {
            "shared": shared,
            "tried": ours_tried,
            "chosen": ours_tried[best],
            "test": ours,
            **mean_se(ours),
            "seconds": seconds,
        },
        "difference": {"by_seed": difference, **mean_se(difference)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(M2), default="digits")
    parser.add_argument("--data-dir", default="data", help="where MNIST is")
    parser.add_argument("--binarize", choices=["dynamic", "fixed", "threshold"])
    parser.add_argument("--model", choices=["m2", "semi-supervised-vae"], default="m2")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of the pair's training")
    parser.add_argument("--limit", type=int, help="so many of the training data, the first ones")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments)
    for name in ("classifier", arguments.model, "difference"):
        row = results[name]
        say(f"{name}: test error {100 * row['mean']:.2f}% ± {100 * row['se']:.2f}%")
    sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
