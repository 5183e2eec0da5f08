import ipaddress
from typing import TypeAlias, TypedDict, final

from lbcore.dns._cookies import Cookies
from lbcore.dns._route import Program
from lbcore.dns._rrl import RateLimiter
from lbcore.dns.answers import Answers

_Series: TypeAlias = tuple[str, str, str, str, str]

class _Counters(TypedDict):
    queries: int
    unanswerable: int
    slow: int
    lost: int
    unsent: int
    ecs: int
    fail_open: int
    truncated: int
    limited: int
    answers: dict[_Series, int]

@final
class Wire:
    def __new__(
        cls, *, cookies: Cookies | None = None, rrl: RateLimiter | None = None, nsid: bytes = b"", sample: int = 0
    ) -> Wire: ...
    def publish(self, answers: Answers, program: Program) -> None: ...
    def suspect(self, on: bool) -> None: ...
    def serve(self, fd: int, slow_fd: int) -> None: ...
    def stop(self) -> None: ...
    def answer(self, query: bytes, client: str | bytes | ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes | None: ...
    def number_of(self, key: _Series) -> int: ...
    def counters(self) -> _Counters: ...
