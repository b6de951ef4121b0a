import io

import pytest
import torch
from rich.console import Console

from ppl_vae import guides, likelihoods, models, networks
from ppl_vae.display import Display, TrainingLines, display, make_console
from ppl_vae.fit import EpochEnd
from ppl_vae.objectives import ELBO
from ppl_vae.progress import make_progress, said


def told(epoch: int) -> EpochEnd:
    part = torch.nn.Identity()
    return EpochEnd(epoch, {"elbo": -3.25, "kl": 1.5}, part, part, ELBO())


def test_ten_lines_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = TrainingLines("mean-field", 200)
    for epoch in range(1, 201):
        lines(told(epoch))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 10
    assert err.splitlines()[-1] == "mean-field: epoch 200/200, ELBO -3.25, KL 1.50 nats/datum"


def test_few_epochs_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = TrainingLines("a", 3)
    for epoch in range(1, 4):
        lines(told(epoch))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_what_is_trained_for_is_named() -> None:
    """No ELBO where the KL has no weight, and none at all of a point."""
    row = {"elbo": -3.25, "kl": 1.5, "log_likelihood": -1.75}
    model = models.VAE(networks.decoder("mlp", 2, (3,), 1), likelihoods.Bernoulli((3,)), 2)
    encoder = networks.encoder("mlp", (3,))
    point, spread = guides.Delta(model, encoder), guides.MeanField(model, encoder)
    kl = "KL 1.50 nats/datum"
    assert said(row, spread, ELBO()) == ("ELBO -3.25", kl)
    assert said(row, spread, ELBO(beta=0)) == ("log p(x | z) -1.75", kl)
    for beta in (0, 1):
        assert said(row, point, ELBO(beta=beta)) == ("log p(x | z) -1.75", "log p(z) -1.50 nats/datum")


def test_a_log_gets_lines_and_a_terminal_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with display(True) as shows:  # the captured standard error is no terminal
        assert shows.lines
        assert shows.bars is None
        assert isinstance(shows.for_fit("a", 3)["callbacks"][0], TrainingLines)
        shows.count("evaluate a", 10)(5, 10)
    assert capsys.readouterr().err == "evaluate a\n"

    screen = io.StringIO()
    with make_progress(Console(file=screen, force_terminal=True, width=100)) as bars, display(bars) as shows:
        assert not shows.lines
        assert shows.for_fit("a", 3) == {"progress": bars, "description": "a"}
        assert shows.for_fit("a", 3, devices=2)["progress"] is True
        shows.count("evaluate a", 10)(5000, 10000)
    assert "evaluate a" in screen.getvalue()
    assert "5/10" in screen.getvalue()


def test_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with display(False) as shows:
        assert shows.for_fit("a", 3) == {"progress": False, "callbacks": ()}
        shows.count("evaluate a", 10)(5, 10)
    assert capsys.readouterr() == ("", "")
    assert isinstance(shows, Display)


def test_without_a_terminal_lines_are_wide_and_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    make_console().print("[bold]" + "x" * 110 + "[/bold]")
    assert capsys.readouterr().out == "x" * 110 + "\n"
    monkeypatch.setenv("COLUMNS", "50")
    assert make_console().width == 50
