from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "read"]

_Ranges: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]
_Records: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]

KINDS: tuple[str, ...]

def read(path: str | bytes | PathLike[str] | PathLike[bytes], key: str) -> tuple[_Ranges, _Ranges, list[str], _Records]: ...
