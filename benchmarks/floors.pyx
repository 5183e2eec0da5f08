# cython: language_level=3
"""Floors: what a call into Cython costs when nothing is done. Every figure of the benchmarks is set against these."""
cimport cython


@cython.final
cdef class Floors:
    """Methods that do nothing, called as `pick` and `observe` are."""

    def a(self, Py_ssize_t group):
        """Floor A: a plain method with one index."""
        return None

    @cython.binding(False)
    def b(self, Py_ssize_t group, /):
        """Floor B: a method descriptor with one positional-only index."""
        return None

    @cython.binding(False)
    def c(self, Py_ssize_t group, Py_ssize_t region, double ms, double now, /):
        """Floor C: a method descriptor with four typed arguments, those of `observe`."""
        return None
