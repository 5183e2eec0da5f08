"""Switches of regions in a running table: what a rotation says holds at once, and there is no moment without any region."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edging import SERVICE, region, rotation
from hypothesis import given
from hypothesis import strategies as st

from lbcore import Balancer
from lbcore.cli.generation import Generation
from lbcore.config import Settings, read
from lbcore.service.edge import settings_of

FILE = read(f'[service]\nname = "{SERVICE}"\n[http]\n[sync]\nprimary = "https://primary.example"\n'.encode(), Path("edge.toml"))
NAMES = ("westeurope", "eastus", "southeastasia", "westus2")
Switches = dict[str, tuple[bool, bool]]  # enabled, draining

switches = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.booleans(), st.booleans()), min_size=1)


def settings_for(wanted: Switches) -> Settings:
    return settings_of(FILE, rotation((1, 1), *(region(name, enabled=on, draining=draining) for name, (on, draining) in wanted.items())))


def generation(wanted: Switches) -> Generation:
    settings = settings_for(wanted)
    lb = Balancer(settings.regions)
    for name in settings.draining:
        lb.drain(name)
    table: Any = SimpleNamespace(lb=lb)
    return Generation(settings, table, {}, print, lambda error: None, Counter())


def shown(lb: Balancer) -> Switches:
    return {one.name: (lb.table.enabled(lb.slot(one)), lb.table.draining(lb.slot(one))) for one in lb.regions}


@given(st.lists(switches, min_size=2, max_size=5))
def test_switches_are_as_the_last_rotation_says(rotations: list[Switches]) -> None:
    made = generation(rotations[0])
    for wanted in rotations[1:]:
        changes: list[bool] = []
        serving = bool(made.lb.table.eligible().any())
        end = made.lb.on_change(lambda change, changes=changes: changes.append(bool(made.lb.table.eligible().any())))
        before, names = shown(made.lb), {one.name for one in made.lb.regions}
        made.switch(settings_for(wanted))
        end()
        after = shown(made.lb)
        assert all(after[name] == wanted[name] for name in names & wanted.keys())
        serve = any(on and not draining for name, (on, draining) in wanted.items() if name in names)
        gone = names - wanted.keys()
        assert all(after[name] == (False, False) for name in gone) if serve else all(after[name] == before[name] for name in gone)
        if serving and serve:
            assert all(changes), "there was a moment without any region"


def test_a_region_that_left_serves_on_while_nobody_else_can() -> None:
    made = generation({"westeurope": (True, False)})
    made.switch(settings_for({"eastus": (True, False)}))
    assert shown(made.lb) == {"westeurope": (True, False)}, "the next generation has the other one"
    both = generation({"westeurope": (True, False), "eastus": (True, False)})
    for _ in range(20):
        both.lb.report("eastus", False, cause="refused", source="probe")
    both.switch(settings_for({"eastus": (True, False)}))
    assert shown(both.lb)["westeurope"] == (True, False), "the one that stays is down"
