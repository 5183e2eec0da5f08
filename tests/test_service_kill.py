"""kill -9 at any moment: whatever was acknowledged is there, nothing is half there, and what is left to do can be told."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from service_worlds import Ledger, contoso

from lbcore.service.model import Service, ServiceState, location
from lbcore.service.plan import Plan, Step, plan
from lbcore.service.progress import Granted, begin, done
from lbcore.service.revisions import Number
from lbcore.service.store import Store

FORK = multiprocessing.get_context("fork")


def wishes(random: random.Random) -> Service:
    names = random.sample(["westeurope", "eastasia", "uksouth", "japaneast"], random.randrange(5))
    return contoso(*names).put(location("westus2", units=random.randrange(1, 5)))


def finished(step: Step, planned: Plan, granted: Granted, now: ServiceState) -> ServiceState:
    return done(now, step, planned, granted, 0.0)


def work(path: Path, seed: int, pipe: Connection) -> None:
    """Save and publish without end, and tell of everything that was acknowledged."""
    chance, ledger = random.Random(seed), Ledger(seed * 10_000)  # no address twice, whoever gives it
    with Store(path, timeout=30.0) as store:
        while True:
            state = store.state()
            wanted = wishes(chance)
            planned = plan(state, wanted)
            operation, state = store.operations.begin(planned, state, who="ann")
            pipe.send(("begin", operation.id, state.etag))
            for step in planned.steps:
                state = store.operations.advance(operation.id, partial(begin, step=step), region=step.name, entry="begun")
                granted = ledger.grant(step, planned)
                done_with = partial(finished, step, planned, granted)
                state = store.operations.advance(operation.id, done_with, region=step.name, entry="done")
                pipe.send(("step", operation.id, state.etag))
                body = chance.randbytes(chance.randrange(20_000))
                pipe.send(("publish", store.revisions.put(body, who="ann").number, hashlib.sha256(body).hexdigest()))
            pipe.send(("finish", operation.id, store.operations.finish(operation.id, "Succeeded").etag))


def received(pipe: Connection) -> list[tuple[str, object, str]]:
    found = []
    try:
        while True:
            found.append(pipe.recv())
    except EOFError:
        return found


def check_after_a_kill(store: Store, told: list[tuple[str, object, str]]) -> None:
    """Look whether everything acknowledged is there, and nothing is half there."""
    state, operation = store.state(), store.operations.running()
    for kind, what, mark in told:
        if kind == "publish":
            assert isinstance(what, Number)
            body = store.revisions.body(what)
            assert body is not None
            assert hashlib.sha256(body).hexdigest() == mark
        else:
            assert state is not None
            assert int(mark.partition("-")[0]) <= state.sequence
    finished = [what for kind, what, _ in told if kind == "finish"]
    assert all((store.operations.get(str(id)) or pytest.fail()).status == "Succeeded" for id in finished)
    if state is None:
        assert not told
        return
    rest = plan(state, state.service)
    if operation is None:
        assert rest.empty
        return
    planned = {step["name"]: step["action"] for key in ("creates", "updates", "deletes") for step in operation.plan[key]}
    assert {step.name: step.action for step in rest.steps}.items() <= planned.items()
    journal = {line.region: line.entry for line in store.operations.journal(operation.id)}
    assert {name for name, entry in journal.items() if entry == "done"} == planned.keys() - {step.name for step in rest.steps}


def resume(store: Store, ledger: Ledger) -> None:
    """Do what is left of an operation, as a primary does that comes back."""
    state, operation = store.state(), store.operations.running()
    if state is None or operation is None:
        return
    rest = plan(state, state.service)
    for step in rest.steps:
        granted = ledger.grant(step, rest)
        store.operations.advance(operation.id, partial(finished, step, rest, granted), region=step.name, entry="done")
    store.operations.finish(operation.id, "Succeeded")


def kill_again_and_again(path: Path, seed: int, rounds: int) -> int:
    """Kill a worker at seeded moments; give how many operations were found unfinished."""
    chance, interrupted, ledger = random.Random(seed), 0, Ledger()
    for number in range(rounds):
        ours, theirs = FORK.Pipe(duplex=False)
        worker = FORK.Process(target=work, args=(path, seed * 1000 + number + 1, theirs))
        worker.start()
        theirs.close()
        if chance.random() < 0.8:
            ours.poll(30)  # else it may not even have opened the file
        time.sleep(chance.random() ** 2 * 0.05)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        told = received(ours)
        with Store(path, timeout=30.0) as store:
            check_after_a_kill(store, told)
            interrupted += store.operations.running() is not None
            resume(store, ledger)
            assert store.operations.running() is None
            state = store.state()
            assert state is None or plan(state, state.service).empty
    return interrupted


@pytest.mark.slow
def test_kill_9_leaves_what_some_plan_said(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path / "store.sqlite", seed=0, rounds=25) > 0


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_a_hundred_moments(tmp_path: Path, seed: int) -> None:
    assert kill_again_and_again(tmp_path / "store.sqlite", seed=seed, rounds=100) > 10
