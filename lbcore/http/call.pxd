cimport cython

from lbcore.http.forward cimport Forwarder
from lbcore.http.inbound cimport Inbound
from lbcore.http.message cimport Request
from lbcore.http.response cimport ResponseReader
from lbcore.http.target cimport Target
from lbcore.http.upstream cimport Outbound, Upstream


@cython.final
cdef class Call:
    cdef public Inbound inbound
    cdef public Request request
    cdef public Outbound connection
    cdef public Target target
    cdef public object cause, state
    cdef public str client
    cdef public double begun_at, wanted_at, sent_at, head_at
    cdef public int attempts, status
    cdef public long long size
    cdef public bytes extra, request_id
    cdef public bint started, sent_all, finished, aborted, cut, chunk_response
    cdef bint _stale_retry, _replayable
    cdef object _kept

    @cython.locals(engine=Forwarder)
    cpdef begin(self)
    cdef _decided(self, decision)
    cpdef send(self, Target target)
    cpdef bint wants(self, Upstream upstream) except -1
    cpdef attach(self, Outbound connection)
    cpdef more(self)
    cdef _keep(self, list parts)
    cpdef failed(self, cause)
    cdef _next(self, cause, bint stale)
    cdef _failure(self, cause)
    cdef _answer_failure(self, cause)
    cdef _rewind(self)
    cpdef broken(self, why)
    cpdef ended(self, ResponseReader reader)
    cdef _cut_off(self, cause)
    cpdef abort(self)
    cpdef expire(self)
    cpdef relayed(self)
    cpdef received(self, ResponseReader reader)
    cdef bint _accept(self, ResponseReader reader) except -1
    cpdef redirect(self, Target target)
    cdef _pass_body(self, ResponseReader reader, list parts)
    cdef _replace(self, ResponseReader reader, response)
    cdef _let_go(self, bint complete)
    cdef _finish(self)
    cpdef reply(self, response)
    cdef _done(self)
