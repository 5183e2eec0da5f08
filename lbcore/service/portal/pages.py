"""Pages: views to HTML. Every text is escaped, every name a template uses must exist, nothing is inline: the pages work under HEADERS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lbcore.service.portal import assets, charts, map, views, words
from lbcore.service.portal.form import Draft

__all__ = ["HEADERS", "PARTS", "destination", "event", "part", "render"]

# For every page. What is loaded, sent and called is the portal's own; no page may stand in another's frame.
HEADERS: Mapping[str, str] = MappingProxyType({
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
})  # fmt: skip

PAGES: Mapping[type, str] = {
    views.Login: "login.html", views.Overview: "overview.html", views.ScaleAndPricing: "locations.html", views.Explain: "explain.html",
    views.TrafficManager: "traffic_manager.html", views.DeveloperPortal: "developer.html", views.Failure: "failure.html",
}  # fmt: skip
PARTS: Mapping[str, type] = {
    "notices": views.Overview, "map": views.Overview, "regions": views.Overview, "groups": views.Overview, "charts": views.Overview,
    "edges": views.Overview, "events": views.Overview, "locations": views.ScaleAndPricing, "plan": views.Plan,
    "progress": views.Progress, "steps": views.Progress,
    "problem": views.Problem, "timing": views.Timing,
}  # fmt: skip
NAVIGATION = (
    ("/portal/", "Overview"), ("/portal/scale-and-pricing", "Scale and pricing"), ("/portal/explain", "Explain"),
    ("/portal/traffic-manager", "Traffic Manager"), ("/developer", "Developer portal"),
)  # fmt: skip


def render(page: views.Page, view: views.View) -> str:
    """Give the whole page that shows a view."""
    return _environment().get_template(PAGES[type(view)]).render(page=page, view=view)


def part(name: str, view: views.Part, page: views.Page | None = None) -> str:
    """Give one part of a page, for htmx to put in the place of the old one; name: of PARTS. "locations" needs the page, too."""
    if not isinstance(view, PARTS[name]):
        raise TypeError(f"part {name!r} shows {PARTS[name].__name__}, got {type(view).__name__}")
    return _environment().get_template(f"parts/{name}.html").render(page=page, view=view)


def destination(path: str) -> str:
    """Give where to go after signing in: the path, when it is one of the portal's pages, else the Overview. Never another site's."""
    page, mark, query = path.partition("?")
    known = page in {"/portal/locations", *(each for each, _ in NAVIGATION)}
    return page + mark + quote(query, safe="=&%+") if known else NAVIGATION[0][0]


def event(name: str, html: str) -> bytes:
    """Give a server-sent event whose data is the HTML.

    Source: WHATWG HTML, "Server-sent events": a line feed, carriage return or both end a line.
    """
    lines = html.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join([f"event: {name}\n", *(f"data: {line}\n" for line in lines), "\n"]).encode()


# What HTML cannot hold or nobody can see: control characters, halves of surrogate pairs, and what turns the direction of the text about.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def _shown(value: Any) -> Any:
    """Give a text with a replacement character for what cannot be shown; other values as they are."""
    if not isinstance(value, str) or UNSEEN.search(value) is None:
        return value
    return type(value)(UNSEEN.sub("\ufffd", value))


@cache
def _environment() -> Environment:
    """Build it once: templates are compiled as they are first used."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "ms": words.ms, "percent": words.percent, "seconds": words.seconds, "clock": words.clock, "stamp": words.stamp,
        "tone": words.tone, "subnet": words.subnet, "figure": "{:g}".format, "iso": datetime.isoformat,
        "segment": lambda text: quote(text, safe="", errors="replace"),
    }  # fmt: skip
    environment.globals |= {
        "asset": assets.url, "ago": words.ago, "navigation": NAVIGATION, "world": map.world, "sparkline": charts.sparkline,
        "latency_chart": charts.latency, "share_chart": charts.share, "bar": charts.bar, "bands": words.BANDS,
        "blank_row": views.LocationRow(Draft("", "draft-add"), ""), "map_size": (map.WIDTH, map.HEIGHT),
    }  # fmt: skip
    return environment
