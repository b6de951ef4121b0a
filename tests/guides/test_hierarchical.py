"""The guides of hierarchical models, against chains and graphs of Gaussians that are exact."""

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from affine import Identity, set_gaussian
from programs import SHAPE, GlobalWeight, SemiSupervised, TwoLayer, binary_batch, vae
from torch import Tensor
from torch.distributions import constraints

from ppl_vae import (
    ELBO,
    IWAE,
    Batch,
    Guide,
    InputError,
    LatentModel,
    LatentSpec,
    guides,
    log_weights,
    networks,
)
from ppl_vae.guides.hierarchical import faithful_inverse
from ppl_vae.kl import closed_form_kl
from ppl_vae.networks import join
from ppl_vae.testing import LinearGaussianChain, check_guide, check_model

BOTH = [guides.BottomUp, guides.TopDown]
both = pytest.mark.parametrize("kind", BOTH, ids=lambda kind: kind.__name__)
ONE = torch.Size([1])


def affine(kind: type[Guide], chain: LinearGaussianChain, family: str = "full-rank", **options: object) -> Guide:
    return kind(chain, Identity(chain.parts["x"].stop - chain.parts["x"].start), family, hidden=0, **options).double()  # type: ignore[call-arg]


def exact(kind: type[Guide], chain: LinearGaussianChain, family: str = "full-rank") -> Guide:
    """The posterior itself, in the guide's own parameters."""
    guide = affine(kind, chain, family)
    for site, conditional in guide.conditionals.items():
        given = [*(["x"] if guide.sees_data[site] else []), *guide.given[site]]
        set_gaussian(conditional.head, *chain.conditional(site, given))
    return guide


@both
@pytest.mark.parametrize("latent", [(3,), (3, 2), (2, 3, 1), (1, 2, 1, 2)])
def test_with_exact_parameters_every_draw_gives_log_px(kind: type[Guide], latent: tuple[int, ...]) -> None:
    chain = LinearGaussianChain(latent=latent)
    batch = Batch(x=chain.simulate(6))
    guide = exact(kind, chain)
    log_px = chain.log_marginal(batch.x)
    log_w = log_weights(chain, guide, batch, particles=5).log_w
    torch.testing.assert_close(log_w, log_px.expand(5, 6), rtol=0, atol=1e-10)
    for objective in (ELBO(kl="monte-carlo"), IWAE(3)):
        torch.testing.assert_close(-objective.terms(chain, guide, batch).loss, log_px, rtol=0, atol=1e-10)


@both
def test_the_kl_of_auto_is_right(kind: type[Guide]) -> None:
    """In closed form downwards, of the draw upwards, where the closed form would be biased."""
    chain = LinearGaussianChain(latent=(3, 2))
    batch = Batch(x=chain.simulate(3))
    torch.manual_seed(0)
    guide = exact(kind, chain)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    count, losses = 20_000, {}
    with torch.no_grad():
        for kl in ("auto", "monte-carlo"):
            torch.manual_seed(1)
            losses[kl] = ELBO(kl=kl, particles=count).terms(chain, guide, batch).loss  # type: ignore[arg-type]
        w = log_weights(chain, guide, batch, particles=count)
        # how far a closed form of every site is off, on the same draws
        closed = sum(closed_form_kl(pair.guide, pair.model) for pair in w.pairs.values())
        off = closed - (w.log_q + w.log_likelihood - w.log_joint)
        bias, error = off.mean(0), off.std(0) / math.sqrt(count)
    if kind is guides.TopDown:
        assert w.same_order
        assert bool((bias.abs() < 4.5 * error).all())  # false alarms: 3 in 150,000
        difference = losses["auto"] - losses["monte-carlo"]
        assert bool((difference.abs() < 4.5 * error).all())
        assert not torch.equal(*losses.values())
    else:
        assert not w.same_order
        assert torch.equal(losses["auto"], losses["monte-carlo"])
        assert bool((bias.abs() > 20 * error).all())
        with pytest.raises(InputError, match="different orders"):
            ELBO(kl="analytic").terms(chain, guide, batch)


@both
@pytest.mark.parametrize("family", ["mean-field", "full-rank"])
def test_one_latent_makes_an_ordinary_amortized_guide(kind: type[Guide], family: str) -> None:
    model, batch = vae(), binary_batch()
    ordinary = {"mean-field": guides.MeanField, "full-rank": guides.FullRank}[family]
    pair, draws = [], []
    for make in (lambda encoder: kind(model, encoder, family), lambda encoder: ordinary(model, encoder)):  # type: ignore[call-arg]
        torch.manual_seed(0)
        pair.append(make(networks.encoder("mlp", SHAPE, (7,))).double())
        draws.append(pair[-1](batch)["z"])
    assert all(torch.equal(a, b) for a, b in zip(*(guide.parameters() for guide in pair), strict=True))
    assert torch.equal(*draws)
    assert torch.equal(*(guide.distribution(batch)["z"].mean for guide in pair))


class Graph(LatentModel):
    """Scalars z_i ~ N(Σ_parents a z, 1) on any graph, and x ~ N(B z, I) of the sites on which no other depends."""

    def __init__(self, parents: Mapping[str, tuple[str, ...]], seed: int = 0) -> None:
        super().__init__()
        self.latents = {name: LatentSpec(ONE, parents=of) for name, of in parents.items()}
        self.leaves = [name for name in parents if not any(name in of for of in parents.values())]
        torch.manual_seed(seed)
        self.weight = torch.nn.ParameterDict(
            {
                f"{name}_{of}": torch.nn.Parameter(1.0 + torch.rand(1).double())
                for name in parents
                for of in parents[name]
            }
        )
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))
        self.register_buffer("to_x", 1.0 + torch.rand(len(self.leaves), len(self.leaves)).double())

    def forward(self, batch: Batch) -> Tensor:
        drawn: dict[str, Tensor] = {}
        with pyro.plate("data", batch.size, dim=-1):
            for name, spec in self.latents.items():
                loc = sum((self.weight[f"{name}_{of}"] * drawn[of] for of in spec.parents), 0.0 * self.one)
                drawn[name] = pyro.sample(name, dist.Normal(loc, self.one).to_event(1))
            loc = join(*(drawn[name] for name in self.leaves)) @ self.to_x.T
            return pyro.sample("x", dist.Normal(loc, self.one).to_event(1), obs=batch.x)

    def precision(self) -> Tensor:
        """Of (sites, x) together."""
        names, size = list(self.latents), len(self.latents) + len(self.leaves)
        residual = torch.eye(size, dtype=torch.float64)  # of each variable from its mean, as a function of all
        for i, (name, spec) in enumerate(self.latents.items()):
            for of in spec.parents:
                residual[i, names.index(of)] = -self.weight[f"{name}_{of}"].item()
        for i, name in enumerate(self.leaves):
            residual[len(names) :, names.index(name)] = -self.to_x[:, i]
        return residual.T @ residual


GRAPHS: dict[str, dict[str, tuple[str, ...]]] = {
    "chain": {"c": (), "b": ("c",), "a": ("b",)},
    "collider": {"a": (), "b": (), "c": ("a", "b")},
    "siblings": {"a": (), "b": ("a",), "c": ("a",)},
    "diamond": {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")},
    "skip": {"a": (), "b": ("a",), "c": ("b",), "d": ("a", "c")},
    "apart": {"a": (), "b": ()},
    "tree": {"a": (), "b": ("a",), "c": ("a",), "d": ("b",), "e": ("b",), "f": ("c",)},
    "two roots": {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("b",)},
}
every_graph = pytest.mark.parametrize("name", list(GRAPHS))


@every_graph
@pytest.mark.parametrize("upwards", [True, False])
def test_the_inverse_has_every_dependence_and_no_other(name: str, upwards: bool) -> None:
    """p(z_i | z_<i, x) of Gaussians: the regression on what was drawn before, whose coefficients are 0 or are not."""
    model = Graph(GRAPHS[name])
    names = list(model.latents)
    order = names[::-1] if upwards else names
    covariance = torch.linalg.inv(model.precision())
    x = [len(names) + i for i in range(len(model.leaves))]
    wanted = {}
    for i, site in enumerate(order):
        before = [names.index(other) for other in order[:i]]
        index = torch.tensor([*before, *x])
        own = names.index(site)
        slope = torch.linalg.solve(covariance[index][:, index], covariance[index, own])
        depends = {names[j] for j, a in zip(before, slope, strict=False) if a.abs() > 1e-9}
        wanted[site] = frozenset(depends | ({None} if slope[len(before) :].abs().max() > 1e-9 else set()))
    assert faithful_inverse(model.latents, order) == wanted


@both
@pytest.mark.parametrize(
    "name",
    [name if name in ("diamond", "two roots") else pytest.param(name, marks=pytest.mark.slow) for name in GRAPHS],
)
def test_the_contract_on_graphs(kind: type[Guide], name: str) -> None:
    model = Graph(GRAPHS[name])
    batch = Batch(x=torch.randn(4, len(model.leaves), dtype=torch.float64))
    check_model(model, batch)
    guide = kind(model, networks.encoder("mlp", (len(model.leaves),), (5,)))  # type: ignore[call-arg]
    check_guide(guide.double(), model, batch)


def test_what_is_given_is_shown() -> None:
    guide = guides.BottomUp(Graph(GRAPHS["chain"]), Identity(1))
    assert guide.extra_repr() == "q(a | x) q(b | a) q(c | b)"
    assert guides.TopDown(Graph(GRAPHS["chain"]), Identity(1)).extra_repr() == "q(c | x) q(b | c, x) q(a | b, x)"


def test_features_go_up_the_ladder() -> None:
    """d_1 is the encoder's, and each height has its own; without hidden layers all see the same."""
    model = Graph(GRAPHS["skip"])
    encoder = networks.encoder("mlp", (1,), (5,))
    guide = guides.TopDown(model, encoder, hidden=6)
    batch = Batch(x=torch.randn(3, 1))
    features = guide.features(batch)
    seen = encoder(batch)
    wanted = [seen]
    for upward in guide.upward:
        wanted.append(upward(wanted[-1]))
    assert guide.heights == {"a": 4, "b": 3, "c": 2, "d": 1}
    for name, height in guide.heights.items():
        assert torch.equal(features[name], wanted[height - 1])
    flat = guides.TopDown(model, encoder, hidden=0)
    assert not list(flat.upward)
    assert all(torch.equal(each, seen) for each in flat.features(batch).values())


def test_the_product_of_two_gaussians() -> None:
    """merge='precision' is the normalized product, and holds p(z1 | z2, x) ∝ p(z1 | z2) p(x | z1) exactly."""
    chain = LinearGaussianChain(latent=(1, 1))
    batch = Batch(x=chain.simulate(6))
    guide = affine(guides.TopDown, chain, "mean-field", merge="precision")
    set_gaussian(guide.conditionals["z2"].head, *chain.conditional("z2", ["x"]))
    product = guide.conditionals["z1"]
    z2, z1 = torch.randn(6, 1).double(), torch.randn(6, 1).double()
    seen, expected = product.seen.gaussian(batch.x, ()), product.expected.gaussian(None, [z2])
    q = product(batch.x, [z2])
    ratio = [q.log_prob(z) - seen.log_prob(z) - expected.log_prob(z) for z in (z1, z1 + 1.0)]
    torch.testing.assert_close(*ratio)
    # from above p(z1 | z2); from x the likelihood, a Gaussian in z1
    weight, bias = chain.weight0[:, 0], chain.bias0
    length = weight @ weight
    set_gaussian(product.expected.head, *chain.conditional("z1", ["z2"]))
    gain = (weight / length).unsqueeze(0)
    set_gaussian(product.seen.head, gain, -gain @ bias, (chain.sigma**2 / length).reshape(1, 1))
    log_w = log_weights(chain, guide, batch, particles=4).log_w
    torch.testing.assert_close(log_w, chain.log_marginal(batch.x).expand(4, 6), rtol=0, atol=1e-10)


class Supports(LatentModel):
    """A positive vector above a point of a simplex above x."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "rate": LatentSpec(torch.Size([3]), constraints.positive),
            "share": LatentSpec(torch.Size([3]), constraints.simplex, parents=("rate",)),
        }
        self.register_buffer("one", torch.ones(3, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0 * self.one, self.one).to_event(1))
            share = pyro.sample("share", dist.Dirichlet(0.5 + rate))
            return pyro.sample("x", dist.Normal(share, self.one).to_event(1), obs=batch.x)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (guides.BottomUp, {}),
        (guides.BottomUp, {"family": "full-rank", "hidden": 4}),
        (guides.TopDown, {}),
        (guides.TopDown, {"family": "full-rank", "hidden": 0}),
        (guides.TopDown, {"merge": "precision"}),
        (guides.TopDown, {"merge": "precision", "hidden": 0}),
    ],
)
def test_the_contract(kind: type[Guide], options: dict[str, object]) -> None:
    for model, shape, batch in (
        (TwoLayer(), SHAPE, binary_batch()),
        (Supports(), (3,), Batch(x=torch.rand(5, 3, dtype=torch.float64))),
    ):
        guide = kind(model, networks.encoder("mlp", shape, (5,)), **options)  # type: ignore[call-arg]
        check_guide(guide.double(), model, batch)
        with pytest.raises(NotImplementedError, match=f"{kind.__name__} has no closed-form distribution"):
            guide.distribution(batch)


def declared(**latents: LatentSpec) -> LatentModel:
    class Declared(LatentModel):
        def forward(self, batch: Batch) -> Tensor:
            raise AssertionError("a guide does not run the model")

    model = Declared()
    model.latents = latents
    return model


@both
def test_what_is_refused(kind: type[Guide]) -> None:
    name = kind.__name__
    encoder = networks.encoder("mlp", SHAPE, (5,))

    def refused(says: str, model: LatentModel, **options: object) -> None:
        with pytest.raises(InputError, match=says):
            kind(model, encoder, **options)  # type: ignore[call-arg]

    refused(f"{name} is a guide over each datum's latents; 'w' of GlobalWeight .*datum_part", GlobalWeight())
    refused("'y' of SemiSupervised is discrete; write a guide that enumerates", SemiSupervised())
    refused(f"Declared declares no latent site: there is nothing for {name}", declared())
    matrix = LatentSpec(torch.Size([2, 2]))
    refused(
        rf"{name} draws other sites given '[ab]', and takes vectors; '[ab]' of Declared has events \(2, 2\)",
        declared(a=matrix, b=LatentSpec(torch.Size([2, 2]), parents=("a",))),
    )
    refused(
        r"declares 'b' as parent of 'a', and no such site before it; before it are \[\]",
        declared(a=LatentSpec(ONE, parents=("b",)), b=LatentSpec(ONE)),
    )
    refused("family='diagonal' is not known", TwoLayer(), family="diagonal")
    for width in (-1, 2.0, True, "8"):
        refused(f"hidden={width!r} must be a width", TwoLayer(), hidden=width)
    # alone, a site of any shape is drawn given x
    kind(declared(a=matrix), encoder)  # type: ignore[call-arg]


def test_what_top_down_refuses() -> None:
    encoder = networks.encoder("mlp", SHAPE, (5,))
    with pytest.raises(InputError, match=r"merge='product' is not known; .*joined, precision"):
        guides.TopDown(TwoLayer(), encoder, merge="product")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiplies diagonal Gaussians; give family='mean-field'"):
        guides.TopDown(TwoLayer(), encoder, family="full-rank", merge="precision")


def trained_gap(guide: Guide, chain: LinearGaussianChain, steps: int = 800, lr: float = 0.05) -> float:
    """Mean log p(x) - ELBO after training, in nats."""
    batch = Batch(x=chain.simulate(256))
    optim = torch.optim.Adam(guide.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    objective = ELBO(kl="monte-carlo")  # near the posterior its gradient is quiet
    for _ in range(steps):
        optim.zero_grad()
        objective.differentiable_loss(chain, guide, batch).div(256).backward()
        # the first gradients are of hundreds of nats, and Adam would remember them
        torch.nn.utils.clip_grad_norm_(guide.parameters(), 5.0)
        optim.step()
        schedule.step()
    with torch.no_grad():
        bound = -ELBO(kl="monte-carlo", particles=500).terms(chain, guide, batch).loss
    return float((chain.log_marginal(batch.x) - bound).mean())


@pytest.mark.slow
@both
def test_trained_it_reaches_log_px(kind: type[Guide]) -> None:
    chain = LinearGaussianChain(latent=(3, 2))
    torch.manual_seed(0)
    assert abs(trained_gap(affine(kind, chain), chain)) < 0.01


@pytest.mark.slow
def test_trained_with_networks_it_reaches_log_px() -> None:
    chain = LinearGaussianChain(latent=(3, 2))
    torch.manual_seed(0)
    guide = guides.TopDown(chain, networks.encoder("mlp", (4,), (32,)), "full-rank").double()
    assert abs(trained_gap(guide, chain, 1500, 0.02)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "independent"), [(guides.MeanField, "numbers"), (guides.FullRank, "sites")])
def test_trained_without_the_dependence_the_known_gap_is_left(kind: type[Guide], independent: str) -> None:
    chain = LinearGaussianChain(latent=(3, 2))
    torch.manual_seed(0)
    gap = trained_gap(kind(chain, Identity(4)).double(), chain)  # type: ignore[call-arg]
    assert chain.gap(independent) > 0.5
    assert abs(gap - chain.gap(independent)) < 0.02
