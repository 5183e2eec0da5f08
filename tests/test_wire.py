"""What the compiled UDP path promises beside right bytes: it serves without Python, changes under it take effect at once and lose
nothing, what it cannot answer goes to the Responder, and its counters add up."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st
from resolving import OWNER, PROFILE, REGIONS, ZONE, answers, balancer, client_of

from lbcore import Balancer, Region
from lbcore.dns import Responder
from lbcore.dns._rrl import RateLimiter
from lbcore.dns._wire import Wire
from lbcore.dns.answers import Answers
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.prepare import build
from lbcore.dns.route import compile_routes
from lbcore.dns.zone import Zone

FRAME = struct.Struct("=iIHH16sI")


def prepared(lb: Balancer, *zones: Zone) -> Answers:
    return build(zones or (Zone.of(PROFILE),), lb.objects)


def published(lb: Balancer, *zones: Zone, **options: object) -> Wire:
    wire = Wire(**options)  # type: ignore[arg-type]
    prepare = prepared(lb, *zones)
    wire.publish(prepare, compile_routes(prepare.roots, lb))
    return wire


@pytest.fixture
def lb(clock: Clock) -> Balancer:
    return balancer(clock)


@contextlib.contextmanager
def serving(wire: Wire) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Serve `wire` in a thread; give a client's socket, connected to it, and what the Responder would read."""
    with contextlib.ExitStack() as stack:
        udp, client, slow, responder = (
            *(stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)),
            *map(stack.enter_context, socket.socketpair(type=socket.SOCK_DGRAM)),
        )
        udp.bind(("127.0.0.1", 0))
        client.connect(udp.getsockname())
        client.settimeout(5)
        responder.settimeout(5)
        thread = threading.Thread(target=wire.serve, args=(udp.fileno(), slow.fileno()))
        thread.start()
        try:
            yield client, responder
        finally:
            wire.stop()
            thread.join(5)
            assert not thread.is_alive()


def query(name: str = OWNER, rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **options).to_wire()  # type: ignore[arg-type]


def first_address(wire: bytes | None) -> str:
    assert wire is not None
    return answers(dns.message.from_wire(wire), "A")[0]


USUAL = [
    (OWNER, "A"), (OWNER, "AAAA"), (OWNER, "TXT"), (OWNER, "TYPE65280"), ("example.com", "SOA"), ("no.such.example.com", "A"),
    ("www.example.net", "A"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rdtype"), USUAL)
@pytest.mark.parametrize("options", [{}, {"use_edns": 0}, {"use_edns": 0, "payload": 4096, "want_dnssec": True}])
def test_what_is_usual_needs_no_python(lb: Balancer, name: str, rdtype: str, options: dict[str, object]) -> None:
    asked = dns.message.make_query(name, rdtype, **options)  # type: ignore[arg-type]
    wire = published(lb).answer(asked.to_wire(), client_of("dual"))
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert asked.is_response(response)
    assert (response.edns >= 0) == (asked.edns >= 0)


@pytest.mark.parametrize("packet", [
    query(rdtype="ANY"), query(rdtype="AXFR"), query(rdtype="TYPE41"), query()[:-1], query() + b"\0",
    b"\0\0\x28\0" + query()[4:],
], ids=["any", "transfer", "opt", "cut", "longer", "update"])  # fmt: skip
def test_what_is_unusual_goes_to_the_responder_as_it_came(lb: Balancer, packet: bytes) -> None:
    wire = published(lb)
    assert wire.answer(packet, "192.0.2.1") is None
    with serving(wire) as (client, responder):
        client.send(packet)
        taken = responder.recv(65_535)
        fd, kind, family, port, address, scope = FRAME.unpack_from(taken)
        assert taken[FRAME.size :] == packet
        assert (kind, family, port, scope) == (0, 4, client.getsockname()[1], 0)
        assert socket.inet_ntop(socket.AF_INET, address[:4]) == "127.0.0.1"
        with socket.socket(fileno=socket.dup(fd)) as same:
            same.sendto(b"answered by hand", client.getsockname())
        assert client.recv(100) == b"answered by hand"
    assert wire.counters()["slow"] == 1


@pytest.mark.parametrize("packet", [b"", b"\0" * 11, b"\0\0\x80\0" + query()[4:]], ids=["nothing", "no header", "a response"])
def test_what_must_not_be_answered_is_not(lb: Balancer, packet: bytes) -> None:
    wire = published(lb)
    with serving(wire) as (client, _):
        client.send(packet)
        client.send(b"ab" + query()[2:])
        assert client.recv(1232)[:2] == b"ab"  # the first answer that comes is the second packet's
    assert wire.counters()["unanswerable"] == 1
    assert wire.counters()["slow"] == 0


def test_a_zone_that_is_not_signed_is_answered_here_even_within_one_that_is(lb: Balancer) -> None:
    signer = Signer("example.com", [Key.generate("example.com", timing=Timing(activate=0))])
    above = Zone("example.com", keys=signer, records="eu NS ns1.eu\nns1.eu A 192.0.2.53")
    below = Zone("eu.example.com", {"api": PROFILE})
    wire, responder = published(lb, above, below), Responder(lb, [above, below])
    for name, rdtype, records in (("api", "A", 1), ("api", "AAAA", 1), ("nope", "A", 1), ("", "DS", 4)):
        packet = query(f"{name}.eu.example.com".lstrip("."), rdtype, want_dnssec=True)
        answer = wire.answer(packet, client_of("four"))
        assert answer is not None and answer == responder.answer(packet, client_of("four"))
        response = dns.message.from_wire(answer)
        assert sum(map(len, (*response.answer, *response.authority))) == records  # of the denial of DS: SOA, NSEC, their signatures


def test_signatures_asked_for_by_themselves_are_the_responders_and_no_denial(lb: Balancer) -> None:
    signer = Signer("example.com", [Key.generate("example.com", timing=Timing(activate=0))])
    made = Zone("example.com", {"api.eu": PROFILE, "*.w": PROFILE}, keys=signer, records="text TXT x")
    wire, responder = published(lb, made), Responder(lb, made)
    cases = ((OWNER, "A", 0), ("text.example.com", "TXT", 0), ("x.w.example.com", "A", 2), ("eu.example.com", "", 4))
    for name, covered, authorities in cases:
        for wanted in (False, True):
            packet = query(name, "RRSIG", want_dnssec=wanted)
            assert wire.answer(packet, client_of("four")) is None
            answer = responder.answer(packet, client_of("four"))
            assert answer is not None
            response = dns.message.from_wire(answer)
            assert [text.split()[0] for text in answers(response, "RRSIG")] == ([covered] if covered else [])
            assert all(rrset.ttl == (PROFILE.ttl if covered == "A" else 3600) for rrset in response.answer)
            assert not wanted or sum(map(len, response.authority)) == authorities


def test_without_any_zone_everything_is_refused(lb: Balancer) -> None:
    wire = Wire()
    wire.publish(Answers(), compile_routes((), lb))
    answer = wire.answer(query(), "192.0.2.1")
    assert answer is not None and dns.message.from_wire(answer).rcode() == dns.rcode.REFUSED


def test_a_verdict_holds_for_the_very_next_answer(lb: Balancer) -> None:
    wire = published(lb)
    where = client_of("four")
    assert first_address(wire.answer(query(), where)) == "192.0.2.4"
    lb.disable("four")
    assert first_address(wire.answer(query(), where)) != "192.0.2.4"
    lb.enable("four")
    lb.table.tick(10_000.0)
    assert first_address(wire.answer(query(), where)) == "192.0.2.4"


def test_records_come_first_in_turn_by_the_query_id(lb: Balancer) -> None:
    wire = published(lb)
    firsts = [first_address(wire.answer(id_.to_bytes(2) + query()[2:], client_of("dual"))) for id_ in range(6)]
    assert firsts == [f"192.0.2.{1 + id_ % 3}" for id_ in range(6)]


def test_fail_open_and_a_suspect_vantage_are_said(lb: Balancer) -> None:
    wire = published(lb)

    def errors(**options: object) -> list[str]:
        answer = wire.answer(query(**options), client_of("dual"))
        assert answer is not None
        return [option.text or "" for option in dns.message.from_wire(answer).options if isinstance(option, dns.edns.EDEOption)]

    assert errors(use_edns=0) == []
    for slot in range(len(REGIONS)):
        lb.table.set_tier(slot, 3, 1000.0)
    assert errors(use_edns=0) == ["fail open: no region is up"]
    wire.suspect(True)
    assert errors(use_edns=0) == ["fail open: no region is up", "vantage suspect: health is frozen"]
    assert errors() == []
    wire.suspect(False)
    assert errors(use_edns=0) == ["fail open: no region is up"]
    assert wire.counters()["fail_open"] == 4


def test_a_client_subnet_is_strictly_read(lb: Balancer) -> None:
    """RFC 7871 §7.1.2 and §6: everything that is not exactly right is left to the Responder, which says FORMERR."""
    wire = published(lb)

    def asked(data: bytes) -> bytes | None:
        return wire.answer(query(use_edns=0, options=[dns.edns.GenericOption(dns.edns.OptionType.ECS, data)]), "192.0.2.1")

    good = struct.pack("!HBB", 1, 24, 0) + bytes((81, 2, 1))
    assert asked(good) is not None
    assert asked(struct.pack("!HBB", 1, 0, 0)) is not None
    for bad in (good[:3], good[:-1], good + b"\0", good[:3] + b"\x18" + good[4:], b"\0\x03" + good[2:], good[:2] + b"\x21" + good[3:],
                struct.pack("!HBB", 1, 23, 0) + bytes((81, 2, 1)), b""):  # fmt: skip
        assert asked(bad) is None, bad.hex()


@pytest.mark.parametrize(("name", "rdtype"), [*USUAL, ("api.eu.example.com", "TYPE65281")])
def test_both_paths_draw_on_one_bucket_for_an_answer_and_on_others_for_others(lb: Balancer, name: str, rdtype: str) -> None:
    limiter = RateLimiter(2, 0, ())
    responder = Responder(lb, ZONE, rrl=limiter)
    wire = published(lb, ZONE, rrl=limiter)
    while wire.answer(query(name, rdtype), "192.0.2.1") is not None:
        pass
    assert responder.answer(query(name, rdtype), "192.0.2.1") is None
    assert responder.answer(query("ns1.example.com", "A"), "192.0.2.1") is not None
    assert wire.answer(query("ns1.example.com", "AAAA"), "192.0.2.1") is not None


# ===== while serving


def test_serving_gives_the_same_bytes_and_counts_them(lb: Balancer) -> None:
    wire = published(lb)
    packets = [id_.to_bytes(2) + query(name, rdtype)[2:] for id_, (name, rdtype) in enumerate(USUAL * 20)]
    expected = {packet[:2]: wire.answer(packet, "127.0.0.1") for packet in packets}
    before = wire.counters()
    with serving(wire) as (client, _):
        for packet in packets:
            client.send(packet)
        received = [client.recv(1232) for _ in packets]
    assert {packet[:2]: packet for packet in received} == expected
    after = wire.counters()
    assert after["queries"] == len(packets)
    assert after["answers"] == {key: 2 * count for key, count in before["answers"].items()}
    assert sum(before["answers"].values()) == len(packets)
    assert before["answers"]["example.com", "", "", "", "nxdomain"] == 20


def test_what_replaces_answers_is_in_the_next_one_and_nothing_is_lost(lb: Balancer) -> None:
    """Another list of regions every time: `publish` returns when no thread uses the former any more, whatever it is doing."""
    wire = published(lb)
    flood, stop = query(rdtype="AAAA"), threading.Event()
    with serving(wire) as (client, _):

        def keep_busy() -> None:
            with socket.socket(type=socket.SOCK_DGRAM) as other:
                other.connect(client.getpeername())
                other.settimeout(5)
                while not stop.is_set():
                    for _ in range(8):
                        other.send(flood)
                    for _ in range(8):
                        other.recv(1232)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        try:
            for turn in range(1, 201):
                zone = Zone.of(PROFILE)
                objects = tuple(Region(region.name, 0, 0, addresses=(f"198.51.100.{turn}",)) for region in REGIONS)
                renewed = build([zone], objects)
                wire.publish(renewed, compile_routes(renewed.roots, lb))
                client.send(query())
                assert first_address(client.recv(1232)) == f"198.51.100.{turn}"
        finally:
            stop.set()
            busy.join()


def test_sampled_answers_go_to_the_query_log(lb: Balancer) -> None:
    wire = published(lb, sample=10)
    with serving(wire) as (client, responder):
        for _ in range(30):
            client.send(query())
            client.recv(1232)
        logged = [responder.recv(65_535) for _ in range(3)]
        responder.setblocking(False)
        with pytest.raises(BlockingIOError):
            responder.recv(1)
    for entry in logged:
        assert FRAME.unpack_from(entry)[1] == 1
        assert first_address(entry[FRAME.size :])


def test_a_responder_that_lags_behind_costs_only_what_is_its_own(lb: Balancer) -> None:
    wire = published(lb)
    with serving(wire) as (client, _):
        for _ in range(2000):  # nobody reads the other end
            client.send(query(rdtype="ANY"))
            client.send(query())
            assert first_address(client.recv(1232))
    counters = wire.counters()
    assert counters["lost"] > 0
    assert counters["lost"] + counters["slow"] == 2000
    assert counters["queries"] == 4000


def test_what_begins_to_serve_after_the_stop_ends_at_once(lb: Balancer) -> None:
    wire = published(lb)
    wire.stop()
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=wire.serve, args=(udp.fileno(), udp.fileno()), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()


def test_a_socket_that_cannot_be_served_is_an_error(lb: Balancer) -> None:
    with pytest.raises(ValueError, match="publish answers first"):
        Wire().serve(0, 0)
    with pytest.raises(OSError, match="UDP socket 999 cannot be served"):
        published(lb).serve(999, 999)


# ===== names

LABELS = st.sampled_from(["a", "b", "B", "c", "*", "x" * 63, "a-b"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)


def expected(names: set[str], asked: str) -> str | None:
    """Give the owner whose records a name gets, None when it does not exist: RFC 4592 §3.3.1, by trying every possibility."""
    exist = {"", *(".".join(name.split(".")[at:]) for name in names for at in range(name.count(".") + 1))}
    labels = asked.lower().split(".")
    if asked.lower() in exist:
        return asked.lower()
    encloser = next(rest for at in range(1, len(labels) + 1) if (rest := ".".join(labels[at:])) in exist)
    source = f"*.{encloser}" if encloser else "*"
    return source if source in exist else None


@given(st.sets(NAMES.map(str.lower), min_size=1, max_size=8), st.lists(NAMES, min_size=1, max_size=8))
def test_names_are_found_as_the_rule_for_wildcards_says(names: set[str], asked: list[str]) -> None:
    lb = balancer(Clock())
    owners = sorted(names)
    records = "".join(f'{name} 60 IN TXT "{number}"\n' for number, name in enumerate(owners))
    wire = published(lb, Zone("example.com", records=records))
    for name in asked:
        answer = wire.answer(query(f"{name}.example.com", "TXT"), "192.0.2.1")
        assert answer is not None
        response = dns.message.from_wire(answer)
        owner = expected(names, name)
        assert (response.rcode() == dns.rcode.NXDOMAIN) == (owner is None)
        assert answers(response, "TXT") == ([f'"{owners.index(owner)}"'] if owner in names else [])
        assert all(rrset.name == dns.name.from_text(f"{name}.example.com") for rrset in response.answer)


def test_an_answer_that_fits_no_datagram_is_the_responders(lb: Balancer) -> None:
    records = "".join(f'big 60 IN TXT "{"x" * 250}{i}"\n' for i in range(100))
    zone = Zone("example.com", records=records)
    wire = published(lb, zone)
    asked = query("big.example.com", "TXT", use_edns=0)
    assert wire.answer(asked, "192.0.2.1") is None
    truncated = Responder(lb, zone).answer(asked, "192.0.2.1")
    assert truncated is not None
    assert dns.message.from_wire(truncated).flags & dns.flags.TC
