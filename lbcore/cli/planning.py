"""Wishes in files, and plans on the screen: what `lbcore regions plan` and `save` share."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lbcore.cli.common import Failure, print_table, user_files
from lbcore.config import Settings, load, parse
from lbcore.region import canonical

__all__ = ["Wish", "plan_alone", "print_plan", "print_steps", "read_json", "settings_of", "vip_lines"]

Body = dict[str, Any]


class Wish:
    """What a file says is wanted: a PATCH body in JSON, or the `[service]` tables of an lbcore.toml; no file: what is wanted already."""

    def __init__(self, file: Path | None) -> None:
        self.settings: Settings | None = None
        self._said: Any = {}
        if file is None:
            return
        if file.suffix.lower() == ".toml":
            self.settings, self._said = _settings(file)
            if not (self._said.get("primary") or self._said.get("regions")):
                raise Failure(f"{file}: it names no region in [service.primary] or [[service.regions]]")
        else:
            self._said = read_json(file)
            if not isinstance(self._said, dict):
                raise Failure(f"{file}: expected a JSON object, the body of a PATCH, or a file named *.toml")

    def body(self, primary: str) -> Body:
        """Give the body of a PATCH of a service whose primary is this location, "" = none yet: the first one becomes it.

        Of a file in TOML each region that it names is wanted as it stands there, what it does not say of it is the default.
        """
        if self.settings is None:
            return dict(self._said)
        rows = [settings_of(each) for each in self._said.get("regions", ())]
        if first := self._said.get("primary"):
            rows.insert(0, settings_of(first))
            primary = ""
        chosen = next((row for row in rows if not primary or canonical(row["location"]) == primary), None)
        others = [row for row in rows if row is not chosen]
        body = _at_top(chosen) if chosen else {"properties": {}}
        body["properties"]["additionalLocations"] = others
        if tier := self._said.get("tier"):
            body.setdefault("sku", {})["name"] = tier
        if mode := self._said.get("virtual_network_type"):
            body["properties"]["virtualNetworkType"] = mode
        return body

    @property
    def name(self) -> str:
        """Give what the file calls the service."""
        return self.settings.document.service.name if self.settings else str(self._said.get("name") or "service")

    @property
    def domain(self) -> str | None:
        """Give its domain, None where the file does not say."""
        return self._said.get("domain") if self.settings else None


def _settings(file: Path) -> tuple[Settings, Body]:
    """Read an lbcore.toml, and give what it says of the service; zones and networks may stand there without a management plane."""
    with user_files():
        try:
            data = tomllib.loads(file.read_bytes().decode())
        except ValueError:
            data = {}
        said = data.get("service")
        provisioned = isinstance(said, dict) and "management" not in data and any(map(_provisioned, _tables(said)))
        settings = parse(data | {"management": {}}, str(file), file.parent) if provisioned else load(file)
    return settings, said if isinstance(said, dict) else {}


def _tables(said: Body) -> list[Any]:
    regions = said.get("regions")
    return [said, said.get("primary"), *(regions if isinstance(regions, list) else ())]


def _provisioned(table: Any) -> bool:
    return isinstance(table, dict) and not {"tier", "virtual_network_type", "zones", "virtual_network"}.isdisjoint(table)


def read_json(file: Path) -> Any:
    """Read a file of JSON, or Failure."""
    with user_files():
        try:
            return json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise Failure(f"{file}: expected JSON ({error})") from error


def settings_of(entry: Mapping[str, Any]) -> Body:
    """Give a location's row of a body for a table such as [[service.regions]]."""
    network = entry.get("virtual_network") or {}
    within = {"subnetResourceId": network.get("subnet_resource_id"), "location": network.get("location")}
    subnet = {key: value for key, value in within.items() if value}
    place = {key: entry[key] for key in ("lat", "lon") if key in entry}
    return {
        "location": entry["name"], "sku": {"capacity": entry.get("units", 1)}, "zones": list(entry.get("zones", ())),
        "disableGateway": not entry.get("enabled", True), "virtualNetworkConfiguration": subnet or None,
        "publicIpAddressId": network.get("public_ip_address_id") or None, "geo": place or None, "gateway": entry.get("gateway") or None,
    }  # fmt: skip


def _at_top(row: Body) -> Body:
    """Give a body in which a row is the primary's."""
    top = {key: row[key] for key in ("location", "sku", "zones")}
    return {**top, "properties": {key: value for key, value in row.items() if key not in top}}


def plan_alone(wish: Wish, name: str) -> Body:
    """Give the plan for a service that does not exist yet, from the file alone."""
    from lbcore.service.body import accepted
    from lbcore.service.plan import plan

    body = wish.body("")
    if wish.domain:
        body.setdefault("properties", {})["domain"] = wish.domain
    service = accepted(body, name or wish.name, None)
    settings = wish.settings
    return (plan(None, service, monitor=settings.monitor, ttl=settings.ttl) if settings else plan(None, service)).as_dict()


# ===== on the screen


def print_plan(plan: Body) -> None:
    """Print a plan as REST gives it."""
    print_steps(plan)
    for line in (*vip_lines(plan), *(f"warning: {each['message']} ({each['code']})" for each in plan["warnings"])):
        print(line)
    for line in _times(plan["failover"]):
        print(line)
    print(f"sla: {plan['sla'] if plan['sla'] is not None else 'none'}")


def print_steps(plan: Body) -> None:
    """Print what it does, in order."""
    rows = [*_rows(plan)]
    if rows:
        print_table(["do", "region", "what"], rows)
    else:
        print("nothing to do")


def _rows(plan: Body) -> Iterator[tuple[str, str, str]]:
    for name, pair in plan["settings"].items():
        yield "set", "", f"{name}: {pair['before']} -> {pair['after']}"
    for step in (*plan["creates"], *plan["updates"], *plan["deletes"]):
        yield step["action"], step["location"], _what(step)


def _what(step: Body) -> str:
    before, after = step["unitsBefore"], step["unitsAfter"]
    units = f"{before} -> {after} units" if before and after and before != after else _units(after or before)
    changes = ", ".join(each for each in step["changes"] if each != "units")
    return f"{units}; {changes}" if changes else units


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"


def vip_lines(plan: Body) -> list[str]:
    """Give a line for each region whose VIPs change."""
    return [_vip_line(each) for each in plan["vipChanges"]]


def _vip_line(change: Body) -> str:
    kinds = " and ".join(kind for kind in ("public", "private") if change[kind])
    given = ", ".join((*change["publicIPAddresses"], *change["privateIPAddresses"])) or "no address yet"
    return f"VIP change: {change['location']}: {kinds}, now {given}, because of {', '.join(change['reasons'])}"


def _times(times: Body) -> Iterator[str]:
    """Give the failover times in words; seconds."""
    silent, refused = times["detectSilent"], times["detectRefused"]
    yield f"failover: down {refused[0]:g}-{refused[1]:g} s after it refuses, {silent[0]:g}-{silent[1]:g} s after it says nothing;"
    yield f"          the last client has moved after {times['worstRefused']:g} s, or {times['worst']:g} s; up again in"
    yield f"          {times['recover'][0]:g}-{times['recover'][1]:g} s, with its full share after {times['fullShare']:g} s"
