"""Conditions: small expressions over a call, checked when the configuration is read and compiled to closures. No eval.

    deployment.region == "westeurope" and request.method in ["GET", "HEAD"]
    not in_network(client.address, "10.0.0.0/8", "fd00::/8") or starts_with(request.path, "/public/")
    "admin" in claims["roles"] and request.header["x-tier"] != ""

    either   = both {"or" both}          both = negation {"and" negation}       negation = "not" negation | compared
    compared = value [("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not" "in") value]
    value    = "text" | 'text' | number | true | false | [literal, ...] | name | name["key"] | function(value, ...) | (either)

Every expression has a type: text, number, flag, list, or anything (a claim's). What is missing is "" or 0; a claim that is missing, a
list or a table equals nothing. An expression that was accepted never raises and costs no more than its length times the request's.
The syntax is a subset of Python's, the words are those of `NAMES`, `MAPS` and `FUNCTIONS`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lbcore.errors import nearest
from lbcore.http.heads import Trusted
from lbcore.http.policies import values
from lbcore.http.policies.context import Context

__all__ = ["FUNCTIONS", "MAPS", "NAMES", "ConditionError", "condition", "expression"]

MOST_CHARACTERS = 2000
MOST_DEPTH = 32
MOST_PARTS = 256

TEXT, NUMBER, FLAG, LIST, ANY = "a text", "a number", "true or false", "a list", "anything"
KINDS: dict[type, str] = {str: TEXT, int: NUMBER, float: NUMBER, bool: FLAG}

Value = Callable[[Context], Any]
Condition = Callable[[Context], bool]


SECRET = frozenset(("authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"))


class ConditionError(ValueError):
    """No condition: what was expected, and in `nearest` the known word that resembles an unknown one."""

    def __init__(self, text: str, near: str | None = None) -> None:
        super().__init__(text)
        self.nearest = near


@dataclass(frozen=True, slots=True)
class _Part:
    """A compiled part: its type, what gives its value; for literals the value itself."""

    type: str
    value: Value
    literal: Any = None


# ===== the words

_RESPONDING = ("outbound", "on_error")

NAMES: dict[str, tuple[str, Value, tuple[str, ...]]] = {
    "request.method": (TEXT, lambda context: context.request.method.decode("latin-1"), ()),
    "request.path": (TEXT, values.path, ()),
    "request.host": (TEXT, lambda context: context.request.host.decode("latin-1").lower(), ()),
    "request.scheme": (TEXT, lambda context: "https" if context.call.inbound.secure else "http", ()),
    "request.size": (NUMBER, lambda context: context.request.length or 0, ()),
    "client.address": (TEXT, lambda context: context.client, ()),
    "api": (TEXT, lambda context: context.api, ()),
    "version": (TEXT, lambda context: context.version, ()),
    "operation": (TEXT, lambda context: context.operation, ()),
    "revision": (TEXT, lambda context: context.revision, ()),
    "backend": (TEXT, lambda context: context.backend, ()),
    "deployment.region": (TEXT, lambda context: context.deployment.region, ()),
    "deployment.gateway": (TEXT, lambda context: context.deployment.gateway, ()),
    "deployment.service": (TEXT, lambda context: context.deployment.service, ()),
    "response.status": (NUMBER, lambda context: context.response.status if context.response else 0, _RESPONDING),
    "error.cause": (TEXT, lambda context: context.error.cause if context.error else "", ("on_error",)),
    "error.policy": (TEXT, lambda context: context.error.policy if context.error else "", ("on_error",)),
}
"""name: its type, what gives it, the sections where it is known (none = all)"""

MAPS: dict[str, tuple[str, Callable[[str], Value], tuple[str, ...]]] = {
    "request.header": (TEXT, values.request_header, ()),
    "request.query": (TEXT, values.query, ()),
    "request.cookie": (TEXT, values.cookie, ()),
    "parameters": (TEXT, lambda key: lambda context: context.parameters.get(key, ""), ()),
    "variables": (TEXT, lambda key: lambda context: context.variables.get(key, ""), ()),
    "claims": (ANY, lambda key: lambda context: context.claims.get(key), ()),
    "response.header": (TEXT, values.response_header, _RESPONDING),
}
"""name: the type of what it holds, what gives that for a key, the sections"""

FUNCTIONS: dict[str, tuple[str, tuple[str, ...], Callable[..., Any]]] = {
    "lower": (TEXT, (TEXT,), str.lower),
    "upper": (TEXT, (TEXT,), str.upper),
    "text": (TEXT, (ANY,), values.text),
    "length": (NUMBER, (TEXT,), len),
    "number": (NUMBER, (ANY,), values.number),
    "starts_with": (FLAG, (TEXT, TEXT), str.startswith),
    "ends_with": (FLAG, (TEXT, TEXT), str.endswith),
    "contains": (FLAG, (TEXT, TEXT), operator.contains),
}
"""name: its type, its arguments', what it does; `in_network` takes any number of literals besides"""


# ===== compile


def condition(text: str, section: str | None = None) -> Condition:
    """Compile a condition. section: where it stands, None = any. ConditionError (a ValueError) says what is wrong and where."""
    part = _Parser(text, section).whole()
    return _flag(part, "a condition", 0)


def expression(text: str, section: str | None = None, *, told: bool = False) -> Value:
    """Compile an expression of any type; it gives a str, number or bool, or whatever a claim holds. ConditionError as `condition`.

    told: to somebody who must not learn secrets, so headers that carry some are refused
    """
    return _Parser(text, section, told).whole().value


_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:(?P<text>"(?:[^"\\\x00-\x1f]|\\["\\])*"|'(?:[^'\\\x00-\x1f]|\\['\\])*')"""
    r"""|(?P<number>-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,6})?(?![0-9A-Za-z_.]))"""
    r"""|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)|(?P<sign>==|!=|<=|>=|[<>()\[\],])|(?P<end>\Z))"""
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_RESERVED = frozenset(("and", "false", "in", "not", "or", "true"))


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    if len(text) > MOST_CHARACTERS:
        raise ConditionError(f"a condition of at most {MOST_CHARACTERS} characters, this has {len(text)}")
    at = 0
    while True:
        found = _TOKEN.match(text, at)
        if found is None:
            rest = text[at:].lstrip()
            raise ConditionError(f"a condition: {rest[:1]!r} at character {len(text) - len(rest) + 1} begins nothing known")
        kind = str(found.lastgroup)
        yield kind, found[kind], found.start(kind) + 1
        if kind == "end":
            return
        at = found.end()


class _Parser:
    """Read one expression, from left to right and from `or` down to values, compiling as it goes."""

    def __init__(self, text: str, section: str | None, told: bool = False) -> None:
        self._tokens = [*_tokens(text)]
        self._told = told
        self._section, self._next, self._depth = section, 0, 0
        if len(self._tokens) > MOST_PARTS:
            raise ConditionError(f"a condition of at most {MOST_PARTS} words and signs, this has {len(self._tokens)}")

    def whole(self) -> _Part:
        part = self._either()
        self._expect("", "the end, `and` or `or`")
        return part

    # ---- tokens

    def _seen(self, *words: str) -> str | None:
        """Take the next token if it is one of these words or signs."""
        kind, text, _ = self._tokens[self._next]
        if kind in ("name", "sign") and text in words:
            self._next += 1
            return text
        return None

    def _expect(self, sign: str, what: str) -> None:
        kind, text, at = self._tokens[self._next]
        if kind not in ("sign", "end") or text != sign:
            raise self._error(what, text, at)
        self._next += 1

    def _error(self, what: str, found: str, at: int) -> ConditionError:
        return ConditionError(f"a condition: {what} at character {at}, not {found[:40] or 'its end'}")

    def _here(self) -> int:
        return self._tokens[self._next][2]

    # ---- and, or, not

    def _either(self) -> _Part:
        return self._chain("or", self._both, _any_of)

    def _both(self) -> _Part:
        return self._chain("and", self._negation, _all_of)

    def _chain(self, word: str, operand: Callable[[], _Part], join: Callable[[list[Condition]], Condition]) -> _Part:
        at = self._here()
        first = operand()
        if self._tokens[self._next][1] != word:
            return first
        flags = [_flag(first, f"what stands beside `{word}`", at)]
        while self._seen(word):
            at = self._here()
            flags.append(_flag(operand(), f"what stands beside `{word}`", at))
        return _Part(FLAG, join(flags))

    def _negation(self) -> _Part:
        negative = False
        seen = False
        at = self._here()
        while self._seen("not"):
            negative, seen = not negative, True
            at = self._here()
        part = self._compared()
        if not seen:
            return part
        holds = _flag(part, "what `not` turns round", at)
        return _Part(FLAG, (lambda context: not holds(context)) if negative else holds)

    # ---- comparison

    def _compared(self) -> _Part:
        at = self._here()
        left = self._value()
        sign = self._seen("==", "!=", "<", "<=", ">", ">=", "in")
        if sign is None:
            if self._tokens[self._next][1] != "not":
                return left
            self._next += 1
            if not self._seen("in"):
                raise self._error("`in` after `not`", *self._tokens[self._next][1:])
            inside = _inside(left, self._value(), at)
            return _Part(FLAG, lambda context: not inside(context))
        right = self._value()
        if sign == "in":
            return _Part(FLAG, _inside(left, right, at))
        return _Part(FLAG, _equal(left, right, sign == "==", at) if sign in ("==", "!=") else _ordered(left, right, sign, at))

    # ---- values

    def _value(self) -> _Part:
        kind, text, at = self._tokens[self._next]
        self._next += 1
        if kind == "text":
            return _literal(re.sub(r"\\(.)", r"\1", text[1:-1]))
        if kind == "number":
            return _literal(float(text) if "." in text else int(text))
        if kind == "name":
            return self._named(text, at)
        if text == "(":
            return self._nested()
        if text == "[":
            return self._list(at)
        raise self._error("a value", text, at)

    def _nested(self) -> _Part:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConditionError(f"a condition with brackets at most {MOST_DEPTH} deep")
        part = self._either()
        self._expect(")", "`)`")
        self._depth -= 1
        return part

    def _list(self, at: int) -> _Part:
        members: list[Any] = []
        while not self._seen("]"):
            if members:
                self._expect(",", "`,` or `]`")
            here = self._here()
            part = self._value()
            if part.literal is None or part.type == LIST:
                raise ConditionError(f"a condition: a text or number of its own at character {here}, lists hold nothing else")
            members.append(part.literal)
        return _Part(LIST, lambda context: members, members)

    def _named(self, name: str, at: int) -> _Part:
        if name in ("true", "false"):
            return _literal(name == "true")
        if name == "in_network" or name in FUNCTIONS:
            return self._call(name, at)
        if name in MAPS:
            kind, give, sections = MAPS[name]
            self._check_section(name, sections, at)
            return _Part(kind, give(self._key(name)))
        if name in NAMES:
            kind, value, sections = NAMES[name]
            self._check_section(name, sections, at)
            return _Part(kind, value)
        if name in _RESERVED:
            raise self._error("a value", name, at)
        known = [*NAMES, *MAPS, *FUNCTIONS, "in_network"]
        raise ConditionError(f"a condition of known words; {name[:60]!r} at character {at} is none", next(iter(nearest(name, known)), None))

    def _check_section(self, name: str, sections: tuple[str, ...], at: int) -> None:
        if sections and self._section is not None and self._section not in sections:
            raise ConditionError(f"a condition for {self._section}; {name} at character {at} is known in {' and '.join(sections)} only")

    def _key(self, name: str) -> str:
        self._expect("[", f'`["a key"]` after {name}')
        kind, text, at = self._tokens[self._next]
        if kind != "text":
            raise self._error(f"the key of {name} in quotes", text, at)
        self._next += 1
        self._expect("]", "`]`")
        key = re.sub(r"\\(.)", r"\1", text[1:-1])
        if self._told and (name == "request.cookie" or name.endswith(".header") and key.lower() in SECRET):
            raise ConditionError(f"an expression without secrets; {name}[{text}] at character {at} may be one")
        return key

    def _call(self, name: str, at: int) -> _Part:
        self._expect("(", f"`(` after {name}")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConditionError(f"a condition with brackets at most {MOST_DEPTH} deep")
        given: list[_Part] = []
        while not self._seen(")"):
            if given:
                self._expect(",", "`,` or `)`")
            given.append(self._either())
        self._depth -= 1
        return _network_test(given, at) if name == "in_network" else _function(name, given, at)


# ===== parts


def _literal(value: object) -> _Part:
    return _Part(KINDS[type(value)], lambda context: value, value)


def _flag(part: _Part, what: str, at: int) -> Condition:
    if part.type == FLAG:
        return part.value
    if part.type == ANY:
        value = part.value
        return lambda context: value(context) is True
    where = f" at character {at}" if at else ""
    raise ConditionError(f"{what}{where} that is true or false, not {part.type}" + ('; compare it with ""' if part.type == TEXT else ""))


def _any_of(flags: list[Condition]) -> Condition:
    if len(flags) == 2:
        first, second = flags
        return lambda context: first(context) or second(context)
    return lambda context: any(flag(context) for flag in flags)


def _all_of(flags: list[Condition]) -> Condition:
    if len(flags) == 2:
        first, second = flags
        return lambda context: first(context) and second(context)
    return lambda context: all(flag(context) for flag in flags)


def _equal(left: _Part, right: _Part, equal: bool, at: int) -> Condition:
    if left.type != right.type and ANY not in (left.type, right.type) or LIST in (left.type, right.type):
        raise ConditionError(f"a condition: two values of one type at character {at}, not {left.type} and {right.type}")
    a, b, literal = left.value, right.value, right.literal
    if ANY in (left.type, right.type):
        return lambda context: values.same(a(context), b(context)) is equal
    if literal is None:
        return (lambda context: a(context) == b(context)) if equal else (lambda context: a(context) != b(context))
    return (lambda context: a(context) == literal) if equal else (lambda context: a(context) != literal)


def _ordered(left: _Part, right: _Part, sign: str, at: int) -> Condition:
    if not {left.type, right.type} <= {NUMBER, ANY}:
        odd = left.type if left.type not in (NUMBER, ANY) else right.type
        raise ConditionError(f"a condition: two numbers beside `{sign}` at character {at}, not {odd}")
    a, b, compare = left.value, right.value, _COMPARE[sign]
    if ANY not in (left.type, right.type):
        return lambda context: compare(a(context), b(context))

    def ordered(context: Context) -> bool:
        one, other = a(context), b(context)
        return values.is_number(one) and values.is_number(other) and compare(one, other)

    return ordered


def _inside(left: _Part, right: _Part, at: int) -> Condition:
    value, listed = left.value, right.value
    if right.type == ANY and left.type != LIST:
        return lambda context: values.member(value(context), listed(context))
    if right.type != LIST or left.type == LIST:
        raise ConditionError(f"a condition: a value `in` a list at character {at}, not {left.type} in {right.type}")
    if left.type == ANY or {KINDS[type(each)] for each in right.literal} - {left.type}:
        if left.type != ANY:
            raise ConditionError(f"a condition: a list of one type at character {at}, that of {left.type}")
        return lambda context: values.member(value(context), listed(context))
    members = frozenset(right.literal)
    return lambda context: value(context) in members


def _function(name: str, given: list[_Part], at: int) -> _Part:
    kind, wanted, do = FUNCTIONS[name]
    if len(given) != len(wanted):
        raise ConditionError(f"a condition: {name} at character {at} takes {len(wanted)}, not {len(given)}")
    for part, want in zip(given, wanted, strict=True):
        if part.type == LIST or want not in (part.type, ANY) and part.type != ANY:
            raise ConditionError(f"a condition: {name} at character {at} takes {want}, not {part.type}")
    arguments = [_as_text(part) if want == TEXT else part.value for part, want in zip(given, wanted, strict=True)]
    first = arguments[0]
    if len(arguments) == 1:
        return _Part(kind, lambda context: do(first(context)))
    if isinstance(literal := given[1].literal, str):
        return _Part(kind, lambda context: do(first(context), literal))
    second = arguments[1]
    return _Part(kind, lambda context: do(first(context), second(context)))


def _as_text(part: _Part) -> Value:
    value = part.value
    return value if part.type == TEXT else lambda context: values.text(value(context))


def _network_test(given: list[_Part], at: int) -> _Part:
    if len(given) < 2 or any(not isinstance(part.literal, str) for part in given[1:]) or given[0].type not in (TEXT, ANY):
        raise ConditionError(f"a condition: in_network at character {at} takes an address and one or more networks in quotes")
    address, inside = _as_text(given[0]), _networks((part.literal for part in given[1:]), at)
    return _Part(FLAG, lambda context: address(context) in inside)


def _networks(texts: Iterable[str], at: int) -> Trusted:
    try:
        return Trusted(texts)
    except ValueError as error:
        raise ConditionError(f"a condition: networks such as 10.0.0.0/8 at character {at} ({error})") from None
