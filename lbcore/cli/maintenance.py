"""`backup`, `restore`, `promote`: on the machine of the primary, or of the one that becomes it, in its store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbcore.cli.common import DEFAULT_CONFIG, AsJson, Config, Failure, print_json, read_settings
from lbcore.cli.planning import print_steps
from lbcore.cli.remote import ADVICE
from lbcore.cli.tokens import StoreFile, opened_store, shown_time, store_path, who

if TYPE_CHECKING:
    from lbcore.config import Settings
    from lbcore.service.model import ServiceState
    from lbcore.service.revisions import Number
    from lbcore.service.store import Store

__all__ = ["BACKUP", "PROMOTE", "RESTORE", "backup", "promote", "restore"]

HINTS = ADVICE | {
    "Fenced": "--epoch: what `lbcore promote` printed at the primary of now; --force when that cannot be asked",
    "StoreLocked": "`lbcore run` uses this store: end it first",
    "BackupExpired": "--allow-expired, if an old one is better than none",
    "InvalidBackup": "nothing was changed; take another backup",
    "SkuMismatch": "nothing was changed",
    "NameMismatch": "nothing was changed",
}  # fmt: skip

BACKUP = "Example: lbcore backup contoso.zip --config primary.toml"
RESTORE = "Example: lbcore restore contoso.zip --config primary.toml --why \"the upgrade went wrong\""
PROMOTE = """Example: lbcore promote --location westeurope

\b
planned    at the primary       lbcore promote primary.toml --location westeurope      it is read-only from then on; prints epoch E
                                lbcore backup contoso.zip --config primary.toml
           at the new machine   lbcore promote new.toml --location westeurope --backup contoso.zip --epoch E
                                lbcore run new.toml
forced     at the new machine   lbcore promote new.toml --location westeurope --backup contoso.zip --force
taken back at the old primary   lbcore promote primary.toml --location westus2 --force
"""

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Reason, for the history.")]
Expired = Annotated[bool, typer.Option("--allow-expired", help="Also one of over 30 days ago.")]
Toml = Annotated[Path, typer.Argument(metavar="[CONFIG]", help="Configuration of the management plane on this machine.")]
Location = Annotated[str, typer.Option(metavar="REGION", help="The location that becomes the primary.")]
Backup = Annotated[Path | None, typer.Option(metavar="FILE", help="Take over with what this backup has.")]
Epoch = Annotated[int | None, typer.Option(metavar="E", min=1, max=2**53 - 1, help="Take over with the epoch that the old one printed.")]
Force = Annotated[bool, typer.Option("--force", help="Take over, though the old primary was not asked.")]


def backup(file: File, config: Config = DEFAULT_CONFIG, store: StoreFile = None, json: AsJson = False) -> None:
    """Write the service, its configurations and their history into one file, while the primary runs. It holds no tokens."""
    from lbcore.service.backup import backup as write

    with opened_store(config, store, hints=HINTS) as opened:
        manifest = write(opened, file)
    number = f"{manifest.epoch}.{manifest.sequence}" if manifest.sequence else None
    if json:
        print_json({
            "file": str(file), "service": manifest.service, "tier": manifest.tier, "created": shown_time(manifest.created),
            "expires": shown_time(manifest.expires), "revision": number, "size": manifest.size, "sha256": manifest.sha256,
        })  # fmt: skip
    else:
        print(f"{file}: service {manifest.service}, {manifest.tier}, revision {number or 'none'}, until {shown_time(manifest.expires)}")


def restore(
    file: File, config: Config = DEFAULT_CONFIG, store: StoreFile = None, allow_expired: Expired = False, why: Why = "",
    json: AsJson = False,
) -> None:  # fmt: skip
    """Put a backup in the place of what is wanted and of the configurations; also while the primary runs.

    A new epoch makes every region follow, though it holds a later revision; what is lost is listed. What runs is not touched: the next
    Save does that. Tokens stay. Ends 3 for a backup of another service or tier, or of over 30 days ago.
    """
    from lbcore.service.backup import inspect
    from lbcore.service.backup import restore as put_back

    settings = None if store is not None else read_settings(config)
    with opened_store(config, store, new=True, hints=HINTS) as opened:
        manifest = inspect(_there(file))
        name, tier = _which(opened, settings, manifest.service, manifest.tier)
        done = put_back(opened, file, name=name, tier=tier, who=who(), why=why, allow_expired=allow_expired)
    number = done.revision.number if done.revision else None
    left = _left(done.state)
    if json:
        print_json(_outcome(done.state, done.epoch, number, done.lost) | {"left": left})
        return
    print(f"{manifest.service} is wanted as of {shown_time(manifest.created)} again: epoch {done.epoch}, revision {number or 'none'}")
    _print_lost(done.lost)
    if not left["empty"]:
        print("what runs is not that yet; `lbcore regions save` would do this:")
        print_steps(left)


def _which(store: Store, settings: Settings | None, name: str, tier: str) -> tuple[str, str]:
    """Give name and tier of the service that a backup is to be restored for: as the store has them, else the file, else the backup."""
    if (state := store.state()) is not None:
        return state.service.name, state.service.tier
    if settings is None:
        return name, tier
    said = settings.document.service
    return said.name if "name" in said.model_fields_set else name, str(getattr(said, "tier", "") or tier)


def promote(
    location: Location, config: Toml = DEFAULT_CONFIG, store: StoreFile = None, backup: Backup = None, epoch: Epoch = None,
    force: Force = False, allow_expired: Expired = False, why: Why = "", json: AsJson = False,
) -> None:  # fmt: skip
    """Make another location the primary: here, with --backup, --epoch or --force; else hand over, which makes this primary read-only.

    Never done by itself. Ends 2 for a location that cannot become it, 3 while an operation runs or when another one has taken over.
    """
    if epoch is not None and force:
        raise Failure("--epoch is what the old primary printed, --force is for when it could not be asked: expected one of them")
    if backup is not None and epoch is None and not force:
        raise Failure("--backup takes over: expected --epoch E as the old primary printed it, or --force when it cannot be asked")
    settings = None if store is not None else read_settings(config)
    path = store if settings is None else store_path(settings, config)
    if epoch is None and not force:
        _hand_over(location, config, path, why, json)
    else:
        _take_over(location, config, path, settings, backup, epoch, allow_expired, why, json)


def _hand_over(location: str, config: Path, path: Path | None, why: str, json: bool) -> None:
    from lbcore.service.promotion import hand_over

    with opened_store(config, path, hints=HINTS) as opened:
        epoch = hand_over(opened, location, who=who(), why=why)
    if json:
        print_json({"location": location, "epoch": epoch, "fenced": True})
        return
    print(f"this primary is read-only from now on; {location} takes over with epoch {epoch}:")
    print(f"  lbcore backup FILE --store {path}")
    print(f"  lbcore promote CONFIG --location {location} --backup FILE --epoch {epoch}     on the new machine")
    print("  lbcore run CONFIG                                                  there")


def _take_over(
    location: str, config: Path, path: Path | None, settings: Settings | None, backup: Path | None, epoch: int | None, allow_expired: bool,
    why: str, json: bool,
) -> None:  # fmt: skip
    from lbcore.service.promotion import take_over

    said = settings.document.service if settings else None
    name = said.name if said and "name" in said.model_fields_set else ""
    file = _there(backup) if backup else None
    with opened_store(config, path, new=backup is not None, hints=HINTS) as opened:
        done = take_over(opened, location, who=who(), why=why, epoch=epoch, file=file, name=name, allow_expired=allow_expired)
    if json:
        print_json(_outcome(done.state, done.epoch, done.revision, done.lost))
        return
    print(f"{done.state.service.primary.display_name} is the primary: epoch {done.epoch}, revision {done.revision or 'none'}")
    _print_lost(done.lost)
    section: Any = getattr(settings.document, "management", None) if settings else None
    if section and section.primary:
        print(f"{config}: take primary = {section.primary!r} out of [management], for this is it now")
    print(f"lbcore run {config} is the primary from now on; name it in [management] standby of the old one, and in [sync] primary of edges")


def _there(file: Path) -> Path:
    if not file.is_file():
        raise Failure(f"{file}: no such file", 4)
    return file


def _outcome(state: ServiceState, epoch: int, revision: Number | None, lost: tuple[Number, ...]) -> dict[str, Any]:
    return {
        "service": state.service.name, "primary": state.service.primary.name, "epoch": epoch, "etag": state.etag,
        "revision": str(revision) if revision else None, "lost": [*map(str, lost)],
    }  # fmt: skip


def _left(state: ServiceState) -> dict[str, Any]:
    from lbcore.service.plan import plan

    return plan(state, state.service).as_dict()


def _print_lost(lost: tuple[Number, ...]) -> None:
    if lost:
        print(f"lost: {', '.join(map(str, lost))}, published after the backup; publish again what is still wanted")
