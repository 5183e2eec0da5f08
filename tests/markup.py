"""What is wrong with a page's markup: parse errors, names that point nowhere, anything a strict Content-Security-Policy would refuse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tinyhtml5.parser import HTMLParser

XHTML = "{http://www.w3.org/1999/xhtml}"
REFERENCES = ("for", "aria-labelledby", "aria-describedby", "aria-controls")
LINKS = ("href", "src", "action", "formaction", "hx-get", "hx-post", "sse-connect", "data")
VOID_OF_TEXT = ("button", "a", "summary", "label", "legend", "h1", "h2", "h3", "option", "title", "figcaption")


def parsed(html: str) -> tuple[Any, list[str]]:
    """Give the root element and the parse errors of a page, or of a part put into a page."""
    if not html.lstrip().lower().startswith("<!doctype"):
        html = f"<!doctype html><html lang=en><head><title>part</title></head><body>{html}</body></html>"
    parser = HTMLParser()
    root = parser.parse(html)
    return root, [f"{position}: {code}" for position, code, *_ in parser.errors]


def tag(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "#comment"


def skeleton(html: str) -> list[tuple[str, tuple[str, ...]]]:
    """Give every element's name and its attributes' names, in order: what no text may change. Labels of the map depend on their length."""
    root, _ = parsed(html)
    return [(tag(each), tuple(sorted(each.keys()))) for each in root.iter() if tag(each) != "text"]


def faults(html: str) -> list[str]:
    """Give all that is wrong with a page."""
    root, errors = parsed(html)
    return [*errors, *_ids(root), *_policy(root), *_names(root)]


def _ids(root: Any) -> Iterator[str]:
    ids = Counter(each.get("id") for each in root.iter() if each.get("id") is not None)
    yield from (f"id twice: {each}" for each, count in ids.items() if count > 1)
    for each in root.iter():
        for name in REFERENCES:
            for target in (each.get(name) or "").split():
                if target not in ids:
                    yield f"{tag(each)} {name}={target}: there is no such id"


def _policy(root: Any) -> Iterator[str]:
    for each in root.iter():
        name = tag(each)
        if name == "style" or (name == "script" and (each.get("src") is None or (each.text or "").strip())):
            yield f"inline {name}"
        if name in ("iframe", "object", "embed", "base", "frame", "applet"):
            yield f"element {name}"
        for attribute, value in each.items():
            code = value.startswith(("js:", "javascript:")) or (attribute == "hx-trigger" and "[" in value)
            if (code and attribute.startswith("hx-")) or attribute == "style" or attribute.startswith(("on", "hx-on", "hx-vars")):
                yield f"inline {attribute} of {name}"
            if attribute in LINKS and not re.match(r"(/|#|https?://)(?!/)", value):
                yield f"{attribute} of {name} goes to {value!r}"


def _names(root: Any) -> Iterator[str]:
    labelled = {each.get("for") for each in root.iter() if tag(each) == "label"}
    within = {id(inner) for each in root.iter() if tag(each) == "label" for inner in each.iter()}
    for each in root.iter():
        name, text = tag(each), "".join(each.itertext()).strip()
        named = each.get("aria-label") or each.get("aria-labelledby")
        if name in VOID_OF_TEXT and not text and not named:
            yield f"{name} without a text"
        if name in ("input", "select", "textarea", "progress", "meter") and each.get("type") != "hidden":
            if not named and each.get("id") not in labelled and id(each) not in within:
                yield f"{name} {each.get('name') or each.get('id')} without a label"
        if each.get("tabindex") not in (None, "0", "-1"):
            yield f"{name} takes another place in the order of tabs"
        if each.get("role") == "img" and not named and not any(tag(inner) == "title" for inner in each):
            yield f"{name} is an image without a name"
