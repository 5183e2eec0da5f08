# cython: language_level=3
"""The walk through compiled profiles, without the GIL: a tree of steps, whose leaves are slots of the latency table.

What the operator wants and what health says is read from the table's bits during the walk, so a verdict or a switch holds for the
very next choice; a Program is replaced only when profiles or regions are. How profiles become steps: `route.py`.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lbcore._address cimport ip
from lbcore._fast cimport LatencyTable
from lbcore._prefix cimport PrefixMap, prefix_map, prefix_match4, prefix_match6, read_client, trie_foresee
from lbcore._table cimport Table, admissible, in_mask, load16, load32, load64, store32, table_pick_in, table_scan_mask, NO_HOME

import numpy as np
from typing import NamedTuple

__all__ = ["Choice", "Horizon", "KINDS", "POLICIES", "Program"]

KINDS = ("outcome", "pick", "first", "draw", "map", "several")
POLICIES = ("serve_all", "serve_last_good", "serve_backup", "nodata", "servfail", "refuse")

cdef enum:                # kinds of steps, as in KINDS
    OUTCOME
    PICK                  # the kid whose region is the closest
    FIRST                 # the first kid that is up
    DRAW                  # a kid by weight
    MAP                   # the kid that the client's network belongs to
    MANY                  # several regions

cdef enum:                # what happens when no kid is up, as in POLICIES
    SERVE_ALL
    SERVE_LAST_GOOD
    SERVE_BACKUP
    SAY_NODATA
    SAY_SERVFAIL
    SAY_REFUSED

cdef enum:                # of a kid
    OFF                   # the operator does not want it
    DOWN
    UP

cdef enum:
    MAX_WORDS = 1024

cdef struct kid:
    int32_t slot          # a region; -1 = the step of a nested profile
    uint32_t step
    uint32_t weight
    uint32_t least, least4, least6     # how many kids of the nested step must be up: of all, with IPv4, with IPv6 addresses
    bint always           # up whenever the operator wants it
    bint v4, v6

cdef struct step_t:
    int kind, policy
    int32_t value         # OUTCOME: what; MAP: what an unmapped client gets; MANY: how many regions
    bint plain            # PICK among regions only, by the table's bits alone
    int32_t fallback      # MAP: the kid for clients without a mapping, and for those of kids that are not up; -1 = none
    kid* kids
    uint32_t count
    uint64_t* leaves      # every region at or below the step
    int32_t* backup
    uint32_t backups
    const prefix_map* networks         # MAP; with `of_group`: its group -> kid, -1 = none
    int32_t* of_group
    bint own              # `networks` is the table's own map, whose group is known already

cdef struct root_t:
    uint32_t step, ttl, ttl_min
    bint fixed            # ttl holds whatever health does

cdef struct program:
    const Table* t
    const prefix_map* map
    step_t* steps
    uint32_t count
    root_t* roots
    uint32_t root_count
    const uint32_t* horizon            # by slot, seconds until its health may change

cdef struct walk_t:       # one choice under way
    const ip* client      # NULL = unknown
    uint32_t turn
    int32_t without       # a region that must not be chosen; -1 = none
    int64_t group         # -1 = not looked up yet
    int scope
    bint always           # the region found serves whatever its health
    bint timed            # `horizon` is wanted
    uint32_t horizon
    uint32_t last         # the step that said SEVERAL


cdef inline uint32_t match(const prefix_map* m, walk_t* w) noexcept nogil:
    """Look the client up; the choice depends on all bits that told its group."""
    cdef int scope = 0
    cdef uint32_t group
    if w.client == NULL:
        return 0
    if w.client.is_v6:
        group = prefix_match6(m, w.client.hi, w.client.lo, &scope)
    else:
        group = prefix_match4(m, <uint32_t>(w.client.hi >> 32), &scope)
    if scope > w.scope:
        w.scope = scope
    return group


cdef void foresee(const program* p, const ip* client, int depth) noexcept nogil:
    trie_foresee(&p.map.v6 if client.is_v6 else &p.map.v4, client.hi, depth)


cdef inline uint32_t group_of(const program* p, walk_t* w) noexcept nogil:
    if w.group < 0:
        w.group = match(p.map, w)
    return <uint32_t>w.group


# ---------------------------------------------------------------- health

cdef int step_state(const program* p, const kid* k) noexcept nogil:
    """Give what a nested profile is to its parent: UP with enough kids up, OFF when every kid is, else DOWN."""
    cdef const step_t* s = &p.steps[k.step]
    cdef uint32_t i, up = 0, up4 = 0, up6 = 0
    cdef int state
    cdef bint wanted = False
    for i in range(s.count):
        state = kid_state(p, &s.kids[i])
        wanted = wanted or state != OFF
        if state == UP:
            up, up4, up6 = up + 1, up4 + s.kids[i].v4, up6 + s.kids[i].v6
    if up and up >= k.least and up4 >= k.least4 and up6 >= k.least6:
        return UP
    return DOWN if wanted else OFF


cdef inline int kid_state(const program* p, const kid* k) noexcept nogil:
    if k.slot < 0:
        return step_state(p, k)
    if in_mask(p.t.eligible, k.slot):
        return UP
    if not admissible(p.t, k.slot):
        return OFF
    return UP if k.always else DOWN


cdef bint usable(const program* p, const kid* k, int32_t without) noexcept nogil:
    """Say whether a kid that is up has another region up than `without`."""
    cdef const step_t* s
    cdef uint32_t i
    if without < 0 or k.slot >= 0:
        return k.slot != without or without < 0
    s = &p.steps[k.step]
    for i in range(s.count):
        if kid_state(p, &s.kids[i]) == UP and usable(p, &s.kids[i], without):
            return True
    return False


cdef inline bint serves(const program* p, const kid* k, int wanted, int32_t without) noexcept nogil:
    return kid_state(p, k) == wanted and (wanted != UP or usable(p, k, without))


cdef int best_state(const program* p, const step_t* s, int32_t without) noexcept nogil:
    cdef uint32_t i
    cdef int best = OFF
    for i in range(s.count):
        if serves(p, &s.kids[i], UP, without):
            return UP
        if kid_state(p, &s.kids[i]) == DOWN:
            best = DOWN
    return best


cdef bint gives(const program* p, const kid* k, int32_t without, int32_t region, uint64_t* mask) noexcept nogil:
    """Gather in `mask` (unless NULL) the regions that a kid may answer with as things stand; say whether `region` is one of them."""
    cdef const step_t* s
    cdef uint32_t i
    cdef int best
    cdef bint found = False
    if k.slot >= 0:
        if mask != NULL:
            mask[k.slot >> 6] |= <uint64_t>1 << (k.slot & 63)
        return k.slot == region
    s = &p.steps[k.step]
    best = best_state(p, s, without)
    for i in range(s.count):
        if best != OFF and serves(p, &s.kids[i], best, without):
            found = gives(p, &s.kids[i], without, region, mask) or found
            if s.kind == FIRST:
                break
    return found


# ---------------------------------------------------------------- health-derived TTL

cdef inline void until(const program* p, walk_t* w, uint32_t slot) noexcept nogil:
    cdef uint32_t seconds = load32(&p.horizon[slot])
    if seconds < w.horizon:
        w.horizon = seconds


cdef void until_any(const program* p, walk_t* w, const uint64_t* mask) noexcept nogil:
    cdef uint32_t slot
    for slot in range(p.t.words << 6):
        if in_mask(mask, slot):
            until(p, w, slot)


cdef void until_back(const program* p, walk_t* w, const uint64_t* mask, int32_t chosen) noexcept nogil:
    """Count the regions of the mask that are down and would be preferred to `chosen`, were they up."""
    cdef const uint32_t* keys = p.t.keys + <size_t>group_of(p, w) * p.t.stride
    cdef uint32_t i, slot
    cdef uint64_t down
    for i in range(p.t.words):
        down = mask[i] & load64(&p.t.enabled[i]) & ~load64(&p.t.eligible[i])
        slot = i << 6
        while down:
            if down & 1 and (chosen < 0 or load32(&keys[slot]) <= load32(&keys[chosen])):
                until(p, w, slot)
            down >>= 1
            slot += 1


cdef void until_kid(const program* p, walk_t* w, const kid* k) noexcept nogil:
    if k.slot >= 0:
        until(p, w, k.slot)
    else:
        until_any(p, w, p.steps[k.step].leaves)


# ---------------------------------------------------------------- the walk

cdef inline uint32_t drawn(uint32_t turn, uint32_t step) noexcept nogil:
    """Mix a query's id with the step's number: two draws of one query are independent. Source: MurmurHash3's finaliser."""
    cdef uint32_t h = turn * <uint32_t>0x9E3779B1 ^ step * <uint32_t>0x85EBCA6B
    h = (h ^ h >> 16) * <uint32_t>0x85EBCA6B
    h = (h ^ h >> 13) * <uint32_t>0xC2B2AE35
    return h ^ h >> 16


cdef int32_t enter(const program* p, const kid* k, walk_t* w) noexcept nogil:
    if k.slot < 0:
        if w.timed and (k.least > 1 or k.least4 or k.least6):
            until_any(p, w, p.steps[k.step].leaves)
        return walk(p, k.step, w)
    if k.slot == w.without or not admissible(p.t, k.slot):
        return NODATA
    w.always = k.always
    return k.slot


cdef int32_t pick(const program* p, const step_t* s, walk_t* w, int wanted) noexcept nogil:
    """Enter the kid that has the closest of all regions which kids of that state may answer with."""
    cdef uint64_t mask[MAX_WORDS]
    cdef uint32_t i, group = group_of(p, w), home = load16(&p.t.home[group])
    cdef int32_t region
    memset(mask, 0, p.t.words * 8)
    for i in range(s.count):
        if serves(p, &s.kids[i], wanted, w.without):
            gives(p, &s.kids[i], w.without, -1, mask)
    if w.without >= 0:
        mask[w.without >> 6] &= ~(<uint64_t>1 << (w.without & 63))
    if wanted == DOWN:
        region = table_pick_in(p.t, group, mask)
    elif home != NO_HOME and in_mask(mask, home):
        region = home
    else:
        region = table_scan_mask(p.t, group, mask)
    if w.timed and region >= 0:
        until_back(p, w, s.leaves, region)
        for i in range(s.count):
            if s.kids[i].slot < 0:
                until_kid(p, w, &s.kids[i])
    for i in range(s.count):
        if region >= 0 and serves(p, &s.kids[i], wanted, w.without) and gives(p, &s.kids[i], w.without, region, NULL):
            return enter(p, &s.kids[i], w)
    return NODATA


cdef int32_t first(const program* p, const step_t* s, walk_t* w, int wanted) noexcept nogil:
    cdef uint32_t i
    for i in range(s.count):
        if serves(p, &s.kids[i], wanted, w.without):
            return enter(p, &s.kids[i], w)
        if w.timed and kid_state(p, &s.kids[i]) == DOWN:
            until_kid(p, w, &s.kids[i])
    return NODATA


cdef int32_t draw(const program* p, uint32_t at, walk_t* w, int wanted) noexcept nogil:
    cdef const step_t* s = &p.steps[at]
    cdef uint32_t i, left
    cdef uint64_t total = 0
    for i in range(s.count):
        if serves(p, &s.kids[i], wanted, w.without):
            total += s.kids[i].weight
        elif w.timed and kid_state(p, &s.kids[i]) == DOWN:
            until_kid(p, w, &s.kids[i])
    left = <uint32_t>(drawn(w.turn, at) * total >> 32)
    for i in range(s.count):
        if serves(p, &s.kids[i], wanted, w.without):
            if left < s.kids[i].weight:
                return enter(p, &s.kids[i], w)
            left -= s.kids[i].weight
    return NODATA


cdef int32_t backup_of(const program* p, const step_t* s) noexcept nogil:
    """Give the first of the backup regions that is up, else the first that the operator wants; -1 = none."""
    cdef uint32_t i
    cdef int pass_
    for pass_ in range(2):
        for i in range(s.backups):
            if admissible(p.t, s.backup[i]) and (pass_ or in_mask(p.t.eligible, s.backup[i])):
                return s.backup[i]
    return -1


cdef int32_t fallen(const program* p, uint32_t at, walk_t* w) noexcept nogil:
    """No kid of the step is up: do what its policy says."""
    cdef const step_t* s = &p.steps[at]
    cdef uint32_t i
    cdef int32_t backup
    if w.without >= 0:
        return NODATA    # a second region only helps when it is up
    if s.policy >= SAY_NODATA:
        if w.timed:
            until_any(p, w, s.leaves)
        return NODATA if s.policy == SAY_NODATA else SERVFAIL if s.policy == SAY_SERVFAIL else REFUSED
    if w.timed:
        until_back(p, w, s.leaves, -1)
    if s.policy == SERVE_BACKUP:
        for i in range(s.backups if w.timed else 0):
            until(p, w, s.backup[i])
        backup = backup_of(p, s)
        if backup >= 0:
            return backup
    elif s.policy == SERVE_LAST_GOOD:
        i = group_of(p, w)
        return or_nodata(table_pick_in(p.t, i, s.leaves))
    return NODATA if best_state(p, s, -1) == OFF else by_method(p, at, w, DOWN)


cdef inline int32_t or_nodata(int32_t region) noexcept nogil:
    return region if region >= 0 else NODATA


cdef inline int32_t several(const program* p, uint32_t at, walk_t* w) noexcept nogil:
    """Leave the choice to `choose_several`; which regions come first depends on the client's group."""
    group_of(p, w)
    if w.timed:
        until_any(p, w, p.steps[at].leaves)
    w.last = at
    return SEVERAL


cdef int32_t by_method(const program* p, uint32_t at, walk_t* w, int wanted) noexcept nogil:
    """Go by the step's method among the kids of that state; not for MAP, where each client has one kid."""
    cdef const step_t* s = &p.steps[at]
    if s.kind == PICK:
        return pick(p, s, w, wanted)
    if s.kind == FIRST:
        return first(p, s, w, wanted)
    if s.kind == DRAW:
        return draw(p, at, w, wanted)
    return several(p, at, w)


cdef int32_t mapped(const program* p, uint32_t at, walk_t* w) noexcept nogil:
    """Enter the kid that the client's network belongs to. Only a fallback stands in for a kid that is not up."""
    cdef const step_t* s = &p.steps[at]
    cdef uint32_t group = group_of(p, w) if s.own else match(s.networks, w)
    cdef int32_t to = s.of_group[group], fallback = s.fallback
    cdef int state = OFF if to < 0 else kid_state(p, &s.kids[to])
    if w.timed and to >= 0 and state == DOWN:
        until_kid(p, w, &s.kids[to])
        if fallback >= 0:
            until_kid(p, w, &s.kids[fallback])
    if state == UP:
        return enter(p, &s.kids[to], w)
    if fallback >= 0 and (state == OFF or kid_state(p, &s.kids[fallback]) == UP):
        to = fallback
        state = kid_state(p, &s.kids[to])
    if state == OFF:
        return s.value
    if state == DOWN and (s.policy > SERVE_BACKUP or (s.policy == SERVE_BACKUP and backup_of(p, s) >= 0)):
        return fallen(p, at, w)
    return enter(p, &s.kids[to], w)


cdef int32_t walk(const program* p, uint32_t at, walk_t* w) noexcept nogil:
    """Give the region, or NODATA and the like, that a step leads to."""
    cdef const step_t* s = &p.steps[at]
    if s.kind == OUTCOME:
        return s.value
    if s.kind == MAP:
        return mapped(p, at, w)
    if best_state(p, s, w.without) != UP:
        return fallen(p, at, w)
    return by_method(p, at, w, UP)


cdef inline void begin(walk_t* w, const ip* client, uint32_t turn, bint timed) noexcept nogil:
    w.client, w.turn, w.without, w.group, w.scope, w.always, w.timed = client, turn, -1, -1, 0, False, timed
    w.horizon, w.last = 0xFFFFFFFF, 0


cdef int32_t next_closest(const program* p, const step_t* s, walk_t* w) noexcept nogil:
    """Give the closest other region of a plain PICK; it may be down."""
    cdef uint64_t mask[MAX_WORDS]
    memcpy(mask, s.leaves, p.t.words * 8)
    mask[w.without >> 6] &= ~(<uint64_t>1 << (w.without & 63))
    return table_pick_in(p.t, group_of(p, w), mask)


cdef void choose(const program* p, uint32_t root, const ip* client, uint32_t turn, bint pair, choice* out) noexcept nogil:
    """Decide for one client: see `choice` for what comes out. `turn` drives weighted draws; `pair` asks for a second region."""
    cdef const root_t* r = &p.roots[root]
    cdef const step_t* s = &p.steps[r.step]
    cdef walk_t w
    begin(&w, client, turn, not r.fixed)
    if s.plain:
        out.region = table_pick_in(p.t, group_of(p, &w), s.leaves)
        if out.region < 0:
            out.region = NODATA
        elif not in_mask(p.t.eligible, out.region):
            out.region = fallen(p, r.step, &w)
        elif w.timed:
            until_back(p, &w, s.leaves, out.region)
    else:
        out.region = walk(p, r.step, &w)
    out.fail_open = out.region >= 0 and not w.always and not in_mask(p.t.eligible, out.region)
    out.second = -1
    out.ttl = r.ttl
    if w.timed:
        if out.region >= 0:
            until(p, &w, out.region)
        out.ttl = r.ttl_min if w.horizon < r.ttl_min else w.horizon if w.horizon < r.ttl else r.ttl
    if pair and out.region >= 0 and not out.fail_open:
        w.without, w.always, w.timed = out.region, False, False
        out.second = next_closest(p, s, &w) if s.plain else walk(p, r.step, &w)
        if out.second < 0 or out.second == out.region or not (w.always or in_mask(p.t.eligible, out.second)):
            out.second = -1
    out.scope = w.scope


cdef uint32_t choose_several(const program* p, uint32_t at, walk_t* w, int32_t* out) noexcept nogil:
    """Fill `out` with the closest regions of a MANY step, of those that are up, else of those that are down; give their number."""
    cdef const step_t* s = &p.steps[at]
    cdef uint64_t mask[MAX_WORDS]
    cdef uint32_t i, n = 0, group = group_of(p, w)
    cdef int best = best_state(p, s, -1)
    cdef int32_t region
    memset(mask, 0, p.t.words * 8)
    for i in range(s.count):
        if best != OFF and kid_state(p, &s.kids[i]) == best:
            mask[s.kids[i].slot >> 6] |= <uint64_t>1 << (s.kids[i].slot & 63)
    while n < <uint32_t>s.value:
        region = table_scan_mask(p.t, group, mask)
        if region < 0:
            break
        mask[region >> 6] &= ~(<uint64_t>1 << (region & 63))
        out[n] = region
        n += 1
    return n


# ---------------------------------------------------------------- Python's side

class Choice(NamedTuple):
    """What a query is answered with.

    region: slot of the latency table, or -1 NODATA, -2 NXDOMAIN, -3 SERVFAIL, -4 REFUSED, -5 several regions
    second: the next region, -1 = none or not asked for
    scope: bits of the client's address that the choice depends on, counted in the client's own family
    ttl: seconds
    fail_open: the region is not up: none is
    """

    region: int
    second: int
    scope: int
    ttl: int
    fail_open: bool


cdef class Horizon:
    """Seconds until each region's health could next change, by slot, at first 0; threads that answer read it while Python writes."""

    NEVER = 0xFFFFFFFF

    def __cinit__(self, Py_ssize_t slots):
        self.seconds = <uint32_t*>calloc(slots or 1, sizeof(uint32_t))
        if self.seconds == NULL:
            raise MemoryError
        self.slots = slots

    def __dealloc__(self):
        free(self.seconds)

    def __len__(self):
        return self.slots

    def __getitem__(self, Py_ssize_t slot):
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} is not in 0..{self.slots - 1}")
        return load32(&self.seconds[slot])

    def __setitem__(self, Py_ssize_t slot, uint32_t seconds):
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} is not in 0..{self.slots - 1}")
        store32(&self.seconds[slot], seconds)


cdef class Program:
    """Profiles compiled for one latency table and one prefix map; immutable, any thread may walk it.

    steps: sequence of `route.Step`; roots: sequence of (step, ttl, ttl_min or None)
    horizon: for roots with a ttl_min; without one their ttl is fixed
    Raises ValueError for a map with groups that the table lacks.
    """

    def __cinit__(self, LatencyTable table not None, PrefixMap map not None, steps, roots, Horizon horizon=None):
        self.table, self.map = table, map
        if map.groups > table.t.groups:
            raise ValueError(f"the map has {map.groups} groups, the table only {table.t.groups}")
        if horizon is not None and len(horizon) < table.t.capacity:
            raise ValueError(f"the table has room for {table.t.capacity} regions, the horizon for {len(horizon)}")
        self.kept = [horizon, *(s.networks for s in steps if s.networks is not None)]
        self.p = <program*>calloc(1, sizeof(program))
        if self.p == NULL:
            raise MemoryError
        self.p.t, self.p.map = &table.t, &map.map
        self.p.horizon = horizon.seconds if horizon is not None else NULL
        self.p.steps = <step_t*>room(len(steps), sizeof(step_t))
        for s in steps:
            self.p.count += 1
            fill_step(&self.p.steps[self.p.count - 1], s, len(steps), table, map)
        self.p.roots = <root_t*>room(len(roots), sizeof(root_t))
        for step, ttl, ttl_min in roots:
            fill_root(&self.p.roots[self.p.root_count], step, ttl, ttl_min if horizon is not None else None)
            self.p.root_count += 1

    def __dealloc__(self):
        cdef uint32_t i
        if self.p == NULL:
            return
        for i in range(self.p.count):
            free(self.p.steps[i].kids)
            free(self.p.steps[i].leaves)
            free(self.p.steps[i].backup)
            free(self.p.steps[i].of_group)
        free(self.p.steps)
        free(self.p.roots)
        free(self.p)

    @property
    def horizon(self):
        """Give the Horizon that TTLs follow, None when they are fixed."""
        return self.kept[0]

    @property
    def roots(self):
        """Give the number of roots."""
        return self.p.root_count

    def choose(self, Py_ssize_t root, client, uint32_t turn=0, bint pair=False):
        """Give the Choice for a client (address as str, bytes or ipaddress object; None = unknown).

        turn: the query's id, which weighted draws go by; pair: give a second region as well
        Raises IndexError outside the roots, ValueError for what is no address.
        """
        cdef choice out
        cdef ip address
        self.check(root)
        choose(self.p, <uint32_t>root, &address if read_client(client, &address) else NULL, turn, pair, &out)
        return Choice(out.region, out.second, out.scope, out.ttl, bool(out.fail_open))

    def several(self, Py_ssize_t root, client, uint32_t turn=0):
        """Give the slots, the closest first, where `choose` says several; [] where it does not."""
        cdef int32_t found[16]
        cdef walk_t w
        cdef ip address
        self.check(root)
        begin(&w, &address if read_client(client, &address) else NULL, turn, False)
        if walk(self.p, self.p.roots[root].step, &w) != SEVERAL:
            return []
        return [found[i] for i in range(choose_several(self.p, w.last, &w, found))]

    cdef int check(self, Py_ssize_t root) except -1:
        if not 0 <= root < self.p.root_count:
            raise IndexError(f"root {root} is not in 0..{<Py_ssize_t>self.p.root_count - 1}")
        return 0


cdef void* room(size_t count, size_t size) except NULL:
    cdef void* memory = calloc(count or 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef int fill_root(root_t* r, step, ttl, ttl_min) except -1:
    r.step, r.ttl = step, ttl
    r.fixed = ttl_min is None
    r.ttl_min = 0 if r.fixed else ttl_min
    return 0


cdef int fill_step(step_t* to, s, steps, LatencyTable table, PrefixMap map) except -1:
    cdef uint32_t i
    to.kind, to.policy, to.value, to.fallback = KINDS.index(s.kind), POLICIES.index(s.policy), s.value, s.fallback
    to.plain = to.kind == PICK and all([k.slot >= 0 and not k.always for k in s.kids])
    to.kids = <kid*>room(len(s.kids), sizeof(kid))
    to.leaves = <uint64_t*>room(table.t.words, sizeof(uint64_t))
    to.backup = <int32_t*>room(len(s.backup), sizeof(int32_t))
    for k in s.kids:
        fill_kid(&to.kids[to.count], k, steps, table)
        to.count += 1
    for slot in s.leaves:
        i = table.region_index(slot)
        to.leaves[i >> 6] |= <uint64_t>1 << (i & 63)
    for slot in s.backup:
        to.backup[to.backups] = table.region_index(slot)
        to.backups += 1
    if to.kind == MAP:
        fill_networks(to, s, map)
    return 0


cdef int fill_kid(kid* to, k, steps, LatencyTable table) except -1:
    to.slot, to.step, to.weight, to.always = k.slot, k.step, k.weight, k.always
    to.least, to.least4, to.least6 = k.least
    to.v4, to.v6 = k.families
    if to.slot >= 0:
        table.region_index(to.slot)
    elif to.step >= steps:
        raise ValueError(f"step {k.step} is not in 0..{steps - 1}")
    return 0


cdef int fill_networks(step_t* to, s, PrefixMap map) except -1:
    cdef PrefixMap networks = map if s.networks is None else s.networks
    kids = np.ascontiguousarray(s.of_group, np.int32)
    cdef const int32_t[::1] of_group = kids
    if of_group.shape[0] < networks.groups:
        raise ValueError(f"{networks.groups} groups of networks, kids of {of_group.shape[0]} only")
    if kids.max() >= to.count or to.fallback >= <int32_t>to.count:
        raise ValueError(f"networks lead to a kid that is not in 0..{to.count - 1}")
    to.networks, to.own = &networks.map, networks is map
    to.of_group = <int32_t*>room(of_group.shape[0], sizeof(int32_t))
    memcpy(to.of_group, &of_group[0], of_group.shape[0] * sizeof(int32_t))
    return 0
