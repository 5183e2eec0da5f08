"""When keys may come and go: the times of a zone's first key, of a key that joins, and of a successor.

Caches hold what they have seen for its TTL, so each step waits until the longest of what it depends on has passed everywhere:

    ZSK                 published | TTL | signs instead of the old one | TTL | the old one is removed        (pre-publish)
    KSK, CSK            published, signs DNSKEY beside the old one | TTL | DS at the parent changed | DS TTL |
                        the old one stops signing | TTL | is removed                                       (double signature)
    another algorithm   signs everything beside the old | TTL | published | TTL | DS changed | DS TTL |
                        the old keys are removed | TTL | stop signing                                         (conservative)

The old DS is the operator's to change, or the parent's who looks for CDS; so what follows it is a step to be taken, not a time.
Source: RFC 6781 §4.1, RFC 7583 §3.2.1 and §3.3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dns.dnssectypes import Algorithm

from lbcore.dns.keys import Key, Timing

__all__ = ["Plan", "Step", "Waits", "plan"]


@dataclass(frozen=True, slots=True)
class Waits:
    """How long things last, seconds.

    ttl: the longest TTL in the zone, its DNSKEY's and negative one included
    ds_ttl: of the DS at the parent
    margin: for files to be noticed, clocks that differ and copies of the zone elsewhere
    """

    ttl: int = 3600
    ds_ttl: int = 86_400
    margin: int = 3600

    @property
    def zone(self) -> int:
        """Give how long after a change nobody holds what was in the zone before."""
        return self.ttl + self.margin

    @property
    def parent(self) -> int:
        """Give how long after a change of the DS nobody holds the old one."""
        return self.ds_ttl + self.margin


class Step(NamedTuple):
    """What happens, or is to be done, and when: seconds since 1970, None = `after` that many seconds after the step before."""

    at: float | None
    after: int
    what: str


class Plan(NamedTuple):
    """The timing of a new key, that of those it replaces, and what comes when."""

    timing: Timing
    replaced: dict[Key, Timing]
    steps: list[Step]


def _first(now: float, waits: Waits, *, zsk: bool) -> Plan:
    """Plan the first key of a kind in a zone without any: at once; the DS once no cache holds the zone unsigned."""
    timing = Timing(now, now, now, sync_publish=None if zsk else now + waits.zone)
    steps = [Step(now, 0, "it is published and signs")]
    return Plan(timing, {}, steps if zsk else [*steps, Step(now + waits.zone, 0, "give the parent the DS")])


def _joining(now: float, waits: Waits) -> Plan:
    """Plan the ZSK that relieves a CSK of signing the records: once every cache has it."""
    timing = Timing(now, now, now + waits.zone)
    return Plan(timing, {}, [Step(now, 0, "it is published"), Step(now + waits.zone, 0, "it signs the records, the CSK only DNSKEY")])


def _succeed(old: Sequence[Key], algorithm: Algorithm, now: float, waits: Waits) -> Plan:
    """Plan the successor of keys: of one, or of all those of another algorithm."""
    if old[0].algorithm != algorithm:
        return _other_algorithm(old, now, waits)
    return _ksk(old[0], now, waits) if old[0].sep else _zsk(old[0], now, waits)


def _zsk(old: Key, now: float, waits: Waits) -> Plan:
    signs, gone = now + waits.zone, now + 2 * waits.zone
    replaced = {old: replace(old.timing, inactive=signs, delete=gone)}
    steps = [Step(now, 0, "it is published"), Step(signs, 0, f"it signs instead of {old.tag}"), Step(gone, 0, f"{old.tag} is removed")]
    return Plan(Timing(now, now, signs), replaced, steps)


def _ksk(old: Key, now: float, waits: Waits) -> Plan:
    known = now + waits.zone
    replaced = {old: replace(old.timing, sync_delete=known)}
    steps = [
        Step(now, 0, f"it is published and signs DNSKEY beside {old.tag}"),
        Step(known, 0, f"give the parent the new DS in place of {old.tag}'s (CDS asks for it)"),
        Step(None, waits.parent, f"lbcore dns settime {old} --inactive now --delete +{waits.zone}s"),
    ]
    return Plan(Timing(now, now, now, sync_publish=known), replaced, steps)


def _other_algorithm(old: Iterable[Key], now: float, waits: Waits) -> Plan:
    published, known = now + waits.zone, now + 2 * waits.zone
    old = sorted(old, key=lambda key: not key.sep)  # a KSK that outlived its ZSK would start to sign records
    replaced = {key: replace(key.timing, sync_delete=known) if key.sep else key.timing for key in old}
    tags = " and ".join(str(key.tag) for key in old)
    retire = [f"lbcore dns settime {key} --delete now --inactive +{waits.zone}s" for key in old]
    steps = [
        Step(now, 0, f"it signs everything beside {tags}"),
        Step(published, 0, "it is published"),
        Step(known, 0, "give the parent the new DS in place of the old (CDS asks for it)"),
        Step(None, waits.parent, retire[0]),
        *(Step(None, 0, line) for line in retire[1:]),
    ]
    return Plan(Timing(now, published, now, sync_publish=known), replaced, steps)


def plan(keys: Iterable[Key], algorithm: Algorithm, now: float, waits: Waits, *, zsk: bool = False, successor: bool = False) -> Plan:
    """Plan a new key for a zone that has `keys`. Raises ValueError with what speaks against it, or with what to do first."""
    lasting = [key for key in keys if key.timing.inactive is None and key.timing.delete is None and key.timing.activate is not None]
    alike = [key for key in lasting if (key.sep, key.algorithm) == (not zsk, algorithm)]
    if successor:
        return _succeed(_one(alike or _of_another(lasting, zsk), now), algorithm, now, waits)
    if alike or (lasting and not zsk):
        raise ValueError(f"the zone has {(alike or lasting)[0]} already; --successor makes the key that replaces it")
    if lasting and lasting[0].algorithm != algorithm:
        raise ValueError(f"{lasting[0]} is of another algorithm; a ZSK must have the same")
    return _joining(now, waits) if lasting else _first(now, waits, zsk=zsk)


def _of_another(lasting: list[Key], zsk: bool) -> list[Key]:
    if not lasting:
        raise ValueError("no key is there that could have a successor")
    if zsk:
        raise ValueError("there is no such ZSK; another algorithm begins with a key that the DS points to, without --zsk")
    return lasting


def _one(keys: list[Key], now: float) -> list[Key]:
    """Give the keys back when no rollover is under way among them: all active, and no two of one kind."""
    if waiting := [key for key in keys if not key.timing.active(now)]:
        raise ValueError(f"{waiting[0]} is not active yet")
    if len({(key.sep, key.algorithm) for key in keys}) < len(keys):
        raise ValueError(f"{' and '.join(map(str, keys))} are both active; end the time of one first (lbcore dns settime)")
    return keys
