"""A management plane for tests: the real API over a real Plane in a thread, with regions that run at once; and commands for it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from regions import Regions
from typer.testing import CliRunner, Result

from lbcore.cli import deployment
from lbcore.cli.app import app
from lbcore.service.api import application
from lbcore.service.model import location, new_service
from lbcore.service.operations import Times
from lbcore.service.plane import Plane, PlaneOptions
from lbcore.service.store import Store
from lbcore.service.tokens import issue

ANSWER = {"policy": "return-response", "status": 200, "body": "1"}
HELLO = {"apis": [{"name": "hello", "path": "/hello", "policies": {"inbound": [ANSWER]}}]}
TIMES = Times(sync=5.0, probe=5.0, drain=0.1, remembered=0.0, pause=0.02, hold=0.0)
deployment.PAUSE = 0.02  # regions of tests need no half a second
PATIENCE = 60.0  # seconds for what takes milliseconds


class Managed:
    """What is served."""

    def __init__(self, folder: Path, store: Store, regions: Regions, plane: Plane, port: int) -> None:
        self.folder, self.store, self.regions, self.plane, self.url = folder, store, regions, plane, f"http://127.0.0.1:{port}"

    def token(self, role: str = "operator") -> Path:
        """Give the file of a token of that role."""
        file = self.folder / f"{role}.token"
        if not file.exists():
            file.write_text(issue(self.store, role, f"a {role}", who="test") + "\n")
        return file

    def settled(self) -> None:
        """Wait until no operation runs."""
        deadline = time.monotonic() + PATIENCE
        while self.store.operations.running() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def managed(folder: Path, *others: str, **settings: Any) -> Iterator[Managed]:
    """Serve contoso in West US 2 and other regions, with revision 1.1 published, all deployed.

    founded: False = without any service;  provisioner: of the regions, None = Regions;  others are options of the plane
    """
    founding = new_service("contoso", location("West US 2"), additional_locations=tuple(map(location, others)))
    founded, provisioner = settings.pop("founded", True), settings.pop("provisioner", None)
    with Store(folder / "store.sqlite") as store, socket.create_server(("127.0.0.1", 0)) as listener:
        regions = Regions(store)
        options = PlaneOptions(founding=founding if founded else None, **{"times": TIMES} | settings)
        plane = Plane(store, provisioner or regions, name="contoso", options=options, probe=regions.probe, pages=regions)  # type: ignore[arg-type]
        made = Managed(folder, store, regions, plane, listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(
            application(plane), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, ws="none"
        ))  # fmt: skip
        ready, failed = threading.Event(), list[BaseException]()

        async def serve() -> None:
            async with plane:
                await plane.configuration.put(HELLO, who="test", why="the first API")
                asyncio.get_running_loop().call_soon(ready.set)
                await server.serve([listener])

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                failed.append(error)
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            if failed:
                raise failed[0]
            made.settled()
            yield made
        finally:
            regions.gate.set()
            server.should_exit = True
            thread.join(PATIENCE)
        assert not thread.is_alive()


# ===== commands


def lbcore(*args: object, **env: str | None) -> Result:
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "160", "LBCORE_URL": None, "LBCORE_TOKEN_FILE": None, **env})


def asked(made: Managed, *args: object, role: str = "operator") -> Result:
    return lbcore(*args, "--url", made.url, "--token-file", made.token(role))


def ok(made: Managed, *args: object, role: str = "operator") -> str:
    done = asked(made, *args, role=role)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def given_json(made: Managed, *args: object, role: str = "operator") -> Any:
    return json.loads(ok(made, *args, "--json", role=role))


def refused(made: Managed, code: int, *args: object, role: str = "operator") -> str:
    """Give stdout and stderr of a command that ends so and has no traceback; the service is as it was."""
    before = state(made)
    done = asked(made, *args, role=role)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.stdout + done.stderr
    assert state(made).service == before.service
    return done.stdout + done.stderr


def state(made: Managed) -> Any:
    return made.store.state()


def names(made: Managed) -> list[str]:
    return [each.name for each in state(made).service.locations]


def saved(made: Managed, wish: object, name: str = "wish.json") -> Path:
    file = made.folder / name
    file.write_text(wish if isinstance(wish, str) else json.dumps(wish))
    return file
