"""The language of the wire protocol: strict JSON, fields, points in time, the envelope.

Pure functions of bytes and values: they know the errors, and nothing of the API's other
packages. Begin with `fields`.
"""
