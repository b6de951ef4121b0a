"""The loss of vector quantization: straight-through reconstruction, commitment, running averages of the codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import InputError, check_number
from ..guides.nearest import Encoded, Nearest
from ..models.quantized import Quantized
from ..quantize import Codebook, perplexity
from ..validation import validation
from ..weights import Program
from .base import Objective, Terms, objectives

__all__ = ["VQ"]


@objectives.register("vq")
class VQ(Objective):
    r"""Vector quantization's loss: code length, whose gradient goes straight through the codes, and commitment.

    .. math::
        -\log p(x \mid e_c) - \log p(c) + β \sum_{ij} \|z_{ij} - \mathrm{sg}[e_{c_{ij}}]\|^2, \qquad
        \frac{\partial e_c}{\partial z} := I

    with the encoder's vectors z, their nearest entries e_c, and sg, which stops gradients. In value the first two terms
    are -ELBO of the guide `Nearest`, a code length, nats a datum. The encoder has the gradient at e_c as that at z, and
    β commits it to the entries. The entries move by running averages (`Codebook.update`), in training mode alone, once
    a call; where they are a parameter, by :math:`\sum_{ij} \|\mathrm{sg}[z_{ij}] - e_{c_{ij}}\|^2`. The codebook of a
    model that is held, none of whose parameters trains, stays as it is.

    Args:
        beta: β >= 0.
        decay: of the running averages, from 0 to below 1.
        restart: entries whose average count is below this share of an even one are put at vectors of the batch; 0: they
            stay where they are.

    Logs: "elbo", "kl" (-log p(c)), "log_likelihood"; "commitment", the sum without β; by site "perplexity_..." of the
    codebook's average counts, K where all entries are used alike, and "used_...", how many have more than a tenth of an
    even share. With one site they are "perplexity" and "used". These two are no nats.

    Raises:
        InputError: numbers out of range; another model or guide.

    References:
        van den Oord, Vinyals and Kavukcuoglu, Neural discrete representation learning, NIPS 2017
        (https://arxiv.org/abs/1711.00937).
        Razavi, van den Oord and Vinyals, Generating diverse high-fidelity images with VQ-VAE-2, NeurIPS 2019
        (https://arxiv.org/abs/1906.00446).
    """

    def __init__(self, beta: float = 0.25, decay: float = 0.99, restart: float = 0.1) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, least=0.0)
        self.decay = check_number("decay", decay, least=0.0)
        self.restart = check_number("restart", restart, least=0.0)
        if self.decay >= 1.0:
            raise InputError(f"decay={decay!r} must be below 1: 0.99 averages over some hundred batches")
        if self.restart >= 1.0:
            raise InputError(f"restart={restart!r} must be below 1, an even share, that a new entry is given: 0.1")

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> bool:
        for part, kind, name in ((model, Quantized, "model"), (guide, Nearest, "guide")):
            if not isinstance(part, kind):
                raise InputError(
                    "VQ is of VQVAE and VQVAE2 with the guide Nearest, which chooses the nearest codes, and "
                    f"{name} is a {type(part).__name__}; use ELBO"
                )
        return super().check(model, guide, *args, **kwargs)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        self.check(model, guide, *args, **kwargs)
        assert isinstance(model, Quantized)
        assert isinstance(guide, Nearest)
        batch: Batch = args[0]
        with validation(False):
            found = guide.encode(batch)
            codes = {name: each.codes for name, each in found.items()}
            vectors = {name: each.vectors for name, each in found.items()}
            log_likelihood = model.decoded(vectors, batch.observed).log_prob(batch.x)
            given = model.condition(batch)
            log_prior = torch.stack(
                [model.code_distribution(name, given, codes).log_prob(codes[name]) for name in codes]
            )
            log_prior = log_prior.sum(0).expand_as(log_likelihood)
        commitment = torch.stack([_away(each.z, each.vectors.detach()) for each in found.values()]).sum(0)
        loss = self.beta * commitment - log_prior - log_likelihood
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
        for name, each in found.items():
            codebook = model.codebook_of(name)
            if not codebook.average:
                loss = loss + _away(each.z.detach(), codebook(each.codes))
            if self.training and codebook.training and trains:
                codebook.update(each.z.detach(), each.codes, self.decay, self.restart)
        logs = {
            "elbo": log_likelihood + log_prior,
            "kl": -log_prior,
            "log_likelihood": log_likelihood,
            "commitment": commitment,
        }
        logs |= _usage({name: model.codebook_of(name) for name in found}, found, log_likelihood)
        return Terms(loss, {name: log.detach() for name, log in logs.items()})

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, decay={self.decay:g}, restart={self.restart:g}"


def _away(z: Tensor, vectors: Tensor) -> Tensor:
    """Σ over a grid of squared distances, (N, h, w, D) -> (N,)."""
    return (z - vectors).square().flatten(1).sum(1)


def _usage(codebooks: Mapping[str, Codebook], found: Mapping[str, Encoded], like: Tensor) -> dict[str, Tensor]:
    """How the codes are used, by the running counts: of a batch alone few codes would be told apart."""
    logs: dict[str, Tensor] = {}
    for name, book in codebooks.items():
        suffix = "" if len(codebooks) == 1 else f"_{name}"
        share = book.count / book.count.sum()
        logs[f"perplexity{suffix}"] = perplexity(book.count).to(like.dtype).expand_as(like)
        logs[f"used{suffix}"] = (share > 0.1 / book.entries).sum().to(like.dtype).expand_as(like)
    return logs
