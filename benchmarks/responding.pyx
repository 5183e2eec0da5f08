# cython: language_level=3
"""The compiled DNS path without sockets: packets in a row, answers thrown away."""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lbcore._address cimport ip
from lbcore.dns._packet cimport MAX_UDP, SLACK
from lbcore.dns._respond cimport respond
from lbcore.dns._wire cimport Wire


def answer_all(Wire wire, list packets, int rounds):
    """Answer all packets, `rounds` times, for a client on loopback; give the number of those that were answered."""
    cdef uint8_t out[MAX_UDP]
    cdef size_t size = max(map(len, packets)) + SLACK, n = len(packets), i
    cdef uint8_t* data = <uint8_t*>malloc(n * size)
    cdef int* sizes = <int*>malloc(n * sizeof(int))
    cdef ip client
    cdef int turn, answered = 0
    client.hi, client.lo, client.is_v6 = <uint64_t>0x7F000001 << 32, 0, False
    memset(data, 0, n * size)
    for i in range(n):
        sizes[i] = len(packets[i])
        memcpy(data + i * size, <const char*><bytes>packets[i], sizes[i])
    with nogil:
        for turn in range(rounds):
            for i in range(n):
                answered += respond(wire.current, &wire.s, wire.own, data + i * size, sizes[i], &client, out) > 0
    free(data)
    free(sizes)
    return answered
