"""Signing a zone: signatures made once and kept, the DNSKEY RRset, and the NSEC chain that proves what does not exist."""

from __future__ import annotations

import bisect
import logging
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import dns.dnssec
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rrset
from dns.dnssectypes import DSDigest
from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import CDNSKEY, CDS, DNSKEY, NSEC, RRSIG, RdataType
from dns.rdtypes.ANY.NSEC import NSEC as NsecData
from dns.rdtypes.ANY.NSEC import Bitmap
from dns.rdtypes.ANY.RRSIG import RRSIG as Signature

from lbcore.dns.keyfiles import load
from lbcore.dns.keys import NEVER, Key
from lbcore.dns.names import WILD, key_of, labels, order
from lbcore.errors import ConfigError

__all__ = ["Chain", "Signer"]

logger = logging.getLogger(__name__)

HOUR, DAY = 3600, 86_400
BACKDATED = HOUR  # for validators whose clocks are slow
VALIDITY = 14 * DAY
SPREAD = 3 * DAY  # a zone's signatures end over so long a time, so that they are not all renewed at once
RENEWED = 7 * DAY  # a signature with less than this left is due; enough to notice a signer that has stopped, and mend it
LOOK = 1  # seconds between looks at the directory
BATCH = 6 * HOUR  # what becomes due so soon is renewed along with what is: a rebuild at most every so often
_BY_SEP = frozenset((DNSKEY, CDS, CDNSKEY))

_RECORD = struct.Struct("!HHIH")
_RRSIG = struct.Struct("!HBBIIIH")
_Identity = tuple[Any, ...]  # owner, type, TTL, and each record's data


class _Signing(NamedTuple):
    """A key that signs. public: its DNSKEY, by which it is the same when its files have been read again."""

    key: Key
    tag: int
    public: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Signing) and self.public == other.public

    def __hash__(self) -> int:
        return hash(self.public)


class _Signed(NamedTuple):
    """Signatures that were made together. keys: which made them; inception, end: between them they are valid."""

    keys: Sequence[_Signing]
    inception: float
    end: float
    wires: Sequence[bytes]


class Signer:
    """Sign the RRsets of one zone with the keys that are active at the time.

    zone: its name
    keys: those of the zone, in whatever state; which sign follows from their timing and the clock. Or the directory of their
        files, which is read again when it changes; what cannot be read then is logged, and the keys stay as they were
    ttl: seconds, of the DNSKEY, CDS and CDNSKEY RRsets
    clock: wall-clock seconds since 1970
    It is one Responder's. A build of the zone starts with `begin()`, which fixes the keys for it, then asks `sign` for all it has;
    what was signed for the build before and is still good costs no cryptography. `due()` says when to build again.

    Of each algorithm, one key signs the records: a ZSK, else a key with SEP, that which has been active longest; so a successor
    takes over when its predecessor becomes inactive, and answers never carry two signatures of one algorithm. The DNSKEY, CDS and
    CDNSKEY RRsets are signed by all active keys with SEP, so that either DS validates.
    Raises ConfigError with all that is wrong with the files in a directory.
    Source: RFC 4034, 4035 §2; RFC 6781 §4.1 (rollovers), §4.4.2 (validity and renewal).
    """

    def __init__(
        self, zone: str | Name, keys: Iterable[Key] | str | Path, *, ttl: int = HOUR, clock: Callable[[], float] = time.time
    ) -> None:
        self.origin = dns.name.from_text(zone) if isinstance(zone, str) else zone
        self.ttl = ttl
        self._signer = key_of(self.origin)
        self._clock = clock
        self.directory = Path(keys) if isinstance(keys, str | Path) else None
        self._changed = self._change()
        self.keys = tuple(load(self.origin, keys) if isinstance(keys, str | Path) else keys)
        self._looked, self._stale = clock(), False
        self._lock = threading.Lock()  # builds and the making of what is not prepared may be on two threads
        self.builds = 0  # so that what was made in an earlier one can be told from what is up to date
        self._known: dict[_Identity, _Signed] = {}
        self._before: dict[_Identity, _Signed] = {}
        self.begin()

    def begin(self) -> None:
        """Start a build: decide which keys are published and sign, and forget signatures that the last build did not use."""
        with self._lock:
            now = self._now = self._clock()
            self.builds += 1
            self._reload()
            self._known, self._before = {}, self._known
            self._published = [key for key in self.keys if key.timing.published(now)]
            active = [key for key in self.keys if key.timing.active(now)]
            self._for_keys = _ready(_all_with_sep([key for key in active if key in self._published]))
            self._for_data = _ready(_one_each(active, self._published))
            self._until = min((key.timing.next_change(now) for key in self.keys), default=NEVER)

    @property
    def signing(self) -> bool:
        """Say whether any key is active, as of `begin`; without, a zone is served unsigned."""
        return bool(self._for_data)

    @property
    def expires(self) -> float | None:
        """Give when the first signature in use ends, Unix seconds; None without any."""
        with self._lock:
            return min((signed.end for signed in self._known.values() if signed.wires), default=None)

    def due(self) -> bool:
        """Say whether to build again: a signature nears its end, a key changes its state or its file, or the clock was set back."""
        now = self._clock()
        if abs(now - self._looked) >= LOOK:
            self._looked, self._stale = now, self._change() != self._changed
        return self._stale or now >= self._until or now < self._now - BACKDATED

    def sign(self, rrset: dns.rrset.RRset) -> Sequence[Signature]:
        """Give the signatures of an RRset, one for each key that signs it; none when no key is active.

        rrset: under its owner, which for a wildcard is `*.…` (an expanded answer carries the wildcard's signatures), with the
        longest TTL it is ever answered with: a shorter one needs no other signature.
        """
        rdatas = [rdata.to_digestable() for rdata in rrset]
        wires = self.sign_wire(key_of(rrset.name), rrset.rdtype, rrset.ttl, rdatas)
        return [cast(Signature, dns.rdata.from_wire(IN, RRSIG, wire, 0, len(wire))) for wire in wires]

    def sign_wire(self, owner: bytes, rdtype: int, ttl: int, rdatas: Iterable[bytes]) -> Sequence[bytes]:
        """Do the same with everything in wire form: owner as `names` has it, record data uncompressed. Fast where nothing is new."""
        return self._signed(owner, rdtype, ttl, rdatas).wires

    def apex(self) -> list[dns.rrset.RRset]:
        """Give the RRsets that signing adds to the zone's own name: DNSKEY, and CDS and CDNSKEY while keys ask for them."""
        found = []
        if self._published:
            found.append(dns.rrset.from_rdata_list(self.origin, self.ttl, [key.dnskey for key in self._published]))
        if synced := [key for key in self._published if key.timing.synced(self._now)]:
            cds = [dns.dnssec.make_cds(self.origin, key.dnskey, DSDigest.SHA256) for key in synced]
            found.append(dns.rrset.from_rdata_list(self.origin, self.ttl, cds))
            found.append(dns.rrset.from_rdata_list(self.origin, self.ttl, [_cdnskey(key) for key in synced]))
        return found

    def _change(self) -> int | None:
        """Give when a file last came to the directory or went: the tools replace files, they do not write into them."""
        try:
            return self.directory.stat().st_mtime_ns if self.directory else None
        except OSError:
            return None

    def _reload(self) -> None:
        if self.directory is None or (change := self._change()) == self._changed:
            return
        self._changed, self._stale = change, False
        try:
            self.keys = tuple(load(self.origin, self.directory))
        except ConfigError as error:
            logger.error("keys of %s stay as they were: %s", self.origin, error)

    def _signed(self, owner: bytes, rdtype: int, ttl: int, rdatas: Iterable[bytes]) -> _Signed:
        identity = (owner, rdtype, ttl, *sorted(rdatas))
        with self._lock:
            now, keys = int(self._clock()), self._for_keys if rdtype in _BY_SEP else self._for_data
            known = self._known.get(identity) or self._before.get(identity)
            if known is None or known.keys != keys or not known.inception <= now < known.end - RENEWED - BATCH:
                known = self._make(identity, keys, now)
            self._known[identity] = known
            self._until = min(self._until, known.end - RENEWED)
            return known

    def _make(self, identity: _Identity, keys: Sequence[_Signing], now: int) -> _Signed:
        """Sign. Source: RFC 4034 §3.1.8.1 (what is signed), §6.2 (canonical form)."""
        owner, rdtype, ttl, *rdatas = identity
        canonical = sorted({dns.rdata.from_wire(IN, rdtype, data, 0, len(data)).to_digestable() for data in rdatas})
        records = b"".join(owner + _RECORD.pack(rdtype, IN, ttl, len(data)) + data for data in canonical)
        end = now + VALIDITY - zlib.crc32(repr(identity).encode()) % SPREAD
        wires = []
        for key, tag, _ in keys:
            fields = _RRSIG.pack(rdtype, key.algorithm, _labels(owner), ttl, end, now - BACKDATED, tag) + self._signer
            wires.append(fields + key.private.sign(fields + records))
        return _Signed(keys, now - BACKDATED, end if keys else NEVER, wires)


def _labels(owner: bytes) -> int:
    """Give the number of labels as RRSIG counts them: without the root's and without a wildcard's."""
    return len(labels(owner)) - owner.startswith(WILD)


def _ready(keys: Iterable[Key]) -> Sequence[_Signing]:
    return [_Signing(key, key.tag, key.dnskey.to_digestable()) for key in keys]


def _all_with_sep(keys: list[Key]) -> list[Key]:
    """Give the keys that sign DNSKEY: those with SEP, or where an algorithm has none, all of it."""
    with_sep = {key.algorithm for key in keys if key.sep}
    return [key for key in keys if key.sep or key.algorithm not in with_sep]


def _one_each(active: list[Key], published: list[Key]) -> list[Key]:
    """Give the key of each algorithm that signs the records: published rather than not, a ZSK rather than not, active the longest."""

    def rank(key: Key) -> tuple[object, ...]:
        return key not in published, key.sep, key.timing.activate, key.tag

    best: dict[int, Key] = {}
    for key in sorted(active, key=rank):
        best.setdefault(key.algorithm, key)
    return [*best.values()]


def _cdnskey(key: Key) -> Rdata:
    return dns.dnssec.make_cdnskey(key.private.public_key(), key.algorithm, key.dnskey.flags)


class Chain:
    """The NSEC records of a zone, by which it proves what does not exist.

    types: every name that has records here, with their types: not the parents that have none, nor anything below a zone cut; at
        the cut itself NS, and DS if any. RRSIG and NSEC need not be named
    ttl: seconds, the lesser of the SOA's TTL and its MINIMUM (RFC 9077)
    A name whose answer depends on the client has all types that anybody can get; `at` takes those of one client.
    Source: RFC 4034 §4 and §6.1, RFC 4035 §3.1.3.
    """

    def __init__(self, types: Mapping[Name, Iterable[int]], ttl: int) -> None:
        self._types = {name: frozenset(found) for name, found in types.items()}
        self._names = sorted(self._types)  # dnspython compares names in the canonical order
        self._next = dict(zip(self._names, [*self._names[1:], *self._names[:1]], strict=True))
        self._order = [order(key_of(name)) for name in self._names]
        self._ttl = ttl
        self._made: dict[tuple[Name, frozenset[int]], dns.rrset.RRset] = {}

    def __contains__(self, name: Name) -> bool:
        return name in self._types

    def at(self, name: Name, types: Iterable[int] | None = None) -> dns.rrset.RRset:
        """Give a name's NSEC: it denies every type but `types`; None = those that the name has for anybody.

        Raises KeyError for a name that has no records.
        """
        held = self._types[name] if types is None else frozenset(types)
        made = self._made.get((name, held))
        if made is None:
            windows = Bitmap.from_rdtypes([*map(RdataType.make, held), NSEC, RRSIG]).windows
            nsec = NsecData(IN, NSEC, self._next[name], windows)  # type: ignore[no-untyped-call]
            made = self._made[name, held] = dns.rrset.from_rdata_list(name, self._ttl, [nsec])
        return made

    def gap(self, key: bytes) -> int:
        """Give a number that names of one gap of the chain share: whatever proves one of them absent proves the others."""
        return bisect.bisect_left(self._order, order(key))

    def covering(self, name: Name) -> dns.rrset.RRset:
        """Give the NSEC that proves that a name of the zone has no records: its owner sorts before, its next name after it."""
        return self.at(self._names[bisect.bisect_left(self._names, name) - 1])

    def nodata(self, name: Name, types: Iterable[int] | None = None) -> dns.rrset.RRset:
        """Give the proof that an existing name lacks a type: its own NSEC, or that which leaps over a parent without records."""
        return self.at(name, types) if name in self._types else self.covering(name)

    def nxdomain(self, name: Name, encloser: Name) -> list[dns.rrset.RRset]:
        """Give the proof that a name does not exist and no wildcard stands for it; one record or two.

        encloser: its longest parent that exists
        """
        found = [self.covering(name), self.covering(wildcard(encloser))]
        return found[:1] if found[0].name == found[1].name else found


def wildcard(name: Name) -> Name:
    """Give `*` below a name."""
    return Name((b"*", *name.labels))
