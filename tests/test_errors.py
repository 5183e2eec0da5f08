"""Which exceptions speak of the path to a region, and what they say of it."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import socket
import ssl
import urllib.error

import httpx
import pytest

from lbcore.errors import cause_of


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, BaseException) else str(value)


def http_error(status: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://x", status, "no", {}, None)  # type: ignore[arg-type]


class Elsewhere(OSError):
    """An error of another library, as aiohttp's: a class of its own with the system's number."""


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("a local file"), PermissionError(), IsADirectoryError(), BlockingIOError(), io.UnsupportedOperation("read"),
        *(OSError(code, "local") for code in (errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EIO, errno.EADDRNOTAVAIL)),
        httpx.PoolTimeout("own pool"), httpx.UnsupportedProtocol("foo://"), httpx.LocalProtocolError("bad header"),
        httpx.ProxyError("own proxy"), httpx.TooManyRedirects("loop"), httpx.HTTPStatusError("404", request=None, response=None),  # type: ignore[arg-type]
        http_error(404), http_error(503), urllib.error.URLError("unknown url type"), urllib.error.URLError(FileNotFoundError()),
        KeyError("a bug"), KeyboardInterrupt(), asyncio.CancelledError(),
    ],
    ids=name,
)  # fmt: skip
def test_what_is_not_the_paths_fault_has_no_cause(error: BaseException) -> None:
    assert cause_of(error) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(), "refused"), (Elsewhere(errno.ECONNREFUSED, "x"), "refused"), (httpx.ConnectError("no"), "refused"),
        (TimeoutError(), "timeout"), (Elsewhere(errno.ETIMEDOUT, "x"), "timeout"), (httpx.ConnectTimeout("slow"), "timeout"),
        (httpx.ReadTimeout("slow"), "timeout"), (ssl.SSLCertVerificationError(1, "expired"), "tls"),
        (httpx.ConnectError("certificate verify failed"), "tls"), (ConnectionResetError(), "reset"), (BrokenPipeError(), "reset"),
        (OSError(errno.EHOSTUNREACH, "no route"), "reset"), (Elsewhere(errno.ECONNRESET, "x"), "reset"), (socket.gaierror(-2), "reset"),
        (OSError("Multiple exceptions: [Errno 111] ..., [Errno 111] ..."), "reset"), (http.client.RemoteDisconnected(), "reset"),
        (asyncio.IncompleteReadError(b"ab", 4), "reset"), (http.client.IncompleteRead(b"ab", 4), "reset"),
        (httpx.ReadError("cut"), "reset"), (httpx.RemoteProtocolError("cut"), "reset"),
    ],
    ids=name,
)  # fmt: skip
def test_what_is_the_paths_fault_has_a_cause(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause


@pytest.mark.parametrize(
    ("reason", "cause"),
    [(ConnectionRefusedError(), "refused"), (TimeoutError(), "timeout"), (ssl.SSLError(1, "x"), "tls"), (ConnectionResetError(), "reset")],
    ids=name,
)
def test_the_reason_of_a_url_error_is_the_cause(reason: OSError, cause: str) -> None:
    assert cause_of(urllib.error.URLError(reason)) == cause
