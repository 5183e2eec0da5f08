"""C interface of the core, for the compiled edges: `from lbcore._fast cimport LatencyTable, table_pick, ...`."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from lbcore._prefix cimport PrefixMap
from lbcore._table cimport (
    Cell, Table, in_mask, stamp_of, table_observe, table_pick, table_pick_in, table_scan, table_set, table_set_tier, table_tick,
)


cdef class LatencyTable:
    cdef Table t
    cdef void *block
    cdef Py_buffer view        # the caller's buffer, when there is one
    cdef tuple numbers         # region indices as ready-made int objects
    cdef object __weakref__
    cdef char *memory(self, buffer, size_t size) except NULL
    cdef int open_block(self, uint32_t columns, double tau) except -1
    cdef uint32_t group_index(self, Py_ssize_t group) except? 0xFFFFFFFF
    cdef uint32_t region_index(self, Py_ssize_t region) except? 0xFFFFFFFF
    cdef object column(self, Py_ssize_t group, bint deviations)
    cdef bint own(self, double now)
    cdef int seat(self, double now)
    cdef object belongings(self)
    cdef object aged_cells(self, const uint32_t[::1] rows, uint32_t regions, uint32_t stamp)


cdef class Picker:
    cdef readonly LatencyTable table
    cdef readonly PrefixMap map
    cdef readonly tuple objects
    cdef object no_region
