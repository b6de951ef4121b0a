"""A person's own pictures: a folder of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from .dataset import DataSet

__all__ = ["SUFFIXES", "read_folder", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm")

_CHANNELS = {"1": 1, "L": 1, "RGB": 3}


def read_folder(folder: Path) -> tuple[DataSet, DataSet | None]:
    """The pictures of a folder, and those of its test part, if it has one.

    - Pictures in the folder itself: no labels. In subfolders: a class each, in the order of their names.
    - Two subfolders named "train" and "test", each as above: the two parts.

    Pictures are read in the order of their names, and turned as their EXIF data say. Grey ones have one channel,
    colour ones three, both 256 levels; pictures of one bit, all of them, have 2. An alpha channel is dropped where it
    is opaque. Hidden files and files of other types are left alone.

    Raises:
        InputError: no picture; pictures of different sizes or channels, naming two; a file that cannot be read, that
            is partly transparent, or has more than 8 bits a channel; pictures both beside and inside subfolders.
    """
    inside = {p.name for p in _visible(folder) if p.is_dir()}
    if inside == {"train", "test"}:
        train = _read_part(folder / "train", folder.name, "train", None)
        test = _read_part(folder / "test", folder.name, "test", train)
        return train, test
    return _read_part(folder, folder.name, "all", None), None


def _read_part(folder: Path, name: str, part: str, like: DataSet | None) -> DataSet:
    files, labels, class_names = _list_files(folder)
    images, levels = _read_all(files)
    if like is not None:
        if images.shape[1:] != like.shape:
            raise InputError(
                f"images in {str(folder)!r} have shape {images.shape[1:]}, those of the train part {like.shape}; "
                "bring all to one size"
            )
        if tuple(class_names) != like.class_names:
            raise InputError(
                f"{str(folder)!r} has the classes {class_names}, the train part {list(like.class_names)}; give both "
                "the same subfolders"
            )
        levels = like.levels if like.levels == levels else 256
    return DataSet.from_arrays(images, labels, name=name, levels=levels, class_names=class_names, split=part)


def _list_files(folder: Path) -> tuple[list[Path], list[int] | None, list[str]]:
    wanted = f"image files ({', '.join(SUFFIXES)})"
    direct = _pictures(folder)
    classes = [p for p in _visible(folder) if p.is_dir()]
    if direct and classes:
        raise InputError(
            f"{str(folder)!r} holds {wanted} both beside and inside its subfolders, as {direct[0].name!r} and "
            f"{classes[0].name!r}; keep to one of the two"
        )
    if direct:
        return direct, None, []
    if not classes:
        raise InputError(f"{str(folder)!r} holds no {wanted}, and no subfolders of them")
    files: list[Path] = []
    labels: list[int] = []
    for number, subfolder in enumerate(classes):
        found = _pictures(subfolder)
        if not found:
            raise InputError(f"class folder {str(subfolder)!r} holds no {wanted}; fill it or remove it")
        files += found
        labels += [number] * len(found)
    return files, labels, [p.name for p in classes]


def _read_all(files: Sequence[Path]) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    first, bits = read_image(files[0])
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for i, file in enumerate(files):
        image, one_bit = read_image(file)
        if image.shape != first.shape:
            raise InputError(
                f"images differ in size: {str(files[0])!r} is {_size(first)}, {str(file)!r} is {_size(image)}; bring "
                "all to one size and one number of channels"
            )
        images[i] = image
        bits = bits and one_bit
    return (images // 255, 2) if bits else (images, 256)


def read_image(file: Path) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], bool]:
    """Pixels (C, H, W) of one file, and whether it has one bit for each.

    Raises:
        InputError: no readable picture, transparency, more than 8 bits a channel.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(file)!r} cannot be read as an image: {error}") from error
    one_bit = image.mode == "1"
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode not in ("LA", "La") else "LA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise InputError(f"{str(file)!r} is partly transparent; flatten it onto a background")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    if image.mode not in _CHANNELS:
        raise InputError(
            f"{str(file)!r} has mode {image.mode!r}, not 8 bits a channel; save it so, or put the pictures into an "
            ".npz file as floats from 0 to 1"
        )
    pixels = np.asarray(image, dtype=np.uint8)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), one_bit


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.is_file() and p.suffix.lower() in SUFFIXES]


def _size(image: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    channels, height, width = image.shape
    return f"{width} x {height} with {channels} channel{'s' if channels > 1 else ''}"
