"""The daemon as a process: its making from a configuration, its run, changes and end.

It knows every package but the command line. Begin with `run`; `node` puts the parts of one
node together, `adapters` chooses the adapters that the configuration names, `steering` obeys
signals, `transfer` moves a store's tasks, and `supervisor` runs several processes.
"""
