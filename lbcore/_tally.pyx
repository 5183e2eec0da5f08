# cython: language_level=3
"""Tally: what is done for every request that succeeds, in a tenth of a microsecond.

A success of a region where all is well changes nothing but counts. So it is only noted here, and the notes of a region go to its
detector together: before anything else is told of it, at every tick, when its step of time ends, and when they are many.
In a table that processes share, the table is where all outcomes are noted.
"""
cimport cython
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.math cimport floor
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from lbcore._fast cimport LatencyTable
from lbcore._prefix cimport PrefixMap
from lbcore._table cimport load32, stamp_of, table_count, table_observe

cdef enum:
    ROOM = 512                 # notes of one region

cdef int64_t LATEST = 0x7FFFFFFFFFFFFFFF  # generation, of work that names none

cdef struct Notes:
    uint32_t count
    bint calm
    int64_t generation         # work that began in an earlier one is late
    double step, last          # of time, floor(now * resolution); when the last one was noted
    uint32_t groups[ROOM]


@cython.final
cdef class Steady:
    """A clock that stands still where the one behind it jumps back by over a second: ramps, dwells and ejections must not wait meanwhile.

    clock: gives seconds
    """
    cdef object clock
    cdef double last, offset

    def __cinit__(self, clock not None):
        self.clock, self.last, self.offset = clock, clock(), 0.0

    cdef double read(self) except? -1:
        cdef double now = self.clock()
        if now < self.last - 1.0:  # less is two threads that read the clock at once
            self.offset += self.last - now
        self.last = now
        return now + self.offset

    def __call__(self):
        """Give the time, seconds."""
        return self.read()


@cython.final
cdef class Tally:
    """Take note of successes, by region and group.

    table, map: whose slots and groups they are; slots: the slot of each name, a dict that may change meanwhile; clock: a Steady
    resolution: steps of time a second, 0 = one step, None = nothing is noted; shared: outcomes are counted in the table
    `deadline`: seconds after which nothing is noted, so that whoever reports has to look at what else is due
    """
    cdef LatencyTable table
    cdef PrefixMap map
    cdef dict slots
    cdef Steady clock
    cdef double resolution
    cdef bint off, shared
    cdef Notes **notes
    cdef public double deadline

    def __cinit__(
        self, LatencyTable table not None, PrefixMap map not None, dict slots not None, Steady clock not None, resolution, bint shared
    ):
        self.table, self.map, self.slots, self.clock, self.shared = table, map, slots, clock, shared
        self.off, self.resolution = resolution is None, resolution or 0.0
        self.notes = <Notes **>calloc(table.t.capacity, sizeof(Notes *))
        if self.notes == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef uint32_t slot
        if self.notes != NULL:
            for slot in range(self.table.t.capacity):
                free(self.notes[slot])
            free(self.notes)

    cdef int64_t slot_of(self, region) except -2:
        slot = self.slots.get(region if type(region) is str else region.name)
        return -1 if slot is None else <int64_t>slot

    @cython.binding(False)
    def success(self, region, client=None, gen=None, /):
        """Note one success; False = it was not, and has to be reported: the region is unknown or not calm, or something else is due.

        region: a name or Region; client, gen: as `Balancer.report`. Raises ValueError for what is no address.
        """
        return self.take_note(region, client, gen, -1.0)

    @cython.binding(False)
    def answered(self, region, double ms, client=None, gen=None, /):
        """Note one success and the round trip that was measured, milliseconds; False = neither, as `success`, or `ms` is none."""
        return 0 <= ms < 1e9 and self.take_note(region, client, gen, ms)

    cdef bint take_note(self, region, client, gen, double ms) except -1:
        cdef int64_t slot = self.slot_of(region)
        cdef uint32_t group
        cdef double now
        if slot < 0:
            return False
        group = <uint32_t>self.map.group_of(client)
        now = self.clock.read()
        if now > self.deadline:
            return False
        if self.shared:
            if gen is None or <int64_t>gen >= load32(&self.table.t.recoveries[slot]):
                table_count(&self.table.t, <uint32_t>slot, group, 0)
        elif not self.note(self.notes[slot], group, LATEST if gen is None else <int64_t>gen, now):
            return False
        if ms >= 0:
            table_observe(&self.table.t, group, <uint32_t>slot, <float>ms, stamp_of(now))
        return True

    cdef bint note(self, Notes *notes, uint32_t group, int64_t gen, double now) noexcept:
        cdef double step = floor(now * self.resolution)
        with cython.critical_section(self):
            if notes == NULL or not notes.calm or gen < notes.generation or notes.count == ROOM:
                return False
            if notes.count and notes.step != step:
                return False
            notes.groups[notes.count], notes.step, notes.last = group, step, now
            notes.count += 1
        return True

    def calm(self, Py_ssize_t slot, bint on, int64_t generation=0):
        """Say whether successes of the region in a slot may be noted, and of which generation on."""
        if self.off or self.shared or not 0 <= slot < self.table.t.capacity:
            return
        if self.notes[slot] == NULL:
            if not on:
                return
            self.notes[slot] = <Notes *>calloc(1, sizeof(Notes))
            if self.notes[slot] == NULL:
                raise MemoryError()
        with cython.critical_section(self):
            self.notes[slot].calm, self.notes[slot].generation = on, generation

    def take(self, Py_ssize_t slot):
        """Give the groups noted for the region in a slot, in order, and when the last was; None when there are none. They are forgotten."""
        cdef Notes *notes = self.notes[slot] if 0 <= slot < self.table.t.capacity else NULL
        cdef uint32_t i
        cdef list groups
        cdef object group
        if notes == NULL or notes.count == 0:
            return None
        with cython.critical_section(self):
            groups = PyList_New(notes.count)
            for i in range(notes.count):
                group = notes.groups[i]
                Py_INCREF(group)
                PyList_SET_ITEM(groups, i, group)
            notes.count = 0
        return groups, notes.last
