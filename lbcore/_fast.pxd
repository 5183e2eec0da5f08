"""C interface of the core, for the compiled edges: `cimport lbcore._fast`.

Indices are not checked here; whoever calls these has checked them.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lbcore._prefix cimport PrefixMap


cdef extern from "_native.h" nogil:
    ctypedef struct Cell "lb_cell":
        float x, P, R, mu0, P0, sp, sm
        uint32_t t
    uint16_t load16 "lb_load_u16"(const uint16_t *)
    uint64_t load64 "lb_load_u64"(const uint64_t *)
    uint32_t scan "lb_scan"(const uint32_t *keys, const uint64_t *mask, uint32_t stride)
    const uint32_t NO_INDEX "LB_NONE"


# First bytes of the block: what processes that share it agree on.
cdef struct Header:
    uint64_t magic
    uint32_t groups, capacity, estimator
    float tau
    uint64_t regions           # slots in use, high-water
    int64_t owner              # pid that ticks and judges
    double heartbeat, last_tick, credit
    uint64_t ticked, age_cursor, dirty_cursor
    uint64_t shared_out        # some region's share is below 1
    int64_t ready              # 0 zeroed, 1 being filled, 2 in use


# One process's view of a block. Arrays of masks have `words` 64-bit words, arrays of cells `stride` per group.
cdef struct Table:
    Header *head
    uint32_t groups, capacity, stride, words
    bint pooled                # ewma estimator
    uint64_t *configured
    uint64_t *enabled
    uint64_t *synced
    uint64_t *draining
    uint64_t *eligible
    uint64_t *gained
    uint64_t *lost
    uint64_t *seen             # has been eligible at a tick
    uint64_t *ramping
    uint8_t *tier
    uint32_t *generation
    uint32_t *share            # admits groups whose hash is below; 65536 = all
    float *penalty
    double *answered
    double *ramp_start
    uint64_t *counts           # [region][hash of the group][failures, successes]
    uint16_t *home
    uint16_t *former           # the home a group lost and means to return to
    uint16_t *bound_region
    uint32_t *bound            # no eligible other region has a key below
    uint32_t *since            # stamp at which the pending switch began; 0 = none
    uint8_t *forced
    uint8_t *sampled
    uint8_t *dirty
    uint32_t *keys
    Cell *cells
    uint64_t *scratch          # 4 * words, private to the ticking thread
    int64_t ticking


cdef enum:
    NO_HOME = 65535


cdef inline bint in_mask(const uint64_t *mask, uint32_t region) noexcept nogil:
    return (load64(&mask[region >> 6]) >> (region & 63)) & 1


cdef int32_t table_scan(const Table *t, uint32_t group, const uint64_t *within) noexcept nogil
cdef void table_observe(Table *t, uint32_t group, uint32_t region, float ms, uint32_t stamp) noexcept nogil
cdef uint64_t table_tick(Table *t, double now, uint64_t budget) noexcept nogil
cdef void table_set(Table *t, uint64_t *plane, uint32_t region, bint on) noexcept nogil
cdef void table_set_tier(Table *t, uint32_t region, uint8_t tier, double now) noexcept nogil
cdef uint32_t stamp_of(double now) noexcept nogil


cdef inline int32_t table_pick(const Table *t, uint32_t group) noexcept nogil:
    """Give the group's region: its home when that is eligible, else the best that is; -1 = none. Writes nothing."""
    cdef uint32_t home = load16(&t.home[group])
    if home != NO_HOME and in_mask(t.eligible, home):
        return home
    return table_scan(t, group, NULL)


cdef inline int32_t table_pick_in(const Table *t, uint32_t group, const uint64_t *within) noexcept nogil:
    """`table_pick` among the regions of the mask `within` only."""
    cdef uint32_t home = load16(&t.home[group])
    if home != NO_HOME and in_mask(t.eligible, home) and in_mask(within, home):
        return home
    return table_scan(t, group, within)


cdef class LatencyTable:
    cdef Table t
    cdef void *block
    cdef Py_buffer view        # the caller's buffer, when there is one
    cdef tuple numbers         # region indices as ready-made int objects
    cdef object __weakref__
    cdef char *memory(self, buffer, size_t size) except NULL
    cdef int open_block(self, uint32_t columns, double tau) except -1
    cdef uint32_t group_index(self, Py_ssize_t group) except? 0xFFFFFFFF
    cdef uint32_t region_index(self, Py_ssize_t region) except? 0xFFFFFFFF
    cdef void set_prior(self, uint32_t group, uint32_t region, float ms, float sd) noexcept nogil
    cdef object column(self, Py_ssize_t group, bint deviations)
    cdef bint own(self, double now)
    cdef object cell_array(self)
    cdef void adopt_home(self, uint32_t group, uint16_t region) noexcept
    cdef void adopt(self, uint32_t group, uint32_t region, const Cell *old, uint32_t touched, uint32_t stamp) noexcept


cdef class Picker:
    cdef readonly LatencyTable table
    cdef readonly PrefixMap map
    cdef readonly tuple objects
    cdef object no_region
