# cython: language_level=3
"""The core: which region should this group use now?

Here live the latency table (groups x regions), its homes and masks, and the Picker that joins it to a prefix map.
No clock, no names, no I/O; `now` is always an argument. Nothing of lbcore but the prefix map is imported.

Who may write what: `observe` writes one cell and one dirty byte; setters write one region's bits; `tick` alone writes
homes. `pick` writes nothing, so a region that goes down is one cleared bit, and every group's next pick sees it.
The rules, with sources and the tests that pin them: docs/design.md.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport exp, floor, isfinite, sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os
import zlib

import numpy as np

from lbcore._prefix cimport PrefixMap


cdef extern from *:
    """
    /* prior_ewma. Source: docs/design.md "Estimate"; Kalman 1960 (gain), Huber 1964 (clip), Page 1954 (CUSUM). */
    #define LB_CLIP 3.0f           /* innovation clip, standard deviations */
    #define LB_STEP_CLIP 6.0f      /* the same right after a path change */
    #define LB_CUSUM_SLACK 0.75f
    #define LB_CUSUM_LIMIT 5.0f
    #define LB_GAIN_MIN 0.02f
    #define LB_NOISE_RATE 0.05f
    #define LB_NOISE_CLIP 9.0f
    #define LB_NOISE_MIN 1.0f
    #define LB_NOISE_SHARE 0.1f    /* first noise deviation, share of the prior */
    #define LB_FLAT_MS 80.0f       /* a cell that nobody seeded */
    #define LB_FLAT_SD 28.0f
    #define LB_SWITCH_MS 3.0f
    #define LB_SWITCH_SHARE 0.05f
    #define LB_SWITCH_AT_ONCE 3.0f
    """
    const float CLIP "LB_CLIP"
    const float STEP_CLIP "LB_STEP_CLIP"
    const float CUSUM_SLACK "LB_CUSUM_SLACK"
    const float CUSUM_LIMIT "LB_CUSUM_LIMIT"
    const float GAIN_MIN "LB_GAIN_MIN"
    const float NOISE_RATE "LB_NOISE_RATE"
    const float NOISE_CLIP "LB_NOISE_CLIP"
    const float NOISE_MIN "LB_NOISE_MIN"
    const float NOISE_SHARE "LB_NOISE_SHARE"
    const float FLAT_MS "LB_FLAT_MS"
    const float FLAT_SD "LB_FLAT_SD"
    const float SWITCH_MS "LB_SWITCH_MS"
    const float SWITCH_SHARE "LB_SWITCH_SHARE"
    const float SWITCH_AT_ONCE "LB_SWITCH_AT_ONCE"

cdef extern from "_native.h" nogil:
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
    uint32_t lowest_bit "lb_lowest_bit"(uint64_t)
    void load_cell "lb_load_cell"(const Cell *, Cell *)
    void store_cell "lb_store_cell"(Cell *, const Cell *)
    uint32_t bits "lb_bits"(float)
    float magnitude_of "lb_float"(uint32_t)
    void detect_vectors "lb_detect_vectors"()
    void limit_vectors "lb_limit_vectors"(int)

cdef enum:
    STAMPS = 64                # per second
    DWELL = 10 * STAMPS        # a better region must stay better so long
    FULL_SHARE = 65536
    EXCLUDED = 0x80000000
    MAX_REGIONS = 65534
    MAX_WORDS = 1024
    OWNER_TIMEOUT = 3          # seconds without a heartbeat
    COUNT_SLOTS = 8

cdef double NOISE_TAU = 900.0      # variance grows back to the prior's, seconds
cdef double PRIOR_TAU = 21600.0    # the mean drifts back to the prior, seconds
cdef double RAMP = 30.0            # a recovering region's share grows from 10 to 100 %, seconds
cdef double SWEEP = 60.0           # every sampled group is aged once in so many seconds
cdef uint64_t MAGIC = 0x0001_4552_4F43_424C    # "LBCORE" and the layout's version

ESTIMATORS = ("prior_ewma", "ewma")
detect_vectors()


# ---------------------------------------------------------------- the block

cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t>63


cdef size_t lay_out(Table *t, char *base, uint32_t groups, uint32_t capacity) noexcept nogil:
    """Point every array of `t` into the block at `base` (NULL: only measure) and give the block's size in bytes."""
    cdef uint32_t stride = (capacity + 7) & ~<uint32_t>7, words = (capacity + 63) >> 6
    cdef size_t at = aligned(sizeof(Header)), mask = aligned(words * 8), row = groups, slot = capacity
    t.head = <Header *>base
    t.groups, t.capacity, t.stride, t.words = groups, capacity, stride, words
    t.configured = <uint64_t *>(base + at); at += mask
    t.enabled = <uint64_t *>(base + at); at += mask
    t.synced = <uint64_t *>(base + at); at += mask
    t.draining = <uint64_t *>(base + at); at += mask
    t.eligible = <uint64_t *>(base + at); at += mask
    t.gained = <uint64_t *>(base + at); at += mask
    t.lost = <uint64_t *>(base + at); at += mask
    t.seen = <uint64_t *>(base + at); at += mask
    t.ramping = <uint64_t *>(base + at); at += mask
    t.tier = <uint8_t *>(base + at); at += aligned(slot)
    t.generation = <uint32_t *>(base + at); at += aligned(slot * 4)
    t.share = <uint32_t *>(base + at); at += aligned(slot * 4)
    t.penalty = <float *>(base + at); at += aligned(slot * 4)
    t.answered = <double *>(base + at); at += aligned(slot * 8)
    t.ramp_start = <double *>(base + at); at += aligned(slot * 8)
    t.counts = <uint64_t *>(base + at); at += aligned(slot * COUNT_SLOTS * 16)
    t.home = <uint16_t *>(base + at); at += aligned(row * 2)
    t.former = <uint16_t *>(base + at); at += aligned(row * 2)
    t.bound_region = <uint16_t *>(base + at); at += aligned(row * 2)
    t.bound = <uint32_t *>(base + at); at += aligned(row * 4)
    t.since = <uint32_t *>(base + at); at += aligned(row * 4)
    t.forced = <uint8_t *>(base + at); at += aligned(row)
    t.sampled = <uint8_t *>(base + at); at += aligned(row)
    t.dirty = <uint8_t *>(base + at); at += aligned(row)
    t.keys = <uint32_t *>(base + at); at += aligned(row * stride * 4)
    t.cells = <Cell *>(base + at); at += aligned(row * stride * sizeof(Cell))
    return at


cdef void initialise(Table *t, uint32_t regions, int64_t owner) noexcept nogil:
    """Fill a zeroed block: every group without a home, every region enabled, synced and up."""
    cdef uint64_t i
    memset(t.home, 0xFF, <size_t>t.groups * 2)
    memset(t.former, 0xFF, <size_t>t.groups * 2)
    memset(t.bound_region, 0xFF, <size_t>t.groups * 2)
    memset(t.dirty, 1, t.groups)
    for i in range(<uint64_t>t.groups * t.stride):
        t.keys[i] = bits(FLAT_MS)
    t.head.regions = regions
    t.head.owner = owner
    for i in range(regions):
        open_slot(t, <uint32_t>i, True)


cdef void open_slot(Table *t, uint32_t region, bint enabled) noexcept nogil:
    cdef uint64_t bit = <uint64_t>1 << (region & 63)
    store8(&t.tier[region], 0)
    store32(&t.share[region], FULL_SHARE)
    storef(&t.penalty[region], 0)
    stored(&t.answered[region], 0)
    clear_bits(&t.seen[region >> 6], bit)
    clear_bits(&t.draining[region >> 6], bit)
    set_bits(&t.synced[region >> 6], bit)
    if enabled:
        set_bits(&t.enabled[region >> 6], bit)
    else:
        clear_bits(&t.enabled[region >> 6], bit)
    table_set(t, t.configured, region, True)


# ---------------------------------------------------------------- masks

cdef inline bint admissible(const Table *t, uint32_t region) noexcept nogil:
    return (in_mask(t.configured, region) and in_mask(t.enabled, region) and in_mask(t.synced, region)
            and not in_mask(t.draining, region))


cdef void publish(Table *t, uint32_t region) noexcept nogil:
    """Bring the region's `eligible` bit in line with its planes, and note the change for the next tick.

    Two setters may meet here; each looks again after writing, so the last one leaves the truth.
    """
    cdef uint64_t bit = <uint64_t>1 << (region & 63)
    cdef uint32_t word = region >> 6
    cdef bint wanted = admissible(t, region) and load8(&t.tier[region]) == 0
    while True:
        if wanted and not set_bits(&t.eligible[word], bit) & bit:
            set_bits(&t.gained[word], bit)
        elif not wanted and clear_bits(&t.eligible[word], bit) & bit:
            set_bits(&t.lost[word], bit)
        fence()
        if wanted == (admissible(t, region) and load8(&t.tier[region]) == 0):
            return
        wanted = not wanted


cdef void table_set(Table *t, uint64_t *plane, uint32_t region, bint on) noexcept nogil:
    if on:
        set_bits(&plane[region >> 6], <uint64_t>1 << (region & 63))
    else:
        clear_bits(&plane[region >> 6], <uint64_t>1 << (region & 63))
    publish(t, region)


cdef void table_set_tier(Table *t, uint32_t region, uint8_t tier, double now) noexcept nogil:
    if tier == 3 and load8(&t.tier[region]) < 3:
        stored(&t.answered[region], now)
    store8(&t.tier[region], tier)
    publish(t, region)


cdef inline uint32_t hash_of(uint32_t group) noexcept nogil:
    return (group * <uint32_t>0x9E3779B1) >> 16


cdef inline uint32_t admitted_at(const Table *t, uint32_t region, double now) noexcept nogil:
    """How many of the 65,536 hash values a recovering region lets home at `now`."""
    cdef double share = 0.1 + 0.9 * (now - t.ramp_start[region]) / RAMP
    return <uint32_t>((share if share < 1 else 1.0) * FULL_SHARE) if share > 0 else 0


# ---------------------------------------------------------------- pick

cdef int32_t table_scan(const Table *t, uint32_t group, const uint64_t *within) noexcept nogil:
    """The way of a pick whose home cannot serve: the best eligible region, else fail open."""
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint64_t mask[MAX_WORDS]
    cdef uint32_t w, best
    if within == NULL:
        best = scan(keys, t.eligible, t.stride)
    else:
        for w in range(t.words):
            mask[w] = load64(&t.eligible[w]) & within[w]
        best = scan(keys, mask, t.stride)
    if best != NO_INDEX:
        return <int32_t>best
    if not last_resort(t, within, mask):
        return -1
    return <int32_t>scan(keys, mask, t.stride)


cdef bint last_resort(const Table *t, const uint64_t *within, uint64_t *mask) noexcept nogil:
    """Fill `mask` with the regions that serve when none is eligible; False when even that is empty.

    Of the regions that the operator wants, those of the lowest tier; of those probed down, who answered last.
    """
    cdef uint32_t region, regions = <uint32_t>load64(&t.head.regions)
    cdef int tier, lowest = 4
    cdef double latest = 0, answered
    memset(mask, 0, t.words * 8)
    for region in range(regions):
        if not admissible(t, region) or (within != NULL and not in_mask(within, region)):
            continue
        tier, answered = load8(&t.tier[region]), loadd(&t.answered[region])
        if tier > lowest or (tier == lowest == 3 and answered < latest):
            continue
        if tier < lowest or (tier == 3 and answered > latest):
            memset(mask, 0, t.words * 8)
        lowest, latest = tier, answered
        mask[region >> 6] |= <uint64_t>1 << (region & 63)
    return lowest < 4


# ---------------------------------------------------------------- estimate

cdef uint32_t stamp_of(double now) noexcept nogil:
    """Time in 1/64 s, modulo 2**32 (two years); never 0, which means "never measured"."""
    cdef uint32_t stamp = <uint32_t><int64_t>floor(now * STAMPS)
    return stamp if stamp else 1


cdef inline void fresh_cell(Cell *c) noexcept nogil:
    """Complete a cell that nobody touched yet (its bytes are zero) with the flat prior."""
    if c.P0 == 0:
        prior_cell(c, FLAT_MS, FLAT_SD)


cdef inline void prior_cell(Cell *c, float ms, float sd) noexcept nogil:
    cdef float noise = NOISE_SHARE * ms
    c.mu0, c.P0, c.x, c.P, c.sp, c.sm = ms, sd * sd, ms, sd * sd, 0, 0
    c.R = noise * noise
    if c.R < NOISE_MIN:
        c.R = NOISE_MIN


cdef inline void age_cell(Cell *c, uint32_t stamp) noexcept nogil:
    """Let the variance grow back and the mean drift home; exact whatever the number of steps."""
    cdef int32_t d = <int32_t>(stamp - c.t)
    cdef double dt
    if d <= 0:
        return
    dt = d / <double>STAMPS
    c.P = c.P + (c.P0 - c.P) * <float>(1.0 - exp(-dt / NOISE_TAU))
    c.x = c.x + (c.mu0 - c.x) * <float>(1.0 - exp(-dt / PRIOR_TAU))
    c.t = stamp


cdef inline float clamp(float value, float limit) noexcept nogil:
    return limit if value > limit else -limit if value < -limit else value


cdef inline void learn(Cell *c, float y, uint32_t stamp) noexcept nogil:
    """One sample into a `prior_ewma` cell. Source: ALGORITHM in docs/design.md "Estimate"."""
    cdef float v, e, u, k, limit, w
    if c.t:
        age_cell(c, stamp)
    else:
        c.t = stamp
    v = c.P + c.R
    limit = sqrtf(v)
    e = y - c.x
    u = clamp(e / limit, CLIP)
    c.sp = c.sp + u - CUSUM_SLACK
    c.sm = c.sm - u - CUSUM_SLACK
    if c.sp < 0:
        c.sp = 0
    if c.sm < 0:
        c.sm = 0
    if c.sp > CUSUM_LIMIT or c.sm > CUSUM_LIMIT:
        c.P = c.P0
        v = c.P + c.R
        e = clamp(e, STEP_CLIP * sqrtf(v))
        c.sp = c.sm = 0
    else:
        e = u * limit
    k = c.P / v
    if k < GAIN_MIN:
        k = GAIN_MIN
    c.x = c.x + k * e
    c.P = c.P * (1 - k)
    w = e * e
    if w > NOISE_CLIP * c.R:
        w = NOISE_CLIP * c.R
    c.R = c.R + NOISE_RATE * (w - c.R)
    if c.R < NOISE_MIN:
        c.R = NOISE_MIN


cdef inline void pool(Cell *c, float y, uint32_t stamp, double tau) noexcept nogil:
    """One sample into an `ewma` cell: the samples of one instant count as their mean.

    Source: Eckner 2017, EMAs of uneven intervals. P base, R mean of the instant, sp weight of the base, sm count.
    """
    cdef int32_t d = <int32_t>(stamp - c.t)
    if c.t == 0 or d > 0:
        c.P, c.sp = (c.x, <float>exp(-d / (STAMPS * tau))) if c.t else (c.mu0, <float>0)
        c.R, c.sm, c.t = y, 1, stamp
    else:
        c.sm += 1
        c.R = c.R + (y - c.R) / c.sm
    c.x = c.P * c.sp + c.R * (1 - c.sp)


cdef inline void publish_score(Table *t, size_t cell, uint32_t region, float x) noexcept nogil:
    store32(&t.keys[cell], bits(x + loadf(&t.penalty[region])) | (load32(&t.keys[cell]) & EXCLUDED))


cdef inline float threshold(float home) noexcept nogil:
    """How much better another region must be, milliseconds, before variance is looked at."""
    return SWITCH_SHARE * home if SWITCH_SHARE * home > SWITCH_MS else SWITCH_MS


cdef void table_observe(Table *t, uint32_t group, uint32_t region, float ms, uint32_t stamp) noexcept nogil:
    cdef size_t row = <size_t>group * t.stride, at = row + region
    cdef Cell c
    load_cell(&t.cells[at], &c)
    fresh_cell(&c)
    if t.pooled:
        pool(&c, ms, stamp, t.head.tau)
    else:
        learn(&c, ms, stamp)
    store_cell(&t.cells[at], &c)
    publish_score(t, at, region, c.x)
    if not load8(&t.sampled[group]):
        store8(&t.sampled[group], 1)
    mark_if_beaten(t, group, region, row)


cdef inline void mark_if_beaten(Table *t, uint32_t group, uint32_t region, size_t row) noexcept nogil:
    """Mark the group for `tick` when some region may beat its home by the threshold.

    `bound` is a lower bound of the other regions' keys, so a mark may be idle but none is ever missing.
    """
    cdef uint32_t home = load16(&t.home[group]), key, bound
    cdef float score
    if home == NO_HOME:
        return
    key, bound = load32(&t.keys[row + region]), load32(&t.bound[group])
    if region != home and key < bound and in_mask(t.eligible, region):
        bound = key
        bound_by(t, group, key, region)
    key = load32(&t.keys[row + home])
    score = magnitude_of(key & ~<uint32_t>EXCLUDED)
    if key & EXCLUDED or score - magnitude_of(bound & ~<uint32_t>EXCLUDED) > threshold(score):
        store8(&t.dirty[group], 1)


# ---------------------------------------------------------------- tick

cdef uint64_t table_tick(Table *t, double now, uint64_t budget) noexcept nogil:
    cdef uint32_t stamp = stamp_of(now)
    take_changes(t, now)
    sweep_ages(t, now, stamp)
    return settle(t, now, stamp, budget)


cdef void take_changes(Table *t, double now) noexcept nogil:
    """Consume `gained` and `lost`: stop and start ramps, and mark the groups that they concern."""
    cdef uint64_t *lost = t.scratch
    cdef uint64_t *gained = t.scratch + t.words
    cdef uint64_t any_lost = 0, any_gained = 0
    cdef uint32_t w
    for w in range(t.words):
        lost[w] = take(&t.lost[w])
        gained[w] = take(&t.gained[w]) & load64(&t.eligible[w])
        any_lost |= lost[w]
        any_gained |= gained[w]
        clear_bits(&t.ramping[w], lost[w] | gained[w])
        start_ramps(t, w, gained[w] & load64(&t.seen[w]), now)
        set_bits(&t.seen[w], gained[w])
    if not any_lost | any_gained:
        return
    if load64(&t.head.shared_out):
        mark_all(t)
        return
    if any_lost:
        mark_bereft(t, lost)
    if any_gained:
        mark_drawn(t, gained)


cdef void mark_all(Table *t) noexcept nogil:
    cdef uint32_t group
    for group in range(t.groups):
        store8(&t.dirty[group], 1)


cdef void start_ramps(Table *t, uint32_t word, uint64_t recovering, double now) noexcept nogil:
    cdef uint32_t bit
    set_bits(&t.ramping[word], recovering)
    for bit in range(64):
        if (recovering >> bit) & 1:
            t.ramp_start[word * 64 + bit] = now


cdef void mark_bereft(Table *t, const uint64_t *lost) noexcept nogil:
    """Mark groups whose home is gone, or whose bound is: a best that went down unmasks the next."""
    cdef uint32_t group, home, bound
    for group in range(t.groups):
        home, bound = t.home[group], load16(&t.bound_region[group])
        if (home != NO_HOME and in_mask(lost, home)) or (bound != NO_HOME and in_mask(lost, bound)):
            store8(&t.dirty[group], 1)


cdef void mark_drawn(Table *t, const uint64_t *gained) noexcept nogil:
    """Mark groups that a newly eligible region may draw home, and keep every bound a bound."""
    cdef uint32_t group, home, key, w, region
    cdef uint64_t m
    for group in range(t.groups):
        if load8(&t.dirty[group]):
            continue
        home = t.home[group]
        if home == NO_HOME or not in_mask(t.eligible, home):
            store8(&t.dirty[group], 1)
            continue
        key = load32(&t.keys[<size_t>group * t.stride + home])
        for w in range(t.words):
            m = gained[w]
            while m:
                region = w * 64 + lowest_bit(m)
                m &= m - 1
                if region != home and draws(t, group, region, key) or region == t.former[group]:
                    store8(&t.dirty[group], 1)


cdef inline bint draws(Table *t, uint32_t group, uint32_t region, uint32_t home_key) noexcept nogil:
    cdef uint32_t key = load32(&t.keys[<size_t>group * t.stride + region])
    cdef float score = magnitude_of(home_key & ~<uint32_t>EXCLUDED)
    if key < load32(&t.bound[group]):
        bound_by(t, group, key, region)
    return home_key & EXCLUDED or (not key & EXCLUDED and score - magnitude_of(key) > threshold(score))


cdef void sweep_ages(Table *t, double now, uint32_t stamp) noexcept nogil:
    """Age 1/60 of the groups for each second that passed, those that hold samples."""
    cdef double passed = now - t.head.last_tick if t.head.ticked else 0.0
    cdef uint64_t n, i
    cdef uint32_t group
    t.head.ticked = 1
    t.head.last_tick = now
    passed = 0 if passed < 0 else SWEEP if passed > SWEEP else passed
    t.head.credit += t.groups * passed / SWEEP
    n = <uint64_t>t.head.credit
    if n > t.groups:
        n = t.groups
    t.head.credit -= n
    for i in range(n):
        group = <uint32_t>t.head.age_cursor
        t.head.age_cursor = group + 1 if group + 1 < t.groups else 0
        if load8(&t.sampled[group]) and not t.pooled:
            age_group(t, group, stamp)


cdef void age_group(Table *t, uint32_t group, uint32_t stamp) noexcept nogil:
    cdef size_t row = <size_t>group * t.stride
    cdef uint32_t region
    cdef Cell c
    for region in range(<uint32_t>t.head.regions):
        if load32(&t.cells[row + region].t):
            load_cell(&t.cells[row + region], &c)
            age_cell(&c, stamp)
            store_cell(&t.cells[row + region], &c)
            publish_score(t, row + region, region, c.x)
    store8(&t.dirty[group], 1)


cdef uint64_t settle(Table *t, double now, uint32_t stamp, uint64_t budget) noexcept nogil:
    """Evaluate up to `budget` dirty groups from where the last call ended; give how many are left."""
    cdef uint32_t start = <uint32_t>t.head.dirty_cursor
    cdef uint64_t done = 0
    cdef uint32_t group = next_dirty(t, start, t.groups)
    while group < t.groups and done < budget:
        evaluate(t, group, now, stamp)
        done += 1
        group = next_dirty(t, group + 1, t.groups)
    if group < t.groups:
        t.head.dirty_cursor = group
        return count_dirty(t, group, t.groups) + count_dirty(t, 0, start)
    group = next_dirty(t, 0, start)
    while group < start and done < budget:
        evaluate(t, group, now, stamp)
        done += 1
        group = next_dirty(t, group + 1, start)
    t.head.dirty_cursor = group if group < start else 0
    return count_dirty(t, group, start) if group < start else 0


cdef uint32_t next_dirty(const Table *t, uint32_t start, uint32_t end) noexcept nogil:
    """First dirty group in [start, end), else `end`; eight clean groups a step."""
    cdef uint64_t word
    cdef uint32_t base = start & ~<uint32_t>7
    if start >= end:
        return end
    word = load64(<uint64_t *>(t.dirty + base)) >> (8 * (start & 7)) << (8 * (start & 7))
    while not word:
        base += 8
        if base >= end:
            return end
        word = load64(<uint64_t *>(t.dirty + base))
    base += lowest_bit(word) >> 3
    return base if base < end else end


cdef uint64_t count_dirty(const Table *t, uint32_t start, uint32_t end) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t group
    for group in range(start, end):
        n += load8(&t.dirty[group])
    return n


cdef void candidates(const Table *t, uint32_t group, uint64_t *mask) noexcept nogil:
    """The eligible regions whose share admits the group; all eligible ones when none does."""
    cdef uint32_t w, region
    cdef uint64_t any_left = 0
    for w in range(t.words):
        mask[w] = load64(&t.eligible[w])
    if not load64(&t.head.shared_out):
        return
    for region in range(<uint32_t>t.head.regions):
        if hash_of(group) >= load32(&t.share[region]):
            mask[region >> 6] &= ~(<uint64_t>1 << (region & 63))
    for w in range(t.words):
        any_left |= mask[w]
    if not any_left:
        for w in range(t.words):
            mask[w] = load64(&t.eligible[w])


cdef inline bint allowed(const Table *t, uint32_t group, uint32_t region, double now) noexcept nogil:
    return not in_mask(t.ramping, region) or hash_of(group) < admitted_at(t, region, now)


cdef uint32_t best_allowed(const Table *t, uint32_t group, const uint64_t *cand, uint32_t best, double now) noexcept nogil:
    """Where a group goes whose home is gone: the best candidate that is not still ramping for it, else the best."""
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint64_t *mask = t.scratch + 3 * t.words
    cdef uint32_t region, open_best
    if allowed(t, group, best, now):
        return best
    memcpy(mask, cand, t.words * 8)
    for region in range(<uint32_t>t.head.regions):
        if not allowed(t, group, region, now):
            mask[region >> 6] &= ~(<uint64_t>1 << (region & 63))
    open_best = scan(keys, mask, t.stride)
    if open_best == NO_INDEX or (load32(&keys[open_best]) & EXCLUDED and not load32(&keys[best]) & EXCLUDED):
        return best
    return open_best


cdef void evaluate(Table *t, uint32_t group, double now, uint32_t stamp) noexcept nogil:
    """Decide the group's home anew. Source: docs/design.md "Switch".

    The dirty byte is cleared first: an `observe` that comes in between marks it again.
    """
    cdef uint64_t *cand = t.scratch + 2 * t.words
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint32_t home = t.home[group], other, best
    store8(&t.dirty[group], 0)
    fence()
    candidates(t, group, cand)
    if t.former[group] != NO_HOME and comes_home(t, group, t.former[group], cand, now):
        return
    if home == NO_HOME or not in_mask(cand, home):
        best = scan(keys, cand, t.stride)
        if best != NO_INDEX:
            move(t, group, best_allowed(t, group, cand, best, now), best, home != NO_HOME)
        store32(&t.since[group], 0)
        return
    cand[home >> 6] &= ~(<uint64_t>1 << (home & 63))
    other = scan(keys, cand, t.stride)
    if other == NO_INDEX:
        bound_by(t, group, NO_INDEX, NO_HOME)
        store32(&t.since[group], 0)
        return
    bound_by(t, group, load32(&keys[other]), other)
    consider(t, group, home, other, now, stamp)


cdef inline void bound_by(Table *t, uint32_t group, uint32_t key, uint32_t region) noexcept nogil:
    store32(&t.bound[group], key)
    store16(&t.bound_region[group], <uint16_t>region)


cdef bint comes_home(Table *t, uint32_t group, uint32_t former, const uint64_t *cand, double now) noexcept nogil:
    """A group whose home was lost returns as soon as that may have it back, if by belief it would have stayed there."""
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint32_t key = load32(&keys[former]), best
    cdef float score = magnitude_of(key & ~<uint32_t>EXCLUDED)
    if not in_mask(cand, former) or key & EXCLUDED:
        return False
    if not allowed(t, group, former, now):
        store8(&t.dirty[group], 1)
        return False
    t.former[group] = NO_HOME
    best = scan(keys, cand, t.stride)
    if score - magnitude_of(load32(&keys[best])) > threshold(score):
        return False
    move(t, group, former, best, False)
    return True


cdef void move(Table *t, uint32_t group, uint32_t region, uint32_t best, bint forced) noexcept nogil:
    """Give the group its home. No other region's key is below the best one's; a group that could not have it looks again."""
    if not forced or t.former[group] == region:
        t.former[group] = NO_HOME
    elif t.former[group] == NO_HOME:
        t.former[group] = t.home[group]
    store16(&t.home[group], <uint16_t>region)
    store8(&t.forced[group], forced)
    store32(&t.since[group], 0)
    bound_by(t, group, load32(&t.keys[<size_t>group * t.stride + best]), NO_HOME if region == best else best)
    if region != best:
        store8(&t.dirty[group], 1)


cdef void consider(Table *t, uint32_t group, uint32_t home, uint32_t other, double now, uint32_t stamp) noexcept nogil:
    """Home is a candidate and `other` the best of the rest: stay, wait out the dwell, or switch."""
    cdef size_t row = <size_t>group * t.stride
    cdef uint32_t home_key = load32(&t.keys[row + home]), other_key = load32(&t.keys[row + other]), since
    cdef uint64_t *cand = t.scratch + 2 * t.words
    cdef float score = magnitude_of(home_key & ~<uint32_t>EXCLUDED), gap, limit, sigma
    if home_key & EXCLUDED and not other_key & EXCLUDED:
        move(t, group, best_allowed(t, group, cand, other, now), other, True)
        return
    gap = score - magnitude_of(other_key & ~<uint32_t>EXCLUDED) if other_key < home_key else 0
    limit = threshold(score)
    if not t.forced[group] and not t.pooled:
        sigma = sqrtf(variance(t, row + home) + variance(t, row + other))
        limit = sigma if sigma > limit else limit
    if not gap > limit:
        store32(&t.since[group], 0)
        return
    since = load32(&t.since[group])
    if not since:
        since = stamp
        store32(&t.since[group], since)
    if (gap > SWITCH_AT_ONCE * limit or <int32_t>(stamp - since) >= DWELL) and allowed(t, group, other, now):
        move(t, group, other, other, False)
    else:
        store8(&t.dirty[group], 1)


cdef inline float variance(const Table *t, size_t cell) noexcept nogil:
    cdef Cell c
    load_cell(&t.cells[cell], &c)
    fresh_cell(&c)
    return c.P


# ---------------------------------------------------------------- LatencyTable

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
            head.estimator, head.tau = self.t.pooled, <float>tau
            initialise(&self.t, columns, os.getpid())
            swap_if(&head.ready, 1, 2)
        found = (head.ready, head.magic, head.groups, head.capacity, head.estimator, head.tau)
        wanted = (2, MAGIC, self.t.groups, self.t.capacity, self.t.pooled, <float>tau)
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
        return self.t.head.owner

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
        self.set_prior(g, r, milliseconds(ms), deviation(sd))

    cdef void set_prior(self, uint32_t group, uint32_t region, float ms, float sd) noexcept nogil:
        cdef size_t at = <size_t>group * self.t.stride + region
        cdef Cell c
        load_cell(&self.t.cells[at], &c)
        if c.t == 0:
            prior_cell(&c, ms, sd)
        else:
            c.mu0, c.P0 = ms, sd * sd
            if not self.t.pooled and c.P > c.P0:
                c.P = c.P0
        store_cell(&self.t.cells[at], &c)
        publish_score(&self.t, at, region, c.x)
        store8(&self.t.dirty[group], 1)

    def seed_many(self, ms, sd):
        """Set the priors of every group and region: two float32 arrays [groups, regions], milliseconds."""
        cdef const float[:, ::1] means = priors_array("ms", ms, self.t.groups, self.regions)
        cdef const float[:, ::1] sds = priors_array("sd", sd, self.t.groups, self.regions)
        cdef uint32_t g, r
        if not (np.greater_equal(means, 0).all() and np.greater(sds, 0).all()):
            raise ValueError("priors must be ms >= 0 and sd > 0")
        with nogil:
            for g in range(self.t.groups):
                for r in range(<uint32_t>means.shape[1]):
                    self.set_prior(g, r, means[g, r], sds[g, r])

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
        cdef const uint32_t[::1] g = np.ascontiguousarray(groups, np.uint32)
        cdef const uint16_t[::1] r = np.ascontiguousarray(regions, np.uint16)
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
        with nogil:
            for i in range(n):
                table_observe(&self.t, g[i], r[i], y[i], stamp)

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
        cdef uint32_t r = self.region_index(region), g
        cdef size_t at
        cdef Cell c
        storef(&self.t.penalty[r], milliseconds(ms))
        with nogil:
            for g in range(self.t.groups):
                at = <size_t>g * self.t.stride + r
                load_cell(&self.t.cells[at], &c)
                fresh_cell(&c)
                publish_score(&self.t, at, r, c.x)
            mark_all(&self.t)

    def set_share(self, Py_ssize_t region, double share):
        """Let only this share of the groups (0 to 1, a stable hash decides) use the region."""
        cdef uint32_t r = self.region_index(region), i
        cdef uint64_t shared_out = 0
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share!r}")
        store32(&self.t.share[r], <uint32_t>(share * FULL_SHARE))
        for i in range(<uint32_t>self.regions):
            shared_out |= in_mask(self.t.configured, i) and self.t.share[i] < FULL_SHARE
        store64(&self.t.head.shared_out, shared_out)
        mark_all(&self.t)

    def exclude(self, Py_ssize_t group, Py_ssize_t region, bint on):
        """Put the region last for one group: the path is broken, not the region. Takes effect at the next tick."""
        cdef uint32_t g = self.group_index(group), r = self.region_index(region)
        cdef uint32_t *key = &self.t.keys[<size_t>g * self.t.stride + r]
        if bool(load32(key) & EXCLUDED) != on:
            store32(key, load32(key) | EXCLUDED if on else load32(key) & ~<uint32_t>EXCLUDED)
            store8(&self.t.dirty[g], 1)

    def add_region(self, bint enabled=True):
        """Open the lowest free slot with flat priors, synced and up, and give its index. OverflowError when full."""
        cdef uint32_t r, g
        for r in range(self.t.capacity):
            if not in_mask(self.t.configured, r):
                break
        else:
            raise OverflowError(f"all {self.t.capacity} region slots are in use; build a table with a greater region_capacity")
        for g in range(self.t.groups):
            memset(&self.t.cells[<size_t>g * self.t.stride + r], 0, sizeof(Cell))
            store32(&self.t.keys[<size_t>g * self.t.stride + r], bits(FLAT_MS))
        if r >= load64(&self.t.head.regions):
            store64(&self.t.head.regions, r + 1)
        open_slot(&self.t, r, enabled)
        return r

    def remove_region(self, Py_ssize_t region):
        """Close the region's slot; groups that had it as home have none until the next tick."""
        cdef uint32_t r = self.region_index(region), g
        table_set(&self.t, self.t.configured, r, False)
        store32(&self.t.generation[r], self.t.generation[r] + 1)
        for g in range(self.t.groups):
            if self.t.former[g] == r:
                self.t.former[g] = NO_HOME
            if load16(&self.t.home[g]) == r:
                store16(&self.t.home[g], NO_HOME)
                store8(&self.t.dirty[g], 1)

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
        cdef const uint32_t[::1] g = np.ascontiguousarray(groups, np.uint32)
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
        cdef uint16_t[::1] homes = <uint16_t[:self.t.groups]>self.t.home
        return np.array(homes)

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
        return bool(self.t.forced[self.group_index(group)])

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
        if not self.own(seconds(now)) or not swap_if(&self.t.ticking, 0, 1):
            return 0
        with nogil:
            left = table_tick(&self.t, now, limit)
            swap_if(&self.t.ticking, 1, 0)
        return left

    cdef bint own(self, double now):
        """Keep, or take over, the right to tick a shared block: the owner's heartbeat may be 3 s old at most."""
        cdef Header *head = self.t.head
        cdef int64_t owner = head.owner, me
        if self.view.buf != NULL:
            me = os.getpid()
            if owner != me and (now - loadd(&head.heartbeat) < OWNER_TIMEOUT or not swap_if(&head.owner, owner, me)):
                return False
        stored(&head.heartbeat, now)
        return True

    def count(self, Py_ssize_t region, bint ok, Py_ssize_t group=0):
        """Count one outcome of the region as seen by a group; safe from every process that shares the table."""
        cdef uint32_t r = self.region_index(region), slot = hash_of(self.group_index(group)) % COUNT_SLOTS
        add(&self.t.counts[(r * COUNT_SLOTS + slot) * 2 + ok], 1)

    def counts(self):
        """Give the outcomes counted by all processes: uint64[regions, 8, 2], failures and successes by hash of the group.

        Groups in different slots are different; so the slots that failed are a lower bound of the groups that did.
        """
        cdef uint64_t[::1] all_counts = <uint64_t[:self.t.capacity * COUNT_SLOTS * 2]>self.t.counts
        return np.array(all_counts).reshape(-1, COUNT_SLOTS, 2)[:self.regions]

    # -- remember

    def snapshot(self, double now):
        """Give what was learned as bytes: homes and measured cells, with their ages at `now`; checksummed."""
        cdef uint32_t stamp = stamp_of(seconds(now))
        cdef uint8_t[::1] sampled = <uint8_t[:self.t.groups]>self.t.sampled
        rows = np.flatnonzero(sampled).astype("<u4")
        cells = self.cell_array()[rows, :self.regions]
        cells["t"] = np.where(cells["t"] == 0, 0xFFFFFFFF, np.maximum((stamp - cells["t"]).view(np.int32), 0).view(np.uint32))
        head = np.array([(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, self.t.pooled, self.t.groups, self.regions, len(rows))], SNAPSHOT_HEAD)
        body = head.tobytes() + self.homes().astype("<u2").tobytes() + rows.tobytes() + cells.tobytes()
        return body + zlib.crc32(body).to_bytes(4, "little")

    cdef object cell_array(self):
        cdef char[::1] raw = <char[:<size_t>self.t.groups * self.t.stride * sizeof(Cell)]><char *>self.t.cells
        return np.frombuffer(raw, CELL).reshape(self.t.groups, self.t.stride)

    def restore(self, bytes data, double now, double age, groups=None, regions=None):
        """Take over what a snapshot learned, `age` seconds ago; priors stay this table's own.

        groups: uint32 array, this table's group for each of the snapshot's (0xFFFFFFFF = skip); None: the same
        regions: likewise, uint16, 65535 = skip
        Raises ValueError, and changes nothing, for bytes that are damaged, of another version or shape.
        """
        cdef uint32_t stamp = stamp_of(seconds(now)), then = stamp_of(seconds(now) - duration(age)), i, r
        head, homes, rows, cells = read_snapshot(data, self.t.pooled)
        cdef uint32_t[::1] to_group = index_map("groups", groups, head["groups"], self.t.groups, np.uint32)
        cdef uint16_t[::1] to_region = index_map("regions", regions, head["regions"], self.regions, np.uint16)
        cdef const uint16_t[::1] old_homes = homes
        cdef const uint32_t[::1] old_rows = rows
        cdef char[::1] raw = cells
        cdef Cell *old = <Cell *>&raw[0] if raw.shape[0] else NULL
        for i in range(<uint32_t>old_homes.shape[0]):
            if old_homes[i] < to_region.shape[0] and to_group[i] != NO_INDEX:
                self.adopt_home(to_group[i], to_region[old_homes[i]])
        for i in range(<uint32_t>old_rows.shape[0]):
            for r in range(<uint32_t>to_region.shape[0]):
                if to_group[old_rows[i]] != NO_INDEX and to_region[r] != NO_HOME and old.t != NO_INDEX:
                    self.adopt(to_group[old_rows[i]], to_region[r], old, then - old.t, stamp)
                old += 1

    cdef void adopt_home(self, uint32_t group, uint16_t region) noexcept:
        if region != NO_HOME and in_mask(self.t.configured, region):
            store16(&self.t.home[group], region)
            self.t.former[group] = NO_HOME
            bound_by(&self.t, group, 0, NO_HOME)
        store8(&self.t.dirty[group], 1)

    cdef void adopt(self, uint32_t group, uint32_t region, const Cell *old, uint32_t touched, uint32_t stamp) noexcept:
        cdef size_t at = <size_t>group * self.t.stride + region
        cdef Cell c
        if not in_mask(self.t.configured, region):
            return
        load_cell(&self.t.cells[at], &c)
        fresh_cell(&c)
        c.x, c.P, c.R, c.sp, c.sm, c.t = old.x, old.P, old.R, old.sp, old.sm, touched if touched else 1
        if not self.t.pooled:
            c.P = c.P if c.P < c.P0 else c.P0
            age_cell(&c, stamp)
        store_cell(&self.t.cells[at], &c)
        publish_score(&self.t, at, region, c.x)
        store8(&self.t.sampled[group], 1)
        store8(&self.t.dirty[group], 1)


CELL = np.dtype([(name, "<f4") for name in ("x", "P", "R", "mu0", "P0", "sp", "sm")] + [("t", "<u4")])
SNAPSHOT_MAGIC = b"LBCORE"
SNAPSHOT_VERSION = 1
SNAPSHOT_HEAD = np.dtype([("magic", "S6"), ("version", "<u2"), ("pooled", "<u4"), ("groups", "<u4"), ("regions", "<u4"), ("rows", "<u4")])


def read_snapshot(data, pooled):
    """Give a snapshot's (head, homes, rows, cells as bytes), all of it checked. ValueError says what is wrong."""
    size, end = SNAPSHOT_HEAD.itemsize, len(data) - 4
    if end < size or zlib.crc32(data[:end]) != int.from_bytes(data[end:], "little"):
        raise ValueError("the snapshot is damaged: its checksum does not match")
    head = np.frombuffer(data[:size], SNAPSHOT_HEAD)[0]
    if head["magic"] != SNAPSHOT_MAGIC or head["version"] != SNAPSHOT_VERSION or head["pooled"] != pooled:
        raise ValueError(f"the snapshot is of another kind: {head}, expected version {SNAPSHOT_VERSION} and estimator {ESTIMATORS[pooled]}")
    groups, regions, rows = int(head["groups"]), int(head["regions"]), int(head["rows"])
    ends = [size, size + 2 * groups, size + 2 * groups + 4 * rows, size + 2 * groups + 4 * rows + CELL.itemsize * rows * regions]
    if ends[3] != end:
        raise ValueError(f"the snapshot has {end} bytes, expected {ends[3]} for {groups} groups x {regions} regions")
    homes, row_ids = np.frombuffer(data[size:ends[1]], "<u2"), np.frombuffer(data[ends[1]:ends[2]], "<u4")
    cells = np.frombuffer(data[ends[2]:ends[3]], CELL)
    measured = cells[cells["t"] != NO_INDEX]
    if (row_ids >= groups).any() or not all(np.isfinite(measured[f]).all() and (measured[f] >= 0).all() for f in ("x", "P", "R", "sp", "sm")):
        raise ValueError("the snapshot holds values that no table has: a group out of range, or a number that is negative or not finite")
    return head, homes, row_ids, bytearray(data[ends[2]:ends[3]])


def index_map(name, given, old, new, dtype):
    """Give where each of `old` indices goes among `new` ones; the identity when `given` is None."""
    if given is None:
        if old != new:
            raise ValueError(f"the snapshot has {old} {name}, this table {new}: pass `{name}` to say which is which")
        return np.arange(old, dtype=dtype)
    mapped = np.ascontiguousarray(given, dtype).copy()
    if len(mapped) != old or ((mapped >= new) & (mapped != np.iinfo(dtype).max)).any():
        raise ValueError(f"`{name}` must give one index below {new}, or {np.iinfo(dtype).max}, for each of the snapshot's {old}")
    return mapped


cdef object in_range(str name, value, low, high):
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
    return value


cdef inline float milliseconds(double ms) except? -1:
    cdef float value = <float>ms
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"a round trip must be finite milliseconds >= 0, got {ms!r}")
    return value


cdef float deviation(double sd) except? -1:
    if not (isfinite(<float>sd) and <float>sd > 0 and isfinite(<float>sd * <float>sd)):
        raise ValueError(f"a deviation must be finite milliseconds > 0, got {sd!r}")
    return <float>sd


cdef inline double seconds(double now) except? -1:
    if not -1e15 < now < 1e15:
        raise ValueError(f"now must be finite seconds, got {now!r}")
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
        cdef int32_t region
        with cython.critical_section(self):
            region = table_pick(&self.table.t, <uint32_t>self.map.group_of(client))
            if region >= 0 and region < PyTuple_GET_SIZE(self.objects):
                return <object>PyTuple_GET_ITEM(self.objects, region)
        raise self.no_region("no region is enabled, synced and not draining; enable one")


def _limit_vectors(int level):
    """Use at most this vector level: 0 scalar, 1 AVX2, 2 AVX-512. For tests of each scan."""
    limit_vectors(level)
