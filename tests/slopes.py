"""The slope of an ELBO along a direction of all parameters, by finite differences and by gradients."""

import torch
from torch import Tensor, nn

from ppl_vae import ELBO, Batch


def slopes_of(
    model: nn.Module, guide: nn.Module, batch: Batch, particles: int
) -> tuple[float, tuple[float, Tensor], tuple[float, Tensor]]:
    """Central differences of the loss; the slope by the gradient, and the gradient, of a guide that differentiates its
    steps; and of the same guide that does not."""
    objective = ELBO(particles=particles, kl="monte-carlo")
    parameters = [*guide.parameters(), *model.parameters()]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator).double() for p in parameters]

    def value(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
            torch.manual_seed(0)
            loss = objective.loss(model, guide, batch)
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=step)
        return loss

    def along(differentiate: bool) -> tuple[float, Tensor]:
        guide.differentiate = differentiate
        torch.manual_seed(0)
        gradients = torch.autograd.grad(objective.differentiable_loss(model, guide, batch), parameters)
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        return slope, torch.cat([g.flatten() for g in gradients])

    return (value(1e-5) - value(-1e-5)) / 2e-5, along(True), along(False)
