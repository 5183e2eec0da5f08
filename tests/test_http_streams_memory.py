"""Memory of a front door in a process of its own: streams of any length, crowds of connections that are idle, slow or silent."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from door import Door, apart
from proxying import answering, origin, request

pytestmark = pytest.mark.slow

PART = bytes(250_000)
CHUNK = b"%x\r\n%b\r\n" % (len(PART), PART)
BIG, HUGE = 200_000_000, 10_000_000_000
GROWTH = 24_000  # kB


def heavy(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.heavy)


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection in a thread of its own, with blocking sockets: fast enough for streams of gigabytes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                threading.Thread(target=one, args=(accepted,), daemon=True).start()

    def one(accepted: socket.socket) -> None:
        with suppress(OSError), accepted:
            serve(accepted)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    with suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def head_of(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := sock.recv(65536)):
            raise OSError("closed in a head")
        data += part
    return data


def drain(sock: socket.socket, size: int) -> int:
    """Take `size` bytes, or all until the end."""
    buffer, taken = memoryview(bytearray(1 << 20)), 0
    while taken < size and (got := sock.recv_into(buffer[: min(len(buffer), size - taken)])):
        taken += got
    return taken


def pour(sock: socket.socket, size: int, chunked: bool) -> None:
    for _ in range(size // len(PART)):
        sock.sendall(CHUNK if chunked else PART)
    if chunked:
        sock.sendall(b"0\r\n\r\n")


async def stream(door: Door, visit: Callable[[int], int], size: int, what: str) -> None:
    """Hold the growth of the front door's memory against its bound while a client visits."""
    await asyncio.to_thread(visit, 10_000_000)  # code is loaded, buffers are there
    before, begun = door.kilobytes("VmHWM"), time.monotonic()
    assert await asyncio.to_thread(visit, size) == size
    grown, took = door.kilobytes("VmHWM") - before, time.monotonic() - begun
    print(f"{what}: {size / 1e9:g} GB in {took:.1f} s, {size / took / 1e6:.0f} MB/s, grown by {grown} kB")
    assert grown < GROWTH


@pytest.mark.parametrize(("chunked", "size"), [(True, BIG), heavy(False, BIG), heavy(True, HUGE)])
async def test_an_upload_of_any_length(size: int, chunked: bool) -> None:
    def take(sock: socket.socket) -> None:
        head, _, rest = head_of(sock).partition(b"\r\n\r\n")
        if b"chunked" not in head:
            taken = len(rest) + drain(sock, int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]) - len(rest))
        else:
            taken = dechunk(sock, rest)
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%d" % (len(str(taken)), taken))

    def visit(length: int) -> int:
        with socket.create_connection(("127.0.0.1", door.port)) as sock:
            sock.sendall(request("PUT", "/", b"", "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"))
            pour(sock, length, chunked)
            sock.settimeout(30)
            return int(head_of(sock).partition(b"\r\n\r\n")[2])

    with server(take) as url:
        async with apart(url) as door:
            await stream(door, visit, size, f"up, {'chunked' if chunked else 'length'}")


def dechunk(sock: socket.socket, data: bytes) -> int:
    """Take a chunked body and give its length."""
    taken = 0
    while True:
        while b"\r\n" not in data:
            data += sock.recv(65536)
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if len(data) < size + 2:
            drain(sock, size + 2 - len(data))
            data = b""
        else:
            data = data[size + 2 :]
        if not size:
            return taken
        taken += size


@pytest.mark.parametrize(
    ("framing", "size"),
    [("length", BIG), heavy("chunked", BIG), heavy("end", BIG), heavy("length", HUGE)],
)
async def test_a_download_of_any_length(size: int, framing: str) -> None:
    def give(sock: socket.socket) -> None:
        length = int(head_of(sock).split(b" ")[1].strip(b"/"))
        lines = {"length": b"Content-Length: %d\r\n" % length, "chunked": b"Transfer-Encoding: chunked\r\n", "end": b""}
        sock.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n" % lines[framing])
        pour(sock, length, framing == "chunked")

    def visit(length: int) -> int:
        with socket.create_connection(("127.0.0.1", door.port)) as sock:
            sock.sendall(request("GET", f"/{length}"))
            _, _, rest = head_of(sock).partition(b"\r\n\r\n")
            return len(rest) + drain(sock, length - len(rest)) if framing == "length" else dechunk(sock, rest)

    with server(give) as url:
        async with apart(url) as door:
            await stream(door, visit, size, f"down, {framing}")


@pytest.mark.parametrize("size", [BIG, heavy(HUGE)])
async def test_an_upgraded_connection_of_any_length_both_ways_at_once(size: int) -> None:
    """Both sides pour and take at the same time; the slower of them holds the other back."""

    def both(sock: socket.socket, length: int, rest: bytes) -> int:
        pouring = threading.Thread(target=pour, args=(sock, length, False), daemon=True)
        pouring.start()
        taken = len(rest) + drain(sock, length - len(rest))
        pouring.join()
        return taken

    def switch(sock: socket.socket) -> None:
        head, _, rest = head_of(sock).partition(b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        both(sock, int(head.split(b" ")[1].strip(b"/")), rest)
        sock.recv(1)

    def visit(length: int) -> int:
        with socket.create_connection(("127.0.0.1", door.port)) as sock:
            sock.sendall(request("GET", f"/{length}", b"", "Connection: Upgrade", "Upgrade: websocket", close=False))
            _, _, rest = head_of(sock).partition(b"\r\n\r\n")
            return both(sock, length, rest)

    with server(switch) as url:
        async with apart(url) as door:
            await stream(door, visit, size, "relay, each way")


# ===== crowds


def descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted + 500:
        pytest.skip(f"needs {wanted + 500} descriptors, has {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 500), hard))


async def crowd(door: Door, count: int, greeting: bytes, answered: bool) -> list[socket.socket]:
    """Open connections and greet on each; the next hundred when the front door has taken those before."""
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        for _ in range(100):
            sockets.append(sock := socket.create_connection(("127.0.0.1", door.port)))
            sock.sendall(greeting)
        if answered:
            for sock in sockets[-100:]:
                await asyncio.to_thread(head_of, sock)
    async with asyncio.timeout(30):
        while (await door.holds())["inbounds"] < count:
            await asyncio.sleep(0.05)
    return sockets


SLOW = b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"x" * 2000


@pytest.mark.parametrize(("idle", "count"), [(True, 500), heavy(True, 10_000), heavy(False, 10_000)])
async def test_a_crowd_of_connections(idle: bool, count: int) -> None:
    """Kept alive and idle, or in the middle of a head: a few kB each, others are served, and all are closed when their time is over."""
    descriptors(count)
    async with origin(answering(), record=False) as there, apart(there.url, timeouts={"keep_alive": 30.0, "head": 30.0}) as door:
        for sock in await crowd(door, 100, request(close=False), True):
            sock.close()
        before = door.kilobytes()
        sockets = await crowd(door, count, request(close=False) if idle else SLOW, idle)
        each = (door.kilobytes() - before) / count
        print(f"{count} connections: {each:.1f} kB each")
        with socket.create_connection(("127.0.0.1", door.port)) as sock:
            sock.sendall(request())
            assert (await asyncio.to_thread(head_of, sock)).startswith(b"HTTP/1.1 200 ")
        for sock in sockets:
            sock.close()
        async with asyncio.timeout(30):
            while (held := await door.holds())["inbounds"] > 0:
                await asyncio.sleep(0.05)
        assert each < 24 and held["tasks"] < 10 and held["counters"].get("exceptions", 0) == 0


async def test_a_crowd_of_slow_heads_is_closed_in_time() -> None:
    descriptors(500)
    async with origin(answering(), record=False) as there, apart(there.url, timeouts={"head": 1.0, "linger": 0.2}) as door:
        sockets = await crowd(door, 500, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", False)
        begun = time.monotonic()
        while (await door.holds())["inbounds"] and time.monotonic() - begun < 20:
            for sock in sockets:
                with suppress(OSError):
                    sock.send(b"x")
            await asyncio.sleep(0.05)
        assert (await door.holds())["counters"]["refused"] == 500
        for sock in sockets:
            sock.close()
