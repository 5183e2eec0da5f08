"""Build the compiled core. Metadata lives in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False, "auto_pickle": False, "autotestdict": False, "freethreading_compatible": True}
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno"]

EXTENSIONS = [
    Extension("lbcore._fast", ["lbcore/_fast.pyx"], extra_compile_args=FLAGS),
    Extension("lbcore._prefix", ["lbcore/_prefix.pyx"], extra_compile_args=FLAGS),
]

setup(ext_modules=cythonize(EXTENSIONS, compiler_directives=DIRECTIVES, build_dir="build"))
