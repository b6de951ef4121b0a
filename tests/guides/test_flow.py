"""The flow guides: what all families share, against autograd, quadrature and the Gaussian that they start from."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, binary_batch, vae
from pyro import poutine
from pyro.distributions.transforms import conditional_neural_autoregressive, conditional_planar
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call

from ppl_vae import ELBO, Batch, Guide, InputError, LatentModel, LatentSpec, guides, log_weights, networks
from ppl_vae.guides.flow import FlowNormal, FlowTransform
from ppl_vae.objectives import Terms
from ppl_vae.testing import check_compiled, check_guide

Make = Callable[..., guides.Flow]

FAMILIES: dict[str, Make] = {
    "planar": partial(guides.Planar, transforms=3),
    "radial": partial(guides.Radial, transforms=3),
    "householder": guides.Householder,
    "householder-2": partial(guides.Householder, transforms=2),
    "sylvester": partial(guides.Sylvester, transforms=2),
    "inverse-autoregressive": guides.InverseAutoregressive,
    "spline": partial(guides.Spline, bins=4),
    "spline-quadratic": partial(guides.Spline, bins=4, order="quadratic"),
    "spline-autoregressive": partial(guides.Spline, bins=4, kind="autoregressive"),
    "spline-autoregressive-quadratic": partial(guides.Spline, bins=4, kind="autoregressive", order="quadratic"),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


class Events(LatentModel):
    """Latents of any events and support; x is a noisy sum of them."""

    def __init__(self, **latents: LatentSpec) -> None:
        super().__init__()
        self.latents = latents
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        total = self.one.new_zeros(())
        with pyro.plate("data", batch.size, dim=-1):
            for name, spec in self.latents.items():
                ones = self.one.expand(spec.event_shape)
                if spec.support is constraints.positive:
                    prior = dist.Gamma(2.0 * ones, ones).to_event(len(spec.event_shape))
                elif spec.support is constraints.simplex:
                    prior = dist.Dirichlet(2.0 * ones)
                else:
                    prior = dist.Normal(0.0 * ones, ones).to_event(len(spec.event_shape))
                z = pyro.sample(name, prior)
                weights = torch.arange(1.0, 1.0 + ones.numel()).to(ones).reshape(spec.event_shape)
                term = weights * z
                for _ in spec.event_shape:
                    term = term.sum(-1)
                total = total + term
            return pyro.sample("x", dist.Normal(total.unsqueeze(-1), self.one.expand(4)).to_event(1), obs=batch.x)


def on(latent: int, family: Make, shake: float = 0.0) -> tuple[guides.Flow, Batch]:
    """A guide of one site of `latent` numbers in float64, its transforms off their start by `shake`."""
    guide = family(vae(latent), networks.encoder("mlp", SHAPE, (9,))).double()
    with torch.no_grad():
        for parameter in guide.heads["z"].layers.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return guide, binary_batch()


def flow_of(guide: Guide, batch: Batch) -> FlowTransform:
    flow = guide.distribution(batch)["z"].transforms[0]
    assert isinstance(flow, FlowTransform)
    return flow


@every_family
def test_the_contract(family: Make) -> None:
    model = vae()
    guide = family(model, networks.encoder("mlp", SHAPE, (9,))).double()
    assert guide.scores_given
    check_guide(guide, model, binary_batch())


@pytest.mark.parametrize("name", ["planar", "householder", "sylvester", "inverse-autoregressive", "spline"])
def test_the_contract_on_other_supports_and_events(name: str) -> None:
    """The flow lives in the unconstrained space, over the event's numbers in a row."""
    model = Events(
        rate=LatentSpec(torch.Size([3]), constraints.positive),
        share=LatentSpec(torch.Size([4]), constraints.simplex),
        table=LatentSpec(torch.Size([2, 2])),
    )
    guide = FAMILIES[name](model, networks.encoder("mlp", (4,), (9,))).double()
    batch = Batch(x=torch.randn(5, 4, dtype=torch.float64))
    check_guide(guide, model, batch)
    assert [head.numel for head in guide.heads.values()] == [3, 3, 4]
    assert guide(batch)["table"].shape == (5, 2, 2)


@pytest.mark.parametrize("name", ["planar", "radial", "sylvester", "inverse-autoregressive", "spline-autoregressive"])
def test_the_contract_in_one_dimension(name: str) -> None:
    model = Events(vector=LatentSpec(torch.Size([1])), number=LatentSpec(torch.Size()))
    guide = FAMILIES[name](model, networks.encoder("mlp", (4,), (9,))).double()
    batch = Batch(x=torch.randn(5, 4, dtype=torch.float64))
    check_guide(guide, model, batch)
    assert guide(batch)["number"].shape == (5,)


@every_family
def test_log_determinants_are_those_of_the_jacobian(family: Make) -> None:
    """To 1e-8, as drawn and as inverted, at random points of a flow off its start."""
    guide, batch = on(3, family, shake=0.5)
    few = batch.take(slice(0, 2))
    for noise in 1.5 * torch.randn(10, 2, 3, dtype=torch.float64):
        flow = flow_of(guide, few)
        z = flow(noise)
        stated = flow.log_abs_det_jacobian(noise, z)
        jacobian = torch.autograd.functional.jacobian(lambda e: flow_of(guide, few)(e), noise)
        for n in range(2):
            assert stated[n].item() == pytest.approx(torch.linalg.slogdet(jacobian[n, :, n])[1].item(), abs=1e-8)
        other = flow_of(guide, few)
        back = other.inv(z.clone())
        assert torch.allclose(other.log_abs_det_jacobian(back, z), stated, rtol=0, atol=1e-7)


@every_family
def test_log_q_is_the_base_minus_autograds_jacobian_under_particles(family: Make) -> None:
    guide, batch = on(3, family, shake=0.5)
    q = guide.distribution(batch)["z"].expand((4, batch.size))
    z = q.rsample()
    noise = flow_of(guide, batch).inv(z.detach())
    log_q = q.log_prob(z)
    assert log_q.shape == (4, batch.size)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda e: flow_of(guide, batch)(e)))(noise.detach())
    for k in range(4):
        for n in range(batch.size):
            base = dist.Normal(torch.zeros(3).double(), 1.0).log_prob(noise[k, n]).sum()
            wanted = base - torch.linalg.slogdet(jacobian[k, n, :, n])[1]
            assert log_q[k, n].item() == pytest.approx(wanted.item(), abs=1e-7)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_invert(family: Make, dtype: torch.dtype) -> None:
    """To 1e-5 in float64, in every point. In float32 at most points: what is said of it in docs/guides/flow.md."""
    latent = 4 if dtype == torch.float64 else 3
    guide, batch = on(latent, family, shake=0.3)
    guide, batch = guide.to(dtype), binary_batch(dtype=dtype)
    noise = torch.randn(500, 5, latent, dtype=dtype)
    z = flow_of(guide, batch)(noise)
    off = (flow_of(guide, batch).inv(z.clone()) - noise).abs()
    assert off.median() < (1e-12 if dtype == torch.float64 else 1e-5)
    # where a flow is steep single precision loses digits
    assert off.max() < 1e-5 if dtype == torch.float64 else off.quantile(0.9) < 1e-4


@every_family
def test_gradients_of_log_q_at_a_given_z(family: Make) -> None:
    """By the parameters and by z, against finite differences: what an implicit inverse could get wrong."""
    guide, batch = on(2, family, shake=0.3)
    few = batch.take(slice(0, 2))
    z = guide(few)["z"].detach() + 0.1
    names, parameters = zip(*guide.named_parameters(), strict=True)

    def log_q(z: Tensor, *values: Tensor) -> Tensor:
        # inside of the call: networks of z are asked only when log q is
        scorer = _Calling(guide, lambda: guide.distribution(few)["z"].log_prob(z))
        return functional_call(scorer, {f"guide.{n}": v for n, v in zip(names, values, strict=True)}, ())

    values = [p.detach().requires_grad_() for p in parameters]
    gradients = torch.autograd.grad(log_q(z.requires_grad_(), *values).sum(), [z, *values])
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in (z, *values)]
    step = 1e-6
    with torch.no_grad():
        ends = [
            log_q(*(v + sign * step * d for v, d in zip((z, *values), directions, strict=True))).sum()
            for sign in (1, -1)
        ]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / (2 * step), rel=1e-5, abs=1e-5)


@every_family
def test_they_integrate_to_one(family: Make) -> None:
    guide, batch = on(2, family, shake=0.15)
    q = guide.distribution(batch.take(slice(0, 1)))["z"]
    z = q.sample((4000,))[:, 0]
    centre, reach = z.mean(0), 1.3 * (z - z.mean(0)).abs().amax(0) + 1.0
    side = 301
    axes = [torch.linspace(-1.0, 1.0, side, dtype=torch.float64) * reach[d] + centre[d] for d in range(2)]
    grid = torch.cartesian_prod(*axes).unsqueeze(1)
    cell = 4.0 * reach.prod() / (side - 1) ** 2
    with torch.no_grad():
        assert (q.log_prob(grid).exp().sum() * cell).item() == pytest.approx(1.0, abs=1e-3)


@every_family
def test_training_starts_near_the_mean_field_guide(family: Make) -> None:
    """Its Gaussian is the mean-field guide's at an equal seed, and its density nearly so."""
    guide_of = {}
    for make in (guides.MeanField, family):
        torch.manual_seed(3)
        encoder = networks.encoder("mlp", SHAPE, (9,))
        guide_of[make] = make(vae(), encoder).double()
    flow, plain = guide_of[family], guide_of[guides.MeanField]
    head, other = flow.heads["z"], plain.heads["z"]
    assert isinstance(head, FlowNormal)
    for ours, theirs in zip(head.linear.parameters(), other.linear.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    batch = binary_batch()
    q, p = flow.distribution(batch)["z"], plain.distribution(batch)["z"]
    z = p.sample((200,))
    assert (q.log_prob(z) - p.log_prob(z)).abs().mean() < 0.05


def test_a_trained_mean_field_guide_can_be_the_start() -> None:
    plain = guides.MeanField(vae(), networks.encoder("mlp", SHAPE, (9,))).double()
    flow = guides.Planar(vae(), networks.encoder("mlp", SHAPE, (9,))).double()
    missing, unexpected = flow.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("heads.z.layers.") for name in missing)


@every_family
def test_nothing_of_a_call_is_kept(family: Make) -> None:
    """A copy can be made after a step, and two draws know nothing of each other."""
    guide, batch = on(3, family)
    model = vae()
    ELBO().differentiable_loss(model, guide, batch).backward()
    copied = copy.deepcopy(guide)
    first, second = guide.distribution(batch)["z"], copied.distribution(batch)["z"]
    z, w = first.rsample(), second.rsample()
    assert torch.allclose(first.log_prob(z), second.log_prob(z.clone()), rtol=0, atol=1e-8)
    assert torch.allclose(second.log_prob(w), first.log_prob(w.clone()), rtol=0, atol=1e-8)


@every_family
def test_stopped_parameters_leak_nothing(family: Make) -> None:
    """The draws rescored in a second run under detached parameters: log q then has a gradient through z alone."""
    guide, batch = on(3, family, shake=0.3)
    trace = poutine.trace(guide).get_trace(batch)
    z = trace.nodes["z"]["value"].detach()
    detached = {name: p.detach() for name, p in guide.named_parameters()}

    def rescored(z: Tensor) -> Tensor:
        def run(*args: Any) -> Tensor:
            again = poutine.trace(poutine.condition(guide, data={"z": z})).get_trace(batch)
            again.compute_log_prob()
            return again.nodes["z"]["log_prob"]

        return functional_call(_Calling(guide, run), {f"guide.{k}": v for k, v in detached.items()}, ())

    assert not rescored(z).requires_grad
    log_q = rescored(z.requires_grad_())
    assert torch.allclose(log_q, trace.nodes["z"]["fn"].log_prob(trace.nodes["z"]["value"]), rtol=0, atol=1e-8)
    (gradient,) = torch.autograd.grad(log_q.sum(), z)
    assert gradient.abs().sum() > 0


class _Calling(nn.Module):
    def __init__(self, guide: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.guide, self.run = guide, run

    def forward(self) -> Tensor:
        return self.run()


@every_family
def test_a_saved_guide_is_loaded_into_one_made_elsewhere(family: Make) -> None:
    """Nothing that counts is outside of the state dict: no order drawn at random, no masks."""
    guide, batch = on(3, family, shake=0.3)
    torch.manual_seed(99)
    other, _ = on(3, family)
    other.load_state_dict(guide.state_dict())
    z = guide(batch)["z"]
    a, b = (g.distribution(batch)["z"].log_prob(z) for g in (guide, other))
    assert torch.equal(a, b)


class GivenELBO(ELBO):
    """The ELBO with log q taken at a copy of the draws: what is compiled has the inverse in it."""

    scores_given = True

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        log_q = guide.distribution(*args)["z"].log_prob(w.draws["z"].clone())
        loss = -(w.log_joint - log_q).mean(0)
        return Terms(loss, {"elbo": -loss.detach()})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("planar", "inverse-autoregressive") else pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_the_inverse_traces(name: str) -> None:
    model = vae(2)
    guide = FAMILIES[name](model, networks.encoder("mlp", SHAPE, (9,)), transforms=1).double()
    check_compiled(model, guide, GivenELBO(particles=2), binary_batch(), steps=2)


@every_family
def test_log_weights_of_given_and_of_own_draws_agree(family: Make) -> None:
    guide, batch = on(3, family, shake=0.3)
    w = log_weights(vae(), guide, batch, particles=3)
    given = guide.distribution(batch)["z"].log_prob(w.draws["z"].clone())
    assert torch.allclose(w.log_guide["z"], given, rtol=0, atol=1e-8)


class TestPyrosOwn:
    """A flow of Pyro's transforms as they are, of which some have no inverse."""

    @staticmethod
    def pair(make: Callable[[int, int], Any]) -> tuple[LatentModel, guides.Flow, Batch]:
        model = vae()
        encoder = networks.encoder("mlp", SHAPE, (9,))
        return model, guides.Flow(model, encoder, lambda f, d: [make(d, f), make(d, f)]).double(), binary_batch()

    def test_planar(self) -> None:
        model, guide, batch = self.pair(lambda d, f: conditional_planar(d, f, [8]))
        assert not guide.scores_given
        check_guide(guide, model, batch)
        q = guide.distribution(batch)["z"]
        z = q.rsample((3,))
        assert q.log_prob(z).shape == (3, 5)
        with pytest.raises(
            InputError, match="a flow of ConditionedPlanar has no inverse: log q is known of the guide's own"
        ):
            q.log_prob(z.clone())
        with pytest.raises(InputError, match="GivenELBO scores draws that Flow did not make"):
            GivenELBO().loss(model, guide, batch)

    def test_elementwise(self) -> None:
        from pyro.distributions.transforms import conditional_spline

        model, guide, batch = self.pair(lambda d, f: conditional_spline(d, f, [8], 4))
        assert guide.scores_given
        check_guide(guide, model, batch)

    def test_neural_autoregressive(self) -> None:
        _, guide, batch = self.pair(lambda d, f: conditional_neural_autoregressive(d, f, [8]))
        assert not guide.scores_given
        assert guide.distribution(batch)["z"].rsample((2,)).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((guides.Planar, {"transforms": 0}), "transforms=0 must be a whole number, 1 or more"),
        ((guides.Radial, {"transforms": 2.0}), r"transforms=2\.0 must be a whole number"),
        ((guides.Householder, {"transforms": -1}), "transforms=-1 must be a whole number"),
        ((guides.Sylvester, {"reflections": 0}), "reflections=0 must be a whole number"),
        ((guides.InverseAutoregressive, {"hidden": 2}), "hidden=2 must be at least the number of the site's dim"),
        ((guides.InverseAutoregressive, {"hidden": True}), "hidden=True must be a whole number"),
        ((guides.Spline, {"bins": 1}), "bins=1 must be a whole number, 2 or more"),
        ((guides.Spline, {"bins": 2000}), "bins=2000 leaves a bin less than 0.001 of the box"),
        ((guides.Spline, {"order": "cubic"}), "order='cubic' is not known; .*choose one of: linear, quadratic"),
        ((guides.Spline, {"kind": "couple"}), "kind='couple' is not known; did you mean 'coupling'"),
        ((guides.Spline, {"bound": math.inf}), "bound=inf must be a finite number above 0"),
        ((guides.Spline, {"hidden": 0}), "hidden=0 must be a whole number"),
    ],
)
def test_options_that_are_none(options: tuple[Make, dict[str, Any]], message: str) -> None:
    make, given = options
    with pytest.raises(InputError, match=message):
        make(vae(), networks.encoder("mlp", SHAPE, (9,)), **given)


def test_one_dimension_is_refused_where_there_is_nothing_to_do() -> None:
    encoder = networks.encoder("mlp", SHAPE, (9,))
    with pytest.raises(InputError, match=r"Householder turns vectors.*use Planar, Radial or Spline"):
        guides.Householder(vae(1), encoder)
    with pytest.raises(InputError, match="has no halves: use kind='autoregressive'"):
        guides.Spline(vae(1), encoder)


def test_more_reflections_than_dimensions_add_nothing() -> None:
    encoder = networks.encoder("mlp", SHAPE, (9,))
    sizes = {k: sum(p.numel() for p in guides.Householder(vae(), encoder, k).parameters()) for k in (2, 3, 4, None)}
    assert sizes[2] < sizes[3] == sizes[4] == sizes[None]


def test_householder_turns_the_scaled_noise() -> None:
    """z = m + Q (s ⊙ ε) with Q orthogonal: the covariance is Q diag(s²) Qᵀ, and not diagonal."""
    guide, batch = on(3, guides.Householder, shake=1.0)
    flow = flow_of(guide, batch)
    axes = torch.eye(3, dtype=torch.float64)
    columns = torch.stack([flow(axis.repeat(5, 1)) - flow.loc for axis in axes], dim=-1)  # (N, D, D), Q diag s
    turn = columns / flow.log_scale.exp().unsqueeze(-2)
    assert torch.allclose(turn @ turn.mT, axes.expand(5, 3, 3), atol=1e-12)
    covariance = columns @ columns.mT
    assert (covariance - covariance.diagonal(dim1=-2, dim2=-1).diag_embed()).abs().amax((-1, -2)).min() > 1e-3
