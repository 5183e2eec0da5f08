"""Configurations: every violation at once, with key path, value, expectation and nearest choice; anything else is never raised."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from gatewaying import document
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.errors import ConfigError
from lbcore.http.gateway import Configuration, Gateway
from lbcore.http.gateway.configuration import MOST_BYTES


def violations(found: object, **options: Any) -> dict[str, tuple[object, str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        Configuration.from_mapping(found, **options)
    return {each.where: (each.value, each.expected, each.nearest) for each in caught.value.violations}


def wrong(**more: Any) -> list[str]:
    return [*violations(document(**more))]


def api(**more: Any) -> dict[str, Any]:
    return {"name": "orders", "path": "/orders", "backend": "orders"} | more


def test_a_configuration_says_which_one_it_is() -> None:
    made = Configuration.from_mapping(document(sequence=7, epoch=3))
    assert (made.revision, made.epoch, made.sequence, len(made.apis), len(made.backends)) == ("3.7", 3, 7, 1, 1)
    assert json.loads(made.canonical) == document(sequence=7, epoch=3)


def test_json_toml_and_mappings_of_the_same_content_have_the_same_hash(tmp_path: Path) -> None:
    text = """
        epoch = 1
        sequence = 7
        [[apis]]
        name = "orders"
        path = "/orders"
        backend = "orders"
        policies.outbound = [{ policy = "set-header", name = "x-a", value = "é" }]
        [[backends]]
        name = "orders"
        urls = ["http://127.0.0.1:9"]
        probe = { interval = 5.0 }
    """
    made = Configuration.from_toml(text.encode())
    plain = json.loads(made.canonical)
    (tmp_path / "a.json").write_bytes(json.dumps(plain, indent=2).encode())
    (tmp_path / "a.toml").write_text(text)
    others = [
        Configuration.from_mapping(dict(reversed(plain.items()))), Configuration.from_json(json.dumps(plain).encode()),
        Configuration.from_file(tmp_path / "a.json"), Configuration.from_file(tmp_path / "a.toml"),
        Configuration.from_json(json.dumps(plain).replace('"interval": 5', '"interval": 5.0').encode()),
    ]  # fmt: skip
    assert {other.sha256 for other in others} == {made.sha256}
    assert Configuration.from_mapping(plain | {"sequence": 8}).sha256 != made.sha256


def test_every_violation_is_reported_at_once() -> None:
    found = violations({
        "epoch": "1", "sequence": -1, "what": 1,
        "apis": [
            {"name": "a b", "path": "x", "zzz": 1, "backend": "order", "operations": [{"name": "q", "method": "get", "path": "/{a}/{a}"}]},
            {"name": "b", "backend": "order", "path": "/b"}, {"name": "c", "backend": "order", "path": "/x/"},
            api(path="/e", operations=[{"name": "x", "method": "GET", "path": "/{a}"}, {"name": "x", "method": "GET", "path": "/{b}"}]), 5,
        ],
        "backends": [{"name": "orders", "urls": ["ftp://x", "http://a/../b"], "probe": {"interval": 0}}, {"name": "q"}],
        "policies": {"inbond": [], "inbound": [{"policy": "set-heder"}]},
    })  # fmt: skip
    assert [*found] == [
        "apis[0].backend", "apis[0].name", "apis[0].operations[0].method", "apis[0].operations[0].path", "apis[0].path", "apis[0].zzz",
        "apis[1].backend", "apis[2].backend", "apis[2].path", "apis[3].operations[1].name", "apis[3].operations[1].path", "apis[4]",
        "backends[0].probe.interval", "backends[0].urls[0]", "backends[0].urls[1]", "backends[1].urls", "epoch", "policies.inbond",
        "policies.inbound[0].policy", "sequence", "what",
    ]  # fmt: skip
    assert found["apis[1].backend"] == ("order", "the name of one of the backends", "orders")
    assert found["policies.inbound[0].policy"][2] == "set-header" and found["policies.inbond"][2] == "inbound"
    assert found["backends[0].probe.interval"][:2] == (0, "seconds within 0.05..3600")
    assert all(expected for _, expected, _ in found.values())


@pytest.mark.parametrize(("more", "where"), [
    ({"apis": [api(), api(path="/b")]}, "apis[1].name"),
    ({"apis": [api(version="v1"), api(version="v1", path="/b")]}, "apis[1].name"),
    ({"apis": [api(), api(name="b")]}, "apis[1].path"),
    ({"apis": [api(hosts=["a.test", "b.test"]), api(name="b", hosts=["c.test", "A.test"])]}, "apis[1].path"),
    ({"apis": [api(version="v1"), api(name="b", path="/orders/v1")]}, "apis[1].path"),
    ({"apis": [api(backend="")]}, "apis[0].backend"),
    ({"apis": [api(backend="Orders")]}, "apis[0].backend"),
    ({"apis": [api(hosts=["a.test:80"])]}, "apis[0].hosts[0]"),
    ({"apis": [api(hosts=["http://a"])]}, "apis[0].hosts[0]"),
    ({"apis": [api(hosts=["*"])]}, "apis[0].hosts[0]"),
    ({"apis": [api(hosts=["a.*.test"])]}, "apis[0].hosts[0]"),
    ({"apis": [api(hosts=[f"h{n}.test" for n in range(101)])]}, "apis[0].hosts"),
    ({"apis": [api(path="/{a}")]}, "apis[0].path"),
    ({"apis": [api(path="/a/*")]}, "apis[0].path"),
    ({"apis": [api(path="/a%20b")]}, "apis[0].path"),
    ({"apis": [api(version="..")]}, "apis[0].version"),
    ({"apis": [api(version="a/b")]}, "apis[0].version"),
    ({"apis": [api(version="v1", versioning={"by": "header"})]}, "apis[0].versioning.name"),
    ({"apis": [api(version="v1", versioning={"by": "header", "name": "Host"})]}, "apis[0].versioning.name"),
    ({"apis": [api(version="v1", versioning={"by": "path", "name": "x"})]}, "apis[0].versioning.name"),
    ({"apis": [api(version="v1", versioning={"by": "cookie"})]}, "apis[0].versioning.by"),
    ({"apis": [api(version="v1", versioning={"by": "query", "name": "v"}),
               api(version="v2", versioning={"by": "header", "name": "v"})]}, "apis[1].versioning"),
    ({"apis": [api(operations=[{"name": "a", "method": "CONNECT"}])]}, "apis[0].operations[0].method"),
    ({"apis": [api(operations=[{"name": "a"}])]}, "apis[0].operations[0].method"),
    ({"apis": [api(operations=[{"name": "a", "method": "GET", "path": ""}])]}, "apis[0].operations[0].path"),
    ({"apis": [api(policies=[])]}, "apis[0].policies"),
    ({"apis": [api(policies={"outbound": [{"policy": "set-header", "name": "x y", "value": ""}]})]}, "apis[0].policies.outbound[0].name"),
    ({"apis": {}}, "apis"),
    ({"backends": [{"name": "orders", "urls": ["http://a"]}, {"name": "orders", "urls": ["http://b"]}]}, "backends[1].name"),
    ({"backends": [{"name": "orders", "urls": ["http://a", "http://a"]}]}, "backends[0].urls[1]"),
    ({"backends": [{"name": "orders", "urls": ["http://a"] * 65}]}, "backends[0].urls"),
    ({"backends": [{"name": "orders", "urls": ["http://a?b"]}]}, "backends[0].urls[0]"),
    ({"backends": [{"name": "orders", "urls": ["http://u:p@a"]}]}, "backends[0].urls[0]"),
    ({"backends": [{"name": "orders", "urls": ["http://a:70000"]}]}, "backends[0].urls[0]"),
    ({"backends": [{"name": "orders", "urls": ["http://a:0"]}]}, "backends[0].urls[0]"),
    ({"backends": [{"name": "orders", "regions": {"West US": ["http://a"], "westus": ["http://b"]}}]}, "backends[0].regions.westus"),
    ({"epoch": True}, "epoch"), ({"sequence": 1.5}, "sequence"), ({"sequence": 2**53}, "sequence"), ({"policies": None}, "policies"),
])  # fmt: skip
def test_one_thing_that_is_wrong(more: dict[str, Any], where: str) -> None:
    assert where in wrong(**more)


@pytest.mark.parametrize("more", [
    {"apis": [api(hosts=["a.test"]), api(name="b", hosts=["b.test"]), api(name="c")]},
    {"apis": [api(version=v, versioning={"by": "header", "name": "Api-Version"}) for v in ("v1", "v2")] + [api(name="none")]},
    {"apis": [api(version="v1"), api(version="v2"), api()]},
    {"apis": [api(hosts=["*.A.test", "[::1]", "127.0.0.1"], path="/é/ü")]},
    {"apis": [], "backends": []},
    {"backends": [{"name": "orders", "urls": ["https://[::1]:8443/a/b"], "regions": {"West US": ["http://x.test"]}}]},
    {"apis": [api(operations=[{"name": "a", "method": "GET", "path": "/{a}"}, {"name": "b", "method": "*", "path": "/{a}"},
                              {"name": "c", "method": "PROPFIND"}])]},
])  # fmt: skip
def test_what_is_sound(more: dict[str, Any]) -> None:
    Gateway("westeurope").apply(document(**more))


def test_backends_of_regions_that_are_known() -> None:
    backends = [{"name": "orders", "regions": {"westeurop": ["http://a"], "East US": ["http://b"]}}]
    found = violations(document(backends=backends), regions=("westeurope", "East US", "japaneast"))
    assert found["backends[0].regions.westeurop"][2] == "westeurope"
    assert "japaneast, westeurope" in found["backends[0].urls"][1]


def test_what_is_no_json_is_named_where_it_stands() -> None:
    found = violations({"epoch": float("nan"), "a": [datetime.date(2026, 1, 1)], "b": {"c": b"x", 5: 1}, "d": "\ud800", "e": 2**80})
    assert {*found} == {"epoch", "a[0]", "b.c", "b", "d", "e"}
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    assert [*violations(deep)] == [".".join(["a"] * 33)]


def test_sizes() -> None:
    fine = document(apis=[api(display_name="x" * 300)])
    Configuration.from_mapping(fine)
    big = "x" * (MOST_BYTES - 10)
    assert "bytes" in str(violations({"epoch": 1, "sequence": 1, "display": big})["the document"][0])
    with pytest.raises(ConfigError, match="at most"):
        Configuration.from_json(b" " * (MOST_BYTES + 1))
    many = [{"name": f"o{n}", "method": "GET", "path": f"/{n}"} for n in range(60_000)]
    assert wrong(apis=[api(operations=many), api(name="b", path="/b", operations=many)]) == ["the document"]


def test_a_thousand_violations_are_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        Configuration.from_mapping(document(apis=[api(name="")] * 5000))
    assert len(caught.value.violations) == 1001 and "more" in str(caught.value.violations[-1].value)


@pytest.mark.parametrize("data", [
    b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b"null", b"[]", b'{"epoch": 1, "epoch": 2}', b"\xef\xbb\xbf{}",
    b'{"epoch": NaN}', b'{"epoch": 1e999}', b'{"a": "\\ud800"}',
])  # fmt: skip
def test_bytes_that_are_no_document(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Configuration.from_json(data)
    with pytest.raises(ConfigError):
        Configuration.from_toml(data)


# ===== whatever comes, ConfigError is all there is, and the old one keeps serving

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from([
    "epoch", "sequence", "apis", "backends", "policies", "name", "urls", "regions", "probe", "path", "method", "version", "versioning",
    "by", "interval", "hosts", "operations", "inbound", "outbound", "policy", "when", "value", "backend",
])  # fmt: skip
ANYTHING = st.recursive(
    SCALARS | st.sampled_from(["orders", "set-header", "GET", "/a/{b}", "http://a", "header"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=6), max_leaves=25,
)  # fmt: skip


def swapped(base: Any, path: list[int], value: Any) -> Any:
    """Put a value somewhere into a document."""
    if not path or not isinstance(base, dict | list) or not base:
        return value
    if isinstance(base, dict):
        key = [*base][path[0] % len(base)]
        return base | {key: swapped(base[key], path[1:], value)}
    at = path[0] % len(base)
    return [*base[:at], swapped(base[at], path[1:], value), *base[at + 1 :]]


SOUND = document(apis=[api(
    version="v1", versioning={"by": "header", "name": "v"}, hosts=["a.test"],
    operations=[{"name": "get", "method": "GET", "path": "/{id}"}], policies={"inbound": [
        {"policy": "set-header", "name": "x", "value": "y", "when": 'request.method == "GET"'}]},
)])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(ANYTHING | st.builds(swapped, st.just(SOUND), st.lists(st.integers(0, 9), max_size=6), ANYTHING))
def test_any_document_is_applied_or_refused_whole(found: Any) -> None:
    gateway = Gateway("westeurope")
    before = gateway.apply(document(epoch=0, sequence=0))
    try:
        after = gateway.apply(found)
    except ConfigError as error:
        assert error.violations and gateway.revision is before
        assert str(error)
    else:
        assert gateway.revision is after


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (Configuration.from_json, Configuration.from_toml):
        try:
            read(data)
        except ConfigError as error:
            assert error.violations
