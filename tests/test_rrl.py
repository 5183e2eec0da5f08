"""What response rate limiting promises: a bound per network and answer, slips, exemptions, a table of one size."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("dns")

from lbcore.dns._rrl import RateLimiter, hash_answer

SEND, SLIP, DROP = range(3)
VICTIM = "198.51.100.7"


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def verdicts(limiter: RateLimiter, count: int, client: str = VICTIM, answer: int = 1, now_ms: int = 1000) -> Counter[int]:
    return Counter(limiter.verdict(packed(client), answer, now_ms) for _ in range(count))


class Model:
    """One (network, answer): tokens in thousandths, refilled as time passes."""

    def __init__(self, rate: int, slip: int) -> None:
        self.rate, self.slip = rate, slip
        self.level, self.at, self.limited = rate * 1000, 0, 0

    def verdict(self, now_ms: int) -> int:
        self.level = min(self.rate * 1000, self.level + (now_ms - self.at) * self.rate)
        self.at = now_ms
        if self.level >= 1000:
            self.level -= 1000
            self.limited = 0
            return SEND
        self.limited += 1
        if self.slip and self.limited >= self.slip:
            self.limited = 0
            return SLIP
        return DROP


STEPS = st.tuples(st.integers(0, 2), st.sampled_from((0, 0, 0, 1, 7, 100, 3000, 10**8)))


@given(st.integers(1, 50), st.integers(0, 15), st.lists(STEPS, max_size=400))
def test_every_verdict_is_the_model_s(rate: int, slip: int, steps: list[tuple[int, int]]) -> None:
    limiter = RateLimiter(rate, slip)
    models = [Model(rate, slip) for _ in range(3)]
    now = 5
    for which, wait in steps:
        now += wait
        client, answer = ((VICTIM, 1), (VICTIM, 2), ("2001:db8::1", 1))[which]
        assert limiter.verdict(packed(client), answer, now) == models[which].verdict(now)


@pytest.mark.parametrize("rate", [1, 5, 200, 10_000])
def test_no_second_has_more_than_twice_the_rate_and_no_long_time_more_than_the_rate(rate: int) -> None:
    limiter = RateLimiter(rate, 0)
    rng = random.Random(1)
    sent = []
    now = 10_000.0
    while now < 20_000:
        now += rng.expovariate(rate * 3 / 1000)
        if limiter.verdict(packed(VICTIM), 1, int(now)) == SEND:
            sent.append(int(now))
    assert len(sent) <= rate * 11
    assert len(sent) >= rate * 8
    assert max(sum(start <= at < start + 1000 for at in sent) for start in sent[:: max(1, rate // 10)]) <= 2 * rate


@pytest.mark.parametrize(("slip", "expected"), [(0, (0, 600)), (1, (600, 0)), (2, (300, 300)), (3, (200, 400)), (15, (40, 560))])
def test_slip(slip: int, expected: tuple[int, int]) -> None:
    seen = verdicts(RateLimiter(10, slip), 610)
    assert (seen[SEND], seen[SLIP], seen[DROP]) == (10, *expected)


def test_rate_0_is_off() -> None:
    assert verdicts(RateLimiter(0), 5000) == {SEND: 5000}


def test_a_network_shares_a_bucket_and_others_have_their_own() -> None:
    limiter = RateLimiter(10, 0)
    assert verdicts(limiter, 10) == {SEND: 10}
    for client, answer, expected in (
        ("198.51.100.255", 1, DROP), ("198.51.101.7", 1, SEND), (VICTIM, 2, SEND), (f"::{VICTIM}", 1, SEND),
    ):  # fmt: skip
        assert verdicts(limiter, 1, client, answer) == {expected: 1}
    assert verdicts(limiter, 10, "2001:db8:0:100::1") == {SEND: 10}
    assert verdicts(limiter, 1, "2001:db8:0:1ff:ffff::") == {DROP: 1}
    assert verdicts(limiter, 1, "2001:db8:0:200::") == {SEND: 1}


@pytest.mark.parametrize("client", ["127.0.0.1", "127.255.255.255", "::1"])
def test_loopback_is_exempt(client: str) -> None:
    assert verdicts(RateLimiter(1), 100, client) == {SEND: 100}


def test_networks_may_be_exempt_and_loopback_not() -> None:
    limiter = RateLimiter(1, 0, exempt=["198.51.100.0/25", "2001:db8::/33"])
    for client, sent in (
        (VICTIM, 50), ("198.51.100.200", 1), ("2001:db8:1::", 50), ("2001:db8:8000::", 1), ("127.0.0.1", 1), ("::c633:6407", 1),
    ):  # fmt: skip
        assert verdicts(limiter, 50, client)[SEND] == sent


def test_a_clock_of_another_thread_that_is_a_moment_behind_gives_nothing_away() -> None:
    limiter = RateLimiter(10, 0)
    verdicts(limiter, 10, now_ms=5000)
    assert verdicts(limiter, 10, now_ms=4990) == {DROP: 10}


@pytest.mark.parametrize("start", [0, 2**32 - 500, 2**32, 2**40])
def test_any_clock_will_do(start: int) -> None:
    limiter = RateLimiter(10, 0)
    for second in range(4):
        assert verdicts(limiter, 20, now_ms=start + 1000 * second)[SEND] == 10


def test_what_collides_is_limited_together_never_less() -> None:
    """Far more keys than buckets: none gets more than its due; most still get theirs."""
    limiter = RateLimiter(1, 0)
    rng = random.Random(2)
    sent = [verdicts(limiter, 2, str(ipaddress.ip_address(rng.getrandbits(30) | 2**31)), rng.getrandbits(32))[SEND] for _ in range(300_000)]
    assert set(sent) == {0, 1}
    assert 0.3 < sum(sent) / len(sent) < 0.5  # 131,072 buckets, nine out of ten hit at least once


def test_where_a_key_falls_is_not_the_same_in_two_limiters() -> None:
    """Two keys that collide in one process do not in another, so nobody can be aimed at."""
    def collisions(limiter: RateLimiter) -> set[int]:
        return {answer for answer in range(120_000) if verdicts(limiter, 1, answer=answer)[SEND] == 0}

    one, two = collisions(RateLimiter(1, 0)), collisions(RateLimiter(1, 0))
    assert one and two and one != two


WRONG = [{"rate": -1}, {"rate": 268_435}, {"slip": -1}, {"slip": 16}, {"exempt": ["nonsense"]}, {"exempt": ["10.0.0.1/8"]}]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        RateLimiter(**wrong)  # type: ignore[arg-type]


def test_the_highest_rate_is_kept() -> None:
    limiter = RateLimiter(268_434, 0)
    assert verdicts(limiter, 270_000)[SEND] == 268_434


def test_answers_differ_by_name_and_type() -> None:
    names = (b"\3api\7example\0", b"\3www\7example\0", b"\0")
    assert len({hash_answer(name, rdtype) for name in names for rdtype in (0, 1, 28, 256)}) == 12
