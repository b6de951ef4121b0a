"""The spline flow: rational splines against Pyro's, their ends, and their inverse."""

import pytest
import torch
from programs import SHAPE, vae
from pyro.distributions.transforms.spline import _monotonic_rational_spline as pyros_spline
from torch import Tensor

from ppl_vae import guides, networks
from ppl_vae.guides.spline import AutoregressiveSpline, CouplingSpline, Knots, Order, rational_spline

both_orders = pytest.mark.parametrize("order", ["linear", "quadratic"])
BOUND = 3.0


def numbers(order: Order, data: int = 6, size: int = 2, bins: int = 5) -> dict[str, Tensor | None]:
    """Widths, heights, slopes and places of splines at random, of sum 2 bound where they are bins."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(data, size, count, generator=generator, dtype=torch.float64)

    slopes = torch.nn.functional.pad(draw(bins - 1).exp(), (1, 1), value=1.0)
    return {
        "widths": 2 * BOUND * draw(bins).softmax(-1),
        "heights": 2 * BOUND * draw(bins).softmax(-1),
        "slopes": slopes,
        "places": draw(bins).sigmoid() if order == "linear" else None,
    }


@both_orders
@pytest.mark.parametrize("inverse", [False, True])
def test_splines_are_pyros(order: Order, inverse: bool) -> None:
    """Value and log-slope to 1e-10, at points inside and outside of the box, under particles."""
    given = numbers(order)
    x = 2.0 * torch.randn(50, 6, 2, dtype=torch.float64)
    assert (x.abs() > BOUND).any()
    ours = rational_spline(x, *given.values(), BOUND, inverse)  # type: ignore[arg-type]
    theirs = pyros_spline(
        x,
        given["widths"] / (2 * BOUND),
        given["heights"] / (2 * BOUND),
        given["slopes"][..., 1:-1],
        given["places"],
        inverse=inverse,
        bound=BOUND,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
        min_lambda=0.0,
        eps=0.0,
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@both_orders
def test_there_and_back(order: Order) -> None:
    given = numbers(order)
    x = 2.0 * torch.randn(200, 6, 2, dtype=torch.float64)
    y, log_slope = rational_spline(x, *given.values(), BOUND, False)  # type: ignore[arg-type]
    back, log_back = rational_spline(y, *given.values(), BOUND, True)  # type: ignore[arg-type]
    assert torch.allclose(back, x, rtol=0, atol=1e-10)
    assert torch.allclose(log_back, -log_slope, rtol=0, atol=1e-9)


@both_orders
def test_the_function_is_smooth_at_its_knots_and_at_the_box(order: Order) -> None:
    """Continuous in value and slope: no jump beyond what the slope allows between points 1e-5 apart."""
    given = numbers(order, data=1)
    x = torch.linspace(-BOUND - 0.5, BOUND + 0.5, 700_001, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 1, 2)
    y, log_slope = rational_spline(x, *given.values(), BOUND, False)  # type: ignore[arg-type]
    assert (y.diff(dim=0) > 0).all()
    assert log_slope.diff(dim=0).abs().max() < 0.01


@both_orders
def test_slopes_are_autograds(order: Order) -> None:
    given = numbers(order)
    x = (2.0 * torch.randn(20, 6, 2, dtype=torch.float64)).requires_grad_()
    for inverse in (False, True):
        y, log_slope = rational_spline(x, *given.values(), BOUND, inverse)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(slope.log(), log_slope, rtol=0, atol=1e-10)


@both_orders
def test_gradients_are_finite_wherever_the_point_is(order: Order) -> None:
    knots = Knots(4, BOUND, order)
    raw = torch.zeros(9, 1, knots.total, requires_grad=True)
    x = torch.tensor([-1e6, -3.0, -1.5, -1e-8, 0.0, 1.5, 2.9999998, 3.0, 1e6]).unsqueeze(-1).requires_grad_()
    for inverse in (False, True):
        y, log_slope = knots.bend(x, raw, inverse)
        assert torch.allclose(y, x, rtol=1e-6, atol=1e-6)  # zeros are the identity
        assert log_slope.abs().max() < 1e-5
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, raw])
        assert all(g.isfinite().all() for g in gradients)


@both_orders
def test_extreme_numbers_leave_it_invertible(order: Order) -> None:
    """What a network may give after a wild step: bins and slopes are bounded from below."""
    knots = Knots(8, BOUND, order)
    raw = 30.0 * torch.randn(100, 3, knots.total, dtype=torch.float64)
    x = 2.0 * torch.randn(100, 3, dtype=torch.float64)
    y, log_slope = knots.bend(x, raw, inverse=False)
    back, _ = knots.bend(y, raw, inverse=True)
    assert log_slope.isfinite().all()
    assert torch.allclose(back, x, rtol=0, atol=1e-5)


def test_every_second_transform_goes_backwards() -> None:
    encoder = networks.encoder("mlp", SHAPE, (9,))
    coupling = guides.Spline(vae(), encoder, transforms=3).heads["z"].layers
    assert [layer.backwards for layer in coupling if isinstance(layer, CouplingSpline)] == [False, True, False]
    chain = guides.Spline(vae(), encoder, transforms=2, kind="autoregressive").heads["z"].layers
    orders = [layer.network.permutation for layer in chain if isinstance(layer, AutoregressiveSpline)]
    assert orders == [[0, 1, 2], [2, 1, 0]]


def test_both_halves_are_moved() -> None:
    """With one transform too: the first half by splines of its own."""
    layer = CouplingSpline(4, 3, Knots(4, 4.0, "linear"), None, False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.randn(20, 3)
    moved = (layer.condition(torch.randn(20, 4))(x) - x).abs().mean(0)
    assert (moved > 1e-2).all()
