"""Metrics as Prometheus reads them, and the query log as its readers do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import httpx
import pytest
from conftest import Clock
from prometheus_client.parser import text_string_to_metric_families
from resolving import NETWORKS, OWNER, PROFILE, balancer, subnet

from lbcore import linelog
from lbcore import metrics as shared
from lbcore.dns import Responder, metrics
from lbcore.dns._rrl import RateLimiter
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.metrics import DnsCollector
from lbcore.dns.querylog import QueryLog, entry
from lbcore.dns.server import Server
from lbcore.dns.zone import Zone
from lbcore.metrics import MetricsPage, Reloads

WAIT = 20
NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 250_000, datetime.UTC)


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), PROFILE)


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """A page of metrics: `samples("name", label=value)` is one number."""

    def __init__(self, page: str) -> None:
        super().__init__()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self, "one series twice"
                self[key] = sample.value

    def __call__(self, name: str, /, **labels: str) -> float:
        return self[name, frozenset(labels.items())]

    def total(self, name: str) -> float:
        return sum(value for (found, _), value in self.items() if found == name)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for found, labels in self if found == name}


async def scrape(page: MetricsPage) -> Samples:
    host, port = page.socket.getsockname()[:2]
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://{host}:{port}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return Samples(response.text)


# ===== metrics


@pytest.mark.slow
async def test_a_scrape_says_what_happened(clock: Clock) -> None:
    lb = balancer(clock)
    responder, reloads = Responder(lb, PROFILE), Reloads()
    async with Server(responder, port=0) as server, MetricsPage(DnsCollector(server, lb, reloads=reloads), port=0) as page:
        before = await scrape(page)
        assert before("lbcore_region_eligible", region="four") == 1
        for ask, query in (
            (dns.asyncquery.udp, dns.message.make_query(OWNER, "A", **subnet(NETWORKS["four"]))),
            (dns.asyncquery.udp, dns.message.make_query("nope.example.com", "A")),
            (dns.asyncquery.tcp, dns.message.make_query(OWNER, "A")),
        ):
            await ask(query, *server.address[:1], port=server.address[1], timeout=WAIT)
        for _ in range(3):
            lb.report("four", False, cause="refused", source="probe")
        reloads.note(False, 0.1)
        reloads.note(True, 0.5)
        after = await scrape(page)
    assert after("lbcore_dns_queries_total", transport="udp", path="fast") == 2
    assert after("lbcore_dns_queries_total", transport="udp", path="slow") == 0
    assert after("lbcore_dns_queries_total", transport="tcp", path="slow") == 1
    answers = {key: count for key, count in after.items() if key[0] == "lbcore_dns_answers_total"}
    assert sum(answers.values()) == 3
    answered = {"zone": "example.com", "name": OWNER, "type": "A", "region": "four", "result": "noerror"}
    assert after("lbcore_dns_answers_total", **answered) == 1
    assert after("lbcore_dns_answers_total", zone="example.com", name="", type="", region="", result="nxdomain") == 1
    assert after("lbcore_dns_slow_responses_total", result="noerror") == 1
    assert after("lbcore_dns_ecs_total") == 1
    assert (after("lbcore_dns_slow_seconds_count"), after("lbcore_dns_slow_seconds_bucket", le="+Inf")) == (1, 1)
    assert after("lbcore_dns_slow_seconds_sum") > 0
    assert after("lbcore_dns_tcp_accepted_total") == 1
    assert (after("lbcore_region_eligible", region="four"), after("lbcore_region_status", region="four", status="down")) == (0, 1)
    assert sum(after("lbcore_region_status", region="four", status=state) for state in after.labels("lbcore_region_status", "status")) == 1
    assert (after("lbcore_dns_reloads_total", result="failed"), after("lbcore_dns_reload_seconds")) == (1, 0.5)
    assert after("process_cpu_seconds_total") > 0
    assert before.keys() <= after.keys()


@pytest.mark.slow
@pytest.mark.parametrize("slip", [0, 2])
async def test_every_query_is_an_answer_or_a_drop_whoever_answers(clock: Clock, slip: int) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE, rrl=RateLimiter(5, slip, ()), monotonic=clock)
    usual = [
        dns.message.make_query(name, rdtype, **options).to_wire()
        for name in (OWNER, "nope.example.com", "example.net") for rdtype in ("A", "TXT", "ANY", "AXFR")
        for options in ({}, subnet(NETWORKS["four"]))
    ]  # fmt: skip
    broken = [b"", usual[0][:11], usual[0][:2] + b"\x80" + usual[0][3:], usual[0] + bytes(5000), usual[0][:-1]]
    queries = [query for query in (*usual, *broken) for _ in range(30)]
    async with Server(responder, port=0) as server, MetricsPage(DnsCollector(server, lb), port=0) as page:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", 0))
            client.setblocking(False)
            answers = []
            for sent, query in enumerate(queries, 1):
                client.sendto(query, server.address)
                while sent % 50 == 0 and (await scrape(page)).total("lbcore_dns_queries_total") < sent:
                    pass  # no more at once than the client's receive buffer holds
                with contextlib.suppress(BlockingIOError):
                    while True:
                        answers.append(client.recv(4096))
            await dns.asyncquery.tcp(dns.message.make_query(OWNER, "A"), *server.address[:1], port=server.address[1], timeout=WAIT)
            async with asyncio.timeout(WAIT):
                while (found := await scrape(page)).total("lbcore_dns_queries_total") < len(queries) + 1:
                    pass
                while len(answers) + 1 < found.total("lbcore_dns_answers_total"):
                    answers.append(await asyncio.get_running_loop().sock_recv(client, 4096))
            with pytest.raises(BlockingIOError):
                client.recv(4096)
    assert found.total("lbcore_dns_queries_total") == len(queries) + 1
    assert found.total("lbcore_dns_answers_total") + found.total("lbcore_dns_dropped_total") == len(queries) + 1
    assert found("lbcore_dns_dropped_total", reason="unanswerable") == 4 * 30
    cut = sum(bool(answer[2] & 2) for answer in answers)
    assert found("lbcore_dns_truncated_total") == cut
    assert found("lbcore_dns_limited_total") == cut + found("lbcore_dns_dropped_total", reason="limited") > 100
    assert bool(cut) == bool(slip)


class Loop:
    """What the compiled loop counted."""

    def __init__(self, **counts: object) -> None:
        self.counts = counts

    def __call__(self) -> dict[str, object]:
        return self.counts


async def test_both_ways_are_summed(clock: Clock, responder: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
    lb = balancer(clock)
    async with Server(responder, port=0) as server:
        key = ("example.com", OWNER, "A", "four", "NOERROR")
        monkeypatch.setattr(server, "fast", Loop(queries=10, slow=3, dropped=1, ecs=4, fail_open=0, answers={key: 6}))
        server.counters.update(udp=3)
        responder.counters["ecs"] += 2
        found = {sample.name: sample for metric in DnsCollector(server, lb).collect() for sample in metric.samples if not sample.labels}
        answered = [s for metric in DnsCollector(server, lb).collect() for s in metric.samples if s.name == "lbcore_dns_answers_total"]
    assert found["lbcore_dns_ecs_total"].value == 6
    assert [(sample.labels["name"], sample.labels["region"], sample.value) for sample in answered] == [(OWNER, "four", 6)]


async def test_the_end_of_signatures_is_shown(clock: Clock) -> None:
    now = 1_700_000_000
    key = Key.generate("example.com", timing=Timing(created=now, publish=now, activate=now))
    lb, signer = balancer(clock), Signer("example.com", [key], clock=lambda: now)
    responder = Responder(lb, Zone("example.com", {"api": PROFILE}, keys=signer))
    async with Server(responder, port=0) as server:
        families = {metric.name: metric for metric in DnsCollector(server, lb).collect()}
    (sample,) = families["lbcore_dns_signature_expiry_timestamp_seconds"].samples
    assert sample.labels == {"zone": "example.com"}
    assert now + 10 * 86_400 < sample.value <= now + 14 * 86_400


async def test_series_are_bounded_and_never_go_back(
    clock: Clock, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 10)
    counts = {("z", f"n{number}", "A", "r", "NOERROR"): number + 1 for number in range(30)}
    async with Server(responder, port=0) as server:
        collector = DnsCollector(server, balancer(clock))
        seen: dict[str, float] = {}
        for _ in range(3):
            monkeypatch.setattr(server, "fast", Loop(answers=dict(reversed(counts.items())) if seen else counts))
            answers = next(metric for metric in collector.collect() if metric.name == "lbcore_dns_answers")
            now = {sample.labels["name"]: sample.value for sample in answers.samples}
            assert len(now) == 11
            assert sum(now.values()) == sum(counts.values())
            assert all(now[name] >= count for name, count in seen.items())
            seen, counts = now, {key: count * 2 for key, count in counts.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 200), (b"HEAD /metrics?x HTTP/1.0\r\n\r\n", 200), (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405), (b"\r\n\r\n", 405), (b"GET /metrics" + b"x" * 40_000, None), (b"GE", None),
    ],
)  # fmt: skip
async def test_the_page_takes_any_request(
    clock: Clock, responder: Responder, request_: bytes, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.3)
    async with Server(responder, port=0) as server, MetricsPage(DnsCollector(server, balancer(clock)), port=0) as page:
        reader, writer = await asyncio.open_connection(*page.socket.getsockname()[:2])
        writer.write(request_)
        async with asyncio.timeout(WAIT):
            try:
                response = await reader.read()
            except ConnectionResetError:
                response = b""
        writer.close()
    assert (int(response.split()[1]) if response else None) == status
    if request_.startswith(b"HEAD"):
        head, _, body = response.partition(b"\r\n\r\n")
        assert body == b""
        assert b"Content-Length: 0" not in head


# ===== query log


def response(responder: Responder, name: str = OWNER, rdtype: str = "A", ecs: str = NETWORKS["four"], id_: int = 7) -> bytes:
    wire = responder.answer(dns.message.make_query(name, rdtype, id=id_, **subnet(ecs)).to_wire(), "127.0.0.1")
    assert wire is not None
    return wire


def lines(file: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, file.read_text().splitlines())


def test_a_line_has_these_fields(tmp_path: Path, responder: Responder) -> None:
    file = tmp_path / "queries.log"
    wire = response(responder)
    with QueryLog(file, wall=lambda: NOON) as log:
        log.offer(wire, "203.0.113.77", "udp")
    assert [*lines(file)] == [
        {
            "time": "2026-01-02T12:00:00.250Z", "client": "203.0.113.0/24", "transport": "udp", "id": 7, "name": OWNER, "type": "A",
            "class": "IN", "rcode": "NOERROR", "aa": True, "tc": False, "answer": ["192.0.2.4"], "size": len(wire),
            "ecs": {"network": "81.2.2.0/24", "scope": 24},
        }
    ]  # fmt: skip
    assert (log.written, log.dropped) == (1, 0)


@pytest.mark.parametrize(
    ("client", "ecs", "network", "told"),
    [
        ("203.0.113.77", "81.2.2.9/32", "203.0.113.0/24", "81.2.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:9:8::/64", "2001:db8:1::/48", "2001:db8:9::/48"),
        ("fe80::1%eth0", "2001:db8::/32", "fe80::/48", "2001:db8::/32"),
        ("::ffff:203.0.113.77", "81.0.0.0/8", "203.0.113.0/24", "81.0.0.0/8"),
    ],
)
def test_no_address_of_a_client_is_kept(responder: Responder, client: str, ecs: str, network: str, told: str) -> None:
    found = entry(response(responder, ecs=ecs), client, "udp")
    assert (found["client"], found["ecs"]["network"]) == (network, told)


def test_sampling_takes_one_of_n(tmp_path: Path, responder: Responder) -> None:
    file = tmp_path / "queries.log"
    with QueryLog(file, 10) as log:
        for number in range(1, 101):
            log.offer(response(responder, id_=number), "127.0.0.1", "tcp")
    assert [line["id"] for line in lines(file)] == [*range(10, 101, 10)]
    with pytest.raises(ValueError, match="at least 1"):
        QueryLog(file, 0)


def test_a_name_cannot_break_the_line(tmp_path: Path, responder: Responder) -> None:
    file = tmp_path / "queries.log"
    with QueryLog(file) as log:
        log.offer(response(responder, 'a\\010"{}\\255.example.com'), "127.0.0.1", "udp")
    (line,) = lines(file)
    assert line["name"] == 'a\\010\\"{}\\255.example.com'


def test_rotation_loses_nothing(tmp_path: Path, responder: Responder) -> None:
    file, moved = tmp_path / "queries.log", tmp_path / "queries.log.1"
    with QueryLog(file) as log:
        log.offer(response(responder, id_=1), "127.0.0.1", "udp")
        file.rename(moved)
        log.offer(response(responder, id_=2), "127.0.0.1", "udp")
        log.reopen()
        log.offer(response(responder, id_=3), "127.0.0.1", "udp")
    found = {line["id"] for line in lines(moved)}, {line["id"] for line in lines(file)}
    assert 3 in found[1]
    assert sorted([*found[0], *found[1]]) == [1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_hinders_neither_rotation_nor_the_end(tmp_path: Path, responder: Responder) -> None:
    file = tmp_path / "queries.log"
    file.symlink_to("/dev/full")
    with QueryLog(file) as log:
        log.take(response(responder, id_=1), "127.0.0.1", "udp")
        while not log.dropped:
            pass
        file.unlink()
        log.reopen()
        log.take(response(responder, id_=2), "127.0.0.1", "udp")
    assert [line["id"] for line in lines(file)] == [2]
    with QueryLog(Path("/dev/full")) as log:
        log.take(response(responder, id_=1), "127.0.0.1", "udp")
    assert log.written + log.dropped == 1


def test_who_answers_never_waits_for_the_disk(tmp_path: Path, responder: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linelog, "WAITING", 5)
    stuck, file = threading.Event(), tmp_path / "queries.log"

    def wall() -> datetime.datetime:
        assert stuck.wait(WAIT)
        return NOON

    wire = response(responder)
    with QueryLog(file, wall=wall) as log:
        for _ in range(100):
            log.offer(wire, "127.0.0.1", "udp")
        assert log.dropped >= 89  # five wait, and up to six were taken out
        stuck.set()
    assert log.written + log.dropped == 100
    assert len([*lines(file)]) == log.written


def test_what_cannot_be_logged_is_counted(tmp_path: Path, responder: Responder, caplog: pytest.LogCaptureFixture) -> None:
    with QueryLog(tmp_path / "queries.log") as log:
        log.offer(b"\0" * 5, "127.0.0.1", "udp")
        log.offer(response(responder), "127.0.0.1", "udp")
    assert (log.written, log.dropped) == (1, 1)
    assert "query log" in caplog.text
