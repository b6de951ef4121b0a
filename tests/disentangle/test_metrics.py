"""Metrics of disentanglement: known answers, hand computations, and what must not change them."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch

from ppl_vae.data import DataSet
from ppl_vae.disentangle import (
    Score,
    beta_vae_score,
    dci,
    factor_vae_score,
    measure,
    metrics,
    mig,
    sap,
    udr,
)
from ppl_vae.disentangle.mig import discretize, mutual_information
from ppl_vae.disentangle.score import Array, Codes
from ppl_vae.errors import InputError

SIZES = (3, 4, 6)
SMALL = {
    "mig": {},
    "dci": {"train": 300, "test": 150},
    "sap": {"train": 600, "test": 300},
    "beta-vae": {"train": 600, "test": 300},
    "factor-vae": {"train": 600, "test": 300},
}


def grid(n: int = 1200, seed: int = 0) -> Array:
    """Random levels of three factors."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, size, n) for size in SIZES], 1)


def standardized(factors: Array) -> Array:
    return (factors - factors.mean(0)) / factors.std(0)


def rotated(factors: Array, seed: int = 3) -> Array:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(factors.shape[1],) * 2))
    turned: Array = standardized(factors) @ turn
    return turned


def score(name: str, codes: Array, factors: Array, **more: object) -> Score:
    found: Score = metrics.get(name)(codes, factors, **{**SMALL[name], **more})
    return found


@pytest.mark.parametrize(("name", "least"), [("mig", 0.98), ("dci", 0.98), ("beta-vae", 0.98), ("factor-vae", 0.98)])
def test_factors_as_codes_are_disentangled(name: str, least: float) -> None:
    factors = grid()
    assert score(name, factors.astype(float), factors).value >= least


def test_factors_as_codes_are_separated() -> None:
    factors = grid()
    assert score("sap", factors.astype(float), factors, continuous=True).value >= 0.9


def test_a_rotation_is_entangled() -> None:
    """Low on MIG, DCI and SAP; a linear classifier of the β-VAE score is not fooled as far."""
    factors = grid()
    codes = rotated(factors)
    assert score("mig", codes, factors).value < 0.3
    assert score("dci", codes, factors).value < 0.6
    assert score("sap", codes, factors, continuous=True).value < 0.5


def test_noise_is_near_chance() -> None:
    factors = grid()
    codes = np.random.default_rng(1).normal(size=(len(factors), 4))
    assert score("mig", codes, factors).value < 0.02
    assert score("sap", codes, factors, continuous=True).value < 0.02
    assert score("dci", codes, factors).value < 0.15
    # a third, and 4 standard errors of 300 points' accuracy
    for name in ("beta-vae", "factor-vae"):
        assert abs(score(name, codes, factors).value - 1 / 3) < 4 * math.sqrt(2 / 9 / 300) + 0.02


@pytest.mark.parametrize("name", list(SMALL))
def test_order_and_sign_of_dimensions_change_nothing(name: str) -> None:
    factors = grid()
    codes = standardized(factors) + 0.3 * np.random.default_rng(2).normal(size=factors.shape)
    more = {"continuous": True} if name == "sap" else {}
    plain = score(name, codes, factors, **more)
    other = score(name, -codes[:, [2, 0, 1]], factors, **more)
    assert abs(plain.value - other.value) <= 0.01


@pytest.mark.parametrize("name", list(SMALL))
def test_a_seed_decides_and_leaves_global_generators_alone(name: str) -> None:
    factors = grid(400)
    codes = rotated(factors)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    small = {key: 60 for key in ("train", "test") if key in inspect.signature(metrics.get(name)).parameters}
    first, second = (score(name, codes, factors, **small) for _ in range(2))
    assert first.value == second.value
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type]  # noqa: NPY002


def test_a_constant_factor_and_a_dead_dimension_give_a_score() -> None:
    factors = np.concatenate([grid(500), np.full((500, 1), 7)], 1)
    codes = np.concatenate([factors[:, :3].astype(float), np.zeros((500, 1))], 1)
    for name in SMALL:
        small = {key: 100 for key in ("train", "test") if key in inspect.signature(metrics.get(name)).parameters}
        more = {"continuous": True} if name == "sap" else {}
        found = score(name, codes, factors, names=("a", "b", "c", "d"), **small, **more)
        assert found.value >= 0.9, name
        assert found.note == "without d, of one level"
    assert factor_vae_score(np.zeros((500, 2)), factors).value == 0.0
    assert mig(np.zeros((500, 2)), factors).value == 0.0
    assert dci(np.zeros((500, 2)), factors, train=200, test=100).value == 0.0


def test_information_by_hand() -> None:
    """Two bits that agree in three of four cases; bins of equal width."""
    a = np.array([[0], [0], [1], [1], [0], [0], [1], [1]])
    b = np.array([[0], [0], [0], [1], [0], [0], [1], [1]])
    joint = {(0, 0): 4 / 8, (1, 0): 1 / 8, (1, 1): 3 / 8}
    wanted = sum(p * math.log(p / (0.5 * (5 / 8 if y == 0 else 3 / 8))) for (_, y), p in joint.items())
    assert mutual_information(a, b)[0, 0] == pytest.approx(wanted, abs=1e-12)
    assert discretize(np.array([[0.0], [0.049], [0.051], [1.0]]), 20)[:, 0].tolist() == [0, 0, 1, 19]
    assert discretize(np.full((3, 1), 5.0))[:, 0].tolist() == [0, 0, 0]


def test_the_gap_by_hand() -> None:
    """One dimension knows a factor of two levels whole, the other nothing: every factor counts alike."""
    factors = np.array(list(itertools.product(range(2), range(2), range(50)))).reshape(-1, 3)[:, :2]
    codes = np.stack([factors[:, 0], factors[:, 0]], 1).astype(float)
    found = mig(codes, factors)
    assert found.value == pytest.approx(0.0, abs=1e-12)  # both dimensions know it: no gap
    one = mig(factors[:, :1].astype(float), factors)
    assert one.parts["by_factor"].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert one.value == pytest.approx(0.5, abs=1e-12)


def test_the_gap_is_limited_by_the_bins() -> None:
    """Factors of 40 and 32 levels behind 20 bins: what the field's sprites score at best is 0.90."""
    generator = np.random.default_rng(0)
    factors = np.stack([generator.integers(0, size, 10_000) for size in (3, 6, 40, 32, 32)], 1)
    assert mig(factors.astype(float), factors).value == pytest.approx(0.90, abs=0.02)


def test_concentration_of_importances_by_hand() -> None:
    from ppl_vae.disentangle.dci import _concentration

    matrix = np.array([[0.8, 0.0], [0.2, 0.5], [0.0, 0.5]])
    entropy = [0.0, -(2 / 7 * math.log2(2 / 7) + 5 / 7 * math.log2(5 / 7)), 0.0]
    wanted = sum(w / 2 * (1 - h) for w, h in zip((0.8, 0.7, 0.5), entropy, strict=True))
    assert _concentration(matrix) == pytest.approx(wanted, abs=1e-12)
    assert _concentration(np.zeros((2, 2))) == 0.0
    assert _concentration(np.array([[0.3], [0.7]])) == 1.0


def test_squared_correlations_are_numpys() -> None:
    factors = grid(300)
    codes = rotated(factors)
    found = sap(codes, factors, continuous=True, train=200, test=100).parts["predictability"]
    rows, _ = Codes(codes, factors).split(200, 100, np.random.default_rng(0), "sap")
    for d, k in itertools.product(range(3), range(3)):
        r = np.corrcoef(codes[rows, d], factors[rows, k])[0, 1]
        assert found[d, k] == pytest.approx(r * r, abs=1e-12)


def test_error_bars_cover_other_samples() -> None:
    """MIG of 40 fresh samples spreads as its own error bar says, within a factor of 2."""
    values, errors = [], []
    for seed in range(40):
        factors = grid(500, seed)
        noise = np.random.default_rng(100 + seed).normal(size=factors.shape)
        found = mig(standardized(factors) + 0.5 * noise, factors, resamples=20)
        values.append(found.value)
        errors.append(found.se)
    assert 0.5 < np.std(values) / np.mean(errors) < 2.0


def test_agreement_of_models() -> None:
    """1 for the same dimensions in another order and sign; less for rotations; a dead dimension does not count."""
    factors = standardized(grid(2000))
    same = [factors, -factors[:, [2, 0, 1]], np.concatenate([factors * 3.0, np.zeros((2000, 1))], 1)]
    assert udr(same) == pytest.approx([1.0, 1.0, 1.0], abs=0.15)
    mixed = [rotated(factors, seed) for seed in range(3)]
    assert float(udr(mixed).max()) < float(udr(same).min()) - 0.1
    kl = [np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])]
    assert udr(same, kl).tolist() == udr(same).tolist()
    assert udr([factors, np.zeros((2000, 2))]).tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="codes holds 1 model"):
        udr([factors])
    with pytest.raises(InputError, match="of the same N data"):
        udr([factors, factors[:-1]])


def test_measure_takes_a_function_and_data_with_factors() -> None:
    factors = torch.from_numpy(grid(400))
    data = DataSet.from_arrays(factors.float(), name="grid").with_factors(factors, ("a", "b", "c"))
    seen: list[str] = []
    found = measure(
        None, lambda x: x, data, ["mig", "sap"], options={"sap": {"continuous": ["a", "b", "c"]}}, progress=seen.append
    )
    assert seen == ["mig", "sap"]
    assert found["mig"].value >= 0.98
    assert found["sap"].value >= 0.9
    assert str(found["mig"]).startswith("mig ")
    with pytest.raises(InputError, match="metric='mgi' is not known; did you mean 'mig'"):
        measure(None, lambda x: x, data, ["mgi"])
    with pytest.raises(InputError, match=r"options of 'mig': \['bin'\]; it takes .*bins"):
        measure(None, lambda x: x, data, ["mig"], options={"mig": {"bin": 3}})
    with pytest.raises(InputError, match=r"has no factors; use data\.sprites"):
        measure(None, lambda x: x, DataSet.from_arrays(factors.float()), ["mig"])


def test_bad_input() -> None:
    factors = grid(200)
    codes = factors.astype(float)
    with pytest.raises(InputError, match="codes has 199 rows and factors has 200"):
        mig(codes[:-1], factors)
    with pytest.raises(InputError, match="codes holds 50 data, too few for this metric; give 100 or more"):
        beta_vae_score(codes[:50], factors[:50])
    with pytest.raises(InputError, match="none of them varies"):
        mig(codes, np.ones_like(factors))
    codes[3, 1] = np.nan
    with pytest.raises(InputError, match=r"codes\[3, 1\] is nan"):
        mig(codes, factors)
    with pytest.raises(InputError, match=r"factors\[0, 0\] is 0.5; give whole numbers"):
        mig(factors, factors * 0.0 + 0.5)
    with pytest.raises(InputError, match=r"codes has shape \(200,\)"):
        mig(factors[:, 0], factors)
    with pytest.raises(InputError, match="bins=1 must be a whole number, 2 or more"):
        mig(factors, factors, bins=1)
    with pytest.raises(InputError, match="names has 1 names for 3 factors"):
        mig(factors, factors, names=("a",))
