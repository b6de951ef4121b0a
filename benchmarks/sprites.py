"""How many sprites a second are rendered on one core, as float32 pictures in batches of 64 and of 512.

    python -m benchmarks.sprites [--json FILE]

A batch is drawn from all 737,280 at random; the figure is the median over rounds, on one pinned core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.machine import describe, median, pin, rounds
from ppl_vae.data import sprites

SIZES = (64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    pin()
    data = sprites()
    rows = {size: torch.randint(0, len(data), (size,), generator=torch.Generator().manual_seed(size)) for size in SIZES}
    times = rounds({str(size): lambda size=size: data.batch(rows[size]) for size in SIZES})  # type: ignore[misc]
    found = {str(size): 1e3 * size / median(times[str(size)]) for size in SIZES}
    for size, value in found.items():
        print(f"batches of {size}: {value:,.0f} images a second")
    if arguments.json is not None:
        whole = {"machine": describe(), "images_per_second": found}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
