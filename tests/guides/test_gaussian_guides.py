"""The amortized Gaussian guides, diagonal and full-rank."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, GlobalWeight, SemiSupervised, TwoLayer, binary_batch, guide_for, vae
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from ppl_vae import ELBO, Batch, Encoder, Guide, InputError, LatentModel, LatentSpec, check_pair, guides, networks
from ppl_vae.testing import LinearGaussian, check_guide, check_model

FAMILIES = [guides.MeanField, guides.FullRank, guides.LowRank]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)


@every_family
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_contract(family: type[guides.Amortized], kind: str, dtype: torch.dtype) -> None:
    model = vae(dtype=dtype)
    guide = family(model, networks.encoder(kind, SHAPE, (9,))).to(dtype)  # type: ignore[arg-type]
    check_guide(guide, model, binary_batch(dtype=dtype))


@every_family
def test_the_contract_with_two_sites(family: type[guides.Amortized]) -> None:
    """One encoder, a head for each site; sites are independent given x."""
    model = TwoLayer()
    guide = family(model, networks.encoder("mlp", SHAPE, (9,))).double()
    check_guide(guide, model, binary_batch())
    q = guide.distribution(binary_batch())
    assert {name: tuple(site.event_shape) for name, site in q.items()} == {"z2": (2,), "z1": (3,)}


class OnSupports(LatentModel):
    """Latents on other supports than the real line."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "rate": LatentSpec(torch.Size([3]), constraints.positive),
            "share": LatentSpec(torch.Size([4]), constraints.simplex),
        }
        self.register_buffer("one", torch.ones(4, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0 * self.one[:3], self.one[:3]).to_event(1))
            share = pyro.sample("share", dist.Dirichlet(2.0 * self.one))
            loc = rate.sum(-1, keepdim=True) * share
            return pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)).to_event(1), obs=batch.x)


@every_family
def test_the_contract_on_other_supports(family: type[guides.Amortized]) -> None:
    model = OnSupports()
    batch = Batch(x=torch.rand(5, 4, dtype=torch.float64))
    check_model(model, batch)
    guide = family(model, networks.encoder("mlp", (4,), (9,))).double()
    check_guide(guide, model, batch)
    assert guide.heads["share"].numel == 3


@every_family
def test_it_takes_any_model_by_its_declaration_alone(family: type[guides.Amortized]) -> None:
    class Declared(LatentModel):
        latents = {"a": LatentSpec(torch.Size([2])), "b": LatentSpec(torch.Size([5]))}  # noqa: RUF012

        def forward(self, batch: Batch) -> Tensor:
            raise AssertionError("a guide does not run the model")

    guide = family(Declared(), networks.encoder("mlp", SHAPE, (9,)))
    draws = guide(binary_batch(dtype=torch.float32))
    assert {name: tuple(z.shape) for name, z in draws.items()} == {"a": (5, 2), "b": (5, 5)}


@every_family
def test_a_site_shared_by_all_data_is_refused(family: type[guides.Amortized]) -> None:
    with pytest.raises(
        InputError, match=f"{family.__name__} is a guide over each datum's latents; 'w' of GlobalWeight"
    ):
        family(GlobalWeight(), networks.encoder("mlp", (6,), (9,)))


@every_family
def test_a_discrete_site_is_refused(family: type[guides.Amortized]) -> None:
    with pytest.raises(InputError, match="no bijection leads from it to the site's support"):
        family(SemiSupervised(), networks.encoder("mlp", SHAPE, (9,)))


def test_parameters_grow_with_the_family() -> None:
    sizes = {
        family: sum(p.numel() for p in family(vae(4), networks.encoder("mlp", SHAPE, (9,))).parameters())
        for family in (guides.MeanField, guides.FullRank)
    }
    assert sizes[guides.FullRank] - sizes[guides.MeanField] == (9 + 1) * 6


def test_mean_field_has_no_correlations_and_full_rank_has_them() -> None:
    model, batch = vae(), binary_batch()
    q = {family: guide_for(model, family).distribution(batch)["z"] for family in ("mean-field", "full-rank")}
    draws = {family: site.sample((20_000,)) for family, site in q.items()}
    for family, z in draws.items():
        correlation = torch.corrcoef(z[:, 0].T)
        off = (correlation - torch.eye(3).double()).abs().max()
        assert bool(off < 0.04) == (family == "mean-field")
    assert isinstance(q["full-rank"], dist.MultivariateNormal)


@every_family
def test_a_guide_does_not_hold_its_model(family: type[guides.Amortized]) -> None:
    model = vae()
    guide: Guide = family(model, networks.encoder("mlp", SHAPE, (9,))).double()
    ours = {p.data_ptr() for p in guide.parameters()}
    assert not ours & {p.data_ptr() for p in model.parameters()}
    assert all(isinstance(t, Tensor) for t in guide.state_dict().values())


@every_family
def test_hidden_pixels_do_not_change_the_posterior(family: type[guides.Amortized]) -> None:
    model = vae()
    guide = family(model, networks.encoder("mlp", SHAPE, (9,), mask=True)).double()
    batch = binary_batch()
    visible = torch.rand(batch.x.shape) < 0.5
    seen = batch._replace(x=batch.x * visible, visible=visible, observed=visible)
    other = seen._replace(x=torch.where(visible, batch.x, 1.0))
    check_pair(model, guide, seen)
    assert torch.equal(guide.distribution(seen)["z"].mean, guide.distribution(other)["z"].mean)


def test_guides_whose_sites_depend_on_each_other_have_no_distribution_of_each() -> None:
    class Chain(Guide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {}

    with pytest.raises(NotImplementedError, match="Chain has no closed-form distribution of each site"):
        Chain().distribution(Batch(n=2))
    assert Chain().scores_given


class Whitened(Encoder):
    """x in whitened coordinates: the head's affine map is all that the oracle's posterior mean needs besides."""

    loc: Tensor
    root: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.features = x.shape[-1]
        self.register_buffer("loc", x.mean(0))
        self.register_buffer("root", torch.linalg.cholesky(torch.cov(x.T)))

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        assert batch.x is not None
        return torch.linalg.solve_triangular(self.root, (batch.x - self.loc).T, upper=False).T


@pytest.mark.parametrize("name", ["mean-field", "full-rank", "low-rank"])
def test_training_finds_log_p_where_the_family_holds_the_posterior(name: str) -> None:
    """On the linear-Gaussian oracle, whose posterior is correlated: within 0.01 nats of log p(x) for full rank and for
    low rank of rank D, short of it by the known gap for mean-field; by KL(q ‖ p(z | x)), which is exact."""
    torch.manual_seed(0)
    oracle = LinearGaussian(data=5, latent=3, seed=8)
    assert oracle.mean_field_gap() > 0.5
    batch = Batch(x=oracle.simulate(64, seed=1))
    options = {"rank": 3} if name == "low-rank" else {}
    guide = guides.guides.get(name)(oracle, Whitened(batch.x), **options).double()  # type: ignore[call-arg]
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        ELBO(particles=16).differentiable_loss(oracle, guide, batch).div(64).backward()
        optimizer.step()
        schedule.step()
    q = guide.distribution(batch)["z"]
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance.diag_embed()
    gap = kl_divergence(dist.MultivariateNormal(q.mean, covariance), oracle.posterior(batch.x)).mean()
    wanted = oracle.mean_field_gap() if name == "mean-field" else 0.0
    assert abs(gap.item() - wanted) < 0.01


def test_swapped_arguments_and_parts_that_are_none() -> None:
    model, encoder = vae(), networks.encoder("mlp", SHAPE, (9,))
    for family in (guides.MeanField, guides.Spline, guides.TopDown, guides.Mixture):
        name = family.__name__
        with pytest.raises(InputError, match=rf"model is a BodyEncoder, which declares no latents.*{name}\(model, ..."):
            family(encoder, model)  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match=rf"encoder is a VAE, which says nothing of its `features`.*{name}\(model, e"
        ):
            family(model, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [guides.FullRank, guides.LowRank, guides.BottomUp, guides.Local])
def test_a_site_that_does_not_fit_is_named(family: Any) -> None:
    model = vae()
    model.latents = {"grid": LatentSpec(torch.Size([2, 2]))}
    options = {"family": "full-rank"} if family in (guides.BottomUp, guides.Local) else {}
    part = 5 if family is guides.Local else networks.encoder("mlp", SHAPE, (9,))
    with pytest.raises(
        InputError, match=r"site 'grid' of VAE: a (full|low)-rank Gaussian is over vectors; .* \(2, 2\)"
    ):
        family(model, part, **options)


@pytest.mark.parametrize("family", [guides.Householder, guides.Spline])
def test_a_site_of_too_few_dimensions_is_named(family: Any) -> None:
    with pytest.raises(InputError, match=rf"site 'z' of VAE: {family.__name__}.* a site of one dimension has no"):
        family(vae(1), networks.encoder("mlp", SHAPE, (9,)))


def test_a_guide_of_another_size_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"site 'z' has events of shape \(2,\) in the model, \(3,\) in the guide"):
        ELBO().loss(vae(2), guide_for(vae(3)), binary_batch())
    model = vae()
    with pytest.raises(InputError, match=r"the batch has no data: .*; give one datum or more"):
        ELBO().loss(model, guide_for(model), binary_batch(0))
