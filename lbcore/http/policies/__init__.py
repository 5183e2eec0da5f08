"""Policies: what a gateway does to calls besides forwarding them, from a configuration's sections inbound, backend, outbound, on_error.

    policy      Policy, the base of all; Site, where one works; Step, what it becomes for each call
    context     Context, what a step sees of a call and may change
    conditions  `when`: a small expression over a call, of words and parts
    kinds       which policies there are: the stock ones and the entry-point group `lbcore.policies`
    reading     a document's table -> Policies, every violation at once
    pipeline    Policies of the scopes -> Pipeline, the steps of one API in their order
    headers paths routing rate_limit ip_filter cors api_keys tokens answers records    the stock ones, by what they are about
    values      what conditions and policies read of a call;  fields: headers that may be written;  key_sets: keys for tokens
Nothing is synchronised between regions: counters, key sets and caches are each gateway's own.
"""

from __future__ import annotations

from lbcore.http.message import Response
from lbcore.http.policies.context import Context, Deployment, Failure, Reply, Retry, Timeout
from lbcore.http.policies.key_sets import KeySets
from lbcore.http.policies.kinds import registry
from lbcore.http.policies.pipeline import Pipeline, build
from lbcore.http.policies.policy import SECTIONS, Policy, Site, Step
from lbcore.http.policies.rate_limit import share_of
from lbcore.http.policies.reading import Policies, read_policies

__all__ = [
    "SECTIONS",
    "Context",
    "Deployment",
    "Failure",
    "KeySets",
    "Pipeline",
    "Policies",
    "Policy",
    "Reply",
    "Response",
    "Retry",
    "Site",
    "Step",
    "Timeout",
    "build",
    "read_policies",
    "registry",
    "share_of",
]
