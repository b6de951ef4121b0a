"""CPU and GPU compute the same: loss and gradients on the same noise, with TF32 off."""

from collections.abc import Iterator

import pytest
import torch
from trained import data, pair

from ppl_vae import ELBO, IWAE, Objective, Renyi

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here to compare the CPU with")


@pytest.fixture
def without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("objective", [ELBO(), ELBO(kl="monte-carlo"), IWAE(1), Renyi(0.5, 1)], ids=repr)
def test_cpu_and_cuda_give_the_same_loss_on_the_same_noise(objective: Objective) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, guide = (module.to(device) for module in pair("injected"))
        loss = objective.to(device).differentiable_loss(model, guide, data("fixed").batch().to(device))
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for m in (model, guide) for p in m.parameters())])
    (loss, *gradients), (other, *others) = found
    torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)
    for gradient, another in zip(gradients, others, strict=True):
        torch.testing.assert_close(another, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
