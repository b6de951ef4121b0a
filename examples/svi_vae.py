r"""A pair of this package is two Pyro programs: train it with plain `pyro.infer.SVI` and Pyro's own losses.

    Trace_ELBO             log p(x, z) - log q(z | x)                   z ~ q(z | x), everything by Monte Carlo
    TraceMeanField_ELBO    log p(x | z) - KL(q(z | x) ‖ p(z))           the same bound, its KL in closed form
    RenyiELBO(alpha=0)     log (1/K) Σ_k p(x, z_k) / q(z_k | x)         the importance-weighted bound, K = 8

Nothing here but `pyro_pair` knows that the pair comes from a package: SVI looks for parameters in Pyro's store, and
`pyro_pair` puts them there. The data plate is the rightmost dimension, hence `max_plate_nesting=1`.

    python examples/svi_vae.py                # about half a minute; --smoke takes seconds

Writes losses.png, the training curves.

Measured: log p(x) of held-out digits -23.00, -22.92 and -22.64 nats a datum, ± 0.004, in the order above.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from ppl_vae import pyro_pair
from ppl_vae.build import PairConfig, build
from ppl_vae.data import load
from ppl_vae.evaluate import log_marginal

AT_LEAST = -23.4  # nats a datum, for each loss


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a pair by pyro.infer.SVI.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/svi_vae"), help="where the picture goes")
    args = parser.parse_args(argv)
    epochs, particles = (1, 10) if args.smoke else (60, 1000)

    train, test = load("digits", binarize="dynamic")
    losses = {
        "Trace_ELBO": Trace_ELBO(max_plate_nesting=1),
        "TraceMeanField_ELBO": TraceMeanField_ELBO(max_plate_nesting=1),
        "RenyiELBO(0), K = 8": RenyiELBO(alpha=0, num_particles=8, vectorize_particles=True, max_plate_nesting=1),
    }
    results, curves = {}, {}
    for name, loss in losses.items():
        torch.manual_seed(0)
        model, guide = build(PairConfig(latent=8, hidden=(128,)), train)
        programs = pyro_pair(model, guide)
        if args.smoke:
            loss.loss_and_grads(*programs, train.batch(range(8)))
            for parameter in (*model.parameters(), *guide.parameters()):
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all()
                assert parameter.grad.any()  # not 0 throughout

        svi = SVI(*programs, Adam({"lr": 2e-3}), loss)
        curves[name] = []
        for _ in range(epochs):
            # a batch's loss is the sum over its data, in nats
            total = sum(svi.step(train.batch(rows)) for rows in torch.randperm(len(train)).split(64))
            curves[name].append(-total / len(train))
        results[name] = log_marginal(model, guide, test, particles, seed=0)
        print(f"{name:20} bound {curves[name][-1]:.2f} (training)   log p(x) {results[name].estimate} (held out)")
    print(f"nats a datum; held out: {test.description}")

    args.out.mkdir(parents=True, exist_ok=True)
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for name, curve in curves.items():
        axis.plot(range(1, epochs + 1), curve, label=name)
    axis.set(xlabel="epoch", ylabel="bound, nats a datum", title="pyro.infer.SVI, training digits")
    axis.legend()
    figure.savefig(args.out / "losses.png", dpi=120)
    plt.close(figure)

    worst = min(result.mean for result in results.values())
    if not math.isfinite(worst) or (not args.smoke and worst < AT_LEAST):
        sys.exit(f"log p(x) is {worst:.2f} nats a datum; {AT_LEAST} or more was expected of every loss")


if __name__ == "__main__":
    main()
