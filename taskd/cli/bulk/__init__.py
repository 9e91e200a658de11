"""``taskd task submit --from``: any number of tasks, from a file or a pipe.

Begin with `command`.
"""
