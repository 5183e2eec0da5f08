# cython: language_level=3
"""One packet in, one answer out, from prepared bytes. What is not prepared is left to the Responder, which gives the same bytes
for what is.

Source: RFC 1035 (messages), RFC 4592 §3.3 (closest encloser), RFC 6891 (EDNS), RFC 7871 (ECS), RFC 7873 (cookies), RFC 8914 (EDE).
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lbcore._address cimport ip
from lbcore._table cimport load64, store64
from lbcore.dns._cookies cimport COOKIE_SIZE, cookie_answer, secrets_now
from lbcore.dns._packet cimport (
    ANY, COOKIE, ECS, FIRST_META, HEADER, MAX_UDP, OPT, UNANSWERED, USUAL, big16, put16, put32, query, read_query,
)
from lbcore.dns._prepared cimport body, entry, find_node, forms, node, store, zone
from lbcore.dns._route cimport NODATA, NXDOMAIN, choice, choose
from lbcore.dns._rrl cimport DROP, SLIP, answer_hash, rrl_verdict

cdef enum:
    RRSIG = 46
    EDE = 15                     # RFC 8914; info code 0, "other", with a text
    FAIL_OPEN_SIZE = 32
    SUSPECT_SIZE = 39
    FOREIGN_SIZE = 6
    REFUSED = 5

cdef const uint8_t* FAIL_OPEN_EDE = <const uint8_t*>b"\0\x0f\0\x1c\0\0fail open: no region is up"
cdef const uint8_t* SUSPECT_EDE = <const uint8_t*>b"\0\x0f\0\x23\0\0vantage suspect: health is frozen"
cdef const uint8_t* FOREIGN_EDE = <const uint8_t*>b"\0\x0f\0\2\0\x14"    # 20, "not authoritative"

cdef body REFUSAL                # of names in no zone here
REFUSAL.data, REFUSAL.rcode = <const uint8_t*>b"", REFUSED       # memcpy takes no NULL, not even for nothing
cdef forms FOREIGN
FOREIGN.plain, FOREIGN.plains, FOREIGN.series = &REFUSAL, 1, REFUSED_SERIES
cdef zone NOWHERE


# What is about to be said of one query.
cdef struct reply:
    const zone* zone
    const body* body
    const node* topic            # what rate limiting counts together: a name, NULL = every foreign one,
    uint16_t topic_type          # and a type, 0 = all that the name lacks
    uint32_t ttl, scope
    bint steered, fail_open, suspect, foreign, truncated, known
    uint8_t cookie[COOKIE_SIZE]
    const uint8_t* nsid
    uint32_t nsid_size


cdef const node* find(const store* s, const query* q, bint* exact) noexcept nogil:
    """Give the node of a name, else its closest encloser; NULL when no zone here has it."""
    cdef uint32_t at = 0
    cdef const node* found = find_node(s, q.name, q.name_size)
    exact[0] = found != NULL
    while found == NULL and q.name[at]:
        at += q.name[at] + 1
        found = find_node(s, q.name + at, q.name_size - at)
    return found


cdef inline const entry* entry_of(const node* n, uint16_t rdtype) noexcept nogil:
    cdef uint32_t i
    for i in range(n.type_count):
        if n.types[i] == rdtype:
            return &n.entries[i]
    return n.other


cdef inline const forms* prepared(const forms* f) noexcept nogil:
    return f if f.plains else NULL


cdef const forms* steer(const view* v, const entry* e, const query* q, const ip* source, uint32_t turn, reply* r) noexcept nogil:
    """Let the entry's route choose; NULL when the outcome is not prepared."""
    cdef choice c
    cdef uint32_t slots = v.answers.slots
    choose(v.routes, <uint32_t>e.root, &q.network if q.located else source, turn, e.paired, &c)
    r.ttl, r.steered, r.fail_open = c.ttl, True, c.fail_open
    r.scope = <uint32_t>c.scope if q.located else 0
    if c.region == NODATA:
        return prepared(&e.nodata)
    if c.region == NXDOMAIN:
        return prepared(&e.nxdomain)
    if c.region < 0 or <uint32_t>c.region >= slots:
        return NULL
    if e.paired and 0 <= c.second < <int32_t>slots:
        return prepared(&e.pairs[c.region * slots + c.second]) if e.pairs != NULL else NULL
    return prepared(&e.regions[c.region]) if e.regions != NULL else NULL


cdef const forms* answer_of(const view* v, const query* q, const ip* source, uint32_t turn, reply* r) noexcept nogil:
    """Find what a query is answered with; NULL when only the Responder knows."""
    cdef bint exact
    cdef const node* n = find(v.answers, q, &exact)
    cdef const entry* e
    if FIRST_META <= q.type <= ANY or q.type == OPT or (q.type == RRSIG and n != NULL and n.zone.signed_zone):
        return NULL
    if n == NULL:
        r.foreign, r.topic, r.zone = True, NULL, &NOWHERE
        return &FOREIGN
    if n.referral:
        return NULL
    r.topic, r.zone = n, n.zone
    if not exact:
        if q.dnssec_ok and n.zone.signed_zone:
            return NULL                      # the proof that the name does not exist depends on the name
        if n.wildcard == NULL:
            return prepared(&n.zone.nxdomain)
        n = n.wildcard
    e = entry_of(n, q.type)
    if e == NULL:
        return NULL
    r.topic, r.topic_type = n, q.type if e != n.other else 0
    return prepared(&e.fixed) if e.root < 0 else steer(v, e, q, source, turn, r)


cdef const body* body_of(const forms* f, const query* q, bint signed_zone, uint32_t turn) noexcept nogil:
    if q.dnssec_ok and f.dnssecs:
        return &f.dnssec[turn % f.dnssecs]
    if q.dnssec_ok and signed_zone:
        return NULL
    return &f.plain[turn % f.plains if f.plains > 1 else 0]


cdef inline uint32_t opt_size(const query* q, const reply* r) noexcept nogil:
    if not q.edns:
        return 0
    return (11 + (4 + q.subnet_size if q.subnet != NULL else 0) + (4 + COOKIE_SIZE if r.known else 0) + r.nsid_size
            + (FAIL_OPEN_SIZE if r.fail_open else 0) + (SUSPECT_SIZE if r.suspect else 0) + (FOREIGN_SIZE if r.foreign else 0))


cdef inline uint8_t* put_bytes(uint8_t* p, const void* data, uint32_t size) noexcept nogil:
    memcpy(p, data, size)
    return p + size


cdef void put_opt(uint8_t* p, uint32_t size, const query* q, const reply* r) noexcept nogil:
    p[0] = 0
    put16(p + 1, OPT)
    put16(p + 3, MAX_UDP)
    put32(p + 5, <uint32_t>q.dnssec_ok << 15)
    put16(p + 9, size - 11)
    p += 11
    if q.subnet != NULL:
        put16(p, ECS)
        put16(p + 2, q.subnet_size)
        p = put_bytes(p + 4, q.subnet, q.subnet_size)
        (p - q.subnet_size)[3] = <uint8_t>r.scope
    if r.known:
        put16(p, COOKIE)
        put16(p + 2, COOKIE_SIZE)
        p = put_bytes(p + 4, r.cookie, COOKIE_SIZE)
    p = put_bytes(p, r.nsid, r.nsid_size) if r.nsid_size else p
    p = put_bytes(p, FAIL_OPEN_EDE, FAIL_OPEN_SIZE) if r.fail_open else p
    p = put_bytes(p, SUSPECT_EDE, SUSPECT_SIZE) if r.suspect else p
    if r.foreign:
        put_bytes(p, FOREIGN_EDE, FOREIGN_SIZE)


cdef void put_body(uint8_t* p, const body* b, uint32_t ttl, uint32_t pointer) noexcept nogil:
    cdef uint32_t i, ttls = b.ttls, all = ttls + b.origins
    memcpy(p, b.data, b.size)
    ttl = ttl if ttl < b.most else b.most
    for i in range(ttls):
        put32(p + b.fixups[i], ttl)
    for i in range(ttls, all):
        put16(p + b.fixups[i], pointer)


cdef int32_t write(uint8_t* out, const uint8_t* packet, const query* q, const reply* r) noexcept nogil:
    cdef const body* b = r.body
    cdef uint32_t opt = opt_size(q, r), start = HEADER + q.name_size + 4, data = 0 if r.truncated else b.size
    memcpy(out, packet, start)
    memset(out + 6, 0, 6)
    out[2] = 0x80 | (packet[2] & 1) | b.authoritative << 2 | r.truncated << 1
    out[3] = b.rcode
    if not r.truncated:
        put16(out + 6, b.answers)
        put16(out + 8, b.authorities)
        put16(out + 10, b.additionals)
        put_body(out + start, b, r.ttl, 0xC000 + HEADER + q.name_size - r.zone.origin_size)
    if opt:
        put16(out + 10, big16(out + 10) + 1)
        put_opt(out + start + data, opt, q, r)
    return <int32_t>(start + data + opt)


cdef inline void tally(uint64_t* counter) noexcept nogil:
    store64(counter, load64(counter) + 1)


cdef bint shown(const settings* w, const context* c, const query* q, const ip* source, reply* r) noexcept nogil:
    """Make the answer's cookie; True when the query had a valid server cookie, so that its source address is no forgery."""
    cdef int found
    if w.cookies == NULL or q.cookie == NULL:
        return False
    found = cookie_answer(secrets_now(w.cookies), q.cookie, q.cookie_size, source, <uint32_t>c.now_s, r.cookie)
    r.known = found >= 0
    return found > 0


cdef bint limited(const settings* w, context* c, const ip* source, reply* r) noexcept nogil:
    """Apply rate limiting; True when nothing is to be sent, else the answer may have become a truncated one."""
    cdef const uint8_t* name = r.topic.name if r.topic != NULL else NULL
    cdef uint32_t answer = answer_hash(name, r.topic.name_size if r.topic != NULL else 0, r.topic_type)
    cdef int verdict = rrl_verdict(w.rrl, source, answer, c.now_ms)
    if verdict == DROP:
        tally(&c.counts[LIMITED_DROPPED])
        return True
    if verdict == SLIP:                      # it must not be worth a forger's while: no longer than its query, but for the cookie
        tally(&c.counts[LIMITED_SLIPPED])
        r.truncated, r.nsid_size = True, 0
        r.fail_open = r.suspect = r.foreign = False
    return False


cdef void count(context* c, const query* q, const forms* f, bint fail_open) noexcept nogil:
    tally(&c.series[f.series])
    if q.subnet != NULL:
        tally(&c.counts[WITH_ECS])
    if fail_open:
        tally(&c.counts[FAIL_OPEN])


cdef int32_t respond(
    const view* v, const settings* w, context* c, const uint8_t* packet, uint32_t size, const ip* source, uint8_t* out
) noexcept nogil:
    cdef query q
    cdef int verdict = read_query(&q, packet, size)
    if verdict == UNANSWERED:
        tally(&c.counts[UNANSWERABLE])
        return DROPPED
    return respond_to(v, w, c, &q, packet, source, out) if verdict == USUAL else SLOW


cdef int32_t respond_to(
    const view* v, const settings* w, context* c, const query* q, const uint8_t* packet, const ip* source, uint8_t* out
) noexcept nogil:
    cdef reply r
    cdef const forms* f
    cdef uint32_t turn = big16(packet)
    cdef bint known, fail_open
    r.steered = r.fail_open = r.suspect = r.foreign = r.truncated = r.known = False
    r.scope = r.ttl = r.topic_type = 0
    f = answer_of(v, q, source, turn, &r)
    r.body = body_of(f, q, r.zone.signed_zone, turn) if f != NULL else NULL
    if r.body == NULL:
        return SLOW
    r.suspect = r.steered and load64(&w.suspect)
    r.nsid, r.nsid_size = w.nsid, w.nsid_size if q.nsid else 0
    fail_open = r.fail_open
    known = shown(w, c, q, source, &r)
    if HEADER + q.name_size + 4 + r.body.size + opt_size(q, &r) > q.limit:
        return SLOW                          # before it takes a token: the Responder asks the limiter as well
    if not known and w.rrl != NULL and limited(w, c, source, &r):
        return DROPPED
    count(c, q, f, fail_open)
    return write(out, packet, q, &r)
