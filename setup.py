"""Build the compiled core. Metadata lives in pyproject.toml.

LBCORE_DEBUG=1                  bounds checks in, optimiser almost out, symbols
LBCORE_SANITIZE=address|thread  the same under AddressSanitizer + UndefinedBehaviorSanitizer, or under ThreadSanitizer (gcc, clang)
LBCORE_SANITIZE=fuzz            as address, and with what libFuzzer's coverage guidance needs (clang)
Each mode has its own folder under build/, so that one never reuses another's objects.
"""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "auto_pickle": False,
    "autotestdict": False,
    "freethreading_compatible": True,
}
CHECKS = {"boundscheck": True, "initializedcheck": True}
# Python modules that are compiled as they are: a .pxd beside one says which types its attributes and arguments have (Cython's
# "augmenting .pxd"). They keep every check of Python; mypy reads the annotations, Cython does not.
AUGMENTED = {
    "language_level": 3,
    "annotation_typing": False,
    "nonecheck": True,
    "binding": False,
    "auto_pickle": False,
    "autotestdict": False,
    "freethreading_compatible": True,
}

# The oracle in tests/ repeats every float operation in the written order: no contraction to fused multiply-add.
RELEASE = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno"]  # -g0: a third less time to build, a quarter of the size
DEBUG = ["-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG", "-ffp-contract=off", "-fno-math-errno"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "fuzz": ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
QUIET = ["-Wno-unused-function"]  # Cython writes a converter for every struct, called or not
MSVC = ["/O2", "/fp:precise"]

NO_COMPILER = """
lbcore needs its compiled core, and that could not be built ({error}).
It takes a C compiler and Python's headers. Install:
  Debian, Ubuntu   apt-get install gcc python3-dev
  Fedora, RHEL     dnf install gcc python3-devel
  Alpine           apk add gcc musl-dev python3-dev
  macOS            xcode-select --install
  Windows          "Desktop development with C++" of the Visual Studio Build Tools
and run the same command again.
"""


def mode() -> str:
    """Give the build mode that the environment asks for: release, debug, address, fuzz or thread."""
    sanitizer = os.environ.get("LBCORE_SANITIZE", "")
    if sanitizer and sanitizer not in SANITIZERS:
        sys.exit(f"LBCORE_SANITIZE={sanitizer}: expected one of {', '.join(SANITIZERS)}")
    return sanitizer or ("debug" if os.environ.get("LBCORE_DEBUG", "0") not in ("", "0") else "release")


class BuildCore(build_ext):
    """Compile with the flags that the compiler at hand understands; say what to install when there is none."""

    def build_extensions(self) -> None:
        sanitize = SANITIZERS.get(MODE, [])
        flags = MSVC if self.compiler.compiler_type == "msvc" else (RELEASE if MODE == "release" else DEBUG) + sanitize + QUIET
        for extension in self.extensions:
            extension.extra_compile_args = flags
            extension.extra_link_args = sanitize
        self.parallel = self.parallel or os.cpu_count()
        # An object or module of another mode looks up to date by its time stamp.
        self.force = self.force or MODE != "release"
        try:
            super().build_extensions()
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            reason = str(error) if isinstance(error, OSError) else "the compiler refused, its message stands above"
            sys.exit(NO_COMPILER.format(error=reason))


MODE = mode()
CYTHON = sorted(glob("lbcore/**/*.pyx", recursive=True))
PYTHON = [path for pxd in sorted(glob("lbcore/**/*.pxd", recursive=True)) if os.path.exists(path := pxd.removesuffix("xd") + "y")]
HEADERS = glob("lbcore/**/*.h", recursive=True)


def compiled(paths: list[str], directives: dict[str, object]) -> list[Extension]:
    """Give the extension modules of source files, their C code written."""
    names = [os.path.splitext(path)[0].replace(os.sep, ".") for path in paths]
    extensions = [Extension(name, [path], include_dirs=["lbcore"], depends=HEADERS) for name, path in zip(names, paths, strict=True)]
    folder = "build" if MODE == "release" else f"build/{MODE}"
    made: list[Extension] = cythonize(extensions, compiler_directives=directives, build_dir=folder)
    return made


setup(
    cmdclass={"build_ext": BuildCore},
    ext_modules=compiled(CYTHON, DIRECTIVES if MODE == "release" else DIRECTIVES | CHECKS) + compiled(PYTHON, AUGMENTED),
)
