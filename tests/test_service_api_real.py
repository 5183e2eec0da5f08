"""The management API on a real socket: who comes at once, who waits, who goes away, and what the process writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path

import httpx
import pytest
from desks import APIS, Desk, M, listening, managed

pytestmark = pytest.mark.slow


def client(url: str, desk: Desk, role: str) -> httpx.AsyncClient:
    headers, limits = {"authorization": f"Bearer {desk.tokens[role]}"}, httpx.Limits(max_connections=100)
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False)


async def test_of_fifty_saves_at_once_with_one_etag_one_is_accepted(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk, listening(desk.app) as url, client(url, desk, "operator") as http:
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        etag = (await http.get(M)).headers["etag"]

        async def save(units: int) -> httpx.Response:
            return await http.patch(M, json={"sku": {"capacity": units % 30 + 2}}, headers={"if-match": etag})

        async def publish(number: int) -> httpx.Response:
            document = APIS | {"apis": [APIS["apis"][0] | {"path": f"/v{number}"}]}
            return await http.put(f"{M}/gatewayConfiguration", json=document, headers={"if-match": "*"})

        answers = await asyncio.gather(*map(save, range(50)), *map(publish, range(20)))  # publishing goes on during a Save (R63)
        saves, published = answers[:50], answers[50:]
        assert sorted({each.status_code for each in saves} - {409, 412}) == [202]
        [won] = [each for each in saves if each.status_code == 202]
        assert [each.status_code for each in published] == [200] * 20
        assert len({each.json()["revision"] for each in published}) == 20
        assert (await desk.done(won))["status"] == "Succeeded"
        assert (await http.get(M)).json()["sku"]["capacity"] == won.json()["sku"]["capacity"]
        assert len(desk.store.operations.newest()) == 2  # of the creation, and of the one Save


async def test_who_waits_is_not_cut_off_and_hears_at_once(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk, listening(desk.app) as url, client(url, desk, "node") as http:
        tag = (await http.get(f"{M}/rotation")).headers["etag"]
        held = {"if-none-match": tag, "prefer": "wait=50"}
        waiting = [asyncio.create_task(http.head(f"{M}/rotation", headers=held)) for _ in range(20)]
        while desk.app.state.waiting._counts.total() < 20:
            await asyncio.sleep(0.01)
        assert (await http.get("/healthz")).status_code == 200  # others are served meanwhile
        saved = asyncio.create_task(desk.save("eastasia"))
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 30)
        assert {each.status_code for each in answers} == {200}
        assert tag not in {each.headers["etag"] for each in answers}
        await saved


async def test_who_goes_away_while_waiting_or_sending_leaves_nothing_behind(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk, listening(desk.app) as url:
        port, token = httpx.URL(url).port or 0, desk.tokens["operator"]
        head = f"PATCH {M} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        for request in (f"{head}Content-Length: 100\r\n\r\n{{", f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{", "GET / HT", ""):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(request.encode())
        async with client(url, desk, "operator") as http:
            assert (await http.get(M)).status_code == 200
            assert len(desk.store.operations.newest()) == 1


@pytest.mark.parametrize("head", ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"])
async def test_a_request_has_one_host(tmp_path: Path, head: str) -> None:
    async with managed(tmp_path, service=False) as desk, listening(desk.app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] in (b"400", b"403")
        writer.close()


async def test_a_head_has_an_end(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk, listening(desk.app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"x" * 10_000)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(reader.readline(), 10)).split()[1:2] in ([], [b"400"])
        writer.close()
        async with client(url, desk, "owner") as http:
            assert (await http.get("/healthz")).status_code == 200


SERVER = """
import asyncio, logging, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from desks import listening, managed
logging.basicConfig(level=logging.DEBUG)

async def main():
    async with managed(Path({folder!r})) as desk:
        from lbcore.service.api import application
        async with listening(application(desk.plane)) as url:
            print(url, *desk.tokens.values(), flush=True)
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


async def test_a_process_writes_no_token_down(tmp_path: Path) -> None:
    """Everything it logs, at the lowest level, while tokens come in all the wrong places."""
    script = SERVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=Path(__file__).parent.parent, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    url, *tokens = line.decode().split()
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        made = await http.post(f"{M}/tokens", json={"role": "reader", "name": "n"}, headers={"authorization": f"Bearer {tokens[-1]}"})
        tokens.append(made.json()["token"])
        for token in [*tokens, tokens[0][:-3] + "xyz"]:
            for path in (M, f"/{token}", f"{M}/operations/{token}?token={token}", f"{M}/locations/{token}"):
                for headers in ({"authorization": f"Bearer {token}"}, {"authorization": token}, {"cookie": token}, {"x-request-id": "1"}):
                    await http.put(path, content=json.dumps({"token": token}), headers={"content-type": "application/json", **headers})
    _, err = await asyncio.wait_for(process.communicate(b"\n"), 60)
    written = err.decode()
    assert process.returncode == 0 and '"status": 401' in written  # the audit log is in it
    for token in tokens:
        assert token.split("_", 2)[2][:-3] not in written
