"""Partial convolutions: a case computed by hand, and ordinary ones where all is observed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import Batch, networks
from ppl_vae.networks import ConvEncoder, PartialConv2d, PartialConvEncoder


def seeded(inputs: int, outputs: int, kernel: int, **options: int | bool) -> PartialConv2d:
    torch.manual_seed(0)
    return PartialConv2d(inputs, outputs, kernel, **options).double()  # type: ignore[arg-type]


def test_a_case_computed_by_hand() -> None:
    """Kernel 2 x 2 of weights 1, 2, 3, 4 and bias 10, over a picture 1 to 9 of which five pixels are seen."""
    layer = PartialConv2d(1, 1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2))
        layer.bias.fill_(10.0)
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool).view(1, 1, 3, 3)
    out, seen = layer(x, mask)
    # windows: {1, 2, 4} of weights 1, 2, 3; {2} of weight 1; {4, 7} of weights 1, 3; nothing
    wanted = [[(1 + 4 + 12) * 4 / 3 + 10, 2 * 4 / 1 + 10], [(4 + 21) * 4 / 2 + 10, 0.0]]
    torch.testing.assert_close(out[0, 0], torch.tensor(wanted), rtol=1e-6, atol=0.0)
    assert seen[0, 0].tolist() == [[1.0, 1.0], [1.0, 0.0]]


def by_loops(layer: PartialConv2d, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's formula, window by window; `mask` (N, C, H, W)."""
    p, k, fill = layer.padding, layer.kernel, 1.0 if layer.padding_observed else 0.0
    x, mask = F.pad(x * mask, [p] * 4), F.pad(mask, [p] * 4, value=fill)
    height, width = ((size - k) // layer.stride + 1 for size in x.shape[-2:])
    out = x.new_zeros(len(x), len(layer.weight), height, width)
    seen = x.new_zeros(len(x), 1, height, width)
    for n in range(len(x)):
        for i in range(height):
            for j in range(width):
                a, b = i * layer.stride, j * layer.stride
                window, part = x[n, :, a : a + k, b : b + k], mask[n, :, a : a + k, b : b + k]
                if part.sum() > 0:
                    scaled = (layer.weight * window * part).sum((1, 2, 3)) * part.numel() / part.sum()
                    out[n, :, i, j], seen[n, 0, i, j] = scaled + layer.bias, 1.0
    return out, seen


@pytest.mark.parametrize("padding_observed", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (3, 2, 1), (2, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("channels_alike", [True, False])
def test_it_is_the_formula(
    kernel: int, stride: int, padding: int, padding_observed: bool, channels_alike: bool
) -> None:
    layer = seeded(2, 3, kernel, stride=stride, padding=padding, padding_observed=padding_observed)
    x = torch.randn(4, 2, 7, 6, dtype=torch.float64)
    mask = (torch.rand(4, 1 if channels_alike else 2, 7, 6) < 0.3).double()
    out, seen = layer(x, mask)
    wanted, wanted_seen = by_loops(layer, x, mask.expand_as(x))
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(seen, wanted_seen)
    assert 0.0 < float(seen.mean()) <= 1.0


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_all_observed_is_an_ordinary_convolution(padding: int) -> None:
    """A division by sum(M) that forgot sum(1) would be 9 C times too small."""
    layer, x = seeded(2, 3, 3, padding=padding), torch.randn(4, 2, 7, 6, dtype=torch.float64)
    plain = nn.Conv2d(2, 3, 3, padding=padding).double()
    plain.load_state_dict(layer.state_dict())
    out, seen = layer(x, torch.ones(4, 1, 7, 6))
    torch.testing.assert_close(out, plain(x), rtol=1e-12, atol=1e-12)
    assert bool(seen.all())


def test_by_the_papers_rule_padding_is_a_hole() -> None:
    """Without padding nothing differs; with it the border's outputs are scaled up, by 9/4 in the corner."""
    x, ones = torch.randn(4, 2, 7, 6, dtype=torch.float64), torch.ones(4, 1, 7, 6)
    paper, ours = seeded(2, 3, 3, padding=1, padding_observed=False), seeded(2, 3, 3, padding=1)
    a, b = (layer(x, ones)[0] - layer.bias.view(-1, 1, 1) for layer in (paper, ours))
    torch.testing.assert_close(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])
    torch.testing.assert_close(a[..., 0, 0], b[..., 0, 0] * 9 / 4)
    torch.testing.assert_close(a[..., 0, 1], b[..., 0, 1] * 9 / 6)
    paper, ours = seeded(2, 3, 3, padding_observed=False), seeded(2, 3, 3)
    torch.testing.assert_close(paper(x, ones)[0], ours(x, ones)[0])


def test_what_is_hidden_does_not_matter() -> None:
    layer, x = seeded(2, 3, 3, padding=1), torch.randn(4, 2, 7, 6, dtype=torch.float64)
    mask = torch.rand(4, 1, 7, 6) < 0.5
    other = torch.where(mask, x, torch.randn_like(x))
    assert torch.equal(layer(x, mask)[0], layer(other, mask)[0])


def test_without_holes_the_encoder_is_the_convolutional_one() -> None:
    torch.manual_seed(0)
    ours, plain = PartialConvEncoder((2, 9, 7), 4, 5), ConvEncoder((2, 9, 7), 4, 5)
    given = list(plain.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), given, strict=True)))
    x = torch.randn(3, 4, 2, 9, 7)
    torch.testing.assert_close(ours(torch.cat([x, torch.ones_like(x)], 2)), plain(x), rtol=1e-5, atol=1e-6)


def test_the_encoder_takes_what_is_visible() -> None:
    torch.manual_seed(0)
    encoder = networks.encoder("partial", (1, 8, 8), (16,), loc=0.5, scale=2.0)
    x, visible = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8) < 0.5
    given = encoder(Batch(x=x, visible=visible))
    assert torch.equal(given, encoder(Batch(x=torch.where(visible, x, torch.rand_like(x)), visible=visible)))
    assert not torch.equal(given, encoder(Batch(x=x * visible)))
    torch.testing.assert_close(encoder(Batch(x=x)), encoder(Batch(x=x, visible=torch.ones_like(visible))))
