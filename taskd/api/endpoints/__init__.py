"""One module for each kind of request: it reads the fields, asks the `Service`, and shows
the result.

They know the wire, the authentication and the service, and nothing of sockets. Begin with
`tasks`.
"""
