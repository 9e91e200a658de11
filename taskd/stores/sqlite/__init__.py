"""The Store port on a SQLite file, for a daemon on one machine.

It knows its port, the domain and the runtime. Begin with `statements`, which the store's
operations run by `session`. `writer` writes, and `log_sync` makes that durable; `lock` keeps
other daemons away, and `guard` finds out when the files are moved, replaced or cut.
"""
