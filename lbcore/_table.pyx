# cython: language_level=3
"""The table's rules, without Python: masks, estimates, and the tick that moves homes. `_fast` is their face.

Who may write what: `table_observe` writes one cell and one dirty byte; setters write one region's bits; `table_tick` alone
writes homes. `table_pick` writes nothing, so a region that goes down is one cleared bit, and every group's next pick sees it.
Two samples of one cell that meet may leave the belief of one and the score of the other, until the cell's next sample or ageing.
The rules, with sources and the tests that pin them: docs/design.md. Indices are not checked here.
"""
from libc.float cimport FLT_MIN
from libc.math cimport exp, floor, sqrtf
from libc.string cimport memcpy, memset


cdef extern from *:
    """
    /* prior_ewma. Source: docs/design.md "Estimate"; Kalman 1960 (gain), Huber 1964 (clip), Page 1954 (CUSUM). */
    #define LB_CLIP 3.0f           /* innovation clip, standard deviations */
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

cdef enum:
    DWELL = 10 * STAMPS        # a better region must stay better so long
    MAX_WORDS = 1024

cdef double NOISE_TAU = 900.0      # variance grows back to the prior's, seconds
cdef double PRIOR_TAU = 21600.0    # the mean drifts back to the prior, seconds
cdef double RAMP = 30.0            # a recovering region's share grows from 10 to 100 %, seconds
cdef double SWEEP = 60.0           # every sampled group is aged once in so many seconds

detect_vectors()


def limit_scan(int level):
    """Use at most this vector level: 0 scalar, 1 AVX2, 2 AVX-512. For tests of every scan."""
    limit_vectors(level)


# ---------------------------------------------------------------- the block

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
    t.counts = <uint64_t *>(base + at); at += aligned(slot * COUNT_SLOTS * KINDS * 8)
    t.run = <uint64_t *>(base + at); at += aligned(slot * 8)
    t.recoveries = <uint32_t *>(base + at); at += aligned(slot * 4)
    t.seats = <int64_t *>(base + at); at += aligned(SEATS * 8)
    t.said = <double *>(base + at); at += aligned(SEATS * 8)
    t.waits = <uint16_t *>(base + at); at += aligned(SEATS * slot * COUNT_SLOTS * 2)
    t.home = <uint16_t *>(base + at); at += aligned(row * 2)
    t.former = <uint16_t *>(base + at); at += aligned(row * 2)
    t.bound = <uint64_t *>(base + at); at += aligned(row * 8)
    t.since = <uint32_t *>(base + at); at += aligned(row * 4)
    t.forced = <uint8_t *>(base + at); at += aligned(row)
    t.sampled = <uint8_t *>(base + at); at += aligned(row)
    t.dirty = <uint8_t *>(base + at); at += aligned(row)
    t.keys = <uint32_t *>(base + at); at += aligned(row * stride * 4)
    t.cells = <Cell *>(base + at); at += aligned(row * stride * sizeof(Cell))
    return at


cdef void table_initialise(Table *t, uint32_t regions, int64_t owner) noexcept nogil:
    """Fill a zeroed block: every group without a home, every region enabled, synced and up."""
    cdef uint64_t i
    memset(t.home, 0xFF, <size_t>t.groups * 2)
    memset(t.former, 0xFF, <size_t>t.groups * 2)
    memset(t.dirty, 1, t.groups)
    for i in range(<uint64_t>t.groups * t.stride):
        t.keys[i] = bits(FLAT_MS)
    t.head.regions = regions
    t.head.owner = owner
    for i in range(regions):
        table_open(t, <uint32_t>i, True)


cdef void table_open(Table *t, uint32_t region, bint enabled) noexcept nogil:
    cdef uint64_t bit = <uint64_t>1 << (region & 63)
    store8(&t.tier[region], 0)
    store32(&t.share[region], FULL_SHARE)
    storef(&t.penalty[region], 0)
    stored(&t.answered[region], 0)
    store64(&t.run[region], 0)
    clear_bits(&t.seen[region >> 6], bit)
    clear_bits(&t.draining[region >> 6], bit)
    set_bits(&t.synced[region >> 6], bit)
    if enabled:
        set_bits(&t.enabled[region >> 6], bit)
    else:
        clear_bits(&t.enabled[region >> 6], bit)
    table_set(t, t.configured, region, True)


cdef void table_reopen(Table *t, uint32_t region, bint enabled) noexcept nogil:
    """Open a slot that was in use before, or never: flat priors in every group."""
    cdef uint32_t group
    cdef Cell untouched
    prior_cell(&untouched, FLAT_MS, FLAT_SD)
    for group in range(t.groups):
        store_cell(&t.cells[<size_t>group * t.stride + region], &untouched)
        store32(&t.keys[<size_t>group * t.stride + region], bits(FLAT_MS))
    if region >= load64(&t.head.regions):
        store64(&t.head.regions, region + 1)
    table_open(t, region, enabled)


cdef void table_close(Table *t, uint32_t region) noexcept nogil:
    """Take the region away; groups that had it as home have none until the next tick."""
    cdef uint32_t group
    table_set(t, t.configured, region, False)
    store32(&t.generation[region], load32(&t.generation[region]) + 1)
    for group in range(t.groups):
        if load16(&t.former[group]) == region:
            store16(&t.former[group], NO_HOME)
        if load16(&t.home[group]) == region:
            store16(&t.home[group], NO_HOME)
            mark(&t.dirty[group])


# ---------------------------------------------------------------- masks

cdef bint admissible(const Table *t, uint32_t region) noexcept nogil:
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
    add(&t.head.news, 1)


cdef void table_set_tier(Table *t, uint32_t region, uint8_t tier, double now) noexcept nogil:
    cdef uint8_t before = load8(&t.tier[region])
    if tier == 3 and before < 3:
        stored(&t.answered[region], now)
    store8(&t.tier[region], tier)
    publish(t, region)
    if tier == 0 and before:
        store32(&t.recoveries[region], load32(&t.recoveries[region]) + 1)
    if tier != before:
        add(&t.head.news, 1)


cdef void table_count(Table *t, uint32_t region, uint32_t group, uint32_t kind) noexcept nogil:
    """Count one outcome. A success ends the region's run first: a failure that comes after it must not be lost with it."""
    if kind == 0 and load64(&t.run[region]):
        store64(&t.run[region], 0)
    add(&t.counts[(<size_t>region * COUNT_SLOTS + hash_of(group) % COUNT_SLOTS) * KINDS + kind], 1)
    if kind:
        if kind == 1 + REFUSED:
            add(&t.run[region], 1)
        add(&t.head.news, 1)


cdef uint32_t hash_of(uint32_t group) noexcept nogil:
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


cdef int32_t table_scan_mask(const Table *t, uint32_t group, const uint64_t *mask) noexcept nogil:
    """Give the best region of the mask, whatever its health; -1 = the mask is empty."""
    cdef uint32_t best = scan(t.keys + <size_t>group * t.stride, mask, t.stride)
    return <int32_t>best if best != NO_INDEX else -1


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


cdef void fresh_cell(Cell *c) noexcept nogil:
    """Give a cell that nobody has stored yet the flat prior: other bytes than these two may be somebody's who is just storing."""
    if c.P0 == 0 and c.t == 0:
        prior_cell(c, FLAT_MS, FLAT_SD)


cdef inline float squared(float sd) noexcept nogil:
    """A variance is never zero, not even that of the smallest deviation: zero is what nobody has stored."""
    return sd * sd if sd * sd > FLT_MIN else <float>FLT_MIN


cdef inline void prior_cell(Cell *c, float ms, float sd) noexcept nogil:
    cdef float noise = NOISE_SHARE * ms
    c.mu0, c.P0, c.x, c.P, c.sp, c.sm, c.t = ms, squared(sd), ms, squared(sd), 0, 0, 0
    c.R = noise * noise
    if c.R < NOISE_MIN:
        c.R = NOISE_MIN


cdef struct Ageing:
    float variance, mean       # shares of the way back to the prior


cdef Ageing AGEING[1024]       # for the first 16 s, in stamps: saves `observe` two exponentials


cdef inline Ageing ageing_of(int32_t d) noexcept nogil:
    cdef Ageing a
    cdef double dt = d / <double>STAMPS
    a.variance = <float>(1.0 - exp(-dt / NOISE_TAU))
    a.mean = <float>(1.0 - exp(-dt / PRIOR_TAU))
    return a


cdef void fill_ageing() noexcept:
    cdef int32_t d
    for d in range(1024):
        AGEING[d] = ageing_of(d)


fill_ageing()


cdef inline void age_cell(Cell *c, uint32_t stamp) noexcept nogil:
    """Let the variance grow back and the mean drift home; exact whatever the number of steps."""
    cdef int32_t d = <int32_t>(stamp - c.t)
    cdef Ageing a
    if d <= 0:
        return
    a = AGEING[d] if d < 1024 else ageing_of(d)
    c.P = c.P + (c.P0 - c.P) * a.variance
    c.x = c.x + (c.mu0 - c.x) * a.mean
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
        c.P = c.P0 if c.P0 > e * e else e * e
        v = c.P + c.R
        c.sp = c.sm = 0
    else:
        e = u * limit
    k = c.P / v
    if k < GAIN_MIN:
        k = GAIN_MIN
    c.x = c.x + k * e
    c.P = c.P * (<float>1 - k)
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
    c.x = c.P * c.sp + c.R * (<float>1 - c.sp)


cdef inline void publish_score(Table *t, size_t cell, uint32_t region, float x) noexcept nogil:
    cdef uint32_t key = bits(x + loadf(&t.penalty[region]))
    if load64(&t.head.excluding):
        replace_but(&t.keys[cell], key, EXCLUDED)
    else:
        store32(&t.keys[cell], key)


cdef void table_exclude(Table *t, uint32_t group, uint32_t region, bint on) noexcept nogil:
    """Set or clear the sign of a key. The first time ever, samples that are being stored without regard for it end first."""
    cdef uint32_t *key = &t.keys[<size_t>group * t.stride + region]
    if on and not load64(&t.head.excluding):
        store64(&t.head.excluding, 1)
        fence()
        pause()
    if (set_bits32(key, EXCLUDED) if on else clear_bits32(key, EXCLUDED)) >> 31 != on:
        mark(&t.dirty[group])


cdef void adopt_home(Table *t, uint32_t group, uint32_t home, uint32_t former, bint forced) noexcept nogil:
    """Take over a home that was chosen elsewhere; the next tick looks at it."""
    if home != NO_HOME and in_mask(t.configured, home):
        store16(&t.home[group], <uint16_t>home)
        store16(&t.former[group], <uint16_t>(former if former != NO_HOME and in_mask(t.configured, former) else NO_HOME))
        store8(&t.forced[group], forced)
        store32(&t.since[group], 0)
        bound_by(t, group, 0, NO_HOME)
    mark(&t.dirty[group])


cdef inline float threshold(float home) noexcept nogil:
    """How much better another region must be, milliseconds, before variance is looked at."""
    return SWITCH_SHARE * home if SWITCH_SHARE * home > SWITCH_MS else SWITCH_MS


cdef void set_prior(Table *t, uint32_t group, uint32_t region, float ms, float sd) noexcept nogil:
    """Give a cell its prior; what was measured is kept."""
    cdef size_t at = <size_t>group * t.stride + region
    cdef Cell c
    load_cell(&t.cells[at], &c)
    if c.t == 0:
        prior_cell(&c, ms, sd)
    else:
        c.mu0, c.P0 = ms, squared(sd)
        if not t.pooled and c.P > c.P0:
            c.P = c.P0
    keep(t, group, region, &c)


cdef void adopt(Table *t, uint32_t group, uint32_t region, const Cell *old, uint32_t touched, uint32_t stamp) noexcept nogil:
    """Take over a cell that was learned elsewhere and last touched at `touched`, and age it to `stamp`."""
    cdef size_t at = <size_t>group * t.stride + region
    cdef Cell c
    if not in_mask(t.configured, region):
        return
    load_cell(&t.cells[at], &c)
    fresh_cell(&c)
    c.x, c.P, c.R, c.sp, c.sm, c.t = old.x, old.P, old.R, old.sp, old.sm, touched if touched else 1
    if not t.pooled:
        c.P, c.R = c.P if c.P < c.P0 else c.P0, c.R if c.R > NOISE_MIN else NOISE_MIN
        age_cell(&c, stamp)
    store8(&t.sampled[group], 1)
    keep(t, group, region, &c)


cdef void keep(Table *t, uint32_t group, uint32_t region, const Cell *c) noexcept nogil:
    """Store a cell and its score, and have the group looked at."""
    cdef size_t at = <size_t>group * t.stride + region
    store_cell(&t.cells[at], c)
    publish_score(t, at, region, c.x)
    mark(&t.dirty[group])


cdef void set_penalty(Table *t, uint32_t region, float ms) noexcept nogil:
    cdef uint32_t group
    cdef size_t at
    cdef Cell c
    storef(&t.penalty[region], ms)
    for group in range(t.groups):
        at = <size_t>group * t.stride + region
        load_cell(&t.cells[at], &c)
        fresh_cell(&c)
        publish_score(t, at, region, c.x)
    mark_all(t)


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


cdef void table_observe_many(
    Table *t, const uint32_t *groups, const uint16_t *regions, const float *ms, size_t n, uint32_t stamp
) noexcept nogil:
    cdef size_t i
    for i in range(n):
        table_observe(t, groups[i], regions[i], ms[i], stamp)


cdef inline uint64_t bound_of(uint32_t key, uint32_t region) noexcept nogil:
    return <uint64_t>key << 32 | region


cdef inline bint stands_out(const Table *t, uint32_t group, uint32_t home, uint64_t bound) noexcept nogil:
    """Whether the bound is better than the home by the threshold, or the home's path is excluded."""
    cdef uint32_t key = load32(&t.keys[<size_t>group * t.stride + home])
    cdef float score = magnitude_of(key & ~<uint32_t>EXCLUDED)
    return key & EXCLUDED or score - magnitude_of(<uint32_t>(bound >> 32) & ~<uint32_t>EXCLUDED) > threshold(score)


cdef inline void mark_if_beaten(Table *t, uint32_t group, uint32_t region, size_t row) noexcept nogil:
    """Mark the group for `tick` when some region may beat its home by the threshold.

    `bound` is a lower bound of the other regions' keys, so a mark may be idle but none is ever missing. One thread stores the
    home's key, then reads the bound; another lowers the bound, then reads the home's key. Fences see to it that one of them sees
    what the other has stored (Dekker), likewise whoever makes a region eligible and whoever gives it a lower key.
    """
    cdef uint32_t home = load16(&t.home[group])
    cdef uint64_t bound, mine
    if home == NO_HOME:
        return
    if region == home:
        fence()
    bound = load64(&t.bound[group])
    if region != home:
        mine = bound_of(load32(&t.keys[row + region]), region)
        if mine < bound:
            fence()
            if in_mask(t.eligible, region):
                bound = mine
                lower(&t.bound[group], bound)
    if stands_out(t, group, home, bound):
        mark(&t.dirty[group])


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
        start_ramps(t, w, gained[w] & load64(&t.seen[w]) | running_ahead(t, w, now), now)
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
        mark(&t.dirty[group])


cdef uint64_t running_ahead(const Table *t, uint32_t word, double now) noexcept nogil:
    """The ramps that began in the future, because the clock went back: they begin again."""
    cdef uint64_t ahead = 0, m = load64(&t.ramping[word])
    while m:
        if t.ramp_start[word * 64 + lowest_bit(m)] > now:
            ahead |= m & (~m + 1)
        m &= m - 1
    return ahead


cdef void start_ramps(Table *t, uint32_t word, uint64_t recovering, double now) noexcept nogil:
    cdef uint32_t bit
    set_bits(&t.ramping[word], recovering)
    for bit in range(64):
        if (recovering >> bit) & 1:
            t.ramp_start[word * 64 + bit] = now


cdef void mark_bereft(Table *t, const uint64_t *lost) noexcept nogil:
    """Mark groups whose home is gone, and those whose bound is and stood out: a best that went down unmasks the next."""
    cdef uint32_t group, home, region
    cdef uint64_t bound
    for group in range(t.groups):
        home, bound = load16(&t.home[group]), load64(&t.bound[group])
        region = <uint32_t>bound & 0xFFFF
        if home != NO_HOME and in_mask(lost, home):
            mark(&t.dirty[group])
        elif home != NO_HOME and region != NO_HOME and in_mask(lost, region) and stands_out(t, group, home, bound):
            mark(&t.dirty[group])


cdef void mark_drawn(Table *t, const uint64_t *gained) noexcept nogil:
    """Mark groups that a newly eligible region may draw home, and keep every bound a bound."""
    cdef uint32_t group, home, w, region
    cdef uint64_t m
    fence()
    for group in range(t.groups):
        if load8(&t.dirty[group]):
            continue
        home = load16(&t.home[group])
        if home == NO_HOME or not in_mask(t.eligible, home):
            mark(&t.dirty[group])
            continue
        for w in range(t.words):
            m = gained[w]
            while m:
                region = w * 64 + lowest_bit(m)
                m &= m - 1
                if region != home and draws(t, group, region, home) or region == load16(&t.former[group]):
                    mark(&t.dirty[group])


cdef inline bint draws(Table *t, uint32_t group, uint32_t region, uint32_t home) noexcept nogil:
    """Lower the bound first: a sample of the home that comes in now sees that, or is seen here."""
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint32_t key = load32(&keys[region]), home_key
    cdef float score
    lower(&t.bound[group], bound_of(key, region))
    home_key = load32(&keys[home])
    score = magnitude_of(home_key & ~<uint32_t>EXCLUDED)
    return home_key & EXCLUDED or (not key & EXCLUDED and score - magnitude_of(key) > threshold(score))


cdef void sweep_ages(Table *t, double now, uint32_t stamp) noexcept nogil:
    """Age 1/60 of the groups for each second that passed, those that hold samples."""
    cdef double passed = now - t.head.last_tick if t.head.ticked else 0.0
    cdef uint64_t n, _i
    cdef uint32_t group
    t.head.ticked = 1
    t.head.last_tick = now
    passed = 0 if passed < 0 else SWEEP if passed > SWEEP else passed
    t.head.credit += t.groups * passed / SWEEP
    n = <uint64_t>t.head.credit
    if n > t.groups:
        n = t.groups
    t.head.credit -= n
    for _i in range(n):
        group = <uint32_t>t.head.age_cursor
        t.head.age_cursor = group + 1 if group + 1 < t.groups else 0
        if load8(&t.sampled[group]) and not t.pooled:
            age_group(t, group, stamp)


cdef void age_group(Table *t, uint32_t group, uint32_t stamp) noexcept nogil:
    cdef size_t row = <size_t>group * t.stride
    cdef uint32_t region
    cdef Cell c
    for region in range(<uint32_t>load64(&t.head.regions)):
        if load32(&t.cells[row + region].t):
            load_cell(&t.cells[row + region], &c)
            age_cell(&c, stamp)
            store_cell(&t.cells[row + region], &c)
            publish_score(t, row + region, region, c.x)
    mark(&t.dirty[group])


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
        n += load8(&t.dirty[group]) == 1
    return n


cdef void candidates(const Table *t, uint32_t group, uint64_t *mask) noexcept nogil:
    """The eligible regions whose share admits the group; all eligible ones when none does."""
    cdef uint32_t w, region
    cdef uint64_t any_left = 0
    for w in range(t.words):
        mask[w] = load64(&t.eligible[w])
    if not load64(&t.head.shared_out):
        return
    for region in range(<uint32_t>load64(&t.head.regions)):
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
    for region in range(<uint32_t>load64(&t.head.regions)):
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
    cdef uint32_t home = load16(&t.home[group]), former = load16(&t.former[group]), other, best
    cdef uint64_t bound
    store8(&t.dirty[group], 0)
    fence()
    candidates(t, group, cand)
    if former != NO_HOME and comes_home(t, group, former, cand, now):
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
    bound = load64(&t.bound[group])
    if not bound_of(load32(&keys[home]), 0) <= bound <= bound_of(load32(&keys[other]), other):  # else it still is a close one
        bound_by(t, group, load32(&keys[other]), other)
    consider(t, group, home, other, now, stamp)


cdef void bound_by(Table *t, uint32_t group, uint32_t key, uint32_t region) noexcept nogil:
    """Set the bound. Where that changes it, the group is looked at once more: a sample may have come between scan and store."""
    cdef uint64_t bound = bound_of(key, region)
    if load64(&t.bound[group]) != bound:
        store64(&t.bound[group], bound)
        store8(&t.dirty[group], 2)


cdef bint comes_home(Table *t, uint32_t group, uint32_t former, const uint64_t *cand, double now) noexcept nogil:
    """A group whose home was lost returns as soon as that may have it back, if by belief it would have stayed there."""
    cdef const uint32_t *keys = t.keys + <size_t>group * t.stride
    cdef uint32_t key = load32(&keys[former]), best
    cdef float score = magnitude_of(key & ~<uint32_t>EXCLUDED)
    if not in_mask(cand, former) or key & EXCLUDED:
        return False
    if not allowed(t, group, former, now):
        mark(&t.dirty[group])
        return False
    store16(&t.former[group], NO_HOME)
    best = scan(keys, cand, t.stride)
    if score - magnitude_of(load32(&keys[best])) > threshold(score):
        return False
    move(t, group, former, best, False)
    return True


cdef void move(Table *t, uint32_t group, uint32_t region, uint32_t best, bint forced) noexcept nogil:
    """Give the group its home. No other region's key is below the best one's; a group that could not have it looks again."""
    cdef uint32_t former = load16(&t.former[group])
    if not forced or former == region:
        store16(&t.former[group], NO_HOME)
    elif former == NO_HOME:
        store16(&t.former[group], load16(&t.home[group]))
    store16(&t.home[group], <uint16_t>region)
    store8(&t.forced[group], forced)
    store32(&t.since[group], 0)
    bound_by(t, group, load32(&t.keys[<size_t>group * t.stride + best]), NO_HOME if region == best else best)
    store8(&t.dirty[group], 2)
    if region != best:
        mark(&t.dirty[group])


cdef void consider(Table *t, uint32_t group, uint32_t home, uint32_t other, double now, uint32_t stamp) noexcept nogil:
    """Home is a candidate and `other` the best of the rest: stay, wait out the dwell, or switch."""
    cdef size_t row = <size_t>group * t.stride
    cdef uint32_t home_key = load32(&t.keys[row + home]), other_key = load32(&t.keys[row + other]), since
    cdef uint64_t *cand = t.scratch + 2 * t.words
    cdef float score = magnitude_of(home_key & ~<uint32_t>EXCLUDED), gap, limit
    if home_key & EXCLUDED and not other_key & EXCLUDED:
        move(t, group, best_allowed(t, group, cand, other, now), other, True)
        return
    gap = score - magnitude_of(other_key & ~<uint32_t>EXCLUDED) if other_key < home_key else 0
    limit = margin(t, group, row, home, other, score)
    if not gap > limit:
        store32(&t.since[group], 0)
        return
    since = load32(&t.since[group])
    if not since:
        since = stamp
        store32(&t.since[group], since)
    mark(&t.dirty[group])
    if not (gap > SWITCH_AT_ONCE * limit or <int32_t>(stamp - since) >= DWELL):
        return
    if allowed(t, group, other, now):
        move(t, group, other, other, False)
    else:
        detour(t, group, home, score, now)


cdef float margin(const Table *t, uint32_t group, size_t row, uint32_t home, uint32_t other, float score) noexcept nogil:
    """By how much `other` must be better than the home, milliseconds."""
    cdef float limit = threshold(score), sigma
    if load8(&t.forced[group]) or t.pooled:
        return limit
    sigma = sqrtf(variance(t, row + home) + variance(t, row + other))
    return sigma if sigma > limit else limit


cdef void detour(Table *t, uint32_t group, uint32_t home, float score, double now) noexcept nogil:
    """The best is still ramping and not for this group yet: meanwhile the best of the others, if that too is worth a move."""
    cdef size_t row = <size_t>group * t.stride
    cdef uint64_t *mask = t.scratch + 3 * t.words
    cdef uint32_t region, there
    memcpy(mask, t.scratch + 2 * t.words, t.words * 8)
    for region in range(<uint32_t>load64(&t.head.regions)):
        if not allowed(t, group, region, now):
            mask[region >> 6] &= ~(<uint64_t>1 << (region & 63))
    there = scan(t.keys + row, mask, t.stride)
    if there == NO_INDEX or load32(&t.keys[row + there]) >= load32(&t.keys[row + home]):
        return
    if score - magnitude_of(load32(&t.keys[row + there]) & ~<uint32_t>EXCLUDED) > margin(t, group, row, home, there, score):
        store16(&t.home[group], <uint16_t>there)
        store32(&t.since[group], 0)


cdef inline float variance(const Table *t, size_t cell) noexcept nogil:
    cdef Cell c
    load_cell(&t.cells[cell], &c)
    fresh_cell(&c)
    return c.P
