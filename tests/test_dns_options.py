"""What the Responder promises beside the records: cookies, rate limits, NSID, extended errors, keepalive, CHAOS."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from conftest import Clock
from dns.edns import CookieOption, EDEOption, GenericOption, NSIDOption, OptionType
from dns.rcode import BADCOOKIE, BADVERS, FORMERR, NOERROR, NXDOMAIN, REFUSED
from resolving import OWNER, PROFILE, answers, ask, balancer, client_of, scope_of, subnet

from lbcore.dns import Profile, Responder, Zone
from lbcore.dns._cookies import Cookies
from lbcore.dns._rrl import RateLimiter

SECRET = bytes(range(16))
ALICE = b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"
FAR = "198.51.100.7"  # where rate limiting applies


class Wall(Clock):
    """Unix seconds."""


@pytest.fixture
def wall() -> Wall:
    return Wall(1_800_000_000.5)


@pytest.fixture
def responder(clock: Clock, wall: Wall) -> Responder:
    return Responder(
        balancer(clock), PROFILE, nsid=b"ams-1", version="lbcore", cookies=Cookies(SECRET), rrl=RateLimiter(10, 2),
        clock=wall, monotonic=clock,
    )  # fmt: skip


def with_options(*options: dns.edns.Option) -> dict[str, Any]:
    return {"use_edns": 0, "options": [*options]}


def cookie_of(response: dns.message.Message) -> bytes:
    found = [option for option in response.options if isinstance(option, CookieOption)]
    return found[0].client + found[0].server if found else b""


def errors_of(response: dns.message.Message) -> list[tuple[int, str | None]]:
    return [(int(option.code), option.text) for option in response.options if isinstance(option, EDEOption)]


def cookie(data: bytes) -> dict[str, Any]:
    return with_options(GenericOption(OptionType.COOKIE, data))


# ===== cookies


def test_a_client_cookie_gets_a_server_cookie_that_is_valid_next_time(responder: Responder, wall: Wall) -> None:
    given = cookie_of(ask(responder, OWNER, "A", client_of("four"), **cookie(ALICE)))
    assert (len(given), given[:8], given[8:12]) == (24, ALICE, b"\1\0\0\0")
    wall.advance(600)
    again = ask(responder, OWNER, "A", client_of("four"), **cookie(given))
    assert (answers(again, "A"), cookie_of(again)) == (["192.0.2.4"], given)
    wall.advance(1300)
    renewed = cookie_of(ask(responder, OWNER, "A", client_of("four"), **cookie(given)))
    assert renewed[:8] == ALICE and renewed != given


def test_a_wrong_server_cookie_is_no_reason_to_refuse(responder: Responder) -> None:
    response = ask(responder, OWNER, "A", client_of("four"), **cookie(ALICE + bytes(16)))
    assert (response.rcode(), answers(response, "A"), len(cookie_of(response))) == (NOERROR, ["192.0.2.4"], 24)


def test_every_answer_carries_it(responder: Responder) -> None:
    for name, rcode in ((OWNER, NOERROR), ("nope.example.com", NXDOMAIN), ("example.net", REFUSED)):
        response = ask(responder, name, "A", **cookie(ALICE))
        assert (response.rcode(), len(cookie_of(response))) == (rcode, 24)


@pytest.mark.parametrize("size", [0, 7, 9, 15, 41])
def test_a_cookie_of_no_legal_size_is_malformed(responder: Responder, size: int) -> None:
    response = ask(responder, OWNER, "A", **cookie(bytes(size)))
    assert (response.rcode(), response.answer, response.options) == (FORMERR, [], ())


def test_of_several_cookies_the_first_counts(responder: Responder) -> None:
    first, second = GenericOption(OptionType.COOKIE, ALICE), GenericOption(OptionType.COOKIE, b"short")
    assert cookie_of(ask(responder, OWNER, "A", **with_options(first, second)))[:8] == ALICE


def bare(data: bytes) -> bytes:
    """A query that asks for nothing but a cookie: no question (RFC 7873 §5.4)."""
    option = struct.pack("!HH", 10, len(data)) + data
    return b"\x12\x34\0\0" + struct.pack("!4H", 0, 0, 0, 1) + b"\0\0\x29\x04\xd0\0\0\0\0" + struct.pack("!H", len(option)) + option


def test_a_cookie_can_be_asked_for_alone(responder: Responder) -> None:
    def asked(data: bytes) -> dns.message.Message:
        answer = responder.answer(bare(data), FAR)
        assert answer is not None
        return dns.message.from_wire(answer)

    first = asked(ALICE)
    assert (first.id, first.rcode(), first.question, first.answer) == (0x1234, NOERROR, [], [])
    assert asked(cookie_of(first)).rcode() == NOERROR
    wrong = asked(ALICE + bytes(16))
    assert (wrong.rcode(), len(cookie_of(wrong))) == (BADCOOKIE, 24)
    assert responder.counters["badcookie"] == 1


def test_without_cookies_they_are_passed_over(clock: Clock) -> None:
    responder = Responder(balancer(clock), PROFILE)
    response = ask(responder, OWNER, "A", client_of("four"), **cookie(ALICE))
    assert (answers(response, "A"), response.options) == (["192.0.2.4"], ())
    answer = responder.answer(bare(ALICE), FAR)
    assert answer is not None and dns.message.from_wire(answer).rcode() == FORMERR


# ===== rate limiting


def test_over_the_rate_every_second_answer_is_cut_and_the_others_are_not_given(responder: Responder, clock: Clock) -> None:
    query = dns.message.make_query(OWNER, "A").to_wire()
    given = [responder.answer(query, FAR) for _ in range(20)]
    sent = [dns.message.from_wire(answer) for answer in given if answer is not None]
    assert [bool(answers(response, "A")) for response in sent] == [True] * 10 + [False] * 5
    assert [bool(response.flags & dns.flags.TC) for response in sent] == [False] * 10 + [True] * 5
    assert (responder.counters["limited"], responder.counters["withheld"], responder.counters["truncated"]) == (10, 5, 5)
    clock.advance(1.0)
    assert responder.answer(query, FAR) is not None


@pytest.mark.parametrize("how", ["tcp", "cookie", "loopback"])
def test_who_cannot_be_forged_is_not_limited(responder: Responder, how: str) -> None:
    client = "127.0.0.1" if how == "loopback" else FAR
    options = cookie(cookie_of(ask(responder, OWNER, "A", client, **cookie(ALICE)))) if how == "cookie" else {}
    for _ in range(50):
        assert answers(ask(responder, OWNER, "A", client, tcp=how == "tcp", **options), "A")
    assert responder.counters["limited"] == 0


@pytest.mark.parametrize(("name", "rdtype"), [("{}.example.com", "A"), ("{}.example.net", "A"), ("{}.example.com", "TXT")])
def test_names_that_are_made_up_share_a_limit(responder: Responder, name: str, rdtype: str) -> None:
    given = [responder.answer(dns.message.make_query(name.format(n), rdtype).to_wire(), FAR) for n in range(20)]
    assert sum(answer is not None and not answer[2] & 2 for answer in given) == 10


def test_a_forged_cookie_does_not_help(responder: Responder) -> None:
    query = dns.message.make_query(OWNER, "A", **cookie(ALICE + bytes(16))).to_wire()
    assert sum(responder.answer(query, FAR) is None for _ in range(20)) == 5


# ===== NSID, CHAOS


def test_nsid_is_told_to_those_who_ask(responder: Responder, clock: Clock) -> None:
    response = ask(responder, OWNER, "A", **with_options(NSIDOption(b"")))
    assert response.options == (NSIDOption(b"ams-1"),)
    assert ask(responder, OWNER, "A", use_edns=0).options == ()
    assert ask(Responder(balancer(clock), PROFILE), OWNER, "A", **with_options(NSIDOption(b""))).options == ()


def test_an_nsid_too_long_for_every_answer_is_refused(clock: Clock) -> None:
    with pytest.raises(ValueError, match="65 bytes"):
        Responder(balancer(clock), PROFILE, nsid=bytes(65))


CHAOS = {"version.bind": "lbcore", "VERSION.Server": "lbcore", "hostname.bind": "ams-1", "id.server": "ams-1"}


@pytest.mark.parametrize("name", CHAOS)
def test_chaos_says_what_is_configured(responder: Responder, name: str) -> None:
    response = ask(responder, name, "TXT", rdclass="CH")
    assert [rdata.to_text() for rrset in response.answer for rdata in rrset] == [f'"{CHAOS[name]}"']
    assert (response.answer[0].ttl, response.answer[0].name) == (0, response.question[0].name)


@pytest.mark.parametrize("name", [*CHAOS, "authors.bind", OWNER])
def test_chaos_is_refused_by_default(clock: Clock, name: str) -> None:
    assert ask(Responder(balancer(clock), PROFILE), name, "TXT", rdclass="CH").rcode() == REFUSED


# ===== extended errors


def test_a_foreign_name_and_a_transfer_say_why(responder: Responder) -> None:
    assert errors_of(ask(responder, "example.net", "A", use_edns=0)) == [(20, None)]
    assert errors_of(ask(responder, "example.com", "AXFR", use_edns=0, tcp=True)) == [(18, None)]
    assert ask(responder, "example.net", "A").opt is None


def test_failing_open_is_said_where_it_matters(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    for region in lb.regions:
        lb.table.set_tier(lb.slot(region), 3, clock())
    lb.tick()
    assert errors_of(ask(responder, OWNER, "A", use_edns=0)) == [(0, "fail open: no region is up")]
    assert errors_of(ask(responder, OWNER, "TXT", use_edns=0)) == [(0, "fail open: no region is up")]
    assert errors_of(ask(responder, "example.com", "SOA", use_edns=0)) == []


def test_a_suspect_vantage_is_said(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    responder = Responder(balancer(clock), PROFILE)
    monkeypatch.setattr(Responder, "suspect", True)
    assert errors_of(ask(responder, OWNER, "A", use_edns=0)) == [(0, "vantage suspect: health is frozen")]
    assert errors_of(ask(responder, "nope.example.com", "A", use_edns=0)) == []


def test_options_come_in_one_order(responder: Responder) -> None:
    padding, client = GenericOption(OptionType.PADDING, bytes(9)), GenericOption(OptionType.COOKIE, ALICE)
    options = with_options(NSIDOption(b""), client, dns.edns.ECSOption("81.2.2.0", 24), padding)
    response = ask(responder, "example.net", "A", **options)
    assert [int(option.otype) for option in response.options] == [8, 10, 3, 15]


@pytest.mark.parametrize("rcode", [FORMERR, BADVERS])
def test_what_cannot_be_relied_on_is_not_echoed(responder: Responder, rcode: int) -> None:
    options = [dns.edns.ECSOption("81.2.2.0", 24), NSIDOption(b""), GenericOption(OptionType.COOKIE, ALICE)]
    if rcode == FORMERR:
        options.append(dns.edns.ECSOption("81.2.2.0", 24))
    response = ask(responder, OWNER, "A", use_edns=1 if rcode == BADVERS else 0, options=options)
    assert (response.rcode(), response.edns, response.options) == (rcode, 0, ())


# ===== TCP


def test_keepalive_is_answered_over_tcp_alone(responder: Responder) -> None:
    asked = with_options(GenericOption("11", b""))
    (option,) = ask(responder, OWNER, "A", tcp=True, **asked).options
    assert (int(option.otype), option.to_wire()) == (11, (100).to_bytes(2))
    assert ask(responder, OWNER, "A", **asked).options == ()


def test_an_answer_too_long_for_its_options_alone_is_cut(clock: Clock) -> None:
    """The longest name, every option at its longest: header, question and OPT still fit in 512 bytes."""
    zone = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 55])
    responder = Responder(
        balancer(clock), Zone(zone, {"x": Profile()}, rname="h"), nsid=bytes(64), cookies=Cookies(SECRET), monotonic=clock, clock=clock
    )  # fmt: skip
    options = [dns.edns.ECSOption("2001:db8::", 128), NSIDOption(b""), GenericOption(OptionType.COOKIE, ALICE)]
    query = dns.message.make_query(f"x.{zone}", "A", use_edns=0, options=options, payload=512)
    answer = responder.answer(query.to_wire(), client_of("dual"))
    assert answer is not None and len(answer) <= 512
    response = dns.message.from_wire(answer)
    assert response.flags & dns.flags.TC or answers(response, "A")
    assert scope_of(response) is not None


def test_subnet_and_cookie_do_not_disturb_each_other(responder: Responder) -> None:
    asked = subnet("81.2.2.0/24")
    asked["options"].append(GenericOption(OptionType.COOKIE, ALICE))
    response = ask(responder, OWNER, "A", FAR, **asked)
    assert (answers(response, "A"), scope_of(response), len(cookie_of(response))) == (["192.0.2.4"], 24, 24)
