"""The DNS edge: a query comes in, the addresses of the closest healthy region go out.

`zone` says which names are answered for and `profile` how one of them is routed; `prepare` writes every answer ahead (`answers`),
`route` compiles profiles, `current` keeps both up to date; `query` reads a packet, `lookup` finds what is said, `response` writes it,
`responder` is all that in one (bytes in, bytes out); `server` carries packets over UDP and TCP, and `_wire` is the compiled loop for
what is prepared. Beside them:

    routing    profile  rules geography networks (what a profile may say)  route _route (its compiled form)  status  explain
    zones      zone  zonefile  names  place (what a region is answered with)  configured (zones of lbcore.toml)
    answers    prepare = fixed + steered + writing  answers _prepared (Python's and C's form)  current (kept up to date)
    signing    dnssec (signatures, NSEC)  keys  keyfiles (BIND's)  rollover (when what)
    packets    query  lookup  response  responder  _packet _respond (the same, compiled)  _cookies  _rrl (rate limit)
    serving    server  sockets  stream (TCP)  loops _wire (threads)  handover (restart without loss)  metrics  querylog

Needs dnspython: `pip install "lbcore[dns]"`.
"""

from importlib.util import find_spec

if find_spec("dns") is None:
    raise ImportError('lbcore.dns needs dnspython: pip install "lbcore[dns]"', name="dns")

from lbcore.dns.profile import Profile
from lbcore.dns.responder import Responder
from lbcore.dns.zone import Zone

__all__ = ["Profile", "Responder", "Zone"]
