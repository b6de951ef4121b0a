"""The linear-Gaussian chain: a hierarchical model whose log p(x) and posteriors are exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..batch import Batch
from ..core import LatentModel, LatentSpec
from ..errors import choose

__all__ = ["LinearGaussianChain"]


class LinearGaussianChain(LatentModel):
    r"""z_L ~ N(0, I), z_l | z_{l+1} ~ N(W_l z_{l+1} + b_l, σ² I), x | z_1 ~ N(W_0 z_1 + b_0, σ² I).

    All of it is one Gaussian over (z_L, ..., z_1, x), from which every conditional is read.

    Args:
        data: D, the length of x.
        latent: sizes of z_1, ..., z_L.
        sigma: σ.
        seed: of the W and b, which are buffers; they are drawn without touching torch's default generator.
        dtype: float64, for comparisons to rounding.

    Sites: "zL", ..., "z1", (N,) events (size,); "x", (N,) events (D,).
    """

    sigma: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        data: int = 4,
        latent: Sequence[int] = (3, 2),
        sigma: float = 0.7,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        depth = len(latent)
        self.register_buffer("sigma", torch.tensor(sigma, dtype=dtype))
        sizes = [data, *latent]
        for i in range(depth):
            weight = torch.randn(sizes[i], sizes[i + 1], generator=generator, dtype=dtype)
            self.register_buffer(f"weight{i}", weight)
            self.register_buffer(f"bias{i}", torch.randn(sizes[i], generator=generator, dtype=dtype))
        names = [f"z{i}" for i in range(depth, 0, -1)]
        self.latents = {
            name: LatentSpec(torch.Size([sizes[depth - i]]), parents=tuple(names[i - 1 : i]))
            for i, name in enumerate(names)
        }
        # the parts of (z_L, ..., z_1, x), each an affine function of independent noise ε: mean + map @ ε
        ends = torch.tensor([sizes[i] for i in range(depth, -1, -1)]).cumsum(0).tolist()
        self.parts = {
            name: slice(b - sizes[depth - i], b) for i, (name, b) in enumerate(zip([*names, "x"], ends, strict=True))
        }
        eye = torch.eye(ends[-1], dtype=dtype)
        means, maps = [torch.zeros(latent[-1], dtype=dtype)], [eye[self.parts[names[0]]]]
        for i in range(depth - 1, -1, -1):
            weight, bias = self._layer(i)
            means.append(weight @ means[-1] + bias)
            maps.append(weight @ maps[-1] + self.sigma * eye[self.parts[f"z{i}" if i else "x"]])
        whole = torch.cat(maps)
        self.register_buffer("mean", torch.cat(means))
        self.register_buffer("covariance", whole @ whole.T)

    def _layer(self, i: int) -> tuple[Tensor, Tensor]:
        """W_i and b_i."""
        return self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")

    def forward(self, batch: Batch) -> Tensor:
        depth = len(self.latents)
        zero = torch.zeros_like(self.mean[self.parts[f"z{depth}"]])
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample(f"z{depth}", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            for i in range(depth - 1, -1, -1):
                weight, bias = self._layer(i)
                loc = z @ weight.T + bias
                p = dist.Normal(loc, self.sigma.expand(loc.shape)).to_event(1)
                z = pyro.sample(f"z{i}", p) if i else pyro.sample("x", p, obs=batch.x)
        x: Tensor = z
        return x

    def simulate(self, n: int, seed: int = 0) -> Tensor:
        """x of n data drawn from the model, (n, D), by a generator of its own."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, self.mean.numel(), generator=generator, dtype=self.mean.dtype).to(self.mean)
        x: Tensor = (self.mean + noise @ torch.linalg.cholesky(self.covariance).T)[:, self.parts["x"]]
        return x

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (N,), exactly."""
        part = self.parts["x"]
        log_prob: Tensor = dist.MultivariateNormal(self.mean[part], self.covariance[part, part]).log_prob(x)
        return log_prob

    def conditional(self, site: str, given: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        r"""p(site | given) = N(G v + c, C), v the values of `given` ("x" among them or not) one after another.

        Returns:
            G, c and C.
        """
        part = self.parts[site]
        index = torch.cat([torch.arange(self.parts[name].start, self.parts[name].stop) for name in given])
        index = index.to(self.mean.device)
        cross, within = self.covariance[part][:, index], self.covariance[index][:, index]
        gain: Tensor = torch.linalg.solve(within, cross.T).T
        return gain, self.mean[part] - gain @ self.mean[index], self.covariance[part, part] - gain @ cross.T

    @property
    def precision(self) -> Tensor:
        """Λ, the precision of p(z_L, ..., z_1 | x), the same for every x."""
        latent, x = slice(0, self.parts["x"].start), self.parts["x"]
        cross = self.covariance[latent, x]
        inside = self.covariance[latent, latent] - cross @ torch.linalg.solve(self.covariance[x, x], cross.T)
        precision: Tensor = torch.linalg.inv(inside)
        return precision

    def gap(self, independent: Literal["numbers", "sites"] = "numbers") -> float:
        """The least KL(q ‖ p(z | x)) in nats of a Gaussian q, the same for every x, in which "numbers" are independent,
        or "sites" are: ½ (Σ log det Λ_bb - log det Λ) over the blocks b."""
        if independent not in ("numbers", "sites"):
            raise choose("independent", independent, ("numbers", "sites"))
        precision = self.precision
        blocks = [slice(i, i + 1) for i in range(len(precision))]
        if independent == "sites":
            blocks = [self.parts[name] for name in self.latents]
        total = sum(torch.logdet(precision[b, b]) for b in blocks) - torch.logdet(precision)
        return 0.5 * float(total)
