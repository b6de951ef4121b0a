r"""Clusters of any shape: a Gaussian mixture in latent space finds the arms of a pinwheel.

    π, μ_c, Σ_c ~ conjugate priors once,   k_n ~ Cat(π),   z_n ~ N(μ_k, Σ_k),   x_n ~ N(f(z_n), s²)

A mixture of Gaussians in x needs several for each bent arm. Here f straightens the arms, so that one Gaussian a piece
is enough, and the prior leaves the other components empty. Encoder and decoder have a linear path besides their
network: they begin as the identity, where the mixture is one of the data themselves, and bend from there.

    python examples/structured_vae.py         # about a minute; --smoke takes seconds

Writes pinwheel.png: the held-out data by cluster, and the same in latent space with the components. Measured: adjusted
Rand index 0.92 of clusters and arms, of data held out.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from ppl_vae import Batch, Encoder, guides, likelihoods, load, models, networks
from ppl_vae.fit import fit
from ppl_vae.networks import join
from ppl_vae.objectives import StructuredELBO
from ppl_vae.testing import check_objective

UNITS = 3.0  # latent units to a standard deviation of the data
AGREE = 0.8  # adjusted Rand index of clusters and arms, at least


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A mixture in latent space, on the pinwheel.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/structured_vae"), help="where files go")
    args = parser.parse_args(argv)

    data = load("pinwheel")
    train, test = data.train.batch(range(500)), data.test.batch(range(500))
    torch.manual_seed(0)
    assert train.x is not None
    model, guide = make_pair(train.x)
    objective = StructuredELBO(step=0.05, data_size=500)
    if args.smoke:
        check_objective(objective, model, guide, train.take(slice(0, 8)))  # gradients reach every parameter
    epochs = 1 if args.smoke else 100
    fit(model, guide, data.train, objective, epochs=epochs, batch_size=50, lr=1e-2, lr_schedule="cosine")

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


def make_pair(x: Tensor, components: int = 15) -> tuple[models.StructuredVAE, guides.Structured]:
    likelihood = likelihoods.GaussianLearned((2,))
    likelihood.standardize(x)
    model = models.StructuredVAE(LinearAndMore(likelihood.parameters_per_element), likelihood, 2, components)
    guide = guides.Structured(model, WithItself(x), iterations=5, spread=3.0)
    with torch.no_grad():  # of features x and others: h = 10 · 3 x, j = 10, so that z is near 3 x
        linear = guide.potential.linear
        linear.weight.mul_(0.1)
        linear.bias.zero_()
        linear.weight[:2, :2] = 10.0 * UNITS * torch.eye(2)
        linear.bias[2:] = 10.0
    return model, guide


class WithItself(Encoder):
    """x in standard units, beside the features of a network."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        loc, scale = x.mean(0), x.std(0)
        self.network = networks.encoder("mlp", (2,), hidden=(40, 40), loc=loc, scale=scale, activation=nn.Tanh)
        self.features = 2 + self.network.features

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        assert batch.x is not None
        return join((batch.x - self.network.loc) / self.network.scale, self.network(batch))


class LinearAndMore(nn.Module):
    """z / 3 and what a network adds to it, in the likelihood's parameters."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = networks.decoder("mlp", 2, (2,), outputs, hidden=(40, 40), activation=nn.Tanh)
        self.linear = nn.Parameter(torch.eye(2) / UNITS)
        with torch.no_grad():
            last = self.network.body.net[-1]
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        return self.network(z) + (z @ self.linear).unsqueeze(-2)


def draw(x: Tensor, z: Tensor, clusters: Tensor, guide: guides.Structured, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), constrained_layout=True)
    present = clusters.unique().tolist()
    color = {c: plt.get_cmap("tab20")(i % 20) for i, c in enumerate(present)}
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
