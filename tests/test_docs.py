"""The documentation holds: its programs run, its links lead somewhere, and every part has its page."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

from ppl_vae import guides, models, objectives
from ppl_vae.data import data_sets
from ppl_vae.likelihoods import likelihoods
from ppl_vae.registry import Registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language, with the line before their first."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)), m[2]) for m in FENCE.finditer(text) if m[1] == language]


def anchors(page: Path) -> set[str]:
    """A page's headings as they are linked to: lower case, hyphens for spaces, no other punctuation."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for line, source in blocks(page, "python"):
        # blank lines in front, so that a traceback names the page's own line
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}, which is not there"
        assert file.is_relative_to(ROOT), f"{name(page)} links to {target}, outside of the repository"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name(page)} links to {target}; {name(file)} has no such heading"


@pytest.mark.parametrize("kind", [models, guides, objectives], ids=lambda kind: kind.__name__)
def test_every_part_has_its_page(kind: ModuleType) -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    folder = kind.__name__.rpartition(".")[2]
    registry = getattr(kind, folder)
    for part in registry:
        file = registry.get(part).__module__.rpartition(".")[2]
        page = DOCS / folder / f"{file}.md"
        assert page.exists(), f"{part} has no page {name(page)}"
        assert f"`{part}`" in page.read_text(encoding="utf-8"), f"{name(page)} does not give the name {part!r}"
        assert f"({folder}/{file}.md)" in index, f"docs/README.md does not list {name(page)}"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    listed = {page for page in PAGES if f"({page.relative_to(DOCS)})" in index}
    missing = [name(page) for page in PAGES if page not in listed and page != DOCS / "README.md"]
    assert not missing, f"docs/README.md does not list {missing}"


@pytest.mark.parametrize(("registry", "page"), [(likelihoods, "likelihoods.md"), (data_sets, "data.md")])
def test_every_part_has_its_row(registry: Registry[object], page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    missing = [part for part in registry if f"\n| `{part}` |" not in text]
    assert not missing, f"the table of docs/{page} has no row of {missing}"


COMMANDS = [
    pytest.param(line, id=f"{name(page)}: {line}")
    for page in WRITTEN
    for language in ("shell", "bash")
    for _, block in blocks(page, language)
    for line in block.splitlines()
    if line.startswith("ppl-vae ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_taken(line: str) -> None:
    if importlib.util.find_spec("ppl_vae.cli") is None:
        pytest.skip("no command line is installed")
    cli = importlib.import_module("ppl_vae.cli")
    app = next(part for part in vars(cli).values() if isinstance(part, typer.Typer))
    program = typer.main.get_command(app)
    _, subcommand, *arguments = shlex.split(line, comments=True)
    assert subcommand in program.commands, f"ppl-vae has no command {subcommand!r}"
    command = program.commands[subcommand]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in options]
    assert not unknown, f"ppl-vae {subcommand} takes no {unknown}; it takes {sorted(options)}"
