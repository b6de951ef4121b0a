"""What labels give without anything else: a classifier of the pair's encoder, and a support-vector machine."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from ppl_vae.build import PairConfig, build_encoder
from ppl_vae.data import DataSet

__all__ = ["CLASSIFIERS", "SVMS", "classifier", "grid", "svm", "wrong"]

STEPS = 300
CLASSIFIERS = {
    "lr": (1e-3, 5e-3),
    "weight_decay": (0.0, 0.1, 1.0),
    "hidden": ((64,), (256,)),
    "dropout": (0.0, 0.5),
    "noise": (0.0, 0.2),
}
SVMS = {"C": (1.0, 10.0, 100.0), "gamma": ("scale", 0.003, 0.01, 0.03, 0.1), "draws": (1, 20)}


class Classifier(nn.Module):
    """The encoder of the pair, a dropout and C logits; in training a share `noise` of the values of x is hidden."""

    def __init__(self, data: DataSet, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = build_encoder(PairConfig(hidden=config["hidden"]), data)
        self.head = nn.Sequential(nn.Dropout(config["dropout"]), nn.Linear(self.encoder.features, data.classes))
        self.noise = config["noise"]

    def forward(self, batch: Any) -> torch.Tensor:
        x = dropout(batch.x, self.noise, self.training)
        return self.head(self.encoder(batch._replace(x=x)))


def labelled(data: DataSet, labels: int, seed: int) -> DataSet:
    kept = data.keep_labels(labels, seed)
    return kept.take(kept.y >= 0)


def classifier(data: DataSet, labels: int, seed: int, config: dict[str, Any]) -> Classifier:
    """Trained on the labelled data alone, whose x is binarized (or drawn) anew in every step where the data's is."""
    some = labelled(data, labels, seed)
    torch.manual_seed(seed)
    made = Classifier(data, config)
    optimizer = torch.optim.AdamW(made.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = some.batch()
        optimizer.zero_grad()
        cross_entropy(made(batch), batch.y).backward()
        optimizer.step()
        schedule.step()
    return made.eval()


def svm(data: DataSet, labels: int, seed: int, config: dict[str, Any]) -> Any:
    """scikit-learn's, with a Gaussian kernel, on so many draws of the labelled data where they are drawn anew."""
    from sklearn.svm import SVC

    some = labelled(data, labels, seed)
    torch.manual_seed(seed)
    x = torch.cat([some.batch().x.flatten(1) for _ in range(config["draws"])])
    return SVC(C=config["C"], gamma=config["gamma"]).fit(x.numpy(), some.y.repeat(config["draws"]).numpy())


@torch.no_grad()
def wrong(made: Any, data: DataSet) -> float:
    """The share of the data that is taken for another class."""
    batch = data.batch()
    if isinstance(made, Classifier):
        found = made(batch).argmax(-1)
    else:
        found = torch.from_numpy(made.predict(batch.x.flatten(1).numpy()))
    return (found != batch.y).double().mean().item()


def grid(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
