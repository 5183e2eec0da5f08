"""Configuration: what a gateway serves, read from a document; everything that is wrong with one is reported at once.

    document (mapping, JSON, TOML) -> plain JSON types -> canonical JSON, SHA-256
                                            |
                                            +-> shape (`document`) -> policies -> what takes a look at more than one key
Nothing here knows which gateway it is for: what depends on that is found by `revision`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lbcore.errors import ConfigError, Violation, nearest, shown
from lbcore.http.gateway.document import ApiEntry, BackendEntry, Document, OperationEntry, Section
from lbcore.http.gateway.router import ANY, base, split_template
from lbcore.http.message import SPECIAL_OF_REQUEST
from lbcore.http.policies import Policies, read_policies
from lbcore.region import canonical

__all__ = ["MOST_BYTES", "Configuration"]

MOST_BYTES = 4 << 20
MOST_OPERATIONS = 100_000
_DEEPEST = 32
_MOST_VIOLATIONS = 1000
_FIND_BACKENDS = frozenset(("mock-response", "return-response", "set-backend"))  # policies that make up for an API without a backend
_WHOLE = "the document"
S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One immutable configuration of APIs, backends and policies.

    epoch, sequence: together the revision; a gateway only ever goes to a greater one
    sha256: hexadecimal, of `canonical`: the document as JSON with sorted keys, no blanks, UTF-8
    api_policies: of each API, in the order of `apis`
    Raises ConfigError with every violation, whatever it is made from. regions: names of the service's regions, which backends may
    name and must have URLs for; none = any.
    """

    epoch: int
    sequence: int
    apis: tuple[ApiEntry, ...]
    backends: tuple[BackendEntry, ...]
    policies: Policies
    api_policies: tuple[Policies, ...]
    canonical: bytes = field(repr=False)
    sha256: str

    @property
    def revision(self) -> str:
        """Give the revision as responses have it: "1.7"."""
        return f"{self.epoch}.{self.sequence}"

    @classmethod
    def from_mapping(cls, document: object, *, regions: Iterable[str] = ()) -> Configuration:
        """Read a document that was parsed already."""
        violations: list[Violation] = []
        plain = _plain(document, "", violations, 0)
        if violations or not isinstance(plain, dict):
            raise _error(violations or [Violation(_WHOLE, shown(document), "a table")])
        written = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(written) > MOST_BYTES:
            raise _error([Violation(_WHOLE, f"{len(written)} bytes as JSON", f"at most {MOST_BYTES}")])
        return _Reader(plain, [canonical(region) for region in regions]).read(written)

    @classmethod
    def from_json(cls, data: bytes, *, regions: Iterable[str] = ()) -> Configuration:
        """Read JSON in UTF-8. A key that stands twice in a table is a violation: readers differ in which one counts (RFC 8259 §4)."""
        twice: list[str] = []
        try:
            document = json.loads(_text(data), object_pairs_hook=lambda pairs: _table(pairs, twice))
        except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
            raise _error([Violation(_WHOLE, shown(data[:100]), f"JSON ({str(error) or 'nested too deeply'})")]) from None
        if twice:
            raise _error([Violation(_WHOLE, key, "a key that stands once in its table") for key in twice])
        return cls.from_mapping(document, regions=regions)

    @classmethod
    def from_toml(cls, data: bytes, *, regions: Iterable[str] = ()) -> Configuration:
        """Read TOML."""
        try:
            document = tomllib.loads(_text(data))
        except (ValueError, RecursionError) as error:
            raise _error([Violation(_WHOLE, shown(data[:100]), f"TOML ({str(error) or 'nested too deeply'})")]) from None
        return cls.from_mapping(document, regions=regions)

    @classmethod
    def from_file(cls, path: Path, *, regions: Iterable[str] = ()) -> Configuration:
        """Read a file, JSON when its name ends in .json, else TOML; OSError when it cannot be read."""
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        return (cls.from_json if path.suffix == ".json" else cls.from_toml)(data, regions=regions)


def _text(data: bytes) -> str:
    if len(data) > MOST_BYTES:
        raise _error([Violation(_WHOLE, f"{len(data)} bytes", f"at most {MOST_BYTES}")])
    return data.decode()


def _table(pairs: Sequence[tuple[str, object]], twice: list[str]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice += [key for key in table if keys.count(key) > 1][: _MOST_VIOLATIONS]
    return table


def _plain(value: object, where: str, violations: list[Violation], depth: int) -> Any:
    """Give a value in JSON's types; what has no place in JSON becomes a violation. 1.0 is 1, as RFC 8785 has it."""
    if depth > _DEEPEST:
        violations.append(Violation(where, shown(value), f"tables nested at most {_DEEPEST} deep"))
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _is_text(key):
                violations.append(Violation(where or _WHOLE, shown(key), "keys that are text"))
        return {str(key): _plain(each, f"{where}.{key}" if where else str(key), violations, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{number}]", violations, depth + 1) for number, each in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if value is None or isinstance(value, bool) or isinstance(value, int) and abs(value) < 2**63:
        return value
    if not isinstance(value, str) or not _is_text(value):
        violations.append(Violation(where or _WHOLE, shown(value), "JSON: text, a number, true, false, null, a list or a table"))
    return value


def _is_text(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True


class _Reader:
    """Read one document. regions: canonical names, none = any."""

    def __init__(self, document: dict[str, Any], regions: Sequence[str]) -> None:
        self._document, self._regions = document, regions
        self._violations: list[Violation] = []

    def read(self, written: bytes) -> Configuration:
        """Give the configuration; ConfigError with everything that is wrong with it."""
        head = self._model(Document, self._document, "")
        backends = self._entries(BackendEntry, "backends")
        apis = self._entries(ApiEntry, "apis")
        policies = self._policies(self._document.get("policies", {}), "policies")
        of_apis = [self._policies(api.policies, f"{where}.policies") for where, api in apis]
        self._check_tables(policies, *of_apis)
        self._check_backends(backends)
        self._check_apis(apis, of_apis, policies)
        self._check_places(apis)
        if self._violations or head is None:
            raise _error(self._violations)
        return Configuration(
            head.epoch, head.sequence, tuple(api for _, api in apis), tuple(backend for _, backend in backends), policies,
            tuple(of_apis), written, hashlib.sha256(written).hexdigest(),
        )  # fmt: skip

    # ---- shape

    def _entries(self, model: type[S], key: str) -> list[tuple[str, S]]:
        listed = self._document.get(key)
        read = []
        for number, entry in enumerate(listed if isinstance(listed, list) else ()):
            where = f"{key}[{number}]"
            if (made := self._model(model, entry, where)) is not None:
                read.append((where, made))
        return read

    def _model(self, model: type[S], value: object, where: str) -> S | None:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self._violations += [_violation(model, where, found) for found in error.errors(include_url=False, include_context=False)]
            return None

    def _policies(self, table: object, where: str) -> Policies:
        policies, violations = read_policies(table, where)
        self._violations += violations
        return policies

    def _wrong(self, where: str, value: object, expected: str, near: str | None = None) -> None:
        self._violations.append(Violation(where, shown(value), expected, near))

    def _once(self, entries: Iterable[tuple[str, Any]], what: str) -> None:
        """Let every value stand once. entries: where, value."""
        first: dict[Any, str] = {}
        for where, value in entries:
            if (seen := first.setdefault(value, where)) != where:
                self._wrong(where, value, f"{what} used once; {seen} has it already")

    # ---- what takes a look at more than one key

    def _check_backends(self, backends: Sequence[tuple[str, BackendEntry]]) -> None:
        self._once(((f"{where}.name", backend.name) for where, backend in backends), "a name")
        for where, backend in backends:
            lists = [(f"{where}.urls", backend.urls)]
            lists += [(f"{where}.regions.{region}", urls) for region, urls in backend.regions.items()]
            for at, urls in lists:
                self._once(((f"{at}[{number}]", url) for number, url in enumerate(urls)), "a URL")
            self._check_regions(where, backend)

    def _check_regions(self, where: str, backend: BackendEntry) -> None:
        if not backend.urls and not any(backend.regions.values()):
            self._wrong(f"{where}.urls", backend.urls, "at least one URL, here or for some region")
        self._check_names(where, backend.regions)
        without = {*self._regions} - {canonical(name) for name, urls in backend.regions.items() if urls}
        if without and not backend.urls and any(backend.regions.values()):
            self._wrong(f"{where}.urls", backend.urls, f"at least one URL, for {', '.join(sorted(without))} has none")

    def _check_names(self, where: str, table: Iterable[str]) -> None:
        """Let a table by regions name each once, and those that there are."""
        self._once(((f"{where}.regions.{name}", canonical(name)) for name in table), "a region")
        for name in table if self._regions else ():
            if canonical(name) not in self._regions:
                near = next(iter(nearest(canonical(name), self._regions)), None)
                self._wrong(f"{where}.regions.{name}", name, f"one of the regions {', '.join(self._regions)}", near)

    def _check_tables(self, *scopes: Policies) -> None:
        for scope in scopes:
            for where, policy in (*scope.inbound, *scope.backend, *scope.outbound, *scope.on_error):
                if isinstance(table := getattr(policy, "regions", None), Mapping):
                    self._check_names(where, table)

    def _check_apis(self, apis: Sequence[tuple[str, ApiEntry]], policies: Sequence[Policies], everywhere: Policies) -> None:
        self._once(((f"{where}.name", f"{api.name} {api.version}".rstrip()) for where, api in apis), "a name and version")
        self._check_backends_named()
        for (where, api), own in zip(apis, policies, strict=True):
            if not api.backend and not _kinds(everywhere, own) & _FIND_BACKENDS and not self._spoilt(f"{where}.policies", "policies"):
                self._wrong(f"{where}.backend", None, "the name of a backend, or a policy set-backend, mock-response or return-response")
            self._check_versioning(where, api)
            self._once(((f"{where}.operations[{n}].name", operation.name) for n, operation in enumerate(api.operations)), "a name")
            self._once(_shapes(where, api.operations), "a method and path (whatever its parameters are called)")
        if sum(len(api.operations) for _, api in apis) > MOST_OPERATIONS:
            self._wrong("apis", f"{sum(len(api.operations) for _, api in apis)} operations", f"at most {MOST_OPERATIONS} in all")

    def _check_backends_named(self) -> None:
        """Look for the backends of all APIs, also of those with something else wrong, among all names that backends have."""
        known = {name for _, entry in self._listed("backends") if isinstance(name := entry.get("name"), str)}
        for number, entry in self._listed("apis"):
            name = entry.get("backend")
            if isinstance(name, str) and name and name not in known:
                near = next(iter(nearest(name, known)), None)
                self._wrong(f"apis[{number}].backend", name, "the name of one of the backends", near)

    def _listed(self, key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        listed = self._document.get(key)
        yield from ((at, entry) for at, entry in enumerate(listed if isinstance(listed, list) else ()) if isinstance(entry, Mapping))

    def _spoilt(self, *places: str) -> bool:
        """Say whether something was found wrong below one of these key paths: who knows what was meant there."""
        return any(violation.where.startswith(places) for violation in self._violations)

    def _check_versioning(self, where: str, api: ApiEntry) -> None:
        by, name = api.versioning.by, api.versioning.name
        if by == "path" and name:
            self._wrong(f"{where}.versioning.name", name, 'no name where by is "path"')
        elif by != "path" and not name:
            self._wrong(f"{where}.versioning.name", name, f"the name of the {by}{' parameter' if by == 'query' else ''}")
        elif by == "header" and name.lower().encode() in SPECIAL_OF_REQUEST:
            self._wrong(f"{where}.versioning.name", name, "a header that is passed on end to end")

    def _check_places(self, apis: Sequence[tuple[str, ApiEntry]]) -> None:
        """Refuse APIs that the same request could be for."""
        places: dict[tuple[str, tuple[str, ...], str], str] = {}
        schemes: dict[tuple[str, tuple[str, ...]], tuple[str, tuple[str, str]]] = {}
        for where, api in apis:
            apart = api.versioning.by != "path" and api.version
            for host in dict.fromkeys(api.hosts or (ANY,)):
                seen = places.setdefault((host, base(api), api.version if apart else ""), where)
                if seen != where:
                    self._wrong(f"{where}.path", api.path, f"a host, path and version of its own; {seen} is at {_placed(host, api)}, too")
                    break
                scheme = api.versioning.by, api.versioning.name.lower() if api.versioning.by == "header" else api.versioning.name
                first, other = schemes.setdefault((host, base(api)), (where, scheme)) if apart else (where, scheme)
                if other != scheme:
                    self._wrong(f"{where}.versioning", " ".join(scheme), f"as {first}, at the same path, has it: {' '.join(other)}")
                    break


def _placed(host: str, api: ApiEntry) -> str:
    version = f" version {api.version}" if api.version and api.versioning.by != "path" else ""
    return f"{'' if host == ANY else host}/{'/'.join(base(api))}{version}"


def _kinds(*scopes: Policies) -> set[str]:
    return {policy.kind for scope in scopes for section in (scope.inbound, scope.backend) for _, policy in section}


def _shapes(where: str, operations: Sequence[OperationEntry]) -> Iterator[tuple[str, str]]:
    for number, operation in enumerate(operations):
        segments = ("{}" if segment.startswith("{") else segment for segment in split_template(operation.path))
        yield f"{where}.operations[{number}].path", f"{operation.method} /{'/'.join(segments)}"


# ===== what pydantic says, in our words


def _violation(model: type[BaseModel], where: str, found: Any) -> Violation:
    at = _joined(where, found["loc"])
    here = model
    expected, known = "a table", [*model.model_fields]
    for part in found["loc"]:
        if isinstance(part, str) and part in here.model_fields:
            info = here.model_fields[part]
            expected = info.description or ""
            inner = [*_models(info.annotation)]
            here = inner[0] if inner else here
            known = [*here.model_fields]
    if found["type"] == "extra_forbidden":
        near = next(iter(nearest(str(found["loc"][-1]), known)), None)
        return Violation(at, shown(found["input"]), "a known key" if near else f"one of the keys {', '.join(sorted(known))}", near)
    return Violation(at, None if found["type"] == "missing" else shown(found["input"]), expected)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _joined(where: str, parts: Sequence[str | int]) -> str:
    text = where
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text or _WHOLE


def _error(violations: Sequence[Violation]) -> ConfigError:
    """Give the error, its violations in the order of the document's lists."""
    ordered = sorted(violations, key=_place)
    if len(ordered) > _MOST_VIOLATIONS:
        rest = len(ordered) - _MOST_VIOLATIONS
        ordered = [*ordered[:_MOST_VIOLATIONS], Violation(_WHOLE, f"{rest} more", "none")]
    return ConfigError(ordered)


def _place(violation: Violation) -> list[tuple[int, str]]:
    """Give what sorts violations by the numbers in their key paths."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"[\[\].]+", violation.where)]
