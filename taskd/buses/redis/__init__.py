"""The Bus port on Redis: what the nodes of a cluster tell each other.

It knows its port and the runtime, and is imported only where it is chosen. Begin with
`bus`; `signals`, `nonces` and `pulse` are its three parts, `link` a connection that Trio
tasks may use.
"""
