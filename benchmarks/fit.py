"""Seconds of a whole training, size F: the pair of size A on scikit-learn's digits, 200 epochs of batches of 64.

    python -m benchmarks.fit [--epochs 200] [--rounds 5] [--json FILE]

Every training is in a process of its own, on one core, and what is timed is the one call that trains, with all that it
imports and compiles: `fit` eager; `fit` compiled with torch's cache on disk cold (an empty folder) and warm (the
same folder again); and a loop over `pyro.infer.SVI.step` on the same minibatches, in memory, with nothing beside it.
From the cold and the warm compilation follows the number of steps after which compiling has paid for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, median, pin

CONTENDERS = ("pyro.infer.SVI", "fit, eager", "fit, compiled, cold", "fit, compiled, warm")
BATCH = 64


def train(contender: str, epochs: int) -> dict[str, Any]:
    """One training in this process."""
    pin()
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO

    from benchmarks.sizes import LEARNING_RATE
    from ppl_vae import ELBO, guides, likelihoods, models, networks, pyro_pair
    from ppl_vae.data import load
    from ppl_vae.fit import fit

    data = load("digits", binarize="dynamic").train
    torch.manual_seed(0)
    body = networks.decoder("mlp", 8, data.shape, 1, (64,))
    model = models.VAE(body, likelihoods.Bernoulli(data.shape), 8)
    guide = guides.MeanField(model, networks.encoder("mlp", data.shape, (64,)))
    per_epoch = len(data) // BATCH
    report = None
    started = time.perf_counter()
    if contender == "pyro.infer.SVI":
        svi = SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
        for _ in range(epochs):
            rows = torch.randperm(len(data))
            loss = sum(svi.step(data.batch(rows[k * BATCH : (k + 1) * BATCH])) for k in range(per_epoch))
        last = loss / (per_epoch * BATCH)
    else:
        result = fit(
            model,
            guide,
            data,
            ELBO(kl="monte-carlo"),
            epochs=epochs,
            batch_size=BATCH,
            lr=LEARNING_RATE,
            device="cpu",
            compile="compiled" in contender,
            progress=False,
        )
        last = result.history[-1]["loss"]
        report = result.compiled
    seconds = time.perf_counter() - started
    out = {"seconds": seconds, "steps": epochs * per_epoch, "loss": float(last)}
    return out if report is None else out | {"compile_seconds": report.compile_seconds}


def run(contender: str, epochs: int, cache: str) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fit", "--train", contender, "--epochs", str(epochs)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--train", choices=CONTENDERS, help="train once, in this process, and print the seconds")
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.epochs)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in CONTENDERS:
                runs[name].append(run(name, arguments.epochs, cache))
    steps = runs["pyro.infer.SVI"][0]["steps"]
    seconds = {name: [r["seconds"] for r in found] for name, found in runs.items()}
    results: dict[str, Any] = {
        name: {
            "seconds": median(seconds[name]),
            "times_faster_than_svi": median(
                [a / b for a, b in zip(seconds["pyro.infer.SVI"], seconds[name], strict=True)]
            ),
            "loss": median([r["loss"] for r in runs[name]]),
        }
        for name in CONTENDERS
    }
    for state in ("cold", "warm"):
        name = f"fit, compiled, {state}"
        compiling = [r["compile_seconds"] for r in runs[name]]
        # what a step costs once everything is there: the rest of the call over its steps
        saved = [
            (eager - (whole - spent)) / steps
            for eager, whole, spent in zip(seconds["fit, eager"], seconds[name], compiling, strict=True)
        ]
        results[name] |= {
            "compile_seconds": median(compiling),
            "pays_after_steps": median([spent / max(each, 1e-9) for spent, each in zip(compiling, saved, strict=True)]),
        }
    machine = describe()
    print(f"{steps} steps; one core of {machine['cpu']}, torch {machine['torch']}, pyro {machine['pyro-ppl']}")
    for name, figures in results.items():
        print(f"  {name:22s} {figures['seconds']:7.2f} s, {figures['times_faster_than_svi']:5.2f} times as fast as SVI")
        if "compile_seconds" in figures:
            pays = figures["pays_after_steps"]
            print(f"  {'':22s} of which compiling {figures['compile_seconds']:.2f} s: pays after {pays:.0f} steps")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "steps": steps, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
