"""Lookup: from a question to what is said about it, by one version of Answers and Program."""

from __future__ import annotations

from dataclasses import replace

import dns.rcode
import dns.rdatatype
from dns.rcode import REFUSED, SERVFAIL, Rcode
from dns.rdatatype import AAAA, ANY, AXFR, HTTPS, IXFR, RRSIG, SVCB, A, RdataType

from lbcore.dns.answers import Body, Entry, Forms, Found, Node
from lbcore.dns.current import Version
from lbcore.dns.names import from_key
from lbcore.dns.query import Query
from lbcore.dns.response import FAIL_OPEN, NOT_AUTHORITATIVE, PROHIBITED, SUSPECT, Reply, failed, only
from lbcore.dns.route import Choice

__all__ = ["Lookup", "result_of"]

_NODATA, _NXDOMAIN, _REFUSED, _SEVERAL = -1, -2, -4, -5
_MAX_MADE = 4096


class Lookup:
    """Answer questions of class IN. What is not prepared is made when it is first asked for, and kept for the next."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self._made: dict[tuple[bytes, int, tuple[int, ...]], Forms] = {}
        self._proofs: dict[tuple[bytes, int, Body | None], Body] = {}  # names that are made up fall into few gaps of the chain
        self._texts: dict[bytes, str] = {}

    def reply(self, asked: Query, source: bytes | None, suspect: bool) -> Reply:
        """Give what a question is answered with.

        source: the address that asked, packed, for when the query names no network; None = unknown
        suspect: whether to say that verdicts are frozen
        """
        found = self.version.answers.find(asked.name)
        if found is None:
            return failed(REFUSED, NOT_AUTHORITATIVE)
        if asked.rdtype in (AXFR, IXFR):
            return failed(REFUSED, PROHIBITED)
        reply = self._in_zone(asked, found, source)
        reply.origin = len(found.zone.key)
        if reply.choice is not None:
            reply.errors = (*((FAIL_OPEN,) if reply.choice.fail_open else ()), *((SUSPECT,) if suspect else ()))
        return reply

    def _in_zone(self, asked: Query, found: Found, source: bytes | None) -> Reply:
        node, encloser = found.node, found.encloser
        if encloser.referral and (node is None or asked.rdtype not in node.types):
            return self._referral(asked, encloser)
        if node is None:
            labels = (self._text(found.zone.key), "", "", "", "nxdomain")
            return Reply(self._denial(asked, found), labels=labels, topic=(encloser.name, 0))
        if asked.rdtype == RRSIG and self.version.answers.parts[found.zone].chain is not None:
            reply = self._any(replace(asked, dnssec_ok=True), node, source)
            reply.body = only(RRSIG, reply.body)  # a denial would contradict the NSEC that goes with it
        else:
            reply = self._any(asked, node, source) if asked.rdtype == ANY else self._typed(asked, node, asked.rdtype, source)
        if found.wildcard and asked.dnssec_ok:
            reply.body = self._proven(asked, node, reply.body)
        return reply

    def _referral(self, asked: Query, cut: Node) -> Reply:
        assert cut.other is not None and cut.other.fixed is not None
        labels = (self._text(cut.zone.key), "", "other", "", "referral")
        return Reply(_body(cut.other.fixed, asked), labels=labels, topic=(cut.name, 0))

    def _denial(self, asked: Query, found: Found) -> Body:
        part = self.version.answers.parts[found.zone]
        if part.chain is None or not asked.dnssec_ok:
            return _body(self.version.answers.nxdomain[found.zone.key], asked)
        encloser = found.encloser.name
        key = (encloser, part.chain.gap(asked.name), None)
        if key not in self._proofs:
            self._keep(key, _body(part.denial(asked.name, encloser), asked))
        return self._proofs[key]

    def _proven(self, asked: Query, wildcard: Node, body: Body) -> Body:
        """Add the proof that the name itself does not exist."""
        part = self.version.answers.parts[wildcard.zone]
        if part.chain is None:
            return body
        key = (wildcard.name, part.chain.gap(asked.name), body)
        if key not in self._proofs:
            self._keep(key, part.proven(asked.name, wildcard.name, body))
        return self._proofs[key]

    def _keep(self, key: tuple[bytes, int, Body | None], proof: Body) -> None:
        if len(self._proofs) >= _MAX_MADE:
            self._proofs.clear()
        self._proofs[key] = proof

    def _any(self, asked: Query, node: Node, source: bytes | None) -> Reply:
        """Give the first record set that there is for this client; the scope is that of all that were looked at."""
        scope = 0
        for rdtype in (*(each for each in (A, AAAA) if each in node.types), *node.types, 0):
            reply = self._typed(asked, node, rdtype, source)
            reply.scope = scope = max(scope, reply.scope)
            if reply.body.answers or reply.body.rcode:
                break
        return reply

    def _typed(self, asked: Query, node: Node, rdtype: int, source: bytes | None) -> Reply:
        entry = node.types.get(rdtype, node.other)
        assert entry is not None
        if entry.fixed is not None:
            reply, region = Reply(_body(entry.fixed, asked)), ""
        else:
            reply, region = self._steered(asked, node, entry, rdtype, source)
        text = dns.rdatatype.to_text(RdataType.make(rdtype)) if rdtype in node.types else "other"
        # Static names are counted by their zone: a label for each would be without bounds.
        name = self._text(node.name) if node.profile is not None else ""
        reply.labels = (self._text(node.zone.key), name, text, region, result_of(reply.body))
        reply.topic = (node.name, rdtype if rdtype in node.types else 0)  # types are the client's to choose, and all denied alike
        return reply

    def _steered(self, asked: Query, node: Node, entry: Entry, rdtype: int, source: bytes | None) -> tuple[Reply, str]:
        base = asked.subnet.base if asked.subnet is not None else None
        client = base or source
        choice = self.version.program.choose(entry.root, client, asked.id, rdtype in (HTTPS, SVCB))
        slots = self._slots(entry, rdtype, choice, client, asked.id)
        forms = self._forms(node, entry, rdtype, choice, slots)
        reply = Reply(_body(forms, asked)) if forms else failed(REFUSED if choice.region == _REFUSED else SERVFAIL)
        reply.choice, reply.ttl = choice, choice.ttl
        reply.scope = choice.scope if base else 0
        return reply, self.version.answers.regions[slots[0]] if slots else ""

    def _slots(self, entry: Entry, rdtype: int, choice: Choice, client: bytes | None, turn: int) -> tuple[int, ...]:
        """Give the regions whose records are wanted."""
        if choice.region == _SEVERAL:
            return tuple(self.version.program.several(entry.root, client, turn))
        if choice.region < 0:
            return ()
        return (choice.region, choice.second) if rdtype in (HTTPS, SVCB) and choice.second >= 0 else (choice.region,)

    def _forms(self, node: Node, entry: Entry, rdtype: int, choice: Choice, slots: tuple[int, ...]) -> Forms | None:
        """Give what a choice is answered with, None for an error."""
        if choice.region == _NXDOMAIN:
            return entry.nxdomain
        if choice.region == _NODATA or (choice.region == _SEVERAL and not slots):
            return entry.nodata
        if choice.region == _SEVERAL:
            return self._several(node, rdtype, slots)
        if len(slots) > 1:
            return entry.pairs.get((slots[0], slots[1])) or self._several(node, rdtype, slots)
        return entry.regions[slots[0]] if slots else None

    def _several(self, node: Node, rdtype: int, slots: tuple[int, ...]) -> Forms:
        assert node.steered is not None
        key = (node.name, rdtype, slots)
        forms = self._made.get(key)
        if forms is None:
            if len(self._made) >= _MAX_MADE:
                self._made.clear()
            forms = self._made[key] = node.steered.several(rdtype, slots)
        return forms

    def _text(self, name: bytes) -> str:
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = from_key(name).to_text(omit_final_dot=True)
        return text


def _body(forms: Forms, asked: Query) -> Body:
    """Give the form that a query wants, in the rotation that its id draws."""
    rotations = ((forms.signed or forms.unproven) if asked.dnssec_ok else None) or forms.plain
    return rotations[asked.id % len(rotations)]


def result_of(body: Body) -> str:
    """Give what an answer is counted as."""
    if body.rcode:
        return dns.rcode.to_text(Rcode(body.rcode)).lower()
    return "noerror" if body.answers else "nodata" if body.authoritative else "referral"
