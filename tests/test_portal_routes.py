"""The portal's routes over a real Plane: who may see and do what, what each page shows, and what each failure looks like."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import markup
import pytest
from portaling import Service, Shared, Visitor, field, operator, play, sharing

from lbcore.errors import ServiceError
from lbcore.service.api import application
from lbcore.service.portal import HEADERS
from lbcore.service.portal.routes import mount

PAGES = ("/portal/", "/portal/scale-and-pricing", "/portal/locations", "/portal/explain", "/portal/traffic-manager", "/developer")
POSTS = ("/portal/plan", "/portal/save", "/portal/operations/x/cancel", "/portal/traffic-manager", "/portal/traffic-manager/timing")
STREAMS = ("/portal/events", "/portal/operations/x/events")
shared = pytest.fixture(scope="module")(sharing)


# ===== pages


def test_every_page_is_sound_and_says_what_it_may_load(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        for path in (*PAGES, "/portal/explain?client=81.2.69.160", "/portal/explain?client=2001:db8::1"):
            answer = await visitor.get(path)
            assert (answer.status_code, markup.faults(answer.text)) == (200, []), path
            assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
            assert "West US 2" in answer.text
            assert answer.headers["content-type"] == "text/html; charset=utf-8"

    shared(story)


def test_the_overview_shows_the_service_as_it_is(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        made.regions.down.add("eastasia")
        shown = ""
        async with asyncio.timeout(30):
            while "East Asia is out of rotation" not in shown:
                shown = (await visitor.get("/portal/")).text
        tree, _ = markup.parsed(shown)
        text = " ".join(tree.itertext())
        assert "West Europe: Online" in text
        assert "East Asia: Degraded" in text
        assert "JP" in text
        assert "revision is 1.1" in " ".join(text.split())
        assert "revision 1.1 published by test: the first APIs" in text
        assert "deployed" in text
        assert "Groups with" in text  # who went from East Asia

    play(tmp_path, story, "westeurope", "eastasia")


def test_explain_shows_the_decision_for_an_address(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        shown = await visitor.get("/portal/explain?client=81.2.69.160")
        region = (await made.plane.state()).service.get(made.plane.explain("81.2.69.160").region or "")
        assert f"goes to {region.display_name}" in " ".join(shown.text.split())
        for nonsense in ("203.0.113.777", "<script>", "1.2.3.4;drop", "\u202e"):
            wrong = await visitor.get("/portal/explain", params={"client": nonsense})
            assert (wrong.status_code, markup.faults(wrong.text)) == (400, [])
            assert "is no IPv4 or IPv6 address" in wrong.text

    shared(story)


def test_the_developer_portal_needs_no_token(shared: Shared) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        shown = await nobody.get("/developer")
        assert shown.status_code == 200
        for text in ("Orders", "https://contoso.test/orders/v1", "/{id}", "GET", "https://stock.contoso.test with Api-Version: 2", "1.1"):
            assert text in shown.text
        assert "http://127.0.0.1:9001" not in shown.text  # backends are nobody's business
        assert "Sign out" not in shown.text
        assert "Sign out" in (await (await operator(made)).get("/developer")).text

    shared(story)


def test_files_are_given_by_name_only(shared: Shared) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        style = await nobody.get("/portal/static/portal.css?v=1")
        assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
        assert "immutable" in style.headers["cache-control"]
        for name in ("SHA256SUMS", "..%2fpages.py", "../pages.py", "portal.css/x", "", "%00"):
            assert (await nobody.get(f"/portal/static/{name}")).status_code == 404, name

    shared(story)


# ===== who may


def test_nobody_sees_anything_without_a_session(shared: Shared) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        for path in PAGES[:-1]:
            answer = await nobody.get(path)
            assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/portal/login")
        for path in POSTS:
            answer = await nobody.client.post(path, headers={"HX-Request": "true"})
            assert (answer.status_code, answer.headers["hx-redirect"].partition("?")[0], answer.text) == (401, "/portal/login", "")
            assert (await nobody.client.post(path)).status_code == 401
        for path in STREAMS:
            assert (await nobody.get(path, headers={"Accept": "text/event-stream"})).status_code == 401
        for cookie in ("", "x" * 43, made.tokens["owner"], "\x00"):
            nobody.client.cookies.set("lbcore_session", cookie)
            assert (await nobody.get("/portal/")).status_code == 303

    shared(story)


def test_one_comes_back_to_where_one_was_and_nowhere_else(shared: Shared) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        asked = await nobody.get("/portal/explain?client=81.2.69.160")
        page = await nobody.get(asked.headers["location"])
        assert field(page.text, "next") == "/portal/explain?client=81.2.69.160"
        for elsewhere in ("https://evil.test/", "//evil.test/portal/", "/portal/../x", "\\evil"):
            assert field((await nobody.get("/portal/login", params={"next": elsewhere})).text, "next") == "/portal/"
            answer = await Visitor(made.app).sign_in(made.tokens["reader"], elsewhere)
            assert answer.headers["location"] == "/portal/"

    shared(story)


def test_the_cookie_is_one_that_no_script_and_no_other_site_gets(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = Visitor(made.app)
        answer = await visitor.sign_in(made.tokens["operator"])
        cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith("lbcore_session="))
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert "secure" not in cookie.lower()  # there is no TLS
        assert made.tokens["operator"] not in str(answer.headers)

    shared(story)


def test_with_tls_cookies_never_travel_without(shared: Shared) -> None:
    async def story(made: Service) -> None:
        app = application(made.plane, made.portal.tokens, allowed=None)
        mount(app, made.plane, made.portal.tokens, secure=True)
        visitor = Visitor(app, "https://contoso.test")
        answer = await visitor.sign_in(made.tokens["operator"])
        cookies = answer.headers.get_list("set-cookie")
        assert all("Secure" in cookie and cookie.startswith("__Host-") and "Path=/" in cookie for cookie in cookies)
        assert (await visitor.get("/portal/")).status_code == 200
        assert (await Visitor(app, "http://contoso.test").get("/portal/")).status_code == 303
        assert "max-age" in (await visitor.get("/portal/")).headers["strict-transport-security"]

    shared(story)


def test_a_session_is_a_new_one_each_time_and_ends_when_one_signs_out(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        first, csrf = visitor.client.cookies["lbcore_session"], visitor.csrf
        await visitor.sign_in(made.tokens["operator"])
        second = visitor.client.cookies["lbcore_session"]
        assert first != second
        assert csrf != visitor.csrf
        thief = Visitor(made.app)
        thief.client.cookies.set("lbcore_session", first)
        assert (await thief.get("/portal/")).status_code == 303
        assert (await visitor.post("/portal/logout", {"csrf": visitor.csrf}, hx=False)).status_code == 303
        thief.client.cookies.set("lbcore_session", second)
        assert (await thief.get("/portal/")).status_code == 303

    shared(story)


def test_a_session_ends_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.portal.entrance.STILL", 0.0)

    async def story(made: Service) -> None:
        visitor, other = await operator(made), await operator(made, "reader")
        id = made.tokens["operator"].split("_")[1]
        assert made.store.tokens.revoke(id, who="test")
        assert (await visitor.get("/portal/")).status_code == 303
        assert (await visitor.post("/portal/plan")).status_code == 401
        assert (await other.get("/portal/")).status_code == 200

    play(tmp_path, story)


def test_wrong_tokens_are_refused_and_then_not_even_looked_at(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor, answers = Visitor(made.app), []
        for number in range(14):
            answer = await visitor.sign_in(f"lbcore_0123456789ab_{number:043d}")
            answers.append(answer.status_code)
            assert "lbcore_session" not in visitor.client.cookies
        assert answers[0] == 401
        assert answers[-1] == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "Too many wrong tokens" in answer.text
        assert (await visitor.sign_in(made.tokens["owner"])).status_code == 429

    play(tmp_path, story)


def test_a_node_cannot_sign_in(shared: Shared) -> None:
    async def story(made: Service) -> None:
        visitor = Visitor(made.app)
        answer = await visitor.sign_in(made.tokens["node"])
        assert (answer.status_code, "lbcore_session" in visitor.client.cookies) == (403, False)
        assert "token of a node" in answer.text

    shared(story)


def test_to_sign_in_takes_a_form_that_was_given_out_here(shared: Shared) -> None:
    async def story(made: Service) -> None:
        stranger = Visitor(made.app)
        for csrf in ("", "x"):
            answer = await stranger.client.post("/portal/login", data={"token": made.tokens["owner"], "csrf": csrf})
            assert (answer.status_code, "lbcore_session" in stranger.client.cookies) == (403, False)
        page = await stranger.get("/portal/login")
        fields = {"token": made.tokens["owner"], "csrf": field(page.text, "csrf")}
        assert (await stranger.client.post("/portal/login", data=fields, headers={"Origin": "http://evil.test"})).status_code == 403

    shared(story)


@pytest.mark.parametrize("role", ["reader", "operator", "owner"])
def test_a_reader_changes_nothing(shared: Shared, role: str) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made, role)
        for path in PAGES:
            assert (await visitor.get(path)).status_code == 200
        codes = {path: (await visitor.post(path)).status_code for path in POSTS}
        assert (set(codes.values()) == {403}) is (role == "reader"), codes
        assert role == "reader" or 403 not in codes.values(), codes

    shared(story)


@pytest.mark.parametrize("path", POSTS)
def test_a_forged_request_does_nothing(shared: Shared, path: str) -> None:
    async def story(made: Service) -> None:
        visitor, other = await operator(made), await operator(made, "owner")
        before = (await made.plane.state()).etag
        for csrf in ("", other.csrf, visitor.csrf[:-1]):
            answer = await visitor.post(path, csrf=csrf)
            assert (answer.status_code, "another session" in answer.text) == (403, True)
        elsewhere = [("Origin", "https://evil.test"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-site")]
        for name, value in elsewhere:
            answer = await visitor.post(path, **{name: value})
            assert (answer.status_code, "own pages" in answer.text) == (403, True)
        assert (await made.plane.state()).etag == before

    shared(story)


# ===== when it fails


def test_what_is_not_there(shared: Shared) -> None:
    async def story(made: Service) -> None:
        for visitor in (Visitor(made.app), await operator(made)):
            for path in ("/portal/x", "/portal/login/x", "/portal/%00", "/portal/scale-and-pricing/x", "/portal/" + "x" * 5000):
                answer = await visitor.get(path)
                assert (answer.status_code, markup.faults(answer.text)) == (404, []), path
            assert (await visitor.client.request("PUT", "/portal/x")).status_code == 404
        assert (await visitor.get("/portal")).headers["location"] == "/portal/"
        assert (await visitor.get("/portal/operations/unknown/events")).status_code == 404

    shared(story)


def test_a_bug_is_told_by_a_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        monkeypatch.setattr(made.plane, "profile", lambda: {}["the secret of the house"])
        page = await visitor.get("/portal/traffic-manager")
        assert (page.status_code, markup.faults(page.text), "secret" in page.text) == (500, [], False)
        assert "InternalError" in page.text

    play(tmp_path, story)


def test_a_store_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked() -> None:
        raise ServiceError("StoreLocked", f"{tmp_path}/store.db is locked", f"{tmp_path}/store.db")

    async def story(made: Service) -> None:
        visitor = await operator(made)
        monkeypatch.setattr(made.store, "state", locked)
        for path in PAGES:
            answer = await visitor.get(path)
            assert (answer.status_code, markup.faults(answer.text)) == (503, []), path
            assert int(answer.headers["retry-after"]) > 0
        assert (await visitor.post("/portal/plan", {"row": "{}"})).status_code in (400, 503)

    play(tmp_path, story)


def test_without_a_service_there_is_still_a_portal(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made, "owner")
        operation = await made.plane.delete(who="test", if_match="*")
        assert operation is not None
        await made.plane.runner.wait(operation.id)
        overview = await visitor.get("/portal/")
        assert (overview.status_code, "There is no service yet" in overview.text) == (200, True)
        for path in PAGES[1:5]:
            assert (await visitor.get(path)).status_code in (200, 404), path

    play(tmp_path, story)


def test_a_form_that_does_not_end_is_not_read(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.portal.entrance.LARGEST", 10_000)

    async def story(made: Service) -> None:
        visitor = await operator(made)
        assert (await visitor.post("/portal/plan", {"row": "x" * 20_000})).status_code == 400
        assert (await visitor.post("/portal/plan", {f"f{number}": "" for number in range(1500)})).status_code == 400
        answer = await visitor.client.post("/portal/plan", content=b"\xff\xfe", headers={"X-CSRF-Token": visitor.csrf})
        assert isinstance(answer, httpx.Response)
        assert answer.status_code == 400

    shared(story)
