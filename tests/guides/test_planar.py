"""The planar flow: Pyro's transform, and the equation that inverts it."""

import pytest
import torch
from programs import SHAPE, binary_batch, vae
from pyro.distributions.transforms.planar import ConditionedPlanar

from ppl_vae import guides, networks
from ppl_vae.guides.planar import PlanarLayer, solve_tanh


def test_the_equation_is_solved_to_rounding() -> None:
    """For slopes c from next to -1, where the function is nearly flat at 0, to 10,000."""
    c = torch.tensor([-1 + 1e-9, -0.9999, -0.9, -0.3, -1e-8, 0.0, 1e-8, 0.4, 2.0, 50.0, 1e4]).double().unsqueeze(-1)
    s = torch.cat([torch.linspace(-40, 40, 2001), torch.tensor([1e-12, 1e-6, -1e-3, 1e5])]).double()
    a = solve_tanh(s, c)
    assert ((a + c * a.tanh() - s).abs() <= 1e-14 * (1.0 + s.abs()) * 3).all()
    a = solve_tanh(s.float(), c[1:].float())
    assert ((a + c[1:].float() * a.tanh() - s.float()).abs() <= 1e-6 * (1.0 + s.float().abs())).all()


def test_the_equation_has_its_gradient() -> None:
    s = torch.randn(20, dtype=torch.float64).mul(3.0).requires_grad_()
    c = (torch.rand(20, dtype=torch.float64) * 4.0 - 0.95).requires_grad_()
    assert torch.autograd.gradcheck(solve_tanh, (s, c))


def test_the_transform_is_pyros() -> None:
    guide = guides.Planar(vae(), networks.encoder("mlp", SHAPE, (9,)), transforms=1).double()
    features = guide.encoder(binary_batch())
    layer = guide.heads["z"].layers[0]
    assert isinstance(layer, PlanarLayer)
    ours, pyros = layer.condition(features), ConditionedPlanar(layer.parameters_of(features))
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    y, z = ours(x), pyros(x)
    assert torch.equal(y, z)
    assert torch.equal(ours.log_abs_det_jacobian(x, y), pyros.log_abs_det_jacobian(x, z))


def test_it_starts_as_the_identity() -> None:
    layer = PlanarLayer(4, 3)
    x = torch.randn(7, 3)
    assert torch.allclose(layer.condition(torch.zeros(7, 4))(x), x, atol=1e-6)


@pytest.mark.parametrize("size", [1, 6])
def test_the_number_of_parameters(size: int) -> None:
    guide = guides.Planar(vae(size), networks.encoder("mlp", SHAPE, (9,)), transforms=4)
    plain = guides.MeanField(vae(size), networks.encoder("mlp", SHAPE, (9,)))
    count = {g: sum(p.numel() for p in g.heads.parameters()) for g in (guide, plain)}
    assert count[guide] - count[plain] == (9 + 1) * 4 * (2 * size + 1)
