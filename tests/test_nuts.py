"""Draws of a mixture's parameters: against the posterior by a sum over all assignments of few data."""

import itertools
import math

import pytest
import torch
from mixtures import mixture, three_groups, with_prior

from ppl_vae.conjugate import Dirichlet, NormalInverseGamma
from ppl_vae.errors import InputError
from ppl_vae.mixture_parameters import DirichletNormal
from ppl_vae.models import GaussianMixture
from ppl_vae.nuts import sample_parameters


def prior() -> DirichletNormal:
    like = torch.ones(2, 1).double()
    return DirichletNormal(Dirichlet(2.0 * like[:, 0]), NormalInverseGamma(0.0 * like, like, 5.0 * like, 6.0 * like))


def test_draws_are_shaped_and_finite() -> None:
    model = with_prior(three_groups(12), components=2)
    before = torch.get_rng_state()
    result = sample_parameters(model, three_groups(12), draws=4, warmup=4, chains=2)
    assert torch.equal(before, torch.get_rng_state())
    assert result.parameters.loc.shape == (8, 2, 2)
    assert {name: tuple(v.shape) for name, v in result.values.items()} == {
        "weights": (2, 4, 2),
        "chi_square": (2, 4, 2, 2),
        "below": (2, 4, 2, 1),
        "loc": (2, 4, 2, 2),
    }
    assert result.log_prob(three_groups(5)).shape == (5,)
    torch.testing.assert_close(result.responsibilities(three_groups(5)).sum(-1), torch.ones(5).double())
    assert not torch.equal(result.values["loc"][0], result.values["loc"][1])


@pytest.mark.slow
def test_means_are_those_of_the_posterior() -> None:
    """Of Σ_k μ_k and Σ_k λ_k, which know no labels, within 5 standard errors by effective draws; the posterior is a
    mixture, over all 2⁵ assignments, of conjugate ones."""
    x = torch.tensor([-2.0, -1.5, 0.3, 1.2, 2.2]).double()[:, None]
    p = prior()
    logs, means, precisions = [], [], []
    for z in itertools.product(range(2), repeat=5):
        q = p.posterior(x, torch.nn.functional.one_hot(torch.tensor(z), 2).double())
        normals = (q.normals.log_partition() - p.normals.log_partition()).sum()
        logs.append(normals + q.weights.log_partition() - p.weights.log_partition())
        means.append(q.normals.mean.sum())
        precisions.append(q.normals.expected_precision.sum())
    weights = torch.stack(logs).softmax(0)
    result = sample_parameters(GaussianMixture(2, 1, "diagonal", prior=p), x, draws=1500, warmup=300, chains=1)
    assert result.rhat < 1.05
    drawn = {"loc": (result.values["loc"], means), "precision": (result.values["precision"], precisions)}
    for draws, wanted in drawn.values():
        total = draws[0].sum((-2, -1))
        error = total.std() / math.sqrt(min(result.ess, 500.0))
        assert abs(total.mean() - (weights * torch.stack(wanted)).sum()) < 5 * error


def test_refused() -> None:
    with pytest.raises(InputError, match="has no prior over them: use em"):
        sample_parameters(mixture(), three_groups())
    with pytest.raises(InputError, match="draws=3 must be a whole number, 4 or more"):
        sample_parameters(with_prior(three_groups()), three_groups(), draws=3)
    with pytest.raises(InputError, match=r"x has shape \(9, 3\)"):
        sample_parameters(with_prior(three_groups()), three_groups(9, 3))
