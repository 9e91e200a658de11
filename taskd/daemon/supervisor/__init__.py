"""A daemon of several processes: starts its workers, watches them, and ends them.

It knows the daemon's other modules, since a forked worker runs a node. Begin with
`supervisor`.
"""

from taskd.daemon.supervisor.supervisor import run

__all__ = ["run"]
