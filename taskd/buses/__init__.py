"""Adapters of the Bus port: signals between nodes, nonces, and who leads.

They know the port, the domain and the runtime. Begin with `local`; `machine` is between
worker processes, `redis` between the nodes of a cluster.
"""
