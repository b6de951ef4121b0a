"""Your own Pyro programs, unchanged, with the whole step compiled.

A model and a guide written as plain functions over Pyro's store: Poisson regression counts y with a latent effect of
each datum,

    z_n ~ N(0, s²),   y_n ~ Poisson(exp(w · c_n + z_n)),   q(z_n | y_n, c_n) = N(m(y_n, c_n), v(y_n, c_n)²).

`pyro.infer.SVI` and `CompiledSVI` take the same steps; the second has no Pyro left in them. The data are simulated with
s = 0.5, and the run fails if the estimate is off by more than 0.1.

    python examples/compiled_svi.py [--smoke]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from ppl_vae import CompiledSVI

TRUE_SCALE = 0.5
WEIGHTS = torch.tensor([0.8, -0.5, 0.3])


def simulate(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(n, 3, generator=generator)
    z = TRUE_SCALE * torch.randn(n, generator=generator)
    return c, torch.poisson((c @ WEIGHTS + z + 1.0).exp(), generator=generator)


def programs() -> tuple[object, object]:
    torch.manual_seed(0)
    pyro.clear_param_store()
    encoder = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))

    def model(c: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", torch.zeros(3))
        bias = pyro.param("bias", torch.zeros(()))
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Poisson((c @ weights + bias + z).exp()), obs=y)

    def guide(c: Tensor, y: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(torch.cat([c, y.log1p().unsqueeze(-1)], dim=-1)).unbind(-1)
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return model, guide


def seconds(step: object, c: Tensor, y: Tensor, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step(c, y)  # type: ignore[operator]
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", help="taken for the sake of uniformity; nothing is written")
    arguments = parser.parse_args(argv)
    steps = 5 if arguments.smoke else 3000
    c, y = simulate(500)

    svi = SVI(*programs(), pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    eager = seconds(svi.step, c, y, min(steps, 300)) / min(steps, 300)

    compiled = CompiledSVI(*programs(), torch.optim.Adam, Trace_ELBO(), {"lr": 3e-3})
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    first = float(compiled.step(c, y))  # traces and compiles
    after = seconds(compiled.step, c, y, steps) / steps
    print(compiled.report())
    print(f"milliseconds a step: pyro.infer.SVI {1e3 * eager:.2f}, CompiledSVI {1e3 * after:.2f}")

    # the store sees every update: nothing was copied
    store = pyro.get_param_store()
    unchanged = [name for name, value in before.items() if torch.equal(value, store[name])]
    last = float(compiled.evaluate_loss(c, y))
    scale = store["scale"].item()
    print(
        f"loss {first / len(y):.3f} -> {last / len(y):.3f} nats a datum; s = {scale:.3f}, simulated with {TRUE_SCALE}"
    )
    if unchanged or compiled.report().fallbacks:
        print(f"not trained: {unchanged}; eager: {compiled.report().fallbacks}", file=sys.stderr)
        return 1
    if not arguments.smoke and abs(scale - TRUE_SCALE) > 0.1:
        print(f"s = {scale:.3f} missed {TRUE_SCALE} by more than 0.1", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
