"""Learned: what one Balancer knows, for another that goes on: latencies, and which regions are down."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lbcore.balancer import Balancer
from lbcore.errors import CAUSES

__all__ = ["Learned"]

logger = logging.getLogger(__name__)

MOST_REPORTS = 20  # until a detector believes what the last one knew


@dataclass(frozen=True, slots=True)
class Learned:
    """What `Balancer.save` writes, and why each region that is down or ejected is so, by name."""

    state: bytes
    down: Mapping[str, str]

    @classmethod
    def of(cls, lb: Balancer) -> Self:
        """Take it from a Balancer."""
        out = [region for region in lb.regions if lb.status(region) in ("ejected", "down")]
        return cls(_state(lb), {region.name: lb.guard.cause(lb.slot(region)) for region in out})

    def give(self, lb: Balancer) -> None:
        """Let another Balancer go on from it; what cannot be used is learned anew."""
        try:
            with tempfile.NamedTemporaryFile() as file:
                file.write(self.state)
                file.flush()
                lb.load(file.name)
        except (OSError, ValueError) as error:
            logger.warning("what the last process learned cannot be used: %s", error)
        names = {region.name for region in lb.regions}
        for name, cause in self.down.items():
            for _ in range(MOST_REPORTS if name in names else 0):
                if lb.status(name) != "up":
                    break
                lb.report(name, False, cause=cause if cause in CAUSES else None, source="probe")


def _state(lb: Balancer) -> bytes:
    """Give what `Balancer.save` writes, nothing where no file can be: latencies are learned anew, that is no reason to change nothing."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "state")
            lb.save(file)
            return file.read_bytes()
    except OSError as error:
        logger.warning("what was learned of latencies cannot be kept: %s", error)
        return b""
