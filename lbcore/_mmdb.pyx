"""Read a MaxMind DB file into sorted address ranges, each with the group of its record.

What lives here: the search tree's walk and the numbering of records and groups. Values are decoded in `_section.pxd`,
places and their keys in `_place.pxd`; what is done with the ranges is in `_prefix.pyx`, the only importer.
The file is read whole: a mapping of a file that somebody truncates would kill the process.

Source: MaxMind DB File Format Specification 2.0.
"""

import os

import numpy as np

from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from lbcore._place cimport GRID, literal, place, precision_of, read_number, read_place, write_grid_key, write_named_key
from lbcore._section cimport (
    BAD_KEY, BAD_POINTER, BAD_RECORD, BAD_SIZE, BAD_TYPE, ENDLESS, MAP, NO_FAULT, NO_MEMORY, TEXT_TOO_LONG, TREE_ENDLESS, TREE_TOO_DEEP,
    TRUNCATED, big_endian, broken, find_values, item, read_value, section, text,
)

__all__ = ["KINDS", "read"]

KINDS = ("grid", "country", "subdivision", "city", "record")
MARKER = b"\xab\xcd\xefMaxMind.com"
MARKER_SEARCH = 128 * 1024
FAULTS = {
    TRUNCATED: "a value reaches past the end of its section",
    BAD_TYPE: "a value of no known type",
    BAD_SIZE: "a number of impossible size",
    BAD_POINTER: "a pointer to a pointer",
    BAD_KEY: "a map key that is no text",
    TEXT_TOO_LONG: "a name of more than 255 bytes",
    ENDLESS: "records that overlap without end",
    TREE_TOO_DEEP: "a search tree deeper than an address",
    TREE_ENDLESS: "a search tree that runs in circles",
    BAD_RECORD: "a search tree leaf that points outside the data",
}

cdef enum:
    KEY_SIZE = 1024          # three names of at most 255 bytes, two coordinates
    NOT_FOUND = 0xFFFFFFFF

cdef double V6_WEIGHT = 2.0 ** -76


# ===== growing arrays =====

cdef struct ranges:
    uint64_t* hi
    uint64_t* lo
    uint32_t* value
    size_t size
    size_t capacity

cdef struct record:          # what the walk touches for every leaf; the rest is in `spot`
    double weight
    uint32_t group

cdef struct spot:
    double lat, lon
    uint8_t precision

cdef struct slot:            # of a hash table; `index` counts from 1, 0 is free
    uint32_t key             # a record's offset, or the hash of a text
    uint32_t index

cdef struct table:
    slot* slots
    size_t mask
    size_t size


cdef int grow(void** array, size_t capacity, size_t width) noexcept nogil:
    cdef void* grown = realloc(array[0], capacity * width)
    if grown == NULL:
        return -1
    array[0] = grown
    return 0


cdef int push_range(ranges* r, uint64_t hi, uint64_t lo, uint32_t value) noexcept nogil:
    """Append a range that starts at hi:lo, unless it continues the one before."""
    if r.size and r.value[r.size - 1] == value:
        return 0
    if r.size == r.capacity:
        r.capacity = r.capacity * 3 // 2 + 1024
        if grow(<void**>&r.hi, r.capacity, 8) or grow(<void**>&r.lo, r.capacity, 8) or grow(<void**>&r.value, r.capacity, 4):
            return -1
    r.hi[r.size], r.lo[r.size], r.value[r.size] = hi, lo, value
    r.size += 1
    return 0


cdef inline size_t home_of(uint32_t key, size_t mask) noexcept nogil:
    """Source: Knuth, The Art of Computer Programming 3, §6.4, multiplicative hashing."""
    return (key * 0x9E3779B97F4A7C15ULL) >> 32 & mask


cdef int table_grow(table* t) noexcept nogil:
    cdef size_t i, at, capacity = 2 * (t.mask + 1) if t.slots else 1024
    cdef slot* slots = <slot*>calloc(capacity, sizeof(slot))
    if slots == NULL:
        return -1
    if t.slots:
        for i in range(t.mask + 1):
            if t.slots[i].index:
                at = home_of(t.slots[i].key, capacity - 1)
                while slots[at].index:
                    at = (at + 1) & (capacity - 1)
                slots[at] = t.slots[i]
        free(t.slots)
    t.slots, t.mask = slots, capacity - 1
    return 0


# ===== records to groups =====

cdef struct reader:
    section data
    const uint8_t* nodes
    uint32_t node_count
    int record_bits
    int64_t visits           # tree nodes that may still be visited
    int grouping
    ranges v4, v6
    record* records
    spot* spots
    size_t record_count, record_capacity
    table by_offset
    uint8_t* keys            # every group's key, end to end
    size_t* key_ends         # key g is keys[key_ends[g - 1]:key_ends[g]]; group 0 has the empty key
    size_t group_count, group_capacity, keys_capacity
    table by_key

cdef uint32_t hash_bytes(const uint8_t* data, size_t size) noexcept nogil:
    """Source: FNV-1a, 64 bits, folded."""
    cdef uint64_t h = 0xCBF29CE484222325ULL
    cdef size_t i
    for i in range(size):
        h = (h ^ data[i]) * 0x100000001B3ULL
    return <uint32_t>(h ^ h >> 32)


cdef int add_key(reader* r, const uint8_t* key, size_t size) noexcept nogil:
    """Give the key the next group number."""
    cdef size_t start = r.key_ends[r.group_count - 1] if r.group_count else 0
    if r.group_count == r.group_capacity:
        r.group_capacity = 2 * r.group_capacity + 1024
        if grow(<void**>&r.key_ends, r.group_capacity, sizeof(size_t)):
            return -1
    if start + size > r.keys_capacity:
        r.keys_capacity = 2 * r.keys_capacity + KEY_SIZE
        if grow(<void**>&r.keys, r.keys_capacity, 1):
            return -1
    if size:
        memcpy(r.keys + start, key, size)
    r.key_ends[r.group_count] = start + size
    r.group_count += 1
    return 0


cdef uint32_t group_of_key(reader* r, const uint8_t* key, size_t size) noexcept nogil:
    """Find or make the group of a key; the empty key is group 0. NOT_FOUND when memory is out."""
    cdef uint32_t h, group
    cdef size_t at, start
    if not size:
        return 0
    if 2 * r.by_key.size >= r.by_key.mask and table_grow(&r.by_key):
        return NOT_FOUND
    h = hash_bytes(key, size)
    at = home_of(h, r.by_key.mask)
    while r.by_key.slots[at].index:
        group = r.by_key.slots[at].index
        start = r.key_ends[group - 1]
        if r.by_key.slots[at].key == h and r.key_ends[group] - start == size and not memcmp(r.keys + start, key, size):
            return group
        at = (at + 1) & r.by_key.mask
    group = <uint32_t>r.group_count
    if add_key(r, key, size):
        return NOT_FOUND
    r.by_key.slots[at].key, r.by_key.slots[at].index = h, group
    r.by_key.size += 1
    return group


cdef int add_record(reader* r, uint64_t offset) noexcept nogil:
    """Decode the record at `offset` of the data section and append it."""
    cdef char key[KEY_SIZE]
    cdef char number[24]
    cdef place where
    cdef uint32_t group
    cdef int size
    if r.record_count == r.record_capacity:
        r.record_capacity = 2 * r.record_capacity + 1024
        if grow(<void**>&r.records, r.record_capacity, sizeof(record)) or grow(<void**>&r.spots, r.record_capacity, sizeof(spot)):
            return broken(&r.data, NO_MEMORY, offset)
    if read_place(&r.data, offset, number, &where):
        return -1
    size = write_grid_key(key, &where) if r.grouping == GRID else write_named_key(key, &where, r.grouping)
    group = group_of_key(r, <const uint8_t*>key, size)
    if group == NOT_FOUND:
        return broken(&r.data, NO_MEMORY, offset)
    r.records[r.record_count].weight, r.records[r.record_count].group = 0, group
    r.spots[r.record_count].lat, r.spots[r.record_count].lon = where.lat, where.lon
    r.spots[r.record_count].precision = precision_of(&where, r.grouping)
    r.record_count += 1
    return 0


cdef record* record_at(reader* r, uint32_t offset) noexcept nogil:
    """Give the record at an offset, decoding it the first time; NULL on a fault."""
    cdef size_t at
    cdef table* t = &r.by_offset
    if 2 * t.size >= t.mask and table_grow(t):
        broken(&r.data, NO_MEMORY, offset)
        return NULL
    at = home_of(offset, t.mask)
    while t.slots[at].index:
        if t.slots[at].key == offset:
            return &r.records[t.slots[at].index - 1]
        at = (at + 1) & t.mask
    if add_record(r, offset):
        return NULL
    t.slots[at].key, t.slots[at].index = offset, <uint32_t>r.record_count
    t.size += 1
    return &r.records[r.record_count - 1]


# ===== the search tree =====

cdef struct branch:
    uint64_t hi, lo
    uint32_t node
    int depth


cdef inline uint32_t child_of(const reader* r, uint32_t node, int side) noexcept nogil:
    cdef const uint8_t* p
    if r.record_bits == 24:
        return big_endian(r.nodes + <uint64_t>node * 6 + 3 * side, 3)
    if r.record_bits == 32:
        return big_endian(r.nodes + <uint64_t>node * 8 + 4 * side, 4)
    p = r.nodes + <uint64_t>node * 7
    if side:
        return (<uint32_t>p[3] & 0x0F) << 24 | big_endian(p + 4, 3)
    return (<uint32_t>p[3] & 0xF0) << 20 | big_endian(p, 3)


cdef inline bint holds_ipv4(const branch* b) noexcept nogil:
    """Tell the networks whose addresses carry an IPv4 address: there the file repeats its IPv4 tree."""
    if b.depth == 96:
        return not b.lo and b.hi == 0x0064FF9B00000000ULL or not b.hi and (not b.lo or b.lo == 0x0000FFFF00000000ULL)
    return not b.lo and (b.depth == 16 and b.hi == 0x2002000000000000ULL or b.depth == 32 and b.hi == 0x2001000000000000ULL)


cdef int emit_leaf(reader* r, const branch* b, bint is_v6) noexcept nogil:
    cdef uint32_t group = 0
    cdef uint32_t offset = b.node - r.node_count
    cdef record* found
    if offset:
        if offset < 16 or offset - 16 >= r.data.size:
            return broken(&r.data, BAD_RECORD, offset)
        found = record_at(r, offset - 16)
        if found == NULL:
            return -1
        # IPv4 addresses decide where a group lies; IPv6 ones (counted in /64s) only where there are no others.
        found.weight += V6_WEIGHT * (1ULL << (64 - b.depth if 0 < b.depth < 64 else 0)) if is_v6 else 1ULL << (32 - b.depth)
        group = found.group
    if push_range(&r.v6 if is_v6 else &r.v4, b.hi, b.lo, group):
        return broken(&r.data, NO_MEMORY, offset)
    return 0


cdef int walk(reader* r, uint32_t root, bint is_v6) noexcept nogil:
    """Visit every leaf below `root` in address order."""
    cdef branch stack[130]
    cdef branch b
    cdef uint32_t node
    cdef int top = 1
    stack[0].hi = stack[0].lo = stack[0].depth = 0
    stack[0].node = root
    while top:
        top -= 1
        b = stack[top]
        if is_v6 and holds_ipv4(&b):
            b.node = r.node_count
        if b.node >= r.node_count:
            if emit_leaf(r, &b, is_v6):
                return -1
            continue
        r.visits -= 1
        if r.visits < 0:
            return broken(&r.data, TREE_ENDLESS, b.node)
        if b.depth == (128 if is_v6 else 32):
            return broken(&r.data, TREE_TOO_DEEP, b.node)
        node = b.node
        b.depth += 1
        b.node = child_of(r, node, 1)
        stack[top] = b
        if b.depth <= 64:
            stack[top].hi |= 1ULL << (64 - b.depth)
        else:
            stack[top].lo |= 1ULL << (128 - b.depth)
        b.node = child_of(r, node, 0)
        stack[top + 1] = b
        top += 2
    return 0


cdef int walk_all(reader* r, bint is_v6) noexcept nogil:
    """Walk the IPv4 tree (below 96 zeros in an IPv6 database), then the IPv6 one."""
    cdef uint32_t root = 0
    cdef int _
    if not is_v6:
        return walk(r, 0, False)
    for _ in range(96):
        if root < r.node_count:
            root = child_of(r, root, 0)
    return -1 if walk(r, root, False) else walk(r, 0, True)


# ===== the file =====

cdef dict read_metadata(const uint8_t* data, size_t size):
    """Decode the numbers of the metadata map that matter; None for one that is absent."""
    names = ("binary_format_major_version", "node_count", "record_size", "ip_version")
    cdef text wanted[4]
    cdef uint64_t found[4]
    cdef section s
    cdef item root
    cdef uint64_t after
    cdef double number
    cdef int i
    wanted[0], wanted[1] = literal("binary_format_major_version"), literal("node_count")
    wanted[2], wanted[3] = literal("record_size"), literal("ip_version")
    s.data, s.size, s.budget, s.fault, s.at = data, size, 1 << 20, NO_FAULT, 0
    if read_value(&s, 0, &root, &after):
        raise ValueError(f"metadata: {FAULTS[s.fault]}")
    if root.kind != MAP or find_values(&s, &root, wanted, 4, found):
        raise ValueError(f"metadata: {FAULTS.get(s.fault, 'no map')}")
    values = {}
    for i in range(4):
        number = -1
        if read_number(&s, found[i], &number):
            raise ValueError(f"metadata: {FAULTS[s.fault]}")
        values[names[i]] = int(number) if isfinite(number) else -1
    return values


def check_metadata(meta, start):
    """Raise ValueError for a format that is not 2.x, or a tree that does not fit before `start`."""
    if meta["binary_format_major_version"] != 2:
        raise ValueError("metadata: binary_format_major_version is not 2")
    if meta["record_size"] not in (24, 28, 32):
        raise ValueError(f"metadata: record_size {meta['record_size']} is none of 24, 28, 32")
    if meta["ip_version"] not in (4, 6):
        raise ValueError(f"metadata: ip_version {meta['ip_version']} is neither 4 nor 6")
    if meta["node_count"] < 1 or meta["node_count"] * meta["record_size"] // 4 + 16 > start:
        raise ValueError(f"metadata: node_count {meta['node_count']} does not fit the file")


cdef tuple take_ranges(const ranges* r):
    """Copy ranges into arrays (hi u64, lo u64, value u32)."""
    cdef size_t n = r.size
    hi, lo, value = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.uint32)
    cdef uint64_t[::1] hi_view = hi, lo_view = lo
    cdef uint32_t[::1] value_view = value
    if n:
        memcpy(&hi_view[0], r.hi, n * 8)
        memcpy(&lo_view[0], r.lo, n * 8)
        memcpy(&value_view[0], r.value, n * 4)
    return hi, lo, value


cdef list take_keys(const reader* r):
    cdef size_t g
    keys = [""]
    for g in range(1, r.group_count):
        try:
            keys.append(r.keys[r.key_ends[g - 1]:r.key_ends[g]].decode())
        except UnicodeDecodeError:
            raise ValueError("a name that is not UTF-8") from None
    return keys


cdef tuple take_records(const reader* r):
    """Copy records into arrays (group u32, lat f64, lon f64, weight f64, precision u8)."""
    cdef size_t i, n = r.record_count
    group, precision = np.empty(n, np.uint32), np.empty(n, np.uint8)
    lat, lon, weight = np.empty(n), np.empty(n), np.empty(n)
    cdef uint32_t[::1] groups = group
    cdef uint8_t[::1] precisions = precision
    cdef double[::1] lats = lat, lons = lon, weights = weight
    for i in range(n):
        groups[i], precisions[i] = r.records[i].group, r.spots[i].precision
        lats[i], lons[i], weights[i] = r.spots[i].lat, r.spots[i].lon, r.records[i].weight
    return group, lat, lon, weight, precision


cdef void release(reader* r) noexcept:
    cdef (void*)[12] owned = [
        r.v4.hi, r.v4.lo, r.v4.value, r.v6.hi, r.v6.lo, r.v6.value, r.records, r.spots, r.keys, r.key_ends,
        r.by_offset.slots, r.by_key.slots,
    ]
    cdef int i
    for i in range(12):
        free(owned[i])


cdef int start_reader(reader* r, const uint8_t* data, size_t marker, dict meta, int grouping) except -1:
    """Lay the tree and the data section over the file's bytes."""
    cdef size_t tree_size
    memset(r, 0, sizeof(reader))
    r.nodes, r.node_count, r.record_bits, r.grouping = data, meta["node_count"], meta["record_size"], grouping
    tree_size = <size_t>r.node_count * r.record_bits // 4
    r.data.data, r.data.size = data + tree_size + 16, marker - tree_size - 16
    # An honest tree has each node once and an honest record shares only a few maps with others.
    r.visits = 2 * <int64_t>r.node_count + (1 << 20)
    r.data.budget = 8 * <int64_t>r.data.size + (1 << 20)
    if add_key(r, b"", 0):
        raise MemoryError
    return 0


cdef tuple read_bytes(const uint8_t[::1] data, Py_ssize_t marker, int grouping):
    cdef reader r
    cdef int failed
    cdef bint is_v6
    cdef Py_ssize_t after = marker + len(MARKER)
    meta = read_metadata(&data[0] + after, data.shape[0] - after)
    check_metadata(meta, marker)
    is_v6 = meta["ip_version"] == 6
    try:
        start_reader(&r, &data[0], marker, meta, grouping)
        with nogil:
            failed = walk_all(&r, is_v6)
        if failed and r.data.fault == NO_MEMORY:
            raise MemoryError
        if failed:
            raise ValueError(f"{FAULTS[r.data.fault]} (at {r.data.at})")
        return take_ranges(&r.v4), take_ranges(&r.v6), take_keys(&r), take_records(&r)
    finally:
        release(&r)


def read(path, key):
    """Give (v4, v6, keys, records) of a database file.

    path: str or path-like; key: one of KINDS
    v4, v6: range starts hi u64[n], lo u64[n] (IPv4 is the top half of hi) and group u32[n], sorted, neighbours differ
    keys: list of str, keys[0] == ""; records: group u32[m], lat f64[m], lon f64[m], weight f64[m], precision u8[m]
    Raises ValueError that names the file and its fault, or whatever open() raises.
    """
    if key not in KINDS:
        raise ValueError(f"key {key!r} is none of {', '.join(KINDS)}")
    with open(path, "rb") as file:
        data = file.read()
    try:
        marker = data.rfind(MARKER, max(0, len(data) - MARKER_SEARCH))
        if marker < 0:
            raise ValueError("no metadata marker: not a MaxMind database, or cut off")
        return read_bytes(data, marker, KINDS.index(key))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
