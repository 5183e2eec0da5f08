"""Refusing: every error as the REST API shows it.

    {"error": {"code", "message", "target", "details": [{"code", "message", "target"}]}}       details: every violation, be it one
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from lbcore.errors import ConfigError, NoRegionError, NotPrimaryError, ServiceError
from lbcore.service.codes import Violation, refusal, status_of
from lbcore.service.logbook import clean
from lbcore.service.tokens import TooManyAttemptsError

__all__ = ["as_service_error", "error_body", "refused"]

logger = logging.getLogger(__name__)

LATER = {429: 1, 503: 5, 507: 60}  # status -> seconds for Retry-After
OPERATION = 2  # seconds after which an operation may have ended
MOST = 1000  # details of one answer


def error_body(error: ServiceError) -> dict[str, Any]:
    """Give the body of an error."""
    return {"error": _one(error) | {"details": [_one(each) for each in (error.details or (error,))[:MOST]]}}


def refused(error: ServiceError, *, service: str = "", headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Give the answer for an error. service: its name, for the URL of the operation that is in the way"""
    status = status_of(error)
    told = dict(headers or {})
    if isinstance(error, TooManyAttemptsError):
        told["Retry-After"] = str(max(1, round(error.retry_after + 0.5)))
    elif status in LATER:
        told["Retry-After"] = str(LATER[status])
    if status == 401:
        told["WWW-Authenticate"] = "Bearer"
    if error.code == "OperationInProgress":
        told["Retry-After"] = str(OPERATION)
        if error.target and service:
            told["Operation-Location"] = f"/services/{service}/operations/{error.target}"
    response = JSONResponse(error_body(error), status, told)
    response.lbcore_code = error.code  # type: ignore[attr-defined]  # for the audit log
    return response


def as_service_error(error: Exception, request_id: str) -> ServiceError:
    """Give what to tell of an exception: of those that are a bug, no more than under which number the log has it."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, NoRegionError):
        return ServiceError("NoRegionAvailable", str(error))
    if isinstance(error, ConfigError):
        return refusal([Violation("InvalidConfiguration", clean(str(each)), clean(each.where)) for each in error.violations])
    logger.error("request %s failed", request_id, exc_info=error)
    return ServiceError("InternalError", f"this is a bug of lbcore; its log has more under request {request_id}")


def _one(error: ServiceError) -> dict[str, Any]:
    message, target = str(error).removeprefix(f"{error.code}: "), error.target
    if error.code.startswith("Store") and target:  # the path of a file is nobody's business
        message, target = message.replace(target, "the store"), None
    if isinstance(error, NotPrimaryError):
        target = error.target
    return {"code": error.code, "message": clean(message), "target": None if target is None else clean(target)}
