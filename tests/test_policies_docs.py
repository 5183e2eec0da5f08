"""docs/policies.md: every policy with its keys, examples that do what the page says, every word of the conditions, a plug-in that works."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from policing import Clock, added, context, head, run, value

from lbcore.errors import CAUSES
from lbcore.http._limits import Limits
from lbcore.http.policies import (
    Context,
    Failure,
    KeySets,
    Pipeline,
    Policy,
    Response,
    Retry,
    Site,
    Timeout,
    build,
    kinds,
    read_policies,
    registry,
)
from lbcore.http.policies.words import FUNCTIONS, MAPS, NAMES

PAGE = (Path(__file__).parent.parent / "docs" / "policies.md").read_text()
SECRET = "0123456789abcdef0123456789abcdef"
STOCK = sorted(kind for kind, policy in registry().items() if policy.__module__.startswith("lbcore."))


def part(heading: str) -> str:
    """Give what stands under a heading, down to the next one that is no deeper."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{level[:-1]}#? |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading}"
    return re.split(rf"^#{{2,{len(level)}}} ", found[1], flags=re.MULTILINE)[0]


def block(text: str, language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def example(kind: str, written: list[Any]) -> Pipeline:
    site = Site(
        region="westeurope", limits=Limits(64), clock=Clock(), backends={"stock-eu": 1, "stock-us": 2}, keys=KeySets(), log=written.append,
        wall=lambda: 1e9,
    )  # fmt: skip
    document = tomllib.loads(block(part(f"### {kind}"), "toml"))
    assert {entry["policy"] for entries in document.values() for entry in entries} == {kind}
    read, violations = read_policies(document)
    made, more = build([(read, site)])
    assert [*violations, *more] == []
    return made


# ===== what the examples do: each gives True when the example did what the page says


def status(response: Response | None) -> int:
    return response.status if response else 0


def set_header(made: Pipeline, written: list[Any]) -> bool:
    run(made, call := context(fields=[("X-Tenant", "contoso")]))
    return (value(call.request.fields, "x-tier"), value(call.request.fields, "x-region")) == ("gold", "westeurope")


def remove_header(made: Pipeline, written: list[Any]) -> bool:
    made.outbound(context(), answer := head(200, ("Server", "x"), ("a", "b")))
    return answer.fields == [(b"a", b"b")]


def rewrite_path(made: Pipeline, written: list[Any]) -> bool:
    run(made, call := context(target="/orders/7?x", parameters={"id": "7/8"}))
    return call.request.target == b"/v2/orders/7%2F8?x" and status(run(made, context(parameters={"id": ".."}))) == 400


def set_backend(made: Pipeline, written: list[Any]) -> bool:
    run(made, call := context(backend="x"), "backend")
    return call.backend == "stock-eu"


def rate_limit(made: Pipeline, written: list[Any]) -> bool:
    calls = [context(fields=[("x-tenant", tenant)]) for tenant in "aaab"]
    return [status(run(made, call)) for call in calls] == [0, 0, 429, 0] and value(added(calls[0]), "ratelimit") == '"default";r=1;t=60'


def ip_filter(made: Pipeline, written: list[Any]) -> bool:
    return [status(run(made, context(client=client))) for client in ("10.1.1.1", "10.66.1.1", "192.0.2.1")] == [0, 403, 403]


def cors(made: Pipeline, written: list[Any]) -> bool:
    fields = [("Origin", "https://app.contoso.test"), ("Access-Control-Request-Method", "PUT")]
    return (
        status(run(made, context("OPTIONS", fields=fields))) == 204
        and status(run(made, context("OPTIONS", fields=[("Origin", "x"), fields[1]]))) == 403
    )


def retry(made: Pipeline, written: list[Any]) -> bool:
    run(made, call := context(), "backend")
    return call.retry == Retry(2, frozenset(CAUSES) - {"status"}, frozenset({502, 503}))


def timeout(made: Pipeline, written: list[Any]) -> bool:
    run(made, call := context(), "backend")
    return call.timeout == Timeout(2.0, 10.0)


def validate_jwt(made: Pipeline, written: list[Any]) -> bool:
    said = {"iss": "https://login.contoso.test", "aud": "orders", "exp": 1e9 + 1}
    shown = [{"roles": ["orders.read"]}, {"roles": ["x"]}, {"roles": ["orders.read"], "exp": 1e9}]
    calls = [context(fields=[("Authorization", f"Bearer {jwt.encode(said | more, SECRET, 'HS256')}")]) for more in shown]
    return [status(run(made, call)) for call in [*calls, context()]] == [0, 403, 401, 401]


def validate_api_key(made: Pipeline, written: list[Any]) -> bool:
    opened = run(made, call := context(fields=[("x-api-key", "secret")]))
    return opened is None and call.variables["key"] == "partner" and status(run(made, context())) == 401


def mock_response(made: Pipeline, written: list[Any]) -> bool:
    return run(made, context()) == Response(200, b'{"orders": []}', [(b"content-type", b"application/json")])


def failed(made: Pipeline, failure: Failure, response: int) -> Response:
    call = context()
    call.error = failure
    return made.on_error(call, Response(response))


def return_response(made: Pipeline, written: list[Any]) -> bool:
    return failed(made, Failure("overload"), 503).body == b"busy" and failed(made, Failure("reset"), 502) == Response(502, fields=[])


def set_status(made: Pipeline, written: list[Any]) -> bool:
    return failed(made, Failure("policy", "ip-filter"), 403).status == 404 and failed(made, Failure("policy", "cors"), 403).status == 403


def log(made: Pipeline, written: list[Any]) -> bool:
    for code in (200, 503):
        made.outbound(context(claims={"sub": "ann"}), head(code))
    return [(record["status"], record["who"]) for record in written] == [(503, "ann")]


DOES: dict[str, Callable[[Pipeline, list[Any]], bool]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        cors, ip_filter, log, mock_response, rate_limit, remove_header, retry, return_response, rewrite_path, set_backend, set_header,
        set_status, timeout, validate_api_key, validate_jwt,
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", STOCK)
def test_examples_do_what_the_page_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    written: list[Any] = []
    assert DOES[kind](example(kind, written), written)


@pytest.mark.parametrize("kind", STOCK)
def test_tables_name_every_key_and_section(kind: str) -> None:
    text, policy = part(f"### {kind}"), registry()[kind]
    assert re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE) == [key for key in policy.model_fields if key != "when"]
    told = text.strip().split(". ")[0].split(".\n")[0]
    assert policy.sections == (
        set(re.findall(r"`(inbound|backend|outbound|on_error)`", told)) or {"inbound", "backend", "outbound", "on_error"}
    )


def test_the_table_of_conditions_names_every_word() -> None:
    words = set(re.findall(r"`([a-z_.]+)(?:[\[(][^`]*)?`", part("## Conditions")))
    assert {*NAMES, *MAPS, *FUNCTIONS, "in_network"} <= words
    assert {*CAUSES, "policy", "exception"} <= words


def test_the_first_example_is_read_whole() -> None:
    document = tomllib.loads(block(PAGE.split("## The policies")[0], "toml"))
    for policies in (document["policies"], document["apis"][0]["policies"]):
        assert build([(read_policies(policies)[0], Site(limits=Limits(64)))])[1] == read_policies(policies)[1] == []


# ===== one's own


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Policy]]:
    text = part("## Your own")
    (tmp_path / "maintenance.py").write_text(block(text, "python"))
    info = tmp_path / "maintenance-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: maintenance\nVersion: 1\n")
    points = tomllib.loads(block(text, "toml"))["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    kinds._load.cache_clear()
    yield registry()["maintenance"]
    kinds._load.cache_clear()


def test_the_page_s_own_policy_works_once_it_is_installed(installed: type[Policy]) -> None:
    read, violations = read_policies({"inbound": [{"policy": "maintenance", "regions": ["westeurope"]}]})
    assert violations == []
    answers: list[Response | None] = []
    call: Context
    for region in ("westeurope", "eastus"):
        made, violations = build([(read, Site(region=region))])
        assert violations == []
        answers.append(run(made, call := context()))
    assert [status(answer) for answer in answers] == [503, 0]
    assert answers[0] is not None and value(answers[0].fields, "retry-after") == "60"
    assert call.error is None
    [violation] = read_policies({"inbound": [{"policy": "maintenance", "regions": [], "seconds": 0}]})[1][:1]
    assert str(violation) == "policies.inbound[0].regions = []: expected a list of regions"
