"""Draft: the Locations table as a page or a program stages it. Nothing happens before it is saved; `wanted` is what Save sends.

    nothing --add--> draft-add --cancel, delete--> nothing        a row --delete, confirmed--> draft-delete --cancel--> the row
    a row --change--> draft-change --cancel--> the row
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service.model import Location, Service, ServiceState, location
from lbcore.service.plan import Plan, plan

__all__ = ["LocationsDraft", "Row"]


class Row(NamedTuple):
    """A row of the table. draft: "draft-add", "draft-delete", "draft-change", or "" for one that stays as it is"""

    location: Location
    draft: str


class LocationsDraft:
    """Staged changes to the locations of a service.

    state: as it was read; its ETag goes along with Save, so that nobody's changes in between are lost
    """

    def __init__(self, state: ServiceState) -> None:
        self.state = state
        self._before = {each.name: each for each in state.service.locations}
        self._after = dict(self._before)

    def add(self, name: str, **settings: Any) -> None:
        """Stage a region; settings as `location` has them. ServiceError DuplicateLocation for one that is there."""
        row = location(name, **settings)
        if row.name in self._after or row.name in self._before:
            raise ServiceError("DuplicateLocation", f"{row.display_name} is in the table already", "location")
        self._after[row.name] = row

    def change(self, name: str, **settings: Any) -> None:
        """Stage other settings of a region, the primary too."""
        row = self._row(name)
        if isinstance(settings.get("zones"), list | tuple):
            settings["zones"] = tuple(sorted(settings["zones"]))
        self._after[row.name] = replace(row, **settings)

    def delete(self, name: str, *, confirm: bool = False) -> None:
        """Stage the removal of a region, or drop a row that was only staged.

        Raises ServiceError CannotRemovePrimary, ConfirmationRequired unless confirmed, ResourceNotFound.
        """
        row = self._row(name)
        self.state.service.without(row.name)
        if row.name in self._before and not confirm:
            raise ServiceError("ConfirmationRequired", f"confirm that {row.display_name} is to be deleted", row.name)
        del self._after[row.name]

    def cancel(self, name: str) -> None:
        """Take back whatever was staged of a region."""
        folded = canonical(name)
        if folded in self._before:
            self._after[folded] = self._before[folded]
        else:
            self._after.pop(folded, None)

    def __iter__(self) -> Iterator[Row]:
        """Give the rows: those there are in their order, then those staged."""
        for name, row in self._before.items():
            after = self._after.get(name)
            yield Row(after or row, "draft-delete" if after is None else "" if after == row else "draft-change")
        yield from (Row(row, "draft-add") for name, row in self._after.items() if name not in self._before)

    @property
    def wanted(self) -> Service:
        """Give the service as it would be."""
        rows = [each.location for each in self if each.draft != "draft-delete"]
        return replace(self.state.service, primary=rows[0], additional_locations=tuple(rows[1:]))

    def plan(self, **options: Any) -> Plan:
        """Give what Save would do; options as `plan.plan` has them. It has no effect."""
        return plan(self.state, self.wanted, **options)

    def _row(self, name: str) -> Location:
        row = self._after.get(canonical(name))
        return row if row is not None else self.wanted.get(name)  # which tells the nearest
