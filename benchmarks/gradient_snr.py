"""Signal-to-noise ratio of gradients as the number of particles grows: IWAE's, STL's and DReG's.

The model of Rainforth et al. (https://arxiv.org/abs/1802.04537), with a guide that is off: z ~ N(θ, I), x ~ N(z, I),
both of D = 5 dimensions, and q(z | x) = N(x/2 + φ, s² I). Every replica of a datum has parameters of its own, all
equal, so that one backward pass gives as many independent draws of the gradient as there are replicas.

    python -m benchmarks.gradient_snr [--json FILE] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import IWAE, STL, Batch, DReG, Guide, LatentModel, LatentSpec, Objective

from .machine import describe

D = 5
THETA, SHIFT, LOG_SCALE = 0.5, 0.6, 0.3  # the posterior has φ = θ/2 = 0.25 and log s = -0.35
PARTICLES = (1, 4, 16, 64, 256, 1024)
ESTIMATORS: dict[str, type[Objective]] = {"IWAE": IWAE, "STL": STL, "DReG": DReG}
REPLICAS = 16384
GROUPS = 32
AT_ONCE = 2**17  # draws of z in memory at once


class Model(LatentModel):
    """z_n ~ N(θ_n, I), x_n ~ N(z_n, I)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([D]))}
        self.theta = nn.Parameter(torch.full((n, D), THETA))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(self.theta, 1.0).to_event(1))
            x: Tensor = pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch.x)
        return x


class Off(Guide):
    """q(z_n | x_n) = N(x_n / 2 + φ_n, s_n²)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((n, D), SHIFT))
        self.log_scale = nn.Parameter(torch.full((n, D), LOG_SCALE))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.x is not None
        with pyro.plate("data", batch.size, dim=-1):
            q = dist.Normal(0.5 * batch.x + self.shift, self.log_scale.exp()).to_event(1)
            return {"z": pyro.sample("z", q)}


def gradients(objective: Objective, replicas: int, seed: int) -> dict[str, Tensor]:
    """Independent draws of the gradient: "guide" (replicas, 2 D), "model" (replicas, D)."""
    torch.manual_seed(seed)
    found: dict[str, list[Tensor]] = {"guide": [], "model": []}
    size = min(replicas, max(16, AT_ONCE // objective.num_particles))
    model, guide, batch = Model(size), Off(size), Batch(x=torch.linspace(-1.0, 1.5, D).expand(size, D).clone())
    for _ in range(replicas // size):
        parameters = [guide.shift, guide.log_scale, model.theta]
        loss = objective.differentiable_loss(model, guide, batch)
        by_shift, by_scale, by_theta = torch.autograd.grad(loss, parameters)
        found["guide"].append(torch.cat([by_shift, by_scale], -1).double())
        found["model"].append(by_theta.double())
    return {part: torch.cat(draws) for part, draws in found.items()}


def ratio(draws: Tensor) -> Tensor:
    r"""√(Σ_i mean_i² / Σ_i variance_i) over the parameters i, the noise of the estimated means taken out of their
    squares; 0 where there is less signal than that noise."""
    variance = draws.var(0)
    signal = (draws.mean(0).square() - variance / draws.shape[0]).sum()
    return (signal.clamp_min(0.0) / variance.sum()).sqrt()


def with_error(draws: Tensor) -> tuple[float, float]:
    """The ratio and its standard error, by the jackknife over groups of replicas."""
    groups = draws.unflatten(0, (GROUPS, -1))
    left_out = torch.stack([ratio(torch.cat([groups[:i], groups[i + 1 :]]).flatten(0, 1)) for i in range(GROUPS)])
    return ratio(draws).item(), math.sqrt((GROUPS - 1) * left_out.var(unbiased=False).item())


def slope(particles: list[int], ratios: list[float]) -> float:
    """d log SNR / d log K, by least squares."""
    x, y = torch.tensor(particles).double().log(), torch.tensor(ratios).double().log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def measure(particles: tuple[int, ...] = PARTICLES, replicas: int = REPLICAS) -> dict[str, Any]:
    """By part and estimator: SNR and its standard error for every K, and the slope from K = 16; for the guide also
    the share of DReG's mean gradient that IWAE's and STL's have, 1 where they are unbiased, and its standard error."""
    results: dict[str, Any] = {"particles": list(particles), "guide": {}, "model": {}}
    for number, (name, make) in enumerate(ESTIMATORS.items()):
        rows: dict[str, list[tuple[float, float]]] = {"guide": [], "model": []}
        means = []
        for k in particles:
            drawn = gradients(make(particles=k), replicas, seed=1000 * number + k)
            for part, draws in drawn.items():
                rows[part].append(with_error(draws))
            means.append((drawn["guide"].mean(0), drawn["guide"].var(0) / replicas))
            print(
                f"{name:5s} K={k:5d}  guide {rows['guide'][-1][0]:8.4f}  model {rows['model'][-1][0]:8.3f}", flush=True
            )
        for part, values in rows.items():
            snr, error = map(list, zip(*values, strict=True))
            later = [i for i, k in enumerate(particles) if k >= 16 and snr[i] > 0]
            results[part][name] = {
                "snr": snr,
                "se": error,
                "slope": slope([particles[i] for i in later], [snr[i] for i in later]) if len(later) > 1 else None,
            }
        results["guide"][name]["means"] = means
    reference = results["guide"]["DReG"].pop("means")
    for row in (results["guide"][name] for name in ("IWAE", "STL")):
        # along DReG's mean, which is unbiased and has the least noise
        row["share"], row["share_se"] = [], []
        for (mean, variance), (other, other_variance) in zip(row.pop("means"), reference, strict=True):
            length = other.square().sum()
            share = (mean * other).sum() / length
            noise = ((variance + share.square() * other_variance) * other.square()).sum()
            row["share"].append(share.item())
            row["share_se"].append((noise.sqrt() / length).item())
    return results


def picture(results: dict[str, Any], path: Path) -> None:
    """SNR by K with error bars of two standard errors, for the guide's parameters and the model's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    particles = results["particles"]
    styles = {"IWAE": ("C3", "o", "-"), "STL": ("0.5", "s", "--"), "DReG": ("C0", "D", "-")}
    for axis, part, title in zip(
        axes, ("guide", "model"), ("guide's parameters φ, s", "model's parameters θ"), strict=True
    ):
        for name, row in results[part].items():
            if part == "model" and name != "IWAE":
                continue
            colour, marker, line = styles[name] if part == "guide" else ("0.2", "o", "-")
            label = {"IWAE": "IWAE", "STL": "STL (biased for K > 1)", "DReG": "DReG"}[name]
            label = "all three" if part == "model" else label
            if row["slope"] is not None:
                label += f", slope {row['slope']:+.2f}"
            error = [2 * e for e in row["se"]]
            axis.errorbar(
                particles, row["snr"], yerr=error, color=colour, marker=marker, linestyle=line, capsize=3, label=label
            )
        axis.set_xscale("log", base=4)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(particles, [str(k) for k in particles])
        axis.set_xlabel("particles K")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set_ylabel("signal / noise of one gradient")
    caption = "z ~ N(θ, I), x ~ N(z, I), 5 dimensions; q(z | x) off; bars: 2 standard errors; slopes: from K = 16"
    figure.suptitle(caption, fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--picture", type=Path, help="draw them here")
    parser.add_argument("--replicas", type=int, default=REPLICAS, help="independent gradients of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(replicas=arguments.replicas)
    for part in ("guide", "model"):
        print(f"\n{part}: signal / noise (standard error)")
        print("  " + " " * 6 + "".join(f"{'K=' + str(k):>18s}" for k in results["particles"]) + "     slope")
        for name, row in results[part].items():
            cells = [f"{s:.3g} ({e:.1g})" for s, e in zip(row["snr"], row["se"], strict=True)]
            print(f"  {name:6s}" + "".join(f"{cell:>18s}" for cell in cells) + f"{row['slope'] or math.nan:+10.2f}")
    print("\nguide: share of DReG's mean gradient that the mean has (standard error)")
    for name, row in [(name, row) for name, row in results["guide"].items() if "share" in row]:
        cells = [f"{s:.3f} ({e:.1g})" for s, e in zip(row["share"], row["share_se"], strict=True)]
        print(f"  {name:6s}" + "".join(f"{cell:>18s}" for cell in cells))
    sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "results": results}, indent=2) + "\n")
    if arguments.picture:
        picture(results, arguments.picture)


if __name__ == "__main__":
    main()
