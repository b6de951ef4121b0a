"""Refined guides of every family: a step against a computation by hand, what steps leave alone, where gradients go."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, GlobalWeight, TwoLayer, binary_batch, guide_for, vae
from pyro import poutine
from slopes import slopes_of
from test_mixture import OnSupports
from torch import Tensor

from ppl_vae import ELBO, IWAE, Batch, InputError, LatentModel, PairConfig, build, guides, log_weights, networks
from ppl_vae.build import DataSpec
from ppl_vae.diagnose.local_fit import fitted_locally
from ppl_vae.evaluate.chunked import Source
from ppl_vae.guides import Refined
from ppl_vae.guides.points import mirrored, noise_size, placed
from ppl_vae.networks import soft_bound
from ppl_vae.objectives import Wake
from ppl_vae.testing import LinearGaussian, check_compiled, check_guide
from ppl_vae.weights import sample_sites, score_site

GAUSSIANS = ("mean-field", "full-rank", "low-rank")
FLOWS = ("planar", "radial", "householder", "sylvester", "inverse-autoregressive", "spline")
FAMILIES = (*GAUSSIANS, "mixture", *FLOWS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def refined(model: LatentModel, family: str, **options: Any) -> Refined:
    torch.manual_seed(0)
    return Refined(model, guide_for(model, family), **options).double()  # type: ignore[arg-type]


def log_joint(model: LatentModel, batch: Batch, z: Tensor) -> Tensor:
    trace = poutine.trace(poutine.condition(model, data={"z": z})).get_trace(batch)
    return sum((score_site(site) for _, site in sample_sites(trace)), torch.zeros(()))


def by_hand(model: LatentModel, guide: Refined, batch: Batch) -> tuple[Tensor, Tensor]:
    """loc and scale of one datum after all steps, from the definition: F⁻¹ ∇L by the head's numbers at the first noise,
    no longer than 1 nor than twice of what was right before, and the vertex of the parabola through the ELBO here, its
    slope, and the ELBO there, at the second noise."""
    base = guide.guide
    numbers = base.heads["z"].linear(base.encoder(batch))[0].detach()  # type: ignore[operator]
    size, tried = guide.noise.shape[-1], 1.0

    def gaussian(numbers: Tensor) -> tuple[Tensor, Tensor]:
        return numbers[:size], soft_bound(numbers[size:]).exp()

    def elbo(numbers: Tensor, noise: Tensor) -> Tensor:
        loc, scale = gaussian(numbers)
        z = loc + scale * noise
        return (
            log_joint(model, batch, z.unsqueeze(1)).squeeze(-1) - dist.Normal(loc, scale).log_prob(z).sum(-1)
        ).mean()

    for way, length in guide.noise:
        inverse = torch.cat([gaussian(numbers)[1].square(), torch.full((size,), 0.5)])
        whole = inverse * torch.autograd.functional.jacobian(lambda n, way=way: elbo(n, way), numbers)
        move = tried * whole / (whole.square() / inverse).sum().sqrt().clamp(min=1.0)
        slope = float(torch.autograd.functional.jacobian(lambda n, length=length: elbo(n, length), numbers) @ move)
        with torch.no_grad():
            bend = float(elbo(numbers, length)) + slope - float(elbo(numbers + move, length))
        assert bend > 0
        share = min(max(0.5 * slope / bend, 0.0), 2.0)
        numbers = numbers + guide.lr * share * move
        tried = min(tried * max(2.0 * share, 0.05), 1.0)
    return gaussian(numbers)


@pytest.mark.parametrize(("lr", "steps"), [(0.4, 1), (1.0, 8)])
def test_steps_are_what_they_say(lr: float, steps: int) -> None:
    model, batch = vae(), binary_batch(1)
    guide = refined(model, "mean-field", steps=steps, lr=lr, particles=6)
    loc, scale = by_hand(model, guide, batch)
    q = guide.distribution(batch)["z"].base_dist  # type: ignore[attr-defined]
    torch.testing.assert_close(q.loc[0], loc, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(q.scale[0], scale, rtol=1e-9, atol=1e-10)
    base = guide.guide.distribution(batch)["z"].base_dist  # type: ignore[attr-defined]
    assert float((q.loc - base.loc).norm().detach()) > 0.01


def head(family: str) -> Any:
    return guides.guides.get(family)(vae(), networks.encoder("mlp", SHAPE, (7,))).double().heads["z"]  # type: ignore[call-arg, operator]


@pytest.mark.parametrize("family", [*GAUSSIANS, "planar"])
def test_steps_are_in_the_units_of_fishers_information(family: str) -> None:
    """Its diagonal is that of the second derivative of KL(q ‖ q') at q' = q. Where q has no correlations it is what a
    head says; of a flow's head it is that of the Gaussian below. For a low rank's factor, which then has none, 1 stands
    in."""
    of, size = head(family), 3
    gaussian = head("mean-field") if family == "planar" else of
    numbers = torch.zeros(of.outputs).double()
    numbers[:size] = torch.tensor([0.5, -1.0, 2.0])
    numbers[size : 2 * size] = torch.tensor([-0.3, 0.2, 0.1])  # where the soft bound's slope is 1 to 0.4%

    def dense(numbers: Tensor) -> torch.distributions.MultivariateNormal:
        q = gaussian.gaussian(numbers)
        covariance = q.variance.diag_embed() if family in ("mean-field", "planar") else q.covariance_matrix
        return torch.distributions.MultivariateNormal(q.mean, covariance)

    fisher = torch.autograd.functional.hessian(
        lambda n: torch.distributions.kl_divergence(dense(numbers), dense(n)), numbers
    ).diagonal()
    stated = of.inverse_fisher(numbers)
    known = fisher > 1e-6
    assert int(known.sum()) == (2 * size if family == "low-rank" else of.outputs)
    torch.testing.assert_close(stated[known] * fisher[known], torch.ones(int(known.sum())).double(), rtol=0.01, atol=0)
    assert bool((stated[~known] == 1.0).all())


def test_a_turned_gaussians_location_moves_by_its_least_scale() -> None:
    """Reflections behind the scale: no dimension of z is known to be wider than that."""
    numbers = torch.tensor([0.0, 0.0, 0.0, -2.0, 0.0, 1.0]).double()
    stated = head("householder").inverse_fisher(numbers)
    torch.testing.assert_close(stated[:3], soft_bound(numbers[3]).exp().square().expand(3))


@pytest.mark.parametrize("family", GAUSSIANS)
def test_points_have_the_moments_of_q(family: str) -> None:
    """At ±√n e_i, of mean 0 and covariance I, draws have exactly the mean and the covariance of a Gaussian."""
    of = head(family)
    q = of.gaussian(torch.randn(4, of.outputs, generator=torch.Generator().manual_seed(0)).double())
    n = noise_size(q)
    noise = n**0.5 * torch.cat([torch.eye(n), -torch.eye(n)]).double()
    z = placed(q, noise)
    assert z.shape == (2 * n, 4, 3)
    torch.testing.assert_close(z.mean(0), q.mean)
    off = z - q.mean
    wanted = q.covariance_matrix if family != "mean-field" else q.variance.diag_embed()
    torch.testing.assert_close((off.unsqueeze(-1) * off.unsqueeze(-2)).mean(0), wanted)


@every_family
def test_no_steps_are_the_guide_itself(family: str) -> None:
    model, batch = vae(), binary_batch()
    guide = refined(model, family, steps=0)
    found = []
    for each in (guide.guide, guide):
        torch.manual_seed(5)
        weights = log_weights(model, each, batch, particles=3)
        found.append((weights.draws["z"], weights.log_q, weights.log_w))
    for base, ours in zip(*found, strict=True):
        assert torch.equal(base, ours)


def test_the_contract() -> None:
    model = vae()
    check_guide(refined(model, "inverse-autoregressive", steps=1), model, binary_batch())


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_contract_and_traced_steps(family: str, differentiate: bool) -> None:
    model = vae()
    guide = refined(model, family, steps=2, differentiate=differentiate)
    check_guide(guide, model, binary_batch())
    check_compiled(model, guide, IWAE(3), binary_batch(), steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixture", "inverse-autoregressive"])
def test_compiled_steps_are_eager_steps(family: str) -> None:
    model = vae(dtype=torch.float32)
    guide = refined(model, family, steps=2).float()
    optim = torch.optim.SGD
    check_compiled(model, guide, ELBO(), binary_batch(), backend="inductor", dtype=torch.float32, optim=optim)


@pytest.mark.slow
def test_the_contract_with_two_sites_and_on_other_supports() -> None:
    model = TwoLayer()
    check_guide(refined(model, "mixture", steps=1), model, binary_batch())
    other, batch = OnSupports(), Batch(x=torch.rand(5, 3, dtype=torch.float64))
    base = guides.Planar(other, networks.encoder("mlp", (3,), (9,)), transforms=2)
    check_guide(Refined(other, base, steps=1).double(), other, batch)


def test_a_mixtures_points_are_its_strata() -> None:
    """Σ_k π_k E[f] over strata is the expectation under the mixture, and log q the mixture's, against torch's own."""
    model, batch = vae(2), binary_batch()
    guide = refined(model, "mixture", steps=1)
    base = guide.guide
    assert isinstance(base, guides.Mixture)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.cat([noise, -noise])
    with torch.no_grad():
        points = base.points(base.encoder(batch), {"z": noise / noise.square().mean(0).sqrt()})
        q = base.distribution(batch)["z"]
    z = points.values["z"]  # (K, P, N, D)
    torch.testing.assert_close(points.log_q, q.log_prob(z))
    for d in range(2):
        torch.testing.assert_close(points.mean(z[..., d]), q.mean[:, d])
        centred = (z[..., d] - q.mean[:, d]).square()
        torch.testing.assert_close(points.mean(centred), q.variance[:, d])


@pytest.mark.parametrize("family", ["inverse-autoregressive", "spline", "householder"])
def test_log_q_of_a_given_z_is_the_refined_ones_also_behind_the_run(family: str) -> None:
    """Flows run networks when they are asked for a density: with the biases of their own run, whichever came since."""
    model, batch = vae(), binary_batch()
    guide = refined(model, family, steps=2)
    q = guide.distribution(batch)["z"]
    z = q.rsample((4,)).detach()
    wanted = guide.distribution(batch)["z"]
    other = guide.distribution(binary_batch(seed=3))["z"]
    torch.testing.assert_close(q.log_prob(z.clone()), wanted.log_prob(z), rtol=1e-6, atol=1e-6)
    weights = log_weights(model, guide, batch, particles=3)  # whose draws are made inside of the run
    torch.testing.assert_close(weights.log_q, wanted.log_prob(weights.draws["z"].clone()), rtol=1e-6, atol=1e-6)
    for another in (other, guide.guide.distribution(batch)["z"]):
        assert float((another.log_prob(z) - wanted.log_prob(z)).detach().abs().max()) > 1e-3
    assert not any(module._forward_hooks for module in guide.modules())


def test_q_is_a_function_of_x_whatever_the_seed_the_plates_and_the_data_beside_it() -> None:
    model, batch = vae(), binary_batch()
    guide = refined(model, "inverse-autoregressive", steps=2)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = guide.distribution(batch)["z"].log_prob(z)
    assert torch.equal(state, torch.get_rng_state())
    with pyro.plate("left", 4, dim=-2), pyro.plate("data", 5, dim=-1):
        torch.testing.assert_close(guide.distribution(batch)["z"].log_prob(z), alone, rtol=0, atol=0)
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(guide.distribution(batch.take(rows))["z"].log_prob(z[rows]), alone[rows])
    assert torch.equal(mirrored(3, 4, 5), mirrored(3, 4, 5))
    noise = mirrored(3, 4, 5)
    assert torch.equal(noise[:, :2], -noise[:, 2:])
    torch.testing.assert_close(noise.square().mean(1), torch.ones(3, 5))


def test_what_is_not_observed_moves_nothing() -> None:
    """The steps' ELBO has the masks of the model's: with nothing observed they go to the prior, whatever x."""
    model, batch = vae(), binary_batch()
    none = batch._replace(observed=torch.zeros_like(batch.x, dtype=torch.bool))
    guide = refined(model, "mean-field", steps=40, particles=16)
    q = guide.distribution(none)["z"].base_dist  # type: ignore[attr-defined]
    torch.testing.assert_close(q.loc, torch.zeros_like(q.loc), rtol=0, atol=1e-3)
    torch.testing.assert_close(q.scale, torch.ones_like(q.scale), rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["mixture", "inverse-autoregressive"])
def test_differentiated_steps_give_the_exact_gradient(family: str) -> None:
    """Of the final ELBO by the guide's and the model's parameters, against finite differences; undifferentiated steps
    give another, which goes the same way."""
    model, batch = vae(2), binary_batch()
    guide = refined(model, family, steps=2)
    wanted, (exact, whole), (first_order, part) = slopes_of(model, guide, batch, particles=2)
    assert exact == pytest.approx(wanted, rel=1e-5)
    assert first_order != pytest.approx(wanted, rel=1e-3)
    assert float(torch.cosine_similarity(whole, part, dim=0)) > 0.5


@pytest.mark.parametrize("differentiate", [False, True])
def test_where_the_guide_is_held_constant_so_are_its_steps(differentiate: bool) -> None:
    """log q of a second, stopped run has no gradient but through its draw."""
    model, batch = vae(), binary_batch()
    guide = refined(model, "inverse-autoregressive", steps=2, differentiate=differentiate)
    stopped = log_weights(model, guide, batch, particles=2, stop_guide=True)
    z = stopped.copies["z"].value
    everything = [*guide.parameters(), *model.parameters()]
    whole = torch.autograd.grad(stopped.log_q.sum(), everything, allow_unused=True, retain_graph=True)
    (by_z,) = torch.autograd.grad(stopped.log_q.sum(), [z], retain_graph=True)
    through_z = torch.autograd.grad(z, everything, by_z, allow_unused=True)
    for ours, theirs in zip(whole, through_z, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def elbos(oracle: LinearGaussian, guide: torch.nn.Module, batch: Batch, particles: int = 400) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return ELBO(particles=particles, kl="monte-carlo").terms(oracle, guide, batch).logs["elbo"]  # type: ignore[arg-type]


def in_order(worse: Tensor, better: Tensor, least: float = 0.0) -> None:
    """Paired, beyond 4 standard errors over the data: wrong once in 30,000."""
    difference = better - worse
    assert float(difference.mean() - 4 * difference.std() / len(difference) ** 0.5) > least


@pytest.mark.parametrize("family", ["full-rank", "mixture", "inverse-autoregressive"])
def test_steps_come_nearer_to_the_posterior(family: str) -> None:
    """From an encoder that has learnt nothing: each number of steps above the one before, all of them below log p(x),
    which the linear-Gaussian oracle knows."""
    oracle = LinearGaussian(data=6, latent=3, seed=9)
    batch = Batch(x=oracle.simulate(40))
    truth = oracle.log_marginal(batch.x)
    torch.manual_seed(0)
    base = guides.guides.get(family)(oracle, networks.encoder("mlp", (6,), (3,)))  # type: ignore[call-arg]
    found = []
    for steps in (0, 3, 12):
        guide = Refined(oracle, base, steps=steps).double()  # type: ignore[arg-type]
        found.append(elbos(oracle, guide, batch, 100))
    print([f"{float((truth - each).mean()):.3f}" for each in found])
    for worse, better in itertools.pairwise([*found, truth]):
        in_order(worse, better)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["full-rank", "mixture", "inverse-autoregressive", "planar"])
def test_between_a_weak_encoder_and_each_datums_own_optimum(family: str) -> None:
    """Amortized < semi-amortized <= local, of one family under one model, on 100 data; the encoder has a single feature
    for three posterior means. Local is the same guide with biases optimized by 500 steps of Adam."""
    oracle = LinearGaussian(data=6, latent=3, seed=9)
    batch = Batch(x=oracle.simulate(100), rows=torch.arange(100))
    found = {}
    for name in ("amortized", "semi-amortized"):
        torch.manual_seed(0)
        guide: Any = guides.guides.get(family)(oracle, networks.encoder("mlp", (6,), (1,)))  # type: ignore[call-arg]
        guide = (guide if name == "amortized" else guides.SemiAmortized(oracle, base=guide)).double()
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
        for _ in range(250):
            optimizer.zero_grad()
            ELBO(particles=4).differentiable_loss(oracle, guide, batch).div(100).backward()
            optimizer.step()
            schedule.step()
        found[name] = elbos(oracle, guide, batch)
        if name == "amortized":
            with fitted_locally(oracle, guide, Source(batch, oracle, guide), updates=500) as local:
                found["local"] = elbos(oracle, local.guide, local.data)
    print({name: f"{float((oracle.log_marginal(batch.x) - each).mean()):.4f}" for name, each in found.items()})
    in_order(found["amortized"], found["semi-amortized"], 0.5)
    in_order(found["semi-amortized"], found["local"], -0.05)


def test_by_name_in_one_line() -> None:
    train = DataSpec("some", "some", SHAPE, levels=2, units="binary", class_names=("a", "b", "c"))
    config = PairConfig(guide="semi-amortized", guide_options={"base": "spline+bins=4", "steps": 2}, hidden=(8,))
    assert config.guide_label == "semi-amortized:base=spline+bins=4:steps=2"
    _, guide = build(config, train)
    assert isinstance(guide, guides.SemiAmortized)
    assert isinstance(guide.refined, Refined)
    assert isinstance(guide.refined.guide, guides.Spline)
    assert guide.refined.guide.heads["z"].layers[0].knots.bins == 4
    assert guide.refined.steps == 2
    _, mixture = build(
        PairConfig(model="m2", guide="semi-amortized", guide_options={"base": "mixture"}, hidden=(8,)), train
    )
    assert isinstance(mixture.guide.refined.guide, guides.Mixture)  # type: ignore[union-attr]
    trained = guides.Planar(vae(), networks.encoder("mlp", SHAPE, (7,)))
    assert guides.SemiAmortized(vae(), base=trained).refined.guide is trained  # type: ignore[union-attr]


class Peculiar(guides.MeanField):
    """Draws by a program of its own."""

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        return super().forward(batch._replace(x=1.0 - batch.x), **latents)


class Heavy(networks.DiagonalNormal):
    def gaussian(self, numbers: Tensor) -> Any:
        loc, raw = numbers.chunk(2, dim=-1)
        return dist.Laplace(loc, raw.exp()).to_event(1)


class HeavyTails(guides.Amortized):
    head = Heavy


def test_what_cannot_be_refined_is_refused() -> None:
    model, encoder = vae(), networks.encoder("mlp", SHAPE, (7,))
    for guide, words in (
        (guides.Local(model, 5), "guide=Local is no amortized guide"),
        (guides.Delta(model, encoder), "guide=Delta is a point mass"),
        (guides.SemiAmortized(model, encoder), "guide=SemiAmortized draws from something else"),
        (Peculiar(model, encoder), "guide=Peculiar draws from something else"),
        (HeavyTails(model, encoder), "guide=HeavyTails cannot be refined: a draw of a Laplace is no known function"),
        (guides.MeanField(TwoLayer(), encoder), r"draws \['z2', 'z1'\], and the latents of VAE are \['z'\]"),
    ):
        with pytest.raises(InputError, match=words):
            Refined(model, guide)  # type: ignore[arg-type]
    for options, words in (
        ({"base": "local"}, "base='local' is no amortized guide"),
        ({"base": "semi-amortized"}, "base='semi-amortized' is no amortized guide"),
        ({"base": "splin"}, "base='splin' is not known"),
        ({"base": "spline+bin=3"}, "bin=3 does not fit base='spline'"),
        ({"base": "spline", "family": "full-rank"}, "each say what is refined"),
        ({"base": guides.MeanField(model, encoder)}, "has an encoder of its own"),
        ({"base": "mixture", "particles": 3}, "particles=3 must be an even number"),
        ({"base": "mixture", "lr": 1.5}, "lr=1.5 must be a number above 0"),
    ):
        with pytest.raises(InputError, match=words):
            guides.SemiAmortized(model, encoder, **options)  # type: ignore[arg-type]
    for base in ("mixture", None):
        with pytest.raises(InputError, match="encoder=None"):
            guides.SemiAmortized(model, base=base)
    with pytest.raises(InputError, match="shared by all data"):
        guides.SemiAmortized(GlobalWeight(), encoder, base="planar")
    guide = refined(model, "planar", steps=1, differentiate=True)
    batch = binary_batch()
    with pytest.raises(InputError, match="Wake trains model and guide on different things"):
        Wake(2).double().loss(model, guide, batch)
    with pytest.raises(InputError, match="runs the model that it was built with, a VAE, and this is another one"):
        ELBO().loss(vae(), guide, batch)
