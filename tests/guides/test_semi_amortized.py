"""The semi-amortized guide: its steps, what they leave alone, and where gradients go."""

import copy
from typing import Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, GlobalWeight, SemiSupervised, TwoLayer, binary_batch, vae
from pyro import poutine
from slopes import slopes_of
from test_mixture import OnSupports
from torch import Tensor
from torch.distributions import constraints

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    InputError,
    LatentModel,
    LatentSpec,
    Objective,
    guides,
    log_marginal,
    log_weights,
    networks,
    pyro_pair,
    scale_latents,
)
from ppl_vae.objectives import ScoreClimbing, TransportScoreClimbing, Wake
from ppl_vae.testing import LinearGaussian, check_compiled, check_guide
from ppl_vae.weights import sample_sites, score_site

Family = Literal["mean-field", "full-rank"]
FAMILIES: tuple[Family, ...] = ("mean-field", "full-rank")
every_family = pytest.mark.parametrize("family", FAMILIES)


def guide_of(model: LatentModel, family: Family = "mean-field", **options: object) -> guides.SemiAmortized:
    return guides.SemiAmortized(model, networks.encoder("mlp", SHAPE, (7,)), family, **options).double()  # type: ignore[arg-type]


def amortized(guide: guides.SemiAmortized) -> guides.Amortized:
    """The guide that it refines, sharing its parameters."""
    start = copy.copy(guide)
    start.__dict__ = {**guide.__dict__, "_buffers": {"signs": guide.signs[:0]}}
    return start


def log_joint(model: LatentModel, batch: Batch, values: dict[str, Tensor]) -> Tensor:
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(batch)
    return sum((score_site(site) for _, site in sample_sites(trace)), torch.zeros(()))


def moments(q: object) -> tuple[Tensor, Tensor]:
    return q.mean, q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance.diag_embed()  # type: ignore[attr-defined]


@every_family
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_contract(family: Family, differentiate: bool) -> None:
    model = vae()
    check_guide(guide_of(model, family, steps=3, differentiate=differentiate), model, binary_batch())


@every_family
def test_the_contract_with_two_sites(family: Family) -> None:
    model = TwoLayer()
    check_guide(guide_of(model, family, steps=2), model, binary_batch())


def test_the_contract_on_other_supports() -> None:
    model, batch = OnSupports(), Batch(x=torch.rand(5, 3, dtype=torch.float64))
    check_guide(guides.SemiAmortized(model, networks.encoder("mlp", (3,), (9,)), steps=2).double(), model, batch)


@pytest.mark.parametrize(("family", "differentiate"), [("full-rank", False), ("mean-field", True)])
def test_traced_steps_are_eager_steps(family: Family, differentiate: bool) -> None:
    model = vae()
    guide = guide_of(model, family, steps=2, differentiate=differentiate)
    check_compiled(model, guide, IWAE(3), binary_batch(), steps=4)


@every_family
def test_a_step_is_the_natural_gradient_of_the_elbo(family: Family) -> None:
    """Against the Fisher information of q, by automatic differentiation of KL(q ‖ q') at q' = q, and a gradient of the
    ELBO at the guide's own points."""
    model, batch = vae(2), binary_batch(1)
    guide = guide_of(model, family, steps=1, lr=1e-4, particles=4, largest=1e6)
    q = amortized(guide).distribution(batch)["z"]
    loc = q.mean[0].detach()
    rows, columns = (torch.arange(2),) * 2 if family == "mean-field" else torch.tril_indices(2, 2)
    scale = torch.linalg.cholesky(moments(q)[1][0].detach())

    def gaussian(numbers: Tensor) -> torch.distributions.MultivariateNormal:
        tril = torch.zeros(2, 2).double().index_put((rows, columns), numbers[2:])
        return torch.distributions.MultivariateNormal(numbers[:2], scale_tril=tril)

    start = torch.cat([loc, scale[rows, columns]])

    def elbo(numbers: Tensor) -> Tensor:
        now = gaussian(numbers)
        z = now.loc + guide.signs[0] @ now.scale_tril.T
        return (log_joint(model, batch, {"z": z.unsqueeze(1)}).squeeze(-1) - now.log_prob(z)).mean()

    def divergence(numbers: Tensor) -> Tensor:
        return torch.distributions.kl_divergence(gaussian(start), gaussian(numbers))

    gradient = torch.autograd.functional.jacobian(elbo, start)
    fisher = torch.autograd.functional.hessian(divergence, start)
    wanted = gaussian(start + 1e-4 * torch.linalg.solve(fisher, gradient))
    mean, covariance = moments(guide.distribution(batch)["z"])
    torch.testing.assert_close((mean[0] - loc) / 1e-4, (wanted.mean - loc) / 1e-4, rtol=1e-3, atol=1e-6)
    before = scale @ scale.T
    # to first order in the step
    torch.testing.assert_close(
        (covariance[0] - before) / 1e-4, (wanted.covariance_matrix - before) / 1e-4, rtol=1e-2, atol=1e-3
    )


def constant(guide: guides.SemiAmortized, loc: Tensor, scale_tril: Tensor) -> None:
    """Start from one Gaussian, whatever x."""
    linear = guide.heads["z"].linear.linear
    raw = 7.0 * torch.atanh(scale_tril.diagonal().log() / 7.0)
    below = scale_tril[tuple(torch.tril_indices(len(loc), len(loc), offset=-1))]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.cat([loc, raw, below]) if guide.family == "full-rank" else torch.cat([loc, raw]))


def test_one_whole_step_meets_the_mean_of_a_gaussian_posterior() -> None:
    """lr=1, S Sᵀ the posterior's covariance, mirrored points, for which a quadratic's gradient by m is exact."""
    oracle = LinearGaussian(data=5, latent=3)
    guide = guides.SemiAmortized(
        oracle, networks.encoder("mlp", (5,), (4,)), "full-rank", steps=1, lr=1.0, particles=2, largest=1e6
    ).double()
    constant(guide, torch.tensor([3.0, -2.0, 5.0]).double(), torch.linalg.cholesky(torch.linalg.inv(oracle.precision)))
    x = oracle.simulate(6)
    mean = guide.distribution(Batch(x=x))["z"].mean
    torch.testing.assert_close(mean, oracle.posterior_mean(x), rtol=1e-10, atol=1e-10)


@every_family
def test_many_steps_find_the_best_of_the_family(family: Family) -> None:
    """From N(5, I): KL(q ‖ p(z | x)) of the linear-Gaussian oracle, exactly, is 0 or the mean-field gap. Where log p is
    quadratic 2D points leave no noise."""
    oracle = LinearGaussian(data=5, latent=3, seed=8)
    guide = guides.SemiAmortized(
        oracle, networks.encoder("mlp", (5,), (4,)), family, steps=300, lr=0.3, particles=8
    ).double()
    constant(guide, torch.full((3,), 5.0).double(), torch.eye(3).double())
    x = oracle.simulate(6)
    mean, covariance = moments(guide.distribution(Batch(x=x))["z"])
    q = torch.distributions.MultivariateNormal(mean, covariance)
    gap = torch.distributions.kl_divergence(q, oracle.posterior(x))
    wanted = 0.0 if family == "full-rank" else oracle.mean_field_gap()
    assert bool(((gap - wanted).abs() < 1e-4).all())


@every_family
def test_no_steps_leave_the_amortized_guide(family: Family) -> None:
    model, batch = vae(), binary_batch()
    guide = guide_of(model, family, steps=0)
    plain = {"mean-field": guides.MeanField, "full-rank": guides.FullRank}[family](model, guide.encoder).double()
    plain.heads.load_state_dict(guide.heads.state_dict())
    for ours, theirs in zip(
        moments(guide.distribution(batch)["z"]), moments(plain.distribution(batch)["z"]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@every_family
def test_a_long_step_is_shortened_to_standard_deviations_of_q(family: Family) -> None:
    oracle = LinearGaussian(data=5, latent=2)
    guide = guides.SemiAmortized(
        oracle, networks.encoder("mlp", (5,), (4,)), family, steps=1, lr=1.0, largest=0.5
    ).double()
    constant(guide, torch.full((2,), 100.0).double(), 0.01 * torch.eye(2).double())
    mean, _ = moments(guide.distribution(Batch(x=oracle.simulate(6)))["z"])
    moved = (mean - 100.0).norm(dim=-1) / 0.01
    assert bool((moved <= 0.5 + 1e-9).all())
    assert bool((moved > 0.4).all())


class TwoFar(LatentModel):
    """Two latent vectors, of two and one numbers, and x around each of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"a": LatentSpec(torch.Size([2])), "b": LatentSpec(torch.Size([1]))}

    def forward(self, batch: Batch) -> Tensor:
        zero = torch.zeros(3).double()
        with pyro.plate("data", batch.size, dim=-1):
            a = pyro.sample("a", dist.Normal(zero[:2], 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(zero[:1], 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(torch.cat([a, b], -1), 0.1).to_event(1), obs=batch.x)


def test_a_step_is_shortened_over_all_sites_together() -> None:
    """So far from the posterior every gradient asks for more than `largest`: the step has that length, in standard
    deviations of q, over the locations and log-scales of both sites."""
    model, batch = TwoFar(), Batch(x=torch.full((4, 3), 50.0).double())
    guide = guides.SemiAmortized(model, networks.encoder("mlp", (3,), (4,)), steps=1, lr=1.0, largest=0.5).double()
    before, after = amortized(guide).distribution(batch), guide.distribution(batch)
    squares = torch.zeros(4).double()
    for site in ("a", "b"):
        start, end = before[site].base_dist, after[site].base_dist
        squares += ((end.loc - start.loc) / start.scale).square().sum(-1)
        squares += (end.scale / start.scale).log().square().sum(-1)
    torch.testing.assert_close(squares.sqrt(), torch.full((4,), 0.5).double())


class LogGaussian(LatentModel):
    """z ~ LogNormal(0, 1), x ~ N(log z, 0.5²): given x, log z is N(x / 1.25, 0.25 / 1.25)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([1]), constraints.positive)}

    def forward(self, batch: Batch) -> Tensor:
        zero = torch.zeros(1).double()
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.LogNormal(zero, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.log(), 0.5).to_event(1), obs=batch.x)


def test_steps_find_the_posterior_on_another_support() -> None:
    """Exactly, in the coordinates in which it is Gaussian: its density there has the volume that the map takes."""
    batch = Batch(x=torch.tensor([[-1.0], [0.3], [2.0]]).double())
    guide = guides.SemiAmortized(LogGaussian(), networks.encoder("mlp", (1,), (4,)), steps=80).double()
    free = guide.distribution(batch)["z"].base_dist
    free = getattr(free, "base_dist", free)
    torch.testing.assert_close(free.loc, batch.x / 1.25, rtol=0, atol=1e-6)
    torch.testing.assert_close(free.scale, torch.full((3, 1), 0.2**0.5).double(), rtol=0, atol=1e-6)


def test_another_model_than_it_runs_is_refused() -> None:
    """Whoever asks, and also behind what a model has of a class, or of what all data share; a model inside of another
    module is the same model."""
    model, batch = vae(), binary_batch()
    guide = guide_of(model)
    for program, refined in ((vae(), guide), (model, copy.deepcopy(guide))):
        with pytest.raises(InputError, match="SemiAmortized runs the model that it was built with, a VAE, and"):
            ELBO().loss(program, refined, batch)
        with pytest.raises(InputError, match=r"copy.deepcopy\(\(model, guide\)\)"):
            log_marginal(program, refined, batch, 3)
    ELBO().loss(*copy.deepcopy((model, guide)), batch)
    ELBO().loss(poutine.mask(model, mask=True), guide, batch)
    assert guide.runs is model
    assert guide_of(guides.datum_part(model)).runs is model
    around = torch.nn.ModuleDict({"guide": guide})
    around.forward = guide.forward  # type: ignore[method-assign]
    with pytest.raises(InputError, match="this is another one"):
        ELBO().loss(vae(), around, batch)


@pytest.mark.parametrize("make", [Wake, ScoreClimbing, TransportScoreClimbing])
def test_differentiated_steps_are_refused_where_model_and_guide_learn_different_things(make: type[Objective]) -> None:
    model, batch = vae(), binary_batch()._replace(rows=torch.arange(5))
    objective = (Wake(2) if make is Wake else make(model, 5)).double()  # type: ignore[call-arg]
    guide = guide_of(model, differentiate=True)
    match = f"differentiate=True: SemiAmortized .* {make.__name__} trains model and guide on different things"
    with pytest.raises(InputError, match=match):
        objective.loss(model, guide, batch)
    objective.loss(model, guide_of(model), batch)
    objective.loss(model, guide_of(model, steps=0, differentiate=True), batch)


def test_q_is_a_function_of_x_whatever_the_seed_and_the_plates_around() -> None:
    model, batch = vae(), binary_batch()
    guide = guide_of(model, "full-rank")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = moments(guide.distribution(batch)["z"])
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    with scale_latents(3.0), pyro.plate("left", 4, dim=-2), pyro.plate("data", 5, dim=-1):
        among = moments(guide.distribution(batch)["z"])
    with torch.no_grad():
        without = moments(guide.distribution(batch)["z"])
    part = moments(guide.distribution(batch.take(torch.tensor([3, 1])))["z"])
    for k in range(2):
        torch.testing.assert_close(among[k], alone[k], rtol=0, atol=0)
        torch.testing.assert_close(without[k], alone[k].detach(), rtol=0, atol=0)
        torch.testing.assert_close(part[k], alone[k][[3, 1]])


@pytest.mark.parametrize(("particles", "numbers"), [(2, 5), (6, 3), (16, 8), (4, 1)])
def test_points_are_mirrored_signs_that_cover_a_gaussians_covariance(particles: int, numbers: int) -> None:
    steps = 8
    signs = guide_of(vae(numbers), steps=steps, particles=particles).signs
    assert tuple(signs.shape) == (steps, particles, numbers)
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert not signs.mean(1).any()
    # 8 steps of pairs, and so a multiple of the 8 or fewer that a whole set has
    covariance = signs.mT @ signs
    torch.testing.assert_close(covariance.mean(0) / particles, torch.eye(numbers).double())
    if numbers > 1:
        assert not torch.equal(signs[0], signs[1])


def test_guides_of_one_size_have_the_same_points_and_draw_nothing_for_them() -> None:
    encoder, model = networks.encoder("mlp", SHAPE, (7,)), vae()
    states = []
    for make in (guides.MeanField, guides.SemiAmortized):
        torch.manual_seed(0)
        make(model, encoder)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.equal(guides.SemiAmortized(model, encoder).signs, guides.SemiAmortized(model, encoder).signs)


@every_family
def test_the_model_learns_at_a_fixed_q_and_the_refinement_leaves_nothing(family: Family) -> None:
    model, batch = vae(), binary_batch()
    guide = guide_of(model, family)
    guide.distribution(batch)
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])
    torch.manual_seed(0)
    ELBO(particles=2, kl="monte-carlo").differentiable_loss(model, guide, batch).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    q = guide.distribution(batch)["z"]
    torch.manual_seed(0)
    z = q.expand((2, 5)).rsample().detach()
    wanted = torch.autograd.grad(-log_joint(model, batch, {"z": z}).mean(0).sum(), list(model.parameters()))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every_family
def test_differentiated_steps_give_the_exact_gradient(family: Family) -> None:
    """Of the final ELBO by the encoder's and the model's parameters, against finite differences; undifferentiated steps
    give another, which goes the same way."""
    model, batch = vae(), binary_batch()
    guide = guide_of(model, family, steps=3, lr=0.3)
    wanted, (exact, whole), (first_order, part) = slopes_of(model, guide, batch, particles=3)
    assert exact == pytest.approx(wanted, rel=1e-6)
    assert first_order != pytest.approx(wanted, rel=1e-3)
    assert float(torch.cosine_similarity(whole, part, dim=0)) > 0.5


@every_family
@pytest.mark.parametrize("differentiate", [False, True])
def test_where_the_guide_is_held_constant_so_are_its_steps(family: Family, differentiate: bool) -> None:
    """log q of a second, stopped run has no gradient for the model, of which a differentiated q is a function."""
    model, batch = vae(), binary_batch()
    guide = guide_of(model, family, differentiate=differentiate)
    torch.manual_seed(0)
    stopped = log_weights(model, guide, batch, particles=2, stop_guide=True)
    z = stopped.copies["z"].value
    everything = [*guide.parameters(), *model.parameters()]
    gradients = torch.autograd.grad(stopped.log_q.sum(), [z, *everything], allow_unused=True, retain_graph=True)
    assert gradients[0] is not None
    (by_z,) = torch.autograd.grad(stopped.log_q.sum(), [z], retain_graph=True)
    through_z = torch.autograd.grad(z, everything, by_z, allow_unused=True)
    for whole, part in zip(gradients[1:], through_z, strict=True):
        assert (whole is None) == (part is None)
        if whole is not None:
            torch.testing.assert_close(whole, part)


def test_the_model_is_neither_owned_nor_saved() -> None:
    model = vae()
    guide = guide_of(model)
    ours = {id(t) for t in [*guide.parameters(), *guide.buffers()]}
    assert not ours & {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not [name for name in guide.state_dict() if "decoder" in name or "model" in name]
    together, alone = copy.deepcopy((model, guide)), copy.deepcopy(guide)
    assert together[1]._model[0] is together[0]
    assert alone._model[0] is not model


def test_evaluation_and_pyro_take_it() -> None:
    model, batch = vae(), binary_batch()
    guide = guide_of(model)
    whole = log_marginal(model, guide, batch, 200, seed=0)
    parts = log_marginal(model, guide, batch, 200, chunk=7, seed=0)
    assert whole.mean < 0
    assert parts.mean == pytest.approx(whole.mean, abs=0.5)
    svi = pyro.infer.SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    before = [p.clone() for p in [*model.parameters(), *guide.parameters()]]
    svi.step(batch)
    assert all(not torch.equal(a, b) for a, b in zip(before, [*model.parameters(), *guide.parameters()], strict=True))


def test_what_it_is_not_for_is_refused() -> None:
    for option, value in (("steps", -1), ("steps", 1.0), ("particles", 0), ("particles", True)):
        with pytest.raises(InputError, match=f"{option}={value!r} must be a whole number"):
            guide_of(vae(), **{option: value})
    for odd in (1, 3):
        with pytest.raises(InputError, match=f"particles={odd} must be an even number: points come in pairs"):
            guide_of(vae(), particles=odd)
    for option, number in (
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", 1.01),
        ("lr", True),
        ("largest", -1.0),
        ("lr", "0.1"),
    ):
        with pytest.raises(InputError, match=f"{option}={number!r} must be a number above 0"):
            guide_of(vae(), **{option: number})
    with pytest.raises(InputError, match="family='low-rank' is not known"):
        guide_of(vae(), "low-rank")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'w' of GlobalWeight is shared by all data"):
        guide_of(GlobalWeight())
    with pytest.raises(InputError, match="discrete"):
        guide_of(SemiSupervised())


@pytest.mark.slow
@every_family
def test_between_a_weak_encoder_and_each_datums_own_optimum(family: Family) -> None:
    """ELBO amortized < semi-amortized <= local, of one family under one model, on 200 data: KL(q ‖ p(z | x)) of the
    linear-Gaussian oracle is exact, so that the error bars are of the data alone. The encoder has a single feature for
    three posterior means."""
    oracle = LinearGaussian(data=6, latent=3, seed=9)
    batch = Batch(x=oracle.simulate(200), rows=torch.arange(200))
    p = oracle.posterior(batch.x)
    gaps = {}
    for name in ("amortized", "semi-amortized", "local"):
        torch.manual_seed(0)
        encoder = networks.encoder("mlp", (6,), (1,))
        guide: torch.nn.Module
        if name == "local":
            guide = guides.Local(oracle, 200, family)
        elif name == "amortized":
            guide = guides.guides.get(family)(oracle, encoder)  # type: ignore[call-arg]
        else:
            guide = guides.SemiAmortized(oracle, encoder, family)
        guide = guide.double()
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.05 if name == "local" else 0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
        for _ in range(1000):
            optimizer.zero_grad()
            ELBO(particles=8).differentiable_loss(oracle, guide, batch).div(200).backward()
            optimizer.step()
            schedule.step()
        mean, covariance = moments(guide.distribution(batch)["z"])  # type: ignore[operator]
        q = torch.distributions.MultivariateNormal(mean, covariance)
        gaps[name] = torch.distributions.kl_divergence(q, p).detach()
    print({name: f"{gap.mean():.4f}" for name, gap in gaps.items()})
    for worse, better, least in (("amortized", "semi-amortized", 0.2), ("semi-amortized", "local", -0.01)):
        difference = gaps[worse] - gaps[better]
        assert float(difference.mean() - 4 * difference.std() / 200**0.5) > least
    best = 0.0 if family == "full-rank" else oracle.mean_field_gap()
    assert abs(float(gaps["local"].mean()) - best) < 0.01
