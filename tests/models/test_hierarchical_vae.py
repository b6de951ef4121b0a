"""The hierarchical variational autoencoder's model."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, binary_batch, guide_for, vae
from pyro import poutine
from torch import Tensor

from ppl_vae import ELBO, Batch, InputError, guides, likelihoods, models, networks, objectives, priors
from ppl_vae.build import PairConfig, build
from ppl_vae.data import DataSet
from ppl_vae.models.hierarchical_vae import GaussianLayer
from ppl_vae.testing import check_compiled, check_model, check_objective


def hierarchical(latent: Any = (3, 2), **options: Any) -> models.HierarchicalVAE:
    first = latent if isinstance(latent, int) else latent[0]
    decoder = networks.decoder("mlp", first, SHAPE, 1, (7,))
    return models.HierarchicalVAE(decoder, likelihoods.Bernoulli(SHAPE), latent, **options).double()


def sizes(model: models.HierarchicalVAE) -> dict[str, int]:
    return {name: spec.event_shape[0] for name, spec in model.latents.items()}


@pytest.mark.parametrize("latent", [(3,), (2, 3, 1)])
def test_the_contract(latent: tuple[int, ...]) -> None:
    check_model(hierarchical(latent), binary_batch())


def test_layers_from_one_size_are_halved() -> None:
    assert sizes(hierarchical(8)) == {"z2": 4, "z1": 8}
    assert sizes(hierarchical(5, layers=4)) == {"z4": 1, "z3": 1, "z2": 2, "z1": 5}
    assert sizes(hierarchical((5, 6), layers=2)) == {"z2": 6, "z1": 5}
    assert {name: spec.parents for name, spec in hierarchical((3, 2, 1)).latents.items()} == {
        "z3": (),
        "z2": ("z3",),
        "z1": ("z2",),
    }


def test_the_sizes_of_the_two_layer_network() -> None:
    """50 - 100 - 100 - 100 - 200 - 200 - 784."""
    decoder = networks.decoder("mlp", 100, (1, 28, 28), 1, (200, 200))
    model = models.HierarchicalVAE(decoder, likelihoods.Bernoulli((1, 28, 28)), (100, 50))
    widths = [(50, 100), (100, 100), (100, 200), (100, 200), (200, 200), (200, 784)]
    widths[2] = (100, 2 * 100)  # means and log-scales of z1
    assert sum(p.numel() for p in model.parameters()) == sum((a + 1) * b for a, b in widths)


def test_the_joint_density_is_the_product_of_the_layers() -> None:
    model, batch = hierarchical((3, 2)), binary_batch()
    z2, z1 = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    trace = poutine.trace(poutine.condition(model, {"z2": z2, "z1": z1})).get_trace(batch)
    layer = model.conditionals["z1"]
    loc, raw = layer.head.linear(layer.body(z2)).chunk(2, -1)
    logits = model.decoder(z1).squeeze(1)
    wanted = (
        dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
        + dist.Normal(loc, networks.soft_bound(raw).exp()).log_prob(z1).sum(-1)
        + dist.Bernoulli(logits=logits).log_prob(batch.x).flatten(1).sum(-1)
    )
    torch.testing.assert_close(trace.log_prob_sum(), wanted.sum())
    assert [name for name in trace.nodes if not name.startswith("_")] == ["data", "z2", "z1", "x"]


def test_one_layer_is_a_vae() -> None:
    one, other = hierarchical((3,)), vae()
    other.load_state_dict(one.state_dict())
    batch, z = binary_batch(), torch.randn(5, 3).double()
    densities = [
        poutine.trace(poutine.condition(model, {name: z})).get_trace(batch).log_prob_sum()
        for model, name in ((one, "z1"), (other, "z"))
    ]
    assert torch.equal(*densities)


def test_it_generates_and_scores_what_is_observed() -> None:
    model, batch = hierarchical((3, 2)), binary_batch()
    x = model(Batch(n=50))
    assert x.shape == (50, *SHAPE)
    model.likelihood.check(x)
    observed = torch.rand(batch.x.shape) < 0.5
    seen = batch._replace(x=batch.x * observed, observed=observed)
    z = {"z2": torch.zeros(5, 2).double(), "z1": torch.zeros(5, 3).double()}
    site = poutine.trace(poutine.condition(model, z)).get_trace(seen).nodes["x"]
    each = dist.Bernoulli(logits=model.decoder(z["z1"]).squeeze(1)).log_prob(seen.x) * observed
    torch.testing.assert_close(site["fn"].log_prob(seen.x), each.flatten(1).sum(-1))


def test_layers_and_the_prior_are_parts() -> None:
    class Shifted(priors.StandardNormal):
        def forward(self, features: Tensor) -> dist.Independent:
            p = super().forward(features).base_dist
            return dist.Normal(p.loc + 7.0, 1e-3 * p.scale).to_event(1)

    layers = [GaussianLayer(2, 3, (5,)), GaussianLayer(1, 2, (4, 4))]
    model = hierarchical((3, 2, 1), conditionals=layers, prior=Shifted(1))
    assert model.conditionals["z1"] is layers[0]
    assert model.conditionals["z2"] is layers[1]
    z3 = poutine.trace(model).get_trace(Batch(n=4)).nodes["z3"]["value"]
    assert bool(((z3 - 7.0).abs() < 0.01).all())
    check_model(model, binary_batch())


@pytest.mark.parametrize(
    ("latent", "options", "says"),
    [
        (0, {}, "latent=0 must be a size, 1 or more, or the sizes of z1, z2"),
        (True, {}, "latent=True must be a size"),
        (2.0, {}, r"latent=2.0 must be a size"),
        ((3, 0), {}, r"latent=\(3, 0\) must be a size"),
        ("32", {}, "latent='32' must be a size"),
        ((), {}, r"latent=\(\) must be a size"),
        (3, {"layers": 0}, "layers=0 must be a whole number, 1 or more"),
        ((3, 2), {"layers": 3}, r"layers=3 does not fit latent=\(3, 2\), which has 2"),
        (3, {"hidden": ()}, r"hidden=\(\) must be one width or more"),
        (3, {"hidden": (5, 0)}, r"hidden=\(5, 0\) must be one width or more"),
        ((3, 2), {"prior": priors.StandardNormal(3)}, r"prior is over events \(3,\); z2, .*has \(2,\)"),
        ((3, 2), {"conditionals": []}, r"conditionals over events \[\] do not fit latent=\(3, 2\)"),
        (
            (3, 2),
            {"conditionals": [GaussianLayer(3, 2, (4,))]},
            r"conditionals over events \[\(2,\)\] do not fit .* for l = 1 to 1, over events \[\(3,\)\]",
        ),
        (
            (3, 2),
            {"conditionals": [GaussianLayer(2, 3, (4,))], "hidden": (4,)},
            r"hidden=\(4,\) is of the conditionals that are made here",
        ),
    ],
)
def test_what_is_refused(latent: Any, options: dict[str, Any], says: str) -> None:
    decoder = networks.decoder("mlp", 3, SHAPE, 1, (7,))
    with pytest.raises(InputError, match=says):
        models.HierarchicalVAE(decoder, likelihoods.Bernoulli(SHAPE), latent, **options)


@pytest.mark.parametrize(("guide", "objective"), [("bottom-up", "elbo"), ("top-down", "elbo"), ("top-down", "iwae")])
def test_it_trains_with_its_guides(guide: str, objective: str) -> None:
    """The pairs that belong together; every other one is among the slow combinations of parts."""
    model, batch = hierarchical((3, 2)), binary_batch()
    pair = model, guide_for(model, guide)
    loss = objectives.objectives.get(objective)(particles=2)  # type: ignore[call-arg]
    check_objective(loss, *pair, batch)
    check_compiled(*pair, loss, batch, steps=3)


@pytest.mark.parametrize("guide", ["mean-field", "full-rank", "bottom-up", "top-down"])
def test_it_is_built_by_name(guide: str) -> None:
    x = torch.randint(0, 2, (12, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = DataSet.from_arrays(x, levels=2, name="small")
    model, q = build(PairConfig(model="hierarchical-vae", guide=guide, latent=4, hidden=(8,)), data)
    assert isinstance(model, models.HierarchicalVAE)
    assert isinstance(q, guides.guides.get(guide))
    assert sizes(model) == {"z2": 2, "z1": 4}
    assert bool(ELBO().terms(model, q, data.batch()).loss.isfinite().all())
