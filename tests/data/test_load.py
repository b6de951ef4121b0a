"""load: named sets, and a person's own files."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae.data import data_sets, load, read_csv, read_folder, read_npz
from ppl_vae.errors import InputError

# --- named sets ------------------------------------------------------------------------------------------------------


def test_digits():
    train, test = load("digits")
    assert (len(train), len(test), train.shape, train.levels, train.classes) == (1438, 359, (1, 8, 8), 17, 10)
    assert (int(train.x.min()), int(train.x.max())) == (0, 16)
    counts = torch.bincount(torch.cat([train.y, test.y]))
    assert counts.sum() == 1797
    assert ((torch.bincount(test.y) - counts * 359 / 1797).abs() <= 1).all()
    source = torch.from_numpy(importlib.import_module("sklearn.datasets").load_digits().data)
    both = torch.cat([train.x, test.x]).flatten(1).double()
    assert torch.equal(both.unique(dim=0), source.unique(dim=0))
    assert test.description == "digits test, 17 levels in [0, 1]"
    # held to a number written down: the split is the same for everyone
    assert int(test.x.long().sum()) == DIGITS_TEST_SUM


DIGITS_TEST_SUM = 111644


def test_masks():
    train, test = load("digits", binarize="dynamic", masks="rectangles:share=0.5")
    assert train.visible is None
    assert train.description == "digits train, dynamic binarization, behind masks (rectangles:share=0.5)"
    assert not torch.equal(train.batch([0, 1]).visible, train.batch([0, 1]).visible)
    assert torch.equal(test.batch([0, 1]).visible, test.batch([0, 1]).visible)
    again = load("digits", binarize="dynamic", masks="rectangles:share=0.5").test
    assert torch.equal(again.visible, test.visible)
    assert torch.equal(again.x, load("digits", binarize="dynamic").test.x)


def test_the_seed_is_of_own_data_only():
    assert torch.equal(load("digits", seed=5).test.x, load("digits").test.x)
    with pytest.raises(InputError, match=r"test_fraction=0\.5 does not fit data='digits'"):
        load("digits", test_fraction=0.5)


def test_binarization_of_the_two_parts():
    train, test = load("digits", binarize="dynamic")
    assert train.description == "digits train, dynamic binarization"
    assert test.description == "digits test, fixed binarization (seed 777)"
    fixed = load("digits", binarize="fixed")
    assert torch.equal(fixed.test.x, test.x)
    assert fixed.train.description == "digits train, fixed binarization (seed 778)"
    assert load("digits", binarize="threshold").test.description == "digits test, binarized at one half"
    assert load("digits", units="levels").train.batch().x.max() == 16.0


@pytest.mark.parametrize("options", [{"binarize": "dinamic"}, {"units": "level"}])
def test_unknown_options(options):
    with pytest.raises(InputError, match="did you mean"):
        load("digits", **options)


def test_fake_serves_the_tests_and_disturbs_no_generator():
    state = torch.get_rng_state()
    train, test = load("fake")
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(train), len(test), train.shape, train.levels, train.classes) == (200, 50, (3, 16, 16), 256, 10)
    assert torch.equal(load("fake").train.x, train.x)
    assert not torch.equal(train.x[:50], test.x)
    pictures = importlib.import_module("torchvision.datasets").FakeData(1, (3, 16, 16))
    assert np.array_equal(train.x[0].permute(1, 2, 0).numpy(), np.asarray(pictures[0][0]))


def test_unknown_name():
    with pytest.raises(
        InputError, match=r"data='fashion-mnits' is not known; did you mean 'fashion-mnist'.*digits.*path"
    ):
        load("fashion-mnits")
    with pytest.raises(InputError, match="no such file or folder"):
        load("nowhere/cells.npz")
    with pytest.raises(InputError, match="neither a name nor a path"):
        load("")


def test_every_set_has_a_summary():
    assert {"digits", "mnist", "fashion-mnist", "kmnist", "svhn", "cifar10", "fake"} <= set(data_sets)
    assert all(data_sets.summary(name).endswith(".") for name in data_sets)


# --- torchvision -----------------------------------------------------------------------------------------------------


def write_mnist(root: Path, kind: str = "MNIST") -> None:
    """A small data set in MNIST's own format."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part, size in (("train", 6), ("t10k", 4)):
        pixels = rng.randint(0, 256, (size, 28, 28)).astype(np.uint8)
        head = np.array([0x0803, size, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = np.array([0x0801, size], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + (np.arange(size) % 10).astype(np.uint8).tobytes())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_files_in_place_are_read(tmp_path, no_network, name, kind):
    write_mnist(tmp_path, kind)
    train, test = load(name, data_dir=tmp_path)
    assert (len(train), len(test), train.shape, train.levels) == (6, 4, (1, 28, 28), 256)
    assert (train.classes, test.classes) == (10, 10)
    assert train.y.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.description == f"{name} train, 256 levels in [0, 1]"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "svhn", "cifar10"])
def test_without_a_network(tmp_path, no_network, name):
    folder = tmp_path / "some" / "data"
    with pytest.raises(InputError, match=rf"data='{name}': data_dir='.*data' has no readable copy, and the download"):
        load(name, data_dir=folder)
    assert not (tmp_path / "some").exists()
    with pytest.raises(InputError, match=r"put .* into it, or allow the download"):
        load(name, data_dir=folder, download=False)


def test_a_failed_download_leaves_other_files_alone(tmp_path, no_network):
    write_mnist(tmp_path)
    with pytest.raises(InputError, match="download failed"):
        load("kmnist", data_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


def test_a_damaged_file_is_named_and_healed_by_a_download(tmp_path, monkeypatch):
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_mnist(good)
    write_mnist(bad)
    images = bad / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"has no readable copy \(shape .* is invalid"):
        load("mnist", data_dir=bad, download=False)
    kind = importlib.import_module("torchvision.datasets").MNIST
    monkeypatch.setattr(kind, "download", lambda self: shutil.copytree(good, self.root, dirs_exist_ok=True))
    assert torch.equal(load("mnist", data_dir=bad).train.x, load("mnist", data_dir=good).train.x)
    assert [p.name for p in bad.iterdir()] == ["MNIST"]
    assert len(load("mnist", data_dir=bad, download=False).train) == 6


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self):
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder) / "train-images-idx3-ubyte").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("torchvision.datasets").MNIST, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", data_dir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_torchvision_that_cannot_be_imported(monkeypatch):
    real = importlib.import_module

    def broken(name, *args):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(InputError, match=r"cannot be imported \(operator torchvision::nms does not exist\); install"):
        load("mnist")


# --- .npz ------------------------------------------------------------------------------------------------------------

PIXELS = np.random.RandomState(0).randint(0, 256, (10, 6, 5)).astype(np.uint8)


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "cells.npz"
    np.savez(path, **arrays)
    return path


def test_npz_images(tmp_path):
    path = npz(tmp_path, x=PIXELS, y=np.arange(10) % 2)
    train, test = load(path)
    assert (len(train), len(test), train.shape, train.levels) == (8, 2, (1, 6, 5), 256)
    assert test.description == "cells.npz test (20%, seed 0), 256 levels in [0, 1]"
    both = np.concatenate([train.x.numpy(), test.x.numpy()])[:, 0]
    assert sorted(both.tolist()) == sorted(PIXELS.tolist())
    assert sorted(test.y.tolist()) == [0, 1]
    assert len(load(str(path), test_fraction=0.5, seed=3).test) == 5
    assert not torch.equal(load(path, test_fraction=0.5, seed=3).test.x, load(path, test_fraction=0.5).test.x)


def test_npz_with_everything(tmp_path):
    path = npz(
        tmp_path,
        x_train=PIXELS % 4,
        y_train=np.arange(10) % 2,
        context=np.ones((10, 2)),
        x_test=PIXELS[:3] % 4,
        y_test=np.array([0, -1, 1]),
        context_test=np.zeros((3, 2)),
        levels=4,
        class_names=np.array(["benign", "malignant"]),
    )
    train, test = load(path, binarize="dynamic")
    assert (train.levels, train.class_names, len(test)) == (4, ("benign", "malignant"), 3)
    assert train.context.shape == (10, 2)
    assert test.description == "cells.npz test, fixed binarization (seed 777)"
    with pytest.raises(InputError, match="has a test part of its own"):
        load(path, test_fraction=0.1)


def test_npz_classes_are_those_of_both_parts(tmp_path):
    path = npz(tmp_path, x=PIXELS, y=np.zeros(10, int), x_test=PIXELS[:2], y_test=np.array([0, 2]))
    train, test = load(path)
    assert train.class_names == test.class_names == ("0", "1", "2")


def test_npz_tables_and_floats(tmp_path):
    table = load(npz(tmp_path, x=np.linspace(-3, 9, 20).reshape(10, 2))).train
    assert (table.shape, table.levels, table.units) == ((2,), None, "raw")
    pictures = load(npz(tmp_path, x=PIXELS / 255.0), binarize="dynamic")
    assert pictures.test.description == "cells.npz test (20%, seed 0), fixed binarization (seed 777)"
    assert load(npz(tmp_path, x=PIXELS - 100.0), units="raw").train.units == "raw"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": PIXELS}, r"has no array 'x'; it holds \['X'\]"),
        ({"x": PIXELS, "lables": np.arange(10)}, r"holds \['lables'\], which mean nothing here"),
        ({"x": PIXELS, "x_train": PIXELS}, "holds both 'x' and 'x_train'"),
        (
            {"x": np.array([[1], [2, 3]], dtype=object)},
            "'x' in .* holds Python objects, a pickle, which could run code",
        ),
        ({"x": PIXELS, "y": np.arange(10) / 2}, "y of 'cells.npz' has dtype float64; labels are whole numbers"),
        ({"x": PIXELS, "y": np.arange(9)}, "y of 'cells.npz' has 9 rows where x has 10"),
        ({"x": PIXELS, "y": np.arange(10) - 5}, "y of 'cells.npz': row 0 is -5"),
        ({"x": PIXELS, "levels": 17}, r"x of 'cells.npz': row 0, channel 0, pixel \(0, 0\) is \d+, which is no level"),
        ({"x": PIXELS, "levels": np.array([3, 4])}, r"levels of 'cells.npz' has shape \(2,\)"),
        ({"x": PIXELS, "levels": 1000}, "levels of 'cells.npz' is 1000; give a whole number from 2 to 256"),
        ({"x": PIXELS, "y": np.arange(10), "x_test": PIXELS}, "a test array for each of y and context"),
        ({"x": PIXELS, "y_test": np.arange(10)}, "give x_test, and with it"),
        ({"x": PIXELS, "x_test": PIXELS[:, :4]}, r"x_test of 'cells.npz' has data of shape \(1, 4, 5\), x of shape"),
        ({"x": PIXELS, "x_test": PIXELS / 255.0}, "x_test of 'cells.npz' has dtype float64, x has uint8"),
        ({"x": PIXELS[:1]}, "x of 'cells.npz' holds one datum"),
        ({"x": PIXELS, "x_test": np.full((2, 6, 5), np.nan)}, r"observed of 'cells.npz' \(test\) is False throughout"),
        ({"x": PIXELS, "observed": PIXELS}, r"observed of 'cells.npz' is uint8 \(10, 6, 5\) where x has"),
        (
            {"x": PIXELS, "observed": PIXELS[:, :2] > 3},
            r"observed of 'cells.npz' is bool \(10, 2, 5\) where x has shape",
        ),
        ({"x": PIXELS, "observed_test": PIXELS > 3}, "holds 'observed_test' without 'x_test'"),
        ({"x": PIXELS + 0.0}, r"runs from 0 to 254, first out of \[0, 1\] at row 0"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        load(npz(tmp_path, **arrays))


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "cells.npz"
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"is no \.npz file"):
        load(path)
    whole = npz(tmp_path, x=PIXELS).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"is no \.npz file .* or is cut short"):
        load(path)
    damaged = bytearray(whole)
    damaged[200:210] = b"0123456789"
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file: .*CRC"):
        read_npz(path)


def test_tables_are_not_binarized(tmp_path):
    with pytest.raises(InputError, match=r"binarize='dynamic' does not fit x of 'cells.npz'.*table of continuous"):
        load(npz(tmp_path, x=np.zeros((10, 2))), binarize="dynamic")


# --- .csv ------------------------------------------------------------------------------------------------------------


def table(folder: Path, text: str) -> Path:
    path = folder / "wine.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path):
    path = table(tmp_path, '\ufeffacid, sugar ,label\n1,-2.5,0\n"3",4e1,1\n\n5,6,\n7,8,1\n')
    train, test = load(path, test_fraction=0.25)
    assert (train.columns, train.units, train.shape, train.class_names) == (("acid", "sugar"), "raw", (2,), ("0", "1"))
    both = torch.cat([train.x, test.x]).tolist()
    assert sorted(both) == [[1.0, -2.5], [3.0, 40.0], [5.0, 6.0], [7.0, 8.0]]
    assert sorted(torch.cat([train.y, test.y]).tolist()) == [-1, 0, 1, 1]
    assert test.description == "wine.csv test (25%, seed 0), continuous"


def test_csv_with_named_classes(tmp_path):
    train, test = load(table(tmp_path, "y,a\nred,1\nwhite,2\nred,3\n,4\n"), test_fraction=0.5)
    assert train.class_names == ("red", "white")
    labels = dict(
        zip(torch.cat([train.x, test.x]).flatten().tolist(), torch.cat([train.y, test.y]).tolist(), strict=True)
    )
    assert labels == {1.0: 0, 2.0: 1, 3.0: 0, 4.0: -1}


def test_csv_with_missing_values(tmp_path):
    train, test = load(table(tmp_path, "a,b,y\n1,,0\n NaN,4,1\n5,6,0\nNA,8,1\n9,10,0\n"))
    whole = read_csv(table(tmp_path, "a,b,y\n1,,0\n NaN,4,1\n5,6,0\nNA,8,1\n9,10,0\n"))
    assert whole.x.tolist() == [[1, 0], [0, 4], [5, 6], [0, 8], [9, 10]]
    assert whole.observed.tolist() == [[True, False], [False, True], [True, True], [False, True], [True, True]]
    assert whole.description == "wine.csv all, continuous, 30% missing"
    batch = whole.batch(torch.tensor([3, 0]))
    assert torch.equal(batch.observed, whole.observed[[3, 0]])
    assert torch.equal(batch.visible, batch.observed)
    assert torch.equal(torch.cat([train.observed, test.observed]).sum(0), whole.observed.sum(0))
    assert load(table(tmp_path, "a,b\n1,2\n3,4\n5,6\n")).train.observed is None
    # a part of it may miss nothing, and says nothing of it
    assert whole.take([2, 4]).description == "wine.csv all, continuous"


def test_a_column_of_data_by_the_name_of_labels_is_told_to_be_renamed(tmp_path):
    with pytest.raises(InputError, match=r"column 'y', line 2: label '0\.5' is no .* rename it if it holds data"):
        read_csv(table(tmp_path, "x,y\n1,0.5\n2,1.5\n"))


def test_names_as_labels_of_an_npz_file(tmp_path):
    np.savez(tmp_path / "cells.npz", x=np.zeros((4, 3)), y=np.array(["a", "b", "a", "b"]))
    with pytest.raises(InputError, match=r"y of 'cells.npz' has dtype <U1.*class numbers 0, 1, .*class_names"):
        load(tmp_path / "cells.npz")


def test_npz_with_missing_values(tmp_path):
    x = np.arange(24.0).reshape(4, 6)
    x[1, 2] = x[3, 5] = np.nan
    observed = np.ones((4, 6), dtype=bool)
    observed[0, 0] = False
    np.savez(tmp_path / "cells.npz", x=x, observed=observed, x_test=x[:2])
    train, test = load(tmp_path / "cells.npz")
    assert (~train.observed).nonzero().tolist() == [[0, 0], [1, 2], [3, 5]]
    assert (~test.observed).nonzero().tolist() == [[1, 2]]
    assert bool((train.x[~train.observed] == 0).all())
    assert train.missing == 3 / 24
    # images whose channels come last, the mask in the same order
    pixels = np.random.default_rng(0).random((4, 6, 5, 3))
    seen = pixels > 0.2
    np.savez(tmp_path / "pictures.npz", x=pixels, observed=seen, x_test=pixels[:2], observed_test=seen[:2])
    train, _ = load(tmp_path / "pictures.npz")
    assert train.shape == (3, 6, 5)
    assert torch.equal(train.observed, torch.from_numpy(seen).permute(0, 3, 1, 2))
    assert torch.equal(train.observed, train.x > 0)


def test_csv_without_labels(tmp_path):
    assert load(table(tmp_path, "a,b\n1,2\n3,4\n5,6\n")).train.y is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "holds no data; at least two"),
        ("a,b\n1,2\n", "holds one datum; at least two"),
        ("1,2\n3,4\n", "begins with numbers; its first line has to name the columns"),
        ("a;b\n1;2\n", "is separated by ';'; use commas"),
        ("a,b\n1,2\n3,x\n", r"line 3, column 'b': 'x' is no finite number"),
        ("a,Label\n1,cat\n2,dog\n", r"'cat' is no finite number.* A column of class names is called 'label' or 'y'"),
        ("a,b\n1,2\n\nnan,\n", "line 4 has no value; remove the line"),
        ("a,b,y\n1,2,0\n,,1\n", "line 3 has no value"),
        ("a,b\n1,inf\n3,4\n", "'inf' is no finite number"),
        ("a,b\n1,2,3\n3,4\n", "line 2: 3 cells where the header has 2 columns"),
        ("a,a\n1,2\n3,4\n", r"more than one column named \['a'\]"),
        ("a,y,label\n1,2,3\n", "labels in both 'label' and 'y'"),
        ("y\n1\n2\n", "labels and no other column"),
        ("a,y\n1,0.5\n2,1\n", r"column 'y', line 2: label '0.5' is no whole number"),
        ("a,y\n1,0\n2,red\n", r"column 'y', line 3: label 'red' is no whole number"),
        ("a,y\n1,0\n2,-3\n", "y of 'wine.csv': row 1 is -3"),
        ("a,b\n1,1e300\n2,3\n", r"x of 'wine.csv': row 0, column 1 \('b'\) is inf"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(table(tmp_path, text))


def test_csv_in_another_encoding(tmp_path):
    path = tmp_path / "wine.csv"
    path.write_bytes("säure,b\n1,2\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as a comma-separated table in UTF-8"):
        load(path)


def test_other_files(tmp_path):
    path = tmp_path / "wine.xlsx"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file of type '.xlsx'; give an .npz, a .csv or a folder of images"):
        load(path)


# --- folders of images -----------------------------------------------------------------------------------------------


def pictures(
    folder: Path, count: int = 4, mode: str = "L", size: tuple[int, int] = (5, 6), seed: int = 0
) -> np.ndarray:
    """PNGs of width 5 and height 6; returns their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(seed)
    images = [
        Image.fromarray(rng.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)).convert(mode) for _ in range(count)
    ]
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    ("mode", "shape", "levels"), [("L", (1, 6, 5), 256), ("RGB", (3, 6, 5), 256), ("1", (1, 6, 5), 2)]
)
def test_a_folder(tmp_path, mode, shape, levels):
    pixels = pictures(tmp_path / "cells", mode=mode)
    (tmp_path / "cells" / "notes.txt").write_text("left alone")
    (tmp_path / "cells" / ".hidden.png").write_text("left alone")
    data, test = read_folder(tmp_path / "cells")
    assert test is None
    assert (data.shape, data.levels, data.y, data.name) == (shape, levels, None, "cells")
    expected = pixels.reshape(4, 6, 5, -1).transpose(0, 3, 1, 2).astype(np.uint8)
    assert np.array_equal(data.x.numpy(), expected)
    assert len(load(tmp_path / "cells").train) == 3


def test_a_folder_of_classes(tmp_path):
    pictures(tmp_path / "dog", 2)
    pictures(tmp_path / "cat", 3)
    data, _ = read_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 0, 1, 1]


def test_a_folder_of_two_parts(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        pictures(tmp_path / part / "cat", count)
        pictures(tmp_path / part / "dog", count)
    train, test = load(tmp_path, binarize="threshold")
    assert (len(train), len(test), train.class_names) == (6, 4, ("cat", "dog"))
    assert test.description == f"{tmp_path.name} test, binarized at one half"
    pictures(tmp_path / "test" / "emu")
    with pytest.raises(InputError, match="give both the same subfolders"):
        load(tmp_path)


def test_opaque_alpha_palettes_and_orientation(tmp_path):
    rgba = Image.new("RGBA", (5, 6), (10, 20, 30, 255))
    rgba.save(tmp_path / "0.png")
    Image.new("RGB", (5, 6), (10, 20, 30)).convert("P").save(tmp_path / "1.png")
    turned = Image.new("RGB", (6, 5), (10, 20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "2.png", exif=exif)
    data, _ = read_folder(tmp_path)
    assert data.shape == (3, 6, 5)
    assert torch.equal(data.x[0], data.x[2])


def test_bad_folders(tmp_path):
    def check(message: str) -> None:
        with pytest.raises(InputError, match=message):
            load(tmp_path)

    check(r"holds no image files \(.png, .*\), and no subfolders")
    (tmp_path / "cat").mkdir()
    check("class folder '.*cat' holds no image files")
    pictures(tmp_path / "cat", 1)
    check("holds one datum; at least two")
    pictures(tmp_path, 2)
    check("both beside and inside its subfolders, as '0.png' and 'cat'")
    shutil.rmtree(tmp_path / "cat")
    Image.new("L", (7, 6)).save(tmp_path / "9.png")
    check("images differ in size: '.*0.png' is 5 x 6 with 1 channel, '.*9.png' is 7 x 6 with 1 channel")
    Image.new("RGB", (5, 6)).save(tmp_path / "9.png")
    check("'.*9.png' is 5 x 6 with 3 channels")
    Image.new("RGBA", (5, 6), (0, 0, 0, 9)).save(tmp_path / "9.png")
    check("'.*9.png' is partly transparent")
    Image.fromarray(np.zeros((6, 5), dtype=np.uint16)).save(tmp_path / "9.png")
    check("'.*9.png' has mode 'I;16', not 8 bits a channel")
    (tmp_path / "9.png").write_bytes(b"no picture")
    check("'.*9.png' cannot be read as an image")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "9.png").write_bytes(whole[: len(whole) // 2])
    check("'.*9.png' cannot be read as an image")
