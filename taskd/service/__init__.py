"""The use cases: what a client may ask for, without HTTP.

It knows the ports and the engine; rights are checked here and nowhere above. Begin with
`service`.
"""
