"""What a report takes: `ppl-vae diagnose RUN` with everything, at the standard budget, on a trained VAE of the digits.

    python -m benchmarks.report [--run RUN] [--budget standard] [--json FILE]

Without a run it trains one first, with the defaults of `ppl-vae train`. Wall-clock seconds are from the command's start
to its end, with the imports and the page. Seconds of computing are those of all its threads: beside other work on the
machine they are what says how long it takes alone. The load is the operating system's, over the last minute, before and
after.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

GOAL = 180.0
"""Seconds that a report may take, on two cores."""


def timed(words: list[str]) -> dict[str, float]:
    """Run a command to its end: its wall-clock seconds and those of computing."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - began,
        "computing": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder that `ppl-vae train` has written")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "ppl_vae"]
        run = arguments.run
        training: list[str] = []
        if run is None:
            run = Path(folder) / "digits"
            training = ["train", "--data", "digits"]
            subprocess.run([*program, *training, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
        page, numbers = Path(folder) / "report.html", Path(folder) / "report.json"
        asked = ["diagnose", str(run), "--budget", arguments.budget, "--out", str(page), "--json", str(numbers)]
        load = os.getloadavg()[0]
        found = timed([*program, *asked, "--quiet"])
        told = json.loads(numbers.read_text(encoding="utf-8"))
        results: dict[str, Any] = {
            "machine": {**describe(), "threads": told["about"]["threads"]},
            "commands": [
                *([shlex.join(["ppl-vae", *training])] if training else []),
                f"ppl-vae diagnose RUN --budget {arguments.budget}",
            ],
            "pair": told["name"],
            "data": told["data"],
            "load_before": load,
            "load_after": os.getloadavg()[0],
            **found,
            "checks": told["seconds"],
            "left_out": told["left_out"],
            "page_bytes": page.stat().st_size,
        }
    print(
        f"{results['pair']}, {arguments.budget}: {found['seconds']:.0f} s, {found['computing']:.0f} s of computing; "
        f"load {load:.1f} before, {results['load_after']:.1f} after"
    )
    if arguments.budget == "standard" and found["seconds"] > GOAL:
        print(f"more than {GOAL:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
