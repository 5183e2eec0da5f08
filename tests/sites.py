"""A web site for other people's clients, and the ways to it: through a front door, or through a front door and a gateway."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

import lbcore
from lbcore.http.front import FrontDoor
from lbcore.http.gateway import Gateway, Units

TEXT = ("All the world's a stage, and all the men and women merely players. " * 100).encode()

PAGE = """<!doctype html><title>trial</title><body><p id=told>not yet</p><img src="/hold">
<script>
const told = [], tell = (line) => { told.push(line); document.getElementById("told").textContent = told.join("; "); };
const over = () => fetch("/done", {method: "POST"});
addEventListener("error", (event) => tell("error " + event.message));
async function visit() {
  const echo = await fetch("/echo?x=y", {method: "POST", body: "\\u00fcber"});
  tell("fetch " + echo.status + " " + (await echo.json()).body);
  tell("gzip " + (await (await fetch("/gzip")).text()).length);
  await new Promise((next) => {
    const events = new EventSource("/events"), got = [];
    events.onmessage = (event) => {
      got.push(event.data);
      fetch("/took", {method: "POST"});
      if (got.length == 3) { events.close(); next(); }
    };
  }).then(() => tell("events"));
  const socket = new WebSocket("ws://" + location.host + "/ws", "chat");
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { tell("open " + socket.protocol + " " + (socket.extensions ? "deflate" : "plain")); socket.send("hello"); };
  socket.onmessage = (event) => {
    if (event.data === "hello") socket.send(new Uint8Array(100000));
    else { tell("binary " + event.data.byteLength); socket.send("close 4001 enough"); }
  };
  socket.onclose = (event) => { tell("closed " + event.code + " " + event.reason + " " + event.wasClean); over(); };
}
visit().catch((error) => { tell("failed " + error); over(); });
</script>
"""


class Site:
    """Everything that clients do with HTTP, served by aiohttp."""

    def __init__(self) -> None:
        self.connections = 0
        self.done = asyncio.Event()  # the page has told everything
        self.took = asyncio.Semaphore(0)  # events that a client has taken
        self.app = web.Application(client_max_size=1 << 30)
        self.app.add_routes([
            web.route("*", "/echo", self.echo), web.put("/sum", self.sum), web.get("/text", self.text), web.get("/gzip", self.gzip),
            web.get("/big/{size}", self.big), web.get("/events", self.events), web.post("/took", self.take), web.get("/ws", self.socket),
            web.get("/again", self.again), web.get("/page", self.page), web.get("/hold", self.hold), web.post("/done", self.end),
            web.get("/status/{status}", self.status), web.put("/closed", self.closed, expect_handler=self.refuse),
        ])  # fmt: skip

    async def echo(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        fields = [[name, value] for name, value in request.headers.items()]
        told = {"method": request.method, "target": request.raw_path, "fields": fields, "body": body}
        response = web.json_response(told, headers={"X-Said": request.headers.get("X-Say", "")})
        response.set_cookie("visited", "1")
        return response

    async def sum(self, request: web.Request) -> web.Response:
        found, size = hashlib.sha256(), 0
        async for part in request.content.iter_any():
            found.update(part)
            size += len(part)
        return web.Response(text=f"{size} {found.hexdigest()}")

    async def text(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for at in range(0, len(TEXT), 1000):
            await response.write(TEXT[at : at + 1000])
        await response.write_eof()
        return response

    async def gzip(self, request: web.Request) -> web.Response:
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=TEXT)
        return web.Response(body=gzip.compress(TEXT), headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})

    async def big(self, request: web.Request) -> web.StreamResponse:
        left = int(request.match_info["size"])
        response = web.StreamResponse(headers={"Content-Length": str(left)})
        await response.prepare(request)
        while left > 0:
            await response.write(bytes(min(left, 100_000)))
            left -= 100_000
        return response

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send each event only when the one before was taken: what holds any back never ends."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(f"data: {number}\n\n".encode())
            await self.took.acquire()
        return response

    async def take(self, request: web.Request) -> web.Response:
        self.took.release()
        return web.Response()

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=["chat"], max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT and message.data.startswith("close "):
                _, code, reason = message.data.split(" ", 2)
                await socket.close(code=int(code), message=reason.encode())
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        self.closed_with = socket.close_code
        return socket

    closed_with: int | None = None

    async def again(self, request: web.Request) -> web.Response:
        left = int(request.query.get("left", "3"))
        raise web.HTTPFound(f"/again?left={left - 1}" if left else "/echo")

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def hold(self, request: web.Request) -> web.Response:
        await asyncio.wait_for(self.done.wait(), 30)
        return web.Response(status=204)

    async def end(self, request: web.Request) -> web.Response:
        self.done.set()
        return web.Response()

    async def status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]))

    async def closed(self, request: web.Request) -> web.Response:
        raise AssertionError("the body was refused")

    async def refuse(self, request: web.Request) -> None:
        raise web.HTTPExpectationFailed(text="nothing is taken here")


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Site, str]]:
    """Serve a Site; gives it and its URL."""
    made = Site()
    runner = web.AppRunner(made.app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _configuration(url: str) -> dict[str, Any]:
    outbound = [{"policy": "set-header", "name": "X-Passed", "value": "the gateway"}]
    return {
        "epoch": 1, "sequence": 1, "backends": [{"name": "site", "urls": [url]}],
        "apis": [{"name": "site", "path": "/", "backend": "site", "policies": {"outbound": outbound}}],
    }  # fmt: skip


PATIENCE = 30.0  # seconds: everything runs in one loop, on a machine that may have much to do
WAYS = ("front", "gateway")


@asynccontextmanager
async def way_to(url: str, way: str, **listen: Any) -> AsyncIterator[str]:
    """Open a way to a URL and give where it begins, as host:port. listen: options of the front door's listening.

    way: "front" = through a front door, "gateway" = through a front door and a gateway with policies
    """
    async with AsyncExitStack() as stack:
        if way == "gateway":
            units, connections = Units(16, patience=PATIENCE), {"connect": PATIENCE}
            gateway = Gateway("westeurope", units=units, trusted=["127.0.0.1"], connections=connections)
            await stack.enter_async_context(gateway)
            gateway.apply(_configuration(url))
            url = "http://{}:{}".format(*await gateway.listen("127.0.0.1", 0))
        lb = lbcore.Balancer([lbcore.Region("westeurope", gateway=url)])
        door = await stack.enter_async_context(FrontDoor(lb, patience=PATIENCE))
        door.engine.upstream(url, connect=PATIENCE)
        host, port = await door.listen("127.0.0.1", 0, **listen)
        yield f"{host}:{port}"


def told(text: str | bytes) -> dict[str, Any]:
    """Read what /echo said."""
    found: dict[str, Any] = json.loads(text)
    return found
