"""A classifier that tries to tell the z that made x from the guide's draws: calibration of all dimensions at once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, check_count
from ..evaluate.chunked import Data, device_of, evaluation
from ..evaluate.importance import Progress
from ..isolation import untouched
from ..weights import Program
from .calibration import check_level
from .findings import Picture, Verdict, plain
from .simulated import Simulated, Simulator

if TYPE_CHECKING:
    import xarray

__all__ = ["ClassifierTest", "c2st"]

_MOST_PAIRED = 20
"""Dimensions up to which all products of two are features."""
_FEWEST_A_FOLD = 20
_FEWEST_DRAWS = 19


@dataclass(frozen=True, eq=False)
class ClassifierTest:
    """How often a classifier tells z* from a draw of q(z | x), of two that it is shown.

    Args:
        scores: (T, 2) what it says of z* and of the draw, higher for what it takes for z*; simulations it was not
            trained on.
        right: (T,) whether z* has the higher score; equals are decided by chance.
        features: names of what it sees.
        telling: the features of largest weight, where it is linear.
        simulations: S, of which all but the first fold are tested on.
        alpha: probability of a fault where there is none.
        data: what the simulations were conditioned on.
    """

    scores: Tensor
    right: Tensor
    features: tuple[str, ...]
    telling: tuple[str, ...]
    simulations: int
    alpha: float
    data: str

    @property
    def accuracy(self) -> float:
        """Share that it gets right; ½ where nothing tells them apart."""
        return self.right.double().mean().item()

    @property
    def se(self) -> float:
        """Binomial standard error of the accuracy."""
        return math.sqrt(max(self.accuracy * (1 - self.accuracy), 1 / len(self.right)) / len(self.right))

    @property
    def p_value(self) -> float:
        """Probability of so many or more right by guessing, exactly."""
        from scipy.stats import binom

        return float(binom.sf(int(self.right.sum()) - 1, len(self.right), 0.5))

    def verdicts(self) -> list[Verdict]:
        """One."""
        fault = self.p_value <= self.alpha
        told = f"a classifier tells the z that made x from a draw of q in {self.accuracy:.1%} ± {self.se:.1%} of cases"
        by = f", most by {', '.join(self.telling)}" if self.telling else ""
        return [
            Verdict(
                check="joint calibration",
                fault=fault,
                says=f"On data that the model makes, {told}{by}: q(z | x) is not p(z | x)."
                if fault
                else f"On data that the model makes, {told}, no more than by guessing.",
                statistic="binomial p-value of the classifier's accuracy; a fault where it is below",
                value=self.p_value,
                threshold=self.alpha,
                false_alarm=self.alpha,
                advice="if single dimensions are right, take a guide with correlations: full-rank, low-rank or a flow"
                if fault
                else "",
                speaks_of="data that the model makes",
            )
        ]

    def pictures(self) -> list[Picture]:
        """What the classifier says of z* and of draws."""
        from ..plots import figure_of

        figure = figure_of(5.4, 3.2)
        axis: Any = figure.subplots()
        low, high = self.scores.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
        bins = torch.linspace(low, max(high, low + 1e-6), 31).tolist()
        for column, (name, colour) in enumerate((("z that made x", "#d62728"), ("draw of q(z | x)", "#1f77b4"))):
            axis.hist(self.scores[:, column].numpy(), bins, histtype="step", color=colour, label=name, linewidth=1.6)
        axis.set_xlabel("classifier's score")
        axis.set_ylabel("simulations")
        axis.legend(frameon=False, fontsize=8)
        return [
            Picture(
                "calibration-classifier",
                figure,
                "What a classifier says of the z that made x and of draws of q, for simulations that it was not "
                "trained on. Where q is right the two histograms are alike.",
                f"Two histograms of scores; z that made x has the higher one in {self.accuracy:.1%} of cases.",
            )
        ]

    def to_dataset(self) -> xarray.Dataset:
        """Scores by "simulation" and "of"."""
        import xarray as xr

        return xr.Dataset(
            {"score": (("simulation", "of"), self.scores.numpy()), "right": (("simulation",), self.right.numpy())},
            {"of": ["z that made x", "draw of q"]},
            {"accuracy": self.accuracy, "p_value": self.p_value, "data": self.data},
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole."""
        return dict(
            plain(
                {
                    "accuracy": self.accuracy,
                    "se": self.se,
                    "p_value": self.p_value,
                    "tested": len(self.right),
                    "simulations": self.simulations,
                    "alpha": self.alpha,
                    "features": len(self.features),
                    "telling": list(self.telling),
                    "data": self.data,
                }
            )
        )


def c2st(
    model: Program,
    guide: Program,
    data: Data | None = None,
    *,
    simulations: int = 1000,
    draws: int = 99,
    folds: int = 5,
    classifier: Any = None,
    alpha: float = 0.05,
    chunk: int = 8192,
    seed: int | None = None,
    progress: Progress | None = None,
) -> ClassifierTest:
    r"""Classifier two-sample test of (x, z*) against (x, z ~ q(z | x)), x simulated: joint calibration.

    A posterior that is right in every dimension and wrong in its correlations passes ranks of single dimensions; a
    classifier that sees products of dimensions tells it. Of each simulation it is shown z* and one draw, and has to say
    which is which. Where q(z | x) = p(z | x) it can only guess.

    It sees z as :math:`s = (z - m)/d`, m and d the mean and standard deviation of the other draws for the same x:
    s, the products :math:`s_i s_j` (squares alone above 20 dimensions), :math:`s_i m_i`, and log p(x, z) in the same
    way. Folds are tested in turn after training on those before, so that every answer is a fair coin where q is right,
    and the number of right ones exactly binomial; the first fold is never tested.

    Args:
        model, guide, data, simulations, draws, chunk, seed, progress: as for `sbc`; one of the draws is shown.
        folds: parts of the simulations, 2 or more.
        classifier: of scikit-learn's kind, with `fit` and `decision_function` or `predict_proba`; None: a logistic
            regression of standardized features.
        alpha: probability of a fault where there is none.

    Returns:
        `ClassifierTest`.

    Raises:
        InputError: as `sbc`; too few simulations for the folds, or draws for the moments, saying how many are needed.

    Reference: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017
    (https://arxiv.org/abs/1610.06545).
    """
    check_count("folds", folds, 2)
    check_count("simulations", simulations)
    check_count("draws", draws)
    check_level(alpha)
    if simulations < _FEWEST_A_FOLD * folds:
        raise InputError(
            f"simulations={simulations} are too few for folds={folds}: give simulations={_FEWEST_A_FOLD * folds} or "
            "more"
        )
    if draws < _FEWEST_DRAWS:
        raise InputError(f"draws={draws} are too few for means and variances of q: give draws={_FEWEST_DRAWS} or more")
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        simulator = Simulator(model, guide, data, simulations, draws, chunk)
        pairs = torch.cat([_features(simulator, some).cpu() for some in simulator(progress)])  # (S, 2, F)
        about = "nothing" if simulator.conditions is None else getattr(data, "description", "a batch")
        coins = torch.rand(simulations, dtype=torch.float64)
    names = _names(simulator.names)
    with untouched():
        scores, model_of = _tested(pairs, folds, classifier)
    coins = coins[-len(scores) :]
    ahead = scores[:, 0] - scores[:, 1]
    right = torch.where(ahead == 0, coins < 0.5, ahead > 0)
    return ClassifierTest(scores, right, names, _telling(model_of, names), simulations, alpha, about)


def _features(simulator: Simulator, some: Simulated) -> Tensor:
    """Of z* and of the last draw, (N, 2, F)."""
    numbers = some.numbers().double()
    log_joint = simulator.log_joint(some).double().unsqueeze(-1)
    if bool(log_joint.isnan().any()):
        raise InputError("log p(x, z) is NaN for simulated data: the pair's parameters are not finite there")
    both, others = (torch.cat([numbers, log_joint], -1)[part] for part in ([0, -1], slice(1, -1)))
    mean, deviation = others.mean(0), others.std(0)
    s = (both - mean) / torch.where(deviation > 0, deviation, 1.0)
    # beyond that it does not matter how far, and squares of it would be all that is seen
    s = s.clamp(-20.0, 20.0)
    z, m = s[..., :-1], mean[..., :-1].expand_as(s[..., :-1])
    i, j = _products(z.shape[-1])
    return torch.cat([s, z[..., i] * z[..., j], s[..., -1:].square(), z * m], -1).movedim(0, 1)


def _products(size: int) -> tuple[Tensor, Tensor]:
    if size > _MOST_PAIRED:
        return torch.arange(size), torch.arange(size)
    i, j = torch.triu_indices(size, size)
    return i, j


def _names(names: list[str]) -> tuple[str, ...]:
    i, j = _products(len(names))
    products = [
        f"{names[a]}²" if a == b else f"{names[a]} {names[b]}" for a, b in zip(i.tolist(), j.tolist(), strict=True)
    ]
    return (*names, "log p(x, z)", *products, "log p(x, z)²", *(f"{name} E[{name} | x]" for name in names))


def _tested(pairs: Tensor, folds: int, classifier: Any) -> tuple[Tensor, Any]:
    """Scores (T, 2) of all folds but the first, each by a classifier trained on those before, and the last of these."""
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classifier is None:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    edges = torch.linspace(0, len(pairs), folds + 1).round().long().tolist()
    scores, fitted = [], classifier
    for start, stop in itertools.pairwise(edges[1:]):
        known = pairs[:start]
        target = torch.tensor([1, 0]).expand(start, 2).reshape(-1)
        fitted = clone(classifier).fit(known.reshape(-1, known.shape[-1]).numpy(), target.numpy())
        asked = pairs[start:stop].reshape(-1, pairs.shape[-1]).numpy()
        said = fitted.decision_function(asked) if hasattr(fitted, "decision_function") else fitted.predict_proba(asked)
        said = torch.as_tensor(said, dtype=torch.float64)
        scores.append((said if said.dim() == 1 else said[:, 1]).reshape(-1, 2))
    return torch.cat(scores), fitted


def _telling(fitted: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    last = fitted[-1] if hasattr(fitted, "__getitem__") else fitted
    weights = getattr(last, "coef_", None)
    if weights is None:
        return ()
    size = torch.as_tensor(weights).abs().reshape(-1)
    return tuple(names[k] for k in size.argsort(descending=True)[:3].tolist())
