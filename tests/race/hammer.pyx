# cython: language_level=3
"""C threads on one table and one prefix map, for ThreadSanitizer and for tests of what a race leaves behind.

Built beside the core by `test_table_threads.py`, never installed. Readers pick, writers observe, setters flip the bits
of regions of their own, one ticker ticks (`table_tick` is for one thread at a time), lookers look addresses up; every thread has its own random numbers and counts the
results that cannot be. Whatever else touches the table meanwhile is up to the Python side.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import numpy as np

from lbcore._fast cimport Cell, LatencyTable, Table, in_mask, stamp_of
from lbcore._fast cimport table_observe, table_pick, table_pick_in, table_set, table_set_tier, table_tick
from lbcore._prefix cimport PrefixMap, prefix_lookup4, prefix_lookup6, prefix_map


cdef extern from *:
    """
    #include <pthread.h>
    static int hammer_running = 0;
    static int hammer_races = 0;
    static void hammer_begin(void) { __atomic_fetch_add(&hammer_running, 1, __ATOMIC_SEQ_CST); }
    static void hammer_end(void) { __atomic_fetch_sub(&hammer_running, 1, __ATOMIC_SEQ_CST); }
    static int hammer_left(void) { return __atomic_load_n(&hammer_running, __ATOMIC_SEQ_CST); }
    static int hammer_race(void) { return ++hammer_races & 1; }
    """
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *) nogil
    int pthread_join(pthread_t, void **) nogil
    void hammer_begin() nogil
    void hammer_end() nogil
    int hammer_left() nogil
    int hammer_race() nogil


cdef enum Role:
    READ
    WRITE
    SET
    TICK
    LOOK
    RACE


cdef struct Job:
    pthread_t thread
    Role role
    Table *table
    const prefix_map *map
    uint32_t groups, share, shares     # a setter flips regions r with r % shares == share
    uint64_t random, rounds, wrong
    double now, step                   # time goes on by `step` seconds a round


ROLES = {"read": READ, "write": WRITE, "set": SET, "tick": TICK, "look": LOOK, "race": RACE}


cdef uint64_t draw(Job *j) noexcept nogil:
    """xorshift64. Source: Marsaglia 2003."""
    j.random ^= j.random << 13
    j.random ^= j.random >> 7
    j.random ^= j.random << 17
    return j.random


cdef void read_one(Job *j) noexcept nogil:
    cdef uint64_t mask[1024]
    cdef uint32_t group = <uint32_t>(draw(j) % j.table.groups), word
    cdef int32_t region = table_pick(j.table, group)
    j.wrong += region < -1 or region >= <int32_t>j.table.capacity
    for word in range(j.table.words):
        mask[word] = draw(j)
    region = table_pick_in(j.table, group, mask)
    j.wrong += region >= <int32_t>j.table.capacity or (region >= 0 and not mask[region >> 6] >> (region & 63) & 1)


cdef void write_one(Job *j) noexcept nogil:
    cdef uint32_t region = <uint32_t>(draw(j) % j.table.capacity), group = <uint32_t>(draw(j) % j.table.groups)
    if in_mask(j.table.configured, region):
        table_observe(j.table, group, region, 5 + draw(j) % 60, stamp_of(j.now))


cdef void set_one(Job *j) noexcept nogil:
    cdef uint32_t region = <uint32_t>(draw(j) % j.table.capacity)
    cdef uint64_t kind = draw(j) % 8
    if region % j.shares != j.share or not in_mask(j.table.configured, region):
        return
    if kind < 4:
        table_set_tier(j.table, region, <unsigned char>kind, j.now)
    elif kind == 4:
        table_set(j.table, j.table.enabled, region, draw(j) & 3)
    elif kind == 5:
        table_set(j.table, j.table.synced, region, draw(j) & 3)
    elif kind == 6:
        table_set(j.table, j.table.draining, region, draw(j) & 3 == 0)


cdef void look_one(Job *j) noexcept nogil:
    j.wrong += prefix_lookup4(j.map, <uint32_t>draw(j)) >= j.groups
    j.wrong += prefix_lookup6(j.map, (draw(j) >> 3) | (1ULL << 61), draw(j)) >= j.groups


cdef void *work(void *job) noexcept nogil:
    cdef Job *j = <Job *>job
    cdef uint64_t n
    for n in range(j.rounds):
        j.now += j.step
        if j.role == READ:
            read_one(j)
        elif j.role == WRITE:
            write_one(j)
        elif j.role == SET:
            set_one(j)
        elif j.role == TICK:
            table_tick(j.table, j.now, draw(j) % 64 + 1 if draw(j) & 1 else <uint64_t>-1)
        elif j.role == LOOK:
            look_one(j)
        else:
            j.wrong += hammer_race()
    hammer_end()
    return NULL


cdef class Hammer:
    """Threads by role on a table and a map, which are kept alive: start with `start`, end with `join`."""
    cdef Job *jobs
    cdef int count
    cdef object alive

    def __cinit__(self, LatencyTable table not None, PrefixMap map, list roles, uint64_t rounds, double now, double step, uint64_t seed):
        cdef int i, setters = roles.count("set"), setter = 0
        self.alive, self.count = (table, map), len(roles)
        self.jobs = <Job *>calloc(self.count, sizeof(Job))
        for i in range(self.count):
            self.jobs[i].role, self.jobs[i].table, self.jobs[i].shares = ROLES[roles[i]], &table.t, setters or 1
            self.jobs[i].rounds, self.jobs[i].now, self.jobs[i].step = rounds, now, step
            self.jobs[i].random = seed * 2654435761 + i + 1
            if roles[i] == "set":
                self.jobs[i].share = setter
                setter += 1
            if map is not None:
                self.jobs[i].map, self.jobs[i].groups = &map.map, len(map.keys)

    def start(self):
        cdef int i
        for i in range(self.count):
            hammer_begin()
            if pthread_create(&self.jobs[i].thread, NULL, work, &self.jobs[i]):
                raise OSError("no thread could be created")

    @staticmethod
    def running():
        return hammer_left()

    def join(self):
        """Wait for the threads and give how many results were impossible."""
        cdef int i
        with nogil:
            for i in range(self.count):
                pthread_join(self.jobs[i].thread, NULL)
        return sum(self.jobs[i].wrong for i in range(self.count))

    def __dealloc__(self):
        free(self.jobs)


cdef bits_of(Table *t, uint64_t *plane):
    return np.array([in_mask(plane, r) for r in range(t.capacity)])


def state(LatencyTable table not None):
    """Give everything that decides over homes, for a model to go on from: name -> array."""
    cdef Table *t = &table.t
    cdef uint32_t g, r
    planes = {
        "configured": bits_of(t, t.configured), "enabled": bits_of(t, t.enabled), "synced": bits_of(t, t.synced),
        "draining": bits_of(t, t.draining), "eligible": bits_of(t, t.eligible),
        "gained": bits_of(t, t.gained), "ever": bits_of(t, t.seen),
    }
    ramping = bits_of(t, t.ramping)
    columns = {
        "tiers": [t.tier[r] for r in range(t.capacity)],
        "answered": [t.answered[r] for r in range(t.capacity)],
        "penalty": np.array([t.penalty[r] for r in range(t.capacity)], np.float32),
        "limit": [t.share[r] for r in range(t.capacity)],
        "ramp": [t.ramp_start[r] if ramping[r] else np.nan for r in range(t.capacity)],
    }
    rows = {
        "homes": [t.home[g] if t.home[g] != 65535 else -1 for g in range(t.groups)],
        "former": [t.former[g] if t.former[g] != 65535 else -1 for g in range(t.groups)],
        "pending": [t.since[g] for g in range(t.groups)],
        "forced": np.array([t.forced[g] for g in range(t.groups)], bool),
    }
    fields = ("x", "P", "R", "mu0", "P0", "sp", "sm", "t")
    cells = np.array([[cell_of(t, <size_t>g * t.stride + r) for r in range(t.capacity)] for g in range(t.groups)])
    values = {name: cells[:, :, i].astype(np.int64 if name == "t" else np.float32) for i, name in enumerate(fields)}
    signs = np.array([[t.keys[<size_t>g * t.stride + r] >> 31 for r in range(t.capacity)] for g in range(t.groups)], bool)
    clock = {"last_tick": t.head.last_tick, "credit": t.head.credit, "cursor": int(t.head.age_cursor)}
    return planes | {name: np.array(column) for name, column in (columns | rows).items()} | values | {"sign": signs} | clock


cdef tuple cell_of(Table *t, size_t at):
    cdef const Cell *c = &t.cells[at]
    return c.x, c.P, c.R, c.mu0, c.P0, c.sp, c.sm, c.t
