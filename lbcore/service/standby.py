"""Standby: those who may have become the primary instead are asked, and a later epoch than ours makes our store read-only (R49).

    start, then every 10 s:   GET URL/services/NAME  ->  X-Lbcore-Epoch: 17     ours is 2: fenced
                                                     ->  421, or nothing        it is no primary; go on

What cannot be asked says nothing: two primaries that do not reach each other both write, each to those regions that follow it, until they
do. Regions never go back from the later epoch to the earlier one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from lbcore.errors import ServiceError
from lbcore.service.configuration import LARGEST_NUMBER
from lbcore.service.store import Store

__all__ = ["EPOCH", "Standby"]

logger = logging.getLogger(__name__)

EPOCH = "X-Lbcore-Epoch"
WHO = "standby"


class Standby:
    """Fences a primary's store when another one has taken over.

    urls: of the other management planes;  token: path of a file with what they are shown, read at each look;  interval, timeout: seconds
    tls: context, None = verified by the system's authorities;  transport: of httpx, None = its own
    on_fenced: called with the epoch, on the event loop, once for each later one
    """

    def __init__(
        self, store: Store, name: str, urls: Sequence[str], *, token: Path | None = None, tls: ssl.SSLContext | None = None,
        interval: float = 10.0, timeout: float = 2.0, on_fenced: Callable[[int], object] = lambda epoch: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._store, self._name, self._urls, self._token = store, name, [url.rstrip("/") for url in urls], token
        self._interval, self._timeout, self._on_fenced = interval, timeout, on_fenced
        self._verify: ssl.SSLContext | bool = tls if tls is not None else any(url.startswith("https:") for url in self._urls)
        self._transport = transport
        self._said: dict[str, str] = {}
        self.primary: str | None = None  # the URL of whoever has taken over, as far as seen

    async def look(self) -> int | None:
        """Ask all of them once; give the epoch that this store is fenced by, None while it is the primary's. ServiceError of the store."""
        if not self._urls:
            return await asyncio.to_thread(lambda: self._store.fenced)
        headers = {"accept": "application/json"} | self._authorization()
        limits = httpx.Timeout(self._timeout)
        async with httpx.AsyncClient(
            headers=headers, verify=self._verify, timeout=limits, trust_env=False, transport=self._transport
        ) as client:  # fmt: skip
            epochs = await asyncio.gather(*(self._ask(client, url) for url in self._urls))
        latest, url = max(zip(epochs, self._urls, strict=True))
        return await asyncio.to_thread(self._judge, latest, url)

    async def run(self) -> None:
        """Look every interval until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                before = await asyncio.to_thread(lambda: self._store.fenced)
                after = await self.look()
                if after is not None and after != before:
                    self._on_fenced(after)
            except ServiceError as error:  # locked or full, say: the next time
                logger.warning("whether another primary has taken over is asked again: %s", error)
            except Exception:
                logger.exception("whether another primary has taken over is asked again")

    def _judge(self, epoch: int, url: str) -> int | None:
        ours, fenced = self._store.revisions.epoch, self._store.fenced
        if epoch <= max(ours, fenced or 0):
            return fenced
        self._store.fence(epoch, who=WHO, why=f"{url} is the primary")
        self._store.events.add("Fenced", epoch=epoch, own=ours, by=url)
        logger.error("%s has become the primary with epoch %d, ours is %d: this store is read-only from now on", url, epoch, ours)
        self.primary = url
        return epoch

    async def _ask(self, client: httpx.AsyncClient, url: str) -> int:
        """Give the epoch that a standby says it has begun as the primary, 0 when it is none or does not answer."""
        try:
            async with asyncio.timeout(self._timeout), client.stream("GET", f"{url}/services/{self._name}") as response:
                return self._epoch(url, response)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            self._say(url, f"does not answer ({type(error).__name__})", logging.INFO)
            return 0

    def _epoch(self, url: str, response: httpx.Response) -> int:
        text = response.headers.get(EPOCH, "")
        if response.status_code == 200 and re.fullmatch(r"[0-9]{1,16}", text, re.ASCII) and int(text) <= LARGEST_NUMBER:
            self._say(url, "", logging.INFO)
            return int(text)
        if response.status_code in (421, 404, 503):
            self._say(url, "", logging.INFO)  # a standby that stands by
        else:
            self._say(url, f"answers {response.status_code} without an epoch: whether it has taken over cannot be known", logging.WARNING)
        return 0

    def _say(self, url: str, what: str, level: int) -> None:
        """Log what is wrong with a standby when it begins."""
        if what and self._said.get(url) != what:
            logger.log(level, "standby %s %s", url, what)
        self._said[url] = what

    def _authorization(self) -> dict[str, str]:
        try:
            text = self._token.read_text().strip() if self._token else ""
        except (OSError, UnicodeError) as error:
            self._say("", f"token cannot be read: {error}", logging.WARNING)
            return {}
        return {"authorization": f"Bearer {text}"} if text.isascii() and text.isprintable() and text else {}
