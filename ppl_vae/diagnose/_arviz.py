"""ArviZ 0.23 and 1.x under one set of names: everything in which they differ is in this file.

0.23 keeps groups in an `InferenceData`, 1.x in an `xarray.DataTree`; both give a group as ``data["posterior"]`` or
``data.posterior``, an `xarray.Dataset` or a node that works like one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["container", "from_netcdf", "groups_of", "plot_posterior", "plot_predictive", "summary", "to_netcdf"]

_ENGINE = "h5netcdf"


def _is_one(arviz: Any) -> bool:
    return int(arviz.__version__.partition(".")[0]) >= 1


def container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, str]) -> Any:
    """The groups as what this ArviZ works on: `InferenceData` (0.23) or `xarray.DataTree` (1.x)."""
    import arviz as az

    if _is_one(az):
        import xarray as xr

        tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
        tree.attrs.update(attrs)
        return tree
    return az.InferenceData(attrs=dict(attrs), **groups)


def groups_of(data: Any) -> dict[str, xr.Dataset]:
    """The groups of what `container` made."""
    # InferenceData has groups(), a DataTree has children
    if callable(data.groups):
        return {name: data[name] for name in data.groups()}
    return {name: node.to_dataset() for name, node in data.children.items()}


def summary(data: Any, var_names: list[str] | None = None, **kwargs: Any) -> Any:
    """Mean, standard deviation and interval of each variable of the posterior, a `pandas.DataFrame`.

    Draws from a guide are independent. Their effective number is their number, and R-hat, which compares chains that
    should have met, says nothing about how far the guide is from the posterior: neither is shown.

    Args:
        data: what `to_arviz` returned.
        var_names: sites; None: all.
        kwargs: to `arviz.summary`.
    """
    import arviz as az

    return az.summary(data, var_names=var_names, kind="stats", **kwargs)


def plot_posterior(data: Any, var_names: list[str] | None = None, **kwargs: Any) -> Any:
    """Marginal posterior densities: `arviz.plot_posterior` (0.23) or `arviz.plot_dist` (1.x), with what they return.

    Args:
        data: what `to_arviz` returned.
        var_names: sites; None: all.
        kwargs: to ArviZ's function; with many data choose some, ``coords={"datum": [0, 1]}``.
    """
    import arviz as az

    plot = az.plot_dist if _is_one(az) else az.plot_posterior
    return plot(data, var_names=var_names, **kwargs)


def plot_predictive(data: Any, group: str = "posterior", draws: int = 50, **kwargs: Any) -> Any:
    """The distribution of x's elements, drawn and observed: `arviz.plot_ppc` (0.23) or `arviz.plot_ppc_dist` (1.x),
    with what they return.

    Args:
        data: what `to_arviz` returned.
        group: "posterior" or "prior" predictive.
        draws: number of drawn data sets to show.
        kwargs: to ArviZ's function.
    """
    import arviz as az

    if group not in ("posterior", "prior"):
        raise InputError(f"group={group!r} is not known; choose 'posterior' or 'prior'")
    draws = min(draws, data[f"{group}_predictive"].sizes["draw"])
    if _is_one(az):
        with warnings.catch_warnings():
            # its advice is for one binary outcome a datum; here x has many elements, binarized pixels above all
            warnings.filterwarnings("ignore", message=".*look binary", category=UserWarning)
            return az.plot_ppc_dist(data, group=f"{group}_predictive", num_samples=draws, **kwargs)
    return az.plot_ppc(data, group=group, num_pp_samples=draws, **kwargs)


def to_netcdf(data: Any, path: str | os.PathLike[str]) -> None:
    """Write all groups to one netCDF4 file, which both generations of ArviZ read, and xarray, R and Julia."""
    data.to_netcdf(os.fspath(path), engine=_ENGINE)


def from_netcdf(path: str | os.PathLike[str]) -> Any:
    """Read a file written by `to_netcdf` into memory.

    Raises:
        InputError: there is no such file.
    """
    import arviz as az

    if not os.path.exists(path):
        raise InputError(f"path={os.fspath(path)!r} is not there")
    if not _is_one(az):
        return az.from_netcdf(os.fspath(path), engine=_ENGINE)
    tree = az.from_netcdf(os.fspath(path), engine=_ENGINE)
    try:
        return tree.load()
    finally:
        tree.close()
