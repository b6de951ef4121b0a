import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import OF_DISCRETE
from torch import nn

from ppl_vae import likelihoods, networks
from ppl_vae.data import DataSet, DataSplits, load
from ppl_vae.errors import InputError
from ppl_vae.guides import LowRank, guides
from ppl_vae.models import VAE, models
from ppl_vae.objectives import ELBO, objectives
from ppl_vae.recipe import Given, Recipe, prepare
from ppl_vae.runs import open_run
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

TINY = Recipe(hidden=(8,), latent=2)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A person's own data, one of each kind."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "grey.npz", x=random.integers(0, 256, (20, 4, 4)).astype(np.uint8))
    some = np.arange(20) % 3 - 1  # a third without a label
    np.savez(tmp_path / "labelled.npz", x=random.integers(0, 256, (20, 4, 4)).astype(np.uint8), y=some)
    np.savez(tmp_path / "unit.npz", x=random.random((20, 4, 4)))
    np.savez(tmp_path / "bits.npz", x=random.random((20, 4, 4)) < 0.5)
    np.savez(tmp_path / "colour.npz", x=random.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8))
    np.savez(tmp_path / "counts.npz", x=random.poisson(3.0, (20, 4)))
    rows = "\n".join(",".join(str(v) for v in row) for row in random.normal(size=(20, 3)))
    (tmp_path / "table.csv").write_text(f"a,b,c\n{rows}\n")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("data", "likelihood", "binarize", "decided"),
    [
        ("grey", None, None, ("bernoulli", "dynamic", "unit")),
        ("grey", None, "none", ("discretized-logistic", "none", "levels")),
        ("grey", None, "fixed", ("bernoulli", "fixed", "unit")),
        ("grey", "bernoulli", None, ("bernoulli", "dynamic", "unit")),
        ("grey", "categorical", None, ("categorical", "none", "levels")),
        ("grey", "categorical", "threshold", ("categorical", "threshold", "unit")),
        ("grey", "gaussian", None, ("gaussian", "none", "levels")),
        ("grey", "gaussian-learned", None, ("gaussian-learned", "none", "unit")),
        ("grey", "continuous-bernoulli", None, ("continuous-bernoulli", "none", "unit")),
        ("grey", "poisson", None, ("poisson", "none", "levels")),
        ("colour", None, None, ("discretized-logistic", "none", "levels")),
        ("colour", "bernoulli", None, ("bernoulli", "dynamic", "unit")),
        ("bits", None, None, ("bernoulli", "none", "unit")),
        ("unit", None, None, ("continuous-bernoulli", "none", "unit")),
        ("unit", "bernoulli", None, ("bernoulli", "dynamic", "unit")),
        ("unit", None, "dynamic", ("bernoulli", "dynamic", "unit")),
        ("table", None, None, ("gaussian-learned", "none", "raw")),
        ("table", "student-t", None, ("student-t", "none", "raw")),
        ("counts", "poisson", None, ("poisson", "none", "raw")),
    ],
)
def test_likelihood_and_units_follow_from_the_data(
    files: dict[str, str], data: str, likelihood: str | None, binarize: str | None, decided: tuple[str, str, str]
) -> None:
    recipe = TINY.replace(data=files[data], likelihood=likelihood, binarize=binarize)
    ready = prepare(recipe)
    train = ready.data.train
    assert (ready.recipe.likelihood, ready.recipe.binarize, train.units) == decided
    assert (ready.pair.likelihood, train.binarize) == decided[:2]
    x = train.batch().x
    assert x is not None
    ready.model.likelihood.check(x)  # type: ignore[union-attr, operator]
    # the saved options read the same data again
    again = load(ready.data_options.pop("data"), **ready.data_options)
    for mine, theirs in zip(ready.data, again, strict=True):
        assert mine.description == theirs.description
        torch.testing.assert_close(mine.fixed().batch().x, theirs.fixed().batch().x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("data", "likelihood", "binarize", "message"),
    [
        ("grey", "bernoulli", "none", "'bernoulli' is of 0 and 1.*256 levels.*'dynamic'.*'discretized-logistic'"),
        ("table", "bernoulli", None, "'bernoulli' is of 0 and 1.*continuous numbers.*'gaussian-learned'"),
        ("unit", "bernoulli", "none", r"numbers in \[0, 1\].*'dynamic'.*'continuous-bernoulli'"),
        ("grey", "continuous-bernoulli", "dynamic", "'continuous-bernoulli' does not fit binarize='dynamic'"),
        ("grey", "poisson", "fixed", "'poisson' does not fit binarize='fixed'"),
        ("table", None, "dynamic", "binarize='dynamic' does not fit"),
        ("table", "poisson", None, "support of Poisson"),
        ("table", "categorical", None, "continuous"),
        ("table", "gaussian", "sometimes", "binarize='sometimes' is not known.*dynamic"),
    ],
)
def test_a_likelihood_and_data_that_disagree_are_refused(
    files: dict[str, str], data: str, likelihood: str | None, binarize: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(TINY.replace(data=files[data], likelihood=likelihood, binarize=binarize))


def test_guides_of_one_seed_start_from_the_same_encoder_and_decoder() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (prepare(TINY.replace(guide=guide)) for guide in ("mean-field", "full-rank"))
    assert torch.equal(before, torch.get_rng_state())
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    theirs = other.guide.state_dict()
    shared = {name: value for name, value in one.guide.state_dict().items() if name.startswith("encoder.")}
    assert len(shared) >= 4
    assert all(torch.equal(value, theirs[name]) for name, value in shared.items())
    changed = prepare(TINY.replace(seed=1))
    assert any(not torch.equal(v, changed.model.state_dict()[k]) for k, v in one.model.state_dict().items())


def test_what_is_left_open_is_decided(files: dict[str, str]) -> None:
    few = prepare(TINY.replace(data=files["grey"])).recipe
    assert few.batch_size == 16  # all of the training part
    assert few.epochs == 200
    digits = prepare(TINY).recipe
    assert (digits.batch_size, digits.epochs) == (128, 200)
    assert None not in (digits.likelihood, digits.binarize)


def test_many_data_get_fewer_epochs(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", x=np.zeros((75_000, 1), np.float32) + np.arange(75_000)[:, None])
    assert prepare(TINY.replace(data=str(tmp_path / "many.npz"))).recipe.epochs == 50


def test_patience_holds_out_a_tenth_of_the_training_data() -> None:
    plain, watched = prepare(TINY), prepare(TINY.replace(patience=3))
    assert plain.validation is None
    assert watched.validation is not None
    assert len(watched.validation) == 144
    assert len(watched.data.train) + len(watched.validation) == len(plain.data.train)
    assert "held out" in watched.validation.description
    assert len(watched.data.test) == len(plain.data.test)


def test_paths_become_absolute(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(files["table"])
    monkeypatch.chdir(path.parent)
    ready = prepare(TINY.replace(data="table.csv", data_dir="sets"))
    assert ready.data_options["data"] == str(path.resolve())
    assert Path(ready.data_options["data_dir"]).is_absolute()
    assert ready.recipe.title == "table-vae-mean-field"


def test_recipes_are_json_and_refuse_strangers() -> None:
    recipe = TINY.replace(hidden=[4, 5], beta=0.5)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.to_json()["hidden"] == [4, 5]
    assert Recipe.names() == [field.name for field in dataclasses.fields(Recipe)]
    with pytest.raises(InputError, match="'epoch' is not known; did you mean 'epochs'"):
        TINY.replace(epoch=3)


@pytest.mark.parametrize("seed", [-1, True, 1.5])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed=.*whole number"):
        prepare(TINY.replace(seed=seed))


def test_a_small_pair_uses_one_thread_and_puts_back_what_was() -> None:
    torch.set_num_threads(2)
    try:
        with prepare(TINY).threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with prepare(TINY.replace(network="conv")).threads():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**23, True, 1.5])
def test_seeds_that_no_generator_takes(seed: object) -> None:
    with pytest.raises(InputError, match="seed="):
        prepare(TINY.replace(seed=seed))


def test_a_density_of_binarized_data_is_refused() -> None:
    with pytest.raises(InputError, match="is a density"):
        prepare(TINY.replace(likelihood="gaussian", binarize="dynamic"))


SMALL = TINY.replace(latent=4, epochs=1, batch_size=8)


@pytest.mark.parametrize("guide", [*guides, "low-rank:rank=1", "spline:transforms=1:bins=4"])
def test_every_guide_by_name_is_trained_and_opened_again(guide: str, files: dict[str, str], tmp_path: Path) -> None:
    if guide in OF_DISCRETE:
        with pytest.raises(InputError, match="is a guide of discrete latents"):
            prepare(SMALL.replace(data=files["grey"], guide=guide))
        return
    if guide == "nearest":
        with pytest.raises(InputError, match="guide='nearest' is of models with a codebook, 'vqvae' and 'vqvae2'"):
            prepare(SMALL.replace(data=files["grey"], guide=guide))
        return
    model = "structured-vae" if guide == "structured" else "vae"
    ready = prepare(SMALL.replace(data=files["grey"], model=model, guide=guide))
    fitted = ready.train(tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    assert run.pair.guide_label == guide
    for name, value in fitted.guide.state_dict().items():
        assert torch.equal(value, run.guide.state_dict()[name])


@pytest.mark.parametrize("objective", [*objectives, "renyi:alpha=0.3:particles=2", "elbo:kl=monte-carlo"])
def test_every_objective_by_name_is_trained_with_and_opened_again(
    objective: str, files: dict[str, str], tmp_path: Path
) -> None:
    what = {"data": files["grey"]}
    if objective == "semi-supervised":
        what = {"model": "m2", "data": files["labelled"]}
    elif objective == "structured-elbo":
        what |= {"model": "structured-vae"}
    elif objective == "vq":
        what |= {"model": "vqvae:codebook=4:downsample=2"}
    ready = prepare(SMALL.replace(objective=objective, **what))
    fitted = ready.train(tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    assert type(run.objective) is type(fitted.objective)
    assert run.objective.extra_repr() == fitted.objective.extra_repr()
    for name, value in fitted.objective.state_dict().items():
        assert torch.equal(value, run.objective.state_dict()[name])


@pytest.mark.parametrize("model", [name for name in models if name != "cvae"] + ["hierarchical-vae:layers=3:hidden=5"])
def test_every_model_by_name_is_trained_and_opened_again(model: str, files: dict[str, str], tmp_path: Path) -> None:
    if model == "gaussian-mixture":
        with pytest.raises(InputError, match="has no decoder, of which a pair by name is made"):
            prepare(SMALL.replace(data="nowhere.csv", model=model))  # said before data are read
        return
    data = "labelled" if getattr(models.get(model.partition(":")[0]), "takes_labels", False) else "grey"
    ready = prepare(SMALL.replace(data=files[data], model=model))
    fitted = ready.train(tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    assert run.pair.model_label == model
    assert [*run.model.latents] == [*ready.model.latents]  # type: ignore[arg-type, misc]
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])


def test_an_objective_that_keeps_something_of_each_datum_is_made_for_their_number(files: dict[str, str]) -> None:
    class PerDatum(ELBO):
        def __init__(self, model: nn.Module, size: int, particles: int = 1) -> None:
            super().__init__(particles=particles)
            self.made_for = (model, size)

    objectives.register("per-datum")(PerDatum)
    try:
        ready = prepare(SMALL.replace(data=files["grey"], objective="per-datum:particles=2"))
        assert ready.objective.made_for == (ready.model, 16)  # type: ignore[attr-defined]
        assert ready.objective.particles == 2
        with pytest.raises(InputError, match="particles=0"):
            prepare(SMALL.replace(data=files["grey"], objective="per-datum", particles=0))
        with pytest.raises(InputError, match="size=3 does not fit objective='per-datum', which takes particles"):
            prepare(SMALL.replace(objective="per-datum:size=3"))
    finally:
        del objectives._parts["per-datum"]


def test_a_persons_own_parts_take_the_place_of_names(files: dict[str, str]) -> None:
    plain = load(files["unit"])
    made: list[object] = []

    def model(data: DataSet) -> VAE:
        made.append(data)
        decoder = networks.decoder("mlp", 2, data.shape, 1, (8,))
        return VAE(decoder, likelihoods.ContinuousBernoulli(data.shape), 2)

    ready = prepare(TINY.replace(guide="low-rank:rank=1"), given=Given(model=model, data=plain))
    assert made == [ready.data.train]
    assert ready.pair is None
    assert (ready.recipe.likelihood, ready.recipe.binarize) == ("continuous-bernoulli", "none")
    assert isinstance(ready.guide, LowRank)
    held = prepare(TINY, given=Given(model=model, data=plain, weights=ready.model.state_dict()))
    assert not any(p.requires_grad for p in held.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(held.model.parameters(), ready.model.parameters(), strict=True))
    other = dict(ready.model.state_dict(), strange=torch.zeros(1))
    with pytest.raises(InputError, match="another model's"):
        prepare(TINY, given=Given(model=model, data=plain, weights=other))


def test_a_persons_own_data_are_binarized_where_this_is_asked_for(files: dict[str, str]) -> None:
    plain = load(files["grey"])
    asked = prepare(TINY.replace(binarize="dynamic"), given=Given(data=plain))
    assert [part.binarize for part in asked.data] == ["dynamic", "fixed"]
    assert asked.recipe.likelihood == "bernoulli"
    left = prepare(TINY, given=Given(data=plain))
    assert [part.units for part in left.data] == ["levels", "levels"]
    assert left.recipe.likelihood == "discretized-logistic"
    drawn = prepare(TINY, given=Given(data=load(files["grey"], binarize="dynamic")))
    assert (drawn.recipe.binarize, drawn.recipe.likelihood) == ("dynamic", "bernoulli")


def test_a_pair_without_parameters_is_what_it_is() -> None:
    model = LinearGaussian(dtype=torch.float32)
    x = DataSet.from_arrays(model.simulate(30))
    given = Given(lambda: model, lambda model: LinearGaussianPosterior(model), DataSplits(x, x))
    fitted = prepare(TINY.replace(device="cpu"), given=given).train()
    assert (fitted.epochs, fitted.steps, fitted.history, fitted.run_dir) == (0, 0, [], None)


def test_a_folder_is_named_after_the_options_too() -> None:
    assert Recipe(guide="low-rank:rank=3").title == "digits-vae-low-rank-rank=3"
