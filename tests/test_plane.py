import pyro
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from ppl_vae import Batch, InputError, guides, networks
from ppl_vae.evaluate.plane import is_plane, planes, posterior_draws
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


def oracle() -> LinearGaussian:
    return LinearGaussian(data=4, latent=2, sigma=0.6, seed=7)


def test_the_grid_is_the_exact_posterior() -> None:
    model = oracle()
    guide = LinearGaussianPosterior(model, "diagonal")
    x = model.simulate(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = planes(model, guide, Batch(x=x))
    assert torch.equal(before, torch.get_rng_state())
    exact = model.posterior(x)
    q = guide.distribution(Batch(x=x))["z"]
    for row, plane in enumerate(found):
        z = torch.stack(torch.meshgrid(plane.z1, plane.z2, indexing="ij"), -1)
        assert z.shape == (121, 121, 2)
        p = exact.log_prob(z.unsqueeze(-2)).exp()[..., row]
        # up to what lies off the grid
        torch.testing.assert_close(plane.p, p, rtol=1e-4, atol=1e-4 * p.max().item())
        assert (plane.p.sum() * plane.cell).item() == pytest.approx(1.0, abs=1e-9)
        assert plane.q is not None
        expected = q.log_prob(z.unsqueeze(-2)).exp()[..., row]
        torch.testing.assert_close(plane.q, expected, rtol=1e-10, atol=0)
        assert (plane.q.sum() * plane.cell).item() == pytest.approx(1.0, abs=0.01)  # both fit into the frame
        assert plane.draws.shape == (400, 2)
        # 4 standard errors of a mean of 400: false alarm 1 in 16,000 a coordinate
        assert bool(((plane.draws.mean(0) - q.mean[row]).abs() < 4 * q.variance[row].sqrt() / 20).all())


def test_chains_are_on_the_posterior_too() -> None:
    model = oracle()
    x = model.simulate(3)
    draws = posterior_draws(model, Batch(x=x), 400)
    exact = model.posterior(x)
    assert draws.shape == (400, 3, 2)
    # dots to look at: within what fifty independent draws would give
    assert bool(((draws.mean(0) - exact.mean).abs() < 4 * exact.variance.sqrt() / 7).all())


class Blind(LinearGaussianPosterior):
    """A guide that knows log q of its own draws alone."""

    scores_given = False

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", super().distribution(batch)["z"])}

    def distribution(self, batch: Batch) -> dict[str, TorchDistributionMixin]:
        raise NotImplementedError


@pytest.mark.parametrize("name", ["mixture", "full-rank", "inverse-autoregressive"])
def test_a_density_of_q_in_closed_form_or_by_scoring(name: str) -> None:
    model = oracle().float()
    torch.manual_seed(0)
    guide = guides.guides.get(name)(model, networks.encoder("mlp", (4,), (8,)))  # type: ignore[call-arg]
    (plane,) = planes(model, guide, Batch(x=model.simulate(1)), size=61)
    assert plane.q is not None
    # the frame holds 99 percent of its draws in each coordinate
    assert 0.95 < (plane.q.sum() * plane.cell).item() < 1.01


def test_no_density_where_there_is_none() -> None:
    model = oracle()
    (plane,) = planes(model, Blind(model), Batch(x=model.simulate(1)), size=31, draws=50)
    assert plane.q is None
    assert plane.draws.shape == (50, 2)


def test_only_two_dimensions_are_a_plane() -> None:
    assert is_plane(oracle())
    other = LinearGaussian(latent=3)
    assert not is_plane(other)
    assert not is_plane(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="LinearGaussian has other latents than one site of two real dimensions"):
        planes(other, LinearGaussianPosterior(other), Batch(x=other.simulate(2)))
    with pytest.raises(InputError, match="two real dimensions"):
        posterior_draws(other, Batch(x=other.simulate(2)))
