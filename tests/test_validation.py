"""Validation flags: all four are switched, and what was there comes back, whatever it was."""

import itertools
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Distribution

from ppl_vae.validation import validation

NAMES = [name for name in pyro.settings.get() if "validat" in name]


def flags() -> dict[str, bool]:
    return {name: pyro.settings.get(name) for name in NAMES} | {"torch": Distribution._validate_args}


def test_there_are_four_flags() -> None:
    assert len(NAMES) == 4


@pytest.mark.parametrize("before", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("enabled", [True, False])
def test_every_flag_is_switched_and_restored(before: tuple[bool, ...], enabled: bool) -> None:
    start = pyro.settings.get()
    try:
        pyro.settings.set(**dict(zip(NAMES, before, strict=True)))
        wanted = flags()
        with validation(enabled):
            assert set(flags().values()) == {enabled}
            with validation(not enabled):
                assert set(flags().values()) == {not enabled}
            assert set(flags().values()) == {enabled}
        assert flags() == wanted
        with pytest.raises(ZeroDivisionError), validation(enabled):
            _ = 1 / 0
        assert flags() == wanted
    finally:
        pyro.settings.set(**start)


def test_who_has_only_torchs_flag_off_finds_it_off_afterwards() -> None:
    """`pyro.validation_enabled` puts torch's flag where Pyro's was."""
    start = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with validation(True):
            with pytest.raises(ValueError, match="scale"):
                dist.Normal(0.0, -1.0)
            with pytest.raises(ValueError, match="scale"):
                torch.distributions.Normal(0.0, -1.0)
        assert Distribution._validate_args is False
        torch.distributions.Normal(0.0, -1.0)
    finally:
        Distribution.set_default_validate_args(start)


def test_another_threads_switch_waits() -> None:
    seen: list[bool] = []
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with validation(False):
            inside.set()
            leave.wait(5)
            seen.append(Distribution._validate_args)

    def switch() -> None:
        with validation(True):
            seen.append(Distribution._validate_args)

    holder, other = threading.Thread(target=hold), threading.Thread(target=switch)
    holder.start()
    assert inside.wait(5)
    other.start()
    other.join(0.05)
    assert other.is_alive()
    assert seen == []
    leave.set()
    holder.join(5)
    other.join(5)
    assert seen == [False, True]
