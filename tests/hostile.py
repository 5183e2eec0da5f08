"""Hostile bytes for Hypothesis: requests and responses that are right, or wrong in one or two places, in pieces cut anywhere."""

from __future__ import annotations

import re

from hypothesis import strategies as st

# ===== requests


@st.composite
def pieces(draw: st.DrawFn, stream: st.SearchStrategy[bytes]) -> list[bytes]:
    """Cut a stream anywhere; often right before, in or after a line's end."""
    data = draw(stream)
    ends = [match.start() + shift for match in re.finditer(rb"\r\n", data) for shift in (0, 1, 2)]
    anywhere = st.integers(0, len(data))
    cuts = sorted(draw(st.lists(st.one_of(anywhere, st.sampled_from(ends)) if ends else anywhere, max_size=5)))
    return [part for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if (part := data[start:end])]


PATHS = st.sampled_from([b"/", b"/a/../b", b"//x", b"/p?q=/&r=%0d%0a", b"/%00", b"/a;b=c", b'/"quoted"', b"*"])
METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
BODY = st.sampled_from([b"", b"abc", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n", bytes(range(256)), b"x" * 3000])
ODD = st.sampled_from([
    b"X-Ok: y", b"X-Tab:\ty\t", b"X-None:y", b"X-Spaces:   y  z   ", b"X-Empty:", b"X-High: \xe9\xff", b"X-Long: " + b"v" * 2000,
    b"Accept: a, b", b"Cookie: a=b", b"X-Quote: \"\\\r\n\"", b"Connection: close", b"Connection: keep-alive", b"Connection: x-nominated",
    b"X-Nominated: y", b"Connection: Upgrade\r\nUpgrade: h2c", b"TE: trailers", b"TE: gzip", b"Trailer: X-Sum", b"Expect: 100-continue",
    b"X-Forwarded-For: 6.6.6.6", b"Via: 1.1 elsewhere", b"Keep-Alive: timeout=9", b"Proxy-Connection: keep-alive", b"X_Under: y",
])  # fmt: skip
WRONG = st.sampled_from([
    b"X: a\nY: b", b"X: a\rY: b", b"X: a\x00b", b"X: a\r\n folded", b"\tX: a", b" X: a", b"X : a", b"X\t: a", b"X", b": a", b"X\x00: a",
    b"X\xff: a", b"X: a\x01", b"X: a\x7f", b"X\r: a", b"\r", b"X: a\r\r", b"Host: other", b"Host: a",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length : 5", b"Content-Length: +5", b"Content-Length: 5, 5",
    b"Content-Length:\x0b5", b"content-length: 5\r\ncontent-length: 5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: x, chunked",
    b"Transfer-Encoding: chunked, x", b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: \x0cchunked", b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding\x00: chunked", b"Connection: Content-Length",
    b"Connection: Transfer-Encoding", b"Connection: Host", b"Expect: yes", b"Upgrade: websocket\r\nConnection: upgrade",
])  # fmt: skip
SIZES = st.sampled_from([b"%x", b"%X", b"00%x", b"%x;ext", b'%x;a="b;c"', b"%x;a=b;c"])
WRONG_SIZES = st.sampled_from([
    b"%x ", b" %x", b"0x%x", b"+%x", b"%x;a\n", b"%x\r", b"%x;\r\r", b"%xg", b"-%x", b"%x,", b"%x\x00", b'%x;a="\n"', b"_%x", b"1%x",
])  # fmt: skip
TRAILERS = st.sampled_from([
    b"", b"X-Sum: 1\r\n", b"Content-Length: 9\r\n", b"Host: evil\r\n", b"Transfer-Encoding: chunked\r\n", b"X: \xff\r\n",
])  # fmt: skip
WRONG_TRAILERS = st.sampled_from([b"X\r\n", b"X: a\n", b" X: a\r\n", b"X : a\r\n", b"X: a\r\n b\r\n", b"X: \x00\r\n", b"\n"])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b""])


@st.composite
def chunked(draw: st.DrawFn, body: bytes, wrong: bool) -> bytes:
    """Write a body in chunks."""
    size = draw(st.integers(1, 400))
    parts, flaw = [body[at : at + size] for at in range(0, len(body), size)], draw(st.integers(0, 3)) if wrong else -1
    at = draw(st.integers(0, max(0, len(parts) - 1))) if flaw >= 0 else -1
    lines = []
    for number, part in enumerate(parts):
        style = draw(WRONG_SIZES if flaw == 0 and number == at else SIZES)
        end = draw(st.sampled_from([b"\n", b"\r", b"", b"x\r\n", b"\r\n\r\n"])) if flaw == 1 and number == at else b"\r\n"
        lines.append(style % len(part) + b"\r\n" + part + end)
    last = draw(st.sampled_from([b"0\n", b"0 \r\n", b"-0\r\n", b"0", b"0\r", b"0x0\r\n"])) if flaw == 2 else b"0\r\n"
    return b"".join([*lines, last, draw(WRONG_TRAILERS if flaw == 3 else TRAILERS), b"\r\n"])


@st.composite
def message(draw: st.DrawFn, wrong: bool) -> bytes:
    """Write one request, which may be wrong in one or two places."""
    flaws = draw(st.sets(st.sampled_from(["line", "field", "end", "host", "length", "chunks"]), min_size=1, max_size=2)) if wrong else set()
    method, path, body = draw(METHODS), draw(PATHS), draw(BODY)
    path = b"/*" if path == b"*" and method != b"OPTIONS" else path
    line = b"%b %b HTTP/1.1" % (method, path)
    if "line" in flaws:
        shape = draw(st.sampled_from([
            b"%b %b HTTP/1.0", b"%b  %b HTTP/1.1", b"%b %b  HTTP/1.1", b"%b %b HTTP/1.1 ",
            b"%b\t%b HTTP/1.1", b"%b %b", b"%b %b HTTP/1.1\r", b"%b %b HTTP/01.1", b" %b %b HTTP/1.1", b"%b %b\x00 HTTP/1.1",
            b"x%b %b HTTP/1.1",
            b"%b http://a%b HTTP/1.1", b"%b x%b HTTP/1.1", b"\r\n\r\n%b %b HTTP/1.1", b"\n%b %b HTTP/1.1", b"\r%b %b HTTP/1.1",
            b"%b %b\x80 HTTP/1.1", b"%b %b\r HTTP/1.1",
        ]))  # fmt: skip
        line = shape % (method, path)
    fields = draw(st.lists(ODD, max_size=4))
    if "field" in flaws:
        fields.insert(draw(st.integers(0, len(fields))), draw(WRONG))
    host = draw(st.sampled_from([b"", b"Host:", b"Host: a/b", b"Host: a b"])) if "host" in flaws else b"Host: a"
    fields.insert(draw(st.integers(0, len(fields))), host)
    framing = draw(st.sampled_from(["none", "length", "chunked"])) if "chunks" not in flaws else "chunked"
    if framing == "length":
        said = max(0, len(body) + (draw(st.integers(-5, 5)) if "length" in flaws else 0))
        fields.insert(draw(st.integers(0, len(fields))), b"Content-Length: %d" % said)
    elif framing == "chunked":
        fields.insert(draw(st.integers(0, len(fields))), b"Transfer-Encoding: chunked")
        body = draw(chunked(body, "chunks" in flaws))
    else:
        body = b""
    ends = [draw(ENDS) if "end" in flaws else b"\r\n" for _ in range(len(fields) + 2)]
    return b"".join(part + end for part, end in zip([line, *(each for each in fields if each), b""], ends, strict=False)) + body


STREAM = st.lists(st.one_of(message(False), message(False), message(True)), min_size=1, max_size=5).map(b"".join)


# ===== responses

STATUS_LINES = st.sampled_from([
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 404 Not \xe9 Found", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 X", b"HTTP/1.1 304 X",
    b"HTTP/1.1 500 X", b"HTTP/1.1 205 X", b"HTTP/1.1 301 X\r\nLocation: /", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK",
])  # fmt: skip
WRONG_LINES = st.sampled_from([
    b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 99 X", b"HTTP/1.1 2000 OK", b"HTTP/2.0 200 OK",
    b"HTTP/1.1 200 OK\r", b"ICY 200 OK", b"HTTP/1.1 101 X", b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x",
    b"HTTP/1.1 100 X\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK", b"HTTP/1.1 -1 X", b"HTTP/1.1 20 OK", b"HTTP/1.1 600 X",
])  # fmt: skip
RESPONSE_FIELDS = st.sampled_from([
    b"Server: x", b"Set-Cookie: a=b", b"Set-Cookie: c=d", b"X-High: \xe9", b"Connection: close",
    b"Connection: keep-alive", b"Keep-Alive: timeout=1", b"Connection: x-nominated", b"X-Nominated: y",
    b"Proxy-Authenticate: basic", b"Trailer: X-Sum",
    b"Upgrade: h2c", b"Content-Encoding: gzip",
])  # fmt: skip


@st.composite
def response(draw: st.DrawFn) -> bytes:
    """Write one response, which may be wrong in some place; its body may be short or long."""
    flaws = draw(st.sets(st.sampled_from(["line", "field", "end", "length", "chunks"]), max_size=2))
    line, body = draw(WRONG_LINES if "line" in flaws else STATUS_LINES), draw(BODY)
    fields = draw(st.lists(RESPONSE_FIELDS, max_size=3))
    if "field" in flaws:
        fields.insert(draw(st.integers(0, len(fields))), draw(WRONG))
    framing = draw(st.sampled_from(["none", "length", "chunked"])) if "chunks" not in flaws else "chunked"
    if framing == "length":
        said = max(0, len(body) + (draw(st.integers(-5, 5)) if "length" in flaws else 0))
        fields.insert(draw(st.integers(0, len(fields))), b"Content-Length: %d" % said)
    elif framing == "chunked":
        fields.insert(draw(st.integers(0, len(fields))), b"Transfer-Encoding: chunked")
        body = draw(chunked(body, "chunks" in flaws))
    ends = [draw(ENDS) if "end" in flaws else b"\r\n" for _ in range(len(fields) + 2)]
    return b"".join(part + end for part, end in zip([line, *fields, b""], ends, strict=True)) + body


EVIL = st.lists(response(), min_size=1, max_size=2).map(b"".join)
