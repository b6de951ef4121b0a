"""The handlers: which sites they scale, by what, and what they are refused for. Their equality with β in `ELBO` and
with Pyro's own subsampling is the proof of them."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PAIRS, pair
from pyro import poutine
from pyro.infer import Trace_ELBO

from ppl_vae import ELBO, Batch, scale_data, scale_latents
from ppl_vae.errors import InputError
from ppl_vae.handlers import apart


def scales(program: Any, batch: Batch) -> dict[str, Any]:
    nodes = poutine.trace(program).get_trace(batch).nodes
    return {name: node["scale"] for name, node in nodes.items() if node["type"] == "sample" and name != "data"}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("factor", [3.0, 0.0])
def test_latent_sites_alone_are_scaled_by_beta(name: str, factor: float) -> None:
    model, guide, batch = pair(name)
    observed = {"x", "label"}  # and not "mixture", a factor of the guide's log q
    for program in (model, guide):
        for site, scale in scales(scale_latents(factor)(program), batch).items():
            assert scale == (1.0 if site in observed else factor)


def test_factors_of_a_guide_are_part_of_its_log_q_and_those_of_a_model_are_not() -> None:
    """Pyro asks guides, and not models, whether what a factor is of is reparameterized."""

    def program(batch: Batch, **options: Any) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.factor("f", torch.zeros(batch.size), **options)

    for options, wanted in (({}, 1.0), ({"has_rsample": True}, 3.0), ({"has_rsample": False}, 3.0)):
        nodes = poutine.trace(scale_latents(3.0)(program)).get_trace(Batch(n=3), **options).nodes
        assert nodes["f"]["scale"] == wanted


@pytest.mark.parametrize("factor", [8.0, 0.5])
def test_sites_inside_the_plate_alone_are_scaled_by_the_data(factor: float) -> None:
    model, guide, batch = pair("global")
    assert scales(scale_data(factor)(model), batch) == {"w": 1.0, "z": factor, "x": factor}
    assert scales(scale_data(factor)(guide), batch) == {"w": 1.0, "z": factor}


def test_scales_multiply() -> None:
    model, _, batch = pair("global")
    both = scales(scale_latents(3.0)(scale_data(5.0)(model)), batch)
    assert both == {"w": 3.0, "z": 15.0, "x": 5.0}
    assert scales(scale_latents(2.0)(poutine.scale(model, 7.0)), batch) == {"w": 14.0, "z": 14.0, "x": 7.0}


def test_a_tensor_scales_too_and_passes_its_gradient() -> None:
    model, guide, batch = pair("mean-field")
    beta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(
        scale_latents(beta)(model), scale_latents(beta)(guide), batch
    )
    (gradient,) = torch.autograd.grad(loss, beta)
    torch.manual_seed(0)
    kl = ELBO(kl="monte-carlo").terms(model, guide, batch).logs["kl"].sum()
    assert gradient.isfinite()
    torch.manual_seed(0)
    loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(
        scale_latents(beta)(model), scale_latents(beta)(guide), batch
    )
    (gradient,) = torch.autograd.grad(loss, beta)
    torch.testing.assert_close(gradient, kl, rtol=1e-12, atol=1e-12)


def test_pyros_own_scale_refuses_zero() -> None:
    """Why the handler sets the scale itself: with 0 a β-VAE is an autoencoder, and a warm-up begins."""
    with pytest.raises(ValueError, match="scale"):
        poutine.scale(lambda: None, 0.0)


@pytest.mark.parametrize(("handler", "argument"), [(scale_latents, "beta"), (scale_data, "factor")])
@pytest.mark.parametrize("value", [-1.0, -1e-9, math.nan])
def test_negative_factors_are_refused(handler: Any, argument: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{argument}={value!r} must be 0 or more"):
        handler(value)


# ---------------------------------------------------------------- against plate(subsample=...)


def subsampled(rows: torch.Tensor, data: torch.Tensor, own_plate: bool) -> tuple[Any, Any]:
    """A regression with a shared weight, on `rows` of the data: with Pyro's scaling plate, or an unscaled one."""
    n, b = len(data), len(rows)
    like = {"dtype": torch.float64}

    def plate() -> Any:
        return pyro.plate("data", n, subsample=rows, dim=-1) if own_plate else pyro.plate("data", b, dim=-1)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros((), **like), 1.0))
        with plate():
            z = pyro.sample("z", dist.Normal(torch.zeros((), **like), 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=data[rows])

    loc = torch.tensor(0.4, requires_grad=True, **like)

    def guide() -> None:
        pyro.sample("w", dist.Normal(loc, 0.5))
        with plate():
            pyro.sample("z", dist.Normal(0.5 * data[rows] * loc, 0.8))

    guide.parameter = loc  # type: ignore[attr-defined]
    return model, guide


def test_scaled_data_equal_pyros_subsampling() -> None:
    data = torch.randn(12, dtype=torch.float64)
    rows = torch.tensor([1, 5, 7, 11])
    results = []
    for own_plate in (True, False):
        model, guide = subsampled(rows, data, own_plate)
        parts = (model, guide) if own_plate else (scale_data(3.0)(model), scale_data(3.0)(guide))
        torch.manual_seed(0)
        loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(*parts)
        results.append((loss, *torch.autograd.grad(loss, guide.parameter)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


def test_scaled_minibatches_average_to_all_data() -> None:
    data = torch.randn(6, dtype=torch.float64)

    def losses(rows: torch.Tensor, repeats: int) -> torch.Tensor:
        model, guide = subsampled(rows, data, own_plate=False)
        factor = len(data) / len(rows)
        loss = Trace_ELBO(num_particles=repeats, vectorize_particles=True, max_plate_nesting=1)
        with torch.no_grad():
            return loss.differentiable_loss(scale_data(factor)(model), scale_data(factor)(guide))

    whole = losses(torch.arange(6), 100_000)
    parts = torch.stack([losses(torch.tensor(rows), 100_000) for rows in ([0, 1], [2, 3], [4, 5])]).mean()
    torch.testing.assert_close(whole, parts, rtol=0, atol=0.15)
    unscaled = [subsampled(torch.tensor(rows), data, False) for rows in ([0, 1], [2, 3], [4, 5])]
    loss = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        small = torch.stack([loss.differentiable_loss(*parts) for parts in unscaled]).mean()
    assert float(whole - small) > 5.0


# ---------------------------------------------------------------- apart


def test_a_program_apart_is_neither_seen_nor_put_into_plates() -> None:
    model, _, batch = pair("mean-field")
    inner: list[Any] = []

    def outer() -> None:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("mine", dist.Normal(torch.zeros(()), 1.0))
            with apart():
                inner.append(poutine.trace(model).get_trace(batch))
            pyro.sample("too", dist.Normal(torch.zeros(()), 1.0))

    with pyro.plate("left", 7, dim=-2):
        seen = poutine.trace(scale_latents(3.0)(outer)).get_trace()
    assert {n for n, site in seen.nodes.items() if site["type"] == "sample"} == {"data", "mine", "too"}
    assert seen.nodes["mine"]["value"].shape == seen.nodes["too"]["value"].shape == (7, batch.size)
    site = inner[0].nodes["z"]
    assert (site["scale"], tuple(site["value"].shape)) == (1.0, (batch.size, 3))


def test_plates_are_back_after_an_error_apart() -> None:
    with pyro.plate("data", 3, dim=-1):
        with pytest.raises(RuntimeError, match="inside"), apart():
            raise RuntimeError("inside")
        with pytest.raises(ValueError, match="collide"), pyro.plate("again", 3, dim=-1):
            pass
