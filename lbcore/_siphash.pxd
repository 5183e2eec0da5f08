# SipHash: a keyed hash that nobody can aim without the key. For DNS cookies (2-4) and for what rate limiters count by (1-3).
#
# Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012; 1-3 as in Rust and Python.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #define LB_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    static inline void lb_sip_rounds(uint64_t *v, int rounds) {
        while (rounds--) {
            v[0] += v[1]; v[1] = LB_ROTL(v[1], 13) ^ v[0]; v[0] = LB_ROTL(v[0], 32);
            v[2] += v[3]; v[3] = LB_ROTL(v[3], 16) ^ v[2];
            v[0] += v[3]; v[3] = LB_ROTL(v[3], 21) ^ v[0];
            v[2] += v[1]; v[1] = LB_ROTL(v[1], 17) ^ v[2]; v[2] = LB_ROTL(v[2], 32);
        }
    }
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define LB_LE64(x) __builtin_bswap64(x)
    #else
    #define LB_LE64(x) (x)
    #endif
    """
    void sip_rounds "lb_sip_rounds"(uint64_t* v, int rounds) noexcept nogil
    uint64_t le64 "LB_LE64"(uint64_t x) noexcept nogil


cdef inline void sip_word(uint64_t* v, uint64_t word, int rounds) noexcept nogil:
    v[3] ^= word
    sip_rounds(v, rounds)
    v[0] ^= word


cdef inline uint64_t siphash(
    const uint64_t* key, const uint8_t* data, size_t size, int rounds, int last_rounds
) noexcept nogil:
    """Give the hash as a number; its bytes in little-endian order are the hash as published."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef size_t at = 0
    v[0] = v[2] = le64(key[0])
    v[1] = v[3] = le64(key[1])
    v[0] ^= 0x736F6D6570736575ULL
    v[1] ^= 0x646F72616E646F6DULL
    v[2] ^= 0x6C7967656E657261ULL
    v[3] ^= 0x7465646279746573ULL
    while size - at >= 8:
        memcpy(&word, data + at, 8)
        sip_word(v, le64(word), rounds)
        at += 8
    word = 0
    memcpy(&word, data + at, size - at)
    sip_word(v, le64(word) | <uint64_t>size << 56, rounds)
    v[2] ^= 0xFF
    sip_rounds(v, last_rounds)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
