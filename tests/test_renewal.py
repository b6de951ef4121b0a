import pytest
import torch

from ppl_vae import ELBO, IWAE, InputError, guides
from ppl_vae.data import DataSet
from ppl_vae.evaluate import elbo
from ppl_vae.renewal import frozen, is_local, renewed
from ppl_vae.testing import LinearGaussian


def test_fresh_parameters_reach_the_best_of_their_family() -> None:
    """Without an encoder the full-rank optimum is the posterior itself, and the diagonal one's gap is known."""
    model = LinearGaussian(data=4, latent=2, sigma=0.6, seed=7, dtype=torch.float32)
    scale = torch.nn.Parameter(torch.ones(()))
    model.register_parameter("unused", scale)
    data = DataSet.from_arrays(model.simulate(40), name="simulated")
    for family, gap in (("full-rank", 0.0), ("mean-field", model.mean_field_gap())):  # the second 0.35
        trained = guides.Local(model, 7, family)  # type: ignore[arg-type]
        before = {name: t.clone() for name, t in (model.state_dict() | trained.state_dict()).items()}
        torch.manual_seed(3)
        state = torch.get_rng_state()
        fresh = renewed(model, trained, data, lambda: ELBO(particles=4), updates=400)
        assert torch.equal(state, torch.get_rng_state())
        assert fresh.size == 40
        assert all(torch.equal(t, before[name]) for name, t in (model.state_dict() | trained.state_dict()).items())
        assert scale.requires_grad
        found = elbo(model, fresh, data, particles=400, seed=0)
        assert data.x.dtype == torch.float32
        distance = (model.log_marginal(data.x).double() - found.elbo).mean().item()
        assert distance == pytest.approx(gap, abs=0.02)


def test_elsewhere_other_data_are_refused() -> None:
    model = LinearGaussian(dtype=torch.float32)
    data = DataSet.from_arrays(model.simulate(10), name="simulated")
    guide = guides.Local(model, 10)
    elbo(model, guide, data)
    elbo(model, guide, data.batch(torch.tensor([3, 7])))
    other = data.take(range(4))
    with pytest.raises(InputError, match=r"Local has parameters for each of the 10 data.*has 4: fit fresh ones"):
        elbo(model, guide, other)
    with pytest.raises(InputError, match="has no rows"):
        elbo(model, guide, other.x)


def test_other_guides_are_as_they_are() -> None:
    model = LinearGaussian(dtype=torch.float32)
    guide = torch.nn.Linear(1, 1)
    assert not is_local(guide)
    assert renewed(model, guide, None) is guide  # type: ignore[arg-type]


def test_an_objective_of_its_own_and_what_is_shown() -> None:
    model = LinearGaussian(dtype=torch.float32)
    data = DataSet.from_arrays(model.simulate(10), name="simulated")
    shown = []

    def show(epochs: int) -> dict[str, bool]:
        shown.append(epochs)
        return {"progress": False}

    fresh = renewed(model, guides.Local(model, 3), data, lambda: IWAE(3), updates=4, batch_size=4, lr=0.1, shown=show)
    assert is_local(fresh)
    assert shown == [4]


def test_a_frozen_model_is_afterwards_as_it_was() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    module[1].eval()
    running = module[1].running_mean.clone()
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        module.train()
        module(torch.randn(5, 2))
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
    assert torch.equal(module[1].running_mean, running)
    assert [module.training, module[1].training] == [True, False]
