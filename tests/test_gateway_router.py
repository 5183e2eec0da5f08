"""The router: against a model that looks at every route, and the rules about ambiguous paths one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.router import Miss, Router, split_template
from lbcore.http.message import Request


@dataclass(frozen=True)
class Versioning:
    by: str = "path"
    name: str = ""


@dataclass(frozen=True)
class Operation:
    name: str
    method: str
    path: str


@dataclass(frozen=True)
class Api:
    path: str = ""
    version: str = ""
    versioning: Versioning = Versioning()
    hosts: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    name: str = field(default="", compare=False)


def asked(target: str, method: str = "GET", host: str = "a.test", *fields: tuple[bytes, bytes]) -> Request:
    return Request(method.encode(), target.encode(), [*fields], {b"host": host.encode()}, True, False)


def find(apis: Sequence[Api], request: Request) -> Any:
    """Give (API's number, operation, parameters), or (status, allow)."""
    found = Router([(api, number) for number, api in enumerate(apis)]).find(request)
    if isinstance(found, Miss):
        return found.status, tuple(found.allow)
    return found[0].api, found[0].operation, dict(found[1])


# ===== the model: every route is looked at, and those that fit are sorted


def specificity(host: str, pattern: str) -> int:
    """Give how well a pattern fits a host, -1 = not at all."""
    if pattern == "*":
        return 0
    if pattern.startswith("*."):
        return len(pattern) if host.endswith(pattern[1:]) and len(host) > len(pattern) - 1 else -1
    return 1000 if host == pattern else -1


def below(path: list[str], api: Api) -> list[str] | None:
    above = [part for part in api.path.split("/") if part]
    if api.version and api.versioning.by == "path":
        above.append(api.version)
    return path[len(above) :] if path[: len(above)] == above else None


def fits(template: str, rest: list[str]) -> tuple[list[int], dict[str, str]] | None:
    """Give kinds of the segments (0 literal, 1 parameter, 2 rest, by which templates sort) and the parameters."""
    rest = [] if rest == [""] else rest
    parts = [] if template == "/" else template.split("/")[1:]
    kinds, parameters = list[int](), dict[str, str]()
    for number, part in enumerate(parts):
        if part == "*":
            return [*kinds, 2], parameters
        if number >= len(rest) or (part.startswith("{") and not rest[number]) or (not part.startswith("{") and part != rest[number]):
            return None
        if part.startswith("{"):
            parameters[part[1:-1]] = rest[number]
        kinds.append(int(part.startswith("{")))
    return (kinds, parameters) if len(parts) == len(rest) else None


def allowed(method: str) -> list[str]:
    """Give the methods whose operations a method has, those that count more first."""
    return ["HEAD", "GET", "*"] if method == "HEAD" else [method, "*"]


def candidates(api: Api, method: str, rest: list[str]) -> Iterator[tuple[list[int], int, str, dict[str, str]]]:
    for operation in api.operations or (Operation("", "*", "/*"),):
        fit = fits(operation.path, rest)
        if fit is not None and operation.method in allowed(method):
            yield fit[0], allowed(method).index(operation.method), operation.name, fit[1]


def model(apis: Sequence[Api], request: Request) -> Any:
    host, path = request.host.decode(), [unquote(part) for part in request.target.decode().partition("?")[0].split("/")[1:]]
    query = [pair.partition("=") for pair in request.target.decode().partition("?")[2].split("&")]
    reached = [
        (specificity(host, pattern), -len(rest), number)
        for number, api in enumerate(apis) for pattern in api.hosts or ("*",)
        if specificity(host, pattern) >= 0 and (rest := below(path, api)) is not None
    ]  # fmt: skip
    if not reached:
        return 404, ()
    best = max(reached)[:2]
    here = [apis[number] for *key, number in reached if tuple(key) == best]
    apart = [api for api in here if api.version and api.versioning.by != "path"]
    given = []
    if apart:
        by, name = apart[0].versioning.by, apart[0].versioning.name
        given = [value for key, _, value in query if key == name] if by == "query" else [
            value.decode() for key, value in request.fields if key.decode().lower() == name.lower()]  # fmt: skip
    if len(given) > 1:
        return 400, ()
    plain = [api for api in here if api not in apart]
    chosen = [api for api in apart if api.version == given[0]] if given else plain
    if not chosen:
        return 404, ()
    [api] = chosen
    rest = below(path, api)
    assert rest is not None
    found = sorted(candidates(api, request.method.decode(), rest), key=lambda candidate: candidate[:2])
    if found:
        return apis.index(api), found[0][2], found[0][3]
    methods = {operation.method for operation in api.operations} - {"*"}
    methods |= {"HEAD"} if "GET" in methods else set()
    allow = tuple(sorted(method for method in methods if any(candidates(api, method, rest))))
    return (405, allow) if allow else (404, ())


# ===== random routes: few words, so that they meet

WORDS = ("a", "b", "ab", "v1", "é")
METHODS = ("GET", "POST", "HEAD", "*")
SEGMENT = st.sampled_from([*WORDS, *WORDS, "{p}", "{q}", "{r}"])


@st.composite
def templates(draw: st.DrawFn) -> str:
    parts = draw(st.lists(SEGMENT, max_size=4))
    names = [part for part in parts if part.startswith("{")]
    parts = [f"{{p{n}}}" if part.startswith("{") else part for n, part in enumerate(parts)] if len({*names}) < len(names) else parts
    return "/" + "/".join(parts + draw(st.sampled_from(([], [], ["*"], [""] if parts else []))))


@st.composite
def an_api(draw: st.DrawFn) -> dict[str, Any]:
    version = draw(st.sampled_from(("", "", "v1", "v2")))
    versioning = draw(st.sampled_from(({"by": "path"}, {"by": "header", "name": "Api-Version"}, {"by": "query", "name": "ver"})))
    paths = draw(st.lists(templates(), min_size=1, max_size=4))
    operations = draw(st.lists(st.tuples(st.sampled_from(METHODS), st.sampled_from(paths)), max_size=8))
    return {
        "path": draw(st.sampled_from(("", "/a", "/a/b", "/b", "/é"))), "version": version, "versioning": versioning if version else {},
        "hosts": draw(st.lists(st.sampled_from(("a.test", "b.a.test", "*.test", "*.a.test")), max_size=2, unique=True)),
        "operations": [{"name": f"o{n}", "method": method, "path": path} for n, (method, path) in enumerate(operations)],
    }  # fmt: skip


def without_overlaps(entries: list[dict[str, Any]]) -> list[Api]:
    """Leave out what a configuration may not hold."""
    kept: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        trial = [*kept, entry | {"name": f"n{number}", "backend": "b"}]
        shapes = ["".join((one["method"], *("{" if p.startswith("{") else "/" + p for p in one["path"].split("/")[1:])))
                  for one in entry["operations"]]  # fmt: skip
        entry["operations"] = [one for at, one in enumerate(entry["operations"]) if shapes[at] not in shapes[:at]]
        trial[-1]["operations"] = entry["operations"]
        try:
            Configuration.from_mapping({"epoch": 1, "sequence": 1, "apis": trial, "backends": [{"name": "b", "urls": ["http://x"]}]})
        except Exception as error:
            assert "of its own" in str(error) or "at the same path" in str(error), error
        else:
            kept = trial
    return [
        Api(entry["path"], entry["version"], Versioning(**entry["versioning"]), tuple(entry["hosts"]),
            tuple(Operation(**one) for one in entry["operations"]), entry["name"]) for entry in kept
    ]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> Request:
    parts = draw(st.lists(st.sampled_from((*WORDS, "v2", "x")), max_size=6))
    path = "/" + "/".join(quote(part) for part in parts) + draw(st.sampled_from(("", "", "/" if parts else "")))
    query = draw(st.sampled_from(("", "", "?ver=v1", "?ver=v3&x", "?ver=v1&ver=v1")))
    fields = draw(st.lists(st.sampled_from(((b"api-version", b"v1"), (b"Api-Version", b"v2"), (b"x", b"y"))), max_size=2))
    return asked(path + query, draw(st.sampled_from(("GET", "POST", "HEAD", "PUT"))), draw(st.sampled_from(HOSTS)), *fields)


HOSTS = ("a.test", "b.a.test", "c.b.a.test", "test", "z.test", "other")


@settings(max_examples=150, deadline=None)
@given(st.lists(an_api(), min_size=1, max_size=5), st.lists(requests(), min_size=5, max_size=20))
def test_the_router_finds_what_a_model_finds(entries: list[dict[str, Any]], all_requests: list[Request]) -> None:
    apis = without_overlaps(entries)
    for request in all_requests:
        assert find(apis, request) == model(apis, request), (apis, request.method, request.target, request.host, request.fields)


# ===== what is ambiguous


@pytest.mark.parametrize("path", [
    "/a/../b", "/a/./b", "/..", "/.", "/a/..", "/a/%2e%2E/b", "/a/.%2e/b", "/%2e", "/a/..;/b", "/a/..;x=1/b", "/a/%2e%2e;/b", "/a/.;/b",
    "/a//b", "//a", "//", "/a//", "/a/%2fb", "/a/%2Fb", "/a\\b", "/a/%5cb", "/a/%00", "/a/%0a", "/a/%1F", "/a/%7f", "/a/%", "/a/%4",
    "/a/;x/b", "/;/a", "/a/;", "/a/%3bx/b", "/a/%zz", "/a/%u0041", "/a/%ff", "/a/%c3", "/a/%c0%af", "/a/%ed%a0%80",
])  # fmt: skip
def test_what_could_be_two_paths_is_refused(path: str) -> None:
    everything = Api()
    assert find([everything], asked(path)) == (400, ())
    assert find([everything], asked(f"/x?y={path.replace('?', '')}"))[1] == ""  # in a query it is no path


@pytest.mark.parametrize(("path", "value"), [
    ("/a/.b", ".b"), ("/a/...", "..."), ("/a/b;x=..", "b;x=.."), ("/a/%25", "%"), ("/a/%252e%252e", "%2e%2e"), ("/a/%C3%A9", "é"),
    ("/a/%20", " "), ("/a/a+b", "a+b"), ("/a/%3f", "?"), ("/%61/x", "x"), ("/a/~", "~"), ("/a/%7E", "~"),
])  # fmt: skip
def test_parameters_are_decoded_once(path: str, value: str) -> None:
    apis = [Api("/a", operations=(Operation("one", "GET", "/{id}"),))]
    assert find(apis, asked(path)) == (0, "one", {"id": value})


@given(st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_whatever_text_a_segment_is_it_comes_out_as_it_was(text: str) -> None:
    found = find([Api("/a", operations=(Operation("one", "GET", "/{id}"),))], asked("/a/" + quote(text, safe="")))
    assert found == ((400, ()) if text.partition(";")[0] in ("", ".", "..") else (0, "one", {"id": text}))


@settings(max_examples=300)
@given(st.binary(max_size=30).map(lambda data: "/" + data.decode("latin-1")), st.sampled_from(("GET", "OPTIONS", "X")))
@example("/a/%", "GET")
def test_no_target_makes_it_raise(target: str, method: str) -> None:
    apis = [Api("/a", operations=(Operation("one", "GET", "/{id}"),)), Api("", "v1", Versioning("query", "v"))]
    Router([(api, None) for api in apis]).find(Request(method.encode(), target.encode("latin-1"), [], {b"host": b"x"}, True, False))


@pytest.mark.parametrize("template", [
    "a", "/a/{b}/{b}", "/{}", "/{a", "/a{b}", "/{a}.json", "/*/a", "/a*", "/..", "/a/./b", "/a//b", "/a b", "/a?b", "/a#b", "/a%20b",
    "/{1a}", "/\x00", "/a\\b", "/" + "a/" * 70,
])  # fmt: skip
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(ValueError):
        split_template(template)


# ===== rules by example


def test_a_literal_goes_before_a_parameter_and_a_dead_end_is_left() -> None:
    operations = (
        Operation("me", "GET", "/me/profile"), Operation("orders", "GET", "/{id}/orders"), Operation("rest", "GET", "/*"),
        Operation("put", "PUT", "/{id}/profile"),
    )  # fmt: skip
    api = [Api("/users", operations=operations)]
    assert find(api, asked("/users/me/profile")) == (0, "me", {})
    assert find(api, asked("/users/me/orders")) == (0, "orders", {"id": "me"})
    assert find(api, asked("/users/me/x")) == (0, "rest", {})
    assert find(api, asked("/users/me/profile", "PUT")) == (0, "put", {"id": "me"})
    assert find(api, asked("/users/me/profile", "DELETE")) == (405, ("GET", "HEAD", "PUT"))


def test_what_a_dead_end_saw_is_no_parameter() -> None:
    operations = (Operation("one", "GET", "/a/{x}/b"), Operation("two", "GET", "/{y}/{z}/c"), Operation("rest", "GET", "/{y}/*"))
    api = [Api(operations=operations)]
    assert find(api, asked("/a/1/b")) == (0, "one", {"x": "1"})
    assert find(api, asked("/a/1/c")) == (0, "two", {"y": "a", "z": "1"})
    assert find(api, asked("/a/1/d")) == (0, "rest", {"y": "a"})


def test_a_parameter_is_never_empty() -> None:
    paths = ("/{id}", "/{id}/{part}", "/{id}/x/parts/")
    api = [Api("/a", operations=tuple(Operation(path, "GET", path) for path in paths))]
    assert find(api, asked("/a/")) == find(api, asked("/a/1/")) == find(api, asked("/a/1/x/parts")) == (404, ())
    assert find(api, asked("/a/1/x/parts/")) == (0, "/{id}/x/parts/", {"id": "1"})


def test_hosts_with_ports_capitals_and_last_dots() -> None:
    apis = [Api(hosts=("a.test",)), Api(hosts=("*.a.test",)), Api(hosts=("[::1]",)), Api("/any")]
    for host, number in (("A.Test:8080", 0), ("a.test.", 0), ("x.y.A.test", 1), ("[::1]:80", 2), ("[::1]", 2)):
        assert find(apis, asked("/", host=host))[0] == number
    assert find(apis, asked("/", host="b.test")) == (404, ())
    assert find(apis, asked("/any", host=""))[0] == 3


def test_remembering_hosts_is_bounded() -> None:
    router = Router([(Api(), None)])
    for number in range(10_000):
        assert not isinstance(router.find(asked("/", host=f"h{number}")), Miss)
    assert len(router._known) <= 4096


def test_a_preflight_request_leads_to_the_operation_it_asks_about() -> None:
    router = Router([(Api("/a", operations=(Operation("put", "PUT", "/{id}"),)), "api")])
    missed = router.find(asked("/a/1", "OPTIONS", "x", (b"Access-Control-Request-Method", b"PUT")))
    assert isinstance(missed, Miss) and missed.status == 405 and missed.preflight is not None
    assert missed.preflight[0].operation == "put" and missed.preflight[1] == {"id": "1"}
    other = router.find(asked("/a/1", "OPTIONS", "x", (b"Access-Control-Request-Method", b"DELETE")))
    assert isinstance(other, Miss) and other.preflight is None


@pytest.mark.parametrize(("target", "rest"), [
    ("/a/v1/x?y=/z", "/x?y=/z"), ("/a/v1", "/"), ("/a/v1/", "/"), ("/a/v1?x", "/?x"), ("/%61/v1/%41", "/%41"), ("/a/%761", "/"),
    ("/a/%761?x/y", "/?x/y"),
])  # fmt: skip
def test_what_is_left_of_the_target_below_the_api(target: str, rest: str) -> None:
    found = Router([(Api("/a", "v1"), None)]).find(asked(target))
    assert not isinstance(found, Miss) and found[0].below(target.encode()) == rest.encode()
