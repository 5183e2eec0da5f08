from lbcore.http.call cimport Call
from lbcore.http.gateway.router cimport Miss, Route
from lbcore.http.gateway.units cimport Units
from lbcore.http.message cimport Request
from lbcore.http.response cimport ResponseReader

cimport cython


cdef class Calls:
    cdef public Units units
    cdef public object deployment, on_done, shut
    cdef public bytes lines
    cdef public object _revision, _budget, _explain_to, _clock, _counters
    cdef public int _retries, _undeposited
    @cython.locals(target=bytes)
    cpdef begin(self, Call call)
    @cython.locals(request=Request)
    cpdef _enter(self, Call call)
    @cython.locals(route=Route)
    cpdef _reach(self, visit, tuple match)
    @cython.locals(request=Request, route=Route)
    cpdef _leave_for(self, visit)
    cpdef _go(self, visit, way)
    cpdef retry(self, Call call, cause)
    cpdef answered(self, Call call, ResponseReader head)
    cpdef _succeeded(self, visit, Call call)
    cpdef failed(self, Call call, response)
    cpdef done(self, Call call)


cdef bint _same_path(bytes one, bytes other) except -1
