# The compiled UDP path.

from libc.stdint cimport uint64_t

from lbcore.dns._prepared cimport Store
from lbcore.dns._respond cimport context, settings, view
from lbcore.dns._route cimport Program

cdef class Wire:
    cdef view* current
    cdef settings s
    cdef context* own            # of `answer`
    cdef list contexts, kept
    cdef dict series
    cdef object lock
    cdef Store store
    cdef Program program
    cdef context* enlist(self) except NULL
    cdef int replace(self, Store store, Program program) except -1
    cdef object wait_for(self, context* c)
