"""What is answered from is right at once: regions, zones and health change under a Responder, and some changes fail."""

from __future__ import annotations

import random
import threading
from typing import Any

import dns.message
import dns.name
import pytest
from conftest import Clock
from dns.dnssectypes import Algorithm
from resolving import NETWORKS, OWNER, PROFILE, REGIONS, answers, ask, balancer, client_of, subnet

from lbcore import ConfigError, PrefixMap, Region
from lbcore.dns import Profile, Responder, Zone
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.server import Server

OTHER = Zone("example.net", {"www": Profile(ttl=5)})


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), PROFILE)


def test_regions_and_networks_that_are_replaced_are_answered_with(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    lb.set_regions([*REGIONS[2:], Region("late", 0, 9, addresses=("192.0.2.99",)), REGIONS[1], REGIONS[0]])
    assert answers(ask(responder, OWNER, "A", client_of("four")), "A") == ["192.0.2.4"]
    assert responder.answers.regions[lb.slot("late")] == "late"
    lb.set_locate(PrefixMap.from_prefixes([(NETWORKS["four"], 1)]))
    assert answers(ask(responder, OWNER, "A", client_of("four"), **subnet(NETWORKS["four"])), "A")
    assert responder.program.map is lb.map and responder.program.table is lb.table


def test_zones_are_reloaded_and_wrong_ones_change_nothing(responder: Responder) -> None:
    before = responder.answers
    with pytest.raises(ConfigError, match="named once"):
        responder.reload([OTHER, Zone("example.net", {"www": Profile()})])
    assert responder.answers is before
    responder.reload([OTHER, Zone.of(PROFILE)])
    assert answers(ask(responder, "www.example.net", "A", client_of("four")), "A") == ["192.0.2.4"]
    responder.reload(OTHER)
    assert [zone.origin for zone in responder.zones] == ["example.net"]
    assert str(ask(responder, OWNER, "A").rcode().name) == "REFUSED"


def test_followers_are_told_at_once_and_after_every_change(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    told: list[tuple[Any, Any]] = []
    responder.on_prepared(lambda *version: told.append(version))
    lb.set_regions(REGIONS[:3])
    responder.reload(OTHER)
    assert told[-1] == (responder.answers, responder.program)
    assert len({id(answers) for answers, _ in told}) == len(told) > 2
    last = len(told)
    lb.disable("four")  # a Program reads that from the table
    assert len(told) == last
    responder.close()
    lb.set_regions(REGIONS)
    assert len(told) == last


def test_who_no_longer_follows_is_told_no_more(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    told: list[str] = []

    def listen(*_: object) -> None:
        told.append("")

    ends = [responder.on_prepared(listen) for _ in range(2)]
    for end, listening in zip((ends[0], ends[0], ends[1]), (1, 1, 0), strict=True):  # again is no mistake
        end()
        told.clear()
        responder.reload(OTHER)
        assert len(told) == listening


async def test_a_server_that_ends_leaves_nothing_behind_in_its_responder(responder: Responder) -> None:
    followers = responder._current._followers
    async with Server(responder, port=0):
        assert len(responder._current._followers) == len(followers) + 1
    assert responder._current._followers == followers


def test_what_cannot_be_prepared_is_logged_and_the_old_stays(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)

    def broken(*args: object, **options: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr("lbcore.dns.current.build", broken)
    lb.set_regions(REGIONS[:4])
    assert responder.not_prepared > 0
    assert "disk on fire" in caplog.text
    assert answers(ask(responder, OWNER, "A", client_of("four")), "A") == ["192.0.2.4"]
    with pytest.raises(OSError, match="disk on fire"):
        responder.reload(OTHER)
    with pytest.raises(OSError, match="disk on fire"):
        Responder(lb, PROFILE)


def test_a_reload_and_a_change_of_regions_at_once_do_not_wait_for_each_other(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, [Zone.of(Profile("api.eu", "example.com", ttl_min=1))])

    def reload() -> None:
        for _ in range(30):
            responder.reload(OTHER)
            responder.reload(PROFILE)
            responder.tick()

    threads = [threading.Thread(target=reload, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for count in range(30):
        lb.set_regions(REGIONS[: 2 + count % 4])
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [name for name in responder.answers.regions if name] == [region.name for region in lb.regions]
    assert answers(ask(responder, OWNER, "A", client_of("four")), "A") == ["192.0.2.4"]


def test_a_ttl_that_follows_health_is_looked_ahead_with_every_tick(clock: Clock) -> None:
    lb = balancer(clock)
    lb.expect_probes(10.0, 2.0)
    responder = Responder(lb, Profile("api.eu", "example.com", ttl=300, ttl_min=2))
    until = lb.until_change("four")
    assert until is not None and 2 < until < 300
    assert ask(responder, OWNER, "A", client_of("four")).answer[0].ttl == int(until)
    for _ in range(2):
        lb.report("four", False, cause="timeout", source="probe")
    responder.tick()
    sooner = lb.until_change("four")
    assert sooner is not None and sooner < until
    assert ask(responder, OWNER, "A", client_of("four")).answer[0].ttl == max(2, int(sooner))


def test_signatures_are_renewed_when_they_are_due() -> None:
    clock = Clock(1_790_000_000.0)
    origin = dns.name.from_text("example.com.")
    key = Key.generate(origin, algorithm=Algorithm.ECDSAP256SHA256, zsk=False, timing=Timing(activate=clock()))
    signer = Signer("example.com", [key], clock=clock)
    responder = Responder(balancer(clock), Zone("example.com", {"api.eu": Profile()}, keys=signer))
    assert any(rrset.rdtype == 46 for rrset in ask(responder, OWNER, "A", client_of("four"), want_dnssec=True).answer)
    before = responder.answers
    responder.tick()
    assert responder.answers is before
    clock.advance(10 * 86_400)
    responder.tick()
    assert responder.answers is not before
    for name in ("nope.example.com", "x.y.example.com", OWNER):
        response = ask(responder, name, "TXT", client_of("four"), want_dnssec=True)
        assert {rrset.rdtype for rrset in response.authority} == {6, 46, 47}
        assert all(rdata.expiration > clock() + 86_400 for rrset in response.authority if rrset.rdtype == 46 for rdata in rrset)


def test_a_proof_that_was_made_for_another_name_is_right_for_this_one() -> None:
    """Names of one gap of the NSEC chain share their proof: what one Responder keeps is what a new one makes."""
    clock, rng = Clock(1_790_000_000.0), random.Random(47)
    key = Key.generate(dns.name.from_text("example.com."), algorithm=Algorithm.ED25519, zsk=False, timing=Timing(activate=clock()))
    lb, signer = balancer(clock), Signer("example.com", [key], clock=clock)
    records = '*.txt TXT "any"\nd A 192.0.2.1\nb.m.e TXT "deep"\np A 192.0.2.2\nx.p A 192.0.2.3\n'
    zone = Zone("example.com", {"api.eu": Profile(), "*.wild": Profile()}, records, keys=signer)
    kept = Responder(lb, zone)
    for number in range(150):
        below = rng.choice(("", "", ".txt", ".wild", ".p", ".x.p", ".m.e", ".b.m.e", ".api.eu"))
        name = "".join(rng.choice("abdmpxz-09AZ") for _ in range(rng.randint(1, 3))) + below + ".example.com"
        query = dns.message.make_query(name, rng.choice(("A", "TXT", "AAAA")), id=number % 4, want_dnssec=True).to_wire()
        assert kept.answer(query, client_of("dual")) == Responder(lb, zone).answer(query, client_of("dual")), name
