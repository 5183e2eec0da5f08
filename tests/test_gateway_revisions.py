"""Revisions published under load: every response belongs to exactly one, none goes back, nothing is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gatewaying import Served, document, serving, until
from proxying import OK, Reader, Writer, on_both_loops, origin, read_request

from lbcore.errors import ConfigError
from lbcore.http.gateway import Gateway

REVISIONS = 100
CLIENTS = 8


def revision(number: int, *urls: str) -> dict[str, Any]:
    """Give a document whose every part says its number: request header, response header, path and backend."""
    name = f"b{number % 3}"
    policies = {
        "inbound": [{"policy": "set-header", "name": "x-asked-by", "value": f"1.{number}"}],
        "outbound": [{"policy": "set-header", "name": "x-payload", "value": f"1.{number}"}],
    }
    operations = [{"name": f"o{number}", "method": "GET", "path": "/{id}"}]
    api = {"name": "orders", "path": "/orders", "backend": name, "policies": policies, "operations": operations}
    everywhere = {"outbound": [{"policy": "set-header", "name": "x-global", "value": f"1.{number}"}]}
    backends = [{"name": name, "urls": [urls[number % len(urls)]]}]
    return {"epoch": 1, "sequence": number, "apis": [api], "backends": backends, "policies": everywhere}


async def asked_by(reader: Reader, writer: Writer) -> None:
    """Answer, after a moment now and then, with the revision that asked."""
    count = 0
    while True:
        head = await read_request(reader)
        said = next(line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"x-asked-by:"))
        count += 1
        if count % 5 == 0:
            await asyncio.sleep(0.002)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))


class Client:
    """A client that asks on one connection until it is told to stop; what it was answered."""

    def __init__(self, port: int) -> None:
        self.port, self.stopped = port, False
        self.answers: list[tuple[int, dict[str, str], str]] = []

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.stopped:
            writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: a.test\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
            body = await reader.readexactly(int(fields["content-length"]))
            self.answers.append((int(head[0].split()[1]), fields, body.decode()))
        writer.close()


@contextlib.asynccontextmanager
async def asking(here: Served) -> AsyncIterator[list[Client]]:
    clients = [Client(here.port) for _ in range(CLIENTS)]
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run())
        yield clients
        for client in clients:
            client.stopped = True


def check(clients: list[Client]) -> int:
    """Check every answer; gives how many there were."""
    for client in clients:
        numbers = []
        for status, fields, body in client.answers:
            assert status == 200
            said = fields["x-lbcore-revision"]
            assert said == body == fields["x-payload"] == fields["x-global"]
            numbers.append(int(said.partition(".")[2]))
        assert numbers == sorted(numbers)  # a client that waits for each answer never sees an older one
    return sum(len(client.answers) for client in clients)


@on_both_loops
async def test_a_hundred_revisions_under_load() -> None:
    async with origin(asked_by, record=False) as one, origin(asked_by, record=False) as two:
        async with serving(revision(0, one.url, two.url)) as here:
            async with asking(here) as clients:
                for number in range(1, REVISIONS + 1):
                    here.gateway.apply(revision(number, one.url, two.url))
                    now = f"1.{number}"  # calls that began before it are answered by the revision before
                    await until(lambda now=now: any(client.answers and client.answers[-1][2] == now for client in clients))  # type: ignore[misc]
            total = check(clients)
            counters = here.gateway.counters
            assert counters["requests"] == total and counters["revisions"] == REVISIONS + 1
            assert not any(counters.get(name) for name in ("failed_reset", "failed_here", "overloaded", "refused", "exceptions"))
            seen_revisions = {answer[2] for client in clients for answer in client.answers}
            assert len(seen_revisions) >= REVISIONS
            await until(lambda: not here.gateway._old)
            assert len(here.gateway._backends._held) == 1


async def test_update_reads_in_another_thread_and_malformed_ones_change_nothing() -> None:
    async with origin(asked_by, record=False) as there, serving(revision(0, there.url)) as here:
        async with asking(here) as clients:
            for number in range(1, 21):
                with pytest.raises(ConfigError):
                    await here.gateway.update(revision(number, "ftp://nowhere"))
                assert (await here.gateway.update(revision(number, there.url))).name == f"1.{number}"
            assert here.gateway.revision is not None and here.gateway.revision.name == "1.20"
        assert check(clients) > 0


async def test_updates_at_once_end_with_the_greatest() -> None:
    gateway = Gateway("westeurope")
    results = await asyncio.gather(*(gateway.update(document(sequence=number)) for number in (1, 5, 3, 9, 7)), return_exceptions=True)
    assert gateway.revision is not None and gateway.revision.name == "1.9"
    assert sum(not isinstance(result, Exception) for result in results) >= 3


async def test_a_policy_that_cannot_be_prepared_refuses_the_whole() -> None:
    bad = document(sequence=2, policies={"inbound": [{"policy": "set-header", "name": "x", "value": "y", "when": "no condition ("}]})
    gateway = Gateway("westeurope")
    before = gateway.apply(document())
    with pytest.raises(ConfigError) as caught:
        gateway.apply(bad)
    assert len(caught.value.violations) == 1 and gateway.revision is before


async def test_a_relay_holds_its_revision_until_it_ends() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")

    async def relaying(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(100):
            writer.write(data)

    async with origin(relaying) as there, origin(lambda reader, writer: answer_once(reader, writer)) as other:
        async with serving(document(there.url)) as here:
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write("\r\n".join(["GET /orders/1 HTTP/1.1", "Host: a.test", *upgrade, "", ""]).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"101" in head and b"X-Lbcore-Revision: 1.1" in head
            old = here.gateway.revision
            here.gateway.apply(document(other.url, sequence=2))
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            assert old is not None and old.calls == 1 and here.gateway.units.under_way == 1
            writer.close()
            await until(lambda: old.calls == 0)
            assert (await here.ask()).field(b"x-lbcore-revision") == b"1.2"


async def answer_once(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(OK)
