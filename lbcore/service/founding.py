"""Founding: a management plane as lbcore.toml describes it, and the first service, with which a store without any begins."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lbcore.config import Settings, split_listen
from lbcore.config.fields import is_loopback
from lbcore.config.management import Management, plane_url
from lbcore.config.schema import RegionEntry
from lbcore.detect import Detector
from lbcore.errors import ConfigError, ServiceError, Violation
from lbcore.region import canonical
from lbcore.sense.monitor import Monitor
from lbcore.service import tokens
from lbcore.service import traffic_manager as profiles
from lbcore.service.external import External
from lbcore.service.facts import Facts
from lbcore.service.local import Local, running
from lbcore.service.model import Location, ResourceId, Service, location
from lbcore.service.operations import Times
from lbcore.service.plane import Plane, PlaneOptions
from lbcore.service.provisioning import Manual, Provisioner, provisioner, provisioners
from lbcore.service.rules import validate
from lbcore.service.store import Store

__all__ = ["NodeTokens", "check", "plane_of", "service_of", "store_path"]

STOCK: Mapping[str, type] = {"local": Local, "external": External, "manual": Manual}
GIVEN = frozenset({"primary", "token_file", "ca", "tokens"})  # by the plane, not by the file
FILES = ("ca", "client_certificate", "max_concurrency")
WHO = "management plane"


def section_of(settings: Settings) -> Management:
    """Give `[management]`; ValueError without one."""
    section = settings.document.management
    if section is None or section.primary:
        raise ValueError(f"{settings.name}: no table [management] of a primary")
    return section


def store_path(settings: Settings) -> Path:
    """Give where the store is."""
    return settings.folder / section_of(settings).store


def left_running(settings: Settings) -> dict[str, int]:
    """Give the regions whose gateways run on this machine, with their processes, which do not end with the primary."""
    section = settings.document.management
    if section is None or section.primary:
        return {}
    kind, options = _chosen(settings, section)
    return running(Path(options["folder"])) if kind == "local" else {}


def check(settings: Settings) -> None:
    """Look at all that a management plane needs besides the shape of the file: ConfigError with everything that is wrong."""
    section = settings.document.management
    if section is None or section.primary:
        return
    found = [*_wrong_provisioner(settings, section), *_wrong_service(settings), *_without_token(settings, section)]
    if found:
        raise ConfigError(found)


# ===== the service


def service_of(settings: Settings) -> Service | None:
    """Give the service of `[service]`, None when the file names no region; ConfigError for ids that are none."""
    told = settings.document.service
    if told.primary is None:
        return None
    wrong: list[Violation] = []
    places = [_location(f"{settings.name}: service.primary", told.primary, wrong)]
    places += [_location(f"{settings.name}: service.regions[{index}]", entry, wrong) for index, entry in enumerate(told.regions)]
    if wrong:
        raise ConfigError(wrong)
    return Service(
        name=told.name, domain=told.domain.rstrip(".").lower(), tier=told.tier, network_mode=told.virtual_network_type, primary=places[0],
        additional_locations=tuple(places[1:]),
    )  # fmt: skip


def _location(where: str, entry: RegionEntry, wrong: list[Violation]) -> Location:
    network = entry.virtual_network
    ids: dict[str, Any] = {}
    for key, text, read in (
        ("subnet", network.subnet_resource_id if network else "", ResourceId.subnet),
        ("public_ip", network.public_ip_address_id if network else "", ResourceId.public_ip),
    ):
        try:
            ids[key] = read(text) if text else None
        except ValueError:
            name = "subnet_resource_id" if key == "subnet" else "public_ip_address_id"
            wrong.append(Violation(f"{where}.virtual_network.{name}", text[:200], "the id of such a resource, /subscriptions/…"))
    return location(
        entry.name, units=entry.units, zones=[*entry.zones], disable_gateway=not entry.enabled, lat=entry.lat, lon=entry.lon,
        gateway=entry.gateway, subnet_location=canonical(network.location) if network else "", **ids,
    )  # fmt: skip


def _wrong_service(settings: Settings) -> Iterator[Violation]:
    try:
        wanted = service_of(settings)
    except ConfigError as error:
        yield from error.violations
        return
    for each in validate(wanted, None, _facts(settings)) if wanted is not None else ():
        yield Violation(f"{settings.name}: service", each.target or "", each.message)


def _facts(settings: Settings) -> Facts:
    section = section_of(settings)
    return Facts(max_units=section.max_units_per_location, strict_azure=section.strict_azure)


def _without_token(settings: Settings, section: Management) -> Iterator[Violation]:
    """Refuse to be seen by others while nobody can sign in: there is no need to, and whoever comes first must not be the owner."""
    host, _ = split_listen(section.listen)
    if is_loopback(host):
        return
    path = store_path(settings)
    if path.is_file():
        with Store(path) as store:
            if any(row.role == "owner" and row.revoked is None for row in store.tokens.all()):
                return
    yield Violation(f"{settings.name}: management.listen", section.listen, "an owner's token first: `lbcore token create`")


# ===== the plane


def plane_of(settings: Settings, store: Store, url: str = "") -> Plane:
    """Give the management plane of a file that `check` found nothing wrong with. Its running begins with `async with`.

    url: where others reach it, "" = as the file says
    """
    url = url or plane_url(section_of(settings))
    service, told = service_of(settings), settings.document.service
    return Plane(store, _provisioner(settings, store, url), name=told.name, domain=told.domain.rstrip(".").lower(),
                 options=_options(settings, service, url))  # fmt: skip


def _options(settings: Settings, service: Service | None, url: str) -> PlaneOptions:
    section, probes = section_of(settings), settings.document.traffic_manager.monitor
    files = {key: getattr(settings.monitor, key) for key in FILES if getattr(settings.monitor, key) != getattr(Monitor(), key)}
    return PlaneOptions(
        file=Path(settings.name).name, url=url, require_if_match=section.require_if_match, facts=_facts(settings),
        times=Times(hold=section.hold, drain=section.drain), traffic_manager=_profile(settings, service), founding=service,
        monitor_files=files, locate=settings.locate(), detector=partial(_detector, settings), anchors=tuple(probes.anchors),
    )  # fmt: skip


def _detector(settings: Settings, monitor: Monitor) -> Detector:
    return replace(settings, monitor=monitor).detector()


def _profile(settings: Settings, service: Service | None) -> dict[str, Any]:
    """Give `[traffic_manager]` as the REST API has it."""
    if service is None or "traffic_manager" not in settings.document.model_fields_set:
        return {}
    body = profiles.traffic_manager_body(profiles.TrafficManager({}, settings), service)
    return {"properties": {key: value for key, value in body["properties"].items() if key != "failover"}}


def _provisioner(settings: Settings, store: Store, url: str) -> Provisioner:
    section = section_of(settings)
    kind, options = _chosen(settings, section)
    if kind == "local":
        followed = f"{url}/services/{settings.document.service.name}/gatewayConfiguration"
        options |= {"primary": followed, "tokens": NodeTokens(store, Path(options["folder"]))}
        options |= {"ca": str((settings.folder / section.certificate).absolute())} if section.certificate else {}
    return provisioner(kind, **options)


def _chosen(settings: Settings, section: Management) -> tuple[str, dict[str, Any]]:
    """Give a provisioner's name and the options that the file gives it."""
    options = dict(section.provisioner)
    kind = options.pop("kind")
    if kind == "local":
        options["folder"] = (
            str(settings.folder / options["folder"]) if "folder" in options else str(store_path(settings).parent / "regions")
        )
    return kind, options


def _wrong_provisioner(settings: Settings, section: Management) -> Iterator[Violation]:
    kind, options = _chosen(settings, section)
    where = f"{settings.name}: management.provisioner"
    if kind not in provisioners():
        yield Violation(f"{where}.kind", kind, f"one of {', '.join(provisioners())}")
    elif kind in STOCK:
        known = inspect.signature(STOCK[kind]).parameters.keys() - GIVEN
        for key in options.keys() - known:
            yield Violation(f"{where}.{key}", options[key], f"one of {', '.join(sorted(known))}")
        if options.keys() <= known:
            yield from _unmakeable(where, kind, options)


def _unmakeable(where: str, kind: str, options: dict[str, Any]) -> Iterator[Violation]:
    try:
        provisioner(kind, **options)
    except (ServiceError, ValueError, TypeError) as error:
        yield Violation(where, kind, f"options that it takes ({error})")


# ===== tokens of the regions that this machine makes


class NodeTokens:
    """Give every region a token of its own, in a file of its own that only its owner may read. folder: made when missing"""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder

    def file(self, name: str, bound: str = "") -> str:
        """Give the path of the file that has a region's token; another one is issued when that does not hold any more.

        bound: to what the token is bound, "" = the region of that name
        """
        path = self._folder / f"{name}.token"
        if not self._holds(path, canonical(bound or name)):
            self._folder.mkdir(0o700, parents=True, exist_ok=True)
            _write_secret(path, tokens.issue(self._store, "node", bound or name, who=WHO))
        return str(path.absolute())

    def end(self, name: str) -> None:
        """Revoke it."""
        path = self._folder / f"{name}.token"
        with suppress(FileNotFoundError):
            self._store.tokens.revoke(_id_of(path.read_text()), who=WHO)
            path.unlink()

    def _holds(self, path: Path, bound: str) -> bool:
        try:
            found = self._store.tokens.find(_id_of(path.read_text()))
        except FileNotFoundError:
            return False
        return found is not None and found[0].revoked is None and found[0].expires is None and found[0].name == bound


def _id_of(text: str) -> str:
    return text.strip().split("_")[1] if text.count("_") >= 2 else ""


def _write_secret(path: Path, text: str) -> None:
    """Put a text into the place of a file, whole or not at all, for its owner's eyes alone."""
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(handle)
    beside.replace(path)
