"""p(x | z), element by element: each says in which units x is, checks its support, and draws inside of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from .core import Conditional
from .errors import InputError
from .networks import soft_bound
from .registry import Registry

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "GaussianLearned",
    "GaussianPerPixel",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "likelihoods",
]

Units = Literal["binary", "unit", "levels", "counts", "real"]


class Likelihood(Conditional):
    """p(x | parameters), independent over the elements of x.

    Args:
        shape: D, the shape of x.

    Attributes:
        parameters_per_element: P; a decoder returns (\\*S, N, P, \\*D).
        units: what x is: "binary" 0 or 1, "unit" within [0, 1], "levels" whole numbers 0 .. levels - 1, "counts" whole
            numbers from 0, "real" anything.
        discrete: whether log p(x) is a log-probability, so that bits per dimension mean something.
    """

    parameters_per_element: int = 1
    units: ClassVar[Units]
    discrete: ClassVar[bool] = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(shape)

    @abstractmethod
    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        """The distribution of each element, of batch shape (\\*S, N, \\*D), given (\\*S, N, P, \\*D)."""

    def forward(self, features: Tensor, observed: Tensor | None = None) -> TorchDistributionMixin:
        """The distribution of x, batch (\\*S, N) and event D; elements that are not `observed` are not scored."""
        each = self.elementwise(features)
        if observed is not None:
            each = each.mask(observed)
        x: TorchDistributionMixin = each.to_event(len(self.event_shape))
        return x

    def standardize(self, x: Tensor) -> None:
        """Set the units of the decoder's outputs from training data (N, \\*D), so that outputs near 0 fit them:
        shifts and scales kept as buffers. By default there is nothing to set."""

    def check(self, x: Tensor, argument: str = "x") -> None:
        """Raise `InputError`, naming value and place, unless every element of x (N, \\*D) is in the support."""
        if tuple(x.shape[1:]) != tuple(self.event_shape):
            raise InputError(
                f"{argument} has shape {tuple(x.shape)}; {type(self).__name__} here takes (N, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        bad = ~(torch.isfinite(x) & self.contains(x))
        if bool(bad.any()):
            place = tuple(int(i) for i in bad.nonzero()[0])
            raise InputError(
                f"{argument}[{', '.join(map(str, place))}] = {x[place].item():g} is outside of the support of "
                f"{type(self).__name__}, {self.support_text()}"
            )

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Which elements lie in the support."""

    @abstractmethod
    def support_text(self) -> str:
        """The support in words, and what would work for data outside of it."""

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        return features.unbind(-1 - len(self.event_shape))


likelihoods: Registry[type[Likelihood]] = Registry("likelihood")


@likelihoods.register("bernoulli")
class Bernoulli(Likelihood):
    """Bernoulli pixels, x in {0, 1}, for binarized images.

    Grey pixels are refused: a Bernoulli's formula at 0.3 is no likelihood, and such a bound compares with nothing.
    """

    units = "binary"
    discrete = True
    offset: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.register_buffer("offset", torch.zeros(self.event_shape))

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (logits,) = self._split(features)
        each: TorchDistributionMixin = dist.Bernoulli(logits=logits + self.offset)
        return each

    def standardize(self, x: Tensor) -> None:
        # outputs near 0 then mean the training data's average pixel, as in Burda et al., 2016
        mean = x.mean(0).clamp(0.01, 0.99)
        self.offset = torch.logit(mean).to(self.offset)

    def contains(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def support_text(self) -> str:
        return "0 or 1: binarize the data (binarize='dynamic'), or take continuous-bernoulli or discretized-logistic"


class _ContinuousBernoulli(TorchDistribution):
    r"""Density λ exp(λ x) / (exp(λ) - 1) on [0, 1], computed from the logit λ.

    torch's takes the normalizer from a probability clamped away from 0 and 1: in float32 its density integrates to
    0.53 at λ = 30, and to less beyond, where clear black and white pixels drive a decoder.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new: Any = self._get_checked_instance(_ContinuousBernoulli, _instance)  # type: ignore[no-untyped-call]
        new.logits = self.logits.expand(batch_shape)
        super(_ContinuousBernoulli, new).__init__(new.logits.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
            a = logits.abs().clamp_min(1e-6)
            small = -torch.log1p(torch.rand_like(a) * torch.expm1(-a)) / a  # the inverse distribution function at -a
            return torch.where(logits > 0, 1.0 - small, small).clamp(0.0, 1.0)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a = self.logits.abs()
        near = a < 0.5  # where the logarithm below is a small difference of large numbers
        a = torch.where(near, torch.ones_like(a), a)
        far = a.log() - _log1mexp(a) - a * torch.where(self.logits > 0, 1.0 - value, value)
        half = torch.where(near, 0.5 * self.logits, torch.zeros_like(a))
        square = half * half
        # log(sinh h / h), to h¹⁰
        series = square * (
            1 / 6 - square * (1 / 180 - square * (1 / 2835 - square * (1 / 37800 - square * (1 / 467775))))
        )
        return torch.where(near, 2.0 * half * (value - 0.5) - series, far)

    @property
    def mean(self) -> Tensor:
        near = self.logits.abs() < 0.5
        logits = torch.where(near, torch.ones_like(self.logits), self.logits)
        square = self.logits * self.logits
        series = self.logits * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square * (1 / 1209600))))
        return 0.5 + torch.where(near, series, 0.5 / torch.tanh(0.5 * logits) - 1.0 / logits)


@likelihoods.register("continuous-bernoulli")
class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli, x in [0, 1], a density for grey pixels.

    Reference: Loaiza-Ganem and Cunningham, The continuous Bernoulli, NeurIPS 2019 (https://arxiv.org/abs/1907.06845).
    """

    units = "unit"

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (logits,) = self._split(features)
        return _ContinuousBernoulli(logits)

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x <= 1)

    def support_text(self) -> str:
        return "[0, 1]: divide the pixels by their largest level (units='unit')"


class _Located(Likelihood):
    """A likelihood with a location in the units of the data, loc + scale · output."""

    units = "real"
    loc: Tensor
    unit: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("unit", torch.ones(self.event_shape))

    def standardize(self, x: Tensor) -> None:
        self.loc = x.mean(0).to(self.loc)
        # a table's columns have units of their own, an image's pixels share one; a constant column has none
        spread = x.std(0) if len(self.event_shape) == 1 else x.std().expand(self.event_shape)
        self.unit = torch.where(spread > 0, spread, torch.ones_like(spread)).to(self.unit)

    def contains(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)

    def support_text(self) -> str:
        return "the real numbers: remove or mask NaN and Inf"


@likelihoods.register("gaussian")
class Gaussian(_Located):
    r"""Gaussian of fixed standard deviation, 1 as in the lecture: log p(x | z) = -½ ‖x - m‖² - (D/2) log 2π.

    Unit variance is meant for data in units where 1 is small, as the digits at 0 to 16: for pixels in [0, 1] it
    calls everything noise, and the latents go unused.

    Args:
        scale: the standard deviation, in units of the data.
    """

    def __init__(self, shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__(shape)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale!r} must be a positive number, the noise's standard deviation")
        self.register_buffer("sd", torch.tensor(float(scale)))

    sd: Tensor

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (out,) = self._split(features)
        loc = self.loc + self.unit * out
        return dist.Normal(loc, self.sd.expand(loc.shape))


@likelihoods.register("gaussian-learned")
class GaussianLearned(_Located):
    """Gaussian with one learned standard deviation for all elements (per column for tables).

    Its optimum is the residuals' standard deviation (σ-VAE: Rybkin, Daniilidis and Levine, ICML 2021,
    https://arxiv.org/abs/2006.13202).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.raw = nn.Parameter(torch.zeros(self.event_shape if len(self.event_shape) == 1 else ()))

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (out,) = self._split(features)
        loc = self.loc + self.unit * out
        return dist.Normal(loc, (self.unit * soft_bound(self.raw).exp()).expand(loc.shape))


@likelihoods.register("gaussian-per-pixel")
class GaussianPerPixel(_Located):
    """Gaussian with a standard deviation for each element from the decoder, at least `floor`.

    Without a floor the density of a pixel that is constant in the data is unbounded, and log p(x) means nothing. One
    pixel level is the natural one; results say which was used.

    Args:
        floor: smallest standard deviation, in units of the data: 1/255 for 8-bit pixels in [0, 1].
    """

    parameters_per_element = 2

    def __init__(self, shape: Sequence[int], floor: float = 1.0 / 255.0) -> None:
        super().__init__(shape)
        if not (math.isfinite(floor) and floor > 0):
            raise InputError(f"floor={floor!r} must be a positive number, such as one pixel level")
        self.floor = float(floor)

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        out, raw = self._split(features)
        return dist.Normal(self.loc + self.unit * out, self.floor + self.unit * F.softplus(raw))

    def extra_repr(self) -> str:
        return f"floor={self.floor:g}"


class _Levels(Likelihood):
    units = "levels"
    discrete = True

    def __init__(self, shape: Sequence[int], levels: int = 256) -> None:
        super().__init__(shape)
        if not isinstance(levels, int) or levels < 2:
            raise InputError(f"levels={levels!r} must be a whole number, 2 or more: the data set's pixel levels")
        self.levels = levels

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < self.levels) & (x == x.round())

    def support_text(self) -> str:
        return f"the whole numbers 0 to {self.levels - 1}: load the data with units='levels'"

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class _DiscretizedLogistic(TorchDistribution):
    """A logistic variable rounded to the nearest of 0 .. levels - 1; the tails belong to the first and last."""

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = False

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new: Any = self._get_checked_instance(_DiscretizedLogistic, _instance)  # type: ignore[no-untyped-call]
        new.loc, new.scale, new.levels = self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels
        super(_DiscretizedLogistic, new).__init__(new.loc.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            eps = torch.finfo(u.dtype).tiny
            draw = self.loc + self.scale * (u.clamp_min(eps).log() - (-u).log1p())
            level: Tensor = draw.round().clamp(0, self.levels - 1)
        return level

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        upper = (value + 0.5 - self.loc) / self.scale
        lower = (value - 0.5 - self.loc) / self.scale
        # log(σ(u) - σ(l)) = log σ(u) + log σ(-l) + log(1 - e^(-1/s)): no cancellation however far in a tail
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + _log1mexp(1.0 / self.scale)
        inside = torch.where(value < 0.5, F.logsigmoid(upper), inside)
        return torch.where(value > self.levels - 1.5, F.logsigmoid(-lower), inside)

    @property
    def mean(self) -> Tensor:
        # Σ_k P(x > k), k = 0 .. levels - 2
        k = torch.arange(self.levels - 1, dtype=self.loc.dtype, device=self.loc.device)
        return torch.sigmoid((self.loc.unsqueeze(-1) - k - 0.5) / self.scale.unsqueeze(-1)).sum(-1)


def _log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(-a)) for a > 0."""
    small = a < 0.693
    near = torch.where(small, a, torch.ones_like(a))
    far = torch.where(small, torch.ones_like(a), a)
    return torch.where(small, (-torch.expm1(-near)).log(), torch.log1p(-(-far).exp()))


@likelihoods.register("discretized-logistic")
class DiscretizedLogistic(_Levels):
    r"""Logistic rounded to the data set's levels: P(x) = σ((x + ½ - m)/s) - σ((x - ½ - m)/s), tails included.

    Args:
        levels: of the data set, 17 for digits, 256 for 8-bit images.

    Reference: Kingma et al., Improved variational inference with inverse autoregressive flow, NIPS 2016; Salimans et
    al., PixelCNN++, ICLR 2017 (https://arxiv.org/abs/1701.05517).
    """

    parameters_per_element = 2

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        out, raw = self._split(features)
        half = 0.5 * (self.levels - 1)
        return _DiscretizedLogistic(half + half * out, 0.25 * half * soft_bound(raw, 5.0).exp(), self.levels)


class _LevelCategorical(dist.Categorical):
    """Categorical over 0 .. levels - 1 that draws floats, as x is, and has a mean."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        draw: Tensor = super().sample(torch.Size(sample_shape))  # type: ignore[no-untyped-call]
        return draw.to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        mean: Tensor = (self.probs * levels).sum(-1)
        return mean


@likelihoods.register("categorical")
class Categorical(_Levels):
    """A free probability for each of the data set's levels, by softmax.

    Args:
        levels: of the data set; the decoder returns as many numbers for each element.
    """

    def __init__(self, shape: Sequence[int], levels: int = 256) -> None:
        super().__init__(shape, levels)
        self.parameters_per_element = levels

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        return _LevelCategorical(logits=features.movedim(-1 - len(self.event_shape), -1))


@likelihoods.register("student-t")
class StudentT(_Located):
    """Student's t with learned scale and degrees of freedom (> 2) for each element: tables with outliers."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.raw_scale = nn.Parameter(torch.zeros(self.event_shape))
        self.raw_df = nn.Parameter(torch.zeros(self.event_shape))

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (out,) = self._split(features)
        loc = self.loc + self.unit * out
        df = 2.0 + 4.0 * soft_bound(self.raw_df).exp()
        scale = self.unit * soft_bound(self.raw_scale).exp()
        each: TorchDistributionMixin = dist.StudentT(df.expand(loc.shape), loc, scale.expand(loc.shape))
        return each


class _Counts(Likelihood):
    units = "counts"
    discrete = True
    log_mean: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.register_buffer("log_mean", torch.zeros(self.event_shape))

    def standardize(self, x: Tensor) -> None:
        self.log_mean = x.mean(0).clamp_min(1e-2).log().to(self.log_mean)

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x == x.round())

    def support_text(self) -> str:
        return "whole numbers from 0: give raw counts, or take student-t for real numbers"

    def _log_rate(self, out: Tensor) -> Tensor:
        return self.log_mean + soft_bound(out, 10.0)


@likelihoods.register("poisson")
class Poisson(_Counts):
    """Poisson counts with rate exp(log mean + output)."""

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (out,) = self._split(features)
        return dist.Poisson(self._log_rate(out).exp())


@likelihoods.register("negative-binomial")
class NegativeBinomial(_Counts):
    """Negative binomial counts, more spread than Poisson's: mean m = exp(log mean + output), variance m + m²/r.

    The dispersion r is learned for each element.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.raw_r = nn.Parameter(torch.zeros(self.event_shape))

    def elementwise(self, features: Tensor) -> TorchDistributionMixin:
        (out,) = self._split(features)
        log_r = soft_bound(self.raw_r)
        log_rate = self._log_rate(out)
        r = log_r.exp().expand(log_rate.shape)
        each: TorchDistributionMixin = dist.NegativeBinomial(r, logits=log_rate - log_r)
        return each
