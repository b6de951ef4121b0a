"""TensorFlow Probability on JAX: `tfp.mcmc.sample_annealed_importance_chain` with its Hamiltonian kernel, jitted, n
temperatures a call."""

from __future__ import annotations

from importlib.metadata import version
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_probability.substrates.jax as tfp
from numpy.typing import NDArray

from benchmarks.sizes import Size

__all__ = ["TfpAnnealing"]

CHAINS, STEPS, STEP_SIZE = 16, 10, 0.1


class TfpAnnealing:
    def __init__(self, size: Size, x: NDArray[np.float32]) -> None:
        generator = np.random.default_rng(0)
        widths = [size.latent, *size.hidden[::-1], *size.shape]
        layers = [
            (
                jnp.asarray(generator.normal(0.0, a**-0.5 / 3**0.5, (a, b)), jnp.float32),
                jnp.zeros(b, jnp.float32),
            )
            for a, b in pairwise(widths)
        ]
        data = jnp.asarray(x)

        def prior(z: jax.Array) -> jax.Array:
            return tfp.distributions.MultivariateNormalDiag(jnp.zeros(size.latent)).log_prob(z)

        def joint(z: jax.Array) -> jax.Array:
            h = z
            for w, b in layers[:-1]:
                h = jnp.tanh(h @ w + b)
            logits = h @ layers[-1][0] + layers[-1][1]
            return prior(z) + tfp.distributions.Bernoulli(logits=logits).log_prob(data).sum(-1)

        def kernel(log_prob: object) -> object:
            return tfp.mcmc.HamiltonianMonteCarlo(
                target_log_prob_fn=log_prob, step_size=STEP_SIZE, num_leapfrog_steps=STEPS
            )

        def run(key: jax.Array, n: int) -> jax.Array:
            start = jax.random.normal(key, (CHAINS, size.batch, size.latent))
            _, log_w, _ = tfp.mcmc.sample_annealed_importance_chain(
                num_steps=n,
                proposal_log_prob_fn=prior,
                target_log_prob_fn=joint,
                current_state=start,
                make_kernel_fn=kernel,
                seed=key,
            )
            return log_w

        self.run = jax.jit(run)
        self.loss = float(-jnp.mean(jax.jit(joint)(jnp.zeros((CHAINS, size.batch, size.latent)))))
        self.parameters = sum(w.size + b.size for w, b in layers)
        self.versions = {name: version(name) for name in ("tensorflow-probability", "jax", "jaxlib")}

    def steps(self, n: int) -> None:
        """n temperatures; their number is an input, and not compiled anew."""
        jax.block_until_ready(self.run(jax.random.PRNGKey(0), n))
