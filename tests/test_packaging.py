"""What is built from the repository: a wheel and an sdist that hold the package once, and work outside of it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Built(NamedTuple):
    sdist: Path
    wheel: Path


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def build(kind: str, source: Path, target: Path) -> Path:
    """Build as `python -m build` does, by setuptools' own hook, but with the setuptools that is here: no network."""
    code = f"import sys, setuptools.build_meta as hooks; hooks.build_{kind}(sys.argv[1])"
    done = python("-W", "ignore", "-c", code, target, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of a copy of the tree, and the wheel made of that sdist: what pip does with a release's source."""
    folder = tmp_path_factory.mktemp("packaging")

    def not_source(where: str, names: list[str]) -> Iterable[str]:
        if Path(where) != ROOT:
            return [name for name in names if name == "__pycache__"]
        return [name for name in names if name.startswith(".") or name in {"build", "dist", "runs", "data"}]

    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=not_source)
    sdist = build("sdist", folder / "tree", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(sdist, build("wheel", unpacked, folder))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    done = python(
        *["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"],
        *["--no-compile", "--target", target, built.wheel],
        cwd=target,
    )
    assert done.returncode == 0, done.stderr
    return target


def package_files() -> set[str]:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ppl_vae").rglob("*.py")}
    return files | {"ppl_vae/py.typed"}


def test_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert set(names) - metadata == package_files()
    assert len(names) == len(set(names))
    assert any(name.endswith("/LICENSE") for name in metadata)


def test_sdist_holds_every_file_once(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert package_files() | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert {name for name in names if name.endswith(".py")} == package_files() - {"ppl_vae/py.typed"}


def test_every_module_of_the_wheel_imports_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, ppl_vae
for module in pkgutil.walk_packages(ppl_vae.__path__, "ppl_vae."):
    if not module.name.endswith("__main__"):
        print(importlib.import_module(module.name).__file__)
"""
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    files = done.stdout.split("\n")[:-1]
    assert len(files) == len([name for name in package_files() if not name.endswith(("__main__.py", "py.typed"))]) - 1
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_command_line_of_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    done = python("-m", "ppl_vae", "list", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "mean-field" in done.stdout
    script = installed / "bin" / "ppl-vae"
    if sys.platform != "win32":
        done = python(script, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
        assert "compare" in done.stdout


@pytest.mark.parametrize("name", ["models", "guides"])
def test_link_at_the_root_leads_into_the_package_and_is_no_package(name: str) -> None:
    """Imported under a second name, every class would exist twice, and isinstance would fail far from here."""
    assert os.readlink(ROOT / name) == f"ppl_vae/{name}"
    done = python("-c", f"import {name}", cwd=ROOT)
    assert done.returncode != 0
    assert "ImportError: attempted relative import beyond top-level package" in done.stderr


def test_doctests_are_collected_once_and_under_the_package() -> None:
    """From the root, as a person would type it: pytest follows links, and would import `models.vae` from there."""
    elsewhere = ["--ignore=tests", "--ignore=examples", "--ignore=benchmarks"]
    done = python("-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *elsewhere, ".", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.partition(":")[0] for line in done.stdout.splitlines() if ".py:" in line}
    assert files
    assert all(file.startswith("ppl_vae/") for file in files)
    documented = [path for path in package_files() if path.startswith(("ppl_vae/models/", "ppl_vae/guides/"))]
    assert {file for file in documented if ">>> " in (ROOT / file).read_text(encoding="utf-8")} <= files
