"""What policies cost a request: microseconds of one core for a Context and its inbound policies, without sockets.

    python benchmarks/http_policies.py                 a table
    python benchmarks/http_policies.py --calls 50000   more calls a row

Each row is the best of eleven rounds of CPU time, rounds alternate between the rows. "three" is what a gateway typically has: rate-limit,
set-header and validate-api-key. The request has seven headers.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from types import SimpleNamespace
from typing import Any

import jwt

from lbcore.http._limits import MOST_CALLS, Limits
from lbcore.http.message import Request
from lbcore.http.policies import Context, Deployment, Pipeline, Site, build, read_policies

SECRET = b"0123456789abcdef0123456789abcdef"
TOKEN = jwt.encode({"iss": "me", "aud": "orders", "exp": time.time() + 3600}, SECRET, "HS256").encode()
FIELDS = [
    (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64)"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"gzip, br"), (b"Cookie", b"sid=1; a=b"),
    (b"X-Api-Key", b"secret"), (b"Authorization", b"Bearer " + TOKEN), (b"Origin", b"https://app.contoso.test"),
]  # fmt: skip
LIMIT = {"policy": "rate-limit", "calls": MOST_CALLS, "period": 0.1}
HEADER = {"policy": "set-header", "name": "x-region", "value": "westeurope"}
KEY = {"policy": "validate-api-key", "keys": [{"name": "a", "sha256": hashlib.sha256(b"secret").hexdigest()}]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "no policy": [],
    "three": [LIMIT, HEADER, KEY],
    "rate-limit": [LIMIT],
    "rate-limit without headers": [LIMIT | {"headers": False}],
    "set-header": [HEADER],
    "set-header, a condition of two": [HEADER | {"when": 'request.method == "GET" and deployment.region == "westeurope"'}],
    "validate-api-key": [KEY],
    "ip-filter": [{"policy": "ip-filter", "allow": ["192.0.2.0/24", "10.0.0.0/8"]}],
    "cors": [{"policy": "cors", "origins": ["https://app.contoso.test"]}],
    "rewrite-path": [{"policy": "rewrite-path", "path": "/v2/orders/{id}"}],
    "set-backend by region": [{"policy": "set-backend", "regions": {"westeurope": "stock"}}],
    "validate-jwt, HS256": [
        {"policy": "validate-jwt", "issuer": "me", "audiences": ["orders"], "algorithms": ["HS256"], "secret_env": "BENCHMARK_SECRET"}
    ],
}


def pipeline(policies: list[dict[str, Any]]) -> Pipeline:
    read, violations = read_policies({"inbound": policies})
    built, more = build([(read, Site(region="westeurope", limits=Limits(), backends={"stock": 1}))])
    assert not violations and not more, [*violations, *more]
    return built


def measure(made: Pipeline, calls: int) -> float:
    """Give the microseconds that one call takes."""
    request = Request(b"GET", b"/orders/17?page=2", FIELDS, {b"host": b"api.contoso.test"}, True, False)
    call: Any = SimpleNamespace(request=request, client="192.0.2.1", extra=b"")
    deployment, parameters, target = Deployment("westeurope"), {"id": "17"}, request.target
    began = time.process_time()
    for _ in range(calls):
        request.fields, request.target, call.extra = FIELDS, target, b""
        answer = made.inbound(Context(call, deployment, "orders", "v1", "get", "1.7", "stock", parameters))
        if answer is not None:
            raise SystemExit(f"a call was not let in: {answer}")
    return (time.process_time() - began) / calls * 1e6


def main() -> None:
    import os

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls
    os.environ["BENCHMARK_SECRET"] = SECRET.decode()
    made = {name: pipeline(policies) for name, policies in ROWS.items()}
    best = dict.fromkeys(made, float("inf"))
    for _ in range(11):
        for name, each in made.items():
            best[name] = min(best[name], measure(each, calls))
    for name, microseconds in best.items():
        print(f"{name:32} {microseconds:6.2f} us")


if __name__ == "__main__":
    main()
