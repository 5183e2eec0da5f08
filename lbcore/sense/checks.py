"""One probe of one target: connect, ask, read a little, close. What went wrong is a cause, never an exception.

Every probe opens its own connection, so that connecting is tested each time, and has one timeout around everything it does: name
resolution, connect, TLS handshake, headers and the first BODY_LIMIT bytes of the body. `probe` decides when probes run.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import h11
import httpx

from lbcore.sense.monitor import Monitor, Target
from lbcore.sense.resolve import resolve

__all__ = ["BODY_LIMIT", "LOCAL", "Check", "ProbeResult", "Streak", "check"]

LOCAL = "local"
BODY_LIMIT = 4096
DETAIL_LIMIT = 200
LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
REQUEST_HEADERS = {"user-agent": "lbcore-probe", "accept": "*/*", "accept-encoding": "identity", "connection": "close"}

logger = logging.getLogger(__name__)


class Streak(NamedTuple):
    """So many probes in a row ended alike. cause: of the last, for failures"""

    ok: bool
    times: int
    cause: str | None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found.

    region: name of the region, or the anchor's URL
    cause: None when ok, else "refused" (no connection: refused, unreachable, or its name does not resolve), "timeout", "tls" (handshake or
        certificate), "status" (a status that is not expected, or bytes that are not HTTP), "reset" (the connection broke off); or
        "local": this process lacked descriptors, memory, ports or a certificate file, which says nothing of the region
    connect_ms: TCP connect, without name resolution;  first_byte_ms: from sending the request to the response's headers, that is, one
        round trip and the gateway's own time, without connect and TLS. Each None when it was not reached
    certificate_days: until the gateway's certificate expires, negative after that;  at: clock seconds when the probe ended
    detail: the error in words
    """

    region: str
    ok: bool
    cause: str | None
    connect_ms: float | None
    first_byte_ms: float | None
    status: int | None
    certificate_days: float | None
    at: float
    detail: str = ""

    @property
    def sample(self) -> float | None:
        """Give the round trip to learn from, ms: first byte, for TCP connect. None unless ok: a failure is never a sample."""
        if not self.ok:
            return None
        return self.connect_ms if self.first_byte_ms is None else self.first_byte_ms


Check = Callable[[Target, Callable[[], float]], Awaitable[ProbeResult]]


async def check(target: Target, clock: Callable[[], float]) -> ProbeResult:
    """Probe a target once and give the result, within the monitor's timeout whatever the other side does.

    clock: gives the `at` of the result; durations are the event loop's.
    """
    course = _Course()
    cause, detail = None, ""
    try:
        attempt = _attempt(target, course)
        async with asyncio.timeout(target.monitor.timeout):
            await _try_addresses(target, course, attempt)
        if course.status is not None and not (target.anchor or target.monitor.expects(course.status)):
            cause, detail = "status", f"status {course.status}"
    except Exception as error:
        cause, detail = _cause(error, course), _words(error, target)
        if cause == LOCAL:
            logger.warning("probe of %s at %s could not be done here: %s", target.name, target.url, detail, exc_info=error)
    finally:
        await course.close()
    return ProbeResult(
        target.name, cause is None, cause, course.connect_ms, course.first_byte_ms, course.status, course.certificate_days, clock(), detail
    )


class _Course:
    """How far a probe came and when: httpcore calls it at each step (its "trace" extension)."""

    __slots__ = ("_clock", "_sent", "_started", "_stream", "certificate_days", "connect_ms", "first_byte_ms", "phase", "status")

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._started = self._sent = self._clock()
        self._stream: Any = None
        self.phase = "connect"
        self.connect_ms: float | None = None
        self.first_byte_ms: float | None = None
        self.status: int | None = None
        self.certificate_days: float | None = None

    async def __call__(self, step: str, info: dict[str, Any]) -> None:
        match step:
            case "connection.connect_tcp.started":
                self.connecting()
            case "connection.connect_tcp.complete":
                self._stream = info["return_value"]
                self.connected()
            case "connection.start_tls.complete":
                self._read_certificate(info["return_value"].get_extra_info("ssl_object"))
            case "http11.send_request_headers.started":
                self._sent, self.phase = self._clock(), "headers"
            case "http11.receive_response_headers.complete":
                self.first_byte_ms, self.phase = (self._clock() - self._sent) * 1e3, "body"

    async def close(self) -> None:
        """Hang up. httpcore forgets to when it is cancelled in a TLS handshake."""
        if self._stream is not None:
            await self._stream.aclose()

    def connecting(self) -> None:
        self._started = self._clock()

    def connected(self) -> None:
        self.connect_ms, self.phase = (self._clock() - self._started) * 1e3, "tls"

    def _read_certificate(self, tls: ssl.SSLObject | None) -> None:
        certificate = tls and tls.getpeercert(binary_form=True)
        if certificate:
            self.certificate_days = (_not_after(certificate) - time.time()) / 86400


def _attempt(target: Target, course: _Course) -> Callable[[str, float], Awaitable[None]]:
    """Prepare what is done at an address, outside the timeout: loading certificate files is not the gateway's time."""
    if target.protocol == "tcp":
        return functools.partial(_connect, target, course)
    context = _tls_context(target.monitor) if target.protocol == "https" else _plain_context()
    return functools.partial(_get, target, course, context)


async def _try_addresses(target: Target, course: _Course, attempt: Callable[[str, float], Awaitable[None]]) -> None:
    """Make the attempt at each address of the target in turn, until one lets itself be connected to.

    The name is resolved here and not by the transports, so that connect times are round trips. Every address may use an equal share of
    the time that is left: a family that is routed into nowhere must not eat up the other's.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + target.monitor.timeout
    addresses = await resolve(target.host)
    for left in range(len(addresses), 0, -1):
        try:
            return await attempt(addresses[-left], (deadline - now()) / left)
        except (OSError, httpx.TransportError):
            if left == 1 or course.phase != "connect":
                raise


async def _connect(target: Target, course: _Course, address: str, patience: float) -> None:
    course.connecting()
    async with asyncio.timeout(patience):
        _, writer = await asyncio.open_connection(address, target.port)
    course.connected()
    writer.transport.abort()


async def _get(target: Target, course: _Course, context: ssl.SSLContext, address: str, patience: float) -> None:
    transport = httpx.AsyncHTTPTransport(verify=context, limits=httpx.Limits(max_connections=1, max_keepalive_connections=0))
    headers = [*REQUEST_HEADERS.items(), *target.monitor.headers, ("host", target.authority)]
    extensions: dict[str, Any] = {"trace": course, "sni_hostname": target.server_name}
    async with (
        httpx.AsyncClient(transport=transport, trust_env=False, timeout=httpx.Timeout(None, connect=patience)) as client,
        client.stream("GET", target.url_at(address), headers=headers, extensions=extensions, follow_redirects=False) as response,
    ):
        course.status = response.status_code
        left = BODY_LIMIT
        try:
            async for chunk in response.aiter_raw():
                left -= len(chunk)
                if left <= 0:  # hang up rather than leave the loop: that would leave httpx's generators to the garbage collector
                    await course.close()
        except httpx.ReadError:
            if left > 0:
                raise


@functools.cache
def _plain_context() -> ssl.SSLContext:
    """Give an empty context: httpx wants one even for plain HTTP, and would load the authorities for it."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _tls_context(monitor: Monitor) -> ssl.SSLContext:
    files = [name for name in (monitor.ca, *(monitor.client_certificate or ())) if name]
    return _build_tls_context(monitor.verify, monitor.ca, monitor.client_certificate, tuple(os.stat(name).st_mtime_ns for name in files))


@functools.lru_cache(maxsize=64)
def _build_tls_context(verify: bool, ca: str, client: tuple[str, str] | None, _changed: tuple[int, ...]) -> ssl.SSLContext:
    if ca:
        context = ssl.create_default_context(cafile=ca)
    else:
        context = httpx.create_ssl_context(verify=verify, trust_env=False)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if client:
        context.load_cert_chain(*client)
    return context


def _cause(error: BaseException, course: _Course) -> str:
    """Name the cause of a failed probe: by the errors beneath httpx's own, then by how far the probe came."""
    errors = [*_chain(error)]
    if any(isinstance(each, TimeoutError) for each in errors):
        return "timeout"
    if any(isinstance(each, OSError) and each.errno in LOCAL_ERRORS for each in errors):
        return LOCAL
    if any(isinstance(each, ssl.SSLError) and not isinstance(each, ssl.SSLEOFError) for each in errors):
        return "tls"
    if not isinstance(error, httpx.TransportError | OSError) or isinstance(error, FileNotFoundError | PermissionError):
        return LOCAL
    if course.phase == "headers" and any(isinstance(each, h11.RemoteProtocolError) for each in errors):
        return "status"
    return "refused" if course.phase == "connect" else "reset"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _chain(each)
        error = error.__cause__ or error.__context__  # suppressed or not: httpcore raises its errors again "from None"


def _words(error: BaseException, target: Target) -> str:
    if isinstance(error, TimeoutError):
        return f"no complete answer within {target.monitor.timeout:g} s"
    words = [text for each in _chain(error) if (text := _own_words(each))]
    return (words[-1] if words else type(error).__name__)[:DETAIL_LIMIT]


def _own_words(error: BaseException) -> str:
    """Give an error's text, with the operating system's name for its number, which asyncio replaces by its own words."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    name = os.strerror(number) if number and number > 0 else ""
    return str(error) if name in str(error) else f"{name}: {error}"


def _not_after(certificate: bytes) -> float:
    """Read the expiry (seconds since 1970) from a DER certificate.

    Python's ssl decodes a certificate only when it was verified, so this walks to the field itself; OpenSSL has parsed the bytes before.
    Source: RFC 5280 §4.1 (version, serialNumber, signature, issuer, validity { notBefore, notAfter }).
    """
    start, _ = _der(certificate, 0)
    at, _ = _der(certificate, start)
    if certificate[at] == 0xA0:
        at = _der(certificate, at)[1]
    for _ in range(3):
        at = _der(certificate, at)[1]
    not_before, _ = _der(certificate, at)
    at = _der(certificate, not_before)[1]
    start, end = _der(certificate, at)
    text = certificate[start:end].decode("ascii")
    if certificate[at] == 0x17:  # UTCTime: two digits of the year, 50..99 being 19xx
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _der(data: bytes, at: int) -> tuple[int, int]:
    """Give where the content of the DER element at `at` starts and ends."""
    length, start = data[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[at + 2 : start])
    return start, start + length
