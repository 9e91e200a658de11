"""The HTTP API: the wire protocol on one side, the `Service` on the other.

It knows the service, the configuration and the runtime; no other package knows a web
framework. Begin with `app`, which puts it together; a request goes through `http`, `entrances`
and `authentication` to its endpoint.
"""

from taskd.api.app import create_api

__all__ = ["create_api"]
