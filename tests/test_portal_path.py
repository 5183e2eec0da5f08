"""The portal's whole path with real processes and a real browser: sign in, add two regions, see them come up, delete one, lose the primary.

`lbcore run` with a local provisioner is the primary, another one the front door and the DNS server, Debian's Chromium the operator.
Set LBCORE_SHOTS to a folder to keep screenshots of every page and stage, at 390 and 1440 pixels, light and dark.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import deployment
import pytest
from deployment import Lab, until

async_api = pytest.importorskip("playwright.async_api")

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1")]
WAIT = 60_000  # ms
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
LISTEN = "window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(`${e.violatedDirective} ${e.sourceFile}`));"
EUROPE, ASIA = "81.2.69.0/24", "126.0.0.0/24"
OURS = "sha256-47DEQpj8HBSa"  # an empty style, which Playwright sets to take a picture
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
DOCUMENT = {
    "apis": [
        *deployment.HELLO["apis"],
        {"name": "orders", "display_name": "Orders", "version": "v1", "path": "/orders", "backend": "orders",
         "operations": [{"name": "get", "method": "GET", "path": "/{id}"}, {"name": "create", "method": "POST", "path": "/"}]},
    ],
    "backends": [{"name": "orders", "urls": ["http://127.0.0.1:9"]}],
}  # fmt: skip


class Operator:
    """Somebody with a browser, and with a camera."""

    def __init__(self, tab: Any, folder: Path) -> None:
        self.tab, self._folder, self.errors = tab, folder, list[str]()
        tab.on("console", lambda message: self._said(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self._said(str(error)))

    def _said(self, text: str) -> None:
        if OURS not in text:
            self.errors.append(text)

    async def click(self, name: str) -> None:
        await self.tab.get_by_role("button", name=name, exact=True).click()

    async def add(self, location: str, units: int = 1) -> None:
        await self.click("+ Add region")
        await self.tab.get_by_label("Location", exact=True).select_option(location)
        await self.tab.get_by_label("Units").fill(str(units))
        await self.click("Add")

    async def keys(self, *names: str) -> None:
        for name in names:
            await self.tab.keyboard.press(name)

    async def deploy(self) -> None:
        """From the plan to the end of the deployment, whose outcome stays on the page."""
        acknowledge = self.tab.get_by_label("I know")
        if await acknowledge.count():
            await acknowledge.check()
        await self.click("Deploy")
        await self.tab.wait_for_selector("#deployment .progress")

    async def rows(self) -> list[str]:
        names = self.tab.locator("#locations-table tbody .shown-name")
        return [text.strip() for text in await names.all_inner_texts()]

    async def shot(self, name: str) -> None:
        if "LBCORE_SHOTS" in os.environ:
            await self.tab.screenshot(path=self._folder / f"{name}.png", full_page=True)

    async def looks(self, name: str) -> None:
        """Take pictures, see that nothing is wider than the screen, and that axe finds nothing."""
        axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
        for width, height in ((1440, 900), (390, 844)):
            await self.tab.set_viewport_size({"width": width, "height": height})
            assert await self.tab.evaluate("document.documentElement.scrollWidth") <= width, name
            for scheme in ("light", "dark"):
                await self.tab.emulate_media(color_scheme=scheme)
                await self.shot(f"{name}-{width}-{scheme}")
            found = (await axe.run(self.tab, options=RULES)).response["violations"]
            assert [(name, one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []
        await self.tab.set_viewport_size({"width": 1440, "height": 900})
        await self.tab.emulate_media(color_scheme="light")


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Give what opens tabs of one Chromium, all with the same cookies."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs the program chromium")
    async with async_api.async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        context = await chromium.new_context(base_url=url, reduced_motion="reduce")
        context.set_default_timeout(WAIT)
        await context.add_init_script(LISTEN)
        yield context.new_page
        await chromium.close()


async def sign_in(tab: Any, lab: Lab, role: str) -> None:
    await tab.goto("/portal/scale-and-pricing")
    await tab.get_by_label("Token").fill(lab.tokens[role])
    await tab.get_by_role("button", name="Sign in").click()
    await tab.wait_for_url("**/portal/scale-and-pricing")


async def site(tab: Any, told: str) -> None:
    """Wait until the open map shows a region so, without loading the page again."""
    await tab.locator(f'#map .site title:text-is("{told}")').wait_for(state="attached")


async def left(tab: Any, selector: str, count: int) -> None:
    """Wait until there are only so many of these."""
    await until(lambda: _is(tab.locator(selector).count(), count), f"{count} of {selector}")


def test_the_whole_path(tmp_path: Path) -> None:
    folder = Path(os.environ.get("LBCORE_SHOTS", tmp_path))

    async def story() -> None:
        async with (
            deployment.service(tmp_path, "westus2", document=DOCUMENT, primary={"management": {"hold": 0.0}}) as lab,
            browser(lab.url) as open_tab,
        ):
            await path(lab, Operator(await open_tab(), folder), Operator(await open_tab(), folder))

    asyncio.run(story())


async def path(lab: Lab, ana: Operator, wall: Operator) -> None:
    """ana works on the pages, wall shows the Overview all the time."""
    await ana.tab.goto("/portal/")
    await ana.looks("login")
    await sign_in(ana.tab, lab, "operator")
    await wall.tab.goto("/portal/")
    await site(wall.tab, "West US 2, primary: Online")
    (home,) = await until(lambda: lab.dns(EUROPE), "the only region is in DNS")

    # two more, by one Save
    await ana.add("westeurope")
    await ana.click("+ Add region")
    await ana.tab.get_by_label("Location", exact=True).select_option("eastasia")
    await ana.looks("editor")
    await ana.click("Cancel")
    await ana.add("eastasia", 2)
    await ana.looks("drafts")
    assert await lab.dns(EUROPE) == (home,)  # drafts are the page's own (R12)
    await ana.click("Save")
    await ana.tab.wait_for_selector("#plan-heading >> text=2 to add")
    await ana.looks("plan")
    await ana.deploy()
    await ana.shot("progress-1440-light")
    await ana.tab.wait_for_selector("#deployment >> text=Succeeded")
    await ana.tab.wait_for_selector("#locations-form:not([inert])")
    assert await ana.rows() == ["West US 2", "West Europe", "East Asia"]
    await site(wall.tab, "West Europe: Online")
    await site(wall.tab, "East Asia: Online")
    addresses = await lab.addresses()
    (europe,), (asia,) = addresses["westeurope"], addresses["eastasia"]
    await until(lambda: _is(lab.dns(EUROPE), (europe,)), "Europe is sent to West Europe")
    await until(lambda: _is(lab.dns(ASIA), (asia,)), "Japan is sent to East Asia")
    await until(lambda: dig(lab, ASIA) in ([asia], []), "dig says the same")  # old and new workers may answer for a moment
    await ana.looks("deployed")

    # what else there is
    await pages(ana)
    await wall.tab.wait_for_selector("#edges >> text=fresh")
    await wall.looks("overview")

    # one goes, by the keyboard alone
    await ana.tab.goto("/portal/scale-and-pricing")
    await ana.tab.get_by_label("Actions for East Asia").focus()
    await ana.keys("Enter", "Tab", "Tab", "Enter")
    await ana.tab.wait_for_selector("#confirm[open]")
    await ana.looks("confirm")
    await ana.tab.get_by_role("button", name="Confirm").press("Enter")
    assert await lab.dns(ASIA) == (asia,)  # not before Save
    await ana.tab.get_by_role("button", name="Save", exact=True).press("Enter")
    await ana.tab.wait_for_selector("#plan-heading >> text=1 to delete")
    await ana.looks("plan-delete")
    await ana.deploy()
    await left(ana.tab, "#locations-table tbody tr", 2)
    assert await ana.rows() == ["West US 2", "West Europe"]
    await left(wall.tab, "#map .site", 2)
    await until(lambda: _is_not(lab.dns(ASIA), asia), "East Asia is out of DNS")
    await until(lambda: asia not in dig(lab, ASIA), "dig finds it no more")
    assert lab.process("eastasia") is None

    # the primary dies
    assert (ana.errors, wall.errors) == ([], [])
    if "LBCORE_SHOTS" not in os.environ:
        assert await ana.tab.evaluate("refused") == await wall.tab.evaluate("refused") == []
    lab.primary.kill(group=True)
    lab.kill("westus2")
    await wall.tab.wait_for_selector("[data-live=lost] >> text=No connection since")
    await wall.looks("outage")
    await ana.click("Save")
    await ana.tab.wait_for_selector("#offline >> text=cannot be reached")
    with pytest.raises(async_api.Error, match="ERR_CONNECTION_REFUSED"):
        await ana.tab.goto("/portal/")
    await until(lambda: _is(lab.dns(ASIA), (europe,)), "all are sent to West Europe")
    assert await lab.dns(EUROPE) == (europe,)
    answer = await lab.get("/hello")
    assert (answer.status_code, answer.text, answer.headers["x-lbcore-region"]) == (200, "hello", "westeurope")

    # and is back, with everything as it was
    await lab.primary.start()
    await sign_in(ana.tab, lab, "operator")  # sessions end with the process
    assert await ana.rows() == ["West US 2", "West Europe"]


async def pages(ana: Operator) -> None:
    """The other pages, with the service's own figures."""
    await ana.tab.goto("/portal/explain")
    await ana.tab.get_by_label("Address of a client").fill("81.2.69.160")
    await ana.click("Explain")
    await ana.tab.wait_for_selector("#answer-heading >> text=goes to")
    await ana.looks("explain")
    await ana.tab.goto("/portal/explain?client=nonsense")
    await ana.looks("explain-wrong")
    ana.errors.clear()  # Chromium tells of the status 400
    await ana.tab.goto("/portal/traffic-manager")
    await ana.tab.get_by_label("DNS time to live").fill("3")
    await ana.tab.wait_for_selector("#timing >> text=4.9 s")
    await ana.click("Save")
    await ana.tab.wait_for_selector("text=Saved.")
    await ana.looks("traffic-manager")
    await ana.tab.goto("/developer")
    await ana.tab.wait_for_selector("text=Orders")
    await ana.looks("developer")
    await ana.tab.goto("/portal/nowhere")
    await ana.looks("failure")
    ana.errors.clear()


def dig(lab: Lab, subnet: str) -> list[str]:
    """Ask as operators do; where there is no dig, nothing is found."""
    program = shutil.which("dig")
    if program is None:
        return []
    port = str(lab.ports["edge"][1])
    asked = [program, f"@{lab.host}", "-p", port, "contoso.test", "A", "+short", f"+subnet={subnet}", "+time=5"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.split()


async def _is(answer: Awaitable[Any], wanted: Any) -> bool:
    return bool(await answer == wanted)


async def _is_not(answer: Awaitable[tuple[str, ...]], gone: str) -> bool:
    found = await answer
    return bool(found) and gone not in found
