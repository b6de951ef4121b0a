"""The vector-quantized variational autoencoders' generative models, of one grid of codes and of two."""

from __future__ import annotations

from torch import nn

from ..likelihoods import Likelihood
from ..priors.codes import CodePrior
from ..quantize import Codebook
from .base import models
from .quantized import Quantized

__all__ = ["VQVAE", "VQVAE2"]


@models.register("vqvae")
class VQVAE(Quantized):
    r"""Vector-quantized autoencoder: a grid of codes from a prior, x ~ p(x | decoder(their vectors)).

    .. math:: p(c, x) = p(c) \, p(x \mid \mathrm{decoder}(e_c)), \qquad c \in \{0, \dots, K - 1\}^{h \times w}

    Its guide is `guides.Nearest`, its objective `objectives.VQ`. -log p(x, c) at the guide's codes c is a code length:
    the nats that it takes to send c, and then x given c.

    **Prior.** `prior` is a `CodePrior`, over events (h, w) of whole numbers 0 to K - 1, uniform unless another is
    given. To learn one, train the pair with the uniform one, set ``model.prior`` to one over the same grid
    (`check_prior` holds it against the site) and maximize its log p of the codes that the guide finds,
    ``guide.encode(batch)["codes"].codes``, (N, h, w): the guide does not depend on the prior. What it is to be
    conditioned on, as classes, is ``model.condition = Condition(classes=10)``; it comes as features (N, F).

    Args:
        decoder: see `Quantized`; None: a `GridDecoder` of the sizes below.
        likelihood: p(x | .), of images (C, H, W).
        latent: D, dimensions of a code's vector, where `size` is not given.
        codebook: K, number of codes.
        size: D; None: `latent`.
        downsample: pixels a side of a code, a power of 2: the grid is (H / downsample, W / downsample).
        channels, blocks: of decoder and encoder, see `GridEncoder`.
        average: whether the codebook is of running averages, or a parameter, see `Codebook`.
        prior: p(c); None: uniform.

    Sites: "codes", (\*S, N) events (h, w); "x", (\*S, N) events (C, H, W), observed where `batch.x` is given.

    Raises:
        InputError: a codebook of one entry, a grid into which the images do not divide, a prior over other codes.

    Example:
        >>> from ppl_vae import Batch, likelihoods
        >>> model = VQVAE(likelihood=likelihoods.Bernoulli((1, 8, 8)), codebook=16, size=4, downsample=2)
        >>> model.latents["codes"].event_shape, model(Batch(n=3)).shape
        (torch.Size([4, 4]), torch.Size([3, 1, 8, 8]))

    Reference: van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, NIPS 2017
    (https://arxiv.org/abs/1711.00937).
    """

    def __init__(
        self,
        decoder: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        latent: int | None = None,
        codebook: int = 512,
        size: int | None = None,
        downsample: int = 4,
        channels: int = 64,
        blocks: int = 2,
        average: bool = True,
        prior: CodePrior | None = None,
    ) -> None:
        size = latent if size is None else size
        super().__init__(decoder, likelihood, ("codes",), size, codebook, downsample, channels, blocks, average)
        self.prior = self.uniform("codes") if prior is None else prior
        self.check_prior("prior", "codes", self.prior)

    @property
    def codebook(self) -> Codebook:
        """The vectors of the codes."""
        return self.codebook_of("codes")

    def prior_at(self, site: str) -> CodePrior:
        return self.prior


@models.register("vqvae2")
class VQVAE2(Quantized):
    r"""Two-level vector-quantized autoencoder: top codes, bottom codes given the top, x ~ p(x | decoder(both)).

    .. math:: p(t, b, x) = p(t) \, p(b \mid t) \, p(x \mid \mathrm{decoder}(e_t, e_b))

    The top grid has half the sides of the bottom one: it is for what is global in an image, the bottom for details. The
    encoder makes the bottom's vectors of the image and of the decoded top codes; the decoder sees both.

    **Priors.** `prior` is over the top grid, `prior_bottom` over the bottom grid given the top codes: called
    ``prior_bottom(features, top)`` with the codes (\*S, N, h/2, w/2). Both are `CodePrior`s, uniform unless others are
    given; else as for `VQVAE`, with codes ``guide.encode(batch)["top"].codes`` and ``["bottom"].codes``.

    Args:
        downsample: pixels a side of a bottom code, a power of 2; a top code has twice as many.
        prior, prior_bottom: p(t), p(b | t); None: uniform.
        decoder, likelihood, latent, codebook, size, channels, blocks, average: as of `VQVAE`, the same for both levels.

    Sites: "top", (\*S, N) events (h/2, w/2); "bottom", (\*S, N) events (h, w), with the parent "top" where its prior
    looks at it; "x".

    Raises:
        InputError: as `VQVAE`.

    Reference: Razavi, van den Oord and Vinyals, Generating diverse high-fidelity images with VQ-VAE-2, NeurIPS 2019
    (https://arxiv.org/abs/1906.00446).
    """

    def __init__(
        self,
        decoder: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        latent: int | None = None,
        codebook: int = 512,
        size: int | None = None,
        downsample: int = 2,
        channels: int = 64,
        blocks: int = 2,
        average: bool = True,
        prior: CodePrior | None = None,
        prior_bottom: CodePrior | None = None,
    ) -> None:
        size = latent if size is None else size
        super().__init__(decoder, likelihood, ("top", "bottom"), size, codebook, downsample, channels, blocks, average)
        self.prior = self.uniform("top") if prior is None else prior
        self.prior_bottom = self.uniform("bottom") if prior_bottom is None else prior_bottom
        self.check_prior("prior", "top", self.prior)
        self.check_prior("prior_bottom", "bottom", self.prior_bottom)

    def prior_at(self, site: str) -> CodePrior:
        return self.prior if site == "top" else self.prior_bottom
