"""Priors: densities that integrate to one, draws that have them, exact log p(x), and what the VampPrior shares."""

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import OF_ONE_MODEL
from torch import Tensor, nn

from ppl_vae import (
    ELBO,
    IWAE,
    STL,
    Batch,
    DReG,
    InputError,
    Wake,
    fit,
    fit_prior,
    guides,
    likelihoods,
    models,
    networks,
    priors,
)
from ppl_vae.build import DataSpec, PairConfig, build
from ppl_vae.core import Guide
from ppl_vae.data import DataSet
from ppl_vae.evaluate import log_marginal, sample
from ppl_vae.networks import Condition
from ppl_vae.testing import LinearGaussian, check_model
from ppl_vae.weights import log_weights

SHAPE = (1, 4, 4)
LEARNED = [name for name in priors.priors if name not in ("standard-normal", "vamp")]
OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {"components": 4},
    "vamp": {"components": 5},
    "flow": {"transforms": 2, "bins": 4},
    "autoregressive": {"components": 3},
    "energy": {"hidden": 16, "chains": 8, "steps": 2},
}


def shaken(name: str, size: int = 2, **options: Any) -> priors.Prior:
    """A prior in float64, away from where it starts."""
    scale = 0.1 if name == "flow" else 0.3  # a spline's steep pieces would fall between the points of a grid
    torch.manual_seed(0)
    given = {"shape": SHAPE} if name == "vamp" else {}
    prior = priors.priors.get(name)(size, **{**given, **OPTIONS.get(name, {}), **options}).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return prior


def vae(prior: priors.Prior | None = None, latent: int = 2) -> models.VAE:
    return models.VAE(networks.decoder("mlp", latent, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), latent, prior)


def pixels(n: int = 6) -> Tensor:
    return torch.randint(0, 2, (n, *SHAPE), generator=torch.Generator().manual_seed(0)).float()


def vamp_pair(guide: str = "mean-field", latent: int = 2, **options: Any) -> tuple[models.VAE, Guide]:
    torch.manual_seed(0)
    model = vae(priors.Vamp(latent, SHAPE, 5, start=pixels(20)), latent)
    q = guides.guides.get(guide)(model, networks.encoder("mlp", SHAPE, (8,)), **options)
    priors.bind(model, q)
    return model, q


def grid(width: float = 9.0, nodes: int = 250) -> tuple[Tensor, float]:
    """Midpoints of squares of the plane, (nodes², 2), and a square's area."""
    step = 2 * width / nodes
    line = torch.arange(nodes, dtype=torch.float64).add(0.5).mul(step).sub(width)
    return torch.cartesian_prod(line, line), step**2


def density(prior: priors.Prior, n: int = 1) -> Any:
    return prior(torch.empty(n, 0, dtype=torch.float64))


def bound_vamp() -> priors.Vamp:
    model, guide = vamp_pair()
    model.double()
    guide.double()
    with torch.no_grad():
        for parameter in (*guide.parameters(), *model.prior.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    bound_vamp.guide = guide  # type: ignore[attr-defined]  # the prior refers to it, and does not own it
    prior = model.prior
    assert isinstance(prior, priors.Vamp)
    return prior


@pytest.mark.parametrize("name", list(priors.priors))
def test_each_integrates_to_one_and_its_draws_have_its_density(name: str) -> None:
    # 9 cells by the quantiles of the grid's marginals; the false-alarm rate of chi-squared over them is 1e-4 a prior
    prior = bound_vamp() if name == "vamp" else shaken(name)
    z, area = grid()
    with torch.no_grad():
        mass = torch.cat([density(prior).log_prob(part) for part in z.split(40_000)]).exp() * area
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-3)
    edges = []
    for d in (0, 1):
        values, order = z[:, d].sort(stable=True)
        held = mass[order].cumsum(0) / mass.sum()
        # between two squares, so that every square lies on one side
        edges.append(torch.stack([values[(held < share).sum()] + area**0.5 / 2 for share in (1 / 3, 2 / 3)]))

    def cells(points: Tensor) -> Tensor:
        return sum(3 ** (1 - d) * torch.bucketize(points[:, d].contiguous(), edges[d]) for d in (0, 1))  # type: ignore[return-value]

    expected = torch.zeros(9, dtype=torch.float64).index_add(0, cells(z), mass / mass.sum())
    torch.manual_seed(1)
    n = 20_000
    with torch.no_grad():
        draws = density(prior, n).sample()
    assert draws.shape == (n, 2)
    counts = torch.bincount(cells(draws), minlength=9).double()
    assert expected.min() > 0.01
    chi_squared = ((counts - n * expected).square() / (n * expected)).sum().item()
    assert chi_squared < 31.8  # P(chi² of 8 degrees > 31.8) = 1e-4


@pytest.mark.parametrize("name", list(priors.priors))
def test_each_broadcasts(name: str) -> None:
    prior = bound_vamp() if name == "vamp" else shaken(name)
    p = density(prior, 4)
    assert (p.batch_shape, p.event_shape) == (torch.Size([4]), torch.Size([2]))
    z = torch.randn(3, 4, 2, dtype=torch.float64)
    whole = p.log_prob(z)
    assert whole.shape == (3, 4)
    for k in range(3):
        torch.testing.assert_close(whole[k], density(prior, 4).log_prob(z[k]))
    wide = prior(torch.empty(3, 4, 7, dtype=torch.float64))
    assert wide.sample().shape == (3, 4, 2)
    # a value of an enumerated class
    assert density(prior, 4).log_prob(z[:, :1, None]).expand(3, 1, 4).shape == (3, 1, 4)


@pytest.mark.parametrize("name", ["flow", "mixture", "standard-normal"])
def test_draws_pass_gradients(name: str) -> None:
    prior = shaken(name)
    draws = density(prior, 50).rsample()
    if name != "standard-normal":
        draws.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in prior.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_models_with_each(name: str) -> None:
    torch.manual_seed(0)
    check_model(vae(priors.priors.get(name)(3, **OPTIONS[name]), 3), Batch(x=pixels()))
    prior = priors.priors.get(name)(3, **OPTIONS[name])
    decoder = networks.decoder("mlp", 6, SHAPE, 1, (8,))
    given = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), 3, Condition(classes=3), prior)
    check_model(given, Batch(x=pixels(), y=torch.tensor([0, 1, 2, 0, 1, 2])))


def test_one_standard_component_is_the_standard_normal() -> None:
    z = torch.randn(50, 3)
    ours, plain = (prior(torch.empty(50, 0)).log_prob(z) for prior in (priors.Mixture(3, 1), priors.StandardNormal(3)))
    torch.testing.assert_close(ours, plain)


def test_a_mixture_starts_with_the_moments_of_the_standard_normal() -> None:
    torch.manual_seed(0)
    p = priors.Mixture(2, 5000)(torch.empty(1, 0))
    # the error of a variance of 5000 draws is 0.02
    assert bool((p.mean.abs() < 0.05).all())
    assert bool(((p.variance - 1.0).abs() < 0.08).all())


class Affine(nn.Module):
    """z -> W z + b as a likelihood's one parameter."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    weight: Tensor
    bias: Tensor

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T + self.bias).unsqueeze(-2)


class Exact(Guide):
    """p(z | x) of the linear-Gaussian model under a mixture prior, itself a mixture, and widened."""

    def __init__(self, model: models.VAE, sigma: float, widen: float = 1.0) -> None:
        super().__init__()
        self._model, self.sigma, self.widen = (model,), sigma, widen

    def posterior(self, x: Tensor) -> Any:
        model = self._model[0]
        w, b, prior = model.decoder.weight, model.decoder.bias, model.prior
        loc, scale = prior.loc, networks.soft_bound(prior.raw).exp()  # type: ignore[union-attr,arg-type]
        evidence = dist.MultivariateNormal(
            loc @ w.T + b, w @ scale.square().diag_embed() @ w.T + self.sigma**2 * torch.eye(len(w)).to(w)
        )
        precision = scale.square().reciprocal().diag_embed() + w.T @ w / self.sigma**2  # (K, Z, Z)
        target = (loc / scale.square())[None] + ((x - b) @ w / self.sigma**2)[:, None]
        means = torch.linalg.solve(precision, target.unsqueeze(-1)).squeeze(-1)  # (N, K, Z)
        log_joint = prior.logits.log_softmax(-1) + evidence.log_prob(x.unsqueeze(-2))  # type: ignore[union-attr,operator]
        parts = dist.MultivariateNormal(means, precision_matrix=precision / self.widen**2)
        return log_joint, dist.MixtureSameFamily(dist.Categorical(logits=log_joint), parts)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", self.posterior(batch.x)[1])}


def linear_gaussian(sigma: float = 0.75) -> tuple[models.VAE, Tensor]:
    """Its log p(x) is a mixture's, in closed form."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(5, 2, generator=generator), torch.randn(5, generator=generator)
    prior = shaken("mixture", components=3)
    model = models.VAE(Affine(weight, bias), likelihoods.Gaussian((5,), sigma), 2, prior).double()
    return model, sample(model, 40, seed=0).draw


def test_log_p_x_under_a_mixture_prior_is_exact() -> None:
    model, x = linear_gaussian()
    exact = Exact(model, 0.75)
    truth = exact.posterior(x)[0].logsumexp(-1)
    # under the posterior itself every weight is p(x)
    found = log_marginal(model, exact, x, particles=50, seed=0)
    torch.testing.assert_close(found.log_px, truth.detach(), rtol=0, atol=1e-9)
    # and under one that is not, within 4 standard errors: a false alarm in 1 of 400 sets of 40 data
    found = log_marginal(model, Exact(model, 0.75, widen=1.3), x, particles=4000, seed=0)
    assert bool(((found.log_px - truth).abs() < 4 * found.se).all())
    assert found.se.max() < 0.05


def test_the_mixture_priors_elbo_is_the_exact_one() -> None:
    model, x = linear_gaussian()
    truth = Exact(model, 0.75).posterior(x)[0].logsumexp(-1).sum()
    loss = ELBO(kl="auto").loss(model, _reparameterized(model), Batch(x=x))
    assert math.isfinite(loss)
    assert -loss < truth.item()


def _reparameterized(model: models.VAE) -> Guide:
    torch.manual_seed(0)
    return guides.MeanField(model, networks.encoder("mlp", (5,), (8,))).double()


def test_closed_form_kl_stays_closed_where_it_is_and_falls_back_where_not() -> None:
    model, _ = linear_gaussian()
    guide = _reparameterized(model)
    batch = Batch(x=torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(InputError, match="kl='analytic': no closed form is known for site 'z'"):
        ELBO(kl="analytic").loss(model, guide, batch)
    losses = []
    for kl in ("auto", "monte-carlo"):
        torch.manual_seed(0)
        losses.append(ELBO(kl=kl).loss(model, guide, batch))  # type: ignore[arg-type]
    assert losses[0] == losses[1]


# --- the VampPrior --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["mean-field", "full-rank"])
def test_with_all_the_data_it_is_the_aggregate_posterior(guide: str) -> None:
    model, q = vamp_pair(guide)
    model.double()
    q.double()
    x = pixels(20).double()
    prior = model.prior
    assert isinstance(prior, priors.Vamp)
    prior.components = 20
    prior.v = nn.Parameter((x - prior.loc) / prior.scale)
    z = torch.randn(7, 2, dtype=torch.float64)
    found = prior(torch.empty(7, 0)).log_prob(z)
    for i in range(7):
        each = [q.distribution(Batch(x=x[n : n + 1]))["z"].log_prob(z[i]).exp() for n in range(20)]
        assert found[i].item() == pytest.approx((sum(each) / 20).log().item(), abs=1e-10)  # type: ignore[union-attr]


def test_parameters_of_the_guide_are_the_guides_alone() -> None:
    model, guide = vamp_pair()
    assert [name for name in model.state_dict() if name.startswith("prior.")] == ["prior.v", "prior.loc", "prior.scale"]
    both = nn.ModuleList([model, guide])
    assert (
        len(list(both.parameters()))
        == len({id(p) for p in both.parameters()})
        == len([*model.parameters()]) + len([*guide.parameters()])
    )
    # a copy of the pair is a pair: the prior's guide is the copy's
    (copied,) = copy.deepcopy((both,))
    assert copied[0].prior._guide[0] is copied[1]


@pytest.mark.parametrize("objective", [STL(), DReG(3)])
def test_stopping_the_guide_does_not_stop_the_prior(objective: Any) -> None:
    """The gradient is what it would be if the prior owned a guide of the same weights, plus that one's."""
    model, guide = vamp_pair()
    apart = copy.deepcopy(model)
    twin = copy.deepcopy(guide)
    priors.bind(apart, twin)
    batch = Batch(x=pixels())
    torch.manual_seed(0)
    objective.differentiable_loss(model, guide, batch).backward()
    torch.manual_seed(0)
    other = copy.deepcopy(guide)
    other.zero_grad()
    copy.deepcopy(objective).differentiable_loss(apart, other, batch).backward()
    for mine, of_guide, of_prior in zip(guide.parameters(), other.parameters(), twin.parameters(), strict=True):
        assert of_prior.grad is not None
        assert bool(of_prior.grad.any())
        torch.testing.assert_close(mine.grad, of_guide.grad + of_prior.grad, rtol=1e-4, atol=1e-5)


def test_the_wake_phase_trains_the_guide_as_a_part_of_the_prior_too() -> None:
    model, guide = vamp_pair()
    Wake(3).differentiable_loss(model, guide, Batch(x=pixels())).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())


@pytest.mark.parametrize("name", [name for name in guides.guides if name not in OF_ONE_MODEL])
def test_guides_it_can_be_made_of_and_those_it_refuses(name: str) -> None:
    torch.manual_seed(0)
    model = vae(priors.Vamp(3, SHAPE, 4), 3)
    part: Any = guides.guides.get(name)
    guide = part(model, 6) if name == "local" else part(model, networks.encoder("mlp", SHAPE, (8,)))
    if name in ("local", "semi-amortized", "delta"):
        with pytest.raises(InputError, match=f"prior='vamp' is a mixture of .* {part.__name__} .*use another guide"):
            priors.bind(model, guide)
        with pytest.raises(InputError, match=r"call ppl_vae\.priors\.bind"):
            model(Batch(n=2))
        return
    priors.bind(model, guide)
    w = log_weights(model, guide, Batch(x=pixels()), particles=3)
    assert w.log_joint.shape[-2:] == (3, 6)
    assert bool(w.log_joint.isfinite().all())
    assert sample(model, 5, seed=0).draw.shape == (5, *SHAPE)


def test_what_no_vamp_prior_can_be_made_of() -> None:
    torch.manual_seed(0)
    layers = models.HierarchicalVAE(
        networks.decoder("mlp", 3, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), (3, 2), prior=priors.Vamp(2, SHAPE, 4)
    )
    encoder = networks.encoder("mlp", SHAPE, (8,))
    priors.bind(layers, guides.FullRank(layers, encoder))
    assert log_weights(layers, guides.FullRank(layers, encoder), Batch(x=pixels())).log_joint.shape == (1, 6)
    for part in (guides.TopDown, guides.BottomUp):
        with pytest.raises(InputError, match=f"{part.__name__} does not give it"):
            priors.bind(layers, part(layers, encoder))
    with pytest.raises(InputError, match="is made of a Guide; Linear is none"):
        priors.bind(layers, nn.Linear(1, 1))
    condition = Condition(classes=3)
    decoder = networks.decoder("mlp", 6, SHAPE, 1, (8,))
    given = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), 3, condition, priors.Vamp(3, SHAPE, 4))
    with pytest.raises(InputError, match="MeanField does not give it: this program is conditioned on one of 3 classes"):
        priors.bind(given, guides.MeanField(given, networks.encoder("mlp", SHAPE, (8,), condition)))


# --- by name --------------------------------------------------------------------------------------------------------


def bars(n: int = 64) -> DataSet:
    return DataSet.from_arrays(pixels(n).to(torch.uint8), levels=2, name="noise")


@pytest.mark.parametrize("name", list(priors.priors))
@pytest.mark.parametrize("model_name", ["vae", "hierarchical-vae"])
def test_pairs_by_name(name: str, model_name: str) -> None:
    torch.manual_seed(0)
    config = PairConfig(model_name, latent=4, hidden=(8,), prior=name, prior_options=OPTIONS.get(name, {}))
    data = bars()
    model, guide = build(config, data)
    assert isinstance(model.prior, priors.priors.get(name))
    assert PairConfig.from_json(config.to_json()) == config
    again, other = build(config, DataSpec.of(data))
    again.load_state_dict(model.state_dict())
    other.load_state_dict(guide.state_dict())
    torch.manual_seed(1)
    loss = ELBO().loss(model, guide, data.batch())
    torch.manual_seed(1)
    assert ELBO().loss(again, other, data.batch()) == pytest.approx(loss, rel=1e-6)


def test_pseudo_inputs_start_at_the_data() -> None:
    data = bars()
    model, _ = build(PairConfig(hidden=(8,), prior="vamp", prior_options={"components": 10}), data)
    prior = model.prior
    assert isinstance(prior, priors.Vamp)
    x = data.batch().x
    assert x is not None
    nearest = (prior.pseudo_inputs.flatten(1)[:, None] - x.flatten(1)).abs().mean(-1).min(1).values
    # noise of a tenth of the pixels' spread
    assert nearest.max() < 0.1


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_vamp_pair_trains(compile: bool) -> None:
    torch.manual_seed(0)
    data = bars()
    model, guide = build(PairConfig(hidden=(8,), prior="vamp", prior_options={"components": 4}), data)
    before = copy.deepcopy(model.prior.v)  # type: ignore[union-attr]
    result = fit(model, guide, data, IWAE(2), epochs=2, batch_size=16, progress=False, compile=compile)
    assert math.isfinite(result.elbo)
    assert not torch.equal(before, model.prior.v)  # type: ignore[union-attr,arg-type]
    assert not result.compiled.fallbacks


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: priors.Mixture(2, 0), "components=0 must be a whole number, 1 or more"),
        (lambda: priors.Mixture(2, 3, spread=1.0), r"spread=1\.0 must be a standard deviation"),
        (lambda: priors.Flow(0), "size=0"),
        (lambda: priors.Flow(2, transforms=0), "transforms=0"),
        (lambda: priors.Flow(2, kind="cuopling"), "kind='cuopling' is not known; did you mean 'coupling'"),  # type: ignore[arg-type]
        (lambda: priors.Flow(1, kind="coupling"), "size=1 has no halves"),
        (lambda: priors.Flow(2, bound=0.0), r"bound=0\.0"),
        (lambda: priors.Autoregressive(2, components=2.0), r"components=2\.0"),  # type: ignore[arg-type]
        (lambda: priors.Autoregressive(40, hidden=8), "hidden=8 must be at least"),
        (lambda: priors.Vamp(2, SHAPE, start=torch.zeros(3, 4)), r"start has shape \(3, 4\)"),
        (
            lambda: PairConfig("cvae", prior="flow", model_options={"prior": "learned"}),
            "prior='flow' and model='cvae:prior=learned' each name a prior",
        ),
        (lambda: PairConfig(prior="vampp"), "prior='vampp' is not known; did you mean 'vamp'"),
        (lambda: PairConfig(prior="flow", prior_options={"size": 3}), "size=3 does not fit prior='flow', which takes"),
        (lambda: priors.replace_prior(vae(), priors.Mixture(3)), r"over events \(3,\); site 'z' of VAE has \(2,\)"),
    ],
)
def test_what_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


# --- fitted afterwards ----------------------------------------------------------------------------------------------


class Codes(Guide):
    """q(z | x) = N(x, 0.1² I): the codes are the data, blurred."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.x is not None
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", dist.Normal(batch.x, 0.1).to_event(1))}


def two_clouds(n: int = 600) -> tuple[models.VAE, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(n, 2, generator=generator)
    x[: n // 3] += torch.tensor([2.0, -1.0])
    x[n // 3 :] += torch.tensor([-1.0, 1.5])
    return models.VAE(Affine(torch.eye(2), torch.zeros(2)), likelihoods.Gaussian((2,), 0.5), 2), x


@pytest.mark.parametrize(
    "name",
    [
        "mixture:components=2",
        "autoregressive:components=2",
        pytest.param("energy:hidden=64", marks=pytest.mark.slow),
        pytest.param("flow:transforms=2", marks=pytest.mark.slow),
    ],
)
def test_a_prior_fitted_to_codes_reaches_their_density(name: str) -> None:
    """The codes' density is known; maximum likelihood is at most as far from it as a mixture fitted in closed form."""
    model, x = two_clouds()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fitted = fit_prior(model, Codes(), x, name, epochs=40, lr=2e-2, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(model.prior, priors.StandardNormal)
    assert before.keys() == model.state_dict().keys()
    assert isinstance(fitted.prior, priors.priors.get(name.partition(":")[0]))
    torch.manual_seed(1)
    z = x + 0.1 * torch.randn_like(x)
    clouds = [x[: len(x) // 3], x[len(x) // 3 :]]
    best = torch.stack(
        [
            math.log(len(c) / len(x)) + dist.Normal(c.mean(0), (c.var(0) + 0.01).sqrt()).to_event(1).log_prob(z)
            for c in clouds
        ]
    ).logsumexp(0)
    with torch.no_grad():
        gained = fitted.prior(torch.empty(len(z), 0)).log_prob(z) - best
    # a flow's and a network's shape is near the clouds', 0.1 nats of some 2.0; the mixture's is the clouds' own
    assert gained.mean().item() > (-0.02 if name.startswith("mixture") else -0.15)
    # and the ELBO has risen by as much as the prior gives the codes
    plain = model.prior(torch.empty(len(z), 0)).log_prob(z)
    assert gained.mean() + best.mean() > plain.mean() + 1.0


def test_priors_are_fitted_under_any_guide_and_model() -> None:
    data = bars()
    for model_name, guide_name in (
        ("vae", "mixture"),
        ("vae", "local"),
        ("hierarchical-vae", "top-down"),
    ):
        torch.manual_seed(0)
        model, guide = build(PairConfig(model_name, guide_name, latent=4, hidden=(8,)), data)
        weights = [p.clone() for p in (*model.parameters(), *guide.parameters())]
        fitted = fit_prior(model, guide, data, "mixture:components=2", epochs=2, progress=False)
        after = [*model.parameters(), *guide.parameters()]
        assert all(p.requires_grad for p in after)
        assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
        bound = ELBO(kl="monte-carlo").loss(fitted, guide, data.batch())
        assert math.isfinite(bound)


def test_one_gaussian_fitted_to_codes_is_their_moments() -> None:
    model, x = two_clouds()
    fitted = fit_prior(model, Codes(), x, "mixture:components=1", epochs=200, lr=5e-2, batch_size=600, progress=False)
    p = fitted.prior(torch.empty(1, 0))  # type: ignore[operator]
    # the noise of the codes themselves: 0.1 / sqrt(600) in a mean, whatever the draws of the last steps
    torch.testing.assert_close(p.mean[0], x.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(p.variance[0], x.var(0, unbiased=False) + 0.01, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ("vamp", "prior='vamp' is made of the guide, and trained with it: fit 'mixture'"),
        ("standard-normal", "has no parameters"),
        ("flwo", "prior='flwo' is not known; did you mean 'flow'"),
        (priors.Mixture(3), r"over events \(3,\)"),
    ],
)
def test_priors_that_cannot_be_fitted(prior: Any, says: str) -> None:
    model, x = two_clouds()
    with pytest.raises(InputError, match=says):
        fit_prior(model, Codes(), x, prior, progress=False)


def test_models_without_a_prior_to_replace() -> None:
    with pytest.raises(InputError, match="LinearGaussian has no prior that can be another one"):
        fit_prior(LinearGaussian(), Codes(), torch.zeros(4, 5))
