# Where a query goes: the compiled form of profiles, for the loop in `_wire` and for the Responder alike.
#
# Python (`route.py`) folds profiles, the operator's switches and health into a few kinds of steps; a step is walked without the
# GIL. A Program belongs to one latency table and one prefix map and is replaced whole.

from libc.stdint cimport int32_t, uint32_t

from lbcore._address cimport ip
from lbcore._fast cimport LatencyTable
from lbcore._prefix cimport PrefixMap

cdef enum:
    NODATA = -1
    NXDOMAIN = -2
    SERVFAIL = -3
    REFUSED = -4
    SEVERAL = -5         # records of several regions: the Responder's

cdef struct choice:
    int32_t region       # slot of the latency table, or one of the above
    int32_t second       # the next region, -1 = none; only when asked for
    int scope            # bits of the client's address that the choice depends on, counted in the client's own family
    uint32_t ttl         # seconds
    bint fail_open       # the region is not eligible: nobody is

cdef struct program

# Fetches what `choose` will read of the map, at depth 0, 1, 2: for many clients at one depth, then at the next.
cdef void foresee(const program* p, const ip* client, int depth) noexcept nogil
cdef void choose(const program* p, uint32_t root, const ip* client, uint32_t turn, bint pair, choice* out) noexcept nogil


cdef class Horizon:
    cdef uint32_t* seconds
    cdef readonly Py_ssize_t slots


cdef class Program:
    cdef program* p
    cdef readonly LatencyTable table
    cdef readonly PrefixMap map
    cdef object kept               # whatever else `p` points into
    cdef int check(self, Py_ssize_t root) except -1
