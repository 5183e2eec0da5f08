"""The Prober on a virtual clock and network: when it probes, what it reports, how long detection takes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from virtual import Server, VirtualLoop, run

from lbcore.balancer import Balancer, Change
from lbcore.detect import Consecutive, Verdict
from lbcore.errors import CAUSES, ConfigError, UnknownRegionError
from lbcore.region import Region
from lbcore.sense.probe import Monitor, Prober, Target


class Recorder:
    """Stand in for a Balancer: remembers what it is told, and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop, regions: Iterable[Region]) -> None:
        self.regions, self.clock = tuple(regions), loop.time
        self.disabled: set[str] = set()
        self.reports: dict[str, list[tuple[float, bool, str | None]]] = defaultdict(list)
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.ticks: list[float] = []
        self.vantages: set[tuple[str | None, str]] = set()
        self.controls: list[bool] = []
        self.broken: Exception | None = None

    def status(self, region: str, /) -> str:
        return "disabled" if region in self.disabled else "up"

    def observe(self, region: str, ms: float, /, *, vantage: str | None = None) -> None:
        self.samples[region].append((self.clock(), ms))
        self.vantages.add((vantage, "sample"))

    def generation(self, region: str, /) -> int:
        return 7

    def report(
        self, region: str, ok: bool, /, *, cause: str | None = None, vantage: str | None = None, source: str = "", gen: int | None = None
    ) -> None:
        assert gen == 7
        self.reports[region].append((self.clock(), ok, cause))
        self.vantages.add((vantage, source))
        if self.broken:
            raise self.broken

    def tick(self) -> None:
        self.ticks.append(self.clock())
        if self.broken:
            raise self.broken

    def control(self, ok: bool) -> None:
        self.controls.append(ok)


class World:
    """Regions r0, r1, … at the servers given, a Recorder and a Prober on one virtual loop."""

    def __init__(self, *servers: Server, scheme: str = "http", now: float = 0.0, **regions: Any) -> None:
        self.servers = servers
        hosts = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(len(servers))]
        self.loop = VirtualLoop(dict(zip(hosts, servers, strict=True)), now)
        ports = ":7" if scheme == "tcp" else ""
        self.lb = Recorder(self.loop, [Region(f"r{n}", gateway=f"{scheme}://{host}{ports}", **regions) for n, host in enumerate(hosts)])

    def play(self, seconds: float, *between: tuple[float, Callable[[], Any]], first_round: bool = False, **settings: Any) -> Prober:
        """Let the Prober run for so long, calling `between` at their times, and give it."""
        made: list[Prober] = []

        async def main() -> None:
            prober = Prober(self.lb, **settings)
            made.append(prober)
            if first_round:
                await prober.first_round()
            task = asyncio.create_task(prober.run())
            for at, action in between:
                self.loop.call_later(at, action)
            await asyncio.sleep(seconds)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        run(self.loop, main())
        assert [server.open for server in self.servers] == [0] * len(self.servers)
        return made[0]


def near(values: Iterable[float]) -> Any:
    return pytest.approx(list(values), abs=1e-6)


ON_GRID = Monitor(jitter=0.0)

# ===== when


@pytest.mark.parametrize("server", [Server(rtt=0.7), Server((0, "hang")), Server((0, "refuse")), Server((0, "silent"), rtt=0.1)])
def test_probes_start_on_the_grid_however_long_they_take(server: Server) -> None:
    World(server).play(1200.5, monitor=ON_GRID)
    assert server.started == near(5.0 * k for k in range(241))


def test_the_grid_does_not_drift_with_a_probe_that_changes_its_pace_far_from_zero() -> None:
    server = Server(*[(1e6 + t, 200 if t % 3 else "hang") for t in range(600)], rtt=0.333)
    World(server, now=1e6).play(600.0, monitor=Monitor(jitter=0.0, interval=0.7, timeout=0.69, path="/x"))
    assert server.started == near(1e6 + 0.7 * k for k in range(len(server.started)))
    assert len(server.started) == 858


def test_probes_of_one_target_never_overlap() -> None:
    server = Server((0, "hang"))
    World(server).play(100.0, monitor=Monitor(interval=1.0, timeout=0.999))
    assert (len(server.started), server.most_open) == (100, 1)


def test_jitter_spreads_targets_over_the_interval_and_keeps_their_phases() -> None:
    def phases(seed: int, jitter: float) -> list[float]:
        world = World(*[Server() for _ in range(100)])
        world.play(9.99, monitor=Monitor(jitter=jitter), seed=seed)
        for server in world.servers:
            assert server.started == near(server.started[0] + 5.0 * k for k in range(len(server.started)))
        return [server.started[0] for server in world.servers]

    whole = phases(0, 1.0)
    assert whole == phases(0, 1.0) != phases(1, 1.0)
    assert [round(phase / 5, 9) for phase in whole] == [round(phase / 1, 9) for phase in phases(0, 0.2)]  # the same shares of the spread
    per_second = [sum(k <= phase < k + 1 for phase in whole) for k in range(5)]
    assert sum(per_second) == 100 and min(per_second) > 10


def test_bounded_concurrency_serves_hundreds_of_dead_targets_in_time() -> None:
    world = World(*[Server((0, "hang")) for _ in range(300)])
    busiest = [0]

    def watch() -> None:
        busiest[0] = max(busiest[0], sum(server.open for server in world.servers))
        world.loop.call_later(0.05, watch)

    world.play(20.0, (0.0, watch), monitor=Monitor(max_concurrency=150))
    assert 100 < busiest[0] <= 150
    assert all(server.started[0] < 5.0 and server.started[-1] >= 15.0 for server in world.servers)
    gaps = [b - a for server in world.servers for a, b in itertools.pairwise(server.started)]
    assert gaps == near([5.0] * len(gaps))


def test_more_than_it_can_do_makes_probes_late_but_never_a_burst_and_starves_nobody() -> None:
    world = World(*[Server((0, "hang")) for _ in range(40)])
    world.play(400.0, monitor=Monitor(max_concurrency=8, jitter=0.0))  # 40 x 2 s / 8 = 10 s for a round, twice the interval
    counts = [len(server.started) for server in world.servers]
    assert max(counts) - min(counts) <= 1 and min(counts) == pytest.approx(400 / 10, abs=1)
    assert all(b - a >= 2.0 - 1e-6 for server in world.servers for a, b in itertools.pairwise(server.started))


def test_the_balancer_is_ticked_ten_times_a_second_whatever_the_probes_do() -> None:
    world = World(Server((0, "hang")), Server())
    world.play(10.05)
    assert world.lb.ticks == near(0.1 * k for k in range(101))


def test_a_first_round_asks_everybody_once_and_ends_at_its_deadline() -> None:
    world = World(*[Server() for _ in range(300)], Server((0, "hang"), rtt=0.0), *[Server((0, 503))])

    async def main(deadline: float | None) -> tuple[float, Prober]:
        prober = Prober(world.lb, monitor=Monitor())
        results = await prober.first_round(deadline)
        assert results == prober.results
        return world.loop.time(), prober

    ended, prober = run(world.loop, main(None))
    assert ended == pytest.approx(300 * 0.002 + 2.0)
    assert len(prober.results) == 302 and {len(server.started) for server in world.servers} == {1}
    assert [prober.results[name].cause for name in ("r0", "r300", "r301")] == [None, "timeout", "status"]
    assert world.lb.ticks == near([*(0.1 * k for k in range(27)), 2.6])

    world = World(Server(), Server((0, "hang")))
    ended, prober = run(world.loop, main(0.5))
    assert (ended, [*prober.results]) == (0.5, ["r0"])
    assert world.servers[1].open == 0


# ===== what is reported


@pytest.mark.parametrize(
    ("mode", "cause", "took"),
    [
        ("refuse", "refused", 0.0),
        (OSError(113, "No route to host"), "refused", 0.0),
        (OSError(-2, "Name or service not known"), "refused", 0.0),
        ("hang", "timeout", 2.0),
        ("silent", "timeout", 2.0),
        (TimeoutError(110, "Connection timed out"), "timeout", 0.0),
        (404, "status", 0.5),
        (301, "status", 0.5),
        (204, "status", 0.5),
        ("garbage", "status", 0.5),
        ("reset", "reset", 0.5),
    ],
)
def test_a_failure_is_reported_with_its_cause_and_is_never_a_sample(mode: Any, cause: str, took: float) -> None:
    world = World(Server((0, mode), rtt=0.25))
    prober = world.play(4.0, monitor=ON_GRID)
    assert world.lb.reports["r0"] == [(pytest.approx(took), False, cause)]
    assert world.lb.samples == {}
    result = prober.results["r0"]
    assert (result.ok, result.cause, result.sample, result.at) == (False, cause, None, pytest.approx(took))
    assert cause in CAUSES and result.detail
    assert result.status == (mode if isinstance(mode, int) else None)


def test_a_success_gives_one_round_trip_as_sample_and_the_connect_time_beside_it() -> None:
    world = World(Server(rtt=0.04))
    prober = world.play(4.0, vantage="paris", monitor=ON_GRID)
    result = prober.results["r0"]
    assert (result.connect_ms, result.first_byte_ms, result.status, result.cause) == (pytest.approx(40), pytest.approx(40), 200, None)
    assert world.lb.samples["r0"] == [(pytest.approx(0.08), pytest.approx(40))]
    assert world.lb.reports["r0"] == [(pytest.approx(0.08), True, None)]
    assert world.lb.vantages == {("paris", "probe"), ("paris", "sample")}


@pytest.mark.parametrize(("mode", "cause"), [(200, None), ("refuse", "refused"), ("hang", "timeout"), ("silent", None)])
def test_tcp_is_a_connect_and_nothing_else(mode: Any, cause: str | None) -> None:
    world = World(Server((0, mode), rtt=0.03), scheme="tcp")
    prober = world.play(4.0, monitor=ON_GRID)
    assert prober.results["r0"].cause == cause
    assert [ms for _, ms in world.lb.samples["r0"]] == ([] if cause else [pytest.approx(30)])
    assert world.servers[0].requests == []


def test_a_range_of_status_codes_can_be_expected_and_a_redirect_is_an_answer() -> None:
    servers = [Server((0, mode)) for mode in (205, 200, 301, 308, 309, 404)]
    world = World(*servers)
    prober = world.play(4.0, monitor=Monitor(jitter=0.0, expected=((200, 204), (300, 308))))
    assert [prober.results[f"r{n}"].ok for n in range(len(servers))] == [False, True, True, True, False, False]
    assert {len(server.requests) for server in servers[1:]} == {1}


def test_the_request_carries_path_host_and_headers_and_asks_to_close() -> None:
    world = World(Server())
    regions = (Region("r0", gateway="http://10.0.0.1:8080/base/"),)
    world.lb.regions = regions
    world.play(1.0, monitor=Monitor(jitter=0.0, path="/deep?x=1", host="gw.example", headers={"X-Probe": "yes"}))
    head = world.servers[0].requests[0].decode().lower().split("\r\n")
    assert head[0] == "get /base/deep?x=1 http/1.1"
    assert {"host: gw.example", "x-probe: yes", "connection: close"} <= {*head}
    assert sum(line.startswith("host:") for line in head) == 1


@pytest.mark.parametrize("number", [24, 23, 105, 99])
def test_what_this_process_lacks_is_no_outcome_of_the_region(number: int, caplog: pytest.LogCaptureFixture) -> None:
    world = World(Server((0, OSError(number, "out of something"))))
    prober = world.play(4.0, monitor=ON_GRID)
    assert world.lb.reports == {} and world.lb.samples == {}
    assert prober.results["r0"].cause == "local"
    assert "could not be done here" in caplog.text


@pytest.mark.parametrize("error", [ValueError("a callback's bug"), UnknownRegionError("r0", ["r1"])])
def test_a_balancer_that_raises_does_not_stop_the_prober(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    world = World(Server(), Server((0, "refuse")))
    world.lb.broken = error
    world.play(20.45, monitor=ON_GRID)
    assert [len(server.started) for server in world.servers] == [5, 5]
    assert len(world.lb.ticks) == 205
    assert caplog.records


def test_a_probe_of_ones_own_that_raises_is_logged_and_reports_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def broken(target: Target, clock: Callable[[], float]) -> Any:
        calls.append(target.name)
        raise RuntimeError("bug")

    probe: Callable[..., Awaitable[Any]] = broken
    world = World(Server())
    world.play(12.0, monitor=ON_GRID, probe=probe)
    assert calls == ["r0"] * 3 and world.lb.reports == {}
    assert caplog.records[0].exc_info is not None


# ===== a process that is slow itself


def stall(world: World, seconds: float) -> Callable[[], None]:
    """Make a callback that holds the event loop for so long, as another thread with the interpreter does."""
    return lambda: setattr(world.loop, "now", world.loop.now + seconds)


def test_a_timeout_that_this_process_caused_is_no_outcome_of_the_region() -> None:
    world = World(Server(rtt=0.5), Server((0, "hang")))
    prober = world.play(14.0, (5.2, stall(world, 3.0)), monitor=ON_GRID)
    assert [(ok, cause) for _, ok, cause in world.lb.reports["r0"]] == [(True, None)] * 2  # at 0 and 10; the one at 5 was starved
    assert [cause for *_, cause in world.lb.reports["r1"]] == ["timeout"] * 2
    assert prober.results["r0"].ok


def test_a_short_delay_is_no_excuse_for_a_timeout() -> None:
    world = World(Server((0, "hang")))
    world.play(9.0, (5.2, stall(world, 0.4)), monitor=ON_GRID)
    assert [cause for *_, cause in world.lb.reports["r0"]] == ["timeout"] * 2


def test_a_sample_that_measured_this_process_is_not_learned_from_but_the_success_counts() -> None:
    world = World(Server(rtt=0.01), Server(rtt=0.5))
    world.play(9.0, (5.015, stall(world, 0.2)), monitor=ON_GRID)
    assert [ok for _, ok, _ in world.lb.reports["r0"]] == [True, True]
    assert [len(world.lb.samples[name]) for name in ("r0", "r1")] == [1, 2]


def test_after_a_pause_of_the_machine_a_target_is_probed_once_at_once_and_then_on_its_grid() -> None:
    world = World(Server())
    world.play(76.0, (7.0, stall(world, 61.0)), monitor=ON_GRID)
    assert world.servers[0].started == near([0, 5, 68, 70, 75])


# ===== whom


def test_always_serve_is_never_probed() -> None:
    world = World(Server(), Server(), always_serve=True)
    prober = world.play(60.0, first_round=True)
    assert [server.started for server in world.servers] == [[], []] and prober.results == {}


def test_a_disabled_region_rests_and_returns_to_its_grid() -> None:
    world = World(Server(), Server())
    world.play(40.5, (9.0, lambda: world.lb.disabled.add("r0")), (22.0, lambda: world.lb.disabled.clear()), monitor=ON_GRID)
    assert world.servers[0].started == near([0, 5, 25, 30, 35, 40])
    assert len(world.servers[1].started) == 9


def test_regions_are_followed_as_they_come_go_and_move() -> None:
    world = World(*[Server() for _ in range(4)])
    first, second, third, fourth = world.lb.regions

    def become(*regions: Region) -> Callable[[], None]:
        return lambda: setattr(world.lb, "regions", regions)

    world.lb.regions = (first, second)
    moved = replace(second, gateway="http://10.0.0.4")
    monitor = Monitor(jitter=0.0, interval=2.0, timeout=1.0)
    prober = world.play(19.5, (7.0, become(first, second, third)), (11.95, become(replace(first, units=3), moved)), monitor=monitor)
    starts = [list(server.started) for server in world.servers]
    assert starts[0] == near(range(0, 20, 2))  # a change that is not of the target leaves its grid alone
    assert starts[1] == near(range(0, 11, 2))
    assert starts[2] == near([7.0, 9.0, 11.0])
    assert starts[3] == near([12, 14, 16, 18])
    assert {*prober.results} == {"r0", "r1"}
    assert fourth.name not in world.lb.reports


def test_a_region_removed_while_its_probe_hangs_is_not_reported_and_its_connection_is_closed() -> None:
    world = World(Server((0, "hang")), Server())
    keep = world.lb.regions[1:]
    world.play(1.5, (1.0, lambda: setattr(world.lb, "regions", keep)), monitor=ON_GRID)
    assert world.servers[0].open == 0 and "r0" not in world.lb.reports


def test_urls_and_monitors_can_be_given_by_region() -> None:
    world = World(Server(), Server(), Server())
    world.lb.regions = (world.lb.regions[0], replace(world.lb.regions[1], gateway=""), Region("bare"))
    settings: dict[str, Any] = {"targets": {"R 1": "tcp://10.0.0.3:9"}, "monitors": {"R0": Monitor(interval=1.0, timeout=0.5, jitter=0.0)}}
    prober = world.play(10.5, monitor=ON_GRID, **settings)
    assert [len(server.started) for server in world.servers] == [11, 0, 3]
    assert {*prober.results} == {"r0", "r1"}


def test_urls_that_cannot_be_probed_are_all_reported_at_once_and_only_logged_later(caplog: pytest.LogCaptureFixture) -> None:
    world = World(Server())
    bad = ["ftp://x", "http://", "weu.example", "http://u:p@h", "http://h:99999", "tcp://h", "http://a b/", "https://h/\x7f"]
    good = world.lb.regions
    world.lb.regions = (*good, *[Region(f"bad{n}", gateway=url) for n, url in enumerate(bad)])
    with pytest.raises(ConfigError) as caught:
        Prober(world.lb, anchors=["nonsense"])
    assert [(violation.where, violation.value) for violation in caught.value.violations] == [
        ("anchors", "nonsense"),
        *[(f"bad{n}.gateway", url) for n, url in enumerate(bad)],
    ]
    late, world.lb.regions = world.lb.regions, good
    with caplog.at_level(logging.ERROR):
        world.play(10.0, (1.0, lambda: setattr(world.lb, "regions", late)), monitor=ON_GRID)
    assert len([record for record in caplog.records if "not probed" in record.getMessage()]) == len(bad)
    assert len(world.servers[0].started) == 2


def test_anchors_tell_whether_the_own_uplink_works_and_are_no_regions() -> None:
    world = World(Server(), Server((0, 500), (12.5, "hang"), (27.5, 404)), Server((0, "refuse")))
    world.lb.regions = world.lb.regions[:1]
    states: list[bool] = []
    prober_of: list[Prober] = []

    def look() -> None:
        states.append(prober_of[0].anchors_ok)
        world.loop.call_later(5.0, look)

    original = Prober.__init__

    class Watched(Prober):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            prober_of.append(self)

    async def main() -> None:
        prober = Watched(world.lb, anchors=["http://10.0.0.2/x", "tcp://10.0.0.3:53"], monitor=ON_GRID)
        assert prober.anchors_ok
        task = asyncio.create_task(prober.run())
        world.loop.call_later(3.0, look)
        await asyncio.sleep(39.0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(world.loop, main())
    assert states == [True, True, True, False, False, False, True, True]
    assert {*world.lb.reports} == {"r0"} and {*prober_of[0].results} == {"r0"}
    assert {*prober_of[0].anchor_results} == {"http://10.0.0.2/x", "tcp://10.0.0.3:53"}
    assert {*world.lb.controls} == {True, False}


def test_one_prober_runs_once_and_can_run_again() -> None:
    world = World(Server())

    async def main() -> None:
        prober = Prober(world.lb, monitor=ON_GRID)
        for _ in range(2):
            task = asyncio.create_task(prober.run())
            await asyncio.sleep(1.0)
            with pytest.raises(RuntimeError, match="runs already"):
                await prober.run()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    run(world.loop, main())
    assert len(world.servers[0].started) == 2


# ===== how long detection takes: REQUIREMENTS §2.4


class Judge(Recorder):
    """Ask the real Consecutive and note each change of its mind: (time, up)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, regions: Iterable[Region], tolerated: int, rise: int) -> None:
        super().__init__(loop, regions)
        self.detector = Consecutive(tolerated, rise)
        self.changes: dict[str, list[tuple[float, bool]]] = defaultdict(list)

    def report(
        self, region: str, ok: bool, /, *, cause: str | None = None, vantage: str | None = None, source: str = "", gen: int | None = None
    ) -> None:
        index, before = int(region[1:]), self.detector.verdict(int(region[1:]))
        self.detector.report(index, ok, cause=cause, source=source, vantage=vantage or "", group=0, gen=0, now=self.clock())
        after = self.detector.verdict(index)
        if before is not None and after is not before:
            self.changes[region].append((self.clock(), after is Verdict.UP))


PHASES = (0.0078125, 0.25, 0.5, 0.78125, 0.9921875)  # of the interval, from the failure to the next probe
TIMINGS = [(0.05, 0.03), (0.5, 0.4), (5.0, 2.0), (10.0, 5.0), (10.0, 9.0), (30.0, 10.0)]


@pytest.mark.parametrize("scheme", ["http", "tcp"])
@pytest.mark.parametrize(("tolerated", "rise"), [(0, 1), (1, 2), (2, 2), (3, 1), (3, 3), (9, 2)])
@pytest.mark.parametrize(("interval", "timeout"), TIMINGS)
def test_detection_and_recovery_take_what_the_formulae_say(interval: float, timeout: float, tolerated: int, rise: int, scheme: str) -> None:
    fails, recovers = 2 * interval, (tolerated + 5) * interval
    modes = ["hang", "silent", "refuse", "reset"] if scheme == "http" else ["hang", "refuse"]
    cases = [(mode, phase) for mode in modes for phase in PHASES]
    # Every probe starts at k x interval, so a failure `phase` before one lies that long before the next probe.
    servers = [Server((0, 200), (fails - p * interval, mode), (recovers - p * interval, 200)) for mode, p in cases]
    world = World(*servers, scheme=scheme)
    world.lb = judge = Judge(world.loop, world.lb.regions, tolerated, rise)
    monitor = Monitor(interval=interval, timeout=timeout, tolerated=tolerated, rise=rise, jitter=0.0)
    world.play(recovers + (rise + 2) * interval, monitor=monitor)
    for (mode, phase), region in zip(cases, judge.regions, strict=True):
        (down, is_up), (up, is_up_again) = judge.changes[region.name]
        assert (is_up, is_up_again) == (False, True)
        detection, recovery = down - (fails - phase * interval), up - (recovers - phase * interval)
        slow = timeout if mode in ("hang", "silent") else 0.0
        assert detection == pytest.approx(phase * interval + tolerated * interval + slow, abs=1e-6)
        assert tolerated * interval + slow <= detection + 1e-6 and detection <= (tolerated + 1) * interval + slow + 1e-6
        assert recovery == pytest.approx(phase * interval + (rise - 1) * interval, abs=1e-6)
        assert (rise - 1) * interval - 1e-6 <= recovery <= rise * interval + 1e-6


def test_the_timeline_of_the_requirements_is_reproduced_to_the_second() -> None:
    """0 fails; 10 probe; 20 timeout; 40, 70, 100 probes 2–4; 110 Degraded; 300 recovers; 310 Online (340 with rise 2)."""
    for rise, online in ((1, 310.0), (2, 340.0)):
        server = Server((-20, 200), (0, "hang"), (300, 200))
        world = World(server, now=-20.0)
        world.lb = judge = Judge(world.loop, world.lb.regions, 3, rise)
        world.play(380.0, monitor=Monitor.azure(rise=rise, jitter=0.0, protocol="http"))
        assert judge.changes["r0"] == [(pytest.approx(110.0), False), (pytest.approx(online), True)]
        assert server.started[1:5] == near([10, 40, 70, 100])


def test_a_success_between_failures_starts_the_count_again() -> None:
    pattern = "fff.ffff"  # tolerated 3: the first three do not count on
    server = Server(*[(5.0 * k, "refuse" if c == "f" else 200) for k, c in enumerate(pattern)])
    world = World(server)
    world.lb = judge = Judge(world.loop, world.lb.regions, 3, 1)
    world.play(5.0 * len(pattern), monitor=ON_GRID)
    assert judge.changes["r0"] == [(pytest.approx(35.0), False)]


class Watched(Balancer):
    """The real Balancer, with what it learned and when it changed its mind written down."""

    def __init__(self, loop: asyncio.AbstractEventLoop, regions: Iterable[Region], tolerated: int = 2, rise: int = 2) -> None:
        super().__init__(regions, detector=Consecutive(tolerated, rise), clock=loop.time)
        self.changes: list[Change] = []
        self.on_change(self.changes.append)
        self.controls: list[bool] = []


@pytest.mark.parametrize("mode", ["hang", "refuse", 503])
def test_with_the_real_balancer_picks_move_when_the_formula_says_and_come_home_within_the_ramp(mode: Any) -> None:
    fails, recovers = 101.0, 203.0
    near_one = Server((0, 200), (fails, mode), (recovers, 200), rtt=0.01)
    world = World(near_one, Server(rtt=0.08), now=0.0)
    places = [replace(world.lb.regions[0], lat=52.4, lon=4.9), replace(world.lb.regions[1], lat=22.3, lon=114.2)]
    lb = Watched(world.loop, places)
    world.lb = lb  # type: ignore[assignment]
    picks: dict[float, str] = {}

    def look() -> None:
        picks[round(world.loop.now, 3)] = lb.pick(None).name
        world.loop.call_later(0.25, look)

    took = 2.0 if mode == "hang" else 0.02 if mode == 503 else 0.0
    world.play(260.0, (0.125, look), monitor=ON_GRID)
    down, up = lb.changes
    assert (down.region, down.before, down.after) == ("r0", "up", "down") and (up.before, up.after) == ("down", "up")
    assert down.at == pytest.approx(fails + 4.0 + 2 * 5.0 + took)  # the next probe is at 105
    assert up.at == pytest.approx(recovers + 2.0 + 1 * 5.0 + 0.02)  # and at 205
    assert {picks[t] for t in picks if 1 < t < down.at} == {"r0"}
    assert {picks[t] for t in picks if down.at < t < up.at} == {"r1"}
    assert {picks[t] for t in picks if t > up.at + 31} == {"r0"}


def test_with_the_real_balancer_regions_added_and_disabled_are_followed() -> None:
    world = World(Server(), Server(), Server())
    lb = Watched(world.loop, world.lb.regions[:2])
    regions, world.lb = world.lb.regions, lb  # type: ignore[assignment]
    actions: list[tuple[float, Callable[[], Any]]] = [
        (7.0, lambda: lb.set_regions(regions)),
        (8.0, lambda: lb.disable("r0")),
        (18.0, lambda: lb.enable("r0")),
        (19.0, lambda: lb.set_regions(regions[:1])),
    ]
    prober = world.play(29.0, *actions, monitor=ON_GRID)
    assert [server.started for server in world.servers] == [near([0, 5, 20, 25]), near([0, 5, 10, 15]), near([7, 12, 17])]
    assert {*prober.results} == {"r0"}


# ===== Monitor and Target


def test_every_violation_of_a_monitor_is_reported_at_once() -> None:
    wrong: dict[str, Any] = {
        "protocol": "htps",
        "port": 70000,
        "path": "status",
        "interval": 0.01,
        "timeout": math.nan,
        "tolerated": -1,
        "rise": 0,
        "expected": [(300, 200)],
        "headers": {"a b": "c"},
        "host": "*.example",
        "verify": "no",
        "ca": None,
        "client_certificate": ("one",),
        "jitter": 1.5,
        "max_concurrency": 0,
    }
    with pytest.raises(ConfigError) as caught:
        Monitor(**wrong)
    assert [violation.where for violation in caught.value.violations] == [f"monitor.{name}" for name in wrong]
    assert caught.value.violations[0].nearest == "https"
    assert all(violation.expected for violation in caught.value.violations)


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": 2.0},
        {"interval": 2.0, "timeout": 3.0},
        {"interval": "5"},
        {"interval": True},
        {"interval": math.inf},
        {"protocol": "tcp", "path": "/x"},
        {"expected": []},
        {"expected": [(200, 200)] * 9},
        {"expected": [(99, 200)]},
        {"expected": [200]},
        {"expected": 200},
        {"headers": [(f"h{n}", "v") for n in range(9)]},
        {"headers": {"Host": "x"}},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"x": "a\r\nb: c"}},
        {"headers": {"x": " a"}},
        {"headers": "x"},
        {"path": "/a b"},
        {"path": "/a#b"},
        {"path": "/a\n"},
        {"host": "a/b"},
        {"host": "a\n"},
    ],
)
def test_a_monitor_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Monitor(**settings)
    assert len(caught.value.violations) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"expected": [[200, 299], [301, 301]], "headers": [["X-A", "b c"], ["x-empty", ""]]},
        {"host": "[2001:db8::1]:8443"},
        {"host": "gw.example:443", "client_certificate": ["c.pem", "k.pem"]},
        {"protocol": "tcp", "interval": 0.05, "timeout": 0.049},
        {"path": "/a%20b?c=d&e=~"},
    ],
)
def test_a_monitor_accepts_and_can_be_a_key(settings: dict[str, Any]) -> None:
    assert len({Monitor(**settings), Monitor(**settings)}) == 1


def test_strict_azure_holds_to_the_grid_of_traffic_manager() -> None:
    slow, fast = Monitor.azure(), Monitor.azure(interval=10)
    assert [(m.interval, m.timeout, m.tolerated, m.rise, m.verify) for m in (slow, fast)] == [(30, 10, 3, 1, False), (10, 9, 3, 1, False)]
    refused: list[dict[str, Any]] = [
        {"interval": 20}, {"timeout": 4}, {"timeout": 11}, {"interval": 10, "timeout": 9.5}, {"tolerated": 10}
    ]
    for settings in refused:
        with pytest.raises(ConfigError):
            Monitor.azure(**settings)
        Monitor(**{"interval": 30, "timeout": 9, **settings})
    with pytest.raises(ConfigError) as caught:
        Monitor.azure(interval=7, timeout=2, tolerated=11)
    assert len(caught.value.violations) == 3


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        ("https://weu.example", {}, "https://weu.example:443/status-0123456789abcdef"),
        ("http://weu.example:8081/", {}, "http://weu.example:8081/status-0123456789abcdef"),
        ("http://[2001:db8::1]/api", {"path": "/x"}, "http://[2001:db8::1]:80/api/x"),
        ("http://weu.example", {"protocol": "https"}, "https://weu.example:443/status-0123456789abcdef"),
        ("https://weu.example", {"protocol": "tcp"}, "tcp://weu.example:443"),
        ("https://weu.example:8443", {"protocol": "tcp", "port": 9}, "tcp://weu.example:9"),
        ("tcp://192.0.2.1:7", {}, "tcp://192.0.2.1:7"),
        ("tcp://192.0.2.1:7", {"protocol": "http"}, "http://192.0.2.1:7/status-0123456789abcdef"),
    ],
)
def test_a_target_is_the_gateway_as_the_monitor_asks_for_it(url: str, settings: dict[str, Any], expected: str) -> None:
    assert Target.parse("r", url, Monitor(**settings)).url == expected


@pytest.mark.parametrize(
    ("url", "host", "authority", "server_name"),
    [
        ("https://weu.example", "", "weu.example", "weu.example"),
        ("https://weu.example:8443", "", "weu.example:8443", "weu.example"),
        ("http://[2001:db8::1]:81", "", "[2001:db8::1]:81", "2001:db8::1"),
        ("https://192.0.2.1", "gw.example", "gw.example", "gw.example"),
        ("https://192.0.2.1", "gw.example:8443", "gw.example:8443", "gw.example"),
        ("https://192.0.2.1", "[2001:db8::2]:1", "[2001:db8::2]:1", "2001:db8::2"),
    ],
)
def test_a_target_knows_its_host_header_and_server_name(url: str, host: str, authority: str, server_name: str) -> None:
    target = Target.parse("r", url, Monitor(host=host))
    assert (target.authority, target.server_name) == (authority, server_name)
