"""Posteriors of the linear-Gaussian oracle with faults of known size."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae import Batch, Guide
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior


class Faulty(Guide):
    """The exact posterior moved by `shift` of its standard deviations and widened by `scale`; `matched` keeps the
    marginals' variances and leaves out their correlations; `skewed` draws of a shifted Gamma with the same mean and
    variance in place of a Gaussian; `split` of two Gaussians beside each other, such that ranks have the right mean
    and spread."""

    def __init__(
        self,
        model: LinearGaussian,
        scale: float = 1.0,
        shift: float = 0.0,
        matched: bool = False,
        skewed: bool = False,
        split: bool = False,
    ) -> None:
        super().__init__()
        self.exact = LinearGaussianPosterior(model)
        self.scale, self.shift, self.matched, self.skewed, self.split = scale, shift, matched, skewed, split
        self.sites = ("z",)

    def distribution(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        q = self.exact.distribution(batch)["z"]
        deviation = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        loc = q.mean + self.shift * deviation
        if self.skewed:
            shape = torch.full_like(loc, 2.0)
            gamma = dist.Gamma(shape, shape.sqrt() / deviation)  # of variance deviation²
            moved = dist.transforms.AffineTransform(loc - gamma.mean, 1.0)
            return {"z": dist.TransformedDistribution(gamma, [moved]).to_event(1)}
        if self.split:
            # by quadrature: normal scores of ranks among 39 draws have the variance of uniform ones
            places = loc.unsqueeze(-1) + torch.tensor([-0.9, 0.9]).to(loc) * deviation.unsqueeze(-1)
            halves = dist.Normal(places, 0.448672 * deviation.unsqueeze(-1))
            return {"z": dist.MixtureSameFamily(dist.Categorical(torch.ones_like(places)), halves).to_event(1)}
        if self.matched:
            return {"z": dist.Normal(loc, self.scale * deviation).to_event(1)}
        return {"z": dist.MultivariateNormal(loc, self.scale**2 * q.covariance_matrix)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch).items()}


def correlated() -> LinearGaussian:
    """Two latents of which x tells the sum: their posterior correlation is -0.9."""
    model = LinearGaussian(2, 2, sigma=0.3)
    model.weight.copy_(torch.tensor([[0.9, 0.9], [0.0, 0.0]]))
    covariance = torch.linalg.inv(model.precision)
    assert -0.92 < covariance[0, 1] / covariance[0, 0] < -0.88
    return model
