"""Neural energies: normalizers and chains against closed forms, a density against quadrature."""

import math
from pathlib import Path

import pytest
import torch
from resumption import check_resumption
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ppl_vae import Batch, CompiledSVI, fit
from ppl_vae.energy import ChainError, EnergyModel, LangevinLikelihood, NoLatents, langevin
from ppl_vae.errors import InputError, NonFiniteLossError
from ppl_vae.langevin import stable_step


class Bowl(nn.Module):
    """f(x) = ½ a |x|²: under N(0, s² I) the model is N(0, I / (a + s⁻²)) and Z = (1 + a s²)^(-D/2)."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.a * x.square().flatten(1).sum(-1, keepdim=True)


def net(width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2)])
def test_normalizer_and_density_of_a_gaussian(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    model = EnergyModel(Bowl(0.7), shape, scale=1.5)
    exact = -0.5 * size * math.log1p(0.7 * 1.5**2)
    assert float(model.log_partition_quadrature().detach()) == pytest.approx(exact, abs=1e-9)
    found = model.log_partition(20_000, seed=0)
    assert found.estimate.mean == pytest.approx(exact, abs=4 * found.estimate.se)
    model.normalize(seed=0)
    x = torch.randn(3, 4, *shape, dtype=torch.float64)
    truth = Normal(0.0, (0.7 + 1.5**-2) ** -0.5).log_prob(x).flatten(2).sum(-1)
    torch.testing.assert_close(model.log_prob(x).detach(), truth, rtol=1e-6, atol=1e-6)
    trace_x = model(Batch(x=x[0])).detach()
    assert torch.equal(trace_x, x[0])


def test_a_normalizer_of_more_dimensions_has_an_error_bar() -> None:
    model = EnergyModel(Bowl(0.3), (8,))
    found = model.normalize(20_000, seed=0)
    assert found.estimate.mean == pytest.approx(-4 * math.log(1.3), abs=4 * found.estimate.se)
    assert float(model.log_z) == pytest.approx(found.estimate.mean)
    # E[w]² / E[w²] of the Gaussian's tilt: (1 + 2a)^(D/2) / (1 + a)^D
    assert found.ess / 20_000 == pytest.approx(1.6**4 / 1.3**8, rel=0.1)


@pytest.mark.parametrize("adjust", [True, False])
def test_chains_keep_what_they_are_said_to_keep(adjust: bool) -> None:
    """E = ½ x²: adjusted chains keep variance 1; unadjusted ones 1 / (1 - ε²/4), 1.33 for ε = 1. 20,000 independent
    chains, 5 standard errors: false-alarm rate 6e-7."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 1, dtype=torch.float64)
    found = langevin(lambda q: 0.5 * q.square().sum(-1), x, 1, 40, 1.0, adjust=adjust)
    variance = 1.0 if adjust else 1 / (1 - 0.25)
    assert float(found.x.var()) == pytest.approx(variance, abs=5 * variance * (2 / 20_000) ** 0.5)
    assert abs(float(found.x.mean())) < 5 * (variance / 20_000) ** 0.5
    assert (0.8 < float(found.acceptance) < 0.99) if adjust else float(found.acceptance) == 1.0


def test_an_unadjusted_step_is_the_formula() -> None:
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.manual_seed(3)
    found = langevin(lambda q: q.pow(4).flatten(1).sum(-1), x, 2, 1, 0.1, adjust=False, noise=0.5).x
    torch.manual_seed(3)
    torch.testing.assert_close(found, x - 0.005 * 4 * x**3 + 0.05 * torch.randn_like(x), rtol=1e-12, atol=1e-12)


def test_a_chain_that_runs_away_names_a_step_that_would_not() -> None:
    """Curvature 100: unadjusted steps above 2 / √100 run away, and √(1/100) is advised."""

    def energy(x: Tensor) -> Tensor:
        return 50.0 * x.square().sum(-1)

    x = torch.ones(4, 2, dtype=torch.float64)
    assert stable_step(energy, x) == pytest.approx(0.1, rel=1e-6)
    with pytest.raises(ChainError, match=r"step_size=3: 4 of 4 chains ran away .* steps of 0.1 or less are stable"):
        langevin(energy, x, 1, 400, 3.0, adjust=False)


MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.5]])
MIXTURE = MixtureSameFamily(
    Categorical(torch.tensor([0.5, 0.3, 0.2])), Independent(Normal(MEANS, 0.5 * torch.ones(3, 2)), 1)
)


def divergence(model: EnergyModel) -> float:
    """KL(mixture ‖ model), nats, by the midpoint rule."""
    with torch.no_grad():
        model.normalize(seed=0)
        grid, log_cell = model.grid(300, 4.0)
        log_p = MIXTURE.log_prob(grid)
        return float((log_p.exp() * (log_p - model.log_prob(grid))).sum()) * math.exp(log_cell)


def test_a_density_of_two_dimensions_is_learned() -> None:
    """A mixture of three Gaussians, to 0.05 nat."""
    torch.manual_seed(0)
    model = EnergyModel(net(), (2,), scale=2.0)
    before = divergence(model)
    loss = LangevinLikelihood(256, (2,), steps=10, step_size=0.5)
    data, optimizer = MIXTURE.sample((20_000,)), torch.optim.Adam(model.parameters())
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 600)
        optimizer.zero_grad()
        terms = loss.terms(model, NoLatents(), Batch(x=data[torch.randint(len(data), (512,))]))
        terms.loss.mean().backward()
        optimizer.step()
    after = divergence(model)
    assert before > 0.5
    assert 0 <= after < 0.05
    found = model.log_partition(20_000, seed=1)
    assert found.estimate.mean == pytest.approx(float(model.log_z), abs=4 * found.estimate.se)


def test_the_loss_is_the_difference_of_energies() -> None:
    model = EnergyModel(net(8).double(), (2,))
    loss = LangevinLikelihood(16, (2,), steps=3, renew=0.5, penalty=0.1).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    terms = loss.terms(model, NoLatents(), Batch(x=x))
    state = loss.state.clone()
    f, g = model.tilt(x), model.tilt(state)
    expected = model.energy(x) - model.energy(state).mean() + 0.1 * (f.square() + g.square().mean())
    torch.testing.assert_close(terms.loss, expected)
    # in evaluation mode the chains stand still
    loss.eval()
    loss.terms(model, NoLatents(), Batch(x=x))
    assert torch.equal(loss.state, state)


@pytest.mark.parametrize("adjust", [True, False])
def test_a_traced_step_is_the_eager_one(adjust: bool) -> None:
    x, found = torch.randn(8, 2, dtype=torch.float64), []
    for compile in ("graph", False):
        torch.manual_seed(0)
        model = EnergyModel(net(8).double(), (2,))
        loss = LangevinLikelihood(16, (2,), steps=3, adjust=adjust).double()
        svi = CompiledSVI(model, NoLatents(), torch.optim.Adam, loss, {"lr": 1e-2}, compile=compile)  # type: ignore[arg-type]
        torch.manual_seed(5)
        losses = torch.stack([svi.step(Batch(x=x)) for _ in range(5)])
        assert svi.report().fallbacks == []
        found.append(torch.cat([losses, loss.state.flatten(), *(p.detach().flatten() for p in model.parameters())]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)


def test_training_resumes_bit_for_bit_with_its_chains(tmp_path: Path) -> None:
    check_resumption(
        tmp_path, MIXTURE.sample((64,)), lambda: (EnergyModel(net(8), (2,)), LangevinLikelihood(16, (2,), steps=3))
    )


def test_a_run_whose_chains_run_away_stops_and_says_so() -> None:
    model = EnergyModel(Bowl(99.0), (2,))
    loss = LangevinLikelihood(16, (2,), steps=300, step_size=3.0, adjust=False).double()
    with pytest.raises(NonFiniteLossError, match=r"Langevin chains, which ran away with step_size=3; .* 0\.1 or less"):
        fit(model, NoLatents(), torch.randn(32, 2).double(), loss, epochs=1, batch_size=16, progress=False)


def test_draws_are_of_the_model() -> None:
    torch.manual_seed(0)
    model = EnergyModel(Bowl(3.0), (2,))
    x = model(Batch(n=4000)).detach()
    assert x.shape == (4000, 2)
    assert float(x.var()) == pytest.approx(0.25, abs=5 * 0.25 * (2 / 8000) ** 0.5)


def test_bad_input() -> None:
    model = EnergyModel(net(4), (2,))
    with pytest.raises(InputError, match=r"asks for the normalizer, .* call normalize\(\)"):
        model.log_prob(torch.zeros(3, 2))
    with pytest.raises(InputError, match="scale=0"):
        EnergyModel(net(4), (2,), scale=0)
    with pytest.raises(InputError, match="quadrature is over one or two numbers, and x has 3"):
        EnergyModel(Bowl(1.0), (3,)).log_partition_quadrature()
    with pytest.raises(InputError, match="the network makes"):
        EnergyModel(nn.Linear(2, 3), (2,)).energy(torch.zeros(4, 2))
    with pytest.raises(InputError, match=r"noise=0.5 is of unadjusted chains"):
        LangevinLikelihood(4, (2,), noise=0.5)
    with pytest.raises(InputError, match=r"renew=1.5"):
        LangevinLikelihood(4, (2,), renew=1.5)
    with pytest.raises(InputError, match=r"batch.x is \(3,\) a datum"):
        LangevinLikelihood(4, (2,)).terms(model, NoLatents(), Batch(x=torch.zeros(2, 3)))
    with pytest.raises(InputError, match="trains an EnergyModel; got a Linear"):
        LangevinLikelihood(4, (2,)).terms(nn.Linear(1, 1), NoLatents(), Batch(x=torch.zeros(2, 3)))
