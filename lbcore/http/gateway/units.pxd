cdef class Units:
    cdef public int count, concurrency, queue, under_way, refused
    cdef public double rate
    cdef double _interval, _free_at, _patience
    cdef object _each, _clock, _waiting, _timer, _samples, _looked_at
    cdef int _entered, _refused_before
    cpdef bint enter(self, double now) except -1
    cpdef bint _take(self, double now) except -1
    cpdef leave(self)
    cpdef double _next_chance(self, double now) except? -1
    cpdef _in_flight(self)


cdef class SharedUnits(Units):
    cdef object _slots, _limits
    cdef int _worker, _calls
    cdef double _period
    cpdef bint _take(self, double now) except -1
    cpdef leave(self)
    cpdef double _next_chance(self, double now) except? -1
    cpdef _in_flight(self)
