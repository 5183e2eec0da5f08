"""Every in-process row under pytest-benchmark: the subject, its floors and its peers, grouped by row.

    python -m pytest benchmarks                     all of them
    python -m pytest benchmarks -k pick             some; --benchmark-compare and the like work as usual

A time is that of `operations` calls from one loop (see extra_info); report.py prints the ratios and what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pytest
from report import ROWS
from rounds import Work
from rows import Row


@lru_cache(maxsize=1)  # the works of one row share a table; that of the row before is let go
def works_of(row_name: str) -> Mapping[str, Work]:
    return next(row for row in ROWS if row.name == row_name).works()


def cases() -> Iterator[Any]:
    """Give (row, name of a work), the subject's name being None, it is the first."""
    for row in ROWS:
        for name in (None, *dict.fromkeys(asked.other for asked in row.asked if asked.other)):
            yield pytest.param(row, name, id=f"{row.name} | {name or 'lbcore'}")


@pytest.mark.parametrize(("row", "name"), list(cases()))
def test_row(row: Row, name: str | None, benchmark: Any) -> None:
    works = works_of(row.name)
    work = works[name or next(iter(works))]
    benchmark.group = row.name
    benchmark.extra_info.update(operations=work.count, asked=[asked.text for asked in row.asked])
    benchmark.pedantic(work.run, setup=work.prepare, rounds=5 if row.slow else 20, warmup_rounds=1)
