"""Annealed importance sampling and bidirectional Monte Carlo: log p(x) by chains that walk from a start to p(z | x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from ..batch import Batch
from ..compiled import CompiledFunction
from ..errors import InputError, check_count, choose
from ..evaluate.chunked import Data, Source, device_of, evaluation, spans
from ..evaluate.estimates import log_mean_exp
from ..mcmc import Coordinates, State, hmc_step, spread
from ..validation import validation
from ..weights import Program, check_pair, sample_sites
from .annealed import Annealed, Bidirectional
from .simulated import explained

__all__ = ["Annealed", "Bidirectional", "ais", "bdmc", "schedule"]

Progress = Callable[[int, int], None]

_CHUNK = 4096
_SHARPNESS = 4.0  # of the sigmoid
_PILOT = 200  # temperatures of the pilot run at most
_SETTLING = 30  # its transitions before the path begins
_STEP = 0.1
_RATE = 0.5  # log ε moves by so much of what the acceptance missed
_VARIANCES_FROM = 64  # draws of the start


def schedule(
    temperatures: int,
    kind: Literal["sigmoid", "linear"] = "sigmoid",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Inverse temperatures 0 = β_0 < β_1 < ... < β_T = 1, (T + 1,).

    "linear" is β_t = t/T. "sigmoid" moves slowly at both ends, where the weights vary most:

    .. math:: β_t = \frac{s_t - s_0}{s_T - s_0}, \qquad s_t = \sigma\big(δ (2t/T - 1)\big), \quad δ = 4

    Raises:
        InputError: no whole number of temperatures, 1 or more; another kind.

    Reference: Wu, Burda, Salakhutdinov and Grosse, On the quantitative analysis of decoder-based generative models,
    ICLR 2017 (https://arxiv.org/abs/1611.04273), whose schedule has δ = 4.
    """
    check_count("temperatures", temperatures)
    if kind not in ("sigmoid", "linear"):
        raise choose("schedule", kind, ("sigmoid", "linear"))
    beta = torch.linspace(0.0, 1.0, temperatures + 1, dtype=dtype)
    if kind == "linear":
        return beta
    s = torch.sigmoid(_SHARPNESS * (2.0 * beta - 1.0))
    beta = (s - s[0]) / (s[-1] - s[0])
    beta[-1] = 1.0
    return beta


def ais(
    model: Program,
    data: Data,
    *,
    guide: Program | None = None,
    temperatures: int = 1000,
    chains: int = 16,
    steps: int = 10,
    kind: Literal["sigmoid", "linear"] = "sigmoid",
    target: float = 0.8,
    chunk: int = _CHUNK,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Annealed:
    r"""log p(x) of every datum by annealed importance sampling with Hamiltonian transitions.

    .. math::
        π_β(z) ∝ p_0(z)^{1-β} \, p(x, z)^{β}, \qquad
        \log w = \sum_{t=1}^{T} (β_t - β_{t-1}) \log \frac{p(x, z_{t-1})}{p_0(z_{t-1})}, \qquad
        z_0 \sim p_0, \quad z_t \sim \mathcal{T}_{β_t}(\cdot \mid z_{t-1})

    where :math:`\mathcal{T}_β` keeps π_β exactly and p_0 is the prior, or the guide's q(z | x). The mean weight is
    unbiased for p(x) whatever the transitions are, so that log p̂(x) lies below log p(x) in expectation, the nearer the
    more temperatures there are. It needs no guide, and judges one all the better for it.

    Every chain of every datum moves at once. A pilot run of at most 200 temperatures, which is then thrown away,
    adapts each datum's step size along the path to the acceptance asked for; in the run that counts step sizes are
    what the pilot found (spread by `mcmc.spread`), so that nothing of it depends on the chains whose weights are taken.

    Memory: the weights (C, N), step sizes, and what `chunk` pairs of a chain and a datum take in one gradient.

    Args:
        model: a program over a `Batch`, all of whose latents are continuous and of a datum.
        data: a data set (dynamic binarization is drawn once), a batch with x, or x.
        guide: where chains start, q(z | x), which must be able to score a given z; None: the prior.
        temperatures: T.
        chains: C, for each datum.
        steps: leapfrog steps of a transition.
        kind: "sigmoid" or "linear", see `schedule`.
        target: the acceptance probability that step sizes are adapted to.
        chunk: pairs of a chain and a datum at once.
        seed: of random numbers of its own, leaving the default generator as it is; None: from the default generator.
        progress: called with the number of transitions done, over all chains and data, and how many there will be.
        compile: compile the transition, as `CompiledSVI` does a step; worth its seconds from thousands of transitions.

    Returns:
        `Annealed`, on the CPU in float64.

    Raises:
        InputError: a latent site that is discrete or shared by all data, by name; a guide that cannot score a z that
            it did not draw, or that draws sites which are not the model's; numbers out of range; a log-weight that is
            no number.

    References: Neal, Annealed importance sampling, Statistics and Computing 2001
    (https://arxiv.org/abs/physics/9803008). Wu et al., ICLR 2017 (https://arxiv.org/abs/1611.04273).
    """
    plan = _Plan(schedule(temperatures, kind), kind, chains, steps, target, chunk)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        (forward,) = _Run(model, guide, source, plan, progress, compile).run()
    return forward


def bdmc(
    model: Program,
    data: int | Batch = 100,
    *,
    guide: Program | None = None,
    temperatures: int = 1000,
    chains: int = 16,
    steps: int = 10,
    kind: Literal["sigmoid", "linear"] = "sigmoid",
    target: float = 0.8,
    chunk: int = _CHUNK,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Bidirectional:
    r"""log p(x) between a lower and an upper bound, on data that the model makes (bidirectional Monte Carlo).

    Of simulated data the z that made x is an exact draw from p(z | x). Annealing back from it along the same path,

    .. math::
        \log w' = -\sum_{t=T}^{1} (β_t - β_{t-1}) \log \frac{p(x, z_t)}{p_0(z_t)}, \qquad
        z_T \sim p(z \mid x), \quad z_{t-1} \sim \mathcal{T}_{β_{t-1}}(\cdot \mid z_t)

    has E[w'] = 1/p(x), and so −log of its mean lies above log p(x) in expectation. The two close in on log p(x), and
    their difference bounds the error of either: it is what to choose the number of temperatures by, for a model at
    hand. It speaks of data that the model makes; real ones may be harder.

    All chains of a datum start back from the same z: their inverse weights are not independent, which leaves the
    bound as it is, and makes its standard error too small.

    Args:
        model: as for `ais`.
        data: how many data to simulate; or a batch of what they are conditioned on, without x.
        guide, temperatures, chains, steps, kind, target, chunk, seed, progress, compile: as for `ais`.

    Returns:
        `Bidirectional`.

    Raises:
        InputError: as `ais`.

    Reference: Grosse, Ghahramani and Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015
    (https://arxiv.org/abs/1511.02543).
    """
    plan = _Plan(schedule(temperatures, kind), kind, chains, steps, target, chunk)
    if isinstance(data, Batch):
        if data.x is not None:
            raise InputError("data holds x, and data are simulated here: give what x is conditioned on, without x")
        asked = data
    else:
        asked = Batch(n=check_count("data", data))
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        device = device_of(model)
        asked = asked if device is None else asked.to(device)
        batch, latents = _simulate(model, asked)
        source = Source(batch, model, guide)
        source.description = f"{batch.size} simulated data"
        forward, reverse = _Run(model, guide, source, plan, progress, compile, latents).run()
    return Bidirectional(forward, reverse, batch.to("cpu"), {name: z.cpu() for name, z in latents.items()})


def _simulate(model: Program, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """(batch with x, latents by site) from the generative process."""
    with explained(f"{type(model).__name__} does not generate x from its prior, as data are simulated here"):
        trace = poutine.trace(model).get_trace(batch)
    values = {name: site["value"] for name, site in sample_sites(trace)}
    declared = getattr(model, "latents", ())
    made = [name for name in values if name not in declared] if declared else ["x"]
    if len(made) != 1 or made[0] not in values:
        raise InputError(
            f"data are simulated by running the model without x, and its sites {[*values]} do not say which one is x: "
            "a LatentModel declares its latents and draws one site besides them; of a function it is the site 'x'"
        )
    x = values.pop(made[0])
    return batch._replace(x=x, n=None), values


@dataclass(frozen=True)
class _Plan:
    beta: Tensor
    kind: Literal["sigmoid", "linear"]
    chains: int
    steps: int
    target: float
    chunk: int

    def __post_init__(self) -> None:
        for name in ("chains", "steps", "chunk"):
            check_count(name, getattr(self, name))
        if not (isinstance(self.target, float) and 0.0 < self.target < 1.0):
            raise InputError(f"target={self.target!r} must lie between 0 and 1; 0.65 to 0.9 are usual")

    @property
    def temperatures(self) -> int:
        return len(self.beta) - 1

    @property
    def pilot(self) -> Tensor:
        """Temperatures of the pilot run, the first of them for settling; none where nothing moves."""
        if self.temperatures == 1:
            return self.beta[:0]
        path = schedule(min(self.temperatures, _PILOT), self.kind)
        return torch.cat([path.new_zeros(_SETTLING), path[1:]])


class _State(NamedTuple):
    """Where chains are, and the parts of the path's density there: log p_0 and log p(x, z) - log p_0."""

    position: Tensor  # (C, N, D)
    start_gradient: Tensor  # (C, N, D)
    ratio_gradient: Tensor  # (C, N, D)
    log_start: Tensor  # (C, N)
    log_ratio: Tensor  # (C, N)

    def at(self, beta: Tensor) -> State:
        """For the density at an inverse temperature."""
        gradient = self.start_gradient + beta * self.ratio_gradient
        return State(self.position, self.log_start + beta * self.log_ratio, gradient)

    def chosen(self, other: _State, accepted: Tensor) -> _State:
        """The other where it is accepted."""
        pairs = zip(other, self, strict=True)
        return _State(*(torch.where(accepted if a.dim() == 2 else accepted.unsqueeze(-1), a, b) for a, b in pairs))

    def packed(self, *more: Tensor) -> Tensor:
        """(C, N, 3 D + 2 + ...)."""
        numbers = (t.unsqueeze(-1) for t in (self.log_start, self.log_ratio, *more))
        return torch.cat([self.position, self.start_gradient, self.ratio_gradient, *numbers], -1)

    @classmethod
    def unpacked(cls, packed: Tensor, size: int) -> _State:
        position, start, ratio = packed[..., : 3 * size].split(size, -1)
        return cls(position, start, ratio, packed[..., 3 * size], packed[..., 3 * size + 1])


class _Tempered:
    """log p_0 + β (log p(x, z) - log p_0), which keeps its parts of where it was last asked: at another β they need not
    be computed again."""

    def __init__(self, path: _Path, batch: Batch, beta: Tensor) -> None:
        self.path, self.batch, self.beta = path, batch, beta
        self.last: _State | None = None

    def __call__(self, position: Tensor) -> Tensor:
        return self.value_and_gradient(position)[0]

    def value_and_gradient(self, position: Tensor) -> tuple[Tensor, Tensor]:
        self.last = self.path.state(self.batch, position)
        now = self.last.at(self.beta)
        return now.log_density, now.gradient


class _Path(nn.Module):
    """The densities between a start and log p(x, z), and a transition that keeps one of them, as a module of tensors
    that can be compiled."""

    def __init__(self, coordinates: Coordinates, guide: Program | None, steps: int) -> None:
        super().__init__()
        for name, program in (("model", coordinates.model), ("guide", guide)):
            if isinstance(program, nn.Module):
                self.add_module(name, program)
        self.coordinates, self.start, self.steps = coordinates, guide, steps

    def state(self, batch: Batch, position: Tensor) -> _State:
        """Both parts and their gradients, one pass forwards and one back through each."""
        coordinates = self.coordinates.on(batch)
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            if self.start is None:
                first, second = coordinates.log_prior_and_likelihood(position)
            else:
                first = coordinates.log_guide(self.start, position)
                second = coordinates.log_density(position)
            # they may share how positions become values
            (of_first,) = torch.autograd.grad(first.sum(), position, retain_graph=True)
            (of_second,) = torch.autograd.grad(second.sum(), position)
        first, second, position = first.detach(), second.detach(), position.detach()
        if self.start is None:
            return _State(position, of_first, of_second, first, second)
        return _State(position, of_first, of_second - of_first, first, second - first)

    def forward(
        self, batch: Batch, packed: Tensor, beta: Tensor, step_size: Tensor, inverse_mass: Tensor
    ) -> tuple[None, Tensor]:
        """A transition at β: the state, acceptance and divergence, (C, N, 3 D + 4)."""
        before = _State.unpacked(packed, inverse_mass.shape[-1])
        tempered = _Tempered(self, batch, beta)
        now = before.at(beta)
        _, info = hmc_step(tempered, now, spread(step_size, now.log_density), self.steps, inverse_mass)
        assert tempered.last is not None
        after = before.chosen(tempered.last, info.accepted)
        return None, after.packed(info.probability, info.divergent.to(packed.dtype))


class _Run:
    """Annealing of all data, piece by piece.

    Args:
        exact: draws of p(z | x) by site, (N, \\*event), from which chains go back as well; None: they do not.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        source: Source,
        plan: _Plan,
        progress: Progress | None,
        compile: bool,
        exact: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.source, self.plan, self.guide, self.exact, self.progress = source, plan, guide, exact, progress
        self.rows = min(source.size, max(1, plan.chunk // plan.chains))
        first = source.batch(0, self.rows)
        with validation(True):
            if guide is not None:
                check_pair(model, guide, first)
            self.coordinates = _coordinates(model, first)
            if guide is not None:
                self.coordinates.log_guide(guide, self.coordinates.start(2, guide))  # refuses what it cannot score
        self.path = _Path(self.coordinates, guide, plan.steps)
        self.compiled = CompiledFunction(self.path, "inductor" if compile else "none", "ais")
        self.eager = CompiledFunction(self.path, "none", "ais")
        self.done = 0
        self.total = source.size * (len(plan.pilot) + plan.temperatures * (1 if exact is None else 2))

    def run(self) -> list[Annealed]:
        """The way forward, and the way back where it is asked for."""
        pieces = [self._piece(start, stop) for start, stop in spans(self.source.size, self.rows)]
        return [
            self._annealed(*(torch.cat(parts, -1) for parts in zip(*way, strict=True)), reverse=bool(reverse))
            for reverse, way in enumerate(zip(*pieces, strict=True))
        ]

    def _piece(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Some of the data: (log-weights, acceptance, divergences) of each way."""
        plan, batch = self.plan, self.source.batch(start, stop)
        coordinates = self.coordinates.on(batch)
        # what is left over at the end has another shape, which is not worth a compilation
        move = self.compiled if stop - start == self.rows else self.eager
        drawn = coordinates.start(max(_VARIANCES_FROM, plan.chains), self.guide)
        inverse_mass = drawn.var(0)
        sizes = self._pilot(move, batch, drawn[: plan.chains], inverse_mass)
        starts = [(plan.beta, coordinates.start(plan.chains, self.guide))]
        if self.exact is not None:
            z = {
                name: value[start:stop].expand(plan.chains, *value[start:stop].shape)
                for name, value in self.exact.items()
            }
            starts.append((plan.beta.flip(0), coordinates.position(z, plan.chains)))
        return [self._walk(move, batch, position, beta, sizes, inverse_mass) for beta, position in starts]

    def _pilot(self, move: CompiledFunction, batch: Batch, position: Tensor, inverse_mass: Tensor) -> Tensor:
        """log ε along the path, (P, N), by chains of its own."""
        beta = self.plan.pilot.to(position)
        log_step = torch.full_like(position[0, :, 0], math.log(_STEP))
        if not len(beta):
            return log_step.unsqueeze(0)
        found = []
        packed = self.path.state(batch, position).packed()
        for t in range(len(beta)):
            packed = move(batch, packed, beta[t], log_step.exp(), inverse_mass)
            packed, probability = packed[..., :-2], packed[..., -2]
            log_step = log_step + _RATE * (probability.mean(0) - self.plan.target)
            found.append(log_step)
            self._tick(batch.size)
        return torch.stack(found[_SETTLING - 1 :])

    def _walk(
        self,
        move: CompiledFunction,
        batch: Batch,
        position: Tensor,
        beta: Tensor,
        log_sizes: Tensor,
        inverse_mass: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(log-weights (C, N), acceptance (N,), divergences (N,)) of chains that go along `beta`."""
        backwards = bool(beta[0] > beta[-1])
        beta, last = beta.to(position), len(beta) - 1
        log_w = position.new_zeros(position.shape[:-1], dtype=torch.float64)
        acceptance, divergences = torch.zeros_like(log_w[0]), torch.zeros_like(log_w[0])
        packed = self.path.state(batch, position).packed()
        size = position.shape[-1]
        for t in range(1, last):
            log_w += (beta[t] - beta[t - 1]) * _State.unpacked(packed, size).log_ratio
            place = (last - t if backwards else t) / last
            packed = move(batch, packed, beta[t], _at(log_sizes, place).exp(), inverse_mass)
            packed, probability, divergent = packed[..., :-2], packed[..., -2], packed[..., -1]
            acceptance += probability.mean(0)
            divergences += divergent.sum(0)
            self._tick(batch.size)
        # the last temperature's weight asks for no transition
        log_w += (beta[last] - beta[last - 1]) * _State.unpacked(packed, size).log_ratio
        self._tick(batch.size)
        return log_w.cpu(), (acceptance / max(1, last - 1)).cpu(), divergences.long().cpu()

    def _annealed(self, log_w: Tensor, acceptance: Tensor, divergences: Tensor, *, reverse: bool) -> Annealed:
        if bool((bad := log_w.isnan() | (log_w == math.inf)).any()):
            chain, datum = bad.nonzero()[0].tolist()
            raise InputError(
                f"the log-weight of chain {chain} for datum {datum} of {self.source.description} is "
                f"{log_w[chain, datum].item():g}: the model's parameters are not finite, or its distributions are "
                "degenerate there"
            )
        log_mean, se = log_mean_exp(log_w)
        return Annealed(
            log_px=-log_mean if reverse else log_mean,
            se=se,
            log_w=log_w,
            acceptance=acceptance,
            divergences=divergences,
            temperatures=self.plan.temperatures,
            start="prior" if self.guide is None else "guide",
            reversed=reverse,
            data=self.source.description,
            rows=self.source.data.rows.cpu()
            if isinstance(self.source.data, Batch) and self.source.data.rows is not None
            else None,
        )

    def _tick(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)


def _coordinates(model: Program, batch: Batch) -> Coordinates:
    try:
        return Coordinates(model, batch)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the model does not run on these data: {error}") from error


def _at(values: Tensor, place: float) -> Tensor:
    """Rows (P, N) at a place from 0 to 1, linear between them."""
    where = place * (len(values) - 1)
    low = min(int(where), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return torch.lerp(values[low], values[high], where - low)
