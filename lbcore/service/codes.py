"""Codes: every reason for which the service refuses, with its HTTP status, and how many reasons become one error.

The code is the same in Python (`ServiceError.code`), in REST and on the command line; V numbers are those of the requirements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lbcore.errors import ServiceError

__all__ = ["STATUS", "Violation", "exit_code_of", "refusal", "status_of"]


class Violation(NamedTuple):
    """One reason to refuse: its code, what is wrong and what to do, and where it stands in the body."""

    code: str
    message: str
    target: str | None = None


STATUS: Mapping[str, int] = MappingProxyType({
    "InvalidProperty": 400,  # a value of the wrong JSON type
    "UnknownProperty": 400,
    "InvalidServiceName": 400,
    "InvalidDomain": 400,
    "InvalidSku": 400,
    "DuplicateLocation": 400,  # V1
    "LocationNotAvailable": 400,  # V2
    "InvalidGeo": 400,
    "InvalidGateway": 400,
    "HostNameTooLong": 400,
    "ConfirmationRequired": 400,
    "CannotRemovePrimary": 400,  # V3
    "PropertyChangeNotAllowed": 400,
    "InvalidSkuCapacity": 400,  # V4
    "FeatureNotSupportedBySku": 400,  # V5
    "LocationsPresent": 409,  # V6
    "InvalidNetworkType": 400,
    "SubnetRequired": 400,  # V7
    "SubnetNotAllowed": 400,
    "SubnetLocationMismatch": 400,  # V8
    "SubnetLocationUnknown": 400,
    "SubnetSubscriptionMismatch": 400,
    "InvalidResourceId": 400,  # V9
    "PublicIpMustChange": 400,  # V10
    "UnitsNotMultipleOfZones": 400,  # V11
    "InvalidZone": 400,
    "NotSupported": 400,
    "WouldLoseCapacity": 409,  # V12
    "VipChangeNotAcknowledged": 409,  # V13
    "CannotDisableAllGateways": 409,  # V14
    "NotSupportedInInternalMode": 400,  # V15
    "OperationInProgress": 409,  # V16
    "PreconditionFailed": 412,  # V17
    "PreconditionRequired": 428,
    "NotPrimary": 421,  # V18
    "Fenced": 409,
    "ManagementPlaneUnavailable": 503,
    "ResourceNotFound": 404,
    "InvalidMonitorConfig": 400,  # V20
    "InvalidEndpoint": 400,  # V21
    "InvalidMapping": 400,  # V22
    "InvalidNesting": 400,  # V23
    "InvalidConfiguration": 400,  # V24
    "RevisionConflict": 409,
    "BackupExpired": 409,  # V25
    "SkuMismatch": 409,
    "NameMismatch": 409,
    "InvalidBackup": 400,
    "ReadOnlyProperty": 400,  # V26
    "InvalidRequest": 400,  # no JSON, or not as the endpoint wants it
    "AuthenticationFailed": 401,
    "AuthorizationFailed": 403,
    "HostNotAllowed": 403,
    "MethodNotAllowed": 405,
    "RequestTooLarge": 413,
    "UnsupportedMediaType": 415,
    "TooManyAttempts": 429,
    "TooManyRequests": 429,
    "NoRegionAvailable": 503,
    "InternalError": 500,
    "UnplannedChange": 500,  # a provisioner did what no plan said
    "StoreLocked": 503,
    "StoreFull": 507,
    "StoreReadOnly": 503,
    "StoreCorrupt": 503,
    "StoreFromTheFuture": 503,
    "StoreUnavailable": 503,
})  # fmt: skip


def status_of(error: ServiceError) -> int:
    """Give the HTTP status of an error: of several reasons, 400 before 409, for a conflict may end by itself; 500 for an unknown code."""
    found = {STATUS.get(each.code, 500) for each in error.details or (error,)}
    return min(found)


def exit_code_of(error: ServiceError) -> int:
    """Give the command line's exit code: 2 invalid, 3 conflict, 4 not found, 5 unavailable."""
    status = status_of(error)
    return {400: 2, 401: 2, 403: 2, 413: 2, 404: 4, 409: 3, 412: 3, 428: 3}.get(status, 5)


def refusal(violations: Sequence[Violation]) -> ServiceError:
    """Make one error of all violations, which must be some: the first one's code, each in `details`."""
    details = [ServiceError(each.code, each.message, each.target) for each in violations]
    details.sort(key=lambda each: STATUS.get(each.code, 500))
    if len(details) == 1:
        return details[0]
    first = details[0]
    return ServiceError(first.code, f"{len(details)} things are wrong, first: {str(first).partition(': ')[2]}", first.target, details)
