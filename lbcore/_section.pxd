# The data section of a MaxMind DB file, read in place and without the GIL.
#
# The file is untrusted: every read is checked against the section's end, every step is paid from a
# budget, and nothing recurses: skipping a value never follows a pointer, and following one never
# leads to another. A broken file leaves `fault` and `at` behind and the functions return -1.
#
# Source: MaxMind DB File Format Specification 2.0, "Output Data Section".

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef enum kind:
    POINTER = 1
    STRING = 2
    DOUBLE = 3
    BYTES = 4
    UINT16 = 5
    UINT32 = 6
    MAP = 7
    INT32 = 8
    UINT64 = 9
    UINT128 = 10
    ARRAY = 11
    CACHE = 12
    END = 13
    BOOLEAN = 14
    FLOAT = 15

cdef enum fault:
    NO_FAULT = 0
    TRUNCATED
    BAD_TYPE
    BAD_SIZE
    BAD_POINTER
    BAD_KEY
    TEXT_TOO_LONG
    ENDLESS
    TREE_TOO_DEEP
    TREE_ENDLESS
    BAD_RECORD
    NO_MEMORY

cdef struct text:
    const uint8_t* start
    uint32_t size

cdef struct item:
    int kind
    uint32_t size        # bytes of a scalar, pairs of a map, values of an array
    uint64_t start       # of the payload, in the section

cdef struct section:
    const uint8_t* data
    uint64_t size
    int64_t budget       # values that may still be read
    int fault
    uint64_t at          # where the fault is


cdef inline int broken(section* s, int what, uint64_t at) noexcept nogil:
    s.fault = what
    s.at = at
    return -1


cdef inline uint32_t big_endian(const uint8_t* p, uint32_t size) noexcept nogil:
    cdef uint32_t value = 0, i
    for i in range(size):
        value = value << 8 | p[i]
    return value


cdef inline int read_pointer(section* s, uint64_t at, uint8_t control, item* out, uint64_t* after) noexcept nogil:
    cdef uint32_t extra = (control >> 3 & 3) + 1
    cdef uint64_t value
    if at + 1 + extra > s.size:
        return broken(s, TRUNCATED, at)
    value = big_endian(s.data + at + 1, extra)
    if extra < 4:
        value |= <uint64_t>(control & 7) << 8 * extra
    if extra == 2:
        value += 2048
    elif extra == 3:
        value += 526336
    out.kind, out.size, out.start = POINTER, 0, value
    after[0] = at + 1 + extra
    return 0


cdef inline int scalar_size_fits(int kind, uint32_t size) noexcept nogil:
    if kind == DOUBLE:
        return size == 8
    if kind == FLOAT:
        return size == 4
    if kind == UINT16:
        return size <= 2
    if kind == UINT32 or kind == INT32:
        return size <= 4
    if kind == UINT64:
        return size <= 8
    return kind != UINT128 or size <= 16


cdef inline int read_head(section* s, uint64_t at, item* out, uint64_t* after) noexcept nogil:
    """Read the head of the value at `at`; `after` is the byte that follows it (for containers, the first value in it)."""
    cdef uint8_t control
    cdef uint32_t extra
    cdef uint64_t pos = at + 1
    s.budget -= 1
    if s.budget < 0:
        return broken(s, ENDLESS, at)
    if at >= s.size:
        return broken(s, TRUNCATED, at)
    control = s.data[at]
    out.kind = control >> 5
    if out.kind == POINTER:
        return read_pointer(s, at, control, out, after)
    if out.kind == 0:
        if pos >= s.size:
            return broken(s, TRUNCATED, at)
        out.kind = s.data[pos] + 7
        pos += 1
        if out.kind <= MAP or out.kind > FLOAT or out.kind == CACHE or out.kind == END:
            return broken(s, BAD_TYPE, at)
    out.size = control & 31
    if out.size >= 29:
        extra = out.size - 28
        if pos + extra > s.size:
            return broken(s, TRUNCATED, at)
        out.size = big_endian(s.data + pos, extra) + (29 if extra == 1 else 285 if extra == 2 else 65821)
        pos += extra
    out.start = pos
    if out.kind != MAP and out.kind != ARRAY and out.kind != BOOLEAN:
        if not scalar_size_fits(out.kind, out.size):
            return broken(s, BAD_SIZE, at)
        pos += out.size
        if pos > s.size:
            return broken(s, TRUNCATED, at)
    after[0] = pos
    return 0


cdef inline int read_value(section* s, uint64_t at, item* out, uint64_t* after) noexcept nogil:
    """Read the head of a value, following a pointer once; `after` always stands behind the pointer itself."""
    cdef uint64_t unused
    if read_head(s, at, out, after):
        return -1
    if out.kind == POINTER:
        if read_head(s, out.start, out, &unused):
            return -1
        if out.kind == POINTER:
            return broken(s, BAD_POINTER, at)
    return 0


cdef inline int skip_value(section* s, uint64_t at, uint64_t* after) noexcept nogil:
    """Find the end of a value and of everything in it."""
    cdef item head
    cdef uint64_t pending = 1
    while pending:
        pending -= 1
        if read_head(s, at, &head, &at):
            return -1
        if head.kind == MAP:
            pending += 2 * <uint64_t>head.size
        elif head.kind == ARRAY:
            pending += head.size
    after[0] = at
    return 0


cdef inline int find_values(section* s, const item* map, const text* names, int count, uint64_t* found) noexcept nogil:
    """Fill found[i] with where the value of names[i] stands in a map, 0 where there is none (no value can stand at 0)."""
    cdef item key
    cdef uint64_t at = map.start
    cdef uint32_t _
    cdef int i, missing = count
    for i in range(count):
        found[i] = 0
    for _ in range(map.size):
        if read_value(s, at, &key, &at):
            return -1
        if key.kind != STRING:
            return broken(s, BAD_KEY, at)
        for i in range(count):
            if names[i].size == key.size and not memcmp(names[i].start, s.data + key.start, key.size):
                missing -= found[i] == 0
                found[i] = at
                break
        if not missing:
            return 0
        if skip_value(s, at, &at):
            return -1
    return 0
