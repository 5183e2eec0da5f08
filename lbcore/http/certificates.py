"""Certificates: a TLS context whose certificate can be replaced while connections are open."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

__all__ = ["Certificates"]


class Certificates:
    """Keep a server's TLS context in line with its files.

    certificate: PEM, the leaf first; key: PEM, without a passphrase. `context` is what a server listens with.
    Raises OSError and ssl.SSLError for files that cannot be used.
    """

    def __init__(self, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
        self._certificate, self._key = Path(certificate), Path(key)
        self._read = b""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.reload()

    def reload(self) -> bool:
        """Take the files as they are now for the handshakes to come; False when they have not changed.

        Connections that are open go on. What cannot be used raises, and the old certificate stays.
        """
        content = self._certificate.read_bytes() + self._key.read_bytes()
        if content == self._read:
            return False
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a trial: a failure would leave half of it
        self._load(self.context)
        self._read = content
        return True

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # or OpenSSL would ask at the terminal, and wait
        except ssl.SSLError as error:
            error.filename = f"{self._certificate}, {self._key}"
            raise
