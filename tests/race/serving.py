"""Wire serving in two threads while Python replaces all that they look into, as fast as it can.

Run under ThreadSanitizer, where any report fails it: `python serving.py SECONDS SEED`. Prints "quiet" and what was done when it is
through: every query was answered, by a version that was in use between its sending and its answer's arrival.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
import time

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns import Profile
from lbcore.dns._cookies import Cookies
from lbcore.dns._rrl import RateLimiter
from lbcore.dns._wire import Wire
from lbcore.dns.prepare import build
from lbcore.dns.route import compile_routes
from lbcore.dns.zone import Zone

NAMES = ("west", "east", "north")
FRAME = struct.Struct("=iIHH16sI")
OPT = bytes.fromhex("000029040000008000001b 000a0008 1122334455667788 00080007 00011800 7f0000 00030000")
QUESTIONS = tuple(
    label + b"\7example\3com\0\0" + rdtype + b"\0\1"
    for label, rdtype in ((b"\3api", b"\1"), (b"\3aPi", b"\x1c"), (b"\5fixed", b"\1"), (b"\3any", b"\xff"))
)
ASKED_OF_PYTHON = 3  # the last question


def regions(version: int) -> list[Region]:
    """Give regions whose addresses tell the version."""
    high, low = divmod(version, 256)
    return [Region(name, 0, n, addresses=(f"10.{high}.{low}.{n}", f"2001:db8:{version:x}::{n}")) for n, name in enumerate(NAMES)]


class Publisher:
    """Publishes one version after the other. `began` and `done`: the latest that may, and that must be in use."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lb = Balancer(regions(0), PrefixMap.from_prefixes([("127.0.0.0/8", 1)]))
        self.cookies = Cookies()
        self.wire = Wire(cookies=self.cookies, rrl=RateLimiter(100_000, 2, ()), nsid=b"race", sample=50)
        self.began = self.done = self.acts = 0
        self.publish()

    def publish(self) -> None:
        version = self.began = self.began + 1
        records = f"fixed 60 IN A 10.{version >> 8}.{version & 255}.9\nany 60 IN A 10.0.0.0\n"
        zone = Zone("example.com", {"api": Profile(ttl=version % 100)}, records)
        answers = build([zone], regions(version))
        self.wire.publish(answers, compile_routes(answers.roots, self.lb))
        self.done = version
        self.answers = answers

    def meddle(self) -> None:
        """Do one thing."""
        slot = self.random.randrange(len(NAMES))
        self.acts += 1
        self.random.choice([
            self.publish, self.publish,
            lambda: self.wire.publish(self.answers, compile_routes(self.answers.roots, self.lb)),
            lambda: self.lb.table.set_tier(slot, self.random.choice([0, 3]), time.monotonic()),
            lambda: self.lb.table.observe(1, slot, self.random.uniform(5, 90), time.monotonic()),
            lambda: self.lb.disable(NAMES[slot]), lambda: self.lb.enable(NAMES[slot]),
            self.lb.tick, self.wire.counters, self.cookies.rotate,
            lambda: self.wire.suspect(self.acts % 2 == 0),
        ])()  # fmt: skip


def ask(publisher: Publisher, udp: socket.socket, stop: threading.Event, done: list[int], seed: int) -> None:
    """Send queries, a few at a time, and judge every answer."""
    rng = random.Random(seed)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(udp.getsockname())
        client.settimeout(20)
        while not stop.is_set():
            least = publisher.done
            sent = {}
            for id_ in rng.sample(range(65_536), 8):
                sent[id_] = rng.randrange(len(QUESTIONS))
                with_opt = rng.random() < 0.5
                client.send(struct.pack("!HH4H", id_, 0, 1, 0, 0, with_opt) + QUESTIONS[sent[id_]] + OPT * with_opt)
            for _ in range(len(sent)):
                answer = client.recv(4096)
                judge(answer, sent.pop(int.from_bytes(answer[:2])), least, publisher.began)
                done[0] += 1


def judge(answer: bytes, number: int, least: int, most: int) -> None:
    """An answer echoes its question, and its first record, or the TTL of a denial, is of a version between these."""
    question = QUESTIONS[number]
    assert answer[12 : 12 + len(question)] == question, answer
    if number == ASKED_OF_PYTHON:
        assert answer.endswith(b"by hand"), answer
        return
    assert answer[3] & 15 == 0, answer
    if answer[6:8] == b"\0\0":
        return  # every region is taken out
    at = 12 + len(question) + 12
    data = answer[at : at + int.from_bytes(answer[at - 2 : at])]
    version = int.from_bytes(data[1:3] if len(data) == 4 else data[4:6])
    assert least <= version <= most, (least, version, most)
    if number < 2:
        assert int.from_bytes(answer[at - 6 : at - 2]) == version % 100 or least < most, "a route's TTL in another version's answer"


def respond(responder: socket.socket) -> None:
    """Answer what is handed over, until the other end is closed."""
    while taken := responder.recv(8192):
        fd, kind, _, port, address, _ = FRAME.unpack_from(taken)
        if kind == 0:
            with socket.socket(fileno=socket.dup(fd)) as udp:
                udp.sendto(taken[FRAME.size :] + b"by hand", (socket.inet_ntoa(address[:4]), port))
    responder.close()


def main(seconds: str, seed: str = "1") -> None:
    publisher, stop, done = Publisher(int(seed)), threading.Event(), [0]
    servers, others, responders, sockets, failed = [], [], [], [], list[object]()
    threading.excepthook = lambda args: failed.append(args.exc_value)
    for number in range(2):
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        slow, responder = socket.socketpair(type=socket.SOCK_SEQPACKET)
        sockets += [udp, slow]
        servers.append(threading.Thread(target=publisher.wire.serve, args=(udp.fileno(), slow.fileno())))
        others.append(threading.Thread(target=ask, args=(publisher, udp, stop, done, number)))
        responders.append(threading.Thread(target=respond, args=(responder,)))
    for thread in (*servers, *others, *responders):
        thread.start()
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end and not failed:
        publisher.meddle()
    stop.set()
    for thread in others:
        thread.join()
    publisher.wire.stop()
    for thread in servers:
        thread.join()
    for each in sockets:
        each.close()
    for thread in responders:
        thread.join()
    counters = publisher.wire.counters()
    if failed or counters["queries"] != done[0] or counters["lost"] or counters["unsent"]:
        sys.exit(f"{failed} {done[0]} answered {counters}")
    print(f"quiet: {done[0]} queries, {publisher.done} versions, {publisher.acts} acts")


if __name__ == "__main__":
    main(*sys.argv[1:])
