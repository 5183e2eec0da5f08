"""Static records in the form of a zone file: read by dnspython, then judged as a whole.

$ORIGIN and $TTL work; $INCLUDE and $GENERATE do not: a configuration reads the files it names, and no file makes a million names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import dns.exception
import dns.name
import dns.rdatatype
import dns.tokenizer
import dns.zonefile
from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import (
    AAAA,
    CDNSKEY,
    CDS,
    CNAME,
    DNAME,
    DNSKEY,
    DS,
    NS,
    NSEC,
    NSEC3,
    NSEC3PARAM,
    OPT,
    RRSIG,
    SOA,
    A,
    RdataType,
)  # fmt: skip
from dns.rdtypes.ANY.NS import NS as NsData

from lbcore.dns.names import WILD, from_key, key_of, parent, within
from lbcore.dns.profile import MAX_TTL
from lbcore.errors import Violation

if TYPE_CHECKING:
    import dns.transaction

    from lbcore.dns.zone import Zone

__all__ = ["Content", "Lines", "Records", "below_cut", "check", "cuts", "read"]

MAX_ERRORS = 20  # of form: what follows many is rarely another mistake
MAX_DATA = 60_000  # bytes of one RRset: with its name and signatures it must go into a message over TCP
_MADE_BY_SIGNING = frozenset((RRSIG, NSEC, NSEC3, NSEC3PARAM, DNSKEY, CDS, CDNSKEY))
_STEERED = frozenset((A, AAAA, CNAME))


class Records(NamedTuple):
    """Records of one type at one name."""

    ttl: int
    rdatas: tuple[Rdata, ...]

    def servers(self) -> list[Name]:
        """Give the name servers; the records are NS."""
        return [cast(NsData, record).target for record in self.rdatas]


Content = dict[bytes, dict[int, Records]]  # by name, by type
Lines = dict[tuple[bytes, int], str]  # where the last record of a name and type stands, as "file:line"


def read(records: str | Path | None, origin: Name, ttl: int, violations: list[Violation]) -> tuple[Content, Lines]:
    """Give the records of a zone file, given as text or as the Path of a file, and where they stand.

    ttl: seconds, of records before any $TTL that give none
    What cannot be read is added to `violations`. Raises OSError when the file cannot be opened.
    """
    sink = _Sink(origin, violations)
    if records is None:
        return sink.content, sink.lines
    file = str(records) if isinstance(records, Path) else "records"
    content = records.read_bytes() if isinstance(records, Path) else records.encode(errors="surrogatepass")
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a mark that would be taken for part of a name
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        violations.append(Violation(f"{file}:{line}", content[error.start : error.end], "text in UTF-8"))
        return {}, {}
    sink.tokenizer = _Tokenizer(text + "\n", file)
    _read(sink, ttl)
    return sink.content, sink.lines


class _Tokenizer(dns.tokenizer.Tokenizer):
    """Remembers where the record begins that is being read: at its end, the tokenizer may be a line further on already."""

    begun = 1

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        """Give the next token; only the first of a record may be a comment."""
        if want_comment:
            self.begun = self.line_number
        return super().get(want_leading, want_comment)

    @property
    def place(self) -> str:
        """Give where the record begins."""
        return f"{self.filename}:{self.begun}"


class _Sink:
    """Takes what dnspython reads, in the place of one of its transactions."""

    def __init__(self, origin: Name, violations: list[Violation]) -> None:
        self.origin, self.origin_key, self.violations = origin, key_of(origin), violations
        self.content: Content = {}
        self.lines: Lines = {}
        self.tokenizer = _Tokenizer("")
        self.manager = self

    def origin_information(self) -> tuple[Name, bool, Name]:
        """Let the reader pass on what lies outside the zone, which it would skip."""
        return dns.name.root, False, dns.name.root

    def check_put_rdataset(self, check: object) -> None:
        """Leave the checks to `check`."""

    def _set_origin(self, origin: Name) -> None:
        pass

    def add(self, name: Name, ttl: int, rdata: Rdata) -> None:
        """Take one record."""
        key, rdtype = key_of(name), int(rdata.rdtype)
        where = self.tokenizer.place
        if not within(key, self.origin_key):
            self.violations.append(Violation(where, str(name), f"a name in {self.origin}"))
            return
        if ttl > MAX_TTL:
            self.violations.append(Violation(where, f"{name} {ttl}", f"a TTL of at most {MAX_TTL} seconds"))
        types = self.content.setdefault(key, {})
        before = types.get(rdtype)
        if before is None:
            types[rdtype] = Records(ttl, (rdata,))
        elif rdata not in before.rdatas:
            types[rdtype] = Records(min(ttl, before.ttl), (*before.rdatas, rdata))  # one TTL for all: RFC 2181 §5.2
        self.lines[key, rdtype] = where


def _read(sink: _Sink, ttl: int) -> None:
    reader = dns.zonefile.Reader(
        sink.tokenizer, IN, cast("dns.transaction.Transaction", sink), allow_directives=("$ORIGIN", "$TTL"), default_ttl=ttl
    )
    reader.current_origin = reader.last_name = sink.origin
    for _ in range(MAX_ERRORS):
        try:
            reader.read()
            return
        except (dns.exception.DNSException, ValueError, LookupError) as error:
            file, line = sink.tokenizer.where()
            reason = str(error).removeprefix(f"{file}:{line}: ") or type(error).__name__
            sink.violations.append(Violation(sink.tokenizer.place, reason, "a record such as `www 300 IN A 192.0.2.1`"))
        if not _skip_line(sink.tokenizer):
            return


def _skip_line(tokenizer: dns.tokenizer.Tokenizer) -> bool:
    """Go on after a line that could not be read; False when there is nothing more that can be."""
    for _ in range(10_000):
        try:
            token = tokenizer.get()
        except (dns.exception.DNSException, ValueError):
            return False
        if token.is_eol_or_eof():
            return bool(token.is_eol())
    return False


# ===== what needs a look at more than one record


def cuts(content: Content, origin: bytes) -> set[bytes]:
    """Give the names where the zone ends and another one, served elsewhere, begins."""
    return {key for key, types in content.items() if NS in types and key != origin}


def check(content: Content, lines: Lines, zone: Zone) -> Iterator[Violation]:
    """Give everything that is wrong with the records of a zone, together. Source: RFC 1034 §3.6.2 and §4.2, RFC 2181 §10, RFC 4592 §4.2."""
    delegated = cuts(content, zone.key)
    glue = {key_of(server) for key in delegated for server in content[key][NS].servers()}
    for key, types in content.items():
        cut = below_cut(key, zone.key, delegated)
        if cut is not None and not (key in glue and types.keys() <= {A, AAAA}):
            yield _wrong(lines, key, next(iter(types)), f"nothing: {_text(cut)} is delegated to other servers")
            continue
        for rdtype in types:
            if expected := _misplaced(key, rdtype, types, zone, delegated):
                yield _wrong(lines, key, rdtype, expected)
        if NS in types and (key, int(NS)) in lines:
            yield from _without_address(key, content, lines, zone)
    yield from _wrongly_steered(content, zone, delegated)


def _misplaced(key: bytes, rdtype: int, types: dict[int, Records], zone: Zone, delegated: set[bytes]) -> str | None:
    """Give what is expected in the place of records of a type at a name, None when they may be there."""
    if rdtype == CNAME and (len(types) > 1 or len(types[rdtype].rdatas) > 1):
        return "one CNAME and nothing beside it"
    if rdtype == SOA and (key != zone.key or len(types[rdtype].rdatas) > 1):
        return f"one SOA, at {zone.apex}"
    if rdtype in _MADE_BY_SIGNING:
        return "no such record: signing makes it, from the keys of the zone"
    if rdtype == DNAME or rdtype == OPT or rdtype == 0 or 128 <= rdtype < 256:
        return "a type that answers can be made of"
    if rdtype == DS and key not in delegated:
        return "NS beside it: DS belongs to a delegation"
    if rdtype == NS and key.startswith(WILD):
        return "no delegation of a wildcard name"
    if key in delegated and rdtype not in (NS, DS, A, AAAA):
        return "only NS, DS and glue at a delegation"
    if rdtype in _STEERED and (key in zone.steered or key in zone.stands_for):
        return "no address or CNAME: the name is steered"
    if sum(len(rdata.to_wire() or b"") + 12 for rdata in types[rdtype].rdatas) > MAX_DATA:
        return f"at most {MAX_DATA} bytes of one type"
    return None


def _without_address(key: bytes, content: Content, lines: Lines, zone: Zone) -> Iterator[Violation]:
    """Give the name servers of a name that lie in the zone and have no address there."""
    for name in content[key][NS].servers():
        server = key_of(name)
        found = content.get(server, {})
        known = server in zone.steered or server in zone.stands_for or A in found or AAAA in found
        if within(server, zone.key) and not known:
            yield Violation(lines[key, int(NS)], str(name), f"an A or AAAA record of {_text(server)}")


def _wrongly_steered(content: Content, zone: Zone, delegated: set[bytes]) -> Iterator[Violation]:
    for where, names in (("name", zone.steered.keys()), ("aliases", zone.stands_for.keys())):
        for key in names:
            if key in delegated or below_cut(key, zone.key, delegated) is not None:
                yield Violation(f"dns.{where}", _text(key), "a name that is not delegated to other servers")
    for key, target in zone.stands_for.items():
        if key in zone.steered:
            yield Violation("dns.aliases", _text(key), "a name that is not steered itself")
        if within(target, zone.key) and target not in zone.steered:
            yield Violation("dns.aliases", _text(target), "a steered name")


def below_cut(key: bytes, origin: bytes, delegated: set[bytes]) -> bytes | None:
    """Give the delegation that a name lies below, None for a name of the zone's own."""
    while delegated and key != origin:
        key = parent(key)
        if key in delegated:
            return key
    return None


def _wrong(lines: Lines, key: bytes, rdtype: int, expected: str) -> Violation:
    return Violation(lines.get((key, int(rdtype)), "dns.records"), f"{_text(key)} {RdataType.to_text(RdataType.make(rdtype))}", expected)


def _text(key: bytes) -> str:
    return str(from_key(key))
