"""Rotation: which regions clients may be sent to, told from the stored state alone, and what operations need of the data plane.

A region is listed once it has been deployed, configured and probed, and until it has drained. Since nothing but the state decides, a
primary that was killed lists the same regions when it is back, and none of them by half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import httpx

from lbcore.sense.monitor import STATUS_PATH
from lbcore.service.capacity import Gauge
from lbcore.service.logbook import clean
from lbcore.service.model import Location, LocationState, ServiceState
from lbcore.service.revisions import Number

__all__ = ["Listed", "Look", "Regions", "StatusPages", "listed", "serving", "wrong"]

# What was deployed serves in these: an update leaves the old capacity in place until it is done, and also when it fails.
_LISTED = frozenset({"Succeeded", "Updating", "Failed", "Draining"})
_MOST_BYTES = 65_536
PLAIN = {"accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A region as DNS and front door have it.

    location: as it was deployed;  gateway: base URL;  draining: it answers whoever comes still, and nobody new is sent there
    """

    location: Location
    gateway: str
    public_ips: tuple[str, ...]
    private_ips: tuple[str, ...]
    draining: bool = False

    @property
    def serves(self) -> bool:
        """Say whether new clients may be sent there, as far as the operator's will goes: health is for probes to tell."""
        return not (self.draining or self.location.disable_gateway)


@dataclass(frozen=True, slots=True)
class Look:
    """What a gateway says of itself on its status path.

    status: "serving", "disabled", "draining", "not ready"; "" = it does not answer, for the cause named
    revision: None = it has none;  capacity: how busy it was in the last minute, None = it does not say, or nothing that can be
    """

    status: str = ""
    region: str = ""
    revision: Number | None = None
    cause: str = ""
    capacity: Gauge | None = None


class Regions(Protocol):
    """The data plane, as operations need it."""

    async def show(self, listed: Mapping[str, Listed]) -> None:
        """Make DNS and front door have exactly these regions, by name. Called again with the same, it changes nothing."""

    async def look(self, name: str, gateway: str) -> Look:
        """Ask a region's gateway how it is; whatever is wrong with it is in the answer, not raised."""

    async def idle(self, name: str) -> bool:
        """Say whether a draining region has nothing under way, as far as that is known; False when it is not."""


def listed(state: ServiceState | None) -> dict[str, Listed]:
    """Give the regions in rotation, by name."""
    found = {name: _listed(one) for name, one in state.states.items()} if state else {}
    return {name: one for name, one in found.items() if one is not None}


def _listed(state: LocationState) -> Listed | None:
    if state.deployed is None or state.provisioning_state not in _LISTED:
        return None
    draining = state.provisioning_state == "Draining"
    return Listed(state.deployed, state.gateway, state.public_ips, state.private_ips, draining)


def serving(state: ServiceState) -> frozenset[str]:
    """Give the names of the regions that new clients may be sent to."""
    return frozenset(name for name, one in listed(state).items() if one.serves)


def wrong(look: Look, name: str, needed: Number | None, newest: Number | None, disabled: bool = False) -> tuple[str, bool]:
    """Give why a gateway must not enter rotation yet, "" when it may; and whether it is configured.

    needed: the revision that was the newest when the wish was accepted, None = there was none;  newest: the newest ever published
    disabled: whether its gateway is to be disabled
    """
    if not look.status:
        return look.cause or "its gateway does not answer", False
    if look.region != name:
        return f"its gateway says that it is {clean(look.region)[:40]!r}", False
    if look.revision is not None and (newest is None or look.revision > newest):
        return f"its gateway reports revision {look.revision}, which was never published", False
    if needed is not None and (look.revision is None or look.revision < needed):
        return f"its gateway has revision {look.revision or 'none'}, {needed} is needed", False
    fine = look.status == "serving" or (disabled and look.status == "disabled") or (newest is None and look.status == "not ready")
    return "" if fine else f"its gateway is {look.status}", True


class StatusPages:
    """Look at gateways by their status path. timeout: seconds for all that a gateway says;  client: for authorities of one's own"""

    def __init__(self, *, timeout: float = 5.0, client: httpx.AsyncClient | None = None) -> None:
        self._timeout = timeout
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)  # however many hang, nobody waits for them
        self._client = client or httpx.AsyncClient(timeout=timeout, trust_env=False, limits=limits)

    async def look(self, name: str, gateway: str) -> Look:
        """Ask a region's gateway how it is."""
        try:
            url = gateway.rstrip("/") + STATUS_PATH
            async with asyncio.timeout(self._timeout), self._client.stream("GET", url, headers=PLAIN) as answer:
                body = b""
                async for part in answer.aiter_raw(_MOST_BYTES):  # a small answer may unpack to whatever there is memory for
                    body += part
                    if len(body) > _MOST_BYTES:
                        return Look(cause="its gateway's status page does not end")
                return _read(httpx.Response(answer.status_code, content=body).json())
        except TimeoutError:
            return Look(cause=f"its gateway does not answer within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Look(cause=f"its gateway does not answer: {type(error).__name__}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return Look(cause="what answers is no gateway: its status page cannot be read")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _read(said: Mapping[str, Any]) -> Look:
    status, region, revision = str(said["status"]), str(said["region"]), said["revision"]
    capacity = _gauge(said.get("capacity"))
    if revision is None:
        return Look(status, region, capacity=capacity)
    epoch, _, sequence = str(revision).partition(".")
    return Look(status, region, Number(int(epoch), int(sequence)), capacity=capacity)


def _gauge(said: object) -> Gauge | None:
    """Read what a gateway says of its capacity. It may say anything: what is no percentage counts as not said."""
    average, most = (said.get("average"), said.get("maximum")) if isinstance(said, Mapping) else (None, None)
    return Gauge(float(average), float(most)) if _percentage(average) and _percentage(most) else None


def _percentage(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100  # NaN is neither
