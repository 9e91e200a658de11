"""The use cases: what a client may ask for, without HTTP.

It knows the ports and the engine, and checks rights, which no layer above does. Begin with
`service`.
"""
