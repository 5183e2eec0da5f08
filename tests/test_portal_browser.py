"""The portal in a real browser, Debian's Chromium, without a service: the whole path of drafts, the keyboard, a phone, what axe-core finds.

Set LBCORE_SHOTS to a folder to keep screenshots of every page, at 390 and 1440 pixels, light and dark.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import showing

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow
WAIT = 20_000  # ms
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
PATHS = [*showing.PAGES]
LISTEN = "window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(`${e.violatedDirective} ${e.sourceFile}`));"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs the program chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def portal() -> Iterator[Any]:
    with showing.portal() as server:
        yield server


@pytest.fixture
def tab(browser: Any, portal: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tab that fails its test for any error in the console and anything the policy refuses."""
    settings = {"viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(base_url=portal.url, **settings)
    context.set_default_timeout(WAIT)
    page = context.new_page()
    errors: list[str] = []
    page.add_init_script(LISTEN)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    portal.sent.clear()
    yield page
    assert page.evaluate("refused") == []
    context.close()
    assert errors == []


def click(tab: Any, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()


def menu(tab: Any, location: str, item: str) -> None:
    tab.get_by_label(f"Actions for {location}", exact=True).click()
    tab.locator("details[open]").get_by_role("button", name=item).click()


def fill(tab: Any, **settings: Any) -> None:
    if "location" in settings:
        tab.get_by_label("Location", exact=True).select_option(settings["location"])
    tab.get_by_label("Units").fill(str(settings["units"]))
    if "zones" in settings:
        tab.get_by_label("These:").check()
        for zone in settings["zones"]:
            tab.get_by_label(zone, exact=True).check()


def rows(sent: Any) -> list[dict[str, Any]]:
    return [json.loads(row) for row in sent[-1][2]["row"]]


def focused(tab: Any) -> str:
    return str(tab.evaluate("(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || '').trim()"))


def test_the_path_of_an_operator(tab: Any, portal: Any) -> None:
    """Add two, edit one, delete one, Save, acknowledge, Deploy, live progress, the table anew."""
    tab.goto("/portal/scale-and-pricing")
    for settings in ({"location": "japaneast", "units": 3, "zones": "123"}, {"location": "brazilsouth", "units": 1}):
        click(tab, "+ Add region")
        fill(tab, **settings)
        click(tab, "Add")
    menu(tab, "West Europe", "Edit")
    fill(tab, units=6)
    click(tab, "Apply")
    menu(tab, "East Asia", "Delete")
    click(tab, "Confirm")
    assert portal.sent == []  # drafts are the page's own
    assert tab.locator("#draft-count").inner_text() == "4 changes"
    assert [row.get_attribute("data-state") for row in tab.locator("#locations-table tbody tr").all()] == [
        "kept", "draft-change", "draft-delete", "draft-add", "draft-add",
    ]  # fmt: skip
    click(tab, "Save")
    tab.wait_for_selector("#plan-heading")
    path, headers, fields = portal.sent[-1]
    assert (path, headers["X-CSRF-Token"], fields["etag"]) == ("/portal/plan", showing.PAGE.csrf, ['"7-0af3"'])
    assert [(row["name"], row["state"], row["units"], row["zones"]) for row in rows(portal.sent)] == [
        ("West US 2", "kept", 2, []), ("West Europe", "draft-change", 6, ["1", "2", "3"]), ("East Asia", "draft-delete", 1, []),
        ("japaneast", "draft-add", 3, ["1", "2", "3"]), ("brazilsouth", "draft-add", 1, []),
    ]  # fmt: skip
    assert rows(portal.sent)[1]["carried"] == {"geo": {"lat": 52.37, "lon": 4.9}}
    click(tab, "Deploy")
    assert portal.sent[-1][0] == "/portal/plan"  # not before the change of addresses is acknowledged
    tab.get_by_label("I know").check()
    portal.ending.clear()
    click(tab, "Deploy")
    tab.wait_for_selector("#locations-form[inert]")  # nothing is edited while it is deployed
    portal.ending.set()
    tab.wait_for_selector("#deployment .tone-warn >> text=PartiallySucceeded")
    path, _, fields = portal.sent[-1]
    assert (path, fields["digest"], fields["acknowledge"]) == ("/portal/save", ["sha256-1f"], ["true"])
    assert tab.locator("#locations-table tbody tr").count() == 3  # as the server has it now
    assert tab.locator("#draft-count").inner_text() == "No changes"
    assert tab.locator("#locations-form[inert]").count() == 0


def test_a_plan_is_gone_when_the_drafts_change(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    menu(tab, "East Asia", "Delete")
    click(tab, "Confirm")
    click(tab, "Save")
    tab.wait_for_selector("#plan-heading")
    menu(tab, "East Asia", "Undo")
    assert tab.locator("#plan-heading").count() == 0
    assert tab.locator("#draft-count").inner_text() == "No changes"


def test_what_applies_is_asked_and_nothing_else(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    click(tab, "+ Add region")
    assert not tab.locator("#editor-zones").is_visible()
    assert not tab.locator("#editor-network").is_visible()
    tab.get_by_label("Location", exact=True).select_option("japaneast")
    assert tab.locator("#editor-zones").is_visible()
    click(tab, "Cancel")
    tab.get_by_label("Tier").select_option("Standard")
    tab.get_by_label("Virtual network", exact=True).select_option("External")
    click(tab, "+ Add region")
    tab.get_by_label("Location", exact=True).select_option("japaneast")
    assert not tab.locator("#editor-zones").is_visible()
    assert tab.locator("#editor-network").is_visible()
    assert tab.get_by_label("Units").get_attribute("max") == "4"
    click(tab, "Add")
    assert "needs a subnet" in tab.locator("#editor-error").inner_text()
    tab.get_by_label("Subnet").fill("<img src=x onerror=alert(1)>")
    click(tab, "Add")
    assert tab.locator("#locations-table img").count() == 0
    assert tab.locator("text=<img src=x onerror=alert(1)>").is_visible()


def test_a_location_is_offered_once(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    click(tab, "+ Add region")
    fill(tab, location="japaneast", units=1)
    click(tab, "Add")
    click(tab, "+ Add region")
    assert tab.locator("#editor-location option[value=japaneast]").is_disabled()
    click(tab, "Cancel")
    menu(tab, "Japan East", "Delete")
    click(tab, "Confirm")
    click(tab, "+ Add region")
    assert not tab.locator("#editor-location option[value=japaneast]").is_disabled()


def test_units_that_do_not_fit_the_zones_are_refused_at_once(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    click(tab, "+ Add region")
    fill(tab, location="japaneast", units=4, zones="123")
    click(tab, "Add")
    assert tab.locator("#editor").is_visible()
    assert tab.locator("#editor-error").inner_text() == "4 units cannot be spread evenly over 3 zones."


def test_every_violation_is_shown(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    menu(tab, "West US 2", "Edit")
    fill(tab, units=12)
    click(tab, "Apply")
    click(tab, "Save")
    tab.wait_for_selector("#deployment .problem")
    assert [item.inner_text().split()[-2] for item in tab.locator("#deployment .problem li").all()] == [
        "UnitsNotMultipleOfZones", "SubnetLocationMismatch",
    ]  # fmt: skip


def test_the_keyboard_is_enough(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    order = []
    for _ in range(14):
        tab.keyboard.press("Tab")
        order.append(focused(tab))
    assert order[:7] == ["Skip to content", "Overview", "Scale and pricing", "Explain", "Traffic Manager", "Developer portal", "Sign out"]
    assert order[9:] == ["Actions for West US 2", "Actions for West Europe", "Actions for East Asia", "+ Add region", "Save"]
    tab.get_by_label("Actions for East Asia").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    assert (focused(tab), tab.locator("details[open]").count()) == ("Actions for East Asia", 0)
    for key in ("Enter", "Tab", "Tab", "Enter"):
        tab.keyboard.press(key)
    assert tab.locator("#confirm").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#confirm").is_visible()
    assert tab.locator("#locations-table tr[data-state=draft-delete]").count() == 0
    tab.get_by_role("button", name="+ Add region").press("Enter")
    tab.keyboard.press("Escape")
    assert focused(tab) == "+ Add region"


def test_focus_goes_to_the_plan(tab: Any) -> None:
    tab.goto("/portal/scale-and-pricing")
    click(tab, "Save")
    tab.wait_for_selector("#plan-heading")
    tab.wait_for_function("document.activeElement.id === 'plan-heading'")


def test_the_failover_time_follows_the_settings(tab: Any) -> None:
    tab.goto("/portal/traffic-manager")
    tab.get_by_label("DNS time to live").fill("111")
    tab.wait_for_selector("#timing >> text=1 min 51 s")


def test_live_figures_say_when_they_are_not(browser: Any) -> None:
    """The primary goes away under an open page."""
    with showing.portal() as server:
        context = browser.new_context()
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.goto(f"{server.url}/portal/")
        page.wait_for_selector("[data-live=open]")
        away = page.context.new_page()
        away.goto(f"{server.url}/portal/scale-and-pricing")
    page.wait_for_selector("[data-live=lost] >> text=No connection since")
    click(away, "Save")
    away.wait_for_selector("#offline >> text=cannot be reached")
    context.close()


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True, ids=["phone"])
def test_nothing_is_wider_than_a_phone(tab: Any) -> None:
    for path in PATHS:
        tab.goto(path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, path
        if path == "/portal/networked":
            click(tab, "+ Add region")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
            box = tab.locator("#editor").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390


CHECKS = {
    "light": {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}


@pytest.mark.parametrize(
    ("tab", "scheme"),
    [pytest.param({"color_scheme": "light"}, "light"), pytest.param({"color_scheme": "dark"}, "dark", marks=pytest.mark.heavy)],
    indirect=["tab"], ids=["light", "dark"],
)  # fmt: skip
def test_axe_finds_nothing(tab: Any, scheme: str) -> None:
    """WCAG 2 at AA, contrast among it; in the dark, contrast again."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for path in PATHS:
        if path in ("/portal/empty", "/portal/read-only", "/portal/unexplained"):
            continue  # nothing that the others lack
        tab.goto(path)
        if path == "/portal/networked":
            menu(tab, "East Asia", "Delete")
            click(tab, "Confirm")
            click(tab, "Save")
            tab.wait_for_selector("#plan-heading")
        found = axe.run(tab, options=CHECKS[scheme]).response["violations"]
        assert [(path, one["id"], [node["html"][:120] for node in one["nodes"][:4]]) for one in found] == []


def test_axe_would_find_something(tab: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab.goto("/portal/explain")
    tab.evaluate("document.documentElement.removeAttribute('lang')")
    tab.evaluate("const pale = new CSSStyleSheet(); pale.replaceSync('h1 { color: #bbb }'); document.adoptedStyleSheets = [pale]")
    found = {one["id"] for one in axe.run(tab, options=CHECKS["light"]).response["violations"]}
    assert found == {"html-has-lang", "color-contrast"}


@pytest.mark.heavy
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shots(browser: Any, portal: Any, tmp_path: Path, width: int, scheme: str) -> None:
    """Pictures for people to look at."""
    folder = Path(os.environ.get("LBCORE_SHOTS", tmp_path))
    context = browser.new_context(base_url=portal.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    for path in PATHS:
        page.goto(path)
        name = path.strip("/").replace("/", "-")
        page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
    context.close()
