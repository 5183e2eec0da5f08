"""Read a MaxMind DB file into sorted address ranges, each with the group of its record.

What lives here: the search tree's walk, the fields of a record, the text that names a record's group.
The data section's decoder is in `_mmdb.pxd`; what is done with the ranges is in `_prefix.pyx`, the only
importer. The file is read whole: a mapping of a file that somebody truncates would kill the process.

Sources: MaxMind DB File Format Specification 2.0; GeoIP2 City and Country field names; the flat field
names (country_code, state1, city, latitude, longitude) of the ip-location-db databases.
"""

import os

import numpy as np

from libc.math cimport NAN, fabs, floor, isfinite, llround
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abs, calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

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

cdef enum grouping:
    GRID = 0
    COUNTRY
    SUBDIVISION
    CITY
    RECORD

cdef enum:
    KEY_SIZE = 1024          # three names of at most 255 bytes, two coordinates
    FAR = 200                # km; beyond this accuracy radius a city is no better than a region
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


cdef int grow(void** array, size_t capacity, size_t item) noexcept nogil:
    cdef void* grown = realloc(array[0], capacity * item)
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

cdef struct place:           # what a record says; an absent text has size 0, an absent coordinate is NaN
    text country, subdivision, city
    double lat, lon, radius

cdef text[9] ROOT
cdef text[3] LOCATION
cdef text[1] ISO_CODE
cdef text[2] CITY_NAMES
cdef text[1] ENGLISH


cdef text literal(const char* name) noexcept:
    cdef text result
    result.start = <const uint8_t*>name
    result.size = 0
    while name[result.size]:
        result.size += 1
    return result


ROOT = [literal("country"), literal("registered_country"), literal("location"), literal("subdivisions"), literal("city"),
        literal("country_code"), literal("state1"), literal("latitude"), literal("longitude")]
LOCATION = [literal("latitude"), literal("longitude"), literal("accuracy_radius")]
ISO_CODE = [literal("iso_code")]
CITY_NAMES = [literal("names"), literal("geoname_id")]
ENGLISH = [literal("en")]


cdef int read_text(section* s, uint64_t at, text* out) noexcept nogil:
    """Take the text at `at`; anything else, an empty text, and nothing at 0, leave `out` as it is."""
    cdef item value
    cdef uint64_t after
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind == STRING and value.size:
        if value.size > 255:
            return broken(s, TEXT_TOO_LONG, at)
        out.start, out.size = s.data + value.start, value.size
    return 0


cdef int read_number(section* s, uint64_t at, double* out) noexcept nogil:
    """Take the number at `at`, of whatever type; anything else, and nothing at 0, leave `out` as it is."""
    cdef item value
    cdef uint64_t after, bits = 0
    cdef uint32_t i, word
    cdef float single
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind == DOUBLE:
        for i in range(8):
            bits = bits << 8 | s.data[value.start + i]
        memcpy(out, &bits, 8)
    elif value.kind == FLOAT:
        word = big_endian(s.data + value.start, 4)
        memcpy(&single, &word, 4)
        out[0] = single
    elif value.kind == UINT16 or value.kind == UINT32:
        out[0] = big_endian(s.data + value.start, value.size)
    elif value.kind == INT32:
        word = big_endian(s.data + value.start, value.size)
        out[0] = <int32_t>word if value.size == 4 else word
    return 0


cdef int find_at(section* s, uint64_t at, const text* names, int count, uint64_t* found) noexcept nogil:
    """find_values in the map at `at`; all 0 when there is no map."""
    cdef item value
    cdef uint64_t after
    cdef int i
    for i in range(count):
        found[i] = 0
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    return find_values(s, &value, names, count, found) if value.kind == MAP else 0


cdef int read_code(section* s, uint64_t at, text* out) noexcept nogil:
    """Take `iso_code` of the map at `at`, or the text itself where a flat database has one."""
    cdef uint64_t found
    if read_text(s, at, out) or find_at(s, at, ISO_CODE, 1, &found):
        return -1
    return read_text(s, found, out)


cdef int read_subdivision(section* s, uint64_t at, text* out) noexcept nogil:
    cdef item value
    cdef uint64_t after
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind != ARRAY or not value.size:
        return 0
    return read_code(s, value.start, out)


cdef int read_city(section* s, uint64_t at, char* number, text* out) noexcept nogil:
    """Take the city's English name, else its GeoNames number (written to `number`), else a flat database's text."""
    cdef uint64_t found[2]
    cdef uint64_t english
    cdef double geoname = 0
    if read_text(s, at, out) or find_at(s, at, CITY_NAMES, 2, found) or find_at(s, found[0], ENGLISH, 1, &english):
        return -1
    if read_text(s, english, out) or read_number(s, found[1], &geoname):
        return -1
    if not out.size and 0 < geoname < 4294967296.0:
        out.size = put_digits(number, 0, <uint32_t>geoname, 1)
        out.start = <const uint8_t*>number
    return 0


cdef int read_place(section* s, uint64_t at, char* number, place* out) noexcept nogil:
    cdef uint64_t root[9]
    cdef uint64_t location[3]
    cdef uint64_t after
    cdef item record
    memset(root, 0, sizeof(root))
    out.country.size = out.subdivision.size = out.city.size = 0
    out.lat = out.lon = out.radius = NAN
    if read_value(s, at, &record, &after) or record.kind == MAP and find_values(s, &record, ROOT, 9, root):
        return -1
    if find_at(s, root[2], LOCATION, 3, location):
        return -1
    if read_code(s, root[1], &out.country) or read_code(s, root[0], &out.country) or read_text(s, root[5], &out.country):
        return -1
    if read_subdivision(s, root[3], &out.subdivision) or read_text(s, root[6], &out.subdivision):
        return -1
    if read_city(s, root[4], number, &out.city):
        return -1
    if read_number(s, root[7], &out.lat) or read_number(s, root[8], &out.lon):
        return -1
    if read_number(s, location[0], &out.lat) or read_number(s, location[1], &out.lon) or read_number(s, location[2], &out.radius):
        return -1
    if not (-90 <= out.lat <= 90 and -180 <= out.lon <= 180):
        out.lat = out.lon = NAN
    return 0


cdef inline bint located(const place* p) noexcept nogil:
    return isfinite(p.lat)


cdef inline bint is_wide(const place* p) noexcept nogil:
    return not p.subdivision.size and not p.city.size


cdef uint8_t precision_of(const place* p, int grouping) noexcept nogil:
    if not p.country.size and not located(p):
        return 0
    if is_wide(p) or grouping == COUNTRY:
        return 1
    if not p.city.size or not located(p) or p.radius > FAR or grouping == SUBDIVISION:
        return 2
    return 3


cdef int put(char* key, int size, const text* part) noexcept nogil:
    if part.size:
        memcpy(key + size, part.start, part.size)
    return size + <int>part.size


cdef int put_sign(char* key, int size, bint negative) noexcept nogil:
    key[size], key[size + 1] = c"/", c"-"
    return size + 1 + negative


cdef int put_digits(char* key, int size, uint32_t number, int width) noexcept nogil:
    """Write a number with at least `width` digits; not by printf, which is slow, and follows the locale for decimals."""
    cdef char digits[10]
    cdef int count = 0
    while number or count < width:
        digits[count] = <char>(c"0" + number % 10)
        number //= 10
        count += 1
    while count:
        count -= 1
        key[size] = digits[count]
        size += 1
    return size


cdef int put_cell_edge(char* key, int size, double degrees) noexcept nogil:
    """Write the southern or western edge of a 2-degree cell, in whole degrees."""
    cdef int edge = <int>(2 * floor(degrees / 2))
    return put_digits(key, put_sign(key, size, edge < 0), abs(edge), 1)


cdef int put_degrees(char* key, int size, double degrees) noexcept nogil:
    """Write degrees with four decimals, halves away from zero."""
    cdef uint32_t units = <uint32_t>llround(fabs(degrees) * 10000)
    size = put_digits(key, put_sign(key, size, degrees < 0 and units), units // 10000, 1)
    key[size] = c"."
    return put_digits(key, size + 1, units % 10000, 4)


cdef int write_grid_key(char* key, const place* p) noexcept nogil:
    cdef int size = 0
    cdef text unknown
    unknown.start, unknown.size = <const uint8_t*>b"ZZ", 2
    if not p.country.size and not located(p):
        return 0
    size = put(key, 0, &p.country if p.country.size else &unknown)
    if located(p) and not (is_wide(p) and p.country.size):
        size = put_cell_edge(key, put_cell_edge(key, size, p.lat), p.lon)
    if is_wide(p) or not located(p):
        memcpy(key + size, b"/wide", 5)
        return size + 5
    memcpy(key + size, b"/point", 6)
    return size + 6


cdef int write_named_key(char* key, const place* p, int grouping) noexcept nogil:
    """Write country/subdivision/city/lat/lon as far as asked; trailing parts that are unknown are left out."""
    cdef int size = put(key, 0, &p.country)
    cdef bint city = p.city.size and grouping >= CITY
    cdef bint point = located(p) and grouping == RECORD
    if (p.subdivision.size and grouping >= SUBDIVISION) or city or point:
        key[size] = c"/"
        size = put(key, size + 1, &p.subdivision)
    if city or point:
        key[size] = c"/"
        size = put(key, size + 1, &p.city)
    if point:
        size = put_degrees(key, put_degrees(key, size, p.lat), p.lon)
    return size


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
