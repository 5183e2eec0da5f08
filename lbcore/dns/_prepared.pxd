# Answers as flat memory, for reading without the GIL.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef struct body:                # answers.Body
    const uint8_t* data
    const uint16_t* fixups       # `ttls` places of TTLs, then `origins` places of pointers
    uint16_t size, answers, authorities, additionals, ttls, origins
    uint8_t rcode, authoritative
    uint32_t most                # seconds, that no TTL exceeds

cdef struct forms:               # answers.Forms; plains = 0: not prepared
    const body* plain
    const body* dnssec
    uint16_t plains, dnssecs
    uint32_t series              # which counter

cdef struct entry:               # answers.Entry
    int32_t root                 # -1 = fixed
    forms fixed, nodata, nxdomain
    const forms* regions         # by slot
    const forms* pairs           # by first * slots + second; NULL = none is prepared
    bint paired                  # the type's answers name the second region as well

cdef struct zone:
    uint32_t origin_size
    bint signed_zone
    forms nxdomain

cdef struct node:                # answers.Node
    uint64_t hash
    const uint8_t* name
    const uint16_t* types
    const entry* entries         # one per type
    const entry* other           # NULL = the Responder's
    const node* wildcard         # NULL = none
    const zone* zone
    uint16_t name_size, type_count
    bint referral

cdef struct store:
    const node* nodes
    const uint32_t* buckets      # index of a node + 1, 0 = empty; linear probing
    uint32_t mask                # buckets - 1
    uint32_t slots


cdef class Store:
    cdef store s
    cdef list chunks, kept
    cdef dict placed
    cdef size_t room
    cdef char* free_space
    cdef void* take(self, size_t size) except NULL
    cdef const body* bodies(self, rotations) except? NULL
    cdef int form(self, forms* out, given, tuple series) except -1
    cdef int fill_entry(self, entry* out, given, tuple labels, tuple regions) except -1
    cdef int fill_node(self, node* out, given, zones) except -1
    cdef readonly object series_of


cdef uint64_t name_hash(const uint8_t* name, uint32_t size) noexcept nogil
cdef const node* find_node(const store* s, const uint8_t* name, uint32_t size) noexcept nogil
