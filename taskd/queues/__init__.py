"""Adapters of the Queue port: wake-ups on their way to a dispatcher.

They know the port, the domain and the runtime. Begin with `local`: `machine` shares it out
among worker processes, and `nsq` among the nodes of a cluster.
"""
