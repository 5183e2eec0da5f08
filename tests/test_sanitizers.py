"""The tests of the core, and of the compiled HTTP engine, again: built with bounds checks, and under AddressSanitizer +
UndefinedBehaviorSanitizer.

Each build happens in a copy of the tree, so the modules in use stay as they are. Races are hunted elsewhere, by C threads under
ThreadSanitizer (tests/race/).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ("fast", "table", "prefix", "mmdb", "picker", "limits")
ENGINE_TESTS = ("test_http_forward.py", "test_http_handler.py", "test_http_reading.py")
CORE_TESTS = sorted(path.name for name in CORE for path in (ROOT / "tests").glob(f"test_{name}*.py"))

pytestmark = pytest.mark.sanitizer


def copy_of_tree(folder: Path) -> Path:
    for name in ("lbcore", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(folder: Path, **switches: str) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=os.environ | switches, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def run_tests(folder: Path, names: Sequence[str] = CORE_TESTS, **env: str) -> None:
    """Run tests in `folder`; a sanitizer ends the process at its first finding and writes it to finding.PID."""
    # A process that is stopped while it claims an entry may lose a count (see Limits): slow code on a busy machine shows that too often.
    chosen = ["-k", "not processes_that_race", *(f"tests/{name}" for name in names)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    env = os.environ | {"LBCORE_PROFILE": "ci", "PYTHONPATH": str(folder)} | env
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    findings = "".join(path.read_text()[:4000] for path in folder.glob("finding.*"))
    assert done.returncode == 0 and not findings, f"{findings}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert " passed" in done.stdout


def runtime(gcc: str, *libraries: str) -> str:
    """Give the paths of gcc's runtime libraries, for LD_PRELOAD: the interpreter itself is not instrumented."""
    paths = [subprocess.check_output([gcc, f"-print-file-name={name}"], text=True).strip() for name in libraries]
    missing = [path for path in paths if not Path(path).is_absolute()]
    if missing:
        pytest.skip(f"needs gcc's {', '.join(missing)}")
    return ":".join(paths)


def test_core_under_bounds_checks(tmp_path: Path) -> None:
    folder = copy_of_tree(tmp_path)
    build(folder, LBCORE_DEBUG="1")
    run_tests(folder)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of_tree(tmp_path_factory.mktemp("address"))
    build(folder, LBCORE_SANITIZE="address", CC="gcc")
    return folder


@pytest.fixture
def address_sanitizer(sanitized: Path, program: Callable[[str], str]) -> dict[str, str]:
    # CPython and numpy never free some things; without pymalloc every object has its own red zones.
    preload = runtime(program("gcc"), "libasan.so", "libubsan.so", "libstdc++.so")
    options = f"exitcode=99:halt_on_error=1:print_stacktrace=1:detect_leaks=0:log_path={sanitized}/finding"
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}


def test_core_under_address_and_undefined_behaviour_sanitizers(sanitized: Path, address_sanitizer: dict[str, str]) -> None:
    run_tests(sanitized, **address_sanitizer)


def test_http_engine_under_address_sanitizer(sanitized: Path, address_sanitizer: dict[str, str]) -> None:
    """Compiled methods borrow their arguments: an object that ends too early is seen here."""
    run_tests(sanitized, ENGINE_TESTS, **address_sanitizer)


def test_the_address_sanitizer_is_awake(sanitized: Path, address_sanitizer: dict[str, str]) -> None:
    script = f"""
import ctypes, lbcore._fast
assert lbcore._fast.__file__.startswith({str(sanitized)!r})
ctypes.memmove(ctypes.create_string_buffer(64), ctypes.create_string_buffer(8), 64)
"""
    env = os.environ | address_sanitizer | {"PYTHONPATH": str(sanitized)}
    assert subprocess.run([sys.executable, "-c", script], cwd=sanitized, env=env).returncode == 99
    (finding,) = sanitized.glob("finding.*")
    assert "AddressSanitizer: heap-buffer-overflow" in finding.read_text()
    finding.unlink()
