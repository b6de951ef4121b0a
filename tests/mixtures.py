"""Data and mixtures that tests of Gaussian mixtures share."""

import torch
from torch import Tensor

from ppl_vae.mixture_parameters import Covariance, DirichletNormal
from ppl_vae.models import GaussianMixture

COVARIANCES: tuple[Covariance, ...] = ("full", "tied", "diagonal")


def three_groups(n: int = 120, size: int = 2, seed: int = 0) -> Tensor:
    """Data about three places, of different spread, (n, size), float64."""
    like = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}
    places = 3.0 * torch.randn(3, size, **like)
    roots = torch.eye(size).double() + 0.4 * torch.randn(3, size, size, **like)
    z = torch.arange(n) % 3
    return places[z] + (roots[z] @ torch.randn(n, size, 1, **like)).squeeze(-1)


def random_responsibilities(n: int, components: int, seed: int = 0) -> Tensor:
    r = torch.rand(n, components, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return r / r.sum(1, keepdim=True)


def mixture(covariance: Covariance = "full", components: int = 3, size: int = 2, seed: int = 0) -> GaussianMixture:
    """Without prior, its parameters shaken, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GaussianMixture(components, size, covariance).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def with_prior(x: Tensor, covariance: Covariance = "full", components: int = 3) -> GaussianMixture:
    prior = DirichletNormal.weak(x, components, covariance)
    return GaussianMixture(components, x.shape[1], covariance, prior=prior)
