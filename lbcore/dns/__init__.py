"""The DNS edge: a query comes in, the addresses of the closest healthy region go out.

`zone` says which names are answered for and `profile` how one of them is routed; `prepare` writes every answer ahead (`answers`),
`route` compiles profiles, `current` keeps both up to date; `query` reads a packet, `lookup` finds what is said, `response` writes it,
`responder` is all that in one (bytes in, bytes out); `server` carries packets over UDP and TCP, and `_wire` is the compiled loop for
what is prepared. Needs dnspython: `pip install "lbcore[dns]"`.
"""

from importlib.util import find_spec

if find_spec("dns") is None:
    raise ImportError('lbcore.dns needs dnspython: pip install "lbcore[dns]"', name="dns")

from lbcore.dns.profile import Profile
from lbcore.dns.responder import Responder
from lbcore.dns.zone import Zone

__all__ = ["Profile", "Responder", "Zone"]
