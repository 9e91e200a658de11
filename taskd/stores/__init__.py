"""Adapters of the Store port: where tasks live.

They know the port, the domain and the runtime, and neither configuration nor engine. Begin
with `memory`, the model that `sqlite` and `mysql` are held against. The operations of these
two are written once, in `operations`; `batching` says how their writers share transactions.
"""
