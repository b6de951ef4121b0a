"""What the sum over ten classes costs: steps of M2 and of the lecture's model beside those of a plain VAE.

    python -m benchmarks.classes [--sizes A,C] [--json FILE]

The sizes are those of `benchmarks.step`, and no label is known, so that every datum is summed over all ten classes: one
call of the decoder with ten times as many rows. A decoder pass is a call of it with the batch's rows, with likelihood
and gradients; a step's passes are 1 + (step - plain step) / pass. Beside them the sum by a Python loop, a
conditional VAE ten times, with one update.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hand import ACTIVATIONS
from benchmarks.machine import describe, median, pin, rounds
from benchmarks.sizes import LEARNING_RATE, SIZES, Size, minibatch
from ppl_vae import ELBO, Batch, CompiledSVI, guides, likelihoods, models, networks
from ppl_vae.build import build_guide
from ppl_vae.objectives import Objective
from ppl_vae.validation import validation

CLASSES = 10
PLAIN, SUMMED = "VAE", ("M2", "the lecture's model")


def pair(size: Size, name: str) -> tuple[Any, Any]:
    """The plain VAE, or a model of ten classes, with the same hidden layers."""
    act = ACTIVATIONS[size.activation]
    width = size.latent + (0 if name == PLAIN else CLASSES)
    decoder = networks.decoder(size.network, width, size.shape, 1, size.hidden[::-1], act)
    likelihood = likelihoods.Bernoulli(size.shape)
    condition = networks.Condition(CLASSES) if name == "loop" else None
    encoder = networks.encoder(size.network, size.shape, size.hidden, condition=condition, activation=act)
    if name == PLAIN:
        plain = models.VAE(decoder, likelihood, size.latent)
        return plain, guides.MeanField(plain, encoder)
    if condition is not None:
        conditional = models.ConditionalVAE(decoder, likelihood, size.latent, condition)
        return conditional, guides.MeanField(conditional, encoder)
    kind = models.M2 if name == "M2" else models.SemiSupervisedVAE
    model = kind(decoder, likelihood, size.latent, CLASSES)
    return model, build_guide(guides.MeanField, model, encoder, size.batch)


def objective() -> Objective:
    return ELBO(kl="monte-carlo")


def eager(size: Size, name: str, x: Tensor) -> Callable[[], object]:
    model, guide = pair(size, name)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    loss = objective()
    each = [Batch(x=x, y=torch.full((len(x),), c)) for c in range(CLASSES)]
    batches = {PLAIN: [Batch(x=x)], "loop": each}.get(name, [Batch(x=x, y=torch.full((len(x),), -1))])

    def step() -> None:
        optimizer.zero_grad()
        sum(loss.differentiable_loss(model, guide, batch) for batch in batches).backward()  # type: ignore[union-attr]
        optimizer.step()

    return step


def compiled(size: Size, name: str, x: Tensor) -> Callable[[], object]:
    svi = CompiledSVI(*pair(size, name), torch.optim.Adam, objective(), {"lr": LEARNING_RATE})
    batch = Batch(x=x) if name == PLAIN else Batch(x=x, y=torch.full((len(x),), -1))
    svi.step(batch)
    assert not svi.report().fallbacks, svi.report()
    return lambda: svi.step(batch)


def decoder_pass(size: Size, x: Tensor, compile: bool) -> Callable[[], object]:
    model, _ = pair(size, "M2")
    parts = nn.ModuleList([model.decoder, model.likelihood])
    z = torch.randn(len(x), size.latent + CLASSES, requires_grad=True)

    def loss_of(z: Tensor) -> Tensor:
        loss: Tensor = -model.likelihood(model.decoder(z)).log_prob(x).sum()
        return loss

    compute = torch.compile(loss_of) if compile else loss_of

    def step() -> None:
        parts.zero_grad()
        z.grad = None
        with validation(False):
            compute(z).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="A,C")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    core, machine = pin(), describe()
    print(f"one core (number {core}) of {machine['cpu']}, torch {machine['torch']}")
    results: dict[str, Any] = {}
    for key in arguments.sizes.split(","):
        size = SIZES[key]
        torch.manual_seed(0)
        x = torch.from_numpy(minibatch(size))
        print(f"\n{key}: {size}")
        results[key] = {}
        for way, make in (("compiled", compiled), ("eager", eager)):
            steps = {name: make(size, name, x) for name in (PLAIN, *SUMMED)}
            if way == "eager":
                steps["a loop over the classes"] = eager(size, "loop", x)
            steps["a decoder pass"] = decoder_pass(size, x, compile=way == "compiled")
            times = rounds(steps, warmup=10)
            together = list(zip(times[PLAIN], times["a decoder pass"], strict=True))
            for name, values in times.items():
                of_plain = median([v / plain for v, (plain, _) in zip(values, together, strict=True)])
                passes = median([1 + (v - plain) / one for v, (plain, one) in zip(values, together, strict=True)])
                row = {"ms": median(values), "of_plain": of_plain}
                if name not in (PLAIN, "a decoder pass"):
                    row["decoder_passes"] = passes
                results[key][f"{name}, {way}"] = row
                print(f"  {name + ', ' + way:34s} " + "  ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
