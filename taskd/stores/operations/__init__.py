"""What the stores that speak SQL do, each operation written once.

An operation is a coroutine over a `session.Session`: it reads rows, has the domain decide,
and writes rows. It knows no driver: each store has a session with the statements of its
database. Begin with `settlement`, which is typical; `session` says what may differ.
"""
