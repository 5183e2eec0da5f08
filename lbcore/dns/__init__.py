"""The DNS edge: a query comes in, the addresses of the closest healthy region go out.

`profile` says what is answered for, `query` reads a packet, `zone` holds what is the same for everybody, `responder` answers
(bytes in, bytes out), `server` carries packets over UDP and TCP. Needs dnspython: `pip install "lbcore[dns]"`.
"""

from importlib.util import find_spec

if find_spec("dns") is None:
    raise ImportError('lbcore.dns needs dnspython: pip install "lbcore[dns]"', name="dns")

from lbcore.dns.profile import Profile
from lbcore.dns.responder import Responder

__all__ = ["Profile", "Responder"]
