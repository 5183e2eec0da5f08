# cython: language_level=3
"""DNS cookies: proof that a client sits where its packets say, made of its address and a secret, nothing kept per client.

    option of a query      8 bytes of the client's; then 8 to 32 bytes that a server gave it, or nothing
    option of an answer    the client's 8, then version 1, three reserved bytes, Unix seconds, 8 bytes of SipHash-2-4 over all that and
                           the client's address

Servers that share a secret take each other's cookies, of whatever make they are.
Source: RFC 7873 (the option), RFC 9018 (the server's cookie; appendix A is in the tests).
"""
import os
import threading

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from lbcore._address cimport read_packed
from lbcore._siphash cimport le64, siphash

__all__ = ["Cookies"]

cdef enum:
    CLIENT_SIZE = 8
    SHORTEST = 16        # client cookie and the least server cookie
    LONGEST = 40
    PAST = 3600          # seconds for which a cookie is taken
    FUTURE = 300         # of clocks that differ
    RENEWED = 1800       # seconds after which the client gets another

cdef int SECRET_SIZE = 16


cdef inline bint is_mapped(const ip* a) noexcept nogil:
    """Say whether an address is IPv4 in the form that a socket of both families gives it."""
    return a.is_v6 and not a.hi and a.lo >> 32 == 0xFFFF


cdef inline int put_word(uint8_t* p, uint64_t word, int size) noexcept nogil:
    cdef int i
    for i in range(size):
        p[i] = <uint8_t>(word >> 8 * (size - 1 - i))
    return size


cdef inline uint64_t hash_of(const uint64_t* secret, const uint8_t* cookie, const ip* client) noexcept nogil:
    """Hash client cookie, version, reserved bytes, time stamp (the first 16 bytes of `cookie`) and the client's address."""
    cdef uint8_t data[32]
    cdef int size = 16
    memcpy(data, cookie, 16)
    if not client.is_v6:
        size += put_word(data + size, client.hi >> 32, 4)
    elif is_mapped(client):
        size += put_word(data + size, <uint32_t>client.lo, 4)
    else:
        size += put_word(data + size, client.hi, 8)
        size += put_word(data + size, client.lo, 8)
    return le64(siphash(secret, data, size, 2, 4))


cdef inline bint is_of(const uint64_t* secret, const uint8_t* cookie, const ip* client) noexcept nogil:
    cdef uint64_t expected = hash_of(secret, cookie, client), shown
    memcpy(&shown, cookie + 16, 8)
    return not expected ^ shown                  # one comparison: its time says nothing about single bytes


cdef int cookie_answer(
    const cookie_secrets* secrets, const uint8_t* option, Py_ssize_t size, const ip* client, uint32_t now, uint8_t* out
) noexcept nogil:
    cdef uint32_t stamp
    cdef int32_t age = PAST
    cdef uint64_t hashed
    cdef bint valid = False
    if size != CLIENT_SIZE and not SHORTEST <= size <= LONGEST:
        return -1
    if size == COOKIE_SIZE and option[8] == 1:
        stamp = <uint32_t>option[12] << 24 | <uint32_t>option[13] << 16 | <uint32_t>option[14] << 8 | option[15]
        age = <int32_t>(now - stamp)             # RFC 1982: right beyond 2106 as well
        if -FUTURE <= age <= PAST:
            if is_of(secrets.current, option, client):
                if age <= RENEWED:
                    memcpy(out, option, COOKIE_SIZE)
                    return 1
                valid = True
            else:
                valid = is_of(secrets.previous, option, client)
    memcpy(out, option, CLIENT_SIZE)
    put_word(out + 8, 0x01000000, 4)
    put_word(out + 12, now, 4)
    hashed = hash_of(secrets.current, out, client)
    memcpy(out + 16, &hashed, 8)
    return valid


cdef class Cookies:
    """Make and judge server cookies; threads that hold no lock and no GIL may do so while secrets are replaced.

    current: 16 bytes that make cookies; None = drawn by chance, for one process. Servers behind one address share it
    previous: 16 bytes whose cookies are taken as well: the secret before, or the one that comes next; None = `current`
    Raises ValueError when a secret is not 16 bytes long.
    Source: RFC 7873, RFC 9018.
    """

    def __cinit__(self):
        self.lock = threading.Lock()
        current = os.urandom(SECRET_SIZE)
        self.publish(current, current)

    def __init__(self, current=None, previous=None):
        if current is not None:
            self.replace(current, previous)

    def __dealloc__(self):
        cdef cookie_secrets* older
        while self.secrets != NULL:
            older = self.secrets.older
            free(self.secrets)
            self.secrets = older

    def replace(self, current, previous=None):
        """Make cookies with `current` from now on, and still take those of `previous`; 16 bytes each, None = `current`."""
        self.publish(bytes(current), bytes(current if previous is None else previous))

    def rotate(self):
        """Draw another secret; cookies of the one in use are taken until the next rotation."""
        cdef bytes current
        with self.lock:
            current = (<char*>self.secrets.current)[:SECRET_SIZE]
            self.publish_locked(os.urandom(SECRET_SIZE), current)

    def answer(self, bytes option not None, bytes client not None, unsigned int now):
        """Give (a valid server cookie was shown, 24 bytes for the answer's option); None when the option is malformed.

        option: the data of the query's option. client: its address, packed, 4 or 16 bytes. now: Unix seconds, modulo 2**32
        Raises ValueError for an address of another length.
        """
        cdef uint8_t out[COOKIE_SIZE]
        cdef ip address
        cdef int shown
        if len(client) not in (4, 16):
            raise ValueError(f"{client!r} is not an address of 4 or 16 bytes")
        read_packed(<const uint8_t*>PyBytes_AS_STRING(client), PyBytes_GET_SIZE(client), &address)
        shown = cookie_answer(
            secrets_now(&self.secrets), <const uint8_t*>PyBytes_AS_STRING(option), PyBytes_GET_SIZE(option), &address, now, out
        )
        return None if shown < 0 else (shown == 1, <bytes>(<char*>out)[:COOKIE_SIZE])

    cdef int publish(self, bytes current, bytes previous) except -1:
        with self.lock:
            return self.publish_locked(current, previous)

    cdef int publish_locked(self, bytes current, bytes previous) except -1:
        cdef cookie_secrets* made
        if len(current) != SECRET_SIZE or len(previous) != SECRET_SIZE:
            raise ValueError(f"a cookie secret is {SECRET_SIZE} bytes, not {len(current)} and {len(previous)}")
        if self.secrets != NULL and not memcmp(self.secrets.current, PyBytes_AS_STRING(current), SECRET_SIZE) \
                and not memcmp(self.secrets.previous, PyBytes_AS_STRING(previous), SECRET_SIZE):
            return 0                             # a file that is read again and again adds nothing
        made = <cookie_secrets*>malloc(sizeof(cookie_secrets))
        if made == NULL:
            raise MemoryError
        memcpy(made.current, PyBytes_AS_STRING(current), SECRET_SIZE)
        memcpy(made.previous, PyBytes_AS_STRING(previous), SECRET_SIZE)
        made.older = self.secrets
        secrets_put(&self.secrets, made)
        return 0
