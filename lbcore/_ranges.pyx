"""Sorted address ranges: made from networks, laid over one another.

A range list is three arrays of one length: starts hi u64[n], lo u64[n] (one 128-bit number; an IPv4 address
is the top half of hi) and value u32[n]. Each range reaches to the next start, the last to the end; neighbours
differ in value. An empty list is a single range of 0. Only `_prefix.pyx` imports this.
"""

import ipaddress
from collections.abc import Iterable
from operator import itemgetter

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lbcore._address cimport ip, parse_address

__all__ = ["UNSET", "flatten", "from_networks", "overlay", "split64"]

cdef enum:
    HOLE = 0xFFFFFFFF       # the value of "nothing here" in a list that is laid over another

UNSET = <uint32_t>HOLE


cdef struct network:
    uint64_t hi, lo, last_hi, last_lo
    uint32_t value


cdef inline bint before(uint64_t a_hi, uint64_t a_lo, uint64_t b_hi, uint64_t b_lo) noexcept nogil:
    return a_hi < b_hi or a_hi == b_hi and a_lo < b_lo


cdef inline uint64_t host_mask(int length) noexcept nogil:
    """Give the bits after the first `length` (clamped to 0..64) of a 64-bit word."""
    return 0 if length >= 64 else <uint64_t>-1 if length <= 0 else (1ULL << (64 - length)) - 1


cdef class Writer:
    """A range list under construction, in arrays sized for the worst case."""
    cdef uint64_t[::1] hi, lo
    cdef uint32_t[::1] value
    cdef Py_ssize_t size
    cdef object arrays

    def __cinit__(self, Py_ssize_t capacity):
        self.arrays = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64), np.empty(capacity, np.uint32)
        self.hi, self.lo, self.value = self.arrays
        self.size = 0

    cdef inline void put(self, uint64_t hi, uint64_t lo, uint32_t value) noexcept nogil:
        """Start a range; one that starts where the last one does replaces it, an equal neighbour is continued."""
        cdef Py_ssize_t n = self.size
        if n and self.hi[n - 1] == hi and self.lo[n - 1] == lo:
            n -= 1
        if not n or self.value[n - 1] != value:
            self.hi[n], self.lo[n], self.value[n] = hi, lo, value
            n += 1
        self.size = n

    cdef tuple take(self):
        return tuple([array[:self.size].copy() for array in self.arrays])


cdef int put_end(Writer out, const network* ended, uint32_t value) noexcept nogil:
    """Start what follows a network, unless it reaches the end of the address space."""
    if ended.last_hi != <uint64_t>-1 or ended.last_lo != <uint64_t>-1:
        out.put(ended.last_hi + (ended.last_lo == <uint64_t>-1), ended.last_lo + 1, value)
    return 0


def flatten(const uint64_t[::1] hi, const uint64_t[::1] lo, const uint8_t[::1] length, const uint32_t[::1] value):
    """Give the range list of networks, the longest prefix winning and UNSET where there is none.

    hi, lo: network addresses, without host bits; length: 0..128; sorted by (hi, lo, length). Of equal networks the last wins.
    """
    cdef network open_[132]
    cdef network n
    cdef Py_ssize_t i
    cdef int depth = 0
    cdef Writer out = Writer(2 * hi.shape[0] + 1)
    with nogil:
        out.put(0, 0, HOLE)
        for i in range(hi.shape[0]):
            n.hi, n.lo, n.value = hi[i], lo[i], value[i]
            n.last_hi, n.last_lo = n.hi | host_mask(length[i]), n.lo | host_mask(length[i] - 64)
            while depth and before(open_[depth - 1].last_hi, open_[depth - 1].last_lo, n.hi, n.lo):
                depth -= 1
                put_end(out, &open_[depth], open_[depth - 1].value if depth else HOLE)
            if depth and open_[depth - 1].last_hi == n.last_hi and open_[depth - 1].last_lo == n.last_lo and open_[depth - 1].hi == n.hi \
                    and open_[depth - 1].lo == n.lo:
                depth -= 1
            open_[depth] = n
            depth += 1
            out.put(n.hi, n.lo, n.value)
        while depth:
            depth -= 1
            put_end(out, &open_[depth], open_[depth - 1].value if depth else HOLE)
    return out.take()


def overlay(top, base, uint32_t hole=HOLE):
    """Give the range list that shows `top`, and `base` wherever the value of `top` is `hole`."""
    cdef const uint64_t[::1] top_hi = top[0], top_lo = top[1], base_hi = base[0], base_lo = base[1]
    cdef const uint32_t[::1] top_value = top[2], base_value = base[2]
    cdef Py_ssize_t t = 0, b = 0, tops = top_hi.shape[0], bases = base_hi.shape[0]
    cdef uint32_t shown = hole, under = 0
    cdef uint64_t hi, lo
    cdef bint take_top
    cdef Writer out = Writer(tops + bases + 1)
    with nogil:
        while t < tops or b < bases:
            take_top = b == bases or t < tops and not before(base_hi[b], base_lo[b], top_hi[t], top_lo[t])
            if take_top:
                hi, lo, shown = top_hi[t], top_lo[t], top_value[t]
                t += 1
            else:
                hi, lo, under = base_hi[b], base_lo[b], base_value[b]
                b += 1
            out.put(hi, lo, under if shown == hole else shown)
    return out.take()


def split64(ranges, uint32_t marker):
    """Give an IPv6 list over its top 64 bits alone: (starts u64, values u32, spans u32, long starts u64, long values u32).

    A /64 that is not all one value has the value marker | k and its own list over the low 64 bits: rows spans[k] to
    spans[k + 1] of the long arrays, the first of which starts at 0.
    """
    cdef const uint64_t[::1] hi = ranges[0], lo = ranges[1]
    cdef const uint32_t[::1] value = ranges[2]
    cdef Py_ssize_t i = 0, j, n = hi.shape[0], starts = 0, rows = 0, spans = 0
    outer, outer_values = np.empty(2 * n + 1, np.uint64), np.empty(2 * n + 1, np.uint32)
    inner, inner_values, span_rows = np.empty(2 * n, np.uint64), np.empty(2 * n, np.uint32), np.empty(n + 1, np.uint32)
    cdef uint64_t[::1] outer_view = outer, inner_view = inner
    cdef uint32_t[::1] outer_value = outer_values, inner_value = inner_values, span_view = span_rows
    while i < n:
        j = i + 1
        while j < n and hi[j] == hi[i]:
            j += 1
        outer_view[starts], outer_value[starts] = hi[i], value[i]
        starts += 1
        if j > i + 1 or lo[i]:
            outer_value[starts - 1] = marker | <uint32_t>spans
            span_view[spans] = <uint32_t>rows
            spans += 1
            if lo[i]:
                inner_view[rows], inner_value[rows] = 0, value[i - 1]
                rows += 1
            inner_view[rows:rows + j - i], inner_value[rows:rows + j - i] = lo[i:j], value[i:j]
            rows += j - i
            if hi[i] != <uint64_t>-1 and (j == n or hi[j] != hi[i] + 1):
                outer_view[starts], outer_value[starts] = hi[i] + 1, value[j - 1]
                starts += 1
        i = j
    span_view[spans] = <uint32_t>rows
    sized = (outer, starts), (outer_values, starts), (span_rows, spans + 1), (inner, rows), (inner_values, rows)
    return tuple([array[:size].copy() for array, size in sized])


# ===== networks as people write them =====

cdef int split_network(str network_text, ip* out) except -2:
    """Parse "address/length" or an address; -1 when it takes the slow way (a netmask, a fault)."""
    cdef bytes raw = network_text.encode()
    cdef const uint8_t* s = raw
    cdef Py_ssize_t size = len(raw), slash = raw.rfind(b"/")
    cdef int length = 0, most
    cdef Py_ssize_t i
    if not parse_address(s, slash if slash >= 0 else size, out) or b"%" in raw:
        return -1
    most = 128 if out.is_v6 else 32
    if slash < 0:
        return most
    if not 1 <= size - slash - 1 <= 3:
        return -1
    for i in range(slash + 1, size):
        if not c"0" <= s[i] <= c"9":
            return -1
        length = 10 * length + s[i] - c"0"
    return length if length <= most else -1


cdef int parse_network(object given, ip* out) except -1:
    """Give a network's length and put its address in `out`; ValueError for host bits and for what is no network."""
    cdef int length = split_network(given, out) if isinstance(given, str) else -1
    if length < 0:
        if not isinstance(given, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
            raise TypeError(f"expected a network as str or ipaddress network, got {type(given).__name__}")
        length = split_network(str(ipaddress.ip_network(given)), out)
    if out.hi & host_mask(length) or out.is_v6 and out.lo & host_mask(length - 64):
        raise ValueError(f"{given!r} has host bits set; did you mean {ipaddress.ip_network(given, strict=False)}?")
    return length


def from_networks(networks: Iterable, values: Iterable, under: Iterable = ()):
    """Give (IPv4 list, IPv6 list) of networks (str or ipaddress networks) with their u32 values; see `flatten`.

    A network inside ::ffff:0:0/96 is the IPv4 network it carries. `under`: IPv6 rows (hi, lo, length, value), taken as first ones.
    """
    cdef ip a
    cdef int length
    rows = ([], list(under))
    for given, value in zip(networks, values):
        length = parse_network(given, &a)
        if a.is_v6 and length >= 96 and a.hi == 0 and a.lo >> 32 == 0xFFFF:
            a.hi, a.lo, a.is_v6, length = a.lo << 32, 0, False, length - 96
        rows[a.is_v6].append((a.hi, a.lo, length, value))
    return tuple([flatten_rows(family) for family in rows])


cdef flatten_rows(list rows):
    # The sort is stable: equal networks keep their order, and the last wins.
    rows.sort(key=itemgetter(0, 1, 2))
    columns = list(zip(*rows)) or [()] * 4
    return flatten(*[np.array(column, kind) for column, kind in zip(columns, (np.uint64, np.uint64, np.uint8, np.uint32))])
