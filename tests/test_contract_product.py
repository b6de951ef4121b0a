"""Every model with every guide under every objective: the three axes are plugs."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch._inductor import config as inductor_config

from ppl_vae import Batch, Guide, LatentModel, Objective, guides, likelihoods, models, networks, objectives, priors
from ppl_vae.build import build_guide
from ppl_vae.errors import InputError
from ppl_vae.networks import Condition
from ppl_vae.testing import check_compiled, check_guide, check_model, check_objective

SHAPE = (1, 4, 4)
LATENT = 3
SIZE = 6  # of the data set of which the batch has some rows

# How a part is made whose constructor asks for more than the others' do.
CONDITIONS = {"cvae": Condition(classes=3)}
CLASSES = 3
WITH_CLASSES = ("m2", "semi-supervised-vae")
TOLD = ("mean-field", "mixture", "semi-amortized")
LATENTS = {"hierarchical-vae": (LATENT, 2)}  # some guides have nothing to do in one dimension
SHARED = {"bayesian-decoder", "structured-vae"}  # models with latents that all data share
OF_SHARED = {"elbo", "structured-elbo", "capacity", "constrained"}  # objectives that need no weight for each datum
# Flows of a few transforms: the compiler takes long over many.
OPTIONS = {
    "planar": {"transforms": 2},
    "radial": {"transforms": 2},
    "sylvester": {"transforms": 1},
    "spline": {"transforms": 1, "bins": 3},
    "structured": {"iterations": 1},
}


# Models without a decoder, over vectors, each with the plainest guide for it.
VECTORS = {"gaussian-mixture": "enumerated"}
SUMS = ("enumerated", "exact")  # guides that sum over values, and draw none

# Models of grids of codes, which make their networks themselves, and have a guide of their own.
GRIDS = ("vqvae", "vqvae2")
OF_GRIDS = {"codebook": 5, "size": 3, "downsample": 2, "channels": 4, "blocks": 1}


def make_model(name: str) -> LatentModel:
    if name == "gaussian-mixture":
        return models.GaussianMixture(components=3, size=2)
    if name in GRIDS:
        return models.models.get(name)(None, likelihoods.Bernoulli(SHAPE), **OF_GRIDS)  # type: ignore[call-arg]
    condition = CONDITIONS.get(name)
    given = {} if condition is None else {"condition": condition}
    inputs = LATENT + (0 if condition is None else condition.width)
    if name in WITH_CLASSES:
        given, inputs = {"classes": CLASSES}, LATENT + CLASSES
    decoder = networks.decoder("mlp", inputs, SHAPE, 1, (8,))
    return models.models.get(name)(decoder, likelihoods.Bernoulli(SHAPE), LATENTS.get(name, LATENT), **given)  # type: ignore[call-arg]


def make_guide(name: str, model_name: str, model: LatentModel) -> Guide:
    shape = (2,) if model_name in VECTORS else SHAPE
    encoder: Any = networks.encoder("mlp", shape, (8,), condition=CONDITIONS.get(model_name))
    encoder = model.make_encoder() if isinstance(model, models.Quantized) else encoder
    guide: Guide = build_guide(guides.guides.get(name), model, encoder, SIZE, OPTIONS.get(name))
    return guide


def make_objective(name: str, model: LatentModel) -> Objective:
    chains = {"model": model, "size": SIZE}
    given: dict[str, dict[str, Any]] = {"score-climbing": chains, "transport-score-climbing": chains}
    given["capacity"] = {"gamma": 2.0}  # plain gradient descent would run away under 1000
    given["factor"] = {"model": model, "hidden": 6, "layers": 1}
    if name == "semi-supervised":
        return objectives.SemiSupervised("iwae", particles=3)
    if name == "vq":
        return objectives.VQ()  # of a guide with one draw
    return objectives.objectives.get(name)(particles=3, **given.get(name, {}))


PARTS_OF_KL = ("btc", "dip")  # objectives that take single dimensions of a Gaussian q
GAUSSIAN = ("mean-field", "full-rank", "low-rank", "local", "semi-amortized", "bottom-up", "top-down")


def refusal(model_name: str, guide_name: str, objective_name: str) -> str | None:
    """The words with which an objective refuses a model or a guide that it has no use for."""
    if objective_name == "structured-elbo" and guide_name != "structured":
        return "StructuredELBO is of StructuredVAE with the guide Structured"
    if objective_name == "vq" and guide_name != "nearest":
        return "VQ is of VQVAE and VQVAE2 with the guide Nearest"
    if objective_name == "transport-score-climbing" and (model_name in WITH_CLASSES or model_name in GRIDS):
        return "moves its chains along gradients"
    if objective_name == "semi-supervised" and model_name not in WITH_CLASSES:
        return "needs a guide with a classifier"
    if guide_name == "nearest" and objective_name != "vq":
        return "is discrete|does not train Nearest"
    discrete = model_name in (*WITH_CLASSES, *VECTORS)
    if objective_name == "factor" and (discrete or model_name in SHARED or guide_name == "mixture"):
        return "is discrete|is enumerated|shared by all data"
    if guide_name == "delta" and objective_name != "elbo":
        return "is a point mass, which has no density|shared by all data"
    single = not discrete and model_name not in (*SHARED, "hierarchical-vae")
    if objective_name in PARTS_OF_KL and not (single and guide_name in GAUSSIAN):
        return "needs a guide that is a Gaussian of one latent site"
    if model_name in SHARED and objective_name not in OF_SHARED:
        return "shared by all data"
    if objective_name in ("iwae", "dreg", "stl") and model_name in WITH_CLASSES:
        return "drops out of its bound"  # and q(y | x) would stay as it started
    if objective_name == "transport-score-climbing":
        if model_name in VECTORS:
            return "'z' is discrete"
        layers = model_name == "hierarchical-vae"
        if layers and guide_name in ("bottom-up", "top-down", "mixture"):
            return "needs a guide that gives q.* of each site by `distribution`"
        if guide_name == "mixture":
            return "needs a guide whose q.* is a Gaussian or an invertible flow of one"
    return None


def pair_refusal(model_name: str, guide_name: str) -> str | None:
    """The words with which a guide refuses a model, or a model all guides but its own."""
    if guide_name == "structured":
        return None if model_name == "structured-vae" else "guide='structured' is of model='structured-vae'"
    if guide_name == "nearest":
        return None if model_name in GRIDS else "is of models with a codebook|does not fit StructuredVAE"
    if model_name in GRIDS:
        return "is a guide of discrete latents, one number each|is discrete|is of Gaussians|no bijection"
    if model_name == "structured-vae":
        return "does not fit StructuredVAE, .* use guide='structured'"
    if (model_name in VECTORS) != (guide_name in SUMS):
        return "of discrete latents, .* continuous" if guide_name in SUMS else "is of Gaussians, .* is discrete"
    return None


def without_gradient(guide_name: str, objective_name: str) -> tuple[str, ...]:
    """Parts that an objective gives no gradient: where all of z is summed over, a bound over weights is log p(x)."""
    return ("guide",) if guide_name in SUMS and objective_name in ("iwae", "dreg", "stl") else ()


def batch(model_name: str = "vae") -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (4, *SHAPE), generator=generator).float()
    if model_name in VECTORS:
        x = torch.randn(4, 2, generator=generator)
    y = [0, -1, 1, -1] if model_name in WITH_CLASSES else [0, 2, 1, 1]
    return Batch(x=x, y=torch.tensor(y), rows=torch.tensor([3, 0, 5, 1]))


def is_refused(model_name: str, guide_name: str, objective_name: str) -> bool:
    """Whether this combination makes no sense, which the tests below see refused."""
    return bool(pair_refusal(model_name, guide_name) or refusal(model_name, guide_name, objective_name))


PRODUCT = list(itertools.product(models.models, guides.guides, objectives.objectives))


def is_plain(combination: tuple[str, ...]) -> bool:
    """Whether at most one part is not the plainest of its kind (or goes with one that is not): tested by default."""
    if combination in (("m2", "mean-field", "semi-supervised"), ("structured-vae", "structured", "structured-elbo")):
        return True
    plain = [
        ("vae", "mean-field", "elbo"),
        ("vqvae", "nearest", "vq"),
        *((name, guide, "elbo") for name, guide in VECTORS.items()),
    ]
    return any(sum(a != b for a, b in zip(combination, each, strict=True)) <= 1 for each in plain)


Test = Callable[[str, str, str], None]
PLAIN = [c for c in PRODUCT if is_plain(c)]
NAMES = ("model_name", "guide_name", "objective_name")
every_plain = pytest.mark.parametrize(NAMES, PLAIN)
every_pair = pytest.mark.parametrize(
    ("model_name", "guide_name"), list(itertools.product(models.models, guides.guides))
)


def with_every_objective(test: Test, model_name: str, guide_name: str) -> None:
    """A test for all objectives, told of each that fails: thousands of tests with a name of their own take seconds to
    be collected, by those too who leave them out."""
    failed = []
    for objective_name in objectives.objectives:
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        try:
            test(model_name, guide_name, objective_name)
        except Exception as error:
            error.add_note(f"objective: {objective_name}")
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{model_name}, {guide_name}", failed)


@pytest.mark.parametrize("model_name", list(models.models))
def test_every_model(model_name: str) -> None:
    check_model(make_model(model_name), batch(model_name))


@pytest.mark.parametrize(
    ("model_name", "guide_name"),
    [
        # the model is m2's, and so are most pairs
        pytest.param(*pair, marks=pytest.mark.slow)
        if pair[0] == "semi-supervised-vae" and pair[1] not in TOLD
        else pair
        for pair in itertools.product(models.models, guides.guides)
    ],
)
def test_every_guide_with_every_model(model_name: str, guide_name: str) -> None:
    model = make_model(model_name)
    if words := pair_refusal(model_name, guide_name):
        with pytest.raises(InputError, match=words):
            make_guide(guide_name, model_name, model)
        return
    check_guide(make_guide(guide_name, model_name, model), model, batch(model_name))


@every_plain
def test_every_objective_with_plain_pairs(model_name: str, guide_name: str, objective_name: str) -> None:
    model = make_model(model_name)
    if pair_refusal(model_name, guide_name):
        return
    guide = make_guide(guide_name, model_name, model)
    if words := refusal(model_name, guide_name, objective_name):
        with pytest.raises(InputError, match=words):
            make_objective(objective_name, model).loss(model, guide, batch(model_name))
        return
    without = without_gradient(guide_name, objective_name)
    check_objective(make_objective(objective_name, model), model, guide, batch(model_name), without)


@pytest.mark.slow
@every_pair
def test_every_objective_with_every_pair(model_name: str, guide_name: str) -> None:
    with_every_objective(test_every_objective_with_plain_pairs, model_name, guide_name)


def test_every_part_is_tested_by_default() -> None:
    plain = [c for c in PRODUCT if is_plain(c) and not pair_refusal(*c[:2])]
    assert {part for combination in plain for part in combination} == {
        *models.models,
        *guides.guides,
        *objectives.objectives,
    }


@pytest.mark.parametrize(NAMES, [c for c in PLAIN if c[0] not in VECTORS or c[2] == "elbo"])
def test_every_plain_traced_step_is_the_eager_step(model_name: str, guide_name: str, objective_name: str) -> None:
    if is_refused(model_name, guide_name, objective_name):
        return
    model = make_model(model_name)
    guide, objective = make_guide(guide_name, model_name, model), make_objective(objective_name, model)
    check_compiled(model, guide, objective, batch(model_name))


@pytest.mark.slow
@every_pair
def test_every_traced_step_is_the_eager_step(model_name: str, guide_name: str) -> None:
    with_every_objective(test_every_plain_traced_step_is_the_eager_step, model_name, guide_name)


LARGE_GUIDES = {"inverse-autoregressive", "radial", "semi-amortized", "spline", "sylvester", "householder", "planar"}
LARGE_OBJECTIVES = {"tvo", "wake", "transport-score-climbing"}
OF_SMALL_GRAPHS = ("mean-field", "local")  # guides for which a transport's graph stays small


def covering() -> list[tuple[str, str, str]]:
    """Combinations in which every model, guide and objective occurs: each one taken has the most parts that none before
    it had, so that the first ones have three new parts each. No two large graphs stand together, whose compilation
    takes a minute."""

    def is_small(guide_name: str, objective_name: str) -> bool:
        if objective_name == "transport-score-climbing":
            return guide_name in OF_SMALL_GRAPHS
        return not (guide_name in LARGE_GUIDES and objective_name in LARGE_OBJECTIVES)

    made = [c for c in PRODUCT if not is_refused(*c) and is_small(*c[1:])]
    left = {part for c in made for part in enumerate(c)}
    chosen = []
    while left:
        best = max(made, key=lambda c: len(left & set(enumerate(c))))
        chosen.append(best)
        left -= set(enumerate(best))
    return chosen


COVERING = covering()

# All loops of a step in one C++ file, whose headers are read once, not made quick by g++: less than half of the time.
# The loops are the compiler's own, vectorized ones too.
QUICK = {"cpp_wrapper": True, "aot_inductor.debug_compile": True}


def test_the_covering_set_has_every_part() -> None:
    assert len(COVERING) <= 25
    assert len(set(COVERING)) == len(COVERING)
    for k, registry in enumerate((models.models, guides.guides, objectives.objectives)):
        assert {c[k] for c in COVERING} == set(registry)


@pytest.mark.parametrize(
    NAMES,
    # the compiler takes long over convolutions
    [pytest.param(*c, marks=pytest.mark.slow) if c[0] in GRIDS else c for c in COVERING],
)
def test_a_covering_set_compiles(model_name: str, guide_name: str, objective_name: str) -> None:
    if is_refused(model_name, guide_name, objective_name):  # of the product; none in the covering set
        return
    model = make_model(model_name)
    guide, objective = make_guide(guide_name, model_name, model), make_objective(objective_name, model)
    data, optim = batch(model_name), torch.optim.SGD
    with inductor_config.patch(QUICK):
        check_compiled(model, guide, objective, data, backend="inductor", dtype=torch.float32, optim=optim)


@pytest.mark.slow
@every_pair
def test_the_product_compiles(model_name: str, guide_name: str) -> None:
    """Some 7 seconds of a core each: in parts by `-k "test_the_product_compiles and [vae-"`, say."""
    with_every_objective(test_a_covering_set_compiles, model_name, guide_name)


PRIOR_OPTIONS = {
    "mixture": {"components": 3},
    "vamp": {"components": 3, "shape": SHAPE},
    "flow": {"transforms": 1, "bins": 3},
    "autoregressive": {"components": 2},
    "energy": {"hidden": 8, "chains": 4, "steps": 2, "points": 64},
}
PLAIN_PRIOR = "standard-normal"


def with_prior(prior_name: str, model_name: str) -> LatentModel:
    model = make_model(model_name)
    size = model.latents[priors.prior_site(model)].event_shape[0]
    priors.replace_prior(model, priors.priors.get(prior_name)(size, **PRIOR_OPTIONS.get(prior_name, {})))
    return model


def no_vamp(model_name: str, guide_name: str) -> str | None:
    """The words with which the VampPrior refuses a guide."""
    if guide_name in ("local", "semi-amortized", "delta"):
        return "gives no density" if guide_name == "delta" else "does not give it"
    if model_name == "m2":  # whose q(z | x) is one of each class
        return "has no closed-form distribution of each site"
    if model_name == "hierarchical-vae" and guide_name in ("bottom-up", "top-down", "mixture"):
        return "has no closed-form distribution of each site"
    return "this program is conditioned on" if model_name == "cvae" else None


def takes_a_prior(model_name: str) -> bool:
    try:
        priors.prior_site(make_model(model_name))
    except InputError:
        return False
    return True


HAVE_A_PRIOR = {name for name in models.models if takes_a_prior(name)}
PRIOR_PRODUCT = [(p, *c) for p in priors.priors if p != PLAIN_PRIOR for c in PRODUCT if c[0] in HAVE_A_PRIOR]
# each prior with each guide, with each objective and with each model, of which the others are the plainest
every_prior = pytest.mark.parametrize(
    ("prior_name", "model_name", "guide_name", "objective_name"),
    [
        c if c[1:] == ("vae", "mean-field", "elbo") else pytest.param(*c, marks=pytest.mark.slow)
        for c in PRIOR_PRODUCT
        if is_plain(c[1:])
    ],
)


@every_prior
def test_every_prior(prior_name: str, model_name: str, guide_name: str, objective_name: str) -> None:
    if is_refused(model_name, guide_name, objective_name):
        return
    model = with_prior(prior_name, model_name)
    guide = make_guide(guide_name, model_name, model)
    if prior_name == "vamp" and (words := no_vamp(model_name, guide_name)):
        with pytest.raises(InputError, match=words):
            priors.bind(model, guide)
        return
    priors.bind(model, guide)
    check_guide(guide, model, batch(model_name))
    objective = make_objective(objective_name, model)
    check_objective(objective, model, guide, batch(model_name))
    check_compiled(model, guide, objective, batch(model_name), steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("prior_name", list(priors.priors))
def test_every_prior_compiles(prior_name: str) -> None:
    model = with_prior(prior_name, "vae")
    guide = make_guide("mean-field", "vae", model)
    priors.bind(model, guide)
    check_compiled(model, guide, make_objective("elbo", model), batch(), backend="inductor", dtype=torch.float32)


@pytest.mark.parametrize("name", list(likelihoods.likelihoods))
def test_every_likelihood_traces(name: str) -> None:
    options = {"levels": 5} if name in ("categorical", "discretized-logistic") else {}
    likelihood = likelihoods.likelihoods.get(name)(SHAPE, **options)
    torch.manual_seed(0)
    decoder = networks.decoder("mlp", LATENT, SHAPE, likelihood.parameters_per_element, (8,))
    model = models.VAE(decoder, likelihood, LATENT)
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (8,)))
    check_compiled(model, guide, objectives.ELBO(), batch("vae"), steps=5)


@pytest.mark.parametrize("kind", ["conv", "residual", "partial"])
def test_every_network_traces(kind: networks.Kind) -> None:
    torch.manual_seed(0)
    likelihood = likelihoods.Bernoulli((1, 9, 7))
    model = models.VAE(networks.decoder(kind, LATENT, (1, 9, 7), 1, (8,)), likelihood, LATENT)
    guide = guides.MeanField(model, networks.encoder(kind, (1, 9, 7), (8,)))
    x = (torch.rand(4, 1, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    check_compiled(model, guide, objectives.IWAE(3), Batch(x=x), steps=5)
