"""What serves HTTP, as lbcore.toml has it."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar

from lbcore.http.accesslog import AccessLog
from lbcore.http.affinity import Affinity
from lbcore.http.budget import RetryBudget
from lbcore.http.certificates import Certificates
from lbcore.http.forward import Limits, Timeouts
from lbcore.http.front import FrontDoor

if TYPE_CHECKING:
    from lbcore.balancer import Balancer
    from lbcore.config import Settings
    from lbcore.config.serving import Served

__all__ = ["access_log", "certificates", "check", "engine_options", "front_door", "retry_budget"]

Door = TypeVar("Door", bound=FrontDoor)


def front_door(settings: Settings, lb: Balancer, make: type[Door], budget: RetryBudget, **more: Any) -> Door:
    """Give the front door of `[http]`, not yet open; OSError, ssl.SSLError or ValueError for files that cannot be used."""
    section = settings.document.http
    optional: dict[str, Any] = {} if section.patience is None else {"patience": section.patience}
    return make(
        lb, retries=section.retries, budget=budget, keep_host=section.keep_host, explain_to=section.explain_to,
        affinity=_affinity(settings), cut_streams=section.cut_streams, tls=_authorities(settings), **optional,
        **engine_options(section), **more,
    )  # fmt: skip


def _affinity(settings: Settings) -> Affinity | None:
    kept = settings.document.http.affinity
    if kept is None:
        return None
    return Affinity((settings.folder / kept.secret).read_bytes().strip(), cookie=kept.cookie, max_age=kept.max_age)


def _authorities(settings: Settings) -> ssl.SSLContext | None:
    file = settings.document.http.authorities
    return ssl.create_default_context(cafile=str(settings.folder / file)) if file else None


def retry_budget(settings: Settings, workers: int) -> RetryBudget:
    """Give the share of the budget of retries that one of so many workers has."""
    section = settings.document.http
    options = section.budget.model_dump(exclude_none=True)
    minimum = options.pop("minimum", 10.0) / workers
    return RetryBudget(time.monotonic, minimum=minimum, **options)


def engine_options(section: Served) -> dict[str, Any]:
    """Give the options of the engine that every server of HTTP has."""
    return {
        "trusted": section.trusted, "limits": Limits(**section.limits.model_dump(exclude_none=True)),
        "timeouts": Timeouts(**section.timeouts.model_dump(exclude_none=True)),
    }  # fmt: skip


def certificates(settings: Settings, section: Served) -> Certificates | None:
    """Give what TLS listens with, None where nothing does; OSError or ssl.SSLError for files that cannot be used."""
    if not section.listen_tls:
        return None
    return Certificates(settings.folder / section.certificate, settings.folder / section.key)


def access_log(settings: Settings, section: Served, role: str) -> AccessLog | None:
    """Give the access log, None without one; OSError when it cannot be opened."""
    if not section.access_log:
        return None
    return AccessLog(settings.folder / section.access_log, role, section.access_log_sample, time.monotonic)


def check(settings: Settings) -> None:
    """Read every file that a front door needs; OSError, ssl.SSLError or ValueError for what cannot be used."""
    section = settings.document.http
    certificates(settings, section)
    _affinity(settings)
    _authorities(settings)
