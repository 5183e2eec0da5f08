"""The house rules that are tests: exports, import arrows, what an import loads, docstrings, version, docs that run.

Documentation runs under this convention (README.md and docs/**/*.md, one temporary folder per page, `examples/` beside it):

    ```python           all blocks of a page are one program, in order
    ```console, bash    every line `lbcore ...` or `$ lbcore ...` is run and must end 0; every `make TARGET` must name a target
    <!-- file: NAME --> on the line before a fence: the block is written to NAME first
    <!-- not run: WHY --> on the line before a fence: the block is only read
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lbcore"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# ===== exports


def test_exports_are_sorted_and_complete() -> None:
    lbcore = importlib.import_module("lbcore")
    public = {name for name, value in vars(lbcore).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert list(lbcore.__all__) == sorted(lbcore.__all__)
    assert public - {"annotations"} == {name for name in lbcore.__all__ if not name.startswith("_")}


def test_public_surface_holds_what_the_design_names() -> None:
    named = {"Balancer", "ConfigError", "Decision", "LbcoreError", "NoRegionError", "NotPrimaryError", "Region", "ServiceError"}
    assert named | {"LatencyTable", "Picker", "PrefixMap", "UnknownRegionError"} <= set(importlib.import_module("lbcore").__all__)


# ===== import arrows

CORE = {path.stem for pattern in ("_*.pyx", "_*.pxd") for path in PACKAGE.glob(pattern)}

# A unit may import those above it; units of one line do not know each other.
LAYERS: tuple[set[str], ...] = (
    {"errors", "linelog", "listener"},
    {"region", *CORE},
    {"detect", "sense", "sense.geo", "steer", "data", "state"},
    {"config"},  # names the rules of those above, so that none stands twice
    {"decision", "layout"},
    {"balancer"},
    {"metrics", "learned"},
    {"sense.probe"},  # gateways probe their backends
    {"", "dns", "http"},
    {"sim"},
    {"service"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """Name the unit of the layer map that a module of lbcore belongs to; "" is the package itself."""
    parts = module.split(".")[1:]
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in RANK), parts[0] if parts else "")


def modules_imported(path: Path) -> Iterator[tuple[int, str]]:
    """Give line and absolute name of every module of lbcore that a file imports, anywhere in it."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            # `from lbcore import sense` imports a module, `from lbcore.region import Region` a name in one.
            names = [f"{origin}.{alias.name}" if is_module(f"{origin}.{alias.name}") else origin for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "lbcore")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pyi"))


def offences(path: Path) -> Iterator[str]:
    own = unit_of(module_name(path))
    for line, target in modules_imported(path):
        other = unit_of(target)
        # A folder belongs to itself: `sense/probe.py` may pass through `sense/__init__.py`.
        if other != own and not own.startswith(f"{other}.") and not RANK.get(other, 99) < RANK[own]:
            yield f"{path.relative_to(ROOT)}:{line}: {own or 'lbcore'} imports {other or 'lbcore'}"


def test_every_module_has_its_place_in_the_layer_map() -> None:
    units = {unit_of(module_name(path)) for pattern in ("*.py", "*.pyx") for path in PACKAGE.rglob(pattern)}
    assert units <= set(RANK), "new unit: give it a layer in DESIGN and here"


def test_imports_follow_the_arrows() -> None:
    assert [text for path in sorted(PACKAGE.rglob("*.py")) for text in offences(path)] == []


def test_the_arrow_test_sees_a_wrong_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "lbcore" / "dns" / "responder.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("from ..balancer import Balancer\ndef f():\n    from ..http import transport\n    import lbcore.cli\n")
    for name in ("balancer.py", "cli.py", "http/transport.py"):
        (tmp_path / "lbcore" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "lbcore" / name).touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [text.split(": ")[1] for text in offences(wrong)] == ["dns imports http", "dns imports cli"]


def test_the_core_imports_nothing_of_lbcore_but_itself() -> None:
    pattern = re.compile(r"^\s*(?:from\s+(\S+)\s+)?c?import\s+(\S+)", re.MULTILINE)
    assert {"_fast", "_prefix"} <= CORE
    for path in (path for pattern in ("_*.pyx", "_*.pxd") for path in PACKAGE.glob(pattern)):
        for origin, name in pattern.findall(path.read_text()):
            module = origin or name
            if module.startswith((".", "lbcore")):
                assert module.removeprefix("lbcore").strip(".") in CORE | {""}, f"{path.name}: {module}"


HEAVY = {"dns", "fastapi", "httpcore", "httpx", "jinja2", "nats", "pydantic", "rich", "sqlite3", "starlette", "typer", "uvicorn", "uvloop"}


def test_import_loads_no_web_dns_or_http_library() -> None:
    script = "import sys, lbcore; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert "lbcore._fast" in loaded
    assert HEAVY.intersection(loaded) == set()


# ===== documentation

COMPILED = ("lbcore._fast", "lbcore._prefix")


def public_members(owner: ModuleType | type, home: str) -> Iterator[tuple[str, object]]:
    """Give the public classes, functions, methods and properties that `owner` itself defines."""
    for name, value in vars(owner).items():
        target = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        # Cython's `cdef readonly` attributes cannot carry a docstring; their class describes them.
        if name.startswith("_") or not (inspect.isclass(target) or inspect.isroutine(target) or isinstance(target, property)):
            continue
        if isinstance(owner, ModuleType) and getattr(target, "__module__", home) != home:
            continue
        yield name, target


def undocumented(module: ModuleType) -> Iterator[str]:
    for name, value in public_members(module, module.__name__):
        if not value.__doc__ or value.__doc__.startswith(f"{name}("):  # what dataclass makes up is no docstring
            yield f"{module.__name__}.{name}"
        if inspect.isclass(value):
            for method, function in public_members(value, module.__name__):
                if not documented_somewhere(value, method, function):
                    yield f"{module.__name__}.{name}.{method}"


def documented_somewhere(cls: type, name: str, function: object) -> bool:
    """Tell whether a method is described: by itself, by a base it overrides, or by the protocol it follows."""
    detector = getattr(sys.modules.get("lbcore.detect"), "Detector", object)
    bases = (*cls.__mro__[1:], *detector.__mro__)
    return bool(getattr(function, "__doc__", None)) or any(getattr(getattr(base, name, None), "__doc__", None) for base in bases)


def all_modules() -> list[str]:
    paths = (path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__") or path.name == "__init__.py")
    return sorted({module_name(path) for path in paths} | set(COMPILED))


@pytest.mark.parametrize("name", all_modules())
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} says nothing of what lives in it"
    assert [*undocumented(module)] == []


# ===== releases and checks


def test_changelog_opens_with_the_version_of_the_package() -> None:
    top = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top.group(1) == PYPROJECT["project"]["version"]


def test_version_is_written_once() -> None:
    assert importlib.import_module("lbcore").__version__ == PYPROJECT["project"]["version"]


def test_make_check_runs_every_checker() -> None:
    recipe = subprocess.run(["make", "--dry-run", "--always-make", "check"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for command in ("ruff check .", "mypy --strict", "stubtest lbcore._fast lbcore.", "cython-lint lbcore/_"):
        assert command in recipe


def test_extras_are_those_of_the_design() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"cli", "dns", "http", "service", "fleet", "all"}
    assert extras["all"] == [f"lbcore[{','.join(name for name in extras if name != 'all')}]"]


# ===== the pages run


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its language, its lines, the first one's number, and the comment before the fence."""

    language: str
    lines: tuple[str, ...]
    start: int
    note: str

    @property
    def file(self) -> str | None:
        match = re.fullmatch(r"<!-- file: (\S+) -->", self.note)
        return match and match.group(1)

    @property
    def runs(self) -> bool:
        return not self.note.startswith("<!-- not run: ")


def blocks(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, "a fence is not closed"
    for opening, closing in zip(fences[::2], fences[1::2], strict=True):
        before = next((line.strip() for line in reversed(lines[:opening]) if line.strip()), "")
        yield Block(lines[opening].strip("` "), tuple(lines[opening + 1 : closing]), opening + 1, before)


def program_of(page: list[Block]) -> str:
    """Join a page's Python blocks into one program whose line numbers are the page's."""
    lines: list[str] = []
    for block in page:
        lines += [""] * (block.start - len(lines)) + list(block.lines)
    return "\n".join(lines) + "\n"


def commands_of(page: list[Block], word: str) -> list[str]:
    lines = "\n".join("\n".join(block.lines) for block in page).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith(f"{word} ")]


def run(command: list[str], folder: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "COLUMNS": "140"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command[-1]}\nended {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    page = [block for block in blocks(path.read_text()) if block.runs]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in page:
        if block.file:
            (tmp_path / block.file).write_text("\n".join(block.lines) + "\n")
    shell = [block for block in page if block.language in ("console", "bash", "sh")]
    python = [block for block in page if block.language in ("python", "py")]
    if python:
        (tmp_path / path.with_suffix(".py").name).write_text(program_of(python))
        run([sys.executable, "-W", "error", path.with_suffix(".py").name], tmp_path)
    for command in commands_of(shell, "lbcore"):
        run(["bash", "-euo", "pipefail", "-c", f'lbcore() {{ "$PYTHON" -m lbcore "$@"; }}\n{command}'], tmp_path)
    for command in commands_of(shell, "make"):
        run(["make", "--dry-run", *command.split("#")[0].split()[1:]], ROOT)


def test_readme_shows_the_two_commands() -> None:
    shell = [block for block in blocks((ROOT / "README.md").read_text()) if block.language in ("console", "bash", "sh")]
    assert [command.split()[1] for command in commands_of(shell, "make")][:2] == ["demo", "test"]
