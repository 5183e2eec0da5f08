"""Owner: tokens, backups, promotion; and what everybody may read of what happened."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse, Response

from lbcore.errors import ServiceError
from lbcore.service.api import models
from lbcore.service.api.calls import OWN, READ, Book, Call, known, member, quoted, when
from lbcore.service.backup import Manifest, inspect
from lbcore.service.facts import shown
from lbcore.service.logbook import Entry
from lbcore.service.promotion import hand_over
from lbcore.service.revisions import Number
from lbcore.service.store import Store
from lbcore.service.tokenrows import TokenRow
from lbcore.service.tokens import issue

__all__ = ["book"]

book = Book("administration")
SERVICE = "/services/{name}"
FOLDER = "backups"  # beside the store
MOST_BACKUPS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[A-Za-z0-9_-]{1,20}){0,5}")
Limit = Annotated[int, Query(ge=1, le=1000)]
Id = Annotated[int, Query(ge=0, le=2**53)]


# ===== tokens


@book("GET", f"{SERVICE}/tokens", OWN, {200: models.Tokens})
async def list_tokens(name: str, call: Call) -> Response:
    """List the tokens, without their secrets; those that have ended as well."""
    call.named(name)
    return JSONResponse({"value": [_token(each) for each in await call.read(lambda store: store.tokens.all())]})


@book("POST", f"{SERVICE}/tokens", OWN, {201: models.IssuedToken}, body=models.NewToken)
async def create_token(name: str, call: Call) -> Response:
    """Make a token; its text is in this answer and nowhere else."""
    call.named(name)
    role, owner = (member(call.body, key, str, alone=False) for key in ("role", "name"))
    known(call.body, "role", "name", "expiresInSeconds")
    seconds = member(call.body, "expiresInSeconds", float, None, alone=False)
    text = await call.read(lambda store: _issue(store, role, owner, call.who, seconds))
    row = await call.read(lambda store: store.tokens.find(text.split("_")[1]))
    assert row is not None
    call.note(why=f"token {row[0].id}, {row[0].role}")
    headers = {"Location": f"/services/{call.plane.name}/tokens/{row[0].id}"}
    return JSONResponse(_token(row[0]) | {"token": text}, 201, headers)


@book("DELETE", f"{SERVICE}/tokens/{{id}}", OWN, {204: None})
async def revoke_token(name: str, id: str, call: Call) -> Response:
    """End a token for good; once more does no harm."""
    call.named(name)
    if await call.read(lambda store: store.tokens.find(id)) is None:
        raise ServiceError("ResourceNotFound", f"there is no token {shown(id)}", "id")
    await call.read(lambda store: store.tokens.revoke(id, who=call.who))
    return Response(status_code=204)


def _issue(store: Store, role: str, name: str, who: str, seconds: float | None) -> str:
    return issue(store, role, name, who=who, expires=None if seconds is None else store.clock() + seconds)


def _token(row: TokenRow) -> dict[str, Any]:
    times = {key: when(getattr(row, key)) for key in ("expires", "used", "revoked")}
    return {"id": row.id, "name": row.name, "role": row.role, "created": when(row.created) or "", **times}


# ===== what happened


@book("GET", f"{SERVICE}/history", READ, {200: models.History})
async def list_history(name: str, call: Call, limit: Limit = 100, before: Id | None = None) -> Response:
    """Give who changed what, when and why, the latest first; before: id of the last one of the page before."""
    call.named(name)
    entries = await call.read(lambda store: store.history(limit=limit, before=before))
    more = f"/services/{call.plane.name}/history?limit={limit}&before={entries[-1].id}" if len(entries) == limit else None
    return JSONResponse({"value": [_entry(each) for each in entries], "nextLink": more})


@book("GET", f"{SERVICE}/events", READ, {200: models.Events})
async def list_events(name: str, call: Call, limit: Limit = 100, after: Id = 0) -> Response:
    """Give the latest events after an id, in the order in which they were written."""
    call.named(name)
    found = await call.read(lambda store: store.events.since(after, limit=limit))
    value = [
        {"id": each.id, "at": when(each.at) or "", "kind": each.kind, "region": each.region, "detail": dict(each.detail)} for each in found
    ]
    return JSONResponse({"value": value})


def _entry(each: Entry) -> dict[str, Any]:
    return {
        "id": each.id, "at": when(each.at) or "", "who": each.who, "what": each.what, "why": each.why, "target": each.target,
        "etag": each.etag,
    }  # fmt: skip


# ===== backups


@book("GET", f"{SERVICE}/backups", OWN, {200: models.Backups})
async def list_backups(name: str, call: Call) -> Response:
    """List the backups in the folder `backups` beside the primary's store, the newest first."""
    call.named(name)
    return JSONResponse({"value": await call.read(_backups)})


@book("POST", f"{SERVICE}/backup", OWN, {201: models.MadeBackup}, body=models.TakeBackup, optional=True)
async def take_backup(name: str, call: Call) -> Response:
    """Write all that is stored, but for tokens, into the folder `backups` beside the primary's store."""
    call.named(name)
    state = await call.plane.state()
    given = member({} if call.body is None else call.body, "name", str, "")
    stamp = (when(call.plane.store.clock()) or "now").replace(":", "").replace(".", "-")
    path = _path(call.plane.store, given or f"{state.service.name}-{stamp}")
    await asyncio.to_thread(path.parent.mkdir, 0o700, exist_ok=True)
    manifest = await call.plane.backup(path, who=call.who)
    return JSONResponse(_backup(path, manifest), 201)


@book("POST", f"{SERVICE}/restore", OWN, {200: models.Restored}, body=models.Restore, headers=("X-Lbcore-Why",))
async def restore_backup(name: str, call: Call) -> Response:
    """Take what is wanted, and the configurations, from a backup in that folder. The next Save carries it out."""
    call.named(name)
    await call.plane.state()
    known(call.body if isinstance(call.body, dict) else {}, "name", "allowExpired")
    path = _path(call.plane.store, member(call.body, "name", str, alone=False))
    expired = member(call.body, "allowExpired", bool, False, alone=False)
    if not await asyncio.to_thread(path.is_file):
        raise ServiceError("ResourceNotFound", f"there is no backup {shown(path.stem)}", "name")
    done = await call.plane.restore(path, who=call.who, why=call.why, allow_expired=expired)
    body = {
        "epoch": done.epoch, "revision": str(done.revision.number) if done.revision else None, "lost": [*map(str, done.lost)],
        "etag": done.state.etag,
    }  # fmt: skip
    return JSONResponse(body, headers={"ETag": quoted(done.state.etag)})


@book("POST", f"{SERVICE}/promote", OWN, {200: models.HandedOver}, body=models.Promote, headers=("X-Lbcore-Why",))
async def promote(name: str, call: Call) -> Response:
    """Make this primary read-only, so that a location may become the primary: `lbcore promote` there, with the epoch of this answer."""
    call.named(name)
    location = member(call.body, "location", str)
    epoch = await call.read(lambda store: hand_over(store, location, who=call.who, why=call.why))
    return JSONResponse({"epoch": epoch})


def _path(store: Store, name: str) -> Path:
    """Give where a backup of a name is; nothing leads out of the folder."""
    if not _NAME.fullmatch(name):
        raise ServiceError("InvalidProperty", f"expected letters, digits, single dots, - and _, got {shown(name)}", "name")
    return store.database.path.parent / FOLDER / f"{name.removesuffix('.zip')}.zip"


def _backups(store: Store) -> list[dict[str, Any]]:
    found = []
    paths = {path: path.lstat().st_mtime for path in (store.database.path.parent / FOLDER).glob("*.zip")}
    for path in sorted(paths, key=lambda path: paths[path], reverse=True)[:MOST_BACKUPS]:
        try:
            found.append(_backup(path, inspect(path)))
        except (ServiceError, OSError):  # something else, or half of one
            continue
    return sorted(found, key=lambda each: each["created"], reverse=True)


def _backup(path: Path, manifest: Manifest) -> dict[str, Any]:
    number = Number(manifest.epoch, manifest.sequence)
    return {
        "name": path.stem, "service": manifest.service, "tier": manifest.tier, "created": when(manifest.created) or "",
        "expires": when(manifest.expires) or "", "revision": str(number) if manifest.sequence else None, "size": manifest.size,
        "sha256": manifest.sha256,
    }  # fmt: skip
