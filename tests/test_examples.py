"""The examples run: a stranger copies them."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = """
[[service.regions]]
name = "westeurope"
gateway = "http://127.0.0.1:{alive}"

[[service.regions]]
name = "eastus"
gateway = "http://127.0.0.1:{dead}"

[traffic_manager.monitor]
interval_in_seconds = 1
timeout_in_seconds = 0.5
"""


class Gateway(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"served by the gateway"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def gateway() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_proxy_forwards_to_the_gateway_that_lives(tmp_path: Path) -> None:
    with gateway() as alive, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        config = tmp_path / "lbcore.toml"
        config.write_text(CONFIG.format(alive=alive, dead=closed.getsockname()[1]))
        command = [sys.executable, str(ROOT / "examples" / "forwarding_proxy.py"), str(config), "0"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as proxy:
            assert proxy.stdout is not None
            try:
                line = proxy.stdout.readline()
                port = int(re.findall(r"\d+", line)[-1])
                for _ in range(5):
                    with socket.create_connection(("127.0.0.1", port), 10) as client:
                        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                        with client.makefile("rb") as reply:
                            assert reply.read().endswith(b"served by the gateway")
            finally:
                proxy.kill()
