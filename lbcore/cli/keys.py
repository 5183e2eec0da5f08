"""`dns keygen`, `dns settime`: keys that sign a zone, and when each does what."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbcore.cli.common import AsJson, Failure, print_json, print_table, user_files

if TYPE_CHECKING:
    from lbcore.dns.keys import Key, Timing
    from lbcore.dns.rollover import Plan, Step

__all__ = ["keygen", "settime"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000, "": 1}
_OFFSET = re.compile(r"([+-]\d+)([smhdwy]?)")

Zone = Annotated[str, typer.Argument(metavar="ZONE", help="Name of the zone, such as example.com.")]
Directory = Annotated[Path, typer.Option("--directory", "-d", metavar="DIR", help="Where the zone's key files are; made if missing.")]
Algorithm = Annotated[str, typer.Option(metavar="NAME", help="ECDSAP256SHA256 or ED25519.")]
Zsk = Annotated[bool, typer.Option("--zsk/--ksk", help="Signs the records, or the keys; --ksk alone in its zone signs all (CSK).")]
Successor = Annotated[bool, typer.Option("--successor", help="Make the key that replaces the active one, and say what comes when.")]
Ttl = Annotated[int, typer.Option(min=3600, metavar="SECONDS", help="Longest TTL in the zone, of which the keys have 3600.")]
DsTtl = Annotated[int, typer.Option(min=0, metavar="SECONDS", help="TTL of the DS at the parent.")]
Publish = Annotated[str | None, typer.Option(metavar="TIME", help="Into the DNSKEY RRset: now, +2d (s m h d w y), 20260131120000, none.")]
Activate = Annotated[str | None, typer.Option(metavar="TIME", help="Signs from then on.")]
Inactive = Annotated[str | None, typer.Option(metavar="TIME", help="Signs until then.")]
Delete = Annotated[str | None, typer.Option(metavar="TIME", help="Out of the DNSKEY RRset.")]


def keygen(
    zone: Zone, directory: Directory = Path(), algorithm: Algorithm = "ECDSAP256SHA256", zsk: Zsk = False, successor: Successor = False,
    ttl: Ttl = 3600, ds_ttl: DsTtl = 86_400,
    publish: Publish = None, activate: Activate = None, inactive: Inactive = None, delete: Delete = None, json: AsJson = False,
) -> None:  # fmt: skip
    """Make a key for a zone, write it as BIND does, and print the DS record that its parent needs.

    Without times it is published at once and signs as soon as that is safe beside the keys that there are.
    """
    from lbcore.dns import keyfiles
    from lbcore.dns.rollover import Plan, Waits, plan

    now = time.time()
    kind = _algorithm(algorithm)
    given = _times(now, publish=publish, activate=activate, inactive=inactive, delete=delete)
    _check_zone(zone)
    with user_files():
        directory.mkdir(mode=0o700, exist_ok=True)
        keys = keyfiles.load(zone, directory) if keyfiles.any_of(zone, directory) else []
        if {"publish", "activate"} & {*given}:
            if successor:
                raise ValueError("--successor finds --publish and --activate itself")
            chosen = Plan(_own_times(now, given), {}, [])
        else:
            chosen = plan(keys, kind, now, Waits(ttl, ds_ttl), zsk=zsk, successor=successor)
        timing = replace(chosen.timing, **given)
        _check_order(timing)
        key, path = keyfiles.create(zone, directory, algorithm=kind, zsk=zsk, timing=timing)
        for old, retimed in chosen.replaced.items():
            keyfiles.retime(keyfiles.path_of(old, directory), retimed)
    _show(key, path, chosen, json)


def settime(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Either file of the key, or what both begin with.")],
    publish: Publish = None, activate: Activate = None, inactive: Inactive = None, delete: Delete = None,
    ds_publish: Annotated[str | None, typer.Option(metavar="TIME", help="Ask the parent for the key's DS from then on (CDS).")] = None,
    ds_delete: Annotated[str | None, typer.Option(metavar="TIME", help="Ask no longer.")] = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Set when a key does what; without times, show it. A running server takes it up within seconds."""
    from lbcore.dns import keyfiles

    path = key if key.suffix in (".key", ".private") else key.with_name(f"{key.name}.key")
    times = {"publish": publish, "activate": activate, "inactive": inactive, "delete": delete}
    given = _times(time.time(), **times, sync_publish=ds_publish, sync_delete=ds_delete)
    with user_files():
        found = keyfiles.read(path)
        if given:
            timing = replace(found.timing, **given)
            _check_order(timing)
            found = keyfiles.retime(path, timing)
    if json:
        print_json(_facts(found, path))
    else:
        _print_timing(found)


def _times(now: float, **texts: str | None) -> dict[str, float | None]:
    return {name: _moment(name, text, now) for name, text in texts.items() if text is not None}


def _moment(name: str, text: str, now: float) -> float | None:
    if text == "none":
        return None
    if text == "now":
        return now
    if match := _OFFSET.fullmatch(text):
        return now + int(match[1]) * _UNITS[match[2]]
    try:
        found = datetime.strptime(text, "%Y%m%d%H%M%S") if len(text) == 14 else datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        flag = name.replace("sync_", "ds-")
        raise Failure(f"--{flag}: expected now, none, +3d, 20260131120000 or 2026-01-31T12:00 (UTC), got {text!r}") from None


def _own_times(now: float, given: dict[str, float | None]) -> Timing:
    from lbcore.dns.keys import Timing

    start = given.get("publish", now)
    return Timing(now, start, given.get("activate", start))


def _check_order(timing: Timing) -> None:
    if wrong := [f"{later} lies before {earlier}" for earlier, later in timing.disorder()]:
        raise Failure("\n".join(wrong))


def _algorithm(name: str) -> Any:
    from lbcore.dns.keys import ALGORITHMS

    found = [algorithm for algorithm in ALGORITHMS if name.upper() in (algorithm.name, str(algorithm.value))]
    if not found:
        raise Failure(f"--algorithm: expected {' or '.join(algorithm.name for algorithm in ALGORITHMS)}, got {name!r}")
    return found[0]


def _check_zone(zone: str) -> None:
    import dns.exception
    import dns.name

    try:
        if len(dns.name.from_text(zone)) > 1:
            return
    except (dns.exception.DNSException, UnicodeError):
        pass
    raise Failure(f"ZONE: expected a domain name such as example.com, got {zone!r}")


# ---- print


def _show(key: Key, path: Path, chosen: Plan, json: bool) -> None:
    steps = _placed(chosen, path.parent)
    if json:
        listed = [{"at": _iso(step.at), "after": step.after, "what": step.what} for step in steps]
        print_json(_facts(key, path) | {"steps": listed, "replaces": [str(old) for old in chosen.replaced]})
        return
    print(path)
    if key.sep:
        print(_ds(key))
    if steps:
        print_table(["when", "what"], [(_when(step), step.what) for step in steps])


def _placed(chosen: Plan, directory: Path) -> list[Step]:
    """Give the steps with commands that work from here: a key's name with its directory."""
    from lbcore.dns.keyfiles import path_of

    steps = chosen.steps
    for old in chosen.replaced:
        where = str(path_of(old, directory).with_suffix(""))
        steps = [step._replace(what=step.what.replace(f"settime {old} ", f"settime {where} ")) for step in steps]
    return steps


def _when(step: Step) -> str:
    if step.at is not None:
        return _iso(step.at) or ""
    return f"{step.after} s after that" if step.after else "and"


def _print_timing(key: Key) -> None:
    rows = [("state", key.timing.state(time.time())), *((name, _iso(at)) for name, at in asdict(key.timing).items() if at is not None)]
    print_table(["", ""], [("key", str(key)), *rows])


def _facts(key: Key, path: Path) -> dict[str, Any]:
    return {
        "key": str(key), "zone": str(key.zone), "tag": key.tag, "algorithm": key.algorithm.name, "flags": int(key.dnskey.flags),
        "files": [str(path.with_suffix(suffix)) for suffix in (".key", ".private")], "state": key.timing.state(time.time()),
        "timing": {name: _iso(at) for name, at in asdict(key.timing).items()}, "ds": _ds(key) if key.sep else None,
    }  # fmt: skip


def _ds(key: Key) -> str:
    return f"{key.zone} IN DS {key.ds.to_text()}"


def _iso(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
