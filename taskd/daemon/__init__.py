"""The daemon as a process: put together from a configuration, run, reconfigured, ended.

It knows everything but the command line. Begin with `run`; `node` puts the parts of one
node together, `adapters` chooses those that the configuration names, and `supervisor` runs
several processes.
"""
