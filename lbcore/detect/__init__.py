"""JUDGE: outcomes of probes and requests go in, a verdict per region comes out.

`default_detector()` is what the Balancer uses; `Guard` wraps any detector against late reports, a sick vantage and flapping.
A third-party detector is a class (or factory) in the entry-point group `lbcore.detectors`, and `load("name", **settings)` builds it.
Nothing here reads a clock or draws unseeded random numbers; see `protocol.Detector` for the contract.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from lbcore.detect.anyof import AnyOf
from lbcore.detect.consecutive import Consecutive
from lbcore.detect.ejection import Backoff, Ejection, limit_ejections, max_ejections
from lbcore.detect.external import External
from lbcore.detect.guard import Guard
from lbcore.detect.holddown import HoldDown
from lbcore.detect.phi_accrual import PhiAccrual
from lbcore.detect.pooled import Pooled
from lbcore.detect.protocol import Detector, Verdict
from lbcore.detect.quorum import Quorum, tally
from lbcore.detect.success_rate import SuccessRate
from lbcore.detect.suspect import Suspicion, VantageSuspect
from lbcore.errors import nearest

__all__ = [
    "AnyOf",
    "Backoff",
    "Consecutive",
    "Detector",
    "Ejection",
    "External",
    "Guard",
    "HoldDown",
    "PhiAccrual",
    "Pooled",
    "Quorum",
    "SuccessRate",
    "Suspicion",
    "VantageSuspect",
    "Verdict",
    "available",
    "default_detector",
    "limit_ejections",
    "load",
    "max_ejections",
    "tally",
]

GROUP = "lbcore.detectors"


def default_detector(*, tolerated: int = 2, rise: int = 2, rng: random.Random | None = None) -> AnyOf:
    """Give the Balancer's default: `Consecutive` over probes beside `Pooled` over requests.

    tolerated, rise: of the probes; `rise` successes of probes also end an ejection
    rng: jitters ejection times; seed it differently on every node. None = no jitter
    """
    return AnyOf(Consecutive(tolerated, rise), Pooled(backoff=Backoff(rise=rise, rng=rng)))


def _quorum(*, of: str = "consecutive", share: float = 0.5, expiry: float = 600.0, **settings: Any) -> Quorum:
    return Quorum(lambda: load(of, **settings), share=share, expiry=expiry)


def _any_of(*, of: Sequence[str] = ("consecutive", "pooled"), **settings: Mapping[str, Any]) -> AnyOf:
    if strangers := settings.keys() - set(of):
        raise TypeError(f"any_of has settings for {', '.join(sorted(strangers))}, which is not among {', '.join(of)}")
    return AnyOf(*(load(name, **settings.get(name, {})) for name in of))


_STOCK: dict[str, Callable[..., Detector]] = {
    "any_of": _any_of,
    "consecutive": Consecutive,
    "default": default_detector,
    "external": External,
    "phi_accrual": PhiAccrual,
    "pooled": Pooled,
    "quorum": _quorum,
    "success_rate": SuccessRate,
}


def available() -> tuple[str, ...]:
    """Give the names that `load` knows, sorted: the stock ones and those of installed packages."""
    return tuple(sorted({*_STOCK, *entry_points(group=GROUP).names}))


def load(name: str, /, **settings: Any) -> Detector:
    """Build the detector called `name` with its settings as keyword arguments, as a configuration file has them.

    `backoff` may be a mapping. "quorum" takes `of` (a name), its own share and expiry, and that detector's settings; "any_of" takes `of`
    (names), and under each name the settings of that detector. A stock name always means the stock detector.
    Raises ValueError for an unknown name (with the nearest one) or a setting out of range,
    TypeError for a setting it does not have or a plug-in that is no Detector; an import error of a plug-in passes through.
    """
    make = _STOCK.get(name) or _plugin(name)
    if isinstance(settings.get("backoff"), Mapping):
        settings["backoff"] = Backoff(**settings["backoff"])
    detector = make(**settings)
    if not isinstance(detector, Detector):
        raise TypeError(f"detector {name!r} gave {detector!r}, which lacks one of report, sweep, verdict, reset")
    return detector


def _plugin(name: str) -> Callable[..., Detector]:
    for point in entry_points(group=GROUP, name=name):
        make: Callable[..., Detector] = point.load()
        return make
    hint = "".join(f"; did you mean {near!r}?" for near in nearest(name, available()))
    raise ValueError(f"unknown detector {name!r}, expected one of {', '.join(available())}{hint}")
