"""A plain model of `LatencyTable`: every rule of the core, applied to every group at every tick.

No dirty marks, no bounds, no bit words, no concurrency: what `_fast.pyx` gets by marking and bounding, this gets by
doing all the work each time. Arithmetic is float32 in the order the design states it, `exp` is libm's in double, so a
correct core agrees bit for bit. Arrays are groups x regions.

Readings taken where the rules leave room: a region starts a ramp when its bit was set since the last tick (even if only
for a moment it had been cleared) and an earlier tick found it eligible; a ramp looked at from before its start admits
nobody or the 10 % and less that the formula gives; an excluded path is no first home while a sound one is eligible, ramp or
not (as it is when a home is left); `last_tick` follows a clock that goes backwards; restored homes are
unforced, and stay as they were when their region is skipped or not configured here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

F = np.float32
NONE = np.uint64(1 << 40)  # above every key
SIGN = np.uint64(1 << 31)
CELL = ("x", "P", "R", "mu0", "P0", "sp", "sm", "base", "w", "mean", "n")


def stamp(now: float) -> int:
    """Give the 1/64 s stamp of `now`, never 0."""
    return (math.floor(now * 64) & 0xFFFFFFFF) or 1


def signed(stamps: Any) -> Any:
    """Give differences of stamps as int32, so that they survive the wrap."""
    return (np.asarray(stamps, np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.int32).astype(np.int64)


def hashes(groups: int) -> Any:
    """Give each group's stable position in 0..65535."""
    return (np.arange(groups, dtype=np.uint64) * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)) >> np.uint64(16)


def best(keys: Any, mask: Any) -> Any:
    """Give per row the column of the lowest key within `mask`, the first of equals, -1 where the mask is empty."""
    masked = np.where(mask, keys, NONE)
    return np.where(masked.min(1) < NONE, masked.argmin(1), -1)


def check_number(value: float, *, positive: bool = False) -> Any:
    number = float(F(value)) if abs(value) < 3e38 else float("inf")
    if not math.isfinite(number) or value < 0 or (positive and not value > 0):
        raise ValueError(value)
    return F(value)


def check_now(now: float) -> None:
    if not math.isfinite(now):
        raise ValueError(now)


class ModelTable:
    """Model of `LatencyTable(groups, regions)`; `snapshot` gives a dict instead of bytes."""

    def __init__(
        self, groups: int, regions: int, *, estimator: str = "prior_ewma", tau: float = 60.0, region_capacity: int | None = None
    ) -> None:
        capacity = region_capacity or 2 * regions
        self.groups, self.regions, self.region_capacity = groups, regions, capacity
        self.ewma, self.tau = estimator == "ewma", tau
        for name in CELL:
            setattr(self, name, np.zeros((groups, capacity), F))
        self.t, self.sign = np.zeros((groups, capacity), np.int64), np.zeros((groups, capacity), bool)
        self.homes, self.former = np.full((2, groups), -1)
        self.forced, self.pending = np.zeros(groups, bool), np.zeros(groups, np.int64)
        self.configured, self.enabled, self.synced, self.draining, self.ever, self.gained = np.zeros((6, capacity), bool)
        self.tiers, self.generations = np.zeros((2, capacity), np.int64)
        self.answered, self.penalty = np.zeros(capacity), np.zeros(capacity, F)
        self.limit, self.ramp = np.full(capacity, 65536), np.full(capacity, np.nan)
        self.hash = hashes(groups)[:, None]
        self.last_tick: float | None = None
        self.credit, self.cursor = 0.0, 0
        for region in range(regions):
            self._fresh(region)

    # -- regions ------------------------------------------------------------------------------------------------

    def _fresh(self, r: int) -> None:
        for name in CELL:
            getattr(self, name)[:, r] = 0
        self.t[:, r] = self.sign[:, r] = 0
        self.tiers[r] = self.answered[r] = self.penalty[r] = 0
        self.limit[r], self.ramp[r], self.draining[r], self.ever[r] = 65536, np.nan, False, False
        self.configured[r] = self.enabled[r] = self.synced[r] = self.gained[r] = True
        self.seed(0, r, 80.0, 28.0)
        for name in CELL:
            getattr(self, name)[:, r] = getattr(self, name)[0, r]

    def add_region(self) -> int:
        free = [r for r in range(self.region_capacity) if not self.configured[r]]
        if not free:
            raise OverflowError
        self.regions = max(self.regions, free[0] + 1)
        self._fresh(free[0])
        return free[0]

    def remove_region(self, r: int) -> None:
        self._check(0, r)
        self.configured[r] = False
        self.homes[self.homes == r] = self.former[self.former == r] = -1
        self.generations[r] += 1

    def _check(self, g: int, r: int) -> None:
        if not (0 <= g < self.groups and 0 <= r < self.regions and self.configured[r]):
            raise IndexError((g, r))

    def _usable(self) -> Any:
        return self.configured & self.enabled & self.synced & ~self.draining

    def _eligible(self) -> Any:
        return self._usable() & (self.tiers == 0)

    def eligible(self) -> Any:
        return self._eligible()[: self.regions]

    @property
    def fail_open(self) -> bool:
        return not self._eligible().any()

    def _set(self, flags: Any, r: int, value: object) -> None:
        self._check(0, r)
        before = self._eligible()[r]
        flags[r] = value
        self.gained[r] |= self._eligible()[r] and not before

    def set_enabled(self, r: int, on: bool) -> None:
        self._set(self.enabled, r, on)

    def set_synced(self, r: int, on: bool) -> None:
        self._set(self.synced, r, on)

    def set_draining(self, r: int, on: bool) -> None:
        self._set(self.draining, r, on)

    def set_tier(self, r: int, tier: int, now: float) -> None:
        self._check(0, r)
        check_now(now)
        if not 0 <= tier <= 3:
            raise ValueError(tier)
        if tier == 3 and self.tiers[r] < 3:
            self.answered[r] = now
        self._set(self.tiers, r, tier)

    def set_penalty(self, r: int, ms: float) -> None:
        self._check(0, r)
        self.penalty[r] = check_number(ms)

    def set_share(self, r: int, share: float) -> None:
        self._check(0, r)
        if not 0 <= share <= 1:
            raise ValueError(share)
        self.limit[r] = int(share * 65536)

    def exclude(self, g: int, r: int, on: bool) -> None:
        self._check(g, r)
        self.sign[g, r] = on

    # -- cells --------------------------------------------------------------------------------------------------

    def seed(self, g: int, r: int, ms: float, sd: float) -> None:
        self._check(g, r)
        prior, width = check_number(ms), check_number(sd, positive=True)
        variance = max(width * width, np.finfo(F).tiny)
        self.mu0[g, r], self.P0[g, r] = prior, variance
        if self.t[g, r]:
            self.P[g, r] = self.P0[g, r] if self.ewma else min(self.P[g, r], self.P0[g, r])
            return
        tenth = F(0.1) * prior
        self.x[g, r], self.P[g, r], self.R[g, r] = prior, variance, max(F(1), tenth * tenth)
        self.sp[g, r] = self.sm[g, r] = 0

    def _age(self, cells: tuple[Any, Any], now: float) -> None:
        """Age the measured ones of `cells` (row and column indices) to `now`."""
        d = signed(stamp(now) - self.t[cells])
        due = (self.t[cells] != 0) & (d > 0)
        rows, columns = cells[0][due], cells[1][due]
        cells, dts = (rows, columns), d[due] / 64.0
        if not self.ewma:
            wider = np.array([1 - math.exp(-dt / 900) for dt in dts], F)
            nearer = np.array([1 - math.exp(-dt / 21600) for dt in dts], F)
            self.P[cells] = self.P[cells] + (self.P0[cells] - self.P[cells]) * wider
            self.x[cells] = self.x[cells] + (self.mu0[cells] - self.x[cells]) * nearer
            self.t[cells] = stamp(now)

    def observe(self, g: int, r: int, ms: float, now: float) -> None:
        self._check(g, r)
        y = check_number(ms)
        check_now(now)
        if self.ewma:
            return self._average(g, r, y, stamp(now))
        self._age((np.array([g]), np.array([r])), now)
        self.t[g, r] = self.t[g, r] or stamp(now)
        self._innovate(g, r, y)

    def _innovate(self, g: int, r: int, y: Any) -> None:
        x, P, R, sp, sm = (getattr(self, name)[g, r] for name in ("x", "P", "R", "sp", "sm"))
        v = P + R
        sd, e = np.sqrt(v), y - x
        u = min(max(e / sd, F(-3)), F(3))
        sp, sm = max(F(0), sp + u - F(0.75)), max(F(0), sm - u - F(0.75))
        if sp > 5 or sm > 5:
            P, sp, sm = max(self.P0[g, r], e * e), F(0), F(0)
            v = P + R
        else:
            e = u * sd
        k = max(P / v, F(0.02))
        w = min(e * e, F(9) * R)
        new = (x + k * e, P * (F(1) - k), max(F(1), R + F(0.05) * (w - R)), sp, sm)
        for name, value in zip(("x", "P", "R", "sp", "sm"), new, strict=True):
            getattr(self, name)[g, r] = value

    def _average(self, g: int, r: int, y: Any, s: int) -> None:
        """Exponential average of instants: samples of one stamp are averaged plainly first."""
        d = int(signed(s - self.t[g, r]))
        if self.t[g, r] == 0 or d > 0:
            self.base[g, r] = self.x[g, r] if self.t[g, r] else self.mu0[g, r]
            self.w[g, r] = F(math.exp(-(d / 64.0) / self.tau)) if self.t[g, r] else F(0)
            self.mean[g, r], self.n[g, r], self.t[g, r] = y, 1, s
        else:
            self.n[g, r] += F(1)
            self.mean[g, r] += (y - self.mean[g, r]) / self.n[g, r]
        w = self.w[g, r]
        self.x[g, r] = self.base[g, r] * w + self.mean[g, r] * (F(1) - w)

    def estimates(self, g: int) -> Any:
        return self.x[g, : self.regions]

    def deviations(self, g: int) -> Any:
        return np.sqrt(self.P[g, : self.regions])

    # -- choice -------------------------------------------------------------------------------------------------

    def _score(self) -> Any:
        return self.x + self.penalty

    def _keys(self) -> Any:
        return self._score().view(np.uint32).astype(np.uint64) | np.where(self.sign, SIGN, np.uint64(0))

    def _open(self, mask: Any) -> Any:
        """Give the regions that are taken when none is eligible: the lowest tier, in tier 3 those that answered last."""
        usable = self._usable() & mask
        if not usable.any():
            return usable
        low = self.tiers[usable].min()
        usable &= self.tiers == low
        return usable & (self.answered == self.answered[usable].max()) if low == 3 else usable

    def picks(self, mask: Any = True) -> Any:
        """Give the pick of every group."""
        eligible = self._eligible() & mask
        choice = best(self._keys(), eligible if eligible.any() else self._open(mask))
        return np.where((self.homes >= 0) & eligible[self.homes], self.homes, choice)

    def pick(self, g: int) -> int:
        return int(self.picks()[g])

    def pick_in(self, g: int, words: Sequence[int]) -> int:
        mask = [r // 64 < len(words) and bool(int(words[r // 64]) >> r % 64 & 1) for r in range(self.region_capacity)]
        return int(self.picks(np.array(mask))[g])

    def rank(self, g: int) -> list[int]:
        pick, keys, eligible = self.pick(g), self._keys()[g], self._eligible()

        def order(r: int) -> tuple[Any, ...]:
            tier = int(self.tiers[r])
            return r != pick, not eligible[r], tier, -self.answered[r] if tier == 3 else 0, keys[r], r

        return sorted(map(int, np.flatnonzero(self._usable())), key=order)

    # -- time ---------------------------------------------------------------------------------------------------

    def tick(self, now: float, budget: int | None = None) -> int:
        check_now(now)
        self._ramps(now)
        self._age_some(now)
        self._evaluate(now)
        return 0

    def _ramps(self, now: float) -> None:
        eligible = self._eligible()
        self.ramp[eligible & self.gained & self.ever] = now
        self.ramp[~eligible] = np.nan
        self.ramp[self.ramp > now] = now  # the clock went back: the ramp begins again
        self.ever |= eligible
        self.gained[:] = False

    def _age_some(self, now: float) -> None:
        idle = 0.0 if self.last_tick is None else min(max(now - self.last_tick, 0.0), 60.0)
        self.last_tick = now
        self.credit += self.groups * idle / 60
        due = min(math.floor(self.credit), self.groups)
        self.credit -= due
        rows = (self.cursor + np.arange(due)) % self.groups
        self.cursor = (self.cursor + due) % self.groups
        columns = np.arange(self.region_capacity)
        self._age((np.repeat(rows, len(columns)), np.tile(columns, due)), now)

    def _allowed(self, now: float) -> Any:
        share = [65536 if math.isnan(start) else int(min(1.0, 0.1 + 0.9 * (now - start) / 30) * 65536) for start in self.ramp]
        return self.hash.astype(np.int64) < np.array(share)

    def _evaluate(self, now: float) -> None:
        eligible = self._eligible()
        if not eligible.any():
            self.pending[:] = 0
            return
        rows, keys, allowed = np.arange(self.groups), self._keys(), self._allowed(now)
        cand = eligible & (self.hash.astype(np.int64) < self.limit)
        cand = np.where(cand.any(1)[:, None], cand, eligible)
        first, admitted = best(keys, cand), best(keys, cand & allowed)
        entry = np.where(admitted >= 0, admitted, first)
        entry = np.where(self.sign[rows, entry] & ~self.sign[rows, first], first, entry)
        back = self._back(first, cand, allowed)
        vacant = ~back & (self.homes < 0)
        broken = self.sign[rows, self.homes] & ~self.sign[rows, first]
        away = ~back & ~vacant & (~cand[rows, self.homes] | broken)

        score = self._score()
        mine, gap = score[rows, self.homes], score[rows, self.homes] - score[rows, first]
        thr = np.maximum(F(3), F(0.05) * mine)
        if not self.ewma:
            sigma = np.sqrt(self.P[rows, self.homes] + self.P[rows, first])
            thr = np.where(self.forced, thr, np.maximum(thr, sigma))
        better = ~back & ~vacant & ~away & (first != self.homes) & (gap > thr)
        self.pending = np.where(better, np.where(self.pending == 0, stamp(now), self.pending), 0)
        ripe = better & ((gap > F(3) * thr) | (signed(stamp(now) - self.pending) >= 640))
        switch = ripe & allowed[rows, first]
        self._detour(ripe & ~switch, keys, cand & allowed)

        self.pending[switch] = 0
        lost = np.where(entry == self.former, -1, np.where(self.former >= 0, self.former, self.homes))
        self.former = np.select([vacant, away, switch], [-1, lost, -1], self.former)
        self.homes = np.select([vacant, away, switch], [entry, entry, first], self.homes)
        self.forced = np.select([vacant, away, switch], [False, True, False], self.forced)

    def _detour(self, ripe: Any, keys: Any, others: Any) -> None:
        """Send those whose best region is still ramping, and not for them yet, to the best of the others that is worth a move."""
        rows, score = np.arange(self.groups), self._score()
        others = others.copy()
        others[rows[self.homes >= 0], self.homes[self.homes >= 0]] = False
        there = best(keys, others)
        mine = score[rows, self.homes]
        thr = np.maximum(F(3), F(0.05) * mine)
        if not self.ewma:
            thr = np.where(self.forced, thr, np.maximum(thr, np.sqrt(self.P[rows, self.homes] + self.P[rows, there])))
        go = ripe & (there >= 0) & (keys[rows, there] < keys[rows, self.homes]) & (mine - score[rows, there] > thr)
        self.homes = np.where(go, there, self.homes)
        self.pending = np.where(go, 0, self.pending)

    def _back(self, first: Any, cand: Any, allowed: Any) -> Any:
        """Send those whose lost home may have them again back, where it is about as good as the best; give their mask."""
        rows, score = np.arange(self.groups), self._score()
        f = self.former
        may = (f >= 0) & cand[rows, f] & ~self.sign[rows, f] & allowed[rows, f]
        theirs = score[rows, f]
        back = may & (theirs - score[rows, first] <= np.maximum(F(3), F(0.05) * theirs))
        self.homes, self.forced = np.where(back, f, self.homes), self.forced & ~back
        self.former = np.where(may, -1, f)
        return back

    # -- memory -------------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> dict[str, Any]:
        measured = [(int(g), int(r)) for g, r in zip(*np.nonzero(self.t[:, : self.regions]), strict=True)]
        ages = np.maximum(signed(stamp(now) - self.t), 0)
        cells = {(g, r): (int(ages[g, r]), [getattr(self, name)[g, r] for name in CELL]) for g, r in measured}
        belonging = {"homes": self.homes.copy(), "former": self.former.copy(), "forced": self.forced.copy()}
        return {"shape": (self.groups, self.regions), "cells": cells} | belonging

    def restore(self, data: dict[str, Any], now: float, age: float, groups: Any = None, regions: Any = None) -> None:
        rows = list(range(data["shape"][0])) if groups is None else [int(g) for g in groups]
        columns = list(range(data["shape"][1])) if regions is None else [int(r) for r in regions]
        for (g, r), (units, values) in data["cells"].items():
            row, column = rows[g], columns[r]
            if row != 0xFFFFFFFF and column != 0xFFFF and self.configured[column]:
                self._restore_cell(row, column, (stamp(now - age) - units) & 0xFFFFFFFF or 1, values, now)
        for g, home in enumerate(data["homes"]):
            if rows[g] != 0xFFFFFFFF and home >= 0 and columns[home] != 0xFFFF and self.configured[columns[home]]:
                former = columns[data["former"][g]] if data["former"][g] >= 0 else 0xFFFF
                former = former if former != 0xFFFF and self.configured[former] else -1
                belonging = columns[home], former, data["forced"][g], 0
                self.homes[rows[g]], self.former[rows[g]], self.forced[rows[g]], self.pending[rows[g]] = belonging

    def _restore_cell(self, g: int, r: int, t: int, values: list[Any], now: float) -> None:
        prior = self.mu0[g, r], self.P0[g, r]
        for name, value in zip(CELL, values, strict=True):
            getattr(self, name)[g, r] = value
        self.mu0[g, r], self.P0[g, r] = prior
        self.P[g, r], self.t[g, r] = prior[1] if self.ewma else min(self.P[g, r], prior[1]), t
        self._age((np.array([g]), np.array([r])), now)
