"""Pairs from names and sizes, and back from JSON."""

import itertools
import json
import sys
from typing import Any

import pytest
import torch
from programs import OF_ONE_MODEL

from ppl_vae import ELBO, IWAE, InputError, Renyi
from ppl_vae.build import DataSpec, PairConfig, build, build_guide, build_objective, units_for
from ppl_vae.data import DataSet
from ppl_vae.guides import guides
from ppl_vae.likelihoods import likelihoods
from ppl_vae.models import models


def images(likelihood: str = "bernoulli", channels: int = 1) -> DataSet:
    """Images in the units that a likelihood wants."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 17, (24, channels, 6, 5), generator=generator).to(torch.uint8)
    plain = DataSet.from_arrays(x, torch.arange(24) % 3, levels=17, name="small")
    binary = likelihoods.get(likelihood).units == "binary"
    return plain.with_options(binarize="dynamic") if binary else plain.with_options(units=units_for(likelihood, plain))  # type: ignore[arg-type]


def counts() -> DataSet:
    x = torch.poisson(torch.full((24, 4), 3.0), generator=torch.Generator().manual_seed(0))
    return DataSet.from_arrays(x, torch.arange(24) % 3, name="counts")


NETWORKS = ("mlp", "conv", "residual", "partial")


@pytest.mark.parametrize(
    ("likelihood", "network"),
    [
        # each likelihood with one network and each network with several likelihoods; the rest is slow
        (name, network) if k % 4 == NETWORKS.index(network) else pytest.param(name, network, marks=pytest.mark.slow)
        for k, name in enumerate(sorted(likelihoods))
        for network in NETWORKS
    ],
)
def test_every_likelihood_with_every_network(likelihood: str, network: Any) -> None:
    data = counts() if likelihoods.get(likelihood).units == "counts" else images(likelihood)
    if data.x.dim() == 2 and network in ("conv", "partial"):
        network = "mlp"  # a table is no image
    every = (likelihood, network) == ("bernoulli", "mlp")
    of_decoders = [name for name in models if name not in ("gaussian-mixture", "structured-vae", "vqvae", "vqvae2")]
    of_continuous = [name for name in guides if name not in OF_ONE_MODEL] if every else ["mean-field", "full-rank"]
    for model_name, guide_name in itertools.product(of_decoders, of_continuous):
        config = PairConfig(model_name, guide_name, likelihood, network, latent=4, hidden=(16,))
        model, guide = build(config, data)
        loss = ELBO().terms(model, guide, data.batch(torch.arange(5))).loss
        assert loss.shape == (5,)
        assert bool(loss.isfinite().all())

        # JSON alone rebuilds it: its weights fit, and what standardizes is among them
        config_again = PairConfig.from_json(json.loads(json.dumps(config.to_json())))
        spec = DataSpec.from_json(json.loads(json.dumps(DataSpec.of(data).to_json())))
        assert (config_again, spec) == (config, DataSpec.of(data))
        again, guide_again = build(config_again, spec)
        again.load_state_dict(model.state_dict())
        guide_again.load_state_dict(guide.state_dict())
        torch.manual_seed(1)
        batch = data.batch(torch.arange(5))
        one = ELBO().terms(model, guide, batch).loss
        torch.manual_seed(1)
        batch = data.batch(torch.arange(5))
        assert torch.equal(ELBO().terms(again, guide_again, batch).loss, one)


def test_a_model_without_decoder_is_made_in_a_program() -> None:
    with pytest.raises(InputError, match=r"model='gaussian-mixture' has no decoder, .*em\(GaussianMixture.*examples/"):
        build(PairConfig("gaussian-mixture", "enumerated"), images("bernoulli"))


def test_colour_images_and_several_layers() -> None:
    data = images("discretized-logistic", channels=3)
    for network, hidden in (("mlp", (16, 8)), ("conv", (16,)), ("partial", (16,)), ("residual", (16, 16))):
        model, guide = build(PairConfig(likelihood="discretized-logistic", network=network, hidden=hidden), data)  # type: ignore[arg-type]
        assert bool(ELBO().terms(model, guide, data.batch()).loss.isfinite().all())


def test_averages_of_many_data_are_taken_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    # the package has a function of the module's name
    monkeypatch.setattr(sys.modules[build.__module__], "_AVERAGED", 7)
    x = torch.arange(100.0).reshape(100, 1)
    guide = build(PairConfig(likelihood="gaussian"), DataSet.from_arrays(x, name="ramp"))[1]
    # evenly spaced from the first to the last
    assert guide.encoder.loc.item() == pytest.approx(49.5, abs=0.5)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "vea"}, "model='vea' is not known; did you mean 'vae'"),
        ({"guide": "fullrank"}, "guide='fullrank' is not known; did you mean 'full-rank'"),
        ({"likelihood": "gausian"}, "likelihood='gausian' is not known; did you mean 'gaussian'"),
        ({"network": "cnn"}, "network='cnn' is not known; .*conv, mlp, partial, residual"),
        ({"latent": 0}, "latent=0 must be a whole number, 1 or more"),
        ({"latent": 2.0}, "latent=2.0"),
        ({"latent": True}, "latent=True"),
        ({"hidden": ()}, r"hidden=\(\) must be one width or more"),
        ({"hidden": (8, 0)}, r"hidden=\(8, 0\)"),
        ({"hidden": (8.0,)}, r"hidden=\(8.0,\)"),
        ({"hidden": (True,)}, r"hidden=\(True,\)"),
        ({"hidden": 8}, "hidden=8"),
        ({"hidden": "88"}, "hidden='88'"),
    ],
)
def test_a_configuration_that_is_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PairConfig(**options)


def test_a_configuration_with_a_list() -> None:
    assert PairConfig(hidden=[8, 4]) == PairConfig(hidden=(8, 4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="setting='latnt' is not known; did you mean 'latent'"):
        PairConfig.from_json({"latnt": 3})


@pytest.mark.parametrize(
    ("config", "data", "says"),
    [
        ({}, images("gaussian"), "outside of the support of Bernoulli, 0 or 1: binarize"),
        ({"likelihood": "categorical"}, counts(), "is over a data set's levels, and 'counts all.*' is continuous; use"),
        ({"network": "conv", "likelihood": "poisson"}, counts(), r"network='conv' needs images"),
        (
            {"model": "cvae", "likelihood": "poisson"},
            DataSet.from_arrays(torch.ones(4, 2), name="bare"),
            "conditioned on labels or a context, and 'bare all.*' has neither; use model='vae'",
        ),
    ],
)
def test_parts_that_do_not_fit_the_data(config: dict[str, Any], data: DataSet, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(PairConfig(**config), data)


def test_a_context_is_a_condition_too() -> None:
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    data = DataSet.from_arrays(x, context=x[:, :1], name="given")
    model, guide = build(PairConfig(model="cvae", likelihood="gaussian"), data)
    assert ELBO().terms(model, guide, data.batch()).loss.shape == (10,)
    assert DataSpec.of(data).context == 1


def test_units() -> None:
    data = images("gaussian")
    assert units_for("gaussian", data) == "levels"
    assert units_for("categorical", data) == "levels"
    assert units_for("continuous-bernoulli", data) == "unit"
    assert units_for("gaussian", counts()) == "raw"
    assert DataSpec.of(images("bernoulli")).levels == 2


def test_options_of_guide_and_model() -> None:
    config = PairConfig(
        "hierarchical-vae", "low-rank", latent=4, hidden=(8,), guide_options={"rank": 1}, model_options={"hidden": 5}
    )
    assert (config.guide_label, config.model_label) == ("low-rank:rank=1", "hierarchical-vae:hidden=5")
    assert config.model_options == {"hidden": (5,)}
    again = PairConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    hash(config)
    model, guide = build(config, images())
    assert guide.heads["z1"].rank == 1  # type: ignore[union-attr, index]
    assert tuple(model.latents) == ("z2", "z1")
    with pytest.raises(InputError, match="rnak=1 does not fit guide='low-rank', which takes rank"):
        PairConfig(guide="low-rank", guide_options={"rnak": 1})
    with pytest.raises(InputError, match=r"rank=1\.5 does not fit guide='low-rank', whose rank is a whole number"):
        PairConfig(guide="low-rank", guide_options={"rank": 1.5})
    with pytest.raises(InputError, match="latent=3 does not fit model='vae'"):
        PairConfig(model_options={"latent": 3})
    with pytest.raises(InputError, match=r"guide_options=\[\] must be a mapping"):
        PairConfig(guide_options=[])  # type: ignore[arg-type]


def test_configurations_without_the_newer_fields_load() -> None:
    old = {name: value for name, value in PairConfig().to_json().items() if not name.endswith("_options")}
    assert PairConfig.from_json(old) == PairConfig()
    spec = DataSpec.of(images()).to_json()
    assert spec.pop("size") == 24
    assert DataSpec.from_json(spec).size == 0
    build(PairConfig.from_json(old), DataSpec.from_json(spec))


def test_a_guide_is_given_what_it_asks_for() -> None:
    model, guide = build(PairConfig(hidden=(8,)), images())
    encoder = guide.encoder
    seen = {}

    def one(m: Any) -> torch.nn.Module:
        return guide

    def all_of_it(m: Any, size: int, encoder: Any, width: int = 3) -> torch.nn.Module:
        seen.update(model=m, size=size, encoder=encoder, width=width)
        return guide

    assert build_guide(one, model, encoder, 24) is guide  # type: ignore[arg-type]
    build_guide(all_of_it, model, encoder, 24, {"width": 5})  # type: ignore[arg-type]
    assert seen == {"model": model, "size": 24, "encoder": encoder, "width": 5}
    assert build(PairConfig(guide="local", hidden=(8,)), images())[1].size == 24


def test_objectives_by_name() -> None:
    assert isinstance(build_objective("elbo", beta=2.0, particles=None, alpha=None), ELBO)
    assert isinstance(build_objective("iwae", particles=3), IWAE)
    assert isinstance(build_objective("renyi", alpha=0.3), Renyi)
    with pytest.raises(InputError, match=r"alpha=0\.5 does not fit objective='elbo', which takes beta, particles"):
        build_objective("elbo", alpha=0.5)
    with pytest.raises(InputError, match="objective='elbow' is not known; did you mean 'elbo'"):
        build_objective("elbow")
    with pytest.raises(InputError, match="beta=-1"):
        build_objective("elbo", beta=-1)
    with pytest.raises(InputError, match="alpha=1 is the ELBO"):
        build_objective("renyi", alpha=1)
    with pytest.raises(InputError, match="particles=0"):
        build_objective("iwae", particles=0)
