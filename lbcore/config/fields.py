"""What keys of lbcore.toml are made of: tables, addresses, networks."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyAddress, IPvAnyNetwork, TypeAdapter

__all__ = ["Address", "HostName", "Listen", "Listens", "MaybeListen", "Network", "OneOrMore", "Section", "is_loopback", "split_listen"]


def split_listen(text: str) -> tuple[str, int]:
    """Give host and port of "127.0.0.1:5353" or "[::1]:53"; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(text)
    return _address(host.removeprefix("[").removesuffix("]")), int(port)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, whom nobody else hears."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(text: str) -> str:
    try:
        split_listen(text)
    except ValueError:  # pydantic's own would put the host in place of the text
        raise ValueError(text) from None
    return text


def _listen_or_nowhere(text: str) -> str:
    return text and _listen(text)


def _different(texts: list[str]) -> list[str]:
    for text in texts:
        if texts.count(text) > 1 and not text.endswith(":0"):
            raise ValueError(text)
    return texts


def _address(text: str) -> str:
    return str(TypeAdapter(IPvAnyAddress).validate_python(text))


def _network(text: str) -> str:
    return str(TypeAdapter(IPvAnyNetwork).validate_python(text))


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(_address)]
Listen = Annotated[str, AfterValidator(_listen)]
MaybeListen = Annotated[str, AfterValidator(_listen_or_nowhere)]
Listens = Annotated[list[Listen], BeforeValidator(_listed), AfterValidator(_different)]
Network = Annotated[str, AfterValidator(_network)]
OneOrMore = Annotated[list[str], BeforeValidator(_listed)]
LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HostName = Annotated[str, Field(pattern=rf"^{LABEL}(\.{LABEL})*\.?$", max_length=254)]


class Section(BaseModel):
    """A table of lbcore.toml: no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
