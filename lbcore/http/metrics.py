"""What HTTP workers count, in memory that they share with the supervisor, and how Prometheus reads it.

A worker writes its own block and nobody else does: no locks, nothing is lost with a worker that is killed. Blocks of workers that are
gone are kept as a sum, so counters never go back.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbcore.errors import CAUSES

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from lbcore.http.call import Call

__all__ = ["BUCKETS", "COUNTERS", "GAUGES", "MOST_LABELS", "OTHERS", "Book", "Meter", "metrics_of"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds, of the whole call
MOST_LABELS = 512  # regions or APIs that are told apart, the two of below among them
NOBODY, OTHERS = "", "(others)"  # answered here, before anybody was picked; beyond MOST_LABELS
COUNTERS = (  # copied from the engine and its handler every second
    "refused", "exceptions", "broken_responses", "stalled_clients", "bad_proxy_headers", "retries", "moved", "budget_exhausted",
    *(f"failed_{cause}" for cause in (*CAUSES, "here")), "log_written", "log_dropped", "overloaded",
)  # fmt: skip
GAUGES = ("connections", "relays", "upstream_open", "upstream_idle", "budget", "capacity_avg", "capacity_max", "advice")
ENDS = (*CAUSES, "overload")

_BEGUN, _LOST, _COPIES = 0, 1, 2
_GAUGES = _COPIES + len(COUNTERS)
_HEAD = 64
_ABORTED, _STATUS, _FAILED = 0, 0, 6  # of a label: statuses 1xx..5xx are words 1..5
_BUCKET = _FAILED + len(ENDS)
_SECONDS = _BUCKET + len(BUCKETS) + 1  # a sum, microseconds
_WIDTH = 32
_WORDS = _HEAD + MOST_LABELS * _WIDTH
_ENDED = range(_BUCKET)
_CAUSE = {cause: _FAILED + number for number, cause in enumerate(ENDS)}
assert _GAUGES + len(GAUGES) <= _HEAD and _SECONDS < _WIDTH


class Meter:
    """One worker's counters, in a block of memory.

    fd: of the block (`Meter.new`), None = memory of its own; clock: of the calls, monotonic seconds. `label` says under what a name is
    counted; another name counts as OTHERS. Every call that begins ends once: begun = answered + failed + aborted + under way.
    """

    def __init__(self, fd: int | None = None, clock: Any = time.monotonic) -> None:
        self._memory = mmap.mmap(-1 if fd is None else fd, _WORDS * 8)
        self.words = memoryview(self._memory).cast("Q")
        self._clock = clock
        self._labels: dict[str, int] = {NOBODY: _HEAD}

    @staticmethod
    def new() -> int:
        """Make a block and give its file descriptor; the memory is gone when nobody has it open."""
        fd = os.memfd_create("lbcore-meter")
        os.ftruncate(fd, _WORDS * 8)
        return fd

    def label(self, names: Sequence[str]) -> None:
        """Take the names that are counted apart: each stays at its place for good."""
        self._labels = {name: _HEAD + place * _WIDTH for place, name in enumerate((NOBODY, OTHERS, *names)) if place < MOST_LABELS}

    def begun(self) -> None:
        """Count a call that begins."""
        self.words[_BEGUN] += 1

    def ended(self, call: Call, name: str) -> None:
        """Count the end of a call, under a region's or API's name."""
        words, at = self.words, self._labels.get(name)
        if at is None:
            at = _HEAD + _WIDTH
        if call.aborted:
            words[at] += 1
            return
        if call.cause is None and not call.cut:
            words[at + call.status // 100] += 1
        else:
            words[at + _CAUSE.get(call.cause or "overload", _BUCKET - 1)] += 1
        took = self._clock() - call.begun_at
        words[at + _BUCKET + bisect_left(BUCKETS, took)] += 1
        words[at + _SECONDS] += int(took * 1e6)

    def copy(self, counters: Mapping[str, int], gauges: Mapping[str, float]) -> None:
        """Take what others count; gauges are kept to thousandths."""
        for place, name in enumerate(COUNTERS, _COPIES):
            self.words[place] = counters.get(name, 0)
        for place, name in enumerate(GAUGES, _GAUGES):
            self.words[place] = int(max(0.0, gauges.get(name, 0.0)) * 1000)

    def close(self) -> None:
        """Give the memory back."""
        self.words.release()
        self._memory.close()


class Book:
    """All blocks of a role: the workers' that live, and the sum of those that are gone.

    label: what the names are, "region" or "api"
    """

    def __init__(self, label: str) -> None:
        self.label, self.names = label, list[str]()
        self._living: dict[object, Meter] = {}
        self._gone = [0] * _WORDS
        self._lock = threading.Lock()  # a page is made beside the event loop

    def name(self, names: Iterable[str]) -> list[str]:
        """Give places to names that have none yet; gives all names, which is what workers `label` with."""
        self.names += [name for name in dict.fromkeys(names) if name not in self.names][: MOST_LABELS - 2 - len(self.names)]
        return self.names

    def open(self, worker: object, fd: int) -> None:
        """Take a worker's block."""
        with self._lock:
            self._living[worker] = Meter(fd)

    def settle(self, worker: object) -> None:
        """Keep what a worker counted that is gone; what it had begun and not ended is lost."""
        with self._lock:
            meter = self._living.pop(worker, None)
            if meter is None:
                return
            words = [*meter.words]
            words[_LOST] += words[_BEGUN] - words[_LOST] - sum(_of_labels(words, _ENDED))
            words[_GAUGES:_HEAD] = [0] * (_HEAD - _GAUGES)
            self._gone = [*map(int.__add__, self._gone, words)]
            meter.close()

    def words(self) -> list[int]:
        """Give the sum of all blocks."""
        with self._lock:
            total = self._gone
            for meter in self._living.values():
                words = [*meter.words]
                words[_BEGUN] = meter.words[_BEGUN]  # last: what ended meanwhile had begun
                total = [*map(int.__add__, total, words)]
            return total

    def count(self, name: str) -> int:
        """Give the sum of one of COUNTERS."""
        return self.words()[_COPIES + COUNTERS.index(name)]

    def gauge(self, name: str) -> list[float]:
        """Give a gauge's value for each living worker."""
        place = _GAUGES + GAUGES.index(name)
        with self._lock:
            return [meter.words[place] / 1000 for meter in self._living.values()]

    def by_name(self) -> dict[str, tuple[int, int]]:
        """Give how many calls ended, and how many of them failed, under every name; those that clients left are no calls."""
        words = self.words()
        at = {name: _HEAD + place * _WIDTH for place, name in enumerate(self.names, 2)}
        failed = {name: sum(words[here + _FAILED : here + _BUCKET]) for name, here in at.items()}
        return {name: (sum(words[here + 1 : here + _FAILED]) + failed[name], failed[name]) for name, here in at.items()}

    def totals(self, words: Sequence[int] | None = None) -> dict[str, int]:
        """Give begun, answered, failed, aborted, lost, and what is under way: begun = all the others. words: None = those of now."""
        words = self.words() if words is None else words
        ends = {"answered": range(1, 6), "failed": range(_FAILED, _BUCKET), "aborted": range(1)}
        found = {"begun": words[_BEGUN], "lost": words[_LOST]} | {end: sum(_of_labels(words, places)) for end, places in ends.items()}
        return found | {"under_way": found["begun"] - sum(found[end] for end in ("lost", *ends))}


def _of_labels(words: Sequence[int], places: Iterable[int]) -> Iterator[int]:
    """Give the words at some places of every label."""
    wanted = [*places]
    return (words[at + place] for at in range(_HEAD, _WORDS, _WIDTH) for place in wanted)


def metrics_of(prefix: str, book: Book) -> Iterator[Metric]:
    """Give a role's metrics, names beginning with `prefix`. Series are bounded: statuses, causes, and names that the operator gave."""
    from lbcore.metrics import counter, gauge

    words = book.words()
    totals = book.totals(words)
    named = {name: _HEAD + place * _WIDTH for place, name in enumerate((NOBODY, OTHERS, *book.names))}
    yield counter(f"{prefix}_begun", "Calls that began", (), {(): totals["begun"]})
    answered = {(n, f"{status}xx"): words[at + status] for n, at in named.items() for status in range(1, 6)}
    yield counter(f"{prefix}_answered", "Calls with a whole answer, by status", (book.label, "status"), _seen(answered))
    failed = {(n, cause): words[at + place] for n, at in named.items() for cause, place in _CAUSE.items()}
    yield counter(f"{prefix}_failed", "Calls that failed in the end, by cause", (book.label, "cause"), _seen(failed))
    aborted = {(n,): words[at] for n, at in named.items()}
    yield counter(f"{prefix}_aborted", "Calls that the client left", (book.label,), _seen(aborted))
    yield counter(f"{prefix}_lost", "Calls lost with a worker that died", (), {(): totals["lost"]})
    yield gauge(f"{prefix}_under_way", "Calls under way", (), {(): totals["under_way"]})
    yield _seconds(prefix, book.label, named, words)
    yield from _copied(prefix, words)
    yield from _gauges(prefix, book)


def _seen(counts: Mapping[Any, int]) -> dict[Any, int]:
    return {labels: count for labels, count in counts.items() if count}


def _seconds(prefix: str, label: str, named: Mapping[str, int], words: Sequence[int]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"{prefix}_seconds", "Seconds from a call's head to its end", labels=[label])
    for name, at in named.items():
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), words[at + _BUCKET : at + _SECONDS], strict=True):
            total += count
            buckets.append((bound, float(total)))
        if total:
            family.add_metric([name], buckets, words[at + _SECONDS] / 1e6)
    return family


def _copied(prefix: str, words: Sequence[int]) -> Iterator[Metric]:
    from lbcore.metrics import counter

    counts = dict(zip(COUNTERS, words[_COPIES:], strict=False))
    for name, text in _TEXTS.items():
        yield counter(f"{prefix}_{name}", text, (), {(): counts[name]})
    causes = {(cause,): counts[f"failed_{cause}"] for cause in (*CAUSES, "here")}
    yield counter(f"{prefix}_attempts_failed", "Attempts that failed, retried or not, by cause", ("cause",), causes)
    lines = {("written",): counts["log_written"], ("dropped",): counts["log_dropped"]}
    yield counter(f"{prefix}_access_log_lines", "Lines of the access log, by what became of them", ("result",), lines)


_TEXTS = {
    "refused": "Requests that were malformed or too long", "retries": "Attempts after the first",
    "moved": "Calls taken from a region that went down", "budget_exhausted": "Retries that the budget did not allow",
    "broken_responses": "Responses that were no HTTP", "stalled_clients": "Clients that took nothing of their response for too long",
    "bad_proxy_headers": "Connections without a PROXY header", "exceptions": "Errors in lbcore or its plug-ins",
}  # fmt: skip


def _gauges(prefix: str, book: Book) -> Iterator[Metric]:
    from lbcore.metrics import gauge

    sums = {name: sum(book.gauge(name)) for name in GAUGES}
    yield gauge(f"{prefix}_connections", "Clients' connections now, upgraded ones apart", (), {(): sums["connections"]})
    yield gauge(f"{prefix}_relays", "Upgraded connections now", (), {(): sums["relays"]})
    upstream = {("open",): sums["upstream_open"], ("idle",): sums["upstream_idle"]}
    yield gauge(f"{prefix}_upstream_connections", "Connections to gateways or backends now, idle ones among the open", ("state",), upstream)
    yield gauge(f"{prefix}_retry_budget", "Retries that may be made now, over all workers", (), {(): sums["budget"]})
