"""Tokens: only the right ones, for as long as they hold, and never seen again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbcore.errors import ServiceError
from lbcore.service.store import Store
from lbcore.service.tokens import ROLES, Attempts, Principal, TooManyAttemptsError, Verifier, issue


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "store.db", clock=clock) as store:
        yield store


@pytest.fixture
def verifier(store: Store, clock: Clock) -> Verifier:
    return Verifier(store, Attempts(clock=clock), clock)


def refused(verifier: Verifier, text: str, address: str = "192.0.2.1") -> str:
    with pytest.raises(ServiceError) as caught:
        verifier.authenticate(text, address)
    return caught.value.code


@pytest.mark.parametrize("role", ROLES)
def test_a_token_stands_for_whom_it_was_made(verifier: Verifier, role: str) -> None:
    text = issue(verifier.store, role, "West US 2", who="root")
    found = verifier.authenticate(text)
    name, bound = ("westus2", "westus2") if role == "node" else ("West US 2", "")
    assert found == Principal(text.split("_")[1], name, role, bound)
    assert verifier.still(found.id) == found


@pytest.mark.parametrize(
    ("role", "may"),
    [("node", {"node"}), ("reader", {"reader"}), ("operator", {"reader", "operator"}), ("owner", {"reader", "operator", "owner"})],
)
def test_what_a_role_may(role: str, may: set[str]) -> None:
    assert {each for each in (*ROLES, "root", "") if Principal("1", "n", role).may(each)} == may


@pytest.mark.parametrize(
    ("role", "name", "expires", "target"),
    [
        ("root", "ann", None, "role"),
        ("reader", " ", None, "name"),
        ("reader", "a\nb", None, "name"),
        ("reader", "a" * 201, None, "name"),
        ("node", "../etc", None, "name"),
        ("node", "a b/c", None, "name"),
        ("reader", "ann", 999_999.0, "expires"),
        ("reader", "ann", float("nan"), "expires"),
        ("reader", "ann", float("inf"), "expires"),
    ],
)
def test_tokens_that_make_no_sense_are_not_made(store: Store, role: str, name: str, expires: float | None, target: str) -> None:
    with pytest.raises(ServiceError) as caught:
        issue(store, role, name, who="root", expires=expires)
    assert (caught.value.code, caught.value.target, store.tokens.all()) == ("InvalidProperty", target, [])


def test_a_token_ends_when_it_expires_and_when_it_is_revoked(verifier: Verifier, clock: Clock) -> None:
    brief, long = (issue(verifier.store, "reader", "ann", who="root", expires=clock.now + left) for left in (10.0, 100.0))
    clock.now += 9.0
    one, other = verifier.authenticate(brief), verifier.authenticate(long)
    clock.now += 1.0
    assert refused(verifier, brief) == "AuthenticationFailed"
    verifier.store.tokens.revoke(other.id, who="root")
    assert refused(verifier, long) == "AuthenticationFailed"
    for id in (one.id, other.id, "nobody"):
        with pytest.raises(ServiceError, match="AuthenticationFailed"):
            verifier.still(id)


@given(text=st.text(max_size=100) | st.from_regex(r"lbcore_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", fullmatch=True))
@example(text="")
@example(text="lbcore_")
@example(text="lbcore_000000000000_" + "A" * 43 + "\n")
def test_no_other_text_is_a_token(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Store(tmp_path_factory.getbasetemp() / "others.db") as store:
        assert refused(Verifier(store), text) == "AuthenticationFailed"


def test_every_part_of_a_token_counts(verifier: Verifier) -> None:
    text, other = (issue(verifier.store, "reader", "ann", who="root") for _ in range(2))
    mixed = f"lbcore_{text.split('_')[1]}_{other.split('_', 2)[2]}"
    for number, wrong in enumerate((mixed, text[:-1], text + "A", text.upper(), f" {text}", text[:-1] + ("A" if text[-1] != "A" else "B"))):
        assert refused(verifier, wrong, f"192.0.2.{number}") == "AuthenticationFailed"
    assert verifier.authenticate(text).name == "ann"


def test_the_secret_is_kept_nowhere(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = issue(store, "owner", "ann", who="root")
    verifier = Verifier(store)
    verifier.authenticate(text)
    with pytest.raises(ServiceError) as caught:
        verifier.authenticate(text + "A")
    store.close()
    secret = text.split("_", 2)[2]
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
    assert secret not in caplog.text + str(caught.value) + repr(caught.value.__context__)


def test_use_is_noted_once_a_minute(verifier: Verifier, clock: Clock) -> None:
    text = issue(verifier.store, "reader", "ann", who="root")
    seen = []
    for _ in range(7):
        verifier.authenticate(text)
        seen.append(verifier.store.tokens.all()[0].used)
        clock.now += 20.0
    assert [used and used - 1_000_000.0 for used in seen] == [0, 0, 0, 60, 60, 60, 120]


def test_whoever_is_wrong_too_often_must_wait(verifier: Verifier, clock: Clock) -> None:
    good, unseen = (issue(verifier.store, "reader", "ann", who="root") for _ in range(2))
    verifier.authenticate(good, "192.0.2.1")
    assert [refused(verifier, f"wrong {number}") for number in range(12)] == ["AuthenticationFailed"] * 10 + ["TooManyAttempts"] * 2
    assert refused(verifier, unseen) == "TooManyAttempts"  # nobody learns that it was right
    assert verifier.authenticate(good, "192.0.2.1").name == "ann"  # was right from there before
    assert verifier.authenticate(unseen, "192.0.2.2").name == "ann"  # from elsewhere
    with pytest.raises(TooManyAttemptsError) as caught:
        verifier.authenticate("another", "192.0.2.1")
    assert caught.value.retry_after == pytest.approx(6.0)
    clock.now += caught.value.retry_after
    assert refused(verifier, "another") == "AuthenticationFailed"
    assert refused(verifier, "one more") == "TooManyAttempts"
    clock.now += 120.0
    assert verifier.authenticate(unseen, "192.0.2.1").name == "ann"


def test_a_program_that_goes_on_with_an_old_token_locks_out_nobody(verifier: Verifier) -> None:
    old, new = (issue(verifier.store, "reader", "ann", who="root") for _ in range(2))
    verifier.store.tokens.revoke(verifier.authenticate(old, "192.0.2.1").id, who="root")
    assert {refused(verifier, old) for _ in range(100)} == {"AuthenticationFailed"}
    assert verifier.authenticate(new, "192.0.2.1").name == "ann"


def test_one_client_is_one_whatever_its_address_looks_like(verifier: Verifier) -> None:
    for number in range(5):
        assert refused(verifier, f"wrong {number}", f"2001:db8::{number}") == "AuthenticationFailed"
        assert refused(verifier, f"wrong too {number}", f"2001:db8::5:{number}%eth0") == "AuthenticationFailed"
    assert refused(verifier, "wrong", "2001:db8::ffff") == "TooManyAttempts"
    assert refused(verifier, "wrong", "2001:db8:0:1::1") == "AuthenticationFailed"
    for number in range(10):
        assert refused(verifier, f"wrong {number}", "::ffff:192.0.2.9") == "AuthenticationFailed"
    assert refused(verifier, "wrong", "192.0.2.9") == "TooManyAttempts"


def test_many_clients_do_not_fill_the_memory(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.tokens._MOST", 5)
    for number in range(20):
        refused(verifier, "wrong", f"client {number}")
    assert len(verifier.attempts._until) == 5


def test_a_store_that_cannot_be_written_refuses_nobody(verifier: Verifier) -> None:
    text = issue(verifier.store, "reader", "ann", who="root")

    def full(id: str) -> None:
        raise ServiceError("StoreFull", "no room")

    verifier.store.tokens.used = full  # type: ignore[method-assign]
    assert verifier.authenticate(text).name == "ann"


def test_threads_may_share_it(verifier: Verifier) -> None:
    text = issue(verifier.store, "reader", "ann", who="root")
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(verifier.authenticate(text, "192.0.2.1").name)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["ann"] * 16
