cimport cython

from lbcore.http.message cimport Request


@cython.final
cdef class Route:
    cdef readonly object api
    cdef readonly str operation
    cdef readonly tuple names
    cdef readonly bytes base
    cdef readonly int depth
    cpdef bytes below(self, bytes target)


@cython.final
cdef class Miss:
    cdef readonly int status
    cdef readonly str why
    cdef readonly object api, allow, preflight


@cython.final
cdef class _Node:
    cdef public dict literals
    cdef public _Node parameter
    cdef public Route here, rest


@cython.final
cdef class _Table:
    cdef public object api
    cdef public int depth
    cdef public dict methods
    cdef public _Node others


@cython.final
cdef class _Place:
    cdef public dict below, versions
    cdef public bint used
    cdef public _Table table
    cdef public str by
    cdef public bytes name


cdef class Router:
    cdef dict _exact, _suffixes
    cdef readonly dict _known
    cdef _Place _any
    @cython.locals(place=_Place, found=_Place, below=_Place, segments=list, path=bytes, at=int, depth=int, end=int)
    cpdef object find(self, Request request)
    @cython.locals(table=_Table, node=_Node, end=int, values=list, route=Route)
    cdef object _operation(self, Request request, _Place place, list segments, int depth)


@cython.locals(below=_Node, parameter=_Node, route=Route, segment=bytes, mark=int)
cdef Route _walk(_Node node, list segments, int at, int end, list values)
cdef object _parameters(Route route, list values)
