"""The shape of `[http]`, `[gateway]` and `[run]`: what `lbcore run` serves.

Where a key has no default here, that of the part it is for holds.
"""

from __future__ import annotations

from pydantic import Field

from lbcore.config.fields import Listens, MaybeListen, Network, Section

__all__ = ["Gateway", "Http", "Run", "Served"]

LISTEN = 'an address and port such as "127.0.0.1:8080" or "[::1]:80", or a list of different ones'
NETWORKS = 'a list of networks such as ["10.0.0.0/8", "2001:db8::/32"]'
ABOVE_0 = "seconds above 0"
DAY = 86_400.0


class Timeouts(Section):
    """How long things may take, seconds."""

    head: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    body: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    rate: float | None = Field(default=None, ge=0, le=1e9, description="bytes a second, 0 = any")
    keep_alive: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    first_byte: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    idle: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    total: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    stall: float | None = Field(default=None, gt=0, le=DAY, description=ABOVE_0)
    relay: float | None = Field(default=None, gt=0, le=365 * DAY, description=ABOVE_0)
    linger: float | None = Field(default=None, gt=0, le=60, description="seconds above 0, at most 60")


class Limits(Section):
    """How much one connection may make the engine hold or do."""

    head: int | None = Field(default=None, ge=1024, le=1 << 24, description="bytes, 1024..16777216")
    fields: int | None = Field(default=None, ge=8, le=10_000, description="a whole number, 8..10000")
    body: int | None = Field(default=None, ge=0, description="bytes, at least 0")
    held: int | None = Field(default=None, ge=4096, le=1 << 30, description="bytes, 4096..1073741824")
    replay: int | None = Field(default=None, ge=0, le=1 << 30, description="bytes, 0..1073741824")


class Served(Section):
    """What everything that serves HTTP has."""

    listen: Listens = Field(default=[], description=LISTEN)
    listen_tls: Listens = Field(default=[], description=LISTEN)
    certificate: str = Field(default="", description="the path of a PEM file, for listen_tls")
    key: str = Field(default="", description="the path of a PEM file, for listen_tls")
    proxy_protocol: bool = Field(default=False, description="true or false")
    trusted: list[Network] = Field(default=[], description=NETWORKS)
    workers: int = Field(default=1, ge=1, le=256, description="a whole number of processes, 1..256")
    explain_to: list[Network] = Field(default=[], description=NETWORKS)
    authorities: str = Field(default="", description='the path of a PEM file, or "" for the system\'s')
    access_log: str = Field(default="", description='the path of a file, or ""')
    access_log_sample: int = Field(default=100, ge=1, description="a whole number: one answered call of so many is logged")
    timeouts: Timeouts = Field(default_factory=Timeouts, description="a table")
    limits: Limits = Field(default_factory=Limits, description="a table")


class Affinity(Section):
    """`[http.affinity]`: keeps a client at its region."""

    secret: str = Field(description="the path of a file of at least 16 bytes")
    cookie: str = Field(default="lbcore-region", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="a name of letters, digits, - _ .")
    max_age: int | None = Field(default=None, ge=1, description="a whole number of seconds, at least 1")


class Budget(Section):
    """`[http.budget]`: how many retries there may be."""

    ratio: float | None = Field(default=None, ge=0, le=100, description="retries for each call, 0..100")
    minimum: float | None = Field(default=None, ge=0, le=1e6, description="retries a second beside, 0..1000000")
    window: float | None = Field(default=None, gt=0, le=3600, description="seconds above 0, at most 3600")


class Http(Served):
    """`[http]`: the front door; `retries` and `keep_host` are the httpx transports', too."""

    listen: Listens = Field(default=["127.0.0.1:8080"], description=LISTEN)
    retries: int = Field(default=2, ge=0, le=100, description="a whole number of further regions to try, 0..100")
    keep_host: bool = Field(default=False, description="true or false")
    patience: float | None = Field(default=None, gt=0, le=3600, description="seconds above 0, at most 3600")
    cut_streams: bool = Field(default=False, description="true or false")
    affinity: Affinity | None = Field(default=None, description="a table")
    budget: Budget = Field(default_factory=Budget, description="a table")


class Unit(Section):
    """`[gateway.unit]`: what one unit of the region takes."""

    concurrency: int | None = Field(default=None, ge=1, le=1_000_000, description="a whole number of calls at once, 1..1000000")
    rate: float | None = Field(default=None, gt=0, le=1e7, description="calls a second, above 0")
    queue: int | None = Field(default=None, ge=0, le=1_000_000, description="a whole number of calls that wait, 0..1000000")
    patience: float | None = Field(default=None, gt=0, le=60, description="seconds above 0, at most 60")


class Gateway(Served):
    """`[gateway]`: this node's gateway."""

    listen: Listens = Field(default=["127.0.0.1:8081"], description=LISTEN)
    region: str = Field(description="the name of one of the regions")
    name: str = Field(default="", max_length=100, description="at most 100 characters")
    configuration: str = Field(default="", description="the path of a document of APIs and policies, JSON or TOML")
    keep: str = Field(default="", description='the path of a folder, or ""')
    unit: Unit = Field(default_factory=Unit, description="a table")


class Run(Section):
    """`[run]`: what holds for all that `lbcore run` starts."""

    metrics: MaybeListen = Field(default="127.0.0.1:9190", description='an address and port such as "127.0.0.1:9190", or ""')
    grace: float = Field(default=10.0, ge=0, le=3600, description="seconds 0..3600 for calls under way at the end")
    drain: float = Field(default=300.0, ge=0, le=7 * DAY, description="seconds 0..604800 for calls under way after a reload")
