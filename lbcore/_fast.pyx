# cython: language_level=3
"""The core: which region should this group use now?

Here live LatencyTable, the Python face of the rules in `_table`, and the Picker that joins a table to a prefix map.
No clock, no names, no I/O; `now` is always an argument. Nothing of lbcore but the prefix map is imported.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport fabs, isfinite, sqrtf
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import os
import zlib

import numpy as np

from lbcore._table cimport *
from lbcore._prefix cimport PrefixMap

cdef enum:
    MAX_REGIONS = 65534
    OWNER_TIMEOUT = 3          # seconds without a heartbeat; a seat is free after as long without a word
    FRESH = 1                  # seconds that hold who waits

cdef double MS_LIMIT = 1e9      # beyond any round trip, and its square is far from float32's end
cdef uint64_t MAGIC = 0x0002_4552_4F43_424C    # "LBCORE" and the layout's version

cdef packed struct Belonging:   # of a group, in a snapshot
    uint16_t home, former, forced

ESTIMATORS = ("prior_ewma", "ewma")


# ---------------------------------------------------------------- LatencyTable

@cython.no_gc_clear   # __dealloc__ releases the buffer; a cleared view could not be
@cython.final
cdef class LatencyTable:
    """Latency estimates of groups x regions, and which region each group should use.

    groups: rows, 1 to 2**32 - 1; group 0 is this process's own vantage and whoever cannot be located
    regions: columns in use at first, 0 to 65,534
    estimator: "prior_ewma" (evidence-dependent gain, drifts back to the prior when idle) or "ewma" (time constant `tau`)
    tau: seconds, for "ewma"
    region_capacity: columns there is room for; default twice `regions`, at least 8
    buffer: writable memory of `nbytes_for(groups, region_capacity)` bytes to share with other processes; zeroed = new
    Raises ValueError for sizes out of range or a buffer that holds a different table, MemoryError.
    """

    def __cinit__(self, groups, regions, *, str estimator="prior_ewma", double tau=10.0, region_capacity=None, buffer=None):
        cdef uint32_t rows = in_range("groups", groups, 1, 2**32 - 1), columns = in_range("regions", regions, 0, MAX_REGIONS)
        cdef uint32_t capacity = max(8, min(2 * columns, MAX_REGIONS))
        if region_capacity is not None:
            capacity = in_range("region_capacity", region_capacity, max(columns, 1), MAX_REGIONS)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}")
        if not (isfinite(tau) and tau > 0):
            raise ValueError(f"tau must be a positive number of seconds, got {tau!r}")
        self.t.pooled = estimator == "ewma"
        self.t.scratch = <uint64_t *>calloc(4 * ((capacity + 63) // 64), 8)
        if self.t.scratch == NULL:
            raise MemoryError()
        lay_out(&self.t, self.memory(buffer, lay_out(&self.t, NULL, rows, capacity)), rows, capacity)
        self.open_block(columns, tau)
        self.numbers = tuple(range(capacity))

    def __dealloc__(self):
        free(self.t.scratch)
        free(self.block)
        if self.view.buf != NULL:
            PyBuffer_Release(&self.view)

    cdef char *memory(self, buffer, size_t size) except NULL:
        if buffer is None:
            self.block = calloc(size + 64, 1)
            if self.block == NULL:
                raise MemoryError(f"a table of {self.t.groups} groups x {self.t.capacity} regions needs {size} bytes")
            return <char *>aligned(<size_t>self.block)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        if <size_t>self.view.len < size or <size_t>self.view.buf & 7:
            raise ValueError(f"buffer must be 8-byte aligned and hold at least {size} bytes, got {self.view.len}")
        return <char *>self.view.buf

    cdef int open_block(self, uint32_t columns, double tau) except -1:
        cdef Header *head = self.t.head
        if swap_if(&head.ready, 0, 1):
            head.magic, head.groups, head.capacity = MAGIC, self.t.groups, self.t.capacity
            head.estimator, head.tau = self.t.pooled, tau
            table_initialise(&self.t, columns, os.getpid())
            swap_if(&head.ready, 1, 2)
        found = (<int64_t>load64(<uint64_t *>&head.ready), head.magic, head.groups, head.capacity, head.estimator, head.tau)
        wanted = (2, MAGIC, self.t.groups, self.t.capacity, self.t.pooled, tau)
        if found != wanted:
            raise ValueError(f"the buffer holds another table or is half written: (ready, magic, groups, capacity, estimator, tau) "
                             f"is {found}, expected {wanted}")
        return 0

    @staticmethod
    def nbytes_for(groups, region_capacity):
        """Give the bytes that `buffer` must have for a table of this size."""
        cdef Table t
        return lay_out(&t, NULL, in_range("groups", groups, 1, 2**32 - 1), in_range("region_capacity", region_capacity, 1, MAX_REGIONS))

    @property
    def groups(self):
        """Number of groups (rows)."""
        return self.t.groups

    @property
    def regions(self):
        """Number of region slots in use or used before: one more than the highest valid index."""
        return load64(&self.t.head.regions)

    @property
    def region_capacity(self):
        """Number of region slots there is room for."""
        return self.t.capacity

    @property
    def nbytes(self):
        """Bytes of the table's block."""
        cdef Table t
        return lay_out(&t, NULL, self.t.groups, self.t.capacity)

    @property
    def estimator(self):
        """Name of the estimator."""
        return ESTIMATORS[self.t.pooled]

    @property
    def owner(self):
        """Pid of the process that ticks this table."""
        return <int64_t>load64(<uint64_t *>&self.t.head.owner)

    cdef uint32_t group_index(self, Py_ssize_t group) except? 0xFFFFFFFF:
        if <size_t>group >= self.t.groups:
            raise IndexError(f"group {group} is outside 0..{self.t.groups - 1}")
        return <uint32_t>group

    cdef uint32_t region_index(self, Py_ssize_t region) except? 0xFFFFFFFF:
        if <size_t>region >= self.t.capacity or not in_mask(self.t.configured, <uint32_t>region):
            raise IndexError(f"region {region} is not configured; the table has {self.regions} slots")
        return <uint32_t>region

    # -- learn

    def seed(self, Py_ssize_t group, Py_ssize_t region, double ms, double sd):
        """Set a cell's prior: mean `ms` >= 0 and deviation `sd` > 0, milliseconds. What was measured is kept.

        Raises IndexError outside the table, ValueError for values that are not finite or out of range.
        """
        cdef uint32_t g = self.group_index(group), r = self.region_index(region)
        set_prior(&self.t, g, r, milliseconds(ms), deviation(sd))

    def seed_many(self, ms, sd):
        """Set the priors of every group and region: two float32 arrays [groups, regions], milliseconds."""
        cdef const float[:, ::1] means = priors_array("ms", ms, self.t.groups, self.regions)
        cdef const float[:, ::1] sds = priors_array("sd", sd, self.t.groups, self.regions)
        cdef uint32_t g, r
        if not (np.greater_equal(means, 0).all() and np.greater(sds, 0).all() and max(np.max(means), np.max(sds)) <= MS_LIMIT):
            raise ValueError("priors must be ms >= 0 and sd > 0, both finite (and <= 1e9)")
        with nogil:
            for g in range(self.t.groups):
                for r in range(<uint32_t>means.shape[1]):
                    set_prior(&self.t, g, r, means[g, r], sds[g, r])

    @cython.binding(False)
    def observe(self, Py_ssize_t group, Py_ssize_t region, double ms, double now, /):
        """Blend one measured round trip into a cell.

        ms: milliseconds, finite and >= 0; now: seconds, monotonic (a clock that went back ages nothing)
        Raises IndexError outside the table, ValueError for a bad ms or now.
        Source: docs/design.md "Estimate".
        """
        if <size_t>group >= self.t.groups:
            self.group_index(group)
        if <size_t>region >= self.t.capacity or not in_mask(self.t.configured, <uint32_t>region):
            self.region_index(region)
        table_observe(&self.t, <uint32_t>group, <uint32_t>region, milliseconds(ms), stamp_of(seconds(now)))

    def observe_many(self, groups, regions, ms, double now):
        """Blend many round trips measured at `now`: uint32[n] groups, uint16[n] regions, float32[n] milliseconds.

        All are checked before any is taken. Raises ValueError or IndexError as `observe`.
        """
        cdef const uint32_t[::1] g = indices("groups", groups, np.uint32)
        cdef const uint16_t[::1] r = indices("regions", regions, np.uint16)
        cdef const float[::1] y = np.ascontiguousarray(ms, np.float32)
        cdef uint32_t stamp = stamp_of(seconds(now))
        cdef Py_ssize_t i, n = g.shape[0]
        if r.shape[0] != n or y.shape[0] != n:
            raise ValueError(f"groups, regions and ms must have one length, got {n}, {r.shape[0]} and {y.shape[0]}")
        for i in range(n):
            if g[i] >= self.t.groups:
                self.group_index(g[i])
            if r[i] >= self.t.capacity or not in_mask(self.t.configured, r[i]):
                self.region_index(r[i])
            milliseconds(y[i])
        if n:
            with nogil:
                table_observe_many(&self.t, &g[0], &r[0], &y[0], n, stamp)

    # -- masks

    def set_enabled(self, Py_ssize_t region, bint on):
        """Say whether the operator wants the region."""
        table_set(&self.t, self.t.enabled, self.region_index(region), on)

    def set_synced(self, Py_ssize_t region, bint on):
        """Say whether the region has a configuration it may serve."""
        table_set(&self.t, self.t.synced, self.region_index(region), on)

    def set_draining(self, Py_ssize_t region, bint on):
        """Say whether the region is being emptied."""
        table_set(&self.t, self.t.draining, self.region_index(region), on)

    def set_tier(self, Py_ssize_t region, int tier, double now):
        """Set what was observed: 0 up, 1 latency-degraded, 2 ejected by statistics, 3 probed down.

        now: seconds; a region that enters tier 3 counts as having answered until then.
        """
        table_set_tier(&self.t, self.region_index(region), in_range("tier", tier, 0, 3), seconds(now))

    def set_penalty(self, Py_ssize_t region, double ms):
        """Add `ms` >= 0 to the region's score in every group; replaces the former penalty."""
        cdef uint32_t r = self.region_index(region)
        cdef float penalty = milliseconds(ms)
        with nogil:
            set_penalty(&self.t, r, penalty)

    def set_share(self, Py_ssize_t region, double share):
        """Let only this share of the groups (0 to 1, a stable hash decides) use the region."""
        cdef uint32_t r = self.region_index(region), i
        cdef uint64_t shared_out = 0
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share!r}")
        store32(&self.t.share[r], <uint32_t>(share * FULL_SHARE))
        for i in range(<uint32_t>self.regions):
            shared_out |= in_mask(self.t.configured, i) and load32(&self.t.share[i]) < FULL_SHARE
        store64(&self.t.head.shared_out, shared_out)
        mark_all(&self.t)

    def exclude(self, Py_ssize_t group, Py_ssize_t region, bint on):
        """Put the region last for one group: the path is broken, not the region. Takes effect at the next tick."""
        cdef uint32_t g = self.group_index(group), r = self.region_index(region)
        table_exclude(&self.t, g, r, on)

    def add_region(self, bint enabled=True):
        """Open the lowest free slot with flat priors, synced and up, and give its index. OverflowError when full."""
        cdef uint32_t r
        for r in range(self.t.capacity):
            if not in_mask(self.t.configured, r):
                with nogil:
                    table_reopen(&self.t, r, enabled)
                return r
        raise OverflowError(f"all {self.t.capacity} region slots are in use; build a table with a greater region_capacity")

    def remove_region(self, Py_ssize_t region):
        """Close the region's slot; groups that had it as home have none until the next tick."""
        cdef uint32_t r = self.region_index(region)
        with nogil:
            table_close(&self.t, r)

    # -- choose

    @cython.binding(False)
    def pick(self, Py_ssize_t group, /):
        """Give the index of the region the group should use now; -1 when none is enabled.

        Raises IndexError outside the table.
        """
        cdef int32_t region
        if <size_t>group >= self.t.groups:
            self.group_index(group)
        region = table_pick(&self.t, <uint32_t>group)
        return <object>PyTuple_GET_ITEM(self.numbers, region) if region >= 0 else -1

    def pick_in(self, Py_ssize_t group, mask):
        """`pick` among the regions whose bits are set in `mask`: uint64 words, bit r % 64 of word r // 64."""
        cdef uint32_t g = self.group_index(group)
        cdef const uint64_t[::1] words = np.ascontiguousarray(mask, np.uint64)
        if words.shape[0] != self.t.words:
            raise ValueError(f"mask must have {self.t.words} words of 64 regions, got {words.shape[0]}")
        return table_pick_in(&self.t, g, &words[0])

    def pick_many(self, groups, out=None):
        """Pick for uint32[n] groups into uint16[n] `out` (made when None) without the GIL; 65535 = none."""
        cdef const uint32_t[::1] g = indices("groups", groups, np.uint32)
        cdef Py_ssize_t i, n = g.shape[0]
        cdef uint16_t[::1] picked
        cdef uint32_t highest = 0
        out = np.empty(n, np.uint16) if out is None else out
        picked = out
        if picked.shape[0] != n:
            raise ValueError(f"out must hold {n} items, got {picked.shape[0]}")
        with nogil:
            for i in range(n):
                highest = g[i] if g[i] > highest else highest
        if n and highest >= self.t.groups:
            self.group_index(highest)
        with nogil:
            for i in range(n):
                picked[i] = <uint16_t>table_pick(&self.t, g[i])
        return out

    def rank(self, Py_ssize_t group):
        """Give all regions that may serve the group, the pick first: eligible ones by score, then the last resorts.

        uint16 array; regions that are disabled, draining or not synced are left out.
        """
        cdef uint32_t g = self.group_index(group), r
        cdef const uint32_t *keys = self.t.keys + <size_t>g * self.t.stride
        cdef int first = table_pick(&self.t, g)
        order = []
        for r in range(<uint32_t>self.regions):
            if admissible(&self.t, r):
                tier = load8(&self.t.tier[r])
                order.append((tier, -loadd(&self.t.answered[r]) if tier == 3 else 0.0, load32(&keys[r]), r))
        order.sort(key=lambda place: (place[3] != first, place))
        return np.array([place[3] for place in order], np.uint16)

    def home(self, Py_ssize_t group):
        """Give the region the group belongs to by belief, as of the last tick; -1 = none yet."""
        cdef uint16_t home = load16(&self.t.home[self.group_index(group)])
        return -1 if home == NO_HOME else home

    def homes(self):
        """Give a copy of every group's home: uint16[groups], 65535 = none."""
        cdef uint16_t[::1] homes = np.empty(self.t.groups, np.uint16)
        cdef uint32_t g
        for g in range(self.t.groups):
            homes[g] = load16(&self.t.home[g])
        return np.asarray(homes)

    cdef object column(self, Py_ssize_t group, bint deviations):
        cdef uint32_t g = self.group_index(group), r
        cdef float[::1] out = np.zeros(self.regions, np.float32)
        cdef Cell c
        for r in range(<uint32_t>out.shape[0]):
            load_cell(&self.t.cells[<size_t>g * self.t.stride + r], &c)
            fresh_cell(&c)
            out[r] = sqrtf(c.P0 if self.t.pooled else c.P) if deviations else c.x
        return np.asarray(out)

    def estimates(self, Py_ssize_t group):
        """Give the estimated round trip to each region as of its last touch: float32[regions], milliseconds."""
        return self.column(group, False)

    def deviations(self, Py_ssize_t group):
        """Give the estimates' standard deviations: float32[regions], milliseconds (the prior's for "ewma")."""
        return self.column(group, True)

    def scores(self, Py_ssize_t group):
        """Give what regions are ordered by, estimate plus penalty: float32[regions], milliseconds."""
        cdef uint32_t g = self.group_index(group), r
        keys = [load32(&self.t.keys[<size_t>g * self.t.stride + r]) & ~<uint32_t>EXCLUDED for r in range(<uint32_t>self.regions)]
        return np.array(keys, np.uint32).view(np.float32)

    def ages(self, Py_ssize_t group, double now):
        """Give the seconds since each cell was last touched: float64[regions], NaN = never measured."""
        cdef uint32_t g = self.group_index(group), stamp = stamp_of(seconds(now)), r, t
        out = np.full(self.regions, np.nan)
        for r in range(<uint32_t>self.regions):
            t = load32(&self.t.cells[<size_t>g * self.t.stride + r].t)
            if t:
                out[r] = <int32_t>(stamp - t) / <double>STAMPS
        return out

    def excluded(self, Py_ssize_t group, Py_ssize_t region):
        """Tell whether the region is excluded for the group."""
        cdef uint32_t g = self.group_index(group), r = self.region_index(region)
        return bool(load32(&self.t.keys[<size_t>g * self.t.stride + r]) & EXCLUDED)

    def eligible(self):
        """Give which regions may be picked by score: bool[regions]."""
        return np.array([in_mask(self.t.eligible, r) for r in range(<uint32_t>self.regions)], np.bool_)

    def tier(self, Py_ssize_t region):
        """Give the region's tier, 0 (up) to 3 (probed down)."""
        return load8(&self.t.tier[self.region_index(region)])

    def enabled(self, Py_ssize_t region):
        """Tell whether the operator wants the region."""
        return in_mask(self.t.enabled, self.region_index(region))

    def synced(self, Py_ssize_t region):
        """Tell whether the region has a configuration it may serve."""
        return in_mask(self.t.synced, self.region_index(region))

    def draining(self, Py_ssize_t region):
        """Tell whether the region is being emptied."""
        return in_mask(self.t.draining, self.region_index(region))

    def share(self, Py_ssize_t region):
        """Give the share of the groups that may use the region, 0 to 1."""
        return load32(&self.t.share[self.region_index(region)]) / <double>FULL_SHARE

    def answered(self, Py_ssize_t region):
        """Give when the region was last probed down (`now` of that set_tier), 0 = never."""
        return loadd(&self.t.answered[self.region_index(region)])

    def penalty(self, Py_ssize_t region):
        """Give what is added to the region's scores, milliseconds."""
        return loadf(&self.t.penalty[self.region_index(region)])

    def generation(self, Py_ssize_t region):
        """Give how often the slot was freed: tells a region from a later one in its place."""
        return load32(&self.t.generation[in_range("region", region, 0, self.t.capacity - 1)])

    def forced(self, Py_ssize_t group):
        """Tell whether the group moved only because its home became ineligible, and so means to return."""
        return bool(load8(&self.t.forced[self.group_index(group)]))

    def pending(self, Py_ssize_t group):
        """Tell whether the group waits out the dwell time before a switch."""
        return load32(&self.t.since[self.group_index(group)]) != 0

    @property
    def fail_open(self):
        """True while no region is eligible and picks fall back on what the operator wants."""
        cdef uint32_t w
        for w in range(self.t.words):
            if load64(&self.t.eligible[w]):
                return False
        return True

    # -- time

    def tick(self, double now, budget=None):
        """Age estimates, take in what changed and move homes; give the number of groups left for the next call.

        now: seconds; budget: most groups evaluated in this call (None: all)
        Does nothing and gives 0 in a process that does not own a shared table, and while another thread ticks.
        """
        cdef uint64_t limit = ~<uint64_t>0 if budget is None else in_range("budget", budget, 1, 2**63), left
        cdef int64_t me = os.getpid(), ticking = <int64_t>load64(<uint64_t *>&self.t.ticking)
        if not self.own(seconds(now)) or ticking == me or not swap_if(&self.t.ticking, ticking, me):
            return 0  # another pid's mark is of a thread that a fork left behind
        with nogil:
            left = table_tick(&self.t, now, limit)
            swap_if(&self.t.ticking, me, 0)
        return left

    cdef bint own(self, double now):
        """Keep, or take over, the right to tick a shared block: the owner's heartbeat is at most 3 s away."""
        cdef Header *head = self.t.head
        cdef int64_t owner = <int64_t>load64(<uint64_t *>&head.owner), me
        if self.view.buf != NULL:
            me = os.getpid()
            if owner != me:
                if fabs(now - loadd(&head.heartbeat)) < OWNER_TIMEOUT or not swap_if(&head.owner, owner, me):
                    return False
                mark_all(&self.t)  # the last owner may have died between taking a mark and acting on it
        stored(&head.heartbeat, now)
        return True

    def count(self, Py_ssize_t region, bint ok, Py_ssize_t group=0, int cause=0):
        """Count one outcome of the region as seen by a group; safe from every process that shares the table.

        cause: of a failure, 0 to 5 by the caller's numbering, in which 1 is a refused connection
        """
        cdef uint32_t r = self.region_index(region), g = self.group_index(group)
        table_count(&self.t, r, g, 0 if ok else 1 + <uint32_t>in_range("cause", cause, 0, 5))

    def outcomes(self):
        """Give the outcomes counted by all processes: uint64[regions, 8, 7], successes and failures by cause, by hash of the group.

        Groups in different slots are different; so the slots that failed are a lower bound of the groups that did.
        """
        cdef uint64_t[::1] kinds = np.empty(<size_t>self.regions * COUNT_SLOTS * KINDS, np.uint64)
        cdef Py_ssize_t i
        for i in range(kinds.shape[0]):
            kinds[i] = load64(&self.t.counts[i])
        return np.asarray(kinds).reshape(-1, COUNT_SLOTS, KINDS)[:, :, :7]

    def counts(self):
        """Give the outcomes counted by all processes: uint64[regions, 8, 2], failures and successes by hash of the group."""
        kinds = self.outcomes()
        return np.stack([kinds[:, :, 1:].sum(axis=2), kinds[:, :, 0]], axis=2)

    def spread(self, Py_ssize_t group):
        """Give the slot, 0 to 7, under which what a group meets is counted."""
        return hash_of(self.group_index(group)) % COUNT_SLOTS

    def refused(self, Py_ssize_t region):
        """Give how many connections to the region were refused (cause 1) since its last success, in all processes."""
        return load64(&self.t.run[self.region_index(region)])

    def recoveries(self, Py_ssize_t region):
        """Give how often the region came back to tier 0."""
        return load32(&self.t.recoveries[self.region_index(region)])

    @property
    def news(self):
        """A number that goes up with every failure, change of a tier, and word of who waits, in all processes."""
        return load64(&self.t.head.news)

    def tell_waiting(self, counts, double now):
        """Say how many requests of this process wait for too long: integers [regions, 8], by hash of the group; replaces its last word.

        It holds for a second. Gives False, and tells nothing, while 64 other processes do. Only one thread at a time may call it.
        """
        cdef const uint16_t[:, ::1] told = np.ascontiguousarray(np.minimum(counts, 65535), np.uint16)
        cdef int seat = self.seat(seconds(now))
        cdef Py_ssize_t r, h
        if told.shape[0] > self.t.capacity or told.shape[1] != COUNT_SLOTS:
            raise ValueError(f"who waits is told for at most {self.t.capacity} regions x {COUNT_SLOTS}, got {counts.shape}")
        if seat < 0:
            return False
        for r in range(told.shape[0]):
            for h in range(COUNT_SLOTS):
                store16(&self.t.waits[(<size_t>seat * self.t.capacity + r) * COUNT_SLOTS + h], told[r, h])
        stored(&self.t.said[seat], now)
        add(&self.t.head.news, 1)
        return True

    cdef int seat(self, double now):
        """Give this process's seat, else one that is free or whose process has fallen silent; -1 = there is none."""
        cdef int64_t me = os.getpid(), other
        cdef int seat
        for seat in range(SEATS):
            if <int64_t>load64(<uint64_t *>&self.t.seats[seat]) == me:
                return seat
        for seat in range(SEATS):
            other = <int64_t>load64(<uint64_t *>&self.t.seats[seat])
            if (other == 0 or fabs(now - loadd(&self.t.said[seat])) > OWNER_TIMEOUT) and swap_if(&self.t.seats[seat], other, me):
                return seat
        return -1

    def waiting(self, double now):
        """Give how many requests wait for too long, as processes have said within a second: int64[regions, 8], by hash of the group."""
        cdef int64_t[::1] waits = np.zeros(<size_t>self.regions * COUNT_SLOTS, np.int64)
        cdef Py_ssize_t i
        cdef int seat
        for seat in range(SEATS):
            if load64(<uint64_t *>&self.t.seats[seat]) and fabs(now - loadd(&self.t.said[seat])) < FRESH:
                for i in range(waits.shape[0]):
                    waits[i] += load16(&self.t.waits[<size_t>seat * self.t.capacity * COUNT_SLOTS + i])
        return np.asarray(waits).reshape(-1, COUNT_SLOTS)

    # -- remember

    def snapshot(self, double now):
        """Give what was learned as bytes: homes and measured cells, with their ages at `now`; checksummed."""
        cdef uint32_t stamp = stamp_of(seconds(now)), regions = <uint32_t>self.regions
        rows = np.array([g for g in range(self.t.groups) if load8(&self.t.sampled[g])], "<u4")
        cells = self.aged_cells(rows, regions, stamp)
        head = np.array([(_SNAPSHOT_MAGIC, _SNAPSHOT_VERSION, self.t.pooled, self.t.groups, regions, len(rows))], _SNAPSHOT_HEAD)
        body = head.tobytes() + self.belongings().tobytes() + rows.tobytes() + cells.tobytes()
        return body + zlib.crc32(body).to_bytes(4, "little")

    cdef object belongings(self):
        """Copy what each group belongs to."""
        out = np.empty(self.t.groups, _BELONGING)
        cdef Belonging[::1] into = out
        cdef uint32_t g
        for g in range(self.t.groups):
            into[g].home, into[g].former = load16(&self.t.home[g]), load16(&self.t.former[g])
            into[g].forced = load8(&self.t.forced[g])
        return out

    cdef object aged_cells(self, const uint32_t[::1] rows, uint32_t regions, uint32_t stamp):
        """Copy the cells of `rows`, with their ages at `stamp` in the place of `t`; NO_INDEX = never measured."""
        out = np.empty((rows.shape[0], regions), _CELL)
        cdef char[::1] raw = out.reshape(-1).view(np.int8)
        cdef Cell *to = <Cell *>&raw[0] if raw.shape[0] else NULL
        cdef Py_ssize_t i
        cdef uint32_t r
        cdef int32_t age
        for i in range(rows.shape[0]):
            for r in range(regions):
                load_cell(&self.t.cells[<size_t>rows[i] * self.t.stride + r], to)
                age = <int32_t>(stamp - to.t)
                to.t = NO_INDEX if to.t == 0 else <uint32_t>age if age > 0 else 0
                to += 1
        return out

    def restore(self, bytes data, double now, double age, groups=None, regions=None):
        """Take over what a snapshot learned, `age` seconds ago; priors stay this table's own.

        groups: uint32 array, this table's group for each of the snapshot's (0xFFFFFFFF = skip); None: the same
        regions: likewise, uint16, 65535 = skip
        Raises ValueError, and changes nothing, for bytes that are damaged, of another version or shape.
        """
        cdef uint32_t stamp = stamp_of(seconds(now)), then = stamp_of(seconds(now) - duration(age)), i, r
        head, homes, rows, cells = _read_snapshot(data, self.t.pooled)
        cdef uint32_t[::1] to_group = _index_map("groups", groups, head["groups"], self.t.groups, np.uint32)
        cdef uint16_t[::1] to_region = _index_map("regions", regions, head["regions"], self.regions, np.uint16)
        cdef const Belonging[::1] old_homes = homes
        cdef uint32_t former
        cdef const uint32_t[::1] old_rows = rows
        cdef char[::1] raw = cells
        cdef Cell *old = <Cell *>&raw[0] if raw.shape[0] else NULL
        for i in range(<uint32_t>old_homes.shape[0]):
            if old_homes[i].home < to_region.shape[0] and to_group[i] != NO_INDEX:
                former = old_homes[i].former
                adopt_home(&self.t, to_group[i], to_region[old_homes[i].home],
                           to_region[former] if former < to_region.shape[0] else NO_HOME, old_homes[i].forced)
        for i in range(<uint32_t>old_rows.shape[0]):
            for r in range(<uint32_t>to_region.shape[0]):
                if to_group[old_rows[i]] != NO_INDEX and to_region[r] != NO_HOME and old.t != NO_INDEX:
                    adopt(&self.t, to_group[old_rows[i]], to_region[r], old, then - old.t, stamp)
                old += 1


_BELONGING = np.dtype([("home", "<u2"), ("former", "<u2"), ("forced", "<u2")])
_CELL = np.dtype([(name, "<f4") for name in ("x", "P", "R", "mu0", "P0", "sp", "sm")] + [("t", "<u4")])
_SNAPSHOT_MAGIC = b"LBCORE"
_SNAPSHOT_VERSION = 1
_SNAPSHOT_HEAD = np.dtype([("magic", "S6"), ("version", "<u2"), ("pooled", "<u4"), ("groups", "<u4"), ("regions", "<u4"), ("rows", "<u4")])


def _read_snapshot(data, pooled):
    """Give a snapshot's (head, homes, rows, cells as bytes), all of it checked. ValueError says what is wrong."""
    size, end = _SNAPSHOT_HEAD.itemsize, len(data) - 4
    if end < size or zlib.crc32(data[:end]) != int.from_bytes(data[end:], "little"):
        raise ValueError("the snapshot is damaged: its checksum does not match")
    head = np.frombuffer(data[:size], _SNAPSHOT_HEAD)[0]
    if head["magic"] != _SNAPSHOT_MAGIC or head["version"] != _SNAPSHOT_VERSION or head["pooled"] != pooled:
        raise ValueError(f"a snapshot of another kind: {head}, expected version {_SNAPSHOT_VERSION} and estimator {ESTIMATORS[pooled]}")
    groups, regions, rows = int(head["groups"]), int(head["regions"]), int(head["rows"])
    ends = np.cumsum([size, _BELONGING.itemsize * groups, 4 * rows, _CELL.itemsize * rows * regions]).tolist()
    if ends[3] != end:
        raise ValueError(f"the snapshot has {end} bytes, expected {ends[3]} for {groups} groups x {regions} regions")
    homes, row_ids = np.frombuffer(data[size:ends[1]], _BELONGING), np.frombuffer(data[ends[1]:ends[2]], "<u4")
    cells = np.frombuffer(data[ends[2]:ends[3]], _CELL)
    measured = cells[cells["t"] != NO_INDEX]
    numbers = np.array([measured[field] for field in ("x", "P", "R", "sp", "sm")])
    if (row_ids >= groups).any() or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError("the snapshot holds values that no table has: a group out of range, a number below 0 or not finite")
    return head, homes, row_ids, bytearray(data[ends[2]:ends[3]])


def _index_map(name, given, old, new, dtype):
    """Give where each of `old` indices goes among `new` ones; the identity when `given` is None."""
    if given is None:
        if old != new:
            raise ValueError(f"the snapshot has {old} {name}, this table {new}: pass `{name}` to say which is which")
        return np.arange(old, dtype=dtype)
    mapped = indices(name, given, dtype).copy()
    if len(mapped) != old or ((mapped >= new) & (mapped != np.iinfo(dtype).max)).any():
        raise ValueError(f"`{name}` must give one index below {new}, or {np.iinfo(dtype).max}, for each of the snapshot's {old}")
    return mapped


cdef object indices(str name, given, dtype):
    """Give an array of indices as `dtype`; a value that does not fit is an IndexError, never another index."""
    array = np.asarray(given)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iu":
        if array.size:
            raise TypeError(f"{name} must be integers, got {array.dtype}")
    elif array.size and not (0 <= array.min() and array.max() <= np.iinfo(dtype).max):
        raise IndexError(f"{name} must be within 0..{np.iinfo(dtype).max}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype)


cdef object in_range(str name, value, low, high):
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
    return value


cdef inline float milliseconds(double ms) except? -1:
    if not 0 <= ms <= MS_LIMIT:
        raise ValueError(f"a round trip must be finite milliseconds >= 0 (and <= 1e9), got {ms!r}")
    return <float>ms


cdef float deviation(double sd) except? -1:
    if not (<float>sd > 0 and sd <= MS_LIMIT):
        raise ValueError(f"a deviation must be finite milliseconds > 0 (and <= 1e9), got {sd!r}")
    return <float>sd


cdef inline double seconds(double now) except? -1:
    if not -1e15 < now < 1e15:
        raise ValueError(f"now must be finite seconds within ±1e15, got {now!r}")
    return now


cdef double duration(double age) except? -1:
    if not 0 <= age < 1e7:
        raise ValueError(f"age must be between 0 and 1e7 seconds, got {age!r}")
    return age


cdef object priors_array(str name, values, groups, regions):
    array = np.ascontiguousarray(values, np.float32)
    if array.shape != (groups, regions) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite float32 of shape {(groups, regions)}, got shape {array.shape}")
    return array


# ---------------------------------------------------------------- Picker

@cython.final
cdef class Picker:
    """Give the object of the region a client should use: a table, a prefix map and the objects, behind one call.

    table: LatencyTable; map: PrefixMap whose groups are the table's rows; objects: tuple, one per region slot
    no_region: exception class raised when nothing can be picked

    `pick` of a Picker stays valid when `replace` swaps what stands behind it.
    """

    def __cinit__(self, LatencyTable table not None, PrefixMap map not None, tuple objects not None, no_region=LookupError):
        self.no_region = no_region
        self.replace(table, map, objects)

    def replace(self, LatencyTable table not None, PrefixMap map not None, tuple objects not None):
        """Swap all three at once; the next pick uses them. ValueError when the map has groups the table lacks."""
        if map.groups > table.t.groups:
            raise ValueError(f"the map has {map.groups} groups, the table only {table.t.groups}")
        if len(objects) < table.regions:
            raise ValueError(f"{table.regions} regions need as many objects, got {len(objects)}")
        with cython.critical_section(self):
            self.table, self.map, self.objects = table, map, objects

    @cython.binding(False)
    def pick(self, client, /):
        """Give the object of the region this client should use now.

        client: address as text, 4 or 16 bytes, or an `ipaddress` object; None = this process's own vantage
        Raises ValueError for what is no address, and the given class when no region is enabled.
        """
        cdef LatencyTable table
        cdef PrefixMap map
        cdef tuple objects
        cdef int32_t region
        with cython.critical_section(self):
            table, map, objects = self.table, self.map, self.objects  # looking a client up may run Python, and that replace them
        region = table_pick(&table.t, <uint32_t>map.group_of(client))
        if region >= 0 and region < PyTuple_GET_SIZE(objects):
            return <object>PyTuple_GET_ITEM(objects, region)
        raise self.no_region("no region is enabled, synced and not draining; enable one")
