"""Networks: shapes for any left dimensions and any size, precision, conditions, heads."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import Batch, LatentSpec, networks
from ppl_vae.errors import InputError
from ppl_vae.networks import (
    MLP,
    BodyEncoder,
    Condition,
    DiagonalNormal,
    FullRankNormal,
    flatten_left,
    join,
    set_precision,
    soft_bound,
)

KINDS = ("mlp", "conv", "residual", "partial")
SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 5, 7), (1, 1, 1), (3, 2, 9), (1, 17, 3)]


# ---------------------------------------------------------------- small tools


def test_join_broadcasts_what_cat_refuses() -> None:
    enumerated, features = torch.randn(4, 1, 1, 2), torch.randn(3, 5, 6)
    joined = join(enumerated, features)
    assert joined.shape == (4, 3, 5, 8)
    assert torch.equal(joined[2, 1, 3], torch.cat([enumerated[2, 0, 0], features[1, 3]]))
    assert join(features) is features
    assert join(torch.randn(5, 0), features).shape == (3, 5, 6)


def test_soft_bound_is_the_identity_near_zero_and_bounded_everywhere() -> None:
    raw = torch.tensor([-1e30, -100.0, 0.0, 1e-3, 100.0, 1e30], requires_grad=True)
    bounded = soft_bound(raw, 7.0)
    bounded.exp().sum().backward()
    bounded = bounded.detach()
    assert bool((bounded.abs() <= 7.0).all())
    assert bounded[2] == 0.0
    assert float(bounded[3]) == pytest.approx(1e-3, rel=1e-6)
    assert bool(raw.grad.isfinite().all())
    assert bool(soft_bound(torch.linspace(-20, 20, 101)).diff().gt(0).all())


@pytest.mark.parametrize("left", [(), (3,), (2, 3)])
def test_flatten_left_calls_once_with_one_batch_dimension(left: tuple[int, ...]) -> None:
    norm, x = nn.BatchNorm1d(6), torch.randn(*left, 5, 6)
    out = flatten_left(norm, x, 1)
    assert out.shape == x.shape
    torch.testing.assert_close(out.reshape(-1, 6), nn.BatchNorm1d(6)(x.reshape(-1, 6)))
    conv = nn.Conv2d(2, 4, 3)
    images = torch.randn(*left, 5, 2, 8, 8)
    out = flatten_left(conv, images, 3)
    assert out.shape == (*left, 5, 4, 6, 6)
    if left:
        torch.testing.assert_close(out[(0,) * len(left)], conv(images[(0,) * len(left)]), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_and_decoders_fit_the_data(kind: Any, shape: tuple[int, ...]) -> None:
    encoder, decoder = networks.encoder(kind, shape, (16,)), networks.decoder(kind, 3, shape, 2, (16,))
    features = encoder(Batch(x=torch.randn(4, *shape)))
    assert features.shape == (4, encoder.features) == (4, 16)
    z = torch.randn(2, 3, 4, 3)
    out = decoder(z)
    assert out.shape == (2, 3, 4, 2, *shape)
    for index in [(0, 0), (1, 2)]:
        torch.testing.assert_close(out[index], decoder(z[index]), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    features.square().sum().backward()
    for part in (encoder, decoder):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in part.parameters())


@pytest.mark.parametrize("kind", ["conv", "residual", "partial"])
@pytest.mark.parametrize(
    ("shape", "channels", "window"),
    [((1, 64, 64), (4, 5, 6, 7), 4), ((3, 12, 8), (4, 6), 4), ((2, 9, 7), (4, 6, 5), 3)],
)
def test_channels_of_each_layer(shape: tuple[int, ...], channels: tuple[int, ...], window: int, kind: Any) -> None:
    """One width more than one: channels from x on, and the dense layer's width; the decoder has them backwards."""
    encoder = networks.encoder(kind, shape, (*channels, 11))
    decoder = networks.decoder(kind, 3, shape, 2, (11, *reversed(channels)))
    halved = [tuple(m.weight.shape) for m in encoder.modules() if getattr(m, "stride", None) in (2, (2, 2))]
    assert halved == [(b, a, window, window) for a, b in zip((shape[0], *channels), channels, strict=False)]
    doubled = [tuple(m.weight.shape) for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    pairs = list(zip(channels[::-1], (*channels[-2::-1], 2 * shape[0]), strict=True))
    assert doubled == [(a, b, window, window) for a, b in pairs]
    x = torch.rand(5, *shape)
    assert encoder(Batch(x=x)).shape == (5, 11)
    assert decoder(torch.randn(4, 5, 3)).shape == (4, 5, 2, *shape)
    assert next(m.out_features for m in decoder.modules() if isinstance(m, nn.Linear)) == 11


def test_more_layers_than_a_picture_has_halves_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 layers of channels \(4, 4, 4, 4\) halve images of 8 x 8 .* 3 or fewer"):
        networks.encoder("conv", (1, 8, 8), (4, 4, 4, 4, 16))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_tables(kind: Any) -> None:
    encoder, decoder = networks.encoder(kind, (7,), (16, 16)), networks.decoder(kind, 3, (7,), 2, (16, 16))
    assert encoder(Batch(x=torch.randn(5, 7))).shape == (5, 16)
    assert decoder(torch.randn(2, 5, 3)).shape == (2, 5, 2, 7)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_a_decoders_pixels_depend_on_every_latent_and_stay_in_place(shape: tuple[int, ...]) -> None:
    """(P, C, H, W): parameter planes are not mixed with channels by the reshape."""
    decoder = networks.decoder("conv", 3, shape, 2, (16,))
    z = torch.randn(3, requires_grad=True)
    out = decoder(z.unsqueeze(0))
    (gradient,) = torch.autograd.grad(out[0, 1, -1].sum(), z)
    assert bool((gradient != 0).all())


def test_residual_adds_the_input() -> None:
    body = MLP(4, (4,), 4, residual=True)
    plain = MLP(4, (4,), 4)
    plain.net[0].load_state_dict(body.net[0].branch.state_dict())
    plain.net[1].load_state_dict(body.net[1].state_dict())
    x = torch.randn(3, 4)
    hidden = plain.net[0](x)
    torch.testing.assert_close(body(x), plain.net[1](x + hidden))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mpl", (8,)), r"network='mpl' is not known; did you mean 'mlp'\?"),
        (("conv", (8,)), r"network='conv' needs images \(C, H, W\); these data have shape \(8,\): use 'mlp'"),
        (("mlp", (8,), ()), r"hidden=\(\) needs one layer or more"),
        (("mlp", (8,), (4, 0)), r"hidden=\(4, 0\) needs one layer"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        networks.encoder(*arguments)
    kind, shape, *hidden = arguments
    with pytest.raises(InputError, match=message):
        networks.decoder(kind, 2, shape, 1, *hidden)


# ---------------------------------------------------------------- encoders' inputs


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_do_not_reach_the_encoder(kind: Any) -> None:
    encoder = networks.encoder(kind, (1, 8, 8), (16,), mask=True)
    x = torch.randn(4, 1, 8, 8)
    visible = torch.rand(4, 1, 8, 8) < 0.5
    a = encoder(Batch(x=x, visible=visible))
    b = encoder(Batch(x=torch.where(visible, x, torch.tensor(1e6)), visible=visible))
    assert torch.equal(a, b)
    # and what is hidden is told from what is 0
    c = encoder(Batch(x=torch.where(visible, x, torch.tensor(0.0))))
    assert not torch.allclose(a, c)
    assert torch.equal(encoder(Batch(x=x)), encoder(Batch(x=x, visible=torch.ones_like(visible))))


def test_hidden_pixels_are_the_average_after_standardization() -> None:
    encoder = networks.encoder(
        "mlp", (3,), (8,), loc=torch.tensor([5.0, 0.0, -2.0]), scale=torch.tensor([2.0, 1.0, 4.0])
    )
    average = Batch(x=torch.tensor([[5.0, 0.0, -2.0]]))
    hidden = Batch(x=torch.tensor([[9.0, 9.0, 9.0]]), visible=torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(encoder(average), encoder(hidden))
    assert {"loc", "scale"} <= set(encoder.state_dict())


def test_standardization() -> None:
    torch.manual_seed(0)
    plain = networks.encoder("mlp", (3,), (8,))
    shifted = networks.encoder("mlp", (3,), (8,), loc=2.0, scale=4.0)
    shifted.encoder_body.load_state_dict(plain.encoder_body.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(shifted(Batch(x=4.0 * x + 2.0)), plain(Batch(x=x)))


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_and_latents_are_joined(kind: Any) -> None:
    condition = Condition(classes=3, context=2)
    encoder = networks.encoder(kind, (1, 8, 8), (16,), condition=condition, latents=4)
    batch = Batch(x=torch.randn(5, 1, 8, 8), y=torch.tensor([0, 1, 2, -1, 1]), context=torch.randn(5, 2))
    z = torch.randn(3, 5, 4)
    features = encoder(batch, z=z)
    assert features.shape == (3, 5, 16)
    torch.testing.assert_close(features[1], encoder(batch, z=z[1]), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(features, encoder(batch._replace(y=batch.y.roll(1)), z=z))
    assert not torch.allclose(features, encoder(batch._replace(context=-batch.context), z=z))


def test_an_encoder_needs_data() -> None:
    with pytest.raises(InputError, match=r"needs batch\.x"):
        networks.encoder("mlp", (3,), (8,))(Batch(n=3))


def test_integer_data_are_taken_as_numbers() -> None:
    encoder = networks.encoder("mlp", (3,), (8,))
    assert torch.equal(encoder(Batch(x=torch.ones(2, 3, dtype=torch.long))), encoder(Batch(x=torch.ones(2, 3))))


def test_condition_is_one_hot_and_context() -> None:
    condition = Condition(3, 2)
    out = condition(Batch(y=torch.tensor([2, -1]), context=torch.tensor([[0.5, 1.0], [2.0, 3.0]])))
    assert out.tolist() == [[0, 0, 1, 0.5, 1.0], [0, 0, 0, 2.0, 3.0]]
    assert condition.width == 5
    assert Condition()(Batch(n=4)).shape == (4, 0)
    with pytest.raises(InputError, match="conditioned on one of 3 classes: the batch needs y"):
        Condition(3)(Batch(n=2))
    with pytest.raises(InputError, match=r"context \(N, 2\); context=None"):
        Condition(0, 2)(Batch(n=2))
    with pytest.raises(InputError, match=r"context \(N, 2\); context=\(4, 3\)"):
        Condition(0, 2)(Batch(context=torch.zeros(4, 3)))
    assert condition.double()(Batch(y=torch.tensor([1]), context=torch.zeros(1, 2).double())).dtype == torch.float64


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_for_bodies_and_numbers_come_out_in_single_precision(kind: Any) -> None:
    """Under bfloat16 draws and log-probabilities would have 3 digits."""
    encoder, decoder = networks.encoder(kind, (1, 8, 8), (64,)), networks.decoder(kind, 3, (1, 8, 8), 1, (64,))
    head = FullRankNormal(64, LatentSpec(torch.Size([3])))
    x, seen = torch.randn(4, 1, 8, 8), []
    for part in (encoder, decoder, head):
        set_precision(part, "bf16")
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    features = encoder(Batch(x=x))
    q = head(features)
    logits = decoder(q.rsample())
    assert set(seen) == {torch.bfloat16}
    for out in (features, q.rsample(), q.log_prob(torch.zeros(4, 3)), logits):
        assert out.dtype == torch.float32
    assert all(p.dtype == torch.float32 for part in (encoder, decoder, head) for p in part.parameters())
    set_precision(encoder, "32")
    exact = encoder(Batch(x=x))
    assert not torch.equal(exact, features)
    torch.testing.assert_close(exact, features, rtol=0.1, atol=0.05)
    logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"precision='16' is not known.*choose one of: 32, bf16"):
        set_precision(MLP(2, (), 2), "16")  # type: ignore[arg-type]


# ---------------------------------------------------------------- heads


def full_covariance(q: Any) -> Tensor:
    return q.covariance_matrix


def test_diagonal_head() -> None:
    head = DiagonalNormal(5, LatentSpec(torch.Size([3])))
    features = torch.randn(2, 4, 5)
    q = head(features)
    assert (q.batch_shape, q.event_shape) == ((2, 4), (3,))
    loc, raw = head.linear(features).chunk(2, -1)
    torch.testing.assert_close(q.base_dist.loc, loc)
    torch.testing.assert_close(q.base_dist.scale, soft_bound(raw).exp())


def test_full_rank_head() -> None:
    head = FullRankNormal(5, LatentSpec(torch.Size([4])))
    features = torch.randn(2, 3, 5)
    q = head(features)
    assert (q.batch_shape, q.event_shape) == ((2, 3), (4,))
    tril = q.scale_tril
    assert torch.equal(tril, tril.tril())
    loc, raw, below = head.linear(features).split([4, 4, 6], -1)
    torch.testing.assert_close(q.loc, loc)
    torch.testing.assert_close(tril.diagonal(dim1=-2, dim2=-1), soft_bound(raw).exp())
    rows, columns = torch.tril_indices(4, 4, -1)
    assert torch.equal(tril[..., rows, columns], below)
    # each of the numbers below the diagonal has a place of its own
    assert len(set(head.position.tolist())) == 6


def test_full_rank_heads_of_one_dimension() -> None:
    q = FullRankNormal(5, LatentSpec(torch.Size([1])))(torch.randn(3, 5))
    assert q.scale_tril.shape == (3, 1, 1)
    assert bool(q.log_prob(q.sample()).isfinite().all())


@pytest.mark.parametrize("head", [DiagonalNormal, FullRankNormal])
def test_scales_are_bounded_whatever_the_features(head: Any) -> None:
    q = head(5, LatentSpec(torch.Size([3])))(1e6 * torch.randn(20, 5))
    scale = q.scale_tril.diagonal(dim1=-2, dim2=-1) if head is FullRankNormal else q.base_dist.scale
    bound = math.exp(networks.LOG_SCALE_BOUND) * (1 + 1e-5)
    assert bool((scale <= bound).all())
    assert bool((scale >= 1 / bound).all())


SUPPORTS = [
    (torch.Size([3]), constraints.positive),
    (torch.Size([3]), constraints.independent(constraints.positive, 1)),
    (torch.Size([3]), constraints.unit_interval),
    (torch.Size([3]), constraints.interval(-2.0, 5.0)),
    (torch.Size([4]), constraints.simplex),
    (torch.Size([3]), constraints.real_vector),
    (torch.Size([3]), constraints.independent(constraints.real, 1)),
]


@pytest.mark.parametrize("left", [(4,), (2, 4)])
@pytest.mark.parametrize(("event", "support"), SUPPORTS, ids=lambda v: str(v))
@pytest.mark.parametrize("head", [DiagonalNormal, FullRankNormal])
def test_heads_draw_inside_of_the_support(head: Any, event: torch.Size, support: Any, left: tuple[int, ...]) -> None:
    q = head(5, LatentSpec(event, support))(torch.randn(*left, 5))
    z = q.rsample()
    assert z.shape == (*left, *event)
    assert (tuple(q.batch_shape), q.event_shape) == (left, event)
    assert bool(support.check(z).all())
    assert q.log_prob(z).shape == left
    assert bool(q.log_prob(z).isfinite().all())


@pytest.mark.parametrize("event", [(), (2, 3), (1,)])
def test_diagonal_heads_of_any_event(event: tuple[int, ...]) -> None:
    q = DiagonalNormal(5, LatentSpec(torch.Size(event)))(torch.randn(2, 4, 5))
    assert (q.batch_shape, q.event_shape) == ((2, 4), event)
    assert q.log_prob(q.sample()).shape == (2, 4)


def test_full_rank_heads_are_over_vectors() -> None:
    for event in ((), (2, 3)):
        with pytest.raises(InputError, match="over vectors; this site has events"):
            FullRankNormal(5, LatentSpec(torch.Size(event)))


def test_no_gaussian_reaches_a_discrete_support() -> None:
    for support in (constraints.boolean, constraints.integer_interval(0, 3)):
        with pytest.raises(InputError, match="no bijection leads from it"):
            DiagonalNormal(5, LatentSpec(torch.Size([3]), support))


def test_a_positive_heads_density_is_the_log_normals() -> None:
    head = DiagonalNormal(5, LatentSpec(torch.Size([3]), constraints.positive))
    features = torch.randn(4, 5)
    loc, raw = head.linear(features).chunk(2, -1)
    wanted = dist.LogNormal(loc, soft_bound(raw).exp()).to_event(1)
    z = wanted.sample()
    torch.testing.assert_close(head(features).log_prob(z), wanted.log_prob(z))


def test_encoder_is_a_body_encoder() -> None:
    assert isinstance(networks.encoder("mlp", (3,), (4,)), BodyEncoder)
    assert set(networks.kinds) == set(KINDS)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 6)])
@pytest.mark.parametrize("residual", [False, True])
def test_classes_beside_data_are_as_if_joined(hidden: tuple[int, ...], residual: bool) -> None:
    """And x goes through the first layer once: its product has N rows, whatever the number of classes."""
    torch.manual_seed(0)
    body = networks.MLP(6, hidden, 4, residual=residual, activate_last=True).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    classes = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2)
    context = torch.randn(7, 1, dtype=torch.float64)
    for more in ((classes, context), (context, torch.randn(7, 2, dtype=torch.float64))):
        torch.testing.assert_close(body.of_parts(x, *more), body(networks.join(x, *more)), rtol=1e-12, atol=1e-12)
    networks.set_precision(body.float(), "bf16")
    assert body.of_parts(x.float(), classes.float(), context.float()).dtype == torch.float32
