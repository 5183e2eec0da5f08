"""Form: the Locations table as the page holds and sends it, a Draft for each row, and what all rows together wish for.

Drafts live in the page alone (R12): each row is a hidden field with JSON, which `portal.js` edits. Save sends them all, and `wish` makes of
them the body of one PATCH, whose meaning is for the service's own rules to judge. Here only the form is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["STATES", "Draft", "read", "wish"]

State = Literal["kept", "draft-add", "draft-change", "draft-delete"]
STATES: tuple[State, ...] = get_args(State)
LONGEST = 16_384  # letters of one row
MOST = 1000  # rows


@dataclass(frozen=True, slots=True)
class Draft:
    """What is wanted of one region.

    name: as the REST API's `location`;  zones: () = automatic;  subnet, public_ip: resource ids, "" = none
    carried: whatever else its body holds (`geo`, `gateway`), which the page neither shows nor changes
    """

    name: str
    state: State = "kept"
    units: int = 1
    zones: tuple[str, ...] = ()
    disable_gateway: bool = False
    subnet: str = ""
    public_ip: str = ""
    carried: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Give the value of the row's hidden field."""
        return json.dumps({
            "name": self.name, "state": self.state, "units": self.units, "zones": [*self.zones], "disableGateway": self.disable_gateway,
            "subnet": self.subnet, "publicIp": self.public_ip, "carried": dict(self.carried),
        })  # fmt: skip

    def as_body(self) -> dict[str, Any]:
        """Give the region as an element of `additionalLocations`."""
        network = {**(self.carried.get("virtualNetworkConfiguration") or {}), **({"subnetResourceId": self.subnet} if self.subnet else {})}
        rest = {key: value for key, value in self.carried.items() if key != "virtualNetworkConfiguration"}
        return rest | {
            "location": self.name, "sku": {"capacity": self.units}, "zones": [*self.zones], "disableGateway": self.disable_gateway,
            "virtualNetworkConfiguration": network if self.subnet else None, "publicIpAddressId": self.public_ip or None,
        }  # fmt: skip


def read(values: Iterable[str]) -> tuple[Draft, ...]:
    """Give the rows of a form, of which the first is the primary. ValueError for what `portal.js` never sends."""
    rows = tuple(_row(value) for value in values)
    if not rows or len(rows) > MOST:
        raise ValueError(f"expected 1 to {MOST} rows, got {len(rows)}")
    if rows[0].state not in ("kept", "draft-change"):
        raise ValueError(f"the primary comes first and stays, got {rows[0].state!r}")
    return rows


def _row(value: str) -> Draft:
    if len(value) > LONGEST:
        raise ValueError(f"a row of {len(value)} letters; at most {LONGEST} are read")
    try:
        row = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("a row is no JSON") from None
    if not isinstance(row, dict):
        raise ValueError("a row is no object")
    zones = _of(row, "zones", list)
    if not all(isinstance(zone, str) for zone in zones):
        raise ValueError("zones are texts")
    state = next((state for state in STATES if state == row.get("state")), None)
    if state is None:
        raise ValueError(f"expected a state of {', '.join(STATES)}")
    return Draft(
        _of(row, "name", str), state, _of(row, "units", int), tuple(zones), _of(row, "disableGateway", bool),
        _of(row, "subnet", str).strip(), _of(row, "publicIp", str).strip(), _of(row, "carried", dict),
    )  # fmt: skip


def _of(row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key}: expected {kind.__name__}")
    return value


def wish(rows: Sequence[Draft], tier: str, network_mode: str) -> dict[str, Any]:
    """Give the body of the PATCH that these rows, as `read` gives them, ask for: the whole list at once (R13)."""
    primary, others = rows[0].as_body(), [row.as_body() for row in rows[1:] if row.state != "draft-delete"]
    settings = {key: value for key, value in primary.items() if key not in ("location", "sku", "zones")}
    return {
        "sku": {"name": tier, "capacity": rows[0].units},
        "zones": [*rows[0].zones],
        "properties": settings | {"virtualNetworkType": network_mode, "additionalLocations": others},
    }
