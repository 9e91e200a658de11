"""The Bus port on Redis: signals and notices, nonces and leadership in a cluster.

It knows its port and the runtime, and is imported only if the config chooses it. Begin with
`bus`; `signals`, `nonces` and `pulse` are its three parts, `link` a connection that Trio
tasks may use.
"""
