r"""Which decoder and which likelihood make the sharper samples? Three networks by four likelihoods on the digits.

Every VAE has eight latent dimensions, a mean-field guide and the same number of steps. Two kinds of samples are judged,
z ~ N(0, I): the means E[x | z], which are what is usually shown, and draws of p(x | z), which are samples of the model.

    sharpness   mean variance of the Laplacian, over that of the data: below 1 is blur, above 1 is noise
    Fréchet     squared distance from the test digits, in the features of a classifier trained on the digits' labels
    bits/dim    of log p(x), for pixels that are discrete; of 0 and 1 under bernoulli, of 17 levels under the others

Under bernoulli the data are binarized, and its draws are compared with binarized digits; all else is in grey levels.

    python examples/decoders.py            # some minutes; --smoke takes seconds

Writes decoders.png: means and draws of each.

Measured: means have 0.2 to 0.5 of the data's sharpness, draws of discrete pixels 1.1 to 1.9; docs/decoders.md has all.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ppl_vae import plots
from ppl_vae.build import DataSpec
from ppl_vae.data import load
from ppl_vae.display import make_console
from ppl_vae.evaluate import evaluate, frechet, sample, sharpness, train_classifier
from ppl_vae.recipe import Recipe, prepare

NETWORKS = ("mlp", "conv", "residual")
LIKELIHOODS = ("bernoulli", "gaussian-learned", "discretized-logistic", "categorical")
LEVELS = 17
SHOWN = 16


def in_unit(x: Tensor, units: str) -> Tensor:
    """Pixels in [0, 1]."""
    return (x / (LEVELS - 1) if units == "levels" else x).clamp(0.0, 1.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Decoders side by side.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/decoders"), help="where the picture goes")
    given = parser.parse_args(argv)
    networks, likelihoods = (NETWORKS[:2], LIKELIHOODS[2:3]) if given.smoke else (NETWORKS, LIKELIHOODS)
    epochs, count, particles, again = (2, 64, 10, 10) if given.smoke else (given.epochs, 1000, 100, 200)

    grey = load("digits", units="unit")
    classifier = train_classifier(grey.train, features=16, epochs=2 if given.smoke else 30)
    seen = classifier(grey.test.batch().x).argmax(-1)
    print(f"classifier: {100 * (seen == grey.test.batch().y).double().mean():.1f}% of the test digits right")
    floor = frechet(grey.train.batch().x, grey.test.batch().x, classifier, bootstrap=again)
    print(f"training digits, from the test digits: Fréchet {floor}")
    print(
        "decoder, likelihood | sharpness of means | sharpness of draws | Fréchet of means | Fréchet of draws | bits/dim"
    )
    pictures: dict[str, Tensor] = {}
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for likelihood in likelihoods:
        for network in networks:
            recipe = Recipe(
                likelihood=likelihood,
                binarize="dynamic" if likelihood == "bernoulli" else "none",
                network=network,
                hidden=(64, 64) if network == "mlp" else (64,),
                epochs=epochs,
                seed=given.seed,
                compile=False,
            )
            ready = prepare(recipe)
            fitted = ready.train(progress=False)
            test = ready.data.test
            units = DataSpec.of(test).units
            result = evaluate(fitted.model, fitted.guide, test, particles, seed=0)
            made = sample(fitted.model, count, seed=0)
            means, draws = in_unit(made.mean, units), in_unit(made.draw, units)
            own = in_unit(test.fixed().batch().x, units)  # binarized as the draws are
            pixels = grey.test.batch().x
            numbers = (
                sharpness(means, pixels),
                sharpness(draws, own),
                frechet(means, pixels, classifier, bootstrap=again),
                frechet(draws, own, classifier, bootstrap=again),
            )
            bits = "" if result.bits_per_dimension is None else f"{result.bits_per_dimension.mean:.3f}"
            print(f"{network}, {likelihood} | " + " | ".join(map(str, numbers)) + f" | {bits}", flush=True)
            found[network, likelihood] = (numbers[0].ratio + 4 * numbers[0].ratio_se, numbers[2].distance)
            pictures[f"{network}, {likelihood}: means"] = means[:SHOWN]
            pictures[f"{network}, {likelihood}: draws"] = draws[:SHOWN]
    title = f"E[x | z] and draws of p(x | z), z ~ N(0, I), after {epochs} epochs on {grey.train.description}"
    given.out.mkdir(parents=True, exist_ok=True)
    figure = plots.samples(pictures, DataSpec.of(grey.train), title)
    plots.save(figure, given.out / "decoders.png", overwrite=True)
    make_console().print(str(given.out / "decoders.png"))
    # means of every model are blurred, by more than 4 standard errors
    if not given.smoke and not all(high < 1.0 for high, _ in found.values()):
        sys.exit("a model's means are as sharp as the data")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
