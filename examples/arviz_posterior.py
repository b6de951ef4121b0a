r"""A fitted pair in ArviZ: draws of z given x, predictions, log-probabilities, tables, plots and a netCDF file.

    posterior         z ~ q(z | x)          posterior_predictive    x' ~ p(x' | z) of these z
    prior             z ~ p(z)              prior_predictive        x' ~ p(x' | z) of those
    log_likelihood    log p(x | z)          sample_stats            log_p, log_q, log_w = log p(x, z) - log q(z | x)

The draws are the guide's, independent and in one chain, so no R-hat is shown: it would be 1 for a bad guide, too. How
far the guide is from the posterior is told by log_w: log (1/K) Σ_k w_k estimates log p(x), and k-hat, the shape of the
weights' tail, says whether it may be relied on.

    python examples/arviz_posterior.py        # about a quarter of a minute; --smoke takes seconds

Works with ArviZ 0.23 and 1.x. Writes posterior.nc, densities.png (z of one digit) and predictive.png (the pixels, drawn
and observed).

Measured: log p(x) of 100 held-out digits -95.04 ± 0.02 nats a datum; k-hat is above 0.7 for 23 of them, where a guide
of two dimensions' ellipses does not fit. For the others weighting moves E[z | x] by 0.46 posterior standard deviations.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ppl_vae import ELBO
from ppl_vae.build import PairConfig, build
from ppl_vae.data import load
from ppl_vae.diagnose import from_netcdf, plot_posterior, plot_predictive, summary, to_arviz, to_netcdf
from ppl_vae.fit import fit
from ppl_vae.psis import pareto_khat
from ppl_vae.testing import check_objective

AT_LEAST = -96.5  # nats a datum


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Look at a fitted posterior with ArviZ.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/arviz_posterior"), help="where files go")
    args = parser.parse_args(argv)
    epochs, draws = (1, 50) if args.smoke else (80, 1000)

    train, test = load("digits", units="levels")  # grey levels 0 to 16, each with a probability
    torch.manual_seed(0)
    model, guide = build(
        PairConfig(guide="full-rank", likelihood="discretized-logistic", latent=2, hidden=(128,)), train
    )
    if args.smoke:
        check_objective(ELBO(), model, guide, train.batch(range(8)))  # gradients reach every parameter
    fit(model, guide, train, epochs=epochs, lr=2e-3)

    # all of this is held in memory, draws x data x pixels: take as many data as are to be looked at
    to_look_at = test.take(range(10 if args.smoke else 100))
    args.out.mkdir(parents=True, exist_ok=True)
    to_netcdf(to_arviz(model, guide, to_look_at, draws, seed=0), args.out / "posterior.nc")

    idata = from_netcdf(args.out / "posterior.nc")  # ArviZ, xarray, R and Julia read it without this package
    one = {"datum": [0]}
    print(summary(idata, coords=one))
    plot_posterior(idata, coords=one)
    save(args.out / "densities.png")
    plot_predictive(idata, draws=50)
    save(args.out / "predictive.png")

    log_w = torch.from_numpy(idata["sample_stats"]["log_w"].values[0]).double()  # (K, N)
    log_px = log_w.logsumexp(0) - math.log(draws)
    weights = log_w.softmax(0)
    error = (weights.var(0) * draws).sqrt()  # of each log p(x): sd(w) / (mean(w) √K)
    mean, mean_error = float(log_px.mean()), float(error.square().sum().sqrt() / len(error))
    print(f"log p(x) {mean:.2f} ± {mean_error:.2g} nats a datum, by importance sampling; {idata.attrs['data']}")
    khat = pareto_khat(log_w)
    trusted = khat <= 0.7
    print(
        f"k-hat is above 0.7 for {int((~trusted).sum())} of {len(khat)} digits, whose numbers are not to be relied on"
    )

    # draws from q, weighted by w, stand for draws from p(z | x): do they say something else?
    z = torch.from_numpy(idata["posterior"]["z"].values[0]).double()  # (K, N, 2)
    moved = (((weights.unsqueeze(-1) * z).sum(0) - z.mean(0)).abs() / z.std(0))[trusted]
    print(f"weighting moves E[z | x] of the others by {moved.median():.2f} posterior standard deviations (median)")

    if not args.smoke and not mean >= AT_LEAST:
        sys.exit(f"log p(x) is {mean:.2f} nats a datum; {AT_LEAST} or more was expected")


def save(path: Path) -> None:
    """The figure that ArviZ has just drawn."""
    plt.savefig(path, dpi=80, bbox_inches="tight")
    plt.close("all")


if __name__ == "__main__":
    main()
