"""NumPyro: `numpyro.infer.SVI.update` under `jax.jit`, called once a step from Python, as `SVI.run` does under its
progress bar, or in a loop that XLA runs.

Networks are stax's, as in NumPyro's own VAE example. Images have their channels last: on a CPU XLA is no faster with
them first, as PyTorch has them. All is float32."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpy.typing import NDArray
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState

from benchmarks.sizes import LEARNING_RATE, Size

__all__ = ["Numpyro"]

Layer = tuple[Any, Any]  # stax's (initialize, apply)


def reshape(*shape: int) -> Layer:
    """Features (N, F) -> (N, *shape)."""
    return lambda key, given: ((given[0], *shape), ()), lambda params, x, **_: x.reshape(x.shape[0], *shape)


def networks(size: Size) -> tuple[Layer, Layer]:
    """Encoder and decoder of `benchmarks.hand.hand_networks`, layer by layer."""
    act = stax.elementwise({"silu": jax.nn.silu, "tanh": jnp.tanh}[size.activation])

    def mlp(widths: tuple[int, ...]) -> Layer:
        layers = [layer for width in widths for layer in (stax.Dense(width), act)]
        return stax.serial(*layers[:-1])

    if size.network == "mlp":
        return mlp((*size.hidden, 2 * size.latent)), mlp((*size.hidden[::-1], math.prod(size.shape)))

    def down(channels: int) -> Layer:
        return stax.Conv(channels, (3, 3), (2, 2), [(1, 1), (1, 1)])

    def up(channels: int, more: int = 1) -> Layer:
        # `more` is PyTorch's output_padding: one row and column more than 2 n - 1.
        return stax.ConvTranspose(channels, (3, 3), (2, 2), [(1, 1 + more)] * 2)

    encoder = stax.serial(
        *(down(16), act, down(32), act, down(64), act),
        *(stax.Flatten, stax.Dense(size.hidden[0]), act, stax.Dense(2 * size.latent)),
    )
    decoder = stax.serial(
        *(stax.Dense(64 * 16), act, reshape(4, 4, 64)),
        *(up(32, more=0), act, up(16), act, up(1)),
    )
    return encoder, decoder


class Numpyro:
    """
    Args:
        in_xla: n steps are one `lax.fori_loop` under `jax.jit`, as an epoch is in NumPyro's VAE example; no Python runs
            between them. Else each step is one call from Python. On a CPU XLA was seen to take several times as long
            for convolutions inside of a loop as outside: size E is not for the loop.
    """

    def __init__(self, size: Size, x: NDArray[np.float32], in_xla: bool = False) -> None:
        self.x = jnp.asarray(np.moveaxis(x, 1, -1) if size.network == "conv" else x)
        encoder, decoder = networks(size)
        shape, event_dim = self.x.shape, self.x.ndim - 1

        def model(x: jax.Array) -> None:
            decode = numpyro.module("decoder", decoder, (size.batch, size.latent))
            with numpyro.plate("data", size.batch):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size.latent]).to_event(1))
                numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(event_dim), obs=x)

        def guide(x: jax.Array) -> None:
            encode = numpyro.module("encoder", encoder, shape)
            loc, log_scale = jnp.split(encode(x), 2, axis=-1)
            with numpyro.plate("data", size.batch):
                numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

        loss = Trace_ELBO(num_particles=size.particles, vectorize_particles=True)
        svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), loss)
        self.state = svi.init(jax.random.key(0), self.x)
        self.loss = float(svi.evaluate(self.state, self.x))
        self.parameters = sum(p.size for p in jax.tree.leaves(svi.get_params(self.state)))
        self.versions = {name: version(name) for name in ("numpyro", "jax", "jaxlib")}
        # The state is not donated, as it is neither in `SVI.run` nor in NumPyro's examples.
        self.update = jax.jit(svi.update)
        self.in_xla = in_xla

        @jax.jit
        def loop(state: SVIState, x: jax.Array, n: int) -> tuple[SVIState, jax.Array]:
            return jax.lax.fori_loop(0, n, lambda _, given: svi.update(given[0], x), (state, jnp.zeros(())))

        self.loop = loop

    def steps(self, n: int) -> None:
        loss = None
        if self.in_xla:
            self.state, loss = self.loop(self.state, self.x, n)
        else:
            for _ in range(n):
                self.state, loss = self.update(self.state, self.x)
        jax.block_until_ready((self.state, loss))  # XLA runs behind Python
