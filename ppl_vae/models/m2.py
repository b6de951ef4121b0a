"""The generative model of semi-supervised learning: a class, a style, and x of both."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from ..batch import Batch
from ..core import Conditional, LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..labels import sure
from ..likelihoods import Likelihood
from ..networks import join
from ..priors import StandardNormal
from .base import models

__all__ = ["M2"]


@models.register("m2")
class M2(LatentModel):
    r"""Semi-supervised VAE (M2): a class y, known or not, and z ~ N(0, I) make x; q(y | x) q(z | x, y).

    .. math:: p(x, y, z) = \mathrm{Cat}(y; 1/C) \, N(z; 0, I) \, p(x \mid f_θ(y, z))

    y is a latent variable of each datum, also where its label is known: a label is an observed child of y that leaves
    no doubt, Cat(label; y), and ``batch.y = -1`` stands for a missing one. One bound then is that of log p(x, y) for
    labelled data and of log p(x) for the others, in one batch and without shapes that depend on it.

    Args:
        decoder: (\*S, N, latent + C) -> (\*S, N, P, \*D), of z joined with y one-hot.
        likelihood: p(x | .).
        latent: number of dimensions of z.
        classes: C, 2 or more.
        prior: p(z), a `Conditional` with events (latent,); N(0, I) if None.

    Sites: "y", (\*S, N); "z", (\*S, N) events (latent,); where a batch has y, the observed "label", (\*S, N), masked
    where it is -1; "x", (\*S, N) events D. Run without x the model generates, of the class that `batch.y` names.

    Attributes:
        posterior: which factors a guide by name is given: "joint", q(y | x) q(z | x, y).

    Raises:
        InputError: fewer than two classes.

    Example:
        >>> from ppl_vae import likelihoods, networks
        >>> decoder = networks.decoder("mlp", 2 + 3, (1, 8, 8), 1)
        >>> model = M2(decoder, likelihoods.Bernoulli((1, 8, 8)), latent=2, classes=3)
        >>> model(Batch(y=torch.tensor([0, 2, -1]))).shape
        torch.Size([3, 1, 8, 8])

    Reference: Kingma, Rezende, Mohamed and Welling, Semi-supervised learning with deep generative models, NIPS 2014
    (https://arxiv.org/abs/1406.5298).
    """

    takes_labels = True
    posterior = "joint"
    eye: Tensor
    class_logits: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent: int,
        classes: int,
        prior: Conditional | None = None,
    ) -> None:
        super().__init__()
        check_count("classes", classes)
        if classes < 2:
            raise InputError(f"classes={classes} leaves nothing to be told apart; give 2 or more, or use VAE")
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = StandardNormal(latent) if prior is None else prior
        self.classes = classes
        self.latents = {
            "y": LatentSpec(torch.Size(), constraints.integer_interval(0, classes - 1)),
            "z": LatentSpec(torch.Size([latent])),
        }
        self.register_buffer("class_logits", torch.zeros(classes), persistent=False)
        self.register_buffer("eye", torch.eye(classes), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.class_logits))
            z = pyro.sample("z", self.prior(self.eye.new_empty(batch.size, 0)))
            if batch.y is not None:
                if batch.x is None:
                    y = torch.where(batch.y >= 0, batch.y, y)
                else:
                    with poutine.mask(mask=batch.y >= 0):  # type: ignore[call-overload]
                        label = dist.Categorical(logits=sure(self.eye[y]))
                        pyro.sample("label", label, obs=batch.y.clamp_min(0))
            inputs = join(z, self.eye[y])
            x: Tensor = pyro.sample("x", self.likelihood(self.decoder(inputs), batch.observed), obs=batch.x)
        return x
