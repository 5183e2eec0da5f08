"""Which policies there are: the stock ones, and those of installed packages in the entry-point group `lbcore.policies`."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract

from lbcore.http.policies.answers import MockResponse, ReturnResponse, SetStatus
from lbcore.http.policies.api_keys import ValidateApiKey
from lbcore.http.policies.cors import Cors
from lbcore.http.policies.headers import RemoveHeader, SetHeader
from lbcore.http.policies.ip_filter import IpFilter
from lbcore.http.policies.paths import RewritePath
from lbcore.http.policies.policy import SECTIONS, Policy
from lbcore.http.policies.rate_limit import RateLimit
from lbcore.http.policies.records import Log
from lbcore.http.policies.routing import Retry, SetBackend, Timeout
from lbcore.http.policies.tokens import ValidateJwt

__all__ = ["GROUP", "broken", "registry"]

logger = logging.getLogger(__name__)

GROUP = "lbcore.policies"

_STOCK: dict[str, type[Policy]] = {
    policy.kind: policy
    for policy in (
        Cors, IpFilter, Log, MockResponse, RateLimit, RemoveHeader, Retry, ReturnResponse, RewritePath, SetBackend, SetHeader, SetStatus,
        Timeout, ValidateApiKey, ValidateJwt,
    )
}  # fmt: skip


def registry() -> dict[str, type[Policy]]:
    """Give the policies by their names in a configuration. A stock name always means the stock policy."""
    return _load()[0]


def broken() -> dict[str, str]:
    """Give the names of entry points that could not be used, and why."""
    return _load()[1]


@cache
def _load() -> tuple[dict[str, type[Policy]], dict[str, str]]:
    found, bad = dict(_STOCK), dict[str, str]()
    for point in entry_points(group=GROUP):
        if point.name in _STOCK:
            bad[f"{point.name} ({point.value})"] = "the name is a stock policy's"
            continue
        try:
            found[point.name] = _policy(point)
        except Exception as error:  # somebody else's code: whatever it raises, the others work
            bad[point.name] = f"{type(error).__name__}: {error}"
    for name, reason in bad.items():
        logger.warning("policy %s of %s cannot be used: %s", name, GROUP, reason)
    return found, bad


def _policy(point: EntryPoint) -> type[Policy]:
    policy = point.load()
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise TypeError(f"{point.value} is no subclass of Policy")
    if isabstract(policy):
        raise TypeError(f"{point.value} has no {', '.join(sorted(policy.__abstractmethods__))}")
    if getattr(policy, "kind", None) != point.name:
        raise ValueError(f"{point.value} calls itself {getattr(policy, 'kind', None)!r}, the entry point {point.name!r}")
    if not getattr(policy, "sections", frozenset()) <= frozenset(SECTIONS) or not getattr(policy, "sections", None):
        raise ValueError(f"{point.value}.sections must be of {', '.join(SECTIONS)}")
    return policy
