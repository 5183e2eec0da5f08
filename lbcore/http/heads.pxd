cimport cython

from lbcore.http.call cimport Call
from lbcore.http.inbound cimport Inbound
from lbcore.http.message cimport Request
from lbcore.http.response cimport ResponseReader
from lbcore.http.target cimport Target


@cython.final
cdef class Heads:
    cdef public object trusted
    cdef public bytes name, lines
    cdef bytes _via, _prefix
    cdef object _numbers
    cpdef identify(self, Call call)
    cpdef bytes identifier(self, Call call)
    cdef str _client(self, list chain, str peer)

    @cython.locals(inbound=Inbound, request=Request, lines=list)
    cpdef bytes request(self, Call call, Target target)

    @cython.locals(inbound=Inbound, special=dict)
    cdef bytes _about_client(self, Call call)
    cdef bytes _client_lines(self, Inbound inbound, dict special, bytes host)
    cdef _add_special(self, Call call, list lines)

    @cython.locals(request=Request, lines=list)
    cpdef bytes response(self, Call call, ResponseReader reader)
    cdef bytes _tail(self, Call call)
    cpdef bytes own(self, Call call, response)
    cpdef bytes refusal(self, response)
