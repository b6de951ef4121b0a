"""Log q under stopped parameters: what is stopped, wherever it is held, and what cannot be is refused."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import OF_ONE_MODEL, SHAPE, Linear, binary_batch, guide_for, normal, pair, vae
from pyro.distributions.transforms import affine_coupling
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppl_vae import STL, Batch, CompiledSVI, DReG, Guide, check_pair, guides, log_weights, networks, pyro_pair
from ppl_vae.build import build_guide
from ppl_vae.errors import InputError
from ppl_vae.stopping import Stopped, leaves
from ppl_vae.weights import Program

ALL = ("mean-field", "full-rank", "conditional", "bottom-up", "top-down", "class", "mixture")


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64))


# ---------------------------------------------------------------- the mode itself


def test_parameters_are_stopped_and_what_is_computed_is_not() -> None:
    weight, z = parameter(3, 3), parameter(4, 3) * 1.0
    with Stopped():
        outputs = {
            "product": z @ weight,
            "transposed": z @ weight.T,
            "linear": nn.functional.linear(z, weight, bias=weight[0]),
            "list": torch.cat([z, weight]),
            "keyword": torch.add(z, other=weight[0]),
            "method": z.mul(weight.exp().sum()),
        }
        only_weight = (weight.T @ weight).sum()
        assert weight.requires_grad, "a look at it sees it as it is"
    for name, out in outputs.items():
        assert not any(leaf is weight for leaf in leaves(out)), name
        assert len(list(leaves(out))) == 1, f"{name} keeps the draw's graph"
    assert not only_weight.requires_grad
    assert any(leaf is weight for leaf in leaves(z @ weight)), "outside nothing is stopped"


def test_variables_made_inside_can_be_differentiated_by() -> None:
    weight = parameter(3)
    with Stopped() as stop:
        own = (2.0 * weight).requires_grad_()
        (gradient,) = torch.autograd.grad((own * weight).sum(), [own])
    torch.testing.assert_close(gradient, weight.detach())
    assert len(stop.made) == 1


def test_leaves_of_a_leaf_and_of_nothing() -> None:
    weight = parameter(2)
    assert list(leaves(weight)) == [weight]
    assert list(leaves(torch.ones(2))) == []


# ---------------------------------------------------------------- the second run


def leak(guide: Guide, model: Program, batch: Batch) -> dict[str, float]:
    """The largest gradient of log q, at fixed draws, by parameter: 0.0 where it is stopped."""
    w = log_weights(model, guide, batch, particles=3, stop_guide=True)
    named = dict(guide.named_parameters())
    copies = [copy.value for copy in w.copies.values()]
    log_q = sum((w.log_guide[name].sum() for name in w.copies), torch.zeros(()))
    # every path from a parameter leads through a copy; its gradient is what remains when those are taken away
    whole = torch.autograd.grad(log_q, list(named.values()), allow_unused=True, retain_graph=True)
    through = torch.autograd.grad(
        copies, list(named.values()), torch.autograd.grad(log_q, copies, retain_graph=True), allow_unused=True
    )
    return {
        name: 0.0 if a is None else float((a if b is None else a - b).abs().max())
        for name, a, b in zip(named, whole, through, strict=True)
    }


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_values_stay_and_nothing_leaks(name: str, particles: int) -> None:
    model, guide, batch = pair(name)
    torch.manual_seed(0)
    plain = log_weights(model, guide, batch, particles=particles)
    torch.manual_seed(0)
    stopped = log_weights(model, guide, batch, particles=particles, stop_guide=True)
    for term, value in plain.log_guide.items():
        torch.testing.assert_close(stopped.log_guide[term], value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(stopped.log_w, plain.log_w, rtol=1e-13, atol=1e-13)
    assert plain.copies == {}
    assert set(stopped.copies) == set(plain.log_guide) - set(plain.enumerated) - {"mixture"}
    assert max(leak(guide, model, batch).values()) < 1e-12


@pytest.mark.parametrize("name", [name for name in guides.guides if name not in OF_ONE_MODEL])
def test_nothing_leaks_in_any_guide(name: str) -> None:
    """Flows, whose second run is through their inverse, agree to its rounding."""
    model, batch = vae(), binary_batch()._replace(rows=torch.arange(5))
    encoder = networks.encoder("mlp", SHAPE, (7,))
    guide: Guide = build_guide(guides.guides.get(name), model, encoder, 5).double()
    if not guide.scores_given:
        pytest.skip("refused by the objectives")
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    values = []
    for stop in (False, True):
        torch.manual_seed(0)
        values.append(log_weights(model, guide, batch, particles=3, stop_guide=stop).log_w)
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=1e-7)
    assert max(leak(guide, model, batch).values()) < 1e-9


def test_the_gradient_left_out_is_that_of_log_q_at_fixed_draws() -> None:
    for name in ("full-rank", "bottom-up"):
        model, guide, batch = pair(name)
        parameters = list(guide.parameters())
        gradients = []
        for stop in (False, True):
            torch.manual_seed(0)
            w = log_weights(model, guide, batch, particles=2, stop_guide=stop)
            gradients.append(torch.autograd.grad(w.log_w.sum(), parameters))
        torch.manual_seed(0)
        w = log_weights(model, guide, batch, particles=2)
        with pyro.plate("particles", 2, dim=-2):
            fixed = {site: value.detach() for site, value in w.draws.items()}
            trace = pyro.poutine.trace(pyro.poutine.condition(guide, data=fixed)).get_trace(batch)
        at_fixed = torch.autograd.grad(trace.log_prob_sum(), parameters)
        for plain, stopped, direct in zip(*gradients, at_fixed, strict=True):
            torch.testing.assert_close(plain, stopped - direct, rtol=1e-10, atol=1e-10)


def test_without_gradients_there_is_no_second_run() -> None:
    model, guide, batch = pair("mean-field")
    log_weights(model, guide, batch)  # the first run of all looks whether anything is enumerated
    runs = []
    guide.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        w = log_weights(model, guide, batch, stop_guide=True)
    assert len(runs) == 1
    assert w.copies == {}


def test_a_parameter_of_both_is_stopped_in_log_q_alone() -> None:
    """A module that model and guide share, under two names: the model's part of its gradient stays."""
    model, guide, batch = pair("conditional")
    assert guide.encoder.condition is model.condition
    shared = Linear(4, 4)
    original = model.condition.forward
    model.condition.add_module("embedding", shared)
    model.condition.forward = lambda batch: shared(original(batch))  # type: ignore[method-assign]
    for wanted, stop in ((True, False), (True, True)):
        w = log_weights(model, guide, batch, stop_guide=stop)
        assert any(leaf is shared.weight for leaf in leaves(w.log_joint.sum())) == wanted
    assert max(leak(guide, model, batch).values()) < 1e-12
    assert all(p.requires_grad for p in guide.parameters())


class Closure:
    """A program that is no module, over networks that it does not register anywhere."""

    def __init__(self) -> None:
        self.net = Linear(6, 6)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", normal(self.net(batch.x.flatten(1))))}


def through_the_store() -> tuple[Callable[[Batch], None], list[nn.Parameter]]:
    net = Linear(6, 3)

    def guide(batch: Batch) -> None:
        pyro.module("net", net)
        scale = pyro.param("scale", lambda: torch.full((3,), 0.4, dtype=torch.float64), dist.constraints.positive)
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("z", dist.Normal(net(batch.x.flatten(1)), scale).to_event(1))

    return guide, list(net.parameters())


def assert_stopped(guide: Any, batch: Batch, parameters: list[Tensor]) -> None:
    model = vae()
    check_pair(model, guide, batch, stop_guide=True)
    w = log_weights(model, guide, batch, stop_guide=True)
    # log q of the reparameterized Gaussian, -Σ log s - ε²/2, has no gradient in the location, and in the scale only
    # directly: with both stopped, what is left comes through z, ∂ log q / ∂z = -ε/s
    z = w.copies["z"].value
    (by_z,) = torch.autograd.grad(w.log_guide["z"].sum(), z, retain_graph=True)
    whole = torch.autograd.grad(w.log_guide["z"].sum(), parameters, retain_graph=True)
    for a, b in zip(whole, torch.autograd.grad(z, parameters, by_z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert bool(a.any())


def test_parameters_in_a_closure_are_stopped() -> None:
    guide = Closure()
    assert_stopped(guide, binary_batch(), list(guide.net.parameters()))
    assert_stopped(guide.__call__, binary_batch(), list(guide.net.parameters()))


def test_parameters_in_pyros_store_are_stopped() -> None:
    guide, parameters = through_the_store()
    guide(binary_batch())
    parameters.append(pyro.get_param_store()._params["scale"])  # type: ignore[arg-type]
    assert_stopped(guide, binary_batch(), parameters)


@pytest.mark.parametrize("objective", [STL(), DReG(3)], ids=lambda o: type(o).__name__)
def test_svi_trains_a_pair_in_the_store(objective: STL | DReG) -> None:
    model, guide, batch = pair("mean-field")
    before = [p.detach().clone() for p in guide.parameters()]
    svi = pyro.infer.SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 1e-3}), loss=objective)
    svi.step(batch)
    assert all(not torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))


class WithTransform(Guide):
    """One of Pyro's transforms that are modules, which keep the last draw and its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Linear(6, 6)
        self.flow = affine_coupling(3, [4]).double()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            base = normal(self.net(batch.x.flatten(1)))
            return {"z": pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))}


def test_a_transform_that_remembers_its_draw_is_stopped_too() -> None:
    model, guide, batch = vae(), WithTransform(), binary_batch()
    check_pair(model, guide, batch, stop_guide=True)
    leaks = leak(guide, model, batch)
    assert any(name.startswith("flow") for name in leaks)
    assert max(leaks.values()) < 1e-10


# ---------------------------------------------------------------- state and noise of a guide


class WithBody(Guide):
    """A guide with a given body before its Gaussian."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, Linear(6, 6)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", normal(self.head(self.body(batch.x.flatten(1)))))}


@pytest.mark.parametrize("body", [nn.BatchNorm1d(6).double(), spectral_norm(Linear(6, 6))], ids=["norm", "spectral"])
def test_the_second_run_neither_sees_nor_makes_changes_of_buffers(body: nn.Module) -> None:
    """A running average is moved once a step, and a power iteration does not make the second run another q."""
    model, batch = vae(), binary_batch()
    states = []
    for stop in (False, True):
        torch.manual_seed(0)
        guide = WithBody(body)
        guide.load_state_dict({k: torch.full_like(v, 0.4) if v.dim() else v * 0 for k, v in guide.state_dict().items()})
        torch.manual_seed(1)
        w = log_weights(model, guide, batch, stop_guide=stop)
        states.append({"log_w": w.log_w.detach(), **{k: v.clone() for k, v in guide.named_buffers()}})
    assert len(states[0]) > 1
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-13, atol=1e-13, msg=name)


@pytest.mark.parametrize("objective", [STL(), DReG(3)], ids=lambda o: type(o).__name__)
def test_dropout_is_refused_while_it_is_on(objective: STL | DReG) -> None:
    model, guide, batch = vae(), WithBody(nn.Dropout(0.5)), binary_batch()
    guide.eval()
    objective.loss(model, guide, batch)
    guide.train()
    for _ in range(2):
        with pytest.raises(InputError, match=r"random numbers besides those of its sample sites.*guide\.eval"):
            objective.loss(model, guide, batch)


class Hidden(torch.autograd.Function):
    """An operation that torch's overrides do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2.0 * gradient


class Leaky(Guide):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.bias = Linear(6, 6), parameter(6)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", normal(self.head(batch.x.flatten(1)) + Hidden.apply(self.bias)))}


def test_a_parameter_that_is_not_stopped_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"log q of site 'z' keeps the gradient of the parameter 'bias' of shape \(6,\)"
    ):
        STL().loss(vae(), Leaky(), binary_batch())


def test_a_guide_that_cannot_score_draws_is_refused() -> None:
    model, guide, batch = pair("mean-field")
    guide.scores_given = False
    for objective in (STL(), DReG(3)):
        with pytest.raises(InputError, match="scores draws that MeanField did not make"):
            objective.loss(model, guide, batch)


def test_a_flow_without_inverse_in_a_plain_program_is_refused() -> None:
    flow = pyro.distributions.transforms.Planar(3).double()
    net = Linear(6, 6)

    def guide(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("z", dist.TransformedDistribution(normal(net(batch.x.flatten(1))), [flow]))

    with pytest.raises(InputError, match="cannot score its own draws a second time"):
        STL().loss(vae(), guide, binary_batch())


def test_scores_of_a_guide_are_those_of_eager_calls_after_the_mode() -> None:
    """The mode is left behind: an ordinary gradient afterwards is whole."""
    model, guide, batch = vae(), guide_for(vae()), binary_batch()
    log_weights(model, guide, batch, stop_guide=True)
    w = log_weights(model, guide, batch)
    assert any(leaf is p for p in guide.parameters() for leaf in leaves(w.log_guide["z"].sum()))


@pytest.mark.parametrize("objective", [STL(), DReG(3)], ids=lambda o: type(o).__name__)
def test_a_compiled_step_stops_what_lies_in_pyros_store(objective: STL | DReG) -> None:
    """Parameters of a plain function, which the tracer puts stand-ins for."""
    batch, results = binary_batch(), []
    for compile in ("graph", False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = vae()
        guide, _ = through_the_store()
        svi = CompiledSVI(model, guide, torch.optim.SGD, objective, {"lr": 0.01}, compile=compile)  # type: ignore[arg-type]
        torch.manual_seed(1)
        losses = [svi.step(batch) for _ in range(4)]
        assert not svi.report().fallbacks
        store = pyro.get_param_store()
        results.append([*losses, *(store[name].detach().clone() for name in sorted(store.keys()))])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-12)
