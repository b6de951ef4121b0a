"""The checks themselves: each broken part is refused, for the reason it is broken."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    SHAPE,
    BottomUp,
    GlobalGuide,
    GlobalWeight,
    Linear,
    MixtureGuide,
    TwoLayer,
    binary_batch,
    guide_for,
    normal,
    pair,
    vae,
)
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import ELBO, IWAE, Batch, Guide, LatentModel, LatentSpec, models
from ppl_vae.objectives import Objective, Terms
from ppl_vae.testing import ContractError, check_guide, check_model, check_objective
from ppl_vae.testing import contracts as contracts_module


class Plain(LatentModel):
    """A sound model, of which each test breaks one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([3]))}
        self.decoder = nn.Sequential(Linear(3, 5), nn.Tanh(), Linear(5, 6))
        self.register_buffer("zero", torch.zeros(3, dtype=torch.float64))

    def prior(self) -> dist.Independent:
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Independent:
        return dist.Bernoulli(logits=self.decoder(z).unflatten(-1, SHAPE)).to_event(3)

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=batch.x)


class Encoded(Guide):
    """A sound guide for it."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Linear(6, 5), nn.Tanh(), Linear(5, 6))

    def distribution(self, batch: Batch) -> dict[str, Any]:
        return {"z": normal(self.encoder(batch.x.flatten(1)))}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", self.distribution(batch)["z"])}


def test_sound_parts_pass() -> None:
    model = Plain()
    check_model(model, binary_batch())
    check_guide(Encoded(model), model, binary_batch())
    check_objective(ELBO(), model, Encoded(model), binary_batch())


def test_a_model_is_checked_on_its_own_draws_where_there_are_no_data() -> None:
    check_model(Plain(), Batch(n=4))


# ---------------------------------------------------------------- models


class NotDeclared(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents = {}


class OtherName(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents = {"latent": LatentSpec(torch.Size([3]))}


class OtherEvent(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([4]))}


class OtherScope(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([3]), scope="global")}


class NarrowerSupport(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents = {"z": LatentSpec(torch.Size([3]), constraints.positive)}


class WiderSupport(Plain):
    def prior(self) -> dist.Independent:
        return dist.LogNormal(self.zero, torch.ones_like(self.zero)).to_event(1)


class Parentless(TwoLayer):
    def __init__(self) -> None:
        super().__init__()
        self.latents["z1"] = LatentSpec(torch.Size([3]))


class WrongOrder(TwoLayer):
    def __init__(self) -> None:
        super().__init__()
        self.latents = dict(reversed(self.latents.items()))


class InventedParent(TwoLayer):
    def __init__(self) -> None:
        super().__init__()
        self.latents["z2"] = LatentSpec(torch.Size([2]), parents=("z1",))


class NoPlate(Plain):
    def forward(self, batch: Batch) -> Tensor:
        z = pyro.sample("z", self.prior().expand([batch.size]))
        return pyro.sample("x", self.likelihood(z), obs=batch.x)


class Scaled(Plain):
    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1), pyro.poutine.scale(scale=2.0):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=batch.x)


class ParticlesIntoFeatures(Plain):
    """Shapes come out right: only values show that particles were mixed up."""

    def likelihood(self, z: Tensor) -> dist.Independent:
        mixed = z.reshape(3, -1).T.reshape(z.shape) if z.dim() > 2 else z
        return super().likelihood(mixed)


class OneLeftDimension(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        return dist.Bernoulli(logits=self.decoder(z).reshape(z.shape[0], *SHAPE)).to_event(3)


class Concatenates(Plain):
    """`torch.cat` refuses an enumerated value's singleton dimensions; `networks.join` broadcasts them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Linear(4, 6)

    def likelihood(self, z: Tensor) -> dist.Independent:
        left = (*z.shape[:-2], 5, 1)
        return super().likelihood(torch.cat([z, torch.ones(left).to(z)], dim=-1))


class MixesData(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z - z.mean(-2, keepdim=True))


class PlainConstant(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.ones(3, dtype=torch.float64)

    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z + self.shift)


class HiddenDistribution(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.settings = {"prior": dist.Normal(0.0, 1.0)}


class ConstantMadeOnTheCpu(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z + torch.ones(3, dtype=torch.float64))


class StaysInSinglePrecision(Plain):
    def prior(self) -> dist.Independent:
        return dist.Normal(self.zero.float(), torch.ones_like(self.zero).float()).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z.to(self.zero.dtype))


class LazyDecoder(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.LazyLinear(6, dtype=torch.float64)


class GrowsAParameter(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        return super().likelihood(z + self.late)


class UsesTheStore(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z + pyro.param("shift", torch.zeros(3).to(z)))


class UnusedParameter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.idle = Linear(2, 2)


class DetachedDecoder(Plain):
    def likelihood(self, z: Tensor) -> dist.Independent:
        hidden = self.decoder[:2](z).detach()
        return dist.Bernoulli(logits=self.decoder[2](hidden).unflatten(-1, SHAPE)).to_event(3)


class StillParameter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.still = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def likelihood(self, z: Tensor) -> dist.Independent:
        return super().likelihood(z + 0.0 * self.still)


class GradientNotANumber(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def likelihood(self, z: Tensor) -> dist.Independent:
        root = (self.raw * 0.0).sqrt()  # 0, whose root has no derivative
        return super().likelihood(z + self.raw + root)


class GeneratesOtherShape(Plain):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch).flatten(1)


class CannotGenerate(Plain):
    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=batch.x)


class NothingObserved(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.latents["x"] = LatentSpec(torch.Size(SHAPE), constraints.boolean, parents=("z",))

    def forward(self, batch: Batch) -> Tensor:
        return super().forward(Batch(n=batch.size))


class DrawsFromNumPy(Plain):
    def prior(self) -> dist.Independent:
        return dist.Normal(self.zero + float(np.random.rand()), torch.ones_like(self.zero)).to_event(1)  # noqa: NPY002


class DrawsFromPython(Plain):
    def prior(self) -> dist.Independent:
        return dist.Normal(self.zero + random.random(), torch.ones_like(self.zero)).to_event(1)


class SameDraws(Plain):
    def forward(self, batch: Batch) -> Tensor:
        torch.manual_seed(0)
        return super().forward(batch)


class SwitchesValidation(Plain):
    def forward(self, batch: Batch) -> Tensor:
        pyro.enable_validation(False)
        return super().forward(batch)


def forget(state: dict[str, Any], name: str) -> None:
    del state[name]


class LosesState(Plain):
    def __init__(self) -> None:
        super().__init__()
        self._register_state_dict_hook(lambda module, state, prefix, _: forget(state, prefix + "decoder.0.bias"))

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False, assign=assign)


class NotCopied(Plain):
    """Keeps a tensor with its graph from call to call, as an unconditional flow's cache does."""

    def likelihood(self, z: Tensor) -> dist.Independent:
        q = super().likelihood(z)
        self.decoder.kept = [q.base_dist.logits]
        return q


BROKEN_MODELS: list[tuple[type[LatentModel], str]] = [
    (NotDeclared, r"declares the latent sites \[\] and draws \['z'\]"),
    (OtherName, r"declares the latent sites \['latent'\]"),
    (OtherEvent, r"events of shape \(3,\) and declares \(4,\)"),
    (OtherScope, "declares scope='global'"),
    (NarrowerSupport, "draws values outside of its support"),
    (WiderSupport, "declares the support Real.*no density"),
    (Parentless, r"'z1' depends on \['z2'\] and declares the parents \[\]"),
    (WrongOrder, "in this order"),
    (InventedParent, "not drawn before it"),
    (NoPlate, "data plate"),
    (Scaled, "scaled by 2"),
    (ParticlesIntoFeatures, "differs from single runs"),
    (OneLeftDimension, r"with dimensions \(3,\) left of the data"),
    (Concatenates, "as an enumerated one has"),
    (MixesData, "depends on the data beside it"),
    (PlainConstant, "model: shift holds a plain tensor"),
    (HiddenDistribution, "settings holds a plain tensor"),
    (ConstantMadeOnTheCpu, "stay behind when the module moves"),
    (StaysInSinglePrecision, r"stays in torch.float32 after .to\(float64\)"),
    (LazyDecoder, "decoder.weight is lazy"),
    (GrowsAParameter, "a run made, removed or reshaped late"),
    (UsesTheStore, "shift went into Pyro's store"),
    (UnusedParameter, "model.idle.weight, model.idle.bias get no gradient"),
    (DetachedDecoder, "model.decoder.0.weight, model.decoder.0.bias get no gradient"),
    (StillParameter, "model.still get a gradient of 0"),
    (GradientNotANumber, "model.raw get a gradient that is not finite"),
    (GeneratesOtherShape, "x of another shape"),
    (CannotGenerate, "generating, with batch.x None"),
    (NothingObserved, "no site is observed"),
    (DrawsFromNumPy, "differ after equal seeds"),
    (DrawsFromPython, "differ after equal seeds"),
    (SameDraws, "the same whatever the seed"),
    (SwitchesValidation, "changed the global setting"),
    (LosesState, "differ after saving and loading"),
    (NotCopied, "after a run: decoder.kept holds a plain tensor"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN_MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_model_is_refused(broken: type[LatentModel], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_model(broken(), binary_batch())


# ---------------------------------------------------------------- guides


class MissesASite(BottomUp):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {"z1": pyro.sample("z1", normal(self.to_z1(batch.x.flatten(1))))}


class ExtraSite(Encoded):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("u", dist.Normal(torch.zeros_like(batch.x[:, 0, 0, 0]), 1.0))
            return {"z": pyro.sample("z", self.distribution(batch)["z"])}


class NoEvent(Encoded):
    def distribution(self, batch: Batch) -> dict[str, Any]:
        return {"z": super().distribution(batch)["z"].base_dist}


class ReturnsNothing(Encoded):
    def forward(self, batch: Batch) -> None:  # type: ignore[override]
        super().forward(batch)


class ReturnsOther(Encoded):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"z": super().forward(batch)["z"] + 1.0}


class OtherDistribution(Encoded):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        q = self.distribution(batch)["z"].base_dist
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", dist.Normal(q.loc, q.scale**2).to_event(1))}


class DistributionDraws(Encoded):
    def distribution(self, batch: Batch) -> dict[str, Any]:
        q = super().distribution(batch)
        return {"z": q["z"]} if torch.rand(()) >= 0 else {}


class DistributionOpensThePlate(Encoded):
    def distribution(self, batch: Batch) -> dict[str, Any]:
        with pyro.plate("data", batch.size, dim=-1):
            return super().distribution(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        q = Encoded.distribution(self, batch)
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", q["z"])}


class DetachedGuide(Encoded):
    def distribution(self, batch: Batch) -> dict[str, Any]:
        q = super().distribution(batch)["z"].base_dist
        return {"z": dist.Normal(q.loc.detach(), q.scale.detach()).to_event(1)}


class GuideMixesParticles(BottomUp):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            z1 = pyro.sample("z1", normal(self.to_z1(batch.x.flatten(1))))
            mixed = z1.flip(0) if z1.dim() > 2 else z1
            z2 = pyro.sample("z2", normal(self.to_z2(mixed)))
        return {"z2": z2, "z1": z1}


class GuidePlainConstant(Encoded):
    def __init__(self, model: LatentModel) -> None:
        super().__init__(model)
        self.constants = (torch.ones(()),)


class GuideSeed(Encoded):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return super().forward(batch)


class GlobalInsideThePlate(GlobalGuide):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            w = pyro.sample("w", dist.Normal(self.loc, self.raw.exp()).to_event(1))
            return {"w": w, "z": pyro.sample("z", normal(self.to_z(batch.x)))}


BROKEN_GUIDES: list[tuple[type[Guide], type[LatentModel], str]] = [
    (MissesASite, TwoLayer, "misses the model's latent site 'z2'"),
    (ExtraSite, Plain, "site 'u', which the model has not"),
    (NoEvent, Plain, "check_pair"),
    (ReturnsNothing, Plain, "does not return its draws"),
    (ReturnsOther, Plain, "does not return its draw of 'z'"),
    (OtherDistribution, Plain, "is not what the program draws from"),
    (DistributionDraws, Plain, "takes random numbers"),
    (DistributionOpensThePlate, Plain, "opens no plate"),
    (DetachedGuide, Plain, "guide.encoder.0.weight, .*get no gradient"),
    (GuideMixesParticles, TwoLayer, "differs from single runs"),
    (GuidePlainConstant, Plain, "guide: constants holds a plain tensor"),
    (GuideSeed, Plain, "the same whatever the seed"),
    (Encoded, NarrowerSupport, "draws values outside of its support"),
    (GlobalInsideThePlate, GlobalWeight, "inside the data plate in one of model and guide"),
]


@pytest.mark.parametrize(
    ("broken", "model_class", "message"), BROKEN_GUIDES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_guide_is_refused(broken: type[Guide], model_class: type[LatentModel], message: str) -> None:
    model = model_class()
    batch = Batch(x=torch.randn(5, 6, dtype=torch.float64)) if model_class is GlobalWeight else binary_batch()
    with pytest.raises(ContractError, match=message):
        check_guide(broken(model), model, batch)


class MixtureOf(MixtureGuide):
    """A mixture that says what it draws from: of one component more weight than it has, if `tilt` is not 0."""

    tilt = 0.0

    def distribution(self, batch: Batch) -> dict[str, Any]:
        log_weights, loc, scale = self.parts(batch)
        weights = dist.Categorical(logits=log_weights + self.tilt * self.eye[0])
        return {"z": dist.MixtureSameFamily(weights, dist.Normal(loc, scale).to_event(1))}


class OtherMixture(MixtureOf):
    tilt = 0.5


def test_a_guide_with_auxiliary_sites_is_judged_by_all_of_its_sites_together() -> None:
    """Of z the program scores a component, and says by a factor what the mixture adds."""
    model = vae()
    check_guide(MixtureOf(model), model, binary_batch())
    with pytest.raises(ContractError, match="is not what the program draws from, with component, mixture"):
        check_guide(OtherMixture(model), model, binary_batch())


# ---------------------------------------------------------------- objectives


class MeanInLoss(ELBO):
    def differentiable_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.terms(*args, **kwargs).loss.mean()


class LossOfTensors(ELBO):
    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.differentiable_loss(*args, **kwargs).detach()


class OtherGradients(ELBO):
    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(*args, **kwargs)
        (2.0 * loss).backward()
        return loss.item()


class SkipsGradients(ELBO):
    """As Pyro's losses do where no parameter is in the store."""

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        return self.loss(*args, **kwargs)


class LossByParticle(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(*args, **kwargs)
        return Terms(-w.log_w, {"elbo": w.log_w.detach()[0]})


class LogsWithGraph(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        loss, _ = super().terms(*args, **kwargs)
        return Terms(loss, {"elbo": -loss})


class LogsWithoutBound(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        return Terms(super().terms(*args, **kwargs).loss, {})


class InfiniteLoss(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        loss, logs = super().terms(*args, **kwargs)
        return Terms(loss / 0.0, logs)


class ReplacesBuffer(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        self.kl_weight = self.kl_weight * 1.0
        return super().terms(*args, **kwargs)


class CountsInPython(ELBO):
    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        self.count += 1
        return super().terms(*args, **kwargs)


class KeepsATensor(ELBO):
    last: Any = None

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        self.last = terms.loss.detach()
        return terms


class StateNotSaved(ELBO):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self._register_state_dict_hook(lambda module, state, prefix, _: forget(state, prefix + "shift"))

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        with torch.no_grad():
            self.shift.add_(1.0)  # what a module built anew would have, were it not 0
        return super().load_state_dict(state, strict=False, assign=assign)

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        loss, logs = super().terms(*args, **kwargs)
        return Terms(loss + self.shift, logs)


class IdleParameter(ELBO):
    def __init__(self) -> None:
        super().__init__()
        self.control = nn.Parameter(torch.zeros(3))


class NoModelGradient(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(*args, **kwargs)
        return Terms((w.log_q - w.log_joint.detach())[0], {"elbo": w.log_w[0].detach()})


class FixedNoise(ELBO):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        torch.manual_seed(0)
        return super().terms(*args, **kwargs)


BROKEN_OBJECTIVES: list[tuple[Callable[[], Objective], str]] = [
    (MeanInLoss, "differentiable_loss is .*, the sum of the terms"),
    (LossOfTensors, "loss returns a Tensor"),
    (OtherGradients, "other gradients than differentiable_loss"),
    (SkipsGradients, "other gradients than differentiable_loss"),
    (LossByParticle, "one a datum, belongs"),
    (LogsWithGraph, "'elbo' keeps its graph"),
    (LogsWithoutBound, "neither"),
    (InfiniteLoss, "the loss is not finite"),
    (ReplacesBuffer, "kl_weight is replaced instead of updated in place"),
    (CountsInPython, "count changes from call to call"),
    (KeepsATensor, "last holds a plain tensor"),
    (StateNotSaved, "differ after saving and loading"),
    (IdleParameter, "objective.control get no gradient"),
    (NoModelGradient, "model.decoder.body.net.*get no gradient"),
    (FixedNoise, "the same whatever the seed"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN_OBJECTIVES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_objective_is_refused(broken: Callable[[], Objective], message: str) -> None:
    model = vae()
    with pytest.raises(ContractError, match=message):
        check_objective(broken(), model, guide_for(model), binary_batch())


def test_parameters_without_gradient_can_be_named() -> None:
    model = vae()
    check_objective(NoModelGradient(), model, guide_for(model), binary_batch(), without_gradient=["model"])


class Counts(ELBO):
    """State as it should be: a buffer, updated in place."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.own = nn.Parameter(torch.ones((), dtype=torch.float64))

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        loss, logs = super().terms(*args, **kwargs)
        self.steps.add_(1.0)
        return Terms(loss + self.own.square() / loss.shape[0] + self.steps, logs)


def test_state_in_a_buffer_updated_in_place_passes() -> None:
    model = vae()
    check_objective(Counts(), model, guide_for(model), binary_batch())


def test_numbers_of_a_part_that_does_not_train_have_no_gradient_to_check() -> None:
    model = vae()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    check_model(model, binary_batch())
    check_objective(IWAE(2), model, guide_for(model), binary_batch())


# ---------------------------------------------------------------- the checks leave things alone


def test_checks_leave_random_states_settings_store_and_parts_as_they_were() -> None:
    model, guide, batch = pair("full-rank")
    objective, broken = ELBO(), (UsesTheStore(), SwitchesValidation())
    before = [t.clone() for part in (model, guide, objective) for t in part.state_dict().values()]
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    settings, store = pyro.settings.get(), set(pyro.get_param_store().keys())
    check_model(model, batch)
    check_guide(guide, model, batch)
    check_objective(objective, model, guide, batch)
    for part in broken:
        with pytest.raises(ContractError):
            check_model(part, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))  # noqa: NPY002
    assert pyro.settings.get() == settings
    assert set(pyro.get_param_store().keys()) == store
    after = [t for part in (model, guide, objective) for t in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for part in (model, guide) for p in part.parameters())


def test_one_datum_is_not_enough() -> None:
    with pytest.raises(ContractError, match="2 data or more"):
        check_model(vae(), binary_batch(1))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ContractError, match=r"not a torch\.nn\.Module"):
        check_model(lambda batch: None, binary_batch())  # type: ignore[arg-type]


def test_a_contract_error_is_an_assertion_error() -> None:
    assert issubclass(ContractError, AssertionError)
    assert set(contracts_module.__all__) == {"ContractError", "check_guide", "check_model", "check_objective"}
    assert {"vae", "cvae"} <= {*models.models}
