"""Programs over the linear-Gaussian oracle's data whose aggregate posterior is a known Gaussian."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import Batch, Guide
from ppl_vae.testing import LinearGaussian


class Linear(Guide):
    """q(z | x) = N(A (x - b) + c, L Lᵀ), full or diagonal: of x from the oracle q(z) is Gaussian too."""

    def __init__(self, model: LinearGaussian, diagonal: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        data, latent = model.weight.shape
        self.register_buffer("centre", model.bias)
        self.diagonal = diagonal
        like = {"dtype": torch.float64, "generator": generator}
        self.slope = nn.Parameter(0.3 * torch.randn(latent, data, **like))
        self.loc = nn.Parameter(0.2 * torch.randn(latent, **like))
        self.log_scale = nn.Parameter(-0.3 + 0.1 * torch.randn(latent, **like))
        self.lower = nn.Parameter(0.3 * torch.randn(latent, latent, **like))

    @property
    def factor(self) -> Tensor:
        return torch.diag(self.log_scale.exp()) + (0.0 if self.diagonal else 1.0) * self.lower.tril(-1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        mean = (batch.x - self.centre) @ self.slope.T + self.loc
        with pyro.plate("data", batch.size, dim=-1):
            if self.diagonal:
                q = dist.Normal(mean, self.log_scale.exp().expand(mean.shape)).to_event(1)
            else:
                q = dist.MultivariateNormal(mean, scale_tril=self.factor)
            return {"z": pyro.sample("z", q)}

    def spread_of_means(self, model: LinearGaussian) -> Tensor:
        """Cov_p(x)[E[z | x]], exactly."""
        x = model.weight @ model.weight.T + model.sigma**2 * torch.eye(len(model.bias), dtype=torch.float64)
        return self.slope @ x @ self.slope.T

    def aggregate(self, model: LinearGaussian) -> Tensor:
        """Cov of q(z), exactly."""
        return self.spread_of_means(model) + self.factor @ self.factor.T

    def parts(self, model: LinearGaussian) -> tuple[float, float, float]:
        """Mutual information, total correlation and dimension-wise KL in nats, exactly."""
        v = self.aggregate(model)
        log_det, own = torch.logdet(v), v.diagonal()
        information = 0.5 * (log_det - torch.logdet(self.factor @ self.factor.T))
        total = 0.5 * (own.log().sum() - log_det)
        single = 0.5 * (own + self.loc.square() - 1.0 - own.log()).sum()
        return information.item(), total.item(), single.item()
