"""Scenario 2 against real processes: the closest by measured latency, from a matrix that is injected, and after its inversion."""

from __future__ import annotations

import asyncio
import base64
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clock
from deployment import Lab, service
from nodes import until

from lbcore import Balancer, Region

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
REGIONS = ("westus2", "westeurope", "eastasia")
CLIENTS = ("8.8.8.8", "81.2.69.1", "1.64.0.1")
MATRIX = np.array([[20.0, 90.0, 150.0], [95.0, 18.0, 140.0], [150.0, 200.0, 25.0]])  # ms, client x region


def learned(matrix: Any, folder: Path) -> str:
    """Give what a front door that measured this matrix knows, as an edge reports it."""
    clock, rng = Clock(1000.0), random.Random(2)
    lb = Balancer([Region(name) for name in REGIONS], clock=clock)
    for _ in range(60):
        clock.advance(1.0)
        for client, row in zip(CLIENTS, matrix, strict=True):
            for name, ms in zip(REGIONS, row, strict=True):
                lb.observe(name, ms * rng.uniform(0.97, 1.03), client)
        lb.tick()
    lb.save(folder / "learned")
    return base64.b64encode((folder / "learned").read_bytes()).decode()


async def decided(lab: Lab) -> list[list[str]]:
    """Give the order of the regions for each client, as the management plane decides."""
    return [[one["region"] for one in (await lab.api.get("/rank", client=client))["value"]] for client in CLIENTS]


async def test_2_a_reported_matrix_decides_for_nine_of_nine_and_so_does_its_inversion(tmp_path: Path) -> None:
    async with service(tmp_path, *REGIONS, edges=()) as lab:
        for matrix in (MATRIX, 220.0 - MATRIX):
            known, wanted = learned(matrix, tmp_path), [[REGIONS[place] for place in np.argsort(row)] for row in matrix]
            began = time.monotonic()
            await until(lambda known=known, wanted=wanted: _decided(lab, known, wanted), f"the order is {wanted}", 45.0, 0.5)
            print(f"nine of nine after {time.monotonic() - began:.1f} s")
            for client, order in zip(CLIENTS, wanted, strict=True):
                assert (await lab.api.get("/route", client=client))["region"] == order[0]


async def _decided(lab: Lab, known: str, wanted: list[list[str]]) -> bool:
    """Report what an edge learned, as it does again and again, and say whether the management plane decides by it."""
    report = {"edge": "beacon", "at": time.time(), "rotation": "0.0", "regions": {}, "learned": known}
    answer = await lab.node("beacon").ask("POST", "/reports", json=report)
    assert answer.status_code == 204, answer.text
    return await decided(lab) == wanted


class Backends:
    """Origins, one for each region, that answer a client after the round trip that the matrix gives for it."""

    def __init__(self) -> None:
        self.matrix = MATRIX / 1000.0
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> dict[str, list[str]]:
        """Give the URLs by region."""
        urls = {}
        for place, name in enumerate(REGIONS):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: int = place) -> None:
                await self._serve(reader, writer, place)

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self._servers.append(server)
            urls[name] = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]
        return urls

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: int) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                client = next((number for number, one in enumerate(CLIENTS) if one in head), 0)
                await asyncio.sleep(self.matrix[client][place])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:  # also when the test ends before its client: it would be garbage in another test
            self._open.discard(writer)
            writer.transport.abort()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in self._open:
            writer.transport.abort()
        await until(lambda: not self._open, "nobody is served any more")


async def test_2_clients_leave_a_region_that_became_slow_for_them_alone_and_come_back(tmp_path: Path) -> None:
    backends = Backends()
    urls = await backends.start()
    document = {
        "backends": [{"name": "origin", "urls": urls["westus2"], "regions": urls}],
        "apis": [{"name": "all", "path": "/", "backend": "origin"}],
    }
    async with service(tmp_path, *REGIONS, document=document) as lab:
        vips = await lab.addresses()
        load = asyncio.ensure_future(requests(lab))
        try:
            for place, name in enumerate(REGIONS):
                await until(lambda place=place, name=name: _at(lab, vips, place, name), f"{CLIENTS[place]} is at {name}")
            backends.matrix = MATRIX / 1000.0 + np.array([[0.4, 0, 0], [0, 0, 0], [0, 0, 0]])  # for the first client alone
            await until(lambda: _at(lab, vips, 0, "westeurope"), "the first client goes to its next closest region")
            assert await _at(lab, vips, 1, "westeurope") and await _at(lab, vips, 2, "eastasia")
            backends.matrix = MATRIX / 1000.0
            await until(lambda: _at(lab, vips, 0, "westus2"), "the first client comes back")
        finally:
            load.cancel()
            await asyncio.wait([load])
            await backends.close()


async def requests(lab: Lab) -> None:
    """Have every client ask ten times a second."""
    while True:
        await asyncio.gather(*(lab.get(headers={"X-Forwarded-For": client}) for client in CLIENTS), asyncio.sleep(0.1))


async def _at(lab: Lab, vips: dict[str, tuple[str, ...]], place: int, region: str) -> bool:
    """Say whether a client is sent to a region by DNS and by the front door, which share what they know."""
    network = CLIENTS[place].rpartition(".")[0] + ".0/24"
    at = [await lab.region(headers={"X-Forwarded-For": CLIENTS[place]}) for _ in range(3)]
    return await lab.dns(network) == vips[region] and at.count(region) >= 2  # one may be exploring
