"""Adapters of the Store port: where tasks live.

They know the port, the domain and the runtime, and neither configuration nor engine. Begin
with `memory`, the model that `sqlite` and `mysql` are held against; what these two do is
written once, in `operations`, and how their writers share transactions in `batching`.
"""
