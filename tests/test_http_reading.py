"""RequestReader alone: clients that send the same head again and again, in any pieces, between others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.http.message import Refusal, Request
from lbcore.http.reading import Limits, RequestReader

PLAIN = b"GET /a HTTP/1.1\r\nHost: api.example\r\n\r\n"
MESSAGES = (
    PLAIN,
    b"GET /b HTTP/1.1\r\nHost: api.example\r\nAccept: */*\r\nConnection: keep-alive\r\nVia: 1.1 x\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: api.exampl3\r\n\r\n",
    b"GET http://api.example/c HTTP/1.1\r\nHost: api.example\r\n\r\n",
    b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: api.example\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"POST /d HTTP/1.1\r\nHost: api.example\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /e HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: 1\r\n\r\n",
    b"PUT /f HTTP/1.1\r\nHost: api.example\r\nContent-Length: 0\r\n\r\n",
    b"\r\n",
)  # fmt: skip


def seen(request: Request) -> tuple[object, ...]:
    head = request.method, request.target, request.fields, request.special, request.keep_alive, request.old, request.upgrade
    body = request.length, request.chunked, b"".join(request.parts), [*request.trailers], request.complete, request.received
    return head, body


def read(parts: Sequence[bytes]) -> list[tuple[object, ...]]:
    reader = RequestReader(Limits())
    for part in parts:
        reader.feed(part)
    return [seen(request) for request in reader.ready]


@given(st.lists(st.sampled_from(MESSAGES), max_size=12), st.lists(st.integers(1, 60), max_size=8))
def test_what_was_read_before_changes_nothing(messages: list[bytes], cuts: list[int]) -> None:
    alone = [request for message in messages for request in read([message])]
    assert read(messages) == read([b"".join(messages)]) == alone
    whole, pieces = b"".join(messages), []
    for cut in cuts:
        pieces.append(whole[:cut])
        whole = whole[cut:]
    assert read([piece for piece in (*pieces, whole) if piece]) == alone


def test_every_repetition_is_a_request_of_its_own() -> None:
    reader, requests = RequestReader(Limits()), []
    for _ in range(5):
        reader.feed(MESSAGES[1])
        request = reader.ready.popleft()
        requests.append(seen(request))
        request.fields.append((b"x-handler", b"1"))
        request.special.clear()
        request.target, request.upgrade = b"/changed", b"websocket"
    assert requests == [requests[0]] * 5 and requests[0][0][1] == b"/b"  # type: ignore[index]


@pytest.mark.parametrize("start", [b"", b"GET", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n"])
def test_the_same_bytes_are_another_thing_elsewhere(start: bytes) -> None:
    reader = RequestReader(Limits())
    for _ in range(3):
        reader.feed(PLAIN)
    reader.ready.clear()
    if not start:
        reader.feed(PLAIN)
        assert reader.ready.popleft().target == b"/a"
    elif start == b"GET":
        reader.feed(start)
        with pytest.raises(Refusal):
            reader.feed(PLAIN)
    else:
        reader.feed(start)
        reader.feed(PLAIN)
        [request] = reader.ready
        assert b"".join(request.parts) == PLAIN and not request.complete


def test_a_request_that_is_the_last_stays_the_last() -> None:
    last = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    reader = RequestReader(Limits())
    reader.feed(last)
    with pytest.raises(Refusal):
        reader.feed(last)
