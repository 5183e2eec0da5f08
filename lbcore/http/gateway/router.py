"""Router: which operation of which API a request is for. Compiled once a revision; a look-up takes time for its path, not for the routes.

    host      exact, else the longest `*.suffix`, else any; the first of these with an API at the path decides
    path      of the APIs there, the one whose path is the longest part of the request's, segment by segment
    version   of that API: by the segment after its path, by a header or by a query parameter
    method    its operations and those for any method (`*`); HEAD has GET's, too
    operation of these the most specific template, from the left: literal before `{parameter}` before `/*`; then the method's own

Paths are compared after percent-decoding, once, with regard to case. What two readers could take for two paths is refused with 400:
segments `.` and `..`, empty ones but the last, all of these also before a `;`, encoded slashes, backslashes and control characters,
encodings that are none, what is no UTF-8, and a version that is given twice. `/a;x` and `/A` are other paths than `/a`: a backend that
takes them for the same needs policies that do not depend on the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes

from lbcore.http.message import Request

__all__ = ["ANY", "Match", "Miss", "Route", "Router", "base", "split_template"]

ANY = "*"
_NO_PARAMETERS: Mapping[str, str] = {}
_AMBIGUOUS = re.compile(rb"%(?:2[Ff]|5[Cc]|[01][0-9A-Fa-f]|7[Ff]|(?![0-9A-Fa-f]{2}))|\\")
_LITERAL = re.compile(r"[^\x00-\x20\x7f/\\{}%?#*]*")
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_-]{0,63}\}")
_MOST_SEGMENTS = 64
_MOST_HOSTS = 4096  # spellings of Host that are remembered


class Versioned(Protocol):
    """How an API's version is asked for."""

    @property
    def by(self) -> str:
        """Give "path", "header" or "query"."""

    @property
    def name(self) -> str:
        """Give the header's or parameter's name."""


class Operated(Protocol):
    """An operation of an API."""

    @property
    def name(self) -> str:
        """Give its name."""

    @property
    def method(self) -> str:
        """Give its method, `*` = any."""

    @property
    def path(self) -> str:
        """Give its template, below the API's path."""


class Routed(Protocol):
    """An API: where it is and what it has."""

    @property
    def path(self) -> str:
        """Give the path that its operations stand below."""

    @property
    def version(self) -> str:
        """Give its version, "" = none."""

    @property
    def versioning(self) -> Versioned:
        """Give how that is asked for."""

    @property
    def hosts(self) -> Sequence[str]:
        """Give names, `*.suffix` for all below one; none = any."""

    @property
    def operations(self) -> Sequence[Operated]:
        """Give its operations; none = every method and path."""


class Route:
    """One operation. api: what the API carries; operation: its name, "" when the API has none; base: path that stands above it."""

    def __init__(self, api: Any, operation: str, names: tuple[str, ...], base: bytes, depth: int) -> None:
        self.api, self.operation, self.names, self.base, self.depth = api, operation, names, base, depth

    def below(self, target: bytes) -> bytes:
        """Give what follows the API's path, and its version's segment, in a target that was found to be this route's."""
        if target.startswith(self.base):
            rest = target[len(self.base) :]
        else:  # an encoded spelling of it
            path, mark, query = target.partition(b"?")
            rest = b"/".join([b"", *path.split(b"/")[self.depth :]]) + mark + query
        return rest if rest[:1] == b"/" else b"/" + rest


Match: TypeAlias = tuple[Route, Mapping[str, str]]


class Miss:
    """No operation. status: 400, 404 or 405; why: in a few words; api: where the path led; allow: methods that would do.

    preflight: the match of the method that a CORS preflight request asks about
    """

    def __init__(self, status: int, why: str, api: Any = None, allow: Sequence[str] = (), preflight: Match | None = None) -> None:
        self.status, self.why, self.api, self.allow, self.preflight = status, why, api, allow, preflight


class _Node:
    """A place in a tree of templates."""

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.parameter: _Node | None = None
        self.here: Route | None = None
        self.rest: Route | None = None

    def add(self, segments: Sequence[str], route: Route) -> None:
        """Put a route at a template; the one that was there gives way."""
        node = self
        for segment in segments:
            if segment == ANY:
                node.rest = route
                return
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment.encode(), _Node())
        node.here = route


class _Table:
    """The operations of one version of an API: a tree for each method, and one for the methods that have none."""

    def __init__(self, api: Any, depth: int, methods: dict[bytes, _Node], others: _Node) -> None:
        self.api, self.depth, self.methods, self.others = api, depth, methods, others


class _Place:
    """A segment of the APIs' paths, and the API's versions there: the one without, and those asked for by header or query."""

    def __init__(self) -> None:
        self.below: dict[bytes, _Place] = {}
        self.used = False
        self.table: _Table | None = None
        self.by, self.name = "", b""
        self.versions: dict[bytes, _Table] = {}


class Router:
    """Find routes. apis: each API as the configuration has it, with what its routes shall carry."""

    def __init__(self, apis: Iterable[tuple[Routed, Any]]) -> None:
        self._exact: dict[bytes, _Place] = {}
        self._suffixes: dict[bytes, _Place] = {}
        self._any: _Place = _Place()
        self._known: dict[bytes, tuple[_Place, ...]] = {}
        for api, carried in apis:
            table = _table(api, carried)
            for host in api.hosts or (ANY,):
                self._add(api, host, table)

    def _add(self, api: Routed, host: str, table: _Table) -> None:
        place = self._root(host)
        for segment in base(api):
            place = place.below.setdefault(segment.encode(), _Place())
        place.used = True
        if api.version and api.versioning.by != "path":
            place.by, place.name = api.versioning.by, api.versioning.name.encode()
            place.versions[api.version.encode()] = table
        else:
            place.table = table

    def _root(self, host: str) -> _Place:
        if host == ANY:
            return self._any
        if host.startswith("*."):
            return self._suffixes.setdefault(host[1:].encode(), _Place())
        return self._exact.setdefault(host.encode(), _Place())

    # ---- look up

    def find(self, request: Request) -> Match | Miss:
        """Give the route of a request and the parameters of its path, or why there is none."""
        path = request.target.partition(b"?")[0]
        segments = path.split(b"/")
        if b"%" in path or b"//" in path or b"/." in path or b"/;" in path or b"\\" in path:
            if not _clear(path, segments):
                return Miss(400, "ambiguous path")
        places = self._known.get(request.host) or self._places(request.host)
        end = len(segments)
        if end == 1:
            return Miss(404, "no API here")  # OPTIONS *: the server as a whole is no API's
        for place in places:
            found = place if place.used else None
            depth = at = 1
            while at < end:
                below = place.below.get(segments[at])
                if below is None:
                    break
                at += 1
                place = below
                if place.used:
                    found, depth = place, at
            if found is not None:
                return self._operation(request, found, segments, depth)
        return Miss(404, "no API here")

    def _operation(self, request: Request, place: _Place, segments: list[bytes], depth: int) -> Match | Miss:
        table = place.table
        if place.by:
            given = _given(request, place)
            if len(given) > 1:
                return Miss(400, "more than one version")
            table = place.versions.get(given[0]) if given else table
        if table is None:
            return Miss(404, "no such version")
        end = len(segments)
        if end == depth + 1 and not segments[depth]:
            end = depth  # /orders/ is /orders
        values: list[bytes] = []
        node = table.methods.get(request.method)
        route = _walk(table.others if node is None else node, segments, depth, end, values)
        if route is None:
            return _miss(request, table, segments, end)
        return route, _parameters(route, values)

    def _places(self, host: bytes) -> tuple[_Place, ...]:
        """Give the trees for a host, the most specific first, and remember them."""
        if len(self._known) >= _MOST_HOSTS:
            self._known.clear()
        name = host_name(host)
        keys = (name[at:] for at, letter in enumerate(name) if letter == 0x2E)
        found = [self._exact.get(name), *(self._suffixes.get(key) for key in keys), self._any]
        known = self._known[host] = tuple(place for place in found if place is not None)
        return known


def base(api: Routed) -> tuple[str, ...]:
    """Give the segments that stand above an API's operations: its path, and its version where that is one."""
    path = split_template(api.path)
    return (*path, api.version) if api.version and api.versioning.by == "path" else path


def split_template(text: str) -> tuple[str, ...]:
    """Give the segments of a template: literals, `{parameter}`s and `*` as the last; ValueError for what is none.

    "/" and "" have none; what ends in "/" has an empty one at its end.
    """
    if text in ("", "/"):
        return ()
    segments = tuple(text.split("/")[1:])
    names = [segment for segment in segments if segment.startswith("{")]
    if text[0] != "/" or len(segments) > _MOST_SEGMENTS or len({*names}) != len(names):
        raise ValueError(text)
    if not all(_is_segment(segment, at == len(segments) - 1) for at, segment in enumerate(segments)):
        raise ValueError(text)
    return segments


def host_name(value: bytes) -> bytes:
    """Give the name in a Host field: without port and last dot, lower case."""
    name = value.lower()
    name = name[: name.find(b"]") + 1] if name[:1] == b"[" else name.partition(b":")[0]
    return name.removesuffix(b".")


def _is_segment(text: str, last: bool) -> bool:
    if text.startswith("{"):
        return _PARAMETER.fullmatch(text) is not None
    if text in ("", ANY):
        return last
    return text not in (".", "..") and _LITERAL.fullmatch(text) is not None and text.isprintable()


def _clear(path: bytes, segments: list[bytes]) -> bool:
    """Decode the segments in place; False when somebody could take the path for another one."""
    if _AMBIGUOUS.search(path):
        return False
    segments[:] = [unquote_to_bytes(segment) for segment in segments]
    if b"" in segments[1:-1] or any(_vanishes(segment) for segment in segments):
        return False
    try:
        b"/".join(segments).decode()
    except UnicodeDecodeError:
        return False
    return True


def _vanishes(segment: bytes) -> bool:
    """Say whether nothing, "here" or "up" is left of a segment for servers that cut off parameters (Tomcat: `;x`)."""
    return segment[:1] in (b".", b";") and segment.partition(b";")[0] in (b"", b".", b"..")


def _given(request: Request, place: _Place) -> list[bytes]:
    """Give the versions that a request asks for."""
    if place.by == "header":
        name = place.name.lower()
        return [value for key, value in request.fields if key.lower() == name]
    pairs = (pair.partition(b"=") for pair in request.target.partition(b"?")[2].split(b"&"))
    return [unquote_to_bytes(value) for key, _, value in pairs if unquote_to_bytes(key) == place.name]


def _table(api: Routed, carried: Any) -> _Table:
    above = base(api)
    path = "".join("/" + segment for segment in above).encode()
    routes: dict[str, list[tuple[tuple[str, ...], Route]]] = {}
    for operation in api.operations:
        segments = split_template(operation.path)
        names = tuple(segment[1:-1] for segment in segments if segment.startswith("{"))
        route = Route(carried, operation.name, names, path, len(above) + 1)
        routes.setdefault(operation.method, []).append((segments, route))
    if not api.operations:
        routes[ANY] = [((ANY,), Route(carried, "", (), path, len(above) + 1))]
    methods = {method.encode(): _tree(routes, ANY, method) for method in routes if method not in (ANY, "HEAD")}
    if "HEAD" in routes or "GET" in routes:
        methods[b"HEAD"] = _tree(routes, ANY, "GET", "HEAD")
    return _Table(carried, len(above) + 1, methods, _tree(routes, ANY))


def _tree(routes: Mapping[str, Sequence[tuple[tuple[str, ...], Route]]], *methods: str) -> _Node:
    """Put together the routes of several methods; of those with the same template the last one's counts."""
    tree: _Node = _Node()
    for method in methods:
        for segments, route in routes.get(method, ()):
            tree.add(segments, route)
    return tree


def _walk(node: _Node, segments: list[bytes], at: int, end: int, values: list[bytes]) -> Route | None:
    """Go down a tree; where a literal leads nowhere, the parameter beside it is tried."""
    while at < end:
        segment = segments[at]
        below, parameter, mark = node.literals.get(segment), node.parameter, len(values)
        at += 1
        if below is not None:
            if parameter is None and node.rest is None:
                node = below
                continue
            if (route := _walk(below, segments, at, end, values)) is not None:
                return route
            del values[mark:]
        if parameter is None or not segment:
            return node.rest
        values.append(segment)
        if node.rest is None:
            node = parameter
            continue
        if (route := _walk(parameter, segments, at, end, values)) is not None:
            return route
        del values[mark:]
        return node.rest
    return node.here or node.rest


def _parameters(route: Route, values: list[bytes]) -> Mapping[str, str]:
    return dict(zip(route.names, [value.decode() for value in values], strict=True)) if values else _NO_PARAMETERS


def _miss(request: Request, table: _Table, segments: list[bytes], end: int) -> Miss:
    """Tell another method from another path."""
    allow = sorted(method.decode() for method, tree in table.methods.items() if _walk(tree, segments, table.depth, end, []) is not None)
    if not allow:
        return Miss(404, "no operation here", table.api)
    return Miss(405, "no operation with this method", table.api, allow, _preflight(request, table, segments, end))


def _preflight(request: Request, table: _Table, segments: list[bytes], end: int) -> Match | None:
    asked = request.field(b"access-control-request-method") if request.method == b"OPTIONS" else None
    if asked is None or asked not in table.methods:
        return None
    values: list[bytes] = []
    route = _walk(table.methods[asked], segments, table.depth, end, values)
    return None if route is None else (route, _parameters(route, values))
