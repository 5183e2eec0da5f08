cimport cython


@cython.final
cdef class ResponseReader:
    cdef public int status
    cdef public list fields, interim, parts, trailers
    cdef public object length
    cdef public Py_ssize_t received
    cdef public bint headless, chunked, sized, complete, keep_alive, switched, surplus
    cdef public bytes rest
    cdef object _limits, _parser
    cdef dict _special
    cdef Py_ssize_t _unread
    cpdef begin(self, bint headless)
    cpdef feed(self, bytes data)
    cdef _fault(self, error)
    cpdef restart(self)
    cpdef bint end(self) except -1

    @cython.locals(key=bytes)
    cpdef on_header(self, bytes name, bytes value)
    cdef _add_trailer(self, bytes name, bytes value)

    @cython.locals(status=int)
    cpdef on_headers_complete(self)
    cdef _frame(self, dict special)
    cdef _interim(self, int status)
