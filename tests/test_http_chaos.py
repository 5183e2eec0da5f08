"""Chaos: gateways killed, stopped, slowed and restarted under load. No call is lost, stuck or counted twice, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from proxying import OK, QUICK, Reader, Script, Writer, answering, answers, origin, read_request, request, resetting, talk

import lbcore
from lbcore.detect import External, Guard
from lbcore.http.forward import Call, Timeouts
from lbcore.http.front import FrontDoor

ROOT = Path(__file__).parent.parent
NAMES = ("westeurope", "eastus", "japaneast")


class Counting(FrontDoor):
    """A front door that counts how its calls ended."""

    ended: Counter[str]

    def done(self, call: Call, /) -> None:
        super().done(call)
        self.ended["left" if call.aborted else "cut" if call.cut else str(call.status)] += 1
        assert call.aborted or call.cause or call.status


def moody(seed: int) -> Script:
    """Answer, or refuse in one of seven ways."""
    chosen = random.Random(seed)

    async def script(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            mood = chosen.choice(("ok",) * 12 + ("reset", "half", "close", "status", "late", "never", "nonsense", "surplus"))
            if mood in ("late", "never"):
                await asyncio.sleep(0.05 if mood == "late" else 1.0)
            writer.write({
                "half": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "status": OK.replace(b"200", b"503"),
                "nonsense": b"what?\r\n\r\n", "surplus": OK + b"surplus", "reset": b"", "close": b"", "never": b"",
            }.get(mood, OK))  # fmt: skip
            if mood == "reset":
                resetting(writer)
            if mood not in ("ok", "late", "status"):
                return

    return script


async def visit(port: int, chosen: random.Random, seen: Counter[str]) -> None:
    """Send one request, or leave before its answer."""
    method = chosen.choice(("GET", "GET", "GET", "POST", "HEAD"))
    body = b"x" * chosen.randrange(3000) if method == "POST" else b""
    sent = request(method, "/", body, f"X-Forwarded-For: {chosen.randrange(1, 200)}.1.1.1")
    if chosen.random() < 0.1:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await asyncio.sleep(chosen.random() * 0.05)
        resetting(writer)
        seen["leavers"] += 1
        return
    found = answers(await talk(port, sent), [method])
    seen[str(found[0].status) if found and found[0].complete else "cut"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_request_is_answered_or_fails_with_a_cause(seed: int) -> None:
    chosen, seen = random.Random(seed), Counter[str]()
    timeouts = Timeouts(first_byte=0.5, idle=0.5, head=1.0, body=1.0, linger=0.2)
    async with AsyncExitStack() as stack:
        origins = [await stack.enter_async_context(origin(moody(seed * 10 + index), record=False)) for index in range(3)]
        lb = lbcore.Balancer([lbcore.Region(name, gateway=there.url) for name, there in zip(NAMES, origins, strict=True)])
        door = await stack.enter_async_context(Counting(lb, trusted=["127.0.0.1"], timeouts=timeouts))
        door.ended = Counter()
        _, port = await door.listen("127.0.0.1", 0)

        async def client() -> None:
            for _ in range(40):
                await visit(port, chosen, seen)

        async def killer() -> None:
            for victim in chosen.sample(origins, 2):
                await asyncio.sleep(0.4)
                victim.kill()
                again = await stack.enter_async_context(origin(victim.script, port=victim.port, record=False))
                again.script = victim.script

        async with asyncio.timeout(30):
            await asyncio.gather(*(client() for _ in range(12)), killer())
            while door.engine.inbounds:
                await asyncio.sleep(0.01)
        counters = door.counters
        tasks = len(asyncio.all_tasks())
    leavers = seen.pop("leavers")
    heard = counters["requests"] - sum(seen.values())  # of those who left, whose requests were read
    assert 0 <= heard <= leavers
    assert sum(door.ended.values()) == counters["requests"] and not counters.get("exceptions")
    assert door.ended["cut"] >= seen["cut"] and all(door.ended[status] >= count for status, count in seen.items())
    assert seen["200"] > 0.6 * sum(seen.values()) and tasks < 3 + 3 * 40


async def test_a_call_that_failed_goes_even_where_it_should_not_rather_than_nowhere() -> None:
    """The last region that is up dies while the others are still held out: they are asked before the client gets a 502."""
    async with origin(answering()) as dying, origin(answering()) as second, origin(answering()) as third:
        origins = (dying, second, third)
        regions = [lbcore.Region(name, gateway=there.url) for name, there in zip(NAMES, origins, strict=True)]
        lb = lbcore.Balancer(regions, detector=Guard(External(), suspect=None))
        for index, name in enumerate(NAMES):
            lb.table.seed(0, index, 10.0 + 20 * index, 2.0)
            lb.report(name, index == 0, source="external")
        lb.tick()
        assert [lb.status(name) for name in NAMES] == ["up", "down", "down"]
        async with FrontDoor(lb, timeouts=QUICK) as door:
            _, port = await door.listen("127.0.0.1", 0)
            assert answers(await talk(port, request()))[0].status == 200 and len(dying.got) == 1
            dying.kill()
            for method in ("GET", "POST", "GET"):
                assert answers(await talk(port, request(method, "/", b"x")), [method])[0].status == 200
        assert second.got or third.got


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 2])
def test_a_short_soak(workers: int) -> None:
    """The soak of benchmarks/, with processes that are killed, stopped and restarted; also through `lbcore run`."""
    options = f"--requests 12000 --pace 0.4 --seed 5 --json --workers {workers}"
    command = [sys.executable, str(ROOT / "benchmarks" / "http_soak.py"), *options.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["broken"] and done.returncode == 0, done.stdout
    assert sum(found["chaos"].values()) >= 3
