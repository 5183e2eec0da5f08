"""What `lbcore check`, a start and a reload look at besides the file itself: zones, certificates, secrets, the gateway's document."""

from __future__ import annotations

from collections.abc import Callable, Collection

from lbcore.config import Settings
from lbcore.errors import ConfigError, LbcoreError, Violation

__all__ = ["check", "check_all"]


def check(settings: Settings, roles: Collection[str]) -> None:
    """Look at what some roles need; ConfigError with everything that is wrong, ImportError where a role's libraries are missing."""
    violations: list[Violation] = []
    for role in roles:
        try:
            CHECKS[role](settings)
        except ConfigError as error:
            violations += error.violations
        except (OSError, ValueError, LbcoreError) as error:
            where = getattr(error, "filename", None) or f"[{role}]"
            violations.append(Violation(str(where), str(error), "a file that can be used"))
    if violations:
        raise ConfigError(violations)


def check_all(settings: Settings) -> None:
    """Look at everything that can be looked at here: roles of the file and DNS, as far as the libraries are installed."""
    for role in dict.fromkeys(("dns", *settings.roles)):
        try:
            check(settings, [role])
            if role == "gateway":
                _check_document(settings)
        except ImportError:
            pass


def _check_dns(settings: Settings) -> None:
    from lbcore.cli.cookies import read
    from lbcore.dns.configured import zones_of

    zones_of(settings)
    if settings.cookie_secret:
        read(settings.cookie_secret)


def _check_front_door(settings: Settings) -> None:
    from lbcore.http.configured import check

    check(settings)


def _check_gateway(settings: Settings) -> None:
    from lbcore.http._limits import Limits
    from lbcore.http.configured import certificates
    from lbcore.http.regional import options

    section = settings.document.gateway
    assert section is not None
    certificates(settings, section)
    options(settings, Limits())


def _check_document(settings: Settings) -> None:
    from lbcore.http._limits import Limits
    from lbcore.http.regional import Documents

    Documents(settings, Limits(), keep=False).read()


def _check_management(settings: Settings) -> None:
    from lbcore.service.founding import check

    check(settings)


CHECKS: dict[str, Callable[[Settings], None]] = {
    "front-door": _check_front_door, "gateway": _check_gateway, "dns": _check_dns, "management": _check_management,
}  # fmt: skip
