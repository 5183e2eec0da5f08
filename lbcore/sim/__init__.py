"""WORKSHOP: a virtual clock and replay, so that a day of traffic is decided in a second, the same way every time.

    clock = VirtualClock()
    lb = lbcore.Balancer(regions, clock=clock)
    for decision in replay(lb, events):
        ...

Nothing here opens a socket or reads the real time.
"""

from lbcore.sim.replay import Answer, Event, Outcome, Query, Sample, VirtualClock, read_events, replay, write_events
from lbcore.sim.world import Outage, Reply, Request, Weather, World, events, season

__all__ = [
    "Answer",
    "Event",
    "Outage",
    "Outcome",
    "Query",
    "Reply",
    "Request",
    "Sample",
    "VirtualClock",
    "Weather",
    "World",
    "events",
    "read_events",
    "replay",
    "season",
    "write_events",
]
