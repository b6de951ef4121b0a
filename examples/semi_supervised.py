r"""Fifty labels: a class is a latent variable that is known for some data, M2.

    p(x, y, z) = Cat(y; 1/10) N(z; 0, I) Bernoulli(x; decoder(y, z)),  q(y, z | x) = q(y | x) N(z; m(x, y), s(x, y)²)

Five labels of each digit are kept. The bound on log p(x) of unlabelled data sums over the classes, that on log p(x, y)
of labelled ones has the class; both are one objective's, and the classifier q(y | x) learns from the first and from the
labels' cross-entropy. Beside it a logistic regression on the labelled data alone. No test label is seen by either.

    python examples/semi_supervised.py        # about a minute; --smoke takes seconds

Writes styles.png: a row a style z, a column a class.
"""

import argparse
import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from ppl_vae import Batch, SemiSupervised, plots
from ppl_vae.build import DataSpec, PairConfig, build
from ppl_vae.data import load
from ppl_vae.evaluate import classify, sample_styles
from ppl_vae.fit import fit
from ppl_vae.testing import check_objective

LABELS = 50


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn ten digits from fifty labels and many digits without one.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/examples/semi_supervised"), help="where the picture goes"
    )
    args = parser.parse_args(argv)
    epochs, hidden = (1, 16) if args.smoke else (100, 128)

    whole, test = load("digits", binarize="dynamic")
    train = whole.keep_labels(LABELS, seed=0)  # -1 for the others
    torch.manual_seed(0)
    model, guide = build(PairConfig(model="m2", latent=8, hidden=(hidden,)), train)
    objective = SemiSupervised(alpha=1.0, labelled=train)
    if args.smoke:
        check_objective(objective, model, guide, train.batch(range(40)))  # gradients reach every parameter
    fit(model, guide, train, objective, epochs=epochs, lr=3e-3, lr_schedule="cosine")

    found = classify(model, guide, test)
    print(f"wrong: {found.error.mean:.1%} ± {found.error.data_se:.1%} of {found.error.n}; {found.data}")
    print(f"by the labelled data alone, logistic regression: {alone(train, test):.1%}")

    made = sample_styles(model, Batch(y=torch.arange(80) % 10), 10, seed=0).mean
    figure = plots.samples(
        {"": made}, DataSpec.of(train), "Styles (rows) under every class", None, (), 10, train.class_names
    )
    args.out.mkdir(parents=True, exist_ok=True)
    plots.save(figure, args.out / "styles.png", overwrite=True)
    if not args.smoke and not found.error.mean < alone(train, test):
        sys.exit("the labelled data alone were expected to give more errors than all data together")


def alone(train, test) -> float:
    """The error of a logistic regression, on the data binarized once."""
    known = train.take(train.y >= 0).fixed().batch()
    classifier = LogisticRegression(max_iter=1000).fit(known.x.flatten(1).numpy(), known.y.numpy())
    return 1.0 - float(classifier.score(test.batch().x.flatten(1).numpy(), test.y.numpy()))


if __name__ == "__main__":
    main()
