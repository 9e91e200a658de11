"""Power cuts that are made from a recording.

A daemon runs with `recorder.c` preloaded, which writes down, in one order, each write, cut and
sync of its store's files and each answer that it sends (`recording`). From any moment of that,
`crash_states` makes files as a power cut may leave them: all that was synced is there, and of
the rest any part. The product opens them (`opening`), and `facts` compares what it finds with
what had been told by then.
"""
