r"""Inpainting: a trained VAE's generator is held, and a new guide learns to see it through holes.

The lecture's way. A VAE is trained; its p(x | z) p(z) is then left as it is. A random mask hides a rectangle from a new
encoder, while the likelihood stays that of the whole picture,

    max_φ  E_mask E_{q(z | x̄)}[log p(x | z)] - KL(q(z | x̄) ‖ p(z)),   x̄ = x ⊙ mask

so that q(z | x̄) comes to what the picture behind the hole may be. Measured are KL(q(z | x̄) ‖ q(z | x)), where q(z | x)
is the VAE's; the error of the filled-in pixels against filling in means and k nearest neighbours, k tuned on a tenth of
the training data; and log p(x_missing | x_visible). Below, the other way: a model trained on data of which half of the
pixels are missing (MIWAE's bound), against the same two, fitted to the same incomplete data.

    python examples/inpainting.py             # some three minutes; --smoke takes seconds

Writes inpainting.png: held-out digits, what is visible of them, the mean and draws of what is not.

Measured, squared error a hidden pixel: pixel means 0.186, neighbours 0.160, the VAE's own guide 0.181, the guide under
masks 0.155; KL to the complete posterior from 6.1 to 2.4 nats. Of incomplete data: 0.145, 0.132 and 0.120.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.impute import KNNImputer
from torch import Tensor

from ppl_vae import ELBO, IWAE, fit, guides, likelihoods, models, networks, plots
from ppl_vae.build import DataSpec
from ppl_vae.data import DataSet, load, split
from ppl_vae.evaluate import impute, kl_to_complete, log_missing
from ppl_vae.masks import random_mask
from ppl_vae.renewal import frozen

HOLES = "rectangles:share=0.3"
SHAPE, LATENT = (1, 8, 8), 8
NEIGHBOURS = (1, 5, 10, 20, 40, 60, 80, 120, 160)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fill in what a mask hides, and measure the error.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/inpainting"), help="where the picture goes")
    args = parser.parse_args(argv)
    epochs, particles = (1, 50) if args.smoke else (100, 1000)

    train, test = load("digits", binarize="dynamic")
    holes = test.with_options(masks=HOLES).fixed()  # one mask for each held-out digit, always the same

    torch.manual_seed(0)
    model, vae_guide = pair()
    training = {"batch_size": 128, "lr": 5e-3, "lr_schedule": "cosine"}
    fit(model, vae_guide, train, ELBO(), epochs=epochs, description="VAE", **training)
    guide = guides.FullRank(model, networks.encoder("mlp", SHAPE, (256, 256), mask=True))
    with frozen(model):
        masked = train.with_options(masks=HOLES)
        fit(model, guide, masked, ELBO(), epochs=3 * epochs, description="guide under masks", **training)

    print(f"held-out digits behind {HOLES}, {len(holes)} of them, ± standard errors over the data")
    before, after = kl_to_complete(vae_guide, holes), kl_to_complete(guide, holes, vae_guide)
    for name, kl in (("the VAE's own guide", before), ("trained under masks", after)):
        estimate = kl.estimate
        print(f"KL(q(z | x̄) ‖ q(z | x)), {name}: {estimate.mean:.2f} ± {estimate.data_se:.2f} nats a datum")
    for name, q in (("the VAE's own guide", vae_guide), ("trained under masks", guide)):
        log_p = log_missing(model, q, holes, particles, seed=0)
        bad = float(log_p.unreliable.double().mean())
        estimate = log_p.estimate
        print(
            f"log p(x_missing | x_visible), {name}: {estimate.mean:.2f} ± {estimate.se:.2f} (Monte Carlo) nats a "
            f"datum, k-hat above 0.7 for {100 * bad:.0f}%"
        )
    made = impute(model, guide, holes, 6, particles, seed=0)
    errors = compare(
        holes,
        train.fixed(),
        {
            "VAE's own guide": impute(model, vae_guide, holes, 1, particles, weighted=False, seed=0).mean,
            "guide under masks": impute(model, guide, holes, 1, particles, weighted=False, seed=0).mean,
            "the same, weighted": made.mean,
        },
        args.smoke,
    )

    torch.manual_seed(0)
    half = random_mask("pixels:share=0.5")
    incomplete, unseen = (hidden(part.fixed(), half, seed) for part, seed in ((train, 1), (test, 2)))
    model_2, guide_2 = pair(mask=True)
    fit(model_2, guide_2, incomplete, IWAE(10), epochs=epochs, description="VAE of incomplete data", **training)
    print(f"\ntrained on {incomplete.description}; held out {unseen.description}")
    errors_2 = compare(
        test.fixed(),
        incomplete,
        {"VAE, MIWAE's bound": impute(model_2, guide_2, unseen, 1, particles, seed=0).mean},
        args.smoke,
        unseen.observed,
    )

    args.out.mkdir(parents=True, exist_ok=True)
    rows = torch.arange(8) * 7
    filled = {"mean": made.mean} | {f"draw {k + 1}": means for k, means in enumerate(made.means)}
    spec = DataSpec.of(holes)
    figure = plots.imputations(
        holes.batch(rows).x, made.visible[rows], {name: x[rows] for name, x in filled.items()}, spec, holes.description
    )
    plots.save(figure, args.out / "inpainting.png", overwrite=True)
    if not args.smoke:
        if not float(after.values.mean()) < float(before.values.mean()):
            sys.exit("the KL to the complete posterior did not fall")
        for ours, table in (("the same, weighted", errors), ("VAE, MIWAE's bound", errors_2)):
            gain = table["k nearest neighbours"] - table[ours]
            if not float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5:
                sys.exit(f"{ours} is no better than k nearest neighbours by 2 standard errors")


def pair(mask: bool = False) -> tuple[models.VAE, guides.FullRank]:
    """A VAE and its guide, which is told what is visible where there is `mask`."""
    decoder = networks.decoder("mlp", LATENT, SHAPE, 1, (256, 256))
    model = models.VAE(decoder, likelihoods.Bernoulli(SHAPE), LATENT)
    return model, guides.FullRank(model, networks.encoder("mlp", SHAPE, (256, 256), mask=mask))


def hidden(data: DataSet, mask: object, seed: int) -> DataSet:
    """The data without what a mask hides."""
    observed = mask.draw(len(data), data.shape, generator=torch.Generator().manual_seed(seed))
    return DataSet.from_arrays(data.x, observed=observed, levels=2, name=f"digits {data.split}")


def compare(
    whole: DataSet, train: DataSet, filled: dict[str, Tensor], smoke: bool, visible: Tensor | None = None
) -> dict[str, Tensor]:
    """A table of mean squared errors on the hidden pixels: of a digit, then their mean; returned by name, (N,)."""
    batch = whole.batch()
    x, seen = batch.x.flatten(1), (batch.visible if visible is None else visible).flatten(1)
    fitted, left = split(train, 0.1, seed=0)
    k = min(NEIGHBOURS[:1] if smoke else NEIGHBOURS, key=lambda k: float(error_of_neighbours(fitted, left, k)))
    known = train.batch()
    count = len(train) if known.observed is None else known.observed.flatten(1).sum(0)
    means = known.x.flatten(1).sum(0) / count
    found = {"pixel means": means.expand_as(x), "k nearest neighbours": neighbours(train, x, seen, k)}
    found |= {name: values.flatten(1) for name, values in filled.items()}
    errors = {}
    for name, values in found.items():
        errors[name] = ((values - x).square() * ~seen).sum(1) / (~seen).sum(1)
        beside = ""
        if name in filled:
            against = errors[name] - errors["k nearest neighbours"]
            beside = f"   against neighbours {against.mean():+.4f} ± {se(against):.4f}"
        label = f"{name} (k = {k})" if name.startswith("k ") else name
        print(f"  {label:<32} squared error a hidden pixel {errors[name].mean():.4f} ± {se(errors[name]):.4f}{beside}")
    return errors


def neighbours(train: DataSet, x: Tensor, seen: Tensor, k: int) -> Tensor:
    """Hidden pixels by the mean of the k training digits that are nearest in the others."""
    batch = train.batch()
    of = batch.x.flatten(1).numpy().astype(float)
    if batch.observed is not None:
        of[~batch.observed.flatten(1).numpy()] = np.nan
    given = np.where(seen.numpy(), x.numpy().astype(float), np.nan)
    imputer = KNNImputer(n_neighbors=k, keep_empty_features=True).fit(of)
    return torch.from_numpy(imputer.transform(given)).float()


def error_of_neighbours(train: DataSet, held_out: DataSet, k: int) -> Tensor:
    """Mean squared error under masks of the same kind."""
    batch = held_out.batch()
    x, there = batch.x.flatten(1), batch.observed
    text = HOLES if there is None else "pixels:share=0.5"
    seen = random_mask(text).draw(len(x), held_out.shape, generator=torch.Generator().manual_seed(5)).flatten(1)
    judged = ~seen if there is None else ~seen & there.flatten(1)  # what is not known judges nothing
    seen = seen if there is None else seen & there.flatten(1)
    rows = seen.any(1)
    values = neighbours(train, x[rows], seen[rows], k)
    return ((values - x[rows]).square() * judged[rows]).sum() / judged[rows].sum()


def se(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


if __name__ == "__main__":
    main()
