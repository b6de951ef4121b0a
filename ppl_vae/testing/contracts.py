"""The contracts of models, guides and objectives as checks, with which every part is tested."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import pyro
import safetensors.torch
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to
from torch.nn.parameter import is_lazy

from ..batch import Batch
from ..core import Guide, LatentModel, LatentSpec
from ..objectives import ELBO, Objective, objectives
from ..quantize import Certain
from ..validation import validation
from ..weights import check_pair, is_per_datum, log_weights, point_masses, sample_sites, score_site

__all__ = ["ContractError", "check_guide", "check_model", "check_objective"]


class ContractError(AssertionError):
    """A part breaks a rule that the rest relies on; the message names the rule and the place."""


def check_model(model: LatentModel, batch: Batch) -> None:
    """Hold a model to the contract of `LatentModel`; the first test of any new one.

    - It declares its latent sites as they are: names in order, event shapes, scope, parents; every draw lies in the
      declared support, and every value of that support has a density.
    - One unscaled data plate; ``batch.x is None`` generates x of the data's shape, from torch's generator alone.
    - Any dimensions to the left: K values of the latents give what K single runs give, and so do values (C, 1, 1,
      \\*event), as an enumerated class arrives. A datum's terms do not depend on the data beside it.
    - Every parameter has a finite gradient that is not 0, under log p(x, z) at a draw z of the prior.
    - Parameters and constants move with the module; none is made lazily, none lies in Pyro's store.
    - A state dict goes through safetensors and back and gives identical results.

    The check works on copies, in evaluation mode where it compares runs, and leaves random states and Pyro's settings
    as they are.

    Args:
        model: a model with its parameters as initialized. They are shaken a little before gradients and dependence
            are looked at, for a layer that starts at 0 hides what lies behind it.
        batch: N >= 2 data that the model runs on; without x, draws of the model are taken.

    Raises:
        ContractError: the first rule that is broken.
    """
    with _isolated(batch):
        _check_module(model, "model")
        model = _copy(model)
        _seed(0)
        if batch.x is None:
            with _naming("generating x"), torch.no_grad():
                batch = batch._replace(x=model(batch).detach(), n=None)
        with _no_parameters_made(model, "model"):
            _check_declaration(model, batch)
        _shake(model)
        _check_generation(model, batch)
        with _evaluating(model):
            _check_support(model, batch)
            _check_parents(model, batch)
            _check_left_dimensions(_moved(model, (), torch.float64), _double(batch), "model")
            _check_saving(model, lambda m: _values(_log_probs(m, batch, _draws(m, batch, ()))), "model")
            _check_moves(model, batch, lambda m, b, values: _log_probs(m, b, values), "model")
        values = {name: value.detach() for name, value in _draws(model, batch, ()).items()}
        joint = sum(_log_probs(model, batch, values).values(), torch.zeros(()))
        _check_gradients({"model": model}, joint.sum(), "log p(x, z)")
        _check_module(model, "model, after a run")  # what it keeps of a run cannot be copied, and goes stale


def check_guide(guide: Guide, model: LatentModel, batch: Batch) -> None:
    """Hold a guide to the contract of `Guide`, with a model it is for; the first test of any new one.

    - The pair passes `check_pair`; sites that the model does not have are marked auxiliary; draws lie in the declared
      supports, and are returned by site.
    - Any dimensions to the left, and values (C, 1, 1, \\*event), as for models, where the guide `scores_given` draws.
    - `distribution`, where it is offered, is what the program draws from, draws nothing and opens no plate.
    - Every parameter has a finite gradient that is not 0, under the ELBO (under log q where draws pass none,
      under the one objective that trains it, `Guide.trained_by`, where there is such a one).
    - Parameters, constants, saving and seeds as for models.

    Args:
        guide, model: the pair, with parameters as initialized.
        batch: N >= 2 data, with x.

    Raises:
        ContractError: the first rule that is broken.
    """
    with _isolated(batch):
        _check_module(guide, "guide")
        model, guide = _copy((model, guide))
        _seed(0)
        with _no_parameters_made(guide, "guide"), _naming("check_pair"):
            check_pair(model, guide, batch)
        _check_draws(guide, model, batch)
        _shake(guide)
        _check_seeds(lambda: _draws(guide, batch, ()), "guide", "draws", _is_random(guide, batch))
        with _evaluating(guide), _evaluating(model):
            _check_distribution(guide, model, batch)
            if guide.scores_given:
                _check_left_dimensions(_moved(guide, (model,), torch.float64), _double(batch), "guide")
            else:
                sizes = (2, 3)
                for name, value in _draws(guide, batch, sizes).items():
                    _expect_left(name, value, sizes, model.latents.get(name), batch, "guide")
            _check_enumeration(guide, model, batch)
            _check_saving(guide, lambda g: _draws(g, batch, ()), "guide")
            score = guide.scores_given
            _check_moves(
                guide, batch, lambda g, b, values: _log_probs(g, b, values if score else {}), "guide", beside=(model,)
            )
        weights = log_weights(model, guide, batch, particles=2)
        if guide.trained_by is not None:
            own = objectives.get(guide.trained_by)()
            _check_gradients({"guide": guide}, own.differentiable_loss(model, guide, batch), type(own).__name__)
        elif weights.rigid:
            _check_gradients({"guide": guide}, weights.log_q.sum(), "log q(z | x)")
        else:
            loss = ELBO(particles=2, kl="monte-carlo").differentiable_loss(model, guide, batch)
            _check_gradients({"guide": guide}, loss, "the ELBO")
        _check_module(guide, "guide, after a run")


def check_objective(
    objective: Objective, model: LatentModel, guide: Guide, batch: Batch, without_gradient: Collection[str] = ()
) -> None:
    """Hold an objective to the contract of `Objective`, on a pair it takes; the first test of any new one.

    - `terms` gives a finite loss (N,) and logs (N,) without gradient, "elbo" or "bound" among them.
    - Its sum is `loss`, `differentiable_loss`, `loss_and_grads` (with the same gradients) and the value of
      ``objective(model, guide)(batch)``, at equal seeds; another seed gives another value,
      unless the guide's sites are all enumerated.
    - Every parameter of the pair and of the objective gets a finite gradient that is not 0.
    - State lies in buffers updated in place (a reassigned buffer or a Python number would be lost in a compiled step),
      and goes through safetensors and back.

    Args:
        objective, model, guide: parts with parameters as initialized.
        batch: N >= 2 data, with x.
        without_gradient: parameters for which none is expected, as "guide.encoder.weight", or a part, "model".

    Raises:
        ContractError: the first rule that is broken.
    """
    with _isolated(batch):
        _check_module(objective, "objective")
        _expect(
            isinstance(objective, pyro.infer.ELBO) and isinstance(objective, nn.Module),
            "an objective is a pyro.infer.ELBO and a torch.nn.Module",
        )
        objective, model, guide = _copy((objective, model, guide))
        _seed(0)
        for part in (model, guide):
            _shake(part)
        _check_terms(_copy(objective), model, guide, batch)
        _check_losses(objective, model, guide, batch)
        _check_state(objective, model, guide, batch)

        def loss(o: Objective) -> dict[str, Tensor]:
            with _naming("terms"):
                # an objective may move buffers of the pair, as of a codebook
                return {"loss": o.terms(*_copy((model, guide)), batch).loss.detach()}

        random = None if _is_summed(model, guide, batch) else _is_random(guide, batch)
        _check_seeds(lambda: loss(_copy(objective)), "objective", "loss", random)
        _seed(0)
        _shake(objective)
        parts = {"model": model, "guide": guide, "objective": objective}
        _check_gradients(parts, objective.differentiable_loss(model, guide, batch), "the loss", without_gradient)


Part = TypeVar("Part")
Values = Mapping[str, Tensor]
_REDRAWN = 20
_ENUMERATED = 2  # values (C, 1, 1, *event) of one site at a time


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


@contextmanager
def _naming(doing: str) -> Iterator[None]:
    """Errors from within a part become breaches that say what it was asked to do."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{doing}: {type(error).__name__}: {error}") from error


@contextmanager
def _isolated(batch: Batch) -> Iterator[None]:
    """Random states, Pyro's settings and Pyro's store as they were; a part that changed settings or store is named."""
    _expect(batch.size >= 2, f"the check needs a batch of 2 data or more, not {batch.size}")
    settings = pyro.settings.get()
    store = pyro.get_param_store()
    names = set(store.keys())
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the global state is the matter)
    try:
        with torch.random.fork_rng(devices=_cuda_devices()), validation(True):
            inside = pyro.settings.get()
            yield
            changed = [name for name, value in pyro.settings.get().items() if value != inside[name]]
            _expect(not changed, f"a part changed the global setting {', '.join(changed)}: settings are the caller's")
        _expect_no_store(names)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        pyro.settings.set(**{name: value for name, value in settings.items() if pyro.settings.get(name) != value})
        for name in set(store.keys()) - names:
            del store[name]


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _seed(seed: int) -> None:
    """Seed torch's generators in use; not Python's nor NumPy's, so that a part that draws from those is found out."""
    torch.default_generator.manual_seed(seed)
    for device in _cuda_devices():
        torch.cuda.default_generators[device].manual_seed(seed)


def _copy(parts: Part) -> Part:
    with _naming("copy.deepcopy (does a part keep tensors of an earlier call, as transforms with a cache do?)"):
        return copy.deepcopy(parts)


def _shake(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _moved(module: nn.Module, beside: Collection[nn.Module], to: torch.dtype | str) -> Any:
    """A copy elsewhere; with copies of the modules beside it, of which it may hold references."""
    first, *others = _copy((module, *beside))
    for part in (first, *others):
        part.to(to)
    return first


def _double(batch: Batch) -> Batch:
    floating: dict[str, Any] = {
        name: tensor.double()
        for name, tensor in batch._asdict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    return batch._replace(**floating)


def _check_module(module: Any, what: str) -> None:
    _expect(isinstance(module, nn.Module), f"the {what} is a {type(module).__name__}, not a torch.nn.Module")
    for path, part in module.named_modules():
        for name, parameter in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            lazy = is_lazy(parameter)
            _expect(
                not lazy, f"{what}: {_dotted(path, name)} is lazy: parameters are made in __init__ with their shape"
            )
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                _expect(
                    not _holds_tensor(value),
                    f"{what}: {_dotted(path, name)} holds a plain tensor: make it a buffer (register_buffer) or an "
                    "nn.Parameter, or it is neither moved nor saved with the module",
                )


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(_holds_tensor, value))
    return isinstance(value, (Tensor, Distribution))


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _expect_no_store(before: set[str]) -> None:
    made = sorted(set(pyro.get_param_store().keys()) - before)
    _expect(not made, f"{', '.join(made)} went into Pyro's store: parameters are nn.Parameters made in __init__")


@contextmanager
def _no_parameters_made(module: nn.Module, what: str) -> Iterator[None]:
    def shapes() -> dict[str, torch.Size]:
        return {name: t.shape for name, t in [*module.named_parameters(), *module.named_buffers()]}

    before, store = shapes(), set(pyro.get_param_store().keys())
    yield
    _expect_no_store(store)
    after = shapes()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    _expect(
        not changed, f"{what}: a run made, removed or reshaped {', '.join(changed)}: parameters are made in __init__"
    )


def _run(program: Callable[..., Any], batch: Batch, values: Values, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The sites of one run inside of plates of `sizes`, (\\*sizes, N), where sites in `values` have those."""
    with ExitStack() as stack:
        for dim, size in enumerate(reversed(sizes)):
            stack.enter_context(pyro.plate(f"_left_{dim}", size, dim=-2 - dim))
        conditioned = poutine.condition(program, data=dict(values)) if values else program
        return dict(sample_sites(poutine.trace(conditioned).get_trace(batch)))


def _log_probs(
    program: Callable[..., Any], batch: Batch, values: Values, sizes: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """log p of each site, (\\*sizes, N), or (\\*sizes, 1) for a global one."""
    scores: dict[str, Tensor] = {}
    for name, site in _run(program, batch, values, sizes).items():
        wanted = (*sizes, batch.size if is_per_datum(site) else 1)
        score = score_site(site)
        with _naming(f"log-probabilities of site {name!r} of shape {tuple(score.shape)}, where {wanted} belongs"):
            scores[name] = score.expand(wanted)
    return scores


def _draws(program: Callable[..., Any], batch: Batch, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Values of the sites that a program draws."""
    with _naming(f"drawing, with dimensions {sizes} left of the data"), torch.no_grad():
        return {name: s["value"] for name, s in _run(program, batch, {}, sizes).items() if not s["is_observed"]}


def _unseen(batch: Batch) -> Batch:
    return batch._replace(x=None, visible=None, observed=None, n=batch.size)


def _values(scores: Values) -> dict[str, Tensor]:
    return {name: score.detach() for name, score in scores.items()}


def _check_declaration(model: LatentModel, batch: Batch) -> None:
    declared = getattr(model, "latents", None)
    _expect(isinstance(declared, Mapping), "the model declares no latents: a mapping from site names to LatentSpec")
    assert isinstance(declared, Mapping)
    with _naming("running the model on the batch"), torch.no_grad():
        trace = poutine.trace(model).get_trace(batch)
    sites: dict[str, Any] = dict(sample_sites(trace))
    for name, site in sites.items():
        _expect(
            not isinstance(site["scale"], Tensor) and site["scale"] == 1.0,
            f"site {name!r} is scaled by {site['scale']}: the data plate is unscaled, and objectives scale",
        )
        sizes = [int(frame.size) for frame in site["cond_indep_stack"] if frame.dim == -1]
        _expect(
            sizes in ([], [batch.size]), f"site {name!r} lies in a plate of {sizes} at dim=-1 for {batch.size} data"
        )
    latent = [name for name, site in sites.items() if not site["is_observed"]]
    _expect(
        list(declared) == latent,
        f"the model declares the latent sites {list(declared)} and draws {latent}, in this order",
    )
    _expect(len(latent) < len(sites), "no site is observed, though the batch has x")
    for name, spec in declared.items():
        site = sites[name]
        came = tuple(site["fn"].event_shape)
        _expect(
            came == tuple(spec.event_shape),
            f"site {name!r} has events of shape {came} and declares {tuple(spec.event_shape)}",
        )
        scope = "datum" if is_per_datum(site) else "global"
        where = "inside" if scope == "datum" else "outside of"
        _expect(scope == spec.scope, f"site {name!r} lies {where} the data plate and declares scope={spec.scope!r}")
    for name in set(sites) - set(latent):
        _expect(is_per_datum(sites[name]), f"the observed site {name!r} lies outside of the data plate")


def _check_generation(model: LatentModel, batch: Batch) -> None:
    assert batch.x is not None
    shape = tuple(batch.x.shape)

    def generate() -> dict[str, Tensor]:
        with _naming("generating, with batch.x None"), torch.no_grad():
            x = model(_unseen(batch))
        _expect(isinstance(x, Tensor) and tuple(x.shape) == shape, f"the model returns x of another shape than {shape}")
        assert isinstance(x, Tensor)
        _expect(bool(torch.isfinite(x).all()), "the model generates values that are not finite")
        with _naming("scoring what the model itself generated, with batch.x given"), torch.no_grad():
            model(batch._replace(x=x))
        return {"x": x, **_draws(model, batch, ())}

    _check_seeds(generate, "model", "draws")


def _is_random(guide: Guide, batch: Batch) -> bool:
    """Whether some site of the guide is no point mass, and not sure of its value."""
    with _naming("running the guide on the batch"), torch.no_grad():
        trace = poutine.trace(guide).get_trace(batch)
    sure = [name for name, site in sample_sites(trace) if isinstance(site["fn"], Certain)]
    return len(point_masses(trace)) + len(sure) < len(sample_sites(trace))


def _is_summed(model: LatentModel, guide: Guide, batch: Batch) -> bool:
    """Whether all sites of the guide are enumerated, but for point masses: an objective that sums over their values has
    no random number."""
    with _naming("log_weights"), torch.no_grad():
        w = log_weights(model, guide, batch)
        points = point_masses(poutine.trace(guide).get_trace(batch)) if w.enumerated else ()
    return set(w.log_guide) == {*w.enumerated, *points}


def _check_seeds(draw: Callable[[], Values], what: str, drawn: str, random: bool | None = True) -> None:
    """
    Args:
        random: whether draws depend on the seed; None: they may.
    """
    results = []
    for seed in (0, 0, 1):
        _seed(seed)
        results.append(draw())
    first, again, other = results
    different = [name for name in first if not torch.equal(first[name], again[name])]
    _expect(
        not different,
        f"{what}: {', '.join(different)} differ after equal seeds: all randomness comes from torch's default generator",
    )
    same = all(torch.equal(first[name], other[name]) for name in first)
    depends = "are the same whatever" if random else "of point masses depend on"
    _expect(random is None or same != random, f"{what}: the {drawn} {depends} the seed")


def _check_support(model: LatentModel, batch: Batch) -> None:
    draws = _draws(model, batch, ())
    for name, spec in model.latents.items():
        _expect_support(name, draws[name], spec)
        if spec.support.is_discrete:
            continue
        # and the other way round: any value there must have a density
        bijection = biject_to(spec.support)
        free = bijection.inverse_shape(draws[name].shape)  # a simplex has one dimension less
        value = bijection(torch.randn(free).to(draws[name]))
        with _naming(f"site {name!r} declares the support {spec.support}, but there is no density at {value[:1]}"):
            score = _log_probs(model, batch, {**draws, name: value})[name]
            _expect(bool(torch.isfinite(score).all()), "it is not finite")


def _expect_support(name: str, value: Tensor, spec: LatentSpec) -> None:
    _expect(bool(spec.support.check(value).all()), f"site {name!r} draws values outside of its support {spec.support}")


def _check_parents(model: LatentModel, batch: Batch) -> None:
    values, others = _draws(model, batch, ()), _draws(model, batch, ())
    names = list(model.latents)
    for _ in range(_REDRAWN):
        # a class may be drawn twice alike
        if not (alike := [name for name in names if torch.equal(values[name], others[name])]):
            break
        again = _draws(model, batch, ())
        others = {**others, **{name: again[name] for name in alike}}
    with torch.no_grad():
        scores = _log_probs(model, batch, values)
        for i, name in enumerate(names):
            declared = model.latents[name].parents
            strangers = [parent for parent in declared if parent not in names[:i]]
            _expect(not strangers, f"site {name!r} declares the parents {strangers}, which are not drawn before it")
            actual = [
                other
                for other in names[:i]
                if not torch.equal(_log_probs(model, batch, {**values, other: others[other]})[name], scores[name])
            ]
            _expect(
                set(actual) == set(declared),
                f"site {name!r} depends on {actual} and declares the parents {list(declared)}",
            )


def _check_left_dimensions(program: nn.Module, batch: Batch, what: str) -> None:
    n = batch.size
    per_datum = {name: is_per_datum(site) for name, site in _run(program, batch, {}, ()).items()}

    def single(values: Values, index: tuple[int, ...]) -> dict[str, Tensor]:
        return {name: value[index] if per_datum[name] else value[index][0] for name, value in values.items()}

    def full(name: str, value: Tensor, sizes: tuple[int, ...]) -> Tensor:
        event = value.shape[len(sizes) + 1 :]
        with _naming(f"{what}: site {name!r} draws {tuple(value.shape)} under dimensions {sizes}"):
            return value.expand(*sizes, n if per_datum[name] else 1, *event)

    for sizes in ((3,), (2, 2)):
        drawn = _draws(program, batch, sizes)
        values = {name: full(name, value, sizes) for name, value in drawn.items()}
        with _naming(f"{what}: {sizes} values at a time of shape {_shapes(values)}"), torch.no_grad():
            together = _log_probs(program, batch, values, sizes)
        for index in np.ndindex(*sizes):
            with torch.no_grad():
                alone = _log_probs(program, batch, single(values, index))
            for name, score in alone.items():
                _expect(
                    score.dtype == torch.float64, f"{what}: site {name!r} stays in {score.dtype} after .to(float64)"
                )
                _expect_close(
                    together[name][index], score, f"{what}: site {name!r} with dimensions {sizes} left of the data"
                )
    sizes = (3,)
    values = {name: full(name, value, sizes) for name, value in _draws(program, batch, sizes).items()}
    for name in values:
        # (C, 1, 1, *event): the same value for every datum and particle
        event = values[name].shape[2:]
        classes = values[name][:_ENUMERATED, 0].reshape(_ENUMERATED, 1, 1, *event)
        doing = f"{what}: site {name!r} with values of shape {tuple(classes.shape)}, as an enumerated one has"
        with _naming(doing), torch.no_grad():
            sites = _run(program, batch, {**values, name: classes}, sizes)
            together = {
                other: score_site(site).expand(_ENUMERATED, *sizes, n if per_datum[other] else 1)
                for other, site in sites.items()
            }
            for c, k in np.ndindex(_ENUMERATED, *sizes):
                one = single(values, (k,))
                one[name] = classes[c, 0, 0].expand(n, *event) if per_datum[name] else classes[c, 0, 0]
                for other, score in _log_probs(program, batch, one).items():
                    _expect_close(together[other][c, k], score, doing)
    rows = torch.tensor([n - 1, 0])
    one = single(values, (0,))
    few = {name: value[rows.to(value.device)] if per_datum[name] else value for name, value in one.items()}
    with _naming(f"{what}: on 2 of the {n} data"), torch.no_grad():
        part = _log_probs(program, batch.take(rows), few)
    with torch.no_grad():
        whole = _log_probs(program, batch, one)
    for name, score in part.items():
        wanted = whole[name][rows] if per_datum[name] else whole[name]
        _expect_close(score, wanted, f"{what}: site {name!r} of a datum depends on the data beside it")


def _shapes(values: Values) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


def _expect_close(a: Tensor, b: Tensor, what: str) -> None:
    close = torch.allclose(a, b, rtol=1e-8, atol=1e-8)
    _expect(close, f"{what}: differs from single runs by up to {(a - b).abs().max().item():.3g} nats")


def _expect_left(
    name: str, value: Tensor, sizes: tuple[int, ...], spec: LatentSpec | None, batch: Batch, what: str
) -> None:
    if spec is not None:
        wanted = (*sizes, batch.size if spec.scope == "datum" else 1, *spec.event_shape)
        with _naming(f"{what}: site {name!r} draws {tuple(value.shape)} where {wanted} belongs"):
            value.expand(wanted)


def _check_draws(guide: Guide, model: LatentModel, batch: Batch) -> None:
    with _naming("running the guide on the batch"), torch.no_grad():
        trace = poutine.trace(guide).get_trace(batch)
    returned: Any = trace.nodes["_RETURN"]["value"]
    _expect(isinstance(returned, Mapping), "the guide does not return its draws by site, a mapping")
    sites = dict(sample_sites(trace))
    for name, spec in model.latents.items():
        _expect(
            name in returned and returned[name] is sites[name]["value"],
            f"the guide does not return its draw of {name!r}",
        )
        _expect_support(name, sites[name]["value"], spec)
    stray = [name for name, site in sites.items() if site["is_observed"] and not site["infer"].get("is_auxiliary")]
    _expect(not stray, f"the guide observes {stray}: a guide only draws (a factor is marked auxiliary by pyro.factor)")


def _check_distribution(guide: Guide, model: LatentModel, batch: Batch) -> None:
    state = torch.get_rng_state()
    try:
        with _naming("distribution(batch)"), torch.no_grad(), poutine.trace() as tracer:
            by_site = guide.distribution(batch)
    except ContractError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return
        raise
    nodes = [name for name, node in tracer.trace.nodes.items() if node["type"] == "sample"]
    _expect(not nodes, f"distribution(batch) runs the sites {nodes}: it draws nothing and opens no plate")
    _expect(torch.equal(state, torch.get_rng_state()), "distribution(batch) takes random numbers: it draws nothing")
    _expect(set(by_site) == set(model.latents), f"distribution(batch) has {sorted(by_site)}, not the model's latents")
    draws = _draws(guide, batch, ())
    with torch.no_grad():
        scores = _log_probs(guide, batch, draws) if guide.scores_given else {}
        auxiliary = sorted(scores.keys() - model.latents.keys())
        for name, q in by_site.items():
            _expect(
                tuple(q.event_shape) == tuple(model.latents[name].event_shape),
                f"distribution(batch)[{name!r}] has events {tuple(q.event_shape)}",
            )
            if guide.scores_given and not auxiliary:
                same = torch.allclose(
                    q.log_prob(draws[name]).expand(scores[name].shape), scores[name], rtol=1e-4, atol=1e-4
                )
                _expect(same, f"distribution(batch)[{name!r}] is not what the program draws from")
        if guide.scores_given and auxiliary:
            # a component and a factor, say: log q is of all sites together
            ours, whole = sum(q.log_prob(draws[name]) for name, q in by_site.items()), sum(scores.values())
            _expect(
                torch.allclose(torch.as_tensor(ours), torch.as_tensor(whole), rtol=1e-4, atol=1e-4),
                f"distribution(batch) is not what the program draws from, with {', '.join(auxiliary)}",
            )


def _check_enumeration(guide: Guide, model: LatentModel, batch: Batch) -> None:
    particles = 3
    with _naming("log_weights"), torch.no_grad():
        w = log_weights(model, guide, batch, particles=particles)
    for name, score in {**w.log_prior, **w.log_guide}.items():
        data = 1 if name in w.shared else w.size
        with _naming(
            f"site {name!r} has log-probabilities {tuple(score.shape)} where (*C, {particles}, {data}) belongs"
        ):
            score.expand(*score.shape[:-2], particles, data)
        _expect(bool(torch.isfinite(score).all()), f"site {name!r} has log-probabilities that are not finite")
    if w.enumerated:
        # of all of them: one may depend on another
        total = w.log_q_enumerated.logsumexp(tuple(range(w.log_q_enumerated.dim() - 2)))
        _expect(
            torch.allclose(total, torch.zeros_like(total), atol=1e-4),
            f"the probabilities of the enumerated site {', '.join(map(repr, w.enumerated))} do not sum to 1",
        )


def _check_saving(module: nn.Module, use: Callable[[Any], Values], what: str) -> None:
    other, used = _copy(module), _copy(module)
    wanted = _seeded(lambda: use(used))  # a use may change state: the module is saved as it was before
    with _naming(f"{what}: through safetensors and back"):
        saved = safetensors.torch.save({k: v.detach().contiguous() for k, v in module.state_dict().items()})
        _spoil(other)
        other.load_state_dict(safetensors.torch.load(saved))
    got = _seeded(lambda: use(other))
    different = [name for name, value in wanted.items() if not torch.equal(value, got[name])]
    _expect(
        not different, f"{what}: {', '.join(different)} differ after saving and loading: state_dict is not all of it"
    )


def _seeded(use: Callable[[], Values]) -> Values:
    with torch.random.fork_rng(devices=_cuda_devices()):
        _seed(7)
        return use()


def _spoil(module: nn.Module) -> None:
    """Other parameters, and other buffers among those that are saved."""
    saved = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in [*module.parameters(), *saved.values()]:
            if tensor.is_floating_point():
                tensor.add_(1.0 + torch.rand_like(tensor))


def _check_moves(
    module: nn.Module,
    batch: Batch,
    use: Callable[[Any, Batch, Values], Values],
    what: str,
    beside: Collection[nn.Module] = (),
) -> None:
    """To the device "meta", which has shapes and no data, and refuses to be mixed with any other."""
    values = {name: value.to("meta") for name, value in _draws(module, batch, ()).items()}
    moved = _moved(module, beside, "meta")
    try:
        with validation(False), torch.no_grad():
            scores = use(moved, batch.to("meta"), values)
    except NotImplementedError:  # an operation that has no shape function: nothing can be said
        return
    except Exception as error:
        raise ContractError(
            f"{what}: does a constant stay behind when the module moves to another device? {error}"
        ) from error
    behind = [name for name, score in scores.items() if score.device.type != "meta"]
    _expect(not behind, f"{what}: {', '.join(behind)} stay behind when the module moves to another device")


def _check_gradients(parts: Mapping[str, nn.Module], loss: Tensor, of: str, without: Collection[str] = ()) -> None:
    parameters = {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    expected = {
        name: parameter
        for name, parameter in parameters.items()
        if not any(name == skip or name.startswith(f"{skip}.") for skip in without)
    }
    if not expected:
        return
    _expect(loss.requires_grad, f"{of} depends on no parameter: {', '.join(expected)} get no gradient")
    gradients = torch.autograd.grad(loss, list(expected.values()), allow_unused=True)
    by_name = dict(zip(expected, gradients, strict=True))
    missing = [name for name, gradient in by_name.items() if gradient is None]
    zero = [name for name, gradient in by_name.items() if gradient is not None and not bool(gradient.any())]
    infinite = [
        name for name, gradient in by_name.items() if gradient is not None and not bool(gradient.isfinite().all())
    ]
    breaches = {"get no gradient": missing, "get a gradient of 0": zero, "get a gradient that is not finite": infinite}
    _expect(
        not any(breaches.values()),
        f"under {of}, " + "; ".join(f"{', '.join(names)} {what}" for what, names in breaches.items() if names),
    )


def _check_terms(objective: Objective, model: LatentModel, guide: Guide, batch: Batch) -> None:
    with _naming("terms"):
        loss, logs = objective.terms(model, guide, batch)
    wanted = (batch.size,)
    _expect(
        tuple(loss.shape) == wanted,
        f"terms: the loss has shape {tuple(loss.shape)}, where {wanted}, one a datum, belongs",
    )
    _expect(bool(torch.isfinite(loss).all()), "terms: the loss is not finite")
    _expect("elbo" in logs or "bound" in logs, f'terms: the logs {sorted(logs)} have neither "elbo" nor "bound"')
    for name, log in logs.items():
        _expect(tuple(log.shape) == wanted, f"terms: the log {name!r} has shape {tuple(log.shape)}, not {wanted}")
        _expect(not log.requires_grad, f"terms: the log {name!r} keeps its graph: detach it")
        _expect(bool(torch.isfinite(log).all()), f"terms: the log {name!r} is not finite")


def _check_losses(objective: Objective, model: LatentModel, guide: Guide, batch: Batch) -> None:
    """`terms`, `loss`, `differentiable_loss`, `loss_and_grads` and the module, each from the same state and seed."""

    def fresh() -> tuple[Objective, LatentModel, Guide]:
        parts = _copy((objective, model, guide))
        for part in parts:
            for parameter in part.parameters():
                parameter.grad = None
        _seed(3)
        return parts

    def gradients(parts: tuple[Objective, LatentModel, Guide]) -> list[Tensor]:
        return [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for part in parts
            for parameter in part.parameters()
        ]

    o, m, g = fresh()
    total = o.terms(m, g, batch).loss.sum().detach()
    o, m, g = fresh()
    differentiable = o.differentiable_loss(m, g, batch)
    if differentiable.requires_grad:
        differentiable.backward()
    wanted = gradients((o, m, g))
    values: dict[str, Any] = {"differentiable_loss": differentiable.detach()}
    o, m, g = fresh()
    values["loss"] = o.loss(m, g, batch)
    _expect(isinstance(values["loss"], float), f"loss returns a {type(values['loss']).__name__}, not a number")
    if differentiable.requires_grad:
        parts = fresh()
        values["loss_and_grads"] = parts[0].loss_and_grads(*parts[1:], batch)
        for a, b in zip(gradients(parts), wanted, strict=True):
            scale = 1e-5 * (1.0 + b.abs().max()) if b.numel() else 0.0
            _expect(
                bool(((a - b).abs() <= scale).all()), "loss_and_grads leaves other gradients than differentiable_loss"
            )
    o, m, g = fresh()
    values["objective(model, guide)(batch)"] = o(m, g)(batch).detach()
    for name, value in values.items():
        difference = abs(float(value) - float(total))
        _expect(
            difference <= 1e-5 * (1.0 + abs(float(total))),
            f"{name} is {float(value):.6g}, the sum of the terms over the batch {float(total):.6g}",
        )


def _check_state(objective: Objective, model: LatentModel, guide: Guide, batch: Batch) -> None:
    def numbers(o: Objective) -> dict[str, Any]:
        return {
            _dotted(path, name): value
            for path, part in o.named_modules()
            for name, value in vars(part).items()
            if isinstance(value, (int, float, str))
        }

    o = _copy(objective)
    o.terms(model, guide, batch)  # the first call looks at the pair
    plain, tensors = numbers(o), {**dict(o.named_buffers()), **dict(o.named_parameters())}
    o.terms(model, guide, batch)
    after = {**dict(o.named_buffers()), **dict(o.named_parameters())}
    replaced = sorted(name for name in tensors.keys() | after.keys() if tensors.get(name) is not after.get(name))
    _expect(
        not replaced,
        f"the buffer {', '.join(replaced)} is replaced instead of updated in place (copy_, add_): a compiled step and "
        "an optimizer would lose it",
    )
    moved = sorted(name for name, value in numbers(o).items() if plain.get(name, value) != value)
    _expect(not moved, f"{', '.join(moved)} changes from call to call: state is kept in buffers, or it is not saved")
    _check_module(o, "objective")
    _check_saving(o, lambda o: {"loss": o.terms(*_copy((model, guide)), batch).loss.detach()}, "objective")
