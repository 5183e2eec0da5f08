"""Views: what each page shows, as plain frozen data. Whoever serves the portal fills these; `render` makes pages of them.

    Page             what surrounds every view: the service, who is signed in, the token against forged forms
      Login            a token is entered once
      Overview         map, regions, where clients go, figures over time, events
      ScaleAndPricing  the Locations table and what may be added; then Plan, Progress, Problem as its parts
      Explain          an address and the decision for it
      TrafficManager   profile, endpoints, monitor settings and the failover time that they imply
      DeveloperPortal  the published APIs
      Failure          what went wrong

Times are aware datetimes, durations seconds, latencies ms, shares 0 to 1. Statuses are the words that `words.tone` knows. Texts are plain:
escaping them is the templates' work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from lbcore.decision import Decision
from lbcore.service.capacity import Gauge
from lbcore.service.portal.charts import Series
from lbcore.service.portal.form import Draft
from lbcore.service.portal.map import Flow, Site

__all__ = [
    "Action", "Api", "ApiOperation", "Candidate", "DeveloperPortal", "Edge", "Endpoint", "Event", "Explain", "Failure", "GroupRow",
    "LocationRow", "Login", "Monitor", "Notice", "Offer", "Overview", "Page", "Part", "Plan", "PlanStep", "Problem", "Progress", "Region",
    "RegionProgress", "ScaleAndPricing", "Setting", "TierOffer", "Timing", "TrafficManager", "View", "VipChange",
]  # fmt: skip

Action = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Page:
    """What surrounds a view.

    region: the primary's name for people;  path: of the page, marks its place in the navigation
    user, role: who is signed in ("" = nobody) as reader, operator or owner;  csrf: the token that every form sends back
    """

    service: str
    region: str
    path: str = ""
    user: str = ""
    role: str = ""
    csrf: str = ""

    @property
    def may_write(self) -> bool:
        """Say whether the role allows changes; the server checks again."""
        return self.role in ("operator", "owner")


@dataclass(frozen=True, slots=True)
class Notice:
    """One line at the top of a page. status: Info, Warning or Error."""

    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal as the REST API words it; of several violations, all in `details`."""

    code: str
    message: str
    target: str = ""
    details: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Login:
    """The page that asks for a token. message: why it was refused;  next: path to go to afterwards."""

    message: str = ""
    next: str = "/portal/"


# ===== overview


@dataclass(frozen=True, slots=True)
class Region:
    """A region as it is now.

    status: of its endpoint's monitor;  cause, since: of that status;  provisioning_state, sync_state: as the service words them
    units_live: of `units`, those that answer;  trend: ms, oldest first;  revision, lag: of the configuration it serves, seconds behind
    """

    name: str
    display_name: str
    status: str
    primary: bool = False
    cause: str = ""
    since: datetime | None = None
    provisioning_state: str = "Succeeded"
    units: int = 1
    units_live: int = 1
    share: float | None = None
    ms: float | None = None
    trend: tuple[float | None, ...] = ()
    revision: str = ""
    sync_state: str = "InSync"
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Where one client group goes. measured: by samples, else by prior only;  reason: home, failover, fail_open, first, none

    share: of all addresses that are its, 0 to 1
    """

    group: str
    region: str
    ms: float | None
    share: float | None
    measured: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Edge:
    """A front door or DNS server, as it reported last, `age` seconds ago. rotation: the one it follows;  up: of `regions`, those it sees up

    inflight: calls under way through it
    """

    name: str
    status: str
    age: float
    rotation: str
    up: int
    regions: int
    inflight: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. status: a word with a tone, such as Online, Degraded or Info."""

    at: datetime
    status: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The service now, and over the `span` seconds before.

    at: when the figures were taken;  groups, flows: the largest client groups;  latency, share: one series for each region
    share_of: what regions have a share of: "calls", as edges count them, or "addresses" while nobody counts
    """

    at: datetime
    revision: str
    regions: tuple[Region, ...]
    notices: tuple[Notice, ...] = ()
    sites: tuple[Site, ...] = ()
    flows: tuple[Flow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    events: tuple[Event, ...] = ()
    latency: tuple[Series, ...] = ()
    share: tuple[Series, ...] = ()
    span: float = 3600.0
    share_of: Literal["calls", "addresses"] = "calls"
    edges: tuple[Edge, ...] = ()


# ===== scale and pricing


@dataclass(frozen=True, slots=True)
class LocationRow:
    """A row of the Locations table.

    draft: what is wanted, and whether that is a draft;  leaving: it is no longer wanted, and not gone yet
    url: of its gateway;  reason: of a failure;  status: of its endpoint's monitor, "" = none yet
    capacity: how busy its gateway is, percent, None = it does not say;  advised: units that it should have, None = those it has
    """

    draft: Draft
    display_name: str
    primary: bool = False
    leaving: bool = False
    provisioning_state: str = "Succeeded"
    status: str = ""
    reason: str = ""
    url: str = ""
    zones_available: int = 1
    public_ips: tuple[str, ...] = ()
    private_ips: tuple[str, ...] = ()
    previous_public_ips: tuple[str, ...] = ()
    capacity: Gauge | None = None
    advised: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A region that may be added. zones: how many it has, 1 = none to choose from."""

    name: str
    display_name: str
    provider: str
    zones: int = 1


@dataclass(frozen=True, slots=True)
class TierOffer:
    """A tier: units a region may have, and whether it may have several regions and zones."""

    name: str
    minimum: int
    maximum: int
    multi_region: bool = False
    zones: bool = False


@dataclass(frozen=True, slots=True)
class RegionProgress:
    """How far one region is. state: its provisioning state, "Waiting" before its turn;  percent: 0 to 100."""

    display_name: str
    action: Action
    state: str
    percent: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """A running or finished operation. status: InProgress, Succeeded, PartiallySucceeded, Failed or Canceled;  cancelable: now."""

    id: str
    status: str
    percent: int
    regions: tuple[RegionProgress, ...] = ()
    elapsed: float = 0.0
    cancelable: bool = False
    problem: Problem | None = None

    @property
    def running(self) -> bool:
        """Say whether it has not ended."""
        return self.status == "InProgress"


@dataclass(frozen=True, slots=True)
class ScaleAndPricing:
    """The Locations table, what may be added to it, and the operation under way, if any. etag: of what the rows show."""

    etag: str
    tier: str
    tiers: tuple[TierOffer, ...]
    network_mode: str
    rows: tuple[LocationRow, ...]
    offers: tuple[Offer, ...]
    network_modes: tuple[str, ...] = ("None", "External", "Internal")
    operation: Progress | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def cap(self) -> int:
        """Give the most units that a region may have in the present tier."""
        return next((tier.maximum for tier in self.tiers if tier.name == self.tier), 1)

    def providers(self) -> Mapping[str, Sequence[Offer]]:
        """Give the offers by provider, by name within each."""
        ordered = sorted(self.offers, key=lambda offer: (offer.provider, offer.display_name))
        return {name: [offer for offer in ordered if offer.provider == name] for name in dict.fromkeys(offer.provider for offer in ordered)}


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an outage lasts for clients; each (shortest, longest) or longest, seconds.

    detect_silent, detect_refused: until a gateway that says nothing, or refuses, is out;  worst, worst_refused: until the last client that
    keeps to the TTL has moved;  recover: until a gateway that is back is in;  full_share: until it has all its clients again
    """

    detect_silent: tuple[float, float]
    detect_refused: tuple[float, float]
    worst: float
    worst_refused: float
    recover: tuple[float, float]
    full_share: float


@dataclass(frozen=True, slots=True)
class PlanStep:
    """What happens to one region; changes: of an update, as the REST API calls them."""

    action: Action
    display_name: str
    units_before: int = 0
    units_after: int = 0
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VipChange:
    """A region whose addresses change: those it has now, which kinds (public, private) change, and why."""

    display_name: str
    kinds: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the whole service that a plan changes."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What Save would do.

    digest: identifies exactly this plan, so that nothing else is deployed;  sla: percent, None = none promised
    accepts: what is wanted differs from before, even where nothing has to be done for it
    """

    digest: str
    etag: str
    steps: tuple[PlanStep, ...] = ()
    settings: tuple[Setting, ...] = ()
    vip_changes: tuple[VipChange, ...] = ()
    warnings: tuple[Problem, ...] = ()
    timing: Timing | None = None
    sla: float | None = None
    accepts: bool = False

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to do."""
        return not (self.steps or self.settings or self.accepts)

    def count(self, action: Action) -> int:
        """Give how many regions it does this to."""
        return sum(step.action == action for step in self.steps)


# ===== explain


@dataclass(frozen=True, slots=True)
class Candidate:
    """One region as a client's group sees it. age: seconds since a sample, None = prior only;  chosen: this is where it goes."""

    name: str
    status: str
    estimate_ms: float
    deviation_ms: float
    penalty_ms: float
    age: float | None
    eligible: bool
    excluded: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class Explain:
    """An address and the decision for it, None before one was asked for. error: why there is none;  names: of regions, for people."""

    client: str = ""
    decision: Decision | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    def name(self, region: str | None) -> str:
        """Give a region's name for people."""
        return self.names.get(region or "", region or "")

    def sentences(self) -> tuple[str, ...]:
        """Give who the client is and why it goes where it goes."""
        return tuple(self.decision.text().splitlines()[:2]) if self.decision else ()

    def longest(self) -> float:
        """Give where the estimates' scale ends, ms."""
        return max((each.estimate_ms + each.deviation_ms for each in self.candidates()), default=1.0)

    def candidates(self) -> tuple[Candidate, ...]:
        """Give the regions in the order in which they would serve."""
        decision = self.decision
        rows = decision.candidates if decision else ()
        return tuple(
            Candidate(
                self.name(each.region), each.status, each.estimate_ms, each.deviation_ms, each.penalty_ms, each.sample_age, each.eligible,
                each.excluded, decision is not None and each.region == decision.region,
            )
            for each in rows
        )  # fmt: skip


# ===== traffic manager


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of the profile. status, monitor_status: what is wanted and what is seen;  cause, since: of the latter

    vantages: how many see it up, of how many;  probe_ms: newest probe, None = it failed or there was none
    """

    name: str
    target: str
    status: str
    monitor_status: str
    cause: str = ""
    since: datetime | None = None
    weight: int = 1
    priority: int = 1
    always_serve: bool = False
    probe_ms: float | None = None
    vantages: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Monitor:
    """The monitor settings, as the form shows and sends them; interval and timeout in seconds."""

    protocol: str = "HTTP"
    port: int = 0
    path: str = "/status-0123456789abcdef"
    interval: float = 5.0
    timeout: float = 2.0
    tolerated: int = 2
    rise: int = 2
    codes: str = "200"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class TrafficManager:
    """The profile, its endpoints, its monitor and the failover time these settings imply.

    errors: what is wrong with a form that was sent, by its field's name, "" = with the whole;  saved: it was accepted just now
    """

    etag: str
    dns_name: str
    status: str
    monitor_status: str
    method: str
    ttl: int
    monitor: Monitor
    timing: Timing
    endpoints: tuple[Endpoint, ...]
    methods: tuple[str, ...] = ("Performance", "Priority", "Weighted", "Geographic", "MultiValue", "Subnet")
    protocols: tuple[str, ...] = ("Automatic", "HTTP", "HTTPS", "TCP")
    errors: Mapping[str, str] = field(default_factory=dict)
    saved: bool = False
    fail_open: bool = False


# ===== developer portal


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One operation of an API: method and path below the API's."""

    method: str
    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Api:
    """A published API. urls: where it is called;  operations: none = every method and path."""

    name: str
    display_name: str
    version: str
    urls: tuple[str, ...]
    operations: tuple[ApiOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class DeveloperPortal:
    """The published APIs of one revision of the configuration."""

    revision: str
    apis: tuple[Api, ...] = ()
    published: datetime | None = None


# ===== what went wrong


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a page. status: of HTTP;  request: an id to look for in the log;  elsewhere: who can help, of a 421 the primary's URL."""

    status: int
    problem: Problem
    request: str = ""
    elsewhere: str = ""

    @property
    def title(self) -> str:
        """Give the failure in a few words."""
        return TITLES.get(self.status, "That did not work" if self.status < 500 else "Something is wrong here")


TITLES: Mapping[int, str] = {
    400: "That cannot be done", 401: "Please sign in", 403: "Your role does not allow that", 404: "There is no such page",
    409: "Something else is under way", 412: "Somebody else was quicker", 421: "This region is not the primary",
    428: "Please load the page again", 429: "Too many attempts", 503: "The management plane is not available",
}  # fmt: skip

View = Login | Overview | ScaleAndPricing | Explain | TrafficManager | DeveloperPortal | Failure
Part = Plan | Progress | Problem | Overview | ScaleAndPricing | Timing
