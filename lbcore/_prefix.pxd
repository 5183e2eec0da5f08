# The look-up side of PrefixMap for other compiled modules: `from lbcore._prefix cimport PrefixMap, prefix_lookup4, ...`.
#
# A trie is poptrie-like: one direct table over the first bits, then nodes of 64 slots (6 bits each) that
# count bits to find a child or a leaf. Keys are 64 bits wide; an IPv4 address is the top half of its key.
# Neighbouring ranges of one value are merged before building, so a node never covers a single value.
#
# Source: Asai and Ohara, "Poptrie: A Compressed Trie with Population Count for Fast and Scalable Software
# IP Routing Table Lookup", SIGCOMM 2015.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lbcore._address cimport ip

cdef extern from *:
    """
    #include <stdint.h>
    static inline int lb_clz64(uint64_t x) { return __builtin_clzll(x); }
    static inline int lb_popcount64(uint64_t x) { return __builtin_popcountll(x); }
    static inline void lb_prefetch(const void *p) { __builtin_prefetch(p); __asm__ volatile(""); }  /* gcc drops what only prefetches */
    """
    int clz64 "lb_clz64"(uint64_t) noexcept nogil
    int popcount64 "lb_popcount64"(uint64_t) noexcept nogil
    void prefetch "lb_prefetch"(const void*) noexcept nogil

cdef enum:
    # A leaf holds a group below SPECIAL, or says where to look further.
    SPECIAL = 1 << 30
    EMBEDDED = 1 << 29                          # SPECIAL | EMBEDDED | form: the address carries an IPv4 address
    FORM_LOW = (1 << 30) | (1 << 29)            # in its low 32 bits (mapped, compatible, NAT64)
    FORM_6TO4 = (1 << 30) | (1 << 29) | 1       # in bits 16..47
    FORM_TEREDO = (1 << 30) | (1 << 29) | 2     # inverted, in its low 32 bits
    V4_BITS = 18
    V6_BITS = 16                                # 16 + 8 * 6 = 64
    # A direct entry with the top bit set is a node's index instead.
    NODE_INDEX = 0x7FFFFFFF

cdef struct trie_node:
    uint64_t children                           # slots that are nodes
    uint64_t runs                               # slots where a run of equal leaves starts
    uint32_t first_child
    uint32_t first_leaf

cdef struct trie:
    uint32_t* direct
    uint8_t* scopes                             # of direct leaves: the shortest prefix that is all one value
    trie_node* nodes
    uint32_t* leaves
    int bits                                    # of the direct table
    size_t node_count, node_capacity, leaf_count, leaf_capacity

cdef struct prefix_map:
    trie v4
    trie v6                                     # over the top 64 bits
    # /64 networks that are not all one value: leaf SPECIAL | k means rows spans[k] to spans[k + 1] of these
    const uint32_t* spans
    const uint64_t* long_starts
    const uint32_t* long_values
    size_t span_count, long_count


cdef inline uint32_t leaf_at(const trie* t, const trie_node* node, int slot) noexcept nogil:
    return t.leaves[node.first_leaf + popcount64(node.runs & (2ULL << slot) - 1) - 1]


cdef inline uint32_t trie_lookup(const trie* t, uint64_t key) noexcept nogil:
    cdef uint32_t found = t.direct[key >> (64 - t.bits)]
    cdef const trie_node* node
    cdef int slot
    if not found >> 31:
        return found
    node = &t.nodes[found & NODE_INDEX]
    key <<= t.bits
    slot = key >> 58
    while node.children >> slot & 1:
        node = &t.nodes[node.first_child + popcount64(node.children & (1ULL << slot) - 1)]
        key <<= 6
        slot = key >> 58
    return leaf_at(t, node, slot)


cdef inline int node_scope(const trie_node* node, int slot, int depth) noexcept nogil:
    """Give the prefix length of the largest aligned block of equal leaves around a slot of a node at `depth`."""
    cdef int size = 1, first
    cdef uint64_t block
    while size < 64:
        first = slot & -(2 * size)
        block = ((2ULL << 2 * size - 1) - 1) << first
        if node.children & block or node.runs & block & ~(1ULL << first):
            break
        size *= 2
    return depth + clz64(size) - 57


cdef inline uint32_t trie_match(const trie* t, uint64_t key, int* scope) noexcept nogil:
    """trie_lookup, and the length of the shortest prefix around `key` that is all one value."""
    cdef uint32_t found = t.direct[key >> (64 - t.bits)]
    cdef const trie_node* node
    cdef int slot, depth = t.bits
    if not found >> 31:
        scope[0] = t.scopes[key >> (64 - t.bits)]
        return found
    node = &t.nodes[found & NODE_INDEX]
    slot = (key << depth) >> 58
    while node.children >> slot & 1:
        node = &t.nodes[node.first_child + popcount64(node.children & (1ULL << slot) - 1)]
        depth += 6
        slot = (key << depth) >> 58
    scope[0] = node_scope(node, slot, depth)
    return leaf_at(t, node, slot)


cdef inline void trie_foresee(const trie* t, uint64_t key, int depth) noexcept nogil:
    """Fetch what trie_match will read: 0 its direct entry, 1 the node behind that, 2 the leaf or node behind that one.

    Each is there only a while after the one before was asked for: whoever has many keys asks for all of them at one depth, then at
    the next, and does not wait for memory.
    """
    cdef uint64_t at = key >> (64 - t.bits)
    cdef const trie_node* node
    cdef int slot
    if depth == 0:
        prefetch(&t.direct[at])
        prefetch(&t.scopes[at])
        return
    if not t.direct[at] >> 31:
        return
    node = &t.nodes[t.direct[at] & NODE_INDEX]
    if depth == 1:
        prefetch(node)
        return
    slot = (key << t.bits) >> 58
    if node.children >> slot & 1:
        prefetch(&t.nodes[node.first_child + popcount64(node.children & (1ULL << slot) - 1)])
    else:
        prefetch(&t.leaves[node.first_leaf + popcount64(node.runs & (2ULL << slot) - 1) - 1])


cdef inline int common_bits(uint64_t a, uint64_t b) noexcept nogil:
    return clz64(a ^ b)


cdef inline int range_scope(uint64_t key, uint64_t first, uint64_t last) noexcept nogil:
    """Give the length of the shortest prefix around `key` that stays within first..last."""
    cdef int before = common_bits(key, first - 1) + 1 if first else 0
    cdef int after = common_bits(key, last + 1) + 1 if last + 1 else 0
    return before if before > after else after


cdef inline uint32_t long_row(const prefix_map* m, uint32_t span, uint64_t lo) noexcept nogil:
    """Find the row of long_starts whose range holds `lo`; every span starts with 0."""
    cdef uint32_t low = m.spans[span], high = m.spans[span + 1], middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if m.long_starts[middle] <= lo:
            low = middle
        else:
            high = middle
    return low


cdef inline uint32_t embedded_v4(uint32_t form, uint64_t hi, uint64_t lo) noexcept nogil:
    if form == FORM_6TO4:
        return <uint32_t>(hi >> 16)
    return ~<uint32_t>lo if form == FORM_TEREDO else <uint32_t>lo


cdef inline uint32_t prefix_lookup4(const prefix_map* m, uint32_t v4) noexcept nogil:
    return trie_lookup(&m.v4, <uint64_t>v4 << 32)


cdef inline uint32_t prefix_lookup6(const prefix_map* m, uint64_t hi, uint64_t lo) noexcept nogil:
    cdef uint32_t found = trie_lookup(&m.v6, hi)
    if not found & SPECIAL:
        return found
    if not found & EMBEDDED:
        found = m.long_values[long_row(m, found & ~SPECIAL, lo)]
        if not found & SPECIAL:
            return found
    return prefix_lookup4(m, embedded_v4(found, hi, lo))


cdef inline uint32_t prefix_match4(const prefix_map* m, uint32_t v4, int* scope) noexcept nogil:
    """prefix_lookup4, and the shortest prefix length (0..32) over which the group is the same."""
    cdef uint32_t found = trie_match(&m.v4, <uint64_t>v4 << 32, scope)
    if scope[0] > 32:
        scope[0] = 32
    return found


cdef inline uint32_t prefix_match6(const prefix_map* m, uint64_t hi, uint64_t lo, int* scope) noexcept nogil:
    """prefix_lookup6, and the shortest prefix length (0..128) over which the group is the same."""
    cdef uint32_t found = trie_match(&m.v6, hi, scope), row, end
    cdef int v4_scope
    if found & SPECIAL and not found & EMBEDDED:
        end = m.spans[(found & ~SPECIAL) + 1]
        row = long_row(m, found & ~SPECIAL, lo)
        scope[0] = 64 + range_scope(lo, m.long_starts[row], m.long_starts[row + 1] - 1 if row + 1 < end else <uint64_t>-1)
        found = m.long_values[row]
    if not found & SPECIAL:
        return found
    row = prefix_match4(m, embedded_v4(found, hi, lo), &v4_scope)
    scope[0] = v4_scope + (16 if found == FORM_6TO4 else 96)
    return row


cdef inline uint32_t find_group(const prefix_map* m, const ip* a) noexcept nogil:
    return prefix_lookup6(m, a.hi, a.lo) if a.is_v6 else trie_lookup(&m.v4, a.hi)


cdef int read_client(object client, ip* out) except -1


cdef class PrefixMap:
    cdef prefix_map map
    cdef readonly tuple keys, countries
    cdef readonly object precision
    cdef object lat, lon, longs

    cdef int build(self, v4, v6) except -1
    cdef int lookup_many4(self, const uint32_t[::1] addresses, uint32_t[::1] out) except -1
    cdef int lookup_many6(self, const uint8_t[:, ::1] addresses, uint32_t[::1] out) except -1
    cdef int64_t group_of(self, object client) except -1
    cdef int64_t match_of(self, object client, int* scope) except -1
