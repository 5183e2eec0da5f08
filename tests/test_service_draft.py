"""The Locations table before Save: rows are staged and taken back, and nothing else happens."""

from __future__ import annotations

import pytest
from service_worlds import contoso, running

from lbcore.errors import ServiceError
from lbcore.service.draft import LocationsDraft
from lbcore.service.model import location


def rows(draft: LocationsDraft) -> dict[str, str]:
    return {row.location.name: row.draft for row in draft}


def test_rows_are_staged_and_nothing_happens_before_save() -> None:
    state = running(contoso("eastasia"))
    draft = LocationsDraft(state)
    draft.add("West Europe", units=3, zones=["3", "1", "2"])
    draft.add("uksouth")
    draft.change("West US 2", units=2)
    draft.delete("East Asia", confirm=True)
    assert rows(draft) == {"westus2": "draft-change", "eastasia": "draft-delete", "westeurope": "draft-add", "uksouth": "draft-add"}
    assert draft.wanted == contoso("uksouth").put(location("westus2", units=2)).without("uksouth").put(
        location("westeurope", units=3, zones=["1", "2", "3"])
    ).put(location("uksouth"))
    assert [(step.action, step.name) for step in draft.plan().steps] == [
        ("create", "westeurope"), ("create", "uksouth"), ("update", "westus2"), ("delete", "eastasia"),
    ]  # fmt: skip
    assert draft.state is state


def test_what_was_staged_is_taken_back() -> None:
    draft = LocationsDraft(running(contoso("eastasia")))
    draft.delete("eastasia", confirm=True)
    draft.change("westus2", zones=["1"])
    draft.add("uksouth")
    for name in ("East Asia", "westus2", "UK South", "ukwest"):
        draft.cancel(name)
    assert set(rows(draft).values()) == {""}
    assert draft.plan().empty
    draft.add("uksouth")
    draft.delete("uksouth")  # a row that was only staged needs no confirmation
    assert draft.plan().empty


def test_removal_is_confirmed_and_the_primary_stays() -> None:
    draft = LocationsDraft(running(contoso("eastasia")))
    with pytest.raises(ServiceError, match="ConfirmationRequired"):
        draft.delete("eastasia")
    with pytest.raises(ServiceError, match="CannotRemovePrimary"):
        draft.delete("westus2", confirm=True)
    with pytest.raises(ServiceError, match="did you mean 'eastasia'"):
        draft.delete("eastasi", confirm=True)
    for name in ("West US 2", "eastasia"):
        with pytest.raises(ServiceError, match="DuplicateLocation"):
            draft.add(name)
    draft.delete("eastasia", confirm=True)
    with pytest.raises(ServiceError, match="ResourceNotFound"):
        draft.change("eastasia", units=2)
    with pytest.raises(ServiceError, match="DuplicateLocation"):  # its removal is staged: cancel that, for a region has one row
        draft.add("eastasia")
    assert rows(draft) == {"westus2": "", "eastasia": "draft-delete"}
