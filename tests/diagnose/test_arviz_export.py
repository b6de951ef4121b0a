"""What ArviZ is given, and that ArviZ can work on it; the same tests for 0.23 and for 1.x."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from pyro import poutine

from ppl_vae import Batch, InputError, guides, likelihoods, log_weights, models, networks
from ppl_vae.core import Guide
from ppl_vae.data import DataSet
from ppl_vae.diagnose import from_netcdf, plot_posterior, plot_predictive, summary, to_arviz, to_netcdf
from ppl_vae.handlers import drawn
from ppl_vae.mixture_parameters import DirichletNormal
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

SHAPE = (2, 3, 4)


def group(data: Any, name: str) -> Any:
    """A group as a plain dataset: a node of a DataTree says its own."""
    node = data[name]
    return node.to_dataset() if hasattr(node, "to_dataset") else node


def names(data: Any) -> set[str]:
    return {str(name).strip("/") for name in data.groups} - {""} if hasattr(data, "children") else set(data.groups())


def conditional_pair() -> tuple[models.ConditionalVAE, Guide]:
    condition = networks.Condition(classes=3, context=2)
    model = models.ConditionalVAE(
        networks.decoder("mlp", 2 + condition.width, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), 2, condition
    )
    return model, guides.FullRank(model, networks.encoder("mlp", SHAPE, (8,), condition=condition))


def conditional_batch(n: int = 5) -> Batch:
    x = (torch.rand(n, *SHAPE) < 0.5).float()
    return Batch(x=x, y=torch.arange(n) % 3, context=torch.randn(n, 2), rows=10 * torch.arange(n))


@pytest.fixture(scope="module")
def oracle() -> Any:
    model = LinearGaussian()
    return to_arviz(model, LinearGaussianPosterior(model), model.simulate(4), draws=1000, prior_draws=800, seed=0)


def test_groups_dimensions_and_coordinates() -> None:
    model, guide = conditional_pair()
    batch = conditional_batch()
    data = to_arviz(model, guide, batch, draws=7, prior_draws=6)
    x_dims = ("channel", "row", "column")
    sample = ("chain", "draw", "datum")
    wanted = {
        "posterior": {"z": (*sample, "z_dim")},
        "posterior_predictive": {"x": (*sample, *x_dims)},
        "log_likelihood": {"x": sample},
        "sample_stats": {"log_p": sample, "log_q": sample, "log_w": sample},
        "prior": {"z": (*sample, "z_dim")},
        "prior_predictive": {"x": (*sample, *x_dims)},
        "observed_data": {"x": ("datum", *x_dims)},
        "constant_data": {"y": ("datum",), "context": ("datum", "context_dim")},
    }
    assert names(data) == set(wanted)
    sizes = {"chain": 1, "datum": 5, "z_dim": 2, "channel": 2, "row": 3, "column": 4, "context_dim": 2}
    for name, variables in wanted.items():
        got = group(data, name)
        assert {v: got[v].dims for v in got.data_vars} == variables
        for dim, size in got.sizes.items():
            assert size == sizes.get(dim, 6 if name.startswith("prior") else 7)
            assert dim in got.coords
        assert got["datum"].values.tolist() == [0, 10, 20, 30, 40]
        assert got.attrs["inference_library"] == "pyro"
        assert got.attrs["data"] == "a batch of 5"
    assert np.array_equal(group(data, "observed_data")["x"], batch.x)
    assert np.array_equal(group(data, "constant_data")["y"], batch.y)


def test_columns_of_a_table_are_named() -> None:
    table = DataSet.from_arrays(torch.randn(6, 3), name="table", columns=["a", "b", "c"])
    model = models.VAE(networks.decoder("mlp", 2, (3,), 1, (8,)), likelihoods.Gaussian((3,)), 2)
    guide = guides.MeanField(model, networks.encoder("mlp", (3,), (8,)))
    data = to_arviz(model, guide, table, draws=5)
    x = group(data, "posterior_predictive")["x"]
    assert x.dims == ("chain", "draw", "datum", "feature")
    assert x["feature"].values.tolist() == ["a", "b", "c"]
    assert group(data, "posterior").attrs["data"] == table.description


@pytest.mark.parametrize("chunk", [None, 10**6])
def test_values_are_those_of_log_weights(chunk: int | None) -> None:
    model, guide = conditional_pair()
    batch = conditional_batch()
    state = torch.get_rng_state()
    data = to_arviz(model, guide, batch, draws=9, chunk=chunk, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    with torch.no_grad():
        w = log_weights(model, guide, batch, particles=9)
    stats = group(data, "sample_stats")
    assert np.array_equal(group(data, "posterior")["z"][0], w.draws["z"])
    assert np.array_equal(group(data, "log_likelihood")["x"][0], w.log_likelihood)
    assert np.array_equal(stats["log_p"][0], w.log_joint)
    assert np.array_equal(stats["log_q"][0], w.log_q)
    assert np.array_equal(stats["log_w"][0], w.log_w)


def test_pieces_fit_together() -> None:
    """Each z lies beside its own datum's log-probabilities, whichever piece it came in."""
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    x = model.simulate(7)
    data = to_arviz(model, guide, x, draws=11, prior_draws=5, chunk=8)
    z = torch.from_numpy(group(data, "posterior")["z"].values[0])
    log_q = guide.distribution(Batch(x=x))["z"].log_prob(z)
    torch.testing.assert_close(torch.from_numpy(group(data, "sample_stats")["log_q"].values[0]), log_q)
    log_w = torch.from_numpy(group(data, "sample_stats")["log_w"].values[0])
    torch.testing.assert_close(log_w, model.log_marginal(x).expand(11, 7), rtol=0, atol=1e-10)
    assert not np.isnan(group(data, "prior_predictive")["x"]).any()


def test_predictions_are_draws_and_not_the_data(oracle: Any) -> None:
    """x' given x has the moments of the model's own predictive distributions, within 4 standard errors."""
    model = LinearGaussian()
    x = model.simulate(4)
    noise = model.sigma**2 * torch.eye(5, dtype=torch.float64)
    given = noise + model.weight @ torch.linalg.inv(model.precision) @ model.weight.T
    marginal = noise + model.weight @ model.weight.T
    wanted = {
        "posterior_predictive": (model.posterior_mean(x) @ model.weight.T + model.bias, given),
        "prior_predictive": (model.bias.expand(4, 5), marginal),
    }
    for name, (mean, covariance) in wanted.items():
        got = torch.from_numpy(group(oracle, name)["x"].values[0])
        variance = covariance.diagonal()
        n = len(got)
        assert ((got.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
        assert ((got.var(0) - variance).abs() < 4.5 * variance * math.sqrt(2 / n)).all()
    z = torch.from_numpy(group(oracle, "prior")["z"].values[0])
    assert (z.mean(0).abs() < 4 / math.sqrt(800)).all()


def test_what_is_not_observed_is_missing() -> None:
    model = models.VAE(networks.decoder("mlp", 2, SHAPE, 1, (8,)), likelihoods.Bernoulli(SHAPE), 2)
    guide = guides.MeanField(model, networks.encoder("mlp", SHAPE, (8,)))
    observed = torch.rand(5, *SHAPE) < 0.7
    batch = Batch(x=conditional_batch().x, visible=observed, observed=observed)
    assert batch.x is not None
    data = to_arviz(model, guide, batch._replace(x=batch.x * observed), draws=3)
    x = group(data, "observed_data")["x"].values
    assert np.array_equal(np.isnan(x), ~observed.numpy())
    assert not np.isnan(group(data, "posterior_predictive")["x"]).any()
    assert group(data, "constant_data")["observed"].dtype == bool


@pytest.mark.parametrize("name", ["class", "mixture", "top-down", "bottom-up"])
def test_pairs_of_several_sites(name: str) -> None:
    """Enumerated classes are drawn here, as a posterior's draws want."""
    model, guide, batch = programs.pair(name)
    data = to_arviz(model, guide, batch, draws=4)
    posterior = group(data, "posterior")
    assert set(posterior.data_vars) == set(model.latents)
    for site, spec in model.latents.items():
        assert posterior[site].shape == (1, 4, batch.size, *spec.event_shape)
    stats = group(data, "sample_stats")
    np.testing.assert_allclose(stats["log_w"], stats["log_p"] - stats["log_q"], atol=1e-10)
    assert np.isfinite(stats["log_w"]).all()


def test_summary_shows_no_convergence_of_chains(oracle: Any) -> None:
    table = summary(oracle)
    assert len(table) == 8
    assert "z[0, 1]" in table.index
    assert not [column for column in table.columns if "hat" in column or "ess" in column]
    model = LinearGaussian()
    means = model.posterior_mean(model.simulate(4)).flatten()
    np.testing.assert_allclose(table["mean"].astype(float), means, atol=0.1)


def test_arviz_works_on_it(oracle: Any, tmp_path: Path) -> None:
    import arviz as az
    import matplotlib.pyplot as plt

    assert "mean" in az.summary(oracle, var_names=["z"]).columns
    plot_posterior(oracle, var_names=["z"], coords={"datum": [0, 1]})
    plot_predictive(oracle, draws=10)
    plot_predictive(oracle, group="prior")
    assert plt.get_fignums()
    plt.close("all")


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    model, guide = conditional_pair()
    data = to_arviz(model, guide, conditional_batch(), draws=4)
    path = tmp_path / "posterior.nc"
    to_netcdf(data, path)
    again = from_netcdf(path)
    assert names(again) == names(data)
    for name in names(data):
        ours, theirs = group(data, name), group(again, name)
        assert set(ours.data_vars) == set(theirs.data_vars)
        for variable in ours.data_vars:
            assert theirs[variable].dims == ours[variable].dims
            assert theirs[variable].dtype == ours[variable].dtype
            assert np.array_equal(theirs[variable], ours[variable])
            assert set(theirs[variable].coords) == set(ours[variable].coords)
        assert theirs.attrs["guide"] == "FullRank"
    path.unlink()  # nothing holds the file, and what was read is in memory
    assert np.isfinite(group(again, "posterior")["z"]).all()


def test_bad_input_is_named(oracle: Any, tmp_path: Path) -> None:
    model = LinearGaussian()
    guide = LinearGaussianPosterior(model)
    with pytest.raises(InputError, match="particles=0"):
        to_arviz(model, guide, model.simulate(2), draws=0)
    with pytest.raises(InputError, match="group='post'"):
        plot_predictive(oracle, group="post")
    with pytest.raises(InputError, match=r"nothing\.nc"):
        from_netcdf(tmp_path / "nothing.nc")


@pytest.mark.parametrize(
    ("kind", "chunk"), [("bayesian-decoder", None), ("bayesian-decoder", 7), ("mixture", 7), ("structured", None)]
)
def test_latents_that_all_data_share_stand_once(kind: str, chunk: int | None) -> None:
    """Their draws have no datum; and the weight of each whole draw is that of Pyro's own traces, replayed on it."""
    torch.manual_seed(0)
    model, guide, x = shared_pair(kind)
    data = to_arviz(model, guide, Batch(x=x), draws=3, prior_draws=2, chunk=chunk, seed=1)
    posterior, prior, stats = (group(data, name) for name in ("posterior", "prior", "sample_stats"))
    shared = [name for name, spec in model.latents.items() if spec.scope == "global"]
    own = [name for name in model.latents if name not in shared]
    assert shared
    for draws, several in ((3, posterior), (2, prior)):
        for name in model.latents:
            left = (1, draws) if name in shared else (1, draws, 5)
            assert several[name].shape == (*left, *model.latents[name].event_shape)
    assert len(np.unique(posterior[shared[0]].to_numpy().reshape(3, -1)[:, 0])) == 3
    assert stats["log_w"].dims == ("chain", "draw", "datum")
    assert stats["log_p_shared"].dims == ("chain", "draw")
    np.testing.assert_allclose(stats["log_w"], stats["log_p"] - stats["log_q"], rtol=0, atol=1e-12)
    proposal = drawn(guide)
    for k in range(3):
        values = {name: torch.as_tensor(posterior[name].to_numpy()[0, k]) for name in (*shared, *own)}
        of_q = poutine.trace(poutine.condition(proposal, data=values)).get_trace(Batch(x=x))
        of_p = poutine.trace(poutine.condition(model, data=values)).get_trace(Batch(x=x))
        for key, trace in (("log_p", of_p), ("log_q", of_q)):
            trace.compute_log_prob()
            once = sum(trace.nodes[name]["log_prob_sum"] for name in shared)
            each = sum(trace.nodes[name]["log_prob"] for name in (*own, *(["x"] if key == "log_p" else [])))
            np.testing.assert_allclose(stats[f"{key}_shared"][0, k], once.detach(), rtol=1e-9)
            np.testing.assert_allclose(stats[key][0, k], each.detach(), rtol=1e-9)


def shared_pair(kind: str) -> tuple[Any, Any, torch.Tensor]:
    x = torch.randn(5, 2, dtype=torch.float64)
    encoder = networks.encoder("mlp", (2,), (4,))
    if kind == "mixture":
        model = models.GaussianMixture(3, 2, prior=DirichletNormal.weak(x, 3))
        names = [name for name, spec in model.latents.items() if spec.scope == "global"]
        return model, guides.Combined(model, guides.Exact(guides.datum_part(model)), given=names).double(), x
    likelihood = likelihoods.Gaussian((2,))
    if kind == "structured":
        structured = models.StructuredVAE(networks.decoder("mlp", 2, (2,), 1, (4,)), likelihood, 2, 3).double()
        return structured, guides.Structured(structured, encoder).double(), x
    model = models.BayesianDecoder(networks.decoder("mlp", 2, (2,), 1, (4,)), likelihood, 2).double()
    local = guides.MeanField(guides.datum_part(model), encoder)
    return model, guides.Combined(model, local).double(), x
