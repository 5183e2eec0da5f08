"""Model: what an operator wants of a service, and what runs of it. Plain frozen data; `rules` judges it, `body` shows it.

    ServiceState
      service   Service         what is wanted, as it was accepted last
        primary, additional_locations: Location
      states    LocationState   what runs, by region's name: the Location it was deployed with, its addresses, how far it is

The two differ while an operation runs and after one failed in part; `plan` tells what leads from the one to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lbcore.errors import ServiceError, nearest
from lbcore.region import canonical, catalogue

__all__ = [
    "NETWORK_MODES", "PROVISIONING_STATES", "TIERS", "Location", "LocationState", "NetworkMode", "ResourceId", "Service",
    "ServiceState", "Tier", "location", "new_service",
]  # fmt: skip

NetworkMode = Literal["None", "External", "Internal"]
NETWORK_MODES: tuple[NetworkMode, ...] = get_args(NetworkMode)
PROVISIONING_STATES = (
    "Created", "Activating", "SyncingConfig", "Warming", "Succeeded", "Updating", "Failed", "Draining", "Terminating",
    "TerminationFailed", "Deleted",
)  # fmt: skip
MOVING = frozenset(PROVISIONING_STATES) - {"Succeeded", "Failed", "TerminationFailed", "Deleted"}

SEGMENT = r"[A-Za-z0-9_(][A-Za-z0-9._()-]{0,88}[A-Za-z0-9_()-]|[A-Za-z0-9_(]"  # no dot at either end, so no way up in a path
_OF = rf"/subscriptions/({SEGMENT})/resourceGroups/(?:{SEGMENT})/providers/Microsoft\.Network"
SUBNET = re.compile(rf"({_OF}/virtualNetworks/(?:{SEGMENT}))/subnets/(?:{SEGMENT})", re.ASCII | re.IGNORECASE)
PUBLIC_IP = re.compile(rf"({_OF})/publicIPAddresses/(?:{SEGMENT})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tier:
    """A price tier: units that a location may have, and whether it may have several locations and zones.

    Source: API Management's tiers; the most of Premium is this project's assumption and a setting.
    """

    name: str
    minimum: int
    maximum: int
    default: int
    multi_region: bool = False
    zones: bool = False
    sla: float | None = 99.95

    @property
    def scale_type(self) -> str:
        """Give "none" where nothing can be chosen, else "automatic" for Premium and "manual"."""
        return "none" if self.minimum == self.maximum else "automatic" if self.multi_region else "manual"


TIERS: Mapping[str, Tier] = {
    "Developer": Tier("Developer", 1, 1, 1, sla=None),
    "Basic": Tier("Basic", 1, 2, 1),
    "Standard": Tier("Standard", 1, 4, 1),
    "Premium": Tier("Premium", 1, 31, 1, multi_region=True, zones=True),
    "Consumption": Tier("Consumption", 0, 0, 0),
}


@dataclass(frozen=True, slots=True)
class ResourceId:
    """The id of a subnet or a public IP address, as Azure's resource manager writes it; letters' case does not matter.

    text: as it was given;  subscription, network: folded, network "" unless a subnet: the id of its virtual network
    """

    text: str = field(compare=False)
    key: str
    subscription: str = field(compare=False)
    network: str = field(compare=False, default="")

    @classmethod
    def subnet(cls, text: str) -> ResourceId:
        """Read /subscriptions/…/virtualNetworks/…/subnets/…; ValueError for anything else."""
        return cls._read(SUBNET, text, True)

    @classmethod
    def public_ip(cls, text: str) -> ResourceId:
        """Read /subscriptions/…/publicIPAddresses/…; ValueError for anything else."""
        return cls._read(PUBLIC_IP, text, False)

    @classmethod
    def _read(cls, pattern: re.Pattern[str], text: str, networked: bool) -> ResourceId:
        found = pattern.fullmatch(text)
        if found is None:
            raise ValueError(text)
        return cls(text, text.lower(), found[2].lower(), found[1].lower() if networked else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """What is wanted of one region of the service.

    name: canonical;  display_name: as the catalogue or, for a place it does not know, the operator spells it
    zones: sorted; () = automatic;  subnet_location: region of the subnet's virtual network as the operator says, "" = unsaid
    lat, lon: decimal degrees, None = the catalogue's;  gateway: base URL, "" = whoever provisions the region decides
    `location` makes one of an operator's words; `rules` checks it.
    """

    name: str
    display_name: str
    units: int = 1
    zones: tuple[str, ...] = ()
    disable_gateway: bool = False
    subnet: ResourceId | None = None
    subnet_location: str = ""
    public_ip: ResourceId | None = None
    lat: float | None = None
    lon: float | None = None
    gateway: str = ""

    @property
    def spelling(self) -> str:
        """Give the name for people where that leads back to this region: "West US 2", but af-south-1, not "Africa (Cape Town)"."""
        return self.display_name if canonical(self.display_name) == self.name else self.name


def location(name: str, **settings: object) -> Location:
    """Give a Location by its name in any spelling; settings as Location has them."""
    folded = canonical(name)
    known = catalogue().get(folded)
    shown = known.display_name if known else " ".join(name.split())
    zones = settings.pop("zones", ())
    ordered = tuple(sorted(zones)) if isinstance(zones, list | tuple) else zones
    return Location(name=folded, display_name=shown, zones=ordered, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is wanted of a service: its primary, which never changes, and the locations beside it."""

    name: str
    primary: Location
    additional_locations: tuple[Location, ...] = ()
    domain: str = "test"
    tier: str = "Premium"
    network_mode: NetworkMode = "None"

    @property
    def locations(self) -> tuple[Location, ...]:
        """Give every location, the primary first."""
        return (self.primary, *self.additional_locations)

    def get(self, name: str) -> Location:
        """Give a location by its name in any spelling; ServiceError ResourceNotFound names the nearest."""
        known = {each.name: each for each in self.locations}
        found = known.get(canonical(name))
        if found is None:
            hint = "".join(f"; did you mean {near!r}?" for near in nearest(canonical(name), known))
            raise ServiceError("ResourceNotFound", f"service {self.name!r} has no location {name!r}{hint}", name)
        return found

    def put(self, wanted: Location) -> Service:
        """Give the service with this location in the place of the one of its name, or beside the others."""
        if wanted.name == self.primary.name:
            return replace(self, primary=wanted)
        others = self.additional_locations
        if any(each.name == wanted.name for each in others):
            return replace(self, additional_locations=tuple(wanted if each.name == wanted.name else each for each in others))
        return replace(self, additional_locations=(*others, wanted))

    def without(self, name: str) -> Service:
        """Give the service without a location; the same one when it has none of that name. ServiceError for the primary."""
        folded = canonical(name)
        if folded == self.primary.name:
            message = f"{self.primary.display_name} is the primary: it stays for as long as the service does"
            raise ServiceError("CannotRemovePrimary", message, "location")
        return replace(self, additional_locations=tuple(each for each in self.additional_locations if each.name != folded))

    def led_by(self, name: str) -> Service:
        """Give the service with another primary, the one before beside it; `promotion` alone may ask. ServiceError ResourceNotFound."""
        first = self.get(name)
        return replace(self, primary=first, additional_locations=tuple(each for each in self.locations if each is not first))

    @property
    def gateway_url(self) -> str:
        """Give the URL that stands for whichever region is the closest."""
        return f"https://{self.name.lower()}.{self.domain}"

    def regional_url(self, region: str) -> str:
        """Give the URL of one region's gateway.

        Source: API Management's gatewayRegionalUrl, whose -01 is fixed.
        """
        return f"https://{self.regional_label(region)}.regional.{self.domain}"

    def regional_label(self, region: str) -> str:
        """Give the first label of a region's host name."""
        return f"{self.name.lower()}-{region}-01"


def new_service(name: str, primary: str | Location, **settings: object) -> Service:
    """Give a service as it is created when nothing more is said: one region, one unit (R3)."""
    tier = TIERS.get(str(settings.get("tier", "Premium")), TIERS["Premium"])
    first = location(primary, units=tier.default) if isinstance(primary, str) else primary
    return Service(name=name, primary=first, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocationState:
    """What runs in one region.

    deployed: what it was last deployed with, None before the first time;  network_mode: the one it was deployed in
    gateway: base URL where it is reached;  public_ips, private_ips: its VIPs
    previous_public_ips: VIPs given up that still answer until `previous_until`, wall-clock seconds
    reason: of a failure, for people
    """

    provisioning_state: str = "Created"
    deployed: Location | None = None
    network_mode: NetworkMode = "None"
    gateway: str = ""
    public_ips: tuple[str, ...] = ()
    private_ips: tuple[str, ...] = ()
    previous_public_ips: tuple[str, ...] = ()
    previous_until: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """A service with what runs of it.

    states: by region's name; also of regions that are no longer wanted, until they are gone
    etag, sequence: of the store; "" and 0 before it was stored
    """

    service: Service
    states: Mapping[str, LocationState] = field(default_factory=dict)
    etag: str = ""
    sequence: int = 0

    def of(self, name: str) -> LocationState:
        """Give what runs of a region; of one that nobody has begun with, a new state."""
        return self.states.get(name, LocationState())

    def having(self, name: str, state: LocationState | None) -> ServiceState:
        """Give the same with another state of one region; None = it is gone."""
        states = {key: value for key, value in self.states.items() if key != name or state is not None}
        return replace(self, states=states | ({name: state} if state is not None else {}))

    @property
    def provisioning_state(self) -> str:
        """Give one word for the whole: Created, Updating, Failed or Succeeded."""
        found = {state.provisioning_state for state in self._all()}
        if found == {"Created"}:
            return "Created"
        return "Updating" if found & MOVING else "Failed" if found & {"Failed", "TerminationFailed"} else "Succeeded"

    def _all(self) -> Iterator[LocationState]:
        names = {each.name for each in self.service.locations}
        yield from (self.of(name) for name in (*names, *(name for name in self.states if name not in names)))
