"""SuccessRate: a region that does clearly worse than the others in the same interval is ejected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median, pstdev

from lbcore.detect.ejection import Backoff, Ejection
from lbcore.detect.protocol import Verdict, check_region

__all__ = ["SuccessRate", "mean_threshold", "peers_threshold"]

_MAD_TO_SIGMA = 1.4826  # the median absolute deviation of a Gaussian is sigma / 1.4826
_FEW = 5  # with n hosts none is further than sqrt(n - 1) deviations off: below 5, 1.9 is nearly or quite out of reach


def mean_threshold(rates: Sequence[float], factor: float = 1.9) -> float:
    """Give mean - factor * population standard deviation of all rates (any unit, at least one).

    {50, 100, 100, 100, 100} -> 52.
    Source: Envoy outlier detection, success rate; its integer factor of 1900 is thousandths.
    """
    return fmean(rates) - factor * pstdev(rates)


def peers_threshold(peers: Sequence[float], factor: float = 1.9) -> float:
    """Give median - factor * 1.4826 * MAD of the *other* regions' rates (at least one): what a region is held against among few.

    Source: leave-one-out with robust moments (own design, reference ALGORITHMS §3.6 no. 2); 1.4826 as in Hampel's identifier.
    """
    centre = median(peers)
    return centre - factor * _MAD_TO_SIGMA * median(abs(rate - centre) for rate in peers)


class _State:
    __slots__ = ("answered", "ejection", "oks", "tries", "why")

    def __init__(self) -> None:
        self.tries = self.oks = 0
        self.ejection = Ejection()
        self.answered = False
        self.why = ""


class SuccessRate:
    """Compare regions' shares of successes at the end of every interval and eject the outliers.

    interval: seconds; volume: fewest outcomes of a region within one for it to be compared; min_hosts: fewest such regions, >= 2
    factor: standard deviations below the mean; floor: a region is left alone unless it is also so far below it (0.05 = 5 percentage
        points): where all are near 100 %, a deviation is nothing (envoyproxy/envoy#37723)
    With five regions or more the threshold is `mean_threshold`, with fewer `peers_threshold`, against the mean or the peers' median.
    Ejections last as `backoff` says; probe successes end them before.
    Raises ValueError for values out of range.
    Source: Envoy outlier detection (interval 10 s, volume 100, stdev factor 1.9, minimum hosts 5) and gRFC A50, which counts in two
    buckets that change places; the floor and two to four regions are ours.
    """

    resolution = 0.0

    def __init__(
        self, *, interval: float = 10.0, volume: int = 100, min_hosts: int = 2, factor: float = 1.9, floor: float = 0.05,
        sources: Iterable[str] = ("request",), backoff: Backoff | None = None,
    ) -> None:  # fmt: skip
        if not (0 < interval < math.inf and volume >= 1 and min_hosts >= 2 and factor >= 0 and 0 <= floor <= 1):
            got = f"{interval!r}, {volume!r}, {min_hosts!r}, {factor!r}, {floor!r}"
            raise ValueError(f"SuccessRate needs interval > 0, volume >= 1, min_hosts >= 2, factor >= 0 and a floor within 0..1, got {got}")
        self._interval, self._volume, self._min_hosts, self._factor, self._floor = interval, volume, min_hosts, factor, floor
        self._counted = frozenset(sources)
        self.sources = self._counted | {"probe"}
        self._backoff = backoff or Backoff()
        self._states: dict[int, _State] = {}
        self._began: float | None = None

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Count one outcome, or let a probe shorten an ejection."""
        state = self._states.get(region)
        if state is None:
            state = self._states[check_region(region)] = _State()
        if source == "probe":
            state.ejection.probed(ok, self._backoff, now)
        if source in self._counted:
            state.tries += 1
            if ok:
                state.oks += 1
                state.answered = True

    def successes(self, region: int, groups: Sequence[int], *, vantage: str, gen: int, now: float) -> None:
        """Count a success for each of these groups."""
        state = self._states.get(region)
        if state is None:
            state = self._states[check_region(region)] = _State()
        if "request" in self._counted and groups:
            state.tries += len(groups)
            state.oks += len(groups)
            state.answered = True

    def sweep(self, now: float) -> None:
        """End ejections that are over, and compare when an interval is."""
        for state in self._states.values():
            state.ejection.expire(now)
        if self._began is None or now - self._began >= self._interval:
            if self._began is not None:
                self._compare(now)
            self._began = now

    def verdict(self, region: int) -> Verdict | None:
        """Give DOWN while ejected, UP for a region that has answered, else None."""
        state = self._states.get(region)
        if state is None:
            return None
        if state.ejection.active:
            return Verdict.DOWN
        return Verdict.UP if state.answered else None

    def reset(self, region: int) -> None:
        """Forget the region."""
        self._states.pop(region, None)

    def cause(self, region: int) -> str:
        """Say how the region compared, e.g. "93.0 % of requests succeeded, below 95.0 %"; "" unless DOWN."""
        state = self._states.get(region)
        return state.why if state and state.ejection.active else ""

    def _compare(self, now: float) -> None:
        rates = {region: state.oks / state.tries for region, state in self._states.items() if state.tries >= self._volume}
        for state in self._states.values():
            state.tries = state.oks = 0
        if len(rates) < self._min_hosts:
            return
        for region, rate in rates.items():
            limit = self._limit(region, rates)
            state = self._states[region]
            if rate < limit and not state.ejection.active:
                state.ejection.start(self._backoff, now)
                state.why = f"{100 * rate:.1f} % of requests succeeded, below {100 * limit:.1f} %"

    def _limit(self, region: int, rates: Mapping[int, float]) -> float:
        everybody = list(rates.values())
        if len(everybody) >= _FEW:
            return min(mean_threshold(everybody, self._factor), fmean(everybody) - self._floor)
        peers = [rate for other, rate in rates.items() if other != region]
        return min(peers_threshold(peers, self._factor), median(peers) - self._floor)
