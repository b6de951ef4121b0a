"""The variational autoencoder with a prior over its decoder's weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..batch import Batch
from ..core import Conditional, LatentModel, LatentSpec
from ..errors import InputError
from ..likelihoods import Likelihood
from ..networks import Condition
from ..priors import StandardNormal
from .base import models
from .vae import VAE

__all__ = ["BayesianDecoder"]


@models.register("bayesian-decoder")
class BayesianDecoder(LatentModel):
    r"""Variational autoencoder whose decoder's weights are latent: w ~ N(0, S²), z_n ~ N(0, I), x_n ~ p(x | z_n, w).

    .. math:: p(x, z, w) = p(w) \prod_n p(z_n) \, p(x_n \mid f_w(z_n)), \qquad
        S = s / \sqrt{\text{inputs}} \text{ of a weight, } s \text{ of a bias}

    w are all the decoder's weights and biases as one vector, shared by all data. Divided by the root of the number of
    inputs, the sum that a unit sees has the standard deviation s however wide the layer below.

    The guide is `Combined`: q(w) Π q(z_n | x_n), trained with ``ELBO(data_size=N)``. `build` and the command line make
    it of any guide's name.

    Args:
        decoder: (\*S, N, latent) -> (\*S, N, P, \*D): its layers are taken, and its weights as they are for guides to
            start from (`start`). It is copied; its parameters are no parameters of the model.
        likelihood: p(x | .).
        latent: number of dimensions of z.
        scale: s, the standard deviation of a unit's input where its own inputs have variance 1.
        prior: p(z), a `Conditional` with events (latent,); N(0, I) if None.

    Sites: "weights", (\*S, 1) events (W,), outside of the data plate; "z", (\*S, N) events (latent,); "x", (\*S, N)
    events D, observed where `batch.x` is given. Run on a batch without x, all x are of one draw of the weights.

    Values of w with dimensions to the left, of particles say, are decoded in one batch of matrix products.

    Raises:
        InputError: a scale that is none, a decoder without parameters, or with buffers that change in training.

    Example:
        >>> from ppl_vae import Batch, likelihoods, networks
        >>> decoder = networks.decoder("mlp", 2, (1, 8, 8), 1, hidden=(16,))
        >>> model = BayesianDecoder(decoder, likelihoods.Bernoulli((1, 8, 8)), latent=2)
        >>> {name: (tuple(spec.event_shape), spec.scope) for name, spec in model.latents.items()}
        {'weights': ((1136,), 'global'), 'z': ((2,), 'datum')}
        >>> model(Batch(n=3)).shape
        torch.Size([3, 1, 8, 8])

    References:
        Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014, appendix F (https://arxiv.org/abs/1312.6114).
        Neal, Bayesian learning for neural networks, 1996: scales of priors over weights.
        Daxberger and Hernández-Lobato, Bayesian variational autoencoders, 2019 (https://arxiv.org/abs/1912.05651).
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent: int,
        scale: float = 1.0,
        prior: Conditional | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf):
            raise InputError(f"scale={scale!r} must be a standard deviation, a number above 0")
        scales = _scales(decoder, float(scale))
        if not scales:
            raise InputError(f"decoder={type(decoder).__name__} has no parameters: there is nothing to be uncertain of")
        if buffers := [name for name, _ in decoder.named_buffers()]:
            raise InputError(
                f"decoder={type(decoder).__name__} has the buffers {', '.join(buffers)}: its weights are drawn for "
                "each particle, and a state would be shared by all; use layers without, as networks.decoder makes"
            )
        self.network = _without_parameters(decoder)
        self.likelihood = likelihood
        self.prior = StandardNormal(latent) if prior is None else prior
        self.condition = Condition()
        self.shapes = {name: tensor.shape for name, tensor in scales.items()}
        flat = torch.cat([tensor.flatten() for tensor in scales.values()])
        self.register_buffer("loc", torch.zeros_like(flat), persistent=False)
        self.register_buffer("scale", flat, persistent=False)
        self.latents = {
            "weights": LatentSpec(torch.Size([len(flat)]), scope="global"),
            "z": LatentSpec(torch.Size([latent])),
        }

    def forward(self, batch: Batch) -> Tensor:
        weights = pyro.sample("weights", dist.Normal(self.loc, self.scale).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", self.prior(self.condition(batch)))
            parameters = self.decode(weights, z)
            x: Tensor = pyro.sample("x", self.likelihood(parameters, batch.observed), obs=batch.x)
        return x

    def decode(self, weights: Tensor, z: Tensor) -> Tensor:
        """The likelihood's parameters (\\*S, N, P, \\*D) at weights (W,) or (\\*S, 1, W) and z (\\*S, N, latent)."""
        if weights.numel() == weights.shape[-1]:
            return self._run(weights.flatten(), z)
        left = torch.broadcast_shapes(weights.shape[:-2], z.shape[:-2])
        several = weights.expand(*left, 1, weights.shape[-1]).reshape(-1, weights.shape[-1])
        codes = z.expand(*left, *z.shape[-2:]).reshape(-1, *z.shape[-2:])
        out: Tensor = vmap(self._run)(several, codes)
        return out.reshape(*left, *out.shape[1:])

    def _run(self, weights: Tensor, z: Tensor) -> Tensor:
        out: Tensor = functional_call(self.network, self.named(weights), (z,))
        return out

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Weights (\\*S, W) as the tensors of the decoder's layers, (\\*S, \\*shape) by name."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def at(self, weights: Tensor) -> VAE:
        """The model with its weights known, (W,): a `VAE` with a decoder of its own, which has these. log p(x | w) is
        then what `log_marginal` estimates of any data, by a guide over z."""
        if tuple(weights.shape) != tuple(self.loc.shape):
            raise InputError(f"weights have shape {tuple(weights.shape)}; this decoder has {tuple(self.loc.shape)}")
        decoder = _with_parameters(self.network, self.named(weights))
        return VAE(decoder, self.likelihood, self.latents["z"].event_shape[0], self.prior)

    def start(self) -> Mapping[str, Tensor]:
        """The weights of the decoder that was given: from 0 all units of a layer would learn the same."""
        own = dict(self.network.named_buffers())
        return {"weights": torch.cat([own[name].flatten() for name in self.shapes])}


def _scales(decoder: nn.Module, scale: float) -> dict[str, Tensor]:
    """The prior's standard deviations, of the shape of each parameter."""
    scales = {}
    for path, part in decoder.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            own = scale
            if parameter.dim() > 1:
                outputs = parameter.shape[1 if isinstance(part, nn.ConvTranspose2d) else 0]
                own = scale / math.sqrt(parameter.numel() / outputs)
            scales[f"{path}.{name}" if path else name] = torch.full_like(parameter.detach(), own)
    return scales


def _without_parameters(module: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers: it moves with the model, and neither trains nor is saved."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone(), persistent=False)
    return module


def _with_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose buffers are parameters again, with these values."""
    module = copy.deepcopy(module)
    for path, part in module.named_modules():
        for name, _ in list(part.named_buffers(recurse=False)):
            delattr(part, name)
            value = values[f"{path}.{name}" if path else name]
            part.register_parameter(name, nn.Parameter(value.detach().clone()))
    return module
