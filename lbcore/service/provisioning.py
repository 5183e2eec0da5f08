"""Provisioning: who makes regions run. `local` starts gateways on this machine, `external` calls commands, `manual` waits for a person.

Others are found in the entry-point group `lbcore.provisioners`: an object of one's name that is called with the options and gives a
Provisioner.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, cast

from lbcore.errors import ServiceError, nearest
from lbcore.service.model import Location, NetworkMode
from lbcore.service.progress import Granted

__all__ = ["GROUP", "Manual", "Order", "ProvisionError", "Provisioner", "Request", "provisioner", "provisioners"]

GROUP = "lbcore.provisioners"
Work = Literal["create", "update", "delete"]


class ProvisionError(Exception):
    """Say why a region could not be made, changed or removed, in words for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a provisioner is to do with one region.

    location: as it is wanted, of a delete as it was deployed, None if it never was;  network_mode: the one wanted
    new_public, new_private: whether the plan says that it gets another VIP of that kind; else it keeps those it has
    public_ips, private_ips: the VIPs it has
    """

    work: Work
    service: str
    name: str
    location: Location | None
    network_mode: NetworkMode
    new_public: bool = False
    new_private: bool = False
    public_ips: tuple[str, ...] = ()
    private_ips: tuple[str, ...] = ()


class Provisioner(Protocol):
    """Make regions run. Every call may come again for the same order, after a crash or a retry: then it changes nothing further.

    limit: seconds after which an order is given up; math.inf = never
    Whatever goes wrong is raised, a ProvisionError where it is to be read by people.
    """

    limit: float

    async def carry_out(self, order: Order) -> Granted:
        """Do an order and give the region's VIPs and its gateway's base URL once it is done; of a delete nothing."""

    async def switch(self, name: str, disabled: bool) -> None:
        """Tell a region's gateway to refuse, or to take, clients."""

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None:
        """Let go of VIPs that a region gave up some time ago: nobody comes there any more."""

    async def close(self) -> None:
        """End what this process holds; the regions go on."""


# ===== which there are


def provisioners() -> tuple[str, ...]:
    """Give the names of all provisioners."""
    return tuple(sorted({*_STOCK, *entry_points(group=GROUP).names}))


def provisioner(kind: str, **options: Any) -> Provisioner:
    """Make a provisioner by its name; a stock name always means the stock one.

    Raises ServiceError ResourceNotFound for an unknown name, and what making it raises.
    """
    if kind in _STOCK:
        return _STOCK[kind]()(**options)
    for point in entry_points(group=GROUP, name=kind):
        return cast(Provisioner, point.load()(**options))
    hint = "".join(f"; did you mean {near!r}?" for near in nearest(kind, provisioners()))
    raise ServiceError("ResourceNotFound", f"there is no provisioner {kind!r}{hint}", "provisioner")


def _local() -> Callable[..., Provisioner]:
    from lbcore.service.local import Local

    return Local


def _external() -> Callable[..., Provisioner]:
    from lbcore.service.external import External

    return External


# ===== a person


@dataclass(frozen=True, slots=True)
class Request:
    """An order that waits for a person's word. id: changes when the order does"""

    id: int
    order: Order


class Manual:
    """Wait for the operator, who does the work and says what came of it.

    limit: seconds to wait, math.inf = for as long as it takes. After a restart of the primary the same is asked again.
    """

    def __init__(self, *, limit: float = math.inf) -> None:
        self.limit = limit
        self._waiting: dict[str, tuple[Request, asyncio.Future[Granted]]] = {}
        self._asked = 0

    @property
    def requests(self) -> tuple[Request, ...]:
        """Give what waits for the operator's word."""
        return tuple(request for request, _ in self._waiting.values())

    def answer(self, name: str, id: int, granted: Granted | None = None, *, refusal: str = "") -> None:
        """Say that an order is done, and what it gave, or why it cannot be. ServiceError ResourceNotFound when nobody waits for this."""
        request, future = self._waiting.get(name, (None, None))
        if request is None or future is None or request.id != id or future.done():
            raise ServiceError("ResourceNotFound", f"no order {id} for {name!r} waits for an answer", name)
        if refusal:
            future.set_exception(ProvisionError(refusal))
        else:
            future.set_result(granted or Granted())

    async def carry_out(self, order: Order) -> Granted:
        """Wait for the operator's word."""
        self._asked += 1
        told: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        mine = Request(self._asked, order), told
        self._waiting[order.name] = mine
        try:
            return await told
        finally:
            if self._waiting.get(order.name) is mine:
                del self._waiting[order.name]

    async def switch(self, name: str, disabled: bool) -> None:
        """Do nothing: the switch is the rotation's."""

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None:
        """Do nothing: the operator sees for how long a VIP that was given up is to answer."""

    async def close(self) -> None:
        """Do nothing."""


_STOCK: dict[str, Callable[[], Callable[..., Provisioner]]] = {"local": _local, "external": _external, "manual": lambda: Manual}
