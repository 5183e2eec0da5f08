"""The compiled DNS path while everything it looks into is replaced, under ThreadSanitizer: no race, no query lost, no answer of no version.

What it does stands in `race/serving.py`; that the sanitizer is awake is seen in `test_table_threads.py`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from test_table_threads import instrumented, watched

__all__ = ["instrumented", "watched"]


@pytest.mark.sanitizer
@pytest.mark.parametrize("seed", ["1", "2"])
def test_serving_while_answers_routes_verdicts_and_cookies_change_does_not_race(
    watched: Callable[..., subprocess.CompletedProcess[str]], seed: str
) -> None:
    done = watched("tests/race/serving.py", "15", seed)
    assert done.returncode == 0, done.stderr[-12000:]
    assert "quiet" in done.stdout
    assert "ThreadSanitizer" not in done.stderr
