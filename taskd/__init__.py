"""taskd: a durable task daemon that calls your application back over HTTP."""

__version__ = "0.1.0"
