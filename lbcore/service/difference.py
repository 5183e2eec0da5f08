"""Difference: what one configuration has that another one has not, by the names that people know things by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["Change", "difference"]

_MISSING = object()
_NUMBERS = ("epoch", "sequence")


class Change(NamedTuple):
    """One difference. where: such as `apis[orders v1].backend`; moved: the same entries in another order; before, after: JSON values"""

    where: str
    action: Literal["added", "removed", "changed", "moved"]
    before: Any = None
    after: Any = None


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Give what changes from one document to another, their numbers aside; nothing exactly when they are the same JSON.

    APIs, backends and operations are told apart by their names; other lists are a value as a whole.
    """
    old, new = ({key: value for key, value in each.items() if key not in _NUMBERS} for each in (before, after))
    return [*_tables("", old, new)]


def _tables(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in sorted({*old, *new}):
        yield from _values(f"{where}.{key}" if where else key, old.get(key, _MISSING), new.get(key, _MISSING))


def _values(where: str, old: Any, new: Any) -> Iterator[Change]:
    if old is _MISSING:
        yield Change(where, "added", None, new)
    elif new is _MISSING:
        yield Change(where, "removed", old, None)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _tables(where, old, new)
    elif (left := _named(old)) is not None and (right := _named(new)) is not None:
        yield from _entries(where, left, right)
    elif not _same(old, new):
        yield Change(where, "changed", old, new)


def _entries(where: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name in [*old, *(name for name in new if name not in old)]:
        yield from _values(f"{where}[{name}]", old.get(name, _MISSING), new.get(name, _MISSING))
    stayed = [name for name in old if name in new]
    moved = [name for name in new if name in old]
    if stayed != moved:
        yield Change(where, "moved", stayed, moved)


def _named(value: Any) -> dict[str, Any] | None:
    """Give the entries of a list by name, None when it has others, or two of one name."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, Mapping) for each in value):
        return None
    names = [" ".join(str(each[key]) for key in ("name", "version") if each.get(key)) for each in value]
    known = all(isinstance(each.get("name"), str) for each in value)
    return dict(zip(names, value, strict=True)) if known and len({*names}) == len(names) else None


def _same(old: Any, new: Any) -> bool:
    """Compare as JSON: true is not 1."""
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {*old} == {*new} and all(_same(old[key], new[key]) for key in old)
    return bool(old == new)
