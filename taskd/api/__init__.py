"""The HTTP API: the wire protocol on one side, the `Service` on the other."""

from taskd.api.app import create_app

__all__ = ["create_app"]
