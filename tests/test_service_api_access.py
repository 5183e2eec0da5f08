"""Who may what: every route for every kind of token, against a table; and that no token is ever written down."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Clock
from desks import BASE, Desk, M, codes, managed
from fastapi.routing import APIRoute
from starlette.routing import Route

from lbcore.service.api import BOOKS, application
from lbcore.service.portal.routes import mount
from lbcore.service.tokens import Attempts, Verifier, issue

NODE, READER, OPERATOR, OWNER = "node", "reader", "operator", "owner"
READ = {READER, OPERATOR, OWNER}
FOLLOW = READ | {NODE}
WRITE = {OPERATOR, OWNER}
EVERYBODY = FOLLOW | {"nobody", "garbage", "expired", "revoked"}

MAY: dict[tuple[str, str], set[str]] = {
    ("GET", "/healthz"): EVERYBODY,
    ("GET", "/openapi.json"): EVERYBODY,
    ("GET", "/metrics"): READ,
    ("GET", "/services"): READ,
    ("GET", "/services/{name}"): READ,
    ("PUT", "/services/{name}"): WRITE,
    ("PATCH", "/services/{name}"): WRITE,
    ("DELETE", "/services/{name}"): {OWNER},
    ("POST", "/services/{name}/plan"): READ,
    ("GET", "/services/{name}/locations"): READ,
    ("GET", "/services/{name}/locations/{location}"): READ,
    ("PUT", "/services/{name}/locations/{location}"): WRITE,
    ("DELETE", "/services/{name}/locations/{location}"): WRITE,
    ("POST", "/services/{name}/locations/{location}/disableGateway"): WRITE,
    ("GET", "/services/{name}/locations/{location}/networkstatus"): READ,
    ("GET", "/services/{name}/networkstatus"): READ,
    ("POST", "/services/{name}/applynetworkconfigurationupdates"): WRITE,
    ("GET", "/services/{name}/skus"): READ,
    ("GET", "/services/{name}/operations"): READ,
    ("GET", "/services/{name}/operations/{id}"): READ,
    ("POST", "/services/{name}/operations/{id}/cancel"): WRITE,
    ("GET", "/services/{name}/orders"): READ,
    ("POST", "/services/{name}/orders/{location}/{id}"): WRITE,
    ("GET", "/services/{name}/gatewayConfiguration"): FOLLOW,
    ("HEAD", "/services/{name}/gatewayConfiguration"): FOLLOW,
    ("PUT", "/services/{name}/gatewayConfiguration"): WRITE,
    ("GET", "/services/{name}/gatewayConfiguration/revisions"): READ,
    ("GET", "/services/{name}/gatewayConfiguration/revisions/{revision}"): READ,
    ("GET", "/services/{name}/gatewayConfiguration/revisions/{revision}/diff/{other}"): READ,
    ("POST", "/services/{name}/gatewayConfiguration/rollback"): WRITE,
    ("POST", "/services/{name}/gatewayConfiguration/win"): {OWNER},
    ("GET", "/services/{name}/trafficManager"): READ,
    ("PATCH", "/services/{name}/trafficManager"): WRITE,
    ("POST", "/services/{name}/trafficManager/failover"): READ,
    ("GET", "/services/{name}/trafficManager/endpoints"): READ,
    ("GET", "/services/{name}/route"): READ,
    ("GET", "/services/{name}/rank"): READ,
    ("GET", "/services/{name}/explain"): READ,
    ("GET", "/services/{name}/rotation"): FOLLOW,
    ("HEAD", "/services/{name}/rotation"): FOLLOW,
    ("POST", "/services/{name}/reports"): {NODE},
    ("GET", "/services/{name}/reports"): READ,
    ("GET", "/services/{name}/tokens"): {OWNER},
    ("POST", "/services/{name}/tokens"): {OWNER},
    ("DELETE", "/services/{name}/tokens/{id}"): {OWNER},
    ("GET", "/services/{name}/history"): READ,
    ("GET", "/services/{name}/events"): READ,
    ("GET", "/services/{name}/backups"): {OWNER},
    ("POST", "/services/{name}/backup"): {OWNER},
    ("POST", "/services/{name}/restore"): {OWNER},
    ("POST", "/services/{name}/promote"): {OWNER},
}  # fmt: skip
CREDENTIALS = ("nobody", "garbage", "expired", "revoked", NODE, READER, OPERATOR, OWNER)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    clock = Clock()
    async with managed(tmp_path, clock=clock) as desk:
        desk.tokens |= {"garbage": "lbcore_" + "0" * 12 + "_" + "A" * 43}
        desk.tokens["expired"] = issue(desk.store, "owner", "late", who="test", expires=clock.now + 1)
        desk.tokens["revoked"] = issue(desk.store, "owner", "gone", who="test")
        desk.store.tokens.revoke(desk.tokens["revoked"].split("_")[1], who="test")
        clock.advance(2)
        yield desk


def routes_of(app: Any) -> set[tuple[str, str]]:
    """Give every method and path that an application answers, the ones that a framework adds by itself as well."""
    found = {(method, route.path) for route in app.routes if isinstance(route, Route | APIRoute) for method in route.methods or ()}
    assert all(isinstance(route, Route | APIRoute) for route in app.routes)
    return found - {("HEAD", "/openapi.json")}  # Starlette's own


def path_of(route: str) -> str:
    values = {"name": "contoso", "location": "westus2", "id": "none", "revision": "1.1", "other": "1.2"}
    return route.format(**values)


async def test_every_route_stands_in_the_table(desk: Desk) -> None:
    assert routes_of(desk.app) == set(MAY)
    said = {(route.method, route.path): set(route.roles) for book in BOOKS for route in book.routes}
    grown = {"reader": READ, "operator": WRITE, "owner": {OWNER}, "node": {NODE}}
    for which, roles in said.items():
        assert set().union(*(grown[role] for role in roles)) == MAY[which] - (EVERYBODY - FOLLOW if not roles else set()) or not roles


@pytest.mark.parametrize("which", MAY, ids=" ".join)
async def test_a_route_is_for_whom_the_table_says(desk: Desk, which: tuple[str, str]) -> None:
    """Wrong in all else, so that nothing changes: what is asked for is not there, no If-Match, or the body makes no sense."""
    method, route = which
    before = await desk.etag(), len(desk.store.history())
    for who in CREDENTIALS:
        headers = {"authorization": f"Bearer {desk.tokens[who]}"} if who != "nobody" else {}
        url = path_of(route)
        if method == "POST" and route.endswith(("backup", "win", "applynetworkconfigurationupdates")):
            headers["if-match"] = '"never"'
        response = await desk.client.request(method, url, headers=headers, json={"nonsense": 1} if method not in ("GET", "HEAD") else None)
        expected = 401 if who in EVERYBODY - FOLLOW else 403
        if who in MAY[which]:
            assert response.status_code not in (401, 403, 405, 500), (who, response.text)
        else:
            assert response.status_code == expected, (who, response.text)
            if method != "HEAD":
                assert codes(response) == {"AuthenticationFailed" if expected == 401 else "AuthorizationFailed"}
            assert response.headers.get("www-authenticate") == ("Bearer" if expected == 401 else None)
    if which != ("PATCH", "/services/{name}/trafficManager"):
        assert (await desk.etag(), len(desk.store.history())) == before


async def test_whoever_is_wrong_too_often_is_told_to_wait(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        desk.app.state.verifier = Verifier(desk.store, Attempts(most=3))
        assert (await desk.ask("GET", "", "reader")).status_code == 200
        desk.tokens |= {f"wrong {number}": f"{desk.tokens['owner'][:-1]}!{number}" for number in range(5)}
        seen = [await desk.ask("GET", "", f"wrong {number}") for number in range(5)]
        assert [each.status_code for each in seen] == [401, 401, 401, 429, 429]
        assert (codes(seen[-1]), int(seen[-1].headers["retry-after"])) == ({"TooManyAttempts"}, 20)
        assert (await desk.ask("GET", "", "reader")).status_code == 200  # it was right from there before
        assert (await desk.ask("GET", "", "owner")).status_code == 429


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic b3duZXI6", "Bearer a b", "Token lbcore_x", "bearer\tx", "Bearer " + "x" * 5000, "Bearer \xff"],
)
async def test_no_other_authorization_is_taken(tmp_path: Path, value: str) -> None:
    async with managed(tmp_path, service=False) as desk:
        response = await desk.client.get(M, headers={"authorization": value.encode("latin-1")})
        assert (response.status_code, codes(response)) == (401, {"AuthenticationFailed"})


async def test_two_authorizations_are_none(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk:
        good = f"Bearer {desk.tokens['owner']}"
        response = await desk.client.get(M, headers=[("authorization", good), ("authorization", good)])
        assert response.status_code == 401


async def test_a_token_in_a_query_or_a_cookie_is_none(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk:
        token = desk.tokens["owner"]
        response = await desk.client.get(M, params={"access_token": token, "token": token}, headers={"cookie": f"lbcore={token}"})
        assert response.status_code == 401


PAGES = {  # who needs no session; every other page leads to the login, or is refused
    ("GET", "/portal/login"), ("POST", "/portal/login"), ("GET", "/portal/static/{name}"), ("GET", "/developer"),
}  # fmt: skip


async def test_no_page_but_a_few_is_for_somebody_without_a_session(desk: Desk) -> None:
    """Nor does a token in the header, of whatever role, open the portal: a session is needed, with its forms."""
    pages = application(desk.plane, desk.app.state.verifier)
    mount(pages, desk.plane, pages.state.verifier, secure=False)
    there = {each for each in routes_of(pages) - set(MAY) if "{rest:path}" not in each[1] and each[0] != "HEAD"}
    assert PAGES <= there and len(there) > 15
    transport = httpx.ASGITransport(pages)
    before = await desk.etag()
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        for method, route in sorted(there - PAGES):
            for token in ("", desk.tokens["owner"], desk.tokens["node"]):
                headers = {"authorization": f"Bearer {token}"} if token else {}
                url = re.sub(r"\{[^}]*\}", "x", route)
                response = await client.request(method, url, headers=headers, data={"row": "[]"} if method == "POST" else None)
                login = response.status_code == 303 and response.headers["location"].startswith("/portal/login")
                moved = route == "/portal" and response.status_code in (307, 308)
                assert login or moved or response.status_code in (401, 403), (method, route, response.status_code)
    assert await desk.etag() == before


# ===== the audit log


async def test_every_write_and_everybody_turned_away_is_written_down(desk: Desk) -> None:
    desk.audit.clear()
    await desk.ask("GET", "", "reader")
    assert desk.audit == []
    await desk.ask("PUT", "locations/eastasia", "reader", json={"location": "eastasia"})
    why = {"if-match": "*", "x-lbcore-why": "y"}
    done = await desk.ask("PUT", "locations/eastasia", "operator", json={"location": "eastasia"}, headers=why)
    await desk.done(done)
    await desk.ask("PATCH", "", "operator", json={}, headers={"if-match": "no", "x-request-id": "mine"})
    await desk.ask("GET", "", "garbage")
    await desk.client.get(M, headers={"host": "evil.example"})
    names = [line.get("who", "").partition(" ")[0] for line in desk.audit]
    told = [(one["method"], one["status"], one.get("code"), one.get("role"), name) for one, name in zip(desk.audit, names, strict=True)]
    assert told == [
        ("PUT", 403, "AuthorizationFailed", "reader", "an-reader"),
        ("PUT", 202, None, "operator", "an-operator"),
        ("PATCH", 412, "PreconditionFailed", "operator", "an-operator"),
        ("GET", 401, "AuthenticationFailed", None, ""),
        ("GET", 403, "HostNotAllowed", None, ""),
    ]
    assert desk.audit[1]["operation"] == done.json()["operation"]["id"] and desk.audit[1]["why"] == "y"
    assert desk.audit[2]["request"] == "mine"
    assert {line["client"] for line in desk.audit} == {"127.0.0.1"}
    json.dumps(desk.audit)


async def test_no_token_is_written_down(desk: Desk, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    made = (await desk.ask("POST", "tokens", json={"role": "owner", "name": "ann"})).json()["token"]
    desk.tokens |= {"ann": made, "almost": made[:-1] + ("A" if made[-1] != "A" else "B")}
    for who in ("ann", "almost", "expired", "revoked"):
        places = (("GET", ""), ("PUT", ""), ("PATCH", "nothing"), ("POST", f"tokens?token={made}"), ("GET", f"operations/{made}"))
        for method, path in places:
            await desk.ask(method, path, who, json={"token": made, "why": made})
    await desk.client.get(f"/{made}", headers={"x-lbcore-why": "x"})
    logged = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records if record.name != "httpx"]  # the client's own
    assert len(desk.audit) >= 20
    written = "\n".join([*logged, json.dumps(desk.audit), *capfd.readouterr()])
    for token in desk.tokens.values():
        assert token.split("_", 2)[2] not in written
    for entry in (*desk.store.history(), *desk.store.events.since()):
        assert made not in str(entry)
