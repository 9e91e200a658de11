"""When work starts, who may begin it, and what is left behind.

It knows the ports, the delivery and the domain, and nothing of HTTP requests or of
configuration. Begin with `timer`, then `dispatcher`, then `execution`: the way of one task.
"""
