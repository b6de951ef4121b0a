"""Labels, contexts and masks that are none of a pair's are refused at the first call, by whichever way they come."""

import warnings
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from ppl_vae import (
    ELBO,
    Batch,
    CompiledSVI,
    InputError,
    check_pair,
    fit,
    guides,
    likelihoods,
    log_marginal,
    models,
    networks,
    pyro_pair,
)
from ppl_vae.evaluate import elbo, evaluate, reconstruct
from ppl_vae.inputs import check_batch
from ppl_vae.networks import Condition
from ppl_vae.objectives import IWAE, SemiSupervised, Wake

SHAPE = (1, 2, 2)
N = 4
X = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1]]).view(N, *SHAPE)
Y = torch.tensor([0, 1, 2, 1])
CONTEXT = torch.arange(8.0).view(N, 2)

Entrance = Callable[[nn.Module, nn.Module, Batch], object]


def conditional() -> tuple[nn.Module, nn.Module]:
    """A pair that looks at a class and at two numbers."""
    torch.manual_seed(0)
    given = Condition(classes=3, context=2)
    decoder = networks.decoder("mlp", 2 + given.width, SHAPE, 1, (4,))
    model = models.ConditionalVAE(decoder, likelihoods.Bernoulli(SHAPE), 2, given)
    return model, guides.MeanField(model, networks.encoder("mlp", SHAPE, (4,), condition=given))


def classes() -> tuple[nn.Module, nn.Module]:
    """A pair with a latent class."""
    torch.manual_seed(0)
    model = models.M2(networks.decoder("mlp", 2 + 3, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2, 3)
    encoder = networks.encoder("mlp", SHAPE, (4,))
    return model, guides.classified(model, encoder, guides.MeanField)


def by_svi(model: nn.Module, guide: nn.Module, batch: Batch) -> None:
    with pyro.get_param_store().scope():
        SVI(*pyro_pair(model, guide), pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO()).step(batch)


def by_compiled(model: nn.Module, guide: nn.Module, batch: Batch, loss: object = None) -> None:
    made = ELBO() if loss is None else loss
    CompiledSVI(model, guide, torch.optim.Adam, made, {"lr": 0.01}, compile="graph").step(batch)  # type: ignore[arg-type]


ENTRANCES: dict[str, Entrance] = {
    "check_pair": check_pair,
    "objective": lambda m, g, b: ELBO()(m, g)(b),
    "another objective": lambda m, g, b: Wake(particles=2).loss(m, g, b),
    "CompiledSVI": by_compiled,
    "CompiledSVI, a loss of Pyro's": lambda m, g, b: by_compiled(m, g, b, Trace_ELBO()),
    "CompiledSVI.evaluate_loss": lambda m, g, b: CompiledSVI(
        m, g, torch.optim.Adam, ELBO(), {"lr": 0.01}, compile="graph"
    ).evaluate_loss(b),
    "pyro.infer.SVI": by_svi,
    "evaluate": lambda m, g, b: evaluate(m, g, b, 20),
    "log_marginal": lambda m, g, b: log_marginal(m, g, b, 2),
    "elbo": lambda m, g, b: elbo(m, g, b, 2),
    "reconstruct": lambda m, g, b: reconstruct(m, g, b),
    "fit": lambda m, g, b: fit(m, g, b, ELBO(), epochs=1, batch_size=2, progress=False),
}

VISIBLE = torch.ones(N, *SHAPE, dtype=torch.bool)
NONE_LEFT = VISIBLE.clone()
NONE_LEFT[2] = False

BAD: dict[str, tuple[Batch, str]] = {
    "float labels": (Batch(x=X, y=Y.float(), context=CONTEXT), r"y is torch\.float32 \(4,\)"),
    "one-hot labels": (Batch(x=X, y=torch.eye(3).long()[Y], context=CONTEXT), r"y is torch\.int64 \(4, 3\)"),
    "a label too high": (Batch(x=X, y=torch.tensor([0, 1, 3, 1]), context=CONTEXT), r"y\[2\] is 3; .* 0 to 2"),
    "a label too low": (Batch(x=X, y=torch.tensor([0, -2, 2, 1]), context=CONTEXT), r"y\[1\] is -2; .* 0 to 2"),
    "labels too few": (Batch(x=X, y=Y[:3], context=CONTEXT), r"y has 3 rows where there are 4 data"),
    "a mask of numbers": (
        Batch(x=X, y=Y, context=CONTEXT, visible=VISIBLE.float()),
        r"visible has dtype torch\.float32",
    ),
    "observed of numbers": (Batch(x=X, y=Y, context=CONTEXT, observed=VISIBLE.float()), r"observed has dtype"),
    "a mask of another shape": (Batch(x=X, y=Y, context=CONTEXT, visible=VISIBLE[..., :1]), r"\(4, 1, 2, 1\) where x"),
    "observed of another shape": (Batch(x=X, y=Y, context=CONTEXT, observed=VISIBLE[..., 0]), r"\(4, 1, 2\) where x"),
    "an empty mask": (Batch(x=X, y=Y, context=CONTEXT, visible=NONE_LEFT), r"visible is False throughout in row 2"),
    "nothing observed": (
        Batch(x=X * NONE_LEFT, y=Y, context=CONTEXT, observed=NONE_LEFT),
        r"observed is False throughout in row 2",
    ),
}
# what `fit` takes and mends
INT32 = (Batch(x=X, y=Y.int(), context=CONTEXT), r"y is torch\.int32 \(4,\); .* y\.long\(\)")
CONTEXTS: dict[str, tuple[Batch, str]] = {
    "a context too wide": (Batch(x=X, y=Y, context=CONTEXT[:, :1]), r"context is torch\.float32 \(4, 1\); .* \(4, 2\)"),
    "a context without rows": (Batch(x=X, y=Y, context=CONTEXT[0]), r"context has 2 rows where there are 4 data"),
    "NaN in a context": (Batch(x=X, y=Y, context=CONTEXT / CONTEXT), r"context\[0, 0\] is nan"),
    "no context": (Batch(x=X, y=Y), r"conditioned on a context \(N, 2\); context=None"),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("make", [conditional, classes])
def test_every_entrance_refuses_them(make: Callable[[], tuple[nn.Module, nn.Module]], entrance: str) -> None:
    bad = dict(BAD)
    if entrance != "fit":
        bad["int32 labels"] = INT32
    if make is conditional:
        bad |= CONTEXTS
    for name, (batch, words) in bad.items():
        if entrance == "fit" and name in ("float labels", "one-hot labels"):
            words = "give whole numbers of an integer dtype"
        if make is classes and entrance == "pyro.infer.SVI":
            continue  # a class is enumerated by TraceEnum_ELBO alone
        model, guide = make()
        before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
        with pytest.raises(InputError, match=words):
            ENTRANCES[entrance](model, guide, batch)
        assert all(torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *guide.parameters()), strict=True))


@pytest.mark.parametrize("make", [conditional, classes])
def test_what_is_right_passes(make: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
    """All labels there, some, none of them; masks with one place left; fields that the pair does not look at."""
    one = torch.zeros_like(VISIBLE)
    one[:, 0, 0, 1] = True
    fine = Batch(x=X, y=Y, context=CONTEXT)
    for batch in (
        fine,
        fine._replace(y=torch.tensor([-1, 1, -1, 2])),
        fine._replace(y=torch.full((N,), -1)),
        fine._replace(visible=one),
        fine._replace(x=X * one, observed=one),
    ):
        model, guide = make()
        check_batch(batch, model, guide)
        assert ELBO().terms(model, guide, batch).loss.isfinite().all()
    plain = models.VAE(networks.decoder("mlp", 2, SHAPE, 1, (4,)), likelihoods.Bernoulli(SHAPE), 2)
    check_batch(Batch(x=X, y=torch.rand(N), context=torch.rand(N, 9)), plain)


def test_a_step_does_not_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is of the first call of a pair, and of no other."""
    calls = []
    monkeypatch.setattr("ppl_vae.weights.check_batch", lambda *a, **k: calls.append(a))
    model, guide = conditional()
    objective, batch = IWAE(2), Batch(x=X, y=Y, context=CONTEXT)
    for _ in range(3):
        objective.loss(model, guide, batch)
    assert len(calls) == 1


def words_of(objective: object, y: torch.Tensor | None, make: object = classes) -> list[str]:
    """What `fit` warns of."""
    model, guide = make()  # type: ignore[operator]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(model, guide, Batch(x=X, y=y, context=CONTEXT), objective, epochs=1, batch_size=4, progress=False)  # type: ignore[arg-type]
    return [str(w.message) for w in seen]


def test_fit_says_what_labels_cannot_teach() -> None:
    some = torch.tensor([0, 1, -1, 2])
    assert words_of(SemiSupervised(), some) == words_of(ELBO(), some) == []
    assert words_of(SemiSupervised(), Y) == words_of(ELBO(), Y, conditional) == []
    (text,) = words_of(ELBO(), Y)
    assert "all 4 of" in text
    assert "leaves as it started" in text
    (text,) = words_of(ELBO(), torch.full((N,), -1))
    assert "clusters" in text
    for objective, make in ((SemiSupervised(), classes), (ELBO(), conditional)):
        (text,) = words_of(objective, torch.tensor([0, 0, 2, -1]), make)
        assert "no label of the class 1: what the model makes of it" in text
        with pytest.raises(InputError, match=r"learns classes from labels, and .* has none"):
            words_of(objective, torch.full((N,), -1), make)
    with pytest.raises(InputError, match=r"learns classes from labels, and .* has none"):
        words_of(SemiSupervised(), None)
