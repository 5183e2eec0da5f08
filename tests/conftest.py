"""What every test shares: a clock that only the test advances, Hypothesis profiles, and the rule about skips.

LBCORE_PROFILE      ci | default | heavy: how many examples Hypothesis tries
LBCORE_REQUIRE_ALL  1: a skip is a failure, so that CI cannot pass by lacking a program (tests marked `real` excepted)
LBCORE_DATA         the folder of real data
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REQUIRE_ALL = os.environ.get("LBCORE_REQUIRE_ALL", "0") not in ("", "0")

for name, examples in {"ci": 50, "default": 100, "heavy": 10_000}.items():
    settings.register_profile(
        name, max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile(os.environ.get("LBCORE_PROFILE", "default"))


class Clock:
    """A clock that stands still until the test advances it: `Clock(start)` is a callable that gives seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Let `seconds` pass (negative: the clock is set back) and give the new time."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Find a program on PATH, or skip the test (fail it, where everything is required)."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"needs the program {name}")
        return path

    return find


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data. A test that uses it is marked `real`."""
    folder = os.environ.get("LBCORE_DATA")
    if not folder:
        pytest.skip("needs real data: LBCORE_DATA is not set")
    return Path(folder)


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """A command run in this process silences the logger of lbcore; the next test gets it back as it was."""
    logger = logging.getLogger("lbcore")
    before = logger.level
    yield
    logger.setLevel(before)


def _forbid(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason} (a skip is a failure under LBCORE_REQUIRE_ALL=1)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if REQUIRE_ALL and item.get_closest_marker("real") is None:
        _forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    if REQUIRE_ALL:
        _forbid(report)
    return report
