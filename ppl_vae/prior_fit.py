"""A prior fitted afterwards to the codes of a trained pair."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from .batch import Batch
from .build import build_prior
from .core import Conditional, Guide, LatentModel
from .data import DataSet
from .errors import InputError
from .fit import fit
from .isolation import cuda_in, device_of
from .loader import Data, as_data
from .networks import Condition
from .objectives import ELBO
from .options import parse
from .priors import prior_site, priors, replace_prior

__all__ = ["fit_prior"]

_CODES = 20_000


def fit_prior(
    model: LatentModel,
    guide: Guide,
    data: DataSet | Batch | Tensor | Data,
    prior: str | Conditional = "mixture",
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
    **options: Any,
) -> LatentModel:
    r"""Fit a prior to the codes of a trained pair, for better samples; model and guide stay as they are.

    .. math:: \max_λ \frac1N \sum_n E_{q(z \mid x_n)} [\log p_λ(z)] \quad\Leftrightarrow\quad
        \min_λ \mathrm{KL}\Big(\frac1N \sum_n q(z \mid x_n) \,\Big\|\, p_λ(z)\Big)

    maximum likelihood on draws of the aggregate posterior, fresh ones in every step. It is what training the ELBO over
    the prior's parameters alone would do: on these data the ELBO rises by the gain in E[log p(z)].

    Args:
        model, guide: a trained pair, which is not changed.
        data: what it was trained on.
        prior: a name with options, "flow:transforms=6"; or a prior of the model's latent site, which is trained.
        epochs: passes over the data.
        batch_size, lr, seed: see `fit`; the learning rate falls to 0 by a cosine, a batch larger than the data becomes
            all of them.
        options: further arguments of `fit`: `validation` and `patience`, `callbacks`, `progress`, `compile`.

    Returns:
        A copy of the model with the prior in its place.

    Raises:
        InputError: a model whose prior cannot be another one, an unknown prior, one that is made of the guide, one
            without parameters; what `fit` refuses.
        KeyboardInterrupt: Ctrl-C.

    Reference: Hoffman and Johnson, ELBO surgery, NIPS workshop on advances in approximate Bayesian inference, 2016;
    a second density fitted to the codes: Dai and Wipf, Diagnosing and enhancing VAE models, ICLR 2019
    (https://arxiv.org/abs/1903.05789).
    """
    site = prior_site(model)
    # together, for a guide may run its model
    model, guide = copy.deepcopy((model, guide))
    device = device_of(model, guide) or torch.device("cpu")
    like = next((p for part in (model, guide) for p in part.parameters()), torch.zeros(()))
    source = as_data(data, "data", like.dtype)
    with torch.random.fork_rng(devices=cuda_in(device)):
        torch.manual_seed(seed)
        fresh = _make(prior, model) if isinstance(prior, str) else prior
        if not any(p.requires_grad for p in fresh.parameters()):
            raise InputError(f"prior={prior!r} has no parameters: there is nothing to fit")
        fresh.to(device=device, dtype=like.dtype)
        codes = _Codes(guide, site).eval()
        start_at = getattr(fresh, "start_at", None)
        if callable(start_at) and isinstance(prior, str):
            start_at(_draws(codes, site, source, device))
    alone = _Alone(fresh, site, model)
    if tuple(fresh.event_shape) != tuple(model.latents[site].event_shape):
        replace_prior(model, fresh)  # which says what is wrong
    given: Mapping[str, Any] = {"lr_schedule": "cosine", "device": device, "description": "prior", **options}
    size = min(batch_size, len(source)) if isinstance(batch_size, int) else batch_size
    loss = ELBO(kl="monte-carlo")
    fitted = fit(alone, codes, source, loss, epochs=epochs, batch_size=size, lr=lr, seed=seed, **given)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    replace_prior(model, fresh)
    return model.eval()


class _Codes(Guide):
    """Draws z of one site from a guide as it stands: data, as far as a prior is concerned."""

    def __init__(self, guide: Guide, site: str) -> None:
        super().__init__()
        self.sites = (site,)
        self.guide = guide.requires_grad_(False)

    def train(self, mode: bool = True) -> _Codes:
        super().train(mode)
        self.guide.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (site,) = self.sites
        with poutine.block(), torch.no_grad():
            drawn: Any = poutine.trace(self.guide).get_trace(batch).nodes[site]
        with pyro.plate("data", batch.size, dim=-1):
            return {site: pyro.sample(site, dist.Delta(drawn["value"], event_dim=drawn["fn"].event_dim))}


class _Alone(LatentModel):
    """p(z) as a program, without x."""

    def __init__(self, prior: Conditional, site: str, model: LatentModel) -> None:
        super().__init__()
        condition = getattr(model, "condition", None)
        self.prior = prior
        self.condition = condition if isinstance(condition, Condition) else Condition()
        self.latents = {site: model.latents[site]}

    def forward(self, batch: Batch) -> Tensor:
        (site,) = self.latents
        with pyro.plate("data", batch.size, dim=-1):
            z: Tensor = pyro.sample(site, self.prior(self.condition(batch)))
        return z


def _make(text: str, model: nn.Module) -> Conditional:
    name, options = parse("prior", text)
    if priors.get(name).of_guide:
        raise InputError(
            f"prior={text!r} is made of the guide, and trained with it: fit 'mixture', 'flow' or 'autoregressive'"
        )
    return build_prior(name, model, options)


def _draws(codes: _Codes, site: str, data: Data, device: torch.device) -> Tensor:
    """z of some of the data, evenly spaced."""
    rows = torch.linspace(0, len(data) - 1, min(len(data), _CODES), dtype=torch.float64).long()
    parts = []
    for some in rows.split(1000):
        parts.append(codes(data.take(some).batch().to(device))[site])
    return torch.cat(parts)
