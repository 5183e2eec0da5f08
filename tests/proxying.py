"""Origins, clients and engines for the tests of the forwarding engine: real sockets on loopback, all in the test's own loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h11
import pytest
import uvloop

from lbcore.http.forward import Call, Forwarder, Limits, Response, Target, Timeouts
from lbcore.http.response import ResponseReader

WAIT = 10.0  # seconds until a test gives up
QUICK = Timeouts(head=0.3, body=0.3, keep_alive=0.4, first_byte=0.3, idle=0.3, stall=0.4, relay=0.5, linger=0.2, rate=0.0)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test once on asyncio's event loop and once on uvloop's."""

    def run(loop: str, **arguments: Any) -> None:
        async def main() -> None:
            await test(**arguments)

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    own = inspect.signature(test).parameters.values()
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*own, loop])  # type: ignore[attr-defined]
    run.pytestmark = [*getattr(test, "pytestmark", ())]  # type: ignore[attr-defined]
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return parametrized


@dataclass
class Origin:
    """A server that does what its script says with each connection; `got` has the bytes of each."""

    script: Script
    record: bool = True
    got: list[bytearray] = field(default_factory=list)
    port: int = 0
    kill: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, arrived: socket.socket) -> None:
        loop, reader, got = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 22), bytearray()
        self.got.append(got)
        feed = reader.feed_data
        if self.record:
            reader.feed_data = lambda data: (got.extend(data), feed(data))[1]  # type: ignore[method-assign,func-returns-value]
        transport, protocol = await loop.connect_accepted_socket(lambda: asyncio.StreamReaderProtocol(reader), arrived)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self.script(reader, writer)
        transport.abort()


@asynccontextmanager
async def origin(script: Script, port: int = 0, record: bool = True) -> AsyncIterator[Origin]:
    """Give a running origin. It accepts by itself: asyncio's server forgets what it accepted in the turn in which it is closed."""
    made, loop = Origin(script, record), asyncio.get_running_loop()
    listening = socket.create_server(("127.0.0.1", port))
    listening.setblocking(False)
    begun: dict[asyncio.Task[None], socket.socket | None] = {}

    def accept() -> None:
        with suppress(BlockingIOError, ConnectionError):
            arrived, _ = listening.accept()
            arrived.setblocking(False)
            begun[asyncio.ensure_future(serve(arrived))] = arrived

    async def serve(arrived: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        begun[task] = None  # from here on the socket is a transport's
        await made.serve(arrived)
        del begun[task]

    def kill() -> None:
        """Stop listening and drop every connection."""
        if listening.fileno() != -1:
            loop.remove_reader(listening)
            listening.close()
        for task, arrived in begun.items():
            task.cancel()
            if arrived is not None:
                arrived.close()

    loop.add_reader(listening, accept)
    made.kill, made.port = kill, listening.getsockname()[1]
    try:
        yield made
    finally:
        kill()
        await asyncio.gather(*begun, return_exceptions=True)


@dataclass
class Heard:
    """A request as h11 understood it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def field(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, f"{name!r} more than once"
        return values[0] if values else None


def understand(data: bytes) -> list[Heard]:
    """Read a connection's bytes with an independent parser; RemoteProtocolError when they are not HTTP."""
    connection, heard = h11.Connection(h11.SERVER), list[Heard]()
    connection.receive_data(data)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            heard.append(Heard(event.method, event.target, [*event.headers]))
        elif isinstance(event, h11.Data):
            heard[-1].body += event.data
        elif isinstance(event, h11.EndOfMessage):
            heard[-1].trailers = [*event.headers]
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return heard
            connection.start_next_cycle()
        else:
            return heard


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one whole request; its body's bytes as they came."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return head + await reader.readuntil(b"0\r\n\r\n")
    if (at := lower.find(b"content-length: ")) >= 0:
        return head + await reader.readexactly(int(lower[at + 16 : lower.index(b"\r\n", at)]))
    return head


def answering(response: bytes = OK, close: bool = False) -> Script:
    """Answer every request with the same bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(response)
            await writer.drain()
            if close:
                return

    return script


def resetting(writer: asyncio.StreamWriter) -> None:
    """Close with a reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def full_queue() -> Iterator[str]:
    """Give the URL of an origin whose queue is full: no connection to it comes about."""
    with socket.socket() as listening, ExitStack() as fillers:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


class To:
    """A handler that sends every call to one URL after the other."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self.urls, self.options = urls, options
        self.engine: Forwarder
        self.failures: list[str | None] = []
        self.calls: list[Call] = []
        self.heads: list[int] = []
        self.answer: Response | None = None

    def target(self, index: int) -> Target:
        upstream = self.engine.upstream(self.urls[index], **self.options)
        return Target(upstream, str(index), host=upstream.authority)

    def begin(self, call: Call, /) -> Target | Response:
        return self.answer or self.target(0)

    def retry(self, call: Call, cause: str | None, /) -> Target | None:
        self.failures.append(cause)
        return self.target(call.attempts) if call.attempts < len(self.urls) else None

    def answered(self, call: Call, head: ResponseReader, /) -> Target | Response | None:
        self.heads.append(head.status)
        return None

    def failed(self, call: Call, response: Response, /) -> Response:
        return response

    def done(self, call: Call, /) -> None:
        self.calls.append(call)


@asynccontextmanager
async def forwarding(handler: Any, timeouts: Timeouts = QUICK, limits: Limits | None = None, **options: Any) -> AsyncIterator[int]:
    """Run an engine; gives its port."""
    listen = {name: options.pop(name) for name in ("tls", "proxy_protocol") if name in options}
    handler.engine = engine = Forwarder(handler, timeouts=timeouts, limits=limits, **options)
    _, port = await engine.listen("127.0.0.1", 0, **listen)
    try:
        yield port
    finally:
        await engine.close()
        assert not engine.inbounds and not engine.relays
        assert all(not upstream.open for upstream in engine.upstreams.values())


async def talk(port: int, *parts: bytes, pause: float = 0.0, end: bool = False, wait: float = WAIT) -> bytes:
    """Send bytes and give everything that comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(wait), asyncio.TaskGroup() as tasks:
            heard = tasks.create_task(_hear(reader))
            for part in parts:
                if heard.done():
                    break
                writer.write(part)
                await asyncio.sleep(pause)
            if end:
                with suppress(OSError):  # it is closed already
                    writer.write_eof()
        return heard.result()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _hear(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, orderly or not."""
    heard = b""
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            heard += data
    return heard


@dataclass
class Answer:
    """A response as h11 understood it."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = False
    interim: list[int] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def field(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key == name), None)


def answers(data: bytes, methods: Sequence[str] = ("GET",), ended: bool = True) -> list[Answer]:
    """Read responses to requests of these methods with an independent parser."""
    found: list[Answer] = []
    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(data)
    if ended:
        connection.receive_data(b"")
    for method in methods:
        connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        connection.send(h11.EndOfMessage())
        if (answer := _answer(connection)) is None:
            return found
        found.append(answer)
        if not answer.complete or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return found
        connection.start_next_cycle()
    return found


def _answer(connection: h11.Connection) -> Answer | None:
    interim: list[int] = []
    answer: Answer | None = None
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return answer  # cut off
        if isinstance(event, h11.InformationalResponse):
            interim.append(event.status_code)
        elif isinstance(event, h11.Response):
            answer = Answer(event.status_code, [*event.headers], interim=interim)
        elif isinstance(event, h11.Data):
            assert answer is not None
            answer.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert answer is not None
            answer.complete, answer.trailers = True, [*event.headers]
            return answer
        else:
            return answer


def request(method: str = "GET", path: str = "/", body: bytes = b"", *fields: str, close: bool = True) -> bytes:
    """Write a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: api.example", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body
