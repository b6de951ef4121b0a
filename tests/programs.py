"""Programs that tests share: pairs of every shape that the contracts allow, small and in the precision asked for."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import Batch, Guide, LatentModel, LatentSpec, guides, likelihoods, models, networks
from ppl_vae.networks import Condition, join

SHAPE = (1, 2, 3)
OF_DISCRETE = ("enumerated", "exact")  # guides of discrete latents alone
OF_ONE_MODEL = (*OF_DISCRETE, "structured", "nearest")  # guides that few models have a use for


def binary_batch(n: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(x=torch.randint(0, 2, (n, *SHAPE), generator=generator).to(dtype))


def vae(latent: int = 3, dtype: torch.dtype = torch.float64) -> models.VAE:
    return models.VAE(networks.decoder("mlp", latent, SHAPE, 1, (7,)), likelihoods.Bernoulli(SHAPE), latent).to(dtype)


def conditional_vae(latent: int = 3, classes: int = 4, dtype: torch.dtype = torch.float64) -> models.ConditionalVAE:
    decoder = networks.decoder("mlp", latent + classes, SHAPE, 1, (7,))
    return models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), latent, Condition(classes)).to(dtype)


def guide_for(model: LatentModel, name: str = "mean-field", dtype: torch.dtype = torch.float64) -> Guide:
    condition = model.condition if isinstance(model, models.VAE) and model.condition.width else None
    return guides.guides.get(name)(model, networks.encoder("mlp", SHAPE, (7,), condition=condition)).to(dtype)


def normal(parameters: Tensor) -> dist.Independent:
    loc, log_scale = parameters.chunk(2, dim=-1)
    return dist.Normal(loc, networks.soft_bound(log_scale, 2.0).exp()).to_event(1)


class Linear(nn.Linear):
    """Float64 from the start."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, dtype=torch.float64)


class TwoLayer(LatentModel):
    """z2 -> z1 -> x."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "z2": LatentSpec(torch.Size([2])),
            "z1": LatentSpec(torch.Size([3]), parents=("z2",)),
        }
        self.to_z1, self.to_x = Linear(2, 6), Linear(3, 6)
        self.register_buffer("zero", torch.zeros(2, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z2 = pyro.sample("z2", dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1))
            z1 = pyro.sample("z1", normal(self.to_z1(z2)))
            logits = self.to_x(z1)
            likelihood = dist.Bernoulli(logits=logits.reshape(*logits.shape[:-1], *SHAPE)).to_event(3)
            return pyro.sample("x", likelihood, obs=batch.x)


class BottomUp(Guide):
    """q(z1 | x) q(z2 | z1): visits the sites in the other order than the model."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.to_z1, self.to_z2 = Linear(6, 6), Linear(3, 4)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            z1 = pyro.sample("z1", normal(self.to_z1(batch.x.flatten(1))))
            z2 = pyro.sample("z2", normal(self.to_z2(z1)))
        return {"z2": z2, "z1": z1}


class TopDown(Guide):
    """q(z2 | x) q(z1 | z2, x)."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.to_z2, self.to_z1 = Linear(6, 4), Linear(8, 6)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.x.flatten(1)
        with pyro.plate("data", batch.size, dim=-1):
            z2 = pyro.sample("z2", normal(self.to_z2(x)))
            z1 = pyro.sample("z1", normal(self.to_z1(join(x, z2))))
        return {"z2": z2, "z1": z1}


CLASSES = 3


class SemiSupervised(LatentModel):
    """y ~ Categorical, z ~ N(0, I), x | y, z; a known label is an observed child of y."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "y": LatentSpec(torch.Size(), constraints.integer_interval(0, CLASSES - 1)),
            "z": LatentSpec(torch.Size([2])),
        }
        self.to_x = nn.Sequential(Linear(2 + CLASSES, 5), nn.Tanh(), Linear(5, 6))
        self.prior_logits = nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
        self.register_buffer("zero", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("eye", torch.eye(CLASSES, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
            z = pyro.sample("z", dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1))
            if batch.y is not None:
                with poutine.mask(mask=batch.y >= 0):
                    pyro.sample("label", dist.Categorical(logits=1e4 * (self.eye[y] - 1.0)), obs=batch.y.clamp_min(0))
            logits = self.to_x(join(z, self.eye[y]))
            likelihood = dist.Bernoulli(logits=logits.reshape(*logits.shape[:-1], *SHAPE)).to_event(3)
            return pyro.sample("x", likelihood, obs=batch.x)


class ClassGuide(Guide):
    """q(y | x) q(z | x, y), y enumerated; a known label has all the probability."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.classifier, self.to_z = Linear(6, CLASSES), nn.Sequential(Linear(6 + CLASSES, 4), nn.Tanh(), Linear(4, 4))
        self.register_buffer("eye", torch.eye(CLASSES, dtype=torch.float64))

    def logits(self, batch: Batch) -> Tensor:
        logits = self.classifier(batch.x.flatten(1))
        if batch.y is None:
            return logits
        return torch.where((batch.y >= 0).unsqueeze(-1), 1e4 * (self.eye[batch.y.clamp_min(0)] - 1.0), logits)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits(batch)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", normal(self.to_z(join(batch.x.flatten(1), self.eye[y]))))
        return {"y": y, "z": z}


class MixtureGuide(Guide):
    """q(z | x) = Σ_c q(c | x) N_c(z), stratified: the component is an enumerated auxiliary site."""

    def __init__(self, model: LatentModel, components: int = 3, latent: int = 3) -> None:
        super().__init__()
        self.components, self.latent = components, latent
        self.to_logits, self.to_normal = Linear(6, components), Linear(6, 2 * components * latent)
        self.register_buffer("eye", torch.eye(components, dtype=torch.float64))

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        x = batch.x.flatten(1)
        loc, raw = self.to_normal(x).unflatten(-1, (self.components, -1)).chunk(2, dim=-1)  # (N, M, Z)
        return self.to_logits(x).log_softmax(-1), loc, networks.soft_bound(raw, 2.0).exp()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        log_weights, loc, scale = self.parts(batch)
        with pyro.plate("data", batch.size, dim=-1):
            c = pyro.sample(
                "component", dist.Categorical(logits=log_weights), infer={"is_auxiliary": True, "enumerate": "parallel"}
            )
            one = self.eye[c].unsqueeze(-1)  # (..., M, 1)
            z = pyro.sample("z", dist.Normal((one * loc).sum(-2), (one * scale).sum(-2)).to_event(1))
            joint = log_weights + dist.Normal(loc, scale).to_event(1).log_prob(z.unsqueeze(-2))  # (..., M)
            pyro.factor("mixture", joint.logsumexp(-1) - (one.squeeze(-1) * joint).sum(-1), has_rsample=True)
        return {"z": z}


class PlainMixtureGuide(MixtureGuide):
    """The same q as one distribution, which passes no gradient through its draws."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        log_weights, loc, scale = self.parts(batch)
        q = dist.MixtureSameFamily(dist.Categorical(logits=log_weights), dist.Normal(loc, scale).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            return {"z": pyro.sample("z", q)}


class GlobalWeight(LatentModel):
    """A regression with a latent weight shared by all data, and a latent variable of each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = {
            "w": LatentSpec(torch.Size([6]), scope="global"),
            "z": LatentSpec(torch.Size([1])),
        }
        self.bias = nn.Parameter(0.1 * torch.ones(6, dtype=torch.float64))
        self.register_buffer("zero", torch.zeros(6, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        w = pyro.sample("w", dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(self.zero[:1], torch.ones_like(self.zero[:1])).to_event(1))
            loc = z * w + self.bias
            return pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)).to_event(1), obs=batch.x)


class GlobalGuide(Guide):
    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.loc = nn.Parameter(0.3 * torch.ones(6, dtype=torch.float64))
        self.raw = nn.Parameter(-0.5 * torch.ones(6, dtype=torch.float64))
        self.to_z = Linear(6, 2)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        w = pyro.sample("w", dist.Normal(self.loc, self.raw.exp()).to_event(1))
        with pyro.plate("data", batch.size, dim=-1):
            return {"w": w, "z": pyro.sample("z", normal(self.to_z(batch.x)))}


def pair(name: str) -> tuple[LatentModel, Guide, Batch]:
    """A pair and data for it, in float64, by name."""
    batch = binary_batch()
    if name == "class":
        model: LatentModel = SemiSupervised()
        return model, ClassGuide(model), batch._replace(y=torch.tensor([2, -1, -1, 0, -1]))
    if name == "global":
        model = GlobalWeight()
        return model, GlobalGuide(model), Batch(x=torch.randn(5, 6, dtype=torch.float64))
    if name in ("bottom-up", "top-down"):
        model = TwoLayer()
        return model, {"bottom-up": BottomUp, "top-down": TopDown}[name](model), batch
    model = vae()
    if name == "mixture":
        return model, MixtureGuide(model), batch
    if name == "conditional":
        model = conditional_vae()
        return model, guide_for(model), batch._replace(y=torch.tensor([0, 3, 1, 1, 2]))
    return model, guide_for(model, name), batch


PAIRS = ("mean-field", "full-rank", "conditional", "bottom-up", "top-down", "global", "class", "mixture")
REPARAMETERIZED = ("mean-field", "full-rank", "conditional", "bottom-up", "top-down")


def parameters_of(parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def gradients_of(*modules: nn.Module) -> list[Tensor]:
    """Gradients of all parameters, taken away."""
    gradients = []
    for module in modules:
        for parameter in module.parameters():
            gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
            parameter.grad = None
    return gradients


def assert_equal(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
