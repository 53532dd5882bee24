"""The documentation says what the committed results say, and every command and option is in it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
EVERYWHERE = {"--help", "-h", "--quiet", "-q", "--index"}  # said once, in docs/index.md


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


documentation = load("benchmarks/documentation.py")
commands = dict(load("docs/hooks/commands.py").walk())


def places() -> list[tuple[str, Path]]:
    return [
        (name, page)
        for name in documentation.BLOCKS
        for page in PAGES
        if documentation.pattern(name).search(TEXTS[page])
    ]


def identity(value: Any) -> str:
    return value.name if isinstance(value, Path) else str(value)


def test_every_generated_block_is_on_a_page():
    assert {name for name, _ in places()} == set(documentation.BLOCKS)


@pytest.mark.parametrize(("name", "page"), [p for p in places() if "query" not in p[0]], ids=identity)
def test_tables_are_generated_from_the_committed_results(name: str, page: Path):
    written = documentation.pattern(name).search(TEXTS[page])[1]
    assert written == documentation.block(name, page), "run python benchmarks/documentation.py"


@pytest.mark.parametrize(("name", "page"), [p for p in places() if "query" in p[0]], ids=identity)
def test_the_shown_answer_is_the_committed_indexs(name: str, page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)

    def words(text: str) -> str:  # another processor may round the last digit of a distance the other way
        return re.sub(r"\d\.\d{3,4}", "#", text)

    written = documentation.pattern(name).search(TEXTS[page])[1]
    assert words(written) == words(documentation.block(name, page)), "run python benchmarks/documentation.py"


def test_the_readme_is_two_screens():
    assert len(README.read_bytes()) <= 8_000, "move what is long into docs/"
    assert len(TEXTS[README].splitlines()) <= 120, "move what is long into docs/"


def names(command: str, text: str) -> bool:
    """Whether a text has the command as it is typed, at the beginning of code or after the program's name."""
    return re.search(rf"(?:`|weightsearch ){re.escape(command)}(?![\w-])", text) is not None


@pytest.mark.parametrize("command", commands)
def test_every_command_and_option_is_documented(command: str):
    about = {page.name: text for page, text in TEXTS.items() if page != README and names(command, text)}
    assert about, (
        f"no page of docs/ says `weightsearch {command}`: add it to one, or write one and name it in mkdocs.yml"
    )
    known = EVERYWHERE | set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", "\n".join(about.values())))
    options = {name for one in commands[command].params if one.param_type_name == "option" for name in one.opts}
    missing = sorted(options - known)
    assert not missing, f"{', '.join(missing)} of `{command}`: say what for on {' or '.join(about)} (in docs/)"


@pytest.mark.parametrize("command", commands)
def test_every_option_has_a_help_text(command: str):
    assert commands[command].help
    assert not [one.name for one in commands[command].params if not one.help]


def test_the_readme_names_every_command():
    assert not [command for command in commands if not names(command, TEXTS[README])]


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_what_pages_name_exists(page: Path):
    groups = {name.partition(" ")[0] for name in commands}
    for name in re.findall(r"(?:`|bin/|^)weightsearch ([a-z][a-z-]*)", TEXTS[page], re.MULTILINE):
        assert name in groups, f"weightsearch {name}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", TEXTS[page], re.MULTILINE):
        assert target in targets, f"make {target}"
    for script in re.findall(r"(?:python |`)(benchmarks/\S+?\.py)", TEXTS[page]):
        assert (ROOT / shlex.split(script)[0]).exists(), script
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)|src=\"([^\"]+)\"", TEXTS[page]):
        target = link[0] or link[1]
        generated = page.parent.name == "docs" and target in (
            "commands.md",
            "api.md",
            "reference-index.md",
            "changelog.md",
        )
        assert generated or (page.parent / target).exists(), target


def test_every_key_of_an_answer_is_explained():
    from weightsearch import Answer

    text = TEXTS[ROOT / "docs" / "asking.md"]
    missing = [field.name for field in dataclasses.fields(Answer) if f"`{field.name}`" not in text]
    assert not missing, f"explain {', '.join(missing)} in docs/asking.md, For programs"


def test_every_public_name_is_in_the_python_reference():
    import weightsearch

    page = load("docs/hooks/api.py").page()
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert {name for name in weightsearch.__all__ if not name.startswith("__")} <= listed


def test_every_room_is_explained():
    package = ROOT / "weightsearch"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} | {
        p.name for p in package.glob("[!_]*.py")
    }
    text = TEXTS[ROOT / "docs" / "architecture.md"]
    missing = sorted(room for room in rooms if f"`{room}`" not in text)
    assert not missing, f"say in docs/architecture.md, The rooms, what {', '.join(missing)} is"


def code(language: str, page: Path) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_shown_command_lines_are_understood(page: Path):
    """Commands and options of shell blocks exist; nothing is run."""
    for line in "\n".join(code("sh", page)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0].rpartition("/")[2] != "weightsearch":
            continue
        name = next((name for name in commands if words[1 : 1 + len(name.split())] == name.split()), None)
        assert name, line
        options = {o for one in commands[name].params for o in (*one.opts, *one.secondary_opts)} | EVERYWHERE
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options, f"{line}: {', '.join(given - options)}"


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_shown_python_fits_the_signatures(page: Path):
    """Names of Python blocks are public, and calls of them, and of an index's methods, have arguments that exist."""
    import weightsearch

    for text in code("python", page):
        tree = ast.parse(text)
        public = {
            alias.name: getattr(weightsearch, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "weightsearch"
            for alias in node.names
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            match call.func:
                case ast.Name(id=name) if name in public:
                    function = public[name]
                case ast.Attribute(value=ast.Name(id="weightsearch"), attr=name):
                    function = getattr(weightsearch, name)
                case ast.Attribute(value=ast.Name(id="index") | ast.Call(), attr=name):
                    function = functools.partial(getattr(weightsearch.Index, name), None)  # None: self
                    if name == "open":
                        function = weightsearch.Index.open
                case _:
                    continue
            inspect.signature(function).bind(*call.args, **{str(one.arg): one.value for one in call.keywords})


@pytest.mark.parametrize("page", [page for page in PAGES if page != README], ids=identity)
def test_every_page_is_in_the_menu(page: Path):
    assert re.search(rf": {re.escape(page.name)}$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE), (
        f"name docs/{page.name} under nav in mkdocs.yml"
    )


def test_nothing_is_fetched_by_the_built_pages():
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false", configuration, re.MULTILINE)
    assert not re.findall(r"https?://", configuration)


def test_the_changelog_has_the_packages_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
