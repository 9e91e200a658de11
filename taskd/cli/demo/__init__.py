"""``taskd demo``: plays what may happen to a task, with a daemon in a temporary folder.

Begin with `command`, then `stories`.
"""
