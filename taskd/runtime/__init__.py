"""Tools for any process, whatever it does: logs, signals, text, limits, pauses.

It knows the ground (`taskd.clock`, `taskd.errors`, `taskd.domain`) and nothing of tasks
but their names in the log. Begin with `logs`, which all other packages use.
"""
