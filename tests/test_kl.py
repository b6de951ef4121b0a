"""Closed-form KL divergences, against Monte Carlo, torch's general formula, and a table that stays Pyro's own."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.kl import _KL_REGISTRY, kl_divergence

from ppl_vae.kl import closed_form_kl

D = 3


def full(n: int = 4) -> dist.MultivariateNormal:
    tril = (
        torch.randn(n, D, D, dtype=torch.float64).tril(-1) + torch.rand(n, D, dtype=torch.float64).add(0.3).diag_embed()
    )
    return dist.MultivariateNormal(torch.randn(n, D, dtype=torch.float64), scale_tril=tril)


def low_rank(n: int = 4, rank: int = 2) -> dist.LowRankMultivariateNormal:
    factor, diagonal = torch.randn(n, D, rank, dtype=torch.float64), torch.rand(n, D, dtype=torch.float64) + 0.1
    return dist.LowRankMultivariateNormal(torch.randn(n, D, dtype=torch.float64), factor, diagonal)


def diagonal(n: int = 4) -> dist.Independent:
    return dist.Normal(torch.randn(n, D).double(), torch.rand(n, D).double() + 0.3).to_event(1)


def test_full_rank_to_diagonal_equals_torchs_formula_between_full_ones() -> None:
    q, p = full(), diagonal()
    same = dist.MultivariateNormal(p.base_dist.loc, scale_tril=p.base_dist.scale.diag_embed())
    torch.testing.assert_close(closed_form_kl(q, p), kl_divergence(q, same), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_low_rank_to_diagonal_equals_torchs_formula_between_full_ones(rank: int) -> None:
    q, p = low_rank(rank=rank), diagonal()
    dense = dist.MultivariateNormal(q.loc, q.cov_diag.diag_embed() + q.cov_factor @ q.cov_factor.mT)
    same = dist.MultivariateNormal(p.base_dist.loc, scale_tril=p.base_dist.scale.diag_embed())
    torch.testing.assert_close(closed_form_kl(q, p), kl_divergence(dense, same), rtol=1e-10, atol=1e-10)
    wide = closed_form_kl(q.expand(torch.Size([6, 4])), p)
    torch.testing.assert_close(wide, kl_divergence(dense, same).expand(6, 4), rtol=1e-10, atol=1e-10)


def test_gradients_of_low_rank_are_torchs() -> None:
    q, p = low_rank(), diagonal()
    leaves = [t.clone().requires_grad_() for t in (q.loc, q.cov_factor, q.cov_diag, p.base_dist.loc, p.base_dist.scale)]
    loc, factor, diag, prior_loc, prior_scale = leaves
    ours = closed_form_kl(
        dist.LowRankMultivariateNormal(loc, factor, diag), dist.Normal(prior_loc, prior_scale).to_event(1)
    )
    dense = dist.MultivariateNormal(loc, diag.diag_embed() + factor @ factor.mT)
    theirs = kl_divergence(dense, dist.MultivariateNormal(prior_loc, scale_tril=prior_scale.diag_embed()))
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves), rtol=1e-10, atol=1e-10
    )


def test_full_rank_to_diagonal_equals_its_monte_carlo_mean() -> None:
    q, p = full(), diagonal()
    z = q.sample(torch.Size([200_000]))
    draws = q.log_prob(z) - p.log_prob(z)
    error = draws.std(0) / draws.shape[0] ** 0.5
    assert bool(((closed_form_kl(q, p) - draws.mean(0)).abs() < 4 * error).all())


def test_gradients_are_torchs() -> None:
    q, p = full(), diagonal()
    leaves = [q.loc, q.scale_tril, p.base_dist.loc, p.base_dist.scale]
    for leaf in leaves:
        leaf.requires_grad_()
    q = dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    p = dist.Normal(p.base_dist.loc, p.base_dist.scale).to_event(1)
    ours = torch.autograd.grad(closed_form_kl(q, p).sum(), leaves)
    same = dist.MultivariateNormal(leaves[2], scale_tril=leaves[3].diag_embed())
    theirs = torch.autograd.grad(kl_divergence(q, same).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.tril() if a.dim() == 3 else a, b.tril() if b.dim() == 3 else b)


@pytest.mark.parametrize(
    ("q_shape", "p_shape", "wanted"),
    [((4,), (), (4,)), ((), (4,), (4,)), ((5, 4), (4,), (5, 4)), ((4,), (5, 1), (5, 4)), ((), (), ())],
)
def test_batch_shapes_broadcast(q_shape: tuple[int, ...], p_shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    q = dist.MultivariateNormal(torch.zeros(D), torch.eye(D)).expand(q_shape)
    p = dist.Normal(torch.zeros(D), torch.ones(D)).expand([*p_shape, D]).to_event(1)
    kl = closed_form_kl(q, p)
    assert kl is not None
    assert kl.shape == wanted
    torch.testing.assert_close(kl, torch.zeros(wanted))


def test_torchs_own_table_is_used_where_it_has_the_pair() -> None:
    q, p = diagonal(), diagonal()
    torch.testing.assert_close(closed_form_kl(q, p), kl_divergence(q, p))
    assert closed_form_kl(full(), full()) is not None


def test_none_where_nobody_knows() -> None:
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, D), 1.0).to_event(1))
    assert closed_form_kl(mixture, dist.Normal(torch.zeros(D), 1.0).to_event(1)) is None
    matrix = dist.Normal(torch.zeros(D, D), 1.0).to_event(2)
    assert closed_form_kl(dist.StudentT(4.0), dist.Normal(0.0, 1.0)) is None
    assert closed_form_kl(matrix, matrix) is not None


def test_torchs_table_is_left_alone() -> None:
    """An entry there would change what Pyro's TraceMeanField_ELBO computes, for everybody in the process."""
    closed_form_kl(full(), diagonal())
    assert not [f for f in _KL_REGISTRY.values() if f.__module__.startswith("ppl_vae")]
    with pytest.raises(NotImplementedError):
        kl_divergence(full(), diagonal())
