"""The structured autoencoder: exact inference in its mixture, natural gradients, clusters of the pinwheel."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor
from torch.distributions import Wishart

from ppl_vae import (
    ELBO,
    Batch,
    CompiledSVI,
    Encoder,
    InputError,
    guides,
    likelihoods,
    load,
    log_weights,
    models,
    networks,
    objectives,
)
from ppl_vae.build import PairConfig, build, build_objective
from ppl_vae.conjugate import Dirichlet, NormalInverseWishart
from ppl_vae.coordinate_ascent import coordinate_ascent
from ppl_vae.evaluate import encode, evaluate, sample
from ppl_vae.fit import fit
from ppl_vae.guides.structured import LocalPosterior, Potentials, local_posterior, principal_codes
from ppl_vae.mixture_parameters import DirichletNormal
from ppl_vae.objectives.structured import local_kl, natural_step
from ppl_vae.recipe import Recipe, prepare
from ppl_vae.testing import check_compiled
from ppl_vae.wishart import LogCholeskyInverseWishart, cholesky_of, numbers_of

D, C = 2, 3


def pair(
    components: int = C, seed: int = 0, latent: int = D, **options: Any
) -> tuple[models.StructuredVAE, guides.Structured]:
    torch.manual_seed(seed)
    decoder = networks.decoder("mlp", latent, (4,), 1, (5,))
    model = models.StructuredVAE(decoder, likelihoods.Gaussian((4,)), latent, components).double()
    return model, guides.Structured(model, networks.encoder("mlp", (4,), (6,)), **options).double()


def data(n: int = 8, width: int = 4) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def some_shared(seed: int = 1) -> tuple[Dirichlet, NormalInverseWishart]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(C, D, D, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2, C, generator=generator, dtype=torch.float64)
    mean = 2.0 * torch.randn(C, D, generator=generator, dtype=torch.float64)
    psi = a @ a.mT + 2.0 * torch.eye(D, dtype=torch.float64)
    return Dirichlet(1.0 + 3.0 * uniform[0]), NormalInverseWishart(mean, 1.0 + uniform[1], psi, 6.0 + 3.0 * uniform[0])


# -- the distribution of covariances -------------------------------------------------------------------------------


def test_density_of_log_cholesky_numbers() -> None:
    """That of torch's Wishart distribution of the precision, and the Jacobian of the map."""
    d = 3
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    psi, nu = a @ a.T + torch.eye(d, dtype=torch.float64), torch.tensor(4.5, dtype=torch.float64)
    numbers = torch.randn(5, d * (d + 1) // 2, generator=generator, dtype=torch.float64)
    got = LogCholeskyInverseWishart(torch.linalg.cholesky(psi), nu).log_prob(numbers)

    def precision(v: Tensor) -> Tensor:
        root = cholesky_of(v, d)
        rows, columns = torch.tril_indices(d, d)
        return torch.linalg.inv(root @ root.T)[rows, columns]  # its free entries

    for v, ours in zip(numbers, got, strict=True):
        jacobian = torch.autograd.functional.jacobian(precision, v)
        root = cholesky_of(v, d)
        wanted = Wishart(nu, precision_matrix=psi).log_prob(torch.linalg.inv(root @ root.T))
        torch.testing.assert_close(ours, wanted + torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(numbers_of(root), v)


def test_draws_of_covariances() -> None:
    torch.manual_seed(0)
    _, normals = some_shared()
    q = LogCholeskyInverseWishart(torch.linalg.cholesky(normals.psi), normals.nu + 4.0)
    root = cholesky_of(q.rsample(torch.Size([20_000])), D)
    covariance = root @ root.mT
    wanted = normals.psi / (normals.nu + 4.0 - D - 1)[:, None, None]
    error = covariance.std(0) / math.sqrt(20_000)
    assert bool(((covariance.mean(0) - wanted).abs() < 4 * error).all())  # 12 numbers: false alarms 1 in 1,300
    assert float((error / wanted.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]).max()) < 0.02


# -- local inference -----------------------------------------------------------------------------------------------


def surrogate(local: LocalPosterior, potentials: Potentials, shared: Any) -> Tensor:
    """What mean-field inference lowers: E[log q - log p(k, z) - ψ(z)], with logits that may be unnormalized."""
    local = local._replace(logits=local.logits.log_softmax(-1))
    square = local.mean.square() + local.covariance.diagonal(dim1=-2, dim2=-1)
    expected = (potentials.linear * local.mean - 0.5 * potentials.precision * square).sum(-1)
    return (local_kl(local, *shared) - expected).sum()


def some_potentials(n: int = 6) -> Potentials:
    generator = torch.Generator().manual_seed(5)
    numbers = torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    return Potentials(2.0 * numbers[0], numbers[1].exp())


def test_local_inference_is_at_its_fixed_point() -> None:
    shared, potentials = some_shared(), some_potentials()
    local = local_posterior(potentials, *shared, iterations=200)
    parts = [part.detach().requires_grad_() for part in local]
    gradients = torch.autograd.grad(surrogate(LocalPosterior(*parts), potentials, shared), parts)
    for gradient in (gradients[0], gradients[1], gradients[2].tril()):
        assert float(gradient.abs().max()) < 1e-9
    values = [
        float(surrogate(local_posterior(potentials, *shared, iterations=k), potentials, shared)) for k in range(6)
    ]
    assert all(b <= a + 1e-12 for a, b in pairwise(values))
    assert values[0] > values[-1] + 1e-3
    torch.testing.assert_close(local.responsibilities.sum(-1), torch.ones(6).double())


def test_one_round_of_an_update_by_hand() -> None:
    shared, potentials = some_shared(), some_potentials(2)
    weights, normals = shared
    local = local_posterior(potentials, weights, normals, iterations=0)
    r = weights.expected_statistics().softmax(-1)
    for n in range(2):
        precision, linear = potentials.precision[n].diag(), potentials.linear[n].clone()
        for c in range(C):
            expected = normals.nu[c] * torch.linalg.inv(normals.psi[c])
            precision = precision + r[c] * expected
            linear = linear + r[c] * expected @ normals.mean[c]
        torch.testing.assert_close(local.covariance[n], torch.linalg.inv(precision))
        torch.testing.assert_close(local.mean[n], torch.linalg.solve(precision, linear))
        scores = []
        for c in range(C):
            expected = normals.nu[c] * torch.linalg.inv(normals.psi[c])
            log_det = sum(torch.digamma((normals.nu[c] - i) / 2) for i in range(D)) + D * math.log(2.0)
            log_det = log_det - torch.logdet(normals.psi[c])
            off = local.mean[n] - normals.mean[c]
            square = off @ expected @ off + torch.trace(expected @ local.covariance[n]) + D / normals.kappa[c]
            log_pi = torch.digamma(weights.concentration[c]) - torch.digamma(weights.concentration.sum())
            scores.append(log_pi + 0.5 * (log_det - D * math.log(2 * math.pi) - square))
        torch.testing.assert_close(local.logits[n], torch.stack(scores).log_softmax(-1))  # type: ignore[arg-type]


def test_with_more_rounds_the_gradient_is_that_of_the_fixed_point() -> None:
    """Through one round it is not, through many it is what differences say."""
    weights, normals = some_shared()
    shared = weights, dataclasses.replace(normals, mean=0.3 * normals.mean)  # near each other: r is not 0 or 1
    potentials = some_potentials()

    def of_fixed_point(linear: Tensor, differentiated: int) -> Tensor:
        local = local_posterior(potentials._replace(linear=linear), *shared, 300, differentiated)
        return local.mean.sin().sum() + local.responsibilities[:, 0].sum()

    linear = potentials.linear.clone().requires_grad_()
    gradients = {k: torch.autograd.grad(of_fixed_point(linear, k), linear)[0] for k in (1, 60)}
    step = 1e-5
    for i, j in ((0, 0), (3, 1)):
        moved = torch.zeros_like(potentials.linear)
        moved[i, j] = step
        with torch.no_grad():
            up, down = (of_fixed_point(potentials.linear + sign * moved, 1) for sign in (1, -1))
        assert float(gradients[60][i, j]) == pytest.approx(float(up - down) / (2 * step), rel=1e-5, abs=1e-8)
    assert float((gradients[1] - gradients[60]).abs().max()) > 1e-3


# -- the bound -----------------------------------------------------------------------------------------------------


def test_the_bound_is_the_mean_of_log_weights() -> None:
    """Closed forms and all, against log p - log q at draws of every site; k is summed."""
    model, guide = pair()
    guide.set_posterior(*some_shared())
    batch = Batch(x=data(3))
    count = 10_000
    torch.manual_seed(0)
    with torch.no_grad():
        w = log_weights(model, guide, batch, particles=count)
        assert w.enumerated == ("k",)
        assert w.shared == ("weights", "log_cholesky", "loc")
        q = w.log_q_enumerated.exp()
        own = (q * w.log_w_given).sum(0).sum(-1)  # (K,): of the data
        once = sum((w.log_prior[s] - w.log_guide[s]).squeeze(-1) for s in w.shared)
        total = own + once
        terms = objectives.StructuredELBO(particles=5_000).terms(model, guide, batch)
        weights, normals = guide.posterior()
        kl = local_kl(guide.infer(batch), weights, normals)
        whole = weights.kl(model.priors[0]) + normals.kl(model.priors[1]).sum()
    error = float(total.std()) / math.sqrt(count)
    assert error < 0.4
    # of the draws of z, 5,000 against 10,000
    assert abs(float(total.mean() + terms.loss.sum())) < 4 * 1.8 * error
    log_likelihood = w.log_likelihood.mean(0)
    by_draws = (log_likelihood - (q * w.log_w_given).sum(0).mean(0)).flatten()
    spread = ((q * w.log_w_given).sum(0) - w.log_likelihood).std(0) / math.sqrt(count)
    assert bool(((by_draws - kl).abs() < 4 * spread).all())
    assert abs(float(once.mean() + whole)) < 4 * float(once.std()) / math.sqrt(count)  # type: ignore[union-attr]
    torch.testing.assert_close(terms.logs["kl"], kl + whole / 3)


def test_minibatches_are_counted_by_their_share() -> None:
    """KL of an epoch's minibatches, and the goals of their natural gradients, average to those of the whole."""
    model, guide = pair()
    batch, n = Batch(x=data(12)), 12
    prior = model.priors
    with torch.no_grad():
        shared = guide.posterior()
        whole = natural_step(shared, prior, guide.infer(batch))
        parts = [batch.take(slice(i, i + 3)) for i in range(0, n, 3)]
        goals = [natural_step(shared, prior, guide.infer(part), n / 3) for part in parts]
        kl = objectives.StructuredELBO().terms(model, guide, batch).logs["kl"].sum()
        kls = [objectives.StructuredELBO(data_size=n).terms(model, guide, part).logs["kl"].sum() for part in parts]
    torch.testing.assert_close(torch.stack(kls).sum(), kl, rtol=0, atol=1e-10)
    concentration = torch.stack([goal[0].concentration for goal in goals]).mean(0)
    torch.testing.assert_close(concentration, whole[0].concentration, rtol=0, atol=1e-10)
    for k, wanted in enumerate(whole[1].natural()):
        torch.testing.assert_close(torch.stack([g[1].natural()[k] for g in goals]).mean(0), wanted, rtol=0, atol=1e-10)


# -- natural gradients ---------------------------------------------------------------------------------------------


def test_a_step_is_one_in_natural_parameters() -> None:
    model, guide = pair()
    with torch.no_grad():
        local, shared = guide.infer(Batch(x=data())), some_shared()
        goal, part = (natural_step(shared, model.priors, local, 2.5, rho) for rho in (1.0, 0.3))
    torch.testing.assert_close(part[0].natural(), torch.lerp(shared[0].natural(), goal[0].natural(), 0.3))
    for a, b, got in zip(shared[1].natural(), goal[1].natural(), part[1].natural(), strict=True):
        torch.testing.assert_close(got, torch.lerp(a, b, 0.3), rtol=0, atol=1e-10)
    r, mean = 2.5 * local.responsibilities, local.mean
    second = local.covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    eta, prior = goal[1].natural(), model.priors[1].natural()
    torch.testing.assert_close(eta.linear, prior.linear + r.T @ mean)
    torch.testing.assert_close(eta.square, prior.square - 0.5 * r.sum(0))
    torch.testing.assert_close(eta.matrix, prior.matrix - 0.5 * torch.einsum("nc,nij->cij", r, second))
    torch.testing.assert_close(eta.log_det, prior.log_det + 0.5 * r.sum(0))


def test_a_whole_step_is_the_optimum() -> None:
    """At fixed q(k) q(z) no gradient of the bound is left."""
    model, guide = pair()
    with torch.no_grad():
        local = guide.infer(Batch(x=data()))
        guide.set_posterior(*natural_step(guide.posterior(), model.priors, local))
    weights, normals = guide.posterior()
    priors = model.priors
    bound = local_kl(local, weights, normals).sum() + weights.kl(priors[0]) + normals.kl(priors[1]).sum()
    for gradient in torch.autograd.grad(bound, list(guide.shared.parameters())):
        assert float(gradient.abs().max()) < 1e-9


class Known(guides.Structured):
    """Potentials so sharp that z is what it is told to be: data of the mixture itself."""

    def potentials(self, batch: Batch) -> Potentials:
        assert batch.x is not None
        precise = torch.full_like(batch.x, 1e14)
        return Potentials(precise * batch.x, precise)


class _Started(BayesianGaussianMixture):
    def _initialize_parameters(self, X: Any, random_state: Any, **rest: Any) -> None:
        self._initialize(X, self.start)


def test_without_a_decoder_it_is_coordinate_ascent_in_the_mixture() -> None:
    """z known, all data, step 1: the parameters of `coordinate_ascent` of the mixture with the same prior, and of
    scikit-learn's variational mixture, iteration by iteration."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    x = centers[torch.arange(60) % 3] + torch.randn(60, D, generator=generator, dtype=torch.float64)
    start = torch.rand(60, C, generator=generator, dtype=torch.float64).pow(3)
    start = start / start.sum(-1, keepdim=True)

    torch.manual_seed(0)
    decoder = networks.decoder("mlp", D, (D,), 1, (3,))
    model = models.StructuredVAE(decoder, likelihoods.Gaussian((D,)), D, C, concentration=0.4, strength=1.5).double()
    guide = Known(model, networks.encoder("mlp", (D,), (3,))).double()
    tiny = 1e-8 * torch.eye(D, dtype=torch.float64).expand(60, D, D)
    guide.set_posterior(*natural_step(guide.posterior(), model.priors, LocalPosterior(start.log(), x, tiny)))
    objective = objectives.StructuredELBO(step=1.0)
    (optimizer,) = objective.optimizers(model, guide)
    alpha, normals = model.priors
    mixture = models.GaussianMixture(C, D, prior=DirichletNormal(alpha, normals))

    for iterations in (1, 2, 10):
        theirs = _Started(
            n_components=C,
            weight_concentration_prior_type="dirichlet_distribution",
            weight_concentration_prior=float(alpha.concentration[0]),
            mean_precision_prior=float(normals.kappa[0]),
            mean_prior=normals.mean[0].numpy(),
            degrees_of_freedom_prior=float(normals.nu[0]),
            covariance_prior=normals.psi[0].numpy(),
            reg_covar=0.0,
            tol=0.0,
            max_iter=iterations,
        )
        theirs.start = start.numpy()
        with pytest.warns(Warning, match="did not converge"):
            theirs.fit(x.numpy())
        done = {1: 1, 2: 1, 10: 8}[iterations]
        for _ in range(done):
            optimizer.zero_grad()
            objective.differentiable_loss(model, guide, Batch(x=x)).backward()
            optimizer.step()
        with torch.no_grad():
            weights, q = guide.posterior()
        for got, wanted in (
            (weights.concentration, theirs.weight_concentration_),
            (q.kappa, theirs.mean_precision_),
            (q.nu, theirs.degrees_of_freedom_),
            (q.mean, theirs.means_),
            (q.psi, theirs.covariances_ * theirs.degrees_of_freedom_[:, None, None]),
        ):
            torch.testing.assert_close(got, torch.as_tensor(wanted), rtol=1e-10, atol=1e-10)
        # scikit-learn's M-step comes before its first sweep, as ours
        ours = coordinate_ascent(mixture, x, start=start, iterations=iterations, tolerance=0).posterior
        torch.testing.assert_close(weights.concentration, ours.weights.concentration, rtol=1e-10, atol=1e-10)
        for name, wanted in vars(ours.normals).items():
            torch.testing.assert_close(getattr(q, name), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_takes_the_natural_step_and_no_other(compile: bool) -> None:
    """In `fit`, whose loss is a mean, and whose optimizer has a learning rate of its own."""
    model, guide = pair(iterations=2)
    x = data(10)
    with torch.no_grad():
        wanted = natural_step(guide.posterior(), model.priors, guide.infer(Batch(x=x)), 1.0, 0.25)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    if compile:
        svi = CompiledSVI(
            model, guide, torch.optim.Adam, objectives.StructuredELBO(step=0.25), {"lr": 0.01}, compile="graph"
        )
        svi.step(Batch(x=x))
        assert not svi.report().fallbacks
    else:
        fit(model, guide, x, objectives.StructuredELBO(step=0.25), epochs=1, batch_size=10, lr=0.01, progress=False)
    with torch.no_grad():
        weights, normals = guide.posterior()
    torch.testing.assert_close(weights.concentration, wanted[0].concentration)
    for got, by_hand in zip(normals.natural(), wanted[1].natural(), strict=True):
        torch.testing.assert_close(got, by_hand)
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())
    with pytest.raises(InputError, match="schedule='alternating' does not fit StructuredELBO"):
        fit(
            model,
            guide,
            x,
            objectives.StructuredELBO(),
            epochs=1,
            batch_size=10,
            schedule="alternating",
            progress=False,
        )


@pytest.mark.parametrize("batch_size", [10, 100])
def test_a_minibatch_counts_as_all_data(batch_size: int) -> None:
    """With ρ = 1 a batch of B leaves the counts of N data: Σα - Σα_0 = N/B · B."""
    model, guide = pair()
    objective = objectives.StructuredELBO(step=1.0, data_size=100)
    fit(model, guide, data(100), objective, epochs=1, batch_size=batch_size, progress=False, compile=False)
    with torch.no_grad():
        counts = guide.posterior()[0].concentration - model.priors[0].concentration
    assert float(counts.sum()) == pytest.approx(100.0, rel=1e-9)


@pytest.mark.parametrize("kind", [objectives.StructuredELBO, ELBO])
@pytest.mark.parametrize(("size", "batch_size"), [(None, 10), (40, 10), (40, 20)])
def test_fit_refuses_another_number_of_data(kind: Any, size: int | None, batch_size: int) -> None:
    model, guide = pair()
    before = [p.clone() for p in guide.parameters()]
    with pytest.raises(InputError, match=rf"data_size={size} of {kind.__name__}: .*has 20 data.*give data_size=20"):
        fit(model, guide, data(20), kind(data_size=size), epochs=1, batch_size=batch_size, progress=False)
    assert all(torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))


def test_no_natural_step_is_clipped() -> None:
    model, guide = pair()
    with pytest.raises(InputError, match=r"clip=1 would shorten the natural steps of StructuredELBO.*use clip=None"):
        fit(model, guide, data(20), objectives.StructuredELBO(), epochs=1, batch_size=20, clip=1.0, progress=False)
    with pytest.raises(InputError, match=r"clip_norm=1 would shorten the natural steps of StructuredELBO"):
        CompiledSVI(model, guide, torch.optim.Adam, objectives.StructuredELBO(), clip_norm=1.0)


@pytest.mark.slow
def test_elbo_trains_it_too() -> None:
    """The package's own bound on draws of everything: an unbiased gradient of the same bound."""
    model, guide = pair()
    check_compiled(model, guide, ELBO(particles=2, data_size=20), Batch(x=data(6)), steps=2)


# -- use -----------------------------------------------------------------------------------------------------------


def test_by_name() -> None:
    splits = load("pinwheel")
    train, test = splits.train.take(torch.arange(100)), splits.test.take(torch.arange(40))
    config = PairConfig(
        model="structured-vae",
        guide="structured",
        likelihood="gaussian-learned",
        latent=2,
        hidden=(8,),
        model_options={"components": 4},
        guide_options={"iterations": 3},
    )
    torch.manual_seed(0)
    model, guide = build(config, train)
    objective = build_objective("structured-elbo", model, len(train))
    assert isinstance(objective, objectives.StructuredELBO)
    assert objective.data_size == 100
    fit(model, guide, train, objective, epochs=2, batch_size=50, progress=False, compile=False)
    got = evaluate(model, guide, test, 20, seed=0)
    assert got.to_json()["given"] == ["weights", "log_cholesky", "loc"]
    assert got.elbo.mean <= got.log_px.mean
    assert {name: tuple(mean.shape) for name, mean in encode(model, guide, test).means.items()} == {"z": (40, 2)}
    assert sample(model, 6, seed=0).draw.shape == (6, 2)


class Itself(torch.nn.Module):
    """A decoder that leaves z as it is."""

    def forward(self, z: Tensor) -> Tensor:
        return z.unsqueeze(-2)


def test_samples_are_of_the_mixture_that_was_learnt() -> None:
    """Each of its own draw of what all share: mean and second moments of x = z + noise, under q(π, μ, Σ)."""
    model = models.StructuredVAE(Itself(), likelihoods.Gaussian((D,)), D, C).double()
    guide = guides.Structured(model, networks.encoder("mlp", (D,), (3,))).double()
    weights, normals = some_shared()
    guide.set_posterior(weights, normals)
    count = 4_000
    x = sample(model, count, guide=guide, seed=0).draw
    mean = weights.mean @ normals.mean
    # of a component E[Σ] + Cov[μ] = E[Σ] (1 + 1/κ)
    spread = normals.psi / (normals.nu - D - 1)[:, None, None] * (1.0 + 1.0 / normals.kappa)[:, None, None]
    outer = normals.mean.unsqueeze(-1) * normals.mean.unsqueeze(-2) + spread
    second = (weights.mean[:, None, None] * outer).sum(0) + torch.eye(D, dtype=torch.float64)
    products = x.unsqueeze(-1) * x.unsqueeze(-2)
    for values, wanted in ((x, mean), (products, second)):  # 6 numbers: false alarms 1 in 2,600
        assert bool(((values.mean(0) - wanted).abs() < 4 * values.std(0) / math.sqrt(count)).all())


def test_it_starts_at_principal_components() -> None:
    """Their place by a singular value decomposition, the width as told, and a decoder that has learnt to read them."""
    model, guide = pair(latent=5)
    x = data(200) @ torch.tensor([[3.0, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0]]).double() + 1.0
    guide.encoder = Straight(4)
    guide.potential = networks.Linear(4, 10).double()
    held = model.likelihood.state_dict()
    before = guide.state_dict()
    shared = {name: value.clone() for name, value in before.items() if name.startswith("shared")}
    decoder = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    guide.start_at(model, Batch(x=x), spread=2.0, sharpness=50.0)
    with torch.no_grad():
        linear, precision = guide.potentials(Batch(x=x))
    u, _, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    wanted = 2.0 * math.sqrt(200) * u[:, :3]
    ours = linear[:, :3] / 50.0
    torch.testing.assert_close(ours * (ours * wanted).sum(0).sign(), wanted, rtol=0, atol=1e-4)
    assert float(linear[:, 3:].abs().max()) < 1e-8  # the data have three dimensions
    torch.testing.assert_close(precision, torch.full_like(precision, 50.0), rtol=0.2, atol=0)
    assert all(torch.equal(value, guide.state_dict()[name]) for name, value in shared.items())
    assert all(torch.equal(value, held[name]) for name, value in model.likelihood.state_dict().items())
    assert not any(torch.equal(value, decoder[name]) for name, value in model.decoder.state_dict().items())
    with torch.no_grad():
        reached = float(model.decoded(linear / 50.0).log_prob(x).mean())
    without_z = torch.distributions.Normal(x.mean(0), 1.0).log_prob(x).sum(-1).mean()
    assert reached > float(without_z) + 0.5 * 0.5 * float(x.var(0).sum())  # half of what is left there is explained
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))


class Straight(Encoder):
    """x itself as features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = width

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        assert batch.x is not None
        return batch.x


def test_a_start_leaves_what_does_not_train_and_knows_holes() -> None:
    model, guide = pair()
    model.requires_grad_(False)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    x, observed = data(60), torch.rand(60, 4, generator=torch.Generator().manual_seed(3)) < 0.8
    guide.start_at(model, Batch(x=torch.where(observed, x, 0.0), observed=observed))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    filled = torch.where(observed, x, (x * observed).sum(0) / observed.sum(0))
    u, _, _ = torch.linalg.svd(filled - filled.mean(0), full_matrices=False)
    codes = principal_codes(torch.where(observed, x, 0.0), observed, D)
    wanted = math.sqrt(60) * u[:, :D]
    torch.testing.assert_close(codes * (codes * wanted).sum(0).sign(), wanted, rtol=0, atol=1e-3)


def test_by_name_it_starts_there_and_is_trained_by_its_own_objective() -> None:
    recipe = Recipe(data="pinwheel", model="structured-vae", guide="structured", latent=2, hidden=(32,))
    ready = prepare(recipe)
    assert isinstance(ready.objective, objectives.StructuredELBO)
    assert isinstance(ready.guide, guides.Structured)
    assert isinstance(ready.model, models.StructuredVAE)
    test = ready.data.test.batch()
    assert test.x is not None
    with torch.no_grad():
        linear, precision = ready.guide.potentials(test)
        rebuilt = ready.model.decoded(linear / precision).mean
    # of the data's variance little is lost before any training
    assert float((rebuilt - test.x).square().mean() / test.x.var(0).mean()) < 0.05


@pytest.mark.slow
def test_it_finds_the_arms_of_the_pinwheel() -> None:
    """With all settings at their defaults: clusters of held-out data against the arms they are of, by the adjusted Rand
    index, which is 1 for equal partitions and 0 by chance."""
    found = []
    for seed in range(2):
        ready = prepare(Recipe(data="pinwheel", model="structured-vae", guide="structured", latent=2, seed=seed))
        ready.train(progress=False)
        test = ready.data.test.batch()
        with torch.no_grad():
            clusters = ready.guide.infer(test).responsibilities.argmax(-1)  # type: ignore[operator]
        found.append(adjusted_rand_score(test.y, clusters))
    assert min(found) > 0.9


def test_pinwheel_is_what_it_says() -> None:
    train, test = load("pinwheel")
    assert train.shape == (2,)
    assert train.description == "pinwheel train, continuous"
    assert not torch.equal(train.x, test.x)
    for part in (train, test):
        assert part.y is not None
        assert torch.equal(torch.bincount(part.y), torch.full((5,), 100))
        x = part.x.double() / 10.0
        # turned back, every arm lies along the first axis, 0.05 to its sides
        radius = x.norm(dim=-1)
        angle = -torch.atan2(x[:, 1], x[:, 0]) - 2 * math.pi / 5 * part.y
        off = torch.remainder(angle - 0.25 * radius.exp() + math.pi, 2 * math.pi) - math.pi
        assert float((radius * off).std()) == pytest.approx(0.05, rel=0.3)
        assert float(radius.mean()) == pytest.approx(1.0, abs=4 * 0.3 / math.sqrt(500))
    assert torch.equal(load("pinwheel").train.x, train.x)


def test_bad_input_is_named() -> None:
    decoder, likelihood = networks.decoder("mlp", D, (4,), 1, (5,)), likelihoods.Gaussian((4,))
    for says, options in (
        ("components=1 must be a whole number, 2 or more", {"components": 1}),
        ("components=2.5 must be", {"components": 2.5}),
        ("concentration=0 must be a number above 0", {"concentration": 0}),
        ("strength=-1.0 must be a number above 0", {"strength": -1.0}),
        ("strength=inf must be", {"strength": math.inf}),
    ):
        with pytest.raises(InputError, match=says):
            models.StructuredVAE(decoder, likelihood, D, **options)  # type: ignore[arg-type]
    model, guide = pair()
    encoder = networks.encoder("mlp", (4,), (6,))
    for says, options in (
        ("iterations=-1 must be a whole number, 0 or more", {"iterations": -1}),
        ("differentiated=0 must be a whole number, 1 or more", {"differentiated": 0}),
        ("spread=0 must be a standard deviation", {"spread": 0}),
    ):
        with pytest.raises(InputError, match=says):
            guides.Structured(model, encoder, **options)  # type: ignore[arg-type]
    for says, batch, options in (
        ("spread=0 must be a number above 0", Batch(x=data()), {"spread": 0}),
        ("sharpness=inf must be", Batch(x=data()), {"sharpness": math.inf}),
        ("a start needs x of 2 data or more: the batch has no x", Batch(n=5), {}),
        ("a start needs x of 2 data or more: the batch has 1", Batch(x=data(1)), {}),
    ):
        with pytest.raises(InputError, match=says):
            guide.start_at(model, batch, **options)  # type: ignore[arg-type]
    vae = models.VAE(decoder, likelihood, D)
    with pytest.raises(InputError, match=r"guide='structured' is of model='structured-vae'.* VAE is another"):
        guides.Structured(vae, encoder)
    for says, options in (
        ("step=0 must be a number above 0, and at most 1", {"step": 0}),
        ("step=1.5 must be", {"step": 1.5}),
        ("data_size=0 must be a whole number", {"data_size": 0}),
        ("particles=0", {"particles": 0}),
    ):
        with pytest.raises(InputError, match=says):
            objectives.StructuredELBO(**options)  # type: ignore[arg-type]
    plain = guides.MeanField(vae, encoder)
    with pytest.raises(InputError, match=r"StructuredELBO is of StructuredVAE .* model is a VAE; use ELBO"):
        objectives.StructuredELBO().terms(vae, plain, Batch(x=data().float()))
    with pytest.raises(InputError, match="guide is a MeanField"):
        objectives.StructuredELBO().terms(model, plain, Batch(x=data()))
    with pytest.raises(InputError, match=r"the encoder needs batch\.x"):
        guide(Batch(n=3))
