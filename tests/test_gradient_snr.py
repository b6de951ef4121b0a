"""The benchmark of gradients' signal and noise: its arithmetic, and a run of the smallest size. Nothing is timed."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gradient_snr
from ppl_vae import IWAE, DReG


def test_the_ratio_is_taken_free_of_the_means_own_noise() -> None:
    """Gaussian gradients of known mean and variance: within 4 standard errors; of pure noise it is 0 or nearly so."""
    torch.manual_seed(0)
    mean, sd = torch.tensor([0.3, -0.1]), torch.tensor([1.0, 2.0])
    draws = mean + sd * torch.randn(8192, 2)
    snr, error = gradient_snr.with_error(draws.double())
    exact = (0.1 / 5.0) ** 0.5
    assert abs(snr - exact) < 4 * error < 0.05
    assert gradient_snr.ratio(torch.randn(8192, 2).double()).item() < 0.03


def test_a_slope_is_that_of_a_power() -> None:
    assert gradient_snr.slope([1, 4, 16, 64], [3.0 * k**-0.5 for k in (1, 4, 16, 64)]) == pytest.approx(-0.5)


def test_replicas_are_independent_and_parts_have_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_snr, "AT_ONCE", 64)
    drawn = gradient_snr.gradients(IWAE(particles=2), 96, seed=0)
    assert drawn["guide"].shape == (96, 2 * gradient_snr.D)
    assert drawn["model"].shape == (96, gradient_snr.D)
    assert len(drawn["guide"][:, 0].unique()) == 96
    assert torch.equal(drawn["guide"], gradient_snr.gradients(IWAE(particles=2), 96, seed=0)["guide"])
    assert not torch.equal(drawn["guide"], gradient_snr.gradients(DReG(particles=2), 96, seed=0)["guide"])


def test_a_small_run_shows_who_rises_and_who_falls(tmp_path: Path) -> None:
    results = gradient_snr.measure(particles=(1, 16, 64), replicas=1024)
    guide = results["guide"]
    assert guide["IWAE"]["snr"][0] > guide["IWAE"]["snr"][2] + 4 * guide["IWAE"]["se"][2]
    assert guide["DReG"]["snr"][2] > guide["DReG"]["snr"][1] + 4 * guide["DReG"]["se"][2]
    assert guide["STL"]["share"][2] > 5
    assert abs(guide["IWAE"]["share"][1] - 1) < 4 * guide["IWAE"]["share_se"][1]
    json.dumps(results)
    gradient_snr.picture(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
