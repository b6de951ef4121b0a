"""Hamiltonian Monte Carlo on z given x: every chain of every datum at once, for any program obeying the plate rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from .batch import Batch
from .compiled import CompiledFunction
from .convergence import FEWEST, ess, rhat
from .core import Guide, plain_support
from .errors import InputError, check_count, choose
from .isolation import cuda_in, device_of, evaluation
from .validation import validation
from .weights import Program, check_pair, data_size, is_per_datum, particle_plate, sample_sites, score_site

__all__ = [
    "Coordinates",
    "DualAveraging",
    "Info",
    "LogDensity",
    "Samples",
    "State",
    "hmc_step",
    "leapfrog",
    "log_joint",
    "log_joint_and_masks",
    "sample_posterior",
    "spread",
]

LogDensity: TypeAlias = Callable[[Tensor], Tensor]
"""Unnormalized log density of positions (C, N, D), C chains for each of N data, as (C, N). What it gives for a datum
depends on this datum's position alone. One with a method `value_and_gradient` of its own is asked by it."""

DIVERGENT = 1000.0
"""Nats of energy error from which a trajectory counts as divergent."""

_STEP = 0.1
_SPREAD = 0.4
_CHUNK = 4096
_FEWEST_WARM = 40


# ---------------------------------------------------------------- the algorithm, over flat positions


class State(NamedTuple):
    """Where chains are.

    Args:
        position: (C, N, D).
        log_density: (C, N), nats.
        gradient: (C, N, D), of the log density.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, log_density: LogDensity, position: Tensor) -> State:
        """The state at a position."""
        return cls(position, *_value_and_gradient(log_density, position))


class Info(NamedTuple):
    """What happened in one transition; all (C, N).

    Args:
        probability: of acceptance; 0 where the trajectory left the numbers.
        accepted: whether the proposal was taken.
        energy_error: H at the proposal minus H before, nats.
    """

    probability: Tensor
    accepted: Tensor
    energy_error: Tensor

    @property
    def divergent(self) -> Tensor:
        """Where the energy error is above `DIVERGENT`, or no number."""
        return ~(self.energy_error < DIVERGENT)


def leapfrog(
    log_density: LogDensity,
    position: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    steps: int,
    inverse_mass: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Follow Hamilton's equations for `steps` steps of ε, reversibly and keeping volume; H is kept up to O(ε²).

    .. math::
        r \leftarrow r + \tfrac{ε}{2} \nabla \log p(q), \quad q \leftarrow q + ε M^{-1} r, \quad
        r \leftarrow r + \tfrac{ε}{2} \nabla \log p(q)

    Args:
        position, momentum, gradient: q, r and ∇ log p(q), (C, N, D).
        step_size: ε, (C, N) or (N,).
        steps: L.
        inverse_mass: the diagonal of M⁻¹, (N, D).

    Returns:
        (position, momentum, log density, gradient) at the end. To go back, negate the momentum.
    """
    size = step_size.unsqueeze(-1)
    value = gradient.new_zeros(gradient.shape[:-1])
    momentum = momentum + 0.5 * size * gradient
    for step in range(steps):
        position = position + size * (inverse_mass * momentum)
        value, gradient = _value_and_gradient(log_density, position)
        # two half steps of momentum in one, but at the end
        momentum = momentum + (size if step + 1 < steps else 0.5 * size) * gradient
    return position, momentum, value, gradient


def hmc_step(
    log_density: LogDensity, state: State, step_size: Tensor, steps: int, inverse_mass: Tensor
) -> tuple[State, Info]:
    r"""One transition of every chain: fresh momentum, a trajectory, and acceptance by each chain of each datum.

    .. math:: α = \min(1, \exp(H(q, r) - H(q', r'))), \qquad H(q, r) = -\log p(q) + \tfrac12 r^\top M^{-1} r

    The target distribution is kept exactly, whatever ε, L and M. No value is looked at in Python: the step can be
    traced. A proposal whose density, gradient or energy is not finite is rejected.

    Args:
        state: from `State.at`, or the last transition.
        step_size, steps, inverse_mass: as for `leapfrog`.
    """
    momentum = torch.randn_like(state.position) * inverse_mass.rsqrt()
    position, end, value, gradient = leapfrog(
        log_density, state.position, momentum, state.gradient, step_size, steps, inverse_mass
    )
    error = (_kinetic(end, inverse_mass) - value) - (_kinetic(momentum, inverse_mass) - state.log_density)
    possible = error.isfinite() & gradient.isfinite().all(-1)
    probability = torch.where(possible, (-error).clamp_max(0.0).exp(), 0.0)
    accepted = torch.rand_like(probability) < probability
    moved = accepted.unsqueeze(-1)
    after = State(
        torch.where(moved, position, state.position),
        torch.where(accepted, value, state.log_density),
        torch.where(moved, gradient, state.gradient),
    )
    return after, Info(probability, accepted, error)


def spread(step_size: Tensor, like: Tensor) -> Tensor:
    """Step sizes between 0.6 and 1.4 of ε, drawn for each chain of each datum, (C, N).

    Trajectories of one length may come back to where they began, or to its mirror image, for ever: of a Gaussian's
    dimensions some then look as if they mixed faster than independent draws, and their squares do not move at all.

    Args:
        step_size: ε, (N,), or of no dimension.
        like: of the shape wanted, (C, N).
    """
    return step_size * (1.0 + _SPREAD * (2.0 * torch.rand_like(like) - 1.0))


class DualAveraging(NamedTuple):
    r"""Step sizes adapted, datum by datum, until proposals are accepted with a wanted probability.

    .. math::
        \log ε_{t+1} = μ - \frac{\sqrt t}{γ} \frac{1}{t + t_0} \sum_{s \le t} (δ - α_s), \qquad
        \log \bar ε_{t+1} = t^{-κ} \log ε_{t+1} + (1 - t^{-κ}) \log \bar ε_t

    with γ = 0.05, t₀ = 10, κ = 0.75, μ = log 10 ε₀. All (N,), but `steps`, which is t.

    Reference: Hoffman and Gelman, The No-U-Turn Sampler, JMLR 2014 (https://arxiv.org/abs/1111.4246), section 3.2.
    """

    log_step: Tensor
    log_average: Tensor
    gap: Tensor
    center: Tensor
    steps: Tensor

    @classmethod
    def start(cls, step_size: Tensor) -> DualAveraging:
        """From ε₀, (N,)."""
        log_step = step_size.log()
        zero = torch.zeros_like(log_step)
        return cls(log_step, zero, zero, log_step + math.log(10.0), zero.new_zeros(()))

    @property
    def step_size(self) -> Tensor:
        """ε of the next transition."""
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """ε̄, for when adaptation is over."""
        return self.log_average.exp()

    def update(self, probability: Tensor, target: float) -> DualAveraging:
        """After a transition with acceptance probabilities (C, N)."""
        steps = self.steps + 1.0
        share = 1.0 / (steps + 10.0)
        gap = (1.0 - share) * self.gap + share * (target - probability.mean(0))
        log_step = self.center - steps.sqrt() / 0.05 * gap
        weight = steps**-0.75
        return DualAveraging(log_step, weight * log_step + (1.0 - weight) * self.log_average, gap, self.center, steps)


def _value_and_gradient(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    own: Callable[[Tensor], tuple[Tensor, Tensor]] | None = getattr(log_density, "value_and_gradient", None)
    if own is not None:
        return own(position)
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        value = log_density(position)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), gradient


def _kinetic(momentum: Tensor, inverse_mass: Tensor) -> Tensor:
    return 0.5 * (momentum.square() * inverse_mass).sum(-1)


# ---------------------------------------------------------------- the target, from a Pyro program


def log_joint(model: Program, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """log p(x, z) at given values of all latent sites, for every chain and datum.

    Sites are scored as in `log_weights`, with masks and without scales.

    Args:
        model: a Pyro program with one data plate at dimension -1.
        values: (C, N, \\*event) by latent site.
        args, kwargs: the model's.

    Returns:
        (C, N), nats.
    """
    return log_joint_and_masks(model, values, *args, **kwargs)[0]


def log_joint_and_masks(
    model: Program, values: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> tuple[Tensor, dict[str, Any]]:
    """`log_joint`, and the mask under which the program drew each of these sites: None, True or False, or a tensor that
    broadcasts to (C, N)."""
    trace = _run(_Placed(values), model, _chains(values), args, kwargs)
    masks = {name: site["mask"] for name, site in sample_sites(trace) if name in values}
    return _total(trace, _chains(values)), masks


class Coordinates:
    r"""The latent variables of a program as one vector of real numbers for each datum, and its log density.

    .. math:: \log π(u) = \log p(x, z(u)) + \log |\det \partial z / \partial u|

    Each site is carried to the real line by torch's bijection to its support (z = u where that is the real line); a
    support may depend on the sites before it.

    Args:
        model: a Pyro program with one data plate at dimension -1.
        args, kwargs: the model's: a `Batch`, for programs of this package.

    Attributes:
        shapes: the shape of each site in these coordinates, in the model's order.
        size: D, the length of the vector.

    Raises:
        InputError: a latent site that is discrete, that lies outside of the data plate, or that no bijection leads
            to; a model without latent sites or without data.
    """

    def __init__(self, model: Program, *args: Any, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        with torch.no_grad(), torch.random.fork_rng(devices=cuda_in(model, args)):
            finder = _Found({})
            trace = _run(finder, model, 2, args, kwargs)
        _data_size(trace)
        for name, site in sample_sites(trace):
            if not is_per_datum(site):
                what = "the model's observed site" if site["is_observed"] else "the latent site"
                raise InputError(
                    f"{what} {name!r} lies outside of the data plate and is shared by all data: a chain for each "
                    "datum has no answer for it; hold it fixed (poutine.condition), or put it into the plate"
                )
        self.shapes = {name: u.shape[2:] for name, u in finder.free.items()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self._real = finder.real
        if not self.shapes:
            raise InputError("the model has no latent site: there is nothing to draw (is x given, and z conditioned?)")

    def on(self, *args: Any, **kwargs: Any) -> Coordinates:
        """The same coordinates with other arguments of the model, as for other data."""
        other = copy.copy(self)
        other.args, other.kwargs = args, kwargs
        return other

    def start(self, chains: int, guide: Program | None = None) -> Tensor:
        """Positions drawn from a guide, or from the model's prior without one: (chains, N, D)."""
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            if guide is not None:
                with particle_plate(chains):
                    drawn = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
                values = {n: s["value"] for n, s in sample_sites(drawn) if n in self.shapes}
            return self.position(values, chains)

    def position(self, values: Mapping[str, Tensor], chains: int) -> Tensor:
        """Values (chains, N, \\*event) of sites as positions (chains, N, D); sites not given are drawn from the
        model."""
        finder = _Found(values)
        size = _data_size(_run(finder, self.model, chains, self.args, self.kwargs))
        parts = [
            finder.free[name].expand(chains, size, *shape).reshape(chains, size, shape.numel())
            for name, shape in self.shapes.items()
        ]
        return torch.cat(parts, -1)

    def log_density(self, position: Tensor) -> Tensor:
        """log π of positions (C, N, D), (C, N), nats."""
        trace, log_det = self._placed(position)
        return _total(trace, position.shape[0]) + log_det

    def log_prior_and_likelihood(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z(u)) + log |det ∂z/∂u| and log p(x | z(u)), whose sum is log π; each (C, N), nats."""
        trace, log_det = self._placed(position)
        chains = position.shape[0]
        prior = _total(trace, chains, lambda site: not site["is_observed"]) + log_det
        return prior, _total(trace, chains, lambda site: site["is_observed"])

    def log_guide(self, guide: Program, position: Tensor) -> Tensor:
        """log q(z(u) | x) + log |det ∂z/∂u| of positions (C, N, D), (C, N), nats.

        Raises:
            InputError: the guide cannot score values that it did not draw, draws other sites than the model's, or
                leaves some of them out.
        """
        values, log_det = self.values(position)
        given = None
        if isinstance(guide, Guide):
            if not guide.scores_given:
                raise InputError(
                    f"{type(guide).__name__} cannot give log q of a z that it did not draw (scores_given is False): "
                    "start from the prior, or from a guide with an inverse"
                )
            with suppress(NotImplementedError):
                given = guide.distribution(*self.args, **self.kwargs)
        if given is not None:
            total = position.new_zeros(())
            for name, q in given.items():
                total = total + q.log_prob(values[name])
            return total + log_det
        trace = _run(_Placed(values), guide, position.shape[0], self.args, self.kwargs)
        if strangers := {name for name, _ in sample_sites(trace)} ^ values.keys():
            raise InputError(
                f"the guide and the model do not draw the same sites: {', '.join(map(repr, sorted(strangers)))}; "
                "log q of the model's latents alone is not known then"
            )
        return _total(trace, position.shape[0]) + log_det

    def values(self, position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The sites' values (C, N, \\*event), and log |det ∂z/∂u|, (C, N)."""
        if self._real:
            return self._parts(position), position.new_zeros(position.shape[:-1])
        trace, log_det = self._placed(position)
        nodes: Mapping[str, Any] = trace.nodes
        return {name: nodes[name]["value"] for name in self.shapes}, log_det

    def _placed(self, position: Tensor) -> tuple[Trace, Tensor]:
        chains = position.shape[0]
        placed = _Carried(self._parts(position))
        trace = _run(placed, self.model, chains, self.args, self.kwargs)
        total = position.new_zeros(position.shape[:-1])
        for name, log_det in placed.log_dets.items():
            term = log_det.reshape(*position.shape[:-1], -1).sum(-1)
            # what a mask hides has no density of its own, in either coordinates
            total = total + scale_and_mask(term, 1.0, trace.nodes[name]["mask"])
        return trace, total

    def _parts(self, position: Tensor) -> dict[str, Tensor]:
        parts = position.split([shape.numel() for shape in self.shapes.values()], -1)
        left = position.shape[:-1]
        return {name: u.reshape(*left, *shape) for (name, shape), u in zip(self.shapes.items(), parts, strict=True)}


class _Placed(Messenger):
    """Gives latent sites values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]]
            msg["done"] = True


class _Carried(_Placed):
    """Gives latent sites the values at coordinates, and collects log |det dz/du|."""

    def __init__(self, free: Mapping[str, Tensor]) -> None:
        super().__init__(free)
        self.log_dets: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if not msg["is_observed"] and msg["name"] in self.given and not _is_real(msg["fn"].support):
            free = msg["value"]
            transform = biject_to(msg["fn"].support)
            msg["value"] = transform(free)
            self.log_dets[msg["name"]] = transform.log_abs_det_jacobian(free, msg["value"])


class _Found(_Placed):
    """Notes the coordinates of latent sites, given or drawn."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.free: dict[str, Tensor] = {}
        self.real = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample" or msg["infer"].get("_deterministic"):
            return
        name, support = msg["name"], _support(msg)
        if _is_real(support):
            self.free[name] = msg["value"]
        else:
            self.real = False
            self.free[name] = biject_to(support).inv(msg["value"])


def _support(msg: Any) -> Constraint:
    support: Constraint = msg["fn"].support
    if support.is_discrete:
        raise InputError(
            f"the latent site {msg['name']!r} is discrete: Hamiltonian Monte Carlo moves along gradients; sum it out "
            "of the model, or hold it fixed (poutine.condition)"
        )
    try:
        biject_to(support)
    except NotImplementedError as error:
        raise InputError(
            f"no bijection leads from the real numbers to the support {support} of the latent site {msg['name']!r}"
        ) from error
    return support


def _is_real(support: Constraint) -> bool:
    return plain_support(support) is constraints.real


def _run(handler: Messenger, model: Program, chains: int, args: Any, kwargs: Any) -> Trace:
    with particle_plate(chains):
        return poutine.trace(handler(model)).get_trace(*args, **kwargs)


def _chains(values: Mapping[str, Tensor]) -> int:
    return next(iter(values.values())).shape[0]


def _total(trace: Trace, chains: int, counts: Callable[[Any], bool] = lambda site: True) -> Tensor:
    """Σ over the sites that count, (chains, N)."""
    total: Tensor | None = None
    for _, site in sample_sites(trace):
        if counts(site):
            term = score_site(site)
            total = term if total is None else total + term
    if total is None:
        raise InputError("the model observes no site: there is no likelihood; does it take the batch's x as obs=?")
    return total.expand(chains, _data_size(trace))


def _data_size(trace: Trace) -> int:
    for _, site in sample_sites(trace):
        if (size := data_size(site)) is not None:
            return size
    raise InputError(
        "the model has no site in a plate at dim=-1; put each datum's sites inside "
        'pyro.plate("data", batch.size, dim=-1)'
    )


# ---------------------------------------------------------------- draws from p(z | x)


@dataclass(frozen=True, eq=False)
class Samples:
    """Draws of z ~ p(z | x) for N data, and what speaks for or against them. On the CPU.

    Args:
        draws: (chains, draws, N, \\*event) by site.
        log_joint: (chains, draws, N) log p(x, z) of each draw, nats.
        acceptance: (N,) mean probability of acceptance after the warm-up.
        step_size: (N,) ε after the warm-up.
        inverse_mass: (N, D) the diagonal of M⁻¹.
        divergences: (N,) how many transitions after the warm-up had an energy error above 1000 nats.
        rhat: (N, \\*event) by site, see `convergence.rhat`; NaN with fewer than 4 draws.
        ess: (N, \\*event) by site, see `convergence.ess`; NaN with fewer than 4 draws.
    """

    draws: dict[str, Tensor]
    log_joint: Tensor
    acceptance: Tensor
    step_size: Tensor
    inverse_mass: Tensor
    divergences: Tensor
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]

    @property
    def worst_rhat(self) -> Tensor:
        """(N,) the largest R-hat of a datum's latents; NaN counts as infinite."""
        flat = [value.flatten(1) if value.dim() > 1 else value.unsqueeze(-1) for value in self.rhat.values()]
        return torch.cat(flat, -1).nan_to_num(math.inf).amax(-1)

    @property
    def fewest_ess(self) -> Tensor:
        """(N,) the smallest effective sample size of a datum's latents; NaN counts as 0."""
        flat = [value.flatten(1) if value.dim() > 1 else value.unsqueeze(-1) for value in self.ess.values()]
        return torch.cat(flat, -1).nan_to_num(0.0).amin(-1)

    def mean(self) -> dict[str, Tensor]:
        """E[z | x] by site, (N, \\*event)."""
        return {name: value.mean((0, 1)) for name, value in self.draws.items()}

    def std(self) -> dict[str, Tensor]:
        """Posterior standard deviations by site, (N, \\*event)."""
        return {name: value.flatten(0, 1).std(0) for name, value in self.draws.items()}


def sample_posterior(
    model: Program,
    data: Batch | Tensor,
    *,
    guide: Program | None = None,
    chains: int = 4,
    draws: int = 500,
    warmup: int = 500,
    steps: int = 10,
    target: float = 0.8,
    mass: Literal["diagonal", "unit"] = "diagonal",
    thin: int = 1,
    chunk: int = _CHUNK,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    compile: bool = False,
) -> Samples:
    r"""Draw z ~ p(z | x) for every datum by Hamiltonian Monte Carlo, the model's parameters held fixed.

    Every datum has step sizes and a mass matrix of its own, adapted during the warm-up and fixed after it; all chains
    of all data move at once. Step sizes are spread from transition to transition (`spread`). Constrained supports are
    left to torch's bijections.

    Memory: the draws, and what `chunk` pairs of a chain and a datum take in one gradient of log p(x, z).

    Args:
        model: a program over a `Batch`: a `LatentModel`, or any obeying the plate rule.
        data: a batch with x, or x alone, (N, \*D).
        guide: draws the starting points; None: the model's prior does. Where the chains start does not change what
            they tend to, but how long that takes.
        chains: C, for each datum.
        draws: kept of each chain.
        warmup: transitions before them, thrown away.
        steps: leapfrog steps of a transition.
        target: the acceptance probability that step sizes are adapted to.
        mass: "diagonal" takes M⁻¹ from the variances seen in the warm-up (of 40 transitions or more), "unit" is I.
        thin: transitions for a draw that is kept.
        chunk: pairs of a chain and a datum at once. It changes which random numbers are drawn for what, and nothing
            else.
        seed: of random numbers of its own, leaving the default generator as it is; None: from the default generator.
        progress: called with the number of transitions done, and how many there will be.
        compile: compile the transition, as `CompiledSVI` does a step; worth its seconds from thousands of
            transitions on.

    Returns:
        `Samples`, on the CPU. Look at `worst_rhat` and `divergences` before they are used.

    Raises:
        InputError: a latent site that is discrete or shared by all data, by name; numbers out of range; log p(x, z)
            that is not finite where a chain starts.

    References: Neal, MCMC using Hamiltonian dynamics, 2011 (https://arxiv.org/abs/1206.1901). Hoffman and Gelman, The
    No-U-Turn Sampler, JMLR 2014 (https://arxiv.org/abs/1111.4246).
    """
    plan = _Plan(chains, draws, warmup, steps, target, mass, thin, chunk)
    batch = Batch(x=data) if isinstance(data, Tensor) else data
    if not isinstance(batch, Batch) or batch.x is None or batch.size < 1:
        raise InputError("data holds no x to condition on; give a Batch with x, or x of shape (N, *D)")
    device = device_of(model, guide)
    batch = batch if device is None else batch.to(device)
    with evaluation(model, guide, seed=seed, device=device):
        at_once = min(batch.size, max(1, plan.chunk // plan.chains))
        first = batch.take(slice(0, at_once))
        with validation(True):
            if guide is not None:
                check_pair(model, guide, first)
            coordinates = Coordinates(model, first)
        transition = _Transition(coordinates, plan.steps)
        compiled = CompiledFunction(transition, "inductor" if compile else "none", "sample_posterior")
        results = _Results(plan, batch.size)
        done = 0
        for start in range(0, batch.size, at_once):
            some = batch.take(slice(start, min(start + at_once, batch.size)))
            piece = _Piece(coordinates.on(some), guide, plan, start)
            # what is left over at the end has another shape, which is not worth a compilation
            move = compiled if compile and some.size == at_once else transition.eager
            for _ in piece.run(move):
                done += some.size
                if progress is not None:
                    progress(done, batch.size * plan.transitions)
            results.put(piece, start)
    return Samples(**results.fields)


@dataclass(frozen=True)
class _Plan:
    chains: int
    draws: int
    warmup: int
    steps: int
    target: float
    mass: str
    thin: int
    chunk: int

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 0), ("steps", 1), ("thin", 1), ("chunk", 1)):
            check_count(name, getattr(self, name), least)
        if not (isinstance(self.target, float) and 0.0 < self.target < 1.0):
            raise InputError(f"target={self.target!r} must lie between 0 and 1; 0.65 to 0.9 are usual")
        if self.mass not in ("diagonal", "unit"):
            raise choose("mass", self.mass, ("diagonal", "unit"))

    @property
    def transitions(self) -> int:
        return self.warmup + self.draws * self.thin

    @property
    def windows(self) -> tuple[int, ...]:
        """Ends of the warm-up's windows: at the first the variances begin to be watched, at the others the mass is
        set from those seen since the end before."""
        if self.mass == "unit" or self.warmup < _FEWEST_WARM:
            return ()
        return self.warmup // 5, self.warmup // 2, 4 * self.warmup // 5


class _Transition(nn.Module):
    """A transition as a module of tensors, with one tensor as its result, that can be compiled."""

    def __init__(self, coordinates: Coordinates, steps: int) -> None:
        super().__init__()
        if isinstance(coordinates.model, nn.Module):
            self.model = coordinates.model
        self.coordinates = coordinates
        self.steps = steps

    def forward(self, batch: Batch, packed: Tensor, step_size: Tensor, inverse_mass: Tensor) -> tuple[None, Tensor]:
        dims = self.coordinates.size
        state = State(packed[..., :dims], packed[..., 2 * dims], packed[..., dims : 2 * dims])
        log_density = self.coordinates.on(batch).log_density
        size = spread(step_size, state.log_density)
        state, info = hmc_step(log_density, state, size, self.steps, inverse_mass)
        divergent = info.divergent.to(packed.dtype)
        return None, _pack(state, info.probability, divergent)

    def eager(self, batch: Batch, packed: Tensor, step_size: Tensor, inverse_mass: Tensor) -> Tensor:
        return self(batch, packed, step_size, inverse_mass)[1]  # type: ignore[no-any-return]


def _pack(state: State, *more: Tensor) -> Tensor:
    """(C, N, 2D + 1 + ...): position, gradient, log density, and more."""
    numbers = [t.unsqueeze(-1) for t in (state.log_density, *more)]
    return torch.cat([state.position, state.gradient, *numbers], -1)


class _Piece:
    """The chains of some of the data, from their start to their draws."""

    def __init__(self, coordinates: Coordinates, guide: Program | None, plan: _Plan, offset: int) -> None:
        self.coordinates, self.plan = coordinates, plan
        state = State.at(coordinates.log_density, coordinates.start(plan.chains, guide))
        bad = ~(state.log_density.isfinite() & state.gradient.isfinite().all(-1))
        if bool(bad.any()):
            chain, datum = bad.nonzero()[0].tolist()
            raise InputError(
                f"log p(x, z) or its gradient is {state.log_density[chain, datum].item():g} where a chain of datum "
                f"{datum + offset} starts, a draw of the {'prior' if guide is None else 'guide'}: start from another "
                "guide, or look whether x lies in the likelihood's support and the parameters are finite"
            )
        self.state = _pack(state)
        size = state.position.shape[1:]
        self.inverse_mass = torch.ones(size, dtype=self.state.dtype, device=self.state.device)
        self.step_size = torch.full_like(self.inverse_mass[:, 0], _STEP)
        self.log_joint = self.state.new_empty(plan.chains, plan.draws, size[0], device="cpu")
        self.draws: dict[str, Tensor] = {}
        self.acceptance = torch.zeros_like(self.step_size)
        self.divergences = torch.zeros_like(self.step_size)

    def run(self, move: Callable[..., Tensor]) -> Iterator[None]:
        """Do all transitions, one an item."""
        (batch,) = self.coordinates.args
        plan, size = self.plan, self.coordinates.size

        def step(step_size: Tensor) -> tuple[Tensor, Tensor]:
            packed = move(batch, self.state, step_size, self.inverse_mass)
            self.state = packed[..., : 2 * size + 1]
            return packed[..., -2], packed[..., -1]

        adapting = DualAveraging.start(self.step_size)
        seen = _Variances(self.inverse_mass)
        for t in range(plan.warmup):
            probability, _ = step(adapting.step_size)
            adapting = adapting.update(probability, plan.target)
            if plan.windows and plan.windows[0] <= t < plan.windows[-1]:
                seen.add(self.state[..., :size])
                if t + 1 in plan.windows:
                    self.inverse_mass = seen.inverse_mass()
                    seen = _Variances(self.inverse_mass)
                    # lengths are measured by other units now
                    adapting = DualAveraging.start(torch.full_like(self.step_size, _STEP))
            yield
        if plan.warmup:
            self.step_size = adapting.average
        for t in range(plan.draws * plan.thin):
            probability, divergent = step(self.step_size)
            self.acceptance += probability.mean(0)
            self.divergences += divergent.sum(0)
            if (t + 1) % plan.thin == 0:
                self._keep(t // plan.thin)
            yield
        self.acceptance /= plan.draws * plan.thin

    def _keep(self, draw: int) -> None:
        size = self.coordinates.size
        values, log_det = self.coordinates.values(self.state[..., :size])
        for name, value in values.items():
            if name not in self.draws:
                shape = (self.plan.chains, self.plan.draws, *value.shape[1:])
                self.draws[name] = value.new_empty(shape, device="cpu")
            self.draws[name][:, draw] = value
        self.log_joint[:, draw] = self.state[..., 2 * size] - log_det


class _Variances:
    """Variances of positions, over all chains and transitions seen (Welford's update)."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean, self.squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, position: Tensor) -> None:
        chains = position.shape[0]
        mean = position.mean(0)
        gap = mean - self.mean
        total = self.count + chains
        self.squares += (position - mean).square().sum(0) + gap.square() * (self.count * chains / total)
        self.mean += gap * (chains / total)
        self.count = total

    def inverse_mass(self) -> Tensor:
        """The variances, drawn a little to 1e-3: one that is estimated as 0 would stop its dimension."""
        share = self.count / (self.count + 5.0)
        return share * self.squares / max(self.count - 1, 1) + (1.0 - share) * 1e-3


class _Results:
    """Tensors for all data, made once and filled piece by piece."""

    def __init__(self, plan: _Plan, size: int) -> None:
        self.plan, self.size = plan, size
        self.fields: dict[str, Any] = {"draws": {}, "rhat": {}, "ess": {}}

    def put(self, piece: _Piece, start: int) -> None:
        for name, draws in piece.draws.items():
            self._fill(self.fields["draws"], name, draws, start, 2)
            enough = self.plan.draws >= FEWEST
            for field, judge in (("rhat", rhat), ("ess", ess)):
                found = judge(draws) if enough else draws.new_full(draws.shape[2:], math.nan, dtype=torch.float64)
                self._fill(self.fields[field], name, found, start, 0)
        self._fill(self.fields, "log_joint", piece.log_joint, start, 2)
        for field in ("acceptance", "step_size", "inverse_mass"):
            self._fill(self.fields, field, getattr(piece, field), start, 0)
        self._fill(self.fields, "divergences", piece.divergences.long(), start, 0)

    def _fill(self, into: dict[str, Any], name: str, value: Tensor, start: int, dim: int) -> None:
        if name not in into:
            shape = (*value.shape[:dim], self.size, *value.shape[dim + 1 :])
            into[name] = value.new_empty(shape, device="cpu")
        into[name].narrow(dim, start, value.shape[dim]).copy_(value)
