"""R-hat and effective sample size are those of ArviZ, for all quantities at once."""

import math

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_vae.convergence import ess, rhat

KINDS = ("independent", "walk", "tied", "apart", "anticorrelated", "heavy", "spread")


def draws(chains: int, length: int, seed: int = 0) -> Tensor:
    """(chains, length, 7): a column of each kind."""
    x = torch.randn(chains, length, len(KINDS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[..., 1] = x[..., 1].cumsum(1)
    x[..., 2] = (2 * x[..., 2]).round()  # a rejected proposal repeats a draw: equal values are common
    x[..., 3] += torch.arange(chains)[:, None]
    for t in range(1, length):
        x[:, t, 4] -= 0.8 * x[:, t - 1, 4]
    x[..., 5] = x[..., 5].sinh().sinh()
    x[..., 6] *= 1.0 + torch.arange(chains)[:, None]
    return x


@pytest.mark.parametrize(("chains", "length"), [(4, 200), (4, 201), (2, 7), (3, 4), (3, 5), (8, 50)])
def test_both_are_arvizs(chains: int, length: int) -> None:
    x = draws(chains, length)
    for ours, theirs in ((rhat, az.rhat), (ess, az.ess)):
        wanted = np.array([theirs(x[..., k].numpy()) for k in range(x.shape[-1])])
        np.testing.assert_allclose(ours(x).numpy(), wanted, rtol=1e-10)


def test_one_chain_has_an_effective_size() -> None:
    x = draws(1, 100)
    wanted = np.array([az.ess(x[..., k].numpy()) for k in range(x.shape[-1])])
    np.testing.assert_allclose(ess(x).numpy(), wanted, rtol=1e-10)


def test_they_tell_what_they_are_for() -> None:
    found = dict(zip(KINDS, zip(rhat(draws(4, 1000)).tolist(), ess(draws(4, 1000)).tolist(), strict=True), strict=True))
    assert found["independent"][0] < 1.01
    assert 3000 < found["independent"][1] < 5000
    assert all(found[kind][0] > 1.05 for kind in ("walk", "apart", "spread"))
    assert all(found[kind][1] < 100 for kind in ("walk", "apart"))
    assert found["anticorrelated"][1] > 8000


def test_shapes_and_precision() -> None:
    x = draws(3, 30)
    both = torch.stack([x, x.flip(-1)], -1).float()  # (3, 30, 7, 2)
    for judge in (rhat, ess):
        found = judge(both)
        assert found.shape == (7, 2)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[:, 0], judge(both[..., 0]))
        assert judge(x[..., 0]).shape == ()


def test_what_never_moves_and_what_is_no_number() -> None:
    x = draws(2, 20)
    x[..., 0] = 3.0
    x[0, 4, 1] = math.nan
    x[1, 7, 2] = math.inf
    assert rhat(x)[:3].isnan().all()
    assert ess(x)[0] == 40
    assert ess(x)[1:3].isnan().all()
    assert rhat(x)[3:].isfinite().all()
    assert ess(x)[3:].isfinite().all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 10), (2, 3, 4)])
def test_too_few_draws(shape: tuple[int, ...]) -> None:
    for judge in (rhat, ess):
        with pytest.raises(ValueError, match=r"draws have the shape .*; give \(chains, draws, \*event\) with 4"):
            judge(torch.zeros(shape))
