"""Names of parts, and the errors for names that are not."""

import pytest

from ppl_vae import guides, likelihoods, models, objectives
from ppl_vae.errors import InputError, NonFiniteLossError, RunError, choose
from ppl_vae.registry import Registry


def test_what_is_registered() -> None:
    assert {"vae", "cvae"} <= set(models.models)
    assert {"mean-field", "full-rank"} <= set(guides.guides)
    assert {"elbo", "iwae", "renyi"} <= set(objectives.objectives)
    assert set(likelihoods.likelihoods) == {
        "bernoulli", "continuous-bernoulli", "gaussian", "gaussian-learned", "gaussian-per-pixel",
        "discretized-logistic", "categorical", "student-t", "poisson", "negative-binomial",
    }  # fmt: skip


@pytest.mark.parametrize(
    "registry", [models.models, guides.guides, objectives.objectives, likelihoods.likelihoods], ids=lambda r: r.kind
)
def test_every_part_says_in_a_line_what_it_is(registry: Registry[type]) -> None:
    for name in registry:
        assert registry.summary(name)
        assert len(registry.summary(name)) < 120
        assert registry.summary(name).endswith(".")  # a sentence, not the first half of one
        assert registry.name_of(registry.get(name)) == name
        # of its own: an inherited docstring describes another part
        assert registry.get(name).__doc__


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(
        InputError, match=r"guide='meanfield' is not known; did you mean 'mean-field'( or '.*')?\? choose one of: "
    ):
        guides.guides.get("meanfield")
    with pytest.raises(InputError, match="objective='zzz' is not known; choose one of: ") as caught:
        objectives.objectives.get("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_name_is_given_once() -> None:
    registry: Registry[type] = Registry("thing")
    registry.register("a")(int)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("a")(str)
    assert registry.get("a") is int
    with pytest.raises(KeyError):
        registry.name_of(str)


def test_kinds_of_errors() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(RunError, InputError)
    assert issubclass(NonFiniteLossError, RuntimeError)
    assert "'b', 'c'" not in str(choose("x", 1, ["c", "b"]))
    assert "b, c" in str(choose("x", 1, ["c", "b"]))
