"""The engine decides when tasks start and which may begin, runs them, and cleans up after them.

It knows the ports, the delivery and the domain, and nothing of HTTP requests or of
configuration. Begin with `timer`, then `dispatcher`, then `execution`: the way of one task.
"""
