from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNSET", "flatten", "from_networks", "overlay", "split64"]

_Ranges: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]

UNSET: int

def flatten(hi: NDArray[np.uint64], lo: NDArray[np.uint64], length: NDArray[np.uint8], value: NDArray[np.uint32]) -> _Ranges: ...
def overlay(top: _Ranges, base: _Ranges, hole: int = ...) -> _Ranges: ...
def split64(
    ranges: _Ranges, marker: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]]: ...
def from_networks(
    networks: Iterable[str | IPv4Network | IPv6Network], values: Iterable[int], under: Iterable[tuple[int, int, int, int]] = ()
) -> tuple[_Ranges, _Ranges]: ...
