# cython: language_level=3
"""Wire: the compiled UDP path. Threads without the GIL take datagrams many at a time and answer them from prepared bytes.

What they look into is one `view` behind one pointer. Whoever replaces it waits until each thread that was in the middle of a batch
has finished it, then frees what was replaced: readers take no lock, and never wait.
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

cimport cython

import ipaddress
import threading

from lbcore._address cimport ip, read_packed
from lbcore._table cimport load64, store64
from lbcore.dns._cookies cimport Cookies
from lbcore.dns._packet cimport MAX_UDP, SLACK, UNANSWERED, USUAL, query as query_t, read_query
from lbcore.dns._prepared cimport Store
from lbcore.dns._respond cimport (
    COUNTS, DROPPED, FAIL_OPEN, HANDED_OVER, LIMITED_DROPPED, LIMITED_SLIPPED, LOST, OTHER_SERIES, QUERIES, REFUSED_SERIES, SLOW,
    UNANSWERABLE, UNSENT, WITH_ECS, context, respond, respond_to, settings, view,
)
from lbcore.dns._route cimport Program, foresee
from lbcore.dns._rrl cimport RateLimiter

cdef enum:
    BATCH = 16                   # datagrams a call; more only waits longer
    PACKET = 4096                # bytes of a query; longer ones are dropped
    SERIES = 65536               # counters of answers; what does not fit is counted as the first
    WAKE = 100                   # milliseconds between looks at `stopping`, without traffic

cdef extern from "dns/_wire.h" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr_storage:
        pass
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct timespec:
        pass
    int EAGAIN, EINTR, EBADF, ENOTSOCK, EINVAL, MSG_WAITFORONE, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC
    int recvmmsg(int fd, mmsghdr* messages, unsigned int n, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int n, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    int usleep(unsigned int microseconds)
    void lb_enter(uint64_t* sequence)
    void lb_leave(uint64_t* sequence)
    uint64_t lb_sequence(uint64_t* sequence)
    void* lb_current(void** pointer)
    void* lb_replace(void** pointer, void* other)
    int lb_errno()
    uint64_t lb_seconds()
    uint64_t lb_milliseconds()
    void lb_tune(int fd, long wake_milliseconds)
    int lb_source(const sockaddr_storage* source, uint8_t* address, uint16_t* port, uint32_t* scope)


# What goes to the Responder in front of a packet: struct "=iIHH16sI".
cdef struct frame:               # without gaps
    int32_t fd
    uint32_t kind                # 0: to be answered, 1: an answer, for the query log
    uint16_t family, port
    uint8_t address[16]
    uint32_t scope

# One thread's datagrams.
cdef struct batch:
    mmsghdr taken[BATCH]
    mmsghdr given[BATCH]
    iovec taken_parts[BATCH]
    iovec given_parts[BATCH]
    sockaddr_storage sources[BATCH]
    query_t queries[BATCH]
    int verdicts[BATCH]
    frame frames[BATCH]
    ip clients[BATCH]
    uint8_t answers[BATCH][MAX_UDP]
    uint8_t packets[BATCH][PACKET + SLACK]


cdef void prepare(batch* b) noexcept nogil:
    cdef int i
    for i in range(BATCH):
        b.taken_parts[i].iov_base, b.taken_parts[i].iov_len = &b.packets[i][0], PACKET
        b.taken[i].msg_hdr.msg_iov, b.taken[i].msg_hdr.msg_iovlen = &b.taken_parts[i], 1
        b.taken[i].msg_hdr.msg_name, b.taken[i].msg_hdr.msg_namelen = &b.sources[i], sizeof(sockaddr_storage)
        b.given[i].msg_hdr.msg_iov, b.given[i].msg_hdr.msg_iovlen = &b.given_parts[i], 1


cdef bint hand_over(int slow_fd, const frame* f, const void* data, size_t size) noexcept nogil:
    """Give a packet to the Responder; False when it lags behind."""
    cdef iovec parts[2]
    cdef msghdr message
    memset(&message, 0, sizeof(message))
    parts[0].iov_base, parts[0].iov_len = <void*>f, sizeof(frame)
    parts[1].iov_base, parts[1].iov_len = <void*>data, size
    message.msg_iov, message.msg_iovlen = parts, 2
    return sendmsg(slow_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0


cdef inline void tally(uint64_t* counter, uint64_t n) noexcept nogil:
    store64(counter, load64(counter) + n)


cdef inline void locate(const frame* f, ip* source) noexcept nogil:
    """Give the source as an address; IPv4 within IPv6 (a socket for both) as the IPv4 address it is."""
    read_packed(f.address, 16 if f.family == 6 else 4, source)
    if f.family == 6 and source.hi == 0 and source.lo >> 32 == 0xFFFF:
        source.hi, source.lo, source.is_v6 = source.lo << 32, 0, False


cdef inline bint log_due(const settings* s, context* c) noexcept nogil:
    if not s.sample:
        return False
    c.sampled += 1
    return c.sampled % s.sample == 0


cdef int read_one(context* c, batch* b, int i, int fd) noexcept nogil:
    """Read datagram `i`; give what is to become of it."""
    cdef frame* f = &b.frames[i]
    cdef int verdict
    f.fd, f.kind = fd, 0
    f.family = lb_source(&b.sources[i], f.address, &f.port, &f.scope)
    if not f.family or not f.port or b.taken[i].msg_hdr.msg_flags & MSG_TRUNC:   # nobody listens on port 0: the source is forged
        tally(&c.counts[UNANSWERABLE], 1)
        return UNANSWERED
    locate(f, &b.clients[i])
    verdict = read_query(&b.queries[i], b.packets[i], b.taken[i].msg_len)
    if verdict == UNANSWERED:
        tally(&c.counts[UNANSWERABLE], 1)
    return verdict


cdef inline void foresee_all(const view* v, batch* b, int n) noexcept nogil:
    """Have the map's memory fetched for all of a batch at once, so that no answer waits for it."""
    cdef int i, depth
    for depth in range(3):
        for i in range(n):
            if b.verdicts[i] == USUAL:
                foresee(v.routes, &b.queries[i].network if b.queries[i].located else &b.clients[i], depth)


cdef int32_t take_one(const view* v, const settings* s, context* c, batch* b, int i, int slow_fd) noexcept nogil:
    """Answer datagram `i` into `b.answers[i]` and give the answer's size, or hand it over and give 0."""
    cdef int32_t size = SLOW
    if b.verdicts[i] == UNANSWERED:
        return 0
    if b.verdicts[i] == USUAL:
        size = respond_to(v, s, c, &b.queries[i], b.packets[i], &b.clients[i], b.answers[i])
    if size > 0:
        if log_due(s, c):
            b.frames[i].kind = 1
            hand_over(slow_fd, &b.frames[i], b.answers[i], <size_t>size)
        return size
    if size == SLOW:
        tally(&c.counts[HANDED_OVER if hand_over(slow_fd, &b.frames[i], b.packets[i], b.taken[i].msg_len) else LOST], 1)
    return 0


cdef int answer_batch(void** current, const settings* s, context* c, batch* b, int n, int fd, int slow_fd) noexcept nogil:
    """Answer what was taken, from one view; give the number of answers."""
    cdef const view* v
    cdef int i, answers = 0
    cdef int32_t size
    c.now_s, c.now_ms = lb_seconds(), lb_milliseconds()
    for i in range(n):
        b.verdicts[i] = read_one(c, b, i, fd)
    lb_enter(&c.sequence)
    v = <const view*>lb_current(current)
    foresee_all(v, b, n)
    for i in range(n):
        size = take_one(v, s, c, b, i, slow_fd)
        if size:
            b.given_parts[answers].iov_base, b.given_parts[answers].iov_len = &b.answers[i][0], <size_t>size
            b.given[answers].msg_hdr.msg_name = &b.sources[i]
            b.given[answers].msg_hdr.msg_namelen = b.taken[i].msg_hdr.msg_namelen
            answers += 1
        b.taken[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
    lb_leave(&c.sequence)
    tally(&c.counts[QUERIES], n)
    return answers


cdef void send_all(int fd, context* c, batch* b, int n) noexcept nogil:
    """Send without waiting; what the socket does not take is dropped and counted, as the network would."""
    cdef int done = 0, sent
    while done < n:
        sent = sendmmsg(fd, &b.given[done], n - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            done += sent
        elif sent < 0 and lb_errno() != EINTR:
            tally(&c.counts[UNSENT], 1)
            done += 1


cdef int run(void** current, const settings* s, context* c, int fd, int slow_fd) noexcept nogil:
    """Serve one socket until told to stop; give 0, or the error that made it impossible."""
    cdef batch* b = <batch*>calloc(1, sizeof(batch))
    cdef int n, error = 0
    if b == NULL:
        return 12                            # ENOMEM
    prepare(b)
    lb_tune(fd, WAKE)
    while not load64(&c.stopping):
        n = recvmmsg(fd, b.taken, BATCH, MSG_WAITFORONE, NULL)
        if n > 0:
            send_all(fd, c, b, answer_batch(current, s, c, b, n, fd, slow_fd))
        elif n < 0 and lb_errno() in (EBADF, ENOTSOCK, EINVAL):
            error = lb_errno()
            break
    free(b)
    return error


@cython.final
cdef class Wire:
    """Answer UDP queries from prepared bytes; what is not prepared goes to the Responder.

    cookies: Cookies, None = the option is ignored; rrl: RateLimiter, None = no limit
    nsid: this server's name for who asks for it (RFC 5001), b"" = none
    sample: one answer of so many goes to the query log; 0 = none
    Nothing is answered before the first `publish`.
    """

    def __cinit__(self, *, Cookies cookies=None, RateLimiter rrl=None, bytes nsid=b"", uint64_t sample=0):
        cdef bytes option = b"\0\x03" + len(nsid).to_bytes(2, "big") + nsid if nsid else b""
        self.contexts, self.lock = [], threading.Lock()
        self.series = {("", "", "", "", "other"): OTHER_SERIES, ("", "", "", "", "refused"): REFUSED_SERIES}
        self.kept = [cookies, rrl, option]
        self.s.nsid, self.s.nsid_size = <const uint8_t*>PyBytes_AS_STRING(option), len(option)
        self.s.cookies = &cookies.secrets if cookies is not None else NULL
        self.s.rrl = rrl.l if rrl is not None else NULL
        self.s.sample = sample
        self.own = self.enlist()

    def __dealloc__(self):
        for c in self.contexts or ():
            free((<context*><size_t>c).series)
            free(<context*><size_t>c)
        free(self.current)

    # ---- what is answered

    def publish(self, answers, Program program not None):
        """Answer from these Answers, along these routes, from the next query on; returns when nothing uses the former any more."""
        with self.lock:
            self.replace(Store(answers, self.number_of), program)

    def suspect(self, bint on):
        """Say whether steered answers carry the extended error that health is frozen."""
        store64(&self.s.suspect, on)

    cdef int replace(self, Store store, Program program) except -1:
        cdef view* other = <view*>malloc(sizeof(view))
        if other == NULL:
            raise MemoryError()
        other.answers, other.routes = &store.s, program.p
        former = (self.store, self.program)      # kept until nobody reads them
        other = <view*>lb_replace(<void**>&self.current, other)
        self.store, self.program = store, program
        for c in [*self.contexts]:
            self.wait_for(<context*><size_t>c)
        free(other)
        del former
        return 0

    cdef object wait_for(self, context* c):
        """Wait until a thread has finished the batch it is in, if it is in one."""
        cdef uint64_t seen = lb_sequence(&c.sequence)
        if seen & 1:
            with nogil:
                while lb_sequence(&c.sequence) == seen:
                    usleep(20)

    # ---- serving

    def serve(self, int fd, int slow_fd):
        """Serve a bound UDP socket until `stop`, in the calling thread, without the GIL.

        slow_fd: one end of a datagram socket pair; to it go packets for the Responder and sampled answers, each behind a frame
            "=iIHH16sI": fd to answer on, kind (0 = a query, 1 = an answer that was sent), family (4, 6), port, address, scope id
        Raises OSError when the socket cannot be used, ValueError before the first `publish`.
        """
        cdef context* c = NULL
        cdef int error
        if self.current == NULL:
            raise ValueError("publish answers first: there is nothing to answer from")
        with self.lock:
            if load64(&self.own.stopping):
                return
            c = self.enlist()
        with nogil:
            error = run(<void**>&self.current, &self.s, c, fd, slow_fd)
        if error:
            raise OSError(error, f"UDP socket {fd} cannot be served")

    def stop(self):
        """Let every `serve` end after the batch it is in, within 0.1 s, and later ones at once; queries in the sockets stay there."""
        with self.lock:
            for c in self.contexts:
                store64(&(<context*><size_t>c).stopping, 1)

    def answer(self, bytes query not None, client):
        """Give the answer to one packet as `serve` would; None for one that is dropped or the Responder's.

        client: address as text, 4 or 16 bytes, or an ipaddress object
        """
        cdef uint8_t packet[PACKET + SLACK]
        cdef uint8_t out[MAX_UDP]
        cdef frame f
        cdef ip source
        cdef int32_t size = DROPPED
        cdef bytes packed = client if isinstance(client, bytes) else ipaddress.ip_address(client).packed
        if self.current == NULL or len(query) > PACKET:
            return None
        f.family = 6 if len(packed) == 16 else 4
        memcpy(f.address, PyBytes_AS_STRING(packed), len(packed))
        memcpy(packet, PyBytes_AS_STRING(query), len(query))
        memset(packet + len(query), 0, SLACK)
        locate(&f, &source)
        with self.lock:
            self.own.now_s, self.own.now_ms = lb_seconds(), lb_milliseconds()
            size = respond(self.current, &self.s, self.own, packet, <uint32_t>len(query), &source, out)
        return PyBytes_FromStringAndSize(<char*>out, size) if size > 0 else None

    # ---- counting

    cdef context* enlist(self) except NULL:
        cdef context* c = <context*>calloc(1, sizeof(context))
        if c != NULL:
            c.series = <uint64_t*>calloc(SERIES, sizeof(uint64_t))
        if c == NULL or c.series == NULL:
            free(c)
            raise MemoryError()
        self.contexts.append(<size_t>c)
        return c

    def number_of(self, key):
        """Give the number of the counter for (zone, name, type, region, result)."""
        number = self.series.setdefault(key, len(self.series))
        if number < SERIES:
            return number
        del self.series[key]
        return OTHER_SERIES

    def counters(self):
        """Give what was counted since the start, over all threads; they go on meanwhile.

        queries: datagrams received; unanswerable, slow (handed over), lost (the Responder lags), unsent, ecs, fail_open, truncated
        (by rate limiting), limited (not answered at all); answers: {(zone, name, type, region, result): count}
        """
        cdef context* c
        cdef size_t number, i
        cdef uint64_t[COUNTS] total
        memset(total, 0, sizeof(total))
        answers = {}
        for each in [*self.contexts]:
            c = <context*><size_t>each
            for i in range(<size_t>COUNTS):
                total[i] += load64(&c.counts[i])
        for key, index in [*self.series.items()]:
            number = index
            if found := sum([load64(&(<context*><size_t>each).series[number]) for each in self.contexts]):
                answers[key] = found
        return {
            "queries": total[QUERIES], "unanswerable": total[UNANSWERABLE], "slow": total[HANDED_OVER], "lost": total[LOST],
            "unsent": total[UNSENT], "ecs": total[WITH_ECS], "fail_open": total[FAIL_OPEN], "truncated": total[LIMITED_SLIPPED],
            "limited": total[LIMITED_DROPPED], "answers": answers,
        }
