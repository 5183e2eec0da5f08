# cython: language_level=3
"""Store: `Answers` copied into flat memory that C threads read without the GIL, and the look-up of names in it.

Bytes stay where Python made them, kept alive by the Store; structs lie in chunks that are freed with it.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

import struct
from functools import cache, lru_cache

import dns.name
import dns.rcode
import dns.rdatatype

cdef enum:
    CHUNK = 1 << 20
    MOST_BYTES = 4096            # of a Body; an answer over UDP has at most 1,232
    MOST_PAIRED_SLOTS = 64       # beyond it a table of pairs costs megabytes per name: pairs are the Responder's

PAIRED = (dns.rdatatype.HTTPS, dns.rdatatype.SVCB)


cdef uint64_t name_hash(const uint8_t* name, uint32_t size) noexcept nogil:
    """Hash a name in lower case; eight readable bytes must follow it, and those beyond its end do not matter."""
    cdef uint64_t h = size * 0x9E3779B97F4A7C15ULL, word
    cdef uint32_t i
    for i in range(0, size, 8):
        memcpy(&word, name + i, 8)
        if size - i < 8:
            word &= (<uint64_t>1 << 8 * (size - i)) - 1      # little-endian; on others names hash otherwise, and just as well
        h = (h ^ word) * 0xD6E8FEB86659FD93ULL
        h ^= h >> 32
    return h


cdef const node* find_node(const store* s, const uint8_t* name, uint32_t size) noexcept nogil:
    """Give the node of exactly this name in lower case, NULL when there is none; eight readable bytes must follow the name."""
    cdef uint64_t h = name_hash(name, size)
    cdef uint32_t at = <uint32_t>(h >> 32) & s.mask, index
    cdef const node* found
    while True:
        index = s.buckets[at]
        if index == 0:
            return NULL
        found = &s.nodes[index - 1]
        if found.hash == h and found.name_size == size and memcmp(found.name, name, size) == 0:
            return found
        at = at + 1 & s.mask


cdef class Store:
    """A flat copy of `answers`.

    series_of: gives the number of a counter for (zone, name, type, region, result); kept by whoever counts, so that numbers outlive
    the Store
    """

    def __cinit__(self, answers, series_of):
        cdef size_t count = len(answers.nodes), size = 4
        cdef node* nodes
        cdef uint32_t* buckets
        self.chunks, self.kept, self.placed = [], [], {}
        self.series_of = series_of
        while size < 2 * count:
            size *= 2
        nodes = <node*>self.take(count * sizeof(node))
        buckets = <uint32_t*>self.take(size * sizeof(uint32_t))
        self.s.nodes, self.s.buckets, self.s.mask, self.s.slots = nodes, buckets, <uint32_t>(size - 1), len(answers.regions)
        self.fill(answers)
        self.placed = {}

    def __dealloc__(self):
        for chunk in self.chunks or ():
            free(<void*><size_t>chunk)

    def fill(self, answers):
        cdef node* nodes = <node*>self.s.nodes
        cdef uint32_t* buckets = <uint32_t*>self.s.buckets
        cdef uint32_t at, i
        cdef dict index = {id(given): i for i, given in enumerate(answers.nodes.values())}
        zones = {origin: self.place_zone(answers, origin, denial) for origin, denial in answers.nxdomain.items()}
        for i, (name, given) in enumerate(answers.nodes.items()):
            self.place_name(i, name)
            self.fill_node(&nodes[i], given, (zones, answers.regions))
            if given.wildcard is not None:
                nodes[i].wildcard = &nodes[<size_t>index[id(given.wildcard)]]
            at = <uint32_t>(nodes[i].hash >> 32) & self.s.mask
            while buckets[at]:
                at = at + 1 & self.s.mask
            buckets[at] = i + 1

    def place_name(self, uint32_t i, bytes name):
        cdef node* placed = <node*>&self.s.nodes[i]
        padded = name + bytes(8)
        self.kept.append(padded)
        placed.name, placed.name_size = <const uint8_t*>PyBytes_AS_STRING(padded), len(name)
        placed.hash = name_hash(placed.name, placed.name_size)

    def place_zone(self, answers, bytes origin, denial):
        cdef zone* placed = <zone*>self.take(sizeof(zone))
        placed.origin_size = len(origin)
        self.form(&placed.nxdomain, denial, (text_of(origin), "", "", ""))
        placed.signed_zone = is_signed(answers.nodes[origin].types[dns.rdatatype.SOA])   # its DS is signed by the zone above
        return <size_t>placed

    cdef void* take(self, size_t size) except NULL:
        """Give zeroed memory that lives as long as the Store."""
        cdef void* found
        size = size + 7 & ~<size_t>7
        if self.free_space == NULL or size > self.room:
            self.room = size if size > CHUNK else CHUNK
            self.free_space = <char*>calloc(self.room, 1)
            if self.free_space == NULL:
                self.room = 0
                raise MemoryError()
            self.chunks.append(<size_t>self.free_space)
        found = self.free_space
        self.free_space += size
        self.room -= size
        return found

    cdef const body* bodies(self, rotations) except? NULL:
        """Copy a tuple of Body once, however many entries share it."""
        cdef body* placed
        cdef size_t i
        known = self.placed.get(id(rotations))
        if known is not None:
            return <const body*><size_t>known
        placed = <body*>self.take(len(rotations) * sizeof(body))
        for i, given in enumerate(rotations):
            fixups = struct.pack(f"={len(given.ttls) + len(given.origins)}H", *given.ttls, *given.origins)
            self.kept += (given.data, fixups)
            placed[i].data = <const uint8_t*>PyBytes_AS_STRING(given.data)
            placed[i].fixups = <const uint16_t*>PyBytes_AS_STRING(fixups)
            placed[i].size, placed[i].rcode, placed[i].authoritative = len(given.data), given.rcode, given.authoritative
            placed[i].answers, placed[i].authorities, placed[i].additionals = given.answers, given.authorities, given.additionals
            placed[i].ttls, placed[i].origins, placed[i].most = len(given.ttls), len(given.origins), given.most
        self.kept.append(rotations)          # its id stays its own
        self.placed[id(rotations)] = <size_t>placed
        return placed

    cdef int form(self, forms* out, given, tuple series) except -1:
        if given is None or any(len(answer.data) > MOST_BYTES for answer in (*given.plain, *(given.signed or ()))):
            return 0                         # nothing that long leaves by UDP: it is the Responder's
        out.plain, out.plains = self.bodies(given.plain), len(given.plain)
        if given.signed is not None:
            out.dnssec, out.dnssecs = self.bodies(given.signed), len(given.signed)
        out.series = self.series_of((*series, result_of(given.plain[0])))
        return 0

    cdef int fill_entry(self, entry* out, given, tuple labels, tuple regions) except -1:
        cdef size_t slots = len(regions)
        cdef forms* placed
        out.root = given.root if given.fixed is None else -1
        self.form(&out.fixed, given.fixed, (*labels, ""))
        self.form(&out.nodata, given.nodata, (*labels, ""))
        self.form(&out.nxdomain, given.nxdomain, (*labels, ""))
        if given.regions:
            placed = <forms*>self.take(slots * sizeof(forms))
            for slot, answer in given.regions.items():
                self.form(&placed[<size_t>slot], answer, (*labels, regions[slot]))
            out.regions = placed
        if given.pairs and slots <= MOST_PAIRED_SLOTS:
            placed = <forms*>self.take(slots * slots * sizeof(forms))
            for (first, second), answer in given.pairs.items():
                self.form(&placed[<size_t>first * slots + <size_t>second], answer, (*labels, regions[first]))
            out.pairs = placed
        return 0

    cdef int fill_node(self, node* out, given, zones) except -1:
        cdef size_t count = len(given.types), i
        cdef uint16_t* types = <uint16_t*>self.take(count * sizeof(uint16_t) + 1)
        cdef entry* entries = <entry*>self.take(count * sizeof(entry) + 1)
        cdef entry* other
        origin = given.zone.key
        # Static names are counted by their zone: a label for each would be without bounds.
        labels = (text_of(origin), text_of(given.name) if given.profile is not None else "")
        out.zone = <const zone*><size_t>zones[0][origin]
        out.types, out.entries, out.type_count, out.referral = types, entries, count, given.referral
        for i, (rdtype, answer) in enumerate(given.types.items()):
            types[i] = rdtype
            self.fill_entry(&entries[i], answer, (*labels, type_text(rdtype)), zones[1])
            entries[i].paired = rdtype in PAIRED
        if given.other is not None:
            other = <entry*>self.take(sizeof(entry))
            self.fill_entry(other, given.other, (*labels, "other"), zones[1])
            out.other = other
        return 0


def is_signed(given):
    """Say whether an Entry has DNSSEC records prepared."""
    return given.fixed is not None and given.fixed.signed is not None


def result_of(answer):
    """Give the word that metrics use for a Body's outcome."""
    if answer.rcode:
        return dns.rcode.to_text(answer.rcode).lower()
    return "noerror" if answer.answers else "nodata" if answer.authoritative else "referral"


@cache
def type_text(rdtype):
    """Give a type's name, TYPE65280 for one without."""
    return dns.rdatatype.to_text(rdtype)


@lru_cache(4096)
def text_of(name):
    """Give a name in wire form as text, without the last dot."""
    return dns.name.from_wire(name, 0)[0].to_text(omit_final_dot=True)
