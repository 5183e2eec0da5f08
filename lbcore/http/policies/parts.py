"""Parts of conditions: typed pieces that are put together to a closure. Each function checks the types of what it joins."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lbcore.http.heads import Trusted
from lbcore.http.policies import values
from lbcore.http.policies.context import Context
from lbcore.http.policies.words import ANY, FLAG, FUNCTIONS, LIST, NUMBER, TEXT, Value

__all__ = [
    "Condition",
    "ConditionError",
    "Part",
    "all_of",
    "any_of",
    "equal",
    "flag",
    "function",
    "inside",
    "literal",
    "network_test",
    "ordered",
]

Condition = Callable[[Context], bool]

_TYPES: dict[type, str] = {str: TEXT, int: NUMBER, float: NUMBER, bool: FLAG}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class ConditionError(ValueError):
    """No condition: what was expected, and in `nearest` the known word that resembles an unknown one."""

    def __init__(self, text: str, near: str | None = None) -> None:
        super().__init__(text)
        self.nearest = near


@dataclass(frozen=True, slots=True)
class Part:
    """A compiled part: its type, what gives its value; for literals the value itself."""

    type: str
    value: Value
    literal: Any = None


def literal(value: object) -> Part:
    """Give the part that is a value of its own."""
    return Part(_TYPES[type(value)], lambda context: value, value)


def flag(part: Part, what: str, at: int) -> Condition:
    """Give a part as a condition; ConditionError unless it is true or false."""
    if part.type == FLAG:
        return part.value
    if part.type == ANY:
        value = part.value
        return lambda context: value(context) is True
    where = f" at character {at}" if at else ""
    raise ConditionError(f"{what}{where} that is true or false, not {part.type}" + ('; compare it with ""' if part.type == TEXT else ""))


def any_of(flags: list[Condition]) -> Condition:
    """Join by `or`."""
    if len(flags) == 2:
        first, second = flags
        return lambda context: first(context) or second(context)
    return lambda context: any(each(context) for each in flags)


def all_of(flags: list[Condition]) -> Condition:
    """Join by `and`."""
    if len(flags) == 2:
        first, second = flags
        return lambda context: first(context) and second(context)
    return lambda context: all(each(context) for each in flags)


def equal(left: Part, right: Part, wanted: bool, at: int) -> Condition:
    """Compare by `==` or `!=`."""
    if left.type != right.type and ANY not in (left.type, right.type) or LIST in (left.type, right.type):
        raise ConditionError(f"a condition: two values of one type at character {at}, not {left.type} and {right.type}")
    a, b, fixed = left.value, right.value, right.literal
    if ANY in (left.type, right.type):
        return lambda context: values.same(a(context), b(context)) is wanted
    if fixed is None:
        return (lambda context: a(context) == b(context)) if wanted else (lambda context: a(context) != b(context))
    return (lambda context: a(context) == fixed) if wanted else (lambda context: a(context) != fixed)


def ordered(left: Part, right: Part, sign: str, at: int) -> Condition:
    """Compare numbers by their size."""
    if not {left.type, right.type} <= {NUMBER, ANY}:
        odd = left.type if left.type not in (NUMBER, ANY) else right.type
        raise ConditionError(f"a condition: two numbers beside `{sign}` at character {at}, not {odd}")
    a, b, compare = left.value, right.value, _COMPARE[sign]
    if ANY not in (left.type, right.type):
        return lambda context: compare(a(context), b(context))

    def holds(context: Context) -> bool:
        one, other = a(context), b(context)
        return values.is_number(one) and values.is_number(other) and compare(one, other)

    return holds


def inside(left: Part, right: Part, at: int) -> Condition:
    """Look for a value in a list."""
    value, listed = left.value, right.value
    if right.type == ANY and left.type != LIST:
        return lambda context: values.member(value(context), listed(context))
    if right.type != LIST or left.type == LIST:
        raise ConditionError(f"a condition: a value `in` a list at character {at}, not {left.type} in {right.type}")
    if left.type == ANY or {_TYPES[type(each)] for each in right.literal} - {left.type}:
        if left.type != ANY:
            raise ConditionError(f"a condition: a list of one type at character {at}, that of {left.type}")
        return lambda context: values.member(value(context), listed(context))
    members = frozenset(right.literal)
    return lambda context: value(context) in members


def function(name: str, given: list[Part], at: int) -> Part:
    """Call one of FUNCTIONS."""
    kind, wanted, do = FUNCTIONS[name]
    if len(given) != len(wanted):
        raise ConditionError(f"a condition: {name} at character {at} takes {len(wanted)}, not {len(given)}")
    for part, want in zip(given, wanted, strict=True):
        if part.type == LIST or want not in (part.type, ANY) and part.type != ANY:
            raise ConditionError(f"a condition: {name} at character {at} takes {want}, not {part.type}")
    arguments = [_as_text(part) if want == TEXT else part.value for part, want in zip(given, wanted, strict=True)]
    first = arguments[0]
    if len(arguments) == 1:
        return Part(kind, lambda context: do(first(context)))
    if isinstance(fixed := given[1].literal, str):
        return Part(kind, lambda context: do(first(context), fixed))
    second = arguments[1]
    return Part(kind, lambda context: do(first(context), second(context)))


def _as_text(part: Part) -> Value:
    value = part.value
    return value if part.type == TEXT else lambda context: values.text(value(context))


def network_test(given: list[Part], at: int) -> Part:
    """Call `in_network`."""
    if len(given) < 2 or any(not isinstance(part.literal, str) for part in given[1:]) or given[0].type not in (TEXT, ANY):
        raise ConditionError(f"a condition: in_network at character {at} takes an address and one or more networks in quotes")
    address, networks = _as_text(given[0]), _networks((part.literal for part in given[1:]), at)
    return Part(FLAG, lambda context: address(context) in networks)


def _networks(texts: Iterable[str], at: int) -> Trusted:
    try:
        return Trusted(texts)
    except ValueError as error:
        raise ConditionError(f"a condition: networks such as 10.0.0.0/8 at character {at} ({error})") from None
