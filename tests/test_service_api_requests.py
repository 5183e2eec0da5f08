"""What holds for every request: strict JSON, sizes, host names, headers, errors in one shape, hostile texts; what a secondary says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import BASE, Desk, M, codes, managed
from hypothesis import given
from hypothesis import strategies as st

from lbcore.errors import ServiceError
from lbcore.service.api import secondary
from lbcore.service.api.guard import loopback_name
from lbcore.service.api.reading import DEEPEST, parsed


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with managed(tmp_path) as desk:
        yield desk


# ===== JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_json_is_read_as_it_was_meant(value: Any) -> None:
    assert parsed(json.dumps(value).encode()) == value
    assert parsed(json.dumps(value, ensure_ascii=False).encode()) == value


WRONG = (
    b"", b"{", b'{"a": 1,}', b"nonsense", b"{'a': 1}", b"\xff\xfe{}", '{"a": 1}'.encode("utf-16"), b'{"a": NaN}', b'{"a": Infinity}',
    b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"b": {"a": 1, "\\u0061": 2}}', b'"\\ud800"', b'{"\\udfff": 1}',
    b"[" * 100_000, b'{"a":' * 100_000, b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2), b"1" * 5000, b'{"a": 1}{}', b"\x00",
)  # fmt: skip


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        parsed(content)
    assert (caught.value.code, len(str(caught.value)) < 300) == ("InvalidRequest", True)


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(content: bytes) -> None:
    try:
        json.dumps(parsed(content), allow_nan=False, ensure_ascii=False).encode()
    except ServiceError as error:
        assert error.code == "InvalidRequest"


def test_the_deepest_documents_are_read() -> None:
    assert parsed(b"[" * DEEPEST + b"]" * DEEPEST)


async def test_a_body_is_json_of_a_size_that_makes_sense(desk: Desk) -> None:
    async def sent(content: Any, kind: str = "application/json", path: str = "plan") -> tuple[int, set[str]]:
        response = await desk.ask("POST" if path == "plan" else "PUT", path, content=content, headers={"content-type": kind})
        return response.status_code, codes(response) if response.is_error else set()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    assert await sent(b"{}") == (200, set())
    assert await sent(b"{}", "application/merge-patch+json; charset=utf-8") == (200, set())
    assert await sent(b"{}", "text/plain") == (415, {"UnsupportedMediaType"})
    assert await sent(b"{}", "application/x-www-form-urlencoded") == (415, {"UnsupportedMediaType"})
    assert await sent(b"") == (400, {"InvalidRequest"})
    assert await sent(b"null") == (400, {"InvalidRequest"})
    assert await sent(b"[]") == (400, {"InvalidProperty"})
    assert await sent(b"{" + b" " * (1 << 20) + b"}") == (413, {"RequestTooLarge"})
    assert await sent(pieces()) == (413, {"RequestTooLarge"})
    assert await sent(b"{" + b" " * (4 << 20) + b"}", path="gatewayConfiguration") == (200, set())
    assert await sent(b" " * (6 << 20), path="gatewayConfiguration") == (413, {"RequestTooLarge"})
    assert await sent(b'{"a": 1, "a": 1}') == (400, {"InvalidRequest"})


# ===== every request


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((good, True) for good in ("127.0.0.1", "127.0.0.1:9180", "localhost:1", "contoso.localhost", "[::1]:9180", "127.9.9.9")),
        *((bad, False) for bad in (
            "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:9180", "", "169.254.169.254", "0.0.0.0",
            "127.0.0.1@evil.example", "localhost:1:2", "localhost\r\n", "xlocalhost",
        )),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_served_on_loopback(host: str, ours: bool) -> None:
    assert loopback_name(host) is ours


async def test_a_page_of_another_site_gets_nowhere(desk: Desk) -> None:
    for path in ("/healthz", M, "/openapi.json", "/portal/"):
        response = await desk.ask("GET", path, headers={"host": "evil.example:9180"})
        assert (response.status_code, codes(response)) == (403, {"HostNotAllowed"})
    foreign = await desk.ask("GET", "", headers={"origin": "https://evil.example"})
    assert not [name for name in foreign.headers if name.startswith("access-control")]
    asked = await desk.ask("OPTIONS", "", headers={"origin": "https://evil.example", "access-control-request-method": "PUT"})
    assert (asked.status_code, [name for name in asked.headers if name.startswith("access-control")]) == (405, [])


async def test_every_answer_has_its_number_and_says_nothing_to_other_sites(desk: Desk) -> None:
    for method, path in (("GET", ""), ("GET", "/nothing"), ("PUT", ""), ("GET", "/healthz"), ("POST", "/healthz"), ("GET", "/metrics")):
        for id, same in (("abc-1.2_X", True), ("a b", False), ("x" * 65, False), ("<script>", False)):
            response = await desk.ask(method, path, "reader", headers={"x-request-id": id})
            assert (response.headers["x-request-id"] == id) is same
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["cache-control"] in ("no-store", "no-cache")
            assert "server" not in response.headers


async def test_what_is_not_there_is_said_in_the_one_shape(desk: Desk) -> None:
    for path in (
        "/", "/nothing", f"{M}/nothing", f"{M}/", "/services//contoso", "/SERVICES", "/docs", "/redoc", f"{M}/heatMaps/default", f"{M}/rum",
        "/%00", "/..%2f..%2fetc/passwd", "/portal", "/developer",
    ):  # fmt: skip
        for method in ("GET", "PUT", "DELETE", "BREW"):
            response = await desk.ask(method, path)
            assert (path, response.status_code, codes(response)) == (path, 404, {"ResourceNotFound"})


async def test_wrong_methods_are_told_the_right_ones(desk: Desk) -> None:
    for path, allow in (
        (M, "DELETE, GET, PATCH, PUT"), (f"{M}/gatewayConfiguration", "GET, HEAD, PUT"), (f"{M}/plan", "POST"), ("/healthz", "GET"),
        (f"{M}/locations/westus2", "DELETE, GET, PUT"),
    ):  # fmt: skip
        for method in ("TRACE", "OPTIONS", "BREW"):
            response = await desk.ask(method, path, "")
            assert (response.status_code, response.headers["allow"], codes(response)) == (405, allow, {"MethodNotAllowed"})


async def test_the_version_of_the_api_may_be_said(desk: Desk) -> None:
    assert (await desk.ask("GET", "", params={"api-version": "2026-11-01"})).status_code == 200
    for wrong in ("2024-05-01", "", "2026-11-01x"):
        response = await desk.ask("GET", "", params={"api-version": wrong})
        assert (response.status_code, response.json()["error"]["target"]) == (400, "api-version")


async def test_wrong_queries_are_told_all_at_once(desk: Desk) -> None:
    response = await desk.ask("GET", "history", params={"limit": "many", "before": "-1"})
    assert (response.status_code, {each["target"] for each in response.json()["error"]["details"]}) == (400, {"limit", "before"})
    assert (await desk.ask("GET", "rank", params={"client": "x" * 101})).status_code == 400


async def test_a_bug_is_told_as_one(desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("secret of a bug")

    monkeypatch.setattr(desk.plane, "state", broken)
    response = await desk.ask("GET", "locations", headers={"x-request-id": "mine"})
    assert (response.status_code, codes(response)) == (500, {"InternalError"})
    assert "secret" not in response.text and "mine" in response.text
    assert "request mine failed" in caplog.text


async def test_a_store_that_cannot_be_used_is_said_so_without_its_path(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(desk.store.database.path)

    async def locked() -> None:
        raise ServiceError("StoreLocked", f"{path}: another process holds it", path)

    monkeypatch.setattr(desk.plane, "state", locked)
    response = await desk.ask("GET", "locations")
    assert (response.status_code, codes(response), path in response.text) == (503, {"StoreLocked"}, False)
    assert int(response.headers["retry-after"]) > 0


async def test_a_store_that_another_process_holds_is_tried_again_later(tmp_path: Path) -> None:
    async with managed(tmp_path, patience=0.1) as desk:
        etag, changes = await desk.etag(), len(desk.store.history())
        await desk.ask("GET", "", "operator")
        with closing(sqlite3.connect(desk.store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for method, path, body in (
                ("PATCH", "", {"sku": {"capacity": 2}}), ("PUT", "gatewayConfiguration", {}), ("DELETE", "", None),
                ("PATCH", "trafficManager", {"properties": {"dnsConfig": {"ttl": 9}}}), ("POST", "tokens", {"role": "reader", "name": "x"}),
            ):  # fmt: skip
                response = await desk.ask(method, path, json=body, headers={"if-match": "*"})
                assert (path, response.status_code, codes(response)) == (path, 503, {"StoreLocked"})
                assert int(response.headers["retry-after"]) > 0
            assert (await desk.etag(), (await desk.ask("GET", "rotation", "node")).status_code) == (etag, 200)  # reading goes on
        assert (await desk.etag(), len(desk.store.history())) == (etag, changes)
        assert (await desk.ask("PATCH", "", json={"sku": {"capacity": 2}}, headers={"if-match": etag})).status_code == 202


HOSTILE = (
    "<script>alert(1)</script>", "'; DROP TABLE token; --", "../../etc/passwd", "%2e%2e%2f", "a\nb: c", "\u202egnp.exe", "\x00", "{{7*7}}",
    "${jndi:ldap://x}", "é" * 500, "A" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_texts_are_refused_or_kept_as_texts(desk: Desk, text: str) -> None:
    etag = await desk.etag()
    for wish in (
        {"location": text}, {"zones": [text]}, {"sku": {"name": text}}, {"properties": {"domain": text}}, {text: text},
        {"properties": {text: 1}}, {"properties": {"virtualNetworkType": text}}, {"properties": {"gateway": text}},
        {"properties": {"publicIpAddressId": text}},
        {"properties": {"additionalLocations": [{"location": text, "geo": {"lat": 1, "lon": 1}}]}}, {"name": text},
        {"properties": {"virtualNetworkConfiguration": {"subnetResourceId": text}}},
    ):  # fmt: skip
        response = await desk.ask("PATCH", "", json=wish, headers={"if-match": "*"})
        assert response.status_code == 400, (wish, response.text)
        codes(response)
        assert response.headers["content-type"] == "application/json"
    things = ("locations", "operations", "gatewayConfiguration/revisions", "tokens")
    for url in (*(f"{M}/{thing}/{{}}" for thing in things), "/services/{}"):
        path = url.format("".join(f"%{byte:02x}" for byte in text.encode()))
        quoted = httpx.URL(BASE).copy_with(raw_path=path.encode())
        for method in ("GET", "DELETE", "PUT"):
            response = await desk.client.request(
                method, quoted, json={"location": text}, headers={"authorization": f"Bearer {desk.tokens['owner']}", "if-match": "*"}
            )
            assert response.status_code in (204, 400, 404, 405), (method, url, response.text)
    for params in ({"client": text}, {"limit": text}):
        assert (await desk.ask("GET", "rank" if "client" in params else "history", params=params)).status_code == 400
    why = text.encode().replace(b"\n", b" ").replace(b"\x00", b" ")
    await desk.client.patch(f"{M}/trafficManager", json={"properties": {"dnsConfig": {"ttl": 77}}}, headers={
        "authorization": f"Bearer {desk.tokens['owner']}".encode(), "if-match": b"*", "x-lbcore-why": why,
    })  # fmt: skip
    kept = (await desk.ask("GET", "history", params={"limit": 1})).json()["value"][0]["why"]
    assert kept.strip() == "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in why.decode())[:1000].strip()
    assert (await desk.etag(), len(desk.store.tokens.all())) == (etag, 4)


# ===== a node that is not the primary


@pytest.mark.parametrize("reachable", [True, False])
async def test_a_secondary_manages_nothing(reachable: bool) -> None:
    primary, lines = "https://primary.example:9180", list[dict[str, Any]]()
    app = secondary(primary, lambda: reachable, audit=lines.append)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        for method in ("GET", "PUT", "PATCH", "POST", "DELETE"):
            for path in ("/services", M, f"{M}/locations/eastasia", f"{M}/gatewayConfiguration", "/metrics"):
                response = await client.request(method, path, content=b"{}")
                expected = (421, {"NotPrimary"}) if reachable else (503, {"ManagementPlaneUnavailable"})
                assert (response.status_code, codes(response), response.json()["error"]["target"]) == (*expected, primary)
                assert ("retry-after" in response.headers) is not reachable
        for path in ("/portal/", "/portal/scale-and-pricing", "/developer", "/openapi.json", "/"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/healthz")).json() == {"status": "secondary"}
        assert (await client.get("/healthz", headers={"host": "evil.example"})).status_code == 403
    assert {line["status"] for line in lines} >= ({421, 403} if reachable else {503})
