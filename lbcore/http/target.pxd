cimport cython

from lbcore.http.upstream cimport Upstream


@cython.final
cdef class Target:
    cdef public Upstream upstream
    cdef public str name
    cdef public bytes prefix, host
    cdef public object first_byte
