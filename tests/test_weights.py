"""log_weights: shapes, plates, masks, scales, enumeration, shared sites; and the first run that checks a pair."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    CLASSES,
    PAIRS,
    SHAPE,
    BottomUp,
    ClassGuide,
    GlobalGuide,
    GlobalWeight,
    MixtureGuide,
    PlainMixtureGuide,
    SemiSupervised,
    TwoLayer,
    binary_batch,
    guide_for,
    pair,
    vae,
)
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import ELBO, IWAE, Batch, check_pair, log_weights, scale_data, scale_latents
from ppl_vae.errors import InputError
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior
from ppl_vae.validation import validation
from ppl_vae.weights import particle_plate


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_the_sites_scored_by_pyro(name: str, particles: int) -> None:
    """Each site's term is what a trace computes; together they are log p - log q."""
    model, guide, batch = pair(name)
    torch.manual_seed(2)
    w = log_weights(model, guide, batch, particles=particles)
    enumerated = name in ("class", "mixture")
    torch.manual_seed(2)
    with particle_plate(particles), poutine.enum(first_available_dim=-3):
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    total: Any = 0.0
    for trace, terms in ((model_trace, w.log_prior), (guide_trace, w.log_guide)):
        for site, term in terms.items():
            torch.testing.assert_close(term, trace.nodes[site]["log_prob"], rtol=1e-13, atol=1e-13)
    for node in model_trace.nodes.values():
        if node["type"] == "sample" and node["is_observed"]:
            total = total + node["log_prob"]
    torch.testing.assert_close(w.log_likelihood, total, rtol=1e-13, atol=1e-13)
    assert w.particles == particles
    assert w.size == batch.size
    assert bool(w.enumerated) == enumerated
    if name == "global":
        assert w.shared == ("w",)
        assert w.log_prior["w"].shape == (particles, 1)
        with pytest.raises(InputError, match="'w' lies outside of the data plate"):
            _ = w.log_w
    else:
        assert w.shared == ()
        left = (CLASSES,) if enumerated else ()
        assert w.log_w.shape == (*left, particles, batch.size)
        torch.testing.assert_close(w.log_w, w.log_joint - w.log_q)
    assert all(value.shape[-2:] != () for value in w.draws.values())


def test_draws_of_an_enumerated_site_are_its_classes() -> None:
    model, guide, batch = pair("class")
    w = log_weights(model, guide, batch, particles=2)
    assert w.enumerated == ("y",)
    assert torch.equal(w.draws["y"], torch.arange(CLASSES).reshape(CLASSES, 1, 1))
    assert w.draws["z"].shape == (CLASSES, 2, batch.size, 2)
    torch.testing.assert_close(
        w.log_q_enumerated.logsumexp(0).expand(2, -1), torch.zeros(2, batch.size).double(), atol=1e-12, rtol=0
    )


def test_nothing_is_enumerated_for_guides_that_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, batch = pair("mean-field")
    monkeypatch.setattr(poutine, "enum", None)  # costs time, so it is not even entered
    w = log_weights(model, guide, batch, particles=2)
    assert w.enumerated == w.rigid == ()
    assert float(w.log_q_enumerated) == 0.0
    assert w.same_order
    assert set(w.pairs) == {"z"}


def test_orders_of_visits() -> None:
    assert not log_weights(*pair("bottom-up")).same_order
    assert log_weights(*pair("top-down")).same_order


def test_a_draw_without_reparameterization_is_named() -> None:
    model = vae()
    w = log_weights(model, PlainMixtureGuide(model), binary_batch())
    assert w.rigid == ("z",)


@pytest.mark.parametrize("handler", [scale_latents(3.0), scale_data(7.0), poutine.scale(scale=2.0)])
def test_scales_do_not_touch_the_weights(handler: Any) -> None:
    """A scale would raise the weights to a power before they are summed."""
    model, guide, batch = pair("full-rank")
    torch.manual_seed(0)
    plain = log_weights(model, guide, batch, particles=3).log_w
    torch.manual_seed(0)
    scaled = log_weights(handler(model), handler(guide), batch, particles=3).log_w
    assert torch.equal(plain, scaled)


def test_a_subsampled_plate_has_the_weights_of_its_data() -> None:
    x = torch.randn(6, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=torch.arange(6), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=torch.arange(6), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 2.0**-0.5))

    w = log_weights(model, guide, x, particles=2)
    wanted = dist.Normal(torch.zeros((), dtype=torch.float64), 2.0**0.5).log_prob(x).expand(2, 6)
    torch.testing.assert_close(w.log_w, wanted)


def test_masks_count() -> None:
    """What is not observed is not scored: the weights are those of a model of the rest."""
    model, guide, batch = pair("mean-field")
    observed = torch.rand(batch.x.shape) < 0.5
    hidden = batch._replace(x=batch.x * observed, observed=observed)
    torch.manual_seed(0)
    w = log_weights(model, guide, hidden, particles=2)
    logits = model.decoder(w.draws["z"]).squeeze(-4)
    by_pixel = dist.Bernoulli(logits=logits + model.likelihood.offset).log_prob(hidden.x)
    torch.testing.assert_close(w.log_likelihood, (by_pixel * observed).flatten(2).sum(-1))
    torch.manual_seed(0)
    changed = log_weights(model, guide, hidden._replace(x=torch.where(observed, batch.x, 1.0), visible=observed))
    torch.manual_seed(0)
    same = log_weights(model, guide, hidden._replace(visible=observed))
    torch.testing.assert_close(changed.log_w, same.log_w)


def test_an_observed_site_outside_of_the_plate_is_refused() -> None:
    """Spread over N data it would count N times."""
    model, guide, batch = pair("mean-field")

    def with_factor(batch: Batch) -> Tensor:
        pyro.factor("regularizer", torch.tensor(1.0, dtype=torch.float64))
        return model(batch)

    with pytest.raises(InputError, match="'regularizer' lies outside of the data plate"):
        log_weights(with_factor, guide, batch)


def test_one_datum_is_told_from_a_shared_site_by_its_plate() -> None:
    """With N = 1 their shapes agree."""
    model, guide, batch = pair("global")
    w = log_weights(model, guide, batch.take(slice(0, 1)), particles=3)
    assert w.shared == ("w",)
    model, guide, batch = pair("mean-field")
    assert log_weights(model, guide, batch.take(slice(0, 1)), particles=3).shared == ()


def test_name_of_the_plate_and_its_dimension_do_not_matter() -> None:
    x = torch.randn(4, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("anything", 4):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("other", 4):
            pyro.sample("z", dist.Normal(x / 2, 2.0**-0.5))

    check_pair(model, guide, x)
    torch.testing.assert_close(
        log_weights(model, guide, x, particles=5).log_w, dist.Normal(x.new_zeros(()), 2**0.5).log_prob(x).expand(5, 4)
    )


def test_deterministic_sites_carry_no_probability() -> None:
    model, guide, batch = pair("mean-field")

    def annotated(batch: Batch) -> Tensor:
        x = model(batch)
        pyro.deterministic("note", x.sum())
        return x

    torch.manual_seed(0)
    a = log_weights(annotated, guide, batch).log_w
    torch.manual_seed(0)
    assert torch.equal(a, log_weights(model, guide, batch).log_w)
    check_pair(annotated, guide, batch)


def test_a_model_without_a_plate_is_refused() -> None:
    def model(batch: Batch) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="no site in a plate at dim=-1"):
        log_weights(model, model, Batch(n=3))


@pytest.mark.parametrize("particles", [0, -1])
def test_no_particles_is_refused(particles: int) -> None:
    model, guide, batch = pair("mean-field")
    with pytest.raises(InputError, match=f"particles={particles}"):
        log_weights(model, guide, batch, particles=particles)


# ---------------------------------------------------------------- exact values


@pytest.mark.parametrize("latent", [1, 3])
def test_under_the_exact_posterior_every_weight_is_p_of_x(latent: int) -> None:
    model = LinearGaussian(4, latent)
    x = model.simulate(6)
    w = log_weights(model, LinearGaussianPosterior(model), Batch(x=x), particles=7)
    torch.testing.assert_close(w.log_w, model.log_marginal(x).expand(7, 6), rtol=0, atol=1e-10)


def brute_force(model: SemiSupervised, guide: ClassGuide, batch: Batch, particles: int, seed: int) -> dict[str, Tensor]:
    """M2's bounds by loops over classes and rows, on the draws that `log_weights` made."""
    torch.manual_seed(seed)
    z_all = log_weights(model, guide, batch, particles=particles).draws["z"]
    elbo, iwae = [], []
    prior = model.prior_logits.log_softmax(-1)
    for n in range(batch.size):
        x, label = batch.x[n], int(batch.y[n])
        classes = [label] if label >= 0 else range(CLASSES)
        log_q_y = guide.classifier(x.flatten()).log_softmax(-1)
        terms, bounds = [], []
        for c in classes:
            one = torch.eye(CLASSES, dtype=torch.float64)[c]
            loc, raw = guide.to_z(torch.cat([x.flatten(), one])).chunk(2)
            scale = (2.0 * torch.tanh(raw / 2.0)).exp()
            z = z_all[c, :, n]  # (K, 2)
            log_q_z = dist.Normal(loc, scale).log_prob(z).sum(-1)
            log_p_z = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
            logits = model.to_x(torch.cat([z, one.expand(particles, -1)], -1))
            log_p_x = dist.Bernoulli(logits=logits).log_prob(x.flatten()).sum(-1)
            log_w = log_p_x + log_p_z + prior[c] - log_q_z  # (K,)
            terms.append(log_w.mean() if label >= 0 else log_q_y[c].exp() * (log_w.mean() - log_q_y[c]))
            bounds.append(log_w)
        elbo.append(torch.stack(terms).sum())
        iwae.append(torch.stack(bounds).logsumexp(0).logsumexp(0) - math.log(particles))
    return {"elbo": torch.stack(elbo), "iwae": torch.stack(iwae)}


@pytest.mark.parametrize("particles", [1, 3])
def test_semi_supervised_bounds_equal_loops_over_rows_and_classes(particles: int) -> None:
    """One program gives the labelled bound and the unlabelled one, row by row."""
    model, guide, batch = pair("class")
    assert bool((batch.y >= 0).any())
    assert bool((batch.y < 0).any())
    wanted = brute_force(model, guide, batch, particles, seed=4)
    torch.manual_seed(4)
    elbo = -ELBO(particles=particles, kl="monte-carlo").terms(model, guide, batch).loss
    torch.manual_seed(4)
    iwae = -IWAE(particles).terms(model, guide, batch).loss
    torch.testing.assert_close(elbo, wanted["elbo"], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(iwae, wanted["iwae"], rtol=1e-11, atol=1e-11)
    parameters = [p for part in (model, guide) for p in part.parameters()]
    torch.manual_seed(4)
    ours = torch.autograd.grad(
        ELBO(particles=particles, kl="monte-carlo").terms(model, guide, batch).loss.sum(), parameters
    )
    theirs = torch.autograd.grad(-wanted["elbo"].sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_semi_supervised_iwae_tends_to_the_marginal_by_quadrature() -> None:
    """log p(x, y) of labelled rows and log p(x) of others, by a grid over z."""
    model, guide, batch = pair("class")
    axis = torch.linspace(-6, 6, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)  # (G, 2)
    log_p_z = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1) + 2 * (axis[1] - axis[0]).log()
    prior = model.prior_logits.log_softmax(-1)
    with torch.no_grad():
        joint = []
        for c in range(CLASSES):
            one = torch.eye(CLASSES, dtype=torch.float64)[c].expand(grid.shape[0], -1)
            logits = model.to_x(torch.cat([grid, one], -1))  # (G, 6)
            log_p_x = dist.Bernoulli(logits=logits.unsqueeze(1)).log_prob(batch.x.flatten(1)).sum(-1)  # (G, N)
            joint.append((log_p_x + log_p_z.unsqueeze(-1)).logsumexp(0) + prior[c])
        by_class = torch.stack(joint)  # (C, N)
        exact = torch.where(
            batch.y >= 0, by_class.gather(0, batch.y.clamp_min(0)[None]).squeeze(0), by_class.logsumexp(0)
        )
        estimate = -IWAE(20_000).terms(model, guide, batch).loss
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.02)


def test_a_stratified_mixture_has_the_plain_mixtures_elbo_and_marginal() -> None:
    model = vae()
    stratified, plain = MixtureGuide(model), PlainMixtureGuide(model)
    plain.load_state_dict(stratified.state_dict())
    batch = binary_batch()
    with torch.no_grad():
        w = log_weights(model, plain, batch, particles=20_000).log_w
        mean, error = w.mean(0), w.std(0) / w.shape[0] ** 0.5
        terms = ELBO(particles=20_000, kl="monte-carlo").terms(model, stratified, batch)
        assert bool(((-terms.loss - mean).abs() < 4 * 1.5 * error).all())
        # the two importance-sampling estimates of log p(x) meet
        stratified_bound = -IWAE(20_000).terms(model, stratified, batch).loss
        plain_bound = w.logsumexp(0) - math.log(20_000)
        error = (w - plain_bound).exp().std(0) / 20_000**0.5
        assert bool(((stratified_bound - plain_bound).abs() < 4 * 1.5 * error).all())
        assert bool((error < 0.02).all())


# ---------------------------------------------------------------- check_pair


class Broken(nn.Module):
    """A guide for the two-layer model, broken in a way that a run without validation does not notice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = BottomUp(TwoLayer())

    def forward(self, batch: Batch) -> Any:
        one = torch.ones(batch.size, 3, dtype=torch.float64)
        zero = torch.zeros(batch.size, 2, dtype=torch.float64)
        with pyro.plate("data", batch.size, dim=-1):
            if self.how != "misses a site":
                pyro.sample("z2", dist.Normal(zero, 1.0).to_event(1))
            if self.how == "no event":
                pyro.sample("z1", dist.Normal(one.T, 1.0))
            elif self.how == "longer event":
                pyro.sample("z1", dist.Normal(torch.cat([one, one], -1), 1.0).to_event(1))
            else:
                pyro.sample("z1", dist.Normal(one, 1.0).to_event(1))
            if self.how == "extra site":
                pyro.sample("z3", dist.Normal(zero, 1.0).to_event(1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("misses a site", r"the guide misses the model's latent site 'z2'; it has \['z1'\]"),
        ("extra site", "the guide has the site 'z3', which the model has not"),
        ("no event", "does not run on this batch|events of shape"),
        ("longer event", "events of shape|does not run"),
    ],
)
def test_what_runs_in_silence_without_validation_is_refused(how: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_pair(TwoLayer(), Broken(how), binary_batch())
    with pytest.raises(InputError, match=message):
        ELBO().loss(TwoLayer(), Broken(how), binary_batch())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_forgotten_event_is_refused_where_sizes_agree(n: int) -> None:
    """With as many data as dimensions the shapes of one particle do not tell."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(n), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x)  # to_event is missing

    def guide(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(batch.size, n), 1.0).to_event(1))

    with pytest.raises(InputError):
        check_pair(model, guide, Batch(x=torch.randn(n, n)))


def test_events_forgotten_by_both_are_refused() -> None:
    def program(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(4, 4), 1.0))

    def model(batch: Batch) -> None:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4, 4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x)

    with pytest.raises(InputError):
        check_pair(model, program, Batch(x=torch.randn(4, 4)))


def test_a_value_that_is_not_finite_under_the_mask_is_refused() -> None:
    """It would leave the loss finite and make the gradient NaN: x is 0 where it is not observed."""
    model, guide, batch = pair("mean-field")
    observed = torch.ones(batch.x.shape, dtype=torch.bool)
    observed[1, 0, 1, 2] = False
    x = batch.x.clone()
    x[1, 0, 1, 2] = float("nan")
    with pytest.raises(InputError):
        check_pair(model, guide, batch._replace(x=x, observed=observed, visible=observed))
    with validation(False), pytest.raises(InputError, match="does not run on this batch"):
        check_pair(model, guide, batch._replace(x=x))  # whatever the caller's flags are
    x[1, 0, 1, 2] = 0.0
    batch = batch._replace(x=x, observed=observed, visible=observed)
    ELBO().loss_and_grads(model, guide, batch)
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters())


def test_a_scope_that_differs_is_refused() -> None:
    class Inside(GlobalGuide):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            with pyro.plate("data", batch.size, dim=-1):
                w = pyro.sample("w", dist.Normal(self.loc, self.raw.exp()).to_event(1))
                return {"w": w, "z": pyro.sample("z", dist.Normal(w[..., :1], 1.0).to_event(1))}

    model, _, batch = pair("global")
    with pytest.raises(InputError, match="'w' lies inside the data plate in one of model and guide"):
        check_pair(model, Inside(model), batch)


def test_a_second_data_plate_is_refused() -> None:
    model, guide, batch = pair("mean-field")

    def twice(batch: Batch) -> Any:
        with pyro.plate("data", batch.size, dim=-1):
            return guide(batch)

    with pytest.raises(InputError, match="does not run on this batch"):
        check_pair(model, twice, batch)


@pytest.mark.parametrize("handler", [scale_latents(3.0), scale_data(7.0), scale_latents(torch.tensor(1.0))])
def test_scaled_programs_are_refused_where_scales_are_ignored(handler: Any) -> None:
    model, guide, batch = pair("mean-field")
    for programs in ((handler(model), guide), (model, handler(guide))):
        check_pair(*programs, batch)
        with pytest.raises(InputError, match="is scaled by"):
            check_pair(*programs, batch, unscaled=True)
        with pytest.raises(InputError, match="is scaled by"):
            IWAE(2).loss(*programs, batch)


@pytest.mark.parametrize("name", PAIRS)
def test_the_check_leaves_random_states_flags_and_parameters_alone(name: str) -> None:
    model, guide, batch = pair(name)
    state, settings = torch.get_rng_state(), pyro.settings.get()
    before = [t.clone() for part in (model, guide) for t in part.state_dict().values()]
    check_pair(model, guide, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert pyro.settings.get() == settings
    after = [t for part in (model, guide) for t in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, affine=False, dtype=torch.float64)

    def forward(self, batch: Batch) -> None:
        x = self.norm(batch.x.flatten(1))
        with pyro.plate("data", batch.size, dim=-1):
            pyro.sample("z", dist.Normal(x[..., :3], 1.0).to_event(1))


def test_the_check_leaves_running_averages_alone() -> None:
    """A resumed run checks its pair once more and must go on as if it had not."""
    model, guide, batch = vae(), Normalized(), binary_batch()
    check_pair(model, guide, batch)
    assert int(guide.norm.num_batches_tracked) == 0
    assert bool((guide.norm.running_mean == 0).all())
    first = log_weights(model, guide, batch)
    assert first.size == batch.size
    assert int(guide.norm.num_batches_tracked) == 1


def test_the_first_call_of_an_objective_takes_the_draws_of_the_second() -> None:
    for name in PAIRS:
        model, guide, batch = pair(name)
        objective = ELBO(particles=2)
        losses = []
        for _ in range(2):
            torch.manual_seed(0)
            losses.append(objective.loss(model, guide, batch))
        assert losses[0] == losses[1]


def test_a_pair_is_checked_once_and_a_new_pair_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_vae.objectives import base

    calls: list[Any] = []
    original = base.check_pair
    monkeypatch.setattr(base, "check_pair", lambda *args, **kwargs: (calls.append(args[0]), original(*args, **kwargs)))
    model, guide, batch = pair("mean-field")
    objective = ELBO()
    for _ in range(3):
        objective.loss(model, guide, batch)
    assert len(calls) == 1
    other = guide_for(model, "full-rank")
    objective.loss(model, other, batch)
    objective.loss(model, guide, batch)
    assert len(calls) == 2
    # nothing is kept alive by having been checked
    del other
    assert len(objective._checked) == 2
    objective.loss(model, guide_for(model), batch)
    assert len(objective._checked) <= 3


def test_objectives_run_with_validation_off_and_put_it_back() -> None:
    """Validation reads tensors at every site, which on a GPU waits for the device."""
    model, guide, batch = pair("mean-field")
    seen: list[bool] = []
    forward = guide.forward

    def watching(batch: Batch) -> Any:
        seen.append(pyro.settings.get("validate_distributions_torch"))
        return forward(batch)

    guide.forward = watching  # type: ignore[method-assign]
    objective = ELBO()
    objective.loss(model, guide, batch)
    objective.loss(model, guide, batch)
    assert seen[-2:] == [False, False]
    assert True in seen
    assert pyro.settings.get("validate_distributions_torch")


def test_shapes_of_data_do_not_matter_to_a_checked_pair() -> None:
    model, guide, _ = pair("mean-field")
    objective = ELBO()
    for n in (1, 4, 9):
        assert objective.terms(model, guide, binary_batch(n)).loss.shape == (n,)
    assert binary_batch(2).x.shape == (2, *SHAPE)
    assert isinstance(GlobalWeight(), nn.Module)
