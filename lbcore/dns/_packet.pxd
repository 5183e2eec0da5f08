# Reading the packets that the compiled path answers: one question, class IN, at most one OPT with options it knows.
#
# Everything else is UNUSUAL and read again by `query.py`, which decides what is wrong with it. Every read stays below `size`,
# but names are copied eight bytes at a time: a packet's buffer has SLACK bytes behind its end.
#
# Source: RFC 1035 §4.1, RFC 6891 §6.1 (EDNS), RFC 7871 §6 (ECS), RFC 7873 §4 (cookies), RFC 5001 §2.3 (NSID).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lbcore._address cimport ip, read_packed

cdef enum:
    HEADER = 12
    SLACK = 8
    MIN_UDP = 512
    MAX_UDP = 1232       # never fragmented: DNS Flag Day 2020
    OPT = 41
    IN = 1
    ECS = 8
    NSID = 3
    COOKIE = 10
    FIRST_META = 128     # to ANY: types of questions, not of records (RFC 6895 §3.1)
    ANY = 255

cdef enum verdict:
    USUAL
    UNUSUAL              # the Responder's
    UNANSWERED           # a response, or no whole header

cdef struct query:
    uint8_t name[256 + 8]        # lower case, zeros behind it
    uint32_t name_size
    uint16_t type
    uint32_t limit               # bytes of the largest answer
    bint edns, dnssec_ok, nsid
    const uint8_t* subnet        # the ECS option's data, NULL = none
    uint32_t subnet_size
    ip network                   # its first address, when `located`
    bint located
    const uint8_t* cookie        # the option's data, NULL = none
    uint32_t cookie_size


cdef inline uint32_t big16(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] << 8 | p[1]


cdef inline void put16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0], p[1] = <uint8_t>(value >> 8), <uint8_t>value


cdef inline void put32(uint8_t* p, uint32_t value) noexcept nogil:
    put16(p, value >> 16)
    put16(p + 2, value)


cdef inline uint64_t lower8(uint64_t word) noexcept nogil:
    """Turn A-Z into a-z in eight bytes at once; length octets (0..63) are no letters."""
    cdef uint64_t low = word & 0x7F7F7F7F7F7F7F7FULL
    cdef uint64_t letters = (low + 0x3F3F3F3F3F3F3F3FULL ^ low + 0x2525252525252525ULL) & ~word & 0x8080808080808080ULL
    return word | letters >> 2


cdef inline uint32_t name_end(const uint8_t* wire, uint32_t at, uint32_t size) noexcept nogil:
    """Give where an uncompressed name that starts at `at` ends; 0 when it does not, is too long or is compressed."""
    cdef uint32_t end = size if size < at + 255 else at + 255
    while at < end:
        if wire[at] == 0:
            return at + 1
        if wire[at] > 63:
            return 0
        at += wire[at] + 1
    return 0


cdef inline void copy_name(query* q, const uint8_t* name, uint32_t size) noexcept nogil:
    cdef uint64_t word
    cdef uint32_t i
    for i in range(0, size, 8):
        memcpy(&word, name + i, 8)
        word = lower8(word)
        memcpy(q.name + i, &word, 8)
    memset(q.name + size, 0, 8)
    q.name_size = size


cdef inline bint read_subnet(query* q, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t family, source, width, octets
    if size < 4 or q.subnet != NULL:
        return False
    family, source = big16(data), data[2]
    width = 32 if family == 1 else 128 if family == 2 else 0
    octets = (source + 7) >> 3
    if not width or data[3] or source > width or size != 4 + octets:
        return False
    if source & 7 and data[size - 1] & (0xFF >> (source & 7)):
        return False
    q.subnet, q.subnet_size, q.located = data, size, source > 0
    if q.located:
        read_packed(data + 4, octets, &q.network)
        q.network.is_v6 = family == 2
    return True


cdef inline bint read_options(query* q, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t at = 0, code, length
    while at + 4 <= size:
        code, length = big16(data + at), big16(data + at + 2)
        at += 4
        if length > size - at:
            return False
        if code == ECS and not read_subnet(q, data + at, length):
            return False
        elif code == COOKIE:
            if q.cookie != NULL or not (length == 8 or 16 <= length <= 40):
                return False
            q.cookie, q.cookie_size = data + at, length
        elif code == NSID:
            q.nsid = True
        at += length
    return at == size


cdef inline bint read_opt(query* q, const uint8_t* opt, uint32_t size) noexcept nogil:
    """Take an OPT record that must fill the rest of the packet, EDNS version 0."""
    cdef uint32_t payload
    if size < 11 or opt[0] or big16(opt + 1) != OPT or opt[6] or big16(opt + 9) != size - 11:
        return False
    payload = big16(opt + 3)
    q.edns, q.dnssec_ok = True, opt[7] >> 7
    q.limit = MIN_UDP if payload < MIN_UDP else MAX_UDP if payload > MAX_UDP else payload
    return read_options(q, opt + 11, size - 11)


cdef inline verdict read_query(query* q, const uint8_t* wire, uint32_t size) noexcept nogil:
    cdef uint32_t end, additionals
    if size < HEADER or wire[2] & 0x80:
        return UNANSWERED
    additionals = big16(wire + 10)
    if wire[2] & 0x78 or big16(wire + 4) != 1 or big16(wire + 6) or big16(wire + 8) or additionals > 1:
        return UNUSUAL
    end = name_end(wire, HEADER, size)
    if not end or end + 4 > size or big16(wire + end + 2) != IN:
        return UNUSUAL
    q.type = <uint16_t>big16(wire + end)
    q.limit = MIN_UDP
    q.edns = q.dnssec_ok = q.nsid = q.located = False
    q.subnet = q.cookie = NULL
    q.subnet_size = q.cookie_size = 0
    copy_name(q, wire + HEADER, end - HEADER)
    if additionals and not read_opt(q, wire + end + 4, size - end - 4):
        return UNUSUAL
    return USUAL if additionals or end + 4 == size else UNUSUAL
