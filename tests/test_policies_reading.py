"""Reading policies, and the pipeline they become: violations, order, conditions, what ends a call, steps that wait or raise, plug-ins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policing import context, head, pipeline, refusals, run, value

from lbcore.http.message import Response
from lbcore.http.policies import Context, Failure, Pipeline, Policy, Site, Step, build, kinds, read_policies, registry

STOCK = {
    "cors", "ip-filter", "log", "mock-response", "rate-limit", "remove-header", "retry", "return-response", "rewrite-path", "set-backend",
    "set-header", "set-status", "timeout", "validate-api-key", "validate-jwt",
}  # fmt: skip


class Mark(Policy):
    """Note that the call came by."""

    kind: ClassVar[str] = "mark"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound", "backend", "outbound", "on_error"))
    word: str

    def prepare(self, site: Site) -> Step:
        def mark(context: Context) -> None:
            context.variables["seen"] = f"{context.variables.get('seen', '')} {site.scope}:{self.word}".strip()

        return mark


class Odd(Policy):
    """Wait, or raise, or end the call."""

    kind: ClassVar[str] = "odd"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound", "backend", "outbound", "on_error"))
    does: str = "raise"

    def prepare(self, site: Site) -> Step:
        if self.does == "unprepared":
            raise ValueError("something else")

        async def wait(context: Context) -> Response | None:
            await asyncio.sleep(0)
            if self.does == "raise later":
                raise RuntimeError("a bug")
            return context.deny("odd", 418) if self.does == "deny later" else None

        def act(context: Context) -> Response | None:
            if self.does == "raise":
                raise RuntimeError("a bug")
            return context.deny("odd", 418) if self.does == "deny" else Response(299)

        return wait if self.does in ("wait", "raise later", "deny later") else act


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry() | {"mark": Mark, "odd": Odd}
    monkeypatch.setattr("lbcore.http.policies.reading.registry", lambda: known)


def mark(word: str) -> dict[str, Any]:
    return {"policy": "mark", "word": word}


def odd(does: str, **more: Any) -> dict[str, Any]:
    return {"policy": "odd", "does": does, **more}


# ===== reading


def test_the_stock_policies_are_these_and_each_has_an_example() -> None:
    assert set(registry()) >= STOCK
    for kind in STOCK:
        policy = registry()[kind]
        assert policy.kind == kind
        assert f'{{ policy = "{kind}"' in (policy.__doc__ or "")


BAD: list[tuple[Any, str]] = [
    ("x", "policies = 'x': expected a table of inbound, backend, outbound, on_error"),
    ({"inbond": []}, "policies.inbond = []: expected one of inbound, backend, outbound, on_error; did you mean 'inbound'?"),
    ({"inbound": {}}, "policies.inbound = 'a table of 0': expected a list of tables"),
    ({"inbound": ["cors"]}, "policies.inbound[0] = 'cors': expected a table with the key policy"),
    ({"inbound": [{}]}, "policies.inbound[0].policy = None: expected one of cors, ip-filter"),
    ({"inbound": [{"policy": "set-haeder"}]}, "did you mean 'set-header'?"),
    ({"outbound": [{"policy": "cors"}]}, "policies.outbound[0].policy = 'cors': expected a policy for outbound: log, remove-header"),
    ({"inbound": [{"policy": "timeout", "totl": 5, "total": 1}]}, "inbound[0].totl = 5: expected a known key; did you mean 'total'?"),
    ({"inbound": [{"policy": "timeout", "total": "5"}]}, "policies.inbound[0].total = '5': expected seconds above 0"),
    ({"inbound": [{"policy": "timeout", "total": float("nan")}]}, "expected seconds above 0"),
    ({"inbound": [{"policy": "timeout"}]}, "policies.inbound[0] = 'a table of 0': expected first_byte, total or both"),
    ({"inbound": [{"policy": "retry", "count": True}]}, "policies.inbound[0].count = True: expected a whole number, 0..10"),
    ({"inbound": [{"policy": "retry", "count": 1, "statuses": [200]}]}, "expected statuses 400..599"),
    ({"inbound": [{"policy": "remove-header", "name": "x", "when": "request.methd == 'x'"}]}, "did you mean 'request.method'?"),
    ({"inbound": [{"policy": "remove-header", "name": "x", "when": "response.status == 1"}]}, "is known in outbound and on_error only"),
    ({"inbound": [{"policy": "set-header", "name": "x"}]}, "expected either value or expression"),
    ({"inbound": [{"policy": "set-header", "name": "x", "value": "a\r\nb: c"}]}, "no line break"),
    ({"inbound": [{"policy": "ip-filter", "deny": ["10.0.0.1/8"]}]}, "policies.inbound[0].deny[0] = '10.0.0.1/8': expected a network"),
    ({"inbound": [{"policy": "ip-filter", "deny": "10.0.0.0/8"}]}, "policies.inbound[0].deny = '10.0.0.0/8': expected networks such as"),
    ({"inbound": [{"policy": "set-backend", "backend": "ordrs"}]}, "[0] = 'set-backend': expected one of the backends orders, "),
    ({"inbound": [{"policy": "rate-limit", "calls": 1, "period": 1}]}, "expected a gateway that has counters"),
]


@pytest.mark.parametrize(("document", "words"), BAD)
def test_violations_say_where_what_and_what_was_expected(document: Any, words: str) -> None:
    read, violations = read_policies(document)
    violations += build([(read, Site(backends={"orders": 1}))])[1]
    assert len(violations) == 1
    assert words in str(violations[0])


def test_unknown_backends_name_the_nearest() -> None:
    [violation] = refusals(Site(backends={"orders": 1, "stock": 2}), inbound=[{"policy": "set-backend", "backend": "ordrs"}])
    assert violation.nearest == "orders"


def test_all_violations_come_at_once_and_the_sound_ones_are_read() -> None:
    remove = {"policy": "remove-header", "name": "a"}
    document = {"inbound": [{"policy": "x"}, remove | {"name": "a b"}, remove], "outbound": [1]}
    read, violations = read_policies(document, "apis[2].policies")
    assert [violation.where for violation in violations] == [
        "apis[2].policies.inbound[0].policy", "apis[2].policies.inbound[1].name", "apis[2].policies.outbound[0]",
    ]  # fmt: skip
    assert [where for where, _ in read.inbound] == ["apis[2].policies.inbound[2]"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted({key for policy in registry().values() for key in policy.model_fields})


@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("inbound", "outbound", "on_error", "backend"), JSON)))
def test_any_document_is_read_or_refused(document: Any) -> None:
    read, violations = read_policies(document)
    assert all(str(violation) for violation in violations)


@given(st.sampled_from(sorted(STOCK)), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), st.sampled_from(["inbound", "on_error"]))
def test_any_keys_of_a_policy_are_read_or_refused(kind: str, keys: dict[str, Any], section: str) -> None:
    read, violations = read_policies({section: [{"policy": kind, **keys}]})
    more = build([(read, Site())])[1]
    assert all(violation.where.startswith(f"policies.{section}[0]") for violation in [*violations, *more])


# ===== the pipeline


def both(section: str) -> Pipeline:
    everywhere, none = read_policies({section: [mark("a"), mark("b")]})
    of_api, nothing = read_policies({section: [mark("c"), mark("d")]})
    built, violations = build([(everywhere, Site(scope="global")), (of_api, Site(scope="api"))])
    assert [*none, *nothing, *violations] == []
    return built


@pytest.mark.parametrize("section", ["inbound", "backend"])
def test_on_the_way_in_what_is_global_comes_first(own: None, section: str) -> None:
    assert run(both(section), call := context(), section) is None
    assert call.variables["seen"] == "global:a global:b api:c api:d"


def test_on_the_way_back_it_comes_last(own: None) -> None:
    both("outbound").outbound(call := context(), head())
    assert call.variables["seen"] == "api:c api:d global:a global:b"
    both("on_error").on_error(call := context(), Response(502))
    assert call.variables["seen"] == "api:c api:d global:a global:b"


def test_conditions_decide_for_each_call(own: None) -> None:
    made = pipeline(inbound=[mark("a") | {"when": 'request.method == "GET"'}, mark("b") | {"when": 'variables["seen"] != ""'}])
    for method, seen in (("GET", "global:a global:b"), ("POST", None)):
        run(made, call := context(method))
        assert call.variables.get("seen") == seen


@pytest.mark.parametrize("does", ["deny", "deny later"])
def test_what_ends_a_call_ends_it_and_errors_are_told(own: None, does: str) -> None:
    told = [mark("told") | {"when": 'error.cause == "policy" and error.policy == "odd" and response.status == 418'}]
    made = pipeline(inbound=[odd("wait"), mark("a"), odd(does), mark("b")], on_error=told)
    response = run(made, call := context())
    assert response is not None and response.status == 418
    assert call.variables["seen"] == "global:a global:told"
    assert call.error == Failure("policy", "odd")


def test_an_answer_is_no_error(own: None) -> None:
    made = pipeline(inbound=[odd("answer")], on_error=[mark("told")])
    response = run(made, call := context())
    assert response is not None and response.status == 299
    assert "seen" not in call.variables


@pytest.mark.parametrize("does", ["raise", "raise later"])
def test_a_policy_that_raises_lets_nothing_through(own: None, does: str, caplog: pytest.LogCaptureFixture) -> None:
    made = pipeline(inbound=[odd(does), mark("b")], on_error=[mark("told") | {"when": 'error.cause == "exception"'}])
    response = run(made, call := context())
    assert response is not None and response.status == 500
    assert call.variables["seen"] == "global:told"
    assert "policy odd raised" in caplog.text


def test_nor_does_it_on_the_way_back_where_errors_go_on(own: None, caplog: pytest.LogCaptureFixture) -> None:
    made = pipeline(outbound=[odd("raise")], on_error=[odd("raise"), mark("told")])
    response = made.outbound(call := context(), head())
    assert response is not None and response.status == 500
    assert call.variables["seen"] == "global:told"
    assert len(caplog.records) == 2


def test_a_response_takes_the_place_of_the_backend_s_or_the_error_s(own: None) -> None:
    assert (made := pipeline(outbound=[odd("answer")])).outbound(context(), head()) == Response(299)
    assert made.on_error(context(), Response(502)) == Response(502)
    assert pipeline(on_error=[odd("answer"), mark("a")]).on_error(context(), Response(502)).status == 299


def test_nothing_to_do_is_nothing_done() -> None:
    made, call, answer = pipeline(), context(), head(200, ("a", "b"))
    assert (made.inbound(call), made.backend(call), made.outbound(call, answer)) == (None, None, None)
    assert answer == head(200, ("a", "b"))


def test_policies_that_cannot_work_here_are_violations(own: None) -> None:
    [violation] = refusals(inbound=[mark("a"), odd("unprepared")])
    assert str(violation) == "policies.inbound[1] = 'odd': expected something else"


# ===== plug-ins


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "acme_policies.py").write_text(
        "from lbcore.http.policies import Policy\n"
        "class Stamp(Policy):\n"
        "    kind, sections = 'stamp', frozenset(('inbound',))\n"
        "    text: str\n"
        "    def prepare(self, site):\n"
        "        return lambda context: context.variables.update(stamp=self.text + site.region)\n"
        "class Nowhere(Stamp):\n"
        "    kind, sections = 'nowhere', frozenset(('inbond',))\n"
        "class Idle(Policy):\n"
        "    kind, sections = 'idle', frozenset(('inbound',))\n"
    )
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[lbcore.policies]\nstamp = acme_policies:Stamp\nbroken = acme_policies:None\nmissing = acme_nothing:X\n"
        "other = acme_policies:Stamp\nnumber = builtins:dict\nnowhere = acme_policies:Nowhere\nidle = acme_policies:Idle\n"
        "cors = acme_policies:Stamp\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kinds._load.cache_clear()
    yield
    kinds._load.cache_clear()


def test_policies_of_others_come_by_entry_point(installed: None) -> None:
    made = pipeline(inbound=[{"policy": "stamp", "text": "in ", "when": 'request.method == "GET"'}])
    run(made, call := context())
    assert call.variables["stamp"] == "in westeurope"


def test_broken_plug_ins_are_named_and_spoil_no_others(installed: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert set(registry()) == STOCK | {"stamp"}
    bad = kinds.broken()
    assert set(bad) == {"broken", "missing", "other", "number", "nowhere", "idle", "cors (acme_policies:Stamp)"}
    assert all(name in caplog.text for name in bad)
    [violation] = refusals(inbound=[{"policy": "missing"}])
    assert "a policy that can be loaded (ModuleNotFoundError: No module named 'acme_nothing')" in str(violation)
    assert "subclass of Policy" in bad["number"] and "calls itself 'stamp'" in bad["other"] and "has no prepare" in bad["idle"]


def test_a_reply_keeps_what_it_was_made_of() -> None:
    made = pipeline(on_error=[{"policy": "set-header", "name": "x-a", "value": "b"}])
    response = made.on_error(context(), Response(503, b"busy", [(b"Retry-After", b"1")]))
    assert (response.status, response.body) == (503, b"busy")
    assert (value(response.fields, "retry-after"), value(response.fields, "x-a")) == ("1", "b")
