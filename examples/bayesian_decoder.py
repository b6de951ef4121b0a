r"""A decoder with uncertain weights: what it makes of a code, known from few data and from many.

    w ~ N(0, S²) once,   z_n ~ N(0, 1),   x_n ~ N(f_w(z_n), s²),   q(w) Π q(z_n | x_n)

Points along a curve in the plane. Each draw of w from q(w) is one curve z ↦ f_w(z) that the data allow; where there are
few data the curves spread, and with many they close in. The ELBO of a minibatch counts B/N of KL(q(w) ‖ p(w)), so that
it stands for all N data whatever N is.

    python examples/bayesian_decoder.py       # about a minute; --smoke takes seconds

Writes curves.png. Measured: from 15 data the curves lie 0.114 apart (standard deviation over w, mean over z), from
500 data 0.022; held-out data have log p(x) -10.5 and -2.1 nats each, weights integrated.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ppl_vae import ELBO, Batch, guides, likelihoods, models, networks
from ppl_vae.evaluate import log_marginal
from ppl_vae.fit import fit
from ppl_vae.guides import Combined, datum_part
from ppl_vae.testing import check_objective

SIZES = (15, 500)
CLOSER = 2.0  # times, that the curves of many data lie closer than those of few, at least


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Uncertainty in a decoder, from few data and from many.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/bayesian_decoder"), help="where files go")
    args = parser.parse_args(argv)
    updates, particles = (4, 10) if args.smoke else (1500, 1000)

    test = points(500, seed=1)
    codes = torch.linspace(-2.0, 2.0, 100).unsqueeze(-1)  # 95% of the prior
    curves, spreads = {}, []
    for size in SIZES:
        x = points(size, seed=0)
        torch.manual_seed(0)
        model, guide = make_pair(x)
        if args.smoke:
            check_objective(ELBO(data_size=size), model, guide, Batch(x=x[:8]))  # gradients reach every parameter
        batch_size = min(100, size)
        epochs = max(1, updates * batch_size // size)
        objective = ELBO(data_size=size, particles=2)
        fit(model, guide, x, objective, epochs=epochs, batch_size=batch_size, lr=1e-2, lr_schedule="cosine")
        with torch.no_grad():
            weights = guide.shared.distribution(Batch(n=1))["weights"].sample(torch.Size([200, 1]))
            curves[size] = model.likelihood(model.decode(weights, codes)).mean  # (200, 100, 2)
        spreads.append(float(curves[size].std(0).mean()))
        marginal = log_marginal(model, guide, test, particles, seed=0)
        print(f"{size:5} data: curves {spreads[-1]:.3f} apart; log p(x) {marginal.estimate} nats a datum held out")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, args.out / "curves.png")
    if not args.smoke and not spreads[0] >= CLOSER * spreads[1]:
        sys.exit(f"curves lie {spreads[0]:.3f} and {spreads[1]:.3f} apart; a factor of {CLOSER} was expected")


def points(size: int, seed: int) -> Tensor:
    """Along a sine, with noise; few lie at its ends."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(size, generator=generator)
    curve = torch.stack([t, (2.0 * t).sin()], -1)
    return curve + 0.1 * torch.randn(size, 2, generator=generator)


def make_pair(x: Tensor) -> tuple[models.BayesianDecoder, Combined]:
    """One latent dimension and 66 uncertain weights."""
    likelihood = likelihoods.Gaussian((2,), scale=0.1)
    decoder = networks.decoder("mlp", 1, (2,), likelihood.parameters_per_element, hidden=(16,))
    model = models.BayesianDecoder(decoder, likelihood, latent=1, scale=2.0)
    encoder = networks.encoder("mlp", (2,), hidden=(32, 32), loc=x.mean(0), scale=x.std(0))
    # from wide weights the codes would be of no use at first, and stay so
    weights = guides.Shared(model, scale=0.01)
    return model, Combined(model, guides.MeanField(datum_part(model), encoder), weights)


def draw(curves: dict[int, Tensor], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), constrained_layout=True, sharex=True, sharey=True)
    for axis, (size, lines) in zip(axes, curves.items(), strict=True):
        axis.scatter(*points(size, seed=0).T, s=8, color="gray")
        for line in lines[:40]:
            axis.plot(*line.T, color="tab:blue", alpha=0.25, linewidth=0.8)
        axis.set(title=f"{size} data", aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
