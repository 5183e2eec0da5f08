cdef class Pipeline:
    cdef tuple _backend, _inbound, _on_error, _outbound
    cpdef inbound(self, context)
    cpdef backend(self, context)
    cpdef outbound(self, context, head)
    cpdef on_error(self, context, response)
    cdef _run(self, tuple steps, context, int first=*)
    cdef _ended(self, response, context)
    cdef _bug(self, kind, context)
