"""Read the policies of a configuration's scope: typed policies, and every violation at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lbcore.errors import Violation, nearest, shown
from lbcore.http.policies.kinds import broken, registry
from lbcore.http.policies.policy import SECTIONS, Policy

__all__ = ["Policies", "read_policies"]


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one scope by section, each with the key path where it stands."""

    inbound: tuple[tuple[str, Policy], ...] = ()
    backend: tuple[tuple[str, Policy], ...] = ()
    outbound: tuple[tuple[str, Policy], ...] = ()
    on_error: tuple[tuple[str, Policy], ...] = ()


def read_policies(document: object, where: str = "policies") -> tuple[Policies, list[Violation]]:
    """Read a table of sections, each a list of tables with the key `policy`. where: its key path, which opens every violation.

    A policy with a violation is left out of the result.
    """
    if not isinstance(document, Mapping):
        return Policies(), [Violation(where, shown(document), f"a table of {', '.join(SECTIONS)}")]
    violations: list[Violation] = []
    for key in document:
        if key not in SECTIONS:
            near = next(iter(nearest(str(key), SECTIONS)), None)
            violations.append(Violation(f"{where}.{key}", shown(document[key]), f"one of {', '.join(SECTIONS)}", near))
    read = {section: tuple(_section(document.get(section, []), section, f"{where}.{section}", violations)) for section in SECTIONS}
    return Policies(**read), violations


def _section(entries: object, section: str, where: str, violations: list[Violation]) -> Iterator[tuple[str, Policy]]:
    if not isinstance(entries, list | tuple):
        violations.append(Violation(where, shown(entries), "a list of tables, each with the key policy"))
        return
    for number, entry in enumerate(entries):
        at = f"{where}[{number}]"
        found = _kind(entry, section, at)
        if isinstance(found, Violation):
            violations.append(found)
            continue
        try:
            yield at, found.model_validate({key: value for key, value in entry.items() if key != "policy"}, context={"section": section})
        except ValidationError as error:
            violations += [_violation(found, at, each) for each in error.errors(include_url=False)]


def _kind(entry: object, section: str, at: str) -> type[Policy] | Violation:
    known = registry()
    here = sorted(kind for kind, policy in known.items() if section in policy.sections)
    if not isinstance(entry, Mapping):
        return Violation(at, shown(entry), "a table with the key policy")
    kind = entry.get("policy")
    if isinstance(kind, str) and kind in known:
        if section in known[kind].sections:
            return known[kind]
        return Violation(f"{at}.policy", kind, f"a policy for {section}: {', '.join(here)}")
    if isinstance(kind, str) and kind in broken():
        return Violation(f"{at}.policy", kind, f"a policy that can be loaded ({broken()[kind]})")
    near = next(iter(nearest(kind, known)), None) if isinstance(kind, str) else None
    return Violation(f"{at}.policy", shown(kind), f"one of {', '.join(here)}", near)


def _violation(policy: type[Policy], at: str, found: Any) -> Violation:
    """Say what pydantic says in our words."""
    where, key = at + _dotted(found["loc"]), str(found["loc"][0]) if found["loc"] else ""
    field = policy.model_fields.get(key)
    if found["type"] == "extra_forbidden" and len(found["loc"]) == 1:
        known = ["policy", *policy.model_fields]
        near = next(iter(nearest(key, known)), None)
        return Violation(where, shown(found["input"]), "a known key" if near else f"one of the keys {', '.join(sorted(known))}", near)
    if found["type"] == "value_error":  # said by a validator of ours
        error = found["ctx"]["error"]
        return Violation(where, shown(found["input"]), str(error), getattr(error, "nearest", None))
    expected = (field.description if field else None) or found["msg"]
    return Violation(where, None if found["type"] == "missing" else shown(found["input"]), expected)


def _dotted(where: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)


