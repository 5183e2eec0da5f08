"""The row of `import lbcore`: whole processes, by their CPU time."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

from rows import AtMost, Row, Work


def _import(module: str) -> Work:
    command = [sys.executable, "-c", f"import {module}"]
    return Work(partial(subprocess.run, command, check=True), clock=_cpu_of_children)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _works() -> Mapping[str, Work]:
    return {"import lbcore": _import("lbcore"), "import numpy": _import("numpy")}


ROWS = (Row("import lbcore, a process", (AtMost(2.0, "import numpy"),), _works, slow=True),)
