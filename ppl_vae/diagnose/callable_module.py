"""A module that can be called: `ppl_vae.diagnose` is one name for the whole and for the place of its parts."""

from __future__ import annotations

from types import ModuleType

from .diagnosis import diagnose

__all__ = ["Diagnostics"]


class Diagnostics(ModuleType):
    """The module `ppl_vae.diagnose`: called it is the function of the same name, and otherwise a module like others."""

    # no method: what is called is the function, its signature and its documentation its own
    __call__ = staticmethod(diagnose)
