from collections.abc import Callable
from typing import Any, final

from lbcore._fast import LatencyTable
from lbcore._prefix import PrefixMap

@final
class Steady:
    def __new__(cls, clock: Callable[[], float]) -> Steady: ...
    def __call__(self) -> float: ...

@final
class Tally:
    deadline: float
    def __new__(
        cls, table: LatencyTable, map: PrefixMap, slots: dict[str, int], clock: Steady, resolution: float | None, shared: bool
    ) -> Tally: ...
    def success(self, region: Any, client: object = None, gen: int | None = None, /) -> bool: ...
    def calm(self, slot: int, on: bool, generation: int = 0) -> None: ...
    def take(self, slot: int) -> tuple[list[int], float] | None: ...
