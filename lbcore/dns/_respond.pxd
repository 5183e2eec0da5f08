# One packet in, one answer out, from prepared bytes: no GIL, no allocation, no locks.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from lbcore._address cimport ip
from lbcore.dns._cookies cimport cookie_secrets
from lbcore.dns._packet cimport MAX_UDP, query
from lbcore.dns._prepared cimport store
from lbcore.dns._route cimport program
from lbcore.dns._rrl cimport limiter

cdef enum:
    DROPPED = 0          # no answer: a response, no whole header, limited
    SLOW = -1            # the Responder's

cdef enum:                       # context.series that are there from the start
    OTHER_SERIES         # those there was no room for
    REFUSED_SERIES

cdef enum:                       # context.counts
    QUERIES
    UNANSWERABLE         # responses, what is shorter than a header or longer than any query, forged sources
    HANDED_OVER          # to the Responder
    LOST                 # should have been handed over, but the Responder lags behind
    UNSENT               # answered, but the socket would not take it
    WITH_ECS
    FAIL_OPEN
    LIMITED_SLIPPED
    LIMITED_DROPPED
    COUNTS

# What one version of the world is; replaced whole.
cdef struct view:
    const store* answers
    const program* routes

# What outlives views.
cdef struct settings:
    const uint8_t* nsid          # the whole option, ready to be sent
    uint32_t nsid_size
    cookie_secrets** cookies     # NULL = no cookies
    limiter* rrl                 # NULL = no limit
    uint64_t suspect             # 1 while the vantage is suspect
    uint64_t sample              # one answer of so many is logged, 0 = none

# A thread's own.
cdef struct context:
    uint64_t sequence            # odd while it looks into a view
    uint64_t stopping
    uint64_t counts[COUNTS]
    uint64_t sampled
    uint64_t* series
    uint64_t now_s, now_ms       # Unix time and monotonic, of this batch

# `packet` has SLACK readable bytes behind its end, `out` room for MAX_UDP. Gives the answer's size, DROPPED or SLOW.
cdef int32_t respond(
    const view* v, const settings* w, context* c, const uint8_t* packet, uint32_t size, const ip* source, uint8_t* out
) noexcept nogil

# The same of a query that was read from `packet` before.
cdef int32_t respond_to(
    const view* v, const settings* w, context* c, const query* q, const uint8_t* packet, const ip* source, uint8_t* out
) noexcept nogil
