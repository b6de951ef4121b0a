"""The Fréchet distance of samples from data, in the features of a classifier trained on the set's own labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError, check_count
from ..isolation import cuda_in
from ..networks import BodyEncoder, encoder

__all__ = ["Classifier", "Frechet", "frechet", "frechet_gaussians", "train_classifier"]

LEAST = 2
"""So many samples a feature are asked for: with fewer the covariances are nearly singular, and the distance is bias."""


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance with its errors.

    Args:
        distance: d², not corrected for its bias.
        se: standard error by the bootstrap, over samples and data.
        bias: the bootstrap's estimate of how far d² lies too high because samples and data are finite in number:
            distances compare where their numbers of samples are equal.
        n, data_n: numbers of samples and data.
        features: number of features.
    """

    distance: float
    se: float
    bias: float
    n: int
    data_n: int
    features: int

    def __str__(self) -> str:
        return f"{self.distance:.3g} ± {self.se:.2g} (bias about {self.bias:.2g})"


class Classifier(nn.Module):
    """A small convolutional network, its features and its classes.

    Args:
        body: of x, (N, F).
        classes: how many.

    Attributes:
        accuracy: on the data that it was trained on, or NaN before.
    """

    def __init__(self, body: BodyEncoder, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.features, classes)
        self.accuracy = float("nan")

    def features(self, x: Tensor) -> Tensor:
        """The last layer but one, (N, F)."""
        out: Tensor = self.body(Batch(x=x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def train_classifier(
    data: DataSet,
    features: int = 32,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
) -> Classifier:
    """A classifier of a data set's own labels, whose features then tell its classes' differences apart from others.

    The same seed and data give the same classifier: distances are compared in the features of one.

    Args:
        data: with labels; those without one are left out.
        features: F.
        epochs, batch_size, lr, seed: of its training, by Adam.

    Raises:
        InputError: data without labels, or of one class; numbers that are none.
    """
    check_count("features", features)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    batch = data.fixed().batch()
    if batch.y is None or batch.x is None:
        raise InputError(f"{data.description!r} have no labels, which a classifier of them needs")
    known = batch.y >= 0
    x, y = batch.x[known].float(), batch.y[known]
    if len(y.unique()) < 2:
        raise InputError(f"{data.description!r} are of one class: a classifier of them has nothing to learn")
    with torch.random.fork_rng(devices=cuda_in(x)):
        torch.manual_seed(seed)
        image = len(data.shape) == 3
        body = encoder("conv" if image else "mlp", data.shape, (features,), loc=x.mean(), scale=x.std().clamp_min(1e-6))
        classifier = Classifier(body, int(y.max()) + 1)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
        with torch.enable_grad():
            for _ in range(epochs):
                for rows in torch.randperm(len(x)).split(batch_size):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(classifier(x[rows]), y[rows]).backward()
                    optimizer.step()
    classifier.eval().requires_grad_(False)
    classifier.accuracy = (classifier(x).argmax(-1) == y).double().mean().item()
    return classifier


def frechet(
    samples: Tensor, data: Tensor, classifier: Classifier | None = None, *, bootstrap: int = 200, seed: int = 0
) -> Frechet:
    r"""The Fréchet distance of two sets of samples: that of the Gaussians with their moments.

    .. math:: d^2 = |μ_1 - μ_2|^2 + \mathrm{tr}\big(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^{1/2}\big)

    of means and covariances of the features. It sees two moments and no more. For finite numbers of samples it is too
    high, by an amount that falls as 1/n and is larger for worse models: compare at equal n.

    Args:
        samples: (M, \*D), as `sample(model, M).draw`.
        data: (N, \*D), data that the model has not seen, in the same units.
        classifier: whose features are taken; None: samples and data are features, (M, F) and (N, F).
        bootstrap: resamplings, for error and bias.
        seed: of the resampling.

    Raises:
        InputError: fewer than 2 samples a feature; shapes that differ; a feature that is not finite.

    References: Heusel et al., GANs trained by a two time-scale update rule, NIPS 2017
    (https://arxiv.org/abs/1706.08500), in another network's features; its bias: Chong and Forsyth, Effectively unbiased
    FID and inception score, CVPR 2020 (https://arxiv.org/abs/1911.07023).
    """
    check_count("bootstrap", bootstrap, least=2)
    found = [_features(x, classifier) for x in (samples, data)]
    if found[0].shape[1:] != found[1].shape[1:]:
        raise InputError(f"samples have {found[0].shape[1]} features and data {found[1].shape[1]}")
    for name, x in zip(("samples", "data"), found, strict=True):
        if not bool(x.isfinite().all()):
            raise InputError(f"{name} have a feature that is NaN or infinite")
        if len(x) < LEAST * x.shape[1]:
            raise InputError(
                f"{name} are {len(x)}, too few for a covariance of {x.shape[1]} features: give {LEAST * x.shape[1]} or "
                "more, or a classifier of fewer features"
            )
    distance = _distance(*found)
    generator = torch.Generator().manual_seed(seed)
    again = torch.tensor(
        [
            _distance(*(x[torch.randint(len(x), (len(x),), generator=generator)] for x in found))
            for _ in range(bootstrap)
        ],
        dtype=torch.float64,
    )
    return Frechet(
        distance=distance,
        se=again.std().item(),
        bias=again.mean().item() - distance,
        n=len(samples),
        data_n=len(data),
        features=found[0].shape[1],
    )


def frechet_gaussians(loc1: Tensor, covariance1: Tensor, loc2: Tensor, covariance2: Tensor) -> Tensor:
    r"""d² of two Gaussians: |μ1 - μ2|² + tr Σ1 + tr Σ2 - 2 tr (Σ1^½ Σ2 Σ1^½)^½, the squared 2-Wasserstein distance.

    Args:
        loc1, loc2: (F,).
        covariance1, covariance2: (F, F), symmetric, eigenvalues 0 or more.

    Reference: Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982.

    Example:
        >>> one = torch.eye(2)
        >>> frechet_gaussians(torch.zeros(2), one, torch.tensor([3.0, 4.0]), 4 * one)
        tensor(27.)
    """
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
    mixed = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp_min(0.0).sqrt().sum(-1)
    squared: Tensor = (loc1 - loc2).square().sum(-1) + covariance1.trace() + covariance2.trace() - 2.0 * mixed
    return squared


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_gaussians(a.mean(0), a.mT.cov(), b.mean(0), b.mT.cov()).item()


def _features(x: Tensor, classifier: Classifier | None) -> Tensor:
    x = x.detach().cpu()
    if classifier is None:
        if x.dim() != 2:
            raise InputError(f"features have shape {tuple(x.shape)}; give (N, F), or a classifier")
        return x.double()
    if tuple(x.shape[1:]) != tuple(classifier.body.shape):
        raise InputError(f"x has shape {tuple(x.shape)}; the classifier is of data (N, *{classifier.body.shape})")
    with torch.no_grad():
        return torch.cat([classifier.features(part) for part in x.float().split(1000)]).double()
