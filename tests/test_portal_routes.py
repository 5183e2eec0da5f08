"""The portal's routes over a real Plane: who may see and do what, what each page shows, and what each refusal looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import markup
import pytest
from portaling import Service, Visitor, field, service

from lbcore.service.portal import HEADERS
from lbcore.service.portal.routes import Portal

Story = Callable[[Service], Awaitable[None]]
PAGES = ("/portal/", "/portal/scale-and-pricing", "/portal/locations", "/portal/explain", "/portal/traffic-manager", "/developer")
POSTS = ("/portal/plan", "/portal/save", "/portal/operations/x/cancel", "/portal/traffic-manager", "/portal/traffic-manager/timing")
STREAMS = ("/portal/events", "/portal/operations/x/events")


def play(folder: Path, story: Story, *others: str, **settings: Any) -> None:
    async def played() -> None:
        async with service(folder, *others, **settings) as made:
            await story(made)

    asyncio.run(played())


async def operator(made: Service, role: str = "operator") -> Visitor:
    visitor = Visitor(made.app)
    assert (await visitor.sign_in(made.tokens[role])).status_code == 303
    return visitor


async def rows(visitor: Visitor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Locations form as the page has it: its fields, and its rows."""
    html = (await visitor.get("/portal/scale-and-pricing")).text
    tree, _ = markup.parsed(html)
    found = [json.loads(each.attrib["value"]) for each in tree.iter() if each.attrib.get("name") == "row" and each.attrib["value"]]
    return {"etag": field(html, "etag"), "tier": "Premium", "network_mode": "None"}, [row for row in found if row["name"]]


def sent(fields: dict[str, Any], wanted: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    return fields | {"row": [json.dumps(row) for row in wanted]} | more


def added(name: str, units: int = 1, **more: Any) -> dict[str, Any]:
    draft = {"name": name, "state": "draft-add", "units": units, "zones": [], "disableGateway": False, "subnet": "", "publicIp": ""}
    return draft | {"carried": {}} | more


# ===== pages


def test_every_page_is_sound_and_says_what_it_may_load(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        for path in (*PAGES, "/portal/explain?client=81.2.69.160", "/portal/explain?client=2001:db8::1"):
            answer = await visitor.get(path)
            assert (answer.status_code, markup.faults(answer.text)) == (200, []), path
            assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
            assert "West US 2" in answer.text
            assert answer.headers["content-type"] == "text/html; charset=utf-8"

    play(tmp_path, story, "westeurope", "eastasia")


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
        assert "publish 1.1 by test: the first APIs" in text
        assert "deployed" in text
        assert "Groups with" in text  # who went from East Asia

    play(tmp_path, story, "westeurope", "eastasia")


def test_explain_shows_the_decision_for_an_address(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        shown = await visitor.get("/portal/explain?client=81.2.69.160")
        region = (await made.plane.state()).service.get(made.plane.explain("81.2.69.160").region or "")
        assert f"goes to {region.display_name}" in " ".join(shown.text.split())
        for nonsense in ("203.0.113.777", "<script>", "1.2.3.4;drop", "\u202e"):
            wrong = await visitor.get("/portal/explain", params={"client": nonsense})
            assert (wrong.status_code, markup.faults(wrong.text)) == (400, [])
            assert "is no IPv4 or IPv6 address" in wrong.text

    play(tmp_path, story, "westeurope")


def test_the_developer_portal_needs_no_token(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        shown = await nobody.get("/developer")
        assert shown.status_code == 200
        for text in ("Orders", "https://contoso.test/orders/v1", "/{id}", "GET", "https://stock.contoso.test with Api-Version: 2", "1.1"):
            assert text in shown.text
        assert "http://127.0.0.1:9001" not in shown.text  # backends are nobody's business
        assert "Sign out" not in shown.text
        assert "Sign out" in (await (await operator(made)).get("/developer")).text

    play(tmp_path, story)


def test_files_are_given_by_name_only(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        style = await nobody.get("/portal/static/portal.css?v=1")
        assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
        assert "immutable" in style.headers["cache-control"]
        for name in ("SHA256SUMS", "..%2fpages.py", "../pages.py", "portal.css/x", "", "%00"):
            assert (await nobody.get(f"/portal/static/{name}")).status_code == 404, name

    play(tmp_path, story)


# ===== who may


def test_nobody_sees_anything_without_a_session(tmp_path: Path) -> None:
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

    play(tmp_path, story)


def test_one_comes_back_to_where_one_was_and_nowhere_else(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        nobody = Visitor(made.app)
        asked = await nobody.get("/portal/explain?client=81.2.69.160")
        page = await nobody.get(asked.headers["location"])
        assert field(page.text, "next") == "/portal/explain?client=81.2.69.160"
        for elsewhere in ("https://evil.test/", "//evil.test/portal/", "/portal/../x", "\\evil"):
            assert field((await nobody.get("/portal/login", params={"next": elsewhere})).text, "next") == "/portal/"
            answer = await Visitor(made.app).sign_in(made.tokens["reader"], elsewhere)
            assert answer.headers["location"] == "/portal/"

    play(tmp_path, story)


def test_the_cookie_is_one_that_no_script_and_no_other_site_gets(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = Visitor(made.app)
        answer = await visitor.sign_in(made.tokens["operator"])
        cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith("lbcore_session="))
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert "secure" not in cookie.lower()  # there is no TLS
        assert made.tokens["operator"] not in str(answer.headers)
        with_tls = Portal(made.plane, made.portal.tokens, secure=True)
        assert with_tls._cookie.startswith("__Host-")

    play(tmp_path, story)


def test_a_session_is_a_new_one_each_time_and_ends_when_one_signs_out(tmp_path: Path) -> None:
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

    play(tmp_path, story)


def test_a_session_ends_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.portal.routes.STILL", 0.0)

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


def test_a_node_cannot_sign_in(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = Visitor(made.app)
        answer = await visitor.sign_in(made.tokens["node"])
        assert (answer.status_code, "lbcore_session" in visitor.client.cookies) == (403, False)
        assert "token of a node" in answer.text

    play(tmp_path, story)


def test_to_sign_in_takes_a_form_that_was_given_out_here(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        stranger = Visitor(made.app)
        for csrf in ("", "x"):
            answer = await stranger.client.post("/portal/login", data={"token": made.tokens["owner"], "csrf": csrf})
            assert (answer.status_code, "lbcore_session" in stranger.client.cookies) == (403, False)
        page = await stranger.get("/portal/login")
        fields = {"token": made.tokens["owner"], "csrf": field(page.text, "csrf")}
        assert (await stranger.client.post("/portal/login", data=fields, headers={"Origin": "http://evil.test"})).status_code == 403

    play(tmp_path, story)


@pytest.mark.parametrize("role", ["reader", "operator", "owner"])
def test_a_reader_changes_nothing(tmp_path: Path, role: str) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made, role)
        for path in PAGES:
            assert (await visitor.get(path)).status_code == 200
        codes = {path: (await visitor.post(path)).status_code for path in POSTS}
        assert (set(codes.values()) == {403}) is (role == "reader"), codes
        assert role == "reader" or 403 not in codes.values(), codes

    play(tmp_path, story)


@pytest.mark.parametrize("path", POSTS)
def test_a_forged_request_does_nothing(tmp_path: Path, path: str) -> None:
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

    play(tmp_path, story)


# ===== scale and pricing


def test_drafts_become_a_plan_and_the_plan_becomes_regions(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        wanted = sent(fields, [*there, added("westeurope", 2), added("eastasia")])
        shown = await visitor.post("/portal/plan", wanted)
        assert (shown.status_code, markup.faults(shown.text)) == (200, [])
        assert "2 to add, 0 to change, 0 to delete" in shown.text
        assert (await made.plane.state()).etag == fields["etag"]  # R12: nothing has happened
        saved = await visitor.post("/portal/save", wanted | {"digest": field(shown.text, "digest"), "why": "closer to Europe"})
        assert saved.status_code == 202
        assert "InProgress" in saved.text
        await made.settled()
        after = await visitor.get("/portal/scale-and-pricing/locations")
        for text in ("West Europe", "East Asia", "203.0.113.", "Succeeded"):
            assert text in after.text
        entry = next(each for each in made.store.history() if each.what == "save")
        assert (entry.who.partition(" (")[0], entry.why) == ("a operator", "closer to Europe")

    play(tmp_path, story)


def test_nothing_is_deployed_that_was_not_shown(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        shown = await visitor.post("/portal/plan", sent(fields, [*there, added("westeurope")]))
        other = sent(fields, [*there, added("westeurope"), added("eastasia")], digest=field(shown.text, "digest"))
        answer = await visitor.post("/portal/save", other)
        assert (answer.status_code, "not the plan that was shown" in answer.text) == (412, True)
        assert (await visitor.post("/portal/save", other | {"digest": ""})).status_code == 412
        assert made.store.operations.running() is None

    play(tmp_path, story)


def test_what_somebody_else_has_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        wanted = sent(fields, [*there, added("westeurope")])
        shown = await visitor.post("/portal/plan", wanted)
        await made.plane.patch({"properties": {"additionalLocations": [{"location": "eastasia"}]}}, who="somebody", if_match="*")
        await made.settled()
        for path in ("/portal/plan", "/portal/save"):
            answer = await visitor.post(path, wanted | {"digest": field(shown.text, "digest")})
            assert answer.status_code == 412
        assert [each.name for each in (await made.plane.state()).service.additional_locations] == ["eastasia"]

    play(tmp_path, story)


def test_every_violation_is_shown_and_nothing_changes(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        before = (await made.plane.state()).etag
        wrong = [*there, added("westeurope", 99), added("<script>alert(1)</script>"), added("West US 2")]
        answer = await visitor.post("/portal/plan", sent(fields, wrong))
        assert (answer.status_code, markup.faults(answer.text)) == (400, [])
        assert all(code in answer.text for code in ("InvalidSkuCapacity", "LocationNotAvailable", "DuplicateLocation"))
        assert "<script>" not in answer.text
        for row in ("{", "[]", "null", '{"name": 1}'):
            answer = await visitor.post("/portal/plan", fields | {"row": [row]})
            assert (answer.status_code, markup.faults(answer.text)) == (400, []), row
        assert (await visitor.post("/portal/plan", fields)).status_code == 400
        assert (await made.plane.state()).etag == before

    play(tmp_path, story)


def test_a_change_of_addresses_must_be_known_of(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        europe = there[1] | {"state": "draft-change", "units": 3, "zones": ["1", "2", "3"]}
        wanted = sent(fields, [there[0], europe])
        shown = await visitor.post("/portal/plan", wanted)
        assert "Addresses that change" in shown.text
        digest = field(shown.text, "digest")
        refused = await visitor.post("/portal/save", wanted | {"digest": digest})
        assert (refused.status_code, "VipChangeNotAcknowledged" in refused.text) == (409, True)
        assert (await visitor.post("/portal/save", wanted | {"digest": digest, "acknowledge": "true"})).status_code == 202
        await made.settled()

    play(tmp_path, story, "westeurope")


def test_a_second_save_is_refused_while_the_first_is_under_way(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        made.regions.slow = 3.0
        wanted = sent(fields, [*there, added("westeurope")])
        first = await visitor.post("/portal/plan", wanted)
        assert (await visitor.post("/portal/save", wanted | {"digest": field(first.text, "digest")})).status_code == 202
        assert "inert" in (await visitor.get("/portal/scale-and-pricing")).text
        async with asyncio.timeout(30):  # the state moves with each step: until both are of one
            answer, status = None, 412
            while status == 412:
                fields, there = await rows(visitor)
                wanted = sent(fields, [*there, added("eastasia")])
                shown = await visitor.post("/portal/plan", wanted)
                digest = field(shown.text, "digest") if shown.status_code == 200 else ""
                answer = await visitor.post("/portal/save", wanted | {"digest": digest})
                status = answer.status_code
        assert (status, "OperationInProgress" in answer.text) == (409, True)
        await made.settled()

    play(tmp_path, story)


def test_what_needs_no_deployment_is_saved_at_once(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields, there = await rows(visitor)
        shown = await visitor.post("/portal/plan", sent(fields, there))
        assert "nothing to do" in shown.text
        answer = await visitor.post("/portal/save", sent(fields, there, digest=field(shown.text, "digest")))
        assert (answer.status_code, answer.headers["hx-retarget"]) == (200, "#locations")
        assert 'id="locations-form"' in answer.text

    play(tmp_path, story)


# ===== traffic manager


async def profile(visitor: Visitor) -> dict[str, str]:
    """The profile's form as the page has it."""
    tree, _ = markup.parsed((await visitor.get("/portal/traffic-manager")).text)
    fields = {}
    for each in tree.iter():
        if each.attrib.get("name") and each.attrib.get("type") != "checkbox" and "value" in each.attrib:
            fields[each.attrib["name"]] = each.attrib["value"]
        if markup.tag(each) == "select":
            chosen = [option for option in each if "selected" in option.attrib]
            fields[each.attrib["name"]] = "".join(chosen[0].itertext())
    return fields


def test_the_profile_comes_back_as_it_was_shown(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        before = await made.plane.traffic_manager()
        answer = await visitor.post("/portal/traffic-manager", await profile(visitor), hx=False)
        assert (answer.status_code, markup.faults(answer.text)) == (200, [])
        assert await made.plane.traffic_manager() == before

    play(tmp_path, story, "westeurope")


def test_the_profile_is_changed_and_its_times_with_it(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields = await profile(visitor) | {"ttl": "7", "interval": "2", "timeout": "0.5", "tolerated": "1"}
        told = await visitor.post("/portal/traffic-manager/timing", fields)
        assert (told.status_code, "12 s" in told.text) == (200, True)  # (1 + 1) * 2 + 0.5 + 7 = 11.5
        assert (await made.plane.failover_times()).worst != 11.5
        answer = await visitor.post("/portal/traffic-manager", fields, hx=False)
        assert (answer.status_code, "Saved." in answer.text) == (200, True)
        assert (await made.plane.failover_times()).worst == 11.5
        stale = await visitor.post("/portal/traffic-manager", fields | {"ttl": "9"}, hx=False)
        assert stale.status_code == 412

    play(tmp_path, story, "westeurope")


def test_what_is_wrong_stands_at_its_field_with_what_was_typed(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        fields = await profile(visitor) | {"timeout": "9", "interval": "5", "path": "no slash", "ttl": "77"}
        answer = await visitor.post("/portal/traffic-manager", fields, hx=False)
        assert (answer.status_code, markup.faults(answer.text)) == (400, [])
        assert 'id="timeout-error"' in answer.text
        assert 'id="path-error"' in answer.text
        assert 'value="no slash"' in answer.text
        assert 'value="77"' in answer.text
        for field_ in ("ttl", "interval", "tolerated"):
            for nonsense in ("nan", "1e999", "", "<b>", "9" * 400):
                again = await visitor.post("/portal/traffic-manager", fields | {field_: nonsense}, hx=False)
                assert (again.status_code, markup.faults(again.text)) == (400, []), (field_, nonsense)
                assert (await visitor.post("/portal/traffic-manager/timing", fields | {field_: nonsense})).status_code == 400

    play(tmp_path, story)


# ===== when it fails


def test_what_is_not_there(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        for visitor in (Visitor(made.app), await operator(made)):
            for path in ("/portal/x", "/portal/login/x", "/portal/%00", "/portal/scale-and-pricing/x", "/portal/" + "x" * 5000):
                answer = await visitor.get(path)
                assert (answer.status_code, markup.faults(answer.text)) == (404, []), path
            assert (await visitor.client.request("PUT", "/portal/x")).status_code == 404
        assert (await visitor.get("/portal")).headers["location"] == "/portal/"
        assert (await visitor.get("/portal/operations/unknown/events")).status_code == 404

    play(tmp_path, story)


def test_a_bug_is_told_by_a_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(made: Service) -> None:
        visitor = await operator(made)
        monkeypatch.setattr(made.plane, "profile", lambda: {}["the secret of the house"])
        page = await visitor.get("/portal/traffic-manager")
        assert (page.status_code, markup.faults(page.text), "secret" in page.text) == (500, [], False)
        assert "InternalError" in page.text

    play(tmp_path, story)


def test_a_store_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lbcore.errors import ServiceError

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


def test_a_form_that_does_not_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.portal.routes.LARGEST", 10_000)

    async def story(made: Service) -> None:
        visitor = await operator(made)
        assert (await visitor.post("/portal/plan", {"row": "x" * 20_000})).status_code == 400
        assert (await visitor.post("/portal/plan", {f"f{number}": "" for number in range(1500)})).status_code == 400
        answer = await visitor.client.post("/portal/plan", content=b"\xff\xfe", headers={"X-CSRF-Token": visitor.csrf})
        assert isinstance(answer, httpx.Response)
        assert answer.status_code == 400

    play(tmp_path, story)
