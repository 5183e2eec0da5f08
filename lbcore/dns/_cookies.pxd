# DNS cookies for threads without the GIL: `from lbcore.dns._cookies cimport Cookies, cookie_answer, secrets_now`.
#
#     cdef const cookie_secrets* secrets = secrets_now(&cookies.secrets)     # once a packet or once a batch
#     shown = cookie_answer(secrets, option, size, &client, unix_seconds, out)
#
# A rotation publishes other secrets by one pointer and never writes to or frees those that a thread may still hold, so a secret
# is always whole. What was replaced is kept (40 bytes a rotation) until the Cookies object goes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from lbcore._address cimport ip

cdef enum:
    COOKIE_SIZE = 24     # client cookie, server cookie

cdef struct cookie_secrets:
    uint64_t current[2]   # makes cookies
    uint64_t previous[2]  # of these cookies are still taken
    cookie_secrets* older

cdef extern from *:
    """
    #define LB_SECRETS_NOW(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define LB_SECRETS_PUT(at, p) __atomic_store_n(at, p, __ATOMIC_RELEASE)
    """
    const cookie_secrets* secrets_now "LB_SECRETS_NOW"(cookie_secrets** at) noexcept nogil
    void secrets_put "LB_SECRETS_PUT"(cookie_secrets** at, cookie_secrets* p) noexcept nogil

# Writes COOKIE_SIZE bytes to `out`: what the answer's option holds. 1: a valid server cookie was shown; 0: none, or one that is
# not valid; -1: malformed, nothing is written (FORMERR). `now` is in Unix seconds.
cdef int cookie_answer(
    const cookie_secrets* secrets, const uint8_t* option, Py_ssize_t size, const ip* client, uint32_t now, uint8_t* out
) noexcept nogil


cdef class Cookies:
    cdef cookie_secrets* secrets             # read by secrets_now
    cdef object lock
    cdef int publish(self, bytes current, bytes previous) except -1
    cdef int publish_locked(self, bytes current, bytes previous) except -1
