"""Conditions: what they say, what is refused and how, and that no text and no call makes one raise.

Two oracles: Python's own `eval` over plain objects (the syntax is a subset of Python's) for how texts are read, a table for the words.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policing import context, head

from lbcore.http.policies.conditions import ConditionError, condition, expression
from lbcore.http.policies.context import Context, Failure
from lbcore.http.policies.words import FUNCTIONS, MAPS, NAMES

CLAIMS = {
    "sub": "ann", "roles": ["admin", "reader"], "age": 30, "staff": True, "scope": "read write", "deep": {"a": [1]}, "https://x/y": 1.5,
}  # fmt: skip


def sample() -> Context:
    call = context(
        "GET", "/orders/a%20b?page=2&q=x+y&empty=&page=3",
        [("X-Tier", "gold"), ("x-tier", "silver"), ("Cookie", "a=1; sid=s3=x"), ("Via", "p")],
        claims=CLAIMS, api="orders", version="v1", operation="get", revision="1.7", backend="stock", parameters={"id": "a b"},
    )  # fmt: skip
    call.variables["key"] = "partner"
    call.response, call.error = head(404, ("Content-Type", "text/plain"), ("Vary", "a"), ("vary", "b")), Failure("status", "cors")
    return call


HOLD = """
request.method == "GET"
request.method != 'POST' and request.scheme == "http"
request.path == "/orders/a b"
request.host == "api.contoso.test" and request.header["host"] == "api.contoso.test"
request.header["X-TIER"] == "gold, silver" and request.header["via"] == "p"
request.header["x-none"] == "" and length(request.header["x-none"]) == 0
request.query["page"] == "2" and request.query["q"] == "x y" and request.query["empty"] == "" and request.query["none"] == ""
request.cookie["sid"] == "s3=x" and request.cookie["si"] == ""
request.size == 0
client.address == "192.0.2.1"
in_network(client.address, "10.0.0.0/8", "192.0.2.0/24", "fd00::/8")
not in_network(client.address, "10.0.0.0/8") and not in_network("no address", "::/0")
api == "orders" and version == "v1" and operation == "get" and revision == "1.7" and backend == "stock"
deployment.region == "westeurope" and deployment.gateway == "gateway-1" and deployment.service == "contoso"
deployment.region in ["westus2", "westeurope"] and deployment.region not in ["westus2"]
parameters["id"] == "a b" and parameters["none"] == ""
variables["key"] == "partner" and variables["none"] == ""
response.status == 404 and response.status in [404, 410] and response.status >= 400 and response.status < 500
response.header["content-type"] == "text/plain" and response.header["vary"] == "a, b"
error.cause == "status" and error.policy == "cors"
claims["sub"] == "ann" and claims["age"] == 30 and claims["age"] >= 18.5 and claims["https://x/y"] < 2
claims["staff"] and claims["staff"] == true and claims["staff"] != 1
not claims["age"] and not claims["none"] and not claims["sub"]
claims["none"] != "" and claims["none"] != claims["none"] and claims["deep"] != claims["deep"] and claims["none"] != 0
not claims["sub"] < 5 and not 5 < claims["none"] and not claims["staff"] <= 1
"admin" in claims["roles"] and "root" not in claims["roles"] and "ann" in claims["sub"] and "an" not in claims["sub"]
claims["age"] in [29, 30] and claims["age"] in ["x", 30] and claims["staff"] not in [1]
text(claims["age"]) == "30" and text(claims["none"]) == "" and text(claims["deep"]) == "" and text(claims["staff"]) == ""
number(request.query["page"]) == 2 and number("-1.50") == -1.5 and number("1e9") == 0 and number(claims["none"]) == 0
lower("ÄB") == "äb" and upper("ab") == "AB" and length("abc") == 3
starts_with(request.path, "/orders/") and ends_with(request.path, " b") and contains(request.path, "der")
starts_with(claims["sub"], "a") and not starts_with(claims["none"], "a") and contains(claims["scope"], lower("WRITE"))
true or false and false
not false and not not true
(true or false) and not (false or false)
"it's" == 'it\\'s' and "a\\\\b" == "a\\\\b" and 'a"' == "a\\""
-5 < 0 and 1.5 > 1 and 0 == 0.0
""".strip().splitlines()


@pytest.mark.parametrize("text", HOLD)
def test_holds(text: str) -> None:
    assert condition(text)(sample()) is True
    assert condition(f"not ({text})")(sample()) is False


REFUSED = {
    "": "a value at character 1, not its end",
    "request.methd == 'GET'": "'request.methd' at character 1 is none",
    "request.method": 'true or false, not a text; compare it with ""',
    "response.status": "true or false, not a number",
    "request.method = 'GET'": "'=' at character 16 begins nothing known",
    "request.method == 'GET' 'x'": "the end, `and` or `or` at character 25",
    "request.method == 'GET' & true": "'&' at character 25",
    "response.status == '404'": "two values of one type at character 1, not a number and a text",
    "request.method < 'GET'": "two numbers beside `<` at character 1, not a text",
    "1 < 2 < 3": "the end, `and` or `or` at character 7",
    "request.method in 'GET'": "a value `in` a list at character 1",
    "request.method in ['GET', 200]": "a list of one type",
    "request.method in [api]": "a text or number of its own at character 20",
    "request.method in ['GET'": "`,` or `]`",
    "not": "a value at character 4, not its end",
    "request.method not 'GET'": "`in` after `not`",
    "request.header == 'x'": '`["a key"]` after request.header',
    "request.header[api] == 'x'": "the key of request.header in quotes",
    "lower('a', 'b') == 'a'": "lower at character 1 takes 1, not 2",
    "lower(5) == 'a'": "lower at character 1 takes a text, not a number",
    "lower == 'a'": "`(` after lower",
    "in_network(client.address)": "takes an address and one or more networks in quotes",
    "in_network(client.address, api)": "takes an address and one or more networks in quotes",
    "in_network(client.address, '10.0.0.1/8')": "networks such as 10.0.0.0/8 at character 1",
    "true and 'x'": "what stands beside `and` at character 10 that is true or false, not a text",
    "not 'x'": "what `not` turns round at character 5",
    "007 == 7": "'0' at character 1 begins nothing known",
    "1e5 == 1": "'1' at character 1",
    "'a\nb' == 'a'": "at character 1",
    "__import__('os')": "'__import__' at character 1 is none",
    "request.method.__class__ == 'x'": "is none",
    "().__class__": "'.' at character 3",
    "2 ** 9 == 1": "'*'",
    "'a' * 9 == 'a'": "'*'",
    "[x for x in claims]": "'x' at character 2 is none",
    "lambda: true": "':' at character 7",
    "and": "a value at character 1, not and",
    "(true": "`)` at character 6",
    "(" * 33 + "true" + ")" * 33: "brackets at most 32 deep",
    "lower(" * 33 + "'a'" + ")" * 33 + " == 'a'": "brackets at most 32 deep",
    "not " * 256 + "true": "at most 256 words and signs",
    "'" + "a" * 2000 + "' == ''": "at most 2000 characters",
}


@pytest.mark.parametrize("text", REFUSED)
def test_is_refused(text: str) -> None:
    with pytest.raises(ConditionError) as refused:
        condition(text)
    assert REFUSED[text] in str(refused.value)


NEAR = [("request.methd", "request.method"), ("clams['x']", "claims"), ("start_with(api, 'x')", "starts_with")]


@pytest.mark.parametrize(("text", "near"), NEAR)
def test_unknown_words_name_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConditionError) as refused:
        condition(text)
    assert refused.value.nearest == near


ELSEWHERE = {"response.status == 1": "outbound and on_error", "response.header['x'] == ''": "outbound", "error.cause == ''": "on_error"}


@pytest.mark.parametrize(("text", "known"), ELSEWHERE.items())
def test_words_of_another_section_are_refused(text: str, known: str) -> None:
    with pytest.raises(ConditionError, match=f"is known in {known}"):
        condition(text, "inbound")
    assert condition(text, "on_error")(context()) in (True, False)


def test_expressions_give_values() -> None:
    values = {"response.status": 404, "'a'": "a", "lower(request.method)": "get", "claims['none']": None}
    for text, value in [*values.items(), ("claims['roles']", ["admin", "reader"])]:
        assert expression(text)(sample()) == value


# ===== against Python


class Plain:
    """What `eval` finds under a dotted name."""

    def __init__(self, **values: Any) -> None:
        self.__dict__ |= values


class Texts(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def namespace() -> dict[str, Any]:
    header, found = Texts(host="api.contoso.test"), Texts(page="2", q="x y")
    header |= {"x-tier": "gold, silver"}
    return {
        "__builtins__": {}, "true": True, "false": False,
        "request": Plain(method="GET", path="/orders/a b", header=header, query=found, size=0),
        "response": Plain(status=404), "api": "orders", "version": "v1", "claims": {"sub": "ann", "age": 30, "roles": ["admin", "reader"]},
        "lower": str.lower, "upper": str.upper, "length": len, "starts_with": str.startswith, "contains": lambda one, other: other in one,
    }  # fmt: skip


TEXTS = st.sampled_from([
    "'GET'", '"orders"', "''", "request.method", "request.path", "request.header['x-tier']", "request.query['page']", "request.query['no']",
    "api", "version", "lower(request.method)", "upper(api)",
])  # fmt: skip
NUMBERS = st.sampled_from(["0", "404", "-7", "30.5", "response.status", "request.size", "length(api)"])
SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
MEMBERS = st.lists(st.sampled_from(["'GET'", "'orders'", "'v1'", "''"]), max_size=4).map(lambda texts: f"[{', '.join(texts)}]")
ATOMS = st.one_of(
    st.sampled_from(["true", "false", "'admin' in claims['roles']", "'root' in claims['roles']"]),
    st.sampled_from(["claims['sub'] == api", "claims['sub'] == 'ann'", "claims['age'] >= 30", "30 < claims['age']"]),
    st.builds("{} {} {}".format, TEXTS, st.sampled_from(["==", "!="]), TEXTS), st.builds("{} {} {}".format, NUMBERS, SIGNS, NUMBERS),
    st.builds("{} {} {}".format, TEXTS, st.sampled_from(["in", "not in"]), MEMBERS),
    st.builds("{}({}, {})".format, st.sampled_from(["starts_with", "contains"]), TEXTS, TEXTS),
)  # fmt: skip
# No brackets but those drawn: who binds tighter is what is compared.
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner), st.builds("{} or {}".format, inner, inner), st.builds("not {}".format, inner),
        st.builds("({})".format, inner),
    ),
    max_leaves=12,
)  # fmt: skip


@given(EXPRESSIONS)
def test_texts_mean_what_they_mean_in_python(text: str) -> None:
    assert condition(text)(sample()) is eval(text, namespace())


# ===== whatever comes

SIGNS_AND_LITERALS = ["and", "or", "not", "in", "==", "<", "(", ")", "[", "]", ",", "'a'", '"x"', "1", "-2.5"]
WORDS = st.sampled_from([*NAMES, *MAPS, *FUNCTIONS, "in_network", *SIGNS_AND_LITERALS])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ODD = st.text(st.characters(max_codepoint=255), max_size=30)


@st.composite
def calls(draw: st.DrawFn) -> Context:
    fields = [(draw(st.sampled_from(["x-a", "Cookie", "Host", "a"])), draw(ODD)) for _ in range(draw(st.integers(0, 3)))]
    call = context(draw(ODD), "/" + draw(ODD), fields, client=draw(ODD), claims={"a": draw(VALUES), "x": draw(VALUES)})
    if draw(st.booleans()):
        call.response, call.error = head(draw(st.integers(0, 999)), ("a", draw(ODD))), Failure("timeout")
    return call


@given(st.text(max_size=40) | st.lists(WORDS, max_size=14).map(" ".join), calls())
def test_any_text_is_refused_or_gives_true_or_false_for_any_call(text: str, call: Context) -> None:
    try:
        holds = condition(text)
    except ConditionError as refused:
        assert str(refused)
        return
    assert holds(call) in (True, False)


CALLED = ["text(claims['a'])", "number(claims['x'])", "lower(claims['a'])"]
ANY = st.sampled_from([*NAMES, *(f"{name}['a']" for name in MAPS), "'a'", "5", "true", *CALLED])
TESTS = st.one_of(
    st.builds("{} {} {}".format, ANY, st.sampled_from(["==", "!=", "<", ">="]), ANY),
    st.builds("{} {} {}".format, ANY, st.sampled_from(["in", "not in"]), ANY | st.sampled_from(["['a', 'b']", "[1, 2.5]"])),
    st.builds("in_network({}, '10.0.0.0/8', 'fd00::/8')".format, ANY), st.builds("starts_with({}, {})".format, ANY, ANY), ANY,
)  # fmt: skip


@given(TESTS, calls())
def test_what_is_well_formed_is_total(text: str, call: Context) -> None:
    try:
        holds = condition(text)
    except ConditionError:
        return
    assert holds(call) in (True, False)
