"""What every test and doctest runs under: one thread, fixed seeds, no display, global state left as it was."""

import os
import tempfile
from collections.abc import Iterator

import pytest

# The root's models and guides are links to ppl_vae/models and ppl_vae/guides, which are collected where they are.
# This file has no doctests, and shares its name with tests/conftest.py.
collect_ignore = ["models", "guides", "conftest.py"]

os.environ["MPLBACKEND"] = "Agg"
# All loops of a graph in one C++ file, whose headers are read once: a third of the time. The loops themselves are those
# of the compiler's default, under which the tests marked `by_default` compile.
os.environ.setdefault("TORCHINDUCTOR_CPP_WRAPPER", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read at the first import of torch, by subprocesses too
if not os.access(os.path.expanduser("~"), os.W_OK):
    os.environ["HOME"] = tempfile.mkdtemp(prefix="ppl_vae-home-")  # Matplotlib, ArviZ and torch keep caches there


def _global_state() -> dict[str, object]:
    import pyro
    import torch

    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's validation": torch.distributions.Distribution._validate_args,
        **pyro.settings.get(),
    }


@pytest.fixture(autouse=True)
def _as_users_compile(request: pytest.FixtureRequest) -> Iterator[None]:
    if "by_default" not in request.keywords:
        yield
        return
    from torch._inductor import config

    with config.patch(cpp_wrapper=False):
        yield


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Seeds every generator before a test, and fails a test that changes what others rely on."""
    import pyro
    import torch

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    before = _global_state()
    yield
    after = _global_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"the test left global state changed (before, after): {changed}"
