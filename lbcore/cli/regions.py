"""`regions`: the Locations table from the shell. Every change is one Save, which its plan has been shown for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lbcore.cli.common import CONFLICT, AsJson, Commands, Failure, print_json, print_table
from lbcore.cli.deployment import finish, follow
from lbcore.cli.planning import Wish, plan_alone, print_plan, settings_of, vip_lines
from lbcore.cli.remote import (
    ADVICE,
    DEFAULT_URL,
    Answer,
    Authorities,
    Management,
    Named,
    TokenFile,
    Unreachable,
    Url,
    connected,
    explained,
    opened,
)
from lbcore.errors import ServiceError, nearest
from lbcore.region import canonical

__all__ = ["regions"]

Body = dict[str, Any]

regions = typer.Typer(cls=Commands, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="REGION", help="A region's name in any spelling, such as westeurope or \"West Europe\".")]
MaybeName = Annotated[str, typer.Argument(metavar="[REGION]", help="A region's name. Default: all, one after another.")]
Wanted = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="PATCH body (JSON), or an lbcore.toml with tables of `service`. Default: what is wanted."),
]
Units = Annotated[int, typer.Option(metavar="N", help="Units of capacity.")]
NewUnits = Annotated[int | None, typer.Option(metavar="N", help="Units of capacity. Default: as many as now.")]
Zones = Annotated[str | None, typer.Option(metavar="1,2,3", help='Availability zones, "" = automatic. Another set changes the VIPs.')]
Subnet = Annotated[str | None, typer.Option(metavar="ID", help="Subnet in the region's own virtual network. Another one changes the VIPs.")]
NetworkRegion = Annotated[str | None, typer.Option(metavar="REGION", help="Where the subnet's virtual network is, when nobody knows.")]
PublicIp = Annotated[str | None, typer.Option(metavar="ID", help="Resource of the public IP address.")]
Lat = Annotated[float | None, typer.Option(metavar="DEGREES", help="Latitude, for a region that no catalogue knows.")]
Lon = Annotated[float | None, typer.Option(metavar="DEGREES", help="Longitude, together with --lat.")]
Gateway = Annotated[str | None, typer.Option(metavar="URL", help="Its gateway, where the provisioner does not decide.")]
Enabled = Annotated[bool | None, typer.Option("--enable/--disable", help="In rotation, or out of it. Default: as now.")]
Acknowledge = Annotated[bool, typer.Option("--acknowledge-vip-change", help="Yes, the addresses that the plan lists change.")]
Force = Annotated[bool, typer.Option("--force", help="Also when that may lose the only capacity that works (V12).")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the operation and end.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Reason, for the history.")]
Sure = Annotated[bool, typer.Option("--yes", help="Yes, remove it.")]
Going = Annotated[bool, typer.Option("--yes", help="Yes, remove the regions that the file does not name.")]
Id = Annotated[str, typer.Argument(metavar="[OPERATION]", help="Its id. Default: the newest.")]
OrderId = Annotated[int, typer.Argument(metavar="ORDER", min=0, help="As `lbcore regions orders` shows it.")]
Addresses = Annotated[list[str] | None, typer.Option("--address", metavar="IP", help="Public address; may be given several times.")]
Privates = Annotated[list[str] | None, typer.Option("--private", metavar="IP", help="Private address, in Internal mode.")]
Refuse = Annotated[str, typer.Option(metavar="WHY", help="It cannot be done.")]
Offline = Annotated[bool, typer.Option("--offline", help="From the file alone, as for a service that does not exist yet.")]

HINTS = ADVICE | {
    "DuplicateLocation": "`lbcore regions scale` changes a region that is there already",
    "CannotRemovePrimary": "to make another location the primary, see `lbcore promote --help`",
}  # fmt: skip
WRITABLE = ("location", "sku", "zones", "disableGateway", "virtualNetworkConfiguration", "publicIpAddressId", "geo", "gateway")
SAVING = """

\b
Ends 0 when everything came to what is wanted, 2 for a wish that is wrong,
3 when something is in the way, 5 when the management plane does not answer
or a region failed. Ctrl-C ends the command alone, not the operation.
"""


@regions.callback()
def group() -> None:
    """See and change the regions that the service runs in."""


@regions.command("list", epilog="Example: lbcore regions list --token-file reader.token")
@connected
def list_(there: Management, json: AsJson = False) -> None:
    """List the regions: what is wanted, what runs, and whether it is healthy."""
    rows = there.get("/locations").body["value"]
    health = _health(there)
    rows = [row | {"endpointMonitorStatus": health.get(row["name"])} for row in rows]
    if json:
        print_json({"service": there.name, "locations": rows})
        return
    print_table(["region", "name", ">units", ">busy", "zones", "state", "health", "VIPs", "gateway"], map(_row, rows))
    for row in rows:
        if row.get("reason"):
            print(f"{row['displayName']}: {row['reason']}")
        if advice := _advice(row):
            print(f"{row['displayName']}: {advice}")


def _row(row: Body) -> list[object]:
    name = f"{row['name']} (primary)" if row["primary"] else row["name"]
    state = row["provisioningState"] + (", disabled" if row["disableGateway"] else "")
    vips = " ".join((*row["publicIPAddresses"], *row["privateIPAddresses"]))
    zones = ",".join(row["zones"]) or "automatic"
    units, health, gateway = row["sku"]["capacity"], row["endpointMonitorStatus"], row.get("gatewayAddress")
    busy = f"{row['capacity']['averagePercent']:.0f} %" if row.get("capacity") else None
    return [row["displayName"], name, units, busy, zones, state, health, vips, gateway]


def _advice(row: Body) -> str:
    """Say how many units it should have, "" for those it has."""
    said = row.get("capacity") or {}
    if said.get("advisedUnits") in (None, row["sku"]["capacity"]):
        return ""
    busy = f"{said['averagePercent']:.0f} % busy in the last minute, {said['maximumPercent']:.0f} % at most"
    return f"{said['advisedUnits']} units advised: {busy}"


def _health(there: Management) -> dict[str, str]:
    try:
        return {each["name"]: each["endpointMonitorStatus"] for each in there.get("/trafficManager/endpoints").body["value"]}
    except ServiceError:  # the table is worth more than this column
        return {}


# ===== one row


@regions.command(epilog="Example: lbcore regions add westeurope --units 2 --why \"clients in Europe\"" + SAVING)
@connected
def add(
    there: Management, name: Name, units: Units = 1, zones: Zones = None, subnet: Subnet = None, network_region: NetworkRegion = None,
    public_ip: PublicIp = None, lat: Lat = None, lon: Lon = None, gateway: Gateway = None, enabled: Enabled = None,
    acknowledge: Acknowledge = False, force: Force = False, no_wait: NoWait = False, why: Why = "", json: AsJson = False,
) -> None:  # fmt: skip
    """Add a region, and wait until it is in rotation: deployed, configured, probed."""
    now = there.get()
    row = settings_of({"name": name}) | _said(units, zones, subnet, network_region, public_ip, lat, lon, gateway, enabled)
    body = {"properties": {"additionalLocations": [*_others(now), row]}}
    _save(there, now, body, acknowledge, force, no_wait, why, json)


@regions.command(epilog="Example: lbcore regions scale westeurope --units 3" + SAVING)
@connected
def scale(
    there: Management, name: Name, units: NewUnits = None, zones: Zones = None, subnet: Subnet = None, network_region: NetworkRegion = None,
    public_ip: PublicIp = None, lat: Lat = None, lon: Lon = None, gateway: Gateway = None, enabled: Enabled = None,
    acknowledge: Acknowledge = False, force: Force = False, no_wait: NoWait = False, why: Why = "", json: AsJson = False,
) -> None:  # fmt: skip
    """Change a region, the primary too: its units, zones, network, or whether it takes part; and wait until that is done."""
    now = there.get()
    said = _said(units, zones, subnet, network_region, public_ip, lat, lon, gateway, enabled)
    if not said:
        raise Failure("expected something to change, such as --units 3")
    if canonical(name) == canonical(now.body["location"]):
        top = ("sku", "zones")
        body = {key: said[key] for key in top if key in said}
        body["properties"] = {key: value for key, value in said.items() if key not in top}
    else:
        rows = _others(now)
        chosen = _find(there, now, name)
        body = {"properties": {"additionalLocations": [row | said if canonical(row["location"]) == chosen else row for row in rows]}}
    _save(there, now, body, acknowledge, force, no_wait, why, json)


@regions.command(epilog="Example: lbcore regions remove eastasia --yes" + SAVING)
@connected
def remove(
    there: Management, name: Name, yes: Sure = False, acknowledge: Acknowledge = False, force: Force = False, no_wait: NoWait = False,
    why: Why = "", json: AsJson = False,
) -> None:  # fmt: skip
    """Remove a region, and wait until it is gone: drained, out of DNS, stopped. Not without --yes."""
    if not yes:
        raise Failure(f"{name} would be drained and stopped for good; say --yes if that is what you want")
    now = there.get()
    if canonical(name) == canonical(now.body["location"]):
        message = f"{now.body['location']} is the primary: it stays for as long as the service does"
        raise explained(ServiceError("CannotRemovePrimary", message, "location"), HINTS)
    chosen = _find(there, now, name)
    rows = [row for row in _others(now) if canonical(row["location"]) != chosen]
    _save(there, now, {"properties": {"additionalLocations": rows}}, acknowledge, force, no_wait, why, json)


def _said(
    units: int | None, zones: str | None, subnet: str | None, network_region: str | None, public_ip: str | None, lat: float | None,
    lon: float | None, gateway: str | None, enabled: bool | None,
) -> Body:  # fmt: skip
    """Give the settings of a row that options name; "" takes back what was set."""
    row: Body = {}
    if units is not None:
        row["sku"] = {"capacity": units}
    if zones is not None:
        row["zones"] = [zone.strip() for zone in zones.split(",") if zone.strip()]
    if subnet is not None or network_region is not None:
        network = {"subnetResourceId": subnet, "location": network_region}
        row["virtualNetworkConfiguration"] = {key: value for key, value in network.items() if value} or None
    if public_ip is not None:
        row["publicIpAddressId"] = public_ip or None
    if lat is not None or lon is not None:
        row["geo"] = {key: value for key, value in (("lat", lat), ("lon", lon)) if value is not None}
    if gateway is not None:
        row["gateway"] = gateway or None
    if enabled is not None:
        row["disableGateway"] = not enabled
    return row


def _others(now: Answer) -> list[Body]:
    """Give the rows beside the primary as they may be sent back."""
    return [{key: row.get(key) for key in WRITABLE} for row in now.body["properties"]["additionalLocations"]]


def _find(there: Management, now: Answer, name: str) -> str:
    """Give the name of a location of the service; ServiceError ResourceNotFound names the nearest."""
    known = [canonical(row["location"]) for row in _others(now)]
    if canonical(name) not in known:
        hint = "".join(f"; did you mean {near!r}?" for near in nearest(canonical(name), known))
        raise ServiceError("ResourceNotFound", f"service {there.name!r} has no region {name!r}{hint}")
    return canonical(name)


# ===== a whole wish


@regions.command(epilog="Example: lbcore regions plan examples/three-regions.toml --offline")
def plan(
    context: typer.Context, file: Wanted = None, offline: Offline = False, force: Force = False, json: AsJson = False,
    url: Url = DEFAULT_URL, token_file: TokenFile = None, ca: Authorities = None, service: Named = "",
) -> None:  # fmt: skip
    """Say what a wish would do: regions that come, change and go, VIPs that change, how long an outage would be seen. Nothing happens.

    Without --url the file alone is looked at when there is no token to ask with, or nobody answers. Without FILE: what is left to do.
    """
    wish = Wish(file)
    found: Body | None = None
    if not offline:
        source = context.get_parameter_source("url")
        sure = file is None or source is None or source.name != "DEFAULT"
        found = _asked(wish, force, sure, url, token_file, ca, service)
    if found is None:
        found = {"from": "file"} | _alone(wish, service)
    if json:
        print_json(found)
    else:
        if found["from"] == "file":
            print(f"{file} alone, as for a service that does not exist yet:")
        print_plan(found)


def _asked(wish: Wish, force: bool, sure: bool, url: str, token_file: Path | None, ca: Path | None, service: str) -> Body | None:
    """Give the plan of the management plane; None when there is none, or no token for it, and nobody is sure that there is."""
    if not sure and token_file is None:
        return None
    try:
        with opened(url, token_file, ca, service, HINTS) as there:
            now = there.get()
            return {"from": "service"} | _plan(there, wish.body(_primary(now)), force)
    except Unreachable:
        if sure:
            raise
        return None


def _alone(wish: Wish, service: str) -> Body:
    try:
        return plan_alone(wish, service)
    except ServiceError as error:
        raise explained(error, HINTS) from error


@regions.command(epilog="Example: lbcore regions save three-regions.toml --why \"as agreed\"" + SAVING)
@connected
def save(
    there: Management, file: Wanted = None, yes: Going = False, acknowledge: Acknowledge = False, force: Force = False,
    no_wait: NoWait = False, why: Why = "", json: AsJson = False,
) -> None:  # fmt: skip
    """Make the service as a file says, all or nothing, in one operation; wait until that is done. A service that is not there is created.

    Regions that the file does not name are removed, but not without --yes.
    Without FILE it does what is left to do of what is wanted already, such as what failed.
    """
    wish = Wish(file)
    try:
        now = there.get()
    except ServiceError as error:
        if error.code != "ResourceNotFound" or file is None:
            raise
        there.call_it(wish.name)
        body = wish.body("")
        if wish.domain:
            body.setdefault("properties", {})["domain"] = wish.domain
        _end(there, there.send("PUT", "", body, why=why, headers={"if-none-match": "*"}, force=force), no_wait, json)
    else:
        _save(there, now, wish.body(_primary(now)), acknowledge, force, no_wait, why, json, yes=yes or file is None)


# ===== operations


@regions.command(epilog="Example: lbcore regions refresh westeurope" + SAVING)
@connected
def refresh(there: Management, name: MaybeName = "", no_wait: NoWait = False, why: Why = "", json: AsJson = False) -> None:
    """Let regions take up what was changed around them, such as their network or the primary, one after another; no VIP changes."""
    body = {"location": name} if name else None
    _end(there, there.send("POST", "/applynetworkconfigurationupdates", body, why=why), no_wait, json)


@regions.command(epilog="Example: lbcore regions wait")
@connected
def wait(there: Management, operation: Id = "", json: AsJson = False) -> None:
    """Follow an operation until it is over."""
    found = _operation(there, operation)
    if found is not None:
        finish(follow(there, f"/operations/{found}", quiet=json), json)
    elif json:
        print_json(None)
    else:
        print("there was no operation yet")


@regions.command(epilog="Example: lbcore regions cancel")
@connected
def cancel(there: Management, operation: Id = "", json: AsJson = False) -> None:
    """Take an operation back, as long as no region was begun with."""
    found = _operation(there, operation)
    if found is None:
        raise Failure("there was no operation yet", CONFLICT)
    ended = there.send("POST", f"/operations/{found}/cancel").body
    if json:
        print_json(ended)
    else:
        print(f"operation {ended['id']}: {ended['status']}")
    if ended["status"] != "Canceled":
        raise Failure("it was over before", CONFLICT)


def _operation(there: Management, id: str) -> str | None:
    return id or next((str(each["id"]) for each in there.get("/operations").body["value"]), None)


# ===== regions that people make


@regions.command(epilog="Example: lbcore regions orders")
@connected
def orders(there: Management, json: AsJson = False) -> None:
    """List what waits for somebody to do it, where the provisioner is `manual`."""
    rows = there.get("/orders").body["value"]
    if json:
        print_json({"service": there.name, "orders": rows})
    else:
        print_table([">order", "do", "region", ">units", "new address", "addresses now"], map(_order, rows))


def _order(row: Body) -> list[object]:
    new = " and ".join(kind for kind in ("public", "private") if row[f"new{kind.title()}IP"])
    return [row["id"], row["work"], row["name"], row["units"], new, " ".join((*row["publicIPAddresses"], *row["privateIPAddresses"]))]


@regions.command(epilog="Example: lbcore regions answer westeurope 1 --address 192.0.2.12 --gateway https://192.0.2.12:8443")
@connected
def answer(
    there: Management, name: Name, order: OrderId, address: Addresses = None, private: Privates = None, gateway: Gateway = None,
    refuse: Refuse = "",
) -> None:  # fmt: skip
    """Say that an order was carried out, with all addresses that the region has now; or why it cannot be."""
    if refuse and (address or private or gateway):
        raise Failure("--refuse says that it was not done: expected no addresses beside it")
    done = {"publicIPAddresses": address or [], "privateIPAddresses": private or [], "gateway": gateway}
    there.send("POST", f"/orders/{quote(canonical(name), safe='')}/{order}", {"refusal": refuse} if refuse else done)


# ===== how


def _primary(now: Answer) -> str:
    return canonical(now.body["location"])


def _plan(there: Management, body: Body, force: bool) -> Body:
    return dict(there.send("POST", "/plan", body, force=force).body)


def _save(
    there: Management, now: Answer, body: Body, acknowledge: bool, force: bool, no_wait: bool, why: str, json: bool, *, yes: bool = True
) -> None:  # fmt: skip
    """Plan, show the plan, and save what was planned from: nobody's changes in between are lost."""
    planned = _plan(there, body, force)
    if not json:
        print_plan(planned)
    if planned["deletes"] and not yes:
        going = ", ".join(step["location"] for step in planned["deletes"])
        raise Failure(f"{going} would be drained and stopped for good; say --yes if that is what you want")
    if planned["vipChanges"] and not acknowledge:
        lines = vip_lines(planned) if json else ["VIPs would change, as listed above"]
        raise Failure("\n".join((*lines, ADVICE["VipChangeNotAcknowledged"])), CONFLICT)
    asked: Callable[..., Answer] = there.send
    answer = asked("PATCH", "", body, etag=now.etag, why=why, acknowledgeVipChange=acknowledge, force=force)
    _end(there, answer, no_wait, json)


def _end(there: Management, answer: Answer, no_wait: bool, json: bool) -> None:
    path = answer.headers.get("operation-location")
    if answer.status == 200 or not path:
        if json:
            print_json({"id": None, "status": "Succeeded", "locations": {}})
        else:
            print("saved; there was nothing to deploy")
    elif no_wait:
        operation = there.get(path).body
        if json:
            print_json(operation)
        else:
            print(f"operation {operation['id']}: {operation['status']}; `lbcore regions wait` follows it")
    else:
        finish(follow(there, path, quiet=json), json)
