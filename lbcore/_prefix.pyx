"""PrefixMap: the group of an IP address, by longest prefix, in tens of nanoseconds.

Whatever a map is made from (a MaxMind database, networks, an embedded table) first becomes sorted
ranges (hi, lo, value), where an IPv4 address is the top half of `hi`; user networks are laid over
them; then two tries are built, one per family. A built map never changes and refers to no file, so
any number of threads may read it without a lock.
"""

import ipaddress
import os
import sys
from operator import index

import cython
import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from lbcore import _mmdb, _ranges
from lbcore._address cimport ip, parse_address, read_packed

cdef extern from *:
    """
    #ifdef __GLIBC__
    #include <malloc.h>
    #define LB_TRIM_HEAP() malloc_trim(0)
    #else
    #define LB_TRIM_HEAP() 0
    #endif
    """
    int trim_heap "LB_TRIM_HEAP"() nogil

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object)
    const uint8_t* PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL

__all__ = ["PrefixMap"]

GROUP_LIMIT = 1 << 24

# Where IPv6 addresses carry IPv4 ones. Sources: RFC 4291 §2.5.5, RFC 3056 (6to4), RFC 4380 (Teredo), RFC 6052 (NAT64).
# Rows of (hi, lo, length, value).
FORMS = ((0, 0, 96, FORM_LOW), (0, 0xFFFF << 32, 96, FORM_LOW), (0x64FF9B << 32, 0, 96, FORM_LOW), (0x2002 << 48, 0, 16, FORM_6TO4),
         (0x2001 << 48, 0, 32, FORM_TEREDO))


# ===== building a trie from ranges =====

cdef struct source:
    const uint64_t* starts
    const uint32_t* values
    size_t size


cdef int room(void** array, size_t* capacity, size_t needed, size_t item) noexcept nogil:
    """Let an array hold `needed` items at least."""
    cdef void* grown
    cdef size_t wanted = capacity[0]
    if needed <= wanted:
        return 0
    wanted = needed + wanted // 2 + 1024
    grown = realloc(array[0], wanted * item)
    if grown == NULL:
        return -1
    array[0], capacity[0] = grown, wanted
    return 0


cdef int add_leaf(trie* t, uint32_t value) noexcept nogil:
    if room(<void**>&t.leaves, &t.leaf_capacity, t.leaf_count + 1, sizeof(uint32_t)):
        return -1
    t.leaves[t.leaf_count] = value
    t.leaf_count += 1
    return 0


cdef int add_nodes(trie* t, size_t count) noexcept nogil:
    if room(<void**>&t.nodes, &t.node_capacity, t.node_count + count, sizeof(trie_node)):
        return -1
    t.node_count += count
    return 0


cdef inline uint64_t last_key(const source* s, size_t i) noexcept nogil:
    return s.starts[i + 1] - 1 if i + 1 < s.size else <uint64_t>-1


cdef inline size_t range_of(const source* s, size_t i, uint64_t key) noexcept nogil:
    """Find the range that holds `key`, from range i on."""
    while i + 1 < s.size and s.starts[i + 1] <= key:
        i += 1
    return i


cdef int scan_slots(trie* t, const source* s, trie_node* node, uint64_t start, int depth, size_t i, size_t* first) noexcept nogil:
    """Append a node's leaves; note its children and, in `first`, the range at the start of each."""
    cdef uint64_t width = 1ULL << (58 - depth)
    cdef uint64_t key, last, end = start + (width << 6) - 1
    cdef int slot = 0
    node.children = node.runs = 0
    node.first_leaf = <uint32_t>t.leaf_count
    while slot < 64:
        key = start + slot * width
        i = range_of(s, i, key)
        last = last_key(s, i)
        if last < key + (width - 1):
            node.children |= 1ULL << slot
            first[slot] = i
            slot += 1
            continue
        if not node.runs or t.leaves[t.leaf_count - 1] != s.values[i]:
            node.runs |= 1ULL << slot
            if add_leaf(t, s.values[i]):
                return -1
        slot += <int>(((last if last < end else end) - key + 1) // width)
    return 0


cdef int fill_node(trie* t, const source* s, size_t at, uint64_t start, int depth, size_t i) noexcept nogil:
    """Build the node at index `at` for the 64 slots from `start`, and all below it (at most 8 levels)."""
    cdef size_t first[64]
    cdef trie_node node
    cdef size_t child = t.node_count
    cdef int slot
    if scan_slots(t, s, &node, start, depth, i, first) or add_nodes(t, popcount64(node.children)):
        return -1
    node.first_child = <uint32_t>child
    t.nodes[at] = node
    for slot in range(64):
        if node.children >> slot & 1:
            if fill_node(t, s, child, start + (<uint64_t>slot << (58 - depth)), depth + 6, first[slot]):
                return -1
            child += 1
    return 0


cdef int fill_direct(trie* t, const source* s) noexcept nogil:
    cdef size_t slot, i = 0, node
    cdef uint64_t key, width = 1ULL << (64 - t.bits)
    for slot in range(1ULL << t.bits):
        key = slot * width
        i = range_of(s, i, key)
        if last_key(s, i) >= key + (width - 1):
            t.direct[slot] = s.values[i]
            t.scopes[slot] = <uint8_t>range_scope(key, s.starts[i], last_key(s, i))
            continue
        node = t.node_count
        if add_nodes(t, 1) or fill_node(t, s, node, key, t.bits, i):
            return -1
        t.direct[slot] = <uint32_t>1 << 31 | <uint32_t>node
    return 0


cdef void fit(void** array, size_t* capacity, size_t size, size_t item) noexcept nogil:
    """Give unused room back."""
    cdef void* shrunk = realloc(array[0], size * item) if size else NULL
    if shrunk != NULL:
        array[0], capacity[0] = shrunk, size


cdef int build_trie(trie* t, const source* s, int bits) noexcept nogil:
    t.bits = bits
    t.direct = <uint32_t*>calloc(1ULL << bits, sizeof(uint32_t))
    t.scopes = <uint8_t*>calloc(1ULL << bits, 1)
    if t.direct == NULL or t.scopes == NULL or fill_direct(t, s):
        return -1
    fit(<void**>&t.nodes, &t.node_capacity, t.node_count, sizeof(trie_node))
    fit(<void**>&t.leaves, &t.leaf_capacity, t.leaf_count, sizeof(uint32_t))
    return 0


cdef void free_trie(trie* t) noexcept:
    free(t.direct)
    free(t.scopes)
    free(t.nodes)
    free(t.leaves)


cdef size_t trie_bytes(const trie* t) noexcept:
    return (5ULL << t.bits) + t.node_capacity * sizeof(trie_node) + t.leaf_capacity * sizeof(uint32_t)


cdef source as_source(const uint64_t[::1] starts, const uint32_t[::1] values) noexcept:
    cdef source s
    s.starts, s.values, s.size = &starts[0], &values[0], starts.shape[0]
    return s


# ===== clients =====

cdef refuse(client):
    if isinstance(client, (str, bytes)):
        raise ValueError(f"{client!r} is not an IPv4 or IPv6 address")
    raise TypeError(f"expected an address as str, bytes, ipaddress object or None, got {type(client).__name__}")


cdef int read_client(object client, ip* out) except -1:
    """Put a client's address in `out`; 0 for None."""
    cdef Py_ssize_t size
    if isinstance(client, str):
        if PyUnicode_IS_ASCII(client):
            if parse_address(PyUnicode_DATA(client), PyUnicode_GET_LENGTH(client), out):
                return 1
        elif parse_address(<const uint8_t*>PyUnicode_AsUTF8AndSize(client, &size), size, out):
            return 1
        refuse(client)
    if client is None:
        return 0
    if isinstance(client, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        client = client.packed
    if not isinstance(client, bytes) or len(client) not in (4, 16):
        refuse(client)
    read_packed(<const uint8_t*>PyBytes_AS_STRING(client), PyBytes_GET_SIZE(client), out)
    return 1


# ===== the map =====

cdef class PrefixMap:
    """The group (u32) of every IPv4 and IPv6 address, by longest prefix. Immutable; any thread may read it.

    Group 0 is everybody who cannot be located. IPv6 forms that carry an IPv4 address (mapped, compatible, 6to4,
    Teredo, NAT64) are looked up as that address, unless a network inside the form was given. `PrefixMap()` is empty:
    one group, 0. Made by `from_mmdb`, `from_prefixes`, `from_ranges`.

    keys: tuple of str, stable names of the groups, keys[0] == ""
    countries: tuple of str, ISO 3166-1 alpha-2 where the key begins with one, else ""
    precision: u8[groups], 0 unknown, 1 country, 2 region, 3 point
    """

    def __cinit__(self, v4=None, v6=None, keys=("",), lat=None, lon=None, precision=None):
        empty = np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint32)
        self.build(v4 or empty, v6 or empty)
        self.keys = tuple(keys)
        self.countries = tuple([country_of(key) for key in self.keys])
        unknown = np.full(len(self.keys), np.nan, np.float32)
        self.lat, self.lon = frozen(unknown if lat is None else lat, np.float32), frozen(unknown if lon is None else lon, np.float32)
        self.precision = frozen([precision_of(key) for key in self.keys] if precision is None else precision, np.uint8)

    cdef int build(self, v4, v6) except -1:
        cdef int failed
        cdef const uint32_t[::1] spans, long_values
        cdef const uint64_t[::1] long_starts
        starts, values, *self.longs = _ranges.split64(v6, SPECIAL)
        cdef source s4 = as_source(v4[0], v4[2]), s6 = as_source(starts, values)
        spans, long_starts, long_values = self.longs
        self.map.spans, self.map.span_count, self.map.long_count = &spans[0], spans.shape[0] - 1, long_starts.shape[0]
        if self.map.long_count:
            self.map.long_starts, self.map.long_values = &long_starts[0], &long_values[0]
        with nogil:
            failed = build_trie(&self.map.v4, &s4, V4_BITS) or build_trie(&self.map.v6, &s6, V6_BITS)
        if failed:
            raise MemoryError
        return 0

    def __dealloc__(self):
        free_trie(&self.map.v4)
        free_trie(&self.map.v6)

    @staticmethod
    def from_mmdb(path, key="grid", overrides=()):
        """Give the map of a MaxMind database: nested (GeoIP2) or flat fields, IPv4 and IPv6.

        path: str or path-like, or a sequence of them; later files fill what earlier ones leave empty
        key: what makes a group: "grid" (country, 2-degree cell, point or wide: without subdivision and city; wide has no
            cell), "country", "subdivision", "city" or "record" (everything that is read)
        overrides: iterable of (network, key); the longest of them wins over any record
        Raises ValueError that names the file and its fault, OSError when it cannot be read.
        """
        paths = [path] if isinstance(path, (str, bytes, os.PathLike)) else list(path)
        v4, v6, keys, records = merge_files([_mmdb.read(one, key) for one in paths])
        lat, lon, precision = summarise(len(keys), *records)
        found = lay_over(v4, v6, keys, lat, lon, precision, overrides)
        del v4, v6, keys, records, lat, lon, precision
        trim_heap()  # reading a City database takes 90 MB that nobody needs any more
        return found

    @staticmethod
    def from_prefixes(prefixes):
        """Give the map of networks: iterable of (network as str or ipaddress object, group 0..2**24 - 1).

        Of two equal networks the later wins. Key of group g is str(g).
        Raises ValueError for what is no network or has host bits set, and for groups out of range.
        """
        networks, groups = zip(*prefixes) if (prefixes := list(prefixes)) else ((), ())
        for group in groups:
            if not 0 <= index(group) < GROUP_LIMIT:
                raise ValueError(f"group {group} is not in 0..{GROUP_LIMIT - 1}")
        keys = ["", *map(str, range(1, max(groups, default=0) + 1))]
        v4, v6 = join(None, None, networks, groups)
        return PrefixMap(v4, v6, keys, precision=np.zeros(len(keys), np.uint8))

    @staticmethod
    def from_ranges(v4_starts, v4_groups, v6_starts, v6_groups, keys, lat, lon, overrides=(), precision=None):
        """Give the map of sorted ranges, each up to the next start.

        v4_starts: u32[n], ascending; v4_groups: u32[n]; v6_starts: u64[m], the top 64 bits, ascending; v6_groups: u32[m]
        keys: sequence of str, keys[0] == ""; lat, lon: f32[len(keys)], degrees, NaN = unknown
        overrides: iterable of (network, key); precision: u8[len(keys)], by default told from the keys
        Raises ValueError for arrays that do not fit each other.
        """
        keys = list(keys)
        if not keys or keys[0] != "" or len(set(keys)) != len(keys):
            raise ValueError("keys must be distinct and begin with ''")
        v4 = checked_ranges("v4", v4_starts, v4_groups, 32, len(keys))
        v6 = checked_ranges("v6", v6_starts, v6_groups, 64, len(keys))
        lat, lon = checked_column("lat", lat, len(keys)), checked_column("lon", lon, len(keys))
        precision = checked_column("precision", [precision_of(key) for key in keys] if precision is None else precision, len(keys))
        return lay_over(v4, v6, keys, lat, lon, precision, overrides)

    @property
    def groups(self):
        """Give the number of groups, group 0 included."""
        return len(self.keys)

    @property
    def locations(self):
        """Give (lat f32[groups], lon f32[groups]): address-weighted centres in degrees, NaN = unknown."""
        return self.lat, self.lon

    @property
    def nbytes(self):
        """Give the bytes held: tries, locations and keys."""
        arrays = [*self.longs, self.lat, self.lon, self.precision]
        return (trie_bytes(&self.map.v4) + trie_bytes(&self.map.v6) + sum([array.nbytes for array in arrays])
                + sys.getsizeof(self.keys) + sys.getsizeof(self.countries) + sum(map(sys.getsizeof, self.keys)))

    @cython.binding(False)
    def lookup(self, address, /):
        """lookup(address, /)

        Give the group of an address: str, bytes (4 or 16, network order), ipaddress object; None is 0.

        Raises ValueError for text or bytes that are no address (by the rules of `ipaddress.ip_address`), TypeError for other types.
        """
        return self.group_of(address)

    @cython.binding(False)
    def match(self, address, /):
        """match(address, /)

        Give (group, prefix length): every address of address/length has this group, and no shorter length would do.

        The length counts in the family asked: 0..32 for IPv4, 0..128 for IPv6. None gives (0, 0). It may be longer than
        need be, never shorter, where networks were given inside an IPv6 form that carries IPv4.
        Source: RFC 7871 §7.1.2, the scope of a client subnet answer.
        """
        cdef int scope
        cdef int64_t group = self.match_of(address, &scope)
        return group, scope

    def lookup_many(self, addresses, out=None):
        """Give the groups, u32[n], of many addresses, without the GIL.

        addresses: u32[n], IPv4 in host order, or u8[n, 16], IPv6 in network order
        out: u32[n] to write to and return
        """
        addresses = np.ascontiguousarray(addresses)
        if out is None:
            out = np.empty(len(addresses), np.uint32)
        if addresses.dtype == np.uint32 and addresses.ndim == 1:
            self.lookup_many4(addresses, checked_out(out, len(addresses)))
        elif addresses.dtype == np.uint8 and addresses.ndim == 2 and addresses.shape[1] == 16:
            self.lookup_many6(addresses, checked_out(out, len(addresses)))
        else:
            raise ValueError(f"expected addresses u32[n] or u8[n, 16], got {addresses.dtype}{list(addresses.shape)}")
        return out

    cdef int lookup_many4(self, const uint32_t[::1] addresses, uint32_t[::1] out) except -1:
        cdef Py_ssize_t i
        with nogil:
            for i in range(addresses.shape[0]):
                out[i] = prefix_lookup4(&self.map, addresses[i])
        return 0

    cdef int lookup_many6(self, const uint8_t[:, ::1] addresses, uint32_t[::1] out) except -1:
        cdef ip a
        cdef Py_ssize_t i
        with nogil:
            for i in range(addresses.shape[0]):
                read_packed(&addresses[i, 0], 16, &a)
                out[i] = prefix_lookup6(&self.map, a.hi, a.lo)
        return 0

    cdef int64_t group_of(self, object client) except -1:
        cdef ip a
        return find_group(&self.map, &a) if read_client(client, &a) else 0

    cdef int64_t match_of(self, object client, int* scope) except -1:
        cdef ip a
        scope[0] = 0
        if not read_client(client, &a):
            return 0
        return prefix_match6(&self.map, a.hi, a.lo, scope) if a.is_v6 else prefix_match4(&self.map, <uint32_t>(a.hi >> 32), scope)


# ===== from what a user gives to ranges =====

def join(v4, v6, networks, values):
    """Lay networks, and the IPv6 forms that carry IPv4, over ranges (None: nothing); give (v4, v6)."""
    empty = (np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32))
    top4, top6 = _ranges.from_networks(networks, values, FORMS)
    v4 = _ranges.overlay(top4, v4 or empty)
    if len(v4[2]) == 1:
        # All of IPv4 is one group: so are the forms, and scopes may reach across them.
        forms = (top6[2] >= SPECIAL) & (top6[2] != _ranges.UNSET)
        top6[2][forms] = v4[2][0]
    return v4, _ranges.overlay(top6, v6 or empty)


def lay_over(v4, v6, keys, lat, lon, precision, overrides):
    """Give the map of ranges and groups under the user's (network, key) pairs; new keys become new groups without a location."""
    groups = {key: group for group, key in enumerate(keys)}
    networks, names = zip(*overrides) if (overrides := list(overrides)) else ((), ())
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected an override's key as str, got {type(name).__name__}")
    values = [groups.setdefault(name, len(groups)) for name in names]
    if len(groups) > GROUP_LIMIT:
        raise ValueError(f"{len(groups)} groups are more than {GROUP_LIMIT}")
    v4, v6 = join(v4, v6, networks, values)
    added = len(groups) - len(keys)
    lat, lon = [np.concatenate([column, np.full(added, np.nan)]) for column in (lat, lon)]
    return PrefixMap(v4, v6, tuple(groups), lat, lon, np.concatenate([precision, np.zeros(added, np.uint8)]))


def merge_files(tables):
    """Give (v4, v6, keys, records) of several files, one numbering of groups for all."""
    if not tables:
        raise ValueError("no database file was given")
    v4, v6, keys, records = tables[0]
    groups = {key: group for group, key in enumerate(keys)}
    records = [records]
    for more4, more6, more_keys, more_records in tables[1:]:
        renumber = np.array([groups.setdefault(key, len(groups)) for key in more_keys], np.uint32)
        v4 = _ranges.overlay(v4, (*more4[:2], renumber[more4[2]]), 0)
        v6 = _ranges.overlay(v6, (*more6[:2], renumber[more6[2]]), 0)
        records.append((renumber[more_records[0]], *more_records[1:]))
    return v4, v6, list(groups), [np.concatenate(column) for column in zip(*records)]


def summarise(count, group, lat, lon, weight, precision):
    """Give (lat f64[count], lon f64[count], precision u8[count]) of groups from their records, weighted by addresses.

    The mean is taken on the sphere, so that a country on both sides of the antimeridian lies where it is.
    """
    known = np.isfinite(lat)
    where, share = group[known], weight[known]
    phi, theta = np.radians(lat[known]), np.radians(lon[known])
    x, y, z = [np.bincount(where, share * part, count) for part in (np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi))]
    empty = np.bincount(where, minlength=count) == 0
    lats, lons = np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))
    lats[empty] = lons[empty] = np.nan
    classes = np.bincount(group * 4 + precision, weight, 4 * count).reshape(count, 4).argmax(1)
    return lats, lons, classes.astype(np.uint8)


cdef frozen(values, kind):
    array = np.array(values, kind)
    array.setflags(write=False)
    return array


def country_of(key):
    """Give the country a key begins with, "" where it begins with none."""
    first = key.partition("/")[0]
    return first if len(first) == 2 and first.isascii() and first.isalpha() and first.isupper() and first != "ZZ" else ""


def precision_of(key):
    """Give the precision class that a key's text implies."""
    if not key:
        return 0
    return 1 if key.endswith("/wide") or "/" not in key else 3 if key.endswith("/point") else 2


def checked_ranges(family, starts, groups, bits, count):
    """Give a range list from starts of `bits` bits; ValueError unless ascending and with groups below `count`."""
    starts, groups = np.asarray(starts), np.asarray(groups)
    if starts.ndim != 1 or starts.shape != groups.shape or len(starts) and {starts.dtype.kind, groups.dtype.kind} - {"u", "i"}:
        raise ValueError(f"{family}_starts and {family}_groups must be integer arrays of one length")
    if len(starts) and (starts[0] < 0 or int(starts.max()) >> bits or not (starts[1:] > starts[:len(starts) - 1]).all()):
        raise ValueError(f"{family}_starts must ascend within {bits} bits")
    if len(groups) and (groups.min() < 0 or groups.max() >= count):
        raise ValueError(f"{family}_groups must be below the number of keys, {count}")
    hi = np.ascontiguousarray(starts, np.uint64) << np.uint64(64 - bits)
    return hi, np.zeros(len(hi), np.uint64), np.ascontiguousarray(groups, np.uint32)


def checked_column(name, values, count):
    """Give a column of numbers with one entry for each key."""
    values = np.asarray(values)
    if values.shape != (count,):
        raise ValueError(f"{name} must have one entry for each of the {count} keys")
    return values


def checked_out(out, count):
    """Give `out` when it can take `count` groups."""
    if not isinstance(out, np.ndarray) or out.dtype != np.uint32 or out.shape != (count,) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous u32[{count}] array")
    return out
