"""The energy prior: its normalizer, its gradient and its draws against quadrature and Gaussians."""

import copy
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import (
    ELBO,
    IWAE,
    STL,
    Batch,
    InputError,
    Objective,
    Renyi,
    Wake,
    fit,
    guides,
    likelihoods,
    models,
    networks,
)
from ppl_vae.core import Guide
from ppl_vae.evaluate import evaluate, log_marginal, sample
from ppl_vae.langevin import ChainError
from ppl_vae.priors import Energy

SHAPE = (1, 4, 4)


def shaken(size: int = 2, **options: Any) -> Energy:
    """One in float64, well away from N(0, I): log Z = 0.4 or so in the plane."""
    torch.manual_seed(0)
    prior = Energy(size, **{"hidden": 16, "chains": 64, **options}).double()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return prior


class Square(nn.Module):
    """f(z) = a |z|² / 2 makes p(z) = N(0, I / (1 + a)), and Z = (1 + a)^(-d/2)."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * self.a * z.square().sum(-1, keepdim=True)


def square(a: float, size: int, **options: Any) -> Energy:
    prior = Energy(size, **options)
    prior.network = Square(a)  # type: ignore[assignment]
    return prior.double()


def plane(width: float = 9.0, nodes: int = 300) -> tuple[Tensor, float]:
    step = 2 * width / nodes
    line = torch.arange(nodes, dtype=torch.float64).add(0.5).mul(step).sub(width)
    return torch.cartesian_prod(line, line), step**2


def exact_log_z(prior: Energy) -> Tensor:
    z, area = plane()
    return (-prior.energy(z)).logsumexp(0) + math.log(area)


def density(prior: Energy, n: int = 1) -> Any:
    return prior(torch.empty(n, 0, dtype=torch.float64))


def pair(prior: Energy, x: Tensor | None = None) -> tuple[models.VAE, Guide, Batch]:
    torch.manual_seed(1)
    model = models.VAE(
        networks.decoder("mlp", prior.size, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), prior.size, prior
    )
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (8,)))
    x = (torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    return model.double(), guide.double(), Batch(x=x)


def test_log_z_is_that_of_quadrature() -> None:
    prior = shaken().eval()
    truth = float(exact_log_z(prior).detach())
    found = prior.log_partition()
    assert abs(truth) > 0.1
    assert found.estimate.n == 8192
    assert 0 < found.estimate.se < 2e-3
    assert abs(found.estimate.mean - truth) < 4 * found.estimate.se
    z = torch.randn(5, 2, dtype=torch.float64)
    expected = -prior.energy(z) - found.estimate.mean
    torch.testing.assert_close(density(prior, 5).log_prob(z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("a", [-0.3, 1.0])
@pytest.mark.parametrize("size", [1, 5])
def test_log_z_of_a_gaussian_within_its_error_bar(a: float, size: int) -> None:
    found = square(a, size).log_partition()
    truth = -0.5 * size * math.log1p(a)
    # 8 independent sets: Student's t of 7 degrees lies beyond 6.4 in 4 of 10,000
    assert abs(found.estimate.mean - truth) < 6.4 * found.estimate.se
    assert found.estimate.se < 0.01
    assert 0 < found.ess < 8192


def test_the_error_of_log_z_is_the_spread_over_scrambles() -> None:
    """(estimate - log Z) / se over 30 priors of other points: Σ t² within the 1e-4 quantiles of simulated t of 7
    degrees."""
    sums = 0.0
    for seed in range(30):
        prior = square(0.5, 3, points=1024)
        torch.manual_seed(seed)
        sets = [torch.quasirandom.SobolEngine(3, scramble=True, seed=1000 + 8 * seed + r) for r in range(8)]
        prior.base = torch.stack([torch.special.ndtri(s.draw(128, dtype=torch.float64)) for s in sets])
        found = prior.log_partition().estimate
        sums += ((found.mean + 1.5 * math.log(1.5)) / found.se) ** 2
    assert 12 < sums < 130


def test_the_chains_gradient_is_that_of_log_z() -> None:
    prior = shaken(chains=256, steps=5, renew=0.0)
    exact = torch.autograd.grad(exact_log_z(prior), list(prior.parameters()))
    torch.manual_seed(2)
    for _ in range(20):
        density(prior).log_prob(torch.zeros(1, 2, dtype=torch.float64))
    # means of 30 stretches of 10 steps, nearly independent: 4 standard errors, t of 29 degrees, over some 350 numbers,
    # is a false alarm in 1 of 7 seeds; 5.5 in 1 of 500
    stretches = []
    for _ in range(30):
        total: list[Tensor] | None = None
        for _ in range(10):
            loss = -density(prior).log_prob(torch.zeros(1, 2, dtype=torch.float64)).sum()
            loss = loss - prior.energy(torch.zeros(1, 2, dtype=torch.float64)).sum()
            found = torch.autograd.grad(loss, list(prior.parameters()))
            total = (
                [f / 10 for f in found] if total is None else [t + f / 10 for t, f in zip(total, found, strict=True)]
            )
        assert total is not None
        stretches.append(torch.cat([t.flatten() for t in total]))
    each = torch.stack(stretches)
    truth = torch.cat([e.flatten() for e in exact])
    error = each.std(0) / math.sqrt(30)
    assert bool(((each.mean(0) - truth).abs() < 5.5 * error + 1e-12).all())
    # and is small beside the gradient itself
    assert error.norm() < 0.1 * truth.norm()


@pytest.mark.parametrize(
    "objective", [ELBO(), ELBO(particles=3), IWAE(3), STL(3), Renyi(0.5, particles=3), Wake(3)], ids=repr
)
def test_the_normalizer_counts_once_a_datum(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log Z that is a parameter the loss has the slope 1 for each of 6 data, whatever the objective."""
    model, guide, batch = pair(shaken())
    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(Energy, "_log_z", lambda self: log_z)
    loss = objective.differentiable_loss(model, guide, batch)
    (slope,) = torch.autograd.grad(loss, log_z)
    assert slope.item() == pytest.approx(6.0, rel=1e-9)


def test_outside_of_training_the_gradient_is_the_estimates_own() -> None:
    prior = shaken().eval()
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(density(prior, 4).log_prob(z).sum(), [z, *prior.parameters()])
    log_w = -prior.tilt(prior.base).flatten()
    plain = (-prior.energy(z) - (log_w.logsumexp(0) - math.log(log_w.numel()))).sum()
    for ours, theirs in zip(found, torch.autograd.grad(plain, [z, *prior.parameters()]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_log_z_is_never_out_of_date() -> None:
    prior = shaken().eval()
    z = torch.zeros(1, 2, dtype=torch.float64)
    first = density(prior).log_prob(z)
    assert torch.equal(first, density(prior).log_prob(z))
    other = copy.deepcopy(prior)
    with torch.no_grad():
        prior.network[0].weight.data *= -1.3  # type: ignore[operator,union-attr]  # unseen by version counters
    torch.testing.assert_close(
        density(prior).log_prob(z), -prior.energy(z) - prior.log_partition().estimate.mean, rtol=0, atol=1e-12
    )
    prior.load_state_dict(other.state_dict())
    assert torch.equal(density(prior).log_prob(z), first)


class Exact(Guide):
    """p(z | x) of x = W z + N(0, σ² I) under z ~ N(0, v I), widened."""

    def __init__(self, weight: Tensor, sigma: float, v: float, widen: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.sigma, self.v, self.widen = sigma, v, widen

    weight: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.x is not None
        w = self.weight
        precision = torch.eye(w.shape[1]).to(w) / self.v + w.T @ w / self.sigma**2
        mean = torch.linalg.solve(precision, w.T @ batch.x.T / self.sigma**2).T
        q = dist.MultivariateNormal(mean, precision_matrix=precision / self.widen**2)
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", q)}


class Times(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    weight: Tensor

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T).unsqueeze(-2)


def test_log_p_x_is_exact_up_to_the_error_of_log_z() -> None:
    a, sigma = 0.75, 0.75  # of which single precision holds every digit
    weight = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    model = models.VAE(Times(weight), likelihoods.Gaussian((4,), sigma), 2, square(a, 2)).double()
    v = 1 / (1 + a)
    evidence = dist.MultivariateNormal(
        torch.zeros(4, dtype=torch.float64), v * weight @ weight.T + sigma**2 * torch.eye(4, dtype=torch.float64)
    )
    x = evidence.sample((30,))
    truth = evidence.log_prob(x)
    result = evaluate(model, Exact(weight, sigma, v, 1.0), x, particles=20, seed=0)
    assert result.log_z is not None
    # under the posterior every weight is p(x), and what is off is log Z, for all data alike
    off = result.log_marginal.log_px - truth
    torch.testing.assert_close(off, off[:1].expand(30), rtol=0, atol=1e-9)
    assert abs(off[0].item()) < 6.4 * result.log_z.se
    assert result.to_json()["log_z"]["se"] == result.log_z.se
    found = log_marginal(model, Exact(weight, sigma, v, 1.3), x, particles=4000, seed=0)
    assert bool(((found.log_px - truth).abs() < 4 * found.se + 6.4 * result.log_z.se).all())


def test_generation_draws_from_it() -> None:
    """Moments of 4,000 draws of a Gaussian within 4 standard errors: a false alarm in 1 of 4,000."""
    prior = square(3.0, 2, draw_steps=60)
    model, _, _ = pair(prior)
    torch.manual_seed(0)
    z = density(prior, 4000).sample()
    variance = z.var(0)
    assert bool(((variance - 0.25).abs() < 4 * 0.25 * math.sqrt(2 / 4000)).all())
    assert bool((z.mean(0).abs() < 4 * 0.5 / math.sqrt(4000)).all())
    assert torch.equal(sample(model, 3, seed=1).draw, sample(model, 3, seed=1).draw)


def test_chains_go_on_and_are_saved(tmp_path: Path) -> None:
    x = pair(shaken())[2].x
    assert x is not None
    data = x.float().repeat(8, 1, 1, 1)

    def trained(name: str, epochs: int, resume: bool = False) -> Any:
        torch.manual_seed(0)
        prior = Energy(2, hidden=8, chains=8, steps=2, points=64)
        model, guide, _ = pair(prior)
        options = {"epochs": epochs, "batch_size": 16, "run_dir": tmp_path / name, "resume": resume}
        return fit(model.float(), guide.float(), data, progress=False, **options)

    whole = trained("whole", 4)
    trained("parts", 2)
    again = trained("parts", 4, resume=True)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert bool(whole.model.prior.begun)


def test_chains_that_stand_still_end_the_run() -> None:
    prior = square(0.0, 2, step_size=50.0, chains=32)
    z = torch.zeros(1, 2, dtype=torch.float64)
    torch.manual_seed(0)
    for _ in range(60):
        density(prior).log_prob(z)
    with pytest.raises(
        ChainError, match=r"step_size=50: .*%.* stood still; at N\(0, I\), steps of 1 or less are stable"
    ):
        density(prior.eval()).log_prob(z)


def test_few_effective_points_are_told() -> None:
    prior = square(60.0, 8).eval()
    with pytest.warns(UserWarning, match=r"rests on \d+ effective points of 8192"):
        density(prior).log_prob(torch.zeros(1, 8, dtype=torch.float64))


def test_without_points_log_p_is_refused_but_trained() -> None:
    model, guide, batch = pair(shaken(points=0))
    loss = ELBO().differentiable_loss(model, guide, batch)
    loss.backward()
    assert all(p.grad is not None for p in model.prior.parameters())  # type: ignore[union-attr]
    model.eval()
    for use in (lambda: log_marginal(model, guide, batch, particles=5), model.prior.log_partition):  # type: ignore[union-attr]
        with pytest.raises(InputError, match="asks for the normalizer, and this energy prior has points=0"):
            use()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step_size": 0.0}, "step_size=0.0 must be a number above 0"),
        ({"renew": 1.5}, "renew=1.5 is a share of the chains"),
        ({"points": 5}, "points=5 leaves fewer than two"),
        ({"chains": 0}, "chains=0"),
        ({"steps": 0}, "steps=0"),
        ({"draw_steps": 0}, "draw_steps=0"),
        ({"hidden": -1}, "hidden=-1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Energy(2, **options)
