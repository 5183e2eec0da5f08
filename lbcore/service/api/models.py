"""Models: what requests and answers look like, for the OpenAPI document. Nothing is validated or filtered by these: the rules judge.

Answers may have more members than these name. Members of requests that are not named are refused, but for configurations.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Backups", "Canceled", "Capacity", "Configuration", "Disable", "Endpoint", "Endpoints", "Entry", "ErrorAnswer", "ErrorBody", "Event",
    "Events", "Explanation", "Failover", "HandedOver", "Health", "History", "IssuedToken", "Location", "LocationWish",
    "Locations", "MadeBackup", "Network", "NetworkOne", "NetworkStatus", "NewToken", "Operation", "Operations", "Order", "OrderAnswer",
    "Orders", "Plan", "Promote", "Published",
    "Ranked", "Reason", "Report", "Reports", "Restore", "Restored", "Revision", "RevisionDiff", "Revisions",
    "Rollback", "Rotation", "Routed", "Saved", "Service", "ServiceName", "ServiceProperties", "ServiceWish", "Services", "Sku",
    "SkuWish", "Skus", "TakeBackup", "Token", "Tokens", "TrafficManager", "TrafficManagerWish", "Violation",
]  # fmt: skip

Table = dict[str, Any]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ===== errors


class Violation(_Answer):
    """One reason."""

    code: str
    message: str
    target: str | None


class ErrorBody(Violation):
    """Why it was refused; every reason stands in details."""

    details: list[Violation]


class ErrorAnswer(_Answer):
    """An error."""

    error: ErrorBody


# ===== the service


class Sku(_Answer):
    """Tier, and units of a location."""

    name: str
    capacity: int


class Capacity(_Answer):
    """How full a location's units were in the last minute, 0 to 100. advisedUnits: null while it gets another number of them"""

    averagePercent: float
    maximumPercent: float
    advisedUnits: int | None


class Location(_Answer):
    """One row of the Locations table: what is wanted and what runs. capacity: null when its gateway has not said it for a minute"""

    name: str
    displayName: str
    primary: bool
    sku: Sku
    zones: list[str]
    disableGateway: bool
    provisioningState: str
    publicIPAddresses: list[str]
    privateIPAddresses: list[str]
    previousPublicIPAddresses: list[str]
    gatewayRegionalUrl: str
    capacity: Capacity | None


class Locations(_Answer):
    """Every location that is wanted, the primary first, then those that are going."""

    value: list[Location]


class ServiceProperties(_Answer):
    """Of a service as a whole, and of its primary location."""

    provisioningState: str
    domain: str
    virtualNetworkType: Literal["None", "External", "Internal"]
    gatewayUrl: str
    gatewayRegionalUrl: str
    additionalLocations: list[Table]


class Service(_Answer):
    """A service."""

    id: str
    name: str
    etag: str
    location: str
    sku: Sku
    zones: list[str]
    properties: ServiceProperties


class ServiceName(_Answer):
    """Which service there is."""

    id: str
    name: str


class Services(_Answer):
    """The service of this management plane, or none."""

    value: list[ServiceName]


class Saved(Service):
    """A service that was accepted, and what comes of it."""

    plan: Table
    operation: Table | None


class SkuWish(_Wish):
    """Tier, and units of a location."""

    name: Literal["Developer", "Basic", "Standard", "Premium", "Consumption"] | None = None
    capacity: int | None = None


class ServiceWish(BaseModel):
    """A service as PUT takes it, or PATCH: RFC 7396, lists are replaced as a whole. What GET shows may be sent back as it is."""

    location: str | None = None
    sku: SkuWish | None = None
    zones: list[str] | None = None
    properties: Table | None = None
    acknowledgeVipChange: bool | None = None
    force: bool | None = None


class LocationWish(BaseModel):
    """A location as one row of additionalLocations."""

    location: str | None = None
    sku: SkuWish | None = None
    zones: list[str] | None = None
    disableGateway: bool | None = None


class Disable(_Wish):
    """Whether a region's gateway is out of rotation."""

    disabled: bool


class Network(_Wish):
    """Which location; left out: all, one after another."""

    location: str | None = None


class Plan(_Answer):
    """What a wish would do. Nothing else happens when it is saved."""

    creates: list[Table]
    updates: list[Table]
    deletes: list[Table]
    vipChanges: list[Table]
    warnings: list[Table]
    failover: Table


class Operation(_Answer):
    """A long-running operation."""

    id: str
    name: str
    kind: str
    status: Literal["InProgress", "Succeeded", "PartiallySucceeded", "Failed", "Canceled"]
    percentComplete: int
    startTime: str
    who: str
    why: str
    locations: Table
    error: Table | None


class Operations(_Answer):
    """Operations, the newest first."""

    value: list[Operation]


class Order(_Answer):
    """What somebody is to do with a region. work: create, update or delete; new…IP: whether it gets another address of that kind."""

    id: int
    work: str
    name: str
    units: int
    networkType: str
    newPublicIP: bool
    newPrivateIP: bool
    publicIPAddresses: list[str]
    privateIPAddresses: list[str]


class Orders(_Answer):
    """Orders that wait for somebody's word, where the provisioner is `manual`."""

    value: list[Order]


class OrderAnswer(_Wish):
    """What came of an order: the region's addresses and its gateway, or why it cannot be done."""

    publicIPAddresses: list[str] | None = None
    privateIPAddresses: list[str] | None = None
    gateway: str | None = None
    refusal: str | None = None


class Canceled(Operation):
    """An operation that was taken back, or that ended before."""


class Skus(_Answer):
    """Tiers with their capacities."""

    value: list[Table]


class NetworkOne(_Answer):
    """What a location reaches."""

    location: str
    networkStatus: Table


class NetworkStatus(_Answer):
    """What is reached, by location."""

    value: list[NetworkOne]


# ===== configuration


class Configuration(BaseModel):
    """APIs, backends and policies: docs/gateway.md and docs/policies.md. epoch and sequence are given by the service."""

    model_config = ConfigDict(extra="allow")


class Published(_Answer):
    """The latest revision."""

    revision: str
    sha256: str
    etag: str


class Revision(_Answer):
    """A configuration that was published."""

    revision: str
    sha256: str
    at: str
    who: str
    why: str


class Revisions(_Answer):
    """Those that are kept, the newest first."""

    value: list[Revision]


class RevisionDiff(_Answer):
    """What changes from one revision to another."""

    before: str
    after: str
    changes: list[Table]


class Rollback(_Wish):
    """Which revision's content to publish again."""

    revision: str


class Reason(_Wish):
    """Why, for the history."""

    why: str | None = None


# ===== traffic manager


class TrafficManager(_Answer):
    """The profile."""

    name: str
    etag: str
    properties: Table


class TrafficManagerWish(_Wish):
    """A profile as PATCH takes it: RFC 7396."""

    properties: Table | None = None


class Failover(_Answer):
    """The times that the monitor's settings and the TTL imply, seconds."""

    failover: Table


class Endpoint(_Answer):
    """A region as the profile sees it."""

    name: str
    target: str
    endpointStatus: str
    endpointMonitorStatus: str


class Endpoints(_Answer):
    """Endpoints with their monitor status, and the profile's."""

    profileMonitorStatus: str
    failOpen: bool
    value: list[Endpoint]


class Routed(_Answer):
    """Where a client would be sent."""

    region: str
    displayName: str
    gateway: str


class Ranked(_Answer):
    """The regions that may serve a client, the closest first."""

    value: list[Routed]


class Explanation(_Answer):
    """Why a client would be sent there."""

    region: str
    reason: str
    candidates: list[Table]


# ===== nodes


class Rotation(_Answer):
    """Who is listed, for edges."""

    service: str
    epoch: int
    sequence: int
    networkType: str
    regions: list[Table]
    trafficManager: Table


class Report(BaseModel):
    """What an edge sees of the regions."""

    edge: str
    at: float
    rotation: str | None = None
    regions: dict[str, Table] | None = None
    learned: str | None = None
    idle: list[str] | None = None
    events: list[Table] | None = None


class Reports(_Answer):
    """The last report of each edge, the newest first."""

    value: list[Table]


# ===== who may, and what happened


class NewToken(_Wish):
    """A token to make. expiresInSeconds: left out = never; name of a node: its region or edge"""

    role: Literal["node", "reader", "operator", "owner"]
    name: str
    expiresInSeconds: float | None = None


class Token(_Answer):
    """A token without its secret."""

    id: str
    name: str
    role: str
    created: str
    expires: str | None
    used: str | None
    revoked: str | None


class IssuedToken(Token):
    """A token that was just made: its text is not shown again."""

    token: str


class Tokens(_Answer):
    """Every token, the oldest first, those that have ended as well."""

    value: list[Token]


class Entry(_Answer):
    """A change."""

    id: int
    at: str
    who: str
    what: str
    why: str
    target: str
    etag: str


class History(_Answer):
    """Changes, the latest first."""

    value: list[Entry]
    nextLink: str | None


class Event(_Answer):
    """Something that happened."""

    id: int
    at: str
    kind: str
    region: str
    detail: Table


class Events(_Answer):
    """The latest ones, in order."""

    value: list[Event]


class TakeBackup(_Wish):
    """What to call it: letters, digits, dots, hyphens, underscores; left out = by the time."""

    name: str | None = None


class MadeBackup(_Answer):
    """A backup on the primary's machine."""

    name: str
    service: str
    tier: str
    created: str
    expires: str
    revision: str | None
    size: int
    sha256: str


class Backups(_Answer):
    """The backups in the folder of the primary, the newest first."""

    value: list[MadeBackup]


class Restore(_Wish):
    """Which backup to take."""

    name: str
    allowExpired: bool | None = None


class Restored(_Answer):
    """What a restore did."""

    epoch: int
    revision: str | None
    lost: list[str]
    etag: str


class Promote(_Wish):
    """Which location becomes the primary; this one becomes read-only."""

    location: str


class HandedOver(_Answer):
    """The epoch with which the other one takes over."""

    epoch: int


class Health(_Answer):
    """That the management plane works."""

    status: str
