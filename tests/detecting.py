"""What the test_detect_* files share: one short way to report, and a fake detector."""

from __future__ import annotations

from lbcore.detect import Detector, Verdict

UP, DOWN = Verdict.UP, Verdict.DOWN


def say(
    detector: Detector, region: int, ok: bool, now: float, *, source: str = "request", cause: str = "timeout", vantage: str = "v",
    group: int = 1, gen: int = 1 << 30,
) -> None:  # fmt: skip
    detector.report(region, ok, cause=None if ok else cause, source=source, vantage=vantage, group=group, gen=gen, now=now)


def probe(detector: Detector, region: int, ok: bool, now: float, **more: object) -> None:
    say(detector, region, ok, now, source="probe", **{"group": 0, **more})  # type: ignore[arg-type]


class Scripted:
    """A detector that says what the test wants, and raises when told to."""

    def __init__(self, verdicts: dict[int, Verdict | None] | None = None) -> None:
        self.verdicts = verdicts or {}
        self.broken = False
        self.reports: list[tuple[int, bool, int, float]] = []

    def report(self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float) -> None:
        self.check()
        self.reports.append((region, ok, gen, now))

    def sweep(self, now: float) -> None:
        self.check()

    def verdict(self, region: int) -> Verdict | None:
        self.check()
        return self.verdicts.get(region)

    def reset(self, region: int) -> None:
        self.check()
        self.verdicts.pop(region, None)

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("scripted")
