r"""Clusters of any shape: a Gaussian mixture in latent space finds the arms of a pinwheel.

    π, μ_c, Σ_c ~ conjugate priors once,   k_n ~ Cat(π),   z_n ~ N(μ_k, Σ_k),   x_n ~ N(f(z_n), s²)

A mixture of Gaussians in x needs several for each bent arm. Here f straightens the arms, so that one Gaussian a piece
is enough, and the prior leaves the other components empty. All settings are the defaults of

    ppl-vae train --data pinwheel --model structured-vae --guide structured --latent 2

    python examples/structured_vae.py         # about a minute; --smoke takes seconds

Writes pinwheel.png: the held-out data by cluster, and the same in latent space with the components. Measured: adjusted
Rand index 0.99 of clusters and arms, of data held out.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from ppl_vae import guides
from ppl_vae.recipe import Recipe, prepare
from ppl_vae.testing import check_objective

AGREE = 0.9  # adjusted Rand index of clusters and arms, at least


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A mixture in latent space, on the pinwheel.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/structured_vae"), help="where files go")
    args = parser.parse_args(argv)

    recipe = Recipe(data="pinwheel", model="structured-vae", guide="structured", latent=2)
    if args.smoke:
        recipe = recipe.replace(epochs=1, hidden=(8,))
    ready = prepare(recipe)
    model, guide, test = ready.model, ready.guide, ready.data.test.batch()
    if args.smoke:
        check_objective(ready.objective, model, guide, test.take(slice(0, 8)))  # gradients reach every parameter
    ready.train()

    with torch.no_grad():
        local = guide.infer(test)
    clusters = local.responsibilities.argmax(-1)
    agreement = adjusted_rand_score(test.y, clusters)
    sizes = torch.bincount(clusters, minlength=model.components).sort(descending=True).values
    print(f"{int((sizes > 0).sum())} clusters of {sizes[sizes > 0].tolist()}; adjusted Rand index {agreement:.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        draw(test.x, local.mean, clusters, guide, args.out / "pinwheel.png")
    if not args.smoke and not agreement >= AGREE:
        sys.exit(f"clusters and arms agree by {agreement:.3f}; {AGREE} was expected")


def draw(x: Tensor, z: Tensor, clusters: Tensor, guide: guides.Structured, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), constrained_layout=True)
    present = clusters.unique().tolist()
    color = {c: plt.get_cmap("tab10")(i % 10) for i, c in enumerate(present)}
    colors = [color[c] for c in clusters.tolist()]
    left.scatter(*x.T, c=colors, s=8)
    left.set(title="data, by cluster", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    right.scatter(*z.T, c=colors, s=8)
    _, normals = guide.posterior()
    circle = torch.linspace(0, 2 * math.pi, 100)
    circle = 2.0 * torch.stack([circle.cos(), circle.sin()])
    for c in present:  # two standard deviations of E[Λ]⁻¹
        ellipse = normals.mean[c, :, None] + torch.linalg.cholesky(normals.psi[c] / normals.nu[c]) @ circle
        right.plot(*ellipse, color=color[c])
    right.set(title="latent space, and components", xlabel="$z_1$", ylabel="$z_2$")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
