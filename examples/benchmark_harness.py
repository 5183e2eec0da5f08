"""Compare two settings of a Balancer on one recorded hour: how far from the best region do the clients end up?

    python examples/benchmark_harness.py [EVENTS.jsonl]

Without a file the events come from a synthetic world. The Balancer runs on the events' own clock, so that an hour takes a
few seconds, and the same events with the same settings give the same answers wherever they are played.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from lbcore import Balancer, Region
from lbcore.sim import Event, Sample, VirtualClock, World, events, read_events, replay, season

REGIONS = [Region(name) for name in ("westeurope", "eastus", "southeastasia", "australiaeast")]
WORLD = World(REGIONS, groups=20, duration=600.0, seed=1, outages=season(len(REGIONS), 600.0, seed=1, length=40.0))

SETTINGS: dict[str, dict[str, Any]] = {
    "prior_ewma": {},
    "ewma, 2 s": {"estimator": "ewma", "tau": 2.0},
}


def decide(recorded: Iterable[Event], settings: dict[str, Any]) -> list[tuple[float, str | None, str | None]]:
    """Give (time, client, region) of every query in the recording, decided by a fresh Balancer with these settings."""
    lb = Balancer(REGIONS, locate=WORLD.map, clock=VirtualClock(), **settings)
    return [(answer.at, answer.client, answer.region) for answer in replay(lb, recorded)]


def regret_ms(decisions: list[tuple[float, str | None, str | None]]) -> float:
    """Give how many milliseconds the decisions lose on average against the best region of that moment."""
    group = {client: number for number, client in enumerate(WORLD.clients)}
    index = {region.name: number for number, region in enumerate(REGIONS)}
    lost = 0.0
    for at, client, region in decisions:
        costs = WORLD.expected(at)[group[str(client)]]
        lost += float(costs[index[str(region)]] - costs.min())
    return lost / len(decisions)


def main() -> None:
    """Print one line per setting."""
    recorded = read_events(sys.argv[1]) if len(sys.argv) > 1 else list(events(WORLD))
    print(f"{len(recorded)} events, {sum(isinstance(event, Sample) for event in recorded)} of them samples")
    for name, settings in SETTINGS.items():
        decisions = decide(recorded, settings)
        changes = sum(one[2] != other[2] for client in WORLD.clients for one, other in _pairs(decisions, client))
        print(f"{name:12} regret {regret_ms(decisions):6.2f} ms, {changes} changes of region")


def _pairs(decisions: list[tuple[float, str | None, str | None]], client: str) -> Iterable[tuple[Any, Any]]:
    own = [decision for decision in decisions if decision[1] == client]
    return zip(own, own[1:], strict=False)


if __name__ == "__main__":
    main()
