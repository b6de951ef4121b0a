"""Pictures of disentanglement: dimensions by their KL, the KL during training, what each capacity lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..build import DataSpec
from ..data import DataSet
from ..data.arrays import evenly
from ..errors import InputError, check_count
from ..evaluate import kl_by_dimension
from ..evaluate.latent_space import decode
from ..evaluate.latents import encode
from ..latent_plots import ways
from ..plots import figure_of, pictures, show, subscript, tiled, wrapped_title
from ..weights import Program
from .watch import Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["kl_curves", "reconstructions_in_time", "traversals"]

_NAMED = 12


def traversals(
    model: Program, guide: Program, data: DataSet, row: int = 0, *, steps: int = 11, reach: float = 2.0, title: str = ""
) -> Figure:
    """One datum's E[x | z] while one dimension of z moves and the others stay at its posterior mean: a row for each
    dimension, that of the largest KL first.

    Args:
        model, guide: a pair with one latent site (Z,).
        data: the KL of each dimension is the mean over these, nats.
        row: which datum.
        steps: how many values of the dimension.
        reach: from -reach to reach, in units of the standard normal prior.

    Raises:
        InputError: several latent sites, or a KL without a closed form.
    """
    code = encode(model, guide, data.take([row]).fixed()).means
    if len(code) != 1:
        raise InputError(f"the guide has the sites {', '.join(map(repr, code))}; traversals are of one")
    ((site, anchor),) = code.items()
    if anchor.dim() != 2:
        raise InputError(f"{site!r} is {tuple(anchor.shape[1:])} for each datum; traversals are of a vector")
    kl = kl_by_dimension(model, guide, data.fixed()).mean[site].flatten()
    order = kl.argsort(descending=True, stable=True).tolist()
    values = torch.linspace(-reach, reach, check_count("steps", steps, 2)).to(anchor)
    points = anchor.expand(len(order), steps, -1).clone()
    for k, d in enumerate(order):
        points[k, :, d] = values
    batch = data.batch([row]).take(torch.zeros(points[..., 0].numel(), dtype=torch.int64))
    means = decode(model, {site: points.flatten(0, 1)}, batch).unflatten(0, points.shape[:2])
    return ways(
        [(f"{site}{subscript(d + 1)}", means[k]) for k, d in enumerate(order)],
        DataSpec.of(data),
        title or f"Each dimension of {site} from {-reach:g} to {reach:g}, the others as of datum {row}",
        places=values.cpu().expand(len(order), steps),
        places_name="value of the dimension",
        columns=data.columns,
        after=[f"KL {float(kl[d]):.2f} nats" for d in order],
    )


def kl_curves(watch: Watch, title: str = "KL of each dimension during training") -> Figure:
    """The KL of each dimension after each epoch, nats, and their sum with the capacity where there is one."""
    steps, kl, capacity = watch.steps, watch.kl, watch.capacity
    figure = figure_of(10.4, 3.9)
    left, right = figure.subplots(1, 2)
    order = np.argsort(-kl[-1], kind="stable")
    for k, d in enumerate(order):
        label = f"z{subscript(int(d) + 1)}: {kl[-1, d]:.2f}" if k < _NAMED else None
        left.plot(steps, kl[:, d], color=f"C{k % 10}", linestyle="-" if k < 10 else "--", label=label, linewidth=1.4)
    left.set_ylabel("KL, nats per datum")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize="small", title="last KL")
    right.plot(steps, kl.sum(1), color="black", linewidth=1.4, label="all dimensions")
    if not np.isnan(capacity).all():
        right.plot(steps, capacity, color="C3", linestyle="--", linewidth=1.4, label="C(t)")
    right.legend(frameon=False, fontsize="small")
    for axis in (left, right):
        axis.set_xlabel("training steps")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    wrapped_title(figure, title)
    return figure


def reconstructions_in_time(watch: Watch, spec: DataSpec, most: int = 7, title: str = "") -> Figure:
    """A few images, and E[x | z] of them at times of training, with the KL that there was and what the capacity
    allowed.

    Args:
        watch: what was seen.
        spec: what the data are.
        most: rows, evenly spaced in time, the last one last.

    Raises:
        InputError: data that are no images.
    """
    if len(spec.shape) != 3:
        raise InputError(f"data of shape {tuple(spec.shape)} are no images (C, H, W); see kl_curves")
    chosen = evenly(len(watch.pictured), check_count("most", most)).numpy()
    at = {int(step): k for k, step in enumerate(watch.steps)}
    names = ["data"]
    for step in watch.pictured[chosen]:
        k = at[int(step)]
        allowed = "" if np.isnan(watch.capacity[k]) else f"C = {watch.capacity[k]:.1f}, "
        names.append(f"step {step:,}\n{allowed}KL {watch.kl[k].sum():.1f}")
    images = np.concatenate([watch.x[None], watch.means[chosen]])
    across = images.shape[1]
    tiles = tiled(pictures(torch.from_numpy(images).flatten(0, 1), spec), across)
    cell = 0.75
    figure = figure_of(1.7 + cell * across, cell * spec.shape[1] / spec.shape[2] * len(images) + 0.7)
    axis = figure.subplots()
    show(axis, tiles)
    axis.spines[:].set_visible(False)
    pitch = tiles.shape[0] / len(images)
    axis.set_yticks([(k + 0.5) * pitch - 0.5 for k in range(len(images))], names, fontsize=8)
    axis.tick_params(length=0)
    wrapped_title(figure, title or "What gets through: E[x | z] during training (nats)")
    return figure
