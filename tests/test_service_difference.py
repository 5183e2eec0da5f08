"""What a diff of two configurations says: by names, and something exactly when they differ."""

from __future__ import annotations

import copy
import json
from typing import Any

from gatewaying import document
from hypothesis import given
from hypothesis import strategies as st

from lbcore.service.difference import difference

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "b"])
NAMED = st.fixed_dictionaries({"name": st.sampled_from("abc")}, optional={"version": st.sampled_from(["", "v1"]), "path": SCALARS})
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner | NAMED, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(st.sampled_from(["apis", "backends", "policies"]), VALUES | st.lists(NAMED, max_size=3), max_size=3)


def said(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    return [(change.where, change.action, change.before, change.after) for change in difference(before, after)]


def test_changes_are_told_by_names() -> None:
    before = document("http://a", policies={"inbound": [{"policy": "set-header", "name": "x-a", "value": "1"}]})
    before["apis"].append({"name": "orders", "version": "v1", "path": "/o", "backend": "orders"})
    after = copy.deepcopy(before) | {"sequence": 2, "epoch": 5}
    after["apis"][1]["path"] = "/p"
    after["apis"].append({"name": "parts", "path": "/parts", "backend": "orders"})
    after["backends"][0]["urls"] = ["http://a", "http://b"]
    assert said(before, after) == [
        ("apis[orders v1].path", "changed", "/o", "/p"),
        ("apis[parts]", "added", None, {"name": "parts", "path": "/parts", "backend": "orders"}),
        ("backends[orders].urls", "changed", ["http://a"], ["http://a", "http://b"]),
    ]
    assert [(where, action) for where, action, *_ in said(after, before)][1] == ("apis[parts]", "removed")
    after = copy.deepcopy(before)
    after["apis"].reverse()
    assert said(before, after) == [("apis", "moved", ["orders", "orders v1"], ["orders v1", "orders"])]


def test_true_is_not_one_and_numbers_of_revisions_do_not_count() -> None:
    assert said({"a": 1, "epoch": 1}, {"a": True, "epoch": 2}) == [("a", "changed", 1, True)]
    assert said({"a": 1}, {"a": 1.0}) == []


@given(DOCUMENTS, DOCUMENTS)
def test_something_is_said_exactly_when_the_json_differs(before: dict[str, Any], after: dict[str, Any]) -> None:
    same = json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert (difference(before, after) == []) is same
    assert difference(before, before) == []
    assert len(difference(before, after)) == len(difference(after, before))
