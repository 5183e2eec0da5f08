"""A portal without a service: sample views of every page, and a server of them under the pages' own headers.

`python tests/showing.py 9999` shows them on http://127.0.0.1:9999/portal/.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import typing
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lbcore.decision import Candidate, Decision
from lbcore.region import catalogue
from lbcore.service.capacity import Gauge
from lbcore.service.portal import HEADERS, event, files, part, render
from lbcore.service.portal import views as v
from lbcore.service.portal.charts import Series
from lbcore.service.portal.form import Draft, read, wish
from lbcore.service.portal.map import Flow, Site

NOW = datetime(2026, 11, 22, 3, 12, 45, tzinfo=UTC)
PAGE = v.Page("contoso", "West US 2", "/portal/", "ana", "operator", "c5rf-t0ken")
REGIONS = ("westus2", "westeurope", "eastasia", "brazilsouth")
KNOWN = {name: catalogue()[name] for name in REGIONS}
STATUS = dict(zip(REGIONS, ("Online", "Online", "Degraded", "CheckingEndpoint"), strict=True))
CITIES = (
    ("US-WA 47,-123", 47.6, -122.3, "westus2", 9.0, 0.18, False), ("US-CA 37,-121", 37.4, -122.1, "westus2", 22.0, 0.14, False),
    ("US-NY 41,-75", 40.7, -74.0, "westus2", 64.0, 0.12, False), ("GB 51,-1", 51.5, -0.1, "westeurope", 9.2, 0.13, False),
    ("DE 51,9", 50.1, 8.7, "westeurope", 11.0, 0.11, False), ("ZA -27,27", -26.2, 28.0, "westeurope", 158.0, 0.03, False),
    ("IN 19,73", 19.1, 72.9, "westeurope", 122.0, 0.07, True), ("JP 35,139", 35.7, 139.7, "westus2", 104.0, 0.09, True),
    ("SG 1,103", 1.35, 103.8, "westus2", 172.0, 0.06, True), ("AU -33,151", -33.9, 151.2, "westus2", 215.0, 0.04, True),
    ("BR -23,-47", -23.5, -46.6, "westus2", 182.0, 0.03, False),
)  # fmt: skip


def wave(base: float, swing: float, length: int = 120, lost: range = range(0)) -> tuple[float | None, ...]:
    return tuple(None if i in lost else base + swing * math.sin(i / 7) + swing / 3 * math.sin(i * 2.3) for i in range(length))


def overview() -> v.Overview:
    regions = (
        v.Region("westus2", "West US 2", "Online", True, units=2, units_live=2, share=0.66, ms=41.0, trend=wave(41, 4), revision="1.7"),
        v.Region("westeurope", "West Europe", "Online", units=3, units_live=2, share=0.34, ms=38.0, trend=wave(38, 6), revision="1.7"),
        v.Region(
            "eastasia", "East Asia", "Degraded", cause="timeout ×3", since=NOW - timedelta(minutes=4), units=1, units_live=0, share=0.0,
            trend=wave(52, 5, lost=range(100, 120)), revision="1.6", sync_state="Stale", lag=252.0,
        ),
        v.Region(
            "brazilsouth", "Brazil South", "CheckingEndpoint", provisioning_state="Warming", units=1, units_live=0, revision="",
            sync_state="Syncing",
        ),
    )  # fmt: skip
    events = (
        v.Event(NOW - timedelta(seconds=40), "Warming", "Brazil South", "configured with revision 1.7; waiting for its first probe"),
        v.Event(NOW - timedelta(minutes=4), "Degraded", "East Asia", "left the rotation: probe timeout ×3; 19 % of clients go elsewhere"),
        v.Event(NOW - timedelta(minutes=5), "Warning", "East Asia", "probe timeout"),
        v.Event(NOW - timedelta(minutes=31), "Info", "Configuration", "revision 1.7 published by ana: raise the limit of orders"),
        v.Event(NOW - timedelta(hours=2), "Online", "West Europe", "back after 2 successes"),
    )
    lost = range(100, 120)
    return v.Overview(
        at=NOW, revision="1.7", regions=regions, events=events,
        notices=(v.Notice("Error", "East Asia is out of rotation since 03:08:45: probe timeout ×3."),),
        sites=tuple(Site(KNOWN[n].display_name, KNOWN[n].lat, KNOWN[n].lon, STATUS[n], n == "westus2") for n in REGIONS),
        flows=tuple(
            Flow(group, lat, lon, KNOWN[to].display_name, KNOWN[to].lat, KNOWN[to].lon, ms, share, away)
            for group, lat, lon, to, ms, share, away in CITIES
        ),
        groups=tuple(
            v.GroupRow(group, KNOWN[to].display_name, ms, share, group[:2] != "BR", "failover" if away else "home")
            for group, _, _, to, ms, share, away in CITIES
        ),
        latency=(
            Series("West US 2", wave(41, 4)), Series("West Europe", wave(38, 6)), Series("East Asia", wave(52, 5, lost=lost)),
            Series("Brazil South", (None,) * 118 + (61.0, 60.0)),
        ),
        share=(
            Series("West US 2", (0.47,) * 100 + (0.66,) * 20), Series("West Europe", (0.34,) * 120),
            Series("East Asia", (0.19,) * 100 + (0.0,) * 20), Series("Brazil South", (0.0,) * 120),
        ),
        edges=(v.Edge("front", "Online", 1.0, "1.41", 2, 4, 12), v.Edge("dns-2", "Warning", 25.0, "1.40", 3, 4)),
    )  # fmt: skip


SUBNET = (
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/weu/subnets/apim"
)


def locations(*, operation: v.Progress | None = None, mode: str = "None") -> v.ScaleAndPricing:
    subnet = SUBNET if mode != "None" else ""
    rows = (
        v.LocationRow(
            Draft("West US 2", units=2, subnet=subnet), "West US 2", True, status="Online", zones_available=3, public_ips=("192.0.2.10",),
            capacity=Gauge(72.4, 88.0), advised=3, url="https://contoso-westus2-01.regional.test",
        ),
        v.LocationRow(
            Draft("West Europe", units=3, zones=("1", "2", "3"), subnet=subnet, carried={"geo": {"lat": 52.37, "lon": 4.9}}),
            "West Europe", status="Online", zones_available=3, public_ips=("192.0.2.20",), previous_public_ips=("192.0.2.21",),
            capacity=Gauge(42.0, 70.1),
        ),
        v.LocationRow(
            Draft("East Asia", units=1, disable_gateway=True, subnet=subnet), "East Asia", provisioning_state="Failed",
            status="Disabled", reason="its provisioner ended with status 3: quota exceeded",
        ),
    )  # fmt: skip
    used = {"westus2", "westeurope", "eastasia"}
    return v.ScaleAndPricing(
        etag='"7-0af3"', tier="Premium",
        tiers=(
            v.TierOffer("Developer", 1, 1), v.TierOffer("Basic", 1, 2), v.TierOffer("Standard", 1, 4),
            v.TierOffer("Premium", 1, 12, True, True), v.TierOffer("Consumption", 0, 0),
        ),
        network_mode=mode, rows=rows, operation=operation,
        offers=tuple(v.Offer(o.name, o.display_name, o.provider, o.zones) for o in catalogue().values() if o.name not in used),
    )  # fmt: skip


TIMING = v.Timing((10.0, 17.0), (10.0, 15.0), 47.0, 45.0, (5.0, 10.0), 70.0)


def plan() -> v.Plan:
    return v.Plan(
        "sha256-1f", '"7-0af3"',
        steps=(
            v.PlanStep("create", "Japan East", 0, 2), v.PlanStep("update", "West Europe", 3, 3, ("zones",)),
            v.PlanStep("delete", "East Asia", 1, 0),
        ),
        vip_changes=(v.VipChange("West Europe", ("public",), ("192.0.2.20",), ("zones",)),),
        warnings=(v.Problem("ThinReserve", "when West Europe is lost, 2 of 7 units are left for all clients"),),
        timing=TIMING, sla=99.99,
    )  # fmt: skip


def progress(status: str = "InProgress") -> v.Progress:
    ended = status != "InProgress"
    return v.Progress(
        "op-7", status, 100 if ended else 58,
        (
            v.RegionProgress("Japan East", "create", "Succeeded" if ended else "SyncingConfig", 100 if ended else 60, "revision 1.7"),
            v.RegionProgress("West Europe", "update", "Succeeded" if ended else "Updating", 100 if ended else 45, "new address 192.0.2.33"),
            v.RegionProgress("East Asia", "delete", "TerminationFailed" if ended else "Waiting", 0, "its turn comes when the others serve"),
        ),
        12.4, cancelable=not ended,
        problem=v.Problem("ProvisionerFailed", "East Asia: the command ended with status 3") if status == "PartiallySucceeded" else None,
    )  # fmt: skip


def problem() -> v.Problem:
    return v.Problem("InvalidRequest", "The draft has 2 violations.", "", (
        v.Problem("UnitsNotMultipleOfZones", "4 units cannot be spread over 3 zones", "properties.additionalLocations[0].sku.capacity"),
        v.Problem("SubnetLocationMismatch", "the subnet lies in westus2", "properties.additionalLocations[0].virtualNetworkConfiguration"),
    ))  # fmt: skip


def explain() -> v.Explain:
    rows = (
        ("westus2", 104.0, 4.1, "up", True, 12.0), ("westeurope", 231.0, 14.0, "up", True, None),
        ("eastasia", 52.0, 3.0, "down", False, 251.0),
    )  # fmt: skip
    candidates = [
        Candidate(name, slot, ms, ms, sd, 0.0, age, status, 0 if up else 3, 0.0, up, True, False)
        for slot, (name, ms, sd, status, up, age) in enumerate(rows)
    ]
    decision = Decision(
        "203.0.113.7", 812, "JP 35,139", {"lat": 35.7, "lon": 139.7, "country": "JP", "precision": "city"}, "westus2", "westus2", "home",
        True, False, False, 1000.0, candidates,
    )  # fmt: skip
    return v.Explain("203.0.113.7", decision, {name: known.display_name for name, known in KNOWN.items()})


def traffic_manager(**changes: Any) -> v.TrafficManager:
    endpoints = (
        v.Endpoint("West US 2", "contoso-westus2-01.regional.test", "Enabled", "Online", probe_ms=1.2, vantages=(3, 3)),
        v.Endpoint("West Europe", "contoso-westeurope-01.regional.test", "Enabled", "Online", probe_ms=87.0, vantages=(3, 3), priority=2),
        v.Endpoint(
            "East Asia", "contoso-eastasia-01.regional.test", "Enabled", "Degraded", "timeout ×3", NOW - timedelta(minutes=4), priority=3,
            vantages=(1, 3),
        ),
        v.Endpoint("Brazil South", "contoso-brazilsouth-01.regional.test", "Disabled", "Disabled", priority=4, always_serve=True),
    )  # fmt: skip
    view = v.TrafficManager('"7"', "contoso.test", "Enabled", "Degraded", "Performance", 30, v.Monitor(), TIMING, endpoints)
    return dataclasses.replace(view, **changes)


def developer() -> v.DeveloperPortal:
    orders = v.Api("orders", "Orders", "v1", ("https://contoso.test/orders/v1",), (
        v.ApiOperation("GET", "/{id}", "get"), v.ApiOperation("POST", "/", "create"), v.ApiOperation("DELETE", "/{id}", "cancel"),
    ))  # fmt: skip
    return v.DeveloperPortal("1.7", (orders, v.Api("files", "", "", ("https://contoso.test/files",))), NOW)


def failure() -> v.Failure:
    return v.Failure(421, v.Problem("NotPrimary", "this region is a secondary; write to the primary"), "r-81f2", "http://127.0.0.1:9180/portal/")


# Every page by the address it has here.
PAGES: dict[str, tuple[v.Page, Any]] = {
    "/portal/login": (dataclasses.replace(PAGE, user="", role="", path=""), lambda: v.Login("That token is not known, or was revoked.")),
    "/portal/": (PAGE, overview),
    "/portal/scale-and-pricing": (PAGE, locations),
    "/portal/networked": (PAGE, lambda: locations(mode="External")),
    "/portal/deploying": (PAGE, lambda: locations(operation=progress())),
    "/portal/read-only": (dataclasses.replace(PAGE, role="reader"), locations),
    "/portal/explain": (PAGE, explain),
    "/portal/unexplained": (PAGE, lambda: v.Explain("203.0.113.777", error="'203.0.113.777' is no IPv4 or IPv6 address")),
    "/portal/traffic-manager": (PAGE, traffic_manager),
    "/portal/wrong-settings": (
        PAGE, lambda: traffic_manager(errors={"timeout": "below the interval, 5 s; got 9", "": "Nothing was saved."}, fail_open=True),
    ),
    "/developer": (dataclasses.replace(PAGE, user="", role=""), developer),
    "/portal/failure": (PAGE, failure),
    "/portal/empty": (PAGE, lambda: v.Overview(NOW, "", ())),
}  # fmt: skip
PARTS: dict[str, Any] = {"plan": plan, "progress": progress, "steps": lambda: progress("PartiallySucceeded"), "problem": problem}


def page(path: str) -> str:
    around, view = PAGES[path]
    return render(dataclasses.replace(around, path=path), view())


def everything() -> Iterator[tuple[str, str]]:
    """Give every page and every part that a page does not hold from the start, by name."""
    for path in PAGES:
        yield path, page(path)
    for name, view in PARTS.items():
        yield name, part(name, view(), PAGE)


def spoilt(view: Any, text: str) -> Any:
    """Give the view with every text in it replaced, at any depth; statuses and what the code looks up stay."""
    return _spoilt(view, text, "")


FIXED = {"action", "state", "network_mode", "tier", "method", "protocol", "reason", "provider", "elsewhere", "next"}


def _spoilt(value: Any, text: str, name: str) -> Any:
    if isinstance(value, str):
        return value if name in FIXED else text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kinds = typing.get_type_hints(type(value))
        return dataclasses.replace(value, **{f: _spoilt(getattr(value, f), text, f) for f in kinds if f in _fields(value)})
    if isinstance(value, tuple):
        return tuple(_spoilt(each, text, name) for each in value)
    if isinstance(value, list):
        return [_spoilt(each, text, name) for each in value]
    if isinstance(value, dict):
        return {key: _spoilt(each, text, name) for key, each in value.items()}
    return value


def _fields(value: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(value) if field.init}


# ===== a server, for a browser


class _Portal(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith("/portal/static/") and path.rpartition("/")[2] in files():
            asset = files()[path.rpartition("/")[2]]
            self._answer(asset.body, asset.type)
        elif path == "/portal/events":
            self._stream(["notices", "map", "regions", "edges", "events"])
        elif path.startswith("/portal/operations/"):
            self.server.ending.wait(60)  # type: ignore[attr-defined]
            self._stream([], event("steps", part("steps", progress("Succeeded"))) + event("done", ""))
        elif path == "/portal/scale-and-pricing/locations":
            self._answer(part("locations", self.server.saved(), PAGE).encode())  # type: ignore[attr-defined]
        elif path in PAGES:
            self._answer(page(path).encode())
        else:
            missing = v.Failure(404, v.Problem("ResourceNotFound", f"no page {path}"))
            self._answer(render(PAGE, missing).encode(), status=404)

    def do_POST(self) -> None:
        sent = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), keep_blank_values=True)
        self.server.sent.append((self.path, dict(self.headers), sent))  # type: ignore[attr-defined]
        if self.path == "/portal/plan":
            self._answer(self._plan(sent))
        elif self.path == "/portal/save":
            self._answer(part("progress", progress()).encode(), status=202)
        elif self.path == "/portal/traffic-manager/timing":
            self._answer(part("timing", dataclasses.replace(TIMING, worst=float(sent["ttl"][0]))).encode())
        else:
            self._answer(b"", status=204)

    def _plan(self, sent: dict[str, list[str]]) -> bytes:
        rows = read(sent["row"])
        if any(row.units == 12 for row in rows):
            return part("problem", problem()).encode()
        assert wish(rows, sent["tier"][0], sent["network_mode"][0])
        return part("plan", plan()).encode()

    def _stream(self, names: list[str], rest: bytes = b"") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"".join(event(name, part(name, overview())) for name in names) + rest)
        self.wfile.flush()
        self.close_connection = True
        if not rest:
            self.server.stopping.wait(60)  # type: ignore[attr-defined]

    def _answer(self, body: bytes, kind: str = "text/html; charset=utf-8", status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def portal(port: int = 0) -> Iterator[Any]:
    """Serve the samples on loopback; gives the server: `.url`, `.sent` (path, headers, fields of each POST), `.saved` (rows after Save),
    `.ending` (cleared: operations go on)."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), _Portal)
    server.daemon_threads = True
    server.sent, server.stopping, server.saved = [], threading.Event(), lambda: locations(operation=progress("PartiallySucceeded"))
    server.ending = threading.Event()
    server.ending.set()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with portal(int(sys.argv[1])) as shown:
        print(f"{shown.url}/portal/")
        threading.Event().wait()
