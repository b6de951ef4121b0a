"""What objectives of the forward KL are tested against: exact gradients of log p(x), exact posteriors, and optima."""

import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import Batch, Guide, LatentModel, LatentSpec, Objective, guides, networks
from ppl_vae.testing import LinearGaussian

N = 64


def oracle(n: int = N) -> tuple[LinearGaussian, Batch]:
    """A posterior of correlation -0.87, whose forward-KL optimum has twice the standard deviations of the reverse
    one's; n times the same datum."""
    model = LinearGaussian(2, 2, sigma=0.5, seed=11)
    return model, Batch(x=model.simulate(1, seed=2).expand(n, -1).contiguous(), rows=torch.arange(n))


class Learnable(LinearGaussian):
    """With parameters, whose gradient of log p(x) is exact."""

    def __init__(self) -> None:
        super().__init__(2, 2, sigma=0.5, seed=11)
        for name in ("weight", "bias"):
            value = getattr(self, name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))

    def gradient(self, x: Tensor) -> dict[str, Tensor]:
        """∇ of the mean of -log p(x)."""
        parameters = dict(self.named_parameters())
        found = torch.autograd.grad(-self.log_marginal(x).mean(), list(parameters.values()))
        return dict(zip(parameters, found, strict=True))


class Classes(LatentModel):
    """y ~ Categorical(3), x ~ N(μ_y, 1): its posterior is a sum over classes."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"y": LatentSpec(torch.Size(), constraints.integer_interval(0, 2))}
        self.logits = nn.Parameter(torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64))
        self.means = nn.Parameter(torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            return pyro.sample("x", dist.Normal(self.means[y.long()], 1.0), obs=batch.x)

    def log_joint(self, x: Tensor) -> Tensor:
        """(N, 3)."""
        return self.logits.log_softmax(-1) + dist.Normal(self.means, 1.0).log_prob(x.unsqueeze(-1))


class ClassesGuide(Guide):
    """q(y | x) = softmax(slope x + logits), enumerated or drawn."""

    def __init__(self, enumerated: bool) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([-0.2, 0.4, 0.1], dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64))
        self.infer = {"enumerate": "parallel"} if enumerated else {}

    def scores(self, x: Tensor) -> Tensor:
        return (self.slope * x.unsqueeze(-1) + self.logits).log_softmax(-1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"y": pyro.sample("y", dist.Categorical(logits=self.scores(batch.x)), infer=self.infer)}


def classes(enumerated: bool, n: int = 1) -> tuple[Classes, ClassesGuide, Batch]:
    x = torch.tensor([-0.7, 0.4, 2.0], dtype=torch.float64).repeat(n)
    return Classes(), ClassesGuide(enumerated), Batch(x=x, rows=torch.arange(3 * n))


def exact_gradients(model: Classes, guide: ClassesGuide, batch: Batch) -> list[Tensor]:
    """∇ of -log p(x) and of -Σ_y p(y | x) log q(y | x), summed over the batch: the model's parameters, the guide's."""
    joint = model.log_joint(batch.x)
    posterior = joint.softmax(-1).detach()
    of_model = torch.autograd.grad(-joint.logsumexp(-1).sum(), list(model.parameters()))
    of_guide = torch.autograd.grad(-(posterior * guide.scores(batch.x)).sum(), list(guide.parameters()))
    return [*of_model, *of_guide]


def gradients(objective: Objective, model: nn.Module, guide: nn.Module, batch: Batch) -> list[Tensor]:
    """Of the loss: the model's parameters, the guide's."""
    loss = objective.differentiable_loss(model, guide, batch)
    return list(torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()]))


def optimum(
    objective: Objective, model: LinearGaussian, batch: Batch, steps: int, lr: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations of a mean-field q trained by an objective, averages over the last third."""
    torch.manual_seed(0)
    guide = guides.MeanField(model, networks.encoder("mlp", (2,), (4,))).double()
    objective = objective.double()
    optimizer = torch.optim.Adam(guide.parameters(), lr)
    means, deviations = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1.0 - step / steps)
        optimizer.zero_grad()
        objective.loss_and_grads(model, guide, batch)
        optimizer.step()
        if step > 2 * steps // 3:
            with torch.no_grad():
                q = guide.distribution(batch)["z"]
            means.append(q.mean[0])
            deviations.append(q.stddev[0])
    return torch.stack(means).mean(0), torch.stack(deviations).mean(0)


def chance(model: LinearGaussian, batch: Batch, z: Tensor) -> float:
    """The smallest p-value, times how many there are, of the hypothesis that z (N, 2) are posterior draws, one of each
    datum: whitened coordinates against N(0, 1), squared lengths against χ²."""
    factor = torch.linalg.cholesky(torch.linalg.inv(model.precision))
    centred = (z - model.posterior_mean(batch.x)).detach()
    white = torch.linalg.solve_triangular(factor, centred.unsqueeze(-1), upper=False).squeeze(-1).numpy()
    found = [stats.kstest(column, "norm").pvalue for column in white.T]
    found.append(stats.kstest((white**2).sum(-1), "chi2", args=(white.shape[1],)).pvalue)
    return len(found) * min(found)
