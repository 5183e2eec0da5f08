cimport cython

from lbcore.http.call cimport Call
from lbcore.http.forward cimport Forwarder
from lbcore.http.reading cimport RequestReader
from lbcore.http.response cimport ResponseReader


@cython.final
cdef class Inbound:
    cdef public Forwarder engine
    cdef public object transport
    cdef public RequestReader reader
    cdef public Call call
    cdef public str peer, client
    cdef public bytes lines, lines_for
    cdef public double since, started
    cdef public bint secure, lingering
    cdef bint _ended, _closing, _paused, _stalled
    cdef object _refusal
    cdef _feed(self, bytes data)
    cdef _next(self)
    cpdef answered(self, Call call)
    cdef _feed_rest(self)
    cpdef bint closes(self, Call call) except -1
    cpdef write(self, bytes data)
    cdef _refuse(self)
    cdef _refuse_body(self, Call call, refusal)
    cdef _finish(self)
    cpdef abort(self, bint reset=*)
    cpdef leave(self)
    cpdef close_if_idle(self)
    cpdef regulate(self)
    cdef _set_paused(self, bint pause)
    cpdef switch(self, Call call, ResponseReader reader)
    cpdef sweep(self, double now)
    cdef _sweep_idle(self, double now, double waited)
    cdef _sweep_body(self, Call call, double now, double waited)
    cdef _sweep_upstream(self, Call call, double now)
    cdef _give_up(self, why)
