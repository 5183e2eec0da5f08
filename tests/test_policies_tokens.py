"""validate-jwt: tokens that are let in and those that are not, and how the issuer's keys are fetched and kept."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from policing import Clock, context, pipeline, refusals, value

from lbcore.http.message import Response
from lbcore.http.policies import Context, Pipeline, Site
from lbcore.http.policies import key_sets as module
from lbcore.http.policies.key_sets import KeySets, read_keys

NOW = 1_800_000_000.0
URL = "https://login.contoso.test/keys"
SECRET = "0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
STRANGER = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    writer = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm, ed25519.Ed25519PrivateKey: OKPAlgorithm}
    algorithm: Any = next(made for kind, made in writer.items() if isinstance(key, kind))
    return json.loads(algorithm.to_jwk(key.public_key())) | ({} if kid is None else {"kid": kid}) | more


@dataclass
class Issuer:
    """An issuer's key set, and how often it was asked for."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(RSA, "r"), jwk(EC, "e", alg="ES256", use="sig"), jwk(ED, "d")])
    fetched: int = 0
    down: bool = False
    gate: asyncio.Event | None = None

    async def fetch(self, url: str) -> bytes:
        assert url == URL
        self.fetched += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise httpx.ConnectError("refused")
        return json.dumps({"keys": self.keys}).encode()


@dataclass
class Door:
    """A pipeline with validate-jwt, its issuer, and a clock for both."""

    made: Pipeline
    issuer: Issuer
    clock: Clock

    async def enter(self, shown: str | None, **more: Any) -> tuple[Response | None, Context]:
        call = context(fields=[] if shown is None else [("Authorization", shown)], **more)
        result = self.made.inbound(call)
        return (result if result is None or isinstance(result, Response) else await result), call

    async def status(self, token: str) -> int:
        response, _ = await self.enter(f"Bearer {token}")
        return response.status if response else 0


def policy(**more: Any) -> dict[str, Any]:
    rules = {"policy": "validate-jwt", "issuer": "me", "audiences": ["orders"], "algorithms": ["RS256", "ES256", "EdDSA"], "jwks": URL}
    return {key: each for key, each in (rules | more).items() if each is not None}


def door(**more: Any) -> Door:
    issuer, clock = Issuer(), Clock()
    keys = KeySets(fetch=issuer.fetch, clock=clock, max_age=600.0, interval=30.0)
    return Door(pipeline(Site(keys=keys, wall=lambda: NOW, clock=clock), inbound=[policy(**more)]), issuer, clock)


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    said = {"iss": "me", "aud": "orders", "exp": NOW + 60, "sub": "ann"} | claims
    named = ({} if kid is None else {"kid": kid}) | (headers or {})
    return jwt.encode({name: each for name, each in said.items() if each is not None}, key, algorithm, named)


# ===== tokens


@pytest.mark.parametrize(
    "shown",
    [token(), token(EC, "ES256", "e"), token(ED, "EdDSA", "d"), token(ED, "EdDSA", None), token(aud=["x", "orders"]), token(nbf=NOW)]
    + [token(iat=NOW + 99), token(exp=NOW + 0.5)],
)  # fmt: skip
async def test_a_good_token_opens(shown: str) -> None:
    response, call = await door().enter(f"bearer {shown}")
    assert response is None
    assert call.claims["sub"] == "ann"


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


GOOD = {"iss": "me", "aud": "orders", "exp": NOW + 60}
# The attack of RFC 8725 §2.1: a public key, which anybody has, used as a shared secret.
PUBLIC = jwk(RSA, "r")["n"].encode()

DEEP = base64.urlsafe_b64encode(b"[" * 9000).decode()

BAD = {
    "expired": (token(exp=NOW), "expired"),
    "not yet": (token(nbf=NOW + 1), "not valid yet"),
    "no end": (token(exp=None), "the claim exp is missing"),
    "issuer": (token(iss="you"), "the issuer is another"),
    "no issuer": (token(iss=None), "the claim iss is missing"),
    "audience": (token(aud="stock"), "the audience is another"),
    "no audience": (token(aud=None), "the claim aud is missing"),
    "stranger": (token(STRANGER), "the signature is not valid"),
    "unknown key": (token(STRANGER, kid="x"), "the key is unknown"),
    "changed": (token()[:-8] + "AAAAAAAA", "the signature is not valid"),
    "none": (forged({"alg": "none"}, GOOD), "the algorithm is not accepted"),
    "none too": (forged({"alg": "nOnE"}, GOOD), "the algorithm is not accepted"),
    "no alg": (forged({}, GOOD), ""),
    "confused": (token(PUBLIC, "HS256"), "the algorithm is not accepted"),
    "other alg": (token(algorithm="RS512"), "the algorithm is not accepted"),
    "key of another kind": (token(EC, "ES256", "r"), "the key is unknown"),
    "critical": (token(headers={"crit": ["x"], "x": 1}), "malformed"),
    "odd kid": (forged({"alg": "RS256", "kid": {"a": 1}}, GOOD), ""),
    "odd exp": (token(exp="soon"), "exp is no time"),
    "odd nbf": (token(nbf=True), "nbf is no time"),
    "huge": (token(exp=float("inf")), "exp is no time"),
    "huger": (token(exp=10**400), "exp is no time"),
    "no number": (token(exp=float("nan")), "exp is no time"),
    "no dots": ("abc", "malformed"),
    "empty": ("..", "malformed"),
    "long": ("a" * 20000, "no bearer token"),
    "deep": (forged({"alg": "RS256"}, GOOD).replace(".", "." + DEEP, 1), ""),
    "bytes": ("\xe9", "malformed"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_does_not(name: str) -> None:
    shown, why = BAD[name]
    response, call = await door().enter(f"Bearer {shown}")
    assert response is not None and response.status == 401
    told = value(response.fields, "www-authenticate") or ""
    assert told.startswith('Bearer error="invalid_token", error_description="') and why in told
    assert not call.claims


@pytest.mark.parametrize(
    ("shown", "told"), [(None, "Bearer"), ("Basic abc", "no bearer token"), ("Bearer", "no bearer token"), ("Bearer ", "no bearer")]
)
async def test_without_a_token_nobody_comes_in(shown: str | None, told: str) -> None:
    response, _ = await door().enter(shown)
    assert response is not None and response.status == 401
    assert told in (value(response.fields, "www-authenticate") or "")


async def test_a_token_that_was_let_in_ends_with_its_time_and_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [NOW]
    at = door()
    at.made = pipeline(Site(keys=KeySets(fetch=at.issuer.fetch, clock=at.clock), wall=lambda: now[0]), inbound=[policy()])
    shown, lasting = token(), token(exp=NOW + 1e6)
    assert [await at.status(each) for each in (shown, shown, lasting)] == [0, 0, 0]
    now[0] += 60
    assert [await at.status(each) for each in (shown, lasting)] == [401, 0]
    at.issuer.keys = [jwk(STRANGER, "s")]
    at.clock.now += 4000
    assert await at.status(lasting) == 0  # it is fetched behind this call's back
    await settle(at, 2)
    assert await at.status(lasting) == 401


async def test_leeway_is_for_clocks() -> None:
    at = door(leeway=10)
    assert [await at.status(token(exp=NOW - late)) for late in (9, 10)] == [0, 401]
    assert [await at.status(token(nbf=NOW + early)) for early in (10, 11)] == [0, 401]


async def test_claims_may_be_required() -> None:
    at = door(required=["tid"], require='"orders.read" in claims["roles"]')
    assert await at.status(token()) == 401
    response, call = await at.enter(f"Bearer {token(tid='1', roles=['x'])}")
    assert response is not None and response.status == 403
    assert value(response.fields, "www-authenticate") == 'Bearer error="insufficient_scope"'
    assert not call.claims
    assert await at.status(token(tid="1", roles=["orders.read"])) == 0


@pytest.mark.parametrize("forward", [True, False])
async def test_the_backend_may_be_kept_from_the_token(forward: bool) -> None:
    _, call = await door(forward=forward).enter(f"Bearer {token()}")
    assert (value(call.request.fields, "authorization") is not None) is forward


# ===== secrets


def shared(**more: Any) -> dict[str, Any]:
    return policy(**{"jwks": None, "algorithms": ["HS256"], **more})


async def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    (tmp_path / "secret").write_text(SECRET + "\n")
    for source in ({"secret_env": "ORDERS_SECRET"}, {"secret_file": str(tmp_path / "secret")}):
        at = Door(pipeline(Site(wall=lambda: NOW), inbound=[shared(**source)]), Issuer(), Clock())
        assert await at.status(token(SECRET, "HS256", None)) == 0
        assert await at.status(token(SECRET + "x", "HS256", None)) == 401
        assert await at.status(token()) == 401


REFUSED = [
    shared(), shared(secret_env="NOT_THERE"), shared(secret_file="/nonexistent"), shared(secret_env="SHORT"),
    shared(secret_env="X", jwks=URL),
    policy(algorithms=["HS256"]), policy(algorithms=["RS256", "HS256"]), policy(algorithms=["none"]), policy(algorithms=[]),
    shared(algorithms=["RS256"], secret_env="LONG"), policy(audiences=[]), policy(issuer=""), policy(jwks="http://login.contoso.test/keys"),
    policy(jwks="https://user:pass@login.contoso.test/keys"), policy(jwks="file:///etc/passwd"), policy(require="claims"),
    policy(leeway=301),
    policy(required=['a"b']), policy(required=["a\r\nb"]), policy(header="connection"),
]  # fmt: skip


@pytest.mark.parametrize("keys", REFUSED)
def test_rules_that_would_not_guard_are_refused(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "s3cret")
    monkeypatch.setenv("LONG", SECRET)
    violations = refusals(Site(keys=KeySets()), inbound=[keys])
    assert len(violations) == 1
    assert "s3cret" not in str(violations[0])


# ===== keys


async def test_keys_are_fetched_once_for_all_that_wait() -> None:
    at = door()
    at.issuer.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(at.status(token())) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # its client left; the others still get their keys
    await asyncio.sleep(0)
    at.issuer.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [0] * 19
    assert at.issuer.fetched == 1


async def settle(at: Door, fetched: int) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    assert at.issuer.fetched == fetched


async def test_an_unknown_key_makes_fetch_again_once_an_interval() -> None:
    at = door()
    assert await at.status(token()) == 0
    at.issuer.keys.append(jwk(STRANGER, "s"))
    fresh = token(STRANGER, kid="s")
    assert [await at.status(fresh) for _ in range(5)] == [401] * 5  # the interval is not over
    at.clock.now += 30
    assert [await at.status(fresh) for _ in range(5)] == [0] * 5
    at.clock.now += 30
    assert [await at.status(token(kid=f"x{n}")) for n in range(50)] == [401] * 50
    await settle(at, 3)


async def test_old_keys_serve_while_the_issuer_is_down() -> None:
    at = door()
    assert await at.status(token()) == 0
    at.issuer.down = True
    for fetched in range(2, 7):
        at.clock.now += 700
        assert await at.status(token()) == 0
        await settle(at, fetched)
    at.issuer.down, at.issuer.keys = False, [jwk(STRANGER, "s")]
    at.clock.now += 700
    assert await at.status(token()) == 0  # what is old is fetched behind the calls' backs
    await settle(at, 7)
    assert await at.status(token()) == 401


async def test_without_any_keys_calls_get_503_and_keys_are_looked_for_soon() -> None:
    at = door()
    at.issuer.down = True
    response, _ = await at.enter(f"Bearer {token()}")
    assert response is not None and response.status == 503
    assert value(response.fields, "retry-after") == "5"
    assert await at.status(token()) == 503
    assert at.issuer.fetched == 1
    at.issuer.down = False
    at.clock.now += 5
    assert await at.status(token()) == 0


async def test_close_ends_what_is_under_way() -> None:
    issuer = Issuer(gate=asyncio.Event())
    keys = KeySets(fetch=issuer.fetch)
    waiting = asyncio.ensure_future(keys.get(URL).refresh())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await keys.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len({keys.get(f"https://{n}.test/") for n in range(200)}) == 200
    assert len(keys._sets) == module.MOST_SETS


def test_keys_that_cannot_be_used_are_passed_over() -> None:
    weak = jwk(rsa.generate_private_key(65537, 1024), "weak")
    odd: list[Any] = [weak, jwk(RSA, "enc", use="enc"), {"kty": "oct", "k": "AAAA", "kid": "o"}, {"kty": "RSA", "kid": "x"}, 5, {"kty": []}]
    keys = read_keys(json.dumps({"keys": [*odd, jwk(RSA, "r"), {**jwk(RSA, "r2"), "kid": 5}]}).encode())
    assert [key.identifier for key in keys] == ["r"]
    for content in (b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"[" * 100_000, json.dumps({"keys": odd}).encode(), b"\xff"):
        with pytest.raises(ValueError):
            read_keys(content)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)
ENTRY = st.dictionaries(
    st.sampled_from(["kty", "kid", "alg", "use", "n", "e", "x", "y", "crv"]), st.sampled_from(["RSA", "EC", "OKP", "AQAB"]) | JSON
)


@given(st.lists(ENTRY, max_size=4) | JSON)
def test_any_key_set_is_read_or_refused(keys: Any) -> None:
    try:
        read: Sequence[Any] = read_keys(json.dumps({"keys": keys}).encode())
    except ValueError:
        return
    assert read


@given(
    st.text(max_size=60)
    | st.builds(forged, st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), JSON), JSON, st.binary())
)
def test_any_token_is_let_in_or_refused(shown: str) -> None:
    at = door()

    async def enter() -> int:
        await at.status(token())
        return await at.status(shown.encode("latin-1", "replace").decode("latin-1"))

    assert asyncio.run(enter()) == 401


# ===== over the network


@pytest.mark.slow
async def test_keys_are_fetched_over_http_within_bounds() -> None:
    answers = {
        b"/keys": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"keys\":[]}",
        b"/gone": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"/moved": b"HTTP/1.1 302 Found\r\nLocation: /keys\r\nContent-Length: 0\r\n\r\n",
        b"/much": b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000),
    }  # fmt: skip

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[head.split()[1]])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await module.fetch(url + "/keys") == b'{"keys":[]}'
        for path in ("/gone", "/moved", "/much"):
            with pytest.raises(ValueError):
                await module.fetch(url + path)
    with pytest.raises(httpx.HTTPError):
        await module.fetch(url + "/keys")


@pytest.mark.slow
async def test_keys_are_fetched_from_whom_the_authorities_know(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    own, known = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(own)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/keys"
        with pytest.raises(httpx.ConnectError):
            await module.fetch(url)
        authority.configure_trust(known)
        monkeypatch.setattr(module, "_authorities", lambda: known)
        assert await module.fetch(url) == b"{}"
