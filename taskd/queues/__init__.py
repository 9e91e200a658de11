"""Adapters of the Queue port: wake-ups on their way to a dispatcher.

They know the port, the domain and the runtime; `machine` also the link. Begin with `local`,
for a node that is alone; `machine` connects worker processes, `nsq` the nodes of a cluster.
"""
