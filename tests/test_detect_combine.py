"""AnyOf, Quorum, limits, loading by name (DESIGN §5; REQUIREMENTS R34, R68)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from detecting import DOWN, UP, Scripted, probe, say
from hypothesis import given
from hypothesis import strategies as st

from lbcore.detect import (
    AnyOf,
    Backoff,
    Consecutive,
    Detector,
    Guard,
    Pooled,
    Quorum,
    SuccessRate,
    available,
    default_detector,
    limit_ejections,
    load,
    max_ejections,
)

# ===== AnyOf


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [((None, None), None), ((UP, None), UP), ((None, UP), UP), ((UP, DOWN), DOWN), ((DOWN, None), DOWN), ((UP, UP), UP)],
)
def test_any_of_says_the_worst(verdicts: tuple[object, object], expected: object) -> None:
    detector = AnyOf(*(Scripted({0: verdict}) for verdict in verdicts))  # type: ignore[dict-item]
    assert detector.verdict(0) is expected


def test_one_that_raises_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Scripted({0: DOWN, 1: UP}), Consecutive(0, 1)
    detector = AnyOf(broken, sound)
    assert (detector.verdict(0), detector.verdict(1)) == (DOWN, UP)
    broken.broken = True
    probe(detector, 1, False, 0.0)
    detector.sweep(0.1)
    assert (detector.verdict(0), detector.verdict(1)) == (DOWN, DOWN)
    probe(detector, 1, True, 1.0)
    assert (detector.verdict(0), detector.verdict(1)) == (DOWN, UP)
    detector.reset(0)
    assert detector.verdict(0) is None
    assert "keeps" in caplog.text or "stay" in caplog.text


def test_the_default_judges_probes_and_requests_apart() -> None:
    detector = default_detector()
    for number in range(3):
        probe(detector, 0, False, number)
    assert detector.verdict(0) is DOWN and detector.hard(0) and "probe timeout x3" in detector.cause(0)
    for number in range(5):
        say(detector, 1, False, 0.0, group=number)
    assert detector.verdict(1) is DOWN and not detector.hard(1) and "5 of 5 requests" in detector.cause(1)


def test_the_default_outlives_probes_that_succeed_while_requests_fail_only_until_two_of_them() -> None:
    detector = default_detector()
    probe(detector, 0, True, 0.0)
    for number in range(5):
        say(detector, 0, False, 0.1, group=number)
    probe(detector, 0, True, 5.0)
    assert detector.verdict(0) is DOWN
    probe(detector, 0, True, 10.0)
    assert detector.verdict(0) is UP


def test_a_lone_client_group_without_probes_moves_by_exclusion() -> None:
    detector = default_detector()
    for _ in range(5):
        say(detector, 0, False, 0.0, group=0)
    assert detector.verdict(0) is None and detector.excluded(0) == {0}


def test_any_of_unites_exclusions() -> None:
    detector = AnyOf(Pooled(), Pooled(failures=2))
    for group, count in ((1, 2), (2, 5)):
        for _ in range(count):
            say(detector, 0, False, 0.0, group=group)
    assert detector.excluded(0) == {1, 2}


def test_any_of_needs_a_detector() -> None:
    with pytest.raises(ValueError, match="at least one"):
        AnyOf()


# ===== Quorum


@pytest.mark.parametrize(("cut", "verdict"), [(1, UP), (2, DOWN)])
def test_quorum_three_vantages_one_or_two_cut_off(cut: int, verdict: object) -> None:
    detector = Quorum(lambda: Consecutive(1, 1))
    for second in range(4):
        for vantage in range(3):
            probe(detector, 0, second == 0 or vantage >= cut, second, vantage=f"v{vantage}")
    assert detector.verdict(0) is verdict
    assert detector.hard(0) is (verdict is DOWN)
    assert detector.cause(0).startswith(f"down from {cut} of 3 vantages")


def test_quorum_keeps_what_was_known_on_a_tie_and_when_vantages_fall_silent() -> None:
    detector = Quorum(lambda: Consecutive(0, 1), expiry=60.0)
    probe(detector, 0, True, 0.0, vantage="a")
    probe(detector, 0, False, 1.0, vantage="b")
    assert detector.verdict(0) is UP
    probe(detector, 0, False, 2.0, vantage="c")
    assert detector.verdict(0) is DOWN
    detector.sweep(1000.0)
    assert detector.verdict(0) is DOWN


def test_quorum_counts_a_region_among_those_that_watch_it() -> None:
    detector = Quorum(lambda: Consecutive(0, 1))
    for vantage in "abc":
        probe(detector, 0, True, 0.0, vantage=vantage)
    probe(detector, 1, False, 0.0, vantage="a")
    assert detector.verdict(1) is DOWN and detector.verdict(0) is UP
    detector.reset(1)
    assert detector.verdict(1) is None


def test_a_soft_detector_stays_soft_in_a_quorum() -> None:
    detector = Quorum(Pooled)
    for number in range(9):
        say(detector, 0, False, 0.0, group=number)
    assert detector.verdict(0) is DOWN and not detector.hard(0)


# ===== how many may go


def test_the_limit_is_a_minority_but_at_least_one() -> None:
    # DESIGN §5: max(1, floor((R - 1) / 2))
    assert [max_ejections(regions) for regions in (1, 2, 3, 4, 5, 6, 7, 64, 65, 500)] == [1, 1, 1, 1, 2, 2, 3, 31, 32, 249]


def test_hard_downs_are_exempt_and_do_not_count() -> None:
    assert limit_ejections([0, 1, 2, 3, 4], 5, hard={0, 1, 2}) == {0, 1, 2, 3, 4}
    assert limit_ejections([0, 1, 2], 3, hard={2}) == {0, 2}


def test_who_is_out_already_stays_out() -> None:
    assert limit_ejections([4, 2, 0], 4, ejected={0}) == {0}
    assert limit_ejections([4, 2, 0], 5, ejected={0}) == {0, 4}


REGIONS = st.sets(st.integers(0, 20), max_size=12)


@given(st.lists(st.integers(0, 20), unique=True, max_size=20), st.integers(1, 21), REGIONS, REGIONS)
def test_limits_hold_for_any_input(wanted: list[int], regions: int, hard: set[int], ejected: set[int]) -> None:
    out = limit_ejections(wanted, regions, hard=hard, ejected=ejected)
    soft = [region for region in wanted if region not in hard]
    assert out <= set(wanted) and out >= hard & set(wanted)
    assert len(out - hard) == min(len(soft), max_ejections(regions))
    if ejected & set(soft) - out:
        assert out - hard <= ejected


@pytest.mark.parametrize("bad", [{"base": 0}, {"cap": 5}, {"jitter": -1}, {"heal": 0}, {"rise": 0}, {"cap": float("inf")}])
def test_bad_backoffs_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="backoff needs"):
        Backoff(**bad)  # type: ignore[arg-type]


# ===== by name


def test_every_stock_name_builds_a_detector() -> None:
    names = {"any_of", "consecutive", "default", "external", "phi_accrual", "pooled", "quorum", "success_rate"}
    assert names <= set(available()) and list(available()) == sorted(available())
    for name in names:
        detector = load(name)
        assert isinstance(detector, Detector)
        say(detector, 0, True, 0.0)
        detector.sweep(1.0)
        detector.reset(0)


def test_settings_are_those_of_a_configuration_file() -> None:
    detector = load("pooled", failures=2, backoff={"base": 1.0})
    for number in range(3):
        say(detector, 0, False, 0.0, group=number)
    assert detector.verdict(0) is DOWN
    detector.sweep(1.0)
    assert detector.verdict(0) is None
    quorum = load("quorum", of="consecutive", tolerated=0, share=0.9)
    probe(quorum, 0, False, 0.0, vantage="a")
    assert quorum.verdict(0) is DOWN
    several = load("any_of", of=["consecutive", "success_rate"], consecutive={"tolerated": 0})
    assert isinstance(several, AnyOf) and isinstance(several.detectors[1], SuccessRate)


def test_wrong_names_and_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown detector 'poled'.*did you mean 'pooled'"):
        load("poled")
    with pytest.raises(TypeError, match="windw"):
        load("pooled", windw=3)
    with pytest.raises(TypeError, match="any_of has settings for pooled"):
        load("any_of", of=["consecutive"], pooled={})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution with two entry points, one of which is no detector."""
    (tmp_path / "acme_detect.py").write_text("from detecting import Scripted\n\n\ndef make(**settings):\n    return Scripted(settings)\n")
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lbcore.detectors]\nacme = acme_detect:make\nnone = builtins:dict\npooled = builtins:dict\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.mark.usefixtures("plugin")
def test_third_party_detectors_come_by_entry_point() -> None:
    assert {"acme", "none"} <= set(available())
    assert isinstance(load("acme", a=1), Scripted)
    with pytest.raises(TypeError, match="lacks one of report"):
        load("none")
    assert isinstance(load("pooled"), Pooled)


class Moody(Scripted):
    """A detector with every optional method; each raises when the detector is broken."""

    def hard(self, region: int) -> bool:
        self.check()
        return True

    def excluded(self, region: int) -> frozenset[int]:
        self.check()
        return frozenset({7})

    def cause(self, region: int) -> str:
        self.check()
        return "moody"

    def waiting(self, region: int, count: int, **_: object) -> None:
        self.check()


def test_whatever_raises_the_last_answers_stay() -> None:
    inner = Moody({0: DOWN})
    detector = AnyOf(inner, Consecutive())

    def answers() -> tuple[object, ...]:
        return detector.verdict(0), detector.hard(0), detector.excluded(0), detector.cause(0)

    before = answers()
    assert before == (DOWN, True, {7}, "moody")
    inner.broken = True
    detector.waiting(0, 1, vantage="v", group=0, gen=0, now=0.0)
    detector.sweep(1.0)
    assert answers() == before and detector._parts[0].errors == 6
    detector.reset(0)
    assert answers() == (None, False, frozenset(), "")


def test_a_plain_detector_has_nothing_to_add() -> None:
    detector = Quorum(Scripted)
    say(detector, 0, True, 0.0)
    assert not detector.hard(0) and detector.cause(0) == ""
    guard = Guard(Scripted({0: DOWN}))
    guard.waiting(0, 1, vantage="v", group=0, gen=0, now=0.0)
    assert isinstance(guard.detector, Scripted) and guard.verdict(0) is DOWN and not guard.hard(0) and guard.cause(0) == ""
    assert guard.excluded(0) == guard.excluded(9) == frozenset() and guard.verdict(9) is None and guard.held_until(9) < 0


def test_a_region_that_is_gone_is_no_voter_on_the_vantage() -> None:
    guard = Guard(Consecutive(0), hold_down=None)
    for region in range(3):
        probe(guard, region, True, 0.0)
    guard.reset(2)
    for region in range(2):
        probe(guard, region, False, 1.0)
    assert guard.verdict(0) is DOWN and guard.verdict(1) is DOWN  # two are left: they fail over normally


def test_a_quorum_of_nonsense_is_refused() -> None:
    for bad in ({"share": -0.1}, {"share": 1.1}, {"expiry": 0.0}):
        with pytest.raises(ValueError, match="quorum needs"):
            Quorum(Consecutive, **bad)


def test_invented_vantages_cannot_fill_a_quorum() -> None:
    detector = Quorum(lambda: Consecutive(0))
    for number in range(200):
        probe(detector, 0, True, float(number), vantage=f"v{number}")
    assert len(detector._seats) == 64
