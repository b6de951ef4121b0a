"""Expected gradients without noise: each combination of quadrature nodes is a datum, its weight a factor on its loss.

An estimator's expectation over its draws is an integral over their noise. Here that noise is prescribed: each datum of
a batch has another combination of Gauss-Hermite nodes (or of classes), and the sum of the losses times the
combinations' weights is the integral. So "unbiased" is an equation and not a statistic.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import Batch, Guide, LatentModel, LatentSpec, Objective


def hermite(nodes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes (dimensions, N) and weights (N,) of an integral over independent N(0, 1), N = nodes ** dimensions."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, dimensions).T
    weights = torch.cartesian_prod(*[w / w.sum()] * dimensions).reshape(-1, dimensions).prod(-1)
    return grid, weights


class NodeNormal(dist.Normal):
    """A Gaussian whose noise is prescribed wherever it has the shape of the draws; random elsewhere (`check_pair`)."""

    def __init__(self, loc: Tensor, scale: Tensor, nodes: Tensor, validate_args: bool | None = None) -> None:
        self.nodes = nodes
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NodeNormal":
        return NodeNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.nodes)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = self.nodes if self.nodes.shape == shape else torch.randn(shape, dtype=self.loc.dtype)
        return self.loc + self.scale * noise


class Chain(LatentModel):
    """b -> a -> x in one dimension each, linear and Gaussian: a ~ N(0.8 b, 0.6), x ~ N(a, 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"b": LatentSpec(torch.Size([])), "a": LatentSpec(torch.Size([]), parents=("b",))}
        self.slope = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            zero = self.slope.new_zeros(())
            b = pyro.sample("b", dist.Normal(zero, 1.0))
            a = pyro.sample("a", dist.Normal(self.slope * b, 0.6))
            return pyro.sample("x", dist.Normal(a, 0.5), obs=batch.x)


class Scalar(LatentModel):
    """z -> x in one dimension each: z ~ N(0, 1), x ~ N(slope z, 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([]))}
        self.slope = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(self.slope.new_zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(self.slope * z, 0.5), obs=batch.x)


class Nodes(Guide):
    """What guides with prescribed noise share: parameters by name, and nodes by site."""

    def __init__(self, parameters: Mapping[str, float]) -> None:
        super().__init__()
        self.free = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in parameters.items()}
        )
        self.nodes: dict[str, Tensor] = {}

    def normal(self, site: str, loc: Tensor, scale: Tensor, **options: Any) -> Tensor:
        empty = torch.empty(0, dtype=torch.float64)
        loc, scale = torch.broadcast_tensors(loc, scale)
        draw: Tensor = pyro.sample(site, NodeNormal(loc, scale, self.nodes.get(site, empty)), **options)
        return draw


class ScalarGuide(Nodes):
    """q(z | x) = N(gain x + shift, scale)."""

    def __init__(self) -> None:
        super().__init__({"gain": 0.5, "shift": 0.3, "log_scale": -0.2})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": self.normal("z", p["gain"] * batch.x + p["shift"], p["log_scale"].exp())}


class ChainGuide(Nodes):
    """q(b | x) q(a | b, x)."""

    def __init__(self) -> None:
        super().__init__({"gain": 0.4, "scale_b": -0.3, "from_b": 0.5, "shift": 0.2, "scale_a": -0.6})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        p = self.free
        with pyro.plate("data", batch.size, dim=-1):
            b = self.normal("b", p["gain"] * batch.x, p["scale_b"].exp())
            a = self.normal("a", p["from_b"] * b + 0.4 * batch.x + p["shift"], p["scale_a"].exp())
        return {"b": b, "a": a}


def expected_gradient(
    objective: Objective, model: LatentModel, guide: Guide, batch: Batch, weights: Tensor
) -> dict[str, Tensor]:
    """∇ of Σ_n weights_n loss_n, by parameter of the pair."""
    loss = (objective.terms(model, guide, batch).loss * weights).sum()
    named = {f"{part}.{n}": p for part, m in (("model", model), ("guide", guide)) for n, p in m.named_parameters()}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), gradients, strict=True)}


def nodes_for(guide: Nodes, shapes: Mapping[str, tuple[int, ...]], nodes: int, x: float) -> tuple[Batch, Tensor]:
    """Prescribe the noise of the guide's sites, (\\*C, K) each; returns the batch, x repeated, and the weights."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    grid, weights = hermite(nodes, sum(sizes))
    for (site, shape), part in zip(shapes.items(), grid.split(sizes), strict=True):
        guide.nodes[site] = part.reshape(*shape, -1)
    return Batch(x=torch.full((grid.shape[1],), x, dtype=torch.float64)), weights
