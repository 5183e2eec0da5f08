"""External: what was stated holds until it is replaced, taken back or runs out (Route 53 InsufficientDataHealthStatus)."""

from __future__ import annotations

import pytest
from detecting import DOWN, UP, probe, say

from lbcore.detect import AnyOf, Consecutive, External


def test_statements_hold_until_replaced_or_taken_back() -> None:
    feed = External()
    assert feed.verdict(0) is None
    feed.set(0, DOWN, 0.0, cause="maintenance")
    feed.sweep(1e9)
    assert feed.verdict(0) is DOWN and feed.hard(0) and feed.cause(0) == "maintenance"
    feed.set(0, UP, 1.0)
    assert feed.verdict(0) is UP and not feed.hard(0)
    feed.clear(0)
    assert feed.verdict(0) is None


def test_reports_are_statements_only_from_outside() -> None:
    feed = External()
    say(feed, 0, False, 0.0, source="request")
    probe(feed, 0, False, 0.0)
    assert feed.verdict(0) is None
    say(feed, 0, False, 0.0, source="external", cause="bgp withdrawn")
    assert feed.verdict(0) is DOWN and feed.cause(0) == "bgp withdrawn"


@pytest.mark.parametrize(("stale", "after_up", "after_down"), [("healthy", UP, UP), ("unhealthy", DOWN, DOWN), ("last_known", UP, DOWN)])
def test_a_statement_that_runs_out(stale: str, after_up: object, after_down: object) -> None:
    feed = External(expiry=60.0, stale=stale)
    feed.set(0, UP, 0.0)
    feed.set(1, DOWN, 0.0)
    feed.sweep(59.9)
    assert (feed.verdict(0), feed.verdict(1)) == (UP, DOWN)
    feed.sweep(60.0)
    assert (feed.verdict(0), feed.verdict(1)) == (after_up, after_down)


def test_one_statement_may_have_its_own_expiry() -> None:
    feed = External(expiry=60.0, stale="healthy")
    feed.set(0, DOWN, 0.0, expiry=5.0)
    feed.sweep(5.0)
    assert feed.verdict(0) is UP


def test_a_provider_feed_beside_probes() -> None:
    feed = External(hard=False)
    detector = AnyOf(Consecutive(0, 1), feed)
    probe(detector, 0, True, 0.0)
    say(detector, 0, False, 0.0, source="external", cause="provider: degraded")
    assert detector.verdict(0) is DOWN and not detector.hard(0) and detector.cause(0) == "provider: degraded"


@pytest.mark.parametrize("bad", [{"expiry": 0}, {"expiry": -1}, {"stale": "maybe"}])
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        External(**bad)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        External().set(-1, UP, 0.0)
