# cython: language_level=3
"""Counters that worker processes share: Limits, calls a period for each key; Slots, calls in flight for each worker.

    entry    a key's keyed hash | one word: when its window began, calls of this window and of the one before, when each had its last
    allow    one compare-and-swap of that word; nobody waits for anybody
    room     16 entries are looked at from where the hash points; those whose calls are all past belong to whoever comes first

A key's entry is claimed by its hash first and counts from then on. Two processes that claim one at the same moment may take different
entries; whoever publishes looks for another one before and takes over what it counted. So a process that stops at any point holds up
nobody, and one that is killed leaves at most one entry unused. One that is stopped in the middle of claiming or merging a new entry may
lose or repeat the count of that moment.
Everything about time is in whole milliseconds of the clock that the callers share.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport ceil, isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import os

from lbcore._siphash cimport siphash

__all__ = ["MOST_CALLS", "Limits", "Slots"]

cdef extern from *:
    """
    #define LB_LOAD(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define LB_STORE(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    #define LB_ADD(p, n) __atomic_add_fetch(p, n, __ATOMIC_SEQ_CST)
    static inline int lb_replace(uint64_t *p, uint64_t seen, uint64_t word) {
        return __atomic_compare_exchange_n(p, &seen, word, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline unsigned lb_log2(uint64_t x) { return 63 - (unsigned)__builtin_clzll(x); }
    """
    uint64_t load "LB_LOAD"(uint64_t *) noexcept nogil
    void store "LB_STORE"(uint64_t *, uint64_t) noexcept nogil
    uint64_t add "LB_ADD"(uint64_t *, uint64_t) noexcept nogil
    bint replace "lb_replace"(uint64_t *, uint64_t seen, uint64_t word) noexcept nogil
    uint32_t log2_of "lb_log2"(uint64_t) noexcept nogil

cdef enum:
    WINDOW = 16                # entries that are looked at
    COUNT_BITS = 17
    SLOT_BITS = 6
    SLOTS = 1 << SLOT_BITS     # of a window, in which its last call is remembered
    UNIT_BITS = 18
    UNITS = 1 << UNIT_BITS     # of time that a word can tell apart; a window has 64 to 128, or one a millisecond
    PAST = 2 * 128 + 2         # units after which all calls of two windows are past
    LINE = 64                  # bytes: each worker writes to its own
    ATTEMPTS = 10000

cdef uint64_t MAGIC = 0x0001_534C_4F43_424C       # "LBCOLS" and the layout's version
cdef uint64_t EMPTY = 0                           # nothing was counted
cdef uint64_t DEAD = 1 << SLOT_BITS               # is being given back; no word of a live entry looks so: that has a call
cdef uint64_t EXPONENT = 63                       # bits of a hash that say how long a window is, so that others can tell what is past
cdef uint64_t COUNTED = (1 << COUNT_BITS) - 1
cdef int64_t LONGEST = 366 * 86400 * 1000
MOST_CALLS = (1 << COUNT_BITS) - 1


cdef struct Header:
    uint64_t magic, size, ready, overflows
    uint64_t key[2]

cdef struct Entry:
    uint64_t hash
    uint64_t word

cdef struct Counts:
    uint64_t unit              # in which the window began
    uint64_t before, now       # calls
    uint64_t last_before, last  # slots of their last calls

# What one call asks. Times in milliseconds; shift: of a millisecond to a unit
cdef struct Asked:
    uint64_t hash
    int64_t limit, period, now
    uint32_t shift


# ---------------------------------------------------------------- words

cdef inline uint64_t packed(const Counts *c) noexcept nogil:
    cdef uint64_t counts = c.before << COUNT_BITS | c.now
    return c.unit << 46 | counts << 12 | c.last_before << SLOT_BITS | c.last


cdef inline void unpack(uint64_t word, Counts *c) noexcept nogil:
    c.unit = word >> 46
    c.before, c.now = word >> 29 & COUNTED, word >> 12 & COUNTED
    c.last_before, c.last = word >> SLOT_BITS & (SLOTS - 1), word & (SLOTS - 1)


cdef inline uint32_t shift_of(uint64_t exponent) noexcept nogil:
    return exponent - 6 if exponent > 6 else 0


cdef inline uint64_t age_of(int64_t now, uint32_t shift, uint64_t unit) noexcept nogil:
    return (<uint64_t>(now >> shift) - unit) & (UNITS - 1)


cdef inline bint is_past(uint64_t hashed, uint64_t word, int64_t now) noexcept nogil:
    """Say whether all calls of an entry, whosever it is, were more than a period ago."""
    return PAST <= age_of(now, shift_of(hashed & EXPONENT), word >> 46) < UNITS - PAST


cdef inline void fill(Asked *a, uint64_t hashed, int64_t limit, int64_t period, int64_t now) noexcept nogil:
    cdef uint32_t exponent = log2_of(period)
    a.hash = (hashed ^ <uint64_t>period * 0x9E3779B97F4A7C15ULL) & ~EXPONENT | exponent
    if not a.hash >> SLOT_BITS:
        a.hash |= 1 << SLOT_BITS
    a.limit, a.period, a.now, a.shift = limit, period, now, shift_of(exponent)


cdef inline int64_t whole(const Asked *a, int64_t time) noexcept nogil:
    """Give the begin of the next unit."""
    return time + (1 << a.shift) - 1 >> a.shift << a.shift


cdef inline int64_t start_of(const Asked *a, uint64_t unit) noexcept nogil:
    """Give when a window began, which may be a little later than now: in a whole unit, or by a clock that was read a moment later."""
    cdef int64_t age = age_of(a.now, a.shift, unit)
    return (a.now >> a.shift) - (age - UNITS if age >= UNITS - PAST else age) << a.shift


cdef inline double begun(const Asked *a, Counts *c, int64_t start) noexcept nogil:
    """Begin a window; give the share of it that has passed."""
    cdef int64_t gone
    start = whole(a, start)
    gone = a.now - start
    c.unit, c.now, c.last = <uint64_t>(start >> a.shift) & (UNITS - 1), 0, 0
    return <double>gone / <double>a.period if gone > 0 else 0.0


cdef inline double share(double passed, uint64_t last) noexcept nogil:
    """Give how many of the calls before are still within a period, as if they had come evenly until the last of them."""
    cdef double left = 1.0 - passed * SLOTS / <double>(last + 1)
    return left if left > 0.0 else 0.0


cdef inline double current(const Asked *a, uint64_t word, Counts *c) noexcept nogil:
    """Bring a word's counts to the window of now, and give how far that is.

    It begins a period after the one before, or now if all calls before are past.
    """
    cdef int64_t gone
    cdef double passed
    unpack(word, c)
    gone = a.now - start_of(a, c.unit)
    if word != EMPTY and gone < a.period:
        return <double>gone / <double>a.period if gone > 0 else 0.0
    if word != EMPTY and gone < 2 * a.period:
        c.before, c.last_before = c.now, c.last
        passed = begun(a, c, a.now - gone + a.period)
        if share(passed, c.last_before) > 0.0:
            return passed
    c.before = c.last_before = 0
    return begun(a, c, a.now)


cdef inline double used(const Counts *c, double passed) noexcept nogil:
    return <double>c.before * share(passed, c.last_before) + <double>c.now


cdef inline double waiting(const Asked *a, const Counts *c, double passed) noexcept nogil:
    """Give the seconds until one more is allowed, 0.0 = now."""
    cdef double windows
    cdef int64_t start = start_of(a, c.unit)
    if used(c, passed) + 1.0 <= <double>a.limit:
        return 0.0
    if <int64_t>c.now < a.limit:
        windows = (1.0 - <double>(a.limit - 1 - <int64_t>c.now) / <double>c.before) * <double>(c.last_before + 1) / SLOTS
    else:
        windows = (1.0 - <double>(a.limit - 1) / <double>c.now) * <double>(c.last + 1) / SLOTS
        start = whole(a, start + a.period)
    return (<double>(start - a.now) + ceil(windows * <double>a.period) + 1.0) / 1000.0


# ---------------------------------------------------------------- Limits

@cython.no_gc_clear   # __dealloc__ releases the buffer; a cleared view could not be
@cython.final
cdef class Limits:
    """Count calls by key in a sliding window, in a table of fixed size that processes may share.

    entries: keys there is room for, a power of two, 64 to 2**24; 16 bytes each. When there is no room for a key its calls are allowed, and
        `overflows` counts them
    buffer: writable memory of `nbytes_for(entries)` bytes, 8-byte aligned, to share with other processes; zeroed = new
    A key's window begins with its first call, and the next one a period later, or with the next call if the last one is longer ago. Of
    those in the window before count as many as are less than a period ago if they came evenly until the last of them. So never more than
    `limit` are allowed in a window; in a period that lies across two, one call early in the first and a burst at its end can make it
    almost twice that.
    Windows begin in units of 1/64 of a period or less: one may be longer by that much, never shorter.
    The hash is keyed by chance, so nobody can aim at another's entry. Keys are not kept.
    Raises ValueError for sizes out of range or a buffer that holds something else, MemoryError.
    Source: Cloudflare, "How we built rate limiting capable of scaling to millions of domains" (2017); the last call's time is added.
    """
    cdef void *block
    cdef Py_buffer view
    cdef Header *head
    cdef Entry *table
    cdef uint64_t mask

    def __cinit__(self, entries=65536, *, buffer=None):
        cdef uint64_t size = checked_entries(entries)
        cdef char *base = memory(&self.view, &self.block, buffer, LINE + size * sizeof(Entry))
        self.head, self.table, self.mask = <Header *>base, <Entry *>(base + LINE), size - 1
        open_header(self.head, size, os.urandom(16))

    def __dealloc__(self):
        free(self.block)
        if self.view.buf != NULL:
            PyBuffer_Release(&self.view)

    @staticmethod
    def nbytes_for(entries):
        """Give the bytes that `buffer` must have."""
        return LINE + checked_entries(entries) * sizeof(Entry)

    @property
    def entries(self):
        """Give the number of keys there is room for."""
        return self.mask + 1

    @property
    def overflows(self):
        """Give the number of calls that were allowed because there was no room to count them."""
        return load(&self.head.overflows)

    def allow(self, bytes key not None, limit, double period, double now, /):
        """Count a call and give 0.0; or the seconds until one would be allowed, and count nothing.

        limit: calls, 1 to MOST_CALLS; period: seconds, 0.001 to a year; now: monotonic seconds >= 0, of the clock that all callers share.
        Different limits and periods are different counters only by their periods: the key should say which limit it is for.
        Raises ValueError for values out of range.
        """
        cdef Asked a
        cdef int64_t at = self.ask(&a, key, limit, period, now)
        return self.count(&a, at)

    def remaining(self, bytes key not None, limit, double period, double now, /):
        """Give how many calls would be allowed at once now; arguments as `allow`."""
        cdef Asked a
        cdef Counts c
        cdef Entry *entry
        cdef double passed
        self.ask(&a, key, limit, period, now)
        entry = self.find(a.hash)
        passed = current(&a, load(&entry.word) if entry != NULL else EMPTY, &c)
        return max(0, <int64_t>(<double>a.limit - used(&c, passed)))

    cdef int64_t ask(self, Asked *a, bytes key, limit, double period, double now) except -1:
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(key)
        cdef int64_t length = <int64_t>(period * 1000.0 + 0.5) if 0.0 < period < 1e9 else 0
        if not 1 <= limit <= COUNTED:
            raise ValueError(f"limit must be 1 to {MOST_CALLS}, got {limit!r}")
        if not 1 <= length <= LONGEST:
            raise ValueError(f"period must be 0.001 s to 366 days, got {period!r}")
        if not (isfinite(now) and 0.0 <= now < 1e12):
            raise ValueError(f"now must be seconds from 0, got {now!r}")
        fill(a, siphash(self.head.key, start, PyBytes_GET_SIZE(key), 1, 3), limit, length, <int64_t>(now * 1000.0 + 0.5))
        return a.now

    cdef inline Entry *at(self, uint64_t hashed, int step) noexcept nogil:
        return &self.table[((hashed >> SLOT_BITS) + step) & self.mask]

    cdef Entry *find(self, uint64_t hashed) noexcept nogil:
        cdef int step
        cdef Entry *entry
        for step in range(WINDOW):
            entry = self.at(hashed, step)
            if load(&entry.hash) == hashed and load(&entry.word) != DEAD:
                return entry
        return NULL

    cdef double count(self, const Asked *a, int64_t now) noexcept nogil:
        cdef Entry *entry
        cdef Counts c
        cdef uint64_t word
        cdef double passed, wait
        cdef int _attempt
        for _attempt in range(ATTEMPTS):
            entry = self.find(a.hash)
            if entry == NULL:
                entry = self.claim(a.hash, now)
                if entry == NULL:
                    break
            word = load(&entry.word)
            if word == DEAD or load(&entry.hash) != a.hash:
                continue
            passed = current(a, word, &c)
            if word == EMPTY and not self.alone(a, entry):
                continue
            wait = waiting(a, &c, passed)
            if wait > 0.0:
                return wait
            c.now += 1
            c.last = max(c.last, <uint64_t>(passed * SLOTS))
            if replace(&entry.word, word, packed(&c)):
                return 0.0
        add(&self.head.overflows, 1)
        return 0.0

    cdef Entry *claim(self, uint64_t hashed, int64_t now) noexcept nogil:
        """Give an entry that is the hash's from now on, NULL when all are in use."""
        cdef int step
        cdef uint64_t held, word
        cdef Entry *entry
        for step in range(WINDOW):
            entry = self.at(hashed, step)
            held, word = load(&entry.hash), load(&entry.word)
            if held != load(&entry.hash):
                continue
            if word != EMPTY and word != DEAD and is_past(held, word, now) and replace(&entry.word, word, DEAD):
                release(entry)
                held, word = 0, EMPTY
            if held == 0 and word == EMPTY and replace(&entry.hash, 0, hashed):
                return entry
            if load(&entry.hash) == hashed:
                return entry
        return NULL

    cdef bint alone(self, const Asked *a, Entry *own) noexcept nogil:
        """Say whether no other entry counts for the hash of one that begins to; else give one of them up, and its calls to the other."""
        cdef int step
        cdef uint64_t word
        cdef Entry *entry
        cdef bint earlier = True
        for step in range(WINDOW):
            entry = self.at(a.hash, step)
            if entry == own:
                earlier = False
                continue
            word = load(&entry.word)
            if word == DEAD or load(&entry.hash) != a.hash:
                continue
            if earlier:                # whoever looks finds that one first
                if replace(&own.word, EMPTY, DEAD):
                    release(own)
            elif replace(&entry.word, word, DEAD):
                release(entry)
                add_calls(a, own, word)
            return False
        return True


cdef inline void add_calls(const Asked *a, Entry *own, uint64_t word) noexcept nogil:
    """Add what another entry has counted."""
    cdef uint64_t seen
    cdef Counts c, found
    if word == EMPTY:
        return
    current(a, word, &found)
    while True:
        seen = load(&own.word)
        if seen == DEAD or load(&own.hash) != a.hash:
            return
        current(a, seen, &c)
        c.before, c.now = min(COUNTED, c.before + found.before), min(COUNTED, c.now + found.now)
        c.last_before, c.last = max(c.last_before, found.last_before), max(c.last, found.last)
        if replace(&own.word, seen, packed(&c)):
            return


cdef inline void release(Entry *entry) noexcept nogil:
    """Give an entry back that is DEAD by this thread's doing."""
    store(&entry.hash, 0)
    store(&entry.word, EMPTY)


# ---------------------------------------------------------------- Slots

@cython.no_gc_clear
@cython.final
cdef class Slots:
    """Count calls in flight, and calls in all, for each worker process.

    workers: 1 to 4096; each has its own 64 bytes
    buffer: writable memory of `nbytes_for(workers)` bytes, 8-byte aligned, to share with other processes; zeroed = new
    Raises ValueError for a number out of range or a buffer that holds something else, MemoryError; IndexError for no such worker.
    """
    cdef void *block
    cdef Py_buffer view
    cdef Header *head
    cdef char *lines
    cdef int64_t size

    def __cinit__(self, workers=1, *, buffer=None):
        cdef uint64_t size = checked_workers(workers)
        cdef char *base = memory(&self.view, &self.block, buffer, LINE * (size + 1))
        self.head, self.lines, self.size = <Header *>base, base + LINE, size
        open_header(self.head, size, b"\0" * 16)

    def __dealloc__(self):
        free(self.block)
        if self.view.buf != NULL:
            PyBuffer_Release(&self.view)

    @staticmethod
    def nbytes_for(workers):
        """Give the bytes that `buffer` must have."""
        return LINE * (checked_workers(workers) + 1)

    @property
    def workers(self):
        """Give the number of workers there is room for."""
        return self.size

    def begin(self, worker, /):
        """Count a call that begins, and give how many are in flight in all workers with it."""
        cdef uint64_t *line = self.line(worker)
        add(&line[1], 1)
        add(&line[0], 1)
        return self.sum(0)

    def end(self, worker, /):
        """Count a call's end; what was cleared meanwhile is not counted below 0."""
        cdef uint64_t *line = self.line(worker)
        cdef uint64_t seen = load(&line[0])
        while seen and not replace(&line[0], seen, seen - 1):
            seen = load(&line[0])

    def in_flight(self, worker=None):
        """Give the calls in flight, of one worker or of all."""
        return self.sum(0) if worker is None else load(self.line(worker))

    def calls(self, worker=None):
        """Give the calls that ever began, of one worker or of all."""
        return self.sum(1) if worker is None else load(&self.line(worker)[1])

    def clear(self, worker, /):
        """Forget the calls in flight of a worker that is gone; those that ever began still count."""
        store(self.line(worker), 0)

    cdef uint64_t *line(self, worker) except NULL:
        cdef int64_t number = worker
        if not 0 <= number < self.size:
            raise IndexError(f"worker {worker} of {self.size}")
        return <uint64_t *>(self.lines + LINE * number)

    cdef uint64_t sum(self, int which) noexcept:
        cdef uint64_t total = 0
        cdef int64_t number
        for number in range(self.size):
            total += load(&(<uint64_t *>(self.lines + LINE * number))[which])
        return total


# ---------------------------------------------------------------- memory

cdef uint64_t checked_entries(entries) except 0:
    if not isinstance(entries, int) or not 64 <= entries <= 1 << 24 or entries & (entries - 1):
        raise ValueError(f"entries must be a power of two, 64 to {1 << 24}, got {entries!r}")
    return entries


cdef uint64_t checked_workers(workers) except 0:
    if not isinstance(workers, int) or not 1 <= workers <= 4096:
        raise ValueError(f"workers must be 1 to 4096, got {workers!r}")
    return workers


cdef char *memory(Py_buffer *view, void **block, buffer, size_t size) except NULL:
    if buffer is None:
        block[0] = calloc(size + LINE, 1)
        if block[0] == NULL:
            raise MemoryError(f"{size} bytes")
        return <char *>((<size_t>block[0] + LINE - 1) & ~<size_t>(LINE - 1))
    PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE)
    if <size_t>view.len < size or <size_t>view.buf & 7:
        raise ValueError(f"buffer must be 8-byte aligned and hold at least {size} bytes, got {view.len}")
    return <char *>view.buf


cdef int open_header(Header *head, uint64_t size, bytes key) except -1:
    if replace(&head.ready, 0, 1):
        head.magic, head.size = MAGIC, size
        memcpy(head.key, PyBytes_AS_STRING(key), 16)
        store(&head.ready, 2)
    if load(&head.ready) != 2 or head.magic != MAGIC or head.size != size:
        found, wanted = (load(&head.ready), head.magic, head.size), (2, MAGIC, size)
        raise ValueError(f"the buffer holds something else or is half written: (ready, magic, size) is {found}, expected {wanted}")
    return 0
