"""``make cluster-demo``: three real nodes on private servers, in a temporary folder.

It uses the servers of the tests, and so belongs to the development environment; what
`taskd demo` has (receiver, display, stories of one task) is used here as it is.
"""
