"""A flow posterior against a mean-field one on MNIST, at an equal number of steps, paired over seeds.

784-200-200-40 and back (SiLU), Bernoulli likelihood, dynamic binarization, batches of 200, Adam at 1e-3 falling by a
cosine, the KL's weight rising over the first epochs: all of it the same for each guide, and the first weights of
encoder and decoder too. The test images are binarized once; log p(x) is importance-sampled with 5,000 draws from each
guide of its own. A difference is a mean over seeds of the difference between the guides' means over the test images,
and its error the standard error over seeds.

    python -m benchmarks.flow_posterior --data-dir DIR [--out FOLDER] [--json FILE] [--resume]

DIR holds MNIST as torchvision keeps it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ppl_vae import compare
from ppl_vae.data import load

from .machine import describe

GUIDES = ("mean-field", "inverse-autoregressive:transforms=2:hidden=256")
SEEDS = 3
SETTINGS: dict[str, Any] = {
    "model": "vae",
    "likelihood": "bernoulli",
    "latent": 40,
    "hidden": (200, 200),
    "batch_size": 200,
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "warmup": 10,
    "compile": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="where torchvision keeps MNIST")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--test", type=int, default=10_000, help="test images, the first ones")
    parser.add_argument("--particles", type=int, default=5_000, help="draws an image, in the evaluation")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--resume", action="store_true", help="go on with what is in it")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    splits = load("mnist", data_dir=given.data_dir, binarize="dynamic", download=False)
    test = splits.test.take(range(given.test)) if given.test < len(splits.test) else splits.test
    result = compare(
        guides=GUIDES,
        data=(splits.train, test),
        seeds=SEEDS,
        eval_particles=given.particles,
        epochs=given.epochs,
        out=given.out,
        resume=given.resume,
        progress=True,
        **SETTINGS,
    )
    Console(width=160).print(result.table())
    if given.json is not None:
        found = result.to_json()
        kept = ("data", "guides", "settings", "objective", "seeds", "rows", "summary", "differences", "notes")
        command = f"python -m benchmarks.flow_posterior --epochs {given.epochs} --test {given.test}"
        report = {"command": command, "machine": describe(), **{name: found[name] for name in kept}}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
