from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, TypeAlias, final

from lbcore._fast import LatencyTable
from lbcore._prefix import PrefixMap
from lbcore.dns.route import Step

__all__ = ["KINDS", "POLICIES", "Choice", "Horizon", "Program"]

_Client: TypeAlias = str | bytes | IPv4Address | IPv6Address | None

KINDS: tuple[str, ...]
POLICIES: tuple[str, ...]

class Choice(NamedTuple):
    region: int
    second: int
    scope: int
    ttl: int
    fail_open: bool

@final
class Horizon:
    NEVER: int
    @property
    def slots(self) -> int: ...
    def __new__(cls, slots: int) -> Horizon: ...
    def __len__(self) -> int: ...
    def __getitem__(self, slot: int, /) -> int: ...
    def __setitem__(self, slot: int, seconds: int, /) -> None: ...

@final
class Program:
    @property
    def table(self) -> LatencyTable: ...
    @property
    def map(self) -> PrefixMap: ...
    @property
    def horizon(self) -> Horizon | None: ...
    @property
    def roots(self) -> int: ...
    def __new__(
        cls,
        table: LatencyTable,
        map: PrefixMap,
        steps: Sequence[Step],
        roots: Sequence[tuple[int, int, int | None]],
        horizon: Horizon | None = None,
    ) -> Program: ...
    def choose(self, root: int, client: _Client, turn: int = 0, pair: bool = False) -> Choice: ...
    def several(self, root: int, client: _Client, turn: int = 0) -> list[int]: ...
