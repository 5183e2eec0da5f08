"""Promotion: another location becomes the primary. Explicit, fenced by an epoch, never automatic (R49).

    planned     old primary: hand_over -> epoch E, its store is read-only from then on;  backup
                new machine: take_over(backup, epoch=E): its configurations begin at E or later, and the location is the primary
    forced      the old primary cannot be asked: take_over(backup) leaps over the epochs that it may have begun since;
                when it is back, `standby` finds the later epoch and fences it
    back        take_over without a backup, in a store that was fenced: what it holds counts again, with a later epoch than anybody's

Source: fencing by a number that only grows, as of leases (M. Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service import backup
from lbcore.service.model import ServiceState
from lbcore.service.revisions import Number
from lbcore.service.store import Store

__all__ = ["LEAP", "Promoted", "hand_over", "take_over"]

LEAP = 16  # epochs; each restore, promotion and `win` begins one


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion did. epoch: begun; revision: now the latest, None = there is none; lost: published before in this store, and gone"""

    state: ServiceState
    epoch: int
    revision: Number | None
    lost: tuple[Number, ...] = ()


def hand_over(store: Store, location: str, *, who: str, why: str = "") -> int:
    """Make the store of the primary read-only, so that `location` may become the primary; give the epoch for `take_over`.

    Done twice for one location it gives the same epoch. Raises ServiceError ResourceNotFound, PropertyChangeNotAllowed for the primary
    itself, OperationInProgress, and Fenced when the epoch is another location's already: two primaries would have the same.
    """
    with store.database.writing() as connection:
        state = _state(store.read(connection))
        wanted = state.service.get(location)
        if wanted.name == state.service.primary.name:
            raise ServiceError("PropertyChangeNotAllowed", f"{wanted.display_name} is the primary", "location")
        if (handed := store.handed_over(connection)) is not None:
            if handed[0] == wanted.name:
                return handed[1]
            back = f"lbcore promote --location {state.service.primary.name} --force"
            raise ServiceError("Fenced", f"epoch {handed[1]} is for {handed[0]}, which may be the primary already; else `{back}` first")
        store.refuse_when_fenced(connection)
        store.refuse_while_busy(connection)
        epoch = store.revisions.epoch_of(connection) + 1
        store.set_fence(connection, epoch, who, why or f"handed over to {wanted.display_name}", to=wanted.name)
    return epoch


def take_over(
    store: Store, location: str, *, who: str, why: str = "", epoch: int | None = None, file: str | os.PathLike[str] | None = None,
    name: str = "", allow_expired: bool = False,
) -> Promoted:  # fmt: skip
    """Make `location` the primary of the service in this store, whole or not at all.

    epoch: that `hand_over` gave, None = forced;  file: a backup that comes into the store before, None = what the store holds counts
    name: of the service that the backup must be of, "" = any
    Nobody may run on the store. Raises ServiceError StoreLocked, Fenced unless the epoch is later than that of a fence, ResourceNotFound,
    and as `backup.restore`.
    """
    why = why or f"promote {canonical(location)}"
    with store.lease():
        if file is None:
            return _here(store, location, epoch, who, why)
        manifest = backup.inspect(file)
        least = epoch if epoch is not None else _beyond(store, manifest.epoch)
        done = backup.restore(
            store, file, name=name or manifest.service, tier=manifest.tier, who=who, why=why, allow_expired=allow_expired, at_least=least,
            primary=location,
        )  # fmt: skip
    return Promoted(done.state, done.epoch, done.revision.number if done.revision else None, done.lost)


def _here(store: Store, location: str, epoch: int | None, who: str, why: str) -> Promoted:
    least = epoch if epoch is not None else _beyond(store, 0)
    with store.database.writing() as connection:
        state = _state(store.read(connection))
        service = state.service.led_by(location)
        if (fenced := store.fence_of(connection) or 0) >= least:
            raise ServiceError("Fenced", f"another primary has taken over with epoch {fenced}, and {least} is not later")
        store.refuse_while_busy(connection)
        store.lift_fence(connection, who, why)
        begun = store.revisions.advance(connection, why, who, least)
        state = store.write(connection, replace(state, service=service), who, "promote", why)
    latest = store.revisions.latest()
    return Promoted(state, begun, latest.number if latest else None)


def _state(found: ServiceState | None) -> ServiceState:
    if found is None:
        raise ServiceError("ResourceNotFound", "there is no service in this store; a backup brings one")
    return found


def _beyond(store: Store, epoch: int) -> int:
    """Give an epoch that the old primary has not come to, as far as can be known here."""
    return max(epoch, store.revisions.epoch, store.fenced or 0) + LEAP
