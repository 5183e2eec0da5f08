"""Keys, signatures, their renewal and the NSEC chain; dnspython validates what was signed, rollovers run on a virtual clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import dns.dnssec
import dns.name
import dns.rdatatype
import dns.rrset
import dns.zonefile
import pytest
from conftest import Clock
from dns.dnssectypes import Algorithm
from dns.exception import ValidationFailure
from dns.name import Name
from dns.rdatatype import AAAA, CDNSKEY, CDS, DNSKEY, NSEC, RRSIG, A, RdataType
from hypothesis import given
from hypothesis import strategies as st

from lbcore.dns.dnssec import Chain, Signer, wildcard
from lbcore.dns.keys import ALGORITHMS, Key, Timing

ORIGIN = dns.name.from_text("example.com.")
HOUR, DAY = 3600, 86_400
START = 1_790_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


def key(zsk: bool = False, algorithm: Algorithm = Algorithm.ECDSAP256SHA256, **times: float | None) -> Key:
    return Key.generate(ORIGIN, algorithm=algorithm, zsk=zsk, timing=Timing(**{"activate": START, **times}))


def records(text: str = "192.0.2.1", owner: str = "api.example.com.", ttl: int = 30, rdtype: str = "A") -> dns.rrset.RRset:
    return dns.rrset.from_text(owner, ttl, "IN", rdtype, *text.split())


def validate(signer: Signer, rrset: dns.rrset.RRset, now: float, keys: dns.rrset.RRset | None = None, owner: Name | None = None) -> None:
    """Validate as a resolver does that trusts `keys` (None = those published now); raises ValidationFailure."""
    signed = dns.rrset.from_rdata_list(owner or rrset.name, rrset.ttl, signer.sign(rrset))
    answer = dns.rrset.from_rdata_list(owner or rrset.name, rrset.ttl, [*rrset])
    trusted = signer.apex()[0] if keys is None else keys
    dns.dnssec.validate(answer, signed, {ORIGIN: trusted}, now=now)


def tags(signer: Signer, rrset: dns.rrset.RRset) -> list[int]:
    return [signature.key_tag for signature in signer.sign(rrset)]


# ===== signatures


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_signed_validates_and_what_was_altered_does_not(clock: Clock, algorithm: Algorithm) -> None:
    signer = Signer(ORIGIN, [key(algorithm=algorithm)], clock=clock)
    good = records("192.0.2.1 192.0.2.2")
    validate(signer, good, clock())
    validate(signer, signer.apex()[0], clock())
    signed = dns.rrset.from_rdata_list(good.name, 30, signer.sign(good))
    with pytest.raises(ValidationFailure):
        dns.dnssec.validate(records("192.0.2.1 192.0.2.3"), signed, {ORIGIN: signer.apex()[0]}, now=clock())


def test_a_wildcards_signature_validates_for_the_names_it_stands_for(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key()], clock=clock)
    star = records(owner="*.example.com.")
    assert signer.sign(star)[0].labels == 2
    validate(signer, star, clock(), owner=dns.name.from_text("one.example.com."))
    validate(signer, star, clock(), owner=dns.name.from_text("two.more.example.com."))


def test_a_zsk_signs_the_records_and_the_ksk_the_keys(clock: Clock) -> None:
    ksk, zsk = key(), key(zsk=True)
    signer = Signer(ORIGIN, [ksk, zsk], clock=clock)
    assert tags(signer, records()) == [zsk.tag]
    assert tags(signer, signer.apex()[0]) == [ksk.tag]
    validate(signer, records(), clock())


def test_every_algorithm_signs_everything(clock: Clock) -> None:
    one, other = key(), key(algorithm=Algorithm.ED25519)
    signer = Signer(ORIGIN, [one, other], clock=clock)
    for rrset in (records(), signer.apex()[0]):
        assert {signature.algorithm for signature in signer.sign(rrset)} == {one.algorithm, other.algorithm}


def test_without_an_active_key_nothing_is_signed(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key(publish=START, activate=START + DAY)], clock=clock)
    assert (signer.signing, signer.sign(records()), len(signer.apex()[0]), signer.expires) == (False, [], 1, None)
    clock.advance(DAY)
    assert signer.due()
    signer.begin()
    assert signer.signing and not signer.due()


def test_another_build_signs_only_what_is_new(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key()], clock=clock)
    first = signer.sign(records("192.0.2.1 192.0.2.2"))
    clock.advance(DAY)  # what is made now ends later
    signer.begin()
    assert signer.sign(records("192.0.2.2 192.0.2.1", owner="API.example.com.")) == first  # order and case do not count
    assert signer.sign(records("192.0.2.1 192.0.2.2", ttl=60)) != first
    wired = signer.sign_wire(b"\3api\7example\3com\0", A, 30, [bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))])
    assert wired == [first[0].to_wire()]


def test_signatures_are_valid_from_an_hour_ago_for_eleven_to_fourteen_days_and_end_apart(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key()], clock=clock)
    made = [signer.sign(records(owner=f"n{n}.example.com."))[0] for n in range(100)]
    assert {signature.inception for signature in made} == {int(START) - HOUR}
    left = sorted(signature.expiration - int(START) for signature in made)
    assert 11 * DAY < left[0] and left[-1] <= 14 * DAY
    assert signer.expires == START + left[0]
    assert left[-1] - left[0] > 2 * DAY and max(b - a for a, b in zip(left, left[1:], strict=False)) < DAY


def test_over_a_year_no_signature_comes_within_a_week_of_its_end_and_rebuilds_are_rare(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key()], clock=clock)
    zone = [records(owner=f"n{n}.example.com.") for n in range(20)]
    served = [signer.sign(rrset)[0] for rrset in zone]
    builds = 0
    for _ in range(365 * 24):
        clock.advance(HOUR)
        if signer.due():
            signer.begin()
            served = [signer.sign(rrset)[0] for rrset in zone]
            builds += 1
        assert min(signature.expiration for signature in served) - clock() >= 7 * DAY - HOUR
        assert max(signature.inception for signature in served) <= clock()
    assert 365 / 7 < builds <= 365 * 4


def test_a_clock_that_was_set_back_makes_new_signatures_due(clock: Clock) -> None:
    signer = Signer(ORIGIN, [key(activate=0.0)], clock=clock)
    signer.sign(records())
    clock.advance(-2 * DAY)
    assert signer.due()
    signer.begin()
    validate(signer, records(), clock())


# ===== the NSEC chain


def name(text: str) -> Name:
    return dns.name.from_text(text, ORIGIN)


NAMES = st.lists(st.sampled_from("a b z aa ab *".split()), min_size=1, max_size=3).map(lambda labels: name(".".join(labels)))


def proves_absent(rrset: dns.rrset.RRset, absent: Name) -> bool:
    """RFC 4035 §5.4: the owner sorts before the name and the name before the next, which for the last is the zone."""
    end: Name = rrset[0].next
    return bool(rrset.name < absent and (absent < end or end == ORIGIN))


@given(st.sets(NAMES, max_size=8), NAMES)
def test_the_chain_proves_every_absence_and_no_presence(present: set[Name], asked: Name) -> None:
    chain = Chain({ORIGIN: [DNSKEY], **{found: [A] for found in present}}, 30)
    around = [chain.at(found) for found in (ORIGIN, *present)]
    assert sum(proves_absent(rrset, asked) for rrset in around) == (asked not in present)
    assert asked in present or proves_absent(chain.covering(asked), asked)
    visited, at = set(), ORIGIN
    while at not in visited:
        visited.add(at)
        at = chain.at(at)[0].next
    assert visited == {ORIGIN, *present}


def test_a_name_has_the_types_it_was_given_those_of_one_client_or_of_all() -> None:
    chain = Chain({ORIGIN: [], name("api"): [A, AAAA, RdataType.HTTPS]}, 30)
    assert chain.at(name("api"))[0].to_text() == "example.com. A AAAA RRSIG NSEC HTTPS"
    assert chain.nodata(name("api"), [A])[0].to_text() == "example.com. A RRSIG NSEC"
    assert chain.at(name("api")).ttl == 30


def test_a_parent_without_records_is_denied_by_the_record_that_leaps_over_it() -> None:
    chain = Chain({ORIGIN: [], name("a"): [A], name("x.parent"): [A]}, 30)
    assert name("parent") not in chain
    assert (chain.nodata(name("parent")).name, chain.nodata(name("parent"))[0].next) == (name("a"), name("x.parent"))


@pytest.mark.parametrize(("asked", "owners"), [("b", ["a", "@"]), ("0", ["@"]), ("b.a", ["a"])])
def test_one_record_may_deny_both_the_name_and_its_wildcard(asked: str, owners: list[str]) -> None:
    chain = Chain({ORIGIN: [], name("a"): [A], name("z"): [A]}, 30)
    proof = chain.nxdomain(name(asked), name(asked).parent())
    assert [rrset.name for rrset in proof] == [name(owner) if owner != "@" else ORIGIN for owner in owners]
    assert any(proves_absent(rrset, wildcard(name(asked).parent())) for rrset in proof)


# ===== a whole zone, by BIND's word

ZONE = """
@ 3600 SOA ns hostmaster 1 3600 600 604800 30
@ 3600 NS ns
ns 3600 A 192.0.2.53
*.wild 30 A 192.0.2.1
a.b.deep 30 TXT "below parents without records"
alias 30 CNAME api
API 30 A 192.0.2.1
API 30 AAAA 2001:db8::1
API 30 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1
api 30 TYPE65280 \\# 2 abcd
child 3600 NS ns.child
"""


@pytest.mark.parametrize("kinds", [[(False, 13)], [(False, 13), (True, 13)], [(False, 15), (True, 15)], [(False, 13), (False, 15)]])
def test_bind_finds_a_zone_signed_in_full(tmp_path: Path, program: Callable[[str], str], kinds: list[tuple[bool, int]]) -> None:
    now = time.time()
    made = [Key.generate(ORIGIN, algorithm=Algorithm(number), zsk=zsk, timing=Timing(activate=now - 60)) for zsk, number in kinds]
    signer = Signer(ORIGIN, made)
    rrsets = [*dns.zonefile.read_rrsets(ZONE, origin=ORIGIN), *signer.apex()]
    types: dict[Name, set[int]] = {}
    for rrset in rrsets:
        types.setdefault(rrset.name, set()).add(rrset.rdtype)
    chain = Chain(types, 30)
    cut = name("child")
    signed = [rrset for rrset in rrsets if rrset.name != cut] + [chain.at(found) for found in types]
    lines = [rrset.to_text() for rrset in (*rrsets, *map(chain.at, types))]
    lines += [dns.rrset.from_rdata_list(rrset.name, rrset.ttl, signer.sign(rrset)).to_text() for rrset in signed]
    (tmp_path / "zone").write_text("\n".join([*lines, ""]))
    alone = ["-z"] if all(not zsk for zsk, _ in kinds) else []  # that keys with SEP sign everything is fine
    command = [program("dnssec-verify"), *alone, "-o", "example.com", str(tmp_path / "zone")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ===== rollovers, on a virtual clock


def test_cds_asks_the_parent_for_what_the_timing_says(clock: Clock) -> None:
    old, new = key(sync_publish=START, sync_delete=START + DAY), key(sync_publish=START + DAY)
    signer = Signer(ORIGIN, [old, new], clock=clock)
    assert [rrset.rdtype for rrset in signer.apex()] == [DNSKEY, CDS, CDNSKEY]
    assert [found.key_tag for found in signer.apex()[1]] == [old.tag]
    assert signer.apex()[1][0].to_text() == old.ds.to_text()
    clock.advance(DAY)
    assert signer.due()
    signer.begin()
    assert [found.key_tag for found in signer.apex()[1]] == [new.tag]
    validate(signer, signer.apex()[1], clock())
    assert RRSIG not in {rrset.rdtype for rrset in signer.apex()} and NSEC not in {rrset.rdtype for rrset in signer.apex()}
