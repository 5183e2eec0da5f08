"""Sources, gateways and a virtual clock for the tests of synchronisation."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import pytest
from gatewaying import document
from virtual import VirtualLoop, run

from lbcore.http.gateway import Gateway
from lbcore.service.configuration import Latest, Report, SourceUnreachableError, Tag, canonical_bytes, document_of
from lbcore.service.revisions import Number
from lbcore.service.sync import Sync

T = TypeVar("T")
INTERVAL = 10.0


def body(marker: str = "a") -> dict[str, Any]:
    """Give a document without numbers whose content is told apart by a marker."""
    made = document()
    made["apis"][0]["display_name"] = marker
    return {key: value for key, value in made.items() if key not in ("epoch", "sequence")}


def latest(number: tuple[int, int], marker: str = "a", **changes: Any) -> Latest:
    """Give a sound revision."""
    whole = canonical_bytes(document_of(canonical_bytes(body(marker)), Number(*number)))
    return Latest(Tag(Number(*number), hashlib.sha256(whole).hexdigest()), whole, **changes)


class Source:
    """A primary in memory. mode: "up", "refuse", or "hang" (an address from which nothing ever comes)

    offer: what it has; told: reports; hints: whether `watch` works
    """

    def __init__(self, offer: Latest | None = None, hints: bool = True) -> None:
        self.offer, self.mode, self.hints = offer, "up", hints
        self.told: list[Report] = []
        self.asked: list[float] = []
        self.bodies = 0
        self._changed = asyncio.Event()

    def publish(self, offer: Latest | None) -> None:
        self.offer = offer
        self._changed.set()

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        self.asked.append(asyncio.get_running_loop().time())
        await self._answer()
        if report is not None:
            self.told.append(report)
        if self.offer is None or self.offer.tag in known:
            return self.offer and Latest(self.offer.tag)
        self.bodies += 1
        return self.offer

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        await self._answer()
        while not self.hints or self.offer is None or self.offer.tag in known:
            self._changed.clear()
            await self._changed.wait()
            await self._answer()
        return True

    async def _answer(self) -> None:
        if self.mode == "hang":
            await asyncio.sleep(1e9)
        if self.mode != "up":
            raise SourceUnreachableError("connection refused")


class World:
    """A gateway and its Sync on virtual time."""

    def __init__(self, source: Source, loop: VirtualLoop, *, gateway: Gateway | None = None, draw: float = 0.5, **options: Any) -> None:
        self.source = source
        self.gateway = gateway or Gateway("westeurope", clock=loop.time)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sync = Sync(
            self.gateway, source, region="westeurope", interval=INTERVAL, clock=loop.time, draw=lambda: draw,
            on_event=lambda kind, detail: self.events.append((kind, detail)), **options,
        )  # fmt: skip
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> World:
        self.task = asyncio.create_task(self.sync.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def number(self) -> tuple[int, int] | None:
        held = self.sync.held
        return None if held is None else tuple(held.number)  # type: ignore[return-value]

    def states(self) -> list[str]:
        return [detail["state"] for kind, detail in self.events if kind == "SyncStateChanged"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [detail for found, detail in self.events if found == kind]


def in_virtual_time(main: Coroutine[Any, Any, T], monkeypatch: pytest.MonkeyPatch | None = None) -> T:
    """Run on a loop whose time jumps; what would be done in a thread is done at once, for a thread knows nothing of that time."""

    async def at_once(function: Any, *args: Any, **options: Any) -> Any:
        return function(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", at_once)
        return run(VirtualLoop(), main)


def loop_of_now() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
