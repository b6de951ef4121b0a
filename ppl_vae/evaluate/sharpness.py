"""How blurred images are, as a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError

__all__ = ["Sharpness", "laplacian_variance", "sharpness"]


@dataclass(frozen=True)
class Sharpness:
    """The variance of the Laplacian of samples beside that of data, in squared units of x.

    Args:
        samples, data: means over images; the less, the more blurred.
        samples_se, data_se: their standard errors, over images.
        ratio: samples / data; 1 is as sharp as the data, below 1 is blur, above 1 is noise.
        ratio_se: its standard error, by the delta method.
        n, data_n: numbers of images.
    """

    samples: float
    samples_se: float
    data: float
    data_se: float
    ratio: float
    ratio_se: float
    n: int
    data_n: int

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ± {self.ratio_se:.2g} of the data's"


def sharpness(samples: Tensor, data: Tensor) -> Sharpness:
    r"""The sharpness of samples relative to data: the mean variance of their Laplacians.

    .. math:: r = \frac{\frac1M \sum_m v(\hat x_m)}{\frac1N \sum_n v(x_n)}, \qquad
        \frac{\mathrm{se}(r)^2}{r^2} = \frac{\mathrm{se}(\bar v_{\hat x})^2}{\bar v_{\hat x}^2}
        + \frac{\mathrm{se}(\bar v_x)^2}{\bar v_x^2}

    v is `laplacian_variance`. Means of p(x | z) are blurred where z leaves open what is there; draws of p(x | z) have
    the likelihood's noise in every pixel, which counts as sharp. Which of them are given belongs beside the number.

    Args:
        samples: (M, C, H, W), as `sample(model, M).mean`.
        data: (N, C, H, W) in the same units.

    Raises:
        InputError: what is no images, or not of one shape; images smaller than 3 x 3; fewer than 2; data that are all
            constant.

    Reference: the variance of the Laplacian as a measure of focus: Pech-Pacheco et al., Diatom autofocusing in
    brightfield microscopy, ICPR 2000; of VAEs' samples: Tolstikhin et al., Wasserstein auto-encoders, ICLR 2018
    (https://arxiv.org/abs/1711.01558).

    Example:
        >>> import torch
        >>> x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = sharpness(torch.nn.functional.avg_pool2d(x, 3, 1, 1), x)
        >>> found.ratio < 0.2
        True
    """
    if samples.shape[1:] != data.shape[1:]:
        raise InputError(
            f"samples have shape {tuple(samples.shape)} and data {tuple(data.shape)}: give images of one shape"
        )
    (mean, se), (data_mean, data_se) = (_mean(x, name) for x, name in ((samples, "samples"), (data, "data")))
    if data_mean == 0.0:
        raise InputError("data have no edges at all: there is nothing to be compared with")
    ratio = mean / data_mean
    relative = math.hypot(se / mean if mean else 0.0, data_se / data_mean)
    return Sharpness(mean, se, data_mean, data_se, ratio, ratio * relative, len(samples), len(data))


def laplacian_variance(x: Tensor) -> Tensor:
    r"""The variance over an image of its Laplacian, (N,), mean over channels; 0 for constant and linear images.

    .. math:: (Δx)_{ij} = x_{i-1,j} + x_{i+1,j} + x_{i,j-1} + x_{i,j+1} - 4 x_{ij}

    at the (H - 2)(W - 2) inner pixels. White noise of variance σ² has 20 σ², but for what its mean takes away.

    Args:
        x: (N, C, H, W), in any units; the result is in their square.

    Raises:
        InputError: what is no images, is smaller than 3 x 3, or not finite.
    """
    if x.dim() != 4 or min(x.shape[-2:]) < 3 or not x.numel():
        raise InputError(f"x has shape {tuple(x.shape)}; give images (N, C, H, W) of 3 x 3 pixels or more")
    x = x.detach().double()
    if not bool(x.isfinite().all()):
        raise InputError("x holds NaN or infinity")
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    laplacian = around - 4.0 * x[..., 1:-1, 1:-1]
    return laplacian.flatten(2).var(-1, unbiased=False).mean(-1).cpu()


def _mean(x: Tensor, name: str) -> tuple[float, float]:
    if len(x) < 2:
        raise InputError(f"{name} are {len(x)}: an error needs 2 images or more")
    values = laplacian_variance(x)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))
