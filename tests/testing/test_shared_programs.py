"""The programs that other tests rest on keep the contracts themselves."""

import pytest
from programs import PAIRS, pair

from ppl_vae import ELBO, IWAE
from ppl_vae.testing import check_guide, check_model, check_objective


@pytest.mark.parametrize("name", PAIRS)
def test_pair_keeps_the_contracts(name: str) -> None:
    model, guide, batch = pair(name)
    check_model(model, batch)
    check_guide(guide, model, batch)
    check_objective(ELBO(particles=2), model, guide, batch)


@pytest.mark.parametrize(("name", "without"), [("class", ["guide.classifier"]), ("mixture", ["guide.to_logits"])])
def test_iwae_over_enumerated_sites_keeps_the_contract(name: str, without: list[str]) -> None:
    """log q(c | x) cancels in the bound, which has no gradient for the classes' probabilities."""
    model, guide, batch = pair(name)
    check_objective(IWAE(3), model, guide, batch, without_gradient=without if name == "class" else ())
