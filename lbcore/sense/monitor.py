"""Monitor: how a gateway is probed, and Target: the one gateway that a Monitor is applied to.

Plain data, checked once. Nothing here opens a socket or knows the time; `checks` does one probe, `probe` schedules them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lbcore.errors import ConfigError, Violation, nearest

__all__ = ["STATUS_PATH", "Monitor", "Target"]

STATUS_PATH = "/status-0123456789abcdef"
DEFAULT_PORTS = {"http": 80, "https": 443, "tcp": 0}
FRAMING_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade"})
URL_FORM = "a URL such as https://host, http://host:8080/base or tcp://host:port"
MOST_ENTRIES = 8  # status ranges, custom headers: Traffic Manager's limits (R31)
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")
PATH = re.compile(r"/[\x21\x22\x24-\x7e]*")
HOST = re.compile(r"(?:[0-9A-Za-z_](?:[0-9A-Za-z._-]*[0-9A-Za-z_.])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

Rule = tuple[str, Callable[[Any], bool], str]


def _number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _status_ranges(value: Any) -> bool:
    status = _integer(100, 999)
    return isinstance(value, tuple) and 1 <= len(value) <= MOST_ENTRIES and all(
        isinstance(pair, tuple) and len(pair) == 2 and status(pair[0]) and status(pair[1]) and pair[0] <= pair[1] for pair in value
    )


def _headers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MOST_ENTRIES and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and _text(TOKEN)(pair[0])
        and _text(FIELD_VALUE)(pair[1])
        and pair[0].lower() not in FRAMING_HEADERS
        for pair in value
    )


def _certificate_files(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and len(value) == 2 and all(isinstance(name, str) and name for name in value))


RULES: tuple[Rule, ...] = (
    ("protocol", lambda value: value in (None, "http", "https", "tcp"), '"http", "https", "tcp" or None (as the gateway\'s URL says)'),
    ("port", _integer(0, 65535), "a port 1..65535, or 0 for the gateway's own"),
    ("path", _text(PATH), "a path that starts with / and has no space, # or control character"),
    ("interval", _number(0.05), "seconds, at least 0.05"),
    ("timeout", _number(0.001), "seconds, at least 0.001"),
    ("tolerated", _integer(0, 1000), "a whole number of failures, 0..1000"),
    ("rise", _integer(1, 1000), "a whole number of successes, 1..1000"),
    ("expected", _status_ranges, "1..8 status ranges (low, high) with 100 <= low <= high <= 999"),
    ("headers", _headers, "at most 8 (name, value) pairs that HTTP allows; the Host header is the setting `host`"),
    ("host", lambda value: value == "" or _text(HOST)(value), "a host name without wildcard, optionally with :port, or an empty string"),
    ("verify", _flag, "true or false"),
    ("ca", lambda value: isinstance(value, str), "the path of a PEM file, or an empty string for the usual authorities"),
    ("client_certificate", _certificate_files, "the paths (certificate PEM, key PEM), or None"),
    ("jitter", _number(0.0, 1.0), "a share of the interval, 0..1"),
    ("max_concurrency", _integer(1, 100_000), "a whole number of probes, 1..100000"),
    ("strict_azure", _flag, "true or false"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """How gateways are probed; durations in seconds.

    protocol: "http", "https", "tcp" (connect only), or None = the scheme of the gateway's URL
    port: 0 = the gateway's own;  path: appended to the gateway's URL
    interval: from the start of a probe to the start of the next, >= 0.05;  timeout: for the whole probe, below interval
    tolerated, rise: failures in a row that change nothing, successes in a row that bring a region back. The Prober only carries
        these two; the detector that counts (`detect.Consecutive`) is built from them
    expected: up to 8 ranges (low, high) of status codes that count as success. A redirect is an answer like any other: not followed
    headers: up to 8 (name, value) pairs sent along, as a mapping or pairs
    host: name sent as Host header and, over TLS, as SNI and checked against the certificate; empty = the gateway URL's host
    verify: check the certificate and its name;  ca: PEM file of authorities to trust instead of the usual ones
    client_certificate: PEM files (certificate, key) shown to gateways that ask. Replaced files are noticed at the next probe
    jitter: each target's first probe is delayed by a fixed share of this fraction of the interval, so that targets spread over it
    max_concurrency: probes under way at once
    strict_azure: hold interval, timeout and tolerated to Traffic Manager's grid
    Raises ConfigError with every violation at once.
    Source: Azure Traffic Manager endpoint monitoring (protocols, ranges, headers, path); defaults are lbcore's.
    """

    protocol: str | None = None
    port: int = 0
    path: str = STATUS_PATH
    interval: float = 5.0
    timeout: float = 2.0
    tolerated: int = 2
    rise: int = 2
    expected: tuple[tuple[int, int], ...] = ((200, 200),)
    headers: tuple[tuple[str, str], ...] = ()
    host: str = ""
    verify: bool = True
    ca: str = ""
    client_certificate: tuple[str, str] | None = None
    jitter: float = 1.0
    max_concurrency: int = 256
    strict_azure: bool = False

    def __post_init__(self) -> None:
        for name in ("expected", "headers", "client_certificate"):
            object.__setattr__(self, name, _hashable(getattr(self, name)))
        violations = [*_violations(self)]
        if violations:
            raise ConfigError(violations)

    @classmethod
    def azure(cls, *, interval: int = 30, **settings: Any) -> Monitor:
        """Give Traffic Manager's defaults: 30/10/3 or 10/9/3, rise 1, certificates not checked (R31, R32)."""
        defaults = {"timeout": 9 if interval == 10 else 10, "tolerated": 3, "rise": 1, "verify": False, "strict_azure": True}
        return cls(interval=interval, **(defaults | settings))

    def expects(self, status: int) -> bool:
        """Say whether a status code counts as success."""
        return any(low <= status <= high for low, high in self.expected)


def _hashable(value: Any) -> Any:
    """Turn a mapping, or lists as TOML gives them, into tuples; what is neither is left to the rules."""
    if isinstance(value, Mapping):
        value = list(value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _violations(monitor: Monitor) -> Iterator[Violation]:
    sound = set()
    for name, rule, expected in RULES:
        value = getattr(monitor, name)
        if rule(value):
            sound.add(name)
        else:
            near = nearest(value, ("http", "https", "tcp")) if name == "protocol" and isinstance(value, str) else ()
            yield Violation(f"monitor.{name}", value, expected, near[0] if near else None)
    if {"interval", "timeout"} <= sound:
        yield from _timing_violations(monitor)
    if monitor.protocol == "tcp" and monitor.path != STATUS_PATH:
        yield Violation("monitor.path", monitor.path, "no path with protocol tcp")


def _timing_violations(monitor: Monitor) -> Iterator[Violation]:
    interval, timeout = monitor.interval, monitor.timeout
    if timeout >= interval:  # a probe must end before the next of the same target begins
        yield Violation("monitor.timeout", timeout, f"less than the interval of {interval:g} s")
    if monitor.strict_azure is not True:
        return
    if interval not in (10, 30):
        yield Violation("monitor.interval", interval, "10 or 30 with strict_azure")
    longest = 9 if interval == 10 else 10
    if not 5 <= timeout <= longest:
        yield Violation("monitor.timeout", timeout, f"5..{longest} with strict_azure")
    if not _integer(0, 9)(monitor.tolerated):
        yield Violation("monitor.tolerated", monitor.tolerated, "0..9 with strict_azure")


@dataclass(frozen=True, slots=True)
class Target:
    """One gateway (or anchor) and how it is probed. Equal targets are probed alike, so a change of either starts anew."""

    name: str
    protocol: str
    host: str
    port: int
    path: str
    monitor: Monitor
    anchor: bool = False

    @classmethod
    def parse(cls, name: str, url: str, monitor: Monitor, *, anchor: bool = False) -> Target:
        """Give the target at a gateway's base URL ("https://weu.example", "tcp://192.0.2.1:443").

        Raises ValueError for a URL without a usable scheme, host or port.
        """
        try:
            parts = urlsplit(url)
            host, own_port = parts.hostname or "", parts.port
        except ValueError:  # brackets, or a port that is no number below 65536
            raise ValueError(f"expected {URL_FORM}, got {url!r}") from None
        protocol, path = monitor.protocol or parts.scheme, parts.path.rstrip("/") + monitor.path
        port = monitor.port or own_port or DEFAULT_PORTS.get(protocol) or DEFAULT_PORTS.get(parts.scheme)
        sound = HOST.fullmatch(_bracketed(host)) and PATH.fullmatch(path)
        if parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc or not port or not sound:
            raise ValueError(f"expected {URL_FORM}, got {url!r}")
        return cls(name, protocol, host, port, path, monitor, anchor)

    @property
    def url(self) -> str:
        """Give the URL that is asked for; for TCP, the address that is connected to."""
        return self.url_at(self.host)

    def url_at(self, address: str) -> str:
        """Give the same URL with one of the host's addresses in its place."""
        return f"{self.protocol}://{_bracketed(address)}:{self.port}{'' if self.protocol == 'tcp' else self.path}"

    @property
    def authority(self) -> str:
        """Give what the Host header says."""
        usual = self.port == DEFAULT_PORTS[self.protocol]
        return self.monitor.host or (_bracketed(self.host) if usual else f"{_bracketed(self.host)}:{self.port}")

    @property
    def server_name(self) -> str:
        """Give the name, or address, that a certificate must be for; sent as SNI."""
        return urlsplit(f"//{self.monitor.host}").hostname or self.host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
