# Text to IP address, without the GIL. Accepts and refuses what `ipaddress.ip_address` does; an IPv6
# scope ("%eth0") is accepted and dropped.
#
# Sources: RFC 4291 §2.2, RFC 4007 §11 (scopes), CPython's Lib/ipaddress.py for the refusals.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr

cdef struct ip:
    uint64_t hi          # an IPv4 address is the top half of hi
    uint64_t lo
    bint is_v6


cdef inline bint parse_v4(const uint8_t* s, Py_ssize_t size, uint32_t* out) noexcept nogil:
    cdef uint32_t result = 0, octet = 0, digit
    cdef int digits = 0, dots = 0
    cdef Py_ssize_t i
    if size > 15:
        return False
    for i in range(size):
        digit = <uint32_t>s[i] - c"0"
        if digit <= 9:
            if digits and not octet:             # a leading zero
                return False
            octet = 10 * octet + digit
            digits += 1
            if octet > 255:
                return False
        else:
            if s[i] != c"." or not digits or dots == 3:
                return False
            result = result << 8 | octet
            octet = digits = 0
            dots += 1
    out[0] = result << 8 | octet
    return dots == 3 and digits > 0


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    c |= 32
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef inline bint join_words(const uint16_t* words, int count, int gap, ip* out) noexcept nogil:
    """Put eight 16-bit words together; a gap ("::") stands for at least one zero word."""
    cdef uint64_t half[2]
    cdef int i, at
    if gap < 0 and count != 8 or gap >= 0 and count == 8:
        return False
    half[0] = half[1] = 0
    for i in range(count):
        at = i if gap < 0 or i < gap else i + 8 - count
        half[at >> 2] |= <uint64_t>words[i] << 16 * (3 - (at & 3))
    out.hi, out.lo = half[0], half[1]
    return True


cdef inline bint parse_v6(const uint8_t* s, Py_ssize_t size, ip* out) noexcept nogil:
    cdef uint16_t words[8]
    cdef uint32_t word, tail
    cdef int count = 0, gap = -1, digit
    cdef Py_ssize_t i = 0, start
    if size < 2 or s[0] == c":" and s[1] != c":":
        return False
    if s[0] == c":":
        i = 1                                    # the second colon opens the gap below
    while i < size:
        if s[i] == c":":
            if gap >= 0:
                return False
            gap = count
            i += 1
            continue
        start, word = i, 0
        while i < size and i - start <= 4:
            digit = hex_digit(s[i])
            if digit < 0:
                break
            word = word << 4 | <uint32_t>digit
            i += 1
        if i < size and s[i] == c"." and count <= 6:
            if not parse_v4(s + start, size - start, &tail):
                return False
            words[count], words[count + 1] = <uint16_t>(tail >> 16), <uint16_t>tail
            return join_words(words, count + 2, gap, out)
        if i == start or i - start > 4 or count == 8:
            return False
        words[count] = <uint16_t>word
        count += 1
        if i < size:
            i += 1
            if s[i - 1] != c":" or i == size:
                return False
    return join_words(words, count, gap, out)


cdef inline bint parse_scoped(const uint8_t* s, Py_ssize_t size, ip* out) noexcept nogil:
    """Parse an IPv6 address followed by "%scope"."""
    cdef const uint8_t* sign = <const uint8_t*>memchr(s, c"%", size)
    cdef Py_ssize_t rest
    if sign == NULL:
        return False
    rest = s + size - sign - 1
    if rest == 0 or memchr(sign + 1, c"%", rest) != NULL or memchr(sign + 1, c"/", rest) != NULL:
        return False
    return parse_v6(s, sign - s, out)


cdef inline bint parse_address(const uint8_t* s, Py_ssize_t size, ip* out) noexcept nogil:
    """Parse IPv4 or IPv6 text; False when it is neither."""
    cdef uint32_t v4
    out.is_v6 = not parse_v4(s, size, &v4)
    if out.is_v6:
        return parse_v6(s, size, out) or parse_scoped(s, size, out)
    out.hi, out.lo = <uint64_t>v4 << 32, 0
    return True


cdef inline void read_packed(const uint8_t* p, Py_ssize_t size, ip* out) noexcept nogil:
    """Take 4 or 16 bytes in network order."""
    cdef uint64_t word[2]
    cdef Py_ssize_t i
    word[0] = word[1] = 0
    for i in range(size):
        word[i >> 3] |= <uint64_t>p[i] << 8 * (7 - (i & 7))
    out.hi, out.lo, out.is_v6 = word[0], word[1], size == 16
