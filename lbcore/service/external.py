"""External: regions made by the operator's own commands, so that any cloud can be driven.

    create, update, delete   get the order as JSON on stdin; they may return before the work is done
    wait                     the same order, asked again and again until it says that the work is done; none = they return when it is

A command says on stdout, in one JSON object: `status` "done" (what no status means), "working" or "failed", with `message`;
`publicIPAddresses`, `privateIPAddresses`, `gateway`. It ends with 0; no shell is between. Only the message is ever shown: whatever else
it prints may be secret.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast

from lbcore.service.logbook import clean
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order, ProvisionError

__all__ = ["External"]

_MOST_BYTES = 65_536
_FIELDS = ("work", "service", "name")
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


class External:
    """Call commands: argument lists in which {work}, {service} and {name} stand for the order's.

    update: None = regions cannot be changed;  wait: None = the other commands return when the work is done
    limit: seconds for an order as a whole;  call_limit: for one call;  pause: between calls of `wait`
    environment: names of further variables that commands may see, beside PATH, HOME, language and time zone
    Raises ValueError for an empty command or an unknown {field}.
    """

    def __init__(
        self, *, create: Sequence[str], delete: Sequence[str], update: Sequence[str] | None = None, wait: Sequence[str] | None = None,
        limit: float = 3600.0, call_limit: float = 300.0, pause: float = 5.0, environment: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._commands = {"create": create, "update": update, "delete": delete, "wait": wait}
        for command in self._commands.values():
            if command is not None:
                _check(command)
        self.limit, self._call_limit, self._pause = limit, call_limit, pause
        self._environment = (*_ENVIRONMENT, *environment)
        self._busy: dict[str, asyncio.Lock] = {}

    async def carry_out(self, order: Order) -> Granted:
        """Have an order done."""
        async with self._busy.setdefault(order.name, asyncio.Lock()):
            said = await self._call(order.work, order)
            if self._commands["wait"] is not None:
                said = await self._call("wait", order)
            while said.get("status") == "working":
                await asyncio.sleep(self._pause)
                said = await self._call("wait", order)
            return _granted(said)

    async def switch(self, name: str, disabled: bool) -> None:
        """Do nothing: the switch is the rotation's."""

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None:
        """Do nothing: whoever gave another VIP takes the old one back in time."""

    async def close(self) -> None:
        """Do nothing."""

    async def _call(self, which: str, order: Order) -> Mapping[str, Any]:
        """Call one command, and give what it says."""
        template = self._commands[which]
        if template is None:
            raise ProvisionError(f"no {which} command is configured")
        values = {key: getattr(order, key) for key in _FIELDS}
        code, out = await self._run([each.format_map(values) for each in template], _asked(order))
        if code != 0:
            raise ProvisionError(f"the {which} command ended with {code}{_message(out)}")
        try:
            said = json.loads(out or b"{}")
        except (ValueError, RecursionError):
            raise ProvisionError(f"the {which} command did not answer in JSON") from None
        if not isinstance(said, dict):
            raise ProvisionError(f"the {which} command did not answer with an object")
        if said.get("status", "done") not in ("done", "working"):
            raise ProvisionError(f"the {which} command failed{_message(out)}")
        return said

    async def _run(self, command: Sequence[str], given: bytes) -> tuple[int, bytes]:
        environment = {key: os.environ[key] for key in self._environment if key in os.environ}
        try:
            transport, call = await asyncio.get_running_loop().subprocess_exec(
                _Call, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ProvisionError(f"the command {clean(command[0])[:80]!r} cannot be started: {type(error).__name__}") from None
        try:
            async with asyncio.timeout(self._call_limit):
                return await call.ended(given)
        except TimeoutError:
            raise ProvisionError(f"the command {clean(command[0])[:80]!r} took longer than {self._call_limit:g} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(transport.get_pid(), signal.SIGKILL)  # whatever it has started, too
            await call.exited.wait()
            transport.close()


class _Call(asyncio.SubprocessProtocol):
    """One command at work.

    asyncio's own Process.wait() waits for the pipes as well, so that it never returns while somebody else holds one, or when more was
    printed than its reader takes. Here the end of the process is enough.
    """

    def __init__(self) -> None:
        self.exited, self._printed, self._out = asyncio.Event(), asyncio.Event(), bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if len(self._out) <= _MOST_BYTES:
            self._out += data
        if len(self._out) > _MOST_BYTES:
            self._printed.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._printed.set()

    def process_exited(self) -> None:
        self.exited.set()

    async def ended(self, given: bytes) -> tuple[int, bytes]:
        """Give the command its order, and what it ended with and printed."""
        order = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        order.write(given)
        order.close()
        await self._printed.wait()
        if len(self._out) > _MOST_BYTES:
            raise ProvisionError(f"the command printed more than {_MOST_BYTES} bytes")
        await self.exited.wait()
        return cast(int, self._transport.get_returncode()), bytes(self._out)


def _check(command: Sequence[str]) -> None:
    if isinstance(command, str) or not command or not all(isinstance(each, str) for each in command):
        raise ValueError(f"expected a command as a list of arguments, got {command!r}")
    try:
        for each in command:
            each.format_map(dict.fromkeys(_FIELDS, ""))
    except (KeyError, ValueError, AttributeError, IndexError, TypeError):
        raise ValueError(f"expected {{work}}, {{service}} and {{name}} as the only fields, got {command!r}") from None


def _asked(order: Order) -> bytes:
    """Give an order for a command to read."""
    return json.dumps(asdict(order)).encode()


def _message(out: bytes) -> str:
    """Give what a command says of its failure, if it does so in JSON."""
    try:
        message = json.loads(out).get("message")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return f": {clean(message)[:200]}" if isinstance(message, str) and message else ""


def _granted(said: Mapping[str, Any]) -> Granted:
    def texts(key: str) -> tuple[str, ...]:
        found = said.get(key) or ()
        if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
            raise ProvisionError(f"the command's {key} is no list of texts")
        return tuple(found)

    gateway = said.get("gateway") or ""
    if not isinstance(gateway, str) or (gateway and not gateway.startswith(("http://", "https://"))):
        raise ProvisionError("the command's gateway is no http(s) URL")
    return Granted(texts("publicIPAddresses"), texts("privateIPAddresses"), gateway)
