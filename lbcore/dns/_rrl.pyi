from collections.abc import Iterable
from typing import final

__all__ = ["MOST_RATE", "MOST_SLIP", "RateLimiter", "hash_answer"]

MOST_RATE: int
MOST_SLIP: int

__pyx_capi__: dict[str, object]

@final
class RateLimiter:
    def __init__(self, rate: int = 200, slip: int = 2, exempt: Iterable[str] = ("127.0.0.0/8", "::1/128")) -> None: ...
    @property
    def rate(self) -> int: ...
    def verdict(self, client: bytes, answer: int, now_ms: int) -> int: ...

def hash_answer(name: bytes, rdtype: int) -> int: ...
