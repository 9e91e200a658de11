"""The HTTP API: the wire protocol on one side, the `Service` on the other."""

from taskd.api.app import create_api

__all__ = ["create_api"]
