#!/usr/bin/env python3
"""Regions made by commands of one's own, for `provisioner = { kind = "external", … }`: lbcore calls it with create, update, delete, wait.

    create, update, delete   an order comes as JSON on stdin; what it says is done, or begun: {"status": "working"}
    wait                     the same order again, until the work is done

The cloud here is a folder with a file for each region. Put your provider's commands where `begin`, `look` and `drop` are. An order may come
twice, after a crash: the second time must change nothing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CLOUD = Path(os.environ.get("CLOUD", "cloud"))  # named in `environment`, or commands do not see it


def begin(name: str, units: int, another_address: bool) -> None:
    """az vmss create --name NAME --instance-count UNITS …, or scale it; az network public-ip create … for another address."""
    there = look(name) or {"number": 1 + len([*CLOUD.glob("*.json")]), "turn": 0}
    turn = there["turn"] + another_address
    address = f"192.0.2.{(there['number'] + 100 * turn) % 256}"
    CLOUD.mkdir(exist_ok=True)
    (CLOUD / f"{name}.json").write_text(json.dumps(there | {"turn": turn, "units": units, "address": address}))


def look(name: str) -> dict[str, Any] | None:
    """az vmss show --name NAME: None when there is none."""
    file = CLOUD / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def drop(name: str) -> None:
    """az vmss delete --name NAME."""
    (CLOUD / f"{name}.json").unlink(missing_ok=True)


def main(which: str, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one call and give what lbcore is told."""
    name, there = order["name"], look(order["name"])
    if which == "wait":
        if order["work"] == "delete":
            return {"status": "done" if there is None else "working"}
        if there is None:
            return {"status": "failed", "message": f"{name} did not come up"}
        return {"status": "done", "publicIPAddresses": [there["address"]], "gateway": f"http://{there['address']}:8081"}
    if which == "delete":
        drop(name)
    else:
        moves = order["new_public"] and there is not None and there["address"] in order["public_ips"]  # not yet, when it comes again
        begin(name, order["location"]["units"], moves)
    return {"status": "working"}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.load(sys.stdin))))
