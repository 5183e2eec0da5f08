"""Coverage-guided fuzzing of the DNS paths: `python -m fuzz.target NAME FOLDER SECONDS [FILE]`, ended after so many seconds of CPU time.

NAME        wire: the compiled path; both: it and the Responder, which must give the same bytes, and the Responder over TCP;
            planted: the compiled path with a promise that does not hold; short: the compiled path, without the bytes behind a packet's
            end that it may read
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
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lbcore.dns.query", "lbcore.dns.responder", "lbcore.dns.response", "lbcore.dns.lookup"]):
    from fuzz import judge, seeds, worlds

from lbcore.dns._pocket import Pocket

MOST_BYTES = 4100
STUCK, SLOW = 20, 1.0  # seconds for one input: by the clock, and of CPU time
BURST = 7  # of one query, where the rate is limited


def compiled(case: worlds.Case, *, limited: bool = False) -> bytes | None:
    """Give the compiled path's answer, b"" = none, None = the Responder's."""
    return POCKETS[case.world].answer(case.packet, case.client, worlds.NOW, worlds.WORLDS[case.world].now_ms, limited)


def fuzz_wire(data: bytes) -> None:
    """Promise what `judge` does, and that limited worlds send what their rate allows."""
    case = worlds.decode(data)
    if answer := compiled(case):
        judge.check(case.packet, answer)
    if answer is not None:
        burst(case, lambda: compiled(case, limited=True), answer)


def fuzz_both(data: bytes) -> None:
    """Promise that what the compiled path says is what the Responder says, and whatever `judge` does of both."""
    case = worlds.decode(data)
    world = worlds.WORLDS[case.world]
    fast, over_tcp = compiled(case), world.responder.answer(case.packet, case.client, tcp=True)
    assert (over_tcp is None) == judge.must_be_dropped(case.packet), "answered or not"
    if over_tcp is not None:
        judge.check(case.packet, over_tcp, tcp=True)
    slow = world.unlimited.answer(case.packet, case.client)
    if slow is not None:
        judge.check(case.packet, slow)
    assert fast is None or fast == (slow or b""), f"{fast.hex()} is not {slow and slow.hex()}"
    if case.tcp:
        burst(case, lambda: world.responder.answer(case.packet, case.client) or b"", slow or b"")


def burst(case: worlds.Case, ask: Callable[[], bytes | None], expected: bytes) -> None:
    """Ask again and again at one moment: where the rate is limited, so many answers, then slips and silence in turn."""
    world = worlds.WORLDS[case.world]
    if not world.rate:
        return
    world.now_ms += 10_000  # every input finds full buckets
    got = [ask() for _ in range(BURST)]
    if got == [expected] * BURST:
        as_slips = world.slip == 1 and expected and expected[2] & 2  # too long for its query, so cut anyway
        assert not expected or judge.shows_cookie(case.packet) or as_slips, "unlimited"
        return
    assert got[: world.rate] == [expected] * world.rate, "limited too early"
    for number, answer in enumerate(got[world.rate :], 1):
        assert bool(answer) == (number % world.slip == 0), "not every slip-th"
        if answer:
            judge.check(case.packet, answer)
            judge.check_slip(case.packet, answer)


def fuzz_planted(data: bytes) -> None:
    """Promise that no answer has the DO bit; no seed asks for it."""
    case = worlds.decode(data)
    answer = compiled(case)
    assert not answer or seeds.opt(flags=seeds.DO)[:-2] not in answer, "planted"


def main(name: str, folder: str, seconds: str, *files: str) -> None:
    target = {"wire": fuzz_wire, "both": fuzz_both, "planted": fuzz_planted, "short": fuzz_wire}[name]
    if name == "short":
        POCKETS[:] = [Pocket(world.wire, 0) for world in worlds.WORLDS]
    end = time.process_time() + float(seconds)
    runs = itertools.count(1)

    def one(data: bytes) -> None:
        began = time.process_time()
        try:
            target(data)
            assert time.process_time() < began + SLOW, "slow"
        except Exception:  # saved here: the interpreter ends so slowly under sanitizers that libFuzzer's alarm kills it first
            traceback.print_exc()
            Path(folder, f"finding-{zlib.crc32(data):08x}").write_bytes(data)
            sys.stderr.flush()
            os._exit(1)
        if not next(runs) % 256 and time.process_time() > end:
            print(f"quiet after {next(runs) - 1} inputs, {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s", flush=True)
            os._exit(0)

    options = [f"-artifact_prefix={folder}/finding-", f"-timeout={STUCK}", f"-max_len={MOST_BYTES}", "-len_control=20"]
    if not files:
        corpus = Path(folder) / "corpus"
        seeds.write(corpus, Path(folder) / "dictionary", plain=name == "planted")
        options += [f"-dict={folder}/dictionary", "-use_value_profile=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options, *files], one)
    atheris.Fuzz()


POCKETS = [Pocket(world.wire) for world in worlds.WORLDS]

if __name__ == "__main__":
    main(*sys.argv[1:])
