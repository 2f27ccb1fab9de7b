"""What README, CONTRIBUTING and docs name exists: files, functions, config paths, commands, targets."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from encsearch.cli.main import COMMANDS, cli
from encsearch.config import paths

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "encsearch"
# With the modules whose docstrings are pages: docs/api.md shows them.
DOCSTRINGS = [PACKAGE / "__init__.py", PACKAGE / "api.py"]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/**/*.md"), *DOCSTRINGS])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
SOURCES = r"(?:py|md|sh|toml|html)"  # other files may be what commands write
# What commands write, and the file that the code must not have.
FOREIGN = {"report.html", "ablation.md", "utils.py", "random.py"}
FILES = r"(?!.*\.(?:py|pt2|onnx|jsonl?|safetensors|yaml|html|lock|db)$)"
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")

all_docs = pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))


@all_docs
def test_links_and_files_exist(doc: Path) -> None:
    text = doc.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (doc.parent / link).exists()]
    missing += [name for name in _named(text, rf"[\w./-]*\w\.{SOURCES}") if not _file_exists(doc, name)]
    missing += [
        name for name in _named(text, r"(?:[\w-]+/)+") if name.split("/")[0] in _tops() and not _folder(name)
    ]
    assert not missing


@all_docs
def test_modules_and_functions_exist(doc: Path) -> None:
    text = doc.read_text(encoding="utf-8")
    names = [name.removeprefix("encsearch.") for name in _named(text, FILES + r"encsearch(?:\.\w+)+")]
    names += [name for name in _named(text, FILES + r"[a-z_]+(?:\.\w+)+") if _is_module(name)]
    assert not [name for name in names if not _resolves(f"encsearch.{name}") and not _is_tag(name)]


@all_docs
def test_config_paths_exist(doc: Path) -> None:
    known = set(paths())
    sections = {path.split(".")[0] for path in known if "." in path}
    named = [
        name
        for name in _named(doc.read_text(encoding="utf-8"), r"[a-z_]+(?:\.[a-z_0-9]+)+(?==|)")
        if name.split(".")[0] in sections and not _is_module(name) and not _file_exists(doc, name)
    ]
    assert not [
        name for name in named if not any(path == name or path.startswith(f"{name}.") for path in known)
    ]


@all_docs
def test_commands_and_their_options_exist(doc: Path) -> None:
    wrong = []
    for line in _commands(doc.read_text(encoding="utf-8")):
        words = _words(line)
        command, rest = _command(words)
        if command is None:
            wrong.append(line)
            continue
        options = {
            option for parameter in command.params for option in parameter.opts + parameter.secondary_opts
        }
        passed_on = command.name == "submit"
        given = [word.split("=")[0] for word in rest if re.match(r"--\w", word) and word != "--help"]
        wrong += [f"{line}: {option}" for option in given if option not in options and not passed_on]
    assert not wrong


@all_docs
def test_make_targets_and_benchmarks_exist(doc: Path) -> None:
    text = doc.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = [
        f"make {name}" for name in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M) if name not in targets
    ]
    modules = re.findall(r"python -m ((?:benchmarks|tests)(?:\.\w+)+)", text)
    wrong += [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert not wrong


def test_the_picture_of_the_layers_is_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    picture = ARCHITECTURE.read_text(encoding="utf-8").split("## The house")[1].split("##")[0]
    layers = [
        re.split(r"\s{2,}", line.strip())[0] for line in re.findall(r"^    (\S.*)$", picture, re.MULTILINE)
    ]
    assert layers == contracts["contracts"][0]["layers"]


def test_the_glossary_names_classes_that_exist() -> None:
    glossary = ARCHITECTURE.read_text(encoding="utf-8").split("## Glossary")[1]
    defined = frozenset().union(*(_defined(path) for path in PACKAGE.rglob("*.py")))
    assert not [name for name in _named(glossary, r"[A-Z][a-z]+[A-Za-z]*") if name not in defined]


def _named(text: str, pattern: str) -> list[str]:
    """What stands in backticks and matches as a whole, without placeholders such as NAME."""
    names = re.findall(r"`([^`\n]+)`", text)
    return [name for name in names if re.fullmatch(pattern, name) and not PLACEHOLDER.search(name)]


def _commands(text: str) -> Iterator[str]:
    """Lines of code blocks, and texts in backticks, that call encsearch; a line that ends in \\ goes on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(
        r"^(?:    |\t)(?:\$ )?(encsearch [^\n]*)$|`(encsearch [^`\n]*)`", joined, re.MULTILINE
    ):
        yield next(filter(None, line))


def _words(line: str) -> list[str]:
    return shlex.split(line.split(" #")[0].replace("'", "").replace('"', ""))[1:]


def _command(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """The command that the words call, alternatives as in `list|show` included, and the words after it."""
    if not words or words[0].startswith("-"):
        return cli, words
    names = words[0].split("|")
    if any(name not in COMMANDS for name in names):
        return None, words
    context = click.Context(cli)
    command, rest = cli.get_command(context, names[0]), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if any(name not in command.commands for name in rest[0].split("|")):
            return None, rest
        command, rest = command.commands[rest[0].split("|")[0]], rest[1:]
    return command, rest


@cache
def _sources() -> frozenset[str]:
    skipped = {".git", ".venv", "demo-out", "runs", "build", "__pycache__"}
    return frozenset(
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*")
        if not skipped & set(path.relative_to(ROOT).parts) and path.is_file()
    )


def _file_exists(doc: Path, name: str) -> bool:
    """Below the root, the package or the doc's folder; a name without a folder anywhere."""
    if any((base / name).exists() for base in (ROOT, PACKAGE, doc.parent)):
        return True
    return name in FOREIGN or any(source.endswith(f"/{name}") for source in _sources())


def _folder(name: str) -> bool:
    return any((base / name).is_dir() for base in (ROOT, PACKAGE))


@cache
def _tops() -> frozenset[str]:
    """Folders whose names are ours; `runs/` and others are made by commands."""
    tracked = {source.split("/")[0] for source in _sources() if "/" in source}
    return frozenset({*tracked, *(path.name for path in PACKAGE.iterdir() if path.is_dir())})


def _is_module(name: str) -> bool:
    """Whether the first part is a module or package of encsearch, and no section of a recipe."""
    first, second = name.split(".")[:2]
    sections = {path.split(".")[0] for path in paths()}
    if first in sections and any(path.startswith(f"{first}.{second}") for path in paths()):
        return False
    return (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines or imports."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        source = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
        if source.exists():
            rest = parts[count:]
            return not rest or rest[0] in _defined(source) or rest[0] in {"load", "EncNet"}
    return False


def _is_tag(name: str) -> bool:
    """Whether `encsearch.NAME` is a tag of a run or model, which the code sets."""
    tags = (f'"{name}', f'"encsearch.{name}')
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    return any(tag in text for text in texts for tag in tags)


@cache
def _defined(source: Path) -> frozenset[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)
