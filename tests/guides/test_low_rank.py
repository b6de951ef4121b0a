"""The low-rank guide: its covariance, its closed-form KL, and what a rank can hold."""

import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, TwoLayer, binary_batch, vae
from torch.distributions import kl_divergence

from ppl_vae import ELBO, Batch, InputError, guides, networks
from ppl_vae.kl import closed_form_kl
from ppl_vae.testing import check_guide


def guide_of(rank: int, latent: int = 3) -> guides.LowRank:
    return guides.LowRank(vae(latent), networks.encoder("mlp", SHAPE, (9,)), rank).double()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_contract(rank: int) -> None:
    model = vae()
    guide = guides.LowRank(model, networks.encoder("mlp", SHAPE, (9,)), rank).double()
    check_guide(guide, model, binary_batch())


def test_the_covariance_is_the_diagonal_and_what_the_rank_adds() -> None:
    guide, batch = guide_of(2, latent=5), binary_batch()
    q = guide.distribution(batch)["z"]
    assert isinstance(q, dist.LowRankMultivariateNormal)
    loc, raw, factor = guide.heads["z"].linear(guide.encoder(batch)).split([5, 5, 10], dim=-1)
    s = networks.soft_bound(raw).exp()
    u = factor.unflatten(-1, (5, 2))
    wanted = s.unsqueeze(-1) * (torch.eye(5).double() + u @ u.mT) * s.unsqueeze(-2)
    torch.testing.assert_close(q.covariance_matrix, wanted)
    torch.testing.assert_close(q.mean, loc)


def test_elbo_takes_its_kl_in_closed_form() -> None:
    """Equal, at draws that differ, to KL(q ‖ p) between dense Gaussians."""
    model, batch = vae(), binary_batch()
    guide = guides.LowRank(model, networks.encoder("mlp", SHAPE, (9,)), 2).double()
    q = guide.distribution(batch)["z"]
    dense = dist.MultivariateNormal(q.mean, q.covariance_matrix)
    prior = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    for kl in ("auto", "analytic"):
        logged = ELBO(kl=kl).terms(model, guide, batch).logs["kl"]
        torch.testing.assert_close(logged, kl_divergence(dense, prior).detach(), rtol=1e-10, atol=1e-10)


def test_single_precision_holds_for_narrow_correlated_posteriors() -> None:
    """In units of s, the small matrix that is inverted does not know of scales of e⁻⁶."""
    guide, batch = guide_of(2, latent=5), binary_batch()
    head = guide.heads["z"]
    with torch.no_grad():
        head.linear.linear.bias[5:10] -= 6.0
        head.linear.linear.bias[10:] *= 10.0
    single = guides.LowRank(vae(5, torch.float32), networks.encoder("mlp", SHAPE, (9,)), 2)
    single.load_state_dict({k: v.float() for k, v in guide.state_dict().items()})
    q = guide.distribution(batch)["z"]
    ours = single.distribution(Batch(x=batch.x.float()))["z"]
    z = q.rsample()
    noise = (z - q.mean) / q.stddev
    prior = dist.Normal(torch.zeros(5), torch.ones(5)).to_event(1)
    exact = closed_form_kl(q, dist.Normal(torch.zeros(5).double(), torch.ones(5).double()).to_event(1))
    torch.testing.assert_close(closed_form_kl(ours, prior).double(), exact, rtol=1e-4, atol=1e-3)
    log_q = ours.log_prob(ours.mean + ours.stddev * noise.float())
    torch.testing.assert_close(log_q.double(), q.log_prob(z), rtol=1e-3, atol=1e-2)


def test_outputs_grow_with_the_rank() -> None:
    sizes = [sum(p.numel() for p in guide_of(rank, latent=6).heads.parameters()) for rank in (1, 2, 4)]
    assert sizes == [(9 + 1) * (2 + rank) * 6 for rank in (1, 2, 4)]


def test_sites_stay_independent() -> None:
    guide = guides.LowRank(TwoLayer(), networks.encoder("mlp", SHAPE, (9,)), 2).double()
    q = guide.distribution(binary_batch())
    assert {name: tuple(site.event_shape) for name, site in q.items()} == {"z2": (2,), "z1": (3,)}


def test_a_rank_above_every_sites_size_is_refused() -> None:
    for latent, rank in ((3, 3), (1, 2), (1, 1)):  # the default serves sites of one dimension too
        guide_of(rank, latent)
    with pytest.raises(InputError, match="rank=4 is more than the 3 dimensions of VAE's latents: from 2 on every cov"):
        guide_of(4)
    guides.LowRank(TwoLayer(), networks.encoder("mlp", SHAPE, (9,)), 3)  # sites of 2 and of 3 numbers


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "2"])
def test_a_rank_is_a_whole_number(rank: object) -> None:
    with pytest.raises(InputError, match=f"rank={rank!r} must be a whole number, 1 or more"):
        guides.LowRank(vae(), networks.encoder("mlp", SHAPE, (9,)), rank)  # type: ignore[arg-type]
