"""Guides of shared latents, and both kinds together, against Gaussian models whose evidence is known."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from affine import Identity, numbers, set_gaussian
from programs import GlobalWeight, TwoLayer
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    Guide,
    InputError,
    LatentModel,
    LatentSpec,
    Renyi,
    guides,
    log_weights,
    networks,
    scale_data,
)
from ppl_vae.guides import Combined, Shared, datum_part
from ppl_vae.networks import join
from ppl_vae.testing import check_compiled, check_guide, check_model, check_objective

FAMILIES = ["mean-field", "full-rank", "point"]


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


class UnknownMean(LatentModel):
    """w ~ N(0, 2² I), z_n ~ N(w, 0.6² I), x_n ~ N(z_n, I)."""

    prior, within, noise = 2.0, 0.6, 1.0

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = size
        self.latents = {
            "w": LatentSpec(torch.Size([size]), scope="global"),
            "z": LatentSpec(torch.Size([size]), parents=("w",)),
        }
        self.register_buffer("one", torch.ones(size, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        w = pyro.sample("w", dist.Normal(0.0 * self.one, self.prior * self.one).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(w, self.within * self.one).to_event(1))
            return pyro.sample("x", dist.Normal(z, self.noise * self.one).to_event(1), obs=batch.x)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_1, ..., x_N), of each dimension an N-dimensional Gaussian."""
        n = len(x)
        covariance = (self.within**2 + self.noise**2) * eye(n) + self.prior**2 * torch.ones(n, n).double()
        return dist.MultivariateNormal(torch.zeros(n).double(), covariance).log_prob(x.T).sum()

    def posterior_of_w(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.prior**-2 + len(x) / (self.within**2 + self.noise**2)
        return x.sum(0) / (self.within**2 + self.noise**2) / precision, eye(self.size) / precision


class Regression(LatentModel):
    """bias ~ N(0, 1), slope ~ N(0, I), z_n ~ N(0, 0.6²), x_n ~ N(bias + slope · context_n + z_n, 0.5²)."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.latents = {
            "bias": LatentSpec(torch.Size([1]), scope="global"),
            "slope": LatentSpec(torch.Size([width]), scope="global"),
            "z": LatentSpec(torch.Size([1])),
        }
        self.register_buffer("one", torch.ones(width, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        bias = pyro.sample("bias", dist.Normal(0.0 * self.one[:1], self.one[:1]).to_event(1))
        slope = pyro.sample("slope", dist.Normal(0.0 * self.one, self.one).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0 * self.one[:1], 0.6 * self.one[:1]).to_event(1))
            loc = bias + (slope * batch.context).sum(-1, keepdim=True) + z
            return pyro.sample("x", dist.Normal(loc, 0.5 * self.one[:1]).to_event(1), obs=batch.x)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and covariance of (bias, slope)."""
        design = torch.cat([torch.ones_like(batch.x), batch.context], -1)
        variance = 0.6**2 + 0.5**2
        covariance = torch.linalg.inv(eye(1 + self.width) + design.T @ design / variance)
        return covariance @ design.T @ batch.x[:, 0] / variance, covariance

    def log_evidence(self, batch: Batch) -> Tensor:
        design = torch.cat([torch.ones_like(batch.x), batch.context], -1)
        n = batch.size
        covariance = design @ design.T + (0.6**2 + 0.5**2) * eye(n)
        return dist.MultivariateNormal(torch.zeros(n).double(), covariance).log_prob(batch.x[:, 0])


class OfRegression(networks.Encoder):
    """x, context and the shared latents, beside the product of slope and context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = 3

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        return join(batch.x, latents["bias"], (latents["slope"] * batch.context).sum(-1, keepdim=True))


def unknown_mean(n: int = 12, seed: int = 0) -> tuple[UnknownMean, Batch]:
    generator = torch.Generator().manual_seed(seed)
    return UnknownMean(), Batch(x=1.5 + torch.randn(n, 2, generator=generator, dtype=torch.float64))


def regression(n: int = 12) -> tuple[Regression, Batch]:
    generator = torch.Generator().manual_seed(0)
    context = 0.8 + torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x = context.sum(-1, keepdim=True) + torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return Regression(), Batch(x=x, context=context)


def set_shared(shared: Guide, mean: Tensor, covariance: Tensor) -> None:
    """Make q(w) this Gaussian, over all sites one after another; the diagonal family takes the variances alone."""
    assert isinstance(shared, Shared)
    start = 0
    with torch.no_grad():
        for name in shared.sites:
            end = start + shared.heads[name].numel
            gain = torch.linalg.solve(covariance[:start, :start], covariance[:start, start:end]).T
            left = covariance[start:end, start:end] - gain @ covariance[:start, start:end]
            shared.loc[name].copy_(mean[start:end])
            shared.spread[name].copy_(numbers(left, shared.family == "mean-field"))
            if name in shared.slope:
                shared.slope[name].copy_(gain)
            start = end


def exact(model: UnknownMean, batch: Batch) -> Combined:
    """q(w) q(z | x, w), the posterior."""
    local = guides.MeanField(datum_part(model), Identity(4))
    precise, share = model.within**-2 + model.noise**-2, model.noise**-2
    gain = torch.cat([eye(2) * share, eye(2) * model.within**-2], 1) / precise
    guide = Combined(model, local.double(), "mean-field", given="w").double()
    set_gaussian(local.heads["z"], gain, torch.zeros(2), eye(2) / precise)
    set_shared(guide.shared, *model.posterior_of_w(batch.x))
    return guide


def test_with_the_posterior_every_draw_gives_the_log_evidence() -> None:
    model, batch = unknown_mean()
    guide = exact(model, batch)
    for particles in (1, 4):
        bound = -ELBO(kl="monte-carlo", particles=particles).differentiable_loss(model, guide, batch)
        torch.testing.assert_close(bound, model.log_evidence(batch.x), rtol=0, atol=1e-10)
    w = log_weights(model, guide, batch, particles=3)
    assert w.shared == ("w",)
    assert {name: tuple(value.shape) for name, value in w.draws.items()} == {"w": (3, 1, 2), "z": (3, 12, 2)}
    assert w.same_order


def test_minibatches_average_to_the_whole() -> None:
    """ELBO(data_size=N): with the posterior of z given w, nothing is random but w, drawn alike for all."""
    model, batch = unknown_mean()
    guide = exact(model, batch)
    with torch.no_grad():
        guide.shared.loc["w"].add_(0.3)  # some q(w): then the bound depends on the draw of w
    objective = ELBO(kl="monte-carlo", data_size=12)

    def loss(rows: slice) -> Tensor:
        torch.manual_seed(3)  # w is drawn first
        part = batch.take(rows)
        return 12 / part.size * objective.differentiable_loss(model, guide, part)

    whole = loss(slice(None))
    parts = torch.stack([loss(slice(i, i + 3)) for i in range(0, 12, 3)])
    torch.testing.assert_close(parts.mean(), whole, rtol=0, atol=1e-10)
    assert float(parts.detach().std()) > 0.1
    torch.manual_seed(3)
    torch.testing.assert_close(ELBO(kl="monte-carlo").differentiable_loss(model, guide, batch), whole)
    # counted whole in every minibatch, w would have four times its divergence
    torch.manual_seed(3)
    wrong = 4 * ELBO(kl="monte-carlo").differentiable_loss(model, guide, batch.take(slice(0, 3)))
    assert abs((wrong - parts[0]).item()) > 1.0


def test_minibatches_are_those_of_pyros_loss() -> None:
    model, batch = unknown_mean()
    guide = Combined(model, guides.MeanField(datum_part(model), Identity(2)), "full-rank").double()
    part = batch.take(slice(0, 3))
    torch.manual_seed(0)
    ours = 4 * ELBO(kl="monte-carlo", data_size=12, particles=2).differentiable_loss(model, guide, part)
    theirs = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    loss = theirs.differentiable_loss(scale_data(4.0)(model), scale_data(4.0)(guide), part)
    torch.testing.assert_close(ours, loss)


def test_correlations_within_and_between_shared_sites() -> None:
    """Full-rank holds the posterior of a regression; a diagonal one is off by a known divergence."""
    model, batch = regression()
    mean, covariance = model.posterior(batch)
    precise, share = 0.6**-2 + 0.5**-2, 0.5**-2
    gain = torch.tensor([[share, -share, -share]], dtype=torch.float64) / precise
    bounds = {}
    for family in ("full-rank", "mean-field"):
        local = guides.MeanField(datum_part(model), OfRegression(3))
        guide = Combined(model, local, family, given=("bias", "slope")).double()  # type: ignore[arg-type]
        set_gaussian(local.heads["z"], gain, torch.zeros(1), eye(1) / precise)
        diagonal = torch.linalg.inv(covariance).diagonal().reciprocal().diag()
        set_shared(guide.shared, mean, covariance if family == "full-rank" else diagonal)
        with torch.no_grad():
            bounds[family] = -ELBO(kl="monte-carlo", particles=4000).terms(model, guide, batch).loss.sum()
            one = -ELBO(kl="monte-carlo").terms(model, guide, batch).loss.sum()
        if family == "full-rank":
            torch.testing.assert_close(one, model.log_evidence(batch), rtol=0, atol=1e-10)
    precision = torch.linalg.inv(covariance)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert float(gap) > 0.3
    torch.testing.assert_close(bounds["full-rank"], model.log_evidence(batch), rtol=0, atol=1e-10)
    # the standard deviation of a draw's gap is below 2 nats: 0.15 is more than 4 standard errors
    assert abs(float(model.log_evidence(batch) - bounds["mean-field"] - gap)) < 0.15


def test_a_point_gives_the_joint_density() -> None:
    """Its ELBO is E[log p(x, z, w) - log q(z)] at w: with p(z | x, w), log p(x, w)."""
    model, batch = unknown_mean()
    guide = exact(model, batch)
    point = Combined(model, guide.local, Shared(model, "point", start={"w": torch.tensor([1.0, -0.5])}), "w").double()
    w = torch.tensor([1.0, -0.5]).double()
    variance = model.within**2 + model.noise**2
    joint = (
        dist.Normal(w, math.sqrt(variance)).log_prob(batch.x).sum() + dist.Normal(0.0, model.prior).log_prob(w).sum()
    )
    bound = -ELBO(kl="monte-carlo").differentiable_loss(model, point, batch)
    torch.testing.assert_close(bound, joint)
    assert not point.scores_given


class OnSupports(LatentModel):
    """Shared latents on other supports than the real line, one of them a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "rate": LatentSpec(torch.Size([2]), constraints.positive, scope="global"),
            "share": LatentSpec(torch.Size([3]), constraints.simplex, scope="global"),
            "map": LatentSpec(torch.Size([3, 2]), scope="global"),
            "z": LatentSpec(torch.Size([2])),
        }
        self.register_buffer("one", torch.ones(3, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        one = self.one
        rate = pyro.sample("rate", dist.Gamma(2.0 * one[:2], one[:2]).to_event(1))
        share = pyro.sample("share", dist.Dirichlet(2.0 * one))
        weight = pyro.sample("map", dist.Normal(torch.zeros(3, 2).to(one), torch.ones(3, 2).to(one)).to_event(2))
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0 * one[:2], one[:2]).to_event(1))
            loc = share * (weight @ (rate * z).unsqueeze(-1)).squeeze(-1)
            return pyro.sample("x", dist.Normal(loc, one).to_event(1), obs=batch.x)


@pytest.mark.parametrize("family", ["mean-field", "point"])
def test_the_contract_on_other_supports(family: Any) -> None:
    model, batch = OnSupports(), Batch(x=torch.randn(5, 3, dtype=torch.float64))
    check_model(model, batch)
    guide = Combined(model, guides.FullRank(datum_part(model), networks.encoder("mlp", (3,), (5,))), family).double()
    check_guide(guide, model, batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", [(), ("w",)])
def test_the_contract(family: Any, given: tuple[str, ...]) -> None:
    model, batch = GlobalWeight(), Batch(x=torch.randn(5, 6, dtype=torch.float64))
    local = guides.TopDown if given else guides.MeanField
    encoder = networks.encoder("mlp", (6,), (5,), latents=6 * len(given))
    check_guide(Combined(model, local(datum_part(model), encoder), family, given).double(), model, batch)


def test_the_objectives_that_take_it() -> None:
    model, batch = GlobalWeight(), Batch(x=torch.randn(5, 6, dtype=torch.float64))
    encoder = networks.encoder("mlp", (6,), (5,), latents=6)
    guide = Combined(model, guides.FullRank(datum_part(model), encoder), "full-rank", "w").double()
    check_objective(ELBO(data_size=50), model, guide, batch)
    check_compiled(model, guide, ELBO(data_size=50), batch, steps=3)
    for objective in (IWAE(), Renyi()):
        with pytest.raises(InputError, match="'w' lies outside of the data plate and is shared by all data"):
            objective.terms(model, guide, batch)


def test_the_contract_with_several_shared_sites() -> None:
    model, batch = regression()
    local = guides.MeanField(datum_part(model), networks.encoder("mlp", (1,), (5,)))
    check_guide(Combined(model, local, "full-rank").double(), model, batch)


class Layers(LatentModel):
    """w -> z2 -> z1 -> x, w shared."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "w": LatentSpec(torch.Size([2]), scope="global"),
            "z2": LatentSpec(torch.Size([2]), parents=("w",)),
            "z1": LatentSpec(torch.Size([2]), parents=("z2",)),
        }
        self.register_buffer("one", torch.ones(2, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        w = pyro.sample("w", dist.Normal(0.0 * self.one, self.one).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            z2 = pyro.sample("z2", dist.Normal(w, self.one).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, self.one).to_event(1))
            return pyro.sample("x", dist.Normal(z1, self.one).to_event(1), obs=batch.x)


@pytest.mark.parametrize("kind", [guides.BottomUp, guides.TopDown])
def test_a_shared_parent_reaches_the_layers_that_depend_on_it(kind: type[Guide]) -> None:
    model, batch = Layers(), Batch(x=torch.randn(4, 2, dtype=torch.float64))
    encoder = networks.encoder("mlp", (2,), (5,), latents=2)
    local: Any = kind(datum_part(model), encoder)  # type: ignore[call-arg]
    assert local.sees_data == {"z1": True, "z2": True}  # upwards too: p(z2 | z1, w)
    check_guide(Combined(model, local, given=["w"]).double(), model, batch)


def test_shared_alone() -> None:
    """A model without latents of each datum: Bayesian linear regression, say."""

    class Alone(LatentModel):
        def __init__(self) -> None:
            super().__init__()
            self.latents = {"w": LatentSpec(torch.Size([2]), scope="global")}
            self.one = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, batch: Batch) -> Tensor:
            w = pyro.sample("w", dist.Normal(0.0 * self.one, self.one.abs()).to_event(1))
            with pyro.plate("data", batch.size, dim=-1):
                return pyro.sample("x", dist.Normal(w, torch.ones_like(w)).to_event(1), obs=batch.x)

    model = Alone()
    check_guide(Shared(model, "full-rank").double(), model, Batch(x=torch.randn(4, 2, dtype=torch.float64)))
    with pytest.raises(InputError, match="Alone declares no latents of each datum: use the guide of the shared ones"):
        Combined(model, Shared(model))


def test_where_it_starts() -> None:
    model = OnSupports()
    start = {"rate": torch.tensor([3.0, 0.5]), "share": torch.tensor([0.2, 0.3, 0.5]), "map": torch.randn(3, 2)}
    point = Shared(model, "point", start=start)
    for name, value in point(Batch(n=2)).items():
        torch.testing.assert_close(value, start[name])
    wide = Shared(GlobalWeight(), scale=2.5).distribution(Batch(n=2))["w"]
    torch.testing.assert_close(wide.stddev, torch.full((6,), 2.5))
    assert wide.batch_shape == ()


def test_what_shared_refuses() -> None:
    model = OnSupports()
    for says, options in (
        (r"family='low-rank' is not known; .*choose one of: full-rank, mean-field, point", {"family": "low-rank"}),
        (
            r"'map' of OnSupports has events \(3, 2\): declare it as a vector, or use 'mean-field'",
            {"family": "full-rank"},
        ),
        ("scale=0 must be a standard deviation", {"scale": 0}),
        ("scale=-1.0", {"scale": -1.0}),
        ("scale='1'", {"scale": "1"}),
        (
            r"start has 'z'; the latents of OnSupports that all data share are \['rate', 'share', 'map'\]",
            {"start": {"z": torch.zeros(2)}},
        ),
        (r"start\['rate'\] has shape \(3,\); the site has events \(2,\)", {"start": {"rate": torch.ones(3)}}),
        (r"start\['rate'\] is outside of the site's support", {"start": {"rate": -torch.ones(2)}}),
    ):
        with pytest.raises(InputError, match=says):
            Shared(model, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TwoLayer declares no latent that all data share"):
        Shared(TwoLayer())


def test_a_discrete_shared_site_is_named() -> None:
    model = TwoLayer()
    model.latents = {"k": LatentSpec(torch.Size(), constraints.integer_interval(0, 2), scope="global")}
    with pytest.raises(InputError, match="'k' of TwoLayer is discrete and shared by all data"):
        Shared(model)


def test_what_combined_refuses() -> None:
    model = Layers()
    encoder = networks.encoder("mlp", (2,), (5,))
    part = datum_part(model)
    half = datum_part(model)
    half.latents = {"z2": model.latents["z2"]}
    more = datum_part(model)
    more.latents = {**part.latents, "z0": LatentSpec(torch.Size([1]))}
    local = guides.MeanField(part, encoder)
    for says, arguments in (
        (r"local=MeanField misses 'z1' of Layers; it draws \['z2'\]", {"local": guides.MeanField(half, encoder)}),
        (
            r"local=MeanField draws 'z0', which is not its to draw; of Layers",
            {"local": guides.MeanField(more, encoder)},
        ),
        ("local=Shared misses 'z2', 'z1' of Layers", {"local": Shared(model)}),
        ("shared=MeanField misses 'w' of Layers", {"local": local, "shared": local}),
        ("family='diagonal' is not known", {"local": local, "shared": "diagonal"}),
        (
            r"given=\('z2',\) has 'z2'; the latents of Layers that all data share are \['w'\]",
            {"local": local, "given": "z2"},
        ),
    ):
        with pytest.raises(InputError, match=says):
            Combined(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TwoLayer declares no latent that all data share"):
        Combined(TwoLayer(), local)

    class Deaf(Guide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise AssertionError

    with pytest.raises(InputError, match=r"given=\('w',\): Deaf takes no values of other latents"):
        Combined(model, Deaf(), given=("w",))


def test_an_encoder_that_takes_no_latents_is_named_with_what_hands_them_on() -> None:
    model, batch = GlobalWeight(), Batch(x=torch.randn(4, 6).double())
    match = (
        r"the encoder is handed 'w', 6 numbers beside x, and was made for 0: encoder\(..., latents=6\); .*"
        r"Combined\(..., given=...\)"
    )
    encoder = networks.encoder("mlp", (6,), (5,))
    guide = Combined(model, guides.MeanField(datum_part(model), encoder), given=("w",)).double()
    with pytest.raises(InputError, match=match):
        ELBO(data_size=4).loss(model, guide, batch)
    taking = networks.encoder("mlp", (6,), (5,), latents=6).double()
    with pytest.raises(InputError, match="is handed no other latents, 0 numbers beside x, and was made for 6"):
        taking(batch)


def test_pyros_autoguides_are_no_parts() -> None:
    model, _ = unknown_mean()
    local = guides.MeanField(datum_part(model), networks.encoder("mlp", (2,), (5,)))
    for auto in (AutoNormal(model), AutoNormal):
        with pytest.raises(
            InputError, match=r"shared.*AutoNormal, which is no Guide: Pyro's autoguides make their par"
        ):
            Combined(model, local, shared=auto)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"local is a AutoNormal, which is no Guide: .*; give a Guide$"):
        Combined(model, AutoNormal(model))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shared is a Linear, which is no Guide; give a Guide or a family of Shared"):
        Combined(model, local, shared=torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_guide_that_runs_the_model_has_to_know_what_is_shared() -> None:
    model, batch = GlobalWeight(), Batch(x=torch.randn(5, 6, dtype=torch.float64))

    def guide(given: tuple[str, ...]) -> Combined:
        encoder = networks.encoder("mlp", (6,), (5,), latents=6 * len(given))
        return Combined(model, guides.SemiAmortized(datum_part(model), encoder, steps=2), given=given).double()

    check_guide(guide(("w",)), model, batch)
    with pytest.raises(InputError, match=r"'w', which all data share, is not known to it; .*given=\('w',\)"):
        guide(())(batch)
    ours = {p.data_ptr() for p in guide(("w",)).parameters()}
    assert not ours & {p.data_ptr() for p in model.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(("given", "lower"), [(("w",), False), ((), True)])
def test_trained_on_minibatches_it_reaches_the_log_evidence(given: tuple[str, ...], lower: bool) -> None:
    """q(w) q(z | x, w) does; without w in q(z | x) a divergence is left, that of independent Gaussians."""
    n = 60
    model, batch = unknown_mean(n)
    torch.manual_seed(0)
    local = guides.MeanField(datum_part(model), Identity(4 if given else 2))
    guide = Combined(model, local, given=given).double()
    optim = torch.optim.Adam(guide.parameters(), 0.05)
    steps = 3000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    objective = ELBO(kl="monte-carlo", data_size=n)
    for step in range(steps):
        if step % 3 == 0:
            epoch = torch.randperm(n).split(20)
        rows = epoch[step % 3]
        optim.zero_grad()
        objective.differentiable_loss(model, guide, batch.take(rows)).div(20).backward()
        optim.step()
        schedule.step()
    with torch.no_grad():
        bound = -ELBO(kl="monte-carlo", particles=4000).terms(model, guide, batch).loss.sum()
    gap = float(model.log_evidence(batch.x) - bound)
    # of the joint posterior's precision: half of log Π diagonal - log det
    across, own, top = -(model.within**-2), model.within**-2 + model.noise**-2, model.prior**-2 + n * model.within**-2
    known = 2 * 0.5 * (math.log(top) - math.log(top - n * across**2 / own))
    assert known > 1.0
    assert abs(gap - (known if lower else 0.0)) < 0.15  # of 60 data: 0.0025 nats a datum


def test_a_part_with_parameters_for_each_datum_notes_its_data() -> None:
    model = UnknownMean()
    guide = Combined(model, guides.Local(datum_part(model), 5)).double()
    guide.knows(3, "any")
    guide.belongs(3, "first")
    guide.belongs(3, "first")
    for check in (guide.knows, guide.belongs):
        with pytest.raises(InputError, match=r"Local has parameters .* and 'second' is another one"):
            check(4, "second")
    fresh = guide.renew(7)
    fresh.belongs(4, "second")
    guide.knows(3, "first")
    amortized = Combined(model, guides.MeanField(datum_part(model), networks.encoder("mlp", (2,), (4,))))
    amortized.belongs(3, "first")
    amortized.belongs(4, "second")
