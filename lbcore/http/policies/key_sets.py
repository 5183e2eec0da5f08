"""KeySets: JSON Web Key Sets by URL, fetched in the background of calls and kept over revisions.

    nothing there yet      calls wait for the one fetch under way
    older than max_age     fetched again while calls go on with what is there
    a key nobody knows     fetched again, once an interval at most; the calls that ask wait for it
    the issuer is down     old keys are kept
Source: RFC 7517 (JSON Web Key).
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

__all__ = ["KeySet", "KeySets", "PublicKey"]

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
MOST_KEYS = 100
MOST_SETS = 64
FETCH_TIMEOUT = 5.0
IMPATIENT = 5.0  # seconds between two fetches while there are no keys at all
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}  # by `kty`; a set of shared secrets is nobody's to publish
_LEAST_RSA = 2048  # bits, RFC 7518 §3.3

Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key. identifier: `kid`, "" = none; algorithm: the only one it is for, "" = any of its kind; key: cryptography's"""

    identifier: str
    kind: str
    algorithm: str
    key: Any

    def serves(self, algorithm: str) -> bool:
        """Say whether a signature by that algorithm can be checked with it."""
        return self.algorithm == algorithm if self.algorithm else algorithm.startswith(_FAMILIES[self.kind])


@cache
def _authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


async def fetch(url: str) -> bytes:
    """Fetch a document of at most MOST_BYTES; ValueError for what is none, httpx.HTTPError when there is no answer. No redirects."""
    # Reading the system's authorities takes milliseconds, which calls under way need not wait for.
    verify = await asyncio.to_thread(_authorities) if url.startswith("https:") else False
    async with asyncio.timeout(FETCH_TIMEOUT), httpx.AsyncClient(timeout=FETCH_TIMEOUT, trust_env=False, verify=verify) as client:
        async with client.stream("GET", url, headers={"Accept": "application/json, application/jwk-set+json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
            return bytes(content)


def read_keys(content: bytes) -> list[PublicKey]:
    """Read a key set; keys of other kinds or uses are passed over. ValueError for what is no key set, or one without a usable key."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JSON object with a list `keys`")
    keys = [key for entry in listed[:MOST_KEYS] if (key := _read_key(entry)) is not None]
    if not keys:
        raise ValueError("no key that can be used")
    return keys


def _read_key(entry: Any) -> PublicKey | None:
    if not isinstance(entry, dict):
        return None
    kind, identifier, algorithm = (entry.get(name, "") for name in ("kty", "kid", "alg"))
    if not all(isinstance(text, str) for text in (kind, identifier, algorithm)):
        return None
    if kind not in _FAMILIES or entry.get("use", "sig") != "sig":
        return None
    try:
        key = _parse(entry)
    except Exception as error:  # whatever PyJWT and cryptography find wrong with one key, the others are good
        logger.warning("key %r of a key set cannot be used: %s", identifier, error)
        return None
    return PublicKey(identifier, kind, algorithm, key)


def _parse(entry: dict[str, Any]) -> Any:
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    readers: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    key = readers[entry["kty"]].from_jwk({name: value for name, value in entry.items() if name != "d"})
    if entry["kty"] == "RSA" and key.key_size < _LEAST_RSA:
        raise ValueError(f"{key.key_size} bits are too few")
    return key


class KeySet:
    """The keys of one URL. max_age: seconds until they are fetched again; interval: seconds between two fetches, at least"""

    def __init__(self, url: str, fetch: Fetch, clock: Callable[[], float], max_age: float, interval: float) -> None:
        self.url, self._fetch, self._clock = url, fetch, clock
        self._max_age, self._interval = max_age, interval
        self.keys: list[PublicKey] = []
        self._fetched = self._tried = -float("inf")
        self._task: asyncio.Task[None] | None = None

    def find(self, identifier: str, algorithm: str) -> PublicKey | None:
        """Give the key for a token: by its `kid`; a token without one needs a set with one key only that serves."""
        serving = [key for key in self.keys if key.serves(algorithm) and (not identifier or key.identifier == identifier)]
        return serving[0] if len(serving) == 1 or serving and identifier else None

    def keep_fresh(self) -> None:
        """Begin to fetch when what is there is old."""
        if self._clock() - self._fetched > self._max_age:
            self._begin()

    async def refresh(self) -> None:
        """Fetch, unless that was done an interval ago or less; waits for a fetch under way. Never raises for what the issuer does."""
        if (task := self._begin()) is not None:
            await asyncio.shield(task)  # a client that leaves must not take it away from the others

    def _begin(self) -> asyncio.Task[None] | None:
        interval = self._interval if self.keys else min(self._interval, IMPATIENT)
        if self._task is None and self._clock() - self._tried >= interval:
            self._tried = self._clock()
            self._task = asyncio.get_running_loop().create_task(self._load())
            self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None

    async def _load(self) -> None:
        try:
            self.keys = read_keys(await self._fetch(self.url))
            self._fetched = self._clock()
        except Exception as error:  # the issuer's doing; the old keys are kept
            logger.warning("key set %s: %s: %s; %d old keys are kept", self.url, type(error).__name__, error, len(self.keys))

    async def close(self) -> None:
        """Stop fetching."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class KeySets:
    """Key sets by URL, each fetched by one at a time.

    max_age: seconds after which a set is fetched again; interval: seconds between two fetches of one URL, at least
    fetch: gives a URL's content, or raises; clock: monotonic seconds
    """

    def __init__(
        self, *, max_age: float = 3600.0, interval: float = 30.0, fetch: Fetch = fetch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = fetch, clock, max_age, interval
        self._sets: dict[str, KeySet] = {}

    def get(self, url: str) -> KeySet:
        """Give a URL's set, the same one each time; nothing is fetched yet. The oldest of too many are forgotten."""
        known = self._sets.pop(url, None) or KeySet(url, *self._options)
        self._sets[url] = known
        while len(self._sets) > MOST_SETS:
            self._sets.pop(next(iter(self._sets)))
        return known

    async def close(self) -> None:
        """Stop fetching."""
        for each in [*self._sets.values()]:
            await each.close()
