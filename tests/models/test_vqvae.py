"""Models of grids of codes: a code length by hand, priors that look at codes above, refusals."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import VQ, Batch, guides, likelihoods, log_weights
from ppl_vae.errors import InputError
from ppl_vae.evaluate import bits_per_dimension, evaluate
from ppl_vae.grids import GridEncoder
from ppl_vae.models import VQVAE, VQVAE2
from ppl_vae.networks import Condition
from ppl_vae.priors import CodePrior
from ppl_vae.testing import check_guide, check_model

SMALL: dict[str, Any] = {"codebook": 3, "size": 2, "downsample": 2, "channels": 4, "blocks": 1}
SHAPE = (1, 4, 4)


class Patches(nn.Module):
    """Each code's number v is the logit of its patch of 2 x 2 pixels, v log 3."""

    def forward(self, vectors: Tensor) -> Tensor:
        logits = vectors.squeeze(-1) * math.log(3.0)
        return logits.repeat_interleave(2, -1).repeat_interleave(2, -2).unsqueeze(-3).unsqueeze(-3)


class PatchMeans(GridEncoder):
    """2 (mean of a patch) - 1."""

    def __init__(self) -> None:
        super().__init__((1, 2, 4), 2, size=1, channels=2, blocks=0)

    def forward(self, batch: Batch) -> list[Tensor]:
        assert batch.x is not None
        return [2.0 * nn.functional.avg_pool2d(batch.x, 2) - 1.0]

    def vectors(self, level: int, features: Tensor, above: Tensor | None = None) -> Tensor:
        return features.movedim(-3, -1)


def by_hand() -> tuple[VQVAE, guides.Nearest, Batch]:
    """A grid of 1 x 2 and two codes, -1 and 1; an image with its left patch full, and one pixel in its right one."""
    model = VQVAE(Patches(), likelihoods.Bernoulli((1, 2, 4)), codebook=2, size=1, downsample=2)
    model.codebook.vectors.copy_(torch.tensor([[-1.0], [1.0]]))
    x = torch.tensor([[[[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]]])
    return model, guides.Nearest(model, PatchMeans()), Batch(x=x)


def test_a_code_length_by_hand() -> None:
    model, guide, batch = by_hand()
    # the left patch's vector is 1, the right one's 2 / 4 - 1 = -0.5: codes 1 and 0
    found = guide.encode(batch)["codes"]
    assert found.z.flatten().tolist() == [1.0, -0.5]
    assert found.codes.tolist() == [[[1, 0]]]
    # pixels of the left patch are on with 3/4, of the right one with 1/4: 7 as expected, 1 not; two codes of 1 bit
    given_codes, codes = -7 * math.log(3 / 4) - math.log(1 / 4), 2 * math.log(2)
    assert given_codes + codes == pytest.approx(2.0137745 + 1.3862944 + 1.3862944, abs=1e-6)
    terms = VQ(beta=0.25).eval().terms(model, guide, batch)
    assert terms.logs["elbo"].item() == pytest.approx(-4.786363, abs=1e-5)
    assert terms.logs["kl"].item() == pytest.approx(1.386294, abs=1e-5)
    assert terms.logs["log_likelihood"].item() == pytest.approx(-3.400069, abs=1e-5)
    # 0 for the left patch, (-0.5 - (-1))² for the right
    assert terms.logs["commitment"].item() == pytest.approx(0.25)
    assert terms.loss.item() == pytest.approx(4.786363 + 0.25 * 0.25, abs=1e-5)
    w = log_weights(model, guide, batch, particles=3)
    assert torch.allclose(w.log_w, torch.full((3, 1), -4.786363), atol=1e-5)
    assert torch.equal(w.log_q, torch.zeros(3, 1))
    # in bits per dimension, of 8 pixels: 4.786363 / (8 log 2)
    bits = bits_per_dimension(w.log_w[0], batch, model.likelihood)
    assert bits.item() == pytest.approx(0.863157, abs=1e-5)
    e = evaluate(model, guide, batch)
    assert (e.elbo.mean, e.elbo.se) == (pytest.approx(-4.786363, abs=1e-5), 0.0)
    assert e.bits_per_dimension is not None
    assert e.bits_per_dimension.mean == pytest.approx(0.863157, abs=1e-5)


def test_log_p_of_x_lies_above_by_the_codes_log_posterior() -> None:
    model, guide, batch = by_hand()
    every = torch.tensor(list(itertools.product(range(2), repeat=2))).reshape(4, 1, 1, 2)
    log_px = torch.stack([joint(model, batch, codes) for codes in every]).logsumexp(0)
    length = log_weights(model, guide, batch).log_w[0]
    posterior = joint(model, batch, guide.encode(batch)["codes"].codes) - log_px
    assert length.item() == pytest.approx((log_px + posterior).item(), abs=1e-6)
    # q is 81/82 sure of the left patch's code (81 : 1 odds), and 9/10 of the right one's (9 : 1)
    assert posterior.item() == pytest.approx(math.log(81 / 82) + math.log(9 / 10), abs=1e-5)


def joint(model: VQVAE, batch: Batch, codes: Tensor) -> Tensor:
    """log p(x, codes) of codes (1, h, w), from the parts."""
    prior = model.code_distribution("codes", torch.zeros(1, 0), {}).log_prob(codes)
    total: Tensor = prior + model.decoded({"codes": model.codebook(codes)}).log_prob(batch.x)
    return total


class Follows(CodePrior):
    """Each bottom code is likely what the top code above it is; all of them depend on the class too."""

    def __init__(self, grid: Sequence[int], entries: int, above: Sequence[int] | None = None, classes: int = 0) -> None:
        super().__init__(grid, entries, above)
        self.bonus = nn.Parameter(torch.ones(()))
        self.of_class = nn.Parameter(torch.randn(classes, entries))

    def forward(self, features: Tensor, above: Tensor | None = None) -> Any:
        assert above is not None
        up = above.repeat_interleave(2, -1).repeat_interleave(2, -2)
        logits = self.bonus * nn.functional.one_hot(up, self.entries)
        return dist.Categorical(logits=logits + (features @ self.of_class)[..., None, None, :]).to_event(2)


def test_a_prior_of_the_bottom_codes_given_the_top_ones_and_a_class() -> None:
    model = VQVAE2(likelihood=likelihoods.Bernoulli(SHAPE), **SMALL)
    assert {name: (tuple(spec.event_shape), spec.parents) for name, spec in model.latents.items()} == {
        "top": ((1, 1), ()),
        "bottom": ((2, 2), ()),
    }
    model.prior_bottom = Follows((2, 2), 3, above=(1, 1), classes=2)
    model.condition = Condition(classes=2)
    model.check_prior("prior_bottom", "bottom", model.prior_bottom)
    assert model.latents["bottom"].parents == ("top",)
    batch = Batch(x=torch.rand(4, *SHAPE).round(), y=torch.tensor([0, 1, 1, 0]))
    check_model(model, batch)
    check_guide(guides.Nearest(model), model, batch)
    w = log_weights(model, guides.Nearest(model), batch)
    assert not torch.allclose(w.log_prior["bottom"], torch.full((1, 4), -4 * math.log(3)))
    assert torch.allclose(w.log_prior["top"], torch.full((1, 4), -math.log(3)))


def test_the_top_codes_are_seen_by_the_bottom_and_by_the_decoder() -> None:
    model = VQVAE2(likelihood=likelihoods.Bernoulli(SHAPE), **SMALL)
    guide = guides.Nearest(model)
    batch = Batch(x=torch.rand(4, *SHAPE).round())
    before = guide.encode(batch)
    model.codebook_of("top").vectors.add_(3.0)
    after = guide.encode(batch)
    assert torch.equal(before["top"].z, after["top"].z)
    assert not torch.allclose(before["bottom"].z, after["bottom"].z)
    vectors = {name: each.vectors for name, each in before.items()}
    one = model.decoded(vectors).log_prob(batch.x)
    other = model.decoded({**vectors, "top": vectors["top"] + 1.0}).log_prob(batch.x)
    assert not torch.allclose(one, other)


def test_a_guide_is_of_the_model_whose_codebook_it_reads() -> None:
    model = VQVAE(likelihood=likelihoods.Bernoulli(SHAPE), **SMALL)
    guide, batch = guides.Nearest(model), Batch(x=torch.rand(4, *SHAPE).round())
    VQ().loss(*copy.deepcopy((model, guide)), batch)
    with pytest.raises(InputError, match="runs the model that it was built with"):
        VQ().loss(copy.deepcopy(model), guide, batch)


def test_refusals() -> None:
    likelihood = likelihoods.Bernoulli(SHAPE)
    with pytest.raises(InputError, match="codebook=1 must be a whole number, 2 or more"):
        VQVAE(likelihood=likelihood, size=2, codebook=1, downsample=2)
    with pytest.raises(InputError, match=r"downsample=8: images of 4 x 4 .* give downsample=2 or 4"):
        VQVAE(likelihood=likelihood, size=2, downsample=8)
    with pytest.raises(InputError, match="likelihood=None"):
        VQVAE(size=2)
    with pytest.raises(InputError, match="size=None"):
        VQVAE(likelihood=likelihood)
    model = VQVAE(likelihood=likelihood, **SMALL)
    with pytest.raises(InputError, match=r"prior is over grids \(2, 2\) of 4 codes; site 'codes' .* has \(2, 2\) of 3"):
        VQVAE(likelihood=likelihood, **SMALL, prior=type(model.prior)((2, 2), 4))
    with pytest.raises(InputError, match="depends on codes above, and there are none"):
        VQVAE(likelihood=likelihood, **SMALL, prior=Follows((2, 2), 3, classes=1))
    with pytest.raises(InputError, match=r"not to the grids .* give model.make_encoder"):
        guides.Nearest(model, GridEncoder(SHAPE, 4, size=2, channels=4))
