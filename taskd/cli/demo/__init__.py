"""``taskd demo``: a daemon and a receiver in a temporary folder, and what a task goes through.

Begin with `command`, then `stories`.
"""
