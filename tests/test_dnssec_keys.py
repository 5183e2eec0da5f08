"""Key files, the commands that make and time keys, and rollovers done as the commands say, seen by every resolver there could be.

BIND's own tools read what we write, and we what they write.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import dns.name
import dns.rrset
import pytest
from conftest import Clock
from dns.dnssectypes import Algorithm
from dns.rdatatype import DNSKEY
from typer.testing import CliRunner, Result

from lbcore.cli.app import app
from lbcore.dns import keyfiles
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import ALGORITHMS, Key, Timing
from lbcore.dns.prepare import build
from lbcore.dns.zone import Zone
from lbcore.errors import ConfigError

HOUR, DAY = 3600, 86_400
START = 1_790_000_000.0
ORIGIN = dns.name.from_text("example.com.")
Program = Callable[[str], str]


def lbcore(*args: str) -> Result:
    return CliRunner().invoke(app, ["dns", *args], env={"COLUMNS": "300"})


def given(*args: str) -> Any:
    done = lbcore(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(*args: str) -> str:
    done = lbcore(*args)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    return done.stderr


def make(directory: Path, **times: float | None) -> tuple[Key, Path]:
    timing = Timing(**{"created": START, "activate": START, **times})
    return keyfiles.create(ORIGIN, directory, algorithm=Algorithm.ECDSAP256SHA256, timing=timing)


def run(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, timeout=60).stdout


# ===== files


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("zsk", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, algorithm: Algorithm, zsk: bool) -> None:
    timing = Timing(START, START + 1, START + 2, START + 3, START + 4, START + 5, START + 6)
    key, path = keyfiles.create("Example.com", tmp_path, algorithm=algorithm, zsk=zsk, timing=timing)
    (found,) = keyfiles.load("example.com", tmp_path)
    assert (found.zone, found.dnskey, found.timing, found.sep, found.tag) == (ORIGIN, key.dnskey, timing, not zsk, key.tag)
    assert Signer(ORIGIN, [found], clock=lambda: START + 2).sign(dns.rrset.from_text(ORIGIN, 5, "IN", "A", "192.0.2.1"))
    assert path.name == f"Kexample.com.+{algorithm:03}+{key.tag:05}.key"
    modes = {one.suffix: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert modes == {".private": 0o600, ".key": 0o644}


def test_a_name_with_a_slash_stays_in_the_directory(tmp_path: Path) -> None:
    _, path = keyfiles.create("0/25.2.0.192.in-addr.arpa", tmp_path, algorithm=Algorithm.ED25519, timing=Timing(START, activate=START))
    assert path.parent == tmp_path and path.name.startswith("K0%2F25.2.0.192.in-addr.arpa.+015+")
    assert len(keyfiles.load("0/25.2.0.192.in-addr.arpa", tmp_path)) == 1


def test_another_key_never_takes_a_tag_or_a_file_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, path = make(tmp_path)
    before = path.with_suffix(".private").read_bytes()
    others = [Key.generate(ORIGIN, timing=key.timing) for _ in range(2)]
    offered = iter([key, key, others[0], key, others[1]])
    monkeypatch.setattr(Key, "generate", lambda *_, **__: next(offered))
    assert make(tmp_path)[0].tag == others[0].tag
    monkeypatch.setattr(keyfiles, "_tags", lambda *_: set())  # as if another process had written it just now
    assert make(tmp_path)[0].tag == others[1].tag
    assert path.with_suffix(".private").read_bytes() == before
    assert sorted(one.suffix for one in tmp_path.iterdir()) == [".key"] * 3 + [".private"] * 3  # no temporary file is left


def test_no_text_of_a_key_shows_its_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, path = make(tmp_path)
    private = path.with_suffix(".private")
    match = re.search(r"PrivateKey: (\S+)", private.read_text())
    assert match is not None
    shown = [repr(key), str(key), repr([key]), path.read_text(), lbcore("settime", str(path)).output]
    private.write_text(private.read_text().replace(match[0], f"{match[0]}x"))
    with pytest.raises(ConfigError, match="a secret of 32 bytes") as error, caplog.at_level(logging.DEBUG):
        keyfiles.load(ORIGIN, tmp_path)
    shown += [str(error.value), repr(error.value), caplog.text, lbcore("settime", str(path)).output]
    assert all(match[1][:10] not in text for text in shown)


def _swap(one: Path, other: Path) -> None:
    secret = other.with_suffix(".private").read_text()
    one.with_suffix(".private").write_text(secret)


def test_everything_that_is_wrong_with_keys_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [make(tmp_path)[1] for _ in range(7)]
    _, foreign = keyfiles.create("example.org", tmp_path / ".." / tmp_path.name, algorithm=Algorithm.ED25519, timing=Timing())
    wrong_zone, no_private, mismatch, bad_time, bad_order, no_record, renamed = paths
    wrong_zone.write_text(foreign.read_text())
    no_private.with_suffix(".private").unlink()
    _swap(mismatch, renamed)
    for path, line in ((bad_time, "Publish: tomorrow"), (bad_order, "Inactive: 20200101000000")):
        path.with_suffix(".private").write_text(path.with_suffix(".private").read_text() + f"{line}\n")
    no_record.write_text("; nothing\n")
    for suffix in (".key", ".private"):
        renamed.with_suffix(suffix).rename(tmp_path / f"Kexample.com.+013+00000{suffix}")
    with pytest.raises(ConfigError) as error:
        keyfiles.load(ORIGIN, tmp_path)
    said = {path.stem: [str(one) for one in error.value.violations if one.where.startswith(path.stem)] for path in paths}
    assert any("a key of example.com." in line for line in said[wrong_zone.stem])
    assert "No such file" in said[no_private.stem][0]
    assert "the secret half of the .key file's" in said[mismatch.stem][0]
    assert "'tomorrow'" in said[bad_time.stem][0]
    assert "not before Activate" in said[bad_order.stem][0]
    assert "one DNSKEY record" in said[no_record.stem][0]
    assert any("after the key in it" in str(one) for one in error.value.violations if one.where.startswith("Kexample.com.+013+00000"))


def test_no_key_and_no_directory_are_violations_too(tmp_path: Path) -> None:
    for directory, words in ((tmp_path, "lbcore dns keygen example.com."), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=words):
            Signer(ORIGIN, directory)


def test_a_secret_that_others_may_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, path = make(tmp_path)
    keyfiles.load(ORIGIN, tmp_path)
    assert not caplog.records
    path.with_suffix(".private").chmod(0o640)
    keyfiles.load(ORIGIN, tmp_path)
    assert [(record.levelname, "640" in record.getMessage()) for record in caplog.records] == [("WARNING", True)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may give files away")
def test_a_key_that_root_times_still_belongs_to_whom_it_did(tmp_path: Path) -> None:
    _, path = make(tmp_path)
    for file in (path, path.with_suffix(".private")):
        os.chown(file, 12345, 23456)
    given("settime", str(path), "--inactive", "+1d")
    assert {(file.stat().st_uid, file.stat().st_gid) for file in tmp_path.iterdir()} == {(12345, 23456)}
    assert stat.S_IMODE(path.with_suffix(".private").stat().st_mode) == 0o600


def test_a_signer_follows_its_directory_and_keeps_its_keys_when_that_breaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, record = Clock(START), dns.rrset.from_text("www.example.com.", 5, "IN", "A", "192.0.2.1")
    make(tmp_path)
    signer = Signer(ORIGIN, tmp_path, clock=clock)
    made = signer.sign(record)[0]
    assert not signer.due()
    _, path = make(tmp_path, activate=START + 1)
    clock.advance(2)
    assert signer.due() and signer.due()  # whoever asks
    signer.begin()
    assert (len(signer.keys), len(signer.apex()[0]), signer.due()) == (2, 2, False)
    assert signer.sign(record)[0] == made  # what the older key signed still is good
    path.unlink()
    path.write_text("; nothing\n")
    clock.advance(2)
    assert signer.due()
    signer.begin()
    assert len(signer.keys) == 2 and "stay as they were" in caplog.text and not signer.due()


def test_renewed_signatures_are_not_lost_with_answers_that_come_to_nothing(tmp_path: Path) -> None:
    """Regions that change while answers are prepared have them prepared again, beside the old ones."""
    clock = Clock(START)
    make(tmp_path)
    zone = Zone("example.com", keys=Signer(ORIGIN, tmp_path, clock=clock))
    old = build([zone], ())
    make(tmp_path, activate=START + 1)
    clock.advance(2)
    discarded, used = (build([zone], (), before=old) for _ in range(2))
    forms = [answers.nodes[zone.key].types[DNSKEY].fixed for answers in (old, discarded, used)]
    assert [one.plain[0].answers for one in forms if one] == [1, 2, 2]
    assert build([zone], (), before=used).parts[zone] is used.parts[zone]


# ===== BIND's tools


def test_bind_reads_our_files(tmp_path: Path, program: Program) -> None:
    key, path = make(tmp_path, publish=START, inactive=START + DAY, delete=START + 2 * DAY, sync_publish=START + 3)
    assert run(program("dnssec-dsfromkey"), "-2", path).split()[3:] == key.ds.to_text().upper().split()
    shown = run(program("dnssec-settime"), "-u", "-p", "all", path)
    for word, at in (("Created", 0), ("Publish", 0), ("Activate", 0), ("Inactive", DAY), ("Delete", 2 * DAY), ("SYNC Publish", 3)):
        assert f"\n{word}: {int(START + at)}\n" in f"\n{shown}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("options", [["-f", "KSK"], []])
def test_we_read_binds_files_and_time_them_for_bind(tmp_path: Path, program: Program, algorithm: Algorithm, options: list[str]) -> None:
    run(program("dnssec-keygen"), "-q", "-K", tmp_path, "-a", algorithm.name, *options, "-I", "+10d", "example.com")
    (key,) = keyfiles.load(ORIGIN, tmp_path)
    assert (key.algorithm, key.sep, key.timing.state(time.time() + 5)) == (algorithm, bool(options), "active")
    path = keyfiles.path_of(key, tmp_path)
    given("settime", str(path), "--inactive", "none", "--delete", "2040-01-02T03:04:05")
    shown = run(program("dnssec-settime"), "-p", "all", path)
    assert "Inactive: UNSET" in shown and "Delete: Mon Jan  2 03:04:05 2040" in shown
    assert keyfiles.read(path).timing == Timing(key.timing.created, key.timing.publish, key.timing.activate, None, 2_209_086_245.0)


def test_fields_that_only_bind_knows_survive(tmp_path: Path, program: Program) -> None:
    _, path = make(tmp_path)
    run(program("dnssec-settime"), "-P", "ds", "20300101000000", path)
    given("settime", str(path.with_suffix("")), "--inactive", "+1d")
    assert "DS Publish: Tue Jan  1 00:00:00 2030" in run(program("dnssec-settime"), "-p", "all", path)


# ===== commands


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(START)
    monkeypatch.setattr("lbcore.cli.keys.time.time", clock)
    return clock


def test_keygen_names_the_file_and_the_ds(tmp_path: Path, now: Clock) -> None:
    done = lbcore("keygen", "example.com", "-d", str(tmp_path))
    (key,) = keyfiles.load(ORIGIN, tmp_path)
    assert done.stdout.splitlines()[:2] == [str(keyfiles.path_of(key, tmp_path)), f"example.com. IN DS {key.ds.to_text()}"]
    assert key.timing == Timing(START, START, START, sync_publish=START + 2 * HOUR)
    found = given("settime", str(keyfiles.path_of(key, tmp_path)))
    assert (found["tag"], found["state"], found["ds"], found["flags"]) == (key.tag, "active", f"example.com. IN DS {key.ds.to_text()}", 257)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("now", START), ("+90", START + 90), ("+3d", START + 3 * DAY), ("-2h", START - 2 * HOUR), ("20300101000000", 1_893_456_000.0),
     ("2030-01-01", 1_893_456_000.0), ("2030-01-01T01:00+01:00", 1_893_456_000.0), ("none", None)],
)  # fmt: skip
def test_times_as_bind_and_as_iso_8601_write_them(tmp_path: Path, now: Clock, text: str, expected: float | None) -> None:
    given("keygen", "example.com", "-d", str(tmp_path), "--publish", text, "--activate", text)
    (key,) = keyfiles.load(ORIGIN, tmp_path)
    assert (key.timing.publish, key.timing.activate) == (expected, expected)


@pytest.mark.parametrize(
    ("args", "words"),
    [(("--activate", "soon"), "--activate: expected now"), (("--inactive", "-1d"), "Inactive lies before Activate"),
     (("--algorithm", "RSASHA1"), "expected ECDSAP256SHA256 or ED25519"), (("--successor",), "no key is there"),
     (("--successor", "--activate", "now"), "finds --publish and --activate itself")],
)  # fmt: skip
def test_what_keygen_refuses_leaves_no_file(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    assert words in refused("keygen", "example.com", "-d", str(tmp_path), *args)
    assert [*tmp_path.iterdir()] == []


def test_a_second_key_must_be_a_successor_and_a_third_wait(tmp_path: Path, now: Clock) -> None:
    command = ("keygen", "example.com", "-d", str(tmp_path))
    given(*command)
    assert "--successor" in refused(*command)
    given(*command, "--zsk")
    assert "not active yet" in refused(*command, "--zsk", "--successor")
    now.advance(2 * HOUR)
    given(*command, "--zsk", "--successor")
    given(*command, "--successor")
    assert "both active" in refused(*command, "--successor")
    assert "ZONE" in refused("keygen", "bad..name", "-d", str(tmp_path))


# ===== rollovers

TTL, DS_TTL = HOUR, DAY
TICK = 600
Seen = tuple[frozenset[tuple[int, int]], frozenset[int], frozenset[tuple[int, int]]]  # DNSKEY, who signed it, who signed the records


def seen(signer: Signer) -> Seen:
    """What a server gives: keys as (tag, algorithm). Signatures are made, and validated once in test_dnssec."""
    keys = signer.apex()[0]
    record = signer.sign(dns.rrset.from_text("www.example.com.", TTL, "IN", "A", "192.0.2.1"))
    listed = frozenset((dns.dnssec.key_id(key), int(key.algorithm)) for key in keys)
    signed = frozenset((one.key_tag, int(one.algorithm)) for one in record)
    return listed, frozenset(one.key_tag for one in signer.sign(keys)), signed


def bogus(history: list[list[Seen]], parents: list[frozenset[int]]) -> list[str]:
    """Give when a resolver that fetched DS, DNSKEY and records at any times that a cache allows could not validate.

    Strict, as RFC 4035 §2.2 asks of zones and not of validators: every algorithm in DNSKEY has signed the records.
    """
    found = []
    for at, servers in enumerate(history):
        for keys, signers, _ in servers:
            tags = {tag for tag, _ in keys}
            first = max(0, at - DS_TTL // TICK)
            found += [f"DS of {ds}, DNSKEY of {at}" for ds in range(first, at + 1) if not parents[ds] & tags & signers]
            for other in range(max(0, at - TTL // TICK), min(len(history), at + TTL // TICK + 1)):
                for _, _, signed in history[other]:
                    if not signed & keys or {algorithm for _, algorithm in keys} - {algorithm for _, algorithm in signed & keys}:
                        found.append(f"DNSKEY of {at}, records of {other}")
    return found


class World:
    """A zone's servers, one of which notices changes late, its parent, and an operator who does what is printed."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory, self.clock = directory, clock
        self.servers = [Signer(ORIGIN, directory, ttl=TTL, clock=clock) for _ in range(2)]
        self.parent = frozenset(key.tag for key in self.servers[0].keys if key.sep)
        self.history: list[list[Seen]] = []
        self.parents: list[frozenset[int]] = []

    def run(self, until: float) -> None:
        while self.clock() < until:
            self.clock.advance(TICK)
            late = len(self.history) % 5 != 0  # 50 minutes, within the margin of an hour
            for server in self.servers[:1] if late else self.servers:
                if server.due():
                    server.begin()
            self.history.append([seen(server) for server in self.servers])
            self.parents.append(self.parent)

    def rollover(self, *options: str, hasty: bool = False, delay: float = 0) -> None:
        """Make a successor and follow its steps; a hasty operator waits for nothing, another comes late by `delay`."""
        made = given("keygen", "example.com", "-d", str(self.directory), "--successor", *options)
        for step in made["steps"]:
            at = datetime.fromisoformat(step["at"]).timestamp() if step["at"] else self.clock() + step["after"]
            if not hasty:
                self.run(at + delay)
            if "give the parent" in step["what"]:
                self.parent = frozenset({made["tag"]})
            elif step["what"].startswith("lbcore dns "):
                given(*step["what"].split()[2:])
        self.run(self.clock() + 2 * DAY)


@pytest.mark.parametrize("delay", [0, 2 * DAY])
@pytest.mark.parametrize(
    ("beside", "options"),
    [([], []), ([], ["--algorithm", "ED25519"]), (["--zsk"], []), (["--zsk"], ["--zsk"]), (["--zsk"], ["--algorithm", "ED25519"])],
    ids=["csk", "csk-algorithm", "ksk", "zsk", "algorithm"],
)
def test_no_resolver_sees_a_rollover(tmp_path: Path, now: Clock, beside: list[str], options: list[str], delay: float) -> None:
    given("keygen", "example.com", "-d", str(tmp_path))
    if beside:
        given("keygen", "example.com", "-d", str(tmp_path), *beside)
    world = World(tmp_path, now)
    world.run(now() + DAY)
    before = world.history[0][0]
    world.rollover(*options, delay=delay)
    assert bogus(world.history, world.parents) == []
    after = world.history[-1][0]
    assert before[0] != after[0] and len(after[0]) == (1 if not beside or "ED25519" in options else 2)


def test_a_hasty_operator_is_seen(tmp_path: Path, now: Clock) -> None:
    """The control: without the waits that are printed, resolvers do fail."""
    given("keygen", "example.com", "-d", str(tmp_path))
    world = World(tmp_path, now)
    world.run(now() + DAY)
    world.rollover(hasty=True)
    assert bogus(world.history, world.parents)
