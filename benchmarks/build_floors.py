"""Compile the .pyx files beside this one into build/benchmarks, once. They are no part of the package."""

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
    return compiled("floors").Floors()


@cache
def compiled(name: str) -> Any:
    """Give the module of a .pyx file."""
    found = _found(name) or _compile(name)
    spec = importlib.util.spec_from_file_location(name, found)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _found(name: str) -> Path | None:
    """Give the module, unless its source or the extensions whose structs it shares are newer."""
    sources = [HERE / f"{name}.pyx", *(HERE.parent / "lbcore").rglob("*.so")]
    newest = max(path.stat().st_mtime for path in sources)
    return next((path for path in BUILD.glob(f"{name}.{sys.implementation.cache_tag}*") if path.stat().st_mtime >= newest), None)


def _compile(name: str) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    extension = Extension(name, [str(HERE / f"{name}.pyx")], include_dirs=[str(HERE.parent / "lbcore")], extra_compile_args=["-O3"])
    modules = cythonize([extension], build_dir=str(BUILD / "c"), include_path=[str(HERE.parent)], quiet=True, force=True)
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib, command.build_temp, command.verbose = str(BUILD), str(BUILD / "o"), 0
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(name))
