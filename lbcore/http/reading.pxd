cimport cython

from lbcore.http.message cimport Request


@cython.final
cdef class RequestReader:
    cdef public object ready
    cdef public Request reading, switch
    cdef Request _like
    cdef public bytes rest
    cdef public bint begun
    cdef object _limits, _parser
    cdef bytes _target, _host, _last
    cdef list _fields
    cdef dict _special
    cdef Py_ssize_t _size, _unread
    cdef bint _primed
    cdef _reset(self)

    @cython.locals(between=bint, before=Py_ssize_t, whole=bytes)
    cpdef feed(self, bytes data)
    cdef _remember(self, bytes data, Request request)
    cdef Request _again(self, Request like)

    @cython.locals(offset=Py_ssize_t)
    cdef bytes _read(self, bytes data)
    cpdef go_on(self)
    cdef _count_unfinished(self, Py_ssize_t size)

    @cython.locals(key=bytes)
    cpdef on_header(self, bytes name, bytes value)
    cdef _add_trailer(self, bytes name, bytes value)

    @cython.locals(special=dict, host=bytes)
    cdef _check(self, Request request)
    cdef _check_special(self, Request request)
    cdef bytes _upgraded(self, bytes rest)
    cdef _prime(self, Request request)
