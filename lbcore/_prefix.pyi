from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from os import PathLike
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PrefixMap"]

_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
_Network: TypeAlias = str | IPv4Network | IPv6Network
_Client: TypeAlias = str | bytes | IPv4Address | IPv6Address | None

@final
class PrefixMap:
    def __init__(self) -> None: ...
    @staticmethod
    def from_mmdb(
        path: _Path | Sequence[_Path],
        key: Literal["grid", "country", "subdivision", "city", "record"] = "grid",
        overrides: Iterable[tuple[_Network, str]] = (),
    ) -> PrefixMap: ...
    @staticmethod
    def from_prefixes(prefixes: Iterable[tuple[_Network, int]]) -> PrefixMap: ...
    @staticmethod
    def from_ranges(
        v4_starts: ArrayLike,
        v4_groups: ArrayLike,
        v6_starts: ArrayLike,
        v6_groups: ArrayLike,
        keys: Iterable[str],
        lat: ArrayLike,
        lon: ArrayLike,
        overrides: Iterable[tuple[_Network, str]] = (),
        precision: ArrayLike | None = None,
    ) -> PrefixMap: ...
    @property
    def groups(self) -> int: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def countries(self) -> tuple[str, ...]: ...
    @property
    def locations(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    @property
    def precision(self) -> NDArray[np.uint8]: ...
    @property
    def nbytes(self) -> int: ...
    def lookup(self, address: _Client, /) -> int: ...
    def match(self, address: _Client, /) -> tuple[int, int]: ...
    def lookup_many(self, addresses: NDArray[Any], out: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]: ...
