"""The data sets that have a name: scikit-learn's digits, and those of torchvision."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import pickle
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..errors import InputError
from ..registry import Registry
from .dataset import DataSet, DataSplits, split
from .sprites import sprites

__all__ = ["DIGITS_SEED", "Loader", "data_sets"]

DIGITS_SEED = 0
"""The seed of the digits' split into 80% and 20%, stratified by class."""

Loader: TypeAlias = Callable[[Path, bool], DataSplits]
"""Reads a named set from a folder (used where there are files to keep), downloading what is missing if it may."""

data_sets: Registry[Loader] = Registry("data")

_SECONDS_TO_WAIT = 30.0
_DAMAGED = (RuntimeError, ValueError, AssertionError, IndexError, KeyError, EOFError, OSError, pickle.UnpicklingError)


@data_sets.register("digits")
def digits(data_dir: Path, download: bool) -> DataSplits:
    """1,797 handwritten digits, 8 x 8 grey, 17 levels, from scikit-learn, no download (Alpaydin and Kaynak, 1998)."""
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    whole = DataSet.from_arrays(bunch.images, bunch.target, name="digits", levels=17)
    train, test = split(whole, 0.2, DIGITS_SEED)
    return DataSplits(dataclasses.replace(train, split="train"), dataclasses.replace(test, split="test"))


@data_sets.register("pinwheel")
def pinwheel(data_dir: Path, download: bool) -> DataSplits:
    """500 points in the plane, five curved arms of 100 each, and as many to test, simulated (Johnson et al., 2016).

    Of arm a, with u ~ N(1, 0.3²) along it and v ~ N(0, 0.05²) across, x is 10 (u, v) turned by 2π a / 5 + e^u / 4.
    """
    parts = []
    for seed, name in enumerate(("train", "test")):
        generator = torch.Generator().manual_seed(seed)
        arms = torch.arange(5).repeat_interleave(100)[torch.randperm(500, generator=generator)]
        noise = torch.randn(500, 2, generator=generator, dtype=torch.float64)
        along, across = 1.0 + 0.3 * noise[:, 0], 0.05 * noise[:, 1]
        angle = 2.0 * math.pi / 5.0 * arms + 0.25 * along.exp()
        cos, sin = angle.cos(), angle.sin()
        x = 10.0 * torch.stack([along * cos + across * sin, across * cos - along * sin], -1)
        names = [str(arm) for arm in range(5)]
        parts.append(DataSet.from_arrays(x.float(), arms, name="pinwheel", class_names=names, split=name))
    return DataSplits(*parts)


@data_sets.register("sprites")
def sprites_named(data_dir: Path, download: bool) -> DataSplits:
    """737,280 binary shapes, 64 x 64, made from five known factors when they are asked for; 10,000 of them to test."""
    whole = sprites()
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(DIGITS_SEED))
    held = order[:10_000].sort().values
    rest = order[10_000:].sort().values
    return DataSplits(
        dataclasses.replace(whole.take(rest), split="train"), dataclasses.replace(whole.take(held), split="test")
    )


@data_sets.register("mnist")
def mnist(data_dir: Path, download: bool) -> DataSplits:
    """70,000 handwritten digits, 28 x 28 grey, 256 levels (LeCun, Cortes and Burges, 1998)."""
    return _torchvision("mnist", "MNIST", data_dir, download, [str(c) for c in range(10)])


@data_sets.register("fashion-mnist")
def fashion_mnist(data_dir: Path, download: bool) -> DataSplits:
    """70,000 pieces of clothing, 28 x 28 grey, 256 levels (Xiao, Rasul and Vollgraf, 2017)."""
    return _torchvision("fashion-mnist", "FashionMNIST", data_dir, download)


@data_sets.register("kmnist")
def kmnist(data_dir: Path, download: bool) -> DataSplits:
    """70,000 cursive Japanese characters, 28 x 28 grey, 256 levels (Clanuwat et al., 2018)."""
    return _torchvision("kmnist", "KMNIST", data_dir, download)


@data_sets.register("svhn")
def svhn(data_dir: Path, download: bool) -> DataSplits:
    """99,289 house numbers, 32 x 32 colour, 256 levels (Netzer et al., 2011)."""
    return _torchvision("svhn", "SVHN", data_dir, download, [str(c) for c in range(10)])


@data_sets.register("cifar10")
def cifar10(data_dir: Path, download: bool) -> DataSplits:
    """60,000 small photographs, 32 x 32 colour, 256 levels (Krizhevsky, 2009)."""
    return _torchvision("cifar10", "CIFAR10", data_dir, download)


@data_sets.register("fake")
def fake(data_dir: Path, download: bool) -> DataSplits:
    """250 pictures of noise, 16 x 16 colour, 256 levels, made by torchvision: for trying out programs."""
    datasets = _import_torchvision("fake")
    # torchvision seeds the default generators for every picture, and puts back the CPU's alone
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    parts = []
    with torch.random.fork_rng(devices=list(devices)):
        for name, size, offset in (("train", 200, 0), ("test", 50, 200)):
            pictures = datasets.FakeData(size, image_size=(3, 16, 16), num_classes=10, random_offset=offset)
            images, labels = zip(*(pictures[i] for i in range(size)), strict=True)
            parts.append(_part("fake", name, [_pixels(image) for image in images], labels, [str(c) for c in range(10)]))
    return DataSplits(*parts)


_FILES = {
    "mnist": "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (unpacked)",
    "fashion-mnist": "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (unpacked)",
    "kmnist": "KMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (unpacked)",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "cifar10": "cifar-10-batches-py/ (unpacked from cifar-10-python.tar.gz)",
}


def _torchvision(
    name: str, kind: str, data_dir: Path, download: bool, class_names: Sequence[str] | None = None
) -> DataSplits:
    datasets = _import_torchvision(name)

    def read(root: Path, download: bool = False) -> DataSplits:
        parts = []
        for part in ("train", "test"):
            which = {"split": part} if kind == "SVHN" else {"train": part == "train"}
            source = getattr(datasets, kind)(str(root), download=download, **which)
            labels = source.labels if kind == "SVHN" else source.targets
            parts.append(_part(name, part, source.data, labels, class_names or source.classes))
        return DataSplits(*parts)

    what = f"data={name!r}: data_dir={str(data_dir)!r} has no readable copy"
    remedy = f"put {_FILES[name]} into it"
    try:
        return read(data_dir)
    except _DAMAGED as error:
        if not download:
            raise InputError(f"{what} ({_reason(error)}); {remedy}, or allow the download") from error
    # The files go to a folder of their own and are moved when all of them have been read, so that a download that
    # is broken off leaves nothing behind that looks like a data set.
    try:
        with _folder_for(data_dir) as fresh, _time_limit(_SECONDS_TO_WAIT):
            result = read(fresh, download=True)
            for file in sorted(p for p in fresh.rglob("*") if p.is_file() and p.suffix != ".gz"):
                target = data_dir / file.relative_to(fresh)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            return result
    except _DAMAGED as error:
        raise InputError(
            f"{what}, and the download failed ({_reason(error)}); where there is no network, {remedy}, or use "
            "data='digits', which needs no download"
        ) from error


def _import_torchvision(name: str) -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError, OSError) as error:  # the latter two: built for another torch
        raise InputError(
            f"data={name!r} is read by torchvision, which cannot be imported ({_reason(error)}); install the "
            f"torchvision that goes with torch {torch.__version__}, or use data='digits'"
        ) from error


def _part(name: str, part: str, images: Any, labels: Any, class_names: Sequence[str]) -> DataSet:
    return DataSet.from_arrays(images, labels, name=name, class_names=class_names, split=part)


def _pixels(image: Any) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1)


@contextmanager
def _folder_for(target: Path) -> Iterator[Path]:
    """A fresh folder inside `target`, which is made where it is missing; both are removed again as far as they stay
    empty."""
    made = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".download-", dir=target))
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    finally:
        for folder in made:
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A limit for every wait on the network; torchvision sets none, and a silent firewall would hang it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torchvision lists its mirrors after a heading: the last line says why
    text = lines[-1] if lines else type(error).__name__
    return text.removesuffix(" You can use download=True to download it")
