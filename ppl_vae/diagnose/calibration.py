"""Simulation-based calibration: whether the z that made x lies among the guide's draws as one of them would."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import InputError
from ..evaluate.chunked import Data, device_of, evaluation
from ..evaluate.importance import Progress
from ..weights import Program
from .findings import Picture, Verdict
from .simulated import Simulated, Simulator
from .uniformity import RankTests, check_bins, coverage, ecdf_p_value, histogram, holm, rank_tests

if TYPE_CHECKING:
    import xarray

__all__ = ["Calibration", "Function", "sbc"]

Function: TypeAlias = Callable[[Batch, Mapping[str, Tensor]], Tensor]
"""Of a batch of N data and values of z, (1 + L, N, \\*event) by site, one number each: (1 + L, N)."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
_LOG_JOINT = "log p(x, z)"
_DISTANCE = "distance to a random z"
_KINDS = ("too narrow", "shifted low", "shifted high", "too wide", "of another shape", "wrong as a whole")
_TESTS = {"shifted low": 0, "shifted high": 0, "too narrow": 1, "too wide": 1, "of another shape": 2}
_ADVICE = {
    "too narrow": "take a richer guide (full-rank, a mixture, a flow) or an objective that covers p(z | x), as IWAE or "
    "the wake phase; widen reported intervals until then",
    "shifted low": "train the encoder longer or make it wider; the wake phase trains it on what matters here",
    "shifted high": "train the encoder longer or make it wider; the wake phase trains it on what matters here",
    "too wide": "train the guide longer, or give it an encoder that sees more of x",
    "of another shape": "take a guide whose family is not Gaussian: a mixture or a flow",
    "wrong as a whole": "take a guide with correlations: full-rank, low-rank or a flow",
}
_MOST_NAMED = 6


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of z* among L draws of q(z | x), for S simulations and Q quantities: each number of z, then functions.

    Args:
        ranks: (S, Q) in 0, ..., L: how many draws lie below z*.
        names: of the quantities, (Q,): "z[0]", ..., "log p(x, z)", ...
        functions: how many of the quantities, the last ones, are functions of the whole of z.
        draws: L.
        bins: of the chi-square test.
        alpha: probability of a verdict that finds any fault where there is none.
        tests: p-values and effects of each quantity, see `RankTests`.
        adjusted: (3, Q) Holm-adjusted p-values of location, spread and chi-square, over all 3 Q of them.
        data: what the simulations were conditioned on.
    """

    ranks: Tensor
    names: tuple[str, ...]
    functions: int
    draws: int
    bins: int
    alpha: float
    tests: RankTests
    adjusted: Tensor
    data: str

    @classmethod
    def of(
        cls, ranks: Tensor, names: Sequence[str], functions: int, draws: int, bins: int, alpha: float, data: str = ""
    ) -> Calibration:
        """From ranks alone, with their tests."""
        tests = rank_tests(ranks, draws, bins)
        adjusted = holm(torch.stack([tests.p_location, tests.p_spread, tests.p_chi_square]))
        return cls(ranks, tuple(names), functions, draws, bins, alpha, tests, adjusted, data)

    @property
    def simulations(self) -> int:
        """S."""
        return self.ranks.shape[0]

    @property
    def counts(self) -> Tensor:
        """(B, Q) ranks in each bin."""
        return histogram(self.ranks, self.draws, self.bins)[0]

    @functools.cached_property
    def p_ecdf(self) -> Tensor:
        """(Q,) p-value of each empirical distribution function's largest deviation, see `uniformity.ecdf_p_value`."""
        return ecdf_p_value(self.ranks, self.draws)

    def coverage(self, levels: Sequence[float] = LEVELS) -> tuple[Tensor, Tensor, Tensor]:
        """Central intervals of the draws: exact levels (P,), shares that hold z* (P, Q), and these shares' standard
        errors where the levels are right, (P,)."""
        if not all(0.0 < level < 1.0 for level in levels):
            raise InputError(f"levels={list(levels)} must lie between 0 and 1, as 0.9")
        return coverage(self.ranks, self.draws, torch.tensor(levels))

    @property
    def faults(self) -> dict[str, list[int]]:
        """Quantities by kind of fault: "too narrow", "shifted low", "shifted high", "too wide", "of another shape" of
        single numbers of z, "wrong as a whole" of functions. Only kinds that there are."""
        found: dict[str, list[int]] = {kind: [] for kind in _KINDS}
        location, spread, shape = (self.adjusted <= self.alpha).tolist()
        for q in range(len(self.names)):
            if q >= len(self.names) - self.functions:
                if location[q] or spread[q] or shape[q]:
                    found["wrong as a whole"].append(q)
                continue
            if spread[q]:
                found["too narrow" if self.tests.spread[q] > 1.0 else "too wide"].append(q)
            if location[q]:
                found["shifted low" if self.tests.location[q] > 0.0 else "shifted high"].append(q)
            if shape[q] and not (location[q] or spread[q]):
                found["of another shape"].append(q)
        return {kind: qs for kind, qs in found.items() if qs}

    def verdicts(self) -> list[Verdict]:
        """One sentence for each kind of fault, or one that there is none."""
        return [self._verdict(kind, qs) for kind, qs in self.faults.items()] or [self._clean()]

    def pictures(self) -> list[Picture]:
        """Histograms of ranks, their distribution functions within bands, coverage of intervals."""
        from .figures_calibration import pictures

        return pictures(self)

    def to_dataset(self) -> xarray.Dataset:
        """Dimensions: "simulation", "quantity" (by name), "bin", "level"."""
        import xarray as xr

        levels, shares, errors = self.coverage()
        numbers = {name: (("quantity",), value.numpy()) for name, value in self._values().items()}
        adjusted = ("p_location_adjusted", "p_spread_adjusted", "p_chi_square_adjusted")
        return xr.Dataset(
            {
                "rank": (("simulation", "quantity"), self.ranks.numpy()),
                "count": (("bin", "quantity"), self.counts.numpy()),
                "coverage": (("level", "quantity"), shares.numpy()),
                "coverage_se": (("level",), errors.numpy()),
                **numbers,
                **{name: (("quantity",), value.numpy()) for name, value in zip(adjusted, self.adjusted, strict=True)},
            },
            {"quantity": list(self.names), "level": levels.numpy()},
            {"draws": self.draws, "alpha": self.alpha, "data": self.data},
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole."""
        levels, shares, errors = self.coverage()
        quantities = {
            name: {
                **{key: value[q].item() for key, value in self._values().items()},
                "p_adjusted": self.adjusted[:, q].min().item(),
                "coverage": shares[:, q].tolist(),
            }
            for q, name in enumerate(self.names)
        }
        return {
            "simulations": self.simulations,
            "draws": self.draws,
            "bins": self.bins,
            "alpha": self.alpha,
            "data": self.data,
            "levels": levels.tolist(),
            "coverage_se": errors.tolist(),
            "faults": {kind: [self.names[q] for q in qs] for kind, qs in self.faults.items()},
            "quantities": quantities,
        }

    def _values(self) -> dict[str, Tensor]:
        """(Q,) by name."""
        return {**self.tests._asdict(), "p_ecdf": self.p_ecdf}

    def _verdict(self, kind: str, qs: list[int]) -> Verdict:
        qs = sorted(qs, key=lambda q: -abs(self._effect(kind, q)))
        more = f" and {len(qs) - _MOST_NAMED} more" if len(qs) > _MOST_NAMED else ""
        named = _listed([self.names[q] for q in qs[:_MOST_NAMED]]) + more
        worst = qs[0]
        levels, shares, errors = self.coverage((0.9,))
        held = (
            f"its {levels.item():.0%} interval there holds {shares[0, worst].item():.1%} ± {errors.item():.1%} of the "
            "z that made x"
        )
        location, spread = self.tests.location[worst].item(), self.tests.spread[worst].item()
        se = 1.0 / math.sqrt(self.simulations)
        at = f" (most in {self.names[worst]}: " if len(qs) > 1 else " ("
        says = {
            "too narrow": f"the posterior is too narrow in {named}{at}z lies {spread:.2f} ± {se / math.sqrt(2):.2f} "
            f"times as far out as q says; {held})",
            "too wide": f"the posterior is too wide in {named}{at}z lies {spread:.2f} ± {se / math.sqrt(2):.2f} times "
            f"as far out as q says; {held})",
            "shifted low": f"the posterior is shifted low in {named}{at}z lies {location:.2f} ± {se:.2f} standard "
            "deviations of q above its draws)",
            "shifted high": f"the posterior is shifted high in {named}{at}z lies {-location:.2f} ± {se:.2f} standard "
            "deviations of q below its draws)",
            "of another shape": f"the posterior has another shape than p(z | x) in {named}{at}chi-square "
            f"{self.tests.chi_square[worst].item():.0f} on {self.bins - 1} degrees of freedom)",
            "wrong as a whole": f"the posterior is wrong as a whole: ranks of {named} are not uniform"
            + self._whole(qs),
        }[kind]
        return Verdict(
            check="calibration",
            fault=True,
            says=f"On data that the model makes, {says}.",
            statistic="smallest p-value, adjusted by Holm for all quantities and tests; a fault where it is below",
            value=float(self.adjusted[_TESTS.get(kind, slice(None)), qs].min()),
            threshold=self.alpha,
            false_alarm=self.alpha,
            advice=_ADVICE[kind],
            speaks_of="data that the model makes",
        )

    def _effect(self, kind: str, q: int) -> float:
        if kind in ("too narrow", "too wide"):
            return math.log(max(self.tests.spread[q].item(), 1e-6))
        return float(self.tests.location[q] if kind.startswith("shifted") else self.tests.chi_square[q])

    def _whole(self, qs: list[int]) -> str:
        for q in qs:
            if self.names[q] == _LOG_JOINT:
                way = "less" if self.tests.location[q] > 0.0 else "more"
                return f" (q's draws are {way} probable under p(z | x) than draws of p(z | x) itself)"
        return ""

    def _clean(self) -> Verdict:
        # what a test at the strictest of Holm's levels finds in 95 of 100 repeats
        level = self.alpha / self.adjusted.numel()
        reach = -torch.special.ndtri(torch.tensor(level / 2, dtype=torch.float64)).item() + 1.645
        shift, spread = reach / math.sqrt(self.simulations), reach / math.sqrt(2 * self.simulations)
        numbers = len(self.names) - self.functions
        return Verdict(
            check="calibration",
            fault=False,
            says=f"On data that the model makes, no fault of the posterior is found in {numbers} latent "
            f"dimension{'s' * (numbers != 1)}: {self.simulations:,} simulations would have shown a shift of "
            f"{shift:.2f} standard deviations, or a standard deviation wrong by {spread:.0%}.",
            statistic="smallest p-value, adjusted by Holm for all quantities and tests; a fault where it is below",
            value=float(self.adjusted.min()),
            threshold=self.alpha,
            false_alarm=self.alpha,
            speaks_of="data that the model makes",
        )


def sbc(
    model: Program,
    guide: Program,
    data: Data | None = None,
    *,
    simulations: int = 1000,
    draws: int = 99,
    bins: int = 20,
    functions: Mapping[str, Function] | None = None,
    alpha: float = 0.05,
    chunk: int = 8192,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    r"""Simulation-based calibration: is q(z | x) as wide as it should be, and in the right place?

    .. math::
        z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_1, ..., z_L \sim q(z \mid x), \qquad
        r = \#\{l : f(x, z_l) < f(x, z^*)\}

    Where q(z | x) = p(z | x), z* and the draws are alike, and r is uniform on 0, ..., L, for any function f: here each
    number of z, log p(x, z), the distance to a point drawn from the prior (TARP), and those given. A posterior too
    narrow leaves z* outside of its draws, a histogram like a U; one shifted low leaves it above them. Ties, of discrete
    latents and of point masses, are broken at random.

    Three tests of each quantity, of which none sees all: chi-square over the bins, location and spread of the ranks'
    normal scores. Their p-values are adjusted together by Holm: of a right posterior any fault is found with
    probability α or less (as far as S makes the statistics normal).

    It speaks of data that the model makes. A guide may be right there and wrong for real data that the model finds
    unlikely: of those k-hat and the inference gap speak.

    Args:
        model: a program over a `Batch` that generates x where there is none; all its latents are of a datum.
        guide: amortized.
        data: what x is conditioned on: rows are drawn with replacement, y, context and masks kept, x not looked at
            (what is hidden from the guide is not scored). None: nothing.
        simulations: S.
        draws: L; with L + 1 a multiple of `bins` all bins expect the same.
        bins: B of the histogram and chi-square.
        functions: further functions f by name, each of a batch and z, (1 + L, N, \*event) by site, to (1 + L, N).
        alpha: probability of finding any fault where there is none.
        chunk: pairs of a draw and a simulation at once.
        seed: of random numbers of its own, leaving the default generator as it is.
        progress: called with the number of simulations done, and S.

    Returns:
        `Calibration`, on the CPU.

    Raises:
        InputError: too few simulations or draws for the bins, saying how many are needed; a latent that all data share;
            a guide with parameters for each datum; a model that cannot generate; values that are NaN.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian inference algorithms with simulation-based
        calibration, 2018 (https://arxiv.org/abs/1804.06788). Modrák et al., Simulation-based calibration checking for
        Bayesian computation: the choice of test quantities shapes sensitivity, 2022
        (https://arxiv.org/abs/2211.02383): log p(x, z). Lemos, Coogan, Hezaveh and Perreault-Levasseur, Sampling-based
        accuracy testing of posterior estimators for general inference, ICML 2023 (https://arxiv.org/abs/2302.03026):
        distances to a random point.
    """
    check_bins(simulations, draws, bins)
    check_level(alpha)
    given = dict(functions or {})
    for name, function in given.items():
        if not callable(function):
            raise InputError(f"functions[{name!r}]={function!r} is no function of a batch and z")
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        simulator = Simulator(model, guide, data, simulations, draws, chunk)
        if clash := sorted(given.keys() & {*simulator.names, _LOG_JOINT, _DISTANCE}):
            raise InputError(f"functions have the name {clash[0]!r}, which is taken: give it another")
        names = (*simulator.names, _LOG_JOINT, _DISTANCE, *given)
        ranks = torch.cat([_ranks(_quantities(simulator, some, given)).cpu() for some in simulator(progress)])
        about = "nothing" if simulator.conditions is None else getattr(data, "description", "a batch")
    return Calibration.of(ranks, names, 2 + len(given), draws, bins, alpha, about)


def check_level(alpha: object) -> None:
    """Raise `InputError` for what is no error probability."""
    if not (isinstance(alpha, float) and 0.0 < alpha < 0.5):
        raise InputError(f"alpha={alpha!r} must be a probability of a false alarm, between 0 and 0.5, as 0.05")


def _quantities(simulator: Simulator, some: Simulated, functions: Mapping[str, Function]) -> Tensor:
    """(1 + L, N, Q)."""
    numbers = some.numbers().double()
    reference = torch.cat([some.reference[name].reshape(len(numbers[0]), -1) for name in some.z], -1).double()
    scale = reference.std(0) if len(reference) > 1 else torch.ones_like(reference[0])
    scale = torch.where(scale > 0, scale, 1.0)
    found = {
        _LOG_JOINT: simulator.log_joint(some),
        _DISTANCE: ((numbers - reference) / scale).square().sum(-1),
    }
    for name, function in functions.items():
        value = function(some.batch, some.z)
        if not isinstance(value, Tensor) or value.shape != numbers.shape[:2]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"functions[{name!r}] gave {shape}; one number for each draw and datum belongs there, "
                f"{tuple(numbers.shape[:2])}"
            )
        found[name] = value
    for name, value in found.items():
        if bool(value.isnan().any()):
            raise InputError(f"{name} is NaN for simulated data: the pair's parameters are not finite there")
    return torch.cat([numbers, *(value.double().unsqueeze(-1) for value in found.values())], -1)


def _ranks(values: Tensor) -> Tensor:
    """(N, Q) of the first among the others, (1 + L, N, Q); among equals at random."""
    first, others = values[0], values[1:]
    below, equal = (others < first).sum(0), (others == first).sum(0)
    return below + (torch.rand_like(first) * (equal + 1)).long()


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
