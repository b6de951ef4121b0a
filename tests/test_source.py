"""Rules that the package's source keeps, each for a reason that a reader of one file would not see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "ppl_vae").rglob("*.py"))

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def names_used(tree: ast.Module) -> set[str]:
    """Every dotted name of a module, written out: `nn.Linear` after `from torch import nn` is "torch.nn.Linear"."""
    full: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else ""
                used.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            used.add(".".join([full.get(node.id) or node.id, *reversed(parts)]))
    return used


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_names_used_sees_through_aliases() -> None:
    source = "import torch as t\nfrom torch import nn\nfrom pyro import param\nimport os.path\nt.load(nn.Linear)"
    assert names_used(ast.parse(source)) >= {"torch.load", "torch.nn.Linear", "pyro.param", "os.path"}


def test_there_are_files() -> None:
    assert len(FILES) > 10


@every_file
def test_parameters_are_module_parameters(path: Path) -> None:
    """Pyro's global store is in no state_dict, and a lazy parameter has no shape until the first batch."""
    used = names_used(parse(path))
    assert "pyro.param" not in used
    if path.name not in {"interop.py", "svi.py"}:  # they stand between modules and plain Pyro, which looks in its store
        assert "pyro.module" not in used
    assert not {name for name in used if name.startswith("torch.nn.") and ("Lazy" in name or "Uninitialized" in name)}


@every_file
def test_nothing_is_unpickled(path: Path) -> None:
    """To load a pickle runs its author's code: what is saved is safetensors, JSON, and arrays without objects."""
    tree = parse(path)
    used = names_used(tree)
    picklers = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    called = {name for name in used - picklers if not name.endswith("Error")}  # catching another's error is fine
    assert not {name.partition(".")[0] for name in called} & picklers
    assert not used & {"torch.load", "torch.save", "torch.jit.load", "torch.jit.save", "torch.package"}
    assert not {name for name in used if name.rpartition("fabric")[2] in {".load", ".load_raw", ".save"}}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@every_file
def test_imports_of_the_package_are_relative(path: Path) -> None:
    """Through the links at the root, `import models` would make a second copy of every class, were it to work."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "ppl_vae"]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").partition(".")[0] != "ppl_vae"


@every_file
def test_public_names_are_listed_at_the_top(path: Path) -> None:
    if path.name == "__main__.py":
        return
    tree = parse(path)
    assert ast.get_docstring(tree), "a module says in a line what it is"
    lines = {ast.unparse(node.targets[0]): node.lineno for node in tree.body if isinstance(node, ast.Assign)}
    definitions = [node.lineno for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert "__all__" in lines
    assert all(lines["__all__"] < line for line in definitions)


def test_the_package_is_imported_without_what_only_some_commands_need() -> None:
    heavy = ["torchvision", "arviz", "matplotlib", "tensorboard", "lightning_fabric", "lightning", "sklearn"]
    code = f"import sys, ppl_vae; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
