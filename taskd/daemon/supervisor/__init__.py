"""A daemon of several processes: starts its workers, watches them, and ends them.

It knows the daemon's other modules, since a forked worker runs a node. Begin with
`supervisor`; `acceptor` listens and hands connections out, `membership` knows which workers
live, `relay` carries what they tell each other, and `worker_process` is one of them, seen from
outside, `worker_main` from inside.
"""

from taskd.daemon.supervisor.supervisor import run

__all__ = ["run"]
