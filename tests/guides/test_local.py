"""The guide without an encoder: whose parameters a datum has, what it refuses, and other data under a frozen model."""

import copy

import pytest
import torch
from programs import GlobalWeight, SemiSupervised, TwoLayer, binary_batch, vae
from torch import Tensor

from ppl_vae import ELBO, Batch, InputError, fit, guides, likelihoods, load, log_marginal, models, networks
from ppl_vae.networks import FullRankNormal
from ppl_vae.testing import LinearGaussian, check_guide
from ppl_vae.validation import validation

FAMILIES = ("mean-field", "full-rank")


def with_rows(batch: Batch, rows: Tensor | None = None) -> Batch:
    return batch._replace(rows=torch.arange(batch.size) if rows is None else rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_contract(family: str, dtype: torch.dtype) -> None:
    model = vae(dtype=dtype)
    guide = guides.Local(model, 9, family).to(dtype)  # type: ignore[arg-type]
    check_guide(guide, model, with_rows(binary_batch(dtype=dtype), torch.tensor([8, 0, 3, 4, 1])))


def test_the_contract_with_two_sites() -> None:
    model = TwoLayer()
    check_guide(guides.Local(model, 5).double(), model, with_rows(binary_batch()))


def test_it_starts_at_the_prior() -> None:
    for family in FAMILIES:
        q = guides.Local(vae(), 5, family).double().distribution(with_rows(binary_batch()))["z"]
        assert not q.mean.any()
        torch.testing.assert_close(q.stddev, torch.ones(5, 3).double())


def test_each_datum_has_its_own_parameters_by_row() -> None:
    model = vae()
    guide = guides.Local(model, 6).double()
    with torch.no_grad():
        guide.numbers["z"].copy_(torch.randn(6, 6))
    batch = with_rows(binary_batch(), torch.tensor([3, 3, 0, 5, 1]))
    q = guide.distribution(batch)["z"]
    torch.testing.assert_close(q.mean, guide.numbers["z"][batch.rows, :3])
    ELBO().differentiable_loss(model, guide, batch).backward()
    touched = guide.numbers["z"].grad.abs().sum(-1) > 0
    assert touched.tolist() == [True, True, False, True, False, True]


def test_x_is_not_looked_at() -> None:
    guide = guides.Local(vae(), 5)
    q = guide.distribution(Batch(rows=torch.arange(5)))["z"]
    assert tuple(q.batch_shape) == (5,)


def test_a_batch_without_rows_is_refused() -> None:
    model = vae()
    guide = guides.Local(model, 5).double()
    for use in (guide, guide.distribution, lambda batch: ELBO().loss(model, guide, batch)):
        with pytest.raises(InputError, match=r"this batch has no rows; for other data fit renew\(size\)"):
            use(binary_batch())


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("stranger", [5, -1, 10**6])
def test_rows_of_other_data_are_refused(validate: bool, stranger: int) -> None:
    model = vae()
    guide = guides.Local(model, 5).double()
    batch = with_rows(binary_batch(), torch.tensor([0, 1, 2, 3, stranger]))
    with validation(validate), pytest.raises(InputError, match=f"{stranger}.* has parameters for the rows 0 to 4"):
        guide(batch)
    with pytest.raises(InputError, match="parameters for the rows 0 to 4"):
        log_marginal(model, guide, batch, 2)


def test_what_it_is_not_for_is_refused() -> None:
    for size in (0, -1, 2.0, True, None):
        with pytest.raises(InputError, match=f"size={size!r} must be the number of data"):
            guides.Local(vae(), size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="family='fullrank' is not known; did you mean 'full-rank'"):
        guides.Local(vae(), 5, "fullrank")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'w' of GlobalWeight is shared by all data"):
        guides.Local(GlobalWeight(), 5)
    with pytest.raises(InputError, match="discrete"):
        guides.Local(SemiSupervised(), 5)


def test_renewal_is_for_other_data_and_starts_anew() -> None:
    model = vae()
    guide = guides.Local(model, 5, "full-rank").double()
    with torch.no_grad():
        guide.numbers["z"].add_(1.0)
    before = copy.deepcopy(guide.state_dict())
    other = guide.renew(3)
    assert (other.size, other.family) == (3, "full-rank")
    assert isinstance(other.heads["z"], FullRankNormal)
    assert other.numbers["z"].dtype == torch.float64
    assert tuple(other.numbers["z"].shape) == (3, 9)
    assert not other.numbers["z"].any()
    check_guide(other, model, with_rows(binary_batch(3)))
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    with pytest.raises(InputError, match="size=0"):
        guide.renew(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_the_best_of_its_family_for_data_it_is_renewed_for(family: str) -> None:
    """On the linear-Gaussian oracle: log p(x) within 0.01 nats with full rank, and less by the known gap without."""
    oracle = LinearGaussian(data=5, latent=2, seed=7)
    guide = guides.Local(oracle, 50, family).double().renew(12)  # type: ignore[arg-type]
    batch = with_rows(Batch(x=oracle.simulate(12, seed=1)))
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    steps = 400
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = ELBO(particles=16)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(oracle, guide, batch).backward()
        optimizer.step()
        schedule.step()
    q, p = guide.distribution(batch)["z"], oracle.posterior(batch.x)
    dense = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    gap = torch.distributions.kl_divergence(q if family == "full-rank" else dense, p).detach()
    wanted = 0.0 if family == "full-rank" else oracle.mean_field_gap()
    assert bool(((gap - wanted).abs() < 0.01).all())


def test_other_data_are_refused() -> None:
    """Another set of equal size has other parameters; so has a validation set, whose rows are counted from 0."""
    torch.manual_seed(0)
    splits = load("digits", binarize="dynamic")
    train, others = splits.train.take(range(20)), splits.train.take(range(20, 40))
    decoder = networks.decoder("mlp", 2, train.shape, 1, (8,))
    model = models.VAE(decoder, likelihoods.Bernoulli(train.shape), 2)
    guide = guides.Local(model, 20)
    options = {"epochs": 2, "batch_size": 20, "progress": False}
    with pytest.raises(InputError, match=r"validation=.* Local has parameters for each datum of the training data"):
        fit(model, guide, train, ELBO(), validation=others, patience=1, **options)
    assert int(guide.fingerprint) == -1
    fit(model, guide, train, ELBO(), **options)
    for same in (train, train.fixed(), train.to("cpu")):  # binarized, it is still the set that it was drawn from
        log_marginal(model, guide, same, particles=2)
    for call in (
        lambda: log_marginal(model, guide, others, particles=2),
        lambda: fit(model, guide, others, ELBO(), **options),
    ):
        with pytest.raises(InputError, match=r"Local has parameters .* and 'digits .*' is another one: fit fresh ones"):
            call()
    # what is known is saved with the parameters
    again = guides.Local(model, 20)
    again.load_state_dict(guide.state_dict())
    with pytest.raises(InputError, match="is another one"):
        log_marginal(model, again, others, particles=2)
    assert int(guide.renew(20).fingerprint) == -1
