"""Remote: the primary's configurations over HTTP. Nothing that it answers is believed before it was checked.

    GET  URL   If-None-Match: the tags known; X-Lbcore-Sync: the report as JSON    200 with ETag | 304 with ETag | 204 there is none yet
    HEAD URL   the same, Prefer: wait=25 (RFC 7240): held until there is another    200 | 304; GET may be held so, too
    PUT  URL   If-Match: "1.7", or If-None-Match: *                                 200 with ETag, or an error as REST has it
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from lbcore.errors import NotPrimaryError, ServiceError
from lbcore.http.gateway.configuration import MOST_BYTES
from lbcore.service.configuration import (
    NOTHING,
    Latest,
    Report,
    SourceRefusedError,
    SourceUnreachableError,
    Tag,
    read_number,
    read_tags,
)  # fmt: skip
from lbcore.service.logbook import clean
from lbcore.service.revisions import Number
from lbcore.service.sync import Serving, Source, Sync

__all__ = ["LOST", "REPORT", "Link", "Remote", "answer", "follow", "read_report", "report_text"]

REPORT = "X-Lbcore-Sync"
LOST = "X-Lbcore-Lost"
_LARGEST_ANSWER = 1 << 20  # bytes of an error
_MOST_LOST = 100  # that a header names
_LONGEST_WAIT = 60.0  # seconds
_ANSWERED = (200, 202, 204, 304)


class Link:
    """Ask one URL of a primary.

    token: that it is shown, or the Path of a file that has it, read for every request; timeout: seconds for an answer as a whole
    tls: context, None = verified by the system's authorities; transport: of httpx, None = its own
    Redirects, proxies of the environment and compressed answers are not taken. Not to be used after `close`.
    """

    def __init__(
        self, url: str, *, token: str | Path = "", timeout: float = 10.0, tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self.url, self.timeout, self._token = url, timeout, token
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        self._make: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            headers=headers, verify=tls if tls is not None else url.startswith("https:"), transport=transport, trust_env=False,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 3.0)), follow_redirects=False,
        )  # fmt: skip
        self._made: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close connections."""
        if self._made is not None:
            await self._made.aclose()

    async def post(self, content: bytes) -> None:
        """Send JSON. Raises SourceUnreachableError, and ServiceError or SourceRefusedError for a refusal."""
        await self.ask("POST", {"content-type": "application/json"}, content, _LARGEST_ANSWER, self.timeout)

    async def ask(self, method: str, headers: Mapping[str, str], content: bytes | None, most: int, timeout: float) -> tuple[
        int, httpx.Headers, bytes
    ]:  # fmt: skip
        """Give status, headers and content of a good answer of at most so many bytes, within `timeout` seconds; errors as `post`."""
        self._made = client = self._made or self._make()
        try:
            async with asyncio.timeout(timeout):  # as a whole: httpx starts its own anew with every byte
                limits = httpx.Timeout(timeout, connect=min(timeout, 3.0))
                shown = {**headers, **self._authorization()}
                async with client.stream(method, self.url, headers=shown, content=content, timeout=limits) as response:
                    good = response.status_code in _ANSWERED
                    body = await _read(response, most if good else _LARGEST_ANSWER)
                    if not good:
                        raise _error(response, body, writing=content is not None)
                    return response.status_code, response.headers, body
        except TimeoutError:
            raise SourceUnreachableError(f"{self.url}: no whole answer within {timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise SourceUnreachableError(f"{self.url}: {error!r}"[:500]) from error

    def _authorization(self) -> dict[str, str]:
        token = self._token if isinstance(self._token, str) else self._token.read_text("latin-1").strip()
        if not (token.isascii() and token.isprintable()):  # else an error of the header would show it
            where = self._token if isinstance(self._token, Path) else "it"
            raise SourceRefusedError("token", f"{where}: no token as `lbcore token create` gives it, which is one line of ASCII")
        return {"authorization": f"Bearer {token}"} if token else {}


class Remote(Link):
    """Ask a primary for revisions. url: of its gatewayConfiguration, or its rotation; wait: seconds that `watch` lasts; options as Link"""

    def __init__(self, url: str, *, wait: float = 25.0, **options: Any) -> None:
        super().__init__(url, **options)
        self._wait = wait

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give what the primary says is the latest revision, None when it says that there is none."""
        headers = _known(known) | ({REPORT: report_text(report)} if report is not None else {})
        status, answer, body = await self.ask("GET", headers, None, MOST_BYTES, self.timeout)
        if status == 204:
            return None
        tag = _tag(answer, status, known)
        return Latest(tag, body if status == 200 else None, _lost(answer.get(LOST, "")))

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until the primary has another revision, for `wait` seconds at most."""
        headers = _known(known) | {"prefer": f"wait={self._wait:g}"}
        status, _, _ = await self.ask("HEAD", headers, None, 0, self._wait + self.timeout)
        return status == 200

    async def put(self, document: Mapping[str, Any], *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Publish a document. who: nothing, for the primary knows whose token it is shown; why: for its history."""
        headers = {"content-type": "application/json", "x-lbcore-why": clean(why).encode("ascii", "replace").decode()}
        if if_revision is not None:
            headers |= {"if-none-match": "*"} if if_revision == NOTHING else {"if-match": f'"{if_revision}"'}
        _, answer, _ = await self.ask("PUT", headers, json.dumps(document).encode(), MOST_BYTES, self.timeout)
        return _tag(answer, 200, ())


async def _read(response: httpx.Response, most: int) -> bytes:
    """Read an answer of at most so many bytes; a compressed one may be anything."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise SourceRefusedError("encoding", "a compressed answer, which was not asked for")
    if response.request.method == "HEAD":
        return b""
    found = bytearray()
    async for part in response.aiter_raw(1 << 16):
        found += part
        if len(found) > most:
            raise SourceRefusedError("size", f"an answer of more than {most:,} bytes")
    return bytes(found)


def _error(response: httpx.Response, body: bytes, writing: bool) -> Exception:
    """Say what an answer without an answer means: nobody manages there now, it is the wrong one, or it refuses us."""
    status = response.status_code
    code, message, target = _told(body)
    if status == 421:
        return NotPrimaryError(target) if writing else SourceUnreachableError(f"not the primary; it names {ascii(target)}")
    if writing and code:
        return ServiceError(code, message, target)
    if status >= 500 or status == 429:
        return SourceUnreachableError(f"status {status} {code}".rstrip())
    return SourceRefusedError("status", f"status {status} {code}".rstrip())


def _told(body: bytes) -> tuple[str, str, str | None]:
    try:
        error = json.loads(body)["error"]
        target = error.get("target")
        return clean(str(error["code"]))[:100], clean(str(error.get("message", ""))), None if target is None else clean(str(target))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", "", None


def _tag(headers: httpx.Headers, status: int, known: Collection[Tag]) -> Tag:
    found = read_tags(headers.get("etag"))
    if len(found) != 1:
        raise SourceRefusedError("tag", f"no ETag of a revision: {ascii(headers.get('etag', ''))[:100]}")
    if status == 304 and found[0] not in known:
        raise SourceRefusedError("tag", f"304 for {found[0].number}, which was not asked about")
    return found[0]


def _known(known: Collection[Tag]) -> dict[str, str]:
    return {"if-none-match": ", ".join(map(str, known))} if known else {}


def _lost(text: str) -> tuple[Number, ...]:
    try:
        return tuple(map(read_number, text[:40_000].split()))
    except ServiceError:
        return ()


async def follow(gateway: Serving, settings: Mapping[str, Any]) -> None:
    """Keep a gateway's process at the primary's latest revision, until cancelled: for `follow` of the provisioner `local`.

    settings: primary (URL of its gatewayConfiguration), region, interval; where needed token_file, ca (the authority's file), timeout
    """
    token = await asyncio.to_thread(Path(settings["token_file"]).read_text) if settings.get("token_file") else ""
    tls = await asyncio.to_thread(ssl.create_default_context, cafile=settings["ca"]) if settings.get("ca") else None
    timeout = float(settings.get("timeout", 10.0))
    remote = Remote(settings["primary"], token=token.strip(), tls=tls, timeout=timeout)
    try:
        await Sync(gateway, remote, region=settings["region"], interval=float(settings["interval"]), timeout=timeout).run()
    finally:
        await remote.close()


# ===== the primary's side


async def answer(source: Source, method: str, headers: Mapping[str, str], region: str = "") -> tuple[int, dict[str, str], bytes]:
    """Give status, headers and content of the answer to a GET or HEAD. headers: of the request, names in lower case

    region: whose token came with it, "" = not a region's, so that it cannot report. Errors as `source` raises them.
    """
    known = read_tags(headers.get("if-none-match"))
    if found := re.search(r"(?:^|[,;\s])wait=(\d{1,4})", headers.get("prefer", "")):
        try:
            async with asyncio.timeout(min(float(found[1]), _LONGEST_WAIT)):
                await source.watch(known)
        except TimeoutError:
            pass
    report = read_report(headers.get(REPORT.lower(), ""), region) if region else None
    latest = await source.latest(known, report)
    if latest is None:
        return 204, {"cache-control": "no-store"}, b""
    told = {"etag": str(latest.tag), "cache-control": "no-cache", "vary": "authorization"}
    if latest.lost:
        told[LOST.lower()] = " ".join(map(str, latest.lost[-_MOST_LOST:]))
    if latest.body is None:
        return 304, told, b""
    return 200, told | {"content-type": "application/json"}, b"" if method == "HEAD" else latest.body


# ===== reports


def report_text(report: Report) -> str:
    """Write a report as a header's value, ASCII of one line."""
    return json.dumps({**asdict(report), "held": str(report.held) if report.held else "", "refused": clean(report.refused)[:300]})


def read_report(text: str, region: str) -> Report | None:
    """Read a report that a region has sent, None for anything else. region: whose token it came with, whatever the report says."""
    try:
        told = json.loads(text[:4000])
        held = read_tags(told["held"])
        lag = float(told["lag"])
        if not 0 <= lag < 1e12 or not isinstance(told["state"], str):
            return None
        return Report(region, clean(told["state"])[:20], held[0] if held else None, lag, clean(str(told["refused"]))[:300])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
