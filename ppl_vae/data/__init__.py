"""Data sets by name or from a person's own files, behind one `load`."""

from .dataset import Binarize, DataSet, DataSplits, Units, from_arrays, split
from .images import read_folder
from .load import load
from .named import data_sets
from .sprites import Sprites, sprites
from .tables import read_csv, read_npz

__all__ = [
    "Binarize",
    "DataSet",
    "DataSplits",
    "Sprites",
    "Units",
    "data_sets",
    "from_arrays",
    "load",
    "read_csv",
    "read_folder",
    "read_npz",
    "split",
    "sprites",
]
