"""Patience: for how long a connection of the management plane may be in the way without a request, or without taking its answer.

There are so many connections and no more: whoever opens them all and says nothing would keep everybody else out, with no token at all.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Patient"]


class Patient(H11Protocol):
    """A connection whose next request must have begun, its head as a whole, within HEAD seconds, after an answer KEPT more.

    An answer of which nobody takes anything for STUCK seconds is given up.
    """

    HEAD: ClassVar[float] = 10.0
    KEPT: ClassVar[float] = 30.0
    STUCK: ClassVar[float] = 30.0
    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect(self.HEAD)

    def handle_events(self) -> None:
        """Take what has come; a request that has begun is for the application to wait for."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head = _stopped(self._head)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before:
            self._expect(self.KEPT + self.HEAD)

    def pause_writing(self) -> None:
        """Wait until the client takes what is written."""
        super().pause_writing()
        _stopped(self._stuck)
        self._stuck = self.loop.call_later(self.STUCK, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._stuck = _stopped(self._stuck)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._head, self._stuck = _stopped(self._head), _stopped(self._stuck)

    def _expect(self, seconds: float) -> None:
        _stopped(self._head)
        self._head = self.loop.call_later(seconds, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
