"""Pages of the portal: valid, under a strict policy, and unmoved by any text."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("tinyhtml5")

import showing
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined, UndefinedError
from markup import faults, parsed, skeleton, tag

from lbcore.service.portal import HEADERS, destination, event, part, render
from lbcore.service.portal import views as v
from lbcore.service.portal.pages import NAVIGATION, PAGES, PARTS, _environment

MARKUP = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "</title></textarea></select><svg onload=x>",
    "{{ 7*7 }}{% raw %}", "${7*7}", "]]>", "&lt;b&gt;", "a\r\n\r\ndata: <b>", "'; DROP TABLE regions; --", "../../etc/passwd", "<!--",
)  # fmt: skip
HOSTILE = (" ".join(MARKUP), "javascript:alert(1)", "js:alert(1)", "\x00\x1b[31m\x7f\u202egnp.exe\ud800\uffff", "<x" * 60)


@pytest.mark.parametrize("name", [*showing.PAGES, *showing.PARTS])
def test_page_is_sound(name: str) -> None:
    assert faults(dict(showing.everything())[name]) == []


@pytest.mark.parametrize("view", ["part of " + name for name in PARTS])
def test_every_part_can_stand_alone(view: str) -> None:
    name = view.removeprefix("part of ")
    samples = {v.Overview: showing.overview, v.ScaleAndPricing: showing.locations, v.Timing: lambda: showing.TIMING}
    make = showing.PARTS.get(name) or samples[PARTS[name]]
    assert faults(part(name, make(), showing.PAGE)) == []
    with pytest.raises(TypeError, match=PARTS[name].__name__):
        part(name, v.Login(), showing.PAGE)  # type: ignore[arg-type]


def views() -> list[object]:
    return [view() for _, view in showing.PAGES.values()] + [view() for view in showing.PARTS.values()]


def shown(view: object, page: v.Page) -> str:
    if type(view) in PAGES:
        return render(page, view)  # type: ignore[arg-type]
    return "".join(part(name, view, page) for name, kind in PARTS.items() if kind is type(view))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_no_text_changes_the_markup(number: int) -> None:
    text = HOSTILE[number]
    for view in views():
        assert_harmless(view, text)


@settings(max_examples=settings().max_examples // 4)
@given(st.text(st.characters(codec=None), min_size=1, max_size=40))
def test_any_text_is_shown_as_text(text: str) -> None:
    assert_harmless(showing.explain(), text)


def assert_harmless(view: object, text: str) -> None:
    around = showing.spoilt(showing.PAGE, text)
    html = shown(showing.spoilt(view, text), dataclasses.replace(around, role="operator"))
    plain = shown(showing.spoilt(view, "n" * len(text)), dataclasses.replace(around, role="operator"))
    assert skeleton(html) == skeleton(plain)
    html.encode()  # whatever a JSON body may carry can be sent
    assert not [fault for fault in faults(html) if "twice" not in fault]


def test_a_hostile_text_is_still_readable() -> None:
    view = dataclasses.replace(showing.overview(), notices=(v.Notice("Error", "<b>East & West</b>"),))
    notice = next(each for each in parsed(part("notices", view))[0].iter() if tag(each) == "p")
    assert notice.text == "<b>East & West</b>"


def test_an_address_that_is_no_address_is_no_link() -> None:
    bad = dataclasses.replace(showing.failure(), elsewhere="javascript:alert(1)")
    assert "javascript:" not in render(showing.PAGE, bad)
    assert "http://127.0.0.1:9180/portal/" in render(showing.PAGE, showing.failure())


def test_templates_escape_and_know_all_names() -> None:
    environment = _environment()
    assert environment.autoescape is True
    assert environment.undefined is StrictUndefined
    sources = [environment.loader.get_source(environment, name)[0] for name in environment.list_templates()]  # type: ignore[union-attr]
    assert not [source for source in sources if "|safe" in source or "| safe" in source or "autoescape false" in source]
    with pytest.raises(UndefinedError):
        environment.from_string("{{ view.missing }}").render(view=showing.overview())


def test_policy_allows_nothing_inline_and_nobody_else() -> None:
    policy = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src", "form-action")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"


def test_forms_that_change_something_carry_the_token() -> None:
    for path in showing.PAGES:
        root, _ = parsed(showing.page(path))
        body = next(each for each in root.iter() if tag(each) == "body")
        for form in (each for each in root.iter() if tag(each) == "form"):
            sent = {each.get("name"): each.get("value") for each in form.iter() if tag(each) == "input"}
            if form.get("method") == "post":
                assert sent["csrf"] == showing.PAGE.csrf
            elif form.get("method") not in ("get", "dialog"):
                assert showing.PAGE.csrf in body.get("hx-headers")


def test_nobody_who_is_not_signed_in_sees_the_navigation() -> None:
    html = render(v.Page("contoso", "West US 2", "/portal/login"), v.Login())
    assert not [path for path, _ in NAVIGATION if f'href="{path}"' in html]


def test_a_reader_is_offered_no_change() -> None:
    html = showing.page("/portal/read-only")
    assert 'data-action="add"' not in html
    assert ">Save<" not in html


def test_scale_and_pricing_offers_what_may_be_added() -> None:
    view = showing.locations()
    root, _ = parsed(showing.page("/portal/scale-and-pricing"))
    select = next(each for each in root.iter() if each.get("id") == "editor-location")
    offered = {each.get("value") for each in select.iter() if tag(each) == "option"} - {""}
    assert offered == {offer.name for offer in view.offers}
    slider = next(each for each in root.iter() if each.get("id") == "editor-units")
    assert (slider.get("min"), slider.get("max")) == ("1", "12")
    assert any(each.get("id") == "locations-table" for each in root.iter())


def test_the_primary_cannot_be_deleted() -> None:
    root, _ = parsed(showing.page("/portal/scale-and-pricing"))
    rows = [each for each in root.iter() if tag(each) == "tr" and each.get("data-state") == "kept"]
    deletes = ["delete" in [inner.get("data-action") for inner in row.iter()] for row in rows]
    assert deletes == [False, True, True]


def test_vip_changes_must_be_acknowledged_before_deploy() -> None:
    root, _ = parsed(part("plan", showing.plan()))
    box = next(each for each in root.iter() if each.get("name") == "acknowledge")
    assert box.get("required") is not None
    calm = dataclasses.replace(showing.plan(), vip_changes=())
    assert "acknowledge" not in part("plan", calm)
    nothing = part("plan", v.Plan("d", "e"))
    assert "nothing to do" in nothing
    assert "disabled>Deploy" in nothing


@pytest.mark.parametrize(
    "path",
    [
        "https://elsewhere.test/portal/", "//elsewhere.test/portal/", "/\\elsewhere.test",
        "/portal/../login", "javascript:alert(1)", "", "/portal/ ",
    ],
)
def test_signing_in_leads_nowhere_else(path: str) -> None:
    assert destination(path) == "/portal/"


def test_signing_in_leads_back() -> None:
    assert destination("/portal/explain?client=203.0.113.7") == "/portal/explain?client=203.0.113.7"
    assert destination("/portal/explain?client=a\r\nSet-Cookie: b") == "/portal/explain?client=a%0D%0ASet-Cookie%3A%20b"


def test_only_a_running_operation_is_followed() -> None:
    assert "sse-connect" in part("progress", showing.progress())
    assert "sse-connect" not in part("progress", showing.progress("Succeeded"))


@given(st.text())
def test_an_event_gives_back_its_text(html: str) -> None:
    html = html.encode("utf-8", "replace").decode()
    head, *lines, last, end = event("map", html).decode().split("\n")
    assert (head, last, end) == ("event: map", "", "")
    assert all(line.startswith("data: ") for line in lines)
    assert "\n".join(line[6:] for line in lines) == html.replace("\r\n", "\n").replace("\r", "\n")
