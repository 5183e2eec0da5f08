"""ip-filter: which client networks may call."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from lbcore.http.heads import Trusted
from lbcore.http.message import Response
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import Policy, Site, Step

__all__ = ["IpFilter"]

_FORM = 'networks such as "10.0.0.0/8", or addresses'


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"a network such as 10.0.0.0/8 or an address ({error})") from None
    return text


_Networks = list[Annotated[str, AfterValidator(_network)]]


class IpFilter(Policy):
    """Answer 403 to clients of some networks.

    deny: whoever is in one of these; allow: whoever is in none of these, where there are any. An address that is none counts as in none
        { policy = "ip-filter", allow = ["10.0.0.0/8", "fd00::/8"], deny = ["10.66.0.0/16"] }
    """

    kind: ClassVar[str] = "ip-filter"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound",))

    allow: _Networks = Field(default=[], description=_FORM)
    deny: _Networks = Field(default=[], description=_FORM)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.allow and not self.deny:
            raise ValueError("allow, deny or both")
        return self

    def prepare(self, site: Site) -> Step:
        allowed, denied, anybody = Trusted(self.allow), Trusted(self.deny), not self.allow

        def check(context: Context) -> Response | None:
            client = context.client
            return context.deny("ip-filter", 403) if client in denied or not (anybody or client in allowed) else None

        return check
