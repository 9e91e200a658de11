"""The Queue port on NSQ: wake-ups that any node of a cluster may take.

It knows its port and the runtime, and is imported only if the config chooses it. Begin with
`queue`; `inbox`, `watch` and `ready` decide without I/O, `link` keeps one nsqd connected.
"""
