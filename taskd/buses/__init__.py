"""Adapters of the Bus port: signals and notices between nodes, nonces, leadership.

They know the port, the domain and the runtime; `machine` also the link. Begin with `local`,
for a node that is alone; `machine` connects worker processes, `redis` the nodes of a cluster.
"""
