cimport cython

from lbcore.http.call cimport Call
from lbcore.http.forward cimport Forwarder
from lbcore.http.response cimport ResponseReader


@cython.final
cdef class Outbound:
    cdef public Upstream upstream
    cdef public ResponseReader reader
    cdef public Call call
    cdef public object transport
    cdef public double idle_since, active_at
    cdef public bint fresh, write_paused, closed
    cdef bint _reader_paused
    cpdef pause(self)
    cpdef resume(self)
    cpdef release(self)
    cpdef drop(self)


@cython.final
cdef class Upstream:
    cdef public Forwarder engine
    cdef public str host
    cdef public int port
    cdef public list idle
    cdef public set open
    cdef public bint retired
    cdef object _tls, _server_name, _waiting, _connecting
    cdef Py_ssize_t _limit, _keep
    cdef double _idle_for, _connect_in, _patience
    cpdef Outbound take(self)
    cpdef want(self, Call call)
    cpdef give(self, Outbound connection)
    cpdef lost(self, Outbound connection)
    cpdef sweep(self, double now)
    cpdef close_idle(self)
    cpdef retire(self)
