cimport cython


@cython.final
cdef class Request:
    cdef public bytes method, target, upgrade
    cdef public list fields, parts
    cdef public dict special
    cdef public object length, trailers
    cdef public bint keep_alive, old, chunked, complete
    cdef public Py_ssize_t received


cpdef bytes status_line(int status)
cpdef check_authority(bytes value)


@cython.locals(target=bytes)
cpdef check_target(Request request)
