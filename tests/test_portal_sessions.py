"""Sessions of the portal: how they begin and end, what is kept of them, and which requests come from its own pages."""

from __future__ import annotations

import pytest
from conftest import Clock

from lbcore.service.portal.sessions import MOST, MOST_OF_ONE, Sessions, from_here
from lbcore.service.tokens import Principal

ANA = Principal("0a", "ana", "operator")
BEN = Principal("0b", "ben", "reader")


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(idle=100.0, longest=1000.0, clock=clock)


def test_a_session_is_found_by_its_id_alone(sessions: Sessions) -> None:
    id, session = sessions.open(ANA)
    assert sessions.find(id) is session
    assert all(sessions.find(other) is None for other in (None, "", id[:-1], id + "x", "\udc80", session.csrf, ANA.id))


def test_ids_and_forgery_tokens_are_never_the_same(sessions: Sessions) -> None:
    made = [sessions.open(Principal(str(number), "x", "reader")) for number in range(50)]
    assert len({id for id, _ in made} | {session.csrf for _, session in made}) == 100
    assert all(len(id) >= 43 for id, _ in made)


def test_the_id_is_nowhere_in_memory_but_hashed(sessions: Sessions) -> None:
    id, session = sessions.open(ANA)
    assert id not in repr(vars(sessions)) + repr(session)
    assert session.csrf not in repr(session)


def test_it_ends_when_nobody_uses_it(sessions: Sessions, clock: Clock) -> None:
    id, session = sessions.open(ANA)
    for _ in range(5):
        clock.advance(99.0)
        assert sessions.find(id) is session
    clock.advance(99.0)
    assert sessions.alive(session)  # which is no use of it
    clock.advance(1.0)
    assert not sessions.alive(session)
    assert sessions.find(id) is None
    assert len(sessions) == 0


def test_it_ends_when_it_is_old_however_busy(sessions: Sessions, clock: Clock) -> None:
    id, _ = sessions.open(ANA)
    for _ in range(19):
        clock.advance(50.0)
        assert sessions.find(id) is not None
    clock.advance(50.0)
    assert sessions.find(id) is None


def test_signing_out_ends_one_and_a_revoked_token_all_of_its_own(sessions: Sessions) -> None:
    (one, _), (two, second), (other, _) = sessions.open(ANA), sessions.open(ANA), sessions.open(BEN)
    sessions.close(one)
    assert (sessions.find(one), sessions.find(two)) == (None, second)
    sessions.revoke(second)
    assert not sessions.alive(second)
    assert sessions.find(two) is None
    assert sessions.find(other) is not None


def test_there_are_only_so_many(sessions: Sessions, clock: Clock) -> None:
    first, _ = sessions.open(ANA)
    kept = [sessions.open(ANA)[0] for _ in range(MOST_OF_ONE - 1)]
    assert sessions.find(first) is not None  # now the one used last
    sessions.open(ANA)
    assert sessions.find(kept[0]) is None
    assert sessions.find(first) is not None
    for number in range(MOST + 50):
        sessions.open(Principal(f"n{number}", "x", "reader"))
    assert len(sessions) == MOST
    clock.advance(100.0)
    sessions.open(ANA)
    assert len(sessions) == 1


def test_a_form_must_carry_the_token_of_its_session(sessions: Sessions) -> None:
    (_, ana), (_, ben) = sessions.open(ANA), sessions.open(BEN)
    assert ana.genuine(ana.csrf)
    assert not any(ana.genuine(given) for given in ("", ben.csrf, ana.csrf[:-1], ana.csrf + "=", "\udc80"))


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({}, True), ({"origin": "http://127.0.0.1:9180"}, True), ({"sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://127.0.0.1:9180", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "null"}, False), ({"origin": "http://127.0.0.1:8080"}, False), ({"origin": "https://127.0.0.1:9180"}, True),
        ({"origin": "http://127.0.0.1:9180.evil.test"}, False), ({"origin": ""}, False), ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False), ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://127.0.0.1:9180", "sec-fetch-site": "cross-site"}, False),
    ],
)  # fmt: skip
def test_which_requests_come_from_here(headers: dict[str, str], ours: bool) -> None:
    assert from_here({"host": "127.0.0.1:9180"} | headers, "http") is ours


def test_what_comes_without_tls_is_not_from_here_when_this_is_with() -> None:
    headers = {"host": "contoso.test", "origin": "http://contoso.test"}
    assert not from_here(headers, "https")
    assert from_here(headers | {"origin": "https://contoso.test"}, "https")
