"""Conditions: small expressions over a call, checked when the configuration is read and compiled to closures. No eval.

    deployment.region == "westeurope" and request.method in ["GET", "HEAD"]
    not in_network(client.address, "10.0.0.0/8", "fd00::/8") or starts_with(request.path, "/public/")
    "admin" in claims["roles"] and request.header["x-tier"] != ""

    either   = both {"or" both}          both = negation {"and" negation}       negation = "not" negation | compared
    compared = value [("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not" "in") value]
    value    = "text" | 'text' | number | true | false | [literal, ...] | name | name["key"] | function(value, ...) | (either)

Every expression has a type: text, number, flag, list, or anything (a claim's). What is missing is "" or 0; a claim that is missing, a
list or a table equals nothing. An expression that was accepted never raises and costs no more than its length times the request's.
The syntax is a subset of Python's, the words are those of `words`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from lbcore.errors import nearest
from lbcore.http.policies import parts
from lbcore.http.policies.parts import Condition, ConditionError, Part
from lbcore.http.policies.words import FLAG, FUNCTIONS, LIST, MAPS, NAMES, SECRET, Value

__all__ = ["Condition", "ConditionError", "Value", "condition", "expression"]

MOST_CHARACTERS = 2000
MOST_DEPTH = 32
MOST_PARTS = 256


def condition(text: str, section: str | None = None) -> Condition:
    """Compile a condition. section: where it stands, None = any. ConditionError (a ValueError) says what is wrong and where."""
    part = _Parser(text, section).whole()
    return parts.flag(part, "a condition", 0)


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

    def whole(self) -> Part:
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

    def _either(self) -> Part:
        return self._chain("or", self._both, parts.any_of)

    def _both(self) -> Part:
        return self._chain("and", self._negation, parts.all_of)

    def _chain(self, word: str, operand: Callable[[], Part], join: Callable[[list[Condition]], Condition]) -> Part:
        at = self._here()
        first = operand()
        if self._tokens[self._next][1] != word:
            return first
        flags = [parts.flag(first, f"what stands beside `{word}`", at)]
        while self._seen(word):
            at = self._here()
            flags.append(parts.flag(operand(), f"what stands beside `{word}`", at))
        return Part(FLAG, join(flags))

    def _negation(self) -> Part:
        negative = False
        seen = False
        at = self._here()
        while self._seen("not"):
            negative, seen = not negative, True
            at = self._here()
        part = self._compared()
        if not seen:
            return part
        holds = parts.flag(part, "what `not` turns round", at)
        return Part(FLAG, (lambda context: not holds(context)) if negative else holds)

    # ---- comparison

    def _compared(self) -> Part:
        at = self._here()
        left = self._value()
        sign = self._seen("==", "!=", "<", "<=", ">", ">=", "in")
        if sign is None:
            if self._tokens[self._next][1] != "not":
                return left
            self._next += 1
            if not self._seen("in"):
                raise self._error("`in` after `not`", *self._tokens[self._next][1:])
            inside = parts.inside(left, self._value(), at)
            return Part(FLAG, lambda context: not inside(context))
        right = self._value()
        if sign == "in":
            return Part(FLAG, parts.inside(left, right, at))
        return Part(FLAG, parts.equal(left, right, sign == "==", at) if sign in ("==", "!=") else parts.ordered(left, right, sign, at))

    # ---- values

    def _value(self) -> Part:
        kind, text, at = self._tokens[self._next]
        self._next += 1
        if kind == "text":
            return parts.literal(re.sub(r"\\(.)", r"\1", text[1:-1]))
        if kind == "number":
            return parts.literal(float(text) if "." in text else int(text))
        if kind == "name":
            return self._named(text, at)
        if text == "(":
            return self._nested()
        if text == "[":
            return self._list(at)
        raise self._error("a value", text, at)

    def _nested(self) -> Part:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConditionError(f"a condition with brackets at most {MOST_DEPTH} deep")
        part = self._either()
        self._expect(")", "`)`")
        self._depth -= 1
        return part

    def _list(self, at: int) -> Part:
        members: list[Any] = []
        while not self._seen("]"):
            if members:
                self._expect(",", "`,` or `]`")
            here = self._here()
            part = self._value()
            if part.literal is None or part.type == LIST:
                raise ConditionError(f"a condition: a text or number of its own at character {here}, lists hold nothing else")
            members.append(part.literal)
        return Part(LIST, lambda context: members, members)

    def _named(self, name: str, at: int) -> Part:
        if name in ("true", "false"):
            return parts.literal(name == "true")
        if name == "in_network" or name in FUNCTIONS:
            return self._call(name, at)
        if name in MAPS:
            kind, give, sections = MAPS[name]
            self._check_section(name, sections, at)
            return Part(kind, give(self._key(name)))
        if name in NAMES:
            kind, value, sections = NAMES[name]
            self._check_section(name, sections, at)
            return Part(kind, value)
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

    def _call(self, name: str, at: int) -> Part:
        self._expect("(", f"`(` after {name}")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConditionError(f"a condition with brackets at most {MOST_DEPTH} deep")
        given: list[Part] = []
        while not self._seen(")"):
            if given:
                self._expect(",", "`,` or `)`")
            given.append(self._either())
        self._depth -= 1
        return parts.network_test(given, at) if name == "in_network" else parts.function(name, given, at)
