# cython: language_level=3
"""One packet through the compiled path, in memory that ends where the packet may be read to, for fuzzing under sanitizers.

Built beside the core by `test_dns_coverage_fuzz.py`, never installed. `Wire.answer` copies packets into a buffer of the greatest size,
where AddressSanitizer would see nothing of a read behind a packet's end.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lbcore._address cimport ip, read_packed
from lbcore.dns._packet cimport MAX_UDP, SLACK
from lbcore.dns._respond cimport respond, settings
from lbcore.dns._wire cimport Wire


cdef class Pocket:
    """Answer packets as the threads of `wire` would.

    slack: bytes behind a packet that may be read; fewer than SLACK make AddressSanitizer report
    """
    cdef Wire wire
    cdef size_t slack

    def __init__(self, Wire wire not None, size_t slack=SLACK):
        self.wire, self.slack = wire, slack

    def answer(self, bytes packet not None, bytes client not None, uint64_t now_s, uint64_t now_ms, bint limited=True):
        """Give the answer, b"" for a packet that is dropped, None for one that is the Responder's.

        client: 4 or 16 bytes. limited: whether the rate limit of `wire` counts
        What lay in the buffers before must not be seen: unlimited, the packet is answered twice, over zeros and over ones.
        """
        found = self.once(packet, client, now_s, now_ms, 0, limited)
        if not limited and self.once(packet, client, now_s, now_ms, 0xFF, False) != found:
            raise AssertionError("the answer depends on what lay in memory before")
        return found

    cdef object once(self, bytes packet, bytes client, uint64_t now_s, uint64_t now_ms, int before, bint limited):
        cdef size_t size = len(packet)
        cdef uint8_t* query = <uint8_t*>malloc(size + self.slack)
        cdef uint8_t* out = <uint8_t*>malloc(MAX_UDP)
        cdef settings s = self.wire.s
        cdef ip source
        cdef int32_t written
        if not limited:
            s.rrl = NULL
        memcpy(query, PyBytes_AS_STRING(packet), size)
        memset(query + size, before, self.slack)
        memset(out, before, MAX_UDP)
        read_packed(<const uint8_t*>PyBytes_AS_STRING(client), len(client), &source)
        self.wire.own.now_s, self.wire.own.now_ms = now_s, now_ms
        written = respond(self.wire.current, &s, self.wire.own, query, <uint32_t>size, &source, out)
        found = None if written < 0 else PyBytes_FromStringAndSize(<char*>out, written)
        free(query)
        free(out)
        return found
