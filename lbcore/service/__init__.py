"""The multi-region service: one primary that manages, any number of regions that serve.

    model     what an operator wants, and what runs         body      both as the REST API takes and shows them
    rules     everything that is wrong with a wish, at once facts     what they need to know;  changes: what may not change
    plan      what a wish changes, before anything changes  progress  what each step of it makes of what runs
    timing    how long an outage lasts for clients          codes     every reason to refuse;  draft: a table not yet saved
    store     what survives, in SQLite                      backup    one file with all of it, and the way back
    operations  what carries a Save out, step by step       rotation  which regions clients may be sent to
    provisioning  who makes regions run: local (its process: local_gateway), external, manual
    configuration   what gateways serve by: the protocol    primary, remote  it over the store, over HTTP;  difference: of two
    sync      keeps a gateway at the latest revision
    tokens    who may speak to it, and as what         api       REST over a plane (FastAPI)
    plane     all of it together, what API and portal stand on    watching  the primary's own probes;  statuses: the monitor's words
    rotation_document  who is listed, for edges         reports   what edges say back;  notices: who wants to know is told
    capacity  how much of a region works, how busy it is    gauges    what gateways say of that
    traffic_manager   the profile, as the REST API takes and shows it

Of the store: `database` is the file, `schema` its tables, `record` a state as text; `journal`, `revisions`, `logbook` and `tokenrows` are
operations, configurations, history with events, and tokens.
"""
