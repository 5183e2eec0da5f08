"""Configurations over HTTP: what primary and secondary say to each other, and what the secondary does not put up with."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from gatewaying import until
from hypothesis import given
from hypothesis import strategies as st
from syncing import body, latest

from lbcore.errors import NotPrimaryError, ServiceError
from lbcore.http.gateway import Gateway
from lbcore.service.configuration import NOTHING, Report, SourceRefusedError, SourceUnreachableError, Tag, if_revision_of, tag_of
from lbcore.service.primary import Primary
from lbcore.service.remote import Remote, answer, follow, read_report, report_text
from lbcore.service.revisions import Number
from lbcore.service.store import Store
from lbcore.service.sync import State, Sync

URL = "http://primary.test/services/contoso/gatewayConfiguration"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    with Store(tmp_path / "store.sqlite") as store:
        yield Primary(store)


def on_the_wire(response: httpx.Response) -> httpx.Response:
    """Give an answer whose content has not been read yet."""
    content = b"".join(cast(httpx.ByteStream, response.stream))
    return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(content))


def over(primary: Primary, **options: Any) -> Remote:
    """Give a Remote whose requests a primary answers, as its REST interface would."""

    async def handle(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer t" and request.headers["accept-encoding"] == "identity"
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            if request.method == "PUT":
                if_revision = if_revision_of(headers.get("if-match"), headers.get("if-none-match"))
                tag = await primary.put(json.loads(request.content), who="t", why=headers["x-lbcore-why"], if_revision=if_revision)
                return on_the_wire(httpx.Response(200, headers={"etag": str(tag)}))
            status, fields, content = await answer(primary, request.method, headers, "westeurope")
            return on_the_wire(httpx.Response(status, headers=fields, content=content))
        except ServiceError as error:
            told = {"code": error.code, "message": str(error), "target": error.target}
            return on_the_wire(httpx.Response(409, json={"error": told}))

    return Remote(URL, token="t", transport=httpx.MockTransport(handle), **options)


def says(*responses: httpx.Response | Exception, **options: Any) -> Remote:
    """Give a Remote of which a primary says one thing after the other, then the last one again."""
    left = list(responses)

    def handle(request: httpx.Request) -> httpx.Response:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        return on_the_wire(response)

    return Remote(URL, transport=httpx.MockTransport(handle), **options)


async def test_the_same_as_of_the_primary_itself_comes_over_http(primary: Primary) -> None:
    remote = over(primary)
    assert await remote.latest() is None
    first = await remote.put(body("a"), who="", why="büro\r\nx: y", if_revision=NOTHING)
    assert first.number == (1, 1) and await remote.latest() == await primary.latest()
    assert await remote.latest([first]) == await primary.latest([first])
    second = await remote.put(body("b"), who="", if_revision=first.number)
    assert second.number == (1, 2) and (await remote.latest([first])) == await primary.latest()
    with pytest.raises(ServiceError) as caught:
        await remote.put(body("c"), who="", if_revision=first.number)
    assert caught.value.code == "RevisionConflict" and caught.value.target == "1.2"
    report = Report("westeurope", "Stale", first, 31.5, "nö\n")
    await remote.latest([first], report)
    assert primary.reports["westeurope"] == Report("westeurope", "Stale", first, 31.5, "nö\N{REPLACEMENT CHARACTER}")
    await remote.close()


async def test_what_was_lost_comes_over_http(primary: Primary) -> None:
    remote = over(primary)
    for marker in "abc":
        held = await remote.put(body(marker), who="")
    await primary.win(who="ann", why="x")
    offered = await remote.latest([held], Report("westeurope", "InSync", held._replace(number=Number(1, 7)), 0.0))
    assert offered is not None and [*map(str, offered.lost)] == ["1.4", "1.5", "1.6", "1.7"]


async def test_watching_lasts_until_there_is_another_one_or_as_long_as_was_asked_for(primary: Primary) -> None:
    remote = over(primary, wait=30.0)
    first = await remote.put(body("a"), who="")
    watching = asyncio.create_task(remote.watch([first]))
    done, _ = await asyncio.wait([watching], timeout=0.1)
    assert not done
    await remote.put(body("b"), who="")
    assert await asyncio.wait_for(watching, 5) is True
    latest = await remote.latest()
    assert latest is not None and await over(primary, wait=0).watch([latest.tag]) is False


async def test_a_gateway_follows_over_http(primary: Primary) -> None:
    gateway, remote = Gateway("westeurope"), over(primary)
    sync = Sync(gateway, remote, region="westeurope", interval=30.0)
    following = asyncio.create_task(sync.run())
    for marker in "abc":
        tag = await primary.put(body(marker), who="ann")
        await until(lambda tag=tag: sync.held == tag and sync.state is State.IN_SYNC)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert gateway.revision is not None and gateway.revision.configuration.canonical == (await primary.latest()).body  # type: ignore[union-attr]


async def test_a_process_follows_as_its_settings_say(primary: Primary, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            assert headers["authorization"] == "Bearer s3cret"
            status, fields, content = await answer(primary, first.split()[0], headers, "westeurope")
            fields |= {"content-length": str(len(content))} if status == 200 and content else {}
            writer.write("\r\n".join([f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in fields.items()), "", ""]).encode() + content)

    (tmp_path / "token").write_text("s3cret\n")
    gateway = Gateway("westeurope")
    async with listening(serve) as url:
        settings = {"primary": url, "token_file": str(tmp_path / "token"), "region": "westeurope", "interval": 0.5, "timeout": 2.0}
        following = asyncio.create_task(follow(gateway, settings))
        for marker in "ab":
            tag = await primary.put(body(marker), who="ann")
            await until(lambda tag=tag: gateway.revision is not None and tag_of(gateway.revision.configuration) == tag)
        await until(lambda: primary.reports["westeurope"].held == tag)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# ===== what is not put up with

SOUND = latest((1, 8))
TAG = {"etag": str(SOUND.tag)}


@pytest.mark.parametrize(("response", "expected"), [
    (httpx.Response(200, content=SOUND.body), "tag"), (httpx.Response(200, headers={"etag": '"x"'}), "tag"),
    (httpx.Response(200, headers={"etag": f"{SOUND.tag}, {SOUND.tag}"}), "tag"), (httpx.Response(304, headers=TAG), "tag"),
    (httpx.Response(304), "tag"), (httpx.Response(200, headers=TAG, content=b" " * (5 << 20)), "size"),
    (httpx.Response(200, headers=TAG | {"content-encoding": "gzip"}, content=gzip.compress(b" " * (5 << 20))), "encoding"),
    (httpx.Response(302, headers={"location": "http://169.254.169.254/"}), "status"), (httpx.Response(401), "status"),
    (httpx.Response(403, json={"error": {"code": "Forbidden", "message": "x"}}), "status"), (httpx.Response(404), "status"),
    (httpx.Response(206, headers=TAG, content=b"x"), "status"), (httpx.Response(404, content=b"[" * 100_000), "status"),
])  # fmt: skip
async def test_answers_that_cannot_be_true_or_are_not_for_us_are_refused(response: httpx.Response, expected: str) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        await says(response).latest([latest((1, 1)).tag])
    assert caught.value.reason == expected


@pytest.mark.parametrize("response", [
    httpx.Response(503, json={"error": {"code": "ManagementPlaneUnavailable", "message": "x"}}), httpx.Response(502), httpx.Response(429),
    httpx.Response(421, json={"error": {"code": "NotPrimary", "message": "x", "target": "http://other"}}), httpx.ConnectError("refused"),
    httpx.ReadTimeout("late"), httpx.RemoteProtocolError("garbage"), OSError("unreachable"),
])  # fmt: skip
async def test_where_nobody_manages_there_is_nobody(response: Any) -> None:
    for ask in (lambda: says(response).latest(), lambda: says(response).watch()):
        with pytest.raises(SourceUnreachableError):
            await ask()


async def test_errors_of_a_write_are_those_of_the_primary() -> None:
    error = {"error": {"code": "NotPrimary", "message": "m", "target": "http://other"}}
    with pytest.raises(NotPrimaryError, match="http://other"):
        await says(httpx.Response(421, json=error)).put(body(), who="")
    for content in (b"", b"[]", b'{"error": 1}', b'{"error": {"code": null}}'):
        with pytest.raises((SourceRefusedError, ServiceError)):
            await says(httpx.Response(400, content=content)).put(body(), who="")


@asynccontextmanager
async def listening(behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/c"
    finally:
        server.close()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\netag: {SOUND.tag}\r\ncontent-length: 4000000\r\n\r\n".encode())
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\netag: {SOUND.tag}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    while not writer.is_closing():
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\0\xff not http \r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(("behave", "expected"), [(_drip, "no whole answer"), (_flood, "more than"), (_garbage, "RemoteProtocolError")])
async def test_answers_that_never_end_end(behave: Any, expected: str) -> None:
    async with listening(behave) as url:
        remote = Remote(url, timeout=0.5)
        async with asyncio.timeout(10):
            with pytest.raises((SourceUnreachableError, SourceRefusedError), match=expected):
                await remote.latest()
        await remote.close()


async def test_a_black_hole_holds_up_nobody_who_is_served() -> None:
    """A listener whose queue is full lets connections hang as an address does from which nothing comes back."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        host, port = hole.getsockname()
        full = [socket.socket() for _ in range(3)]
        for each in full:
            each.setblocking(False)
            each.connect_ex((host, port))
        remote, gateway = Remote(f"http://{host}:{port}/c", timeout=1.0), Gateway("westeurope")
        gateway.apply(json.loads(SOUND.body or b""))
        sync = Sync(gateway, remote, interval=0.2)
        following = asyncio.create_task(sync.run())
        await until(lambda: sync.counters["unreachable"] >= 2, 10.0)
        assert sync.state is State.ORPHANED and gateway.status()[0] == 200
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await remote.close()
        for each in full:
            each.close()


# ===== reports


@given(st.text(), st.none() | st.integers(0, 2**53).map(lambda n: latest((1, n)).tag), st.floats(0, 1e11), st.text())
def test_reports_are_read_as_they_are_written(state: str, held: Tag | None, lag: float, refused: str) -> None:
    text = report_text(Report("elsewhere", state, held, lag, refused))
    assert text.isascii() and text.isprintable()
    read = read_report(text, "westeurope")
    if len(text) <= 4000:
        assert read is not None and (read.region, read.held, read.lag) == ("westeurope", held, lag)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["held", "lag", "state", "refused", "x"]), inner)).map(json.dumps))  # fmt: skip
def test_reports_may_be_anything(text: str) -> None:
    read = read_report(text, "westeurope")
    assert read is None or read.region == "westeurope" and read.lag >= 0


@pytest.mark.parametrize("lag", ["NaN", "Infinity", "-1", "1e400", '"x"', "[]"])
def test_a_lag_is_a_number(lag: str) -> None:
    assert read_report(f'{{"held": "", "state": "InSync", "lag": {lag}, "refused": ""}}', "w") is None
