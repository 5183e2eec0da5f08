"""Coverage-guided fuzzing of the DNS paths: `python -m fuzz.target NAME FOLDER SECONDS [FILE]`, ended after so many seconds of CPU time.

NAME        wire: the compiled path under every promise of `judge`; planted: the same with a promise that does not hold;
            short: packets without the bytes behind their end that the compiled path may read
FOLDER      gets the corpus; a finding lies there as finding-*
FILE        plays one input instead
Atheris must be preloaded with its libFuzzer and AddressSanitizer: `test_dns_coverage_fuzz.py` builds and runs everything.
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lbcore.dns.query", "lbcore.dns.responder", "lbcore.dns.response"]):
    from fuzz import judge, seeds, worlds

from lbcore.dns._pocket import Pocket

MOST_BYTES = 4100
SLOWEST = 10  # seconds for one input
BURST = 7  # of one query, where the rate is limited

_milliseconds = itertools.count(1_000_000, 10_000)  # every input finds full buckets


def fuzz_wire(data: bytes) -> None:
    """Promise what `judge` does, and that limited worlds send what their rate allows."""
    case = worlds.decode(data)
    answer = POCKETS[case.world].answer(case.packet, case.client, worlds.NOW, next(_milliseconds), False)
    if answer:
        judge.check(case.packet, answer)
    if worlds.WORLDS[case.world].rate:
        burst(case, answer)


def burst(case: worlds.Case, expected: bytes | None) -> None:
    """Ask the same again and again at one moment: so many answers as the rate has, then slips and silence in turn."""
    world, now = worlds.WORLDS[case.world], next(_milliseconds)
    got = [POCKETS[case.world].answer(case.packet, case.client, worlds.NOW, now) for _ in range(BURST)]
    if not expected or got == [expected] * BURST:
        assert got == [expected] * BURST
        assert not expected or judge.shows_cookie(case.packet), "unlimited"
        return
    assert got[: world.rate] == [expected] * world.rate, "limited too early"
    for number, answer in enumerate(got[world.rate :], 1):
        assert bool(answer) == (number % world.slip == 0), "not every slip-th"
        if answer:
            judge.check_slip(case.packet, answer)
            judge.check(case.packet, answer)


def fuzz_planted(data: bytes) -> None:
    """Promise that no answer has the DO bit; no seed asks for it."""
    case = worlds.decode(data)
    answer = POCKETS[case.world].answer(case.packet, case.client, worlds.NOW, 0, False)
    assert not answer or seeds.opt(flags=seeds.DO)[:-2] not in answer, "planted"


def main(name: str, folder: str, seconds: str, *files: str) -> None:
    target = {"wire": fuzz_wire, "planted": fuzz_planted, "short": fuzz_wire}[name]
    if name == "short":
        POCKETS[:] = [Pocket(world.wire, 0) for world in worlds.WORLDS]
    end = time.process_time() + float(seconds)
    runs = itertools.count(1)

    def one(data: bytes) -> None:
        target(data)
        if not next(runs) % 256 and time.process_time() > end:
            print(f"quiet after {next(runs) - 1} inputs, {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s", flush=True)
            os._exit(0)

    options = [f"-artifact_prefix={folder}/finding-", f"-timeout={SLOWEST}", f"-max_len={MOST_BYTES}", "-len_control=20"]
    if not files:
        corpus = Path(folder) / "corpus"
        seeds.write(corpus, Path(folder) / "dictionary", plain=name == "planted")
        options += [f"-dict={folder}/dictionary", "-use_value_profile=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options, *files], one)
    atheris.Fuzz()


POCKETS = [Pocket(world.wire) for world in worlds.WORLDS]

if __name__ == "__main__":
    main(*sys.argv[1:])
