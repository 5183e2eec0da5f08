# Response rate limiting for threads without the GIL: `from lbcore.dns._rrl cimport RateLimiter, answer_hash, rrl_verdict`.
#
#     if not tcp and shown != 1 and rrl_verdict(limiter.l, &client, answer_hash(name, size, rdtype), now_ms) != SEND: ...
#
# All threads share one table of 2**17 words, 1 MiB. A word is a bucket of tokens; it is read and replaced by compare-and-swap.
# Two (network, answer) pairs that hash to one word share its tokens: a collision only ever limits more strictly.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from lbcore._address cimport ip

cdef enum:
    SEND = 0
    SLIP = 1             # answer with TC set and no records: who is real comes back over TCP
    DROP = 2

cdef struct network:
    uint64_t hi, lo, mask_hi, mask_lo
    bint is_v6

cdef struct limiter:
    uint64_t* buckets    # 32 bits: milliseconds of the last refill; 28: thousandths of a response; 4: limited since the last slip
    uint32_t mask        # buckets - 1
    uint32_t rate        # responses a second; 0 = off
    uint32_t slip
    uint64_t key[2]
    int exempt_count
    network* exempt


cdef inline uint32_t answer_hash(const uint8_t* name, Py_ssize_t size, uint16_t rdtype) noexcept nogil:
    """Give an answer's part of a bucket's key: FNV-1a over the name in wire form, lower case, and the type.

    For NXDOMAIN, REFUSED and referrals the name is that of the zone (or the root) and the type 0, so that made-up names share a bucket.
    """
    cdef uint32_t h = 2166136261
    cdef Py_ssize_t i
    for i in range(size):
        h = (h ^ name[i]) * 16777619
    h = (h ^ rdtype & 0xFF) * 16777619
    return (h ^ rdtype >> 8) * 16777619

# now_ms: any clock of milliseconds that does not go back. NULL or rate 0: SEND.
cdef int rrl_verdict(limiter* l, const ip* client, uint32_t answer, uint64_t now_ms) noexcept nogil


cdef class RateLimiter:
    cdef limiter* l
    cdef int add_exempt(self, list networks) except -1
