"""Policy: what a gateway does to a call besides forwarding it, as a typed schema; Site: where it does so; Step: what it becomes."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, TypeVar

from lbcore.http._limits import Limits
from lbcore.http.message import Response
from lbcore.http.policies.conditions import condition, expression
from lbcore.http.policies.context import Context
from lbcore.http.policies.key_sets import KeySets
from lbcore.region import canonical

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
except ImportError as error:
    raise ImportError("policies need pydantic, which is not installed: pip install 'lbcore[http]'", name="pydantic") from error

__all__ = ["SECTIONS", "Expression", "Policy", "Site", "Step"]

SECTIONS = ("inbound", "backend", "outbound", "on_error")

T = TypeVar("T")
Step = Callable[[Context], Response | Awaitable[Response | None] | None]


def _unheard(record: Mapping[str, object]) -> None:
    """Take a record that nobody wants."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a policy works: in which gateway, scope and section, and with what.

    scope: "global" or such as "api/orders/v1"; section: one of SECTIONS
    limits: counters of this gateway, None = `rate-limit` is refused; backends: what `set-backend` may name
    keys: JSON Web Key Sets, kept over revisions, None = `validate-jwt` cannot fetch any; log: takes a record of JSON types, must not block
    clock: monotonic seconds, the same in all processes that share `limits`; wall: seconds since 1970
    """

    region: str = ""
    gateway: str = ""
    service: str = "lbcore"
    scope: str = "global"
    section: str = "inbound"
    limits: Limits | None = None
    backends: Mapping[str, object] = field(default_factory=dict)
    keys: KeySets | None = None
    log: Callable[[Mapping[str, object]], None] = _unheard
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


def of_region(table: Mapping[str, T], region: str, otherwise: T) -> T:
    """Give what a table says for a region, however its name is written."""
    named = {canonical(name): value for name, value in table.items()}
    return named.get(canonical(region), otherwise)


def section_of(info: ValidationInfo) -> str | None:
    """Give the section of the policy that is being read, None when it is made outside a configuration."""
    return info.context.get("section") if isinstance(info.context, Mapping) else None


def _is_expression(text: str, info: ValidationInfo) -> str:
    expression(text, section_of(info))
    return text


Expression = Annotated[str, AfterValidator(_is_expression)]
"""a field's type: an expression as `conditions` has them, checked for the section where the policy stands"""


class Policy(BaseModel):
    """One policy of a configuration. A subclass is one kind: its fields are the keys, `prepare` gives what is done for each call.

    kind: its name in a configuration, lower case with hyphens; sections: where it may stand, of SECTIONS
    when: a condition (see `conditions`); the policy is passed over where it does not hold
    A Field's description is what a violation says was expected. Values are not converted: "5" is no number.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: ClassVar[str]
    sections: ClassVar[frozenset[str]]

    when: str | None = Field(default=None, description="a condition")

    @field_validator("when")
    @classmethod
    def _is_condition(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None:
            condition(text, section_of(info))
        return text

    @abstractmethod
    def prepare(self, site: Site) -> Step:
        """Give the step, once for each revision and each API; ValueError, which becomes a violation, when it cannot work there.

        The step is called in the event loop for every call and must not block. In `inbound` and `backend` a Response ends the call,
        and the step may be a coroutine function; in `outbound` and `on_error` a Response takes the place of the one there is.
        """
