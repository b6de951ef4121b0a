"""Priors side by side on scikit-learn's digits, learned with the rest or fitted afterwards, paired over seeds.

The recipe is that of `ppl-vae train`, mean-field guide and binarized digits, the same for every prior; test digits are
binarized once. log p(x) is importance-sampled from each pair's own guide. A difference is that from the standard normal
of the same seed: the mean over seeds with the standard error over seeds, or of one seed with the standard error over
the test digits, of differences digit by digit. "fitted" priors leave model and guide of the standard normal's run as
they are.

    python -m benchmarks.priors [--seeds 3] [--latent 8] [--epochs 200] [--warmup 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from ppl_vae import evaluate, fit_prior
from ppl_vae.core import Guide, LatentModel
from ppl_vae.recipe import Recipe, prepare

from .machine import describe

PLAIN = "standard-normal"
LEARNED = ("mixture", "vamp", "flow", "autoregressive", "energy")
FITTED = ("mixture", "flow", "autoregressive", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=0, help="epochs in which the KL's weight rises from 0")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    plain: dict[str, torch.Tensor] = {}
    for seed in range(given.seeds):
        for prior in (PLAIN, *LEARNED):
            recipe = Recipe(
                prior=prior, latent=given.latent, epochs=given.epochs, warmup=given.warmup, seed=seed, compile=False
            )
            ready = prepare(recipe)
            fitted = ready.train(progress=False)
            test = ready.data.test
            pairs = {prior: fitted.model}
            if prior == PLAIN:
                assert isinstance(fitted.model, LatentModel)
                assert isinstance(fitted.guide, Guide)
                for name in FITTED:
                    pairs[f"{name}, fitted"] = fit_prior(
                        fitted.model, fitted.guide, ready.data.train, name, seed=seed, progress=False
                    )
            for name, model in pairs.items():
                result = evaluate(model, fitted.guide, test, given.particles, seed=seed)
                numbers = {key: getattr(result, key).mean for key in ("elbo", "kl", "log_px")}
                each = {"elbo": result.bound.elbo, "log_px": result.log_marginal.log_px}
                plain = each if name == PLAIN else plain
                for key, values in each.items():
                    numbers[f"{key}_paired_se"] = ((values - plain[key]).std() / math.sqrt(len(values))).item()
                if result.log_z is not None:
                    numbers["log_z_se"] = result.log_z.se  # one error of all test digits together
                rows.append({"prior": name, "seed": seed, "khat_above": result.khat_above, **numbers})
                print(rows[-1], flush=True)
                keep(given, rows)
    print(table(rows))


def keep(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write what there is so far."""
    if given.json is not None:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        given.json.write_text(json.dumps({"machine": describe(), "settings": settings, "rows": rows}, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, differences from the standard normal of the same seed."""
    plain = {row["seed"]: row for row in rows if row["prior"] == PLAIN}
    lines = ["| prior | ELBO | log p(x) | ELBO, difference | log p(x), difference |", "|---|---|---|---|---|"]
    for prior in dict.fromkeys(row["prior"] for row in rows):
        mine = [row for row in rows if row["prior"] == prior]
        cells = [f"{statistics.mean(row[key] for row in mine):.2f}" for key in ("elbo", "log_px")]
        for key in ("elbo", "log_px"):
            apart = [row[key] - plain[row["seed"]][key] for row in mine]
            error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else mine[0][f"{key}_paired_se"]
            cells.append("" if prior == PLAIN else f"{statistics.mean(apart):+.2f} ± {error:.2f}")
        lines.append(f"| {prior} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
