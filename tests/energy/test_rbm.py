"""The restricted Boltzmann machine against sums over all of its states."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from resumption import check_resumption
from torch import Tensor

from ppl_vae import ELBO, Batch, CompiledSVI
from ppl_vae.energy import RBM, ContrastiveDivergence, NoLatents, log_partition_ais
from ppl_vae.energy.rbm import binary_states
from ppl_vae.errors import InputError

V, H = 5, 4


def machine(visible: int = V, hidden: int = H, scale: float = 0.8, seed: int = 0) -> RBM:
    torch.manual_seed(seed)
    model = RBM(visible, hidden, scale=scale).double()
    with torch.no_grad():
        model.visible_bias.normal_(0, 0.5)
        model.hidden_bias.normal_(0, 0.5)
    return model


def table(model: RBM) -> Tensor:
    """p(v, h) of all states, (2^V, 2^H)."""
    v, h = binary_states(model.visible).double(), binary_states(model.hidden).double()
    energies = model.energy(v.unsqueeze(1), h)
    return (-energies).flatten().softmax(0).reshape(energies.shape)


def kernel(model: RBM) -> Tensor:
    """One sweep's transition probabilities among the states of v, (2^V, 2^V)."""
    p = table(model)
    return (p / p.sum(1, keepdim=True)) @ (p / p.sum(0, keepdim=True)).T


def flat(tensors: object) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])  # type: ignore[attr-defined]


@pytest.mark.parametrize(("visible", "hidden"), [(5, 4), (3, 6)])
def test_energies_normalizer_and_conditionals_are_the_tables(visible: int, hidden: int) -> None:
    model = machine(visible, hidden)
    v, h = binary_states(visible).double(), binary_states(hidden).double()
    p, energies = table(model), model.energy(v.unsqueeze(1), h)
    torch.testing.assert_close(model.log_partition(), (-energies).flatten().logsumexp(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(model.log_prob(v).exp(), p.sum(1), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(model.free_energy(v), -(-energies).logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.hidden_logits(v).sigmoid(), (p @ h) / p.sum(1, keepdim=True))
    torch.testing.assert_close(model.visible_logits(h).sigmoid(), (p.T @ v) / p.sum(0).unsqueeze(1))


def test_the_elbo_is_the_likelihood_and_its_gradient_that_of_the_table() -> None:
    """∇ log p has E_data[v h] - E_model[v h] in it."""
    model = machine()
    x = binary_states(V).double()[[1, 7, 7, 20]]
    terms = ELBO().terms(model, NoLatents(), Batch(x=x))
    torch.testing.assert_close(terms.logs["elbo"], model.log_prob(x).detach())
    terms.loss.mean().backward()
    p, v, h = table(model), binary_states(V).double(), binary_states(H).double()
    hidden = model.hidden_logits(x).sigmoid()
    weight = model.weight.grad
    assert weight is not None
    torch.testing.assert_close(-weight, (x.T @ hidden / 4 - v.T @ p @ h).detach(), rtol=1e-9, atol=1e-12)
    assert model.visible_bias.grad is not None
    torch.testing.assert_close(-model.visible_bias.grad, (x.mean(0) - p.sum(1) @ v).detach(), rtol=1e-9, atol=1e-12)


def test_a_sweep_is_the_kernel_that_keeps_p() -> None:
    """Frequencies after one sweep from one state, 40,000 times: chi-square of 31 degrees of freedom, false-alarm rate
    1e-6."""
    model = machine()
    t, p = kernel(model), table(model).sum(1)
    torch.testing.assert_close(p @ t, p, rtol=1e-10, atol=1e-14)
    torch.manual_seed(1)
    n, start = 40_000, 13
    reached = model.gibbs(binary_states(V).double()[start].expand(n, -1))
    counts = torch.bincount((reached @ (2.0 ** torch.arange(V).double())).long(), minlength=1 << V).double()
    expected = n * t[start].detach()
    assert ((counts - expected).square() / expected).sum() < 92.3


def exact_step(model: RBM, x: Tensor, sweeps: int) -> Tensor:
    """The mean gradient of CD-k, by the table."""
    v = binary_states(V).double()
    start = torch.zeros(1 << V, dtype=torch.float64)
    start.index_add_(0, (x @ (2.0 ** torch.arange(V).double())).long(), torch.full((len(x),), 1 / len(x)).double())
    reached = start @ torch.linalg.matrix_power(kernel(model), sweeps).detach()
    free = model.free_energy(v)
    return flat(torch.autograd.grad(((start - reached) * free).sum(), list(model.parameters())))


@pytest.mark.parametrize("sweeps", [1, 3])
def test_contrastive_divergence_has_the_gradient_of_its_table(sweeps: int) -> None:
    """The mean of 20,000 gradients of one datum, each element within 5 standard errors (29 elements: false-alarm rate
    below 2e-5)."""
    model = machine()
    x = binary_states(V).double()[[1, 7, 7, 20]]
    loss = ContrastiveDivergence(sweeps)
    torch.manual_seed(2)
    v = x.repeat(20_000, 1)
    reached = model.gibbs(v, sweeps)
    # per draw: the gradient of F by W is -v σ, by b -v, by c -σ
    grads = [
        torch.cat(
            [
                torch.einsum("nv,nh->nvh", u, model.hidden_logits(u).sigmoid()).flatten(1),
                u,
                model.hidden_logits(u).sigmoid(),
            ],
            1,
        )
        for u in (v, reached)
    ]
    each = (grads[1] - grads[0]).detach().reshape(20_000, 4, -1).mean(1)
    expected = exact_step(model, x, sweeps)
    assert ((each.mean(0) - expected).abs() < 5 * each.std(0) / 20_000**0.5 + 1e-12).all()
    # and the objective's own gradient is that of equal draws
    torch.manual_seed(3)
    terms = loss.terms(model, NoLatents(), Batch(x=v[:4000]))
    ours = flat(torch.autograd.grad(terms.loss.mean(), list(model.parameters())))
    assert (ours - expected).norm() < 0.05 * expected.norm() + 5 * (each.var(0).sum() / 1000).sqrt()
    torch.manual_seed(3)
    again = model.gibbs(v[:4000], sweeps)
    direct = model.free_energy(v[:4000]).mean() - model.free_energy(again).mean()
    torch.testing.assert_close(terms.loss.mean(), direct)


def test_the_bias_falls_with_the_sweeps() -> None:
    model = machine()
    x = binary_states(V).double()[[1, 7, 7, 20]]
    likelihood = flat(torch.autograd.grad(-model.log_prob(x).mean(), list(model.parameters())))
    bias = [float((exact_step(model, x, k) - likelihood).norm()) for k in (1, 2, 4, 8, 16, 64)]
    assert all(b < 0.8 * a for a, b in pairwise(bias))
    assert bias[-1] < 1e-3 * bias[0]


def test_persistent_chains_climb_as_the_likelihood_does() -> None:
    """Four patterns with unequal weights, equal starts and steps: PCD ends within 0.03 nat of maximum likelihood by the
    exact gradient; CD-1 more than 0.05 nat below."""
    x = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [1, 0, 1, 0, 1]]).float()
    data = x.repeat_interleave(torch.tensor([4, 2, 1, 1]), 0)
    reached = []
    for loss in (ELBO(), ContrastiveDivergence(1, 200, V), ContrastiveDivergence(1)):
        torch.manual_seed(0)
        model = RBM(V, 6, loc=data.mean(0), scale=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(500):
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 500)
            optimizer.zero_grad()
            loss.terms(model, NoLatents(), Batch(x=data.repeat(4, 1))).loss.mean().backward()
            optimizer.step()
        reached.append(float(model.log_prob(data).mean().detach()))
    exact, persistent, short = reached
    assert abs(persistent - exact) < 0.03
    assert short < exact - 0.05


def test_annealing_bounds_the_normalizer_from_both_sides() -> None:
    """Of 40 seeds the bounds with 3 standard errors hold log Z in all but 2 at most (binomial of 0.3%: false-alarm rate
    below 1e-3 for either side), and the mean weight is unbiased within 4 standard errors."""
    model = machine(6, 5, scale=1.2)
    exact = float(model.log_partition().detach())
    states, p = binary_states(6).double(), table(model).sum(1).detach()
    missed, ratios, errors = 0, [], []
    for seed in range(40):
        torch.manual_seed(1000 + seed)
        back = states[torch.multinomial(p, 50, replacement=True)]
        found = log_partition_ais(model, temperatures=60, chains=50, back=back, seed=seed)
        upper = found.upper
        assert upper is not None
        low, high = found.estimate.mean - 3 * found.estimate.se, upper.mean + 3 * upper.se
        missed += not low <= exact <= high
        ratios.append((found.log_w - exact).exp())
        errors.append((found.estimate.mean - exact, found.estimate.se))
    assert missed <= 2
    # the errors are as large as they are said to be: of 40, a chi-square between 14.6 and 85 but for 1e-4
    assert 14.6 < sum((off / se) ** 2 for off, se in errors) < 85
    w = torch.cat(ratios)
    assert abs(w.mean() - 1) < 4 * w.std() / len(w) ** 0.5
    near = log_partition_ais(model, temperatures=2000, chains=50, loc=p @ states, seed=0)
    assert near.estimate.mean == pytest.approx(exact, abs=4 * near.estimate.se + 1e-9)
    assert near.estimate.se < 0.02
    assert near.upper is None
    assert near.ess > 40


@pytest.mark.parametrize("chains", [None, 16])
def test_a_traced_step_is_the_eager_one(chains: int | None) -> None:
    x = (torch.rand(8, V, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    found = []
    for compile in ("graph", False):
        model = machine()
        torch.manual_seed(4)
        loss = ContrastiveDivergence(2, chains, None if chains is None else V).double()
        svi = CompiledSVI(model, NoLatents(), torch.optim.Adam, loss, {"lr": 1e-2}, compile=compile)  # type: ignore[arg-type]
        torch.manual_seed(5)
        losses = torch.stack([svi.step(Batch(x=x)) for _ in range(6)])
        assert svi.report().fallbacks == []
        found.append(torch.cat([losses, flat(p.detach() for p in model.parameters())]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_training_resumes_bit_for_bit_with_its_chains(tmp_path: Path) -> None:
    x = (torch.rand(64, V, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    result = check_resumption(tmp_path, x, lambda: (RBM(V, H), ContrastiveDivergence(2, 16, V)))
    assert math.isnan(result.elbo)
    assert "pseudo_log_likelihood" in result.history[-1]


def test_draws_are_of_the_machine() -> None:
    """First moments of 4,000 chains after 200 sweeps within 5 standard errors, by the program and by `sample`."""
    model = machine()
    p, v = table(model).sum(1).detach(), binary_states(V).double()
    torch.manual_seed(0)
    for drawn in (model.sample(4000, sweeps=200), model(Batch(n=4000)).detach()):
        assert drawn.shape == (4000, V)
        mean = p @ v
        assert ((drawn.mean(0) - mean).abs() < 5 * (mean * (1 - mean) / 4000).sqrt()).all()


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"2\^25 states, of which 2\^20 are summed at most; .*log_partition_ais"):
        RBM(30, 25).log_partition()
    with pytest.raises(InputError, match=r"loc must be 5 means"):
        RBM(V, H, loc=torch.full((V,), 2.0))
    with pytest.raises(InputError, match="go together"):
        ContrastiveDivergence(1, chains=3)
    with pytest.raises(InputError, match="sweeps=0"):
        ContrastiveDivergence(0)
    with pytest.raises(InputError, match="has 3 elements a datum, and the RBM 5"):
        ContrastiveDivergence().terms(machine(), NoLatents(), Batch(x=torch.zeros(2, 3)))
    with pytest.raises(InputError, match="trains an RBM; got a Linear"):
        ContrastiveDivergence().terms(torch.nn.Linear(1, 1), NoLatents(), Batch(x=torch.zeros(2, 3)))
    with pytest.raises(InputError, match="give two draws or more of 5 visible"):
        log_partition_ais(machine(), back=torch.zeros(3, 2))
