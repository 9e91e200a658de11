"""A daemon of several processes: who starts them, watches them, and ends them.

It knows everything below it in the daemon, since what it forks runs a node. Begin with
`supervisor`.
"""

from taskd.daemon.supervisor.supervisor import run

__all__ = ["run"]
