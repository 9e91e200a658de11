"""The language of the wire protocol: strict JSON, fields, points in time, the envelope.

Pure functions of bytes and values, which know the errors and nothing else of the API.
Begin with `fields`.
"""
