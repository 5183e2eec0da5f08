# What a database record says of a place, and the text that names the place's group. Without the GIL.
#
# Two schemas: nested (country.iso_code, subdivisions[0].iso_code, city.names.en, location.latitude ...) and flat
# (country_code, state1, city, latitude, longitude).
# Sources: GeoIP2 City and Country fields, MaxMind; ip-location-db's databases for the flat names.

from libc.math cimport NAN, fabs, floor, isfinite, llround
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abs
from libc.string cimport memcpy, memset, strlen

from lbcore._section cimport (
    ARRAY, DOUBLE, FLOAT, INT32, MAP, STRING, TEXT_TOO_LONG, UINT16, UINT32,
    big_endian, broken, find_values, item, read_value, section, text,
)

cdef enum grouping:
    GRID = 0
    COUNTRY
    SUBDIVISION
    CITY
    RECORD

cdef enum:
    FAR = 200            # km; beyond this accuracy radius a city is no better than a region

cdef struct place:           # what a record says; an absent text has size 0, an absent coordinate is NaN
    text country, subdivision, city
    double lat, lon, radius


cdef inline text literal(const char* name) noexcept nogil:
    cdef text result
    result.start, result.size = <const uint8_t*>name, <uint32_t>strlen(name)
    return result


cdef inline int read_text(section* s, uint64_t at, text* out) noexcept nogil:
    """Take the text at `at`; anything else, an empty text, and nothing at 0, leave `out` as it is."""
    cdef item value
    cdef uint64_t after
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind == STRING and value.size:
        if value.size > 255:
            return broken(s, TEXT_TOO_LONG, at)
        out.start, out.size = s.data + value.start, value.size
    return 0


cdef inline int read_number(section* s, uint64_t at, double* out) noexcept nogil:
    """Take the number at `at`, of whatever type; anything else, and nothing at 0, leave `out` as it is."""
    cdef item value
    cdef uint64_t after, bits = 0
    cdef uint32_t i, word
    cdef float single
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind == DOUBLE:
        for i in range(8):
            bits = bits << 8 | s.data[value.start + i]
        memcpy(out, &bits, 8)
    elif value.kind == FLOAT:
        word = big_endian(s.data + value.start, 4)
        memcpy(&single, &word, 4)
        out[0] = single
    elif value.kind == UINT16 or value.kind == UINT32:
        out[0] = big_endian(s.data + value.start, value.size)
    elif value.kind == INT32:
        word = big_endian(s.data + value.start, value.size)
        out[0] = <int32_t>word if value.size == 4 else word
    return 0


cdef inline int find_at(section* s, uint64_t at, const text* names, int count, uint64_t* found) noexcept nogil:
    """find_values in the map at `at`; all 0 when there is no map."""
    cdef item value
    cdef uint64_t after
    cdef int i
    for i in range(count):
        found[i] = 0
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    return find_values(s, &value, names, count, found) if value.kind == MAP else 0


cdef inline int read_code(section* s, uint64_t at, text* out) noexcept nogil:
    """Take `iso_code` of the map at `at`, or the text itself where a flat database has one."""
    cdef text name = literal(b"iso_code")
    cdef uint64_t found
    if read_text(s, at, out) or find_at(s, at, &name, 1, &found):
        return -1
    return read_text(s, found, out)


cdef inline int read_subdivision(section* s, uint64_t at, text* out) noexcept nogil:
    cdef item value
    cdef uint64_t after
    if not at:
        return 0
    if read_value(s, at, &value, &after):
        return -1
    if value.kind != ARRAY or not value.size:
        return 0
    return read_code(s, value.start, out)


cdef inline int read_city(section* s, uint64_t at, char* number, text* out) noexcept nogil:
    """Take the city's English name, else its GeoNames number (written to `number`), else a flat database's text."""
    cdef text names[2]
    cdef text name = literal(b"en")
    cdef uint64_t found[2]
    cdef uint64_t english
    cdef double geoname = 0
    names[0], names[1] = literal(b"names"), literal(b"geoname_id")
    if read_text(s, at, out) or find_at(s, at, names, 2, found) or find_at(s, found[0], &name, 1, &english):
        return -1
    if read_text(s, english, out) or read_number(s, found[1], &geoname):
        return -1
    if not out.size and 0 < geoname < 4294967296.0:
        out.size = put_digits(number, 0, <uint32_t>geoname, 1)
        out.start = <const uint8_t*>number
    return 0


cdef inline int find_fields(section* s, uint64_t at, uint64_t* root, uint64_t* location) noexcept nogil:
    """Find the fields of the record at `at`: root[0..8] and location[0..2], in the order below; 0 where absent."""
    cdef text names[9]
    cdef item record
    cdef uint64_t after
    names[0], names[1], names[2] = literal(b"country"), literal(b"registered_country"), literal(b"location")
    names[3], names[4], names[5] = literal(b"subdivisions"), literal(b"city"), literal(b"country_code")
    names[6], names[7], names[8] = literal(b"state1"), literal(b"latitude"), literal(b"longitude")
    memset(root, 0, 9 * sizeof(uint64_t))
    if read_value(s, at, &record, &after) or record.kind == MAP and find_values(s, &record, names, 9, root):
        return -1
    names[0], names[1], names[2] = literal(b"latitude"), literal(b"longitude"), literal(b"accuracy_radius")
    return find_at(s, root[2], names, 3, location)


cdef inline int read_place(section* s, uint64_t at, char* number, place* out) noexcept nogil:
    """Read the record at `at`; `number` (24 bytes) may come to hold the city's text."""
    cdef uint64_t root[9]
    cdef uint64_t location[3]
    out.country.size = out.subdivision.size = out.city.size = 0
    out.lat = out.lon = out.radius = NAN
    if find_fields(s, at, root, location):
        return -1
    if read_code(s, root[1], &out.country) or read_code(s, root[0], &out.country) or read_text(s, root[5], &out.country):
        return -1
    if read_subdivision(s, root[3], &out.subdivision) or read_text(s, root[6], &out.subdivision):
        return -1
    if read_city(s, root[4], number, &out.city):
        return -1
    if read_number(s, root[7], &out.lat) or read_number(s, root[8], &out.lon):
        return -1
    if read_number(s, location[0], &out.lat) or read_number(s, location[1], &out.lon) or read_number(s, location[2], &out.radius):
        return -1
    if not (-90 <= out.lat <= 90 and -180 <= out.lon <= 180):
        out.lat = out.lon = NAN
    return 0


cdef inline bint located(const place* p) noexcept nogil:
    return isfinite(p.lat)


cdef inline bint is_wide(const place* p) noexcept nogil:
    return not p.subdivision.size and not p.city.size


cdef inline uint8_t precision_of(const place* p, int grouping) noexcept nogil:
    if not p.country.size and not located(p):
        return 0
    if is_wide(p) or grouping == COUNTRY:
        return 1
    if not p.city.size or not located(p) or p.radius > FAR or grouping == SUBDIVISION:
        return 2
    return 3


cdef inline int put(char* key, int size, const text* part) noexcept nogil:
    if part.size:
        memcpy(key + size, part.start, part.size)
    return size + <int>part.size


cdef inline int put_sign(char* key, int size, bint negative) noexcept nogil:
    key[size], key[size + 1] = c"/", c"-"
    return size + 1 + negative


cdef inline int put_digits(char* key, int size, uint32_t number, int width) noexcept nogil:
    """Write a number with at least `width` digits; not by printf, which is slow, and follows the locale for decimals."""
    cdef char digits[10]
    cdef int count = 0
    while number or count < width:
        digits[count] = <char>(c"0" + number % 10)
        number //= 10
        count += 1
    while count:
        count -= 1
        key[size] = digits[count]
        size += 1
    return size


cdef inline int put_cell_edge(char* key, int size, double degrees) noexcept nogil:
    """Write the southern or western edge of a 2-degree cell, in whole degrees."""
    cdef int edge = <int>(2 * floor(degrees / 2))
    return put_digits(key, put_sign(key, size, edge < 0), abs(edge), 1)


cdef inline int put_degrees(char* key, int size, double degrees) noexcept nogil:
    """Write degrees with four decimals, halves away from zero."""
    cdef uint32_t units = <uint32_t>llround(fabs(degrees) * 10000)
    size = put_digits(key, put_sign(key, size, degrees < 0 and units), units // 10000, 1)
    key[size] = c"."
    return put_digits(key, size + 1, units % 10000, 4)


cdef inline int write_grid_key(char* key, const place* p) noexcept nogil:
    cdef int size = 0
    cdef text unknown
    unknown.start, unknown.size = <const uint8_t*>b"ZZ", 2
    if not p.country.size and not located(p):
        return 0
    size = put(key, 0, &p.country if p.country.size else &unknown)
    if located(p) and not (is_wide(p) and p.country.size):
        size = put_cell_edge(key, put_cell_edge(key, size, p.lat), p.lon)
    if is_wide(p) or not located(p):
        memcpy(key + size, b"/wide", 5)
        return size + 5
    memcpy(key + size, b"/point", 6)
    return size + 6


cdef inline int write_named_key(char* key, const place* p, int grouping) noexcept nogil:
    """Write country/subdivision/city/lat/lon as far as asked; trailing parts that are unknown are left out."""
    cdef int size = put(key, 0, &p.country)
    cdef bint city = p.city.size and grouping >= CITY
    cdef bint point = located(p) and grouping == RECORD
    if (p.subdivision.size and grouping >= SUBDIVISION) or city or point:
        key[size] = c"/"
        size = put(key, size + 1, &p.subdivision)
    if city or point:
        key[size] = c"/"
        size = put(key, size + 1, &p.city)
    if point:
        size = put_degrees(key, put_degrees(key, size, p.lat), p.lon)
    return size
