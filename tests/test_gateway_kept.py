"""Configurations on disk: a gateway that restarts while nobody publishes serves the last good one."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gatewaying import document, serving
from proxying import answering, origin

from lbcore.errors import ConfigError
from lbcore.http.gateway import Gateway
from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.kept import Kept

ROOT = Path(__file__).parent.parent


def revision_of(folder: Path) -> str | None:
    revision = Gateway("westeurope", keep=folder).revision
    return revision.name if revision else None


async def test_a_restart_serves_the_last_one_without_anybody_publishing(tmp_path: Path) -> None:
    async with origin(answering()) as there:
        Gateway("westeurope", keep=tmp_path / "kept").apply(document(there.url, sequence=3))
        async with serving(keep=tmp_path / "kept") as here:
            answer = await here.ask()
            assert answer.status == 200 and answer.field(b"x-lbcore-revision") == b"1.3"
        async with serving() as here:  # nothing kept, nothing served
            assert (await here.ask()).status == 503


async def test_the_last_five_are_kept(tmp_path: Path) -> None:
    gateway = Gateway("westeurope", keep=tmp_path)
    for sequence in (*range(1, 9), 10, 100):
        if sequence % 2:
            gateway.apply(document(sequence=sequence))
        else:
            await gateway.update(document(sequence=sequence))
    gateway.apply(document(sequence=1, epoch=2))
    assert [made.revision for made in Kept(tmp_path).read()] == ["2.1", "1.100", "1.10", "1.8", "1.7"]
    assert len([*tmp_path.iterdir()]) == 5


@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1], lambda data: data.replace(b"orders", b"orderz"),
    lambda data: b"\0" * len(data), lambda data: data + b" ", lambda data: b"lbcore-configuration 2" + data[22:],
])  # fmt: skip
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, spoil: object, caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("westeurope", keep=tmp_path)
    gateway.apply(document(sequence=1))
    gateway.apply(document(sequence=2))
    newest = tmp_path / "revision-1-2.json"
    newest.write_bytes(spoil(newest.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.ERROR):
        assert revision_of(tmp_path) == "1.1"
    assert "revision-1-2.json" in caplog.text


def test_one_that_cannot_be_used_any_more_gives_way_too(tmp_path: Path) -> None:
    Gateway("westeurope", keep=tmp_path).apply(document(sequence=1))
    gone = document(sequence=2, policies={"inbound": [{"policy": "set-header", "name": "x", "value": "y"}]})
    Gateway("westeurope", keep=tmp_path).apply(gone)
    path = tmp_path / "revision-1-2.json"
    made = Configuration.from_mapping(gone)
    text = made.canonical.replace(b"set-header", b"of-plug-in")
    path.write_bytes(b"lbcore-configuration 1 " + hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    assert revision_of(tmp_path) == "1.1"


def test_what_is_refused_is_not_kept(tmp_path: Path) -> None:
    gateway = Gateway("westeurope", keep=tmp_path)
    gateway.apply(document())
    with pytest.raises(ConfigError):
        gateway.apply(document("ftp://x", sequence=2))
    with pytest.raises(ConfigError):
        gateway.apply(document(sequence=3, policies={"inbound": [{"policy": "set-header", "name": "x", "value": "y", "when": "("}]}))
    assert [path.name for path in tmp_path.iterdir()] == ["revision-1-1.json"]


def test_a_folder_that_cannot_be_written_refuses_and_the_old_one_serves(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    gateway = Gateway("westeurope", keep=folder)
    gateway.apply(document())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(OSError):
        gateway.apply(document(sequence=2))
    assert gateway.revision is not None and gateway.revision.name == "1.1"


def test_what_a_killed_process_left_is_removed_after_a_while(tmp_path: Path) -> None:
    for name, age in ((".revision-1-1.json.old", 1000), (".revision-1-1.json.new", 0)):
        (tmp_path / name).write_bytes(b"half")
        stamp = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (stamp, stamp))
    Gateway("westeurope", keep=tmp_path).apply(document())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".revision-1-1.json.new", "revision-1-1.json"]


WRITER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from gatewaying import document
from lbcore.http.gateway import Gateway
gateway = Gateway("westeurope", keep=sys.argv[2])
number = int(sys.argv[3])
while True:
    number += 1
    gateway.apply(document(sequence=number, apis=[{"name": "a", "backend": "orders", "display_name": "x" * 300}] + [
        {"name": f"n{n}", "path": f"/{n}", "backend": "orders"} for n in range(300)]))
    print(number, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_configuration_that_was_applied(tmp_path: Path) -> None:
    rng, number = random.Random(4), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(ROOT), str(tmp_path), str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 4)):
            number = int(process.stdout.readline())
        try:
            process.wait(rng.random() * 0.02)
        except subprocess.TimeoutExpired:
            pass
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        last = int(said[-1]) if said else number
        found = revision_of(tmp_path)
        assert found in (f"1.{last}", f"1.{last + 1}")  # the one told of, or the one that was just being applied
        number = int(str(found).partition(".")[2])
