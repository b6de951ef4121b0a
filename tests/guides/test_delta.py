"""The point guide: an autoencoder's loss at β = 0, the posterior's mode at β = 1, and no bound under either."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import ELBO, IWAE, Batch, guides, likelihoods, models, networks
from ppl_vae.core import LatentSpec
from ppl_vae.errors import InputError
from ppl_vae.evaluate import at_points, elbo, encode, evaluate, log_marginal, reconstruct
from ppl_vae.fit import fit
from ppl_vae.guides.delta import Point
from ppl_vae.testing import LinearGaussian, check_compiled
from ppl_vae.weights import log_weights

SIZE, LATENT = 6, 2


def linear_pair() -> tuple[models.VAE, guides.Delta]:
    """Affine from x to z and back, unit variance."""
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", LATENT, (SIZE,), 1, (LATENT,), activation=nn.Identity)
    model = models.VAE(decoder, likelihoods.Gaussian((SIZE,)), LATENT)
    encoder = networks.encoder("mlp", (SIZE,), (LATENT,), activation=nn.Identity)
    return model.double(), guides.Delta(model, encoder).double()


def nonlinear_pair() -> tuple[models.VAE, guides.Delta]:
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", LATENT, (SIZE,), 1, (7,))
    model = models.VAE(decoder, likelihoods.Gaussian((SIZE,)), LATENT)
    return model.double(), guides.Delta(model, networks.encoder("mlp", (SIZE,), (7,))).double()


def data(n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return torch.randn(n, SIZE, generator=generator, dtype=torch.float64) @ mix + 1.0


def minimize(loss: ELBO, model: nn.Module, guide: nn.Module, batch: Batch) -> float:
    """The minimum by L-BFGS, to rounding."""
    parameters = [p for part in (model, guide) for p in part.parameters()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=3000,
        max_eval=6000,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss.differentiable_loss(model, guide, batch)
        value.backward()
        return value

    optimizer.step(closure)
    return loss.loss(model, guide, batch)


def test_a_linear_autoencoder_reaches_the_error_of_principal_components() -> None:
    """½ Σ ‖x - x̂‖² is ½ Σ_{i > Z} s_i², s the singular values of the centred data; to 1e-8 of it."""
    x = data()
    model, guide = linear_pair()
    loss = minimize(ELBO(beta=0), model, guide, Batch(x=x))
    left = torch.linalg.svdvals(x - x.mean(0))[LATENT:].square().sum().item()
    constant = 0.5 * x.numel() * math.log(2 * math.pi)
    assert loss - constant == pytest.approx(0.5 * left, rel=1e-8)
    rebuilt = reconstruct(model, guide, Batch(x=x))
    assert (x - rebuilt).square().sum().item() == pytest.approx(left, rel=1e-8)
    # and it is the projection on the principal components, wherever in the plane the codes have ended up
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:LATENT]
    projected = x.mean(0) + (x - x.mean(0)) @ directions.T @ directions
    assert torch.allclose(rebuilt, projected, atol=1e-4)


@pytest.mark.parametrize("particles", [1, 4])
def test_gradients_are_those_of_the_squared_error(particles: int) -> None:
    """Of ½ ‖x - decoder(encoder(x))‖² in plain PyTorch, in every parameter, to 1e-10."""
    x = data()
    model, guide = nonlinear_pair()
    parameters = [*model.parameters(), *guide.parameters()]
    ours = torch.autograd.grad(
        ELBO(beta=0, particles=particles).differentiable_loss(model, guide, Batch(x=x)), parameters
    )
    z = guide.heads["z"].linear(guide.encoder.encoder_body(x))
    theirs = torch.autograd.grad(0.5 * (x - model.decoder(z)[:, 0]).square().sum(), parameters)
    for mine, plain in zip(ours, theirs, strict=True):
        assert (mine - plain).abs().max() <= 1e-10 * (1 + plain.abs().max())


def test_with_the_prior_it_finds_the_posteriors_mode() -> None:
    """Of the linear-Gaussian model, where the mode is the mean, affine in x; to 1e-6."""
    model = LinearGaussian(data=SIZE, latent=LATENT)
    x = model.simulate(30)
    torch.manual_seed(0)
    guide = guides.Delta(model, networks.encoder("mlp", (SIZE,), (SIZE,), activation=nn.Identity)).double()
    loss = minimize(ELBO(), model, guide, Batch(x=x))
    mode = model.posterior_mean(x)
    assert torch.allclose(encode(model, guide, x).means["z"], mode, atol=1e-6)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(mode).sum()
    likelihood = torch.distributions.Normal(mode @ model.weight.T + model.bias, model.sigma).log_prob(x).sum()
    assert loss == pytest.approx(-(prior + likelihood).item(), rel=1e-10)


def test_at_points_gives_the_parts_of_the_joint_density() -> None:
    model, guide = nonlinear_pair()
    x = data()
    found = at_points(model, guide, x, chunk=7)
    z = guide.distribution(Batch(x=x))["z"].mean
    wanted = torch.distributions.Normal(model.decoder(z)[:, 0], 1.0).log_prob(x).sum(-1)
    assert torch.allclose(found.log_likelihood, wanted)
    assert torch.allclose(found.log_prior, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert found.estimates["log_joint"].mean == pytest.approx(
        -ELBO().loss(model, guide, Batch(x=x)) / len(x), rel=1e-12
    )
    assert torch.allclose(found.active_units.variances["z"], z.var(0))
    assert found.to_json()["n"] == len(x)


@pytest.mark.parametrize("judge", [log_marginal, elbo, evaluate])
def test_what_needs_a_density_refuses_it(judge: object) -> None:
    model, guide = nonlinear_pair()
    with pytest.raises(InputError, match="point mass, which has no density"):
        judge(model, guide, data(), 5)  # type: ignore[operator]


def test_a_function_that_is_a_point_is_refused_by_its_site() -> None:
    """And a Delta that carries a density, or stands beside an auxiliary site that does, is not."""
    import pyro
    import pyro.distributions as dist

    model = LinearGaussian(data=SIZE, latent=LATENT)
    batch = Batch(x=model.simulate(5))

    def guide(batch: Batch, density: bool = False, auxiliary: bool = False) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            value = torch.zeros(batch.size, LATENT, dtype=torch.float64)
            normal = dist.Normal(value, torch.ones_like(value)).to_event(1)
            if auxiliary:
                value = pyro.sample("noise", normal, infer={"is_auxiliary": True})
            elif density:
                value = normal.rsample()
            pyro.sample("z", dist.Delta(value, normal.log_prob(value) if density else 0.0, event_dim=1))

    with pytest.raises(InputError, match="guide site 'z' is a point mass"):
        IWAE(3).loss(model, guide, batch)
    IWAE(3).loss(model, lambda batch: guide(batch, density=True), batch)
    IWAE(3).loss(model, lambda batch: guide(batch, auxiliary=True), batch)


def test_the_kl_is_minus_log_p_in_every_form() -> None:
    """Pyro's table of closed forms has one entry for points, of the same convention."""
    model, guide = nonlinear_pair()
    analytic, drawn = (ELBO(kl=kl).loss(model, guide, Batch(x=data())) for kl in ("analytic", "monte-carlo"))
    assert analytic == pytest.approx(drawn, rel=1e-12)


@pytest.mark.parametrize(
    ("support", "shape"),
    [(constraints.positive, (3,)), (constraints.simplex, (3,)), (constraints.real, ()), (constraints.real, (2, 2))],
)
def test_points_lie_in_the_support(support: constraints.Constraint, shape: tuple[int, ...]) -> None:
    """Where a value is carried there, and log q is 0 at it, with no volume of the transform."""
    head = Point(5, LatentSpec(torch.Size(shape), support))
    torch.manual_seed(0)
    features = torch.randn(4, 5)
    q = head(features)
    assert tuple(q.event_shape) == shape
    value = q.rsample()
    assert bool(support.check(value).all())
    assert torch.equal(q.log_prob(value), torch.zeros(4))


def test_the_traced_step_of_an_autoencoder_is_the_eager_step() -> None:
    model, guide = nonlinear_pair()
    check_compiled(model, guide, ELBO(beta=0), Batch(x=data()))


def test_log_q_of_a_point_is_0() -> None:
    model, guide = nonlinear_pair()
    w = log_weights(model, guide, Batch(x=data()), particles=3)
    assert torch.equal(w.log_guide["z"], torch.zeros(3, 40, dtype=torch.float64))


def test_an_autoencoder_is_stopped_by_its_own_loss() -> None:
    """The best epoch is that of the best held-out log-likelihood; with the bound it is that of the bound."""
    x = data(60).float()
    for beta, watched in ((0.0, "val_log_likelihood"), (1.0, "val_elbo")):
        model, guide = (part.float() for part in nonlinear_pair())
        result = fit(
            model, guide, Batch(x=x[:40]), ELBO(beta), epochs=6, batch_size=20, lr=3e-2, patience=6,
            validation=Batch(x=x[40:]), progress=False,
        )  # fmt: skip
        best = max(result.history, key=lambda row: row[watched])
        assert result.best_epoch == best["epoch"]
