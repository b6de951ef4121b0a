"""Three ways to log p(x) on a trained pair."""

import pytest
import torch

from ppl_vae.build import PairConfig, build
from ppl_vae.data import load
from ppl_vae.diagnose import ais, khat
from ppl_vae.fit import fit


@pytest.mark.slow
def test_importance_sampling_its_smoothing_and_annealing_agree_on_the_digits() -> None:
    """Means over 100 data beyond 4 of their standard errors (and the biases of the logarithms, se²/2) come about 6e-5
    of the time; of single data where k-hat is below 0.5, beyond 5 of them, less than 1e-3 of the time for any."""
    data = load("digits", binarize="dynamic")
    torch.manual_seed(0)
    model, guide = build(PairConfig(latent=8, hidden=(64,)), data.train)
    fit(model, guide, data.train, epochs=60, progress=False)
    some = data.test.fixed().batch(torch.arange(100))
    sampled = khat(model, guide, some, particles=5000, seed=0)
    annealed = ais(model, some, temperatures=500, chains=16, seed=1, compile=True)
    assert (sampled.khat < 0.7).double().mean() > 0.8
    importance, smoothed = sampled.estimates["log_px"], sampled.estimates["smoothed"]
    for one, other, bias in (
        (importance, annealed.estimate, annealed.se.square().mean().item() / 2),
        (smoothed, annealed.estimate, annealed.se.square().mean().item() / 2),
        (importance, smoothed, sampled.se.square().mean().item()),
    ):
        assert abs(one.mean - other.mean) < 4 * (one.se**2 + other.se**2) ** 0.5 + bias
    good = sampled.khat < 0.5
    error = torch.hypot(sampled.se, annealed.se)[good]
    assert ((sampled.log_px - annealed.log_px)[good].abs() < 5 * error + annealed.se[good].square()).all()
    print(importance, smoothed, annealed.estimate, annealed.ess.mean())
