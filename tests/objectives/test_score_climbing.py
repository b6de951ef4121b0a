"""Score climbing: the chain keeps the posterior, gradients along it are exact on average, its state is saved."""

import copy
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from forward import Classes, Learnable, chance, classes, gradients, optimum, oracle
from programs import CLASSES, ClassGuide, SemiSupervised, binary_batch, guide_for, pair, vae
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from trained import QUIET, N, data
from trained import pair as small_pair

from ppl_vae import Batch, CompiledSVI, LatentSpec, Objective, guides, networks
from ppl_vae.fit import fit
from ppl_vae.objectives import ScoreClimbing, TransportScoreClimbing, Wake
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior, check_compiled, check_objective

ROWS = torch.tensor([4, 0, 3, 6, 1])


@pytest.mark.parametrize("name", ["mean-field", "conditional", "bottom-up", "top-down", "class", "mixture"])
def test_contract(name: str) -> None:
    model, guide, batch = pair(name)
    check_objective(ScoreClimbing(model, 7, 3), model, guide, batch._replace(rows=ROWS))


def at_posterior(objective: Objective, model: LinearGaussian, batch: Batch) -> Objective:
    """With its chains at exact draws."""
    objective = objective.double()
    with torch.no_grad():
        z = model.posterior(batch.x).sample((objective.chains.at_z.shape[1],))  # type: ignore[union-attr, index]
    objective.chains.write(batch.rows, {"z": z})  # type: ignore[operator, union-attr]
    return objective


def make(name: str, model: LinearGaussian, size: int) -> Objective:
    if name == "score-climbing":
        return ScoreClimbing(model, size, particles=2)
    return TransportScoreClimbing(model, size, particles=1, steps=3)


@pytest.mark.parametrize("name", ["score-climbing", "transport"])
def test_the_chain_keeps_the_posterior(name: str) -> None:
    """4000 chains at exact draws, moved under a q of half the width: after three visits they are exact draws still.
    False alarms: 1e-4. Draws of q alone, resampled by their weights, are none."""
    model, batch = oracle(4000)
    guide = LinearGaussianPosterior(model, "diagonal")
    torch.manual_seed(0)
    objective = at_posterior(make(name, model, 4000), model, batch)
    before = objective.chains.at_z.clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for _ in range(3):
            objective.terms(model, guide, batch)
    after = objective.chains.at_z  # type: ignore[union-attr]
    assert float((after != before).double().mean()) > 0.5
    assert chance(model, batch, after[:, 0]) > 1e-4
    wrong = ScoreClimbing(model, 4000, particles=2).double()
    with torch.no_grad():
        wrong.terms(model, guide, batch)
    assert chance(model, batch, wrong.chains.at_z[:, 0]) < 1e-10


@pytest.mark.parametrize("name", ["score-climbing", "transport"])
def test_gradients_are_exact_on_average(name: str) -> None:
    """With the chains at the posterior: ∇ log p(x) (Fisher's identity), and ∇ KL(p(z | x) ‖ q) in closed form; 4.5
    standard errors of 30 repetitions, false alarms 3e-3 for about 30 numbers. The wake phase's are biased at as few
    draws."""
    model = Learnable()
    batch = Batch(x=model.simulate(1, seed=2).detach().expand(500, -1).contiguous(), rows=torch.arange(500))
    torch.manual_seed(0)
    guide = guides.MeanField(model, networks.encoder("mlp", (2,), (3,))).double()
    with torch.no_grad():
        guide.heads["z"].linear.linear.bias.copy_(torch.tensor([-1.0, 0.3, -0.5, -0.6]))
    of_model = model.gradient(batch.x)
    q = guide.distribution(batch)["z"]
    divergence = kl_divergence(
        MultivariateNormal(model.posterior_mean(batch.x).detach(), torch.linalg.inv(model.precision).detach()),
        MultivariateNormal(q.mean, q.variance.diag_embed()),
    ).mean()
    of_guide = torch.autograd.grad(divergence, list(guide.parameters()))
    exact = torch.cat([g.flatten() for g in (*of_model.values(), *of_guide)])

    def errors(objective: Objective) -> tuple[Tensor, Tensor]:
        found = []
        for _ in range(30):
            if not isinstance(objective, Wake):
                at_posterior(objective, model, batch)
            found.append(torch.cat([g.flatten() for g in gradients(objective, model, guide, batch)]) / 500)
        every = torch.stack(found)
        return every.mean(0) - exact, every.std(0) / math.sqrt(len(found))

    off, noise = errors(make(name, model, 500))
    assert bool((off.abs() < 4.5 * noise + 1e-9).all())
    assert float(noise.max()) < 0.15 * float(exact.abs().max())
    if name == "score-climbing":
        off, noise = errors(Wake(3))
        assert float((off.abs() / noise).max()) > 10


@pytest.mark.parametrize("enumerated", [False, True])
def test_discrete_latents_have_chains(enumerated: bool) -> None:
    """From anywhere, with one fresh draw a visit, the chain's classes come to their exact posterior; sites marked for
    enumeration are drawn. False alarms: 1e-4."""
    model, guide, batch = classes(enumerated, 1500)
    torch.manual_seed(0)
    objective = ScoreClimbing(model, batch.size, particles=1).double()
    with torch.no_grad():
        for _ in range(25):
            terms = objective.terms(model, guide, batch)
        posterior = model.log_joint(batch.x).softmax(-1)
    assert set(terms.logs) == {"bound", "elbo", "kl", "log_likelihood", "moved"}
    y = objective.chains.at_y[:, 0].reshape(1500, 3)
    for k in range(3):
        counts = torch.bincount(y[:, k].long(), minlength=3).numpy()
        assert stats.chisquare(counts, (1500 * posterior[k]).numpy()).pvalue > 1e-4 / 3


def test_a_known_class_stays() -> None:
    model = SemiSupervised()
    guide = ClassGuide(model)
    batch = binary_batch()._replace(y=torch.tensor([2, -1, -1, 0, -1]), rows=torch.arange(5))
    torch.manual_seed(0)
    objective = ScoreClimbing(model, 5, 2).double()
    seen = set()
    for _ in range(20):
        objective.loss(model, guide, batch)
        y = objective.chains.at_y[:, 0].long()
        assert [int(y[0]), int(y[3])] == [2, 0]
        seen |= set(y[[1, 2, 4]].tolist())
    assert seen == set(range(CLASSES))


def test_the_optimum_has_the_posteriors_marginals() -> None:
    """With 10 draws, 2 % of a standard deviation, where the wake phase's optimum with 50 is 6 % too narrow."""
    model, batch = oracle()
    forward = torch.linalg.inv(model.precision).diagonal().sqrt()
    mean, deviation = optimum(ScoreClimbing(model, batch.size, 10), model, batch, 300)
    torch.testing.assert_close(deviation, forward, rtol=0.02, atol=0)
    assert bool(((mean - model.posterior_mean(batch.x[:1])[0]).abs() < 0.03 * forward).all())


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_only_the_batchs_rows_move(kind: type[ScoreClimbing] | type[TransportScoreClimbing]) -> None:
    model = vae()
    guide, batch = guide_for(model), binary_batch()._replace(rows=ROWS)
    objective = kind(model, 7, particles=2).double()
    assert not bool(objective.chains.started.any())
    torch.manual_seed(0)
    objective.loss(model, guide, batch)
    assert objective.chains.started.tolist() == [row in ROWS for row in range(7)]
    assert bool((objective.chains.at_z[[2, 5]] == 0).all())
    before = objective.chains.at_z.clone()
    objective.loss(model, guide, batch.take(slice(0, 2)))
    same = (objective.chains.at_z == before).flatten(1).all(1)
    assert bool(same[[3, 6, 1, 2, 5]].all())
    # a row twice in a batch is no error: one of its two moves is kept
    objective.loss(model, guide, batch._replace(rows=torch.tensor([1, 1, 2, 3, 4])))


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_in_evaluation_mode_the_chains_stand_still(kind: type[ScoreClimbing] | type[TransportScoreClimbing]) -> None:
    """And rows are not asked for: validation data have others."""
    model = vae()
    guide, batch = guide_for(model), binary_batch()
    objective = kind(model, 7, particles=2).double()
    torch.manual_seed(0)
    objective.loss(model, guide, batch._replace(rows=ROWS))
    before = copy.deepcopy(objective.state_dict())
    objective.eval()
    terms = objective.terms(model, guide, batch)
    assert bool(terms.loss.isfinite().all())
    assert set(terms.logs) == {"bound", "elbo", "kl", "log_likelihood"}
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_logs_are_of_the_fresh_draws() -> None:
    """An ELBO is of draws of q: the chain's state is none."""
    model, batch = oracle(500)
    guide = LinearGaussianPosterior(model, "diagonal")
    torch.manual_seed(0)
    objective = at_posterior(ScoreClimbing(model, 500, 40), model, batch)
    logs = objective.terms(model, guide, batch).logs
    exact = model.log_marginal(batch.x).mean() - guide.kl_to_posterior()
    assert abs(logs["elbo"].mean() - exact) < 4 * logs["elbo"].std() / math.sqrt(500)
    torch.testing.assert_close(logs["elbo"], logs["log_likelihood"] - logs["kl"])
    assert bool((logs["bound"] >= logs["elbo"]).all())


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_a_run_goes_on_with_its_chains(
    kind: type[ScoreClimbing] | type[TransportScoreClimbing], tmp_path: Path
) -> None:
    """3 epochs are 1, a checkpoint, and 2 more: weights and chains to the last bit."""
    results = []
    for epochs in ((3,), (1, 3)):
        for k, until in enumerate(epochs):
            model, guide = small_pair()
            objective = kind(model, N, particles=2)
            folder = tmp_path / str(len(epochs))
            fit(
                model,
                guide,
                data(),
                objective,
                epochs=until,
                batch_size=16,
                validation=data(n=10, seed=1),
                run_dir=folder,
                resume=k > 0,
                **QUIET,
            )
        results.append({**model.state_dict(), **guide.state_dict(), **objective.state_dict()})
    assert float(results[0]["chains.started"].float().mean()) > 0.9
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_a_compiled_step_moves_the_chains() -> None:
    model = vae()
    guide, batch = guide_for(model), binary_batch()._replace(rows=ROWS)
    objective = ScoreClimbing(model, 7, 3)
    check_compiled(model, guide, objective, batch, steps=4)
    svi = CompiledSVI(model, guide, torch.optim.Adam, objective, {"lr": 1e-3}, compile="graph")
    for _ in range(3):
        svi.step(batch)
    assert objective.chains.started.tolist() == [row in ROWS for row in range(7)]
    assert not svi.report().fallbacks


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
@pytest.mark.parametrize("size", [0, -2, 2.0, True, None, "7"])
def test_a_size_that_is_none(kind: type[Objective], size: object) -> None:
    with pytest.raises(ValueError, match=f"size={size!r} must be the number of training data, 1 or more"):
        kind(vae(), size)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_a_model_that_declares_nothing(kind: type[Objective]) -> None:
    with pytest.raises(ValueError, match=r"declares no latents, and .* keeps a chain of them"):
        kind(lambda batch: None, 5)  # type: ignore[arg-type, call-arg]
    given = kind({"z": LatentSpec(torch.Size([3]))}, 7).double()  # type: ignore[arg-type, call-arg]
    model = vae()
    assert math.isfinite(given.loss(model, guide_for(model), binary_batch()._replace(rows=ROWS)))


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_shared_latents_are_refused_by_name(kind: type[Objective]) -> None:
    model, _, _ = pair("global")
    with pytest.raises(ValueError, match="keeps a chain for each datum, and 'w' is shared by all data"):
        kind(model, 5)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [ScoreClimbing, TransportScoreClimbing])
def test_rows_that_are_none(kind: type[Objective]) -> None:
    model = vae()
    guide, batch = guide_for(model), binary_batch()
    with pytest.raises(ValueError, match=r"keeps a chain for each datum, by batch.rows, and got no Batch with rows"):
        kind(model, 7).double().loss(model, guide, batch)  # type: ignore[call-arg]
    for wrong in (ROWS + 2, ROWS - 1):
        with pytest.raises(ValueError, match=r"batch.rows run from .* was made with size=7"):
            kind(model, 7).double().loss(model, guide, batch._replace(rows=wrong))  # type: ignore[call-arg]


def test_a_size_below_the_datas_is_refused_before_training() -> None:
    model, guide = small_pair()
    with pytest.raises(ValueError, match=r"objective ScoreClimbing was made with size=69, and .* make it with size=70"):
        fit(model, guide, data(), ScoreClimbing(model, N - 1), epochs=1, **QUIET)


def test_several_processes_are_refused() -> None:
    small, small_guide = small_pair()
    with pytest.raises(ValueError, match="keeps its chains in one process: train with devices=1"):
        fit(small, small_guide, data(), ScoreClimbing(small, N), epochs=1, devices=2, **QUIET)
    model = vae()
    guide, batch = guide_for(model), binary_batch()._replace(rows=ROWS)
    with (
        mock.patch("torch.distributed.is_initialized", return_value=True),
        mock.patch("torch.distributed.get_world_size", return_value=2),
        pytest.raises(ValueError, match="keeps its chains in one process: train with devices=1"),
    ):
        ScoreClimbing(model, 7).double().loss(model, guide, batch)


def test_chains_of_another_model_are_refused() -> None:
    model = vae()
    guide, batch = guide_for(model), binary_batch()._replace(rows=ROWS)
    other = ScoreClimbing({"u": LatentSpec(torch.Size([3]))}, 7).double()
    with pytest.raises(ValueError, match=r"was made for the latents \['u'\], and this model has \['z'\]"):
        other.loss(model, guide, batch)
    wider = ScoreClimbing({"z": LatentSpec(torch.Size([4]))}, 7).double()
    with pytest.raises(ValueError, match=r"chains of 'z' with events \(4,\), and this model's are \(3,\)"):
        wider.loss(model, guide, batch)
    assert isinstance(classes(True)[0], Classes)
