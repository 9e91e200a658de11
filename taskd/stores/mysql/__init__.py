"""The Store port on a MySQL or MariaDB database, for clusters.

It knows its port, the domain and the runtime, and is imported only if it is configured.
Begin with `statements`, which the store's operations run by `session`; `writer` makes
transactions of waiting calls, on a `connection` that is either in order or never used again.
"""
