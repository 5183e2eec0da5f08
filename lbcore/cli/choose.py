"""`pick`, `rank`, `explain`, `check`: what the Balancer of a configuration says, without serving anybody."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbcore.balancer import Balancer
from lbcore.cli.checking import check_all
from lbcore.cli.common import (
    DEFAULT_CONFIG,
    NOT_FOUND,
    UNAVAILABLE,
    AsJson,
    Client,
    Config,
    Database,
    Failure,
    open_balancer,
    print_json,
    print_table,
    quiet_logs,
    read_followed,
)
from lbcore.config import Settings

if TYPE_CHECKING:
    from lbcore.decision import Decision
    from lbcore.dns.explain import Explanation

__all__ = ["check", "explain", "pick", "rank"]


def pick(client: Client, config: Config = DEFAULT_CONFIG, geo: Database = None, json: AsJson = False) -> None:
    """Name the region whose gateway a client should use now."""
    lb = open_balancer(read_followed(config), geo)
    region = lb.pick(client)
    if not json:
        print(region.name)
        return
    group, scope = lb.match(client)
    print_json({
        "client": client, "region": region.name, "gateway": region.gateway, "addresses": list(region.addresses),
        "group": group, "key": lb.map.keys[group], "scope": scope, "fail_open": lb.fail_open,
    })  # fmt: skip


def rank(client: Client, config: Config = DEFAULT_CONFIG, geo: Database = None, json: AsJson = False) -> None:
    """List the regions that may serve a client, the closest first."""
    lb = open_balancer(read_followed(config), geo)
    known = {candidate.region: candidate for candidate in lb.explain(client).candidates}
    rows = [
        {
            "rank": place, "region": region.name, "estimate_ms": round(known[region.name].estimate_ms, 1),
            "deviation_ms": round(known[region.name].deviation_ms, 1), "status": lb.status(region), "gateway": region.gateway,
        }
        for place, region in enumerate(lb.rank(client), 1)
    ]  # fmt: skip
    if json:
        print_json({"client": client, "group": lb.match(client)[0], "regions": rows})
    else:
        print_table([">#", "region", ">ms", ">±", "status", "gateway"], [[*row.values()] for row in rows])


Asked = Annotated[str, typer.Argument(metavar="CLIENT|NAME", help="IPv4 or IPv6 address of a client, or a DNS name that is steered.")]
Subnet = Annotated[str | None, typer.Option(metavar="NET", help="For whom the name is asked: a network or address. Default: unknown.")]


def explain(asked: Asked, config: Config = DEFAULT_CONFIG, geo: Database = None, subnet: Subnet = None, json: AsJson = False) -> None:
    """Say why a client gets its region, in words or in JSON that `Decision.replay` turns into the same pick; or why a name its answer."""
    settings = read_followed(config)
    lb = open_balancer(settings, geo)
    try:
        ipaddress.ip_address(asked)
    except ValueError:
        decision: Decision | Explanation = _explained(settings, lb, asked, subnet)
    else:
        if subnet is not None:
            raise Failure(f"--subnet goes with a DNS name, got {asked}")
        decision = lb.explain(asked)
    if json:
        print_json(decision.as_dict())
    else:
        print(decision.text())


def _explained(settings: Settings, lb: Balancer, name: str, subnet: str | None) -> Explanation:
    import dns.exception
    import dns.name

    from lbcore.dns.configured import zones_of
    from lbcore.dns.explain import explain as explain_name

    try:
        client = None if subnet is None else str(ipaddress.ip_network(subnet, strict=False).network_address)
    except ValueError:
        raise Failure(f"--subnet: expected a network such as 203.0.113.0/24, got {subnet!r}") from None
    try:
        full = dns.name.from_text(name)
    except (dns.exception.DNSException, UnicodeError):
        raise Failure(f"expected an address such as 203.0.113.7 or a DNS name, got {name!r}") from None
    found = explain_name(lb, zones_of(settings), full, client)
    if found is None:
        raise Failure(f"{name}: no profile steers that name, and it is no address", NOT_FOUND)
    return found


File = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration.")]
Probe = Annotated[bool, typer.Option("--probe", help="Also probe every region's gateway once; ends 5 when one does not answer.")]


def check(config: File, probe: Probe = False, json: AsJson = False) -> None:
    """Check a configuration: every mistake at once, and with --probe whether the gateways answer."""
    settings = read_followed(config)
    check_all(settings)
    if not settings.regions and not probe:  # [sync] or [management]: others have them
        if json:
            print_json({"config": str(config), "ok": True, "groups": 0, "regions": []})
        else:
            print(f"{config}: regions are the primary's, nothing wrong with it")
        return
    lb = open_balancer(settings)
    rows = [_described(lb, region.name) for region in lb.regions]
    if probe:
        results = asyncio.run(_probed(settings, lb))
        rows = [row | results.get(row["region"], {"probe": "not probed"}) for row in rows]
    failed = [row["region"] for row in rows if row.get("probe") not in (None, "ok", "not probed")]
    if json:
        print_json({"config": str(config), "ok": not failed, "groups": lb.table.groups, "regions": rows})
    else:
        headings = ["region", ">lat", ">lon", ">units", "enabled", "gateway", "addresses", "probe", ">connect ms", ">first byte ms"]
        print_table(headings if probe else headings[:7], [[*row.values()] for row in rows])
        print(f"{config}: {len(rows)} region{'s' * (len(rows) != 1)}, {lb.table.groups:,} groups of clients, nothing wrong with it")
    if failed:
        raise Failure("\n".join(f"{row['region']}: {row['probe']}" for row in rows if row["region"] in failed), UNAVAILABLE)


def _described(lb: Balancer, name: str) -> dict[str, Any]:
    region = lb.region(name)
    return {
        "region": region.name, "lat": region.lat, "lon": region.lon, "units": region.units, "enabled": region.enabled,
        "gateway": region.gateway, "addresses": " ".join(region.addresses),
    }  # fmt: skip


async def _probed(settings: Settings, lb: Balancer) -> dict[str, dict[str, Any]]:
    from lbcore.sense.probe import Prober

    quiet_logs()
    results = await Prober(lb, **settings.prober_options()).first_round()
    lines = {
        name: {
            "probe": "ok" if result.ok else f"{result.cause}: {result.detail}".removesuffix(": "),
            "connect_ms": _rounded(result.connect_ms), "first_byte_ms": _rounded(result.first_byte_ms),
        }
        for name, result in results.items()
    }  # fmt: skip
    silent = {region.name for region in lb.regions if region.gateway and region.enabled and not region.always_serve} - lines.keys()
    return lines | {name: {"probe": "timeout: no answer in time", "connect_ms": None, "first_byte_ms": None} for name in silent}


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 1)
