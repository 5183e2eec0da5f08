"""What programs ask that watch the management plane itself."""

from __future__ import annotations

from fastapi.responses import JSONResponse, Response

from lbcore.service.api import metrics, models
from lbcore.service.api.calls import NOBODY, READ, Book, Call

__all__ = ["book"]

book = Book("monitoring")


@book("GET", "/healthz", NOBODY, {200: models.Health})
async def healthz(call: Call) -> Response:
    """Say that the management plane works: its store can be read. No token is needed, and nothing else is told."""
    await call.read(lambda store: store.fenced)
    return JSONResponse({"status": "ok"})


@book("GET", "/metrics", READ, {200: str})
async def get_metrics(call: Call) -> Response:
    """Give the metrics in Prometheus' text form."""
    page = await metrics.page(call.plane, call.request.app.state.requests)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")
