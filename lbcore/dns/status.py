"""Status: what holds of endpoints and profiles now, in Traffic Manager's words.

    profile    endpoint   always_serve   its region               status
    disabled   enabled    any            any                      Inactive
    any        disabled   any            any, or disabled         Disabled
    enabled    enabled    yes            any                      Unmonitored
    enabled    enabled    no             no verdict yet           CheckingEndpoint
    enabled    enabled    no             up                       Online
    enabled    enabled    no             degraded, ejected, down  Degraded
    enabled    enabled    no             draining, gone           Stopped; so is a nested profile that is Disabled or Inactive

Source: Azure Traffic Manager endpoint monitoring (REQUIREMENTS §2.2, R36).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbcore.dns.place import place_of
from lbcore.errors import UnknownRegionError

if TYPE_CHECKING:
    from lbcore.balancer import Balancer
    from lbcore.dns.profile import Endpoint, Profile
    from lbcore.region import Region

__all__ = ["endpoint_status", "endpoints_of", "profile_status"]

SERVING = ("Online", "Unmonitored")


def endpoints_of(lb: Balancer, profile: Profile) -> tuple[Endpoint, ...]:
    """Give a profile's endpoints: its own, or one for every region of the Balancer."""
    from lbcore.dns.profile import Endpoint

    return profile.endpoints or tuple(Endpoint(region.name) for region in lb.regions)


def endpoint_status(lb: Balancer, profile: Profile, endpoint: Endpoint) -> str:
    """Give Online, Degraded, CheckingEndpoint, Stopped, Disabled, Inactive or Unmonitored for one of a profile's endpoints."""
    if not endpoint.enabled:
        return "Disabled"
    if endpoint.profile is not None:
        return _nested(lb, endpoint, endpoint.profile) if profile.enabled else "Inactive"
    try:
        region = lb.region(endpoint.region)
    except UnknownRegionError:
        return "Stopped" if profile.enabled else "Inactive"
    status = lb.status(region)
    if status == "disabled":
        return "Disabled"
    return _of_region(lb, region, status, endpoint.always_serve) if profile.enabled else "Inactive"


def profile_status(lb: Balancer, profile: Profile) -> str:
    """Give Disabled, Degraded (an endpoint is), Online (one is), CheckingEndpoints or Inactive for a profile."""
    if not profile.enabled:
        return "Disabled"
    found = {endpoint_status(lb, profile, endpoint) for endpoint in endpoints_of(lb, profile)}
    if "Degraded" in found:
        return "Degraded"
    if found.intersection(SERVING):
        return "Online"
    return "CheckingEndpoints" if "CheckingEndpoint" in found else "Inactive"


def _of_region(lb: Balancer, region: Region, status: str, always_serve: bool) -> str:
    if status == "draining" or not lb.table.synced(lb.slot(region)):
        return "Stopped"
    if always_serve or region.always_serve:
        return "Unmonitored"
    if status != "up":
        return "Degraded"
    return "CheckingEndpoint" if lb.guard.verdict(lb.slot(region)) is None else "Online"


def _nested(lb: Balancer, endpoint: Endpoint, child: Profile) -> str:
    """Count the child's endpoints that are up, then those that are still being checked as well, against what is wanted."""
    if profile_status(lb, child) in ("Disabled", "Inactive"):
        return "Stopped"
    if _enough(lb, endpoint, child, SERVING):
        return "Online"
    return "CheckingEndpoint" if _enough(lb, endpoint, child, (*SERVING, "CheckingEndpoint")) else "Degraded"


def _enough(lb: Balancer, endpoint: Endpoint, child: Profile, counted: tuple[str, ...]) -> bool:
    up = [one for one in endpoints_of(lb, child) if endpoint_status(lb, child, one) in counted]
    families = [_families(lb, one) for one in up]
    four, six = sum(4 in versions for versions in families), sum(6 in versions for versions in families)
    least, least4, least6 = endpoint.min_children, endpoint.min_children_ipv4 or 0, endpoint.min_children_ipv6 or 0
    return len(up) >= least and four >= least4 and six >= least6


def _families(lb: Balancer, endpoint: Endpoint) -> set[int]:
    """Give the address families, 4 and 6, that an endpoint or anything below it can be answered with."""
    if endpoint.profile is not None:
        return {version for one in endpoints_of(lb, endpoint.profile) for version in _families(lb, one)}
    try:
        four, six = place_of(lb.region(endpoint.region)).families(False)
    except UnknownRegionError:
        return set()
    return {version for version, has in ((4, four), (6, six)) if has}
