"""Commands that ask somebody who is not the primary: a secondary, a stranger, a liar, somebody behind TLS."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn
from managing import lbcore

from lbcore.service.api import secondary

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def answering(answer: Callable[[str, str], Answer], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve whatever `answer` gives for a method and a path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = do

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://localhost:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def given(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, headers, json.dumps(value).encode()


def one_service(method: str, path: str) -> Answer:
    return given({"value": [{"name": "contoso"}]}) if path == "/services" else given({"value": []})


# ===== a secondary


@contextmanager
def standing_by(reachable: bool) -> Iterator[str]:
    app = secondary("https://primary.example:9180", lambda: reachable)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(("reachable", "code", "words"), [
    (True, "NotPrimary", "write to the primary"), (False, "ManagementPlaneUnavailable", "regions serve on"),
])  # fmt: skip
def test_a_secondary_says_where_the_primary_is(reachable: bool, code: str, words: str) -> None:
    with standing_by(reachable) as url:
        for args in (("regions", "list"), ("regions", "add", "eastasia"), ("config", "rollback", "1.1"), ("regions", "save")):
            done = lbcore(*args, "--url", url)
            assert (done.exit_code, done.stdout) == (5, "")
            for expected in (code, words, "https://primary.example:9180"):
                assert expected in done.stderr


# ===== strangers


@pytest.mark.parametrize("answer", [
    (200, {}, b""), (200, {}, b"<html>"), (200, {}, b"[]"), (200, {}, b'{"value": 1}'), (200, {}, b'{"value": [{"name": 3}]}'),
    (404, {}, b"not here"), (500, {}, b'{"error": "x"}'), (302, {"location": "http://127.0.0.1:1/"}, b""), (200, {}, b"\xff" * 100),
    (400, {}, b'{"error": {"code": 3}}'), (401, {"www-authenticate": "Basic"}, b""), (200, {"content-encoding": "gzip"}, b"x"),
])  # fmt: skip
def test_whoever_is_no_management_plane_ends_5(answer: Answer) -> None:
    with answering(lambda method, path: answer) as url:
        for args in (("regions", "list"), ("regions", "remove", "eastasia", "--yes"), ("config", "revisions")):
            done = lbcore(*args, "--url", url)
            assert isinstance(done.exception, SystemExit), done.exception
            assert (done.exit_code, done.stdout) == (5, "")
            assert done.stderr.startswith("lbcore: ")


def test_what_a_stranger_says_does_not_reach_the_terminal_as_it_is() -> None:
    words = {"code": "\x1b[31mInvalid", "message": "\x07\x1b]0;owned\x07", "target": "\x9b2J"}
    with answering(lambda method, path: given({"error": words | {"details": [words] * 2}}, 400)) as url:
        done = lbcore("regions", "list", "--url", url)
    assert done.exit_code == 5
    assert not {"\x1b", "\x07", "\x9b"} & {*done.stderr}


def test_a_service_of_several_is_named() -> None:
    def answer(method: str, path: str) -> Answer:
        return given({"value": [{"name": "contoso"}, {"name": "fabrikam"}]}) if path == "/services" else one_service(method, path)

    with answering(answer) as url:
        assert "contoso, fabrikam" in lbcore("regions", "list", "--url", url).stderr
        assert lbcore("regions", "list", "--url", url, "--service", "fabrikam").exit_code == 0


# ===== TLS


def test_tls_is_verified(tmp_path: Path) -> None:
    authority, other, context = trustme.CA(), trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    for name, each in (("right", authority), ("wrong", other)):
        each.cert_pem.write_to_path(str(tmp_path / name))
    (tmp_path / "token").write_text("lbcore_a_b")
    (tmp_path / "none").write_text("no certificate")
    with answering(one_service, context) as url:
        done = lbcore("regions", "list", "--url", url, "--ca", tmp_path / "right", "--token-file", tmp_path / "token")
        assert done.exit_code == 0, done.stderr
        assert lbcore("regions", "list", "--url", url, "--ca", tmp_path / "wrong").exit_code == 5
        assert lbcore("regions", "list", "--url", url).exit_code == 5, "the system's authorities do not know it"
        assert lbcore("regions", "list", "--url", url, "--ca", tmp_path / "none").exit_code == 2
        assert lbcore("regions", "list", "--url", url, "--ca", tmp_path / "missing").exit_code == 4
