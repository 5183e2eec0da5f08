"""C interface of the table's rules, for the compiled edges. Indices are not checked; whoever calls has checked them."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "_native.h" nogil:
    ctypedef struct Cell "lb_cell":
        float x, P, R, mu0, P0, sp, sm
        uint32_t t
    const uint32_t NO_INDEX "LB_NONE"
    uint32_t scan "lb_scan"(const uint32_t *keys, const uint64_t *mask, uint32_t stride)
    uint16_t load16 "lb_load_u16"(const uint16_t *)
    uint64_t load64 "lb_load_u64"(const uint64_t *)
    uint8_t load8 "lb_load_u8"(const uint8_t *)
    uint32_t load32 "lb_load_u32"(const uint32_t *)
    float loadf "lb_load_f32"(const float *)
    double loadd "lb_load_f64"(const double *)
    void store8 "lb_store_u8"(uint8_t *, uint8_t)
    void store16 "lb_store_u16"(uint16_t *, uint16_t)
    void store32 "lb_store_u32"(uint32_t *, uint32_t)
    void store64 "lb_store_u64"(uint64_t *, uint64_t)
    void storef "lb_store_f32"(float *, float)
    void stored "lb_store_f64"(double *, double)
    uint64_t set_bits "lb_set_bits"(uint64_t *, uint64_t)
    uint64_t clear_bits "lb_clear_bits"(uint64_t *, uint64_t)
    uint64_t take "lb_take"(uint64_t *)
    uint64_t add "lb_add"(uint64_t *, uint64_t)
    bint swap_if "lb_swap_if"(int64_t *, int64_t expected, int64_t wanted)
    void fence "lb_fence"()
    void mark "lb_mark"(uint8_t *)
    void lower "lb_lower"(uint64_t *, uint64_t)
    uint32_t set_bits32 "lb_set_bits32"(uint32_t *, uint32_t)
    uint32_t clear_bits32 "lb_clear_bits32"(uint32_t *, uint32_t)
    void replace_but "lb_replace_but"(uint32_t *, uint32_t bits, uint32_t kept)
    void pause "lb_pause"()
    uint32_t lowest_bit "lb_lowest_bit"(uint64_t)
    void load_cell "lb_load_cell"(const Cell *, Cell *)
    void store_cell "lb_store_cell"(Cell *, const Cell *)
    uint32_t bits "lb_bits"(float)
    float magnitude_of "lb_float"(uint32_t)
    void detect_vectors "lb_detect_vectors"()
    void limit_vectors "lb_limit_vectors"(int)

cdef enum:
    NO_HOME = 65535
    FULL_SHARE = 65536
    EXCLUDED = 0x80000000      # sign of a key
    STAMPS = 64                # per second
    COUNT_SLOTS = 8
    KINDS = 8                  # of outcomes: success, then failures by cause; a cache line
    REFUSED = 1                # the cause that makes a run
    SEATS = 64                 # processes that can tell who waits


# First bytes of the block: what processes that share it agree on.
cdef struct Header:
    uint64_t magic
    uint32_t groups, capacity, estimator
    double tau
    uint64_t regions           # slots in use, high-water
    int64_t owner              # pid that ticks and judges
    double heartbeat, last_tick, credit
    uint64_t ticked, age_cursor, dirty_cursor
    uint64_t shared_out        # some region's share is below 1
    uint64_t excluding         # some path has been excluded: keys are replaced with care
    uint64_t news              # goes up with what other processes should look at soon
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
    uint64_t *counts           # [region][hash of the group][kind]
    uint64_t *run              # refused connections since the region's last success
    uint32_t *recoveries       # how often the region's tier became 0 again
    int64_t *seats             # pid of whoever tells here who waits; 0 = free
    double *said               # when it did
    uint16_t *waits            # [seat][region][hash of the group]
    uint16_t *home
    uint16_t *former           # the home a group lost and means to return to
    uint64_t *bound            # key << 32 | region: no eligible other region has a lower key
    uint32_t *since            # stamp at which the pending switch began; 0 = none
    uint8_t *forced
    uint8_t *sampled
    uint8_t *dirty             # 1 = marked, 2 = look once more
    uint32_t *keys
    Cell *cells
    uint64_t *scratch          # 4 * words, private to the ticking thread
    int64_t ticking


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t>63


cdef inline bint in_mask(const uint64_t *mask, uint32_t region) noexcept nogil:
    return (load64(&mask[region >> 6]) >> (region & 63)) & 1


cdef int32_t table_scan(const Table *t, uint32_t group, const uint64_t *within) noexcept nogil
cdef int32_t table_scan_mask(const Table *t, uint32_t group, const uint64_t *mask) noexcept nogil
cdef void table_observe(Table *t, uint32_t group, uint32_t region, float ms, uint32_t stamp) noexcept nogil
cdef void table_observe_many(
    Table *t, const uint32_t *groups, const uint16_t *regions, const float *ms, size_t n, uint32_t stamp
) noexcept nogil
cdef uint64_t table_tick(Table *t, double now, uint64_t budget) noexcept nogil
cdef void table_set(Table *t, uint64_t *plane, uint32_t region, bint on) noexcept nogil
cdef void table_set_tier(Table *t, uint32_t region, uint8_t tier, double now) noexcept nogil
cdef void table_open(Table *t, uint32_t region, bint enabled) noexcept nogil
cdef void table_initialise(Table *t, uint32_t regions, int64_t owner) noexcept nogil
cdef void table_reopen(Table *t, uint32_t region, bint enabled) noexcept nogil
cdef void table_close(Table *t, uint32_t region) noexcept nogil
cdef size_t lay_out(Table *t, char *base, uint32_t groups, uint32_t capacity) noexcept nogil
cdef void set_prior(Table *t, uint32_t group, uint32_t region, float ms, float sd) noexcept nogil
cdef void adopt(Table *t, uint32_t group, uint32_t region, const Cell *old, uint32_t touched, uint32_t stamp) noexcept nogil
cdef void set_penalty(Table *t, uint32_t region, float ms) noexcept nogil
cdef void fresh_cell(Cell *c) noexcept nogil
cdef void bound_by(Table *t, uint32_t group, uint32_t key, uint32_t region) noexcept nogil
cdef void mark_all(Table *t) noexcept nogil
cdef void table_exclude(Table *t, uint32_t group, uint32_t region, bint on) noexcept nogil
cdef void adopt_home(Table *t, uint32_t group, uint32_t home, uint32_t former, bint forced) noexcept nogil
cdef void table_count(Table *t, uint32_t region, uint32_t group, uint32_t kind) noexcept nogil
cdef bint admissible(const Table *t, uint32_t region) noexcept nogil
cdef uint32_t hash_of(uint32_t group) noexcept nogil
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
