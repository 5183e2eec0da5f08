"""Record: a service's state as the text that the store keeps, and its ETag."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service.model import Location, LocationState, ResourceId, Service, ServiceState

__all__ = ["canonical_json", "etag_of", "from_record", "matches", "to_record"]

_TUPLES = ("zones", "public_ips", "private_ips", "previous_public_ips")


def canonical_json(value: object) -> str:
    """Give the one JSON text of a value: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def etag_of(sequence: int, text: str) -> str:
    """Give the entity tag of a text, without quotes: each write has its own, and it tells whether a text is still the one written."""
    return f"{sequence}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def matches(if_match: str | None, etag: str) -> bool:
    """Say whether an If-Match header holds for an ETag, "" = there is nothing; None always holds.

    Source: RFC 9110 §13.1.1: a list of quoted tags or *, compared strongly.
    """
    if if_match is None:
        return True
    if if_match.strip() == "*":
        return bool(etag)
    return etag != "" and any(tag.strip() in (etag, f'"{etag}"') for tag in if_match.split(","))


def to_record(state: ServiceState) -> str:
    """Give the text of a state, without ETag and sequence."""
    return canonical_json({"service": asdict(state.service), "states": {name: asdict(one) for name, one in state.states.items()}})


def from_record(text: str, etag: str, sequence: int) -> ServiceState:
    """Read what `to_record` wrote; ServiceError StoreCorrupt for any other text."""
    try:
        data = json.loads(text)
        service = dict(data["service"])
        service["primary"] = _location(service["primary"])
        service["additional_locations"] = tuple(map(_location, service["additional_locations"]))
        states = {name: _state(one) for name, one in data["states"].items()}
        return ServiceState(service=Service(**service), states=states, etag=etag, sequence=sequence)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError("StoreCorrupt", f"the stored service cannot be read: {error!r}"[:300]) from error


def _location(data: Mapping[str, Any]) -> Location:
    ids = {key: ResourceId(**data[key]) if data[key] else None for key in ("subnet", "public_ip")}
    return Location(**_tupled(data) | ids)


def _state(data: Mapping[str, Any]) -> LocationState:
    return LocationState(**_tupled(data) | {"deployed": _location(data["deployed"]) if data["deployed"] else None})


def _tupled(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key in _TUPLES else value for key, value in data.items()}
