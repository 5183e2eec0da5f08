from lbcore.http.heads cimport Heads
from lbcore.http.inbound cimport Inbound


cdef class Forwarder:
    cdef public object handler, limits, timeouts, clock, loop, counters
    cdef public Heads heads
    cdef public double now
    cdef public set inbounds, relays
    cdef public dict upstreams
    cdef public bint draining
    cdef object _servers, _tasks, _sweeper
    cdef bint _excused
    cpdef opened(self, Inbound inbound)
    cpdef closed(self, Inbound inbound)
    cpdef sweep(self)
