"""The Store port on a MySQL or MariaDB database: the truth of a cluster.

It knows its port, the domain and the runtime, and is imported only where it is chosen.
Begin with `statements`, which the store's operations run by `session`; `writer` makes
transactions of what waits, `connection` is one connection that is in order or never used
again.
"""
