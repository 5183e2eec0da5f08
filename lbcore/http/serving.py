"""Server: what a front door and a gateway have in common: an engine between `async with`, addresses to listen on, and an end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from types import TracebackType
from typing import Any, ClassVar, Self

from lbcore.http.forward import Forwarder

__all__ = ["Server"]


class Server(ABC):
    """Serve HTTP/1.1 by an engine that `__aenter__` makes and `close` ends. PORT: where it listens by default."""

    PORT: ClassVar[int]
    _engine: Forwarder | None = None
    _counters: Counter[str]

    @property
    def engine(self) -> Forwarder:
        """Give the engine; RuntimeError outside `async with`."""
        if self._engine is None:
            raise RuntimeError(f"the {type(self).__name__} is closed: use it inside `async with`")
        return self._engine

    @property
    def counters(self) -> dict[str, int]:
        """Give what was counted: requests, refused, retries, failed_<cause>, budget_exhausted...; what never happened is left out."""
        return dict(self._counters + (self._engine.counters if self._engine else Counter()))

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def listen(self, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> tuple[str, int]:
        """Accept clients on one more address and give it; options as Forwarder.listen (tls, sock, proxy_protocol...)."""
        return await self.engine.listen(host, self.PORT if port is None else port, **options)

    async def serve(self, host: str = "127.0.0.1", port: int | None = None, *, grace: float = 5.0, **options: Any) -> None:
        """Serve until cancelled; then calls under way have `grace` seconds."""
        async with self:
            await self.listen(host, port, **options)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await self.close(grace)

    @abstractmethod
    async def close(self, grace: float = 0.0) -> None:
        """Accept nobody new, wait `grace` seconds for calls under way, close."""
