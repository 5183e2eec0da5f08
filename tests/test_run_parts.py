"""What `lbcore run` is made of, without processes: counting, the access log, sockets and how they are spread, the channel."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

from lbcore import Balancer, Region, linelog
from lbcore.cli import listening
from lbcore.cli.channel import Asker, Gone, Refused, answer
from lbcore.cli.generation import Generation
from lbcore.errors import CAUSES
from lbcore.http.accesslog import AccessLog
from lbcore.http.gateway import Units
from lbcore.http.metrics import BUCKETS, COUNTERS, GAUGES, MOST_LABELS, Book, Meter, metrics_of

NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 250_000, datetime.UTC)


def call(**more: Any) -> Any:
    """Stand for an engine's call."""
    request = SimpleNamespace(method=b"GET", host=b"api.test", target=b"/a/b?secret=1")
    defaults = {
        "aborted": False, "cut": False, "cause": None, "status": 200, "begun_at": 0.0, "head_at": 0.5, "client": "192.0.2.7", "size": 5,
        "request": request, "target": SimpleNamespace(name="westeurope"), "attempts": 1, "request_id": b"id-1",
    }  # fmt: skip
    return SimpleNamespace(**defaults | more)


# ===== counting

ENDS = st.sampled_from(["aborted", "cut", "open", *CAUSES, "overload", *range(100, 600, 50)])


def ended(end: object, began: float) -> Any:
    match end:
        case "aborted":
            return call(aborted=True, begun_at=began)
        case "cut":
            return call(cut=True, cause="reset", begun_at=began)
        case int():
            return call(status=end, begun_at=began)
    return call(cause=end, status=502, begun_at=began)


@given(st.lists(st.tuples(st.integers(0, 3), ENDS, st.sampled_from(["", "a", "b", "unknown"]), st.floats(0, 100)), max_size=60), st.data())
def test_whatever_happens_begun_is_the_sum_of_all_ends(events: list[tuple[int, object, str, float]], data: st.DataObject) -> None:
    """Workers come and go, with calls under way; an independent count agrees."""
    book = Book("region")
    book.name(["a", "b"])
    expected: Counter[str] = Counter()
    meters: dict[int, Meter] = {}
    open_calls: Counter[int] = Counter()
    for worker, end, name, took in events:
        if worker not in meters:
            fd = Meter.new()
            book.open(worker, fd)
            meters[worker] = Meter(fd, lambda: 100.0)
            meters[worker].label(book.names)
        meters[worker].begun()
        expected["begun"] += 1
        if end == "open":
            open_calls[worker] += 1
            continue
        meters[worker].ended(ended(end, 100.0 - took), name)
        expected["aborted" if end == "aborted" else "answered" if isinstance(end, int) else "failed"] += 1
        if data.draw(st.integers(0, 9)) == 0:
            book.settle(worker)
            del meters[worker]
            expected["lost"] += open_calls.pop(worker, 0)
    expected["under_way"] = open_calls.total()
    totals = book.totals()
    assert {name: count for name, count in totals.items() if count} == {name: count for name, count in expected.items() if count}
    assert totals["begun"] == sum(totals[end] for end in ("answered", "failed", "aborted", "lost", "under_way"))


def samples(book: Book) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in metrics_of("x", book):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_page_made_while_calls_end_and_workers_go_adds_up_and_never_goes_back() -> None:
    book, done = Book("region"), threading.Event()

    def work() -> None:
        for worker in range(20):
            fd = Meter.new()
            meter = Meter(fd)
            book.open(worker, fd)
            os.close(fd)
            for _ in range(300):
                meter.begun()
                meter.ended(call(), "")
            book.settle(worker)
        done.set()

    working, last = threading.Thread(target=work), 0
    working.start()
    while not done.is_set():
        found = samples(book)
        answered = sum(found["x_answered_total"].values()) if "x_answered_total" in found else 0
        begun, under_way = found["x_begun_total"][()], found["x_under_way"][()]
        assert begun == answered + under_way and under_way >= 0 and begun >= last
        last = int(begun)
    working.join()


def test_a_histogram_is_cumulative_and_its_sum_is_of_seconds() -> None:
    book, fd = Book("region"), Meter.new()
    book.name(["a"])
    book.open("w", fd)
    meter = Meter(fd, lambda: 100.0)
    meter.label(book.names)
    for took in (0.0005, 0.001, 0.2, 60.0):
        meter.begun()
        meter.ended(call(begun_at=100.0 - took), "a")
    found = samples(book)
    assert found["x_seconds_count"] == {("a",): 4}
    assert found["x_seconds_sum"]["a",] == pytest.approx(60.2015, abs=1e-5)
    assert found["x_seconds_bucket"]["a", "0.25"] == 3 and found["x_seconds_bucket"]["a", str(BUCKETS[-1])] == 3


def test_series_are_bounded_and_what_a_client_makes_up_is_no_label() -> None:
    book = Book("api")
    names = book.name(f"api{number}" for number in range(MOST_LABELS * 2))
    fd = Meter.new()
    book.open("w", fd)
    meter = Meter(fd)
    meter.label(names)
    for name in ("api0", f"api{MOST_LABELS * 2 - 1}", "made/up", "api0"):
        meter.begun()
        meter.ended(call(begun_at=0.0), name)
    assert samples(book)["x_answered_total"] == {("api0", "2xx"): 2, ("(others)", "2xx"): 2}
    assert len(names) == MOST_LABELS - 2
    assert book.name(["late"]) == names, "there is no place left"


def test_names_keep_their_places_for_good() -> None:
    book = Book("api")
    first = [*book.name(["a", "b"])]
    assert [*book.name(["c", "b", "c"])] == [*first, "c"]


def test_what_others_count_is_copied_and_gauges_end_with_their_worker() -> None:
    book, fd = Book("region"), Meter.new()
    book.open("w", fd)
    meter = Meter(fd)
    meter.copy(dict.fromkeys(COUNTERS, 3), dict.fromkeys(GAUGES, 1.5))
    assert samples(book)["x_retries_total"] == {(): 3} and samples(book)["x_connections"] == {(): 1.5}
    book.settle("w")
    assert samples(book)["x_retries_total"] == {(): 3} and samples(book)["x_connections"] == {(): 0}
    assert book.gauge("advice") == []


def test_units_have_the_defaults_that_the_page_promises() -> None:
    page = (Path(__file__).parent.parent / "docs" / "operate.md").read_text()
    one = Units()
    assert f"`gateway.unit.concurrency`, `rate`, `queue`, `patience` | {one.concurrency}, {one.rate:g}, {one.queue}, " in page


# ===== the access log


def log(tmp_path: Path, sample: int = 1) -> AccessLog:
    return AccessLog(tmp_path / "calls.log", "front-door", sample, lambda: 2.0, wall=lambda: NOON)


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]


def test_a_line_says_all_that_it_promises_and_no_query(tmp_path: Path) -> None:
    with log(tmp_path) as access:
        access.offer(call(), "orders/v1", "1.7")
    assert lines(tmp_path) == [{
        "time": "2026-01-02T12:00:00.250Z", "role": "front-door", "client": "192.0.2.7", "method": "GET", "host": "api.test",
        "path": "/a/b", "status": 200, "bytes": 5, "head_ms": 500.0, "ms": 2000.0, "to": "westeurope",
        "api": "orders/v1", "revision": "1.7", "attempts": 1, "cause": None, "request_id": "id-1",
    }]  # fmt: skip


def test_every_failure_is_logged_and_one_answer_of_so_many(tmp_path: Path) -> None:
    with log(tmp_path, sample=10) as access:
        for _ in range(95):
            access.offer(call())
        failures = [call(cause="reset", status=502), call(aborted=True, status=0), call(cut=True), call(status=503), call(target=None)]
        for each in failures[:4]:
            access.offer(each)
    found = [line for line in lines(tmp_path) if line["cause"] or line["status"] != 200]
    assert [line["cause"] for line in found] == ["reset", "client", "overload", None]
    assert len(lines(tmp_path)) == 9 + 4
    assert found[1]["head_ms"] is None


@given(st.binary(max_size=3000), st.binary(max_size=30), st.binary(max_size=30))
def test_whatever_a_client_sends_is_one_line_of_json(target: bytes, method: bytes, host: bytes) -> None:
    access = object.__new__(AccessLog)
    access._role = "gateway"
    entry = ("::1", method, host, b"/" + target, 200, 0, 0.0, 0.0, 1.0, None, None, None, 1, None, b"")
    line = json.dumps(access.describe(entry))
    assert "\n" not in line and len(json.loads(line)["path"]) <= 1000
    assert json.loads(line)["path"].encode("latin-1") == (b"/" + target).partition(b"?")[0][:1000]


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    logs = [log(tmp_path) for _ in range(4)]

    def write(access: AccessLog) -> None:
        with access:
            for number in range(300):
                access.offer(call(request_id=b"x" * number))

    threads = [threading.Thread(target=write, args=(access,)) for access in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(tmp_path)) == sum(access.written for access in logs) == 1200


def test_a_disk_that_takes_a_part_of_a_line_spoils_that_one_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Disk:
        """Takes 30 bytes, then nothing, then everything."""

        def __init__(self) -> None:
            self.data, self.room = b"", [30, 0, 10**6, 10**6]

        def write(self, data: bytes) -> int:
            taken = data[: self.room.pop(0)]
            self.data += taken
            return len(taken)

        def close(self) -> None: ...

    disk = Disk()
    access = log(tmp_path)
    access._file.close()
    access._file = disk
    for number in range(4):
        access.note({"n": number})
        while access.written + access.dropped <= number:
            pass
    access.__exit__()
    whole = [json.loads(line)["log"]["n"] for line in disk.data.split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
    assert (access.written, access.dropped, whole) == (2, 2, [2, 3])
    assert len([record for record in caplog.records if "access log" in record.message]) == 1
    assert linelog.AT_ONCE > 1


# ===== sockets


@given(st.integers(0, 40), st.integers(1, 8), st.data())
def test_every_socket_is_somebodys_and_a_living_worker_keeps_its_own(places: int, workers: int, data: st.DataObject) -> None:
    living = data.draw(st.lists(st.integers(0, workers - 1), unique=True))
    found = listening.spread(places, living, workers)
    assert found.keys() == {*living}
    taken = [place for own in found.values() for place in own]
    assert sorted(taken) == ([*range(places)] if living else [])
    for worker in living:
        assert {place for place in range(places) if place % workers == worker} <= {*found[worker]}


def test_sockets_are_taken_over_and_made_up_to_the_number_of_workers() -> None:
    first = listening.adopt([(("127.0.0.1", 0), False, False)], 2, [])
    more = listening.adopt([(("127.0.0.1", 0), False, True), (("::1", 0), True, False)], 3, first)
    assert [place.socket for place in more[:2]] == [place.socket for place in first]
    assert len({place.address for place in more[:3]}) == 1 and more[2].proxy_protocol
    assert [place.tls for place in more] == [False] * 3 + [True] * 3
    fewer = listening.adopt([(("127.0.0.1", 0), False, False)], 1, more)
    assert len(fewer) == 3, "what waits in them would be lost"
    for place in more:
        place.socket.close()


def test_any_port_wanted_twice_leads_to_the_same_two_places_after_every_reload() -> None:
    """With TLS and without: neither becomes the other, and nothing piles up."""
    anywhere = ("127.0.0.1", 0)
    wanted = [(anywhere, False, False), (anywhere, False, False), (anywhere, True, False)]
    first = listening.adopt(wanted, 2, [])
    places = listening.adopt(wanted, 2, listening.adopt(wanted, 2, first))
    assert [(place.socket, place.tls) for place in places] == [(place.socket, place.tls) for place in first]
    for place in first:
        place.socket.close()


def test_an_address_that_cannot_be_bound_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            listening.adopt([(("127.0.0.1", 0), False, False), (("127.0.0.1", port), False, False)], 2, [])
        assert caught.value.filename == f"127.0.0.1 port {port}"


# ===== the channel


async def test_requests_are_answered_errors_are_told_and_the_end_is_noticed() -> None:
    async def double(asked: Mapping[str, Any]) -> int:
        return int(asked["n"]) * 2

    async def wrong(asked: Mapping[str, Any]) -> None:
        raise ValueError("no such thing")

    async def never(asked: Mapping[str, Any]) -> None:
        await asyncio.get_running_loop().create_future()

    own, other = socket.socketpair()
    own.setblocking(False)
    other.setblocking(False)
    worker = asyncio.create_task(answer(other, {"double": double, "wrong": wrong, "never": never}))
    asker = Asker(own)
    await asker.open()
    assert await asker.ask("double", n=21) == 42
    assert await asker.ask("double", n=1, text="x" * 1_000_000) == 2
    with pytest.raises(Refused, match="no such thing"):
        await asker.ask("wrong")
    waiting = asyncio.create_task(asker.ask("never"))
    await asyncio.sleep(0)
    worker.cancel()
    with pytest.raises(Gone):
        await waiting
    with pytest.raises(Gone):
        await asker.ask("double", n=1)
    await asyncio.gather(worker, return_exceptions=True)


# ===== switches of regions


def test_a_region_that_has_drained_and_goes_serves_at_no_moment_between(clock: Clock) -> None:
    lb = Balancer([Region("westus2"), Region("westeurope")], clock=clock)
    lb.drain("westeurope")
    seen = list[str]()
    lb.on_change(lambda change: seen.append(change.after))
    Generation._switch(SimpleNamespace(lb=lb), "westeurope", False, False)  # type: ignore[arg-type]
    assert lb.status("westeurope") == "disabled" and "up" not in seen
    Generation._switch(SimpleNamespace(lb=lb), "westeurope", True, False)  # type: ignore[arg-type]
    assert lb.status("westeurope") == "up"
