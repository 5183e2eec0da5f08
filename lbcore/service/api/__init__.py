"""The management API (REST): one ASGI application over a Plane.

    app      the application, and what a secondary answers     guard    what holds for every request: Host, sizes, headers, audit
    calls    who asks, for what; routes and who may            reading  JSON, strictly;  refusing  errors in one shape;  audit  who wrote
    routes/  service, configuration, steering, owner, public   models, document  what the OpenAPI document says;  metrics  Prometheus
"""

try:
    from lbcore.service.api.app import BOOKS, application, secondary
except ImportError as error:
    raise ImportError("the management API needs fastapi: pip install 'lbcore[service]'", name=error.name) from error

__all__ = ["BOOKS", "application", "secondary"]
