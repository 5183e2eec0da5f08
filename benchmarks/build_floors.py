"""Compile floors.pyx into build/benchmarks, once, and give its methods. It is no part of the package."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "benchmarks"


@cache
def floors() -> Any:
    """Give a `Floors` object: its methods a, b and c are the floors."""
    found = _compiled() or _compile()
    spec = importlib.util.spec_from_file_location("floors", found)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Floors()


def _compiled() -> Path | None:
    source = (HERE / "floors.pyx").stat().st_mtime
    return next((path for path in BUILD.glob(f"floors.{sys.implementation.cache_tag}*") if path.stat().st_mtime >= source), None)


def _compile() -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    extension = Extension("floors", [str(HERE / "floors.pyx")], extra_compile_args=["-O3"])
    modules = cythonize([extension], build_dir=str(BUILD / "c"), quiet=True, force=True)
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib, command.build_temp, command.verbose = str(BUILD), str(BUILD / "o"), 0
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath("floors"))
