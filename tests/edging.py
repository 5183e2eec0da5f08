"""Rotations, and a primary that says them, for the tests of edges."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from listening import Listening

from lbcore.service.configuration import Latest, Report, SourceUnreachableError, Tag, canonical_bytes
from lbcore.service.remote import answer
from lbcore.service.revisions import Number
from lbcore.service.rotation_document import Rotation, read

SERVICE = "contoso"
PLACES = {"westeurope": (52.37, 4.90), "eastus": (37.37, -79.82), "southeastasia": (1.28, 103.83), "westus2": (47.23, -119.85)}
MONITOR = {"intervalInSeconds": 1, "timeoutInSeconds": 0.9, "path": "/status"}


def region(name: str = "westeurope", gateway: str = "", addresses: Collection[str] = ("192.0.2.1",), **more: Any) -> dict[str, Any]:
    """Give a region as a rotation lists it."""
    lat, lon = PLACES.get(name, (0.0, 0.0))
    made = {"name": name, "displayName": name, "lat": lat, "lon": lon, "gateway": gateway, "addresses": [*addresses], "units": 1}
    return {**made, "enabled": True, "draining": False, **more}


def body(number: tuple[int, int] = (1, 1), *regions: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Give a rotation's document; without regions it lists westeurope."""
    made = {"service": SERVICE, "domain": "example.test", "epoch": number[0], "sequence": number[1], "networkType": "None"}
    manager = {"properties": {"monitorConfig": {**MONITOR}}}
    return {**made, "regions": [*(regions or (region(),))], "trafficManager": manager, **more}


def rotation(number: tuple[int, int] = (1, 1), *regions: Mapping[str, Any], **more: Any) -> Rotation:
    """Give a rotation."""
    return read(canonical_bytes(body(number, *regions, **more)))


def offer(content: Mapping[str, Any] | bytes, number: tuple[int, int] | None = None) -> Latest:
    """Give what a source offers, whose tag says what it says of itself, or `number`."""
    data = content if isinstance(content, bytes) else canonical_bytes(content)
    if number is None:
        told = json.loads(data)
        number = told["epoch"], told["sequence"]
    return Latest(Tag(Number(*number), hashlib.sha256(data).hexdigest()), data)


class Rotations:
    """What a primary has, and what it is told. mode: "up", "refuse", or "hang" """

    def __init__(self, first: Latest | None = None) -> None:
        self.offered, self.mode = first, "up"
        self.asked = 0
        self.reports: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def publish(self, offered: Latest | None) -> None:
        self.offered = offered
        self._changed.set()

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        self.asked += 1
        await self._available()
        if self.offered is None or self.offered.tag in known:
            return self.offered and Latest(self.offered.tag)
        return self.offered

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        await self._available()
        while self.offered is None or self.offered.tag in known:
            self._changed.clear()
            await self._changed.wait()
            await self._available()
        return True

    async def _available(self) -> None:
        if self.mode == "hang":
            await asyncio.sleep(1e9)
        if self.mode != "up":
            raise SourceUnreachableError("connection refused")


class Primary(Listening):
    """A management plane on loopback, as far as an edge sees it."""

    def __init__(self, rotations: Rotations, configurations: Any = None, token: str = "s3cret") -> None:
        super().__init__()
        self.rotations, self.configurations, self.token = rotations, configurations, token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            content = await reader.readexactly(int(headers.get("content-length", 0)))
            status, fields, found = await self._answer(*first.split()[:2], headers, content)
            fields = {"content-length": str(len(found))} | fields if status not in (204, 304) else fields
            lines = [f"HTTP/1.1 {status} X", *(f"{key}: {value}" for key, value in fields.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + found)
            await writer.drain()

    async def _answer(self, method: str, path: str, headers: Mapping[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, b'{"error":{"code":"Unauthorized","message":"no"}}'
        if path == f"/services/{SERVICE}/reports":
            self.rotations.reports.append(json.loads(content))
            return 204, {}, b""
        source = {"rotation": self.rotations, "gatewayConfiguration": self.configurations}.get(path.removeprefix(f"/services/{SERVICE}/"))
        if source is None:
            return 404, {}, b'{"error":{"code":"ResourceNotFound","message":"no"}}'
        return await answer(source, method, headers, "westeurope" if source is self.configurations else "")
