"""Keys that sign a zone, and when each does what: one CSK, or a KSK with ZSKs; kept in BIND's file pairs.

A key with the SEP flag signs the DNSKEY RRset, and everything else as long as no ZSK of its algorithm is active: one such key is
a CSK, beside a ZSK it is the KSK. So there is no third kind, neither in the files nor here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import dns.dnssec
import dns.name
from dns.dnssecalgs.base import GenericPrivateKey
from dns.dnssecalgs.ecdsa import PrivateECDSAP256SHA256
from dns.dnssecalgs.eddsa import PrivateED25519
from dns.dnssectypes import Algorithm, DSDigest
from dns.name import Name
from dns.rdtypes.ANY.DNSKEY import DNSKEY
from dns.rdtypes.ANY.DS import DS
from dns.rdtypes.dnskeybase import Flag

__all__ = ["ALGORITHMS", "Key", "Timing"]

ALGORITHMS: Mapping[Algorithm, Callable[[], GenericPrivateKey]] = {
    Algorithm.ECDSAP256SHA256: PrivateECDSAP256SHA256.generate, Algorithm.ED25519: PrivateED25519.generate,
}  # fmt: skip
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Timing:
    """When a key does what: wall-clock seconds since 1970, None = not set.

    created: for people only
    publish: from then on in the DNSKEY RRset; None = from `activate`
    activate, inactive: signs from the one until the other; None = never, and until `delete`
    delete: from then on not in the DNSKEY RRset
    sync_publish, sync_delete: in the CDS and CDNSKEY RRsets from the one until the other, so that a parent that looks for them
        takes the DS from there
    Source: RFC 7583 §3.1 (what the times are), RFC 7344 (CDS); names of BIND's key files.
    """

    created: float | None = None
    publish: float | None = None
    activate: float | None = None
    inactive: float | None = None
    delete: float | None = None
    sync_publish: float | None = None
    sync_delete: float | None = None

    def published(self, now: float) -> bool:
        """Say whether the key is in the DNSKEY RRset."""
        return _within(self.activate if self.publish is None else self.publish, self.delete, now)

    def active(self, now: float) -> bool:
        """Say whether the key signs. One that signs before it is published is what an algorithm rollover wants (RFC 6781 §4.1.4)."""
        return _within(self.activate, self.delete if self.inactive is None else self.inactive, now)

    def synced(self, now: float) -> bool:
        """Say whether the parent is asked to have the key's DS."""
        return _within(self.sync_publish, self.sync_delete, now) and self.published(now)

    def state(self, now: float) -> str:
        """Give what the key is at a time: waiting, published, active, retired (still published) or removed."""
        if self.active(now):
            return "active"
        if self.published(now):
            return "published" if self.activate is None or now < self.activate else "retired"
        return "waiting" if self.delete is None or now < self.delete else "removed"

    def disorder(self) -> Iterator[tuple[str, str]]:
        """Give each pair of times of which the second lies before the first though it must not; as BIND names them."""
        for earlier, start, later, end in (
            ("Publish", self.publish, "Delete", self.delete),
            ("Activate", self.activate, "Inactive", self.inactive),
            ("SyncPublish", self.sync_publish, "SyncDelete", self.sync_delete),
        ):
            if start is not None and end is not None and end < start:
                yield earlier, later

    def next_change(self, now: float) -> float:
        """Give the next time after `now` at which anything changes; infinity when nothing will."""
        times = (self.publish, self.activate, self.inactive, self.delete, self.sync_publish, self.sync_delete)
        return min((time for time in times if time is not None and time > now), default=NEVER)


def _within(start: float | None, end: float | None, now: float) -> bool:
    return start is not None and start <= now and (end is None or now < end)


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """One key of a zone with its secret half, which no text of it shows.

    Make one with `Key.generate`, or read a zone's keys from files with `load`.
    """

    zone: Name
    dnskey: DNSKEY
    private: GenericPrivateKey = field(repr=False)
    timing: Timing = field(default_factory=Timing)

    @classmethod
    def generate(cls, zone: str | Name, *, algorithm: Algorithm = Algorithm.ECDSAP256SHA256, zsk: bool = False, timing: Timing) -> Key:
        """Make a key: with the SEP flag (a CSK, or the KSK beside ZSKs), or a ZSK."""
        name = dns.name.from_text(zone) if isinstance(zone, str) else zone
        private = ALGORITHMS[algorithm]()
        flags = Flag.ZONE if zsk else Flag.ZONE | Flag.SEP
        return cls(name.canonicalize(), private.public_key().to_dnskey(flags), private, timing)

    @property
    def tag(self) -> int:
        """Give the key tag, 0..65535."""
        return dns.dnssec.key_id(self.dnskey)

    @property
    def algorithm(self) -> Algorithm:
        """Give the algorithm."""
        return Algorithm(self.dnskey.algorithm)

    @property
    def sep(self) -> bool:
        """Say whether it is one that the parent's DS points to: a CSK or KSK."""
        return bool(self.dnskey.flags & Flag.SEP)

    @property
    def ds(self) -> DS:
        """Give the DS record's data for the parent, SHA-256 (RFC 8624 §3.3 leaves no other choice that all validators have)."""
        return dns.dnssec.make_ds(self.zone, self.dnskey, DSDigest.SHA256)

    def __str__(self) -> str:
        return f"K{self.zone}+{self.dnskey.algorithm:03}+{self.tag:05}"
