"""The Gaussian mixture: its densities against scikit-learn and torch, its prior against the conjugate density, its
bounds against sums over all components and against Pyro's."""

import math
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import sklearn.mixture
import torch
from mixtures import COVARIANCES, mixture, three_groups, with_prior
from programs import assert_equal, gradients_of
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import MixtureSameFamily

from ppl_vae import ELBO, IWAE, Batch, Guide, guides, networks, objectives
from ppl_vae.em import em
from ppl_vae.errors import InputError
from ppl_vae.guides import Combined, datum_part
from ppl_vae.mixture_parameters import Covariance, DirichletNormal, MixtureParameters
from ppl_vae.models import GaussianMixture
from ppl_vae.testing import check_compiled, check_guide, check_model, check_objective

every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)
SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag"}


def enumerated(model: GaussianMixture) -> guides.Enumerated:
    return guides.Enumerated(model, networks.encoder("mlp", (model.size,), (7,))).double()


@every_covariance
@pytest.mark.parametrize("size", [1, 3])
def test_contract(covariance: Covariance, size: int) -> None:
    x = three_groups(6, size)
    check_model(GaussianMixture(3, size, covariance), Batch(x=x.float()))
    check_model(with_prior(x, covariance), Batch(x=x))


@every_covariance
def test_density_is_torchs(covariance: Covariance) -> None:
    model, x = mixture(covariance), three_groups(7)
    p = model.parameters_of()
    normals = torch.distributions.MultivariateNormal(p.loc, p.covariance)
    theirs = MixtureSameFamily(torch.distributions.Categorical(logits=p.log_weights), normals)
    torch.testing.assert_close(model.log_prob(x), theirs.log_prob(x))
    many = MixtureParameters(*(torch.stack([t, t + 0.1 * t.abs()]) for t in p))
    assert many.diagonal == (covariance == "diagonal")
    assert many.log_joint(x).shape == (2, 7, 3)
    torch.testing.assert_close(many.log_prob(x)[0], theirs.log_prob(x))


@every_covariance
def test_what_follows_from_parameters_is_scikit_learns(covariance: Covariance) -> None:
    x = three_groups()
    theirs = sklearn.mixture.GaussianMixture(3, covariance_type=SKLEARN[covariance], random_state=0).fit(x.numpy())
    c = torch.as_tensor(theirs.covariances_)
    scale = c.sqrt() if covariance == "diagonal" else torch.linalg.cholesky(c).expand(3, 2, 2)
    model = GaussianMixture(3, 2, covariance).double()
    model.set_parameters(
        MixtureParameters(torch.as_tensor(theirs.weights_).log(), torch.as_tensor(theirs.means_), scale)
    )
    with torch.no_grad():
        np.testing.assert_allclose(model.log_prob(x).numpy(), theirs.score_samples(x.numpy()), rtol=1e-10)
        np.testing.assert_allclose(model.responsibilities(x).numpy(), theirs.predict_proba(x.numpy()), atol=1e-10)
    assert (model.predict(x).numpy() == theirs.predict(x.numpy())).all()
    assert model.bic(x) == pytest.approx(theirs.bic(x.numpy()), rel=1e-10)


def test_parameters_are_taken_over_in_any_units() -> None:
    for covariance in COVARIANCES:
        for unit in (1e-6, 1.0, 1e6):
            p = mixture(covariance).parameters_of()
            model = GaussianMixture(3, 2, covariance).double()
            wanted = MixtureParameters(p.log_weights, unit * p.loc, unit * p.scale)
            model.set_parameters(wanted)
            for ours, theirs in zip(model.parameters_of(), wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@every_covariance
def test_sample(covariance: Covariance) -> None:
    """Means of 20,000 draws within 5 standard errors, weights and means of each component."""
    torch.manual_seed(0)
    model, n = mixture(covariance), 20_000
    x, z = model.sample(n)
    with torch.no_grad():
        p = model.parameters_of()
    for k in range(3):
        weight, own = float(p.log_weights[k].exp()), x[z == k]
        assert abs(len(own) / n - weight) < 5 * math.sqrt(weight * (1 - weight) / n)
        error = p.covariance[k].diagonal().sqrt() / math.sqrt(len(own))
        assert ((own.mean(0) - p.loc[k]).abs() < 5 * error).all()


@every_covariance
@pytest.mark.parametrize("size", [1, 3])
def test_prior_is_the_conjugate_density(covariance: Covariance, size: int) -> None:
    """The sites' density is that of (μ, Λ) times the volume that Λ has in their coordinates."""
    torch.manual_seed(0)
    model = with_prior(three_groups(20, size), covariance, components=2)
    trace = poutine.trace(model).get_trace(Batch(n=2))
    values = {name: trace.nodes[name]["value"] for name in model.latents if name != "z"}
    ours = sum(trace.nodes[name]["fn"].log_prob(value) for name, value in values.items())
    scales = [name for name in values if name not in ("weights", "loc")]
    lower = torch.tril_indices(size, size)

    def precision(*numbers: Tensor) -> Tensor:
        scale = model.parameters_of({**values, **dict(zip(scales, numbers, strict=True))}).scale
        if covariance == "diagonal":
            return scale.square().reciprocal()
        matrix = torch.cholesky_inverse(scale)
        return matrix[0] if covariance == "tied" else matrix

    def free(*numbers: Tensor) -> Tensor:
        matrix = precision(*numbers)
        return (matrix if covariance == "diagonal" else matrix[..., lower[0], lower[1]]).flatten()

    numbers = tuple(values[name] for name in scales)
    jacobian = torch.cat([j.flatten(1) for j in torch.autograd.functional.jacobian(free, numbers)], 1)
    prior = model.prior
    density = prior.weights.log_prob(values["weights"])
    density = density + prior.normals.log_prob(values["loc"], precision(*numbers)).sum()
    torch.testing.assert_close(ours, density + torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-9, atol=1e-9)


@every_covariance
def test_values_of_parameters_and_back(covariance: Covariance) -> None:
    torch.manual_seed(0)
    model = with_prior(three_groups(), covariance)
    parameters = model.prior.sample()
    values = model.values_of(parameters)
    assert list(values) == [name for name in model.latents if name != "z"]
    for ours, theirs in zip(model.parameters_of(values), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_covariance
def test_prior_draws_are_the_conjugate_ones(covariance: Covariance) -> None:
    """Expected precisions of 4,000 draws of the program within 5 standard errors of ν Ψ⁻¹."""
    torch.manual_seed(0)
    model = with_prior(three_groups(), covariance)
    with pyro.plate("draws", 4000, dim=-2):
        trace = poutine.trace(model).get_trace(Batch(n=1))
    values = {name: trace.nodes[name]["value"].squeeze(1) for name in model.latents if name != "z"}
    p = model.parameters_of(values)
    precision = p.scale.square().reciprocal() if p.diagonal else torch.cholesky_inverse(p.scale)
    wanted = model.prior.normals.expected_precision
    error = precision.std(0) / math.sqrt(len(precision))
    assert ((precision.mean(0) - wanted).abs() < 5 * error).all()


# bounds


@every_covariance
def test_log_evidence_is_elbo_and_gap(covariance: Covariance) -> None:
    """log p(x) = ELBO + KL(q ‖ p(z | x)) for any q, with equality of ELBO and log p(x) at the posterior."""
    model, x = mixture(covariance), three_groups(9)
    torch.manual_seed(0)
    guide = enumerated(model)
    with torch.no_grad():
        elbo = ELBO().terms(model, guide, Batch(x=x)).logs["elbo"]
        q = guide.distribution(Batch(x=x))["z"]
        posterior = torch.distributions.Categorical(logits=model.parameters_of().log_joint(x))
        gap = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=q.logits), posterior)
        torch.testing.assert_close(model.log_prob(x), elbo + gap, rtol=1e-12, atol=1e-12)
        assert (gap > 0.01).any()
        exact = ELBO().terms(model, guides.Exact(model), Batch(x=x)).logs["elbo"]
        torch.testing.assert_close(exact, model.log_prob(x), rtol=1e-12, atol=1e-12)
        # and by a sum over components, written out
        brute = (q.probs * (model.parameters_of().log_joint(x) - q.probs.log())).sum(-1)
        torch.testing.assert_close(elbo, brute, rtol=1e-12, atol=1e-12)
        bound = IWAE(3).terms(model, guide, Batch(x=x)).logs["bound"]
        torch.testing.assert_close(bound, model.log_prob(x), rtol=1e-12, atol=1e-12)


@every_covariance
def test_gradient_at_the_posterior_is_that_of_the_likelihood(covariance: Covariance) -> None:
    model, x = mixture(covariance), three_groups(9)
    model.log_prob(x).sum().neg().backward()
    wanted = gradients_of(model)
    ELBO().loss_and_grads(model, guides.Exact(model), Batch(x=x))
    assert_equal(gradients_of(model), wanted)


@every_covariance
def test_elbo_is_pyros(covariance: Covariance) -> None:
    model, x = mixture(covariance), three_groups(9)
    torch.manual_seed(0)
    guide, batch = enumerated(model), Batch(x=x)
    ours = ELBO().loss_and_grads(model, guide, batch)
    gradients = gradients_of(model, guide)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, batch)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-12)
    assert_equal(gradients_of(model, guide), gradients)
    # summed over in the model instead of the guide, z leaves log p(x)
    marginal = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda batch: None, batch)
    exact = ELBO().loss(model, guides.Exact(model), batch)
    assert exact == pytest.approx(marginal, rel=1e-12)


@every_covariance
@pytest.mark.parametrize("family", ["mean-field", "point"])
def test_elbo_over_parameters_is_pyros(covariance: Covariance, family: str) -> None:
    """z integrated out at each draw of the parameters, by a guide that sees them, and by Pyro in the model."""
    x = three_groups(9)
    model, batch = with_prior(x, covariance), Batch(x=x)
    shared = guides.Shared(model, family, start=model.values_of(model.prior.expected())).double()  # type: ignore[arg-type]
    names = [name for name, spec in model.latents.items() if spec.scope == "global"]
    guide = Combined(model, guides.Exact(datum_part(model)), shared=shared, given=names)
    torch.manual_seed(3)
    ours = ELBO(kl="monte-carlo").loss_and_grads(model, guide, batch)
    gradients = gradients_of(shared)
    torch.manual_seed(3)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(config_enumerate(model), shared, batch)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-10)
    assert_equal(gradients_of(shared), gradients, 1e-8)


@pytest.mark.parametrize("covariance", [pytest.param("full", marks=pytest.mark.slow), "tied"])
def test_guides_of_parameters_keep_the_contract(covariance: Covariance) -> None:
    x = three_groups(6)
    model = with_prior(x, covariance)
    names = [name for name, spec in model.latents.items() if spec.scope == "global"]
    local: dict[str, Guide] = {
        "exact": guides.Exact(datum_part(model)),
        "enumerated": guides.Enumerated(datum_part(model), networks.encoder("mlp", (2,), (7,))),
    }
    for name, part in local.items():
        guide = Combined(model, part, given=names if name == "exact" else ()).double()
        check_guide(guide, model, Batch(x=x))
        check_objective(ELBO(particles=2, data_size=12), model, guide, Batch(x=x))
        if covariance == "full":
            check_compiled(model, guide, ELBO(particles=2, data_size=12), Batch(x=x), steps=2)


# discrete guides


@pytest.mark.parametrize("name", ["enumerated", "exact"])
def test_guides_of_components_keep_the_contract(name: str) -> None:
    model = mixture(size=3).float()
    guide = guides.guides.get(name)(*(model, networks.encoder("mlp", (3,), (7,)))[: 2 if name == "enumerated" else 1])
    batch = Batch(x=0.3 * three_groups(6, 3).float())
    check_guide(guide, model, batch)
    check_objective(objectives.Renyi(0.5, 3), model, guide, batch)


def test_exact_is_of_one_discrete_site() -> None:
    model = mixture()
    model.latents = {**model.latents, "y": model.latents["z"]}
    with pytest.raises(InputError, match="Exact is the posterior of one discrete latent; GaussianMixture has z, y"):
        guides.Exact(model)
    encoder = networks.encoder("mlp", (2,), (7,))
    assert enumerated(model).sites == ("z", "y")
    model.latents = {}
    with pytest.raises(InputError, match="declares no latent site"):
        guides.Enumerated(model, encoder)
    with pytest.raises(InputError, match="'weights' of GaussianMixture is shared by all data: use Combined"):
        guides.Enumerated(with_prior(three_groups(9)), encoder)
    with pytest.raises(InputError, match=r"needs batch\.x"):
        guides.Exact(mixture()).distribution(Batch(n=3))


def test_gradients_vanish_where_em_ends() -> None:
    """EM's fixed points are the likelihood's: the exact gradient there is 0."""
    x = three_groups()
    for covariance in COVARIANCES:
        model = GaussianMixture(3, 2, covariance).double()
        em(model, x, restarts=1, tolerance=0, iterations=200, regularization=0.0)
        ELBO().loss_and_grads(model, guides.Exact(model), Batch(x=x))
        for gradient in gradients_of(model):
            assert gradient.abs().max() < 1e-4  # of numbers that are sums over 120 data


def test_aligned_undoes_a_permutation() -> None:
    p = mixture().parameters_of()
    order = torch.tensor([2, 0, 1])
    moved = MixtureParameters(*(t[order] for t in p))
    for ours, theirs in zip(moved.aligned(p), p, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    both = MixtureParameters(*(torch.stack([a, b]) for a, b in zip(p, moved, strict=True)))
    for ours, theirs in zip(both.aligned(p), p, strict=True):
        torch.testing.assert_close(ours, torch.stack([theirs, theirs]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: GaussianMixture(0, 2), "components=0 must be a whole number, 1 or more"),
        (lambda: GaussianMixture(2, 2.0), r"size=2.0 must be a whole number"),  # type: ignore[arg-type]
        (lambda: GaussianMixture(2, 2, "ful"), "covariance='ful' is not known; did you mean 'full'"),  # type: ignore[arg-type]
        (
            lambda: GaussianMixture(2, 2, prior=DirichletNormal.weak(three_groups(), 3)),
            "prior is of 3 components of 2 numbers with full covariances; the mixture has 2 of 2",
        ),
        (lambda: mixture()(Batch(x=torch.zeros(4, 3))), r"batch.x has shape \(4, 3\); this mixture is of \(2,\)"),
        (
            lambda: mixture()(Batch(x=torch.zeros(4, 2), observed=torch.ones(4, 2).bool())),
            "batch.observed must be None",
        ),
        (lambda: mixture().prior, "this mixture has no prior"),
        (lambda: mixture().log_prob(torch.zeros(4, 3).double()), r"x has shape \(4, 3\); it must be .* \(N, 2\)"),
        (lambda: mixture().log_prob(torch.full((4, 2), math.nan)), "x has NaN or infinity in 4 of 4 rows, row 0"),
        (lambda: mixture().predict(torch.zeros(4, 2).long()), "x must be a floating-point tensor .* not torch.int64"),
        (lambda: mixture().predict(np.zeros((4, 2))), "x must be a floating-point tensor .* not ndarray"),  # type: ignore[arg-type]
        (lambda: mixture().sample(0), "n=0 must be a whole number"),
        (lambda: mixture().parameters_of({}), "has no prior, and its parameters are its own"),
        (lambda: with_prior(three_groups()).log_prob(three_groups()), "with a prior are latent: give values of"),
        (lambda: with_prior(three_groups()).parameters_of({}), "'weights', .* is missing"),
        (lambda: with_prior(three_groups()).set_parameters(mixture().parameters_of()), "no parameters of its own"),
        (lambda: DirichletNormal.weak(torch.zeros(1, 2), 2), "a covariance needs 2 data or more"),
    ],
)
def test_refused(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()
