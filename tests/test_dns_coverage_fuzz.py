"""Every byte string is a possible packet: both DNS paths under libFuzzer, guided by coverage, with AddressSanitizer and
UndefinedBehaviorSanitizer watching the compiled one. A minute of CPU time; ten under LBCORE_PROFILE=heavy.

What is promised stands in `fuzz/judge.py` and `fuzz/target.py`, which also says how to play a finding again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sanitizers import build, copy_of_tree

Fuzz = Callable[[str, float], tuple[str, list[bytes]]]
FUZZ = Path(__file__).parent / "fuzz"
SECONDS = 600 if os.environ.get("LBCORE_PROFILE") == "heavy" else 60
SHARES = {"wire": 0.4, "both": 0.6}  # of the seconds

pytestmark = pytest.mark.sanitizer


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("clang") is None:
        pytest.skip("needs the program clang")
    _preloaded()
    folder = copy_of_tree(tmp_path_factory.mktemp("fuzz"))
    shutil.copy(FUZZ / "pocket.pyx", folder / "lbcore" / "dns" / "_pocket.pyx")
    build(folder, LBCORE_SANITIZE="fuzz", CC="clang")
    return folder


def _preloaded() -> str | None:
    """Give Atheris' AddressSanitizer with libFuzzer in it."""
    atheris = pytest.importorskip("atheris")
    return str(Path(atheris.path()) / "asan_with_fuzzer.so")


@pytest.fixture
def fuzz(instrumented: Path, tmp_path: Path) -> Fuzz:
    """Run a target for so many seconds; give what it said and its findings."""
    options = "detect_leaks=0:print_stacktrace=1:quarantine_size_mb=64"  # CPython never frees some things
    env = os.environ | {
        "LD_PRELOAD": str(_preloaded()), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options, "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(instrumented), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    def run(target: str, seconds: float) -> tuple[str, list[bytes]]:
        command = [sys.executable, "-m", "fuzz.target", target, str(tmp_path), str(seconds)]
        done = subprocess.run(
            command, cwd=instrumented / "tests", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600 + 5 * seconds
        )  # fmt: skip
        lines = [line for line in done.stdout.decode(errors="replace").splitlines() if not line.startswith(("#", "INFO:", "\t"))]
        return "\n".join(lines), [path.read_bytes() for path in sorted(tmp_path.glob("finding-*"))]

    return run


@pytest.mark.parametrize("target", SHARES)
def test_no_packet_breaks_a_promise(fuzz: Fuzz, target: str) -> None:
    said, findings = fuzz(target, SHARES[target] * SECONDS)
    assert not findings, f"{said[:9000]}\n\n" + "\n".join(finding.hex() for finding in findings)
    assert "quiet after" in said


def test_the_fuzzer_finds_what_was_planted(fuzz: Fuzz) -> None:
    said, findings = fuzz("planted", 60)
    assert "AssertionError: planted" in said
    assert findings


def test_the_address_sanitizer_sees_a_read_behind_a_packet(fuzz: Fuzz) -> None:
    said, findings = fuzz("short", 60)
    assert "AddressSanitizer: heap-buffer-overflow" in said
    assert "_packet_read_query" in said
    assert findings
