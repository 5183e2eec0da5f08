"""The HTTP edge: calls go to the closest healthy gateway.

    transport   for programs that call: transports for httpx; `exchange` has their decisions, `budget` how many retries they may make
    front       for calls of others: the front door; `routes` to regions, `explore`, `affinity`
    gateway/    the regional gateway: one immutable configuration of APIs at a time
    policies/   what gateways do to calls
    forward     the engine below both: a server that forwards calls as a Handler says
                    inbound, reading          clients' connections, requests; `proxy_protocol`
                    call                      one request, its attempts, its response; `relay` what is upgraded
                    target, upstream, response    where calls go, connections there, responses
                    heads, message            what is written, and the rules about it
                    certificates              TLS, replaced while serving
    _limits     counters that processes share
    configured  what serves HTTP, as lbcore.toml has it
    workers     a front door, and `regional` a gateway, in processes of their own; `accepting`, `metrics`, `accesslog`
"""
