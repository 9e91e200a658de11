"""The operations of the stores that speak SQL, each written once.

An operation is a coroutine over a `session.Session`: it reads rows, lets the domain decide,
and writes rows. It knows no driver: each store has a session with the statements of its
database. Begin with `settlement`, which is typical; `session` says what may differ.
"""
