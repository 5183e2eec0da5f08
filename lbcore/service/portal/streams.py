"""Streams: what changes, as events to the portal's pages, for as long as whoever asked may see it; never more of them than fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from lbcore.service.journal import Operation
from lbcore.service.portal import event, fill, part
from lbcore.service.portal.answers import Answers, Asked, html
from lbcore.service.portal.live import HEARTBEAT, Live
from lbcore.service.portal.sessions import Session

if TYPE_CHECKING:
    from lbcore.service.notices import Subscription
    from lbcore.service.plane import Plane

__all__ = ["STREAMS", "STREAMS_OF_ONE", "Streams"]

STREAMS, STREAMS_OF_ONE = 100, 4  # of events, at once; browsers open six connections, and pages need some


class Streams:
    """Stream the Overview, and operations. holds: whether a session has not ended"""

    def __init__(self, plane: Plane, live: Live, answers: Answers, holds: Callable[[Session], Awaitable[bool]]) -> None:
        self._plane, self._live, self._answers, self._holds = plane, live, answers, holds
        self._open = 0

    async def overview(self, asked: Asked) -> Response:
        """Stream the Overview's parts as they change."""
        board = self._live.board

        async def stream() -> AsyncIterator[bytes]:
            async with board.watching(self._live.overview):
                async for data in board.stream(asked.request.headers.get("last-event-id", ""), lambda: self._holds(asked.user)):
                    yield data

        return self._streaming(asked.user, stream)

    async def operation(self, asked: Asked) -> Response:
        """Stream how far an operation is, until it has ended."""
        operation = await self._plane.operation(asked.request.path_params["id"])
        return self._streaming(asked.user, lambda: self._steps(operation, asked.user))

    async def _steps(self, operation: Operation, session: Session) -> AsyncIterator[bytes]:
        shown, said = None, 0.0
        yield b"retry: 1000\n\n"
        async with self._plane.subscribe() as changes:
            while await self._holds(session):
                now = time.monotonic()
                view = fill.progress(operation, await self._answers.state(), time.time())
                if replace(view, elapsed=0.0) != shown or now - said >= HEARTBEAT:  # a second alone is nothing to announce
                    shown, said = replace(view, elapsed=0.0), now
                    yield event("steps", part("steps", view))
                if not view.running:
                    yield event("done", "")
                    return
                await _news(changes, 1.0)
                operation = await self._plane.operation(operation.id)

    def _streaming(self, session: Session, stream: Callable[[], AsyncIterator[bytes]]) -> Response:
        if self._open >= STREAMS or session.streams >= STREAMS_OF_ONE:
            return html("", 503, {"Retry-After": "30"})

        async def counted() -> AsyncIterator[bytes]:
            self._open += 1
            session.streams += 1
            try:
                async for data in stream():
                    yield data
            finally:
                self._open -= 1
                session.streams -= 1

        return StreamingResponse(counted(), headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})


async def _news(changes: Subscription, longest: float) -> None:
    try:
        async with asyncio.timeout(longest):
            await changes.get()
    except TimeoutError:
        pass
