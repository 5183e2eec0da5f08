# cython: language_level=3
"""Response rate limiting: what a forged source can make a server send to its victim is bounded, per network and answer.

    a bucket's tokens    refilled at `rate` a second as time passes, at most one second's worth
    one is there         the answer is sent
    none is there        every `slip`-th time an empty answer with TC set, so that a real client can come back over TCP; else nothing

The table has a fixed size and nothing in it is ever looked for: a key hashes to its bucket, and those that collide share it. The
hash is keyed by chance per process, so nobody can aim at another's bucket.
Source: Vixie and Schryver, "DNS Response Rate Limiting", ISC-TN-2012-1; BIND's and Knot's `rate-limit`, `slip`.
"""
import ipaddress
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from lbcore._address cimport read_packed
from lbcore._siphash cimport siphash

__all__ = ["MOST_RATE", "MOST_SLIP", "RateLimiter", "hash_answer"]

cdef extern from *:
    """
    #define LB_LOAD(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    #define LB_REPLACE(p, seen, word) __atomic_compare_exchange_n(p, seen, word, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
    """
    uint64_t load "LB_LOAD"(uint64_t* p) noexcept nogil
    bint swap "LB_REPLACE"(uint64_t* p, uint64_t* seen, uint64_t word) noexcept nogil

cdef enum:
    BUCKETS = 1 << 17
    UNIT = 1000          # a response, in the unit that `rate` a second adds each millisecond
    LEVEL_BITS = 28
    COUNT_BITS = 4
    MOST_COUNT = 15

cdef uint64_t V4_PREFIX = 0xFFFFFFULL << 40
cdef uint64_t V6_PREFIX = 0xFFFFFFFFFFFFFFULL << 8
MOST_RATE = (1 << LEVEL_BITS) // UNIT - 1
MOST_SLIP = MOST_COUNT


cdef inline bint is_exempt(const limiter* l, const ip* client) noexcept nogil:
    cdef int i
    cdef const network* n
    for i in range(l.exempt_count):
        n = &l.exempt[i]
        if n.is_v6 == client.is_v6 and client.hi & n.mask_hi == n.hi and client.lo & n.mask_lo == n.lo:
            return True
    return False


cdef inline uint64_t* bucket_of(const limiter* l, const ip* client, uint32_t answer) noexcept nogil:
    cdef uint64_t key[2]
    key[0] = client.hi & (V6_PREFIX if client.is_v6 else V4_PREFIX)
    key[1] = <uint64_t>answer << 1 | client.is_v6
    return &l.buckets[siphash(l.key, <const uint8_t*>key, 16, 1, 3) & l.mask]


cdef inline uint64_t refilled(const limiter* l, uint64_t word, uint32_t now) noexcept nogil:
    """Give the tokens of a bucket now."""
    cdef uint64_t full = <uint64_t>l.rate * UNIT, level = word >> COUNT_BITS & ((1 << LEVEL_BITS) - 1)
    cdef uint32_t passed = now - <uint32_t>(word >> 32)
    if 1000 <= passed < 0xFFFF0000U:
        return full
    if passed >= 0xFFFF0000U:                    # another thread's clock was read a moment later
        passed = 0
    level += <uint64_t>passed * l.rate
    return full if level > full else level


cdef int rrl_verdict(limiter* l, const ip* client, uint32_t answer, uint64_t now_ms) noexcept nogil:
    cdef uint64_t* bucket
    cdef uint64_t seen, level, count
    cdef int verdict
    if l == NULL or not l.rate or is_exempt(l, client):
        return SEND
    bucket = bucket_of(l, client, answer)
    seen = load(bucket)
    while True:
        level = refilled(l, seen, <uint32_t>now_ms)
        count = seen & MOST_COUNT
        if level >= UNIT:
            level -= UNIT
            count = 0
            verdict = SEND
        else:
            count += 1
            verdict = SLIP if l.slip and count >= l.slip else DROP
            if verdict == SLIP or not l.slip:
                count = 0
        if swap(bucket, &seen, <uint64_t><uint32_t>now_ms << 32 | level << COUNT_BITS | count):
            return verdict


cdef class RateLimiter:
    """Limit responses per client network (/24 of IPv4, /56 of IPv6) and answer; the table takes 1 MiB, whatever happens.

    rate: responses a second, 0..268434; 0 = no limit. A network may also use what it did not use in the second before
    slip: of the limited ones every slip-th is answered with TC set, 0..15; 0 = none, 1 = all
    exempt: networks that are never limited
    Queries over TCP and those with a valid cookie prove their source: their caller does not ask.
    Raises ValueError for numbers outside the ranges and for what is no network.
    """

    def __cinit__(self):
        self.l = <limiter*>calloc(1, sizeof(limiter))  # no-cython-lint
        if self.l == NULL:
            raise MemoryError

    def __init__(self, rate=200, slip=2, exempt=("127.0.0.0/8", "::1/128")):
        cdef bytes key = os.urandom(16)
        cdef list networks = [ipaddress.ip_network(text) for text in exempt]
        cdef uint32_t i
        if self.l.buckets != NULL:
            raise ValueError("a limiter that threads may hold is not set up anew")
        for name, value, most in (("rate", rate, MOST_RATE), ("slip", slip, MOST_SLIP)):
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}, expected 0..{most}")
        self.l.buckets = <uint64_t*>calloc(BUCKETS if rate else 1, sizeof(uint64_t))
        if self.l.buckets == NULL:
            raise MemoryError
        self.l.mask = BUCKETS - 1 if rate else 0
        for i in range(BUCKETS if rate else 0):
            self.l.buckets[i] = <uint64_t><uint32_t>rate * UNIT << COUNT_BITS
        memcpy(self.l.key, PyBytes_AS_STRING(key), 16)
        self.add_exempt(networks)
        self.l.slip = slip
        self.l.rate = rate

    def __dealloc__(self):
        if self.l != NULL:
            free(self.l.buckets)
            free(self.l.exempt)
            free(self.l)

    cdef int add_exempt(self, list networks) except -1:
        cdef ip first, mask
        cdef network* n
        self.l.exempt = <network*>calloc(len(networks) or 1, sizeof(network))
        if self.l.exempt == NULL:
            raise MemoryError
        for each in networks:
            read_address(each.network_address.packed, &first)
            read_address(each.netmask.packed, &mask)
            n = &self.l.exempt[self.l.exempt_count]
            n.hi, n.lo, n.mask_hi, n.mask_lo, n.is_v6 = first.hi, first.lo, mask.hi, mask.lo, first.is_v6
            self.l.exempt_count += 1
        return 0

    @property
    def rate(self):
        """Give the responses a second that a network may have of one answer; 0 = no limit."""
        return self.l.rate

    def verdict(self, bytes client not None, unsigned int answer, unsigned long long now_ms):
        """Give 0 (send), 1 (answer with TC set) or 2 (do not answer), and take one token.

        client: its address, packed, 4 or 16 bytes. answer: a hash of name and type. now_ms: milliseconds that do not go back
        Raises ValueError for an address of another length.
        """
        cdef ip address
        read_address(client, &address)
        return rrl_verdict(self.l, &address, answer, now_ms)


def hash_answer(bytes name not None, unsigned short rdtype):
    """Give what `verdict` wants of an answer: of a name in wire form, lower case, and a type."""
    return answer_hash(<const uint8_t*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), rdtype)


cdef int read_address(bytes packed, ip* out) except -1:
    if len(packed) not in (4, 16):
        raise ValueError(f"{packed!r} is not an address of 4 or 16 bytes")
    read_packed(<const uint8_t*>PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed), out)
    return 0
