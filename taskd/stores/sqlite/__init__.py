"""The Store port on a SQLite file: the truth of a daemon on one machine.

It knows its port, the domain and the runtime. Begin with `statements`, which the
store's operations run by `session`; `writer` is the one thread that writes, `lock` and
`guard` keep the file's only daemon honest.
"""
