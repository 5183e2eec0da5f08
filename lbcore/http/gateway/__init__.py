"""The regional gateway: APIs by one immutable configuration at a time.

    gateway        Gateway, the server: which configuration it serves by, whether it serves
    calls          what becomes of each call
    configuration  Configuration, read from a document, everything wrong with it at once; `document` has its shape
    revision       Revision, a configuration compiled for one gateway
    router         Router, from host, path, version and method to an operation
    backends       where calls go: a Balancer over the URLs of each backend
    units          Units, what a gateway takes: concurrency, rate, a bounded queue, and the gauge of its capacity
    kept           the last configurations on disk
"""

from __future__ import annotations

from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.gateway import Gateway
from lbcore.http.gateway.revision import Revision, StaleRevisionError
from lbcore.http.gateway.units import Load, SharedUnits, Units

__all__ = ["Configuration", "Gateway", "Load", "Revision", "SharedUnits", "StaleRevisionError", "Units"]
